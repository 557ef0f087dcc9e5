//go:build !unix

package sidecar

import (
	"os"
	"os/exec"
	"os/signal"
	"time"
)

// terminate is what a program is told to stop with when no signal says another.
var terminate = os.Interrupt

// stops reports whether a signal asks for the end.
func stops(sig os.Signal) bool { return sig == os.Interrupt }

func notify() (<-chan os.Signal, func()) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, os.Interrupt)
	return signals, func() { signal.Stop(signals) }
}

// child is the program. There are no process groups here, and no signals but the one that kills.
type child struct {
	pid     int
	process *os.Process
	exited  chan int // gets the status, once
}

func spawn(cmd *exec.Cmd) (*child, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{pid: cmd.Process.Pid, process: cmd.Process, exited: make(chan int, 1)}
	go func() {
		cmd.Wait()
		c.exited <- cmd.ProcessState.ExitCode()
	}()
	return c, nil
}

func (c *child) signal(os.Signal) {}

// stop asks as politely as can be done here, which is not at all where the system knows no interrupt.
func (c *child) stop(sig os.Signal) {
	if c.process.Signal(sig) != nil {
		c.kill()
	}
}

func (c *child) kill() { c.process.Kill() }

func (c *child) bury(<-chan time.Time, <-chan os.Signal) {}
