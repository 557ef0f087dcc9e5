package listen

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The errors of a hand-over that is not begun.
var (
	ErrHandover = errors.New("a hand-over is under way already")
	ErrHanded   = errors.New("the sockets have been handed over already")
)

// Handover says how a successor is started. Zero fields take the default.
type Handover struct {
	Path      string        // of the binary; default the one this process was started as, whatever is there now
	Args      []string      // default those of this process
	Timeout   time.Duration // to become warm; default a minute
	Probation time.Duration // that it must live after that; default a second
}

// readyByte is what a successor writes when it is warm.
const readyByte = 'r'

// Handover starts a successor, gives it the listening sockets, and waits until it is warm. Then it returns nil: the caller
// stops accepting, and nobody has been refused, because the sockets were open all the time. If the successor ends, is not
// warm in time, or ctx ends before, it is killed and the error says why; nothing has changed then.
func (s *Sockets) Handover(ctx context.Context, o Handover) (err error) {
	o = o.withDefaults()
	cmd, warm, err := s.start(o)
	if err != nil {
		return err
	}
	defer warm.Close()
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	err = watch(ctx, o, warm, ended)
	if err != nil {
		cmd.Process.Kill() // no-op if it has ended
		<-ended
		err = fmt.Errorf("%w (%v)", err, cmd.ProcessState)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handing, s.handed = false, err == nil
	return err
}

func (o Handover) withDefaults() Handover {
	if o.Path == "" {
		o.Path = self
	}
	if o.Args == nil {
		o.Args = os.Args[1:]
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.Probation == 0 {
		o.Probation = time.Second
	}
	return o
}

// start starts the successor. It will say on warm that it is.
func (s *Sockets) start(o Handover) (cmd *exec.Cmd, warm *os.File, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.handing:
		return nil, nil, ErrHandover
	case s.handed:
		return nil, nil, ErrHanded
	}
	files, err := passable(s.bound)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return nil, nil, fmt.Errorf("the sockets cannot be passed: %w", err)
	}
	warm, theirs, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	files = append(files, theirs)
	addresses := []string{} // in JSON a list, even without any
	for _, b := range s.bound {
		addresses = append(addresses, b.address)
	}
	list, err := json.Marshal(addresses)
	if err != nil {
		warm.Close()
		return nil, nil, err
	}
	cmd = exec.Command(o.Path, o.Args...)
	cmd.ExtraFiles = files
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(slices.DeleteFunc(os.Environ(), passedOn), handoverVariable+"="+string(list))
	if err := cmd.Start(); err != nil {
		warm.Close()
		return nil, nil, fmt.Errorf("the successor does not start: %w", err)
	}
	s.handing = true
	return cmd, warm, nil
}

// passedOn reports whether a variable speaks of sockets that were passed to this process.
func passedOn(variable string) bool {
	name, _, _ := strings.Cut(variable, "=")
	return name == handoverVariable || slices.Contains(systemdVariables, name)
}

// watch waits until the successor is warm and has lived for a while.
func watch(ctx context.Context, o Handover, warm io.Reader, ended <-chan struct{}) error {
	said := make(chan error, 1)
	go func() {
		var b [1]byte
		_, err := io.ReadFull(warm, b[:])
		if err == nil && b[0] != readyByte {
			err = errors.New("it speaks another protocol")
		}
		said <- err
	}()
	timer := time.NewTimer(o.Timeout)
	defer timer.Stop()
	select {
	case err := <-said:
		if err == io.EOF {
			return errors.New("the successor ended before it was warm")
		}
		if err != nil {
			return fmt.Errorf("the successor did not say that it is warm: %w", err)
		}
	case <-ended: // whatever it has started may hold the pipe open
		return errors.New("the successor ended before it was warm")
	case <-timer.C:
		return fmt.Errorf("the successor was not warm within %v", o.Timeout)
	case <-ctx.Done():
		return fmt.Errorf("the hand-over was broken off: %w", context.Cause(ctx))
	}
	timer.Reset(o.Probation)
	select {
	case <-ended:
		return errors.New("the successor ended just after it had become warm")
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the hand-over was broken off: %w", context.Cause(ctx))
	}
}

// self is the path that this process was started as, made absolute before anybody changes what is there. A link to the
// current version stays a link: os.Executable would lead to this very version again.
var self = func() string {
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		if path, err = os.Executable(); err != nil {
			return os.Args[0]
		}
	}
	return path
}()

// Awaited reports whether there is a predecessor that serves until [Sockets.Ready] is called. It is false when that one has died.
func (s *Sockets) Awaited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready != nil && os.Getppid() == s.parent
}

// Ready tells the predecessor that this process is warm. Without one, or when it is gone or was told before, it does nothing.
func (s *Sockets) Ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready != nil {
		s.ready.Write([]byte{readyByte}) // if nobody is there to read it, all the better
		s.ready.Close()
		s.ready = nil
	}
}
