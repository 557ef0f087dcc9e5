package control

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
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
