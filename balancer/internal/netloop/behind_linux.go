package netloop

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// behind is what [conn.Send] has left to the loop: it goes out when the others of the round have something to send as well, without
// a switch to the coroutine it is from. What the kernel does not take then is finished by whoever uses the connection
// next, or by a coroutine of its own when nobody does.
type behind struct {
	conn   *conn
	b      []byte // a buffer of the loop; nil when nothing of it is left to send
	sent   int
	err    error         // of sending; then the connection is of no use any more
	queued bool          // the loop has it on its list
	idle   time.Duration // what the handler has granted the connection, if it is idle
}

// Send implements [Conn].
func (c *conn) Send(b []byte) error {
	l := c.loop
	if !l.gather || c.behind != nil || !c.writable || c.readable || c.fd < 0 {
		n, err := c.Write(b)
		l.Free(b)
		return sendError(n, err)
	}
	w, ok := l.behinds.take()
	if !ok {
		w = new(behind)
	}
	*w = behind{conn: c, b: b, queued: true}
	c.behind = w
	l.unsent = append(l.unsent, w)
	return nil
}

// sendUnsent sends what has gathered.
func (l *loop) sendUnsent() {
	for i, w := range l.unsent {
		l.unsent[i] = nil
		w.queued = false
		c := w.conn
		w.try()
		switch {
		case c.behind != w: // finished, now or before
			l.behinds.give(w)
		case c.reader != nil:
			c.reader.wake()
		case c.handler != nil && !c.serving:
			c.serve1()
		}
	}
	l.unsent = l.unsent[:0]
}

// try sends as much as the kernel takes. When that is all, the connection has nothing behind any more.
func (w *behind) try() {
	c := w.conn
	for w.b != nil && c.writable {
		n, _, e := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(&w.b[w.sent])), uintptr(len(w.b)-w.sent), unix.MSG_NOSIGNAL, 0, 0)
		switch e {
		case 0:
			if w.sent += int(n); w.sent == len(w.b) {
				w.drop()
				c.behind = nil
			}
		case unix.EINTR:
		case unix.EAGAIN:
			c.writable = false
		default:
			w.err = sendError(w.sent, e)
			w.drop()
		}
	}
}

// drop gives the buffer back.
func (w *behind) drop() {
	if w.b != nil {
		w.conn.loop.Free(w.b)
		w.b = nil
	}
}

// settle waits until everything that was sent behind is with the kernel. It runs in a coroutine.
func (c *conn) settle() error {
	for w := c.behind; w != nil; w = c.behind {
		w.try()
		switch {
		case w.err != nil:
			return w.err
		case c.behind == nil:
			if !w.queued {
				c.loop.behinds.give(w)
			}
			return nil
		}
		if err := c.waitWritable(); err != nil && c.behind == w {
			w.err = sendError(w.sent, err)
			w.drop()
		}
	}
	return nil
}

// leave forgets what is behind: the connection is closed.
func (c *conn) leave() {
	if w := c.behind; w != nil {
		w.drop()
		c.behind = nil
	}
}
