package balancer

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/admin"
	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/journal"
	"github.com/rota-lb/rota/balancer/internal/proxy"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/internal/etcdtest"
)

// What a replay predicts of ten thousand requests is what the same requests then meet.
func TestReplay(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	one := func(of ...string) string { return of[random.IntN(len(of))] }
	services := []string{"web", "cart", "beta", "empty"}
	pools := map[int]*pool.Pool{}
	instances := map[control.Part]int{}
	for i, name := range services {
		var members []pool.Member
		if name != "empty" {
			e := pool.NewEndpoint(pool.Key{ID: "1", Address: netip.MustParseAddrPort("127.0.0.1:80")})
			members = append(members, pool.Member{Endpoint: e, Weight: 1})
			instances[control.Part{Service: name}] = 1
		}
		p, err := pool.New(pool.NewService(name), "", members)
		if err != nil {
			t.Fatal(err)
		}
		pools[i] = p
	}
	table := func() *route.Table {
		var routes []route.Route
		for i := range 12 {
			r := route.Route{
				Name: fmt.Sprint("r", i), Host: one("", "a.example.com", "*.example.com"), Path: one("", "/x", "/x/y", "/z"),
				Exact: random.IntN(4) == 0, Service: one(services...), Priority: random.IntN(2), Order: int64(i),
			}
			r.Exact = r.Exact && r.Path != ""
			for range random.IntN(3) {
				c := route.Condition{Of: route.OfHeader, Name: one("x-beta", "x-team"), Value: one("yes", "no")}
				switch random.IntN(4) {
				case 0:
					c = route.Condition{Of: route.OfMethod, Methods: []string{one("GET", "POST")}}
				case 1:
					c = route.Condition{Of: route.OfQuery, Name: "v", Value: one("1", "2")}
				}
				if r.Rules == nil {
					r.Rules = &route.Rules{}
				}
				r.Rules.Conditions = append(r.Rules.Conditions, c)
			}
			if random.IntN(8) == 0 {
				r.Service = ""
				if r.Rules == nil {
					r.Rules = &route.Rules{}
				}
				r.Rules.Redirect = &route.Redirect{}
			}
			routes = append(routes, r)
		}
		router := route.NewRouter(routes, func(service string, _ route.Subset) int {
			for i, name := range services {
				if name == service {
					return i
				}
			}
			return -1
		})
		return new(route.Table).With(route.Change{Router: router, Pools: pools})
	}
	where := func(to route.Target) string {
		switch {
		case to.Route == nil:
			return "404 no_route"
		case to.Route.Service == "":
			return "redirect " + to.Route.Rules.Redirect.String()
		case to.Route.Service == "empty":
			return "503 no_healthy_upstream of empty"
		}
		return to.Route.Service
	}

	for range 10 {
		now, then := table(), table()
		const shards = 4
		o := observer{journal: journal.New(shards)}
		type move struct{ from, to string }
		want := map[move]int{}
		broken, n := 0, 1000
		for i := range n {
			var head strings.Builder
			fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n", one("GET", "POST", "PUT"), one("/", "/x", "/x/y", "/x/y/7?v=2", "/z?v=1&w", "/other"),
				one("a.example.com", "b.example.com", "other.org"))
			for range random.IntN(3) {
				fmt.Fprintf(&head, "%s: %s\r\n", one("X-Beta", "x-beta", "X-Team", "Accept"), one("yes", "no", "", "perhaps: yes"))
			}
			fmt.Fprintf(&head, "\r\n")
			var r http1.Request
			if bad := r.Parse([]byte(head.String())); bad != nil {
				t.Fatalf("%v\n%s", bad, head.String())
			}
			o.remember(&proxy.Record{
				Loop: i % shards, Start: time.Unix(int64(i), 0), Method: r.Method, Host: r.Host, Path: r.Path, Query: r.Query, Head: &r, Table: now,
			})
			q := &route.Request{Method: r.Method, Host: r.Host, Path: r.Path, Query: r.Query, Fields: &r}
			m := move{where(now.Match(q)), where(then.Match(q))}
			if m.from == m.to {
				continue
			}
			want[m]++
			if bad := func(place string) bool { return place[0] == '4' || place[0] == '5' }; bad(m.to) && !bad(m.from) {
				broken++
			}
		}
		plan := admin.Replay(&control.Preview{Now: now, Then: then, Had: instances, Has: instances}, o.journal.Sample())
		if plan.Replayed != n || plan.Uncertain != 0 || len(plan.Moves) != len(want) || plan.Broken != float64(broken)/float64(n) {
			t.Errorf("%d replayed, %d uncertain, %d moves of %d, %f broken of %d", plan.Replayed, plan.Uncertain, len(plan.Moves), len(want), plan.Broken, broken)
		}
		for _, m := range plan.Moves {
			if got := want[move{m.From, m.To}]; m.Share != float64(got)/float64(n) {
				t.Errorf("%s > %s: %f predicted, %d of %d come to pass", m.From, m.To, m.Share, got, n)
			}
		}
	}
}

