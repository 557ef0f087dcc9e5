package membership

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
)

// Policy is what a service wants of its condition to be made. The zero value has the defaults.
type Policy struct {
	// Check says that instances are checked which do not ask for it themselves.
	Check bool
	// SlowStart is how long an instance that enters a pool takes to get its whole share, from a tenth on. Zero is
	// DefaultSlowStart, less is at once.
	SlowStart time.Duration
	// Panic is the percentage of a pool below which the healthy ones are not left alone. Zero is DefaultPanic, less is never.
	Panic int
	// Overrides are an operator's words about instances, by id. They count for every life of the id.
	Overrides map[string]Override
	// Revision is the store's, of the key that this is from; zero is the configuration file.
	Revision int64
}

// Override is an operator's word about an instance.
type Override struct {
	Drain  bool // it takes nothing new, whatever it says itself
	Weight *int // instead of its own; nil is its own
}

// The values of fields of [Policy] that are zero.
const (
	DefaultSlowStart = 10 * time.Second
	DefaultPanic     = 50
)

// condition is what was found out about an instance. Few have one at a time, so it is kept apart.
type condition struct {
	lost     note // its record is gone without intent
	refused  note // it refused a connection, or reset one: until a probe passes
	failing  note // too many of its answers were failures: for a while
	down     note // its check fails
	unproven note // its check has not passed yet
	restored note // from a snapshot, and has not answered yet
	damped   note // it comes and goes too often: until then
	until    time.Time
	entered  time.Time
}

// note says since when something is so and why. The zero note says that it is not.
type note struct {
	since    time.Time
	revision int64
	reason   string
}

func (n *note) is() bool { return n.reason != "" }

// state is what a condition makes of an instance that says it is ready.
func (c *condition) state() State {
	switch {
	case c == nil:
	case c.unproven.is(), c.restored.is():
		return Starting
	case c.down.is():
		return Down
	case c.refused.is(), c.failing.is(), c.damped.is():
		return Ejected
	case c.lost.is():
		return Suspect
	}
	return Ready
}

// known reports whether an instance that is not ready is one that was before: it is only to be proven again.
func (c *condition) known() bool { return c != nil && c.restored.is() && !c.unproven.is() }

// decisive is the note that makes the state; nil when it is Ready.
func (c *condition) decisive() *note {
	if c != nil {
		for _, n := range []*note{&c.unproven, &c.restored, &c.down, &c.refused, &c.failing, &c.damped, &c.lost} {
			if n.is() {
				return n
			}
		}
	}
	return nil
}

// SetPolicy says what holds for a service from the time now on.
func (f *Fold) SetPolicy(service string, p Policy, now time.Time, touched map[string]bool) {
	f.at = now
	last := f.policies[service].Overrides
	if p.Check || p.SlowStart != 0 || p.Panic != 0 || len(p.Overrides) > 0 {
		f.policies[service] = p
	} else {
		delete(f.policies, service)
	}
	if len(last)+len(p.Overrides) == 0 {
		return
	}
	for _, m := range f.Members(service) {
		if last[m.Endpoint.ID] != p.Overrides[m.Endpoint.ID] {
			f.changed(m, touched)
		}
	}
}

// checked reports whether a member has a check.
func (f *Fold) checked(m *Member) bool {
	return m.Instance.Check != nil || f.policies[m.Endpoint.Service].Check
}

func (f *Fold) conditionOf(m *Member) *condition {
	if m.condition == nil {
		m.condition = &condition{}
	}
	return m.condition
}

// changed judges a member anew, and notes that it is to be looked at.
func (f *Fold) changed(m *Member, touched map[string]bool) {
	if m.condition != nil && m.condition.decisive() == nil && m.condition.entered.IsZero() {
		m.condition = nil
	}
	if m.condition.decisive() != nil {
		f.doubted[m.Endpoint] = m
	} else {
		delete(f.doubted, m.Endpoint)
	}
	if f.warming[m.Endpoint] != nil {
		f.warming[m.Endpoint] = m
	}
	// Whether who was replaced still is shows when it is held against the others.
	if v := f.verdict(m); m.Verdict.State != Replaced || !v.State.serves() {
		f.become(m, v)
	}
	f.fresh = append(f.fresh, m)
	touched[m.Endpoint.Service] = true
}

