//go:build linux

package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Rig owns a temporary directory and all processes of a run.
type Rig struct {
	Dir string

	mu       sync.Mutex
	children []*Process
}

// New makes a rig and raises the limit of open files, which children inherit, to what the system allows.
func New() (*Rig, error) {
	dir, err := os.MkdirTemp("", "rota-bench-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // a worker that dropped its privileges reads its files here
		return nil, err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		limit.Cur = limit.Max
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
		if err != nil {
			return nil, fmt.Errorf("raising the limit of open files: %w", err)
		}
	}
	return &Rig{Dir: dir}, nil
}

// Close stops every process and removes the directory.
func (r *Rig) Close() {
	r.mu.Lock()
	children := r.children
	r.mu.Unlock()
	for _, p := range children {
		p.Stop()
	}
	os.RemoveAll(r.Dir)
}

// File writes a file into a directory of its own and returns its path.
func (r *Rig) File(name, content string) (string, error) {
	dir, err := os.MkdirTemp(r.Dir, "")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(content), 0o644)
}

// Build builds a program of the module, such as cmd/rota, into the directory and returns the path of the binary.
func (r *Rig) Build(ctx context.Context, program string) (string, error) {
	path := filepath.Join(r.Dir, filepath.Base(program))
	out, err := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/rota-lb/rota/"+program).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", program, err, out)
	}
	return path, nil
}

// Address returns a free address on loopback. Nothing holds it, so start what shall listen there soon.
func Address() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// Process is a running child with all its descendants: they share a process group.
type Process struct {
	Name string

	cmd    *exec.Cmd
	output *tail
	done   chan struct{}
	err    error
	once   sync.Once
}

// Start starts a program. It is killed when this process dies, and by [Rig.Close].
func (r *Rig) Start(name string, env []string, argv ...string) (*Process, error) {
	p := &Process{Name: name, output: &tail{}, done: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Dir = r.Dir
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.WaitDelay = time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	r.children = append(slices.DeleteFunc(r.children, (*Process).exited), p)
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *Process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Stop ends the process and its group: politely, and after two seconds not.
func (p *Process) Stop() {
	p.once.Do(func() {
		pgid := p.cmd.Process.Pid
		syscall.Kill(pgid, syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(2 * time.Second):
		}
		syscall.Kill(-pgid, syscall.SIGKILL)
		<-p.done
	})
}

// Pause stops the process where it stands, until [Process.Resume].
func (p *Process) Pause() { syscall.Kill(p.cmd.Process.Pid, syscall.SIGSTOP) }

// Resume lets a process go on that was paused.
func (p *Process) Resume() { syscall.Kill(p.cmd.Process.Pid, syscall.SIGCONT) }

// Interrupt asks the process to finish by SIGINT and waits for it.
func (p *Process) Interrupt(ctx context.Context) error {
	syscall.Kill(p.cmd.Process.Pid, syscall.SIGINT)
	return p.Wait(ctx)
}

// Wait waits for the process to end and returns its error, if any, with what it last printed.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		p.Stop()
		return ctx.Err()
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", p.Name, p.err, p.output)
	}
	return nil
}

// Output is the end of what the process printed.
func (p *Process) Output() string { return p.output.String() }

// CPU is what the process used from start to end; it is known once the process has ended.
func (p *Process) CPU() time.Duration {
	return p.cmd.ProcessState.SystemTime() + p.cmd.ProcessState.UserTime()
}

// Ready calls probe until it succeeds, the process ends or ten seconds have passed.
func (p *Process) Ready(ctx context.Context, probe func() error) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := probe()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case p.exited():
			return fmt.Errorf("%s ended: %v\n%s", p.Name, p.err, p.output)
		case time.Now().After(deadline):
			return errors.Join(fmt.Errorf("%s is not ready: %w", p.Name, err), errors.New(p.output.String()))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// tail keeps the last of what is written.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if excess := len(t.buf) - 64<<10; excess > 0 {
		t.buf = append([]byte(nil), t.buf[excess:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}
