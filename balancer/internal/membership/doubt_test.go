package membership

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

// leased is put under a lease.
func leased(service, id, address string, revision, lease int64, change ...func(*registry.Instance)) registry.Change {
	c := put(service, id, address, revision, change...)
	c.Lease = lease
	return c
}

// states lists the members of a service with their states.
func states(f *Fold, service string) string {
	f.Eligible(service, epoch)
	var list []string
	for _, m := range f.Members(service) {
		list = append(list, m.Endpoint.ID+" "+string(m.Verdict.State))
	}
	return strings.Join(list, ", ")
}

func incarnation(name string) func(*registry.Instance) {
	return func(in *registry.Instance) { in.Incarnation = name }
}

func endpointOf(f *Fold, service, id string) *pool.Endpoint {
	for _, m := range f.Members(service) {
		if m.Endpoint.ID == id {
			return m.Endpoint
		}
	}
	return nil
}

// Every way in which an instance can go, and what is made of it.
func TestLeftOrLost(t *testing.T) {
	none := map[string]bool{}
	reset := func(f *Fold, store uint64, revision int64, changes ...registry.Change) bool {
		return f.Apply(registry.Update{Reset: true, StoreID: store, Revision: revision, Changes: changes}, epoch, none)
	}
	for name, tc := range map[string]struct {
		do   func(f *Fold)
		want string // of the service s, which begins with a, b and c, leased
	}{
		"said that it leaves": {func(f *Fold) {
			step(f, leased("s", "a", "10.0.0.1:80", 5, 1, state(registry.Draining)))
			step(f, del("s", "a", 6))
		}, "b ready, c ready"},
		"was starting": {func(f *Fold) {
			step(f, leased("s", "a", "10.0.0.1:80", 5, 1, state(registry.Starting)))
			step(f, del("s", "a", 6))
		}, "b ready, c ready"},
		"had no lease": {func(f *Fold) {
			step(f, put("s", "a", "10.0.0.1:80", 5))
			step(f, del("s", "a", 6))
		}, "b ready, c ready"},
		"its lease is being looked up": {func(f *Fold) { step(f, del("s", "a", 5)) }, "a suspect, b ready, c ready"},
		"its lease is alive": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Answer(1, true, none)
		}, "b ready, c ready"},
		"its lease is gone": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Answer(1, false, none)
		}, "a suspect, b ready, c ready"},
		"lost, and answers": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Probed(endpointOf(f, "s", "a"), Passed, epoch, none)
		}, "a suspect, b ready, c ready"},
		"lost, and does not answer": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Probed(endpointOf(f, "s", "a"), Silent, epoch, none)
		}, "b ready, c ready"},
		"lost, and refuses": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Refused(endpointOf(f, "s", "a"), false, epoch, none)
		}, "b ready, c ready"},
		"lost for long": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Expire(epoch.Add(SuspectFor), none)
			if !strings.Contains(states(f, "s"), "a suspect") {
				t.Error("gone too early")
			}
			f.Expire(epoch.Add(SuspectFor+1), none)
		}, "b ready, c ready"},
		"lost and back": {func(f *Fold) {
			e := endpointOf(f, "s", "a")
			step(f, del("s", "a", 5))
			step(f, leased("s", "a", "10.0.0.1:80", 6, 9))
			if endpointOf(f, "s", "a") != e || len(f.Doubted()) != 0 {
				t.Error("the endpoint must survive, and the doubt must not")
			}
			f.Answer(1, true, none) // comes late
		}, "a ready, b ready, c ready"},
		"lost, and another one has its address": {func(f *Fold) {
			step(f, del("s", "a", 5))
			step(f, leased("s", "d", "10.0.0.1:80", 6, 9))
		}, "b ready, c ready, d ready"},
		"refuses": {func(f *Fold) { f.Refused(endpointOf(f, "s", "a"), false, epoch, none) }, "a ejected, b ready, c ready"},
		"refuses, and answers": {func(f *Fold) {
			f.Refused(endpointOf(f, "s", "a"), false, epoch, none)
			f.Probed(endpointOf(f, "s", "a"), Silent, epoch, none)
			f.Probed(endpointOf(f, "s", "a"), Passed, epoch, none)
		}, "a ready, b ready, c ready"},
		"refuses, and is written anew": {func(f *Fold) {
			f.Refused(endpointOf(f, "s", "a"), false, epoch, none)
			step(f, leased("s", "a", "10.0.0.1:80", 6, 1, func(in *registry.Instance) { in.Weight = new(7) }))
		}, "a ejected, b ready, c ready"},
		"refuses, and its record goes": {func(f *Fold) {
			f.Refused(endpointOf(f, "s", "a"), false, epoch, none)
			step(f, del("s", "a", 5))
		}, "b ready, c ready"},
		"more refuse than may be ejected": {func(f *Fold) {
			for _, id := range []string{"a", "b", "c"} {
				f.Refused(endpointOf(f, "s", id), false, epoch, none)
			}
		}, "a ejected, b ready, c ready"},
		"not there any more when the link is back": {func(f *Fold) {
			if reset(f, 7, 9, leased("s", "a", "10.0.0.1:80", 1, 1)) {
				t.Error("it is the same store")
			}
		}, "a ready, b suspect, c suspect"},
		"the store is another one": {func(f *Fold) {
			if !reset(f, 8, 9, leased("s", "a", "10.0.0.1:80", 1, 1)) || len(f.Asks(100)) != 0 {
				t.Error("another store, which knows nothing of the leases")
			}
		}, "a ready, b suspect, c suspect"},
		"the store is an older state of itself": {func(f *Fold) {
			if !reset(f, 7, 2) {
				t.Error("its revision went back")
			}
		}, "a suspect, b suspect, c suspect"},
		"lost, and answers that it is not well": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Probed(endpointOf(f, "s", "a"), Answered, epoch, none)
		}, "a down, b ready, c ready"},
		"lost, not well, and well again": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Probed(endpointOf(f, "s", "a"), Answered, epoch, none)
			f.Probed(endpointOf(f, "s", "a"), Passed, epoch, none)
		}, "a suspect, b ready, c ready"},
		"lost, not well, and silent": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Probed(endpointOf(f, "s", "a"), Answered, epoch, none)
			f.Probed(endpointOf(f, "s", "a"), Silent, epoch, none)
		}, "b ready, c ready"},
		"lost, and resets a connection": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Refused(endpointOf(f, "s", "a"), true, epoch, none)
		}, "a suspect, b ready, c ready"},
		"resets a connection": {func(f *Fold) { f.Refused(endpointOf(f, "s", "a"), true, epoch, none) }, "a ejected, b ready, c ready"},
		"all are down, which nobody believes, and are lost": {func(f *Fold) {
			for _, id := range []string{"a", "b", "c"} {
				f.Checked(endpointOf(f, "s", id), false, "broken", epoch, none)
			}
			f.Eligible("s", epoch)
			for i, id := range []string{"a", "b", "c"} {
				step(f, del("s", id, int64(5+i)))
			}
			if n := len(f.Eligible("s", epoch)); n != 3 {
				t.Errorf("%d of those that are lost in a panic serve", n)
			}
		}, "a down, b down, c down"},
		"lost, and somebody of another service has its address": {func(f *Fold) {
			step(f, del("s", "a", 5))
			step(f, leased("other", "x", "10.0.0.1:80", 6, 9))
		}, "b ready, c ready"},
		"lost, when somebody of another service has had its address for long": {func(f *Fold) {
			step(f, leased("other", "x", "10.0.0.1:80", 5, 9))
			step(f, del("s", "a", 6))
			f.Expire(epoch, none)
		}, "b ready, c ready"},
		"lost with what the same process has registered of another service": {func(f *Fold) {
			step(f, leased("other", "x", "10.0.0.1:80", 5, 1))
			step(f, del("s", "a", 6))
			f.Expire(epoch, none)
		}, "a suspect, b ready, c ready"},
		"lost, and the other service of its process is back first": {func(f *Fold) {
			step(f, leased("other", "x", "10.0.0.1:80", 5, 1))
			step(f, del("s", "a", 6), del("other", "x", 6))
			step(f, leased("other", "x", "10.0.0.1:80", 7, 9))
		}, "a suspect, b ready, c ready"},
		"replaced, and lost": {func(f *Fold) {
			step(f, leased("s", "d", "10.0.0.1:80", 5, 9))
			f.Eligible("s", epoch)
			step(f, del("s", "a", 6))
		}, "b ready, c ready, d ready"},
		"two lives at one address, both lost": {func(f *Fold) {
			step(f, leased("s", "d", "10.0.0.1:80", 5, 9))
			step(f, del("s", "a", 6), del("s", "d", 6))
			f.Probed(endpointOf(f, "s", "d"), Silent, epoch, none)
			f.Probed(endpointOf(f, "s", "a"), Silent, epoch, none)
			if len(f.suspected)+len(f.asking) != 0 {
				t.Errorf("%d suspects and %d questions are left", len(f.suspected), len(f.asking))
			}
		}, "b ready, c ready"},
		"the store is an older state of itself, in which somebody has an older life": {func(f *Fold) {
			step(f, leased("s", "a", "10.0.0.9:80", 10, 9, incarnation("01M83Q6NFBYQ4Z0M767C0CR6AC")))
			reset(f, 7, 4, leased("s", "a", "10.0.0.1:80", 1, 1, incarnation("01M83Q6NFBYQ4Z0M767C0CR6AA")), leased("s", "b", "10.0.0.2:80", 2, 2), leased("s", "c", "10.0.0.3:80", 3, 3))
			if e := endpointOf(f, "s", "a"); e.Name != "10.0.0.9:80" {
				t.Errorf("an older life has taken the place: %s", e.Name)
			}
		}, "a suspect, b ready, c ready"},
		"and it is told again": {func(f *Fold) {
			step(f, leased("s", "a", "10.0.0.9:80", 10, 9))
			for range 2 {
				reset(f, 7, 4, leased("s", "a", "10.0.0.1:80", 1, 1), leased("s", "b", "10.0.0.2:80", 2, 2), leased("s", "c", "10.0.0.3:80", 3, 3))
			}
		}, "a suspect, b ready, c ready"},
		"and the younger one registers again": {func(f *Fold) {
			step(f, leased("s", "a", "10.0.0.9:80", 10, 9))
			reset(f, 7, 4, leased("s", "a", "10.0.0.1:80", 1, 1), leased("s", "b", "10.0.0.2:80", 2, 2), leased("s", "c", "10.0.0.3:80", 3, 3))
			step(f, leased("s", "a", "10.0.0.9:80", 5, 10))
			if len(f.displaced) != 0 {
				t.Error("the older record waits on")
			}
		}, "a ready, b ready, c ready"},
		"and the younger one does not answer": {func(f *Fold) {
			step(f, leased("s", "a", "10.0.0.9:80", 10, 9))
			reset(f, 7, 4, leased("s", "a", "10.0.0.1:80", 1, 1), leased("s", "b", "10.0.0.2:80", 2, 2), leased("s", "c", "10.0.0.3:80", 3, 3))
			f.Probed(endpointOf(f, "s", "a"), Silent, epoch, none)
			if e := endpointOf(f, "s", "a"); e == nil || e.Name != "10.0.0.1:80" {
				t.Error("the older one does not come after it")
			}
		}, "a starting, b ready, c ready"},
		"and two of other services have the younger one's address": {func(f *Fold) {
			others := []registry.Change{leased("other", "x", "10.0.0.9:80", 11, 8), leased("another", "y", "10.0.0.9:80", 12, 7)}
			step(f, leased("s", "a", "10.0.0.9:80", 10, 9))
			step(f, others...)
			reset(f, 7, 4, append(others, leased("s", "a", "10.0.0.1:80", 1, 1), leased("s", "b", "10.0.0.2:80", 2, 2), leased("s", "c", "10.0.0.3:80", 3, 3))...)
			f.Expire(epoch, none)
		}, "a starting, b ready, c ready"},
		"and then the older one does": {func(f *Fold) {
			step(f, leased("s", "a", "10.0.0.9:80", 10, 9))
			reset(f, 7, 4, leased("s", "a", "10.0.0.1:80", 1, 1), leased("s", "b", "10.0.0.2:80", 2, 2), leased("s", "c", "10.0.0.3:80", 3, 3))
			f.Probed(endpointOf(f, "s", "a"), Silent, epoch, none)
			f.Probed(endpointOf(f, "s", "a"), Passed, epoch, none)
		}, "a ready, b ready, c ready"},
		"the store is an older state of itself, in which somebody is who had left": {func(f *Fold) {
			step(f, leased("s", "c", "10.0.0.3:80", 5, 3, state(registry.Draining)))
			step(f, del("s", "c", 6))
			reset(f, 7, 4, leased("s", "a", "10.0.0.1:80", 1, 1), leased("s", "b", "10.0.0.2:80", 2, 2), leased("s", "c", "10.0.0.3:80", 3, 3))
		}, "a ready, b ready, c starting"},
		"the store says itself that it is another one": {func(f *Fold) {
			if !f.Apply(registry.Update{Reset: true, StoreID: 7, Revision: 90, Elsewhere: true}, epoch, none) {
				t.Error("it is not believed")
			}
		}, "a suspect, b suspect, c suspect"},
	} {
		f := New()
		reset(f, 7, 4, leased("s", "a", "10.0.0.1:80", 1, 1), leased("s", "b", "10.0.0.2:80", 2, 2), leased("s", "c", "10.0.0.3:80", 3, 3))
		tc.do(f)
		if got := states(f, "s"); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// What the snapshot of a balancer that was away for a while knows of is lost, if the store does not have it now.
func TestRecall(t *testing.T) {
	f, none := New(), map[string]bool{}
	now := leased("s", "a", "10.0.0.1:80", 1, 1)
	f.Apply(registry.Update{Reset: true, StoreID: 7, Revision: 9, Changes: []registry.Change{now}}, epoch, none)
	f.Recall([]registry.Change{now, leased("s", "b", "10.0.0.2:80", 2, 2), put("s", "c", "10.0.0.3:80", 3), leased("s", "d", "169.254.1.1:80", 4, 4)}, epoch.Add(-time.Minute), epoch, none)
	if got := states(f, "s"); got != "a ready, b starting" {
		t.Fatalf("recalled: %s", got)
	}
	if asks := f.Asks(9); len(asks) != 1 || asks[0].Lease != 2 {
		t.Errorf("asks %v", asks)
	}
	f.Probed(endpointOf(f, "s", "b"), Passed, epoch, none)
	if got := states(f, "s"); got != "a ready, b suspect" {
		t.Errorf("it answers: %s", got)
	}
	f.Expire(epoch.Add(SuspectFor-time.Minute+1), none)
	if got := states(f, "s"); got != "a ready" {
		t.Errorf("lost a minute before we came: %s", got)
	}
}

// Who is known from a snapshot only is lost like anybody else, and has still to be proven.
func TestRestoredAndLost(t *testing.T) {
	f, none := New(), map[string]bool{}
	f.Restore(registry.Update{Reset: true, StoreID: 7, Revision: 9, Changes: []registry.Change{leased("s", "a", "10.0.0.1:80", 1, 1)}}, epoch, none)
	f.Apply(registry.Update{Reset: true, StoreID: 7, Revision: 12}, epoch, none)
	if got := states(f, "s"); got != "a starting" {
		t.Fatal(got)
	}
	f.Probed(endpointOf(f, "s", "a"), Passed, epoch, none)
	if got := states(f, "s"); got != "a suspect" {
		t.Fatal(got)
	}
	f.Probed(endpointOf(f, "s", "a"), Silent, epoch, none)
	if f.Instances() != 0 {
		t.Error("it does not answer")
	}
}

// Many services that lose one record each are a sick store, too.
func TestBrakeOfAll(t *testing.T) {
	f := New()
	for i := range 10 {
		step(f, leased(fmt.Sprint("s", i), "a", fmt.Sprintf("10.0.0.%d:80", i), int64(i+1), int64(i+1)))
	}
	for i := range 5 {
		if b := f.Brakes(); len(b) != 0 {
			t.Fatalf("engaged by %d of 10: %v", i, b)
		}
		step(f, del(fmt.Sprint("s", i), "a", 20))
	}
	if b := f.Brakes(); len(b) != 1 || b[0] != (Brake{"", epoch, 5, 10}) {
		t.Errorf("brakes %v", b)
	}
	if n := f.ReleaseBrake("", map[string]bool{}); n != 5 || len(f.Brakes()) != 0 {
		t.Errorf("%d given up, brakes %v", n, f.Brakes())
	}
}

// Questions come as many as are wanted, wait for their answer, and are gone with those they are about.
func TestAsks(t *testing.T) {
	f, none := New(), map[string]bool{}
	for i := range 10 {
		step(f, leased("s", fmt.Sprint(i), fmt.Sprintf("10.0.0.%d:80", i), int64(i+1), int64(i+1)))
	}
	for i := range 10 {
		step(f, del("s", fmt.Sprint(i), 20))
	}
	asks := f.Asks(3)
	if more := f.Asks(100); len(asks) != 3 || len(more) != 7 || len(f.Asks(1)) != 0 {
		t.Fatalf("%d and %d questions", len(asks), len(more))
	}
	step(f, leased("s", "0", "10.0.0.0:80", 30, 30))
	f.Probed(endpointOf(f, "s", "1"), Silent, epoch, none)
	f.Unanswered(asks)
	if again := f.Asks(100); len(again) != 1 || again[0] != asks[2] || len(f.asking) != 8 {
		t.Errorf("asks %v again, %d are waited for", again, len(f.asking))
	}
	for lease := int64(1); lease <= 10; lease++ {
		f.Answer(lease, lease == 3, none)
	}
	if f.Instances() != 8 || len(f.asking) != 0 {
		t.Errorf("%d instances, %d questions", f.Instances(), len(f.asking))
	}
}

// Since when and why: each state has its own time, and the revision of what brought it about.
func TestSince(t *testing.T) {
	f, none := New(), map[string]bool{}
	at := func(n int) time.Time { return epoch.Add(time.Duration(n) * time.Minute) }
	f.Apply(registry.Update{Reset: true, StoreID: 7, Revision: 4, Changes: []registry.Change{
		leased("s", "a", "10.0.0.1:80", 1, 1), leased("s", "b", "10.0.0.2:80", 2, 2, func(in *registry.Instance) { in.RegisteredAt = at(-9) }),
	}}, at(0), none)
	apply := func(n int, c registry.Change) {
		f.Apply(registry.Update{Revision: c.ModRevision, Changes: []registry.Change{c}}, at(n), none)
	}
	look := func(id string, since time.Time, revision int64) {
		t.Helper()
		f.Eligible("s", epoch)
		for _, m := range f.Members("s") {
			if m.Endpoint.ID == id && (!m.Since().Equal(since) || m.Verdict.Revision != revision) {
				t.Errorf("%s is %s since %v by revision %d, want %v and %d", id, m.Verdict.State, m.Since(), m.Verdict.Revision, since, revision)
			}
		}
	}
	look("a", time.Time{}, 1)
	look("b", at(-9), 2)
	apply(1, leased("s", "c", "10.0.0.3:80", 5, 3))
	look("c", at(1), 5)
	apply(2, leased("s", "c", "10.0.0.3:80", 6, 3, func(in *registry.Instance) { in.Weight = new(7) }))
	look("c", at(1), 6)
	apply(3, leased("s", "c", "10.0.0.3:80", 7, 3, state(registry.Draining)))
	look("c", at(3), 7)
	apply(4, leased("s", "d", "10.0.0.1:80", 8, 4))
	look("a", at(4), 8)
	f.SetPolicy("s", Policy{Overrides: map[string]Override{"b": {Drain: true}}, Revision: 77}, at(5), none)
	look("b", at(5), 77)
	f.SetPolicy("s", Policy{Revision: 78}, at(6), none)
	look("b", at(6), 2)
	f.Refused(endpointOf(f, "s", "b"), false, at(7), none)
	look("b", at(7), 0)
	for _, m := range f.Transitions() {
		if m.ID == "a" && (m.From != Ready || m.To != Replaced || m.Revision != 8) {
			t.Errorf("told of a: %+v", m)
		}
	}
}

// The brake is seen while many are suspects, and changes nothing about them.
func TestBrake(t *testing.T) {
	f, none := New(), map[string]bool{}
	for i := range 10 {
		step(f, leased("s", fmt.Sprint(i), fmt.Sprintf("10.0.0.%d:80", i), int64(i+1), int64(i+1)))
	}
	at := func(d time.Duration, id int) {
		f.Apply(registry.Update{Revision: 20, Changes: []registry.Change{del("s", fmt.Sprint(id), 20)}}, epoch.Add(d), none)
	}
	for i := range 4 {
		at(0, i)
	}
	if len(f.Brakes()) != 0 {
		t.Errorf("engaged by 4 of 10: %v", f.Brakes())
	}
	at(BrakeWindow, 4)
	if b := f.Brakes(); len(b) != 1 || b[0] != (Brake{"s", epoch, 5, 10}) {
		t.Fatalf("brakes %v", b)
	}
	if asks := f.Asks(100); len(asks) != 5 || len(f.Asks(100)) != 0 {
		t.Errorf("asked about %v", asks)
	}
	for i := range 4 {
		f.Probed(endpointOf(f, "s", fmt.Sprint(i)), Silent, epoch, none)
	}
	f.Expire(epoch.Add(time.Minute), none)
	if len(f.Brakes()) != 1 || f.Instances() != 6 {
		t.Errorf("the brake holds while one is a suspect, and the dead are gone: %v, %d instances", f.Brakes(), f.Instances())
	}
	step(f, leased("s", "4", "10.0.0.4:80", 30, 30))
	f.Expire(epoch.Add(time.Minute), none)
	if len(f.Brakes()) != 0 {
		t.Error("nobody is a suspect any more")
	}
	at(time.Hour, 5)
	at(time.Hour, 6)
	at(time.Hour, 7)
	f.ReleaseBrake("s", none)
	if got := states(f, "s"); got != "4 ready, 8 ready, 9 ready" || len(f.Brakes()) != 0 {
		t.Errorf("released: %s, %v", got, f.Brakes())
	}
}

// Whatever happens in whatever order, the books agree.
func TestDoubtBooks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, none := New(), map[string]bool{}
		stored, older := map[string]registry.Change{}, map[string]registry.Change{} // what the store holds, and did
		now, revision, store := epoch, int64(0), uint64(1)
		f.Apply(registry.Update{Reset: true, StoreID: store}, now, none)
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			revision++
			now = now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "seconds")) * time.Second)
			id := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "id")
			e := endpointOf(f, "s", id)
			switch what := rapid.IntRange(0, 13).Draw(t, "what"); {
			case what < 4:
				c := leased("s", id, fmt.Sprintf("10.0.0.%d:80", rapid.IntRange(1, 3).Draw(t, "address")), revision, int64(rapid.IntRange(0, 3).Draw(t, "lease")),
					state(rapid.SampledFrom([]registry.State{"", "", registry.Draining}).Draw(t, "state")), func(in *registry.Instance) {
						in.Incarnation = rapid.SampledFrom([]string{"1", "2"}).Draw(t, "incarnation")
						if rapid.Bool().Draw(t, "check") {
							in.Check = &registry.Check{}
						}
					})
				if was, there := stored[id]; there {
					older[id] = was
				}
				stored[id] = c
				step(f, c)
			case what == 4:
				delete(stored, id)
				f.Apply(registry.Update{Revision: revision, Changes: []registry.Change{del("s", id, revision)}}, now, none)
			case what == 5:
				f.Answer(int64(rapid.IntRange(1, 3).Draw(t, "lease")), rapid.Bool().Draw(t, "alive"), none)
			case what == 6 && e != nil:
				f.Probed(e, rapid.SampledFrom([]Outcome{Silent, Answered, Passed}).Draw(t, "outcome"), now, none)
			case what == 7 && e != nil:
				f.Refused(e, rapid.Bool().Draw(t, "reset"), now, none)
			case what == 8:
				f.Expire(now, none)
			case what == 10 && e != nil:
				f.Checked(e, rapid.Bool().Draw(t, "passes"), "why", now, none)
			case what == 11 && e != nil:
				f.Failing(e, "failure_rate", "why", now, none)
			case what == 12 && e != nil:
				f.Readmit(e, now, none)
			case what == 13:
				f.ReleaseBrake("s", none)
			case what == 9: // begin again, perhaps in another store that has lost something, or something older
				if rapid.Bool().Draw(t, "elsewhere") {
					store++
					if c, there := older[id]; there && rapid.Bool().Draw(t, "older") {
						stored[id] = c
					} else {
						delete(stored, id)
					}
				}
				var all []registry.Change
				for _, c := range stored {
					all = append(all, c)
				}
				f.Apply(registry.Update{Reset: true, StoreID: store, Revision: revision, Changes: all}, now, none)
			}
			serving := map[*pool.Endpoint]bool{}
			for _, m := range f.Eligible("s", now) {
				serving[m.Endpoint] = true
			}
			out, meant := 0, 0
			for _, m := range f.Members("s") {
				switch m.Verdict.State {
				case Down, Ejected:
					out++
					meant++
				case Ready, Suspect:
					meant++
				}
				if s := m.Verdict.State; serving[m.Endpoint] && s != Ready && s != Suspect && !f.Panics()["s"] {
					t.Fatalf("%s is %s and serves", m.Endpoint.ID, s)
				}
			}
			if 2*(meant-out) < meant && len(serving) != meant {
				t.Fatalf("%d of %d are out, and %d serve", out, meant, len(serving))
			}
			for e, m := range f.warming {
				if f.Member(e) != m || m.condition == nil || m.condition.entered.IsZero() {
					t.Fatalf("%s is in a slow start that nobody knows of", e.ID)
				}
			}
			doubted := 0
			for _, m := range f.Members("s") {
				c, there := stored[m.Endpoint.ID]
				if m.Endpoint.Retired() {
					t.Fatalf("%s is retired", m.Endpoint.ID)
				}
				_, waits := f.displaced[m.Endpoint]
				if m.lost() == (there && !waits) {
					t.Fatalf("%s: lost %v, in the store %v, where an older record waits %v", m.Endpoint.ID, m.lost(), there, waits)
				}
				if there && !waits && c.Instance.State == registry.Draining && serving[m.Endpoint] {
					t.Fatalf("%s drains and serves", m.Endpoint.ID)
				}
				if m.condition.decisive() != nil {
					doubted++
					if f.Doubted()[m.Endpoint] != m {
						t.Fatalf("%s is in doubt and not known to be", m.Endpoint.ID)
					}
				}
			}
			books := 0
			for _, list := range f.suspected {
				for _, m := range list {
					if books++; f.Member(m.Endpoint) != m || !m.lost() {
						t.Fatalf("%s is in the book of suspects", m.Endpoint.ID)
					}
				}
			}
			for _, m := range f.Members("s") {
				if m.lost() {
					books--
				}
			}
			for _, list := range f.asking {
				for _, m := range list {
					if f.Member(m.Endpoint) != m || !m.lost() {
						t.Fatalf("%s is asked about", m.Endpoint.ID)
					}
				}
			}
			for e := range f.displaced {
				if m := f.Member(e); m == nil || !m.lost() {
					t.Fatalf("a record waits for %s", e.ID)
				}
			}
			if books != 0 {
				t.Fatalf("%d more in the book of suspects than there are", books)
			}
			for id := range stored {
				if endpointOf(f, "s", id) == nil {
					t.Fatalf("%s is in the store and not held", id)
				}
			}
			if doubted != len(f.Doubted()) || f.Instances() != len(f.Members("s")) {
				t.Fatalf("%d in doubt, %d known; %d instances, %d members", doubted, len(f.Doubted()), f.Instances(), len(f.Members("s")))
			}
		}
		for _, m := range slices.Clone(f.Members("s")) {
			if m.lost() {
				f.Probed(m.Endpoint, Silent, now, none)
			}
		}
		if len(f.Members("s")) != len(stored) {
			t.Fatalf("%d members, %d stored, when nobody who was lost answers", len(f.Members("s")), len(stored))
		}
	})
}