// become gives a member a verdict, and notes what that changes.
func (f *Fold) become(m *Member, v Verdict) {
	if was := m.Verdict.State; was != v.State {
		if m.since = f.at.UnixNano(); was != "" {
			f.moved(m, was, v.State, v.Reason, v.Revision)
		}
	}
	m.Verdict = v
}

// improve changes the condition of a member for the better, and begins its slow start if it serves by that.
func (f *Fold) improve(m *Member, now time.Time, touched map[string]bool, change func(*condition)) {
	served := m.Verdict.State.serves()
	change(m.condition)
	f.changed(m, touched)
	if !served && m.Verdict.State.serves() {
		f.warm(m, now)
	}
}

// Outcome is what has become of a probe.
type Outcome uint8

// The outcomes of probes.
const (
	Silent   Outcome = iota // it does not answer
	Answered                // it does, but its check says that it is not well
	Passed
)

// Probed takes in the outcome of a probe. A suspect that does not answer goes; one that answers that it is not well serves no
// more, unless all of its service do. One that had refused a connection and answers returns.
func (f *Fold) Probed(e *pool.Endpoint, o Outcome, now time.Time, touched map[string]bool) {
	f.at = now
	m := f.doubted[e]
	switch {
	case m == nil:
	case m.lost() && o == Silent:
		f.end(m, now, touched)
	case m.lost() && o == Answered:
		if !m.condition.down.is() {
			m.condition.down = note{now, 0, "its record was lost, and its check fails"}
			f.changed(m, touched)
		}
	case m.lost() && m.condition.down.is() && o == Passed:
		f.improve(m, now, touched, func(c *condition) { c.down, c.refused, c.restored = note{}, note{}, note{} })
	case (m.condition.refused.is() || m.condition.restored.is()) && o == Passed:
		f.improve(m, now, touched, func(c *condition) { c.refused, c.restored = note{}, note{} })
	}
}

// Checked takes in what the check of an endpoint has shown, and why. What has been shown before changes nothing.
func (f *Fold) Checked(e *pool.Endpoint, up bool, reason string, now time.Time, touched map[string]bool) {
	f.at = now
	m := f.Member(e)
	if m == nil {
		return
	}
	switch c := m.condition; {
	case up && c != nil && (c.down.is() || c.unproven.is()):
		f.improve(m, now, touched, func(c *condition) { c.down, c.unproven = note{}, note{} })
	case !up && (c == nil || !c.down.is() && !c.unproven.is()):
		f.conditionOf(m).down = note{now, 0, "its check fails: " + reason}
		f.changed(m, touched)
	}
}

// Unchecked takes in that an endpoint has no check any more.
func (f *Fold) Unchecked(e *pool.Endpoint, now time.Time, touched map[string]bool) {
	f.Checked(e, true, "", now, touched)
}

// Unproven reports whether the first check of an endpoint has yet to pass.
func (f *Fold) Unproven(e *pool.Endpoint) bool {
	m := f.doubted[e]
	return m != nil && m.condition.unproven.is()
}

// HasCheck reports whether the policy of a service has a check.
func (f *Fold) HasCheck(service string) bool { return f.policies[service].Check }

// Member is the member of an endpoint, nil if it has gone.
func (f *Fold) Member(e *pool.Endpoint) *Member {
	for _, list := range [][]*Member{f.services[e.Service], f.statics[e.Service]} {
		if at, found := find(list, e.ID); found && list[at].Endpoint == e {
			return list[at]
		}
	}
	return nil
}

// Until is when the member is no longer damped; zero if it is not.
func (m *Member) Until() time.Time {
	if c := m.condition; c != nil && c.damped.is() {
		return c.until
	}
	return time.Time{}
}

