// Package netloop runs connections: event loops, coroutines, deadlines, idle connections.
//
// There are two engines behind one interface. The loops engine (Linux) has one epoll loop per core, each on its own OS
// thread. An exchange in flight is a coroutine of its loop, so code that uses a [Conn] is straight-line blocking code,
// while the loop switches between coroutines without the Go scheduler. An idle connection holds no coroutine, no stack
// and no buffer: only a small record. The goroutines engine does the same with a goroutine per connection over package
// net; it is the portable fallback and can be chosen on Linux too.
//
// # Rules for code that runs on a loop
//
// Code in a [Handler] and in functions given to [Loop.Go] runs on a loop. It must not block except in methods of this
// package: no lock held across them, no channel, no disk, no DNS. A Conn belongs to its loop: its methods may be called
// only by code that runs there, by at most one reader and one writer at a time. Close may be called while another
// coroutine waits in Read or Write, which then returns net.ErrClosed. Every Read and Write may let others go first, a Write
// also when the peer would take it at once: those that are ready at the same time send together. [Conn.Receive] and [Conn.Send] do so
// without a switch to the coroutine and back.
//
// # When things go wrong
//
// A panic in a handler is reported to [Options.Panic] and closes that connection only. Running out of file descriptors
// pauses accepting until the next [Tick], as does reaching [Options.Sockets]. Deadlines are enforced by a sweep every [Tick], so they are late by
// up to that much; a deadline that is in the past when an operation begins is noticed at once.
package netloop

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"time"
)

// The names of the engines, as an operator writes them.
const (
	Loops      = "loops"
	Goroutines = "goroutines"
)

// Tick is how often deadlines are looked at.
const Tick = 50 * time.Millisecond

// freshFor is how long a connection that has not brought its first request yet is kept by [Engine.CloseIdle]: its client
// may be sending it.
const freshFor = time.Second

// longestQueue is how many connections a listener that is being closed accepts at most. Kernels do not queue more: this ends
// accepting where clients come as fast as they are taken.
const longestQueue = 64 << 10

// reserve is how many of the sockets that may be open are left for dialling while connections are accepted.
func reserve(sockets int) int { return sockets / 8 }

// BufferSize is the length of the buffers that [Loop.Buffer] lends.
const BufferSize = 16 << 10

// Slack is how many bytes at the end of its buffer [Conn.Receive] leaves free: what a head gains on its way still goes out with what was
// received behind it, from a buffer of the same length.
const Slack = 512

// ErrPeerGone says that the peer of the watched connection went away while the caller waited for another one.
var ErrPeerGone = errors.New("netloop: watched peer has gone away")

// SendError is the error of a [Conn.Send].
type SendError struct {
	Sent int // bytes that were with the kernel before
	Err  error
}

func (e *SendError) Error() string { return e.Err.Error() }
func (e *SendError) Unwrap() error { return e.Err }

// receive is [Conn.Receive] by reading.
func receive(c, other Conn) (b []byte, n int, err error) {
	if err := c.Wait(other); err != nil {
		return nil, 0, err
	}
	b = c.Loop().Buffer()
	if into := b[:BufferSize-Slack]; other != nil {
		n, err = c.ReadWatching(into, other)
	} else {
		n, err = c.Read(into)
	}
	if err != nil {
		c.Loop().Free(b)
		b = nil
	}
	return b, n, err
}

func sendError(sent int, err error) error {
	if err == nil {
		return nil
	}
	return &SendError{sent, err}
}

