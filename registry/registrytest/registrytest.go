// Package registrytest is the suite that every driver of package registry passes.
//
// A driver's test describes its store in a [Harness] and calls [Run]:
//
//	func TestConformance(t *testing.T) {
//		registrytest.Run(t, registrytest.Harness{NewClient: …, Put: …, Delete: …, RevokeLeases: …})
//	}
//
// Each test uses services of its own, so they may share one store. The suite waits for what it expects, with a
// deadline, and never sleeps. [Watch] and [Watcher] are the part of it that other tests may like: they follow a scope,
// check every update against the contract, and wait for a content.
package registrytest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
)

// Harness is what the suite needs of a driver and its store. The functions are called from the test's goroutine and
// end the test when they fail.
type Harness struct {
	// Keys are those the clients use.
	Keys registry.Keys
	// NewClient returns a client that stands for a process of its own, with its own lease, on the same store every
	// time. It closes what it opened when t ends.
	NewClient func(t testing.TB) registry.Registry
	// Put and Delete write a key without a lease, behind the back of all clients.
	Put    func(t testing.TB, key string, value []byte)
	Delete func(t testing.TB, key string)
	// PutAll writes several keys in one revision. nil skips the tests that need it.
	PutAll func(t testing.TB, values map[string][]byte)
	// RevokeLeases ends every lease the client holds, behind its back.
	RevokeLeases func(t testing.TB, client registry.Registry)
	// Disconnect cuts one client off from the store, so that it notices, and Reconnect undoes that. nil skips the
	// tests that need them.
	Disconnect, Reconnect func(t testing.TB, client registry.Registry)
	// Deadline bounds each wait; zero means 15 s.
	Deadline time.Duration
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	if h.Deadline == 0 {
		h.Deadline = 15 * time.Second
	}
	tests := []struct {
		name string
		run  func(*suite)
	}{
		{"Register", testRegister},
		{"RegisterFillsID", testRegisterFillsID},
		{"RegisterRefusesInvalid", testRegisterRefusesInvalid},
		{"RegisterManyServices", testRegisterManyServices},
		{"ContextEndLeaves", testContextEndLeaves},
		{"Leave", testLeave},
		{"Update", testUpdate},
		{"UpdateRefusesInvalid", testUpdateRefusesInvalid},
		{"UpdateConcurrently", testUpdateConcurrently},
		{"NewerIncarnationLater", testNewerIncarnationLater},
		{"NewerIncarnationFirst", testNewerIncarnationFirst},
		{"SupersededTouchesNothing", testSupersededTouchesNothing},
		{"LeaseRevoked", testLeaseRevoked},
		{"KeyDeleted", testKeyDeleted},
		{"KeyOverwritten", testKeyOverwritten},
		{"WatchEmptyScope", testWatchEmptyScope},
		{"WatchInvalidScope", testWatchInvalidScope},
		{"WatchOrder", testWatchOrder},
		{"WatchWholeRevisions", testWatchWholeRevisions},
		{"WatchKinds", testWatchKinds},
		{"WatchScopeNeighbours", testWatchScopeNeighbours},
		{"WatchManyAtOnce", testWatchManyAtOnce},
		{"BadValue", testBadValue},
		{"BadKey", testBadKey},
		{"BareAddress", testBareAddress},
		{"DrainWithoutBalancers", testDrainWithoutBalancers},
		{"DrainWaitsForAll", testDrainWaitsForAll},
		{"DrainBalancerGoes", testDrainBalancerGoes},
		{"DrainDeadline", testDrainDeadline},
		{"DrainSuperseded", testDrainSuperseded},
		{"Presence", testPresence},
		{"PresenceRefusesInvalid", testPresenceRefusesInvalid},
		{"Edit", testEdit},
		{"LinkLossWatch", testLinkLossWatch},
		{"LinkLossRegistration", testLinkLossRegistration},
		{"LinkLossUpdate", testLinkLossUpdate},
		{"LinkLossLeave", testLinkLossLeave},
		{"LinkLossLeaveSuperseded", testLinkLossLeaveSuperseded},
		{"StartWithoutStore", testStartWithoutStore},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			t.Cleanup(cancel)
			test.run(&suite{T: t, h: h, ctx: ctx})
		})
	}
}

// suite is one test at work.
type suite struct {
	*testing.T
	h   Harness
	ctx context.Context
}

// service returns a service name that no other test uses.
func (s *suite) service() string {
	return "t-" + lower(registry.NewIncarnation())
}

func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

func (s *suite) client() registry.Registry {
	s.Helper()
	return s.h.NewClient(s.T)
}

func (s *suite) register(r registry.Registry, in registry.Instance) registry.Registration {
	s.Helper()
	reg, err := r.Register(s.ctx, in)
	if err != nil {
		s.Fatalf("Register: %v", err)
	}
	return reg
}

// registered registers and waits for the store.
func (s *suite) registered(r registry.Registry, in registry.Instance) registry.Registration {
	s.Helper()
	reg := s.register(r, in)
	s.waitState(reg, registry.Registered)
	return reg
}

