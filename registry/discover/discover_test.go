package discover_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/discover"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

// TestLive follows a service as the registry changes: what is put is used, what drains or goes is not.
func TestLive(t *testing.T) {
	r := start(t, discover.Options{Policy: "round_robin"})
	web := r.web()
	a, b := r.serve("a"), r.serve("b")
	want := func(members string) {
		t.Helper()
		r.members(members)
		seen := map[string]bool{}
		for range 10 {
			seen[r.get(web, "http://cart/items")] = true
		}
		for _, id := range []string{"a", "b", "c"} {
			if in := strings.Contains(members, id); in != seen[id] {
				t.Errorf("members %s: asked %v", members, seen)
			}
		}
	}
	r.put("a", a)
	want("a")
	r.put("b", b)
	want("a b")
	r.put("a", a, state(registry.Draining))
	want("b")
	r.put("c", r.serve("c"), state(registry.Starting))
	r.put("a", a)
	want("a b")
	r.put("c", r.serve("c"))
	want("a b c")
	r.delete("b")
	want("a c")
	r.put("c", r.serve("c"), weight(0))
	want("a")
	r.put("c", r.serve("c")) // at another address
	want("a c")
	r.idle()
}

// TestWeights has the shares that weights say.
func TestWeights(t *testing.T) {
	for _, policy := range []string{"", "round_robin"} {
		r := start(t, discover.Options{Policy: policy})
		r.put("a", r.serve("a"), weight(10))
		r.put("b", r.serve("b"), weight(30))
		r.put("c", r.serve("c"), weight(0))
		r.members("a b")
		web, seen := r.web(), map[string]int{}
		for range 200 {
			seen[r.get(web, "http://cart/")]++
		}
		if n := seen["a"]; n < 48 || n > 52 || n+seen["b"] != 200 {
			t.Errorf("policy %q: %v of weights 10 and 30", policy, seen)
		}
		r.idle()
	}
}

// TestStoreAway has the store go: the last that is known serves on, and changes hold when it is back.
func TestStoreAway(t *testing.T) {
	r := start(t, discover.Options{})
	web := r.web()
	r.put("a", r.serve("a"))
	r.members("a")
	r.client.Disconnect()
	r.put("b", r.serve("b"))
	r.delete("a")
	for range 5 {
		if got := r.get(web, "http://cart/"); got != "a" {
			t.Errorf("%q answered while the store was away", got)
		}
	}
	r.client.Reconnect()
	r.members("b")
	if got := r.get(web, "http://cart/"); got != "b" {
		t.Errorf("%q answered", got)
	}
	r.store.Wipe()
	r.put("other", refusing, state(registry.Starting)) // is told after the wipe
	r.until("the wipe", func(v *discover.View) bool {
		_, err := v.Speaking(registry.TCP)
		return strings.Contains(err.Error(), "starting")
	})
	if got := r.get(web, "http://cart/"); got != "a" && got != "b" { // both were lost just now
		t.Errorf("%q answered after the store was wiped", got)
	}
}

// TestLast has the last instances go without notice: they are kept until there is another.
func TestLast(t *testing.T) {
	r := start(t, discover.Options{})
	web := r.web()
	a, b := r.serve("a"), r.serve("b")
	r.put("a", a)
	r.put("b", b)
	r.members("a b")
	r.delete("a")
	r.members("b")
	r.delete("b")
	r.members("a b") // lost together
	r.put("c", r.serve("c"), state(registry.Draining))
	if got := r.get(web, "http://cart/"); got != "a" && got != "b" {
		t.Errorf("%q answered", got)
	}
	before := r.d.View("cart").Members[0].Endpoint
	r.put("a", a) // is back: the same endpoint
	r.members("a")
	if after := r.d.View("cart").Members[0].Endpoint; after != before {
		t.Error("who comes back is another endpoint")
	}
	r.put("a", a, state(registry.Draining)) // has said so
	r.put("b", b, state(registry.Draining))
	r.members("")
	r.delete("a")
	r.delete("b")
	r.put("d", r.serve("d"))
	r.members("d")
	r.put("e", r.serve("e"))
	r.members("d e")
	r.delete("d")
	r.members("e")
	if got := r.get(web, "http://cart/"); got != "e" {
		t.Errorf("%q answered", got)
	}
}

// TestReplaced has two records of one address: the younger is meant.
func TestReplaced(t *testing.T) {
	r := start(t, discover.Options{})
	a := r.serve("a")
	r.put("b", a)
	r.members("b")
	r.put("a", a)
	r.members("a")
	r.delete("a")
	r.members("b")
}

// TestBadRecord has a record that cannot be used: it disturbs nobody, and the last good one stays.
func TestBadRecord(t *testing.T) {
	r := start(t, discover.Options{})
	r.put("a", r.serve("a"))
	r.members("a")
	r.put("a", "cart.example.com:80")
	r.store.Put(r.store.Keys.Instance("cart", "b"), []byte("{"))
	r.put("c", r.serve("c"))
	r.members("a c")
}

