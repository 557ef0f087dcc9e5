package etcdtest

import (
	"syscall"
	"testing"
)

// reservePorts returns n free ports of 127.0.0.1 that stay ours until release is called. Each is held by a socket
// that is bound, with SO_REUSEADDR, but never listens: the kernel gives such a port to nobody who asks for any port,
// yet lets a server listen on it that names it and sets SO_REUSEADDR, as Go's listeners do.
func reservePorts(tb testing.TB, n int) (ports []int, release func()) {
	tb.Helper()
	var fds []int
	release = func() {
		for _, fd := range fds {
			syscall.Close(fd)
		}
	}
	for range n {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err == nil {
			fds = append(fds, fd)
			err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
		}
		if err == nil {
			err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		}
		var sa syscall.Sockaddr
		if err == nil {
			sa, err = syscall.Getsockname(fd)
		}
		if err != nil {
			release()
			tb.Fatalf("etcdtest: reserve a port: %v", err)
		}
		ports = append(ports, sa.(*syscall.SockaddrInet4).Port)
	}
	return ports, release
}
