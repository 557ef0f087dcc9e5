package netloop

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// goroutines is the portable engine: a goroutine per connection over package net. Its loops are only shards that
// hold parked connections.
type goroutines struct {
	Options
	all       []*shard
	next      atomic.Int64
	running   chan struct{} // closed when Run begins
	closeIdle atomic.Bool
	serving   atomic.Int64
	sockets   atomic.Int64 // open
	lent      atomic.Int64 // buffers
	lag       atomic.Int64 // nanoseconds
	wg        sync.WaitGroup
	ended     chan struct{} // closed when Run ends

	mu        sync.Mutex
	stopped   bool
	listeners map[*goListener]struct{}
	conns     map[*goConn]struct{} // every open connection; the value of idle is under mu too
	clients   int
}

func newGoroutines(o Options) Engine {
	e := &goroutines{
		Options: o, running: make(chan struct{}), ended: make(chan struct{}),
		listeners: map[*goListener]struct{}{}, conns: map[*goConn]struct{}{},
	}
	for i := range o.Loops {
		e.all = append(e.all, &shard{engine: e, index: i, parked: map[any][]*goConn{}})
	}
	return e
}

func (e *goroutines) Name() string { return Goroutines }

func (e *goroutines) Run(ctx context.Context) error {
	close(e.running)
	tick := time.NewTicker(Tick)
	defer tick.Stop()
	due, sweep := time.Now().Add(Tick), time.Now().Add(time.Second)
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			now := time.Now()
			e.lag.Store(max(e.lag.Load()*7/8, int64(now.Sub(due))))
			due = now.Add(Tick)
			if now.Before(sweep) {
				continue
			}
			sweep = now.Add(time.Second)
			for _, s := range e.all {
				s.dropStale()
			}
		case <-ctx.Done():
		}
	}
	e.mu.Lock()
	e.stopped = true
	close(e.ended)
	for ln := range e.listeners {
		ln.closed.Store(true)
		ln.net.Close()
	}
	for c := range e.conns {
		c.net.Close()
	}
	e.mu.Unlock()
	e.wg.Wait()
	return nil
}

func (e *goroutines) CloseIdle() {
	e.closeIdle.Store(true)
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.conns {
		switch {
		case !c.idle:
		case c.served:
			c.net.SetReadDeadline(past)
		default:
			c.net.SetReadDeadline(time.Now().Add(freshFor))
		}
	}
}

func (e *goroutines) Connections() (open, serving int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.clients, int(e.serving.Load())
}

// Lag is how much later than it should a goroutine has run of late that only waits for time to pass: so late is everybody.
func (e *goroutines) Lag() time.Duration { return time.Duration(e.lag.Load()) }

// Answer has no loops to wait for.
func (e *goroutines) Answer(context.Context) error { return nil }

// Usage has no loops to wait for.
func (e *goroutines) Usage() Usage { return Usage{Buffers: int(e.lent.Load())} }

// full reports whether no more sockets may be opened, but for reserve of them.
func (e *goroutines) full(reserve int) bool {
	return e.Sockets > 0 && int(e.sockets.Load()) >= e.Sockets-reserve
}

// past interrupts a read.
var past = time.Unix(1, 0)

type goListener struct {
	engine *goroutines
	net    net.Listener
	closed atomic.Bool
	done   chan struct{} // closed when nothing is accepted any more
}

// lastAccepts is how long a listener that is being closed accepts what waits in the kernel's queue.
const lastAccepts = time.Second

func (l *goListener) Addr() net.Addr { return l.net.Addr() }

func (l *goListener) Close() error {
	l.engine.mu.Lock()
	_, open := l.engine.listeners[l]
	delete(l.engine.listeners, l)
	l.engine.mu.Unlock()
	if !open {
		return net.ErrClosed
	}
	ends := l.setDeadline(past)
	l.closed.Store(true) // from here on the deadline is that of the goroutine that accepts
	if ends {
		select {
		case <-l.engine.running:
			<-l.done
		default:
		}
	}
	return l.net.Close()
}