// Exhausted reports whether a connection could not be opened for want of something of this host's: descriptors, ports,
// memory. That says nothing about its peer.
func Exhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Conn is a connection that belongs to a loop. Deadlines have the precision of [Tick].
type Conn interface {
	net.Conn

	// Loop is the loop the connection belongs to.
	Loop() Loop
	// Remote is the peer's address; for a unix socket it is the zero value.
	Remote() netip.AddrPort
	// SetRemote replaces it, by what a trusted peer says of the client it speaks for. It reports whether that client may connect.
	SetRemote(address netip.AddrPort) bool
	// SetLayer makes layer, a connection on top of this one, stand for it from now on: handlers and Reuse get layer.
	SetLayer(layer Layer)
	// ReadWatching reads like Read, but returns ErrPeerGone when the peer of other (a connection of the same loop
	// that nobody reads) closes or resets while this one has nothing to read. Bytes that other's peer has sent
	// before closing count as it being there: they are a request that was pipelined.
	ReadWatching(b []byte, other Conn) (int, error)
	// Wait waits as ReadWatching does, or as Read if other is nil, but reads nothing: it returns nil when there may be
	// something to read, so that the caller need not hold a buffer until then. It may return early.
	Wait(other Conn) error
	// Receive waits as Wait does, and reads into a buffer of Loop.Buffer, but for Slack, that is the caller's then. On an error there is
	// none. It costs least: those that a round finds ready have been read from, one after the other, when the first goes on.
	Receive(other Conn) (b []byte, n int, err error)
	// Send writes b, which it takes over: it is in a buffer of Loop.Buffer. It may leave that to the loop and return at once, so that
	// nobody has to come back to this connection for it; what follows on the connection then waits for it, and returns its
	// error, a [*SendError], as Send itself does where it knows at once. Close does not wait for it, unless it is a client's
	// whose handler closes it by what it returns.
	Send(b []byte) error
	// ReadWithin sets the read deadline to d after the loop's Now, WriteWithin the write deadline.
	ReadWithin(d time.Duration)
	WriteWithin(d time.Duration)
	// CloseWrite ends the sending direction; the peer reads EOF after what was written.
	CloseWrite() error
	// Abort closes with a reset, so that the peer cannot take what it got for complete.
	Abort()
	// Unacknowledged is how many of the bytes written the peer's kernel has not acknowledged; -1 when that is unknown.
	Unacknowledged() int
	// Detach takes the connection off its loop and returns it as an ordinary net.Conn, to be used by goroutines.
	// The Conn is closed; nothing of what was read from it is given back.
	Detach() (net.Conn, error)
}

// Layer is a connection on top of another one of the same loop.
type Layer interface {
	Conn
	// Below is the connection it is on.
	Below() Conn
	// Pending reports whether there may be something to read that was taken from the connection below already.
	Pending() bool
	// Plain reports whether it has no part in the bytes any more: what is read from it and written to it goes over the
	// connection below as it is.
	Plain() bool
	// Least is the number of bytes below that the shortest message of the peer takes: fewer before the end of its stream
	// only say that it leaves.
	Least() int
}

// base is the connection at the bottom of c.
func base(c Conn) Conn {
	for {
		l, ok := c.(Layer)
		if !ok {
			return c
		}
		c = l.Below()
	}
}

// Loop is what code on a loop may ask of it.
type Loop interface {
	// Index is 0 … Options.Loops-1.
	Index() int
	// Now is the time at which the loop last woke: one clock reading serves a batch of events.
	Now() time.Time
	// Go runs fn on this loop beside the caller and returns at once. Wait, called on this loop, waits for its end.
	Go(fn func()) Task
	// Dial opens a TCP connection to address, which must be answered within timeout.
	Dial(address netip.AddrPort, timeout time.Duration) (Conn, error)
	// DialUnix opens a connection to the unix socket at path.
	DialUnix(path string, timeout time.Duration) (Conn, error)
	// Park keeps an open connection for [Loop.Reuse] under key for at most ttl. If the peer sends anything or closes
	// meanwhile, the connection is closed.
	Park(key any, c Conn, ttl time.Duration)
	// Reuse takes a connection parked under key, of late rather than long ago, or returns nil. Nothing had come on it when the kernel was
	// last asked, which was after it was parked.
	Reuse(key any) Conn
	// Post has fn run on this loop, soon. It may be called from anywhere; when the loop has ended, it does nothing.
	Post(fn func())
	// NewWaiter makes a place where code of this loop can wait to be woken.
	NewWaiter() Waiter
	// Buffer lends a buffer of BufferSize bytes; Free takes it back.
	Buffer() []byte
	// Free takes back a buffer from Buffer. The caller must not use it any more.
	Free(b []byte)
}

// Task is a function started by [Loop.Go].
type Task interface {
	// Wait returns when the function has ended. One waiter at most.
	Wait()
}

// Waiter is a place to wait, for one at a time. It can be used again after Wait has returned.
type Waiter interface {
	// Wait waits for Wake. It returns nil when woken, os.ErrDeadlineExceeded after until, ErrPeerGone when the peer of
	// watch has gone, net.ErrClosed when the loop ends. A Wake before it is not lost.
	Wait(until time.Time, watch Conn) error
	// Wake ends a Wait. It may be called from anywhere; from is the loop the caller runs on, or nil.
	Wake(from Loop)
}

