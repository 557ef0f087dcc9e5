package registrytest

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
)

// Tests of registrations: who holds a key, what changes it, and who leaves.

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
