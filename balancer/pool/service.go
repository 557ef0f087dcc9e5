package pool

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Service is what all pools of one service share, whatever their generation: the rotation, the retry budget and the totals.
type Service struct {
	Name string

	cursor  atomic.Uint64
	reports atomic.Bool
	budget  budget
	tallies [shares]atomic.Pointer[Tally]
	// Failures counts exchanges that failed, by reason.
	Failures Counts[string]
	// Retries counts attempts after the first.
	Retries Counts[Retry]
}

// Retry is why an attempt was followed by another, and what became of that: "answered", "failed", or "no_budget" when there
// was none, for the budget was spent.
type Retry struct{ Reason, Outcome string }

// The outcomes of a [Retry].
const (
	Answered = "answered"
	Failed   = "failed"
	NoBudget = "no_budget"
)

// shares is among how many tallies the loops share: a power of two.
const shares = 16

// NewService makes a service whose rotation begins at a random place, so that many balancers started together do
// not all begin with the same endpoint.
func NewService(name string) *Service {
	s := &Service{Name: name}
	s.cursor.Store(rand.Uint64N(1 << 32))
	return s
}

// Reports notes that instances of the service say how busy they are, and DoReport whether any has.
func (s *Service) Reports() {
	if !s.reports.Load() {
		s.reports.Store(true)
	}
}

// DoReport reports whether Reports was called.
func (s *Service) DoReport() bool { return s.reports.Load() }

// Tally is what a loop counts in. It is made at the first call.
func (s *Service) Tally(loop int) *Tally { return lazy(&s.tallies[loop&(shares-1)]) }

// each calls f with every tally there is.
func (s *Service) each(f func(*Tally)) {
	for i := range s.tallies {
		if t := s.tallies[i].Load(); t != nil {
			f(t)
		}
	}
}

// InFlight is the number of exchanges now on this service.
func (s *Service) InFlight() int {
	var n int64
	s.each(func(t *Tally) { n += t.inFlight.Load() })
	return int(n)
}

// Used reports whether there was any exchange.
func (s *Service) Used() (used bool) {
	s.each(func(*Tally) { used = true })
	return used
}

// EachCount calls f with every count of answers that is not zero.
func (s *Service) EachCount(f func(c Count)) {
	for i := range (codes{}) {
		for k := range int(protocols) * len(Methods) {
			var n uint64
			s.each(func(t *Tally) {
				if counts := t.codes[i].Load(); counts != nil {
					n += counts[k].Load()
				}
			})
			if n > 0 {
				f(Count{Methods[k%len(Methods)], Protocol(k / len(Methods)), i + 100, n})
			}
		}
	}
}

// Totals are the figures of a service, over all loops. The parts are read one after the other and may differ by the exchanges
// that end meanwhile.
type Totals struct {
	Durations HistogramView // from the first byte of a request to the last of its answer
	Overhead  HistogramView // what of that was not waiting for the head of the instance's answer
	In, Out   uint64        // bytes
	Requests  uint64
	Errors    uint64 // of those: answered with a status of 500 and more, whoever has said so
}

// Totals sums up.
func (s *Service) Totals() Totals {
	var v Totals
	s.each(func(t *Tally) {
		t.durations.addTo(&v.Durations)
		t.overhead.addTo(&v.Overhead)
		v.In += t.in.Load()
		v.Out += t.out.Load()
		v.Errors += t.errors.Load()
	})
	v.Requests = v.Durations.Count()
	return v
}

// Methods are the values of the label "method"; whatever is none of them counts as the last.
var Methods = [...]string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "_OTHER"}

// Method is a place in [Methods].
type Method uint8

// Unknown is the method that counts as the last.
const Unknown = Method(len(Methods) - 1)

// MethodOf finds a method.
func MethodOf(name []byte) Method {
	for i, m := range Methods[:Unknown] {
		if string(name) == m {
			return Method(i)
		}
	}
	return Unknown
}

// Protocol is what an exchange turned out to be.
type Protocol uint8

// The protocols.
const (
	HTTP Protocol = iota
	WebSocket
	Tunnel // another upgrade
	protocols
)

// String is the value of the label "protocol".
func (p Protocol) String() string { return [...]string{"http", "websocket", "tunnel"}[p] }

// Count is a number of answers.
type Count struct {
	Method   string
	Protocol Protocol
	Status   int
	N        uint64
}

// codes counts answers by status - 100, then protocol and method. What was never counted takes a pointer.
type codes [500]atomic.Pointer[[int(protocols) * len(Methods)]atomic.Uint64]

// Tally is what one loop, or a few of them, count of a service: on lines of memory that the other cores do not write to. Its
// methods may be called concurrently.
type Tally struct {
	inFlight  atomic.Int64
	in, out   atomic.Uint64
	errors    atomic.Uint64
	durations Histogram
	overhead  Histogram
	codes     codes
}

// Take counts an exchange in, Release out: on the same tally.
func (t *Tally) Take() { t.inFlight.Add(1) }

// Release counts an exchange out.
func (t *Tally) Release() { t.inFlight.Add(-1) }

// Outcome is how an exchange ended, as the client saw it.
type Outcome struct {
	Method   Method
	Protocol Protocol
	Status   int           // one outside 100–599 counts as 500
	Duration time.Duration // from the first byte of the request to the last of the answer
	// Upstream is how long an instance took to the head of its answer; zero when none answered, and then there is no overhead.
	Upstream time.Duration
	In, Out  int64     // bytes
	Exemplar *Exemplar // nil is none
}

// Done counts an exchange.
func (t *Tally) Done(o *Outcome) {
	status := o.Status
	if status < 100 || status > 599 {
		status = 500
	}
	lazy(&t.codes[status-100])[int(o.Protocol)*len(Methods)+int(o.Method)].Add(1)
	if status >= 500 {
		t.errors.Add(1)
	}
	if o.Protocol == HTTP {
		t.durations.Add(o.Duration, o.Exemplar)
		if o.Upstream > 0 {
			t.overhead.Add(o.Duration-o.Upstream, o.Exemplar)
		}
	}
	t.in.Add(uint64(o.In))
	t.out.Add(uint64(o.Out))
}
