package control

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/membership"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/memory"
)

// In a thousand states that chance makes, what is said to be chosen among is what is picked.
func TestChoiceIsThePickers(t *testing.T) {
	c := New(Options{Registry: (&memory.Store{}).NewClient(), Store: &route.Store{}}, config.Dynamic{})
	c.setDynamic(c.first)
	random := rand.New(rand.NewPCG(5, 6))
	c.update(&registry.Update{Reset: true, Revision: 1, StoreID: 1})
	now, revision := time.Now(), int64(1)
	seen := map[string]int{} // how many states are of each kind
	for state := range 1000 {
		id := fmt.Sprint(random.IntN(8))
		var e *pool.Endpoint
		for _, m := range c.fold.Members("web") {
			if m.Endpoint.ID == id {
				e = m.Endpoint
			}
		}
		revision++
		now = now.Add(time.Duration(random.IntN(3000)) * time.Millisecond)
		change := registry.Change{
			Kind: registry.KindInstance, Key: "/rota/services/web/" + id, Service: "web", ID: id, Lease: 7, CreateRevision: revision, ModRevision: revision,
		}
		switch what := random.IntN(10); {
		case what < 4 || e == nil:
			weight := []int{0, 1, 100, 5000}[random.IntN(4)]
			change.Instance = &registry.Instance{
				Service: "web", ID: id, Address: fmt.Sprintf("10.0.0.%d:80", random.IntN(9)+1), Weight: &weight,
				State: []registry.State{"", "", "", registry.Starting, registry.Draining}[random.IntN(5)],
			}
			c.update(&registry.Update{Revision: revision, StoreID: 1, Changes: []registry.Change{change}})
		case what == 4:
			change.Deleted = true
			c.update(&registry.Update{Revision: revision, StoreID: 1, Changes: []registry.Change{change}})
		case what == 5:
			c.fold.Refused(e, false, now, c.touched)
		case what == 6:
			c.fold.Checked(e, random.IntN(2) == 0, "why", now, c.touched)
		case what == 7:
			c.fold.Probed(e, membership.Outcome(random.IntN(3)), now, c.touched)
		case what == 8:
			c.fold.Failing(e, "failure_rate", "why", now, c.touched)
		case what == 9:
			said := []string{`{"drain":false}`, `{"drain":true}`, `{"weight":0}`, `{"weight":7}`}[random.IntN(4)]
			c.update(&registry.Update{Revision: revision, StoreID: 1, Changes: []registry.Change{{
				Kind: registry.KindPolicy, Key: "/rota/policies/web", Service: "web", Value: []byte(`{"overrides":{"` + id + `":` + said + `}}`), CreateRevision: 1, ModRevision: revision,
			}}})
		}
		if random.IntN(4) == 0 {
			c.fold.Expire(now, c.touched)
		}
		if !c.dirty() {
			continue
		}
		c.publish()
		p := c.Store.Load().Pool("web")
		picked := map[string]bool{}
		for range 4000 { // the lightest has a share of one in some ten thousand, so it is asked by name below
			if e := p.Pick(); e != nil {
				picked[e.ID] = true
			}
		}
		choice, weights := c.choice(p), c.weights("web")
		is := map[string]bool{"nobody is chosen": p.Len() == 0, "one is chosen": p.Len() == 1}
		if len(choice.Endpoints) != len(c.fold.Members("web")) {
			t.Fatalf("state %d: %d of %d instances are explained", state, len(choice.Endpoints), len(c.fold.Members("web")))
		}
		chosen := 0
		for _, x := range choice.Endpoints {
			id, weight := x.Endpoint.ID, weights[x.Endpoint]
			is[string(x.Verdict.State)] = true
			switch s, own := x.Verdict.State, x.Record.EffectiveWeight(); {
			case !x.Chosen && s == membership.Ready && weight.Of(own) == 0:
				is["weight 0"] = true
			case x.Chosen && (s == membership.Down || s == membership.Ejected):
				is["panic"] = true
			case x.Chosen && weight.Override.Weight != nil:
				is["another weight"] = true
			case x.Chosen && x.Weight < own:
				is["slow start"] = true
			}
			if x.Chosen {
				chosen++
				var others []*pool.Endpoint
				for _, m := range p.Weights {
					if m.Endpoint != x.Endpoint {
						others = append(others, m.Endpoint)
					}
				}
				if got := p.Pick(others...); got != x.Endpoint {
					t.Fatalf("state %d: %s is said to be chosen, and cannot be picked", state, id)
				}
			}
			if picked[id] && !x.Chosen {
				t.Fatalf("state %d: %s is picked, and said not to be", state, id)
			}
		}
		if chosen != p.Len() {
			t.Fatalf("state %d: %d are said to be chosen among, of %d", state, chosen, p.Len())
		}
		for kind := range is {
			if is[kind] {
				seen[kind]++
			}
		}
	}
	for _, kind := range []string{
		"ready", "starting", "draining", "suspect", "ejected", "down", "replaced", "weight 0", "another weight", "slow start", "panic", "nobody is chosen", "one is chosen",
	} {
		if seen[kind] < 20 {
			t.Errorf("chance made %d states of the kind %q: %v", seen[kind], kind, seen)
		}
	}
}
