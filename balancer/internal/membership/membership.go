// Package membership folds registry updates into who is eligible, and why.
//
// A [Fold] is pure: it holds no clock, starts nothing and talks to nobody. It takes updates in order and keeps, for each
// service, its instances with a [Verdict] each. Endpoints live here: an instance keeps its endpoint, and with it the
// counters, as long as service, id, incarnation and address stay the same, and the endpoint is retired with it.
//
// What cannot be read is quarantined: set aside with its reason and shown. An instance whose record becomes unreadable
// keeps its last good record until the key is deleted. A record that names an address which another, younger record of
// the same service names too is replaced by it: one live instance is never listed twice.
//
// A record that goes without having said that it would is no exit: its instance is a suspect, which serves while it
// answers ([Fold.Probed]), because a lease is lost by a pause, a partition or a sick store as well as by a crash. What
// engages the brake changes nothing in that; it only says so. Nor is the content of another store, or of an older state of it, taken
// for news: an older record does not replace the instance that came after it, and who comes back by it has to answer first.
//
// What is found out about an instance by probing it and by using it is its condition: it may be down, ejected, or not have
// passed its first check. Condition takes an instance out of the pool and lets it back in, gently ([Policy.SlowStart]); it
// dies with the endpoint. When it would take out more than half of a pool, the pool has them all: so many are not sick at
// once, it is who looks at them. What an instance says of itself is never overruled.
//
// A Fold may be used by one goroutine at a time.
package membership

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

// State is what the balancer makes of an instance.
type State string

// The states. Ready and Suspect take new exchanges.
const (
	Ready    State = "ready"
	Starting State = "starting"
	Draining State = "draining"
	Replaced State = "replaced"
	Suspect  State = "suspect" // its record was lost; it serves while it answers
	Ejected  State = "ejected" // it refused a connection or failed too often; it returns when a probe passes, or in a while
	Down     State = "down"    // its check fails
	Gone     State = "gone"    // it is no member any more; of transitions only
)

// serves reports whether an instance in that state takes new exchanges.
func (s State) serves() bool { return s == Ready || s == Suspect }

// Verdict says how an instance stands and why.
type Verdict struct {
	State    State
	Reason   string
	Revision int64 // of the key that decided it
}

// Member is one instance of a service.
type Member struct {
	Instance *registry.Instance
	Endpoint *pool.Endpoint
	Verdict  Verdict
	Key      string
	Static   bool // from the configuration file
	Lease    int64
	// CreateRevision and ModRevision are the store's; zero when static.
	CreateRevision, ModRevision int64

	since     int64      // Unix nanoseconds: the state is what it is; zero if it was when we came
	condition *condition // nil is a good one
}

// Since is when the verdict came about, as far as that is known.
func (m *Member) Since() time.Time {
	if m.since != 0 {
		return time.Unix(0, m.since)
	}
	return m.Instance.RegisteredAt
}

// Quarantined is a key that was set aside.
type Quarantined struct {
	Key      string
	Service  string // empty when the key names none
	Reason   string
	Revision int64
	Value    []byte // shortened
	// Serving says that the last good record of the key is still in use.
	Serving bool
}

// Fold is the state of membership. Use [New].
type Fold struct {
	// Deny, if not nil, says why an address is not to be dialled, beside those that never are. registered is false for what the
	// configuration file lists. It is set before the first use.
	Deny func(a netip.AddrPort, registered bool) error

	services    map[string][]*Member // by id
	statics     map[string][]*Member // by id, which is the address; nil before the first SetStatic
	quarantined map[string]Quarantined
	instances   int
	revision    int64
	storeID     uint64
	policies    map[string]Policy
	fresh       []*Member        // see Changes
	gone        []*pool.Endpoint // likewise
	doubted     map[*pool.Endpoint]*Member
	warming     map[*pool.Endpoint]*Member // in their slow start
	panics      map[string]bool            // services whose pool has everybody
	flaps       map[pool.Key]flaps         // by service and id
	at          time.Time                  // the latest that was given
	transitions []Transition
	suspected   map[netip.AddrPort][]*Member       // whose record is lost, by address
	unswept     bool                               // there are some that were not looked for among the addresses of all others yet
	displaced   map[*pool.Endpoint]registry.Change // of suspects: the older record under their key, in another store
	asking      map[int64][]*Member                // by lease: suspects until the store has answered
	losses      map[string]*losses                 // by service; under "" those of all
	asks        []Ask
	leaving     map[*pool.Endpoint]*Member
	owners      map[netip.AddrPort]*Member // scratch of Eligible
}

