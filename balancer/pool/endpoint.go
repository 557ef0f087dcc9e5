package pool

import (
	"math/rand/v2"
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

// Service is what all pools of one service share, whatever their generation: the rotation and the totals.
type Service struct {
	Name string

	cursor   atomic.Uint64
	inFlight atomic.Int64
	reports  atomic.Bool
	budget   budget
	stats    atomic.Pointer[Stats]
	codes    atomic.Pointer[codes]
}

// codes counts answers by status - 100 and method. What was never counted takes a pointer.
type codes [500]atomic.Pointer[[len(Methods)]atomic.Uint64]

// Methods are the values of the label "method"; whatever is none of them counts as the last.
var Methods = [...]string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "_OTHER"}

// Count counts an answer to the client by method and status. A status outside 100–599 counts as 500.
func (s *Service) Count(method []byte, status int) {
	if status < 100 || status > 599 {
		status = 500
	}
	counts := lazy(&lazy(&s.codes)[status-100])
	i := 0
	for i < len(Methods)-1 && string(method) != Methods[i] {
		i++
	}
	counts[i].Add(1)
}

// EachCount calls f with every count that is not zero.
func (s *Service) EachCount(f func(method string, status int, n uint64)) {
	all := s.codes.Load()
	if all == nil {
		return
	}
	for i := range all {
		counts := all[i].Load()
		if counts == nil {
			continue
		}
		for m := range counts {
			if n := counts[m].Load(); n > 0 {
				f(Methods[m], i+100, n)
			}
		}
	}
}

// Reports notes that instances of the service say how busy they are, and DoReport whether any has.
func (s *Service) Reports() {
	if !s.reports.Load() {
		s.reports.Store(true)
	}
}

// DoReport reports whether Reports was called.
func (s *Service) DoReport() bool { return s.reports.Load() }

// NewService makes a service whose rotation begins at a random place, so that many balancers started together do
// not all begin with the same endpoint.
func NewService(name string) *Service {
	s := &Service{Name: name}
	s.cursor.Store(rand.Uint64N(1 << 32))
	return s
}

// Take and Release count exchanges of the whole service.
func (s *Service) Take() { s.inFlight.Add(1) }

// Release counts an exchange out.
func (s *Service) Release() { s.inFlight.Add(-1) }

// InFlight is the number of exchanges now on this service.
func (s *Service) InFlight() int { return int(s.inFlight.Load()) }

// Stats returns the service's counters, made at the first call.
func (s *Service) Stats() *Stats { return lazy(&s.stats) }

// PeekStats returns the counters, or nil when there was no traffic yet.
func (s *Service) PeekStats() *Stats { return s.stats.Load() }

// Bounds are the upper bounds of the duration buckets.
var Bounds = [...]time.Duration{
	1 * time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 75 * time.Millisecond, 100 * time.Millisecond,
	250 * time.Millisecond, 500 * time.Millisecond, 750 * time.Millisecond, 1 * time.Second,
	2500 * time.Millisecond, 5 * time.Second, 7500 * time.Millisecond, 10 * time.Second,
}

// Stats counts outcomes: answers by class of status, failures, and durations. The zero value is ready.
type Stats struct {
	classes [6]atomic.Uint64 // [0] attempts that ended without an answer
	buckets [len(Bounds) + 1]atomic.Uint64
	sum     atomic.Int64 // nanoseconds
	failed  atomic.Int32 // outcomes in a row that are failures
}

// Record counts one outcome. A status outside 100–599 means that there was no answer. It returns how many outcomes in a row,
// this one included, were failures: no answer, or a status of 500 and more.
func (s *Stats) Record(status int, d time.Duration) (failures int) {
	class := status / 100
	if class < 1 || class > 5 {
		class = 0
	}
	s.classes[class].Add(1)
	i := 0
	for i < len(Bounds) && d > Bounds[i] {
		i++
	}
	s.buckets[i].Add(1)
	s.sum.Add(int64(d))
	if class == 0 || class == 5 {
		return int(s.failed.Add(1))
	}
	if s.failed.Load() != 0 {
		s.failed.Store(0)
	}
	return 0
}

// SetFailures says how many outcomes in a row are to be taken for failures from now on: who is on trial begins with all but
// the last.
func (s *Stats) SetFailures(n int) { s.failed.Store(int32(n)) }

// Outcomes are how many there were, and how many of them were failures.
func (s *Stats) Outcomes() (all, failures uint64) {
	for i := range s.classes {
		all += s.classes[i].Load()
	}
	return all, s.classes[0].Load() + s.classes[5].Load()
}

// StatsView is a copy of the counters, for telemetry. The parts are read one after the other and may differ by the
// exchanges that end meanwhile.
type StatsView struct {
	Classes [6]uint64 // index 1 to 5: answers 1xx to 5xx; index 0: no answer
	Buckets [len(Bounds) + 1]uint64
	Sum     time.Duration
}

// Count is the number of outcomes.
func (v *StatsView) Count() uint64 {
	var n uint64
	for _, c := range v.Buckets {
		n += c
	}
	return n
}

// View copies the counters.
func (s *Stats) View() StatsView {
	var v StatsView
	for i := range s.classes {
		v.Classes[i] = s.classes[i].Load()
	}
	for i := range s.buckets {
		v.Buckets[i] = s.buckets[i].Load()
	}
	v.Sum = time.Duration(s.sum.Load())
	return v
}
