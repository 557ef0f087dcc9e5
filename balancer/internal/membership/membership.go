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
// engages the brake changes nothing in that; it only says so.
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

	condition *condition // nil is a good one
}

// Since is when the verdict came about, as far as that is known.
func (m *Member) Since() time.Time {
	if n := m.condition.decisive(); n != nil {
		return n.since
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
	suspected   map[pool.Key]*Member // by service and address
	asking      map[int64][]*Member  // by lease: suspects until the store has answered
	losses      map[string]*losses   // by service
	asks        []Ask
	leaving     map[*pool.Endpoint]*Member
	owners      map[netip.AddrPort]*Member // scratch of Eligible
}

// New makes an empty fold.
func New() *Fold {
	return &Fold{
		services:    map[string][]*Member{},
		quarantined: map[string]Quarantined{}, owners: map[netip.AddrPort]*Member{},
		doubted: map[*pool.Endpoint]*Member{}, suspected: map[pool.Key]*Member{}, asking: map[int64][]*Member{},
		losses: map[string]*losses{}, leaving: map[*pool.Endpoint]*Member{},
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
	first := f.storeID == 0 // those that are there before we are have proven themselves to somebody
	if u.Reset {
		elsewhere = f.storeID != 0 && (u.StoreID != f.storeID || u.Revision < f.revision)
		f.storeID, f.revision = u.StoreID, u.Revision
		f.reset(u, elsewhere, now, touched)
	}
	f.revision = max(f.revision, u.Revision)
	for i := range u.Changes {
		f.change(&u.Changes[i], first, now, touched)
	}
	return elsewhere
}

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

func (f *Fold) change(c *registry.Change, first bool, now time.Time, touched map[string]bool) {
	switch {
	case c.Deleted:
		delete(f.quarantined, c.Key)
		if at, found := find(f.services[c.Service], c.ID); found && c.Kind == registry.KindInstance {
			f.vanish(c.Service, f.services[c.Service][at], c.ModRevision, false, now, touched)
		}
	case c.Err != nil:
		f.Quarantine(c, c.Err)
	case c.Kind == registry.KindInstance:
		f.put(c, first, now, touched)
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

func (f *Fold) put(c *registry.Change, first bool, now time.Time, touched map[string]bool) {
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
	at, found := find(members, c.ID)
	if !found {
		f.instances++
		members = slices.Insert(members, at, m)
		f.services[c.Service] = members
	}
	switch old := members[at]; {
	case !found:
		m.Endpoint = endpoint(key, c.Instance)
	case old.Endpoint.Key == key && old.Endpoint.Protocol == string(c.Instance.Protocol) && old.Endpoint.IdleTimeout == time.Duration(c.Instance.IdleTimeout):
		m.Endpoint = old.Endpoint
	default:
		reason := "it has another address"
		if old.Endpoint.Incarnation != key.Incarnation {
			reason = "a newer incarnation has its id"
			if old.Verdict.State != Draining {
				f.flapped(old.Endpoint, now)
			}
		}
		f.moved(old, old.Verdict.State, Gone, reason, c.ModRevision)
		f.retire(old)
		m.Endpoint = endpoint(key, c.Instance)
	}
	served, was := false, State("")
	if old := members[at]; !found || m.Endpoint != old.Endpoint {
		if f.checked(m) && !first {
			m.condition = &condition{unproven: note{now, c.ModRevision, "its check has not passed yet"}}
		}
		f.damp(m, now)
	} else {
		was = old.Verdict.State
		served = was.serves()
		if m.condition = old.condition; m.condition != nil && m.condition.lost.is() {
			// Being registered ends a suspicion, but says nothing about whether it answers.
			delete(f.suspected, place(m.Endpoint))
			m.condition.lost = note{}
		}
		if m.condition != nil {
			m.condition.restored = note{} // the registry knows it
		}
	}
	m.Verdict = f.verdict(m)
	members[at] = m
	if m.Verdict.State.serves() && !served && !first {
		f.warm(m, now)
	}
	f.changed(m, touched)
	if !first && m.Verdict.State != was {
		f.moved(m, was, m.Verdict.State, m.Verdict.Reason, m.ModRevision)
	}
	if m.Verdict.State == Draining && m.Instance.DrainAck {
		f.leaving[m.Endpoint] = m
	} else {
		delete(f.leaving, m.Endpoint)
	}
	if s := f.suspected[place(m.Endpoint)]; s != nil { // whose address another one has now
		f.remove(s, "its address is another instance's now", c.ModRevision, touched)
	}
}

// retire ends the endpoint of a member that goes.
func (f *Fold) retire(m *Member) {
	m.Endpoint.Retire()
	if m.condition != nil && m.condition.lost.is() {
		delete(f.suspected, place(m.Endpoint))
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

// remove ends the membership of a registered member, and says why, and at which revision.
func (f *Fold) remove(m *Member, reason string, revision int64, touched map[string]bool) {
	service := m.Endpoint.Service
	members := f.services[service]
	at, found := find(members, m.Endpoint.ID)
	if !found {
		return
	}
	f.moved(members[at], members[at].Verdict.State, Gone, reason, revision)
	f.retire(members[at])
	f.instances--
	touched[service] = true
	if members = slices.Delete(members, at, at+1); len(members) == 0 {
		delete(f.services, service)
	} else {
		f.services[service] = members
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
			at, found := find(members, in.Address)
			if found {
				continue
			}
			key := pool.Key{Service: service, ID: in.Address, Address: addr}
			key.Socket, _ = strings.CutPrefix(in.Address, unixPrefix)
			if addr.IsValid() {
				key.Socket = ""
			}
			m := &Member{Instance: &in, Static: true}
			if i, kept := find(old[service], in.Address); kept {
				m.Endpoint, m.condition = old[service][i].Endpoint, old[service][i].condition
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
	if f.policies[m.Endpoint.Service].Overrides[m.Endpoint.ID].Drain {
		return Verdict{Draining, "the policy of its service says so", m.ModRevision}
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
		if m.Verdict.State == Replaced { // judged anew: the other one may have gone
			m.Verdict = f.verdict(m)
		}
		if !m.Verdict.State.serves() {
			continue
		}
		if !m.Endpoint.Address.IsValid() { // a unix socket; those are static and differ
			continue
		}
		o := f.owners[m.Endpoint.Address]
		if o != nil {
			if o.CreateRevision > m.CreateRevision {
				o, m = m, o
			}
			o.Verdict = Verdict{Replaced, "another instance, " + m.Endpoint.ID + ", has registered the same address", m.CreateRevision}
		}
		f.owners[m.Endpoint.Address] = m
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
