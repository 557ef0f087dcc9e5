package pool

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// Key is the identity of an endpoint. A record that comes back with the same Key is the same endpoint.
type Key struct {
	Service, ID, Incarnation string
	Address                  netip.AddrPort
	Socket                   string // path of a unix socket, instead of Address
}

// Endpoint is one live address with its counters. It outlives the pools that point to it. All methods may be called
// concurrently; the zero value is not useful, see [NewEndpoint].
type Endpoint struct {
	Key
	// Name is Address as text: the label "upstream" of metrics and logs.
	Name string
	// Protocol is http or https where the instance says so; empty is that of [Settings].
	Protocol string
	// IdleTimeout is when the instance closes idle connections, if it says so. Zero is that of [Settings].
	IdleTimeout time.Duration

	inFlight atomic.Int64
	others   atomic.Int64 // exchanges in flight that are not ours, as far as the instance has said
	idle     idle
	retired  atomic.Bool
	closed   atomic.Bool
	suspect  atomic.Bool
	stats    atomic.Pointer[Stats]
}

// NewEndpoint makes an endpoint with zero counters.
func NewEndpoint(key Key) *Endpoint {
	if key.Socket != "" {
		return &Endpoint{Key: key, Name: "unix:" + key.Socket}
	}
	return &Endpoint{Key: key, Name: key.Address.String()}
}

// NewEndpointNamed is NewEndpoint for a caller that holds the text of the address already; if name is another text, it
// is not used. Among many endpoints that saves a string each.
func NewEndpointNamed(key Key, name string) *Endpoint {
	if a, err := netip.ParseAddrPort(name); err != nil || a != key.Address || !key.Address.Addr().Is4() {
		return NewEndpoint(key)
	}
	return &Endpoint{Key: key, Name: name}
}

// Take counts an exchange in. Every Take is followed by one Release.
func (e *Endpoint) Take() { e.inFlight.Add(1) }

// TryTake counts an exchange in unless limit of them are in flight. Zero is no limit.
func (e *Endpoint) TryTake(limit int) bool {
	if n := e.inFlight.Add(1); limit > 0 && n > int64(limit) {
		e.inFlight.Add(-1)
		return false
	}
	return true
}

// Release counts an exchange out.
func (e *Endpoint) Release() { e.inFlight.Add(-1) }

// InFlight is the number of exchanges now on this endpoint.
func (e *Endpoint) InFlight() int { return int(e.inFlight.Load()) }

// Reported notes that the instance says how many exchanges it has in flight, ours included: the rest comes from other
// balancers.
func (e *Endpoint) Reported(n int) {
	others := max(int64(n)-e.inFlight.Load(), 0)
	if e.others.Load() != others {
		e.others.Store(others)
	}
}

// Fade believes half of what was reported: it is called every second, so that an instance which is not asked because it was
// busy is asked again.
func (e *Endpoint) Fade() {
	if n := e.others.Load(); n > 0 {
		e.others.CompareAndSwap(n, n/2)
	}
}

// Load is what policies compare: the exchanges in flight, ours and those of other balancers.
func (e *Endpoint) Load() int64 { return e.inFlight.Load() + e.others.Load() }

// Retire says that the instance behind the endpoint is gone: idle connections to it are not worth keeping.
// It cannot be undone; the same address under a new record is a new endpoint.
func (e *Endpoint) Retire() { e.retired.Store(true) }

// Retired reports whether Retire was called.
func (e *Endpoint) Retired() bool { return e.retired.Load() }

// Close says that no pool in use has the endpoint any more, so that nobody may be new on it. Who has picked it from an older
// pool finds out by [Endpoint.Closed] after [Endpoint.Take]: once it is closed and nothing is in flight, nothing will be.
func (e *Endpoint) Close() { e.closed.Store(true) }

// Open undoes Close, before a pool that has the endpoint comes into use.
func (e *Endpoint) Open() {
	if e.closed.Load() {
		e.closed.Store(false)
	}
}

// Closed reports whether Close was called last.
func (e *Endpoint) Closed() bool { return e.closed.Load() }

// Suspect notes that the endpoint refused a connection, and reports whether that is news since the last [Endpoint.Trust].
func (e *Endpoint) Suspect() bool { return !e.suspect.Swap(true) }

// Trust forgets what Suspect has noted.
func (e *Endpoint) Trust() { e.suspect.Store(false) }

// Stats returns the endpoint's counters. They are made at the first call, so that an endpoint without traffic
// costs little.
func (e *Endpoint) Stats() *Stats { return lazy(&e.stats) }

// PeekStats returns the counters, or nil when there was no traffic yet.
func (e *Endpoint) PeekStats() *Stats { return e.stats.Load() }

// lazy returns what p points to, made at the first call.
func lazy[T any](p *atomic.Pointer[T]) *T {
	if v := p.Load(); v != nil {
		return v
	}
	p.CompareAndSwap(nil, new(T))
	return p.Load()
}
