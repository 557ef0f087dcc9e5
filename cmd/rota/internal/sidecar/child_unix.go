//go:build unix

package sidecar

import (
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

// terminate is what a program is told to stop with when no signal says another.
const terminate = syscall.SIGTERM

var (
	stopping = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT}
	others   = []os.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGTTIN, syscall.SIGTTOU}
)

// stops reports whether a signal asks for the end.
func stops(sig os.Signal) bool { return slices.Contains(stopping, sig) }

// notify begins to take signals. Those that this process was started to ignore, as by nohup, it ignores, and so does the
// program.
func notify() (<-chan os.Signal, func()) {
	signals := make(chan os.Signal, 16)
	for _, sig := range slices.Concat(stopping, others) {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
	return signals, func() { signal.Stop(signals) }
}

// child is the program, leader of a process group of its own, so that what a terminal sends to ours does not reach it
// before it has drained.
type child struct {
	pid     int
	process *os.Process
	exited  chan int // gets the status, once
	killed  bool
}

// spawn starts the program as a leader, and begins to reap.
func spawn(cmd *exec.Cmd) (*child, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	adopt() // only now: a program that cannot be run changes nothing of this process
	c := &child{pid: cmd.Process.Pid, process: cmd.Process, exited: make(chan int, 1)}
	go c.reap()
	return c, nil
}

// reap waits for every child of this process until there are none: for the program, and for whoever has lost its parent.
// os.Process.Wait would have to compete with it.
func (c *child) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return
		case pid != c.pid:
		case status.Signaled():
			c.exited <- 128 + int(status.Signal())
		default:
			c.exited <- status.ExitStatus()
		}
	}
}

// signal passes a signal on to the program alone.
func (c *child) signal(sig os.Signal) { c.process.Signal(sig) }

// stop passes a signal on to the whole group.
func (c *child) stop(sig os.Signal) {
	if s, ok := sig.(syscall.Signal); ok {
		syscall.Kill(-c.pid, s)
	}
}

// kill ends the whole group.
func (c *child) kill() {
	c.killed = true
	syscall.Kill(-c.pid, syscall.SIGKILL)
}

// bury waits, when the program has ended, for the rest of its group, which has been told to stop, and kills what is left
// at the end of grace or at a signal to stop. The number of a group is not given to another one while it has members.
func (c *child) bury(grace <-chan time.Time, signals <-chan os.Signal) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !c.killed && syscall.Kill(-c.pid, 0) == nil {
		select {
		case <-tick.C:
		case <-grace:
			c.kill()
		case sig := <-signals:
			if stops(sig) {
				c.kill()
			}
		}
	}
}
