//go:build !linux

package etcdtest

import (
	"net"
	"testing"
)

// reservePorts returns n ports of 127.0.0.1 that are free now. Nothing keeps others from taking them.
func reservePorts(tb testing.TB, n int) (ports []int, release func()) {
	tb.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatalf("etcdtest: find a port: %v", err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, func() {}
}