// New makes an empty fold.
func New() *Fold {
	return &Fold{
		services:    map[string][]*Member{},
		quarantined: map[string]Quarantined{}, owners: map[netip.AddrPort]*Member{},
		doubted: map[*pool.Endpoint]*Member{}, suspected: map[netip.AddrPort][]*Member{}, asking: map[int64][]*Member{},
		displaced: map[*pool.Endpoint]registry.Change{},
		losses:    map[string]*losses{}, leaving: map[*pool.Endpoint]*Member{},
		policies: map[string]Policy{}, warming: map[*pool.Endpoint]*Member{}, panics: map[string]bool{},
		flaps: map[pool.Key]flaps{},
	}
}

// Revision is the store's revision folded last.
func (f *Fold) Revision() int64 { return f.revision }

// Instances is the number of instances held, static ones not counted.
func (f *Fold) Instances() int { return f.instances }

// Apply folds the instances of an update, at the time now, and marks the services that it touched. Changes of other kinds
// are not looked at, except that what the registry could not read is quarantined whatever it was. elsewhere says that a
// Reset is that of another store than before, or of an older state of it.
func (f *Fold) Apply(u registry.Update, now time.Time, touched map[string]bool) (elsewhere bool) {
	if u.Err != nil {
		return false
	}
	f.at = now
	how := coming
	if f.storeID == 0 {
		how = found
	}
	if u.Reset {
		if elsewhere = f.storeID != 0 && (u.Elsewhere || u.StoreID != f.storeID || u.Revision < f.revision); elsewhere {
			how = returning
		}
		f.storeID, f.revision = u.StoreID, u.Revision
		f.reset(u, elsewhere, now, touched)
	}
	f.revision = max(f.revision, u.Revision)
	for i := range u.Changes {
		f.change(&u.Changes[i], how, now, touched)
	}
	return elsewhere
}

// entry is how a record comes to be known.
type entry uint8

const (
	coming    entry = iota // it was written just now
	found                  // it was there before we were: its instance has proven itself to somebody
	returning              // another store has it, or an older state of ours: who knows when it was written
)

// Restore begins with what a snapshot holds of a store, instead of nothing. None of its instances serves until it has answered
// a probe, or the store has it.
func (f *Fold) Restore(u registry.Update, now time.Time, touched map[string]bool) {
	f.Apply(u, now, touched)
	for _, members := range f.services {
		for _, m := range members {
			f.conditionOf(m).restored = note{now, m.ModRevision, "known from the snapshot; it has not answered yet"}
			f.changed(m, touched)
		}
	}
	f.transitions = nil
}

// Recall takes in what a snapshot holds that the store, now that it is there, does not have, and that was true until then: its
// instances were lost while nobody looked. Those that answer serve as suspects do.
func (f *Fold) Recall(changes []registry.Change, until, now time.Time, touched map[string]bool) {
	f.at = now
	for i := range changes {
		c := &changes[i]
		_, held := find(f.services[c.Service], c.ID)
		_, aside := f.quarantined[c.Key]
		if c.Kind != registry.KindInstance || held || aside || c.Lease == 0 { // without a lease it was removed by hand
			continue
		}
		f.put(c, returning, now, touched)
		if at, held := find(f.services[c.Service], c.ID); held {
			f.doubt(f.services[c.Service][at], note{until, f.revision, "its record was lost while this balancer was away"}, true, touched)
		}
	}
}

