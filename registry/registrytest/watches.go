package registrytest

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-lb/rota/registry"
)

// Tests of watches: what is seen of a store, in which order, and what of a value that cannot be read.

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
