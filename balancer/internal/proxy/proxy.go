// Package proxy is the exchange: match, pick, attempt, relay, outcome.
//
// A [Proxy] serves client connections of a netloop engine. For each request it loads the table once, finds the route,
// picks an endpoint, sends the request there and relays the answer; bodies stream both ways with the back-pressure of the
// sockets. A failure before the first byte of the answer is tried on another endpoint when the request was provably not
// sent, or may be repeated and is still held in full. Every failure becomes a status, a reason and a body in one place
// ([failure]). What became of an exchange is told to the [Observer].
//
// The package knows no etcd, no configuration file and no registry: only tables.
package proxy

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// Timeouts of exchanges; zero fields take the default. See config.Timeouts for what each means.
type Timeouts struct {
	Connect      time.Duration // 1s
	ResponseHead time.Duration // 30s
	IdleBody     time.Duration // 60s
	RequestHead  time.Duration // 10s
	KeepAlive    time.Duration // 75s
}

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.Connect, time.Second)
	set(&t.ResponseHead, 30*time.Second)
	set(&t.IdleBody, 60*time.Second)
	set(&t.RequestHead, 10*time.Second)
	set(&t.KeepAlive, 75*time.Second)
	return t
}

const (
	maxAttempts  = 3
	maxInterim   = 8 // 1xx answers to one request
	upstreamIdle = 60 * time.Second
	lingerTime   = time.Second
	lingerBytes  = 256 << 10
	via          = "rota"
)

// Observer is told of every exchange that got as far as a request, on the loop, after its last byte. It must not block
// and must copy what it keeps: the record and its slices are used again.
type Observer interface{ Done(r *Record) }

// Record says what became of an exchange.
type Record struct {
	Loop   int
	Start  time.Time
	Client netip.AddrPort
	TLS    bool

	Method, Host, Path, Query []byte // empty when the head was refused before they were known
	Minor                     int
	UserAgent                 []byte

	Route    *route.Route   // nil when none matched
	Service  *pool.Service  // nil likewise
	Endpoint *pool.Endpoint // of the last attempt; nil when there was none
	Table    *route.Table

	Status   int    // sent to the client; 499 when it went away before
	Reason   Reason // empty when the answer is the upstream's
	Attempts int
	// UpstreamStatus is the upstream's; zero when it did not answer.
	UpstreamStatus int
	BytesIn        int64         // of request bodies
	BytesOut       int64         // heads and bodies sent to the client
	Upstream       time.Duration // of the last attempt, to the response head
	Duration       time.Duration
}

// Proxy serves client connections. It implements netloop.Handler. Use [New].
type Proxy struct {
	store     *route.Store
	observer  Observer
	timeouts  atomic.Pointer[Timeouts]
	draining  atomic.Bool
	nowhere   *pool.Service // counts requests that reached no service
	exchanges sync.Pool
}

var _ netloop.Handler = (*Proxy)(nil)

// Nowhere is the service label of requests that reached no service: refused ones, and those no route matched.
const Nowhere = "_none"

// Unrouted is the service that counts those requests.
func (p *Proxy) Unrouted() *pool.Service { return p.nowhere }

// New makes a proxy that serves from the tables in store.
func New(store *route.Store, t Timeouts, o Observer) *Proxy {
	p := &Proxy{store: store, observer: o, nowhere: pool.NewService(Nowhere)}
	p.exchanges.New = func() any { return &exchange{proxy: p} }
	p.SetTimeouts(t)
	return p
}

// SetTimeouts changes the timeouts of exchanges that begin from now on.
func (p *Proxy) SetTimeouts(t Timeouts) {
	t = t.withDefaults()
	p.timeouts.Store(&t)
}

// Drain makes every exchange from now on the last of its connection.
func (p *Proxy) Drain() { p.draining.Store(true) }

// Serve implements netloop.Handler: it serves the requests that are there to be read.
func (p *Proxy) Serve(c netloop.Conn) time.Duration {
	x := p.exchanges.Get().(*exchange)
	idle := x.serve(c)
	p.exchanges.Put(x)
	return idle
}