// Records are the registered instances that have not said that they leave, for a snapshot. The changes are the caller's; the
// instances are not to be changed.
func (f *Fold) Records() []registry.Change {
	list := make([]registry.Change, 0, f.instances)
	for _, members := range f.services {
		for _, m := range members {
			if m.Instance.State != registry.Draining {
				list = append(list, registry.Change{
					Kind: registry.KindInstance, Key: m.Key, Service: m.Endpoint.Service, ID: m.Endpoint.ID, Instance: m.Instance,
					Lease: m.Lease, CreateRevision: m.CreateRevision, ModRevision: m.ModRevision,
				})
			}
		}
	}
	return list
}

// reset takes in what the complete content does not have.
func (f *Fold) reset(u registry.Update, elsewhere bool, now time.Time, touched map[string]bool) {
	present := make(map[string]bool, len(u.Changes))
	for i := range u.Changes {
		present[u.Changes[i].Key] = true
	}
	for service, members := range f.services {
		for _, m := range slices.Clone(members) {
			if !present[m.Key] {
				f.vanish(service, m, u.Revision, elsewhere, now, touched)
			}
		}
	}
	for key := range f.quarantined {
		if !present[key] {
			delete(f.quarantined, key)
		}
	}
}

func (f *Fold) change(c *registry.Change, how entry, now time.Time, touched map[string]bool) {
	switch {
	case c.Deleted:
		delete(f.quarantined, c.Key)
		if at, held := find(f.services[c.Service], c.ID); held && c.Kind == registry.KindInstance {
			f.vanish(c.Service, f.services[c.Service][at], c.ModRevision, false, now, touched)
		}
	case c.Err != nil:
		f.Quarantine(c, c.Err)
	case c.Kind == registry.KindInstance:
		f.put(c, how, now, touched)
	}
}

// Quarantine sets a key aside.
func (f *Fold) Quarantine(c *registry.Change, reason error) {
	const shown = 200
	_, serving := find(f.services[c.Service], c.ID)
	f.quarantined[c.Key] = Quarantined{
		Key: c.Key, Service: c.Service, Reason: reason.Error(), Revision: c.ModRevision,
		Value: slices.Clone(c.Value[:min(shown, len(c.Value))]), Serving: serving && c.Kind == registry.KindInstance,
	}
}

// Release takes a key out of quarantine.
func (f *Fold) Release(key string) { delete(f.quarantined, key) }

