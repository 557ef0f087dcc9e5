package membership

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

// checked asks for a check.
func checked(in *registry.Instance) { in.Check = &registry.Check{} }

// What is found out about instances, and what is made of it.
func TestCondition(t *testing.T) {
	none := map[string]bool{}
	check := func(f *Fold, up bool, ids ...string) {
		for _, id := range ids {
			f.Checked(endpointOf(f, "s", id), up, "because", epoch, none)
		}
	}
	for name, tc := range map[string]struct {
		do     func(f *Fold)
		states string // of the service s, which begins with a to d
		pool   string
	}{
		"down":          {func(f *Fold) { check(f, false, "a") }, "a down, b ready, c ready, d ready", "b c d"},
		"down and back": {func(f *Fold) { check(f, false, "a"); check(f, true, "a") }, "a ready, b ready, c ready, d ready", "a b c d"},
		"half are down": {func(f *Fold) { check(f, false, "a", "b") }, "a down, b down, c ready, d ready", "c d"},
		"more are down: it is who looks": {func(f *Fold) { check(f, false, "a", "b", "c") },
			"a down, b down, c down, d ready", "a b c d"},
		"never by intent": {func(f *Fold) {
			check(f, false, "a", "b", "c")
			step(f, put("s", "a", "10.0.0.1:80", 9, state(registry.Draining)))
		}, "a draining, b down, c down, d ready", "b c d"},
		"no panic wanted": {func(f *Fold) {
			f.SetPolicy("s", Policy{Panic: -1}, epoch, none)
			check(f, false, "a", "b", "c")
		}, "a down, b down, c down, d ready", "d"},
		"written anew, still down": {func(f *Fold) {
			check(f, false, "a")
			step(f, put("s", "a", "10.0.0.1:80", 9))
		}, "a down, b ready, c ready, d ready", "b c d"},
		"another life": {func(f *Fold) {
			check(f, false, "a")
			step(f, put("s", "a", "10.0.0.1:80", 9, func(in *registry.Instance) { in.Incarnation = "2" }))
		}, "a ready, b ready, c ready, d ready", "a b c d"},
		"no check any more": {func(f *Fold) {
			check(f, false, "a")
			f.Unchecked(endpointOf(f, "s", "a"), epoch, none)
		}, "a ready, b ready, c ready, d ready", "a b c d"},
		"new, with a check": {func(f *Fold) { step(f, put("s", "e", "10.0.0.5:80", 9, checked)) },
			"a ready, b ready, c ready, d ready, e starting", "a b c d"},
		"new, failing": {func(f *Fold) {
			step(f, put("s", "e", "10.0.0.5:80", 9, checked))
			check(f, false, "e")
		}, "a ready, b ready, c ready, d ready, e starting", "a b c d"},
		"new, passed": {func(f *Fold) {
			step(f, put("s", "e", "10.0.0.5:80", 9, checked))
			check(f, true, "e")
		}, "a ready, b ready, c ready, d ready, e ready", "a b c d e"},
		"new, where the policy has a check": {func(f *Fold) {
			f.SetPolicy("s", Policy{Check: true}, epoch, none)
			step(f, put("s", "e", "10.0.0.5:80", 9))
		}, "a ready, b ready, c ready, d ready, e starting", "a b c d"},
		"starting does not panic": {func(f *Fold) {
			for i := range 9 {
				step(f, put("s", fmt.Sprint("x", i), fmt.Sprintf("10.0.1.%d:80", i), 9, checked))
			}
		}, "a ready, b ready, c ready, d ready, x0 starting, x1 starting, x2 starting, x3 starting, x4 starting, x5 starting, x6 starting, x7 starting, x8 starting", "a b c d"},
		"failing": {func(f *Fold) { f.Failing(endpointOf(f, "s", "a"), "failure_rate", "because", epoch, none) },
			"a ejected, b ready, c ready, d ready", "b c d"},
		"failing and tried again": {func(f *Fold) {
			f.Failing(endpointOf(f, "s", "a"), "failure_rate", "because", epoch, none)
			f.Probed(endpointOf(f, "s", "a"), Passed, epoch, none) // it answers, but how?
			f.Readmit(endpointOf(f, "s", "a"), epoch, none)
		}, "a ready, b ready, c ready, d ready", "a b c d"},
		"failing and refusing": {func(f *Fold) {
			f.Failing(endpointOf(f, "s", "a"), "failure_rate", "because", epoch, none)
			f.Readmit(endpointOf(f, "s", "a"), epoch, none)
			f.Refused(endpointOf(f, "s", "a"), false, epoch, none)
		}, "a ejected, b ready, c ready, d ready", "b c d"},
		"half are out already": {func(f *Fold) {
			check(f, false, "a")
			for _, id := range []string{"b", "c"} {
				f.Failing(endpointOf(f, "s", id), "failure_rate", "because", epoch, none)
			}
			f.Refused(endpointOf(f, "s", "d"), false, epoch, none)
		}, "a down, b ejected, c ready, d ready", "c d"},
		"down, and its record is lost": {func(f *Fold) {
			check(f, false, "a")
			step(f, del("s", "a", 9))
		}, "b ready, c ready, d ready", "b c d"},
		"lost, and its check fails": {func(f *Fold) {
			step(f, del("s", "a", 9))
			check(f, false, "a")
		}, "a down, b ready, c ready, d ready", "b c d"},
	} {
		f := New()
		var all []registry.Change
		for i, id := range []string{"a", "b", "c", "d"} {
			all = append(all, leased("s", id, fmt.Sprintf("10.0.0.%d:80", i+1), int64(i+1), int64(i+1)))
		}
		f.Apply(registry.Update{Reset: true, StoreID: 7, Revision: 4, Changes: all}, epoch, none)
		tc.do(f)
		if got := states(f, "s"); got != tc.states {
			t.Errorf("%s: %s, want %s", name, got, tc.states)
		}
		var ids []string
		for _, m := range f.Eligible("s", epoch.Add(time.Hour)) {
			ids = append(ids, m.Endpoint.ID)
		}
		if got := strings.Join(ids, " "); got != tc.pool {
			t.Errorf("%s: %s serve, want %s", name, got, tc.pool)
		}
	}
}