// setDeadline limits how long Accept waits; it reports false where that cannot be limited.
func (l *goListener) setDeadline(t time.Time) bool {
	d, ok := l.net.(interface{ SetDeadline(time.Time) error })
	return ok && d.SetDeadline(t) == nil
}

// queued reports whether a connection may be waiting to be accepted.
func (l *goListener) queued() bool {
	if sc, ok := l.net.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			return queued(raw)
		}
	}
	return true
}

func (e *goroutines) Listen(ln net.Listener, h Handler, a Admission) (Listener, error) {
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	l := &goListener{engine: e, net: ln, done: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped {
		ln.Close()
		return nil, net.ErrClosed
	}
	e.listeners[l] = struct{}{}
	e.wg.Go(func() { e.accept(l, h, a) })
	return l, nil
}

func (e *goroutines) accept(l *goListener, h Handler, a Admission) {
	defer close(l.done)
	<-e.running
	var until time.Time // of a listener that is being closed
	for {
		for e.full(reserve(e.Sockets)) && !l.closed.Load() {
			time.Sleep(Tick)
		}
		closed := l.closed.Load()
		if closed {
			now := time.Now()
			if until.IsZero() {
				until = now.Add(lastAccepts)
			}
			if now.After(until) || e.full(reserve(e.Sockets)/2) || !l.queued() || !l.setDeadline(now.Add(lastAccept)) {
				return
			}
		}
		nc, err := l.net.Accept()
		switch {
		case err == nil:
		case closed, errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue // Close wakes it
		default: // out of descriptors, most likely
			time.Sleep(2 * Tick)
			continue
		}
		c := &goConn{net: nc, shard: e.all[int(e.next.Add(1))%len(e.all)]}
		if ap, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil {
			c.remote = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		}
		if c.peer = c.remote.Addr(); a != nil && !a.Admit(c.peer) {
			nc.Close()
			continue
		}
		c.admission = a
		if !e.add(c, true) {
			return
		}
		e.wg.Go(func() { c.serve(h) })
	}
}

// add puts a connection into the books, or closes it when the engine has stopped.
func (e *goroutines) add(c *goConn, client bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped {
		c.net.Close()
		c.release()
		return false
	}
	e.conns[c] = struct{}{}
	e.sockets.Add(1)
	c.client = client
	if client {
		e.clients++
	}
	return true
}

// shard is a loop of the goroutines engine.
type shard struct {
	engine *goroutines
	index  int

	mu     sync.Mutex
	parked map[any][]*goConn
}

var buffers = sync.Pool{New: func() any { return new([BufferSize]byte) }}

func (s *shard) Index() int     { return s.index }
func (s *shard) Now() time.Time { return time.Now() }

func (s *shard) Buffer() []byte {
	s.engine.lent.Add(1)
	return buffers.Get().(*[BufferSize]byte)[:]
}

func (s *shard) Free(b []byte) {
	if cap(b) == BufferSize {
		s.engine.lent.Add(-1)
		buffers.Put((*[BufferSize]byte)(b[:BufferSize]))
	}
}

// Post implements [Loop]. There is no thread that fn would have to run on.
func (s *shard) Post(fn func()) { fn() }

type goTask chan struct{}

func (t goTask) Wait() { <-t }

func (s *shard) Go(fn func()) Task {
	t := make(goTask)
	s.engine.wg.Go(func() {
		defer close(t)
		defer s.report()
		fn()
	})
	return t
}

func (s *shard) report() {
	if v := recover(); v != nil {
		s.engine.Panic(v, debug.Stack())
	}
}

func (s *shard) Dial(address netip.AddrPort, timeout time.Duration) (Conn, error) {
	c, err := s.dial("tcp", address.String(), timeout)
	if err != nil {
		return nil, err
	}
	c.remote = address
	return c, nil
}

func (s *shard) DialUnix(path string, timeout time.Duration) (Conn, error) {
	c, err := s.dial("unix", path, timeout)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (s *shard) dial(network, address string, timeout time.Duration) (*goConn, error) {
	if s.engine.full(0) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.EMFILE}
	}
	nc, err := net.DialTimeout(network, address, timeout)
	if err != nil {
		return nil, err
	}
	c := &goConn{net: nc, shard: s}
	if !s.engine.add(c, false) {
		return nil, net.ErrClosed
	}
	return c, nil
}

