package admin

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/config"
)

// Override is the body of PATCH /api/v1/services/{service}/instances/{id}: what is left out stays, null takes it away.
type Override struct {
	Drain  *bool           `json:"drain,omitempty"`
	Weight json.RawMessage `json:"weight,omitempty"` // a number, or null for the instance's own
}

func (a *API) override(w http.ResponseWriter, r *http.Request) {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	var o Override
	var weight *int
	if err := d.Decode(&o); err != nil || len(o.Weight) > 0 && json.Unmarshal(o.Weight, &weight) != nil {
		problem(w, http.StatusBadRequest, `write a body such as {"drain": true} or {"weight": 50}; null takes it away`)
		return
	}
	err := a.Control.Override(r.Context(), by(r), r.PathValue("service"), r.PathValue("id"), func(c *config.Override) {
		if o.Drain != nil {
			c.Drain = *o.Drain
		}
		if len(o.Weight) > 0 {
			c.Weight = weight
		}
	})
	var invalid config.Errors
	switch {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case errors.Is(err, control.ErrNoInstance):
		problem(w, http.StatusNotFound, err.Error())
	case errors.Is(err, control.ErrReadOnly):
		problem(w, http.StatusConflict, err.Error())
	case errors.As(err, &invalid):
		problem(w, http.StatusUnprocessableEntity, err.Error())
	default:
		problem(w, http.StatusBadGateway, err.Error())
	}
}
