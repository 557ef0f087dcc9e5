package route

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/rota-lb/rota/balancer/pool"
)

// fields are header fields as name, value, name, value.
type fields []string

func (f fields) Value(name string, n int) ([]byte, bool) {
	for i := 0; i < len(f); i += 2 {
		if f[i] == name {
			if n == 0 {
				return []byte(f[i+1]), true
			}
			n--
		}
	}
	return nil, false
}

func request(method, host, target string, f ...string) *Request {
	path, query, found := strings.Cut(target, "?")
	if found {
		query = "?" + query
	}
	return &Request{Method: []byte(method), Host: []byte(host), Path: []byte(path), Query: []byte(query), Fields: fields(f)}
}

func over(scheme string, q *Request) *Request {
	q.Scheme = scheme
	return q
}

func when(c ...Condition) *Rules { return &Rules{Conditions: c} }

func header(name, value string) Condition { return Condition{Of: OfHeader, Name: name, Value: value} }

func pattern(t testing.TB, text string) *Rules {
	p, err := NewPattern(text)
	if err != nil {
		t.Fatal(err)
	}
	return &Rules{Pattern: p}
}

func TestConditions(t *testing.T) {
	digits := pattern(t, "[0-9]+").Pattern
	_, slot := slots()
	table := new(Table).With(Change{Router: NewRouter([]Route{
		{Name: "plain", Path: "/a"},
		{Name: "post", Path: "/a", Rules: when(Condition{Of: OfMethod, Methods: []string{"POST", "PUT"}})},
		{Name: "beta", Path: "/a", Rules: when(header("x-beta", "1"))},
		{Name: "beta-post", Path: "/a", Rules: when(header("x-beta", "1"), Condition{Of: OfMethod, Methods: []string{"POST"}})},
		{Name: "any-tenant", Path: "/a", Rules: when(Condition{Of: OfHeader, Name: "x-tenant", Any: true}), Order: 7},
		{Name: "numbered", Path: "/a", Rules: when(Condition{Of: OfQuery, Name: "n", Pattern: digits}), Order: 8},
		{Name: "spaced", Path: "/a", Rules: when(Condition{Of: OfQuery, Name: "q r", Value: "ä b"}), Order: 9},
		{Name: "secure", Path: "/s", Rules: when(Condition{Of: OfScheme, Value: "https"})},
		{Name: "plain-secure", Path: "/s", Rules: when(Condition{Of: OfScheme, Value: "http"})},
		{Name: "deep", Path: "/a/b", Rules: when(header("x-deep", "yes"))},
		{Name: "only", Path: "/only", Exact: true, Rules: when(Condition{Of: OfMethod, Methods: []string{"GET"}})},
		{Name: "user", Rules: pattern(t, "/users/([0-9]+)")},
		{Name: "users", Rules: pattern(t, "/users/.*"), Order: 1},
		{Name: "rest"},
	}, slot)})
	for _, tc := range []struct {
		q    *Request
		want string
	}{
		{request("GET", "h", "/a"), "plain"},
		{request("POST", "h", "/a/x"), "post"},
		{request("post", "h", "/a/x"), "plain"},
		{request("GET", "h", "/s"), "plain-secure"},
		{over("https", request("GET", "h", "/s")), "secure"},
		{over("http", request("GET", "h", "/s")), "plain-secure"},
		{request("GET", "h", "/a", "x-beta", "1"), "beta"},
		{request("GET", "h", "/a", "x-beta", "2", "x-beta", "1"), "beta"},
		{request("GET", "h", "/a", "x-beta", "11"), "plain"},
		{request("POST", "h", "/a", "x-beta", "1"), "beta-post"},
		{request("GET", "h", "/a", "x-tenant", ""), "any-tenant"},
		{request("GET", "h", "/a?n=12"), "numbered"},
		{request("GET", "h", "/a?n=1x&n=%31"), "numbered"},
		{request("GET", "h", "/a?n=1x"), "plain"},
		{request("GET", "h", "/a?n"), "plain"},
		{request("GET", "h", "/a?x=1&q+r=%c3%a4+b"), "spaced"},
		{request("GET", "h", "/a?q+r=%c3%a4+b%"), "plain"},
		{request("GET", "h", "/a/b/c", "x-deep", "yes"), "deep"},
		{request("GET", "h", "/a/b/c"), "plain"},
		{request("GET", "h", "/only"), "only"},
		{request("HEAD", "h", "/only"), "rest"},
		{request("GET", "h", "/users/7"), "user"},
		{request("GET", "h", "/users/7x"), "users"},
		{request("GET", "h", "/x/users/7"), "rest"},
		{request("GET", "h", "/users/7\n"), "rest"},
	} {
		to := table.Match(tc.q)
		if to.Route == nil || to.Route.Name != tc.want {
			t.Errorf("%s %s%s %v matches %v, want %s", tc.q.Method, tc.q.Path, tc.q.Query, tc.q.Fields, to.Route, tc.want)
		}
	}
}

