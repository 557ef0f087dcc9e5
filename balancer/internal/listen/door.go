package listen

import (
	"crypto/tls"
	"net/netip"
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
}

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
		n, ok := readHeader(c)
		if !ok {
			return 0
		}
		c = n
	}
	if d.TLS != nil {
		if _, err := netloop.Server(c, d.TLS); err != nil {
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
func readHeader(c netloop.Conn) (*announced, bool) {
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
			return nil, false
		case used > 0:
			if !h.Local && !c.SetRemote(h.Source) {
				return nil, false
			}
			a := &announced{Conn: c}
			if used < len(b) {
				a.rest = b[used:]
			}
			c.SetLayer(a)
			return a, true
		case err != nil:
			return nil, false
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

// Wait implements netloop.Conn.
func (a *announced) Wait(other netloop.Conn) error {
	if len(a.rest) > 0 {
		return nil
	}
	return a.Conn.Wait(other)
}
