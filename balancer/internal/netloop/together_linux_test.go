package netloop

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// round has so many clients send a byte while the loop is held up, so that it meets all of them in one round. It returns when each of
// them has an answer, or has not.
func (r *rig) round(clients int) {
	r.t.Helper()
	conns := make([]net.Conn, clients)
	for i := range conns {
		conns[i] = r.dial()
	}
	r.eventually("all are there", func() bool { open, _ := r.Connections(); return open == clients })
	held, release := make(chan struct{}), make(chan struct{})
	r.Engine.(*loops).all[0].Post(func() { close(held); <-release })
	<-held
	for _, c := range conns {
		io.WriteString(c, "x")
	}
	close(release)
	for _, c := range conns {
		c.Read(make([]byte, 1))
	}
}

// Those that a round finds ready all read before the first one sends, but no more of them than may wait.
func TestSendTogether(t *testing.T) {
	const clients = together + 4
	var steps strings.Builder
	r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
		var b [1]byte
		c.Read(b[:])
		steps.WriteByte('r')
		c.Write(b[:])
		steps.WriteByte('w')
		return time.Minute
	})
	r.round(clients)
	r.stop()
	want := strings.Repeat("r", together) + strings.Repeat("w", together) + strings.Repeat("r", 4) + strings.Repeat("w", 4)
	if steps.String() != want {
		t.Errorf("steps %s, want %s", steps.String(), want)
	}
}

// Who waits to send is told that his connection was closed meanwhile.
func TestClosedBeforeSend(t *testing.T) {
	var first Conn
	var sent error
	r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
		c.Read(make([]byte, 1))
		if first != nil {
			first.Close()
			return 0
		}
		first = c
		_, sent = c.Write([]byte("x"))
		return 0
	})
	r.round(2)
	r.stop()
	if !errors.Is(sent, net.ErrClosed) {
		t.Errorf("got %v", sent)
	}
}
