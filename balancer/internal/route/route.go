// Package route holds the immutable table of routes and pools, matches requests against it, and publishes it.
//
// A [Table] is one generation of everything the data plane needs: which request goes to which service, and which
// endpoints that service has. It never changes; an exchange loads it once from the [Store] and uses it to the end.
// Tables share what did not change: replacing the pool of one service copies a few pointers, whatever the number of
// services and routes.
//
// Most specific wins: higher priority, then exact host over wildcard over any, then exact path over longer prefix over
// regular expression over none, then more conditions over fewer. A route whose conditions do not hold is passed over. What
// is still equal goes to the older route (file before etcd, then by create revision, then by name); if the younger one
// could never match, the two are a [Conflict], and the loser is kept and listed.
package route

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
)

// Source says where a route comes from; a lower one is older.
type Source uint8

// The sources of routes.
const (
	File Source = iota
	Etcd
	Claimed // by instances, where a grant allows it
	Auto
)

func (s Source) String() string { return [...]string{"file", "etcd", "claim", "auto"}[s] }

// Route sends matching requests to a service. Read-only once in a router.
type Route struct {
	Name    string
	Source  Source
	Host    string // exact, "*.example.com", or empty for any; lower-case, without port
	Path    string // with Exact the whole path, else a prefix of whole segments without trailing slash; empty is any
	Exact   bool
	Service string // empty with Split or Rules.Redirect
	// Strip says that the matched prefix is not forwarded.
	Strip    bool
	Priority int
	// Timeout limits the wait for the response head over all attempts; zero is no limit.
	Timeout time.Duration
	// Order is the age among routes of one source: position in the file, or create revision.
	Order int64
	// Revision is that of the key it comes from; zero when it is from the file. It is for showing only.
	Revision int64
	// Rules are what the route asks for beyond that; nil for most routes.
	Rules *Rules

	slot int
	next *Route // of the same host and path, later by precedence
}

// Prefix is the number of bytes of the path that Strip removes.
func (r *Route) Prefix() int {
	if r.Strip && !r.Exact {
		return len(r.Path)
	}
	return 0
}

// Conflict is a route that can never match because another one takes all its requests.
type Conflict struct{ Winner, Loser *Route }

// Router matches requests to routes. It is immutable.
type Router struct {
	// Routes are all routes that can match, by precedence.
	Routes []*Route
	// Conflicts are those that cannot.
	Conflicts []Conflict

	levels []level // by priority, highest first
}

type level struct {
	priority int
	exact    map[string]*paths
	wildcard map[string]*paths // by ".example.com"
	any      *paths
}

// paths are the routes of one host.
type paths struct {
	exact    map[string]*Route
	prefix   map[string]*Route // "" is any path
	longest  int               // of the prefixes
	patterns []*Route
}

// NewRouter builds a router. slot gives the number in the table of a service, or of a subset of its instances; a service
// without a name has none.
func NewRouter(routes []Route, slot func(service string, s Subset) int) *Router {
	sorted := make([]*Route, len(routes))
	for i := range routes {
		r := routes[i]
		r.slot = -1
		if r.Service != "" {
			r.slot = slot(r.Service, Subset{})
		}
		if r.Rules != nil {
			r.Rules = r.Rules.placed(slot)
		}
		sorted[i] = &r
	}
	slices.SortStableFunc(sorted, precedence)
	rt := &Router{}
	for _, r := range sorted {
		if len(rt.levels) == 0 || rt.levels[len(rt.levels)-1].priority != r.Priority {
			rt.levels = append(rt.levels, level{priority: r.Priority, exact: map[string]*paths{}, wildcard: map[string]*paths{}})
		}
		if winner := rt.levels[len(rt.levels)-1].add(r); winner != nil {
			rt.Conflicts = append(rt.Conflicts, Conflict{winner, r})
		} else {
			rt.Routes = append(rt.Routes, r)
		}
	}
	return rt
}

