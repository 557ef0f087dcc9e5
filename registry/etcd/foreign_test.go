package registryetcd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
	"github.com/rota-lb/rota/registry/registrytest"
)

// foreign are prefixes before, behind and without a slash beside ours.
func foreign() []codec.Foreign {
	return []codec.Foreign{
		{Prefix: "/services"}, {Prefix: "/microservices"}, {Prefix: "kitex/registry-etcd", Format: codec.Kitex},
		{Prefix: "user.rpc", Service: "user"}, {Prefix: "/skydns/local/cluster"}, {Prefix: "/discovery"},
	}
}

func withForeign(o *Options) { o.Foreign = foreign() }

// A store in which every format stands beside ours.
var mixed = map[string]struct{ value, want string }{
	"/rota/services/cart/own":             {"10.0.0.1:80", "cart/own 10.0.0.1:80"},
	"/services/cart/node1:cart:80":        {"10.0.0.2:80", "cart/services:node1:cart:80 10.0.0.2:80"},
	"/microservices/cart/7":               {`{"id":"7","name":"cart","endpoints":["grpc://10.0.0.3:90","http://10.0.0.3:80"]}`, "cart/microservices:7 10.0.0.3:80"},
	"kitex/registry-etcd/pay/10.0.0.4:88": {`{"network":"tcp","address":"10.0.0.4:88","weight":10,"tags":null}`, "pay/kitex:registry-etcd:10.0.0.4:88 10.0.0.4:88"},
	"user.rpc/7587862116842342415":        {"10.0.0.5:80", "user/user.rpc:7587862116842342415 10.0.0.5:80"},
	"/skydns/local/cluster/cart/x":        {`{"host":"10.0.0.6","port":80}`, "cart/skydns:local:cluster:x 10.0.0.6:80"},
	"/discovery/greeter/e1":               {`{"Op":0,"Addr":"10.0.0.7:80","Metadata":null}`, "greeter/discovery:e1 10.0.0.7:80"},
	"/services/cart/bad":                  {"not an address", "cart/services:bad refused"},
	"kitex/registry-etcd/10.0.0.4:88":     {"{}", "/ refused"},
	"/rota/services/cart/broken":          {"{", "cart/broken refused"},
	"/elsewhere/services/cart/no":         {"10.0.0.8:80", ""},
	"/services2/cart/no":                  {"10.0.0.8:80", ""},
	"user.rpc2/7587862116842342415":       {"10.0.0.8:80", ""},
}

// shown is how the table above writes what a watch says of a key.
func shown(ch registry.Change) string {
	if ch.Err != nil {
		return ch.Service + "/" + ch.ID + " refused"
	}
	return ch.Service + "/" + ch.ID + " " + ch.Instance.Address
}

func waitShown(t *testing.T, w *registrytest.Watcher, want map[string]string) {
	t.Helper()
	w.Wait(t, fmt.Sprint("the content to be ", want), func(view map[string]registry.Change) bool {
		got := map[string]string{}
		for key, ch := range view {
			got[key] = shown(ch)
		}
		return fmt.Sprint(got) == fmt.Sprint(want) // maps print sorted
	})
}

