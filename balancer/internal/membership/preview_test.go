package membership

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

// What a preview says is what comes to pass when the policy and the static instances are so; and asking changes nothing.
func TestPreview(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, none, now := New(), map[string]bool{}, epoch
		list := func(name string) (statics []registry.Instance) {
			for i := range rapid.IntRange(0, 3).Draw(t, name) {
				weight := rapid.SampledFrom([]int{0, 7, 100}).Draw(t, "weight")
				statics = append(statics, registry.Instance{Service: "s", Address: fmt.Sprintf("10.0.1.%d:80", i), Weight: &weight})
				statics[i].ID = statics[i].Address
			}
			return statics
		}
		policy := func(name string) Policy {
			p := Policy{
				Check: rapid.Bool().Draw(t, name+" check"), Panic: rapid.SampledFrom([]int{-1, 0, 20, 90}).Draw(t, name+" panic"),
				SlowStart: rapid.SampledFrom([]time.Duration{-1, 0, time.Minute}).Draw(t, name+" slow start"), Overrides: map[string]Override{},
			}
			for _, id := range []string{"0", "1", "2", "10.0.1.0:80"} {
				weight := rapid.SampledFrom([]int{0, 1, 50}).Draw(t, "override")
				switch rapid.IntRange(0, 3).Draw(t, "of "+id) {
				case 0:
					p.Overrides[id] = Override{Drain: true}
				case 1:
					p.Overrides[id] = Override{Weight: &weight}
				}
			}
			return p
		}
		uncheck := func() { // as control does for those without a check
			for _, m := range slices.Clone(f.Members("s")) {
				if !f.checked(m) {
					f.Unchecked(m.Endpoint, now, none)
				}
			}
		}
		f.SetPolicy("s", policy("first"), now, none)
		f.SetStatic(map[string][]registry.Instance{"s": list("listed")}, now, none)
		step(f, put("other", "0", "10.0.2.1:80", 1))
		for i := range rapid.IntRange(0, 5).Draw(t, "instances") {
			address := fmt.Sprintf("10.0.0.%d:80", rapid.IntRange(0, 5).Draw(t, "address"))
			step(f, put("s", fmt.Sprint(i), address, int64(i+2), func(in *registry.Instance) {
				in.State = rapid.SampledFrom([]registry.State{"", registry.Starting, registry.Draining, ""}).Draw(t, "state")
				if rapid.Bool().Draw(t, "checked") {
					in.Check = &registry.Check{}
				}
			}))
		}
		uncheck()
		for _, m := range slices.Clone(f.Members("s")) {
			now = now.Add(time.Second)
			switch e := m.Endpoint; rapid.IntRange(0, 4).Draw(t, "condition") {
			case 0:
				f.Refused(e, false, now, none)
			case 1:
				f.Failing(e, "failures_in_a_row", "it fails", now, none)
			case 2:
				if f.checked(m) {
					f.Checked(e, false, "it is down", now, none)
				}
			case 3:
				if f.checked(m) {
					f.Checked(e, false, "it is down", now, none)
					f.Checked(e, true, "", now, none)
				}
			}
		}
		shown := func(list []pool.Member) (out []string) {
			for _, m := range list {
				out = append(out, fmt.Sprintf("%s*%d", m.Endpoint.ID, m.Weight))
			}
			return out
		}
		before := states(f, "s")
		wasEligible, wasPanic := shown(f.Eligible("s", now)), f.panics["s"]
		draft, statics := policy("draft"), list("drafted")
		draft.SlowStart = -1 // none begins, which a preview does not look at
		members, of := f.Preview("s", draft, statics, now)
		predicted := shown(members)
		if after := states(f, "s"); after != before || f.panics["s"] != wasPanic || !slices.Equal(shown(f.Eligible("s", now)), wasEligible) {
			t.Fatalf("the preview has made %s of %s", after, before)
		}
		f.SetPolicy("s", draft, now, none)
		f.SetStatic(map[string][]registry.Instance{"s": statics}, now, none)
		uncheck()
		if got := shown(f.Eligible("s", now)); !slices.Equal(got, predicted) || len(f.Members("s")) != of {
			t.Fatalf("predicted was %v of %d, it is %v of %d", predicted, of, got, len(f.Members("s")))
		}
	})
}
