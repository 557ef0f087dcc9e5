package listen

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/proxyproto"
)

// Door is what a connection passes before its first request: the PROXY protocol header, if its peer has to send one, and
// the TLS handshake. It implements netloop.Handler. The zero value of what is not needed is no such thing.
type Door struct {
	// Next serves the connections that have passed.
	Next netloop.Handler
	// Proxies are the networks whose connections begin with a PROXY protocol header, which is believed; ProxyUnix says so
	// of unix sockets.
	Proxies   []netip.Prefix
	ProxyUnix bool
	// TLS is what connections are accepted with; nil is plaintext.
	TLS *tls.Config
	// Handshake limits both together, FirstByte the silence after it. Required.
	Handshake, FirstByte time.Duration
	// Failed is told, on the loop, of a connection that does not get through: the reason is one of those below. nil is nobody.
	Failed func(peer netip.AddrPort, reason string, err error)
}

// Why a connection does not get through.
const (
	FailedHeader = "proxy_header" // it is missing, or malformed
	FailedTLS    = "tls"
	FailedTime   = "timeout" // of either
	FailedClosed = "closed"  // by the peer before it was through
)

func (d *Door) failed(c netloop.Conn, reason string, err error) {
	switch {
	case d.Failed == nil || errors.Is(err, errFull):
		return
	case errors.Is(err, os.ErrDeadlineExceeded):
		reason = FailedTime
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET):
		reason = FailedClosed
	}
	d.Failed(c.Remote(), reason, err)
}

// errFull says that the client whom a PROXY header names has as many connections as it may have. The limits count that.
var errFull = errors.New("too many connections of this client")

// Serve implements netloop.Handler. A connection that does not get through is closed; a peer that sends no proper header
// gets no answer, for it is not known who it is.
func (d *Door) Serve(c netloop.Conn) time.Duration {
	if _, passed := c.(netloop.Layer); passed {
		return d.Next.Serve(c)
	}
	proxied := d.Speaks(c.Remote().Addr())
	if d.TLS == nil && !proxied {
		return d.Next.Serve(c)
	}
	c.SetDeadline(c.Loop().Now().Add(d.Handshake))
	if proxied {
		n, err := readHeader(c)
		if err != nil {
			d.failed(c, FailedHeader, err)
			return 0
		}
		c = n
	}
	if d.TLS != nil {
		if _, err := netloop.Server(c, d.TLS); err != nil {
			d.failed(c, FailedTLS, err)
			return 0
		}
	}
	return d.FirstByte // the first request may be there already: then the loop comes back at once
}

// Speaks reports whether a peer speaks for others, whom it names in a PROXY protocol header.
func (d *Door) Speaks(peer netip.Addr) bool {
	if !peer.IsValid() {
		return d.ProxyUnix
	}
	for _, p := range d.Proxies {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}

// announced is a connection whose PROXY protocol header was read, perhaps with some of what follows it.
type announced struct {
	netloop.Conn
	rest []byte
}

// readHeader reads the header and takes over what it says.
func readHeader(c netloop.Conn) (*announced, error) {
	b := make([]byte, 0, 256)
	for {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, proxyproto.MaxHeader), b...)
		}
		n, err := c.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		h, used, bad := proxyproto.Parse(b)
		switch {
		case bad != nil:
			return nil, bad
		case used > 0:
			if !h.Local && !c.SetRemote(h.Source) {
				return nil, errFull
			}
			a := &announced{Conn: c}
			if used < len(b) {
				a.rest = b[used:]
			}
			c.SetLayer(a)
			return a, nil
		case err != nil:
			return nil, err
		}
	}
}

// Below implements netloop.Layer.
func (a *announced) Below() netloop.Conn { return a.Conn }

// Pending implements netloop.Layer.
func (a *announced) Pending() bool { return len(a.rest) > 0 }

// Plain implements netloop.Layer: with the rest read it is only a sign that the connection has passed.
func (a *announced) Plain() bool { return len(a.rest) == 0 }

// Least implements netloop.Layer.
func (a *announced) Least() int { return 1 }

func (a *announced) take(b []byte) int {
	n := copy(b, a.rest)
	if a.rest = a.rest[n:]; len(a.rest) == 0 {
		a.rest = nil
	}
	return n
}

// Read implements net.Conn.
func (a *announced) Read(b []byte) (int, error) {
	if len(a.rest) > 0 {
		return a.take(b), nil
	}
	return a.Conn.Read(b)
}

// ReadWatching implements netloop.Conn.
func (a *announced) ReadWatching(b []byte, other netloop.Conn) (int, error) {
	if len(a.rest) > 0 {
		return a.take(b), nil
	}
	return a.Conn.ReadWatching(b, other)
}

// Receive implements netloop.Conn.
func (a *announced) Receive(other netloop.Conn) (b []byte, n int, err error) {
	if len(a.rest) > 0 {
		b = a.Loop().Buffer()
		return b, a.take(b), nil
	}
	return a.Conn.Receive(other)
}

// Wait implements netloop.Conn.
func (a *announced) Wait(other netloop.Conn) error {
	if len(a.rest) > 0 {
		return nil
	}
	return a.Conn.Wait(other)
}