// precedence orders routes so that of two which match the same request the first one wins.
func precedence(a, b *Route) int {
	return cmp.Or(
		-cmp.Compare(a.Priority, b.Priority),
		cmp.Compare(hostClass(a.Host), hostClass(b.Host)),
		-cmp.Compare(len(a.Host), len(b.Host)),
		strings.Compare(a.Host, b.Host),
		pathClass(a)-pathClass(b),
		-cmp.Compare(len(a.Path), len(b.Path)),
		strings.Compare(a.Path, b.Path),
		-cmp.Compare(len(a.conditions()), len(b.conditions())),
		cmp.Compare(a.Source, b.Source),
		cmp.Compare(a.Order, b.Order),
		strings.Compare(a.Name, b.Name),
	)
}

func hostClass(h string) int {
	switch {
	case h == "":
		return 2
	case strings.HasPrefix(h, "*."):
		return 1
	}
	return 0
}

func pathClass(r *Route) int {
	switch {
	case r.Exact:
		return 0
	case r.Path != "":
		return 1
	case r.pattern() != nil:
		return 2
	}
	return 3
}

// add puts a route behind those of the same host and path, or returns the one that takes all its requests.
func (l *level) add(r *Route) (winner *Route) {
	var p *paths
	switch hostClass(r.Host) {
	case 0:
		p = hostPaths(l.exact, r.Host)
	case 1:
		p = hostPaths(l.wildcard, r.Host[1:])
	default:
		if l.any == nil {
			l.any = newPaths()
		}
		p = l.any
	}
	if r.pattern() != nil {
		for _, w := range p.patterns {
			if w.pattern().String() == r.pattern().String() && w.covers(r) {
				return w
			}
		}
		p.patterns = append(p.patterns, r)
		return nil
	}
	m := p.prefix
	if r.Exact {
		m = p.exact
	} else {
		p.longest = max(p.longest, len(r.Path))
	}
	var last *Route
	for w := m[r.Path]; w != nil; last, w = w, w.next {
		if w.covers(r) {
			return w
		}
	}
	if last == nil {
		m[r.Path] = r
	} else {
		last.next = r
	}
	return nil
}

func newPaths() *paths { return &paths{exact: map[string]*Route{}, prefix: map[string]*Route{}} }

func hostPaths(m map[string]*paths, host string) *paths {
	p := m[host]
	if p == nil {
		p = newPaths()
		m[host] = p
	}
	return p
}

// match finds the route for a request.
func (rt *Router) match(q *Request) *Route {
	for i := range rt.levels {
		l := &rt.levels[i]
		if p := l.exact[string(q.Host)]; p != nil {
			if r := p.match(q); r != nil {
				return r
			}
		}
		if len(l.wildcard) > 0 {
			for i, c := range q.Host {
				if c != '.' || i == 0 {
					continue
				}
				if p := l.wildcard[string(q.Host[i:])]; p != nil {
					if r := p.match(q); r != nil {
						return r
					}
				}
			}
		}
		if l.any != nil {
			if r := l.any.match(q); r != nil {
				return r
			}
		}
	}
	return nil
}

// match looks at the exact path, then at its prefixes, the longest first, then at the patterns, then at what takes any.
func (p *paths) match(q *Request) *Route {
	path := q.Path
	if r := first(p.exact[string(path)], q); r != nil {
		return r
	}
	for end := len(path); end > 0; end-- {
		if end > p.longest {
			end = p.longest + 1 // the next one down is the first that can match
			continue
		}
		if end == len(path) || path[end] == '/' {
			if r := first(p.prefix[string(path[:end])], q); r != nil {
				return r
			}
		}
	}
	for _, r := range p.patterns {
		if r.pattern().Match(path) && r.holds(q) {
			return r
		}
	}
	return first(p.prefix[""], q)
}