func (s *suite) waitState(reg registry.Registration, want registry.RegistrationState) {
	s.Helper()
	timeout := time.After(s.h.Deadline)
	for {
		changed := reg.Changed()
		if reg.State() == want {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			s.Fatalf("registration is in state %d (%v) after %v, want %d", reg.State(), reg.Err(), s.h.Deadline, want)
		}
	}
}

// limit returns a context for one call.
func (s *suite) limit() context.Context {
	ctx, cancel := context.WithTimeout(s.ctx, s.h.Deadline)
	s.Cleanup(cancel)
	return ctx
}

func (s *suite) watch(r registry.Registry, scope registry.Scope) *Watcher {
	s.Helper()
	w := Watch(s.T, r, scope)
	w.deadline = s.h.Deadline
	return w
}

// instance waits for an instance that satisfies ok, and returns its change.
func (s *suite) instance(w *Watcher, key, what string, ok func(registry.Instance) bool) registry.Change {
	s.Helper()
	var found registry.Change
	w.Wait(s.T, fmt.Sprintf("%s to be %s", key, what), func(view map[string]registry.Change) bool {
		ch, there := view[key]
		if !there || ch.Instance == nil || !ok(*ch.Instance) {
			return false
		}
		found = ch
		return true
	})
	return found
}

func (s *suite) gone(w *Watcher, key string) {
	s.Helper()
	w.Wait(s.T, key+" to be gone", func(view map[string]registry.Change) bool {
		_, there := view[key]
		return !there
	})
}

// whatever is satisfied by every instance.
func whatever(registry.Instance) bool { return true }

func example(service string) registry.Instance {
	return registry.Instance{Service: service, ID: "a", Address: "10.0.0.7:5001"}
}

func (s *suite) key(in registry.Instance) string { return s.h.Keys.Instance(in.Service, in.ID) }

