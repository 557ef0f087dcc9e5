package netloop

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sort"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// conn is a socket of a loop. While it is idle, this record is all there is of it.
type conn struct {
	loop *loop
	fd   int // -1 when closed

	readable bool // the kernel may have something for us
	writable bool
	hangup   bool // the peer will send no more: what is readable now is the rest
	broken   bool // error or both directions shut
	serving  bool // a client connection in the hands of its handler
	served   bool // it was, for more than putting a layer on it
	ahead    bool // the watched peer has sent bytes before its end of stream
	idle     bool // parked, at home

	reader, writer *coro // waiting for this connection
	watcher        *coro // waiting for another one, but wants to know when this one's peer goes

	readUntil, writeUntil int64 // ticks; zero is no deadline
	idleUntil             int64 // for a connection nobody uses: close it then

	handler  Handler       // of a client connection
	listener *listener     // likewise
	layer    Layer         // what stands for this connection; nil is itself
	got      []byte        // what was read for whoever asks next, in a buffer of the loop; nil is nothing
	gotError syscall.Errno // likewise; the kernel tells it once
	behind   *behind       // what is to be sent before anything else; nil is nothing
	home     *parked       // where it is parked, or was the last time; nil is nowhere yet
	parkedAt int64         // the last time
	remote   netip.AddrPort
	peer     netip.Addr // that the listener's admission was asked about
}

// baseConn is the socket at the bottom of c.
func baseConn(c Conn) *conn {
	if c, ok := c.(*conn); ok {
		return c
	}
	return base(c).(*conn)
}

// top is what stands for the connection.
func (c *conn) top() Conn {
	if c.layer != nil {
		return c.layer
	}
	return c
}

// SetLayer implements [Conn].
func (c *conn) SetLayer(layer Layer) { c.layer = layer }

// SetRemote implements [Conn].
func (c *conn) SetRemote(address netip.AddrPort) bool {
	if c.handler != nil && c.listener.admission != nil {
		if !c.listener.admission.Readmit(c.peer, address.Addr()) {
			return false
		}
		c.peer = address.Addr()
	}
	c.remote = address
	return true
}

// event notes what epoll reports and readies those who wait for it.
func (c *conn) event(ev uint32) {
	if ev&unix.EPOLLIN != 0 {
		c.readable = true
	}
	if ev&unix.EPOLLOUT != 0 {
		c.writable = true
	}
	if ev&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.readable, c.hangup = true, true
		if ev&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			c.broken, c.writable = true, true
		}
		if c.watcher != nil {
			c.watcher.wake()
		}
	}
	if c.readable && c.reader != nil {
		c.reader.wake()
	}
	if c.writable && c.writer != nil {
		c.writer.wake()
	}
	if !c.readable {
		return
	}
	switch {
	case c.handler != nil && !c.serving:
		c.serve1()
	case c.idle:
		if c.hangup && c.loop.engine.Closed != nil {
			c.loop.engine.Closed(c.home.key, time.Duration(c.loop.tick-c.parkedAt))
		}
		c.close()
	}
}

// serve1 gives an idle client connection to a coroutine.
func (c *conn) serve1() {
	c.serving, c.idleUntil = true, 0
	c.loop.serving.Add(1)
	co := c.loop.spare()
	co.conn, co.wants = c, c
	co.wake()
}

// serve runs the handler until the connection is idle or closed. It runs in a coroutine.
func (c *conn) serve() {
	defer func() {
		c.serving = false
		c.loop.serving.Add(-1)
	}()
	for {
		var idle time.Duration
		if w := c.behind; w != nil { // it was idle, but for that
			idle = w.idle
			if c.settle() != nil {
				idle = 0
			}
		} else {
			layer := c.layer
			idle = c.handler.Serve(c.top())
			c.served = c.served || c.layer == layer
		}
		if w := c.behind; w != nil {
			if w.idle = idle; idle <= 0 || c.readable {
				c.settle()
			}
		}
		if c.fd < 0 {
			return
		}
		if idle <= 0 || c.broken {
			c.top().Close()
			return
		}
		if c.got != nil || c.layer != nil && c.layer.Pending() {
			continue
		}
		if c.readable {
			// The last read filled its buffer, or the peer has closed: look before serving again, because a handler
			// that waits for a first byte is not idle.
			var b [1]byte
			n, _, err := unix.Recvfrom(c.fd, b[:], unix.MSG_PEEK)
			if n == 0 && err == nil {
				c.close()
				return
			}
			c.readable = err != unix.EAGAIN
		}
		if !c.readable {
			if c.readUntil = 0; c.behind == nil {
				c.writeUntil = 0
			}
			c.idleUntil = c.loop.tick + int64(idle)
			switch {
			case !c.loop.engine.closeIdle.Load():
			case c.served:
				c.settle()
				c.close()
			default:
				c.idleUntil = c.loop.tick + int64(min(idle, freshFor))
			}
			return
		}
	}
}

