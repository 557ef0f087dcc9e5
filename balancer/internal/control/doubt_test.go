package control

import (
	"net"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/config"
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
	r.control.Refused(e)
	r.control.Refused(e)
	r.until("one is out", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	listening(t, a)
	table = r.until("it answers", func(t *route.Table) bool { return size(t.Pool("web")) == 2 })
	if table.Pool("web").Weights[0].Endpoint != e {
		t.Error("the endpoint did not survive")
	}
	r.control.Refused(table.Pool("one").Weights[0].Endpoint)
	if s := r.doubted(0); len(s.Brakes) != 0 || size(r.store.Load().Pool("one")) != 1 {
		t.Error("the only one must stay")
	}
}
