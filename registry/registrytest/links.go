package registrytest

import (
	"context"
	"time"

	"github.com/rota-lb/rota/registry"
)

// Tests of what a client does while it cannot reach the store.

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
