package netloop

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	pipeSize = 256 << 10
	maxPipes = 64 // in use at once on one loop; beyond, bodies are copied
)

// pipe carries bytes from one socket to another. It is empty between two uses.
type pipe struct{ r, w, size int }

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	size, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil { // beyond what this user may have
		size, err = unix.FcntlInt(uintptr(fds[1]), unix.F_GETPIPE_SZ, 0)
	}
	p := &pipe{fds[0], fds[1], size}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// Splice writes prefix to dst and then moves up to n bytes from src to it within the kernel (splice(2)): as many as there
// are, in one segment with the prefix where that fits. It does not wait for src ([Conn.Wait] does), and may move nothing. It
// returns when all of that is with dst, and how much that was, the prefix included. At the end of src it returns io.EOF as
// rerr; errors of dst are werr.
//
// It returns errors.ErrUnsupported as rerr, and has written nothing, where bytes have to be copied: on a [Layer] that is not
// plain, on the goroutines engine, or when many other splices are under way.
func Splice(dst, src Conn, prefix []byte, n int64) (written int64, rerr, werr error) {
	d, s := plain(dst), plain(src)
	if d == nil || s == nil {
		return 0, errors.ErrUnsupported, nil
	}
	l := s.loop
	if s.fd < 0 {
		return 0, net.ErrClosed, nil
	}
	if s.got != nil || s.gotError != 0 {
		return 0, errors.ErrUnsupported, nil // and has to be read
	}
	held := 0
	var p *pipe
	if s.readable {
		if p = l.pipe(); p == nil {
			return 0, errors.ErrUnsupported, nil
		}
		l.usage.Pipes++
		defer func() { l.usage.Pipes-- }()
		held, rerr = s.fill(p, n)
		if held == 0 && rerr == nil && s.readable { // what there is cannot be spliced, and there will be no edge
			l.pipes.give(p)
			return 0, errors.ErrUnsupported, nil
		}
	}
	if len(prefix) > 0 {
		flags := unix.MSG_NOSIGNAL
		if held > 0 {
			flags |= unix.MSG_MORE // what follows is in our hands
		}
		var k int
		k, werr = d.send(prefix, flags)
		written = int64(k)
	}
	for held > 0 && werr == nil {
		if d.fd < 0 {
			werr = net.ErrClosed
			break
		}
		if d.writable {
			k, e := splice(p.r, d.fd, held)
			switch e {
			case 0:
				held -= k
				written += int64(k)
				l.usage.Spliced += int64(k)
				continue
			case unix.EINTR:
				continue
			case unix.EAGAIN:
			default:
				werr = os.NewSyscallError("splice", e)
				continue
			}
			d.writable = false
		}
		werr = d.waitWritable()
	}
	switch {
	case p == nil:
	case held > 0:
		l.closePipe(p) // bytes are left in it
	default:
		l.pipes.give(p)
	}
	l.took(int(written))
	return written, rerr, werr
}

// plain is the socket whose bytes are those of c; nil where there is none, or not of this engine.
func plain(c Conn) *conn {
	for {
		l, ok := c.(Layer)
		if !ok {
			s, _ := c.(*conn)
			return s
		}
		if !l.Plain() {
			return nil
		}
		c = l.Below()
	}
}

// pipe takes a pipe; nil when there can be no more. Its ends count as sockets.
func (l *loop) pipe() *pipe {
	if p, ok := l.pipes.take(); ok {
		return p
	}
	if l.usage.Pipes >= maxPipes || l.engine.full(1) {
		return nil
	}
	p, err := newPipe()
	if err != nil {
		return nil
	}
	l.engine.sockets.Add(2)
	return p
}

func (l *loop) closePipe(p *pipe) {
	p.close()
	l.engine.sockets.Add(-2)
}

// fill moves what there is, at most n bytes, into an empty pipe.
func (c *conn) fill(p *pipe, n int64) (int, error) {
	for {
		k, e := splice(c.fd, p.w, int(min(n, int64(p.size))))
		switch {
		case e == 0 && k == 0:
			return 0, io.EOF
		case e == 0:
			return k, nil
		case e == unix.EINTR:
		case e == unix.EAGAIN:
			// Nothing is there, or bytes that may not be spliced as yet (urgent data): the next edge tells.
			c.readable = c.hangup
			return 0, nil
		default:
			return 0, os.NewSyscallError("splice", e)
		}
	}
}

// splice is splice(2) without waiting, by a raw call as reads and writes are.
func splice(from, to, n int) (int, syscall.Errno) {
	k, _, e := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(k), e
}