// Probe reports whether it has to be found out soon how the member is, whether it has a check or not.
func (m *Member) Probe() bool {
	c := m.condition
	return c != nil && (c.lost.is() || c.refused.is() || c.unproven.is() || c.restored.is())
}

// Refused takes in that an endpoint refused a connection, or reset a new one. A suspect that refuses goes; whether one that
// resets is there, its next probe tells. Any other is ejected until a probe passes, unless half of its service is out already.
func (f *Fold) Refused(e *pool.Endpoint, reset bool, now time.Time, touched map[string]bool) {
	f.at = now
	if m := f.doubted[e]; m != nil && m.lost() {
		if !reset {
			f.end(m, now, touched)
		}
		return
	}
	if m := f.expendable(e); m != nil {
		kind, reason := "refused", "it refused a connection"
		if reset {
			kind, reason = "reset", "it reset a new connection"
		}
		f.conditionOf(m).refused = note{now, 0, reason}
		e.Stats().Ejections.Add(kind)
		f.changed(m, touched)
	}
}

// Failing ejects a member for failing, which counts as an ejection of that kind, and reports whether it did: not when half of its service is out already, or when it
// serves no more.
func (f *Fold) Failing(e *pool.Endpoint, kind, reason string, now time.Time, touched map[string]bool) bool {
	f.at = now
	m := f.expendable(e)
	if m == nil {
		return false
	}
	f.conditionOf(m).failing = note{now, 0, reason}
	e.Stats().Ejections.Add(kind)
	f.changed(m, touched)
	return true
}

// Readmit ends what Failing has begun.
func (f *Fold) Readmit(e *pool.Endpoint, now time.Time, touched map[string]bool) {
	f.at = now
	if m := f.doubted[e]; m != nil && m.condition.failing.is() {
		f.improve(m, now, touched, func(c *condition) { c.failing = note{} })
	}
}

// expendable is the member of an endpoint if it is ready and may be ejected: at most half of those of its service that want
// to serve may be out.
func (f *Fold) expendable(e *pool.Endpoint) (m *Member) {
	meant, out := 0, 0
	for _, o := range f.Members(e.Service) {
		switch o.Verdict.State {
		case Ejected, Down:
			out++
			meant++
		case Ready, Suspect:
			meant++
		}
		if o.Endpoint == e && o.Verdict.State == Ready {
			m = o
		}
	}
	if 2*(out+1) > meant {
		return nil
	}
	return m
}

// panic reports whether so few of those who mean to serve are in a good condition that all are to serve.
func (f *Fold) panic(service string, list []*Member) bool {
	share := f.policies[service].Panic
	if share == 0 {
		share = DefaultPanic
	}
	good, meant := 0, 0
	for _, m := range list {
		switch s := m.Verdict.State; {
		case s.serves():
			good++
			meant++
		case s == Down || s == Ejected:
			meant++
		}
	}
	if good*100 >= share*meant {
		delete(f.panics, service)
		return false
	}
	f.panics[service] = true
	return true
}

// Panics are the services whose pool has everybody, whatever their condition. It is the caller's to read until the next
// change.
func (f *Fold) Panics() map[string]bool { return f.panics }

// warm begins the slow start of a member.
func (f *Fold) warm(m *Member, now time.Time) {
	if f.policies[m.Endpoint.Service].SlowStart >= 0 {
		f.conditionOf(m).entered = now
		f.warming[m.Endpoint] = m
	}
}

// warmed is what a member in its slow start has of its weight.
func (f *Fold) warmed(m *Member, weight int, now time.Time) int {
	whole := f.slowStart(m)
	share := max(whole/10, min(now.Sub(m.condition.entered), whole))
	return int(max(min(int64(weight), 1), int64(weight)*int64(share)/int64(whole)))
}

func (f *Fold) slowStart(m *Member) time.Duration {
	if d := f.policies[m.Endpoint.Service].SlowStart; d > 0 {
		return d
	}
	return DefaultSlowStart
}