// goWaiter implements [Waiter].
type goWaiter struct {
	shard *shard
	woken chan struct{}
}

func (s *shard) NewWaiter() Waiter { return &goWaiter{s, make(chan struct{}, 1)} }

// Wait implements [Waiter].
func (w *goWaiter) Wait(until time.Time, watch Conn) error {
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	gone := make(chan struct{})
	if watch != nil {
		if o := baseGo(watch); len(o.pending) == 0 {
			watcher := o.watch(func(w *watcher) {
				if w.ended {
					close(gone)
				}
			})
			defer watcher.release()
		}
	}
	select {
	case <-w.woken:
		return nil
	case <-w.shard.engine.ended:
		return net.ErrClosed
	case <-gone:
		return ErrPeerGone
	case <-t.C:
		return os.ErrDeadlineExceeded
	}
}

// Wake implements [Waiter].
func (w *goWaiter) Wake(Loop) {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

func (s *shard) Park(key any, other Conn, ttl time.Duration) {
	c := baseGo(other)
	if c.closed.Load() || ttl <= 0 || len(c.pending) > 0 || c.layer != nil && c.layer.Pending() {
		other.Close()
		return
	}
	c.readUntil.Store(nil)
	c.parkedAt = time.Now()
	c.net.SetDeadline(time.Now().Add(ttl))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parked[key] = append(s.parked[key], c)
	c.watcher = c.watch(func(w *watcher) {
		if closed := s.engine.Closed; w.ended && closed != nil {
			closed(key, time.Since(c.parkedAt))
		}
		s.drop(key, w)
	})
}

// drop closes a parked connection whose peer said something, or whose time is over. The watcher may come late: by then the
// connection may have been used and parked again, with another one.
func (s *shard) drop(key any, w *watcher) {
	s.mu.Lock()
	list := s.parked[key]
	for i, c := range list {
		if c.watcher == w {
			s.parked[key] = append(list[:i:i], list[i+1:]...)
			s.mu.Unlock()
			c.Close()
			return
		}
	}
	s.mu.Unlock()
}

func (s *shard) Reuse(key any) Conn {
	for {
		s.mu.Lock()
		list := s.parked[key]
		if len(list) == 0 {
			s.mu.Unlock()
			return nil
		}
		c := list[len(list)-1]
		s.parked[key] = list[:len(list)-1]
		s.mu.Unlock()
		// The watcher may not have run yet since the peer said something: what that is must not be taken for an answer.
		ended := c.watcher.stop() || len(c.pending) > 0
		if raw, err := c.net.(syscall.Conn).SyscallConn(); err == nil && !ended && !unread(raw) {
			c.net.SetDeadline(time.Time{})
			return c.top()
		}
		c.Close()
	}
}

func (s *shard) dropStale() {
	s.mu.Lock()
	var gone []*goConn
	for key, list := range s.parked {
		if s.engine.Stale != nil && s.engine.Stale(key) {
			gone = append(gone, list...)
			list = nil
		}
		if len(list) == 0 {
			delete(s.parked, key)
		}
	}
	s.mu.Unlock()
	for _, c := range gone {
		c.watcher.stop()
		c.Close()
	}
}

// goConn is a connection of the goroutines engine.
type goConn struct {
	net    net.Conn
	shard  *shard
	remote netip.AddrPort
	client bool
	idle   bool // under engine.mu
	served bool // likewise: it was, for more than putting a layer on it
	closed atomic.Bool

	pending   []byte // read ahead, at most one byte
	one       [1]byte
	readUntil atomic.Pointer[time.Time] // a reader and whoever interrupts it set it; nil is none
	watcher   *watcher                  // of a parked connection
	layer     Layer                     // what stands for this connection; nil is itself
	parkedAt  time.Time
	admission Admission  // of the listener; nil is nobody
	peer      netip.Addr // that it was asked about
}

// baseGo is the socket at the bottom of c.
func baseGo(c Conn) *goConn { return base(c).(*goConn) }

// top is what stands for the connection.
func (c *goConn) top() Conn {
	if c.layer != nil {
		return c.layer
	}
	return c
}

// SetLayer implements [Conn].
func (c *goConn) SetLayer(layer Layer) { c.layer = layer }

// SetRemote implements [Conn].
func (c *goConn) SetRemote(address netip.AddrPort) bool {
	if c.admission != nil {
		if !c.admission.Readmit(c.peer, address.Addr()) {
			return false
		}
		c.peer = address.Addr()
	}
	c.remote = address
	return true
}

// release tells the listener's admission that the connection has ended.
func (c *goConn) release() {
	if c.admission != nil {
		c.admission.Release(c.peer)
	}
}

// serve is the life of a client connection.
func (c *goConn) serve(h Handler) {
	e := c.shard.engine
	defer func() { c.top().Close() }()
	defer c.shard.report()
	for idle := e.FirstByte; idle > 0; {
		if !c.waitRequest(idle) {
			return
		}
		c.SetDeadline(time.Time{})
		layer := c.layer
		if idle = c.handle(h); c.closed.Load() {
			return
		}
		e.mu.Lock()
		c.served = c.served || c.layer == layer
		e.mu.Unlock()
	}
}

func (c *goConn) handle(h Handler) time.Duration {
	c.shard.engine.serving.Add(1)
	defer c.shard.engine.serving.Add(-1)
	return h.Serve(c.top())
}

// waitRequest waits until there is something to read.
func (c *goConn) waitRequest(idle time.Duration) bool {
	if len(c.pending) > 0 || c.layer != nil && c.layer.Pending() {
		return true
	}
	e := c.shard.engine
	e.mu.Lock()
	c.idle = true
	c.net.SetReadDeadline(time.Now().Add(idle))
	switch {
	case !e.closeIdle.Load():
	case c.served:
		c.net.SetReadDeadline(past)
	default:
		c.net.SetReadDeadline(time.Now().Add(min(idle, freshFor)))
	}
	e.mu.Unlock()
	n, _ := c.net.Read(c.one[:])
	e.mu.Lock()
	c.idle = false
	e.mu.Unlock()
	c.pending = c.one[:n]
	return n > 0
}

// watcher reads one byte ahead of its connection's owner.
type watcher struct {
	conn     *goConn
	done     chan struct{}
	ended    bool        // end of stream, or an error that is not a deadline; valid after done
	stopping atomic.Bool // stop was called
}

// watch starts a watcher; it calls then with its outcome, unless it was stopped by stop.
func (c *goConn) watch(then func(w *watcher)) *watcher {
	w := &watcher{conn: c, done: make(chan struct{})}
	c.shard.engine.wg.Go(func() {
		n, err := c.net.Read(c.one[:])
		c.pending = c.one[:n]
		w.ended = err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
		close(w.done)
		if !w.stopping.Load() {
			then(w)
		}
	})
	return w
}

// stop ends the watcher and reports whether the stream had ended.
func (w *watcher) stop() (ended bool) {
	w.stopping.Store(true)
	w.conn.net.SetReadDeadline(past)
	<-w.done
	return w.ended
}

// release is stop for a connection that its owner goes on with: its deadline counts again.
func (w *watcher) release() (ended bool) {
	ended = w.stop()
	var until time.Time
	if t := w.conn.readUntil.Load(); t != nil {
		until = *t
	}
	w.conn.net.SetReadDeadline(until)
	return ended
}

// Read implements net.Conn.
func (c *goConn) Read(b []byte) (int, error) {
	if len(c.pending) == 0 || len(b) == 0 {
		return c.net.Read(b)
	}
	n := copy(b, c.pending)
	c.pending = c.pending[n:]
	return n, nil
}

// ReadWatching implements [Conn].
func (c *goConn) ReadWatching(b []byte, other Conn) (int, error) {
	o := baseGo(other)
	if len(o.pending) > 0 || len(c.pending) > 0 {
		return c.Read(b)
	}
	w := o.watch(func(w *watcher) {
		if w.ended {
			c.net.SetReadDeadline(past)
		}
	})
	n, err := c.net.Read(b)
	gone := w.release()
	if gone && n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, ErrPeerGone
	}
	return n, err
}

