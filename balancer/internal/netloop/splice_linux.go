package netloop

import (
	"errors"
	"io"
	"net"
	"os"

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

// Splice moves up to n bytes from src to dst within the kernel (splice(2)): it waits until there is something, takes what
// there is, and returns when all of that is with dst. While it waits for src it notices that the peer of watch goes, as
// ReadWatching does; nil is nobody. At the end of src it returns io.EOF as rerr; errors of dst are werr.
//
// It returns errors.ErrUnsupported, and has moved nothing, where bytes have to be copied: on a [Layer], on the goroutines
// engine, or when many other splices are under way.
func Splice(dst, src Conn, n int64, watch Conn) (moved int64, rerr, werr error) {
	d, ok := dst.(*conn)
	s, ok2 := src.(*conn)
	if !ok || !ok2 {
		return 0, errors.ErrUnsupported, nil
	}
	l := s.loop
	var other *conn
	if watch != nil {
		other = baseConn(watch)
	}
	// The pipe is taken when there is something to put into it.
	for !s.readable {
		if s.fd < 0 {
			return 0, net.ErrClosed, nil
		}
		if err := s.await(other); err != nil {
			return 0, err, nil
		}
	}
	if s.fd < 0 {
		return 0, net.ErrClosed, nil
	}
	p, ok := l.pipes.take()
	if !ok {
		if l.piping >= maxPipes {
			return 0, errors.ErrUnsupported, nil
		}
		var err error
		if p, err = newPipe(); err != nil {
			return 0, errors.ErrUnsupported, nil
		}
	}
	l.piping++
	defer func() { l.piping-- }()
	held := 0
	for held == 0 {
		k, err := unix.Splice(s.fd, nil, p.w, nil, int(min(n, int64(p.size))), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case err == nil && k == 0:
			rerr = io.EOF
		case err == nil:
			held = int(k)
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			// Readable bytes may not be spliced as yet (urgent data): the next edge tells.
			s.readable = s.hangup
			rerr = s.await(other)
		default:
			rerr = os.NewSyscallError("splice", err)
		}
		if s.fd < 0 && rerr == nil {
			rerr = net.ErrClosed
		}
		if rerr != nil {
			l.pipes.give(p)
			return 0, rerr, nil
		}
	}
	for held > 0 {
		if d.fd < 0 {
			werr = net.ErrClosed
		} else if d.writable {
			k, err := unix.Splice(p.r, nil, d.fd, nil, held, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			switch {
			case err == nil:
				held -= int(k)
				moved += int64(k)
				continue
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				d.writable = false
			default:
				werr = os.NewSyscallError("splice", err)
			}
		}
		if werr == nil {
			werr = d.waitWritable()
		}
		if werr != nil {
			p.close() // bytes are left in it
			return moved, nil, werr
		}
	}
	l.pipes.give(p)
	return moved, nil, nil
}
