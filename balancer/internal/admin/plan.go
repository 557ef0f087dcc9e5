package admin

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/balancer/internal/journal"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/config"
)

// Draft is the body of POST /api/v1/plan: one of a configuration file, a route and a policy, as they are to be.
type Draft struct {
	Config  string          `json:"config,omitempty"`  // YAML
	Route   string          `json:"route,omitempty"`   // a name
	Service string          `json:"service,omitempty"` // whose policy it is
	Value   json.RawMessage `json:"value,omitempty"`   // of the route or the policy; null takes it away
}

// Plan says what a change would do, had it been made before the requests that were sampled.
type Plan struct {
	Differences []config.Difference `json:"differences"`
	// Conflicts are routes that would never match, and do now.
	Conflicts []Conflict `json:"conflicts,omitempty"`
	// Replayed is how many sampled requests were matched again. Not all header fields are kept, least of all secrets: Uncertain is
	// for how many of them a route asked about one that is not.
	Replayed  int `json:"replayed"`
	Uncertain int `json:"uncertain,omitempty"`
	// Moves are the requests that would go elsewhere.
	Moves []Move `json:"moves,omitempty"`
	// Broken is the share of them that would get no answer from an instance although they do now, or that would go elsewhere, to
	// a service of which less than half can serve.
	Broken float64 `json:"broken"`
}

// Move is a share of the requests that would go elsewhere.
type Move struct {
	From    string  `json:"from"` // a service, "redirect", or what is answered instead
	To      string  `json:"to"`
	Share   float64 `json:"share"`
	Example string  `json:"example"`
	// Under says why To is no good place.
	Under string `json:"under,omitempty"`
}

// mostBroken is the share of broken requests from which on a write is refused that is not forced.
const mostBroken = 0.01

func (a *API) plan(w http.ResponseWriter, r *http.Request) {
	var in Draft
	if !read(w, r, &in, `write a body such as {"config": "…"}, {"route": "cart", "value": {…}} or {"service": "cart", "value": {…}}`) {
		return
	}
	draft, restart, err := a.draft(in)
	if err != nil {
		refuse(w, err)
		return
	}
	p, err := a.replay(r, draft)
	if err != nil {
		refuse(w, err)
		return
	}
	p.Differences = append(restart, p.Differences...)
	reply(w, r, http.StatusOK, p)
}

// errDraft says that a draft is none.
var errDraft = errors.New("give one of config, route and service")

// draft reads a draft, and the differences that only a restart makes.
func (a *API) draft(in Draft) (d control.Draft, restart []config.Difference, err error) {
	switch {
	case in.Config != "" && in.Route == "" && in.Service == "":
		c, err := config.Parse("plan", []byte(in.Config))
		if err != nil {
			return d, nil, err
		}
		static := *a.Static
		return control.Draft{Config: &c.Dynamic}, config.Diff(&config.Config{Static: static}, &config.Config{Static: c.Static}), nil
	case in.Route != "" && in.Config == "" && in.Service == "":
		return routeDraft(in.Route, in.Value)
	case in.Service != "" && in.Config == "" && in.Route == "":
		return policyDraft(in.Service, in.Value)
	}
	return d, nil, errDraft
}

func routeDraft(name string, value json.RawMessage) (d control.Draft, _ []config.Difference, err error) {
	d.Route = &control.RouteDraft{Name: name}
	if !isNull(value) {
		v, err := config.ParseRoute(name, value)
		if err != nil {
			return d, nil, err
		}
		d.Route.Value = &v
	}
	return d, nil, nil
}

func policyDraft(service string, value json.RawMessage) (d control.Draft, _ []config.Difference, err error) {
	d.Policy = &control.PolicyDraft{Service: service}
	if !isNull(value) {
		v, err := config.ParsePolicy(service, value)
		if err != nil {
			return d, nil, err
		}
		d.Policy.Value = &v
	}
	return d, nil, nil
}

func isNull(value json.RawMessage) bool { return len(value) == 0 || string(value) == "null" }

// kept are the header fields of a sampled request. It notes whether a route asks about one that is not known.
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

// replay matches what was sampled against the table that is and the one that would be.
func (a *API) replay(r *http.Request, d control.Draft) (Plan, error) {
	p, err := a.Control.Preview(r.Context(), d)
	if err != nil {
		return Plan{}, err
	}
	return Replay(&p, a.Journal.Sample()), nil
}

// Replay matches sampled requests against both tables of a preview, and says what would be different.
func Replay(p *control.Preview, sample []journal.Entry) Plan {
	out := Plan{Differences: p.Differences}
	if out.Differences == nil {
		out.Differences = []config.Difference{}
	}
	known := map[[2]string]bool{}
	if rt := p.Now.Router(); rt != nil {
		for _, c := range rt.Conflicts {
			known[[2]string{c.Winner.Name, c.Loser.Name}] = true
		}
	}
	for _, c := range p.Then.Router().Conflicts {
		if !known[[2]string{c.Winner.Name, c.Loser.Name}] {
			out.Conflicts = append(out.Conflicts, Conflict{asRoute(c.Winner), asRoute(c.Loser)})
		}
	}
	moves := map[Move]int{} // without Share and Example
	examples := map[Move]string{}
	broken := 0
	for _, e := range sample {
		fields := kept{Fields: e.Fields}
		q := request(&e, &fields)
		now, then := p.Now.Match(q), p.Then.Match(q)
		out.Replayed++
		if fields.unknown {
			out.Uncertain++
		}
		m := Move{From: place(now), To: place(then)}
		if m.From == m.To {
			continue
		}
		m.Under = under(then, p.Instances)
		if m.Under != "" && under(now, p.Instances) == "" {
			broken++
		}
		if moves[m]++; examples[m] == "" {
			examples[m] = e.Method + " http://" + e.Host + e.Path
		}
	}
	for m, n := range moves {
		example := examples[m]
		m.Share, m.Example = float64(n)/float64(out.Replayed), example
		out.Moves = append(out.Moves, m)
	}
	slices.SortFunc(out.Moves, func(a, b Move) int {
		return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	if out.Replayed > 0 {
		out.Broken = float64(broken) / float64(out.Replayed)
	}
	return out
}

// request is a sampled request, as it was matched.
func request(e *journal.Entry, fields route.Fields) *route.Request {
	return &route.Request{Method: []byte(e.Method), Host: []byte(e.Host), Path: []byte(e.Path), Query: []byte(e.Query), Fields: fields}
}

const (
	noRoute    = "404 no_route"
	noInstance = "503 no_healthy_upstream"
	redirect   = "redirect"
)

// place is where a request goes. The shares of a split are one place: which of them is chance.
func place(to route.Target) string {
	switch {
	case to.Route == nil:
		return noRoute
	case to.Route.Rules != nil && to.Route.Rules.Redirect != nil:
		return redirect
	case to.Route.Rules != nil && len(to.Route.Rules.Split) > 0:
		return "split " + to.Route.Name
	case to.Pool == nil || to.Pool.Len() == 0:
		return noInstance + " of " + to.Route.Service
	}
	return to.Route.Service
}

// under says why a place is no good; empty when it is.
func under(to route.Target, instances map[string]int) string {
	switch {
	case to.Route == nil:
		return "no route matches"
	case to.Route.Rules != nil && to.Route.Rules.Redirect != nil:
		return ""
	case to.Pool == nil || to.Pool.Len() == 0:
		return "no instance can take it"
	case 2*to.Pool.Len() < instances[to.Pool.Service.Name]:
		return "less than half of its instances can take it"
	}
	return ""
}