// TestNoInstance wants errors that say what was looked for.
func TestNoInstance(t *testing.T) {
	r := start(t, discover.Options{Services: []string{"cart"}})
	web := r.web()
	ask := func(url string, is error, says string) {
		t.Helper()
		req, err := http.NewRequestWithContext(r.limit(), "GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := web.Do(req)
		if text := r.fails(resp, err, is); !strings.Contains(text, says) {
			t.Errorf("%s: %s; want %q", url, text, says)
		}
	}
	ask("http://cart/", discover.ErrNoInstance, `no instance of service "cart": nothing is registered under that name`)
	ask("http://card/", discover.ErrNoInstance, `no instance of service "card": it is not among Options.Services; name it there`)
	ask("http://cart:80/", discover.ErrNoInstance, `of "cart:80": leave out the port, each instance has its own`)
	ask("ftp://cart/", nil, "write http://<service>/")
	r.put("a", refusing, state(registry.Draining))
	r.put("b", refusing, weight(0))
	r.put("c", refusing, speaks(registry.GRPC))
	r.put("d", "cart.example.com:80")
	r.members("c")
	r.until("all four", func(v *discover.View) bool {
		_, err := v.Speaking(registry.TCP)
		return strings.Contains(err.Error(), "names are not resolved")
	})
	ask("http://CART/", discover.ErrNoInstance, `no instance of service "cart": looked for one that is ready and speaks http or https or h2, `+
		`found 1 draining, 1 of no use (address "cart.example.com:80" is a name: register an IP address, names are not resolved), 1 of weight 0, 1 speaking grpc`)
}

// TestServices has only the services watched that are named.
func TestServices(t *testing.T) {
	r := start(t, discover.Options{Services: []string{"price", "cart"}})
	r.store.Put("/rota/services/stock/a", []byte(refusing))
	r.store.Put("/rota/services/price/a", []byte(r.serve("price")))
	r.put("a", r.serve("a"))
	r.members("a")
	for v := r.d.View("price"); ids(v) != "a"; v = r.d.View("price") {
		<-v.Changed()
	}
	if got := r.get(r.web(), "http://price/"); got != "price" {
		t.Errorf("%q answered", got)
	}
	if got := ids(r.d.View("stock")); got != "" {
		t.Errorf("stock has %s", got)
	}
}

// TestNotReady asks before the registry has answered: requests wait, and say for what.
func TestNotReady(t *testing.T) {
	r := newRig(t, discover.Options{})
	r.client.Disconnect()
	r.put("a", r.serve("a"))
	web := r.web()
	ask := func(says string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", "http://cart/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := web.Do(req)
		if text := r.fails(resp, err, discover.ErrNotReady); !strings.Contains(text, says) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s; want %q", text, says)
		}
	}
	ask("call Run")
	r.run()
	ask(`looked for service "cart"`)
	answer := make(chan string)
	go func() { answer <- r.get(web, "http://cart/") }()
	r.client.Reconnect()
	if got := <-answer; got != "a" {
		t.Errorf("%q answered", got)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if got := r.get(web, "http://cart/"); got != "a" { // while the process shuts down
		t.Errorf("%q answered after Run", got)
	}
	if err := r.d.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "make another") {
		t.Errorf("second Run: %v", err)
	}
}

func TestRunRefuses(t *testing.T) {
	for says, o := range map[string]discover.Options{
		`unknown balancing policy "best"`: {Policy: "best"},
		`service "Cart"`:                  {Services: []string{"cart", "Cart"}},
	} {
		r := newRig(t, o)
		if err := r.d.Run(t.Context()); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want %q", err, says)
		}
		if err := r.d.WaitReady(r.limit()); !errors.Is(err, discover.ErrNotReady) && !strings.Contains(says, "Cart") {
			t.Errorf("WaitReady: %v", err)
		}
	}
}

// TestEtcd is the whole way over a real etcd: a service registers, is called, drains and goes.
func TestEtcd(t *testing.T) {
	etcd := etcdtest.Start(t)
	connect := func() *registryetcd.Client {
		c, err := registryetcd.Connect(registryetcd.Options{Endpoints: etcd.Endpoints()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	reader, service := connect(), connect()
	r := newRig(t, discover.Options{})
	r.d = discover.New(reader, discover.Options{Services: []string{"cart"}})
	r.run()
	register := func(id string) registry.Registration {
		reg, err := service.Register(t.Context(), registry.Instance{Service: "cart", ID: id, Address: r.serve(id)})
		if err != nil {
			t.Fatal(err)
		}
		if err := registry.WaitRegistered(r.limit(), reg); err != nil {
			t.Fatal(err)
		}
		return reg
	}
	a := register("a")
	r.members("a")
	web := r.web()
	if got := r.get(web, "http://cart/"); got != "a" {
		t.Errorf("%q answered", got)
	}
	register("b")
	r.members("a b")
	if err := a.Leave(r.limit()); err != nil {
		t.Fatal(err)
	}
	r.members("b")
	etcd.Stop()
	for range 5 {
		if got := r.get(web, "http://cart/"); got != "b" {
			t.Errorf("%q answered while etcd was away", got)
		}
	}
	etcd.Restart()
	register("c")
	r.members("b c")
}