// Wait implements [Conn]. It always returns early: package net cannot wait without a buffer.
func (c *goConn) Wait(Conn) error { return nil }

func (c *goConn) Write(b []byte) (int, error) { return c.net.Write(b) }

// Receive implements [Conn].
func (c *goConn) Receive(other Conn) (b []byte, n int, err error) { return receive(c, other) }

// Send implements [Conn].
func (c *goConn) Send(b []byte) error {
	n, err := c.net.Write(b)
	c.shard.Free(b)
	return sendError(n, err)
}

// Close implements net.Conn.
func (c *goConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	c.forget()
	return c.net.Close()
}

// forget takes the connection out of the engine's books.
func (c *goConn) forget() {
	e := c.shard.engine
	e.mu.Lock()
	delete(e.conns, c)
	if c.client {
		e.clients--
	}
	e.mu.Unlock()
	e.sockets.Add(-1)
	c.release()
}

// tryWrite sends what can be sent soon.
func (c *goConn) tryWrite(b []byte) {
	c.net.SetWriteDeadline(time.Now().Add(Tick))
	c.net.Write(b)
}

// Unacknowledged implements [Conn].
func (c *goConn) Unacknowledged() int {
	if sc, ok := c.net.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			return unacknowledged(raw)
		}
	}
	return -1
}

