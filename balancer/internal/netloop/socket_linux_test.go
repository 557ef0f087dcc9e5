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
