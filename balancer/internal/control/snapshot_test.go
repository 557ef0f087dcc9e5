package control

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/memory"
)

// again is another controller over the same store, which it does not reach, and the same snapshot.
func (r *rig) again() *rig {
	r.t.Helper()
	next := &rig{t: r.t, data: r.data, client: r.data.NewClient(), store: &route.Store{}}
	o := r.control.Options
	o.Registry, o.Store = next.client, next.store
	next.client.Disconnect()
	next.control = New(o, config.Dynamic{})
	return next
}

func withSnapshot(t *testing.T) *rig {
	r := start(t, config.Dynamic{})
	r.control.Snapshot, r.control.Prefix = filepath.Join(t.TempDir(), "table.json"), registry.DefaultPrefix
	return r
}

// A start without the registry serves what was there last, as far as it answers. Who had left is not among it; who leaves
// meanwhile goes when the registry is back.
func TestSnapshot(t *testing.T) {
	r := withSnapshot(t)
	a, _ := listening(t, "127.0.0.1:0")
	b, kill := listening(t, "127.0.0.1:0")
	c, _ := listening(t, "127.0.0.1:0")
	r.data.PutAll(map[string][]byte{
		"/rota/services/web/a": []byte(a), "/rota/services/web/b": []byte(b), "/rota/services/web/left": []byte(c),
		"/rota/routes/x": []byte(`{"host":"h","path":"/x","service":"web"}`), "/rota/policies/web": []byte(`{"balance":"random"}`),
	})
	r.run()
	r.until("all", func(t *route.Table) bool { return size(t.Pool("web")) == 3 })
	r.data.Put("/rota/services/web/left", []byte(`{"address":"`+c+`","state":"draining"}`))
	r.until("two", func(t *route.Table) bool { return size(t.Pool("web")) == 2 })
	r.stop()
	kill()

	r = r.again().run()
	table := r.until("a table", func(t *route.Table) bool { return t.Generation > 0 })
	if name, n := match(table, "h", "/x"); name != "x" || n != 1 || table.Pool("web").Policy != "random" || table.Pool("web").Weights[0].Endpoint.ID != "a" {
		t.Errorf("route %q, %d endpoints, %+v", name, n, table.Pool("web"))
	}
	if s := r.doubted(1); !s.Synced || s.Connected || s.Instances != 2 {
		t.Errorf("%+v", s)
	}
	listening(t, b)
	r.until("the other one answers", func(t *route.Table) bool { return size(t.Pool("web")) == 2 })

	r.data.Delete("/rota/services/web/a")
	r.client.Reconnect()
	table = r.until("the registry is back", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	if e := table.Pool("web").Weights[0].Endpoint; e.ID != "b" {
		t.Errorf("%s serves", e.ID)
	}
	r.stop()

	// A store that is another one takes nothing away.
	r.data.Wipe()
	r = r.again().run()
	r.until("the snapshot", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	r.client.Reconnect()
	r.doubted(1)
	if name, n := match(r.store.Load(), "h", "/x"); name != "x" || n != 1 {
		t.Errorf("after a wiped store: route %q, %d endpoints", name, n)
	}
}

// While the registry is there the snapshot does not count, and is kept current.
func TestSnapshotUnused(t *testing.T) {
	r := withSnapshot(t)
	a, _ := listening(t, "127.0.0.1:0")
	r.data.Put("/rota/services/web/a", []byte(a))
	r.run()
	r.until("one", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) { // without a stop
		if _, err := os.Stat(r.control.Snapshot); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("never saved")
		}
	}
	r.stop()
	r.data.Delete("/rota/services/web/a")
	r.data.Put("/rota/services/web/b", []byte(a))
	next := r.again()
	next.client.Reconnect()
	next.run()
	table := next.until("a table", func(t *route.Table) bool { return t.Generation > 0 })
	if table.Pool("web").Weights[0].Endpoint.ID != "b" || size(table.Pool("web")) != 1 {
		t.Errorf("%+v", table.Pool("web"))
	}
}

// A damaged file is as none: two hundred times a bit or the end is missing.
func TestSnapshotDamaged(t *testing.T) {
	r := withSnapshot(t)
	a, _ := listening(t, "127.0.0.1:0")
	r.data.PutAll(map[string][]byte{"/rota/services/web/a": []byte(a), "/rota/services/web/b": []byte("10.0.0.1:80"), "/rota/routes/x": []byte(`{"host":"h","service":"web"}`)})
	r.run()
	r.until("all", func(t *route.Table) bool { return size(t.Pool("web")) == 2 })
	r.stop()
	path := r.control.Snapshot
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole := r.again().control
	if whole.restore("test"); !whole.synced || whole.fold.Instances() != 2 {
		t.Fatal("the file is not good to begin with")
	}
	random := rand.New(rand.NewPCG(3, 4))
	for i := range 200 {
		bad := bytes.Clone(good)
		if i%2 == 0 {
			bad[random.IntN(len(bad))] ^= 1 << random.IntN(8)
		} else {
			bad = bad[:random.IntN(len(bad))]
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		c := New(Options{Registry: (&memory.Store{}).NewClient(), Store: &route.Store{}, Snapshot: path, Prefix: registry.DefaultPrefix}, config.Dynamic{})
		if c.restore("test"); c.synced || c.fold.Instances() != 0 || len(c.etcd) != 0 {
			t.Fatalf("damage %d was not noticed", i)
		}
	}
}

// What cannot be saved is said, and tried again.
func TestSnapshotNotSaved(t *testing.T) {
	r := withSnapshot(t)
	dir := filepath.Dir(r.control.Snapshot)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.control.Snapshot = filepath.Join(file, "table.json") // in what is no directory
	r.data.Put("/rota/services/web/a", []byte("10.0.0.1:80"))
	r.run()
	r.until("one", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	r.control.do(t.Context(), func() { r.control.save(time.Now()) })
	for failing := false; !failing; time.Sleep(time.Millisecond) {
		r.control.do(t.Context(), func() {
			r.control.save(time.Now())
			failing = r.control.snapshot.failing && r.control.snapshot.unsaved
		})
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	r.stop()
	if _, err := os.Stat(r.control.Snapshot); err != nil {
		t.Error(err)
	}
}

// registered registers instances of the service web from a process of its own, and returns what ends their lease for good.
func (r *rig) registered(addresses map[string]string) (lose func()) {
	r.t.Helper()
	process := r.data.NewClient()
	for id, address := range addresses {
		if _, err := process.Register(context.Background(), registry.Instance{Service: "web", ID: id, Address: address}); err != nil {
			r.t.Fatal(err)
		}
	}
	return func() { process.Disconnect(); process.Expire() }
}

// A restart in the middle of a lease storm forgets nobody: what the registry does not have any more is probed and serves, as it
// would without the restart. Only what was true until a moment ago counts, and not who was removed by hand or has left.
func TestRestartInALeaseStorm(t *testing.T) {
	for name, stale := range map[string]bool{"soon": false, "much later": true} {
		t.Run(name, func(t *testing.T) {
			r := withSnapshot(t)
			alive, _ := listening(t, "127.0.0.1:0")
			dead, kill := listening(t, "127.0.0.1:0")
			byHand, _ := listening(t, "127.0.0.1:0")
			lose := r.registered(map[string]string{"a": alive, "b": dead})
			r.data.Put("/rota/services/web/c", []byte(byHand))
			r.run()
			r.until("all", func(t *route.Table) bool { return size(t.Pool("web")) == 3 })
			r.stop()
			if stale {
				long := time.Now().Add(-time.Hour)
				if err := os.Chtimes(r.control.Snapshot, long, long); err != nil {
					t.Fatal(err)
				}
			}
			kill()
			lose()
			r.data.Delete("/rota/services/web/c")
			next := r.again()
			next.client.Reconnect()
			next.run()
			if stale {
				table := next.until("a table", func(t *route.Table) bool { return t.Generation > 0 })
				if next.doubted(0); size(table.Pool("web")) > 0 {
					t.Error("what was true an hour ago serves")
				}
				return
			}
			table := next.until("who answers", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
			if e := table.Pool("web").Weights[0].Endpoint; e.ID != "a" {
				t.Errorf("%s serves", e.ID)
			}
			next.doubted(1)
		})
	}
}

// What a wiped store does not have is still known after a restart, until it is given up.
func TestOrphans(t *testing.T) {
	r := withSnapshot(t)
	a, _ := listening(t, "127.0.0.1:0")
	r.data.PutAll(map[string][]byte{
		"/rota/services/web/a": []byte(a), "/rota/routes/x": []byte(`{"host":"h","path":"/x","service":"web"}`), "/rota/policies/web": []byte(`{"balance":"random"}`),
	})
	r.run()
	in := func(t *route.Table) bool { name, n := match(t, "h", "/x"); return name == "x" && n == 1 }
	r.until("a route", in)
	r.data.Wipe()
	keys := []string{"/rota/policies/web", "/rota/routes/x"}
	orphans := func() []string {
		s, err := r.control.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.Orphans
	}
	for len(orphans()) == 0 {
		time.Sleep(time.Millisecond)
	}
	r.data.Put("/rota/services/web/a", []byte(a))
	for range 2 { // restarts, and not only the one that sees the change
		r.doubted(0)
		r.stop()
		next := r.again()
		next.client.Reconnect()
		r = next.run()
		table := r.until("the route is known", in)
		if got := orphans(); !slices.Equal(got, keys) || table.Pool("web").Policy != "random" {
			t.Fatalf("orphans %v, policy %s", got, table.Pool("web").Policy)
		}
	}
	if gone, err := r.control.GiveUpOrphans(t.Context(), "test"); err != nil || !slices.Equal(gone, keys) {
		t.Errorf("given up %v, %v", gone, err)
	}
	r.until("no route", func(t *route.Table) bool {
		name, _ := match(t, "h", "/x")
		return name == "" && t.Pool("web").Policy != "random"
	})
	if got := orphans(); len(got) != 0 {
		t.Errorf("orphans %v", got)
	}
	r.stop()
	next := r.again()
	next.client.Reconnect()
	r = next.run()
	table := r.until("a table", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	if name, _ := match(table, "h", "/x"); name != "" {
		t.Error("what was given up is back")
	}
}

// A start while etcd has an older state than the snapshot: who lives is not taken out for what was there long ago.
func TestStartOnAnOlderStore(t *testing.T) {
	r := withSnapshot(t)
	alive, _ := listening(t, "127.0.0.1:0")
	gone, kill := listening(t, "127.0.0.1:0")
	kill()
	r.registered(map[string]string{"a": alive})
	r.run()
	r.until("one", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	r.stop()
	r.data.Wipe()
	r.data.Put("/rota/services/web/a", []byte(gone)) // an older life
	next := r.again()
	next.client.Reconnect()
	next.run()
	table := next.until("a table", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	if e := table.Pool("web").Weights[0].Endpoint; e.Name != alive {
		t.Errorf("%s serves", e.Name)
	}
}