// Who enters a pool gets its share little by little, unless all of them do.
func TestSlowStart(t *testing.T) {
	none := map[string]bool{}
	f := New()
	f.Apply(registry.Update{Reset: true, StoreID: 7, Revision: 1}, epoch, none)
	step(f, put("s", "a", "10.0.0.1:80", 2), put("s", "b", "10.0.0.2:80", 2, func(in *registry.Instance) { in.Weight = new(0) }))
	weights := func(at time.Duration) string {
		touched := map[string]bool{}
		f.Expire(epoch.Add(at), touched)
		var list []string
		for _, m := range f.Eligible("s", epoch.Add(at)) {
			list = append(list, fmt.Sprint(m.Endpoint.ID, m.Weight))
		}
		return fmt.Sprint(strings.Join(list, " "), " ", touched["s"])
	}
	if got := weights(time.Second); got != "a100 b0 true" {
		t.Errorf("all are new: %s", got)
	}
	if got := weights(DefaultSlowStart) + weights(DefaultSlowStart); got != "a100 b0 truea100 b0 false" {
		t.Errorf("over: %s", got)
	}
	if f.Members("s")[0].condition != nil {
		t.Error("something is kept of a slow start that is over")
	}
	at := func(d time.Duration, c registry.Change) {
		f.Apply(registry.Update{Revision: c.ModRevision, Changes: []registry.Change{c}}, epoch.Add(d), none)
	}
	at(time.Minute, put("s", "c", "10.0.0.3:80", 3, func(in *registry.Instance) { in.Weight = new(200) }))
	at(time.Minute, put("s", "d", "10.0.0.4:80", 4, func(in *registry.Instance) { in.Weight = new(1) }))
	for after, want := range map[time.Duration]string{0: "c20 d1", time.Second: "c20 d1", 5 * time.Second: "c100 d1", 9 * time.Second: "c180 d1", 10 * time.Second: "c200 d1"} {
		var list []string
		for _, m := range f.Eligible("s", epoch.Add(time.Minute+after)) {
			list = append(list, fmt.Sprint(m.Endpoint.ID, m.Weight))
		}
		if got := strings.Join(list, " "); got != "a100 b0 "+want {
			t.Errorf("after %v: %s, want %s", after, got, want)
		}
	}
	weights(2 * time.Minute)

	// Back from being down it starts slowly, too; changed in weight it does not.
	f.Checked(endpointOf(f, "s", "a"), false, "x", epoch, none)
	f.Checked(endpointOf(f, "s", "a"), true, "x", epoch.Add(2*time.Minute), none)
	at(2*time.Minute, put("s", "c", "10.0.0.3:80", 5))
	if got := weights(2 * time.Minute); got != "a10 b0 c100 d1 true" {
		t.Errorf("back: %s", got)
	}
	f.SetPolicy("s", Policy{SlowStart: time.Second}, epoch, none)
	if got := weights(2*time.Minute + time.Second); got != "a100 b0 c100 d1 true" {
		t.Errorf("one second: %s", got)
	}
	f.SetPolicy("s", Policy{SlowStart: -1}, epoch, none)
	at(3*time.Minute, put("s", "e", "10.0.0.5:80", 6))
	if got := weights(3 * time.Minute); got != "a100 b0 c100 d1 e100 false" {
		t.Errorf("off: %s", got)
	}
}