// CloseWrite implements [Conn].
func (c *goConn) CloseWrite() error {
	if w, ok := c.net.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Abort implements [Conn].
func (c *goConn) Abort() {
	if t, ok := c.net.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// Detach implements [Conn].
func (c *goConn) Detach() (net.Conn, error) {
	if c.closed.Swap(true) {
		return nil, net.ErrClosed
	}
	c.forget()
	if len(c.pending) > 0 {
		return &prefixed{c.net, c.pending}, c.net.SetDeadline(time.Time{})
	}
	return c.net, c.net.SetDeadline(time.Time{})
}

// prefixed is a connection with a byte that was read ahead.
type prefixed struct {
	net.Conn
	pending []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.pending) == 0 || len(b) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.pending)
	p.pending = p.pending[n:]
	return n, nil
}

// SetDeadline implements net.Conn.
func (c *goConn) SetDeadline(t time.Time) error {
	c.readUntil.Store(&t)
	return c.net.SetDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *goConn) SetReadDeadline(t time.Time) error {
	c.readUntil.Store(&t)
	return c.net.SetReadDeadline(t)
}

// ReadWithin implements [Conn].
func (c *goConn) ReadWithin(d time.Duration) { c.SetReadDeadline(time.Now().Add(d)) }

// WriteWithin implements [Conn].
func (c *goConn) WriteWithin(d time.Duration) { c.SetWriteDeadline(time.Now().Add(d)) }

// SetWriteDeadline implements net.Conn.
func (c *goConn) SetWriteDeadline(t time.Time) error { return c.net.SetWriteDeadline(t) }

func (c *goConn) Loop() Loop             { return c.shard }
func (c *goConn) Remote() netip.AddrPort { return c.remote }
func (c *goConn) LocalAddr() net.Addr    { return c.net.LocalAddr() }
func (c *goConn) RemoteAddr() net.Addr   { return c.net.RemoteAddr() }
