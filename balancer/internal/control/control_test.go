package control

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a controller over a registry in memory.
type rig struct {
	t       *testing.T
	data    *memory.Store
	client  *memory.Client
	control *Controller
	store   *route.Store
	stop    func() // after run; at the end of the test by itself
}

func start(t *testing.T, d config.Dynamic) *rig {
	t.Helper()
	r := &rig{t: t, data: &memory.Store{}, store: &route.Store{}}
	r.client = r.data.NewClient()
	r.control = New(Options{Registry: r.client, Store: r.store}, d)
	return r
}

func (r *rig) run() *rig {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.control.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(r.stop)
	return r
}

// until waits for a table that satisfies ok.
func (r *rig) until(what string, ok func(t *route.Table) bool) *route.Table {
	r.t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		table, superseded := r.store.Next()
		if ok(table) {
			return table
		}
		if superseded == nil { // before the first table
			superseded = make(chan struct{})
			select {
			case <-time.After(time.Millisecond):
			case <-deadline:
				r.t.Fatalf("never: %s", what)
			}
			continue
		}
		select {
		case <-superseded:
		case <-deadline:
			r.t.Fatalf("never: %s", what)
		}
	}
}

func size(p *pool.Pool) int {
	if p == nil {
		return -1
	}
	return p.Len()
}

func match(t *route.Table, host, path string) (name string, endpoints int) {
	to := t.Match(&route.Request{Host: []byte(host), Path: []byte(path)})
	if to.Route == nil {
		return "", -1
	}
	return to.Route.Name, size(to.Pool)
}