// Admission decides who may connect. Its methods may be called from any goroutine.
type Admission interface {
	// Admit is asked once for each connection; the address is the zero value for a unix socket.
	Admit(remote netip.Addr) bool
	// Readmit is asked when an admitted connection turns out to be for another address. When it says no, nothing has changed.
	Readmit(was, is netip.Addr) bool
	// Release is told when an admitted connection has ended.
	Release(remote netip.Addr)
}

// Handler serves client connections.
type Handler interface {
	// Serve is called on a loop when an idle connection has something to read. It returns how long the connection
	// may now stay idle; zero closes it. When it returns more than zero, it has read everything it asked for.
	Serve(c Conn) (idle time.Duration)
}

// Listener is a listening socket being served.
type Listener interface {
	// Addr is the bound address.
	Addr() net.Addr
	// Close stops accepting, after what waits in the kernel's queue was accepted, as far as there is room for it (half of
	// what is left for dialling is given up to it). Connections go on.
	Close() error
}

// Options configure an engine. The zero value is useful.
type Options struct {
	// Engine is Loops or Goroutines; empty is Loops where there is epoll, else Goroutines.
	Engine string
	// Loops is the number of loops; zero is one per CPU.
	Loops int
	// FirstByte is how long a new connection may stay silent; zero is 10 s.
	FirstByte time.Duration
	// Sockets is how many sockets may be open, clients and upstreams together; zero is no bound. Accepting pauses a little
	// before, so that there is always room to dial.
	Sockets int
	// Closed is told, on the loop, that the peer has closed a connection parked under key after so long; nil is nobody.
	Closed func(key any, idle time.Duration)
	// Stale reports whether connections parked under key are not worth keeping any more. It is asked now and then,
	// on the loop; nil is never.
	Stale func(key any) bool
	// Panic is told of a panic in a handler; nil prints nothing.
	Panic func(value any, stack []byte)
}

// Engine runs connections. New makes one; it does nothing until Run.
type Engine interface {
	// Run runs the loops until ctx ends, then closes every connection and returns nil.
	Run(ctx context.Context) error
	// Listen serves the connections of ln that a admits; nil admits all. The engine takes ln over: it closes it even when
	// it returns an error.
	Listen(ln net.Listener, h Handler, a Admission) (Listener, error)
	// CloseIdle closes the client connections on which nothing is in progress, now and, until Run ends, as soon as
	// they become idle. Those that were never served get a little longer.
	CloseIdle()
	// Connections is the number of open client connections, and how many of them are being served.
	Connections() (open, serving int)
	// Lag is how long what is ready has to wait for its loop at present, at most.
	Lag() time.Duration
	// Answer waits until every loop has come round once, or ctx ends: then one of them is stuck, or not run.
	Answer(ctx context.Context) error
	// Usage is what the loops have lent at present, and what they have done. It waits until every loop has come round, as
	// Answer does, while Run runs; it may not be called before, nor on a loop.
	Usage() Usage
	// Name is Loops or Goroutines.
	Name() string
}

// Usage is told by [Engine.Usage].
type Usage struct {
	Buffers int   // of [Loop.Buffer], not given back yet
	Pipes   int   // of splices under way
	Spliced int64 // bytes moved within the kernel since the beginning
}

func (u *Usage) add(o Usage) {
	u.Buffers += o.Buffers
	u.Pipes += o.Pipes
	u.Spliced += o.Spliced
}

// New makes an engine.
func New(o Options) (Engine, error) {
	if o.Loops <= 0 {
		o.Loops = runtime.NumCPU()
	}
	if o.FirstByte <= 0 {
		o.FirstByte = 10 * time.Second
	}
	if o.Panic == nil {
		o.Panic = func(any, []byte) {}
	}
	switch {
	case o.Engine == Goroutines, o.Engine == "" && !haveEpoll:
		return newGoroutines(o), nil
	case o.Engine == Loops && !haveEpoll:
		return nil, fmt.Errorf("engine %q needs epoll, which %s does not have: use %q", Loops, runtime.GOOS, Goroutines)
	case o.Engine == Loops, o.Engine == "":
		return newLoops(o)
	}
	return nil, fmt.Errorf("unknown engine %q: use %q or %q", o.Engine, Loops, Goroutines)
}
