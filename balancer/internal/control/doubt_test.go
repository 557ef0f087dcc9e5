package control

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/memory"
)

// listening is an address that answers probes until it is closed.
func listening(t *testing.T, at string) (address string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return ln.Addr().String(), func() { ln.Close() }
}

// doubted waits until so many endpoints are in doubt.
func (r *rig) doubted(want int) Status {
	r.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s, err := r.control.Status(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		if s.Doubted == want {
			return s
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%d in doubt, never %d", s.Doubted, want)
		}
	}
}

// A store that was wiped takes nothing away: who answers serves on, who does not is out, and routes and policies keep their
// last value, also when the link is lost again, until somebody writes or deletes them.
func TestWipedStore(t *testing.T) {
	r := start(t, config.Dynamic{AutoRoutes: true})
	alive, _ := listening(t, "127.0.0.1:0")
	dead, kill := listening(t, "127.0.0.1:0")
	r.data.PutAll(map[string][]byte{
		"/rota/services/web/a": []byte(alive), "/rota/services/web/b": []byte(dead),
		"/rota/routes/x": []byte(`{"host":"h","path":"/x","service":"web"}`), "/rota/policies/web": []byte(`{"balance":"random"}`),
	})
	r.run()
	r.until("both", func(t *route.Table) bool { name, n := match(t, "h", "/x"); return name == "x" && n == 2 })
	kill()
	r.data.Wipe()
	table := r.until("who answers", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	if e := table.Pool("web").Weights[0].Endpoint; e.Name != alive {
		t.Errorf("%s serves", e.Name)
	}
	r.client.Disconnect()
	r.client.Reconnect()
	r.doubted(1)
	table = r.store.Load()
	if name, n := match(table, "h", "/x"); name != "x" || n != 1 || table.Pool("web").Policy != "random" {
		t.Errorf("route %q with %d endpoints, policy %q", name, n, table.Pool("web").Policy)
	}
	r.data.Put("/rota/services/web/a", []byte(alive))
	r.data.Put("/rota/routes/x", []byte(`{"host":"h","path":"/y","service":"web"}`))
	r.until("the route is written anew", func(t *route.Table) bool { name, _ := match(t, "h", "/y"); return name == "x" })
	r.doubted(0)
	r.data.Delete("/rota/routes/x")
	r.until("the route is deleted", func(t *route.Table) bool { name, _ := match(t, "h", "/y"); return name == "" })
}

// An endpoint that refuses a connection is out until it answers a probe, and the only one stays.
func TestRefused(t *testing.T) {
	r := start(t, config.Dynamic{}).run()
	a, kill := listening(t, "127.0.0.1:0")
	b, _ := listening(t, "127.0.0.1:0")
	r.data.PutAll(map[string][]byte{"/rota/services/web/a": []byte(a), "/rota/services/web/b": []byte(b), "/rota/services/one/a": []byte(a)})
	table := r.until("both", func(t *route.Table) bool { return size(t.Pool("web")) == 2 && size(t.Pool("one")) == 1 })
	e := table.Pool("web").Weights[0].Endpoint
	kill()
	r.control.Refused(e, false)
	r.control.Refused(e, false)
	r.until("one is out", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	listening(t, a)
	table = r.until("it answers", func(t *route.Table) bool { return size(t.Pool("web")) == 2 })
	if table.Pool("web").Weights[0].Endpoint != e {
		t.Error("the endpoint did not survive")
	}
	r.control.Refused(table.Pool("one").Weights[0].Endpoint, false)
	if s := r.doubted(0); len(s.Brakes) != 0 || size(r.store.Load().Pool("one")) != 1 {
		t.Error("the only one must stay")
	}
}

// ill is an instance whose health page and answers are as they are set.
func ill(t *testing.T) (address string, set func(status int)) {
	t.Helper()
	var status atomic.Int32
	status.Store(200)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" && r.Host == "probe" && r.Header.Get("X-Probe") == "1" {
			w.WriteHeader(int(status.Load()))
		} else {
			w.WriteHeader(404)
		}
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), func(n int) { status.Store(int32(n)) }
}

// A check of a policy, static and registered instances alike: who does not pass is out, who comes back is in, who is new waits
// for its first pass, and nobody is out when all are.
func TestChecks(t *testing.T) {
	a, setA := ill(t)
	b, setB := ill(t)
	c, setC := ill(t)
	policy := config.Service{
		Check: &config.Check{
			Path: "/healthz", Host: "probe", Headers: map[string]string{"X-Probe": "1"}, Status: []string{"200-299"}, Interval: 100 * time.Millisecond, Fall: 2,
		},
		Instances: []config.StaticInstance{{Address: a}},
	}
	r := start(t, config.Dynamic{Services: map[string]config.Service{"web": policy}})
	r.data.Put("/rota/services/web/b", []byte(b))
	r.run()
	size := func(n int) func(*route.Table) bool {
		return func(t *route.Table) bool { return t.Pool("web") != nil && size(t.Pool("web")) == n }
	}
	r.until("both", size(2))
	setC(503)
	r.data.Put("/rota/services/web/c", []byte(c))
	r.doubted(1)
	if n := r.store.Load().Pool("web").Len(); n != 2 {
		t.Errorf("%d serve before the third has passed", n)
	}
	setC(204)
	r.until("the third has passed", size(3))
	setA(500)
	r.until("the first is down", size(2))
	setA(200)
	r.until("the first is back", size(3))
	setA(301)
	setB(500)
	r.doubted(2)
	r.until("two are down: everybody serves", size(3))
	setA(200)
	setB(200)
	r.doubted(0)

	// Without the policy's check nobody is down any more.
	setA(500)
	r.until("the first is down again", size(2))
	policy.Check = nil
	r.control.Reload(t.Context(), config.Dynamic{Services: map[string]config.Service{"web": policy}})
	r.until("nobody is checked", size(3))
	r.doubted(0)
}

