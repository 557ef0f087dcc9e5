package control

import (
	"context"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
)

// Weight is how much of the traffic an instance gets when that is not just as it says itself.
type Weight struct {
	// Override is an operator's word about the instance; the zero value is none.
	Override config.Override
	// Until is when its slow start ends, and Now what its pool gives it till then; zero when it is in none.
	Until time.Time
	Now   int
}

// Of is the weight that an instance is to have, of which its own is one: the operator's word counts before it.
func (w Weight) Of(own int) int {
	if w.Override.Weight != nil {
		return *w.Override.Weight
	}
	return own
}

// Weights are those of the instances of a service, or of all services if it is empty, about which an operator has said something, or
// which are in their slow start. All others get what they say themselves.
func (c *Controller) Weights(ctx context.Context, service string) (list map[*pool.Endpoint]Weight, err error) {
	if !c.do(ctx, func() { list = c.weights(service) }) {
		return nil, endedOr(ctx)
	}
	return list, nil
}

func (c *Controller) weights(service string) map[*pool.Endpoint]Weight {
	list := map[*pool.Endpoint]Weight{}
	warming := map[string]bool{}
	for e, m := range c.fold.Warming() {
		if service == "" || e.Service == service {
			warming[e.Service] = true
			list[e] = Weight{Until: c.fold.WarmUntil(m)}
		}
	}
	for name := range warming {
		if s := c.services[name]; s != nil && s.pool != nil {
			for _, m := range s.pool.Weights {
				if w, ok := list[m.Endpoint]; ok {
					w.Now = m.Weight
					list[m.Endpoint] = w
				}
			}
		}
	}
	for name := range c.services {
		if service != "" && name != service {
			continue
		}
		said := c.policy(name).Overrides
		if len(said) == 0 {
			continue
		}
		for _, m := range c.fold.Members(name) {
			if o, ok := said[m.Endpoint.ID]; ok {
				w := list[m.Endpoint]
				w.Override = o
				list[m.Endpoint] = w
			}
		}
	}
	return list
}