// first returns r, or the first one behind it, whose conditions hold.
func first(r *Route, q *Request) *Route {
	for r != nil && !r.holds(q) {
		r = r.next
	}
	return r
}

// chunk is the number of pools that are copied when one of them changes.
const chunk = 64

// Table is one generation of routes and pools. It is immutable; tables are derived from one another by [Table.With].
type Table struct {
	// Generation counts tables; Revision is the store's revision this one shows.
	Generation uint64
	Revision   int64

	router   *Router
	services map[string]*Route // by name, with the route that auto_routes gives it
	auto     bool
	pools    [][]*pool.Pool
}

// Change is what [Table.With] replaces. Nil fields leave things as they are.
type Change struct {
	Revision int64
	Router   *Router
	// Services are all services with their slots; Auto says whether they are reached by name.
	Services map[string]int
	Auto     bool
	// Pools replaces pools by slot.
	Pools map[int]*pool.Pool
}

// With derives the next table. Its cost is that of the change: one pool replaced costs a few hundred bytes.
func (t *Table) With(c Change) *Table {
	n := *t
	n.Generation++
	n.Revision = c.Revision
	if c.Router != nil {
		n.router = c.Router
	}
	if c.Services != nil {
		n.auto = c.Auto
		n.services = make(map[string]*Route, len(c.Services))
		for name, slot := range c.Services {
			if old := t.services[name]; old != nil && old.slot == slot {
				n.services[name] = old
			} else {
				n.services[name] = &Route{Name: "auto:" + name, Source: Auto, Path: "/" + name, Service: name, Strip: true, slot: slot}
			}
		}
	}
	if len(c.Pools) == 0 {
		return &n
	}
	n.pools = slices.Clone(t.pools)
	copied := -1
	slots := make([]int, 0, len(c.Pools))
	for slot := range c.Pools {
		slots = append(slots, slot)
	}
	slices.Sort(slots)
	for _, slot := range slots {
		i := slot / chunk
		for len(n.pools) <= i {
			n.pools = append(n.pools, make([]*pool.Pool, chunk))
		}
		if i != copied {
			n.pools[i] = slices.Clone(n.pools[i])
			copied = i
		}
		n.pools[i][slot%chunk] = c.Pools[slot]
	}
	return &n
}

// Router is the router of this table; nil before the first one.
func (t *Table) Router() *Router { return t.router }

// Pool returns the pool of a service, or nil.
func (t *Table) Pool(service string) *pool.Pool {
	if r := t.services[service]; r != nil {
		return t.pool(r.slot)
	}
	return nil
}

func (t *Table) pool(slot int) *pool.Pool {
	if slot < 0 || slot/chunk >= len(t.pools) {
		return nil
	}
	return t.pools[slot/chunk][slot%chunk]
}

const autoSuffix = ".localhost"

// Request is what routes are matched against. Host and Path must be normalised.
type Request struct {
	Scheme                    string // http or https; empty is http
	Method, Host, Path, Query []byte // Query with its "?", or empty
	Fields                    Fields
}

// Fields gives access to the header fields of a request.
type Fields interface {
	// Value returns the value of the n-th field, counted from 0, of that lower-case name.
	Value(name string, n int) (value []byte, ok bool)
}

// Target is where a request goes.
type Target struct {
	Route *Route // nil when none matches
	// Pool is nil when the service has never had an instance, and with a redirect.
	Pool *pool.Pool
	// Mirror is the pool that gets a copy of this request, or nil.
	Mirror *pool.Pool
	// Strip is the number of leading bytes of the path that are not forwarded.
	Strip int
}

// Match finds the route of a request and the pool of its service.
func (t *Table) Match(q *Request) Target {
	if t.router != nil {
		if r := t.router.match(q); r != nil {
			to := Target{Route: r, Pool: t.pool(r.slot), Strip: r.Prefix()}
			if r.Rules != nil {
				t.choose(r.Rules, &to)
			}
			return to
		}
	}
	return t.automatic(q)
}
