package netloop

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const haveEpoll = true

// loops is the engine of epoll loops.
type loops struct {
	Options
	all       []*loop
	sockets   atomic.Int64 // open, those on their way to a loop and the ends of pipes included
	closeIdle atomic.Bool
}

func newLoops(o Options) (Engine, error) {
	e := &loops{Options: o}
	for i := range o.Loops {
		l, err := newLoop(e, i)
		if err != nil {
			for _, l := range e.all {
				l.free()
			}
			return nil, err
		}
		e.all = append(e.all, l)
	}
	return e, nil
}

func (e *loops) Name() string { return Loops }

// running counts the loops of all engines of this process.
var running struct {
	sync.Mutex
	loops int
}

// Run raises GOMAXPROCS above the number of loops by two: a loop keeps its P while it waits, and there have to be some for the rest.
func (e *loops) Run(ctx context.Context) error {
	count := func(n int) {
		running.Lock()
		defer running.Unlock()
		if running.loops += n; runtime.GOMAXPROCS(0) < running.loops+2 {
			runtime.GOMAXPROCS(running.loops + 2)
		}
	}
	count(len(e.all))
	defer count(-len(e.all))
	var wg sync.WaitGroup
	for _, l := range e.all {
		wg.Go(l.run)
	}
	<-ctx.Done()
	for _, l := range e.all {
		l.post(func() { l.stopping = true })
	}
	wg.Wait()
	return nil
}

func (e *loops) CloseIdle() {
	e.closeIdle.Store(true)
	for _, l := range e.all {
		l.post(l.dropIdle)
	}
}

func (e *loops) Connections() (open, serving int) {
	for _, l := range e.all {
		open += int(l.clients.Load())
		serving += int(l.serving.Load())
	}
	return open, serving
}

// full reports whether no more sockets may be opened, but for reserve of them.
func (e *loops) full(reserve int64) bool {
	return e.Sockets > 0 && e.sockets.Load() >= int64(e.Sockets)-reserve
}

// Lag is that of the slowest loop.
func (e *loops) Lag() time.Duration {
	var lag int64
	for _, l := range e.all {
		lag = max(lag, l.lag.Load())
	}
	return time.Duration(lag)
}

// Answer implements [Engine].
func (e *loops) Answer(ctx context.Context) error {
	for _, l := range e.all {
		round := make(chan struct{})
		l.Post(func() { close(round) })
		select {
		case <-round:
		case <-ctx.Done():
			return fmt.Errorf("loop %d: %w", l.index, ctx.Err())
		}
	}
	return nil
}

// Usage implements [Engine].
func (e *loops) Usage() (all Usage) {
	for _, l := range e.all {
		answer := make(chan Usage, 1)
		l.post(func() { answer <- l.usage })
		select {
		case u := <-answer:
			all.add(u)
		case <-l.dead:
			all.add(l.usage)
		}
	}
	return all
}

// Listen has every loop accept: the kernel wakes one that waits. A loop keeps what it accepts, so that a connection costs no hop,
// unless it has more than another one by so much that work would wait there ([loop.heir]); so the split does not depend on the
// kernel either.
func (e *loops) Listen(ln net.Listener, h Handler, a Admission) (Listener, error) {
	defer ln.Close()
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("netloop: cannot take over a %T", ln)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(p uintptr) { fd, dupErr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	s := &listener{engine: e, fd: fd, addr: ln.Addr(), handler: h, admission: a}
	s.open.Store(int32(len(e.all)))
	unix.SetNonblock(fd, true)
	noDelay(fd) // which those that come from now on have from it
	for _, l := range e.all {
		if !l.post(func() { l.addListener(s) }) {
			s.release()
		}
	}
	return s, nil
}

// listener is a listening socket, of all loops.
type listener struct {
	engine  *loops
	fd      int
	addr    net.Addr
	handler Handler
	// admission decides who may connect; nil is everybody.
	admission Admission
	closed    atomic.Bool
	open      atomic.Int32 // loops that have it
}

// accepting is a listener as one loop has it.
type accepting struct {
	*listener
	paused bool // out of descriptors; looked at again at the next tick
	late   bool // the queue has been empty since noDelay was said to its socket, so that whoever comes has it from there
}

func (s *listener) Addr() net.Addr { return s.addr }

func (s *listener) Close() error {
	if s.closed.Swap(true) {
		return net.ErrClosed
	}
	for _, l := range s.engine.all {
		done := make(chan struct{})
		if !l.post(func() { l.dropListener(s); close(done) }) {
			continue
		}
		select {
		case <-done:
		case <-l.dead:
		}
	}
	return nil
}

// release lets go of the socket for one loop. The last one closes it.
func (s *listener) release() {
	if s.open.Add(-1) == 0 {
		unix.Close(s.fd)
	}
}

// loop is one event loop. Only the fields marked shared may be touched from outside its goroutine and coroutines.
type loop struct {
	engine *loops
	index  int
	ep     int
	wakeFD int
	start  time.Time
	now    time.Time
	tick   int64 // nanoseconds since start at the last wake, never zero
	asked  int64 // tick of the last wake that reported all there was
	swept  int64
	due    int64 // when the next sweep has something to do, if no event comes before; zero is unknown
	stayed int64

	conns     []*conn // by descriptor
	listeners []*accepting
	parked    map[any]*parked

	waiters  []*waiter // in Wait, in no order
	pipes    spares[*pipe]
	ready    []*coro // to be resumed in this round
	later    []*coro // to be resumed in the next one
	running  *coro
	gather   bool      // who wants to send waits for others
	senders  []*coro   // those that wait
	unsent   []*behind // and what others have left to be sent
	behinds  spares[*behind]
	coros    spares[*coro]
	buffers  spares[[]byte]
	usage    Usage
	stopping bool
	quiet    int // waits in a row in which nothing has happened

	scheduling scheduling

	clients atomic.Int64 // shared: open client connections, those on their way to this loop included
	serving atomic.Int64 // shared: of those, being served
	lag     atomic.Int64 // shared: nanoseconds that a round takes of late, at most
	dead    chan struct{}

	mu     sync.Mutex
	posted []func() // shared, under mu
	taken  []func() // what posted was before
	woken  bool     // shared, under mu: a wake is under way
	ended  bool     // shared, under mu: nothing is posted any more
}

func newLoop(e *loops, index int) (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err == nil {
		err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET&0xffffffff, Fd: int32(wake)})
	}
	if err != nil {
		unix.Close(ep)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	now := time.Now()
	return &loop{
		engine: e, index: index, ep: ep, wakeFD: wake, start: now, now: now, tick: 1,
		parked: map[any]*parked{}, dead: make(chan struct{}),
	}, nil
}

