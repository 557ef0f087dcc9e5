package balancer

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/admin"
	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/journal"
	"github.com/rota-lb/rota/balancer/internal/proxy"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// What a replay predicts of ten thousand requests is what the same requests then meet.
func TestReplay(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	one := func(of ...string) string { return of[random.IntN(len(of))] }
	services := []string{"web", "cart", "beta", "empty"}
	pools := map[int]*pool.Pool{}
	instances := map[string]int{}
	for i, name := range services {
		var members []pool.Member
		if name != "empty" {
			e := pool.NewEndpoint(pool.Key{ID: "1", Address: netip.MustParseAddrPort("127.0.0.1:80")})
			members = append(members, pool.Member{Endpoint: e, Weight: 1})
			instances[name] = 1
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
			return "redirect"
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
		plan := admin.Replay(&control.Preview{Now: now, Then: then, Instances: instances}, o.journal.Sample())
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