func (f *Fold) put(c *registry.Change, how entry, now time.Time, touched map[string]bool) {
	addr, err := f.dialable(c.Instance, true)
	if err != nil {
		f.Quarantine(c, err)
		return
	}
	delete(f.quarantined, c.Key)
	key := pool.Key{Service: c.Service, ID: c.ID, Incarnation: c.Instance.Incarnation, Address: addr}
	m := &Member{
		Instance: c.Instance, Key: c.Key, Lease: c.Lease,
		CreateRevision: c.CreateRevision, ModRevision: c.ModRevision,
	}
	members := f.services[c.Service]
	at, held := find(members, c.ID)
	var old *Member
	if held {
		old = members[at]
	}
	same := held && old.Endpoint.Key == key && old.Endpoint.Protocol == string(c.Instance.Protocol) && old.Endpoint.IdleTimeout == time.Duration(c.Instance.IdleTimeout)
	if held && !same && f.waits(old, c, how, now, touched) {
		return
	}
	switch {
	case !held:
		f.instances++
		members = slices.Insert(members, at, m)
		f.services[c.Service] = members
	case !same:
		reason := "it has another address"
		if old.Endpoint.Incarnation != key.Incarnation {
			reason = "a newer incarnation has its id"
			if old.Verdict.State != Draining {
				f.flapped(old.Endpoint, now)
			}
		}
		f.moved(old, old.Verdict.State, Gone, reason, c.ModRevision)
		f.retire(old)
	}
	was := State("")
	if same {
		was = old.Verdict.State
		m.Endpoint, m.Verdict, m.since = old.Endpoint, old.Verdict, old.since
		if m.condition = old.condition; m.condition != nil && m.condition.lost.is() {
			// Being registered ends a suspicion, but says nothing about whether it answers.
			f.trust(old)
			m.condition.lost = note{}
		}
		if m.condition != nil && how != returning {
			m.condition.restored = note{} // the registry knows it
		}
	} else {
		m.Endpoint = endpoint(key, c.Instance)
		switch {
		case how == returning:
			m.condition = &condition{restored: note{now, c.ModRevision, "the registry is another store than before, or an older state of it; it has not answered yet"}}
		case how == coming && f.checked(m):
			m.condition = &condition{unproven: note{now, c.ModRevision, "its check has not passed yet"}}
		}
		f.damp(m, now)
	}
	members[at] = m
	if f.verdict(m).State.serves() && !was.serves() && was != Replaced && how != found {
		f.warm(m, now)
	}
	f.changed(m, touched)
	switch {
	case was != "":
	case how == found:
		m.since = 0
	default:
		f.moved(m, was, m.Verdict.State, m.Verdict.Reason, m.ModRevision)
	}
	if m.Verdict.State == Draining && m.Instance.DrainAck {
		f.leaving[m.Endpoint] = m
	} else {
		delete(f.leaving, m.Endpoint)
	}
	if how == returning {
		return // nobody who answers goes for one who may be long dead
	}
	for _, s := range slices.Clone(f.suspected[addr]) { // whose address another one has now
		if s.Endpoint.Service == c.Service || !same {
			f.remove(s, "its address is another instance's now", c.ModRevision, touched)
		}
	}
}

// waits reports whether a record that names another life of an instance, or another place, has to wait until the one that is
// held is known to be gone: because another store has it, or an older state of ours, and it is not known to be the younger one.
func (f *Fold) waits(old *Member, c *registry.Change, how entry, now time.Time, touched map[string]bool) bool {
	waiting, known := f.displaced[old.Endpoint]
	switch {
	case known && waiting.ModRevision == c.ModRevision: // it is told again
		return true
	case how != returning || old.Verdict.State == Draining || younger(c.Instance, old.Instance):
		return false
	}
	f.displaced[old.Endpoint] = *c
	if !old.lost() {
		f.doubt(old, note{now, f.revision, "the registry is another store than before, or an older state of it, with an older record under its key"}, false, touched)
		f.count(c.Service, now)
	}
	return true
}

// younger reports whether a record is known to be of a later life than another one. Incarnations that were made by the library
// sort by their time.
func younger(in, than *registry.Instance) bool {
	const length = 26
	if a, b := in.Incarnation, than.Incarnation; len(a) == length && len(b) == length && a != b {
		return a > b
	}
	return in.RegisteredAt.After(than.RegisteredAt) && !than.RegisteredAt.IsZero()
}

// retire ends the endpoint of a member that goes.
func (f *Fold) retire(m *Member) {
	m.Endpoint.Retire()
	if m.lost() {
		f.trust(m)
	}
	m.condition = nil
	delete(f.leaving, m.Endpoint)
	delete(f.doubted, m.Endpoint)
	delete(f.warming, m.Endpoint)
	f.gone = append(f.gone, m.Endpoint)
}

// Leaving are the endpoints whose instances drain and wait for an acknowledgement, with their members. It is the caller's to
// read until the next change.
func (f *Fold) Leaving() map[*pool.Endpoint]*Member { return f.leaving }

func endpoint(key pool.Key, in *registry.Instance) *pool.Endpoint {
	e := pool.NewEndpointNamed(key, in.Address)
	e.Protocol, e.IdleTimeout = string(in.Protocol), time.Duration(in.IdleTimeout)
	return e
}