func TestInstancesBecomeRoutable(t *testing.T) {
	r := start(t, config.Dynamic{AutoRoutes: true}).run()
	r.until("an empty table", func(t *route.Table) bool { return t.Generation > 0 })
	r.data.Put("/rota/services/web/a", []byte("10.0.0.1:80"))
	r.until("one instance", func(t *route.Table) bool { _, n := match(t, "web.localhost", "/"); return n == 1 })
	r.data.Put("/rota/services/web/b", []byte(`{"address":"10.0.0.2:80","state":"starting"}`))
	r.data.Put("/rota/services/web/c", []byte(`{"address":"10.0.0.3:80"}`))
	table := r.until("two of three", func(t *route.Table) bool { return size(t.Pool("web")) == 2 })
	kept := table.Pool("web").Weights[0].Endpoint
	r.data.Delete("/rota/services/web/c")
	table = r.until("one again", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	if table.Pool("web").Weights[0].Endpoint != kept {
		t.Error("the endpoint did not survive the rebuild")
	}
	r.data.Delete("/rota/services/web/a")
	r.until("none: known, but empty", func(t *route.Table) bool { name, n := match(t, "web.localhost", "/"); return name != "" && n == 0 })
}

// Routes and policies come from the file and, live, from the registry; bad ones keep their last good value.
func TestRoutesAndPolicies(t *testing.T) {
	r := start(t, config.Dynamic{
		Routes:   []config.Route{{Name: "file", Host: "h", Path: "/a/", Service: "one"}},
		Services: map[string]config.Service{"one": {Balance: "random"}},
	})
	r.data.PutAll(map[string][]byte{"/rota/services/one/a": []byte("10.0.0.1:80"), "/rota/services/two/a": []byte("10.0.0.2:80")})
	r.run()
	table := r.until("the file's route", func(t *route.Table) bool { name, n := match(t, "h", "/a/x"); return name == "file" && n == 1 })
	if p := table.Pool("one").Policy; p != "random" {
		t.Errorf("policy %q", p)
	}
	r.data.Put("/rota/routes/live", []byte(`{"host":"h","path":"/b","service":"two","timeout":"3s"}`))
	table = r.until("the live route", func(t *route.Table) bool { name, _ := match(t, "h", "/b"); return name == "live" })
	if x := table.Match(&route.Request{Host: []byte("h"), Path: []byte("/b")}).Route; x.Timeout != 3*time.Second || x.Source != route.Etcd {
		t.Errorf("route %+v", x)
	}
	r.data.Put("/rota/routes/same", []byte(`{"host":"h","path":"/a","service":"two"}`))
	table = r.until("a conflict", func(t *route.Table) bool { return len(t.Router().Conflicts) == 1 })
	if name, _ := match(table, "h", "/a"); name != "file" || table.Router().Conflicts[0].Loser.Name != "same" {
		t.Errorf("winner %q", name)
	}
	r.data.Put("/rota/policies/one", []byte(`{"balance":"p2c"}`))
	r.until("the live policy", func(t *route.Table) bool { return t.Pool("one").Policy == "p2c" })

	before := r.store.Load().Generation
	r.data.Put("/rota/routes/live", []byte(`{"host":"h","servce":"two"}`))
	r.data.Put("/rota/policies/one", []byte(`{"balance":"fastest"}`))
	r.data.Put("/rota/policies/two", []byte(`{"balance":"p2c","instances":[{"address":"10.0.0.1:1"}]}`))
	r.data.Put("/rota/services/one/b", []byte("10.0.0.9:80"))
	table = r.until("the good change beside the bad ones", func(t *route.Table) bool { return size(t.Pool("one")) == 2 })
	if name, _ := match(table, "h", "/b"); name != "live" || table.Pool("one").Policy != "p2c" || table.Generation == before {
		t.Error("a bad value displaced a good one")
	}
	s, err := r.control.Status(context.Background())
	if err != nil || len(s.Quarantined) != 3 {
		t.Fatalf("%v, set aside: %+v", err, s.Quarantined)
	}
	if !strings.Contains(s.Quarantined[2].Reason, "servce") {
		t.Errorf("reason %q", s.Quarantined[2].Reason)
	}
	r.data.Delete("/rota/routes/live")
	r.data.Delete("/rota/policies/one")
	r.until("the file's word again", func(t *route.Table) bool {
		name, _ := match(t, "h", "/b")
		return name == "" && t.Pool("one").Policy == "random"
	})
}

func TestReload(t *testing.T) {
	r := start(t, config.Dynamic{Services: map[string]config.Service{"s": {Instances: []config.StaticInstance{{Address: "10.0.0.1:80"}}}}}).run()
	r.until("static instance", func(t *route.Table) bool { return size(t.Pool("s")) == 1 })
	r.control.Reload(context.Background(), config.Dynamic{
		Routes:   []config.Route{{Name: "n", Path: "/", Service: "s"}},
		Services: map[string]config.Service{"s": {Instances: []config.StaticInstance{{Address: "10.0.0.1:80"}, {Address: "10.0.0.2:80"}}}},
	})
	r.until("two and a route", func(t *route.Table) bool { name, n := match(t, "x", "/y"); return name == "n" && n == 2 })
	r.control.Reload(context.Background(), config.Dynamic{})
	r.until("nothing", func(t *route.Table) bool { name, _ := match(t, "x", "/y"); return name == "" && size(t.Pool("s")) == 0 })
}

// Without the registry the last table serves on, and when it comes back there is no empty moment.
func TestLinkLoss(t *testing.T) {
	r := start(t, config.Dynamic{AutoRoutes: true})
	r.data.Put("/rota/services/web/a", []byte("10.0.0.1:80"))
	r.run()
	r.until("one", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	r.client.Disconnect()
	for s, err := r.control.Status(context.Background()); s.Connected; s, err = r.control.Status(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	if n := size(r.store.Load().Pool("web")); n != 1 {
		t.Fatalf("%d endpoints while the registry is away", n)
	}
	r.data.Put("/rota/services/web/b", []byte("10.0.0.2:80"))
	stop := make(chan struct{})
	empty := make(chan bool, 1)
	go func() {
		for {
			select {
			case <-stop:
				empty <- false
				return
			default:
				if size(r.store.Load().Pool("web")) < 1 {
					empty <- true
					return
				}
			}
		}
	}()
	r.client.Reconnect()
	r.until("both", func(t *route.Table) bool { return size(t.Pool("web")) == 2 })
	close(stop)
	if <-empty {
		t.Error("the pool was empty for a moment")
	}
}

// A burst makes few tables, and the last one shows the last state.
func TestBurst(t *testing.T) {
	r := start(t, config.Dynamic{}).run()
	r.until("first", func(t *route.Table) bool { return t.Generation > 0 })
	const n = 5000
	began := time.Now()
	for i := range n {
		r.data.Put(fmt.Sprintf("/rota/services/s%d/a", i%10), fmt.Appendf(nil, `{"address":"10.0.0.1:80","weight":%d}`, i%100))
	}
	want := (n - 1) % 100
	table := r.until("the last state", func(t *route.Table) bool {
		p := t.Pool(fmt.Sprintf("s%d", (n-1)%10))
		return p != nil && len(p.Weights) == 1 && p.Weights[0].Weight == want
	})
	if limit := uint64(time.Since(began)/Settle) + 10; table.Generation > limit {
		t.Errorf("%d tables in %v, want at most %d", table.Generation, time.Since(began), limit)
	}
}

// Names that nobody speaks of any more are forgotten, with all that was kept of them; those in use are not.
func TestForgottenServices(t *testing.T) {
	r := start(t, config.Dynamic{Services: map[string]config.Service{"configured": {}}})
	departed := map[string]bool{}
	r.control.Departed = func(s *pool.Service) { departed[s.Name] = true }
	r.run()
	r.data.PutAll(map[string][]byte{
		"/rota/services/web/a": []byte("10.0.0.1:80"), "/rota/policies/policy": []byte(`{"balance":"random"}`), "/rota/routes/x": []byte(`{"host":"h","service":"routed"}`),
	})
	now := time.Now()
	slots := 0
	for round := range 5 {
		names := map[string][]byte{}
		for i := range 50 {
			names[fmt.Sprintf("/rota/services/s%d-%d/a", round, i)] = []byte("10.0.0.2:80")
		}
		r.data.PutAll(names)
		last := fmt.Sprintf("s%d-49", round)
		r.until("they are there", func(t *route.Table) bool { return size(t.Pool(last)) == 1 && size(t.Pool("web")) == 1 })
		for key := range names {
			r.data.Delete(key)
		}
		r.until("they have gone", func(t *route.Table) bool {
			for i := range 50 {
				if size(t.Pool(fmt.Sprintf("s%d-%d", round, i))) > 0 {
					return false
				}
			}
			return true
		})
		r.control.do(t.Context(), func() {
			now = now.Add(pruneEvery)
			r.control.prune(now)
			now = now.Add(forgetAfter)
			r.control.prune(now)
		})
		r.until("they are forgotten", func(t *route.Table) bool { return t.Pool(last) == nil && size(t.Pool("web")) == 1 })
		r.control.do(t.Context(), func() {
			if len(departed) != 50 || len(r.control.services) != 4 || len(r.control.slots) != 4 {
				t.Errorf("%d departed, %d services, %d slots", len(departed), len(r.control.services), len(r.control.slots))
			}
			if slots == 0 {
				slots = r.control.nextSlot
			}
			if r.control.nextSlot > slots {
				t.Errorf("slots grow to %d, from %d", r.control.nextSlot, slots)
			}
			clear(departed)
		})
	}
}

// Questions after the end are refused and do not hang.
func TestEnded(t *testing.T) {
	c := New(Options{Store: &route.Store{}}, config.Dynamic{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(context.Background()); err != ErrEnded {
		t.Errorf("got %v", err)
	}
}

// The life of a registration as the balancer sees it.
func TestRegistration(t *testing.T) {
	r := start(t, config.Dynamic{}).run()
	reg, err := r.data.NewClient().Register(context.Background(), registry.Instance{Service: "s", ID: "a", Address: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	r.until("registered", func(t *route.Table) bool { return size(t.Pool("s")) == 1 })
	if err := reg.Update(context.Background(), func(in *registry.Instance) { in.State = registry.Draining }); err != nil {
		t.Fatal(err)
	}
	r.until("draining", func(t *route.Table) bool { return size(t.Pool("s")) == 0 })
	list, err := r.control.Services(context.Background(), "s")
	if err != nil || len(list) != 1 || list[0].Instances[0].Verdict.State != "draining" {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := reg.Leave(context.Background()); err != nil {
		t.Fatal(err)
	}
	for len(list[0].Instances) > 0 {
		if list, err = r.control.Services(context.Background(), "s"); err != nil {
			t.Fatal(err)
		}
	}
}

// Claims of instances count where a grant covers them; of two services that claim the same the older grant has it.
func TestClaims(t *testing.T) {
	r := start(t, config.Dynamic{}).run()
	instance := func(id, claims string) []byte {
		return []byte(`{"address":"10.0.0.` + id + `:80","claims":[` + claims + `]}`)
	}
	shop, all := `{"host":"Shop.example.com","path":"/cart/"}`, `{"host":"*.example.com"}`
	r.data.Put("/rota/services/cart/1", instance("1", shop+","+all))
	denied := func(want int) {
		t.Helper()
		s, err := r.control.Status(t.Context())
		if err != nil || len(s.Denied) != want {
			t.Errorf("denied %v, %v; want %d", s.Denied, err, want)
		}
	}
	serves := func(what, host, path, service string) {
		t.Helper()
		r.until(what, func(t *route.Table) bool {
			to := t.Match(&route.Request{Host: []byte(host), Path: []byte(path)})
			return to.Route == nil && service == "" || to.Route != nil && to.Route.Service == service
		})
	}
	r.until("the instance", func(t *route.Table) bool { return size(t.Pool("cart")) == 1 })
	serves("nothing is granted", "shop.example.com", "/cart", "")
	denied(2)

	r.data.Put("/rota/grants/cart", []byte(`{"claims":[{"host":"shop.example.com","path":"/cart"}]}`))
	serves("one is granted", "shop.example.com", "/cart/7", "cart")
	serves("only that", "other.example.com", "/cart", "")
	denied(1)

	// A younger grant of another service.
	r.data.Put("/rota/grants/thief", []byte(`{"claims":[{"path":"/"}]}`))
	r.data.Put("/rota/services/thief/2", instance("2", shop))
	r.until("the other one", func(t *route.Table) bool { return size(t.Pool("thief")) == 1 && len(t.Router().Conflicts) == 1 })
	if c := r.store.Load().Router().Conflicts[0]; c.Winner.Service != "cart" || c.Loser.Service != "thief" || c.Winner.Source != route.Claimed {
		t.Errorf("%+v", c)
	}
	// The winner restarts: younger than the other one, and not there for a moment.
	r.data.Delete("/rota/services/cart/1")
	r.until("nobody is there", func(t *route.Table) bool { return size(t.Pool("cart")) == 0 })
	serves("the claim stays", "shop.example.com", "/cart", "cart")
	r.data.Put("/rota/services/cart/3", instance("3", shop))
	r.until("it is back", func(t *route.Table) bool { return size(t.Pool("cart")) == 1 })
	serves("it has not lost it", "shop.example.com", "/cart", "cart")

	r.data.Put("/rota/services/cart/3", instance("3", ""))
	serves("it claims it no more", "shop.example.com", "/cart", "thief")
	r.data.Put("/rota/grants/thief", []byte(`{"claims":[{"hots":"shop.example.com"}]}`))
	for s, _ := r.control.Status(t.Context()); len(s.Quarantined) != 1; s, _ = r.control.Status(t.Context()) {
		time.Sleep(time.Millisecond)
	}
	serves("a bad value: the last good grant stays", "shop.example.com", "/cart", "thief")
	r.data.Delete("/rota/grants/thief")
	serves("the grant is gone", "shop.example.com", "/cart", "")
}

// What happens is told as a story, in order, and can be read on from any place.
func TestEvents(t *testing.T) {
	r := start(t, config.Dynamic{})
	r.data.Put("/rota/services/web/there", []byte("10.0.0.9:80"))
	r.run()
	r.until("one", func(t *route.Table) bool { return size(t.Pool("web")) == 1 })
	r.data.Put("/rota/services/web/a", []byte("10.0.0.1:80"))
	r.data.Put("/rota/services/web/a", []byte(`{"address":"10.0.0.1:80","state":"draining"}`))
	r.data.Delete("/rota/services/web/a")
	r.data.Put("/rota/routes/x", []byte(`{"host":"h","service":"web"}`))
	r.until("the route", func(t *route.Table) bool { return len(t.Router().Routes) == 1 })
	r.client.Disconnect()
	r.client.Reconnect()

	var told []string
	last := uint64(0)
	for deadline := time.After(5 * time.Second); len(told) < 7; {
		list, next := r.control.Events().Since(last)
		for _, e := range list {
			if e.Seq != last+1 || e.At.IsZero() {
				t.Fatalf("event %d follows %d, at %v", e.Seq, last, e.At)
			}
			last = e.Seq
			told = append(told, fmt.Sprint(e.Kind, " ", e.Instance, " ", e.From, ">", e.To, " ", e.Text))
		}
		if len(list) > 0 {
			continue
		}
		select {
		case <-next:
		case <-deadline:
			t.Fatalf("never more than %q", told)
		}
	}
	want := []string{
		"registry  > in sync", "instance a >ready registered", "instance a ready>draining it says it is draining", "instance a draining>gone it has left",
		"routes  > 1 routes, 0 of them can never match", "registry  > out of reach: disconnected from the store", "registry  > in sync",
	}
	if fmt.Sprint(told) != fmt.Sprint(want) {
		t.Errorf("told\n%q\nwant\n%q", told, want)
	}
	if list, _ := r.control.Events().Since(last + 100); uint64(len(list)) != last {
		t.Errorf("after a number that was never given: %d events, want all %d", len(list), last)
	}
	var e Events
	for range 3 * keptEvents {
		e.add(Event{})
	}
	if list, _ := e.Since(5); len(list) != keptEvents || list[0].Seq != 2*keptEvents+1 {
		t.Errorf("%d events from %d", len(list), list[0].Seq)
	}
}

// The files that instances are verified by are read again when they have changed; what cannot be read leaves the old ones.
func TestCertificatesChange(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	good := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	file := filepath.Join(t.TempDir(), "ca.pem")
	write := func(content []byte) {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(good)
	r := start(t, config.Dynamic{Services: map[string]config.Service{"web": {
		Protocol: "https", TLS: config.UpstreamTLS{CA: file}, Instances: []config.StaticInstance{{Address: "127.0.0.1:1"}},
	}}}).run()
	now := time.Now()
	in := func(t *route.Table) *tls.Config { return t.Pool("web").Settings.TLS }
	first := in(r.until("a table", func(t *route.Table) bool { return size(t.Pool("web")) == 1 }))
	again := func() {
		now = now.Add(filesEvery)
		r.control.do(t.Context(), func() { r.control.reread(now) })
	}
	again()
	if in(r.store.Load()) != first {
		t.Error("read again without a change")
	}
	write(append([]byte("new\n"), good...))
	again()
	second := in(r.until("the new ones", func(t *route.Table) bool { return in(t) != first }))
	write([]byte("broken"))
	generation := r.store.Load().Generation
	again()
	if table := r.until("a table", func(t *route.Table) bool { return t.Generation > generation }); in(table) != second {
		t.Error("a broken file has taken the place of a good one")
	}
}