func (l *loop) free() {
	unix.Close(l.ep)
	unix.Close(l.wakeFD)
}

func (l *loop) Index() int     { return l.index }
func (l *loop) Now() time.Time { return l.now }

// Post implements [Loop].
func (l *loop) Post(fn func()) { l.post(fn) }

// post has fn run on the loop's thread, soon. It may be called from anywhere. It reports false when the loop has ended, and fn
// will not be run. The lock is held while the loop is woken: else the descriptor could be another one's by then.
func (l *loop) post(fn func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.posted = append(l.posted, fn)
	if !l.woken {
		l.woken = true
		one := [8]byte{1}
		unix.Write(l.wakeFD, one[:])
	}
	return true
}

// takePosted runs what was posted. The descriptor is edge-triggered: nobody needs to read it.
func (l *loop) takePosted() {
	l.mu.Lock()
	fns := l.posted
	l.posted, l.taken, l.woken = l.taken[:0], fns, false
	l.mu.Unlock()
	for _, fn := range fns {
		fn()
	}
	clear(fns)
}

// run is the loop. Each round marks what the kernel reports on the connections, then resumes the coroutines that can go
// on. Nothing is closed while events are being marked, so an event never meets another connection under the same number.
func (l *loop) run() {
	defer l.shutdown()
	events := make([]unix.EpollEvent, 256)
	for !l.stopping {
		n := l.wait(events)
		l.now = time.Now()
		l.tick = max(1, int64(l.now.Sub(l.start)))
		if n < len(events) {
			l.asked = l.tick
		}
		wake := false
		for i := range events[:n] {
			if fd := int(events[i].Fd); fd == l.wakeFD {
				wake = true
			} else if fd < len(l.conns) && l.conns[fd] != nil {
				l.conns[fd].event(events[i].Events)
			} else {
				l.accept(fd)
			}
		}
		if wake {
			l.takePosted()
		}
		l.nextRound()
		l.resume()
		if l.tick-l.swept >= int64(Tick) {
			l.sweep()
			l.resume()
		}
		if lag := int64(time.Since(l.now)); lag > l.lag.Load() {
			l.lag.Store(lag)
		}
		l.stay()
	}
}

// nextRound makes those ready who let others go first.
func (l *loop) nextRound() {
	for _, co := range l.later {
		co.later = false
		co.wake()
	}
	l.later = l.later[:0]
}

// together is how many coroutines receive, and send, one after the other, if there are as many.
const together = 16

