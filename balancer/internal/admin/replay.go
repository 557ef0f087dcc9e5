package admin

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/balancer/internal/journal"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/internal/telemetry"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
)

// kept are the header fields of a request that is remembered. It notes whether a route asks about one that is not known.
type kept struct {
	journal.Fields
	unknown bool
}

// Value implements route.Fields.
func (k *kept) Value(name string, n int) ([]byte, bool) {
	value, ok, known := k.Fields.Value(name, n)
	k.unknown = k.unknown || !known
	return []byte(value), ok
}

// Replay matches sampled requests against both tables of a preview, and says what would be different.
func Replay(p *control.Preview, sample []journal.Entry) Plan {
	out := Plan{Differences: p.Differences, Conflicts: conflicts(p)}
	if out.Differences == nil {
		out.Differences = []config.Difference{}
	}
	moves := map[Move]float64{} // without Share and Example
	examples := map[Move]string{}
	visits := map[string]float64{} // of services, then
	broken := 0.0
	parameters := asked(p.Now, p.Then)
	for _, e := range sample {
		fields := kept{Fields: e.Fields}
		q := request(&e, &fields)
		now, then := spread(p.Now, q, p.Had), spread(p.Then, q, p.Has)
		out.Replayed++
		if fields.unknown || hides(e.Query, parameters) {
			out.Uncertain++
		}
		for _, at := range then {
			visits[at.part.Service] += at.share
		}
		for _, m := range changes(now, then) {
			share := m.Share
			m.Share = 0
			if moves[m] += share; examples[m] == "" {
				examples[m] = e.Method + " " + cmp.Or(e.Scheme, "http") + "://" + e.Host + e.Path
			}
		}
		broken += max(0, bad(then, nil)-bad(now, then), lost(then)-lost(now))
	}
	for m, n := range moves {
		m.Share, m.Example = n/float64(out.Replayed), examples[m]
		out.Moves = append(out.Moves, m)
	}
	slices.SortFunc(out.Moves, func(a, b Move) int {
		return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	for _, c := range capacities(p) {
		if out.Replayed > 0 {
			c.Share = visits[c.Service] / float64(out.Replayed)
		}
		out.Services = append(out.Services, c)
	}
	if out.Replayed > 0 {
		out.Broken = broken / float64(out.Replayed)
	}
	return out
}

// asked are the parameters of queries that routes of the tables ask about.
func asked(tables ...*route.Table) map[string]bool {
	names := map[string]bool{}
	for _, t := range tables {
		if t.Router() == nil {
			continue
		}
		for _, r := range t.Router().Routes {
			if r.Rules == nil {
				continue
			}
			for _, c := range r.Rules.Conditions {
				if c.Of == route.OfQuery {
					names[c.Name] = true
				}
			}
		}
	}
	return names
}

// hides reports whether the value of one of the parameters was not kept.
func hides(query string, parameters map[string]bool) bool {
	if len(parameters) == 0 || !strings.Contains(query, telemetry.Redacted) {
		return false
	}
	for text := range strings.SplitSeq(strings.TrimPrefix(query, "?"), "&") {
		name, value, _ := strings.Cut(text, "=")
		if known, err := url.QueryUnescape(name); err == nil {
			name = known
		}
		if parameters[name] && strings.Contains(value, telemetry.Redacted) {
			return true
		}
	}
	return false
}

// conflicts are those of a preview that are not there now.
func conflicts(p *control.Preview) (list []Conflict) {
	known := map[[2]string]bool{}
	if rt := p.Now.Router(); rt != nil {
		for _, c := range rt.Conflicts {
			known[[2]string{c.Winner.Name, c.Loser.Name}] = true
		}
	}
	for _, c := range p.Then.Router().Conflicts {
		if !known[[2]string{c.Winner.Name, c.Loser.Name}] {
			list = append(list, Conflict{asRoute(c.Winner), asRoute(c.Loser)})
		}
	}
	return list
}

// capacities are those of the services of a preview where they would change, by name.
func capacities(p *control.Preview) (list []Capacity) {
	for part, of := range p.Has {
		if part.Subset != (route.Subset{}) {
			continue
		}
		was, is := p.Now.Pool(part.Service), p.Then.Pool(part.Service)
		if c := (Capacity{Service: part.Service, Was: serving(was), Is: serving(is), Of: of}); c.Was != c.Is || p.Had[part] != of {
			if of > 0 {
				c.Under = under(c.Is, of)
			}
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b Capacity) int { return cmp.Compare(a.Service, b.Service) })
	return list
}

// place is where requests like one go, or some of them.
type place struct {
	name    string
	part    control.Part // zero when it is no service
	share   float64
	serving int    // instances that can take them
	under   string // why it is no good place; empty when it is
	lost    bool   // they get no answer there
}

// spread lists where requests like q go by a table, with the number of instances that there are. The shares of a split are places
// of their own: which of them is chance.
func spread(t *route.Table, q *route.Request, instances map[control.Part]int) (list []place) {
	to := t.Match(q)
	switch {
	case to.Route == nil:
		return []place{{name: noRoute, share: 1, under: "no route matches", lost: true}}
	case to.Route.Rules != nil && to.Route.Rules.Redirect != nil:
		return []place{{name: "redirect " + to.Route.Rules.Redirect.String(), share: 1}}
	}
	for _, d := range t.Destinations(to) {
		at := place{name: d.Service, part: control.Part{Service: d.Service, Subset: d.Subset}, share: d.Share, serving: serving(d.Pool)}
		if i := slices.IndexFunc(list, func(p place) bool { return p.part == at.part }); i >= 0 {
			list[i].share += at.share
			continue
		}
		if d.Subset.Version != "" {
			at.name += " " + d.Subset.Version
		}
		if d.Subset.Metadata != "" {
			at.name += " " + strings.ReplaceAll(d.Subset.Metadata, "\n", " ")
		}
		if at.lost = at.serving == 0; at.lost {
			at.name = noInstance + " of " + at.name
		}
		at.under = under(at.serving, instances[at.part])
		list = append(list, at)
	}
	return list
}

func serving(p *pool.Pool) int {
	if p == nil {
		return 0
	}
	return p.Len()
}

// under says why so many instances are too few; empty when they are not.
func under(serving, of int) string {
	switch {
	case serving == 0:
		return "no instance can take it"
	case 2*serving < of:
		return fmt.Sprintf("less than half of its instances can take it: %d of %d", serving, of)
	}
	return ""
}

func find(list []place, name string) place {
	for _, p := range list {
		if p.name == name {
			return p
		}
	}
	return place{}
}

// worse reports whether a service that is under its floor now would have fewer instances then.
func (p place) worse(then []place) bool {
	return p.part.Service != "" && slices.ContainsFunc(then, func(is place) bool {
		return is.part == p.part && is.under != "" && is.serving < p.serving
	})
}

// bad is the share of requests at places that are no good, but for those that would be worse then.
func bad(list, then []place) (share float64) {
	for _, p := range list {
		if p.under != "" && !p.worse(then) {
			share += p.share
		}
	}
	return share
}

// lost is the share of requests that get no answer.
func lost(list []place) (share float64) {
	for _, p := range list {
		if p.lost {
			share += p.share
		}
	}
	return share
}

// changes are how one spread becomes another: what is less in some places is more in others, and in others still what stays meets a
// service that has come under its floor.
func changes(now, then []place) (list []Move) {
	const least = 1e-9 // shares are sums of fractions
	more := 0.0
	for _, is := range then {
		was := find(now, is.name)
		more += max(0, is.share-was.share)
		if stay := min(is.share, was.share); stay > 0 && is.under != "" && (was.under == "" || was.worse(then)) {
			list = append(list, Move{From: is.name, To: is.name, Share: stay, Under: is.under})
		}
	}
	if more < least {
		return list
	}
	for _, was := range now {
		less := was.share - find(then, was.name).share
		for _, is := range then {
			if gain := is.share - find(now, is.name).share; less > least && gain > least {
				list = append(list, Move{From: was.name, To: is.name, Share: less * gain / more, Under: is.under})
			}
		}
	}
	return list
}

// request is one that is remembered, as it was matched.
func request(e *journal.Entry, fields route.Fields) *route.Request {
	return &route.Request{Scheme: e.Scheme, Method: []byte(e.Method), Host: []byte(e.Host), Path: []byte(e.Path), Query: []byte(e.Query), Fields: fields}
}

const (
	noRoute    = "404 no_route"
	noInstance = "503 no_healthy_upstream"
)
