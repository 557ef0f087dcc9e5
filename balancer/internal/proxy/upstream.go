package proxy

import (
	"net/netip"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/proxyproto"
	"github.com/rota-lb/rota/balancer/pool"
)

// claimed is the key under which a connection is kept whose PROXY protocol header names a client: it serves that one only.
type claimed struct {
	*pool.Endpoint
	client netip.AddrPort
}

// key is what connections to e are kept under.
func (x *exchange) key(e *pool.Endpoint, s *pool.Settings) any {
	if s.ProxyProtocol == 0 {
		return e
	}
	return claimed{e, x.source()}
}

// source is the client, as an upstream is told in a PROXY protocol header.
func (x *exchange) source() netip.AddrPort {
	if c := x.rec.Client; c.Port() != 0 {
		return c
	}
	return netip.AddrPortFrom(x.rec.Client.Addr(), x.conn.Remote().Port()) // named by a trusted proxy, without a port
}

// connect returns a connection to an endpoint: one that is kept, unless a fresh one is asked for, or a new one.
func (x *exchange) connect(e *pool.Endpoint, s *pool.Settings, fresh bool) (up netloop.Conn, reused bool, why failure) {
	if !fresh {
		for up = x.loop.Reuse(x.key(e, s)); up != nil; up = x.loop.Reuse(x.key(e, s)) {
			if _, secure := up.(*netloop.Secure); secure == s.IsSecure(e) {
				return up, true, failure{}
			}
			up.Close() // from before the policy has changed
		}
	}
	by := x.loop.Now().Add(x.within(x.timeouts.Connect))
	up, err := dial(x.loop, e, by.Sub(x.loop.Now()))
	if err != nil {
		switch {
		case isTimeout(err):
			return nil, false, fail(ConnectTimeout)
		case netloop.Exhausted(err):
			return nil, false, fail(Exhausted)
		}
		return nil, false, failure{reason: ConnectFailed, cause: err}
	}
	if s.ProxyProtocol > 0 {
		up.SetWriteDeadline(by)
		if _, err := up.Write(x.proxyHeader(s.ProxyProtocol)); err != nil {
			up.Close()
			return nil, false, fail(ConnectFailed)
		}
	}
	if s.IsSecure(e) {
		up.SetDeadline(by)
		secure, err := netloop.Client(up, s.TLS)
		if err != nil {
			up.Close()
			return nil, false, failure{reason: TLSFailed, cause: err}
		}
		up = secure
	}
	return up, false, failure{}
}

func dial(l netloop.Loop, e *pool.Endpoint, timeout time.Duration) (netloop.Conn, error) {
	if e.Socket != "" {
		return l.DialUnix(e.Socket, timeout)
	}
	return l.Dial(e.Address, timeout)
}

// proxyHeader says who the client is, in the PROXY protocol.
func (x *exchange) proxyHeader(version int) []byte {
	destination := localAddress(x.conn)
	if version == 1 {
		return proxyproto.AppendV1(nil, x.source(), destination)
	}
	return proxyproto.AppendV2(nil, x.source(), destination)
}

func localAddress(c netloop.Conn) netip.AddrPort {
	if a, ok := c.LocalAddr().(interface{ AddrPort() netip.AddrPort }); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// claimedIdle is how long a connection is kept that serves one client only: nobody tells it when that client has gone.
const claimedIdle = 5 * time.Second

// park keeps a connection for the next exchange.
func (x *exchange) park(e *pool.Endpoint, s *pool.Settings, up netloop.Conn) {
	idle := e.KeepIdle(s)
	if s.ProxyProtocol > 0 {
		if idle = min(idle, claimedIdle); !x.keep {
			idle = 0
		}
	}
	x.loop.Park(x.key(e, s), up, idle)
}
