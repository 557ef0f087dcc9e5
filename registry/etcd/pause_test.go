//go:build unix

package registryetcd

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
)

// process is a child that registers.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
}

func startProcess(t *testing.T, s *etcdtest.Server) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0]), lines: make(chan string, 1000)}
	p.cmd.Env = append(os.Environ(), childVariable+"="+s.Endpoints()[0])
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			p.lines <- sc.Text()
		}
	}()
	t.Cleanup(func() {
		p.cmd.Process.Signal(syscall.SIGCONT)
		in.Close()
		<-read
		p.cmd.Wait()
	})
	return p
}

// wait returns the line that says the process has reached the state.
func (p *process) wait(state registry.RegistrationState) (incarnation string) {
	p.t.Helper()
	timeout := time.After(deadline)
	for {
		select {
		case line := <-p.lines:
			f := strings.Fields(line)
			if len(f) == 4 && f[1] == fmt.Sprint(state) {
				return f[2]
			}
			if f[0] != "state" {
				p.t.Fatal(line)
			}
		case <-timeout:
			p.t.Fatalf("the process did not reach state %d", state)
		}
	}
}

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// A process is stopped for longer than its lease lives, and goes on.
func TestThaw(t *testing.T) {
	t.Parallel()
	key := registry.Keys{}.Instance("thaw", "a")
	freeze := func(t *testing.T) (*etcdtest.Server, *process, string, int64) {
		s := etcdtest.Start(t)
		p := startProcess(t, s)
		incarnation := p.wait(registry.Registered)
		_, lease := stored(t, s, "thaw", "a")
		w := watchAll(t, dial(t, s.Endpoints()))
		waitView(t, w, map[string]string{key: "10.0.0.7:5001"})
		p.signal(syscall.SIGSTOP)
		waitView(t, w, nil)
		return s, p, incarnation, lease
	}
	t.Run("alone", func(t *testing.T) {
		t.Parallel()
		s, p, incarnation, lease := freeze(t)
		p.signal(syscall.SIGCONT)
		p.wait(registry.Retrying)
		if again := p.wait(registry.Registered); again != incarnation {
			t.Errorf("incarnation %s after the thaw, was %s", again, incarnation)
		}
		in, newLease := stored(t, s, "thaw", "a")
		if in == nil || in.Incarnation != incarnation || newLease == lease {
			t.Errorf("etcd holds %+v under lease %x, which was %x", in, newLease, lease)
		}
	})
	t.Run("superseded", func(t *testing.T) {
		t.Parallel()
		s, p, _, _ := freeze(t)
		c := dial(t, s.Endpoints())
		reg := register(t, c, instance("thaw", "a"))
		p.signal(syscall.SIGCONT)
		p.wait(registry.Superseded)
		waitStored(t, s, c, reg)
	})
}