// Routes conflict when one takes all requests of the other, not when their conditions differ.
func TestConditionsConflict(t *testing.T) {
	_, slot := slots()
	a, b := header("x-a", "1"), header("x-b", "1")
	rt := NewRouter([]Route{
		{Name: "1", Path: "/a", Rules: when(a, b), Order: 1}, {Name: "2", Path: "/a", Rules: when(b, a), Order: 2},
		{Name: "3", Path: "/a", Rules: when(a), Order: 3}, {Name: "4", Path: "/a", Rules: when(b), Order: 4},
		{Name: "5", Path: "/a", Rules: when(a), Order: 5, Priority: 1},
		{Name: "6", Rules: pattern(t, "/x+"), Order: 6}, {Name: "7", Rules: pattern(t, "/x+"), Order: 7}, {Name: "8", Rules: pattern(t, "/x*"), Order: 8},
	}, slot)
	var got []string
	for _, c := range rt.Conflicts {
		got = append(got, c.Winner.Name+">"+c.Loser.Name)
	}
	if s := strings.Join(got, " "); s != "1>2 6>7" {
		t.Errorf("conflicts %q", s)
	}
}

// Match agrees with looking at every route in the order of precedence.
func TestMatchEqualsScan(t *testing.T) {
	hosts := []string{"", "a.b", "*.b", "x.a.b", "*.a.b"}
	pathsOf := []string{"", "/p", "/p/q", "/p/q/r", "=/p", "=/p/q", "~/p.*", "~/[pq]/q", "~.*r"}
	rapid.Check(t, func(rt *rapid.T) {
		var routes []Route
		for i := range rapid.IntRange(1, 12).Draw(rt, "routes") {
			r := Route{
				Name: fmt.Sprint(i), Order: int64(rapid.IntRange(0, 3).Draw(rt, "age")),
				Host: rapid.SampledFrom(hosts).Draw(rt, "host"), Priority: rapid.IntRange(0, 1).Draw(rt, "priority"),
			}
			u := &Rules{}
			switch p := rapid.SampledFrom(pathsOf).Draw(rt, "path"); {
			case strings.HasPrefix(p, "="):
				r.Path, r.Exact = p[1:], true
			case strings.HasPrefix(p, "~"):
				u = pattern(t, p[1:])
			default:
				r.Path = p
			}
			for _, name := range []string{"x-a", "x-b"} {
				if rapid.IntRange(0, 2).Draw(rt, name) == 0 {
					u.Conditions = append(u.Conditions, header(name, "1"))
				}
			}
			r.Rules = u
			routes = append(routes, r)
		}
		_, slot := slots()
		table := new(Table).With(Change{Router: NewRouter(routes, slot)})
		sorted := make([]*Route, len(routes))
		for i := range routes {
			sorted[i] = &routes[i]
		}
		slices.SortStableFunc(sorted, precedence)
		for _, host := range []string{"a.b", "x.a.b", "y.x.a.b", "b", "other"} {
			for _, path := range []string{"/", "/p", "/p/", "/p/q", "/p/q/r", "/q/q", "/pp", "*"} {
				for _, f := range [][]string{nil, {"x-a", "1"}, {"x-b", "1"}, {"x-a", "1", "x-b", "1"}} {
					q := request("GET", host, path, f...)
					want, got := "", ""
					for _, r := range sorted {
						if r.takes(q) {
							want = r.Name
							break
						}
					}
					if to := table.Match(q); to.Route != nil {
						got = to.Route.Name
					}
					if got != want {
						rt.Fatalf("%s%s %v: matched %q, a scan finds %q", host, path, f, got, want)
					}
					told, fits := "", table.Explain(q)
					for i := len(fits) - 1; i >= 0; i-- {
						if fit := fits[i]; fit.Why == "" {
							told = fit.Route.Name
						}
						if fits[i].Covered == nil && (fits[i].Why == "") != fits[i].Route.takes(q) {
							rt.Fatalf("%s%s %v: route %s is said to fit: %q", host, path, f, fits[i].Route.Name, fits[i].Why)
						}
					}
					if told != want || len(fits) != len(routes) {
						rt.Fatalf("%s%s %v: %q is told of %d routes, a scan finds %q", host, path, f, told, len(fits), want)
					}
				}
			}
		}
	})
}

