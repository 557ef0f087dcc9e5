package admin

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/rota-lb/rota/balancer/internal/control"
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
	// Services are those of which another number of instances would take requests.
	Services []Capacity `json:"services,omitempty"`
	// Replayed is how many sampled requests were matched again. Not all header fields are kept, and no secrets, in the query either:
	// Uncertain is for how many of them a route asks about one that is not.
	Replayed  int `json:"replayed"`
	Uncertain int `json:"uncertain,omitempty"`
	// Moves are the requests that would go elsewhere, or meet a service that would be under its floor.
	Moves []Move `json:"moves,omitempty"`
	// Broken is the share of them that would get no answer from an instance although they do now, or that would meet a service which
	// has come under its floor: less than half of its instances can take requests.
	Broken float64 `json:"broken"`
}

// Capacity is how many instances of a service take requests, and would.
type Capacity struct {
	Service string `json:"service"`
	Was     int    `json:"was"`
	Is      int    `json:"is"`
	Of      int    `json:"of"` // instances there would be, whatever their state
	// Under says why that is too few; empty when it is not.
	Under string `json:"under,omitempty"`
	// Share is that of the sampled requests which would go there.
	Share float64 `json:"share"`
}

// Move is a share of the requests that would go elsewhere, or stay where they should not.
type Move struct {
	From    string  `json:"from"` // a service, or part of one, a redirect, or what is answered instead
	To      string  `json:"to"`
	Share   float64 `json:"share"`
	Example string  `json:"example"`
	// Under says why To is no good place.
	Under string `json:"under,omitempty"`
}

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
		c, err := a.ReadConfig([]byte(in.Config))
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

// replay matches what was sampled against the table that is and the one that would be.
func (a *API) replay(r *http.Request, d control.Draft) (Plan, error) {
	p, err := a.Control.Preview(r.Context(), d)
	if err != nil {
		return Plan{}, err
	}
	return Replay(&p, a.Journal.Sample()), nil
}
