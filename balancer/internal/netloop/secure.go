package netloop

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Secure is a TLS connection on top of another connection of the same loop. While it is idle it holds no buffers but
// those that crypto/tls keeps.
//
// crypto/tls takes locks while it reads and while it writes, and code on a loop must not wait with a lock held that
// another coroutine of the loop could ask for: reading may have to write, to answer a change of keys. So what crypto/tls
// writes is collected first, and goes to the connection below when its lock is free again.
type Secure struct {
	Conn // below
	tls  *tls.Conn

	in    []byte // a buffer of the loop: in[r:w] was read from below; nil when empty
	r, w  int
	head  [5]byte // of the record being read
	heads int     // how much of it there is
	left  int     // what is left of the record after its head
	full  bool    // the last Read filled its buffer: there may be more
	ended bool    // the connection below is at its end
	watch Conn    // of the Read under way

	mu       sync.Mutex // guards the rest; never held across a wait
	out      []byte     // sealed, not sent yet
	flushing bool
	closed   bool
}

// recordSize is the longest piece of plaintext that makes one record.
const recordSize = 16 << 10

// sealed are buffers for one record.
var sealed = sync.Pool{New: func() any { return new([recordSize + 512]byte) }}

// Server does the server's part of a TLS handshake on c, within its deadlines. On an error c is still open.
func Server(c Conn, config *tls.Config) (*Secure, error) {
	return handshake(c, func(below net.Conn) *tls.Conn { return tls.Server(below, config) })
}

// Client does the client's part of a TLS handshake on c, within its deadlines. On an error c is still open.
func Client(c Conn, config *tls.Config) (*Secure, error) {
	return handshake(c, func(below net.Conn) *tls.Conn { return tls.Client(below, config) })
}

func handshake(c Conn, start func(net.Conn) *tls.Conn) (*Secure, error) {
	s := &Secure{Conn: c}
	s.tls = start((*records)(s))
	err := s.tls.Handshake()
	if err != nil {
		s.flush(true) // the alert
		s.free()
		return nil, err
	}
	if err := s.flush(false); err != nil {
		s.free()
		return nil, err
	}
	c.SetLayer(s)
	return s, nil
}

// State tells about the connection.
func (s *Secure) State() tls.ConnectionState { return s.tls.ConnectionState() }

// Below implements [Layer].
func (s *Secure) Below() Conn { return s.Conn }

// Pending implements [Layer].
func (s *Secure) Pending() bool { return s.full || s.w > s.r }

// Plain implements [Layer].
func (s *Secure) Plain() bool { return false }

// Least implements [Layer]: a record with an alert is shorter than one with a request line.
func (s *Secure) Least() int { return 32 }

// Read implements net.Conn. The end of the stream is io.EOF only when the peer has said so (close_notify); else it may have
// been cut, and is io.ErrUnexpectedEOF.
func (s *Secure) Read(b []byte) (int, error) { return s.read(b, nil) }

// ReadWatching implements [Conn].
func (s *Secure) ReadWatching(b []byte, other Conn) (int, error) { return s.read(b, other) }

func (s *Secure) read(b []byte, other Conn) (int, error) {
	s.watch = other
	n, err := s.tls.Read(b)
	s.watch = nil
	s.full = n == len(b) && n > 0
	if err == io.EOF && s.ended {
		err = io.ErrUnexpectedEOF
	}
	if ferr := s.flush(false); err == nil {
		err = ferr
	}
	return n, err
}

// Wait implements [Conn].
func (s *Secure) Wait(other Conn) error {
	if s.Pending() {
		return nil
	}
	return s.Conn.Wait(other)
}

