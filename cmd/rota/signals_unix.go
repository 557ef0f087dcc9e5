//go:build unix

package main

import (
	"os"
	"syscall"
)

// What operators ask for by a signal.
var (
	reopenSignal   os.Signal = syscall.SIGUSR1
	handoverSignal os.Signal = syscall.SIGUSR2
)