func (c *conn) Loop() Loop             { return c.loop }
func (c *conn) Remote() netip.AddrPort { return c.remote }

// Read implements net.Conn. A read that returns less than asked for has emptied the socket: the next one waits for an
// edge instead of paying for an EAGAIN.
func (c *conn) Read(b []byte) (int, error) { return c.read(b, nil) }

// ReadWatching implements [Conn].
func (c *conn) ReadWatching(b []byte, other Conn) (int, error) {
	return c.read(b, baseConn(other))
}

func (c *conn) read(b []byte, other *conn) (int, error) {
	for {
		if c.fd < 0 {
			return 0, net.ErrClosed
		}
		if len(b) == 0 {
			return 0, nil
		}
		if c.got != nil {
			n := copy(b, c.got)
			if c.got = c.got[:copy(c.got, c.got[n:])]; len(c.got) == 0 {
				c.loop.Free(c.take())
			}
			return n, nil
		}
		if e := c.gotError; e != 0 {
			c.gotError = 0
			return 0, e
		}
		if c.readable {
			n, _, e := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
			switch {
			case e == 0 && n == 0:
				return 0, io.EOF // stays readable
			case e == 0:
				// After a hangup there will be no more edges: only the end of stream tells that all is read.
				if c.readable = int(n) == len(b) || c.hangup; c.readable {
					c.loop.took(int(n))
				}
				return int(n), nil
			case e == unix.EINTR:
				continue
			case e != unix.EAGAIN:
				return 0, e
			}
			c.readable = false
		}
		if err := c.await(other); err != nil {
			return 0, err
		}
	}
}

// fetch reads what there is for a coroutine that is about to ask for it.
func (c *conn) fetch() {
	if c.fd < 0 || !c.readable || c.got != nil || c.gotError != 0 {
		return
	}
	b := c.loop.Buffer()
	const most = BufferSize - Slack
	n, _, e := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(&b[0])), most, 0, 0, 0)
	if e != 0 || n == 0 { // the end is told as often as anybody asks
		c.loop.Free(b)
		if e != unix.EAGAIN && e != unix.EINTR {
			c.gotError = e
		}
		return
	}
	c.got = b[:n]
	c.readable = n == most || c.hangup
}

// take returns what was fetched.
func (c *conn) take() []byte {
	b := c.got
	c.got = nil
	return b
}

// Receive implements [Conn].
func (c *conn) Receive(other Conn) (b []byte, n int, err error) {
	if c.got == nil && !c.readable {
		c.loop.running.wants = c
		if err := c.Wait(other); err != nil {
			c.loop.running.wants = nil
			return nil, 0, err
		}
	}
	if c.got == nil {
		return receive(c, other)
	}
	b = c.take()
	if n = len(b); c.readable {
		c.loop.took(n)
	}
	return b[:cap(b)], n, nil
}

// Wait implements [Conn].
func (c *conn) Wait(other Conn) error {
	var o *conn
	if other != nil {
		o = baseConn(other)
	}
	for c.fd >= 0 && !c.readable && c.got == nil {
		if err := c.await(o); err != nil {
			return err
		}
	}
	if c.fd < 0 {
		return net.ErrClosed
	}
	return nil
}

// await parks until there may be something to read. It returns when the deadline has passed or the peer of other is gone.
func (c *conn) await(other *conn) error {
	if w := c.behind; w != nil && !w.queued {
		return c.settle()
	}
	if other != nil && other.gone() {
		return ErrPeerGone
	}
	if c.readUntil != 0 && c.loop.tick > c.readUntil {
		return os.ErrDeadlineExceeded
	}
	c.reader = c.loop.running
	if other != nil {
		other.watcher = c.loop.running
	}
	c.loop.park()
	c.reader = nil
	if other != nil {
		other.watcher = nil
	}
	if c.behind != nil {
		return c.settle()
	}
	return nil
}

// gone reports whether the peer has closed without having sent anything that was not read yet.
func (c *conn) gone() bool {
	switch {
	case c.fd < 0 || c.broken:
		return true
	case !c.hangup || c.ahead || c.got != nil:
		return false
	}
	var b [64]byte
	least := 1
	if c.layer != nil {
		if c.layer.Pending() {
			return false
		}
		least = c.layer.Least()
	}
	n, _, err := unix.Recvfrom(c.fd, b[:], unix.MSG_PEEK)
	c.ahead = err == nil && n >= least
	return !c.ahead
}

// Write implements net.Conn: it returns when all of b is with the kernel.
func (c *conn) Write(b []byte) (int, error) { return c.send(b, unix.MSG_NOSIGNAL) }