func (s *suite) mustBe(err, target error) {
	s.Helper()
	if !errors.Is(err, target) {
		s.Fatalf("error is %v, want one that is %q", err, target)
	}
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func testRegister(s *suite) {
	in := example(s.service())
	in.Protocol, in.State, in.Weight = registry.H2C, registry.Starting, new(50)
	in.Zone, in.Version, in.Metadata = "eu-1a", "1.4.2", map[string]string{"team": "shop"}
	in.Claims = []registry.Claim{{Host: "shop.example.com", Path: "/cart"}}
	in.Check = &registry.Check{Type: "http", Path: "/healthz", Interval: registry.Duration(5 * time.Second)}
	in.IdleTimeout, in.DrainAck = registry.Duration(2*time.Second), true
	in.Extra = map[string]jsonRaw{"rack": jsonRaw(`{"row":7}`)}
	given := in.Clone()

	reg := s.registered(s.client(), in)
	if err := reg.Err(); err != nil {
		s.Errorf("Err of a registered instance: %v", err)
	}
	got := reg.Instance()
	if got.Incarnation == "" || got.RegisteredAt.IsZero() {
		s.Errorf("Incarnation %q, RegisteredAt %v: want both filled", got.Incarnation, got.RegisteredAt)
	}
	want := given.Clone()
	want.Incarnation, want.RegisteredAt = got.Incarnation, got.RegisteredAt
	if d := cmp.Diff(want, got); d != "" {
		s.Errorf("Instance (-want +got):\n%s", d)
	}
	if d := cmp.Diff(given, in); d != "" {
		s.Errorf("Register changed its argument:\n%s", d)
	}

	// Another process finds it, whole.
	ch := s.instance(s.watch(s.client(), registry.Scope{Service: in.Service}), s.key(in), "there", whatever)
	if d := cmp.Diff(want, *ch.Instance); d != "" {
		s.Errorf("watched instance (-want +got):\n%s", d)
	}
	if ch.Lease == 0 || ch.CreateRevision == 0 || ch.ModRevision < ch.CreateRevision {
		s.Errorf("lease %d, created at %d, modified at %d: want a lease and revisions in order", ch.Lease, ch.CreateRevision, ch.ModRevision)
	}
}

func testRegisterFillsID(s *suite) {
	in := example(s.service())
	in.ID = ""
	reg := s.registered(s.client(), in)
	id := reg.Instance().ID
	if err := registry.CheckID(id); err != nil || !hasSuffix(id, "-5001") {
		s.Errorf("id %q: want <hostname>-5001", id)
	}
	in.ID = id
	s.instance(s.watch(s.client(), registry.Scope{Service: in.Service}), s.key(in), "there", whatever)
}

func hasSuffix(s, suffix string) bool {
	return len(s) > len(suffix) && s[len(s)-len(suffix):] == suffix
}

func testRegisterRefusesInvalid(s *suite) {
	c := s.client()
	for what, spoil := range map[string]func(*registry.Instance){
		"no service":     func(in *registry.Instance) { in.Service = "" },
		"service":        func(in *registry.Instance) { in.Service = "Foo/bar" },
		"id":             func(in *registry.Instance) { in.ID = "a/b" },
		"no address":     func(in *registry.Instance) { in.Address = "" },
		"no port":        func(in *registry.Instance) { in.Address = "10.0.0.7" },
		"wildcard":       func(in *registry.Instance) { in.Address = "0.0.0.0:80" },
		"wildcard v6":    func(in *registry.Instance) { in.Address = "[::]:80" },
		"weight":         func(in *registry.Instance) { in.Weight = new(-1) },
		"state":          func(in *registry.Instance) { in.State = "up" },
		"control":        func(in *registry.Instance) { in.Zone = "a\x1b[2J" },
		"incarnation":    func(in *registry.Instance) { in.Incarnation = "a b" },
		"extra is known": func(in *registry.Instance) { in.Extra = map[string]jsonRaw{"address": jsonRaw(`"x"`)} },
		"too large": func(in *registry.Instance) {
			in.Extra = map[string]jsonRaw{"blob": jsonRaw(`"` + string(slices.Repeat([]byte("x"), registry.MaxValueBytes)) + `"`)}
		},
	} {
		in := example(s.service())
		spoil(&in)
		reg, err := c.Register(s.ctx, in)
		if !errors.Is(err, registry.ErrInvalid) && !errors.Is(err, registry.ErrNotAdvertisable) {
			s.Errorf("%s: Register returned %v, want ErrInvalid or ErrNotAdvertisable", what, err)
		}
		if reg != nil {
			s.Errorf("%s: Register returned a registration with its error", what)
		}
	}
}

func testRegisterManyServices(s *suite) {
	c := s.client()
	var regs []registry.Registration
	var ins []registry.Instance
	for range 5 {
		in := example(s.service())
		ins = append(ins, in)
		regs = append(regs, s.registered(c, in))
	}
	w := s.watch(s.client(), registry.Scope{Instances: true})
	lease := int64(0)
	for _, in := range ins {
		ch := s.instance(w, s.key(in), "there", whatever)
		if lease != 0 && ch.Lease != lease {
			s.Errorf("%s has lease %d, its neighbour %d: want one lease per process", ch.Key, ch.Lease, lease)
		}
		lease = ch.Lease
	}
	// One leaves; the others stay.
	s.must(regs[2].Leave(s.limit()))
	s.gone(w, s.key(ins[2]))
	for i, in := range ins {
		if i != 2 {
			s.instance(w, s.key(in), "there", whatever)
		}
	}
}

func testContextEndLeaves(s *suite) {
	in := example(s.service())
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	reg, err := s.client().Register(ctx, in)
	s.must(err)
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	s.instance(w, s.key(in), "there", whatever)
	cancel()
	s.gone(w, s.key(in))
	s.waitState(reg, registry.Left)
	s.mustBe(reg.Err(), registry.ErrLeft)
}

func testLeave(s *suite) {
	in := example(s.service())
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	reg := s.registered(s.client(), in)
	s.instance(w, s.key(in), "there", whatever)
	s.must(reg.Leave(s.limit()))
	s.gone(w, s.key(in))
	s.waitState(reg, registry.Left)
	s.mustBe(reg.Err(), registry.ErrLeft)
	if last := w.last(s.key(in)); last.Instance == nil || last.Instance.State != registry.Draining {
		s.Errorf("before it was deleted the record said %+v: want the state draining, to tell it from a lost lease", last.Instance)
	}

	s.must(reg.Leave(s.limit()))
	s.mustBe(reg.Update(s.limit(), func(*registry.Instance) {}), registry.ErrLeft)

	// Its place may be taken again.
	s.registered(s.client(), in)
	s.instance(w, s.key(in), "there", whatever)
}

func testUpdate(s *suite) {
	in := example(s.service())
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	reg := s.registered(s.client(), in)
	first := s.instance(w, s.key(in), "there", whatever)

	changed := reg.Changed()
	s.must(reg.Update(s.limit(), func(in *registry.Instance) {
		in.State, in.Weight = registry.Draining, new(7)
		in.Metadata = map[string]string{"why": "deploy"}
		in.Service, in.ID, in.Incarnation = "other", "other", "other"
	}))
	select {
	case <-changed:
	default:
		s.Error("Changed is not closed by an update")
	}
	want := first.Instance.Clone()
	want.State, want.Weight, want.Metadata = registry.Draining, new(7), map[string]string{"why": "deploy"}
	if d := cmp.Diff(want, reg.Instance()); d != "" {
		s.Errorf("Instance after update (-want +got):\n%s", d)
	}
	ch := s.instance(w, s.key(in), "updated", func(in registry.Instance) bool { return in.EffectiveWeight() == 7 })
	if d := cmp.Diff(want, *ch.Instance); d != "" {
		s.Errorf("watched instance after update (-want +got):\n%s", d)
	}
	if ch.Lease != first.Lease || ch.ModRevision <= first.ModRevision {
		s.Errorf("lease %d and revision %d became %d and %d: want the same lease and a later revision", first.Lease, first.ModRevision, ch.Lease, ch.ModRevision)
	}
	if ch.CreateRevision != first.CreateRevision {
		s.Errorf("create revision %d became %d: an update is not a new key", first.CreateRevision, ch.CreateRevision)
	}

	// What Instance returned is the caller's.
	reg.Instance().Metadata["why"] = "scribble"
	if got := reg.Instance().Metadata["why"]; got != "deploy" {
		s.Errorf("a change to the result of Instance reached the registration: %q", got)
	}
}

func testUpdateRefusesInvalid(s *suite) {
	in := example(s.service())
	reg := s.registered(s.client(), in)
	before := reg.Instance()
	for _, change := range []func(*registry.Instance){
		func(in *registry.Instance) { in.Weight = new(registry.MaxWeight + 1) },
		func(in *registry.Instance) { in.State = "gone" },
		func(in *registry.Instance) { in.Address = "[::]:80" },
	} {
		s.mustBe(reg.Update(s.limit(), change), registry.ErrInvalid)
	}
	if d := cmp.Diff(before, reg.Instance()); d != "" {
		s.Errorf("a refused update changed the instance (-want +got):\n%s", d)
	}
	s.must(reg.Update(s.limit(), func(in *registry.Instance) { in.Weight = new(1) }))
	s.waitState(reg, registry.Registered)
}

func testUpdateConcurrently(s *suite) {
	in := example(s.service())
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	reg := s.registered(s.client(), in)
	s.must(reg.Update(s.limit(), func(in *registry.Instance) { in.Weight = new(0) }))
	const n = 20
	errs := make(chan error, n)
	for range n {
		go func() {
			errs <- reg.Update(s.ctx, func(in *registry.Instance) {
				w := in.EffectiveWeight()
				runtime.Gosched() // to let the others in, if they are let in
				in.Weight = new(w + 1)
			})
		}()
	}
	for range n {
		s.must(<-errs)
	}
	if got := reg.Instance().EffectiveWeight(); got != n {
		s.Errorf("weight %d after %d increments", got, n)
	}
	s.instance(w, s.key(in), "at the sum", func(in registry.Instance) bool { return in.EffectiveWeight() == n })
}

func testNewerIncarnationLater(s *suite) {
	in := example(s.service())
	old := s.registered(s.client(), in)
	in.Address = "10.0.0.8:5001"
	young := s.registered(s.client(), in)
	s.waitState(old, registry.Superseded)
	s.mustBe(old.Err(), registry.ErrSuperseded)
	s.mustBe(registry.WaitRegistered(s.limit(), old), registry.ErrSuperseded)
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	s.instance(w, s.key(in), "the newer's", func(in registry.Instance) bool {
		return in.Incarnation == young.Instance().Incarnation && in.Address == "10.0.0.8:5001"
	})
}

func testNewerIncarnationFirst(s *suite) {
	in := example(s.service())
	older := in
	older.Incarnation = registry.NewIncarnation()
	young := s.registered(s.client(), in)
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	there := s.instance(w, s.key(in), "there", whatever)

	// A predecessor that thawed, or lost its way through the network for a while.
	late := s.register(s.client(), older)
	s.waitState(late, registry.Superseded)
	s.mustBe(late.Err(), registry.ErrSuperseded)
	s.unmoved(w, s.key(in), there)
	if young.State() != registry.Registered {
		s.Errorf("the newer one is in state %d (%v)", young.State(), young.Err())
	}
}

// unmoved checks that nobody wrote the key, by writing another one and waiting to see that.
func (s *suite) unmoved(w *Watcher, key string, want registry.Change) {
	s.Helper()
	k, err := s.h.Keys.Parse(key)
	s.must(err)
	probe := s.h.Keys.Instance(k.Service, "probe-"+registry.NewIncarnation())
	s.h.Put(s.T, probe, []byte("10.9.9.9:9"))
	s.instance(w, probe, "there", whatever)
	w.Wait(s.T, key+" to stand", func(view map[string]registry.Change) bool {
		if got := view[key]; got.ModRevision != want.ModRevision {
			s.Errorf("%s was written at revision %d: want it untouched since %d", key, got.ModRevision, want.ModRevision)
		}
		return true
	})
	s.h.Delete(s.T, probe)
}

func testSupersededTouchesNothing(s *suite) {
	in := example(s.service())
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	oldClient := s.client()
	old, err := oldClient.Register(ctx, in)
	s.must(err)
	s.waitState(old, registry.Registered)
	s.registered(s.client(), in)
	s.waitState(old, registry.Superseded)

	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	there := s.instance(w, s.key(in), "there", whatever)
	s.mustBe(old.Update(s.limit(), func(in *registry.Instance) { in.Weight = new(1) }), registry.ErrSuperseded)
	s.must(old.Leave(s.limit()))
	s.must(old.Leave(s.limit()))
	cancel()
	s.h.RevokeLeases(s.T, oldClient)
	s.unmoved(w, s.key(in), there)
	if old.State() != registry.Superseded {
		s.Errorf("state %d after Leave, want it to stay superseded", old.State())
	}
}

func testLeaseRevoked(s *suite) {
	in := example(s.service())
	c := s.client()
	reg := s.registered(c, in)
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	before := s.instance(w, s.key(in), "there", whatever)
	for range 3 {
		s.h.RevokeLeases(s.T, c)
		var after registry.Change
		w.Wait(s.T, s.key(in)+" to be put under another lease", func(view map[string]registry.Change) bool {
			ch, there := view[s.key(in)]
			after = ch
			return there && ch.Lease != before.Lease
		})
		s.waitState(reg, registry.Registered)
		if d := cmp.Diff(before.Instance, after.Instance); d != "" {
			s.Errorf("the record is not what it was (-want +got):\n%s", d)
		}
		before = after
	}
	if w.deleted(s.key(in)) < 3 {
		s.Errorf("the watch saw %d deletions, want 3", w.deleted(s.key(in)))
	}
	s.must(reg.Leave(s.limit()))
	s.gone(w, s.key(in))
}

func testKeyDeleted(s *suite) {
	in := example(s.service())
	reg := s.registered(s.client(), in)
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	before := s.instance(w, s.key(in), "there", whatever)
	s.h.Delete(s.T, s.key(in))
	after := s.instance(w, s.key(in), "put again", whatever)
	w.Wait(s.T, "it to be created anew", func(view map[string]registry.Change) bool {
		after = view[s.key(in)]
		return after.CreateRevision > before.CreateRevision && after.Instance != nil
	})
	if d := cmp.Diff(before.Instance, after.Instance); d != "" {
		s.Errorf("the record is not what it was (-want +got):\n%s", d)
	}
	if after.Lease == 0 {
		s.Error("put again without a lease")
	}
	s.waitState(reg, registry.Registered)
}

func testKeyOverwritten(s *suite) {
	in := example(s.service())
	reg := s.registered(s.client(), in)
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	before := s.instance(w, s.key(in), "there", whatever)
	older := reg.Instance()
	older.Incarnation = "0"
	older.Address = "10.6.6.6:6"
	value, err := codec.Encode(older)
	s.must(err)
	for _, value := range []string{"garbage", "10.6.6.6:6", string(value)} {
		s.h.Put(s.T, s.key(in), []byte(value))
		var after registry.Change
		w.Wait(s.T, s.key(in)+" to be put again", func(view map[string]registry.Change) bool {
			after = view[s.key(in)]
			return after.ModRevision > before.ModRevision+1 && after.Instance != nil && after.Lease != 0
		})
		if d := cmp.Diff(before.Instance, after.Instance); d != "" {
			s.Errorf("the record is not what it was (-want +got):\n%s", d)
		}
		before = after
	}
	s.waitState(reg, registry.Registered)

	// A newer incarnation wins even if it is written by hand.
	newer := reg.Instance()
	newer.Incarnation = "Z"
	value, err = codec.Encode(newer)
	s.must(err)
	s.h.Put(s.T, s.key(in), value)
	s.waitState(reg, registry.Superseded)
	s.h.Delete(s.T, s.key(in))
	s.gone(w, s.key(in))
}

func testWatchEmptyScope(s *suite) {
	w := s.watch(s.client(), registry.Scope{Service: s.service()})
	w.WaitReset(s.T)
	first := w.updates()[0]
	if !first.Reset || len(first.Changes) != 0 || first.Revision == 0 || first.StoreID == 0 {
		s.Errorf("first update %+v: want a Reset without changes, with revision and store id", first)
	}
}

func testWatchInvalidScope(s *suite) {
	err := s.client().Watch(s.limit(), registry.Scope{Service: "Foo/"}, func(u registry.Update) { s.Errorf("got %+v", u) })
	s.mustBe(err, registry.ErrInvalid)
}

func testWatchOrder(s *suite) {
	service := s.service()
	w := s.watch(s.client(), registry.Scope{Service: service})
	w.WaitReset(s.T)
	const n = 50
	a, b := s.h.Keys.Instance(service, "a"), s.h.Keys.Instance(service, "b")
	var want []string
	for i := range n {
		addr := fmt.Sprintf("10.0.0.7:%d", 1000+i)
		s.h.Put(s.T, a, []byte(addr))
		want = append(want, addr)
		if i%10 == 9 {
			s.h.Delete(s.T, a)
			want = append(want, "")
		}
	}
	s.h.Put(s.T, b, []byte("10.0.0.7:1"))
	s.instance(w, b, "there", whatever)
	if w.resets() != 1 {
		s.Skipf("the watch began again %d times, so it may have skipped states", w.resets()-1)
	}
	var got []string
	for _, u := range w.updates() {
		for _, ch := range u.Changes {
			switch {
			case ch.Key != a:
			case ch.Deleted:
				got = append(got, "")
			default:
				got = append(got, ch.Instance.Address)
			}
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		s.Errorf("addresses in the order seen (-want +got):\n%s", d)
	}
}

func testWatchWholeRevisions(s *suite) {
	if s.h.PutAll == nil {
		s.Skip("the harness cannot write several keys at once")
	}
	service := s.service()
	w := s.watch(s.client(), registry.Scope{Service: service})
	w.WaitReset(s.T)
	const n, rounds = 40, 10
	for round := range rounds {
		values := make(map[string][]byte)
		for i := range n {
			values[s.h.Keys.Instance(service, fmt.Sprint(i))] = fmt.Appendf(nil, "10.0.0.7:%d", 1000+round)
		}
		s.h.PutAll(s.T, values)
	}
	w.Wait(s.T, "the last round", func(view map[string]registry.Change) bool {
		for _, ch := range view {
			if ch.Instance.Address != fmt.Sprintf("10.0.0.7:%d", 1000+rounds-1) {
				return false
			}
		}
		return len(view) == n
	})
	for _, u := range w.updates() {
		count := make(map[int64]int)
		for _, ch := range u.Changes {
			count[ch.ModRevision]++
		}
		for rev, c := range count {
			if !u.Reset && c != n {
				s.Errorf("the update to revision %d holds %d of the %d changes of revision %d", u.Revision, c, n, rev)
			}
		}
	}
}

func testWatchKinds(s *suite) {
	service := s.service()
	k := s.h.Keys
	keys := map[string]registry.Change{
		k.Instance(service, "a"):          {Kind: registry.KindInstance, Service: service, ID: "a"},
		k.Route(service):                  {Kind: registry.KindRoute, ID: service},
		k.Policy(service):                 {Kind: registry.KindPolicy, Service: service},
		k.Grant(service):                  {Kind: registry.KindGrant, Service: service},
		k.Balancer(service):               {Kind: registry.KindBalancer, ID: service},
		k.Ack(service, "a", "b-"+service): {Kind: registry.KindAck, Service: service, ID: "a", Balancer: "b-" + service},
	}
	const value = "10.0.0.7:5001" // good for an instance, and passed through for the others
	whole, instances := s.watch(s.client(), registry.Scope{}), s.watch(s.client(), registry.Scope{Instances: true})
	whole.WaitReset(s.T)
	for key := range keys {
		s.h.Put(s.T, key, []byte(value))
	}
	end := k.Instance(service, "end")
	s.h.Put(s.T, end, []byte(value))
	s.instance(instances, end, "there", whatever)
	for _, w := range []*Watcher{whole, s.watch(s.client(), registry.Scope{})} { // by events and by a Reset
		w.Wait(s.T, "all kinds", func(view map[string]registry.Change) bool {
			for key := range keys {
				if _, there := view[key]; !there {
					return false
				}
			}
			for key, want := range keys {
				got := view[key]
				if got.Err != nil {
					s.Errorf("%s: %v", key, got.Err)
				}
				short := registry.Change{Kind: got.Kind, Service: got.Service, ID: got.ID, Balancer: got.Balancer}
				if d := cmp.Diff(want, short); d != "" {
					s.Errorf("%s (-want +got):\n%s", key, d)
				}
				if got.Kind != registry.KindInstance && string(got.Value) != value {
					s.Errorf("%s: value %q, want %q", key, got.Value, value)
				}
			}
			return true
		})
	}
	for _, u := range instances.updates() {
		for _, ch := range u.Changes {
			if ch.Kind != registry.KindInstance && ch.Kind != registry.KindUnknown {
				s.Errorf("the scope of instances delivered %s", ch.Key)
			}
		}
	}
	for key := range keys {
		s.h.Delete(s.T, key)
	}
	for key := range keys {
		s.gone(whole, key)
	}
}

func testWatchScopeNeighbours(s *suite) {
	service := s.service()
	w := s.watch(s.client(), registry.Scope{Service: service})
	w.WaitReset(s.T)
	for _, neighbour := range []string{service + "bar", service + ".bar", service + "-bar", service + "0"} {
		s.h.Put(s.T, s.h.Keys.Instance(neighbour, "a"), []byte("10.6.6.6:6"))
	}
	key := s.h.Keys.Instance(service, "a")
	s.h.Put(s.T, key, []byte("10.0.0.7:1"))
	for _, w := range []*Watcher{w, s.watch(s.client(), registry.Scope{Service: service})} {
		s.instance(w, key, "there", whatever)
		for _, u := range w.updates() {
			for _, ch := range u.Changes {
				if ch.Key != key {
					s.Errorf("the scope of %s delivered %s", service, ch.Key)
				}
			}
		}
	}
}

func testWatchManyAtOnce(s *suite) {
	service := s.service()
	c := s.client()
	var ws []*Watcher
	for range 5 {
		ws = append(ws, s.watch(c, registry.Scope{Service: service}))
	}
	key := s.h.Keys.Instance(service, "a")
	s.h.Put(s.T, key, []byte("10.0.0.7:1"))
	for _, w := range ws {
		s.instance(w, key, "there", whatever)
	}
	s.mustBe(ws[0].Stop(), context.Canceled)
	s.h.Put(s.T, key, []byte("10.0.0.7:2"))
	for _, w := range ws[1:] {
		s.instance(w, key, "moved", func(in registry.Instance) bool { return in.Address == "10.0.0.7:2" })
	}
}

func testBadValue(s *suite) {
	in := example(s.service())
	s.registered(s.client(), in)
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	good := s.instance(w, s.key(in), "there", whatever)
	bad := s.h.Keys.Instance(in.Service, "bad")
	for _, value := range []string{"", "garbage", "{", `{"address":"10.0.0.7:80 "}`, `{"address":"10.0.0.7:80","weight":"5"}`, "\xff\xfe", "\x00", `{"address":"a:1","address":"b:1"}`} {
		s.h.Put(s.T, bad, []byte(value))
		for _, w := range []*Watcher{w, s.watch(s.client(), registry.Scope{Service: in.Service})} {
			var ch registry.Change
			w.Wait(s.T, fmt.Sprintf("the bad value %q", value), func(view map[string]registry.Change) bool {
				var there bool
				ch, there = view[bad]
				return there && ch.Err != nil && string(ch.Value) == value
			})
			s.mustBe(ch.Err, registry.ErrInvalid)
			if ch.Instance != nil || ch.Kind != registry.KindInstance || ch.ID != "bad" {
				s.Errorf("quarantined change %+v: want kind and id of an instance, and no instance", ch)
			}
		}
	}
	s.unmoved(w, s.key(in), good)
	s.h.Put(s.T, bad, []byte("10.0.0.8:80"))
	s.instance(w, bad, "readable", whatever)
	s.h.Put(s.T, bad, []byte("garbage"))
	s.h.Delete(s.T, bad)
	s.gone(w, bad)
}

func testBadKey(s *suite) {
	service := s.service()
	w := s.watch(s.client(), registry.Scope{})
	w.WaitReset(s.T)
	base := s.h.Keys.RangePrefix(registry.Scope{Service: service})
	bad := []string{base, base + "a/b", base + "a b", base + "a%2fb", base + "a/", base + "ä", base + "a\x00", base + "/a", base + "..",
		s.h.Keys.Instance("T-"+service, "a"), s.h.Keys.RangePrefix(registry.Scope{}) + "nothing/" + service}
	for _, key := range bad {
		s.h.Put(s.T, key, []byte("10.0.0.7:1"))
	}
	good := s.h.Keys.Instance(service, "good")
	s.h.Put(s.T, good, []byte("10.0.0.7:1"))
	for _, w := range []*Watcher{w, s.watch(s.client(), registry.Scope{})} {
		s.instance(w, good, "there", whatever)
		w.Wait(s.T, "the bad keys", func(view map[string]registry.Change) bool {
			for _, key := range bad {
				ch, there := view[key]
				if !there {
					return false
				}
				if ch.Kind != registry.KindUnknown || !errors.Is(ch.Err, registry.ErrInvalid) || ch.Instance != nil {
					s.Errorf("%q delivered as %+v: want it unknown, with ErrInvalid", key, ch)
				}
			}
			return true
		})
	}
	for _, key := range bad {
		s.h.Delete(s.T, key)
		s.gone(w, key)
	}
}

func testBareAddress(s *suite) {
	service := s.service()
	key := s.h.Keys.Instance(service, "a")
	w := s.watch(s.client(), registry.Scope{Service: service})
	s.h.Put(s.T, key, []byte("10.0.0.7:5001"))
	ch := s.instance(w, key, "there", whatever)
	want := registry.Instance{Service: service, ID: "a", Address: "10.0.0.7:5001"}
	if d := cmp.Diff(want, *ch.Instance); d != "" {
		s.Errorf("(-want +got):\n%s", d)
	}
	if ch.Lease != 0 {
		s.Errorf("lease %d, want none", ch.Lease)
	}
}

func (s *suite) needLink() {
	if s.h.Disconnect == nil || s.h.Reconnect == nil {
		s.Skip("the harness cannot cut the link")
	}
}

func testLinkLossWatch(s *suite) {
	s.needLink()
	service := s.service()
	gone, kept, fresh := s.h.Keys.Instance(service, "gone"), s.h.Keys.Instance(service, "kept"), s.h.Keys.Instance(service, "new")
	s.h.Put(s.T, gone, []byte("10.0.0.7:1"))
	s.h.Put(s.T, kept, []byte("10.0.0.7:2"))
	c := s.client()
	w := s.watch(c, registry.Scope{Service: service})
	s.instance(w, kept, "there", whatever)
	resets := w.resets()

	s.h.Disconnect(s.T, c)
	w.WaitErr(s.T)
	s.h.Delete(s.T, gone)
	s.h.Put(s.T, fresh, []byte("10.0.0.7:3"))
	w.Wait(s.T, "what was known to stay", func(view map[string]registry.Change) bool { return len(view) == 2 })
	s.h.Reconnect(s.T, c)
	s.instance(w, fresh, "there", whatever)
	s.gone(w, gone)
	if w.resets() == resets {
		s.Error("an Err was not ended by a Reset")
	}
	// And on from there.
	s.h.Delete(s.T, kept)
	s.gone(w, kept)
}

func testLinkLossRegistration(s *suite) {
	s.needLink()
	in := example(s.service())
	c := s.client()
	reg := s.registered(c, in)
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	s.instance(w, s.key(in), "there", whatever)
	s.h.Disconnect(s.T, c)
	s.h.RevokeLeases(s.T, c)
	s.gone(w, s.key(in))
	s.h.Reconnect(s.T, c)
	s.instance(w, s.key(in), "put again", func(got registry.Instance) bool { return got.Incarnation == reg.Instance().Incarnation })
	s.waitState(reg, registry.Registered)

	// A predecessor that was away while its successor came learns of it when it is back.
	s.h.Disconnect(s.T, c)
	young := s.registered(s.client(), in)
	s.h.Reconnect(s.T, c)
	s.waitState(reg, registry.Superseded)
	s.instance(w, s.key(in), "the newer's", func(got registry.Instance) bool { return got.Incarnation == young.Instance().Incarnation })
}

// soon is a context that ends before a store that is away comes back.
func (s *suite) soon() context.Context {
	ctx, cancel := context.WithTimeout(s.ctx, 50*time.Millisecond)
	s.Cleanup(cancel)
	return ctx
}

func testLinkLossUpdate(s *suite) {
	s.needLink()
	in := example(s.service())
	c := s.client()
	reg := s.registered(c, in)
	w := s.watch(s.client(), registry.Scope{Service: in.Service})
	s.instance(w, s.key(in), "there", whatever)
	s.h.Disconnect(s.T, c)
	s.mustBe(reg.Update(s.soon(), func(in *registry.Instance) { in.Weight = new(7) }), context.DeadlineExceeded)
	if got := reg.Instance().EffectiveWeight(); got != 7 {
		s.Errorf("weight %d after an update that did not reach the store, want it kept", got)
	}
	s.h.Reconnect(s.T, c)
	s.instance(w, s.key(in), "updated", func(in registry.Instance) bool { return in.EffectiveWeight() == 7 })
	s.waitState(reg, registry.Registered)
}

func testLinkLossLeave(s *suite) {
	s.needLink()
	in, other := example(s.service()), example(s.service())
	c := s.client()
	reg := s.registered(c, in)
	s.registered(c, other)
	w := s.watch(s.client(), registry.Scope{Instances: true})
	s.instance(w, s.key(in), "there", whatever)
	s.h.Disconnect(s.T, c)
	s.mustBe(reg.Leave(s.soon()), context.DeadlineExceeded)
	s.waitState(reg, registry.Left)
	s.mustBe(reg.Err(), registry.ErrLeft)
	s.mustBe(reg.Update(s.limit(), func(*registry.Instance) {}), registry.ErrLeft)

	// The process lives on with its lease; the record it could not delete must not live on with it.
	s.h.Reconnect(s.T, c)
	s.gone(w, s.key(in))
	s.instance(w, s.key(other), "there", whatever)
}

// A predecessor that gave up leaving while it was away must not take its successor's record with it.
func testLinkLossLeaveSuperseded(s *suite) {
	s.needLink()
	in, other := example(s.service()), example(s.service())
	c := s.client()
	old := s.registered(c, in)
	s.h.Disconnect(s.T, c)
	s.mustBe(old.Leave(s.soon()), context.DeadlineExceeded)
	s.registered(s.client(), in)
	w := s.watch(s.client(), registry.Scope{Instances: true})
	there := s.instance(w, s.key(in), "the newer's", func(got registry.Instance) bool {
		return got.Incarnation > old.Instance().Incarnation
	})
	s.h.Reconnect(s.T, c)
	s.registered(c, other) // so c has reached the store again
	s.unmoved(w, s.key(in), there)
}

func testStartWithoutStore(s *suite) {
	s.needLink()
	in := example(s.service())
	c := s.client()
	s.h.Disconnect(s.T, c)
	reg := s.register(c, in) // returns, though there is nobody to register with
	if st := reg.State(); st != registry.Registering {
		s.Errorf("state %d without a store, want Registering", st)
	}
	s.mustBe(registry.WaitRegistered(s.soon(), reg), context.DeadlineExceeded)
	w := s.watch(c, registry.Scope{Service: in.Service})
	w.WaitErr(s.T)
	s.h.Reconnect(s.T, c)
	s.waitState(reg, registry.Registered)
	s.instance(w, s.key(in), "there", whatever)
}