// A route for one scheme moves the requests that came by it, and no others.
func TestReplayScheme(t *testing.T) {
	table := func(routes ...route.Route) *route.Table {
		return new(route.Table).With(route.Change{Router: route.NewRouter(routes, func(string, route.Subset) int { return 0 })})
	}
	now := table(route.Route{Name: "r", Service: "web"})
	then := table(route.Route{Name: "r", Service: "web", Rules: &route.Rules{Conditions: []route.Condition{{Of: route.OfScheme, Value: "https"}}}})
	for scheme, want := range map[string]string{"http": "404 no_route GET http://a/", "https": ""} {
		o := observer{journal: journal.New(1)}
		o.remember(&proxy.Record{Start: time.Unix(1, 0), Scheme: scheme, Method: []byte("GET"), Host: []byte("a"), Path: []byte("/"), Table: now})
		plan := admin.Replay(&control.Preview{Now: now, Then: then}, o.journal.Sample())
		got := ""
		for _, m := range plan.Moves {
			got += m.To + " " + m.Example
		}
		if got != want || plan.Uncertain != 0 {
			t.Errorf("%s: moves to %q, want %q; %d uncertain", scheme, got, want, plan.Uncertain)
		}
	}
}

// A route that asks about a parameter whose value is not kept leaves the prediction open, too.
func TestReplayHidden(t *testing.T) {
	now := new(route.Table)
	then := now.With(route.Change{Router: route.NewRouter([]route.Route{{
		Name: "r", Service: "web", Rules: &route.Rules{Conditions: []route.Condition{{Of: route.OfQuery, Name: "api key", Value: "secret"}}},
	}}, func(string, route.Subset) int { return 0 })})
	for query, uncertain := range map[string]int{
		"?api+key=secret": 1, "?a=1&api%20key=other": 1, "?token=secret": 0, "?api+key": 0, "?other=1": 0, "": 0,
	} {
		o := observer{journal: journal.New(1)}
		o.remember(&proxy.Record{Start: time.Unix(1, 0), Method: []byte("GET"), Host: []byte("a"), Path: []byte("/"), Query: []byte(query), Table: now})
		if plan := admin.Replay(&control.Preview{Now: now, Then: then}, o.journal.Sample()); plan.Uncertain != uncertain || plan.Replayed != 1 {
			t.Errorf("%s: %d uncertain of %d, want %d", query, plan.Uncertain, plan.Replayed, uncertain)
		}
	}
}

// A route that asks about a field which is not kept leaves the prediction open, and says so.
func TestReplayUncertain(t *testing.T) {
	now := new(route.Table)
	conditions := func(name string) *route.Table {
		return now.With(route.Change{Router: route.NewRouter([]route.Route{{
			Name: "r", Service: "web", Rules: &route.Rules{Conditions: []route.Condition{{Of: route.OfHeader, Name: name, Value: "secret"}}},
		}}, func(string, route.Subset) int { return 0 })})
	}
	long := strings.Repeat("x", 2000)
	for _, tc := range []struct {
		field, about string
		uncertain    int
	}{
		{"Authorization: secret", "authorization", 1},
		{"Cookie: secret", "cookie", 1},
		{"X-Api-Key: secret", "x-api-key", 1},
		{"Authorization: secret", "x-beta", 0},
		{"X-Beta: secret", "x-beta", 0},
		{"X-Long: " + long, "x-long", 1},
		{"X-Long: " + long, "x-other", 1}, // it may be among those that were too many
		{"X-Short: 1", "host", 0},
	} {
		var r http1.Request
		if bad := r.Parse([]byte("GET / HTTP/1.1\r\nHost: a\r\n" + tc.field + "\r\n\r\n")); bad != nil {
			t.Fatal(bad)
		}
		o := observer{journal: journal.New(1)}
		o.remember(&proxy.Record{Start: time.Unix(1, 0), Method: r.Method, Host: r.Host, Path: r.Path, Head: &r, Table: now})
		sample := o.journal.Sample()
		if len(sample) != 1 || strings.Contains(string(sample[0].Fields), "secret") != (tc.field == "X-Beta: secret") {
			t.Fatalf("%s is kept as %+v", tc.field, sample)
		}
		plan := admin.Replay(&control.Preview{Now: now, Then: conditions(tc.about)}, sample)
		if plan.Uncertain != tc.uncertain {
			t.Errorf("%.30s, asked about %s: %d uncertain", tc.field, tc.about, plan.Uncertain)
		}
	}
}

