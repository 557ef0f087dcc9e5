package membership

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
)

// Limits of doubt.
const (
	// SuspectFor is how long an instance whose record was lost may serve on.
	SuspectFor = 10 * time.Minute
	// BrakeWindow is the time within which losses count together.
	BrakeWindow = 10 * time.Second
)

// Brake says that so many records of a service were lost at once that the store is more likely sick than they are.
type Brake struct {
	Service  string
	Since    time.Time
	Lost, Of int // instances lost within BrakeWindow, of those there were
}

// losses counts what a service has lost since a moment.
type losses struct {
	since    time.Time
	lost, of int
	braked   bool
}

// Ask is a question to the store: is this lease alive? The answer is given to [Fold.Answer].
type Ask struct {
	Lease    int64
	Revision int64 // at which its key went
}

// Asks returns the questions that have come up since the last call.
func (f *Fold) Asks() []Ask {
	asks := f.asks
	f.asks = nil
	return asks
}

// vanish takes in that the record of a member is gone. Who was draining has left, and who had no lease was removed by
// hand: both go at once, and so does who is known not to answer. Anybody else is a suspect until the store says that the
// lease is alive, which means that the record was removed by hand, or until it does not answer any more. elsewhere says
// that the store is another one, or an older state of it: then its leases say nothing.
func (f *Fold) vanish(service string, m *Member, revision int64, elsewhere bool, now time.Time, touched map[string]bool) {
	if m.condition != nil && m.condition.lost.is() {
		return
	}
	if m.Verdict.State != Ready && m.Verdict.State != Replaced || m.Lease == 0 && !elsewhere {
		reason := "its record was removed by hand"
		switch m.Verdict.State {
		case Draining:
			reason = "it has left"
		case Starting:
			reason = "its record is gone before it was ready"
		case Down, Ejected:
			reason = "its record is gone, and it was not well"
			f.flapped(m.Endpoint, now)
		}
		f.remove(m, reason, revision, touched)
		return
	}
	lost := note{now, revision, "its record was lost; its lease is being looked up"}
	if elsewhere {
		lost.reason = "the registry is another store than before, without its record"
	} else {
		if f.asking[m.Lease] == nil {
			f.asks = append(f.asks, Ask{m.Lease, revision})
		}
		f.asking[m.Lease] = append(f.asking[m.Lease], m)
	}
	f.suspected[place(m.Endpoint)] = m
	f.conditionOf(m).lost = lost
	f.changed(m, touched)
	f.count(service, now)
}

// end removes a member whose life has ended without notice.
func (f *Fold) end(m *Member, now time.Time, touched map[string]bool) {
	f.flapped(m.Endpoint, now)
	f.remove(m, "its record was lost, and it does not answer", m.condition.lost.revision, touched)
}

// place is where an endpoint of a service is, whoever it is.
func place(e *pool.Endpoint) pool.Key { return pool.Key{Service: e.Service, Address: e.Address} }

// count notes a loss and engages the brake when there are many.
func (f *Fold) count(service string, now time.Time) {
	l := f.losses[service]
	if l == nil {
		l = &losses{}
		f.losses[service] = l
	}
	if l.lost == 0 || now.Sub(l.since) > BrakeWindow && !l.braked {
		*l = losses{since: now, of: len(f.services[service])}
	}
	l.lost++
	l.braked = l.braked || l.lost >= 2 && 2*l.lost >= l.of
}

// Answer takes in what the store says about a lease. An alive one means that somebody removed the record by hand; of a
// lease that is not alive, or that nothing could be learned about, the instance stays a suspect.
func (f *Fold) Answer(lease int64, alive bool, touched map[string]bool) {
	for _, m := range f.asking[lease] {
		switch {
		case f.Member(m.Endpoint) != m || m.condition == nil || !m.condition.lost.is(): // it is back, or has gone
		case alive:
			f.remove(m, "its record was removed by hand: its lease is alive", m.condition.lost.revision, touched)
		default:
			m.condition.lost.reason = "its lease was lost"
			m.Verdict = f.verdict(m)
		}
	}
	delete(f.asking, lease)
}

// Expire ends what has lasted too long.
func (f *Fold) Expire(now time.Time, touched map[string]bool) {
	f.at = now
	suspects := map[string]bool{}
	for _, m := range f.suspects() {
		if now.Sub(m.condition.lost.since) > SuspectFor {
			f.remove(m, "its record was lost for too long", m.condition.lost.revision, touched)
		} else {
			suspects[m.Endpoint.Service] = true
		}
	}
	for service, l := range f.losses {
		if !suspects[service] && (l.braked || now.Sub(l.since) > BrakeWindow) {
			delete(f.losses, service)
		}
	}
	f.settle(now, touched)
	f.cool(now, touched)
}

// ReleaseBrake makes the suspects of a service go at once, and returns how many there were.
func (f *Fold) ReleaseBrake(service string, touched map[string]bool) (gone int) {
	for _, m := range f.suspects() {
		if m.Endpoint.Service == service {
			f.remove(m, "it was given up by hand", m.condition.lost.revision, touched)
			gone++
		}
	}
	delete(f.losses, service)
	return gone
}

// Brakes lists the brakes that are engaged, by service.
func (f *Fold) Brakes() []Brake {
	var list []Brake
	for service, l := range f.losses {
		if l.braked {
			list = append(list, Brake{service, l.since, l.lost, l.of})
		}
	}
	slices.SortFunc(list, func(a, b Brake) int { return cmp.Compare(a.Service, b.Service) })
	return list
}

// suspects lists the members whose record was lost, so that they can be removed while one goes through them.
func (f *Fold) suspects() []*Member { return slices.Collect(maps.Values(f.suspected)) }