func (c *conn) send(b []byte, flags int) (int, error) {
	done := 0
	if c.behind != nil {
		if err := c.settle(); err != nil {
			return 0, err
		}
	}
	c.loop.beforeSend()
	for {
		if c.fd < 0 {
			return done, net.ErrClosed
		}
		if done == len(b) {
			return done, nil
		}
		if c.writable {
			n, _, e := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(&b[done])), uintptr(len(b)-done), uintptr(flags), 0, 0)
			switch {
			case e == 0:
				done += int(n)
				continue
			case e == unix.EINTR:
				continue
			case e != unix.EAGAIN:
				return done, e
			}
			c.writable = false
		}
		if err := c.waitWritable(); err != nil {
			return done, err
		}
	}
}

// waitWritable parks until there is an edge or the deadline has passed.
func (c *conn) waitWritable() error {
	if c.writeUntil != 0 && c.loop.tick > c.writeUntil {
		return os.ErrDeadlineExceeded
	}
	c.writer = c.loop.running
	c.loop.park()
	c.writer = nil
	return nil
}

// Close implements net.Conn. Whoever waits for the connection gets net.ErrClosed.
func (c *conn) Close() error {
	if c.fd < 0 {
		return net.ErrClosed
	}
	c.close()
	return nil
}

func (c *conn) close() {
	if c.fd >= 0 {
		fd := c.fd
		c.forget()
		closeSocket(fd)
	}
}

// forget takes the connection out of the loop's books.
func (c *conn) forget() {
	l := c.loop
	l.conns[c.fd] = nil
	c.fd = -1
	c.leave()
	l.Free(c.take())
	l.engine.sockets.Add(-1)
	if c.handler != nil {
		l.clients.Add(-1)
		if a := c.listener.admission; a != nil {
			a.Release(c.peer)
		}
	}
	if c.idle {
		c.home.remove(c)
		c.idle = false
	}
	for _, co := range []*coro{c.reader, c.writer, c.watcher} {
		if co != nil {
			co.wake()
		}
	}
}

// unread reports whether there is something to read, be it the end.
func (c *conn) unread() bool {
	var b [1]byte
	_, _, err := unix.Recvfrom(c.fd, b[:], unix.MSG_PEEK)
	return err != unix.EAGAIN
}

// CloseWrite implements [Conn].
func (c *conn) CloseWrite() error {
	if err := c.settle(); err != nil {
		return err
	}
	if c.fd < 0 {
		return net.ErrClosed
	}
	return unix.Shutdown(c.fd, unix.SHUT_WR)
}

// tryWrite sends what the kernel takes at once.
func (c *conn) tryWrite(b []byte) {
	if c.fd >= 0 && c.writable {
		unix.SendmsgN(c.fd, b, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	}
}

// Unacknowledged implements [Conn].
func (c *conn) Unacknowledged() int {
	if c.fd < 0 {
		return -1
	}
	return outQueue(c.fd)
}

func outQueue(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return -1
	}
	return n
}

// unacknowledged is [Conn.Unacknowledged] for a connection of package net.
func unacknowledged(raw syscall.RawConn) int {
	n := -1
	raw.Control(func(fd uintptr) { n = outQueue(int(fd)) })
	return n
}

// unread reports whether a connection of package net is at its end or has bytes that nobody has read.
func unread(raw syscall.RawConn) (some bool) {
	raw.Control(func(fd uintptr) {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		some = err != unix.EAGAIN
	})
	return some
}

// lastAccept is how long a listener that is being closed waits for a connection of which queued has said that it is there.
const lastAccept = lastAccepts

// queued reports whether a connection waits to be accepted from a listener of package net.
func queued(raw syscall.RawConn) bool {
	fds := []unix.PollFd{{Events: unix.POLLIN}}
	raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		unix.Poll(fds, 0)
	})
	return fds[0].Revents != 0
}

// Abort implements [Conn].
func (c *conn) Abort() {
	if c.fd >= 0 {
		unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		c.close()
	}
}

// Detach implements [Conn].
func (c *conn) Detach() (net.Conn, error) {
	if err := c.settle(); err != nil {
		return nil, err
	}
	if c.fd < 0 {
		return nil, net.ErrClosed
	}
	fd := c.fd
	if err := unix.EpollCtl(c.loop.ep, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
		return nil, err
	}
	ahead := bytes.Clone(c.got)
	c.forget()
	f := os.NewFile(uintptr(fd), "detached")
	defer f.Close() // net.FileConn works on a duplicate
	plain, err := net.FileConn(f)
	if err != nil || len(ahead) == 0 {
		return plain, err
	}
	return &prefixed{plain, ahead}, nil
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr {
	if c.fd < 0 {
		return nil
	}
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return nil
	}
	return netAddr(addrPort(sa))
}

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return netAddr(c.remote) }

