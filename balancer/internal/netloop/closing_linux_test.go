package netloop

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// gate admits everybody, the first one only when it is opened: until then whoever comes waits in the kernel's queue.
type gate struct {
	first            sync.Once
	reached, opened  chan struct{}
	admitted, inside atomic.Int32
}

func newGate() *gate { return &gate{reached: make(chan struct{}), opened: make(chan struct{})} }

func (g *gate) Admit(netip.Addr) bool {
	g.first.Do(func() { close(g.reached); <-g.opened })
	g.admitted.Add(1)
	g.inside.Add(1)
	return true
}

func (g *gate) Readmit(netip.Addr, netip.Addr) bool { return true }

func (g *gate) Release(netip.Addr) { g.inside.Add(-1) }

// closing reports whether Close of a listener was called.
func closing(l Listener) bool {
	if l, ok := l.(*listener); ok {
		return l.closed.Load()
	}
	return l.(*goListener).closed.Load()
}

// Whoever is in the kernel's queue when a listener is closed is served, however many they are.
func TestCloseServesQueue(t *testing.T) {
	const queued = 600
	eachEngine(t, func(t *testing.T, engine string) {
		r := start(t, Options{Engine: engine}, echo)
		g := newGate()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r.address = ln.Addr().String()
		l, err := r.Engine.Listen(ln, handlerFunc(echo), g)
		if err != nil {
			t.Fatal(err)
		}
		conns := []net.Conn{r.dial()}
		<-g.reached
		for range queued {
			conns = append(conns, r.dial())
		}
		closed := make(chan error)
		go func() { closed <- l.Close() }()
		r.eventually("the listener is being closed", func() bool { return closing(l) })
		close(g.opened)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		if n := g.admitted.Load(); n != queued+1 {
			t.Errorf("%d connections accepted when the listener had closed, of %d", n, queued+1)
		}
		for i, c := range conns {
			say(t, c, fmt.Sprint(i))
		}
	})
}

// A listener that accepts nobody, because only what dialling needs is left of the sockets, still serves its queue when it is
// closed, from a half of that.
func TestCloseServesQueueWhenFull(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		const sockets, queued = 64, 4
		r := start(t, Options{Engine: engine, Sockets: sockets}, echo)
		for range sockets - reserve(sockets) {
			say(t, r.dial(), "x")
		}
		var conns []net.Conn
		for range queued {
			conns = append(conns, r.dial())
		}
		conns[0].SetReadDeadline(time.Now().Add(3 * Tick))
		conns[0].Write([]byte("0"))
		if n, err := conns[0].Read(make([]byte, 1)); err == nil {
			t.Errorf("a connection beyond the bound was served: %d bytes", n)
		}
		conns[0].SetReadDeadline(time.Now().Add(10 * time.Second))
		if err := r.listener.Close(); err != nil {
			t.Error(err)
		}
		for _, c := range conns[1:] {
			say(t, c, "x")
		}
		if _, err := conns[0].Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
}

// A connection that was taken off its loop counts no more: neither as a socket, nor with who admitted it.
func TestDetachReleases(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		const sockets = 8 // of which one is left for dialling
		r := start(t, Options{Engine: engine, Sockets: sockets}, echo)
		g := newGate()
		close(g.opened)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r.address = ln.Addr().String()
		detached := make(chan net.Conn, 1)
		if _, err := r.Engine.Listen(ln, handlerFunc(func(c Conn) time.Duration {
			n, err := c.Detach()
			if err != nil {
				t.Error(err)
			}
			detached <- n
			return time.Minute
		}), g); err != nil {
			t.Fatal(err)
		}
		for range 2 * sockets {
			c := r.dial()
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			select {
			case d := <-detached:
				defer d.Close()
			case <-time.After(10 * time.Second):
				t.Fatal("not served: those detached before still count as open")
			}
		}
		if n := g.inside.Load(); n != 0 {
			t.Errorf("%d connections are still admitted", n)
		}
		if open, _ := r.Connections(); open != 0 {
			t.Errorf("%d connections are still open", open)
		}
	})
}

// What is asked of a loop that has ended goes nowhere: the descriptor that used to wake it may be another one's by now.
func TestPostAfterEnd(t *testing.T) {
	e, err := New(Options{Engine: Loops, Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	e.Run(ctx)
	var others [64]int // they get every descriptor that is free
	for i := range others {
		if others[i], err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(others[i])
	}
	e.CloseIdle()
	for _, fd := range others {
		if _, err := unix.Read(fd, make([]byte, 8)); err != unix.EAGAIN {
			t.Errorf("a loop that has ended wrote to what has its descriptor now: %v", err)
		}
	}
}
