package proxy

import (
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/pool"
)

const (
	maxMirrors  = 256 // copies under way at once; beyond, none are made
	mirrorTime  = 10 * time.Second
	mirrorBytes = 1 << 20 // of an answer that are read before its connection is given up
)

// mirror sends a copy of the request in x.out to an endpoint of a pool, beside the exchange, and forgets the answer. What
// is not held in full is not mirrored, nor is what would be too much at once.
func (x *exchange) mirror(pl *pool.Pool) {
	p, s := x.proxy, pl.SettingsOf()
	if !x.body.done || s.ProxyProtocol > 0 {
		return
	}
	e := pl.Pick()
	if e == nil || p.mirrors.Add(1) > maxMirrors {
		if e != nil {
			p.mirrors.Add(-1)
		}
		return
	}
	m := &mirrored{loop: x.loop, endpoint: e, settings: s, request: append([]byte(nil), x.out...), connect: x.timeouts.Connect, head: x.req.IsHead()}
	x.loop.Go(func() {
		defer p.mirrors.Add(-1)
		e.Take()
		defer e.Release()
		if !e.Closed() {
			m.run()
		}
	})
}

// mirrored is a copy on its way.
type mirrored struct {
	loop     netloop.Loop
	endpoint *pool.Endpoint
	settings *pool.Settings
	request  []byte
	connect  time.Duration
	head     bool
}

func (m *mirrored) run() {
	up := m.loop.Reuse(m.endpoint)
	if up != nil {
		if _, secure := up.(*netloop.Secure); secure != m.settings.IsSecure(m.endpoint) {
			up.Close() // from before the policy has changed
			up = nil
		}
	}
	if up == nil {
		var err error
		if up, err = dial(m.loop, m.endpoint, m.connect); err != nil {
			return
		}
		if m.settings.IsSecure(m.endpoint) {
			up.SetDeadline(m.loop.Now().Add(m.connect))
			secure, err := netloop.Client(up, m.settings.TLS)
			if err != nil {
				up.Close()
				return
			}
			up = secure
		}
	}
	up.SetDeadline(m.loop.Now().Add(mirrorTime))
	if _, err := up.Write(m.request); err != nil || !m.discard(up) {
		up.Close()
		return
	}
	m.loop.Park(m.endpoint, up, m.endpoint.KeepIdle(m.settings))
}

// discard reads the answer and reports whether the connection can be used again: only after one with a known length that
// has come with its head, as nearly all are.
func (m *mirrored) discard(up netloop.Conn) bool {
	if up.Wait(nil) != nil {
		return false
	}
	b := m.loop.Buffer()
	defer m.loop.Free(b)
	var scan http1.Scanner
	var r http1.Response
	for n := 0; n < len(b); {
		k, err := up.Read(b[n:])
		if err != nil {
			return false
		}
		n += k
		head, bad := r.Read(&scan, b[:n], m.head)
		if bad != nil {
			return false
		}
		if head == 0 {
			continue
		}
		if r.Status < 200 || r.Length < 0 || r.Length > mirrorBytes || !r.KeepAlive {
			return false
		}
		for left := r.Length - int64(n-head); left != 0; left -= int64(k) {
			if left < 0 {
				return false
			}
			if k, err = up.Read(b[:min(int64(len(b)), left)]); err != nil {
				return false
			}
		}
		return true
	}
	return false
}