// unixPrefix begins the address of a static instance on a unix socket.
const unixPrefix = "unix:"

// find returns the place of an id in members, and whether it is there.
func find(members []*Member, id string) (int, bool) {
	return slices.BinarySearchFunc(members, id, func(m *Member, id string) int { return strings.Compare(m.Endpoint.ID, id) })
}

// remove ends the membership of a registered member, and says why, and at which revision. To remove it again does nothing: its
// id can be another one's by then.
func (f *Fold) remove(m *Member, reason string, revision int64, touched map[string]bool) {
	service := m.Endpoint.Service
	members := f.services[service]
	at, held := find(members, m.Endpoint.ID)
	if !held || members[at].Endpoint != m.Endpoint {
		return
	}
	waiting, waits := f.displaced[m.Endpoint]
	f.moved(members[at], members[at].Verdict.State, Gone, reason, revision)
	f.retire(members[at])
	f.instances--
	touched[service] = true
	if members = slices.Delete(members, at, at+1); len(members) == 0 {
		delete(f.services, service)
	} else {
		f.services[service] = members
	}
	if waits {
		f.put(&waiting, returning, f.at, touched)
	}
}

// SetStatic replaces the static instances of all services. Those that cannot be dialled are left out and named in the
// error.
func (f *Fold) SetStatic(services map[string][]registry.Instance, now time.Time, touched map[string]bool) error {
	f.at = now
	old, first := f.statics, f.statics == nil
	f.statics = map[string][]*Member{}
	for service := range old {
		touched[service] = true
	}
	var errs []error
	for service, list := range services {
		touched[service] = true
		var members []*Member
		for i := range list {
			in := list[i]
			addr, err := netip.AddrPort{}, error(nil)
			if !strings.HasPrefix(in.Address, unixPrefix) {
				addr, err = f.dialable(&in, false)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("service %s, instance %s: %w", service, in.Address, err))
				continue
			}
			at, twice := find(members, in.Address)
			if twice {
				continue
			}
			key := pool.Key{Service: service, ID: in.Address, Address: addr}
			key.Socket, _ = strings.CutPrefix(in.Address, unixPrefix)
			if addr.IsValid() {
				key.Socket = ""
			}
			m := &Member{Instance: &in, Static: true}
			if i, kept := find(old[service], in.Address); kept {
				o := old[service][i]
				m.Endpoint, m.condition, m.Verdict, m.since = o.Endpoint, o.condition, o.Verdict, o.since
				old[service] = slices.Delete(old[service], i, i+1)
			} else if m.Endpoint = pool.NewEndpoint(key); !first && f.policies[service].Check {
				m.condition = &condition{unproven: note{since: now, reason: "its check has not passed yet"}}
			}
			f.changed(m, touched)
			members = slices.Insert(members, at, m)
		}
		f.statics[service] = members
	}
	for _, members := range old {
		for _, m := range members {
			f.moved(m, m.Verdict.State, Gone, "the configuration file does not list it any more", 0)
			f.retire(m)
		}
	}
	return errors.Join(errs...)
}

// verdict judges an instance by itself.
func (f *Fold) verdict(m *Member) Verdict {
	switch m.Instance.State {
	case registry.Starting:
		return Verdict{Starting, "it says it is starting", m.ModRevision}
	case registry.Draining:
		return Verdict{Draining, "it says it is draining", m.ModRevision}
	}
	if p := f.policies[m.Endpoint.Service]; p.Overrides[m.Endpoint.ID].Drain {
		return Verdict{Draining, "the policy of its service says so", p.Revision}
	}
	if n := m.condition.decisive(); n != nil {
		return Verdict{m.condition.state(), n.reason, n.revision}
	}
	if m.Static {
		return Verdict{Ready, "listed in the configuration file", 0}
	}
	return Verdict{Ready, "registered", m.ModRevision}
}

