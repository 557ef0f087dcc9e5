package netloop

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A connection that is accepted sends at once, though only its listener was told to, and knows its peer.
func TestAcceptedSocket(t *testing.T) {
	for _, network := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", network)
		if err != nil {
			t.Skip(err)
		}
		type seen struct {
			noDelay int
			remote  string
		}
		saw := make(chan seen, 1)
		r := startOn(t, Options{Engine: Loops, Loops: 2}, ln, func(c Conn) time.Duration {
			n, _ := unix.GetsockoptInt(baseConn(c).fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
			saw <- seen{n, c.Remote().String()}
			return 0
		})
		c := r.dial()
		c.Write([]byte("x"))
		if got := <-saw; got.noDelay != 1 || got.remote != c.LocalAddr().String() {
			t.Errorf("%s: %+v, want the peer %s", network, got, c.LocalAddr())
		}
	}
}

// A connection that came before its listener was served sends at once too, as all others do.
func TestEarlySocket(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", ln.Addr().String()) // it waits in the kernel's queue
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	saw := make(chan int, 1)
	startOn(t, Options{Engine: Loops, Loops: 2}, ln, func(c Conn) time.Duration {
		n, _ := unix.GetsockoptInt(baseConn(c).fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
		saw <- n
		return 0
	})
	c.Write([]byte("x"))
	if got := <-saw; got != 1 {
		t.Errorf("TCP_NODELAY is %d", got)
	}
}