// resume runs the ready coroutines until none is left. What they will receive is read first, and who wants to send waits until the others
// of the round want to as well: a peer then is woken once for several messages, and the processor does the same thing several
// times in a row, kernel or not, with what that takes in its caches.
func (l *loop) resume() {
	fetched := 0
	for i := 0; i < len(l.ready); i++ {
		if i == fetched {
			fetched = min(i+together, len(l.ready))
			for _, co := range l.ready[i:fetched] {
				if c := co.wants; c != nil {
					co.wants = nil
					c.fetch()
				}
			}
		}
		l.gather = i+1 < len(l.ready)
		l.enter(l.ready[i])
		if i+1 < len(l.ready) && len(l.senders)+len(l.unsent) < together {
			continue
		}
		l.gather = false
		l.sendUnsent()
		for _, co := range l.senders {
			l.enter(co)
		}
		clear(l.senders)
		l.senders = l.senders[:0]
	}
	l.running = nil
	clear(l.ready)
	l.ready = l.ready[:0]
}

// enter runs a coroutine until it parks or has done its job.
func (l *loop) enter(co *coro) {
	co.queued, co.moved = false, 0
	l.running = co
	co.next()
}

// beforeSend parks the running coroutine while there are others to wait for. It counts as woken already: what else would wake it has
// left its trace in the connection.
func (l *loop) beforeSend() {
	if !l.gather {
		return
	}
	co := l.running
	co.queued = true
	l.senders = append(l.senders, co)
	l.park()
}

// shutdown closes everything and lets every coroutine come to its end: each wait now fails at once.
func (l *loop) shutdown() {
	l.stopping = true
	l.scheduling.end()
	for _, s := range l.listeners {
		s.release()
	}
	l.listeners = nil
	for again := true; again; {
		again = false
		for _, c := range l.conns {
			if c != nil {
				c.close()
				again = true
			}
		}
		for _, w := range l.waiters {
			w.co.wake()
			again = true
		}
		l.nextRound()
		l.resume()
	}
	for _, p := range l.pipes.all() {
		l.closePipe(p)
	}
	for _, co := range l.coros.all() {
		co.stop()
	}
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.takePosted() // connections handed over at the last moment are closed there
	close(l.dead)
	l.free()
}

// accept takes what waits on a listening socket.
func (l *loop) accept(fd int) {
	for _, s := range l.listeners {
		if s.fd != fd {
			continue
		}
		for range 128 {
			if !l.acceptOne(s, reserve(l.engine.Sockets)) {
				return
			}
		}
	}
}

// acceptOne takes one connection, unless fewer than so many sockets may still be opened. It reports whether there may be another
// one to take.
func (l *loop) acceptOne(s *accepting, reserve int) bool {
	if l.engine.full(int64(reserve)) {
		l.pause(s)
		return false
	}
	fd, remote, err := accept(s.fd)
	switch err {
	case 0:
		if !s.late {
			noDelay(fd)
		}
		if s.admission != nil && !s.admission.Admit(remote.Addr()) {
			closeSocket(fd)
			return true
		}
		to := l.heir()
		to.clients.Add(1)
		l.engine.sockets.Add(1)
		if to == l {
			l.adopt(fd, remote, s.listener)
		} else if !to.post(func() { to.adopt(fd, remote, s.listener) }) {
			to.refuse(fd, remote, s.listener)
		}
		return true
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		l.pause(s)
		return false
	}
	s.late = s.late || err == unix.EAGAIN
	return err == unix.ECONNABORTED || err == unix.EINTR
}

// pause stops accepting until the next sweep.
func (l *loop) pause(s *accepting) {
	s.paused = true
	unix.EpollCtl(l.ep, unix.EPOLL_CTL_DEL, s.fd, nil)
}

// heir is the loop that gets a connection accepted here: this one, unless another one has fewer by more than a few.
func (l *loop) heir() *loop {
	own := l.clients.Load()
	best, least := l, own
	for _, o := range l.engine.all {
		if n := o.clients.Load(); n < least {
			best, least = o, n
		}
	}
	if own <= least+2+least/16 {
		return l
	}
	return best
}

// adopt begins to look after a client connection that is already counted, in l.clients and in sockets.
func (l *loop) adopt(fd int, remote netip.AddrPort, s *listener) {
	c, err := l.add(fd)
	if err != nil {
		l.refuse(fd, remote, s)
		return
	}
	c.remote, c.handler, c.listener, c.peer = remote, s.handler, s, remote.Addr()
	c.idleUntil = l.tick + int64(l.engine.FirstByte)
	if l.engine.closeIdle.Load() {
		c.idleUntil = l.tick + int64(min(l.engine.FirstByte, freshFor))
	}
}

// refuse closes a connection that is counted already.
func (l *loop) refuse(fd int, remote netip.AddrPort, s *listener) {
	unix.Close(fd)
	l.clients.Add(-1)
	l.engine.sockets.Add(-1)
	if s.admission != nil {
		s.admission.Release(remote.Addr())
	}
}

