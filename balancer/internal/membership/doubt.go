package membership

import (
	"cmp"
	"maps"
	"slices"
	"time"
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
	Service  string // empty is all services together, whose brake nobody needs to release
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

// Asks returns the questions that have come up, so many at most; the others are kept for the next call.
func (f *Fold) Asks(most int) []Ask {
	n := min(most, len(f.asks))
	asks := f.asks[:n:n]
	if f.asks = f.asks[n:]; len(f.asks) == 0 {
		f.asks = nil
	}
	return asks
}

// Unanswered takes questions back to which there was no answer: they will be asked again, as long as it matters.
func (f *Fold) Unanswered(asks []Ask) {
	for _, a := range asks {
		if len(f.asking[a.Lease]) > 0 {
			f.asks = append(f.asks, a)
		}
	}
}

// vanish takes in that the record of a member is gone. Who was draining has left, and who had no lease was removed by
// hand: both go at once, and so does who is known not to answer, unless that is not believed ([Fold.Panics]). Anybody else,
// also who is only damped, is a suspect until the store says that the lease is alive, which means that the record was removed
// by hand, or until it does not answer any more. elsewhere says that the store is another one, or an older state of it: then
// its leases say nothing.
func (f *Fold) vanish(service string, m *Member, revision int64, elsewhere bool, now time.Time, touched map[string]bool) {
	if m.lost() {
		delete(f.displaced, m.Endpoint)
		return
	}
	reason := ""
	switch m.Verdict.State {
	case Draining:
		reason = "it has left"
	case Starting:
		if !m.condition.known() {
			reason = "its record is gone before it was ready"
		}
	case Down, Ejected:
		if !f.panics[service] && m.condition.decisive() != &m.condition.damped {
			reason = "its record is gone, and it was not well"
			f.flapped(m.Endpoint, now)
		}
	case Replaced:
		reason = "its record is gone, and another instance has its address"
	}
	if reason == "" && m.Lease == 0 && !elsewhere {
		reason = "its record was removed by hand"
	}
	if reason != "" {
		f.remove(m, reason, revision, touched)
		return
	}
	if elsewhere {
		f.doubt(m, note{now, revision, "the registry is another store than before, without its record"}, false, touched)
	} else {
		f.doubt(m, note{now, revision, "its record was lost; its lease is being looked up"}, true, touched)
	}
	f.count(service, now)
}

// lost reports whether the record of the member is gone without intent.
func (m *Member) lost() bool { return m.condition != nil && m.condition.lost.is() }

// doubt makes a member a suspect. ask says that the store knows more of its lease.
func (f *Fold) doubt(m *Member, lost note, ask bool, touched map[string]bool) {
	if ask {
		if f.asking[m.Lease] == nil {
			f.asks = append(f.asks, Ask{m.Lease, lost.revision})
		}
		f.asking[m.Lease] = append(f.asking[m.Lease], m)
	}
	at := m.Endpoint.Address
	f.suspected[at] = append(f.suspected[at], m)
	f.unswept = true
	f.conditionOf(m).lost = lost
	f.changed(m, touched)
}

// trust takes a suspect out of the books that are kept of suspects.
func (f *Fold) trust(m *Member) {
	without(f.suspected, m.Endpoint.Address, m)
	without(f.asking, m.Lease, m)
	delete(f.displaced, m.Endpoint)
}

// without takes a member out of the list under a key.
func without[K comparable](lists map[K][]*Member, key K, m *Member) {
	list := lists[key]
	if i := slices.Index(list, m); i < 0 {
		return
	} else if list = slices.Delete(list, i, i+1); len(list) > 0 {
		lists[key] = list
	} else {
		delete(lists, key)
	}
}

// end removes a member whose life has ended without notice.
func (f *Fold) end(m *Member, now time.Time, touched map[string]bool) {
	f.flapped(m.Endpoint, now)
	f.remove(m, "its record was lost, and it does not answer", m.condition.lost.revision, touched)
}

// sweep ends suspects whose address is that of an instance of another service, which has come later and from another process:
// whatever answers there is not the suspect. Within a service, and for those that come now, this is known without a look at all.
func (f *Fold) sweep(touched map[string]bool) {
	if f.unswept = false; len(f.suspected) == 0 {
		return
	}
	var over []*Member
	for _, members := range f.services {
		for _, m := range members {
			if m.lost() {
				continue
			}
			for _, s := range f.suspected[m.Endpoint.Address] {
				if m.CreateRevision > s.CreateRevision && (m.Lease == 0 || m.Lease != s.Lease) {
					over = append(over, s)
				}
			}
		}
	}
	for _, s := range over {
		f.remove(s, "its address is another instance's now", f.revision, touched)
	}
}

// count notes a loss and engages the brake when there are many.
func (f *Fold) count(service string, now time.Time) {
	for name, of := range map[string]int{service: len(f.services[service]), "": f.instances} {
		l := f.losses[name]
		if l == nil {
			l = &losses{}
			f.losses[name] = l
		}
		if l.lost == 0 || now.Sub(l.since) > BrakeWindow && !l.braked {
			*l = losses{since: now, of: of}
		}
		l.lost++
		l.braked = l.braked || l.lost >= 2 && 2*l.lost >= l.of
	}
}

// Answer takes in what the store says about a lease. An alive one means that somebody removed the record by hand; of a
// lease that is not alive, or that nothing could be learned about, the instance stays a suspect.
func (f *Fold) Answer(lease int64, alive bool, touched map[string]bool) {
	list := f.asking[lease]
	delete(f.asking, lease)
	for _, m := range list {
		if alive {
			f.remove(m, "its record was removed by hand: its lease is alive", m.condition.lost.revision, touched)
		} else {
			m.condition.lost.reason = "its lease was lost"
			f.become(m, f.verdict(m))
		}
	}
}

// Expire ends what has lasted too long.
func (f *Fold) Expire(now time.Time, touched map[string]bool) {
	f.at = now
	if f.unswept {
		f.sweep(touched)
	}
	suspects := map[string]bool{"": len(f.suspected) > 0}
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

// ReleaseBrake makes the suspects of a service go at once, of all services if it is empty, and returns how many there were.
func (f *Fold) ReleaseBrake(service string, touched map[string]bool) (gone int) {
	for _, m := range f.suspects() {
		if m.Endpoint.Service == service || service == "" {
			f.remove(m, "it was given up by hand", m.condition.lost.revision, touched)
			gone++
		}
	}
	delete(f.losses, service)
	if len(f.suspected) == 0 {
		clear(f.losses)
	}
	return gone
}

// Brakes lists the brakes that are engaged, by service.
func (f *Fold) Brakes() []Brake {
	var list []Brake
	for service, l := range f.losses {
		if l.braked && service != "" {
			list = append(list, Brake{service, l.since, l.lost, l.of})
		}
	}
	if l := f.losses[""]; len(list) == 0 && l != nil && l.braked { // else those of the services say it
		list = append(list, Brake{"", l.since, l.lost, l.of})
	}
	slices.SortFunc(list, func(a, b Brake) int { return cmp.Compare(a.Service, b.Service) })
	return list
}

// suspects lists the members whose record was lost, so that they can be removed while one goes through them.
func (f *Fold) suspects() []*Member {
	return slices.Concat(slices.Collect(maps.Values(f.suspected))...)
}
