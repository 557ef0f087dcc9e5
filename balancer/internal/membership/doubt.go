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

// doubt is what speaks against an instance. Few have one at a time, so it is kept apart.
type doubt struct {
	since    time.Time
	revision int64 // that brought it about
	reason   string
	lost     bool // the record is gone without intent; else connections were refused
}

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
	if m.doubt != nil && m.doubt.lost {
		return
	}
	known := m.Instance.State == "" || m.Instance.State == "ready"
	if !known || m.doubt != nil || m.Lease == 0 && !elsewhere {
		f.remove(service, m.Endpoint.ID, touched)
		return
	}
	d := &doubt{since: now, revision: revision, lost: true, reason: "its record was lost; its lease is being looked up"}
	if elsewhere {
		d.reason = "the registry is another store than before, without its record"
	} else {
		if f.asking[m.Lease] == nil {
			f.asks = append(f.asks, Ask{m.Lease, revision})
		}
		f.asking[m.Lease] = append(f.asking[m.Lease], m)
	}
	f.suspected[place(m.Endpoint)] = m
	f.doubtIt(m, d, touched)
	f.count(service, now)
}

// place is where an endpoint of a service is, whoever it is.
func place(e *pool.Endpoint) pool.Key { return pool.Key{Service: e.Service, Address: e.Address} }

func (f *Fold) doubtIt(m *Member, d *doubt, touched map[string]bool) {
	m.doubt = d
	m.Verdict = verdict(m)
	f.doubted[m.Endpoint] = m
	f.doubts++
	touched[m.Endpoint.Service] = true
}

// settle ends the doubt about a member, if there is any.
func (f *Fold) settle(m *Member) {
	if m.doubt == nil {
		return
	}
	if m.doubt.lost {
		delete(f.suspected, place(m.Endpoint))
	}
	m.doubt = nil
	m.Verdict = verdict(m)
	delete(f.doubted, m.Endpoint)
	f.doubts++
}

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
		case m.doubt == nil: // it is back, or has gone
		case alive:
			f.remove(m.Endpoint.Service, m.Endpoint.ID, touched)
		default:
			m.doubt.reason = "its lease was lost"
			m.Verdict = verdict(m)
		}
	}
	delete(f.asking, lease)
}

// Probed takes in the outcome of a probe of an endpoint in doubt. A suspect that does not answer goes; an ejected one that
// answers returns.
func (f *Fold) Probed(e *pool.Endpoint, ok bool, touched map[string]bool) {
	m := f.doubted[e]
	switch {
	case m == nil:
	case m.doubt.lost && !ok:
		f.remove(e.Service, e.ID, touched)
	case !m.doubt.lost && ok:
		f.settle(m)
		touched[e.Service] = true
	}
}

// Refused takes in that an endpoint refused a connection, or reset it before it answered. A suspect goes. Any other is
// ejected until a probe passes, unless half of its service is already.
func (f *Fold) Refused(e *pool.Endpoint, now time.Time, touched map[string]bool) {
	if m := f.doubted[e]; m != nil {
		if m.doubt.lost {
			f.remove(e.Service, e.ID, touched)
		}
		return
	}
	var m *Member
	meant, ejected := 0, 0
	for _, o := range f.Members(e.Service) {
		switch {
		case o.Endpoint == e:
			m = o
			meant++
		case o.Verdict.State == Ejected:
			meant++
			ejected++
		case o.Verdict.State == Ready || o.Verdict.State == Suspect:
			meant++
		}
	}
	if m == nil || m.Verdict.State != Ready || 2*(ejected+1) > meant {
		return
	}
	f.doubtIt(m, &doubt{since: now, revision: f.revision, reason: "it refused a connection"}, touched)
}

// Expire ends what has lasted too long.
func (f *Fold) Expire(now time.Time, touched map[string]bool) {
	for _, m := range f.doubtful() {
		if m.doubt.lost && now.Sub(m.doubt.since) > SuspectFor {
			f.remove(m.Endpoint.Service, m.Endpoint.ID, touched)
		}
	}
	suspects := map[string]bool{}
	for _, m := range f.doubted {
		if m.doubt.lost {
			suspects[m.Endpoint.Service] = true
		}
	}
	for service, l := range f.losses {
		if !suspects[service] && (l.braked || now.Sub(l.since) > BrakeWindow) {
			delete(f.losses, service)
		}
	}
}

// ReleaseBrake makes the suspects of a service go at once.
func (f *Fold) ReleaseBrake(service string, touched map[string]bool) {
	for _, m := range f.doubtful() {
		if m.doubt.lost && m.Endpoint.Service == service {
			f.remove(service, m.Endpoint.ID, touched)
		}
	}
	delete(f.losses, service)
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

// Doubted are the endpoints to be probed, with their members. It is the caller's to read until the next change.
func (f *Fold) Doubted() map[*pool.Endpoint]*Member { return f.doubted }

// Doubts changes whenever Doubted does.
func (f *Fold) Doubts() int { return f.doubts }

// doubtful lists the members in doubt, so that they can be removed while one goes through them.
func (f *Fold) doubtful() []*Member { return slices.Collect(maps.Values(f.doubted)) }
