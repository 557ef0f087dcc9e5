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
			f.Probed(endpointOf(f, "s", "a"), true, epoch, none)
		}, "a suspect, b ready, c ready"},
		"lost, and does not answer": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Probed(endpointOf(f, "s", "a"), false, epoch, none)
		}, "b ready, c ready"},
		"lost, and refuses": {func(f *Fold) {
			step(f, del("s", "a", 5))
			f.Refused(endpointOf(f, "s", "a"), epoch, none)
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
		"refuses": {func(f *Fold) { f.Refused(endpointOf(f, "s", "a"), epoch, none) }, "a ejected, b ready, c ready"},
		"refuses, and answers": {func(f *Fold) {
			f.Refused(endpointOf(f, "s", "a"), epoch, none)
			f.Probed(endpointOf(f, "s", "a"), false, epoch, none)
			f.Probed(endpointOf(f, "s", "a"), true, epoch, none)
		}, "a ready, b ready, c ready"},
		"refuses, and is written anew": {func(f *Fold) {
			f.Refused(endpointOf(f, "s", "a"), epoch, none)
			step(f, leased("s", "a", "10.0.0.1:80", 6, 1, func(in *registry.Instance) { in.Weight = new(7) }))
		}, "a ejected, b ready, c ready"},
		"refuses, and its record goes": {func(f *Fold) {
			f.Refused(endpointOf(f, "s", "a"), epoch, none)
			step(f, del("s", "a", 5))
		}, "b ready, c ready"},
		"more refuse than may be ejected": {func(f *Fold) {
			for _, id := range []string{"a", "b", "c"} {
				f.Refused(endpointOf(f, "s", id), epoch, none)
			}
		}, "a ejected, b ready, c ready"},
		"not there any more when the link is back": {func(f *Fold) {
			if reset(f, 7, 9, leased("s", "a", "10.0.0.1:80", 1, 1)) {
				t.Error("it is the same store")
			}
		}, "a ready, b suspect, c suspect"},
		"the store is another one": {func(f *Fold) {
			if !reset(f, 8, 9, leased("s", "a", "10.0.0.1:80", 1, 1)) || len(f.Asks()) != 0 {
				t.Error("another store, which knows nothing of the leases")
			}
		}, "a ready, b suspect, c suspect"},
		"the store is an older state of itself": {func(f *Fold) {
			if !reset(f, 7, 2) {
				t.Error("its revision went back")
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
	if asks := f.Asks(); len(asks) != 5 || len(f.Asks()) != 0 {
		t.Errorf("asked about %v", asks)
	}
	for i := range 4 {
		f.Probed(endpointOf(f, "s", fmt.Sprint(i)), false, epoch, none)
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
		stored := map[string]registry.Change{} // what the store holds
		now, revision, store := epoch, int64(0), uint64(1)
		f.Apply(registry.Update{Reset: true, StoreID: store}, now, none)
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			revision++
			now = now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "seconds")) * time.Second)
			id := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "id")
			e := endpointOf(f, "s", id)
			switch what := rapid.IntRange(0, 12).Draw(t, "what"); {
			case what < 4:
				c := leased("s", id, fmt.Sprintf("10.0.0.%d:80", rapid.IntRange(1, 3).Draw(t, "address")), revision, int64(rapid.IntRange(0, 3).Draw(t, "lease")),
					state(rapid.SampledFrom([]registry.State{"", "", registry.Draining}).Draw(t, "state")), func(in *registry.Instance) {
						in.Incarnation = rapid.SampledFrom([]string{"1", "2"}).Draw(t, "incarnation")
						if rapid.Bool().Draw(t, "check") {
							in.Check = &registry.Check{}
						}
					})
				stored[id] = c
				step(f, c)
			case what == 4:
				delete(stored, id)
				f.Apply(registry.Update{Revision: revision, Changes: []registry.Change{del("s", id, revision)}}, now, none)
			case what == 5:
				f.Answer(int64(rapid.IntRange(1, 3).Draw(t, "lease")), rapid.Bool().Draw(t, "alive"), none)
			case what == 6 && e != nil:
				f.Probed(e, rapid.Bool().Draw(t, "answers"), now, none)
			case what == 7 && e != nil:
				f.Refused(e, now, none)
			case what == 8:
				f.Expire(now, none)
			case what == 10 && e != nil:
				f.Checked(e, rapid.Bool().Draw(t, "passes"), "why", now, none)
			case what == 11 && e != nil:
				f.Failing(e, "failure_rate", "why", now, none)
			case what == 12 && e != nil:
				f.Readmit(e, now, none)
			case what == 9: // begin again, perhaps in another store that has lost something
				if rapid.Bool().Draw(t, "elsewhere") {
					store++
					delete(stored, id)
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
				if lost := m.condition != nil && m.condition.lost.is(); lost == there {
					t.Fatalf("%s: lost %v, in the store %v", m.Endpoint.ID, lost, there)
				}
				if there && c.Instance.State == registry.Draining && serving[m.Endpoint] {
					t.Fatalf("%s drains and serves", m.Endpoint.ID)
				}
				if m.condition.decisive() != nil {
					doubted++
					if f.Doubted()[m.Endpoint] != m {
						t.Fatalf("%s is in doubt and not known to be", m.Endpoint.ID)
					}
				}
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
			if m.condition != nil && m.condition.lost.is() {
				f.Probed(m.Endpoint, false, now, none)
			}
		}
		if len(f.Members("s")) != len(stored) {
			t.Fatalf("%d members, %d stored, when nobody who was lost answers", len(f.Members("s")), len(stored))
		}
	})
}
