package membership

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

func put(service, id, address string, revision int64, change ...func(*registry.Instance)) registry.Change {
	in := &registry.Instance{Service: service, ID: id, Address: address}
	for _, f := range change {
		f(in)
	}
	return registry.Change{
		Kind: registry.KindInstance, Key: "/rota/services/" + service + "/" + id, Service: service, ID: id,
		Instance: in, CreateRevision: revision, ModRevision: revision,
	}
}

func del(service, id string, revision int64) registry.Change {
	return registry.Change{
		Kind: registry.KindInstance, Key: "/rota/services/" + service + "/" + id, Service: service, ID: id,
		Deleted: true, ModRevision: revision,
	}
}

func state(s registry.State) func(*registry.Instance) {
	return func(in *registry.Instance) { in.State = s }
}

// epoch is when everything happens where time does not count.
var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// step applies changes as one update and returns what was touched.
func step(f *Fold, changes ...registry.Change) map[string]bool {
	touched := map[string]bool{}
	revision := f.Revision()
	for _, c := range changes {
		revision = max(revision, c.ModRevision)
	}
	f.Apply(registry.Update{Revision: revision, Changes: changes}, epoch, touched)
	return touched
}

func eligible(f *Fold, service string) string {
	var ids []string
	for _, m := range f.Eligible(service, epoch) {
		ids = append(ids, fmt.Sprintf("%s=%s*%d", m.Endpoint.ID, m.Endpoint.Name, m.Weight))
	}
	return strings.Join(ids, " ")
}

func TestLifeOfAnInstance(t *testing.T) {
	f := New()
	touched := step(f, put("cart", "a", "10.0.0.1:80", 1, state(registry.Starting)))
	if !touched["cart"] || eligible(f, "cart") != "" {
		t.Errorf("starting: touched %v, eligible %q", touched, eligible(f, "cart"))
	}
	step(f, put("cart", "a", "10.0.0.1:80", 2))
	if got := eligible(f, "cart"); got != "a=10.0.0.1:80*100" {
		t.Errorf("ready: %q", got)
	}
	e := f.Members("cart")[0].Endpoint
	step(f, put("cart", "a", "10.0.0.1:80", 3, func(in *registry.Instance) { in.Weight = new(7) }))
	if got := eligible(f, "cart"); got != "a=10.0.0.1:80*7" || f.Members("cart")[0].Endpoint != e {
		t.Errorf("weight changed: %q, same endpoint: %v", got, f.Members("cart")[0].Endpoint == e)
	}
	step(f, put("cart", "a", "10.0.0.1:80", 4, state(registry.Draining)))
	m := f.Members("cart")[0]
	if eligible(f, "cart") != "" || m.Verdict.State != Draining || m.Verdict.Revision != 4 || e.Retired() {
		t.Errorf("draining: %+v", m.Verdict)
	}
	step(f, del("cart", "a", 5))
	if f.Has("cart") || !e.Retired() || f.Instances() != 0 {
		t.Error("deleted, but something is left")
	}
}

// A new incarnation or another address is another endpoint; the old one is retired.
func TestIdentity(t *testing.T) {
	f := New()
	step(f, put("s", "a", "10.0.0.1:80", 1, incarnation("1")))
	first := f.Members("s")[0].Endpoint
	step(f, put("s", "a", "10.0.0.1:80", 2, incarnation("2")))
	second := f.Members("s")[0].Endpoint
	step(f, put("s", "a", "10.0.0.2:80", 3, incarnation("2")))
	third := f.Members("s")[0].Endpoint
	if first == second || second == third || !first.Retired() || !second.Retired() || third.Retired() || f.Instances() != 1 {
		t.Error("identity is not (service, id, incarnation, address)")
	}
}

// Two records of one address count once: the younger one, until it goes.
func TestReplaced(t *testing.T) {
	f := New()
	step(f, put("s", "old", "10.0.0.1:80", 1), put("s", "other", "10.0.0.9:80", 1))
	step(f, put("s", "new", "10.0.0.1:80", 2))
	if got := eligible(f, "s"); got != "new=10.0.0.1:80*100 other=10.0.0.9:80*100" {
		t.Errorf("eligible %q", got)
	}
	if m := f.Members("s")[1]; m.Endpoint.ID != "old" || m.Verdict.State != Replaced || !strings.Contains(m.Verdict.Reason, "new") {
		t.Errorf("verdict %+v", m.Verdict)
	}
	step(f, del("s", "new", 3))
	if got := eligible(f, "s"); got != "old=10.0.0.1:80*100 other=10.0.0.9:80*100" {
		t.Errorf("after the younger one left: %q", got)
	}
}

// What cannot be used is set aside with a reason and disturbs nothing, not even its own last good record.
func TestQuarantine(t *testing.T) {
	f := New()
	step(f, put("s", "good", "10.0.0.1:80", 1), put("s", "turned", "10.0.0.2:80", 1))
	bad := put("s", "turned", "", 2)
	bad.Instance, bad.Err, bad.Value = nil, errors.New("not JSON"), []byte(strings.Repeat("x", 1000))
	touched := step(f, bad,
		put("s", "linklocal", "169.254.169.254:80", 2), put("s", "mapped", "[::ffff:169.254.169.254]:80", 2),
		put("s", "any", "0.0.0.0:80", 2), put("s", "name", "db.internal:80", 2), put("s", "multi", "224.0.0.1:80", 2),
		put("s", "v6", "[fd00:ec2::254]:80", 2),
		put("s", "grpc", "10.0.0.3:80", 2, func(in *registry.Instance) { in.Protocol = registry.GRPC }))
	if len(touched) != 0 || eligible(f, "s") != "good=10.0.0.1:80*100 turned=10.0.0.2:80*100" {
		t.Errorf("touched %v, eligible %q", touched, eligible(f, "s"))
	}
	if n := f.QuarantinedCount(); n != 8 {
		t.Errorf("%d set aside, want 8: %+v", n, f.Quarantined())
	}
	for _, q := range f.Quarantined() {
		if q.Reason == "" || q.Service != "s" || len(q.Value) > 200 || q.Serving != strings.HasSuffix(q.Key, "/turned") {
			t.Errorf("%+v", q)
		}
	}
	step(f, put("s", "turned", "10.0.0.2:81", 3), put("s", "name", "10.0.0.4:80", 3), del("s", "any", 3))
	if n := f.QuarantinedCount(); n != 5 {
		t.Errorf("%d still set aside, want 5", n)
	}
	if got := eligible(f, "s"); got != "good=10.0.0.1:80*100 name=10.0.0.4:80*100 turned=10.0.0.2:81*100" {
		t.Errorf("eligible %q", got)
	}
}

