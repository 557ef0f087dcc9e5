package admin

import (
	"encoding/json"
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
	const want = `write a body such as {"drain": true} or {"weight": 50}; null takes it away`
	var o Override
	if !read(w, r, &o, want) {
		return
	}
	var weight *int
	if len(o.Weight) > 0 && json.Unmarshal(o.Weight, &weight) != nil {
		refuse(w, errBody{want})
		return
	}
	service, id := r.PathValue("service"), r.PathValue("id")
	change := func(c *config.Override) {
		if o.Drain != nil {
			c.Drain = *o.Drain
		}
		if len(o.Weight) > 0 {
			c.Weight = weight
		}
	}
	if err := a.weigh(r, control.Draft{Override: &control.OverrideDraft{Service: service, ID: id, Change: change}}); err != nil {
		refuse(w, err)
		return
	}
	if err := a.Control.Override(r.Context(), by(r), service, id, change); err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
