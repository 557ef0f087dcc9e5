package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/config"
)

// What operators write: routes and policies of the registry, and the level of the log. Every write is noted with who did it and
// from where. Routes and policies, drains and weights in them too, are weighed against the requests of late first, and refused when
// too many of them would break, unless force=true or another limit is asked for.

// Level is the body and the answer of /api/v1/loglevel.
type Level struct {
	Level string `json:"level"` // debug, info, warn, error
}

// errBody says what a body should have been.
type errBody struct{ want string }

func (e errBody) Error() string { return e.want }

// read reads a body into v. What it cannot be is refused with what it should be.
func read(w http.ResponseWriter, r *http.Request, v any, want string) bool {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		refuse(w, errBody{want + ": " + err.Error()})
		return false
	}
	return true
}

// refuse answers with what has gone wrong: the one function from error to status.
func refuse(w http.ResponseWriter, err error) {
	var invalid config.Errors
	var body errBody
	var broken errBroken
	switch {
	case errors.As(err, &body), errors.Is(err, errDraft):
		problem(w, http.StatusBadRequest, err.Error())
	case errors.Is(err, control.ErrNoInstance):
		problem(w, http.StatusNotFound, err.Error())
	case errors.Is(err, control.ErrReadOnly):
		problem(w, http.StatusConflict, err.Error())
	case errors.Is(err, control.ErrChanged):
		problem(w, http.StatusPreconditionFailed, err.Error())
	case errors.As(err, &broken):
		problem(w, http.StatusConflict, err.Error())
	case errors.As(err, &invalid):
		problem(w, http.StatusUnprocessableEntity, err.Error())
	case errors.Is(err, control.ErrEnded):
		problem(w, http.StatusServiceUnavailable, err.Error())
	default:
		problem(w, http.StatusBadGateway, err.Error())
	}
}

// errBroken says that a write would break too many requests.
type errBroken struct{ plan Plan }

func (e errBroken) Error() string {
	m := Move{}
	for _, v := range e.plan.Moves {
		if v.Under != "" {
			m = v
			break
		}
	}
	fate := fmt.Sprintf("go from %s to %s", m.From, m.To)
	if m.From == m.To {
		fate = "go to " + m.To + " as now"
	}
	return fmt.Sprintf("%.1f %% of the %d requests sampled of late would break: %s would %s, where %s. See POST /api/v1/plan or rota plan; force=true or --force writes it all the same",
		100*e.plan.Broken, e.plan.Replayed, m.Example, fate, m.Under)
}

// MostBroken is the percentage of broken requests from which on a write is refused that neither is forced nor names another limit.
const MostBroken = 1

// weigh replays the requests of late against a draft, and refuses the write when too many of them would break.
func (a *API) weigh(r *http.Request, d control.Draft) error {
	limit, query := float64(MostBroken), r.URL.Query()
	if text := query.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64); err != nil || !(limit >= 0 && limit <= 100) {
			return errBody{fmt.Sprintf("limit %q: write a percentage of the requests, from 0 to 100", text)}
		}
	}
	if query.Get("force") == "true" {
		return nil
	}
	p, err := a.replay(r, d)
	if err == nil && p.Broken > 0 && 100*p.Broken >= limit {
		return errBroken{p}
	}
	return err
}

// stored answers with the value of a key that operators write, with its tag, or 404.
func stored(w http.ResponseWriter, r *http.Request, value []byte, err error, what string) {
	switch {
	case err != nil:
		refuse(w, err)
	case value == nil:
		problem(w, http.StatusNotFound, "the registry has no "+what)
	default:
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("ETag", etag(value))
		if r.Header.Get("If-None-Match") == etag(value) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Write(value)
	}
}

func (a *API) route(w http.ResponseWriter, r *http.Request) {
	value, err := a.Control.RouteValue(r.Context(), r.PathValue("name"))
	stored(w, r, value, err, "route "+r.PathValue("name"))
}

func (a *API) policy(w http.ResponseWriter, r *http.Request) {
	value, err := a.Control.PolicyValue(r.Context(), r.PathValue("service"))
	stored(w, r, value, err, "policy of "+r.PathValue("service"))
}

func (a *API) setRoute(w http.ResponseWriter, r *http.Request) {
	a.set(w, r, func(value json.RawMessage) (control.Draft, error) {
		d, _, err := routeDraft(r.PathValue("name"), value)
		return d, err
	})
}

func (a *API) setPolicy(w http.ResponseWriter, r *http.Request) {
	a.set(w, r, func(value json.RawMessage) (control.Draft, error) {
		d, _, err := policyDraft(r.PathValue("service"), value)
		return d, err
	})
}

// set puts or deletes the value of a route or a policy.
func (a *API) set(w http.ResponseWriter, r *http.Request, draft func(json.RawMessage) (control.Draft, error)) {
	var value json.RawMessage
	if r.Method == http.MethodPut && (!read(w, r, &value, "write the value as JSON") || isNull(value)) {
		return
	}
	d, err := draft(value)
	if err != nil {
		refuse(w, err)
		return
	}
	if err := a.weigh(r, d); err != nil {
		refuse(w, err)
		return
	}
	err = a.Control.Write(r.Context(), by(r), d, value, func(old []byte) error {
		switch match := r.Header.Get("If-Match"); {
		case match == "" || old != nil && (match == "*" || match == etag(old)):
			return nil
		}
		return control.ErrChanged
	})
	if err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (a *API) level(w http.ResponseWriter, r *http.Request) {
	reply(w, r, http.StatusOK, Level{a.LogLevel.Level().String()})
}

func (a *API) setLevel(w http.ResponseWriter, r *http.Request) {
	var in Level
	if !read(w, r, &in, `write a body such as {"level": "debug"}`) {
		return
	}
	switch in.Level {
	case "debug", "info", "warn", "error":
	default:
		refuse(w, errBody{fmt.Sprintf("level %q: use debug, info, warn or error", in.Level)})
		return
	}
	a.LogLevel.UnmarshalText([]byte(in.Level))
	a.Control.Audit(by(r), "", "", "log level "+in.Level)
	reply(w, r, http.StatusOK, in)
}