// All formats of a mixed store, listed and watched, in every scope; under leases, deleted, cut off, compacted.
func TestForeign(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	c := dial(t, []string{relay.Addr()}, withForeign, func(o *Options) { o.PageSize = 2 })
	before := registrytest.Watch(t, c, registry.Scope{}) // what it will see happens; the others list it
	before.WaitReset(t)
	lease, err := s.Client().Grant(limit(t), 60)
	if err != nil {
		t.Fatal(err)
	}
	all, cart := map[string]string{}, map[string]string{}
	for key, m := range mixed {
		if _, err := s.Client().Put(limit(t), key, m.value, clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
		if m.want != "" {
			all[key] = m.want
		}
		if strings.HasPrefix(m.want, "cart/") {
			cart[key] = m.want
		}
	}
	watches := []struct {
		w    *registrytest.Watcher
		want map[string]string
	}{
		{before, all},
		{registrytest.Watch(t, c, registry.Scope{}), all},
		{registrytest.Watch(t, c, registry.Scope{Instances: true}), all},
		{registrytest.Watch(t, c, registry.Scope{Service: "cart"}), cart},
	}
	wait := func(what string) {
		t.Helper()
		t.Log(what)
		for _, w := range watches {
			waitShown(t, w.w, w.want)
			w.w.Wait(t, "their leases", func(view map[string]registry.Change) bool {
				for _, ch := range view {
					if ch.Lease != int64(lease.ID) || ch.CreateRevision == 0 {
						return false
					}
				}
				return true
			})
		}
	}
	wait("put")

	gone := []string{"/microservices/cart/7", "kitex/registry-etcd/10.0.0.4:88", "/services/cart/bad", "user.rpc/7587862116842342415"}
	for i, key := range gone {
		relay.Cut()
		if _, err := s.Client().Delete(limit(t), key); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			compact(t, s)
		}
		delete(all, key)
		delete(cart, key)
	}
	wait("deleted, and the link cut")

	relay.Refuse()
	before.WaitErr(t)
	if _, err := s.Client().Put(limit(t), "/services/cart/late", "10.0.0.9:80", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	compact(t, s)
	relay.Accept()
	all["/services/cart/late"] = "cart/services:late 10.0.0.9:80"
	cart["/services/cart/late"] = all["/services/cart/late"]
	wait("away, and compacted")

	if _, err := s.Client().Revoke(limit(t), lease.ID); err != nil {
		t.Fatal(err)
	}
	clear(all)
	clear(cart)
	wait("leases gone")
	if left, err := c.LeaseLeft(limit(t), int64(lease.ID)); err != nil || left > 0 {
		t.Errorf("the lease of the foreign records is alive: %v, %v", left, err)
	}
}

// A revision that touches several prefixes is one update, and updates come in the order of revisions, whatever happens to
// the link. What the reader ends up with is what etcd holds.
func TestForeignConverges(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	c := dial(t, []string{relay.Addr()}, withForeign, func(o *Options) {
		o.ProgressEvery, o.AuditEvery = 50*time.Millisecond, 100*time.Millisecond
	})
	var mu sync.Mutex
	touched := map[int64]int{} // keys by revision, as updates told them
	w := registrytest.Watch(t, tap{c, func(u registry.Update) {
		mu.Lock()
		defer mu.Unlock()
		in := map[int64]int{}
		for _, ch := range u.Changes {
			in[ch.ModRevision]++
		}
		for rev, n := range in {
			if !u.Reset && touched[rev] != 0 {
				t.Errorf("revision %d came in two updates", rev)
			}
			if !u.Reset {
				touched[rev] = n
			}
		}
	}}, registry.Scope{})
	w.WaitReset(t)

	rounds := 300
	if testing.Short() {
		rounds = 60
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	prefixes := []string{"/rota/services/", "/services/", "/microservices/", "/skydns/local/cluster/"}
	held := map[string]string{}
	wrote := map[int64]int{}
	for i := range rounds {
		ops := map[string]clientv3.Op{}
		for range 1 + rng.IntN(4) {
			key := prefixes[rng.IntN(len(prefixes))] + "cart/" + fmt.Sprint(rng.IntN(10))
			address := fmt.Sprintf("10.0.0.%d:80", i%200+1)
			value := address
			switch {
			case strings.HasPrefix(key, "/micro"):
				value = `{"endpoints":["http://` + address + `"]}`
			case strings.HasPrefix(key, "/sky"):
				value = fmt.Sprintf(`{"host":"10.0.0.%d","port":80}`, i%200+1)
			}
			if _, there := held[key]; there && rng.IntN(3) == 0 {
				ops[key] = clientv3.OpDelete(key)
				continue
			}
			ops[key] = clientv3.OpPut(key, value)
		}
		var list []clientv3.Op
		for key, op := range ops {
			list = append(list, op)
			if op.IsDelete() {
				delete(held, key)
			} else {
				held[key] = fmt.Sprintf("10.0.0.%d:80", i%200+1)
			}
		}
		resp, err := s.Client().Txn(limit(t)).Then(list...).Commit()
		if err != nil {
			t.Fatal(err)
		}
		wrote[resp.Header.Revision] = len(list)
		if rng.IntN(40) == 0 {
			relay.Cut()
		}
	}
	waitView(t, w, held)
	mu.Lock()
	defer mu.Unlock()
	for rev, n := range touched {
		if wrote[rev] != n {
			t.Errorf("revision %d: %d keys told, %d written", rev, n, wrote[rev])
		}
	}
	t.Logf("%d of %d revisions were told one by one; %+v", len(touched), rounds, c.Stats())
	if len(touched) < rounds/2 {
		t.Errorf("only %d of %d revisions were told, the rest by lists", len(touched), rounds)
	}
}

// tap is a registry whose updates are seen by somebody else first.
type tap struct {
	registry.Registry
	see func(registry.Update)
}

func (r tap) Watch(ctx context.Context, scope registry.Scope, apply func(registry.Update)) error {
	return r.Registry.Watch(ctx, scope, func(u registry.Update) { r.see(u); apply(u) })
}

func TestForeignOptions(t *testing.T) {
	for name, list := range map[string][]codec.Foreign{
		"of our prefix":  {{Prefix: "/rota/services"}},
		"above ours":     {{Prefix: "/rota"}},
		"twice":          {{Prefix: "/a"}, {Prefix: "a"}},
		"in one another": {{Prefix: "/a/b"}, {Prefix: "/a"}},
		"unknown format": {{Prefix: "/a", Format: "consul"}},
		"no prefix":      {{}},
	} {
		if _, err := connect(Options{Foreign: list}, noEnv); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	c := dial(t, []string{"127.0.0.1:1"}, withForeign)
	if got := c.prefixes(registry.Scope{Service: "cart"}); slices.Contains(got, "user.rpc/") || !slices.IsSorted(got) || len(got) != 6 {
		t.Errorf("prefixes of one service: %q", got)
	}
}
