//go:build unix

package listen

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// duplicate returns another descriptor of a socket. Processes that are started later do not get it.
func duplicate(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	closed := raw.Control(func(p uintptr) { fd, err = duplicateFD(int(p)) })
	if closed != nil {
		return -1, closed
	}
	return fd, err
}

func duplicateFD(of int) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := syscall.Dup(of)
	if err != nil {
		return -1, os.NewSyscallError("dup", err)
	}
	syscall.CloseOnExec(fd)
	return fd, nil
}

// passable returns files of duplicates of the descriptors, to be passed to a process.
func passable(sockets []socket) (files []*os.File, err error) {
	for _, b := range sockets {
		fd, err := duplicateFD(b.fd)
		if err != nil {
			return files, err
		}
		files = append(files, os.NewFile(uintptr(fd), b.address))
	}
	return files, nil
}

func closeSocket(fd int) { syscall.Close(fd) }

// keepPrivate keeps a descriptor from processes that are started later.
func keepPrivate(fd int) { syscall.CloseOnExec(fd) }

// listening reports whether fd is a stream socket that connections are accepted from.
func listening(fd int) bool {
	on, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	return err == nil && on != 0 || errors.Is(err, syscall.ENOPROTOOPT) // some systems do not say
}

// restrict sets the permissions that the file of a unix socket is made with, where the system allows it.
func restrict(c syscall.RawConn, mode fs.FileMode) error {
	return c.Control(func(fd uintptr) { syscall.Fchmod(int(fd), uint32(mode.Perm())) })
}
