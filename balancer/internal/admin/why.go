package admin

import (
	"cmp"
	"net/http"
	"strings"
	"time"

	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/balancer/internal/route"
)

// Why is the answer of /api/v1/why: what would become of a request, and for which reasons.
type Why struct {
	Scheme string `json:"scheme"`
	Method string `json:"method"`
	Host   string `json:"host"`
	Path   string `json:"path"` // as it is matched
	Query  string `json:"query,omitempty"`
	// Route is the one that matches; Reason is why there is no answer from an instance, if that is sure.
	Route  *Route  `json:"route,omitempty"`
	Reason string  `json:"reason,omitempty"`
	Losers []Loser `json:"losers,omitempty"`
	// Unlisted is how many losers there are beside those.
	Unlisted int  `json:"losers_unlisted,omitempty"`
	Redirect bool `json:"redirect,omitempty"`
	// Service is whose instances are chosen among, by Policy. With a split it is one of its shares, drawn anew each time.
	Service    string      `json:"service,omitempty"`
	Policy     string      `json:"policy,omitempty"`
	Candidates []Candidate `json:"candidates,omitempty"`
	// PolicyRevision is that of the policy's key in the registry; zero when it has none.
	PolicyRevision int64  `json:"policy_revision,omitempty"`
	Generation     uint64 `json:"table_generation"`
	Revision       int64  `json:"table_revision"`
	// Exchange is what became of the request whose id was asked about. The rest is about another one like it, now.
	Exchange *Exchange `json:"exchange,omitempty"`
	// Uncertain says that a route asks about a header field or a query parameter whose value is not remembered.
	Uncertain bool `json:"uncertain,omitempty"`
}

// Exchange is a request that was served, as far as that is remembered.
type Exchange struct {
	At             time.Time `json:"at"`
	ID             string    `json:"request_id"`
	Client         string    `json:"client,omitempty"`
	Status         int       `json:"status"`
	Reason         string    `json:"reason,omitempty"`
	Route          string    `json:"route,omitempty"`
	Service        string    `json:"service,omitempty"`
	Upstream       string    `json:"upstream,omitempty"` // of the last attempt
	UpstreamStatus int       `json:"upstream_status,omitempty"`
	Attempts       int       `json:"attempts"`
	Duration       float64   `json:"duration"`                    // seconds
	UpstreamTook   float64   `json:"upstream_duration,omitempty"` // to the head of the answer
	Revision       int64     `json:"table_revision"`
}

// Loser is a route that does not get the request.
type Loser struct {
	Route Route  `json:"route"`
	Why   string `json:"why"`
}

// Candidate is an instance of the service.
type Candidate struct {
	Instance
	// Chosen says that it is one of those that the policy chooses among, and Share the weight it has there.
	Chosen bool `json:"chosen"`
	Share  int  `json:"share"`
	// Load is what policies compare: requests in flight, here and, as far as the instance says, from elsewhere.
	Load int64 `json:"load"`
}

// mostLosers bounds the routes that are listed.
const mostLosers = 200

func (a *API) why(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	header := http.Header{}
	for _, line := range query["header"] {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			problem(w, http.StatusBadRequest, "header: write it as in header=X-Beta:1")
			return
		}
		header.Add(name, strings.TrimSpace(value))
	}
	var out Why
	var q *route.Request
	var fields kept // of a request that is remembered
	if id := query.Get("request_id"); id != "" {
		e, ok := a.Journal.Find(id)
		if !ok {
			problem(w, http.StatusNotFound, "request "+id+" is not remembered: of those that went well only a sample is, and all of them only for a while; the access log has them")
			return
		}
		fields.Fields = e.Fields
		q = request(&e, &fields)
		out.Exchange = &Exchange{
			At: e.At, ID: e.ID, Client: e.Client, Status: e.Status, Reason: e.Reason, Route: e.Route, Service: e.Service, Upstream: e.Upstream,
			UpstreamStatus: e.UpstreamStatus, Attempts: e.Attempts, Duration: e.Duration.Seconds(), UpstreamTook: e.UpstreamTook.Seconds(), Revision: e.Revision,
		}
	} else {
		var err error
		if q, err = a.Request(cmp.Or(query.Get("method"), http.MethodGet), query.Get("url"), header); err != nil {
			problem(w, http.StatusBadRequest, err.Error())
			return
		}
	}
	table := a.Control.Store.Load()
	out.Scheme, out.Method, out.Host, out.Path, out.Query = cmp.Or(q.Scheme, "http"), string(q.Method), string(q.Host), string(q.Path), string(q.Query)
	out.Generation, out.Revision = table.Generation, table.Revision
	to := table.Match(q)
	for _, fit := range table.Explain(q) {
		if fit.Route == to.Route {
			continue
		}
		if len(out.Losers) == mostLosers {
			out.Unlisted++
			continue
		}
		why := fit.Why
		if fit.Covered != nil {
			why += ": " + fit.Covered.Name
		} else if why == "" {
			why = "it matches, too, but comes after"
		}
		out.Losers = append(out.Losers, Loser{asRoute(fit.Route), why})
	}
	out.Uncertain = fields.unknown || out.Exchange != nil && hides(out.Query, asked(table))
	switch {
	case to.Route == nil && table.Generation == 0:
		out.Reason = "no_table_yet"
	case to.Route == nil:
		out.Reason = "no_route"
	default:
		v := asRoute(to.Route)
		out.Route = &v
		out.Redirect = to.Route.Rules != nil && to.Route.Rules.Redirect != nil
		if to.Pool == nil && !out.Redirect {
			out.Reason, out.Service = "no_healthy_upstream", to.Route.Service
		}
	}
	if to.Pool == nil {
		reply(w, r, http.StatusOK, out)
		return
	}
	choice, err := a.Control.Choice(r.Context(), to.Pool)
	if err != nil {
		problem(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	weights, err := a.Control.Weights(r.Context(), choice.Service)
	if err != nil {
		problem(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	out.Service, out.Policy, out.PolicyRevision = choice.Service, choice.Policy, choice.Revision
	if to.Pool.Len() == 0 {
		out.Reason = "no_healthy_upstream"
	}
	for _, c := range choice.Endpoints {
		out.Candidates = append(out.Candidates, candidate(c, weights[c.Endpoint]))
	}
	reply(w, r, http.StatusOK, out)
}

func candidate(c control.Candidate, weight control.Weight) Candidate {
	return Candidate{Instance: instance(c.Instance, weight), Chosen: c.Chosen, Share: c.Weight, Load: c.Endpoint.Load()}
}
