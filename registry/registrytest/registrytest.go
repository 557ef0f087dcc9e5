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
	"testing"
	"time"

	"github.com/rota-lb/rota/registry"
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
