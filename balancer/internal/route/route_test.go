package route

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rota-lb/rota/balancer/pool"
)

func slots(names ...string) (map[string]int, func(string, Subset) int) {
	m := map[string]int{}
	for i, n := range names {
		m[n] = i
	}
	return m, func(s string, sub Subset) int {
		if i, ok := m[s+sub.Version]; ok {
			return i
		}
		return -1
	}
}

func match(t *Table, host, path string) Target {
	return t.Match(&Request{Host: []byte(host), Path: []byte(path)})
}

func TestMatch(t *testing.T) {
	_, slot := slots("s")
	rt := NewRouter([]Route{
		{Name: "any"},
		{Name: "any-api", Path: "/api"},
		{Name: "host", Host: "shop.example.com"},
		{Name: "host-cart", Host: "shop.example.com", Path: "/cart"},
		{Name: "host-cart-exact", Host: "shop.example.com", Path: "/cart", Exact: true},
		{Name: "host-cart-items", Host: "shop.example.com", Path: "/cart/items"},
		{Name: "wild", Host: "*.example.com"},
		{Name: "wild-deep", Host: "*.eu.example.com"},
		{Name: "wild-path", Host: "*.example.com", Path: "/only"},
		{Name: "urgent", Path: "/urgent", Priority: 10},
	}, slot)
	table := new(Table).With(Change{Router: rt})
	for _, tc := range []struct{ host, path, want string }{
		{"other.org", "/", "any"},
		{"", "/x", "any"},
		{"other.org", "/api", "any-api"},
		{"other.org", "/api/v1", "any-api"},
		{"other.org", "/apis", "any"},
		{"shop.example.com", "/", "host"},
		{"shop.example.com", "/api", "host"},
		{"shop.example.com", "/cart", "host-cart-exact"},
		{"shop.example.com", "/cart/", "host-cart"},
		{"shop.example.com", "/cart/7", "host-cart"},
		{"shop.example.com", "/cartoon", "host"},
		{"shop.example.com", "/cart/items", "host-cart-items"},
		{"shop.example.com", "/cart/items/9", "host-cart-items"},
		{"a.example.com", "/", "wild"},
		{"a.example.com", "/only/x", "wild-path"},
		{"a.b.example.com", "/", "wild"},
		{"x.eu.example.com", "/", "wild-deep"},
		{"example.com", "/", "any"},
		{"evilexample.com", "/", "any"},
		{"shop.example.com", "/urgent", "urgent"},
		{"shop.example.com", "*", "host"},
	} {
		r := match(table, tc.host, tc.path).Route
		if r == nil || r.Name != tc.want {
			t.Errorf("%s%s matches %v, want %s", tc.host, tc.path, r, tc.want)
		}
	}
}

func TestNoMatch(t *testing.T) {
	_, slot := slots("s")
	table := new(Table).With(Change{Router: NewRouter([]Route{{Name: "a", Host: "a", Path: "/x"}}, slot)})
	for _, tc := range [][2]string{{"a", "/"}, {"b", "/x"}, {"a", "/xy"}} {
		if r := match(table, tc[0], tc[1]).Route; r != nil {
			t.Errorf("%v matches %s", tc, r.Name)
		}
	}
}

// Of routes that take the same requests the older wins, whatever the order they are given in, and the others are listed.
func TestConflicts(t *testing.T) {
	_, slot := slots("s")
	routes := []Route{
		{Name: "file-2", Source: File, Order: 2, Host: "h", Path: "/p"},
		{Name: "etcd-9", Source: Etcd, Order: 9, Host: "h", Path: "/p"},
		{Name: "etcd-3", Source: Etcd, Order: 3, Host: "h", Path: "/p"},
		{Name: "file-1", Source: File, Order: 1, Host: "h", Path: "/p"},
		{Name: "other", Source: Etcd, Order: 1, Host: "h", Path: "/q"},
	}
	for turn := range routes {
		list := append(append([]Route(nil), routes[turn:]...), routes[:turn]...)
		rt := NewRouter(list, slot)
		if r := rt.match(&Request{Host: []byte("h"), Path: []byte("/p")}); r.Name != "file-1" {
			t.Errorf("winner %s", r.Name)
		}
		var losers []string
		for _, c := range rt.Conflicts {
			if c.Winner.Name != "file-1" {
				t.Errorf("%s lost to %s", c.Loser.Name, c.Winner.Name)
			}
			losers = append(losers, c.Loser.Name)
		}
		if got := strings.Join(losers, " "); got != "file-2 etcd-3 etcd-9" {
			t.Errorf("losers %q", got)
		}
	}
}