func netAddr(a netip.AddrPort) net.Addr {
	if !a.IsValid() {
		return &net.UnixAddr{Net: "unix"}
	}
	return net.TCPAddrFromAddrPort(a)
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn. A deadline in the past ends a read that waits already, without waiting for the sweep.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.readUntil = c.loop.ticks(t)
	if c.reader != nil && c.readUntil != 0 && c.loop.tick > c.readUntil {
		c.reader.wake()
	}
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.writeUntil = c.loop.ticks(t)
	return nil
}

// ReadWithin implements [Conn].
func (c *conn) ReadWithin(d time.Duration) {
	c.readUntil = max(1, c.loop.tick+int64(d))
	if d < 0 && c.reader != nil {
		c.reader.wake()
	}
}

// WriteWithin implements [Conn].
func (c *conn) WriteWithin(d time.Duration) { c.writeUntil = max(1, c.loop.tick+int64(d)) }

// ticks converts a deadline; a time before the loop's start is the earliest there is.
func (l *loop) ticks(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(1, int64(t.Sub(l.start)))
}

// Dial implements [Loop].
func (l *loop) Dial(address netip.AddrPort, timeout time.Duration) (Conn, error) {
	domain, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(address.Port()), Addr: address.Addr().As16()})
	if address.Addr().Unmap().Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().Unmap().As4()}
	}
	c, err := l.dial(domain, sa, timeout)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: netAddr(address), Err: err}
	}
	c.remote = address
	return c, nil
}

// DialUnix implements [Loop].
func (l *loop) DialUnix(path string, timeout time.Duration) (Conn, error) {
	c, err := l.dial(unix.AF_UNIX, &unix.SockaddrUnix{Name: path}, timeout)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "unix", Addr: &net.UnixAddr{Name: path, Net: "unix"}, Err: err}
	}
	return c, nil
}

func (l *loop) dial(domain int, sa unix.Sockaddr, timeout time.Duration) (*conn, error) {
	if l.engine.full(0) {
		return nil, os.NewSyscallError("socket", unix.EMFILE)
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	noDelay(fd)
	c, err := l.add(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	l.engine.sockets.Add(1)
	c.writeUntil = l.tick + int64(timeout)
	for !c.writable && err == nil {
		err = c.waitWritable()
		if c.fd < 0 {
			return nil, net.ErrClosed
		}
	}
	c.writeUntil = 0
	if err == nil {
		var code int
		if code, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
			err = os.NewSyscallError("connect", syscall.Errno(code))
		}
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// parked are the idle connections under one key, in the order of parking.
type parked struct {
	key   any // nil when it was given up, for it was empty
	conns []*conn
}

func (p *parked) remove(c *conn) {
	for i := len(p.conns) - 1; i >= 0; i-- {
		if p.conns[i] == c {
			p.conns = append(p.conns[:i], p.conns[i+1:]...)
			return
		}
	}
}

// Park implements [Loop].
func (l *loop) Park(key any, other Conn, ttl time.Duration) {
	c := baseConn(other)
	if c.fd < 0 {
		return
	}
	if c.readable && !c.hangup { // a splice does not find out that it has taken all
		c.readable = c.unread()
	}
	if c.readable || c.got != nil || c.hangup || l.stopping || ttl <= 0 || c.layer != nil && c.layer.Pending() {
		other.Close()
		return
	}
	p := c.home // most come back to where they were
	if p == nil || p.key != key {
		if p = l.parked[key]; p == nil {
			p = &parked{key: key}
			l.parked[key] = p
		}
	}
	p.conns = append(p.conns, c)
	c.home, c.idle = p, true
	c.readUntil, c.writeUntil = 0, 0
	c.parkedAt, c.idleUntil = l.tick, l.tick+int64(ttl)
}

// Reuse implements [Loop]. Of a connection parked before the kernel was last asked, it is known that nothing came on it while it was
// idle; such a one is preferred. What may wait on another one must not be taken for an answer to whoever gets it.
func (l *loop) Reuse(key any) Conn {
	p := l.parked[key]
	if p == nil {
		return nil
	}
	asked := sort.Search(len(p.conns), func(i int) bool { return p.conns[i].parkedAt >= l.asked })
	if asked > 0 {
		return l.unpark(p, asked-1)
	}
	for last := len(p.conns) - 1; last >= 0; last-- {
		if c := p.conns[last]; c.unread() {
			c.close()
			continue
		}
		return l.unpark(p, last)
	}
	return nil
}

func (l *loop) unpark(p *parked, i int) Conn {
	c := p.conns[i]
	p.conns = slices.Delete(p.conns, i, i+1)
	c.idle, c.idleUntil = false, 0
	return c.top()
}
