package sidecar

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
)

// Exit statuses of programs that could not be run, as shells and env(1) have them.
const (
	statusNotExecutable = 126
	statusNotFound      = 127
)

// start runs the program with our standard output and error. It gets our standard input, too, unless that is a terminal:
// who reads from one without being in its foreground is stopped by the system, which nobody would understand.
func start(command, env []string) (*child, int, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if info, err := os.Stdin.Stat(); err == nil && info.Mode()&os.ModeCharDevice == 0 {
		cmd.Stdin = os.Stdin
	}
	c, err := spawn(cmd)
	switch {
	case err == nil:
		return c, 0, nil
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return nil, statusNotFound, fmt.Errorf("%s: no such program: %w", command[0], err)
	}
	return nil, statusNotExecutable, fmt.Errorf("%s: cannot be run: %w", command[0], err)
}
