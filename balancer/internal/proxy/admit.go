package proxy

import (
	"crypto/tls"
	"encoding/hex"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// identify finds out who the client is and what the upstream is told of it.
func (x *exchange) identify() {
	s, r := x.settings, &x.req
	peer := x.rec.Client.Addr()
	x.hop = http1.Hop{}
	x.hop.Peer, x.hop.Proto, x.hop.Host, x.hop.Port, x.hop.Via = peer, "http", r.Host, r.Port, x.proxy.Name
	if secure, ok := x.conn.(*netloop.Secure); ok {
		state := secure.State()
		x.rec.TLS, x.hop.Proto = true, "https"
		x.rec.TLSVersion, x.rec.TLSCipher, x.rec.TLSResumed = state.Version, state.CipherSuite, state.DidResume
		x.hop.Subject = subject(&state)
	}
	if (len(s.Trusted) > 0 || s.TrustUnix) && s.trusts(peer) {
		x.hop.Trusted = true
		x.hop.Client = http1.ForwardedFor(r, peer, s.trusts)
		if x.hop.Client != peer {
			x.rec.Client = netip.AddrPortFrom(x.hop.Client, 0)
		}
		if proto, ok := r.Value("x-forwarded-proto", 0); ok && (string(proto) == "http" || string(proto) == "https") {
			x.hop.Proto = "http"
			if string(proto) == "https" {
				x.hop.Proto = "https"
			}
		}
		if host, ok := r.Value("x-forwarded-host", 0); ok && len(host) > 0 {
			x.hop.Host, x.hop.Port = host, nil
		}
	}
	x.rec.Scheme = x.hop.Proto
	if s.RequestID != "" {
		x.hop.IDName, x.hop.IDLower = s.RequestID, s.requestIDLower
		id, ok := r.Value(s.requestIDLower, 0)
		if !ok || !saneID(id) {
			raw := twice(rand.Uint64(), rand.Uint64())
			hex.Encode(x.id[:], raw[:])
			id = x.id[:]
		}
		x.hop.ID, x.rec.ID = id, id
	}
}

// saneID reports whether an id that a client sends is one to keep: short, and without characters that mean something in
// a log or a header.
func saneID(id []byte) bool {
	for _, c := range id {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '-', c == '_', c == '.', c == ':', c == '/', c == '+', c == '=':
		default:
			return false
		}
	}
	return len(id) > 0 && len(id) <= 128
}

// subject is the subject of a verified client certificate, fit for a header field.
func subject(state *tls.ConnectionState) []byte {
	if len(state.VerifiedChains) == 0 {
		return nil
	}
	text := []byte(state.PeerCertificates[0].Subject.String())
	for i, b := range text {
		if b < ' ' || b >= 0x7f {
			text[i] = '?'
		}
	}
	return text
}

// admit decides whether a request may go on now.
func (x *exchange) admit(rt *route.Route) failure {
	r := &x.req
	if most := x.mostBody(); most > 0 && r.Length > most {
		return fail(BodyTooLong)
	}
	if why := x.proxy.Guard.admit(x.rec.Client.Addr()); why != "" {
		x.keep = x.keep && why != MemoryPressure
		return fail(why)
	}
	rate := x.rules.Rate
	if rate == nil {
		return failure{}
	}
	var buf [16]byte
	var key []byte
	if rate.Header != "" {
		key, _ = r.Value(rate.Header, 0)
	} else {
		key = clientKey(&buf, x.rec.Client.Addr())
	}
	ok, after := x.proxy.rates.Allow(x.rec.Start, maphash.String(rateSeed, rt.Name), key, rate.Every, rate.Burst)
	if ok {
		return failure{}
	}
	why := fail(RateLimited)
	why.retryAfter = int(max((after+time.Second-1)/time.Second, 1))
	return why
}

var rateSeed = maphash.MakeSeed()

// clientKey is what tells clients apart: an IPv4 address, or the /64 of an IPv6 one, which is what one client has.
func clientKey(buf *[16]byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return nil
	}
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return buf[:copy(buf[:], b[:])]
	}
	*buf = a.As16()
	return buf[:8]
}

// mostBody is the longest body the request may have; zero is no limit.
func (x *exchange) mostBody() int64 {
	if x.rules.MaxBody > 0 {
		return x.rules.MaxBody
	}
	return x.settings.MaxBody
}

// redirect answers with the route's redirect.
func (x *exchange) redirect() bool {
	x.rec.Status = x.rules.Redirect.Status
	x.keep = x.keep && !x.bodyPending()
	out := appendStatus(x.scratch(0), x.rec.Status, x.loop.Now())
	out = append(out, "Location: "...)
	out = x.rules.Redirect.Append(out, x.hop.Proto, &x.match, x.req.Port)
	out = append(out, "\r\nContent-Length: 0\r\n"...)
	out = append(out, x.rules.Response.Add...)
	if !x.keep {
		out = append(out, "Connection: close\r\n"...)
	}
	return x.say(append(out, "\r\n"...))
}

// upgradable is the protocol the connection may be upgraded to, of those that the client asks for and the route allows.
func (x *exchange) upgradable() []byte {
	token := x.req.Upgrade
	if len(token) == 0 {
		return nil
	}
	allowed := string(token) == websocket
	if x.rules.Upgrades != nil {
		allowed = false
		for _, u := range x.rules.Upgrades {
			allowed = allowed || u == string(token)
		}
	}
	if !allowed || string(token) == websocket && !websocketKey(&x.req) {
		return nil
	}
	return token
}

// pick chooses an endpoint that may take one more exchange, and counts this one in. It may wait for one. Without one it
// says why, if there is more to say than that there is none. The pool is one in use when the endpoint is counted in, which
// may be a later one than that of the table.
func (x *exchange) pick(pl *pool.Pool, s *pool.Settings, tried []*pool.Endpoint) (*pool.Endpoint, failure) {
	if s.MaxConcurrent > 0 {
		return x.pickWithRoom(pl, s, tried)
	}
	for {
		e := pl.Pick(tried...)
		if e == nil {
			return nil, failure{}
		}
		e.Take()
		if !e.Closed() {
			return e, failure{}
		}
		later := pl.Latest()
		if later == pl {
			return e, failure{}
		}
		e.Release()
		pl = later
	}
}

// pickWithRoom is pick where the exchanges on an endpoint are bounded.
func (x *exchange) pickWithRoom(pl *pool.Pool, s *pool.Settings, tried []*pool.Endpoint) (*pool.Endpoint, failure) {
	e := pl.Pick(tried...)
	if e == nil {
		return nil, failure{}
	}
	q := x.proxy.queueOf(pl.Service)
	until := x.loop.Now().Add(x.within(s.QueueTimeout))
	for {
		if e != nil && e.TryTake(s.MaxConcurrent) {
			if !e.Closed() || pl.Latest() == pl {
				x.queue = q
				return e, failure{}
			}
			e.Release()
			pl = pl.Latest()
		}
		if e = pl.WithRoom(s.MaxConcurrent, tried...); e != nil {
			continue
		}
		if pl.Len() == 0 {
			return nil, failure{}
		}
		room := func() bool { return pl.Latest().WithRoom(s.MaxConcurrent, tried...) != nil }
		if why := q.wait(x, s.Queue, until, room); why.reason != "" {
			return nil, why
		}
		pl = pl.Latest()
	}
}
