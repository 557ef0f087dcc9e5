package registrytest

import (
	"context"
	"strings"
	"time"

	"github.com/rota-lb/rota/registry"
)

// join shows a balancer until the test ends. The suite has no others: its tests follow one another.
func (s *suite) join(r registry.Registry) (id string, p registry.Presence) {
	s.Helper()
	id = "b-" + s.service()
	p, err := r.(registry.Balancers).Join(registry.Balancer{ID: id, Version: "1", Started: time.Now()})
	s.must(err)
	s.Cleanup(func() { _ = p.Leave(context.Background()) })
	w := s.watch(r, registry.Scope{})
	s.there(w, s.h.Keys.Balancer(id))
	w.Stop()
	return id, p
}

func (s *suite) there(w *Watcher, key string) {
	s.Helper()
	w.Wait(s.T, key+" to be there", func(view map[string]registry.Change) bool { return view[key].Key != "" })
}

func testDrainWithoutBalancers(s *suite) {
	in := example(s.service())
	reg := s.registered(s.client(), in)
	s.must(reg.Drain(s.limit()))
	s.instance(s.watch(s.client(), registry.Scope{Service: in.Service}), s.key(in), "draining", drains)
	s.must(reg.Leave(s.limit()))
}

func drains(in registry.Instance) bool { return in.State == registry.Draining && in.DrainAck }

func testDrainWaitsForAll(s *suite) {
	in := example(s.service())
	reg := s.registered(s.client(), in)
	in = reg.Instance()
	w := s.watch(s.client(), registry.Scope{})
	_, one := s.join(s.client())
	_, two := s.join(s.client())
	drained := make(chan error, 1)
	go func() { drained <- reg.Drain(s.limit()) }()
	s.instance(w, s.key(in), "draining", drains)
	one.Acknowledge(in.Service, in.ID, in.Incarnation)
	two.Acknowledge(in.Service, in.ID, "an-older-life") // does not count
	two.Acknowledge(in.Service, "b", in.Incarnation)    // is another's
	w.Wait(s.T, "two acknowledgements", func(view map[string]registry.Change) bool {
		n := 0
		for _, ch := range view {
			if ch.Kind == registry.KindAck && ch.Service == in.Service && ch.ID == in.ID {
				n++
			}
		}
		return n == 2
	})
	select {
	case err := <-drained:
		s.Fatalf("drained before every balancer had acknowledged: %v", err)
	default:
	}
	two.Acknowledge(in.Service, in.ID, in.Incarnation)
	s.must(<-drained)
}

func testDrainBalancerGoes(s *suite) {
	in := example(s.service())
	reg := s.registered(s.client(), in)
	w := s.watch(s.client(), registry.Scope{})
	_, p := s.join(s.client())
	drained := make(chan error, 1)
	go func() { drained <- reg.Drain(s.limit()) }()
	s.instance(w, s.key(in), "draining", drains)
	s.must(p.Leave(s.limit()))
	s.must(<-drained)
}

func testDrainDeadline(s *suite) {
	in := example(s.service())
	reg := s.registered(s.client(), in)
	id, _ := s.join(s.client())
	ctx, cancel := context.WithTimeout(s.ctx, 300*time.Millisecond)
	defer cancel()
	err := reg.Drain(ctx)
	s.mustBe(err, registry.ErrUnacknowledged)
	s.mustBe(err, context.DeadlineExceeded)
	if !strings.Contains(err.Error(), id) {
		s.Errorf("error %q does not name balancer %s", err, id)
	}
	if !drains(reg.Instance()) {
		s.Error("the instance is not draining any more")
	}
}

func testDrainSuperseded(s *suite) {
	in := example(s.service())
	reg := s.registered(s.client(), in)
	w := s.watch(s.client(), registry.Scope{})
	s.join(s.client())
	drained := make(chan error, 1)
	go func() { drained <- reg.Drain(s.limit()) }()
	s.instance(w, s.key(in), "draining", drains)
	s.registered(s.client(), in)
	s.mustBe(<-drained, registry.ErrSuperseded)
}

func testPresence(s *suite) {
	c := s.client()
	w := s.watch(s.client(), registry.Scope{})
	id, p := s.join(c)
	key, ack := s.h.Keys.Balancer(id), s.h.Keys.Ack("cart", "a", id)
	s.there(w, key)
	p.Acknowledge("cart", "a", "1")
	s.there(w, ack)
	lease := int64(0)
	w.Wait(s.T, "both under one lease", func(view map[string]registry.Change) bool {
		lease = view[key].Lease
		return lease != 0 && view[ack].Lease == lease
	})

	s.h.RevokeLeases(s.T, c)
	w.Wait(s.T, "both under another lease", func(view map[string]registry.Change) bool {
		l := view[key].Lease
		return l != 0 && l != lease && view[ack].Lease == l
	})
	s.h.Delete(s.T, key)
	s.gone(w, key)
	p.Renew()
	s.there(w, key)

	p.Forget("cart", "a")
	s.gone(w, ack)
	s.must(p.Leave(s.limit()))
	s.gone(w, key)
}

func testPresenceRefusesInvalid(s *suite) {
	_, err := s.client().(registry.Balancers).Join(registry.Balancer{ID: "a/b"})
	s.mustBe(err, registry.ErrInvalid)
}