// Write implements net.Conn.
func (s *Secure) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := s.tls.Write(b[done:min(len(b), done+recordSize)])
		if err == nil {
			err = s.flush(false)
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Receive implements [Conn].
func (s *Secure) Receive(other Conn) (b []byte, n int, err error) { return receive(s, other) }

// Send implements [Conn].
func (s *Secure) Send(b []byte) error {
	n, err := s.Write(b)
	s.Loop().Free(b)
	return sendError(n, err)
}

// CloseWrite implements [Conn].
func (s *Secure) CloseWrite() error {
	if err := s.tls.CloseWrite(); err != nil {
		return err
	}
	if err := s.flush(false); err != nil {
		return err
	}
	return s.Conn.CloseWrite()
}

// Close implements net.Conn. The peer is told, if that needs no waiting.
func (s *Secure) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if first && s.tls.CloseWrite() == nil {
		s.flush(true)
	}
	err := s.Conn.Close()
	s.free()
	return err
}

// Abort implements [Conn].
func (s *Secure) Abort() {
	s.Conn.Abort()
	s.free()
}

// Unacknowledged implements [Conn]: records are not the bytes that were written.
func (s *Secure) Unacknowledged() int { return s.Conn.Unacknowledged() }

// free gives back what is borrowed.
func (s *Secure) free() {
	if s.in != nil {
		s.Loop().Free(s.in)
		s.in, s.r, s.w = nil, 0, 0
	}
}

// flush sends what is sealed. With once it sends only what the kernel takes now.
func (s *Secure) flush(once bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flushing {
		return nil // whoever does will send this too
	}
	s.flushing = true
	defer func() { s.flushing = false }()
	for len(s.out) > 0 {
		out := s.out
		s.out = nil
		s.mu.Unlock()
		var err error
		if once {
			base(s.Conn).(interface{ tryWrite(b []byte) }).tryWrite(out)
		} else {
			_, err = s.Conn.Write(out)
		}
		if cap(out) == recordSize+512 {
			sealed.Put((*[recordSize + 512]byte)(out[:recordSize+512]))
		}
		s.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// records is the connection below as crypto/tls sees it.
type records Secure

// Read gives crypto/tls never more than the rest of a record, so that it keeps nothing of the next one and what is left
// is known here.
func (c *records) Read(b []byte) (int, error) {
	s := (*Secure)(c)
	if s.r == s.w {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	have := s.in[s.r:s.w]
	var n int
	if s.heads < len(s.head) {
		n = copy(b, have[:min(len(have), len(s.head)-s.heads)])
		copy(s.head[s.heads:], have[:n])
		if s.heads += n; s.heads == len(s.head) {
			s.left = int(s.head[3])<<8 | int(s.head[4])
		}
	} else {
		n = copy(b, have[:min(len(have), s.left)])
		s.left -= n
	}
	if s.heads == len(s.head) && s.left == 0 {
		s.heads = 0
	}
	if s.r += n; s.r == s.w {
		s.free()
	}
	return n, nil
}

// fill reads from below. What was sealed goes out first: the peer may be waiting for it.
func (s *Secure) fill() error {
	if err := s.flush(false); err != nil {
		return err
	}
	in, n, err := s.Conn.Receive(s.watch)
	if err != nil {
		s.ended = s.ended || err == io.EOF
		return err
	}
	s.in, s.r, s.w = in, 0, n
	return nil
}

// Write collects.
func (c *records) Write(b []byte) (int, error) {
	s := (*Secure)(c)
	s.mu.Lock()
	if s.out == nil {
		s.out = sealed.Get().(*[recordSize + 512]byte)[:0]
	}
	s.out = append(s.out, b...)
	s.mu.Unlock()
	return len(b), nil
}

func (c *records) Close() error                       { return c.Conn.Close() }
func (c *records) LocalAddr() net.Addr                { return c.Conn.LocalAddr() }
func (c *records) RemoteAddr() net.Addr               { return c.Conn.RemoteAddr() }
func (c *records) SetDeadline(t time.Time) error      { return c.Conn.SetDeadline(t) }
func (c *records) SetReadDeadline(t time.Time) error  { return c.Conn.SetReadDeadline(t) }
func (c *records) SetWriteDeadline(t time.Time) error { return nil }

// Detach implements [Conn]: it is not supported.
func (s *Secure) Detach() (net.Conn, error) { return nil, errors.ErrUnsupported }