// An id whose lives end without notice waits before it serves again, the longer the more of them there were; one that says that
// it leaves never does.
func TestFlapping(t *testing.T) {
	none := map[string]bool{}
	now := epoch
	f := New()
	f.Apply(registry.Update{Reset: true, StoreID: 7, Revision: 1}, now, none)
	apply := func(c registry.Change) {
		f.Apply(registry.Update{Revision: c.ModRevision, Changes: []registry.Change{c}}, now, none)
	}
	revision := int64(1)
	life := func(id string) { // another life begins
		revision++
		apply(leased("s", id, "10.0.0."+id+":80", revision, revision, func(in *registry.Instance) { in.Incarnation = fmt.Sprintf("%04d", revision) }))
	}
	crash := func(id string) { // and ends, in one of three ways
		revision++
		switch revision % 3 {
		case 0: // the next one takes its key
			return
		case 1: // its lease is lost, it does not answer
			apply(del("s", id, revision))
			f.Probed(endpointOf(f, "s", id), Silent, now, none)
		case 2: // it refuses connections, its lease is lost
			f.Refused(endpointOf(f, "s", id), false, now, none)
			apply(del("s", id, revision))
			if e := endpointOf(f, "s", id); e != nil {
				f.Probed(e, Silent, now, none)
			}
		}
	}
	life("1")
	life("2")
	life("3")
	waits := func(id string) time.Duration {
		for d := time.Duration(0); d <= 2*time.Minute; d += time.Second {
			g := f
			g.Expire(now.Add(d), none)
			if g.Member(endpointOf(g, "s", id)).Verdict.State == Ready {
				now = now.Add(d)
				return d
			}
		}
		return -1
	}
	for i, want := range []time.Duration{0, 0, 1, 2, 4, 8, 16, 30, 30, 30} {
		now = now.Add(time.Second)
		crash("1")
		life("1")
		if got := waits("1"); got != want*time.Second {
			t.Fatalf("after %d crashes it waits for %v, want %vs", i+1, got, int(want))
		}
	}
	// That its record goes and comes back, while it waits, is not the end of a life.
	now = now.Add(time.Second)
	crash("1")
	life("1")
	for range 5 {
		e := endpointOf(f, "s", "1")
		revision++
		apply(del("s", "1", revision))
		if f.Member(e) == nil {
			t.Fatal("it is gone")
		}
		revision++
		apply(leased("s", "1", "10.0.0.1:80", revision, revision, func(in *registry.Instance) { in.Incarnation = e.Incarnation }))
	}
	if got := f.flaps[pool.Key{Service: "s", ID: "1"}].n; got != 11 {
		t.Errorf("%d lives have ended, want 11", got)
	}
	if got := waits("1"); got != 30*time.Second {
		t.Errorf("it waits for %v", got)
	}
	// A minute of peace, and it is as any other.
	now = now.Add(FlapWindow + time.Second)
	f.Expire(now, none)
	if len(f.flaps) != 0 {
		t.Errorf("remembered: %v", f.flaps)
	}
	crash("1")
	life("1")
	if got := waits("1"); got != 0 {
		t.Errorf("after a minute it waits for %v", got)
	}
	for range 10 { // another says each time that it leaves
		revision++
		incarnation := endpointOf(f, "s", "2").Incarnation
		apply(leased("s", "2", "10.0.0.2:80", revision, revision, state(registry.Draining), func(in *registry.Instance) { in.Incarnation = incarnation }))
		apply(del("s", "2", revision))
		life("2")
		if got := waits("2"); got != 0 {
			t.Fatalf("it waits for %v", got)
		}
	}
	// When all flap, all serve.
	for range 4 {
		for _, id := range []string{"1", "2", "3"} {
			revision += 3 - revision%3
			life(id)
		}
	}
	if got := len(f.Eligible("s", now)); got != 3 {
		t.Errorf("%d serve: %s", got, states(f, "s"))
	}
}
