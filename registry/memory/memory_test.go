package memory_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/memory"
	"github.com/rota-lb/rota/registry/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	for name, keys := range map[string]registry.Keys{"default": {}, "prefix": {Prefix: "/org.example/rota_2"}} {
		t.Run(name, func(t *testing.T) {
			store := &memory.Store{Keys: keys}
			client := func(r registry.Registry) *memory.Client { return r.(*memory.Client) }
			registrytest.Run(t, registrytest.Harness{
				Keys:         keys,
				NewClient:    func(testing.TB) registry.Registry { return store.NewClient() },
				Put:          func(_ testing.TB, key string, value []byte) { store.Put(key, value) },
				PutAll:       func(_ testing.TB, values map[string][]byte) { store.PutAll(values) },
				Delete:       func(_ testing.TB, key string) { store.Delete(key) },
				RevokeLeases: func(_ testing.TB, r registry.Registry) { client(r).Expire() },
				Disconnect:   func(_ testing.TB, r registry.Registry) { client(r).Disconnect() },
				Reconnect:    func(_ testing.TB, r registry.Registry) { client(r).Reconnect() },
			})
		})
	}
}

// TestCrash follows a process that is killed: its record stays until its lease ends, and does not come back.
func TestCrash(t *testing.T) {
	var store memory.Store
	c := store.NewClient()
	w := registrytest.Watch(t, store.NewClient(), registry.Scope{Service: "cart"})
	if _, err := c.Register(t.Context(), registry.Instance{Service: "cart", ID: "a", Address: "10.0.0.7:1"}); err != nil {
		t.Fatal(err)
	}
	has := func(n int) func(map[string]registry.Change) bool {
		return func(view map[string]registry.Change) bool { return len(view) == n }
	}
	w.Wait(t, "the record", has(1))
	c.Crash()
	c.Reconnect() // the dead stay dead
	if _, ok := store.Get("/rota/services/cart/a"); !ok {
		t.Fatal("the record went before its lease")
	}
	before := store.Revision()
	c.Expire()
	w.Wait(t, "nothing", has(0))
	if got := store.Revision(); got != before+1 {
		t.Errorf("revision %d after the end of a lease at %d: want one revision", got, before)
	}
}

func TestExpireIsOneRevision(t *testing.T) {
	var store memory.Store
	c := store.NewClient()
	for _, id := range []string{"a", "b", "c"} {
		if _, err := c.Register(t.Context(), registry.Instance{Service: "cart", ID: id, Address: "10.0.0.7:1"}); err != nil {
			t.Fatal(err)
		}
	}
	c.Crash()
	before := store.Revision()
	c.Expire()
	c.Expire() // there is none any more
	if got := store.Revision(); got != before+1 {
		t.Errorf("revision went from %d to %d", before, got)
	}
}

func TestWipe(t *testing.T) {
	var store memory.Store
	away := store.NewClient()
	for id, c := range map[string]*memory.Client{"a": store.NewClient(), "b": away} {
		if _, err := c.Register(t.Context(), registry.Instance{Service: "cart", ID: id, Address: "10.0.0.7:1"}); err != nil {
			t.Fatal(err)
		}
	}
	store.Put("/rota/routes/cart", []byte("{}"))
	w := registrytest.Watch(t, store.NewClient(), registry.Scope{})
	w.Wait(t, "all", func(view map[string]registry.Change) bool { return len(view) == 3 })
	away.Disconnect()
	store.Wipe()
	w.Wait(t, "what is put again", func(view map[string]registry.Change) bool {
		_, back := view["/rota/services/cart/a"]
		return len(view) == 1 && back
	})
	away.Reconnect()
	w.Wait(t, "the other", func(view map[string]registry.Change) bool { return len(view) == 2 })
}

// TestSameIncarnationTwice registers one record twice, which is a mistake that must not go on for ever.
func TestSameIncarnationTwice(t *testing.T) {
	var store memory.Store
	in := registry.Instance{Service: "cart", ID: "a", Address: "10.0.0.7:1", Incarnation: "x"}
	first, err := store.NewClient().Register(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	in.Address = "10.0.0.7:2"
	second, err := store.NewClient().Register(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if first.State() != registry.Superseded || second.State() != registry.Registered {
		t.Errorf("states %d and %d", first.State(), second.State())
	}
}

// TestLeaveInVirtualTime shows that a registration whose context ended gives up after two seconds, and no wait is real.
func TestLeaveInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var store memory.Store
		c := store.NewClient()
		ctx, cancel := context.WithCancel(t.Context())
		reg, err := c.Register(ctx, registry.Instance{Service: "cart", ID: "a", Address: "10.0.0.7:1"})
		if err != nil {
			t.Fatal(err)
		}
		c.Disconnect()
		begun := time.Now()
		cancel()
		for reg.State() != registry.Left {
			<-reg.Changed()
		}
		if d := time.Since(begun); d != 2*time.Second {
			t.Errorf("it took %v", d)
		}
		if !errors.Is(reg.Err(), registry.ErrLeft) || !errors.Is(reg.Err(), memory.ErrDisconnected) {
			t.Errorf("error %v", reg.Err())
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	var store memory.Store
	w := registrytest.Watch(t, store.NewClient(), registry.Scope{Instances: true})
	clients := []*memory.Client{store.NewClient(), store.NewClient(), store.NewClient()}
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			c := clients[i%len(clients)]
			reg, err := c.Register(t.Context(), registry.Instance{Service: "cart", ID: fmt.Sprint(i % 20), Address: "10.0.0.7:1"})
			if err != nil {
				t.Error(err)
				return
			}
			switch i % 5 {
			case 0:
				c.Expire()
			case 1:
				c.Disconnect()
				c.Reconnect()
			case 2:
				store.Delete(fmt.Sprintf("/rota/services/cart/%d", i%20))
			}
			err = reg.Update(t.Context(), func(in *registry.Instance) { in.Weight = new(i) })
			if err != nil && !errors.Is(err, registry.ErrSuperseded) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, c := range clients {
		c.Reconnect()
	}
	w.Wait(t, "one winner of each id", func(view map[string]registry.Change) bool { return len(view) == 20 })
}

// A 100,000th registration costs what the first did.
func BenchmarkRegister(b *testing.B) {
	var store memory.Store
	c := store.NewClient()
	i := 0
	for b.Loop() {
		i++
		if _, err := c.Register(b.Context(), registry.Instance{Service: "cart", ID: fmt.Sprint(i), Address: "10.0.0.7:1"}); err != nil {
			b.Fatal(err)
		}
	}
}
