package etcdtest

import (
	"net"
	"sync"
	"testing"
)

// Relay is a TCP relay to one address that a test can break. All methods may be called concurrently.
type Relay struct {
	target string
	l      net.Listener
	wg     sync.WaitGroup

	mu      sync.Mutex
	flowing *sync.Cond // signalled when paused or closed change
	paused  bool
	refuse  bool
	closed  bool
	conns   map[net.Conn]struct{}
}

// NewRelay listens on a free port of 127.0.0.1 and relays to target, host:port, until the test ends.
func NewRelay(tb testing.TB, target string) *Relay {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &Relay{target: target, l: l, conns: make(map[net.Conn]struct{})}
	r.flowing = sync.NewCond(&r.mu)
	r.wg.Add(1)
	go r.accept()
	tb.Cleanup(r.close)
	return r
}

// Addr is where the relay listens, as host:port.
func (r *Relay) Addr() string { return r.l.Addr().String() }

// Pause stops relaying in both directions. Connections stay open and new ones are accepted, but no byte passes: to
// either end the other seems frozen.
func (r *Relay) Pause() { r.set(func() { r.paused = true }) }

// Resume relays again, from the byte where Pause stopped.
func (r *Relay) Resume() { r.set(func() { r.paused = false }) }

// Cut closes all connections. New ones are relayed unless Refuse says otherwise.
func (r *Relay) Cut() { r.set(r.cut) }

// Refuse closes all connections, and new ones as soon as they are made, until Accept.
func (r *Relay) Refuse() { r.set(func() { r.refuse = true; r.cut() }) }

// Accept ends Refuse.
func (r *Relay) Accept() { r.set(func() { r.refuse = false }) }

func (r *Relay) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	r.flowing.Broadcast()
}

func (r *Relay) cut() {
	for c := range r.conns {
		c.Close()
	}
}

func (r *Relay) close() {
	r.l.Close()
	r.set(func() { r.closed = true; r.cut() })
	r.wg.Wait()
}

func (r *Relay) accept() {
	defer r.wg.Done()
	for {
		c, err := r.l.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.relay(c) })
	}
}

func (r *Relay) relay(down net.Conn) {
	defer down.Close()
	if !r.pass(nil) { // not even the handshake while paused
		return
	}
	up, err := net.Dial("tcp", r.target)
	if err != nil {
		return
	}
	defer up.Close()
	if !r.add(down, up) {
		return
	}
	defer r.remove(down, up)

	done := make(chan struct{})
	go func() {
		defer close(done)
		r.copy(up, down)
	}()
	r.copy(down, up)
	<-done
}

// copy moves bytes until either side ends, then closes both.
func (r *Relay) copy(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 && !r.pass(func() error { _, err := dst.Write(buf[:n]); return err }) {
			return
		}
		if err != nil {
			return
		}
	}
}

// pass waits while the relay is paused, then does f. It says whether to go on.
func (r *Relay) pass(f func() error) bool {
	r.mu.Lock()
	for r.paused && !r.closed {
		r.flowing.Wait()
	}
	closed := r.closed
	r.mu.Unlock()
	if closed {
		return false
	}
	return f == nil || f() == nil
}

func (r *Relay) add(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.refuse {
		return false
	}
	for _, c := range conns {
		r.conns[c] = struct{}{}
	}
	return true
}

func (r *Relay) remove(conns ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		delete(r.conns, c)
	}
}