// add registers a socket, once and for all: edge-triggered, both directions.
func (l *loop) add(fd int) (*conn, error) {
	if l.stopping {
		return nil, net.ErrClosed
	}
	const events = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff
	if e := watch(l.ep, fd, events); e != 0 {
		return nil, os.NewSyscallError("epoll_ctl", e)
	}
	for len(l.conns) <= fd {
		l.conns = append(l.conns, nil)
	}
	c := &conn{loop: l, fd: fd}
	l.conns[fd] = c
	return c, nil
}

func (l *loop) addListener(s *listener) {
	if l.stopping {
		s.release()
		return
	}
	l.listeners = append(l.listeners, &accepting{listener: s})
	l.attend(s)
}

// attend has the loop told of connections that wait, if no other one is.
func (l *loop) attend(s *listener) {
	unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, s.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: int32(s.fd)})
}

// dropListener ends accepting on a socket, after it has taken what waits on it, also on one that is paused. Before that the kernel
// is told to wake somebody else, perhaps a successor in another process: whoever was woken for a connection must take it.
func (l *loop) dropListener(s *listener) {
	i := slices.IndexFunc(l.listeners, func(a *accepting) bool { return a.listener == s })
	if i < 0 {
		return
	}
	a := l.listeners[i]
	l.listeners = slices.Delete(l.listeners, i, i+1)
	l.pause(a)
	for n := 0; n < longestQueue && l.acceptOne(a, reserve(l.engine.Sockets)/2); n++ {
	}
	s.release()
}

// dropIdle closes the client connections that wait for a request and have none under way.
func (l *loop) dropIdle() {
	for _, c := range l.conns {
		switch {
		case c == nil || c.handler == nil || c.serving || c.readable:
		case c.served:
			c.close()
		default:
			c.idleUntil = min(c.idleUntil, l.tick+int64(freshFor))
		}
	}
}

// sweep enforces deadlines and lets go of what is no longer used.
func (l *loop) sweep() {
	second := l.swept/int64(time.Second) != l.tick/int64(time.Second)
	l.swept = l.tick
	for _, s := range l.listeners {
		if s.paused {
			s.paused = false
			l.attend(s.listener)
		}
	}
	due := l.tick + int64(longest)
	passed := func(until int64) bool {
		if until == 0 || l.tick > until {
			return until != 0
		}
		due = min(due, until)
		return false
	}
	for _, c := range l.conns {
		if c == nil {
			continue
		}
		if c.reader != nil && passed(c.readUntil) {
			c.reader.wake()
		}
		if c.writer != nil && passed(c.writeUntil) {
			c.writer.wake()
		}
		if passed(c.idleUntil) {
			c.close()
		}
	}
	for _, w := range l.waiters {
		if passed(w.until) {
			w.co.wake()
		}
	}
	if l.due = due; len(l.ready) > 0 {
		l.due = 0 // who is resumed now sets other ones
	}
	if lag := l.lag.Load(); lag > 0 {
		l.lag.Store(lag * 7 / 8)
	}
	l.scheduling.schedule(l.tick)
	if !second {
		return
	}
	for key, p := range l.parked {
		if l.engine.Stale != nil && l.engine.Stale(key) {
			for len(p.conns) > 0 {
				p.conns[len(p.conns)-1].close()
			}
		}
		if len(p.conns) == 0 {
			delete(l.parked, key)
			p.key = nil
		}
	}
	for _, co := range l.coros.shrink() {
		co.stop()
	}
	l.buffers.shrink()
	l.behinds.shrink()
	for _, p := range l.pipes.shrink() {
		l.closePipe(p)
	}
}

// Buffer implements [Loop].
func (l *loop) Buffer() []byte {
	l.usage.Buffers++
	if b, ok := l.buffers.take(); ok {
		return b
	}
	return make([]byte, BufferSize)
}

// Free implements [Loop].
func (l *loop) Free(b []byte) {
	if cap(b) == BufferSize {
		l.usage.Buffers--
		l.buffers.give(b[:BufferSize])
	}
}

// spares is a stack of things that can be used again. It remembers how many were never needed since the last shrink.
type spares[T any] struct {
	stack  []T
	unused int
}

func (s *spares[T]) take() (v T, ok bool) {
	k := len(s.stack) - 1
	if k < 0 {
		return v, false
	}
	v = s.stack[k]
	var zero T
	s.stack[k] = zero
	s.stack = s.stack[:k]
	s.unused = min(s.unused, k)
	return v, true
}

func (s *spares[T]) give(v T) { s.stack = append(s.stack, v) }

func (s *spares[T]) all() []T { return s.stack }

// shrink gives up half of what was not needed since the last call, and returns it.
func (s *spares[T]) shrink() []T {
	n := (s.unused + 1) / 2
	if n > len(s.stack) {
		n = len(s.stack)
	}
	gone := append([]T(nil), s.stack[:n]...)
	rest := append([]T(nil), s.stack[n:]...)
	if n > 0 {
		s.stack = rest
	}
	s.unused = len(s.stack)
	return gone
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
