// Package proxy is the exchange: match, admit, pick, attempt, relay, outcome; and the tunnel that an upgrade leads to.
//
// A [Proxy] serves client connections of a netloop engine. For each request it loads the table once, finds the route,
// asks whether the request may go on now (limits, shedding), picks an endpoint, sends the request there and relays the
// answer; bodies stream both ways with the back-pressure of the sockets, large ones within the kernel. A failure before
// the first byte of the answer is tried on another endpoint when the request was provably not sent, or may be repeated and
// is still held in full, within the service's retry budget. Every failure becomes a status, a reason and a body in one
// place ([failure]). What became of an exchange is told to the [Observer].
//
// The package knows no etcd, no configuration file and no registry: only tables and [Settings].
package proxy

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/limit"
	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// Settings hold for all routes that do not say otherwise; zero fields take the default. See config for what each means.
type Settings struct {
	RequestHead time.Duration // 10s
	KeepAlive   time.Duration // 75s
	// Timeouts are 1s, 30s, 60s, 1h and none.
	Timeouts route.Timeouts
	// Retries are 3, 20 and 16 KiB.
	Retries route.Retries
	MaxBody int64 // 0 is no limit
	MinRate int64 // bytes a second; 500, negative is none
	// Trusted are the networks whose word on where a request came from counts; TrustUnix says so of unix sockets.
	Trusted   []netip.Prefix
	TrustUnix bool
	// RequestID is the field that carries the id of a request; empty is none.
	RequestID string

	requestIDLower string
}

func (s Settings) withDefaults() *Settings {
	orDefault(&s.RequestHead, 10*time.Second)
	orDefault(&s.KeepAlive, 75*time.Second)
	orDefault(&s.Timeouts.Connect, time.Second)
	orDefault(&s.Timeouts.ResponseHead, 30*time.Second)
	orDefault(&s.Timeouts.IdleBody, time.Minute)
	orDefault(&s.Timeouts.Tunnel, time.Hour)
	orDefault(&s.Retries.Attempts, 3)
	orDefault(&s.Retries.Budget, 20)
	orDefault(&s.Retries.Buffer, 16<<10)
	orDefault(&s.MinRate, 500)
	return &s
}

func orDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// trusts reports whether a peer's word counts. The zero Addr is a unix socket's.
func (s *Settings) trusts(a netip.Addr) bool {
	if !a.IsValid() {
		return s.TrustUnix
	}
	for _, p := range s.Trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

const (
	maxAttempts = 5
	mostRefused = 16 // connections refused to one request that are no attempts
	maxInterim  = 8  // 1xx answers to one request
	lingerTime  = time.Second
	lingerBytes = 256 << 10
	// mostPasses is how often a request may come through this proxy. Once is common and no circle: a gateway behind it that
	// calls other services through it, and copies the fields of its own request.
	mostPasses = 4
)

// Observer is told of every exchange that got as far as a request, on the loop, when its last byte is sent or about to be. It must not block
// and must copy what it keeps: the record and its slices are used again.
type Observer interface {
	Done(r *Record)
	// Refused is told, on the loop as well, that an endpoint has refused a new connection or let it wait in vain; or reset it
	// before it said a word, which somebody who gets that far may do for one request only.
	Refused(e *pool.Endpoint, reset bool)
	// Failing is told likewise that an endpoint has failed as often in a row as its pool allows, or a multiple of that.
	Failing(e *pool.Endpoint)
}

// Record says what became of an exchange.
type Record struct {
	Loop   int
	Start  time.Time
	Peer   netip.AddrPort // who is connected, or as a PROXY header says
	Client netip.AddrPort // as a trusted proxy names it, then without port; else the peer
	TLS    bool
	// TLSVersion and TLSCipher are crypto/tls's numbers.
	TLSVersion, TLSCipher uint16
	TLSResumed            bool

	Scheme                    string // http or https, how the client came; behind a trusted proxy, what that says. Empty with the next ones
	Method, Host, Path, Query []byte // empty when the head was refused before they were known
	Minor                     int
	Head                      *http1.Request // that this is from; nil likewise
	UserAgent, Referer        []byte
	ID                        []byte // of the request; empty when there is none

	Route    *route.Route   // nil when none matched
	Service  *pool.Service  // nil likewise
	Endpoint *pool.Endpoint // of the last attempt; nil when there was none
	Table    *route.Table

	Trace *Trace // nil when it is not traced

	Protocol pool.Protocol
	Status   int    // sent to the client; 499 when it went away before
	Reason   Reason // empty when the answer is the upstream's
	Attempts int
	Spent    bool // another attempt might have done, but for the bound on them or the budget
	// UpstreamStatus is the upstream's; zero when it did not answer.
	UpstreamStatus int
	BytesIn        int64         // of request bodies, and heads; of a tunnel, what the client has sent
	HeadIn         int64         // of that, the head
	BytesOut       int64         // heads and bodies sent to the client
	HeadOut        int64         // of that, the final head
	Upstream       time.Duration // of the last attempt, to the response head
	Duration       time.Duration
}

// Proxy serves client connections. It implements netloop.Handler. Use [New].
type Proxy struct {
	// Guard sheds load; nil never does. It is set before the first connection.
	Guard *Guard
	// Name is how Via fields call this proxy, and how it knows that a request goes in circles: no other one should have it. It
	// is set before the first connection.
	Name string

	// Sampler says which exchanges are traced; nil is none. It is set before the first connection.
	Sampler Sampler

	store     *route.Store
	observer  Observer
	settings  atomic.Pointer[Settings]
	draining  atomic.Bool
	nowhere   *pool.Service // counts requests that reached no service
	exchanges sync.Pool
	rates     *limit.Table
	queues    sync.Map // *pool.Service → *queue
	mirrors   atomic.Int64

	mu      sync.Mutex
	tunnels map[*tunnel]struct{}
	ending  bool // tunnels are
}

var _ netloop.Handler = (*Proxy)(nil)

// Nowhere is the service label of requests that reached no service: refused ones, redirects, and those no route matched.
const Nowhere = "_other"

// Unrouted is the service that counts those requests.
func (p *Proxy) Unrouted() *pool.Service { return p.nowhere }

// rateEntries bounds how many clients the rate limits tell apart at a time.
const rateEntries = 64 << 10

// New makes a proxy that serves from the tables in store.
func New(store *route.Store, s Settings, o Observer) *Proxy {
	p := &Proxy{
		store: store, observer: o, nowhere: pool.NewService(Nowhere), rates: limit.NewTable(rateEntries),
		tunnels: map[*tunnel]struct{}{}, Name: "rota",
	}
	p.exchanges.New = func() any { return &exchange{proxy: p} }
	p.SetSettings(s)
	return p
}

// SetSettings changes the settings of exchanges that begin from now on.
func (p *Proxy) SetSettings(s Settings) {
	s.requestIDLower = strings.ToLower(s.RequestID)
	p.settings.Store(s.withDefaults())
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