// Members lists the members of a service by id, verdicts included. The result is the caller's to read, until the next
// call of Apply or SetStatic.
func (f *Fold) Members(service string) []*Member {
	registered, static := f.services[service], f.statics[service]
	switch {
	case len(static) == 0:
		return registered
	case len(registered) == 0:
		return static
	}
	return slices.SortedStableFunc(slices.Values(slices.Concat(registered, static)), func(a, b *Member) int {
		return strings.Compare(a.Endpoint.ID, b.Endpoint.ID)
	})
}

// Eligible judges the members of a service against one another and returns those that take new exchanges at the time now, by
// id, as a pool wants them.
func (f *Fold) Eligible(service string, now time.Time) []pool.Member {
	list := f.Members(service)
	defer clear(f.owners)
	for _, m := range list {
		if !m.Endpoint.Address.IsValid() { // a unix socket; those are static and differ
			continue
		}
		// Who was replaced is judged anew: the other one may have gone.
		if s := m.Verdict.State; s.serves() || s == Replaced && f.verdict(m).State.serves() {
			if o := f.owners[m.Endpoint.Address]; o == nil || o.CreateRevision <= m.CreateRevision {
				f.owners[m.Endpoint.Address] = m
			}
		}
	}
	for _, m := range list {
		s := m.Verdict.State
		if o := f.owners[m.Endpoint.Address]; o != nil && o != m && (s.serves() || s == Replaced) {
			f.become(m, Verdict{Replaced, "another instance, " + o.Endpoint.ID + ", has registered the same address", o.CreateRevision})
		} else if s == Replaced {
			f.become(m, f.verdict(m))
		}
	}
	everybody := f.panic(service, list)
	all := true // that serve are in their slow start
	overrides := f.policies[service].Overrides
	members := make([]pool.Member, 0, len(f.owners))
	for _, m := range list {
		if s := m.Verdict.State; s.serves() || everybody && (s == Down || s == Ejected) {
			weight := m.Instance.EffectiveWeight()
			if o := overrides[m.Endpoint.ID].Weight; o != nil {
				weight = *o
			}
			members = append(members, pool.Member{Endpoint: m.Endpoint, Weight: weight})
			all = all && f.warming[m.Endpoint] != nil
		}
	}
	if !all && len(f.warming) > 0 {
		for i := range members {
			if m := f.warming[members[i].Endpoint]; m != nil {
				members[i].Weight = f.warmed(m, members[i].Weight, now)
			}
		}
	}
	return members
}

// Services lists the names of services that have members, sorted.
func (f *Fold) Services() []string {
	names := make(map[string]bool, len(f.services))
	for s := range f.services {
		names[s] = true
	}
	for s := range f.statics {
		names[s] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// Has reports whether a service has members.
func (f *Fold) Has(service string) bool {
	return len(f.services[service]) > 0 || len(f.statics[service]) > 0
}

// Quarantined lists what was set aside, by key.
func (f *Fold) Quarantined() []Quarantined {
	return slices.SortedFunc(maps.Values(f.quarantined), func(a, b Quarantined) int { return strings.Compare(a.Key, b.Key) })
}

// QuarantinedCount is the number of keys set aside.
func (f *Fold) QuarantinedCount() int { return len(f.quarantined) }

// dialable returns the address of an instance as a balancer dials it.
func (f *Fold) dialable(in *registry.Instance, registered bool) (netip.AddrPort, error) {
	addr, err := registry.DialAddress(in.Address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	switch p := in.Protocol; p {
	case "", registry.HTTP, registry.HTTPS:
	default:
		return netip.AddrPort{}, fmt.Errorf("protocol %q is not supported by this balancer yet: only http and https are", p)
	}
	if f.Deny != nil {
		if err := f.Deny(addr, registered); err != nil {
			return netip.AddrPort{}, fmt.Errorf("address %q: %w", in.Address, err)
		}
	}
	return addr, nil
}
