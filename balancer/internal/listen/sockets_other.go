//go:build !unix

package listen

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// Sockets are not handed over here: there is nothing to keep.

func duplicate(syscall.Conn) (fd int, err error) { return -1, nil }

func passable([]socket) ([]*os.File, error) { return nil, errors.ErrUnsupported }

func closeSocket(int) {}

func keepPrivate(int) {}

func listening(int) bool { return true }

func restrict(syscall.RawConn, fs.FileMode) error { return nil }