func poolOf(t testing.TB, name string) *pool.Pool {
	p, err := pool.New(pool.NewService(name), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAutoRoutes(t *testing.T) {
	services, slot := slots("web", "cart.v2")
	web, cart := poolOf(t, "web"), poolOf(t, "cart.v2")
	change := Change{
		Router:   NewRouter([]Route{{Name: "explicit", Host: "fixed.localhost", Service: "web"}}, slot),
		Services: services, Auto: true, Pools: map[int]*pool.Pool{0: web, 1: cart},
	}
	table := new(Table).With(change)
	for _, tc := range []struct {
		host, path string
		want       *pool.Pool
		strip      int
	}{
		{"web.localhost", "/x", web, 0},
		{"cart.v2.localhost", "/", cart, 0},
		{"localhost", "/web/x", web, 4},
		{"localhost", "/web", web, 4},
		{"localhost", "/cart.v2/", cart, 8},
		{"fixed.localhost", "/", web, 0},
		{"localhost", "/webb", nil, 0},
		{"other.localhost", "/", nil, 0},
	} {
		to := match(table, tc.host, tc.path)
		if to.Pool != tc.want || to.Strip != tc.strip {
			t.Errorf("%s%s: pool %v, strip %d", tc.host, tc.path, to.Pool, to.Strip)
		}
	}
	change.Auto = false
	if r := match(new(Table).With(change), "web.localhost", "/").Route; r != nil {
		t.Error("an auto route although they are off")
	}
}

// A derived table has the change and shares the rest; the one it came from stays as it was.
func TestTablesAreImmutable(t *testing.T) {
	const n = 1000
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint("s", i)
	}
	services, _ := slots(names...)
	pools := map[int]*pool.Pool{}
	for i := range n {
		pools[i] = poolOf(t, names[i])
	}
	old := new(Table).With(Change{Services: services, Pools: pools})
	changed := poolOf(t, "s500")
	next := old.With(Change{Revision: 2, Pools: map[int]*pool.Pool{500: changed}})
	for i, name := range names {
		if old.Pool(name) != pools[i] {
			t.Fatalf("%s changed in the old table", name)
		}
		want := pools[i]
		if i == 500 {
			want = changed
		}
		if next.Pool(name) != want {
			t.Fatalf("%s is wrong in the next table", name)
		}
	}
	if next.Generation != old.Generation+1 || next.Revision != 2 {
		t.Errorf("generation %d, revision %d", next.Generation, next.Revision)
	}
}

func TestStore(t *testing.T) {
	var s Store
	if s.Load().Generation != 0 {
		t.Error("the zero store has a table")
	}
	first := new(Table).With(Change{})
	s.Publish(first)
	got, superseded := s.Next()
	if got != first {
		t.Error("not the published table")
	}
	select {
	case <-superseded:
		t.Error("superseded by nothing")
	default:
	}
	s.Publish(first.With(Change{}))
	<-superseded
}

// Matching looks at a path of many segments only as far as there are prefixes.
func TestMatchDoesNotAllocate(t *testing.T) {
	services, slot := slots("web")
	table := new(Table).With(Change{Router: NewRouter([]Route{{Host: "h", Path: "/a/b"}, {Host: "*.h", Path: "/a"}}, slot), Services: services, Auto: true})
	path := []byte(strings.Repeat("/a", 8000))
	for _, host := range []string{"h", "x.h", "web.localhost", "nowhere"} {
		q := Request{Host: []byte(host), Path: path}
		if n := testing.AllocsPerRun(100, func() { table.Match(&q) }); n != 0 {
			t.Errorf("%s: %v allocations", host, n)
		}
	}
}

func BenchmarkWith(b *testing.B) {
	for _, n := range []int{20, 2000} {
		b.Run(fmt.Sprint(n, "services"), func(b *testing.B) {
			pools := map[int]*pool.Pool{}
			for i := range n {
				pools[i] = poolOf(b, "s")
			}
			table := new(Table).With(Change{Pools: pools})
			one := map[int]*pool.Pool{n / 2: poolOf(b, "t")}
			for b.Loop() {
				table = table.With(Change{Pools: one})
			}
		})
	}
}