// takes says by the definition whether a route matches.
func (r *Route) takes(q *Request) bool {
	host, path := string(q.Host), string(q.Path)
	hostOK := r.Host == "" || r.Host == host || strings.HasPrefix(r.Host, "*.") && strings.HasSuffix(host, r.Host[1:]) && len(host) > len(r.Host)-1
	pathOK := r.Path == "" || path == r.Path || !r.Exact && strings.HasPrefix(path, r.Path+"/")
	if r.pattern() != nil {
		pathOK = r.pattern().MatchString(path)
	}
	return hostOK && pathOK && r.holds(q)
}

func full(t testing.TB, name string) *pool.Pool {
	p, err := pool.New(pool.NewService(name), "", []pool.Member{{Endpoint: pool.NewEndpoint(pool.Key{Service: name}), Weight: 1}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A split follows its weights, leaves out what is empty, and what has no weight.
func TestSplit(t *testing.T) {
	_, slot := slots("web1", "web2", "web3", "copy")
	v1, v2, v3, copies := full(t, "1"), full(t, "2"), full(t, "3"), full(t, "copy")
	router := NewRouter([]Route{{Rules: &Rules{
		Split: []Share{
			{Service: "web", Subset: Subset{Version: "1"}, Weight: 90}, {Service: "web", Subset: Subset{Version: "2"}, Weight: 10},
			{Service: "web", Subset: Subset{Version: "3"}},
		},
		Mirror: &Mirror{Service: "copy", Percent: 25},
	}}}, slot)
	table := new(Table).With(Change{Router: router, Pools: map[int]*pool.Pool{0: v1, 1: v2, 2: v3, 3: copies}})
	const n = 20000
	count := func(table *Table) (got map[*pool.Pool]int, mirrored int) {
		got = map[*pool.Pool]int{}
		q := request("GET", "h", "/")
		for range n {
			to := table.Match(q)
			got[to.Pool]++
			if to.Mirror != nil {
				mirrored++
			}
		}
		return got, mirrored
	}
	got, mirrored := count(table)
	if got[v1]+got[v2] != n || got[v2] < n/10-n/50 || got[v2] > n/10+n/50 || mirrored < n/4-n/40 || mirrored > n/4+n/40 {
		t.Errorf("%d and %d of %d, %d mirrored", got[v1], got[v2], n, mirrored)
	}
	if got, _ = count(table.With(Change{Pools: map[int]*pool.Pool{0: poolOf(t, "1")}})); got[v2] != n {
		t.Errorf("version 2 alone has instances and gets %d of %d", got[v2], n)
	}
	gone := poolOf(t, "2")
	if got, _ = count(table.With(Change{Pools: map[int]*pool.Pool{0: nil, 1: gone}})); got[gone] != n {
		t.Errorf("nobody is there: %v", got)
	}
	q := request("GET", "h", "/")
	if n := testing.AllocsPerRun(100, func() { table.Match(q) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRedirect(t *testing.T) {
	users := pattern(t, "/users/([^/]+)(/.*)?").Pattern
	for _, tc := range []struct{ to, host, target, want string }{
		{"https://{host}{uri}", "a.b", "/x?y=1", "https://a.b/x?y=1"},
		{"{scheme}://www.{host}{path}", "a.b", "/x?y=1", "http://www.a.b/x"},
		{"https://{host}:8443{path}{query}", "a.b", "/", "https://a.b:8443/"},
		{"https://{host}:{port}/", "a.b", "/", "https://a.b:81/"},
		{"/new{path}", "", "/x", "/new/x"},
		{"{path}?moved", "", "//evil.example/x", "/evil.example/x?moved"},
		{"{uri}", "", "///evil", "/evil"},
		{"/{1}", "", "/users/%2fevil", "/%2fevil"},
		{"/{2}", "", "/users/a//evil.example", "/evil.example"},
		{"/{2}", "", "/users/a", "/"},
		{"https://{1}.example.com/{2}", "", "/users/a@evil:1/x", "https://a%40evil%3A1.example.com//x"},
		{"https://{host}{uri}", "[::1]", "*", "https://[::1]/"},
		{"https://{host}{uri}", "a.b", "/a\"<>\\^`{|}\x80?\"", "https://a.b/a%22%3C%3E%5C%5E%60%7B%7C%7D%80?%22"},
		{"/?to={path}", "", "/a\r\nSet-Cookie: x", "/?to=/a%0D%0ASet-Cookie:%20x"},
	} {
		r, err := NewRedirect(tc.to, 308, users)
		if err != nil {
			t.Errorf("%s: %v", tc.to, err)
			continue
		}
		if got := string(r.Append([]byte("x"), "http", request("GET", tc.host, tc.target), []byte(":81"))); got != "x"+tc.want {
			t.Errorf("%s for %s%s: %s, want %s", tc.to, tc.host, tc.target, got, tc.want)
		}
	}
	for _, to := range []string{
		"", "x", "//evil", "ftp://a/", "https://", "{host}/", "{1}/", "{query}", "/{", "/{path", "/{nope}", "/{0}", "/{3}", "/{10}",
		"https://a{query}", "https://{1}/", "https://a{1}/", "https://{1}:443/", "/a b", "/a\r\n", "/\"", "/ä", "/a}b", "javascript:alert(1)",
	} {
		if _, err := NewRedirect(to, 308, users); err == nil {
			t.Errorf("%q is taken", to)
		}
	}
	if _, err := NewRedirect("/{1}", 308, nil); err == nil {
		t.Error("a group without a pattern is taken")
	}
	if _, err := NewRedirect("/", 200, nil); err == nil {
		t.Error("status 200 is taken")
	}
}

func FuzzRedirect(f *testing.F) {
	f.Add("/%0d%0a//x", "a.b", "?\r\n")
	f.Add("//evil", "", "")
	f.Add("*", "[::1]", "?a b")
	users := pattern(f, "/?(.*)").Pattern
	var redirects []*Redirect
	for _, to := range []string{"{uri}", "{path}", "/{1}", "https://{host}{uri}", "https://{1}.example.com/", "/a?{query}"} {
		r, err := NewRedirect(to, 302, users)
		if err != nil {
			f.Fatal(err)
		}
		redirects = append(redirects, r)
	}
	f.Fuzz(func(t *testing.T, path, host, query string) {
		q := &Request{Host: []byte(host), Path: []byte(path), Query: []byte(query)}
		for i, r := range redirects {
			out := string(r.Append(nil, "https", q, nil))
			for _, c := range []byte(out) {
				if c <= ' ' || c >= 0x7f || c == '"' || c == '<' || c == '>' || c == '\\' {
					t.Fatalf("%q holds %q", out, c)
				}
			}
			if i < 3 && (!strings.HasPrefix(out, "/") || strings.HasPrefix(out, "//")) {
				t.Fatalf("%q leads elsewhere", out)
			}
			if rest, ok := strings.CutPrefix(out, "https://"); i == 4 && (!ok || !strings.HasSuffix(rest, ".example.com/") || strings.ContainsAny(strings.TrimSuffix(rest, "/"), "/?#@:")) {
				t.Fatalf("%q leads elsewhere", out)
			}
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	var routes []Route
	for i := range 1000 {
		routes = append(routes, Route{Name: fmt.Sprint(i), Host: fmt.Sprintf("h%d.example.com", i%100), Path: fmt.Sprintf("/service%d", i)})
	}
	rand.Shuffle(len(routes), func(i, j int) { routes[i], routes[j] = routes[j], routes[i] })
	_, slot := slots()
	table := new(Table).With(Change{Router: NewRouter(routes, slot)})
	q := request("GET", "h7.example.com", "/service7/items/8")
	b.ReportAllocs()
	for b.Loop() {
		if table.Match(q).Route == nil {
			b.Fatal("no match")
		}
	}
}