// A change of who serves is weighed like one of routes: what drains too many of the instances that requests of late have met is
// refused, whether by a policy, a drain, a weight or a file; splits and redirects are compared by where they lead.
func TestPlanCapacity(t *testing.T) {
	etcd := etcdtest.Start(t)
	d := run(t, etcd, func(c *config.Config) {
		c.AutoRoutes = false
		c.Routes = []config.Route{
			{Name: "web", Host: "web.localhost", Service: "web"},
			{Name: "old", Host: "old.localhost", Redirect: config.Redirect{To: "https://a.example.com/", Status: 308}},
			{Name: "both", Host: "both.localhost", Split: []config.Share{{Service: "web", Weight: 3}, {Service: "listed", Weight: 1}}},
			{Name: "listed", Host: "listed.localhost", Service: "listed"},
		}
		c.Services = map[string]config.Service{"listed": {Instances: []config.StaticInstance{{Address: backend(t, "a")}, {Address: backend(t, "b")}, {Address: backend(t, "c")}}}}
	})
	newFleet(t, etcd.Client(), "web", 10)
	d.count("web", map[string]int{"ready": 10})
	plan := func(draft string) (p Plan) {
		t.Helper()
		status, body := d.ask("POST", "/api/v1/plan", draft)
		if err := json.Unmarshal([]byte(body), &p); err != nil || status != 200 {
			t.Fatalf("%s: %d %s", draft, status, body)
		}
		return p
	}
	for seen := map[string]bool{}; len(seen) < 4; { // one in a hundredth of a second is remembered
		for _, host := range []string{"web", "old", "both", "listed"} {
			req, err := http.NewRequest("GET", d.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host + ".localhost"
			resp, err := new(http.Transport).RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		for _, e := range d.journal.Sample() {
			seen[e.Host] = true
		}
	}
	if err := d.engine.Answer(t.Context()); err != nil { // an exchange is remembered after it was answered
		t.Fatal(err)
	}
	share := map[string]float64{}
	sample := d.journal.Sample()
	for _, e := range sample {
		name, _, _ := strings.Cut(e.Host, ".")
		share[name] += 1 / float64(len(sample))
	}
	near := func(a, b float64) bool { return math.Abs(a-b) < 1e-6 }
	overrides := func(n int, word string) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf(`"%d": %s`, i, word))
		}
		return `{"overrides": {` + strings.Join(list, ", ") + `}}`
	}
	policy := func(value string) string { return `{"service": "web", "value": ` + value + `}` }
	toWeb := share["web"] + share["both"]*3/4
	const few = "less than half of its instances can take it: "
	for name, c := range map[string]struct {
		draft  string
		broken float64
		moves  map[string]float64 // by from > to, under
		served string             // what changes for services
	}{
		"five of ten drain":         {policy(overrides(5, `{"drain": true}`)), 0, nil, "web 10>5 of 10 "},
		"nine of ten drain":         {policy(overrides(9, `{"drain": true}`)), toWeb, map[string]float64{"web > web " + few + "1 of 10": toWeb}, "web 10>1 of 10 " + few + "1 of 10"},
		"nine of ten get no weight": {policy(overrides(9, `{"weight": 0}`)), toWeb, map[string]float64{"web > web " + few + "1 of 10": toWeb}, "web 10>1 of 10 " + few + "1 of 10"},
		"all drain": {policy(overrides(10, `{"drain": true}`)), share["web"], map[string]float64{
			"web > 503 no_healthy_upstream of web no instance can take it": share["web"], "web > listed ": share["both"] * 3 / 4,
		}, "web 10>0 of 10 no instance can take it"},
		"another policy": {policy(`{"balance": "p2c", "check": {"path": "/"}, "panic": 90}`), 0, nil, ""},
		"another share": {`{"route": "both2", "value": {"host": "both.localhost", "priority": 1, "split": [{"service": "web", "weight": 1}, {"service": "listed", "weight": 1}]}}`, 0,
			map[string]float64{"web > listed ": share["both"] / 4}, ""},
		"another target": {`{"route": "old2", "value": {"host": "old.localhost", "priority": 1, "redirect": {"to": "https://b.example.com/"}}}`, 0,
			map[string]float64{"redirect 308 https://a.example.com/ > redirect 308 https://b.example.com/ ": share["old"]}, ""},
		"an instance less in the file, of three": {`{"service": "listed", "value": {"overrides": {"%a": {"drain": true}, "%b": {"drain": true}}}}`, share["listed"] + share["both"]/4,
			map[string]float64{"listed > listed " + few + "1 of 3": share["listed"] + share["both"]/4}, "listed 3>1 of 3 " + few + "1 of 3"},
	} {
		t.Run(name, func(t *testing.T) {
			listed := d.config.Services["listed"].Instances
			p := plan(strings.NewReplacer("%a", listed[0].Address, "%b", listed[1].Address).Replace(c.draft))
			if p.Replayed != len(sample) || !near(p.Broken, c.broken) || len(p.Moves) != len(c.moves) {
				t.Errorf("%d replayed of %d, %f broken, want %f; moves %+v", p.Replayed, len(sample), p.Broken, c.broken, p.Moves)
			}
			for _, m := range p.Moves {
				if got := m.From + " > " + m.To + " " + m.Under; !near(m.Share, c.moves[got]) || m.Example == "" {
					t.Errorf("%s: %f, want %v", got, m.Share, c.moves)
				}
			}
			served := ""
			for _, s := range p.Services {
				served += fmt.Sprintf("%s %d>%d of %d %s", s.Service, s.Was, s.Is, s.Of, s.Under)
			}
			if served != c.served {
				t.Errorf("services %q, want %q", served, c.served)
			}
		})
	}
	// A file that names other instances, and one that drains some of them.
	for services, want := range map[string]string{
		`{listed: {instances: [{address: "10.0.0.1:1"}]}}`: "listed 3>1 of 1",
		`{listed: {instances: [{address: "10.0.0.1:1"}, {address: "10.0.0.2:1", weight: 0}], overrides: {"10.0.0.1:1": {drain: true}}}}`:      "listed 3>0 of 2",
		`{listed: {instances: [{address: "10.0.0.1:1"}]}, fresh: {instances: [{address: "10.0.0.2:1"}, {address: "10.0.0.3:1", weight: 0}]}}`: "fresh 0>1 of 2, listed 3>1 of 1",
		`{}`: "listed 3>0 of 0",
	} {
		file, err := json.Marshal("services: " + services)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range plan(`{"config": ` + string(file) + `}`).Services {
			got = append(got, fmt.Sprintf("%s %d>%d of %d", s.Service, s.Was, s.Is, s.Of))
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: %q, want %q", services, got, want)
		}
	}

	// What is refused is written by force, or within another limit.
	const zero, web = "/api/v1/services/web/instances/", "/api/v1/services/web/policy"
	for i := range 5 {
		if status, body := d.ask("PATCH", zero+fmt.Sprint(i), `{"drain": true}`); status != 204 {
			t.Errorf("the drain of %d: %d %s", i, status, body)
		}
	}
	d.count("web", map[string]int{"ready": 5, "draining": 5})
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"PATCH", zero + "5", `{"drain": true}`, 409},
		{"PATCH", zero + "5", `{"weight": 0}`, 409},
		{"PUT", web, overrides(6, `{"drain": true}`), 409},
		{"PATCH", zero + "5?limit=0", `{"weight": 7}`, 204},
		{"PATCH", zero + "5?limit=most", `{"weight": 7}`, 400},
		{"PATCH", zero + "5?limit=100", `{"drain": true}`, 204},
		{"PATCH", zero + "6?force=true", `{"drain": true}`, 204},
	} {
		if status, body := d.ask(c.method, c.path, c.body); status != c.status || status == 409 && !strings.Contains(body, "would go to web as now, where less than half of its instances can take it: 4 of 10") {
			t.Errorf("%s %s %s: %d %s, want %d", c.method, c.path, c.body, status, body, c.status)
		}
	}
	d.count("web", map[string]int{"ready": 3, "draining": 7})
	if status, body := d.ask("PATCH", zero+"7", `{"drain": true}`); status != 409 {
		t.Errorf("a drain below the floor: %d %s", status, body)
	}
	if status, body := d.ask("PATCH", zero+"0", `{"drain": false}`); status != 204 {
		t.Errorf("taking a drain back below the floor: %d %s", status, body)
	}
}

// While etcd does not answer, whoever writes is told so, and does not wait for it.
func TestWriteWithoutEtcd(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t)
	d := run(t, srv, nil)
	newFleet(t, srv.Client(), "web", 1)
	d.count("web", map[string]int{"ready": 1})
	srv.Stop()
	var all sync.WaitGroup
	for _, w := range [][3]string{
		{"PATCH", "services/web/instances/0", `{"drain":true}`},
		{"PUT", "services/web/policy", `{"balance":"p2c"}`},
		{"PUT", "routes/shop", `{"path":"/","service":"web"}`},
	} {
		all.Go(func() {
			if status, text := d.ask(w[0], "/api/v1/"+w[1], w[2]); status != 502 || !strings.Contains(text, "does not answer") {
				t.Errorf("%s %s: %d %s", w[0], w[1], status, text)
			}
		})
	}
	all.Wait()
}