// An update with an error changes nothing, and localhost is the one name that is understood.
func TestStaleAndLocalhost(t *testing.T) {
	f := New()
	step(f, put("s", "a", "localhost:80", 1))
	f.Apply(registry.Update{Err: errors.New("gone")}, epoch, map[string]bool{})
	if got := eligible(f, "s"); got != "a=127.0.0.1:80*100" {
		t.Errorf("eligible %q", got)
	}
}

func TestStatic(t *testing.T) {
	f := New()
	in := func(a string) registry.Instance { return registry.Instance{Service: "s", ID: a, Address: a} }
	touched := map[string]bool{}
	if err := f.SetStatic(map[string][]registry.Instance{"s": {in("10.0.0.1:80"), in("10.0.0.2:80")}}, epoch, touched); err != nil || !touched["s"] {
		t.Fatal(err, touched)
	}
	step(f, put("s", "a", "10.0.0.3:80", 1))
	kept, gone := f.Members("s")[0].Endpoint, f.Members("s")[1].Endpoint
	err := f.SetStatic(map[string][]registry.Instance{"s": {in("10.0.0.1:80"), in("169.254.1.1:80")}}, epoch, touched)
	if err == nil || !strings.Contains(err.Error(), "169.254.1.1") {
		t.Errorf("error %v", err)
	}
	if got := eligible(f, "s"); got != "10.0.0.1:80=10.0.0.1:80*100 a=10.0.0.3:80*100" {
		t.Errorf("eligible %q", got)
	}
	if f.Members("s")[0].Endpoint != kept || kept.Retired() || !gone.Retired() {
		t.Error("a reload must keep what it keeps and retire what it drops")
	}
}

// Folding changes one by one and folding the result as a Reset agree, endpoints included, whatever happens in between.
func TestFoldEqualsReset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, model := New(), map[string]registry.Change{}
		revision := int64(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			revision++
			service := rapid.SampledFrom([]string{"s", "t"}).Draw(t, "service")
			id := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "id")
			key := service + "/" + id
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1, 2:
				step(f, del(service, id, revision))
				delete(model, key)
			case 3: // begin again
				var all []registry.Change
				for _, c := range model {
					all = append(all, c)
				}
				f.Apply(registry.Update{Reset: true, Revision: revision, Changes: all}, epoch, map[string]bool{})
			default:
				c := put(service, id, fmt.Sprintf("10.0.0.%d:80", rapid.IntRange(1, 3).Draw(t, "address")), revision,
					state(rapid.SampledFrom([]registry.State{"", registry.Draining, registry.Starting}).Draw(t, "state")))
				if old, ok := model[key]; ok {
					c.CreateRevision = old.CreateRevision
				}
				step(f, c)
				model[key] = c
			}
		}
		fresh := New()
		var all []registry.Change
		for _, c := range model {
			all = append(all, c)
		}
		touched := map[string]bool{}
		fresh.Apply(registry.Update{Reset: true, Revision: revision, Changes: all}, epoch, touched)
		for _, service := range []string{"s", "t"} {
			a, b := f.Eligible(service, epoch), fresh.Eligible(service, epoch)
			same := slices.EqualFunc(a, b, func(x, y pool.Member) bool { return x.Endpoint.Key == y.Endpoint.Key && x.Weight == y.Weight })
			if !same {
				t.Fatalf("%s: folded %q, from scratch %q", service, eligible(f, service), eligible(fresh, service))
			}
			seen := map[string]bool{}
			for _, m := range a {
				if seen[m.Endpoint.Name] {
					t.Fatalf("%s is listed twice", m.Endpoint.Name)
				}
				seen[m.Endpoint.Name] = true
				if m.Endpoint.Retired() {
					t.Fatalf("%s is eligible and retired", m.Endpoint.Name)
				}
			}
		}
		if f.Instances() != fresh.Instances() || f.Instances() != len(model) {
			t.Fatalf("%d instances folded, %d from scratch, %d in truth", f.Instances(), fresh.Instances(), len(model))
		}
	})
}

func BenchmarkChange(b *testing.B) {
	for _, services := range []int{20, 2000} {
		b.Run(fmt.Sprint(services*50, "instances"), func(b *testing.B) {
			f := New()
			for s := range services {
				for i := range 50 {
					step(f, put(fmt.Sprint("s", s), fmt.Sprint(i), fmt.Sprintf("10.%d.%d.%d:80", s>>8, s&255, i), 1))
				}
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				service := fmt.Sprint("s", n%services)
				step(f, put(service, "7", fmt.Sprintf("10.%d.%d.7:80", n%services>>8, n%services&255), int64(n)))
				f.Eligible(service, epoch)
			}
		})
	}
}