// An id whose lives end without notice, one shortly after the other, is damped: each further life waits before it serves.
const (
	// FlapWindow is how long such an end is remembered.
	FlapWindow = time.Minute
	// mostFlaps is how many of them are nothing special.
	mostFlaps = 2
	// longestDamp is how long a life waits at most: its end must not come when the last one is forgotten. The first that does
	// waits a second, the next two, and so on.
	longestDamp = FlapWindow / 2
)

// flaps are the ends of the lives of an id.
type flaps struct {
	n    int
	last time.Time
}

// flapped notes that the life of an id has ended without notice.
func (f *Fold) flapped(e *pool.Endpoint, now time.Time) {
	id := pool.Key{Service: e.Service, ID: e.ID}
	was := f.flaps[id]
	if now.Sub(was.last) > FlapWindow {
		was.n = 0
	}
	f.flaps[id] = flaps{was.n + 1, now}
}

// damp makes a new life wait if those before it have ended too often.
func (f *Fold) damp(m *Member, now time.Time) {
	was := f.flaps[pool.Key{Service: m.Endpoint.Service, ID: m.Endpoint.ID}]
	if was.n <= mostFlaps || now.Sub(was.last) > FlapWindow {
		return
	}
	c := f.conditionOf(m)
	c.until = now.Add(min(time.Second<<min(was.n-mostFlaps-1, 10), longestDamp))
	c.damped = note{now, m.ModRevision, fmt.Sprintf("it has come and gone %d times in short succession; it waits for %s", was.n, c.until.Sub(now))}
	m.Endpoint.Stats().Ejections.Add("flapping")
}

// settle ends what has lasted long enough: damping, and the memory of it.
func (f *Fold) settle(now time.Time, touched map[string]bool) {
	for id, was := range f.flaps {
		if now.Sub(was.last) > FlapWindow {
			delete(f.flaps, id)
		}
	}
	for _, m := range slices.Collect(maps.Values(f.doubted)) {
		if m.condition.damped.is() && !now.Before(m.condition.until) {
			f.improve(m, now, touched, func(c *condition) { c.damped = note{} })
		}
	}
}

// cool ends slow starts, and has the pools of those built anew that are in theirs.
func (f *Fold) cool(now time.Time, touched map[string]bool) {
	for e, m := range f.warming {
		touched[e.Service] = true
		if now.Sub(m.condition.entered) >= f.slowStart(m) {
			delete(f.warming, e)
			if m.condition.entered = (time.Time{}); m.condition.decisive() == nil {
				m.condition = nil
			}
		}
	}
}

// Changes returns the members that have come or changed since the last call, and the endpoints that have gone. A member may
// be listed more than once, and have gone.
func (f *Fold) Changes() (fresh []*Member, gone []*pool.Endpoint) {
	fresh, gone = f.fresh, f.gone
	f.fresh, f.gone = nil, nil
	return fresh, gone
}

// Doubted are the endpoints whose condition is not good, with their members. It is the caller's to read until the next
// change.
func (f *Fold) Doubted() map[*pool.Endpoint]*Member { return f.doubted }

// Transition is a member that has come, has changed its state, or has gone.
type Transition struct {
	At                   time.Time
	Service, ID, Address string
	From, To             State // From is empty for one that has come
	Reason               string
	Revision             int64 // of the store, that brought it about; zero when it did not
}

// mostTransitions is how many are held until they are taken; the oldest are dropped.
const mostTransitions = 4096

func (f *Fold) moved(m *Member, from, to State, reason string, revision int64) {
	if len(f.transitions) == mostTransitions {
		f.transitions = f.transitions[mostTransitions/2:]
	}
	f.transitions = append(f.transitions, Transition{
		At: f.at, Service: m.Endpoint.Service, ID: m.Endpoint.ID, Address: m.Endpoint.Name, From: from, To: to, Reason: reason, Revision: revision,
	})
}

// Transitions returns what has happened since the last call, in order. What the first content of a store holds is no news.
func (f *Fold) Transitions() []Transition {
	list := f.transitions
	f.transitions = nil
	return list
}