// Who fails too often in a row is ejected for a while, and then on trial.
func TestFailing(t *testing.T) {
	r := start(t, config.Dynamic{Services: map[string]config.Service{"web": {Ejection: config.Ejection{Failures: 3, Time: time.Millisecond}}}})
	values := map[string][]byte{}
	for _, id := range []string{"a", "b", "c"} {
		address, _ := listening(t, "127.0.0.1:0")
		values["/rota/services/web/"+id] = []byte(address)
	}
	r.data.PutAll(values)
	r.run()
	table := r.until("all", func(t *route.Table) bool { return size(t.Pool("web")) == 3 })
	if n := table.Pool("web").SettingsOf().Failures; n != 3 {
		t.Errorf("%d failures are allowed", n)
	}
	e := table.Pool("web").Weights[1].Endpoint
	r.control.Failing(e)
	r.until("it is out", func(t *route.Table) bool { return size(t.Pool("web")) == 2 })
	r.until("it is back", func(t *route.Table) bool { return size(t.Pool("web")) == 3 })
	if n := e.Stats().Record(500, 0, nil); n != 3 {
		t.Errorf("on trial, the first failure counts as %d in a row, want 3", n)
	}
	if n := e.Stats().Record(200, 0, nil); n != 0 {
		t.Errorf("a success counts as failure %d", n)
	}
}

// Of five instances one fails most of what it is asked.
func TestFailureRate(t *testing.T) {
	r := start(t, config.Dynamic{})
	values := map[string][]byte{}
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		address, _ := listening(t, "127.0.0.1:0")
		values["/rota/services/web/"+id] = []byte(address)
	}
	r.data.PutAll(values)
	r.run()
	table := r.until("all", func(t *route.Table) bool { return size(t.Pool("web")) == 5 })
	pl := table.Pool("web")
	pl.Service.Tally(0)
	for i, m := range pl.Weights {
		for range 200 {
			m.Endpoint.Stats().Record(200, 0, nil)
			if i == 3 {
				m.Endpoint.Stats().Record(502, 0, nil)
			}
		}
	}
	r.control.do(t.Context(), func() { r.control.rate(time.Now()) })
	table = r.until("one is out", func(t *route.Table) bool { return size(t.Pool("web")) == 4 })
	for _, m := range table.Pool("web").Weights {
		if m.Endpoint.ID == "d" {
			t.Error("the wrong one")
		}
	}
}

// Suspects that answer serve on until an operator knows better.
func TestReleaseBrake(t *testing.T) {
	r := start(t, config.Dynamic{})
	a, _ := listening(t, "127.0.0.1:0")
	b, _ := listening(t, "127.0.0.1:0")
	r.data.PutAll(map[string][]byte{"/rota/services/web/a": []byte(a), "/rota/services/web/b": []byte(b)})
	r.run()
	r.until("both", func(t *route.Table) bool { return size(t.Pool("web")) == 2 })
	r.data.Wipe()
	if s := r.doubted(2); len(s.Brakes) != 1 || size(r.store.Load().Pool("web")) != 2 {
		t.Errorf("brakes %v, %d serve", s.Brakes, size(r.store.Load().Pool("web")))
	}
	if n, err := r.control.ReleaseBrake(t.Context(), "test", "other"); n != 0 || err != nil {
		t.Error(n, err)
	}
	if n, err := r.control.ReleaseBrake(t.Context(), "test", "web"); n != 2 || err != nil {
		t.Error(n, err)
	}
	r.until("none", func(t *route.Table) bool { return size(t.Pool("web")) == 0 })
	if s := r.doubted(0); len(s.Brakes) != 0 {
		t.Error(s.Brakes)
	}
}

// An instance that serves already is not taken out by one failure of its check.
func TestFirstFailureOfACheck(t *testing.T) {
	r := start(t, config.Dynamic{Services: map[string]config.Service{"web": {Panic: -1, Check: &config.Check{Type: "http", Interval: 100 * time.Millisecond, Fall: 3}}}})
	var checks atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		checks.Add(1)
		w.WriteHeader(http.StatusInternalServerError)
	}))
	t.Cleanup(server.Close)
	r.data.Put("/rota/services/web/a", []byte(server.Listener.Addr().String()))
	r.run()
	r.until("it is there", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	r.until("it fails", func(t *route.Table) bool { return size(t.Pool("web")) == 0 })
	if n := checks.Load(); n < 3 {
		t.Errorf("taken out by %d failures", n)
	}
}

// A store that does not answer about a lease is asked again.
func TestAskedAgain(t *testing.T) {
	r := start(t, config.Dynamic{})
	a, _ := listening(t, "127.0.0.1:0")
	process := r.data.NewClient()
	if _, err := process.Register(context.Background(), registry.Instance{Service: "web", ID: "a", Address: a}); err != nil {
		t.Fatal(err)
	}
	dumb := &dumb{Client: r.client}
	r.control.Registry = dumb
	r.run()
	r.until("it is there", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	process.Disconnect()
	r.data.Delete("/rota/services/web/a") // by hand: the lease lives
	r.until("it has gone", func(t *route.Table) bool { return size(t.Pool("web")) == 0 })
	if n := dumb.asked.Load(); n != 3 {
		t.Errorf("asked %d times", n)
	}
}

// dumb does not answer the first two questions about leases.
type dumb struct {
	*memory.Client
	asked atomic.Int32
}

func (d *dumb) LeaseLeft(ctx context.Context, lease int64) (time.Duration, error) {
	if d.asked.Add(1) < 3 {
		return 0, memory.ErrDisconnected
	}
	return d.Client.LeaseLeft(ctx, lease)
}
