package control

import "time"

const (
	// forgetAfter is how long a service is kept of which nobody speaks any more, with its counters: it may come back.
	forgetAfter = 10 * time.Minute
	// pruneEvery is how often such services are looked for.
	pruneEvery = time.Minute
)

// prune forgets the services that have no instance, policy, configuration or route, and have had none for a while. Whoever can
// write keys could otherwise fill the memory, and the metrics, with names.
func (c *Controller) prune(now time.Time) {
	if now.Sub(c.pruned) < pruneEvery {
		return
	}
	c.pruned = now
	for name, s := range c.services {
		_, configured := c.dynamic.Services[name]
		_, policy := c.policies[name]
		switch {
		case c.fold.Has(name) || configured || policy || s.routed || len(s.subsets) > 0 || c.touched[name]:
			s.idle = time.Time{}
		case s.idle.IsZero():
			s.idle = now
		case now.Sub(s.idle) >= forgetAfter:
			delete(c.services, name)
			delete(c.slots, name)
			delete(c.claims, name)
			c.vacated = append(c.vacated, s.slot)
			c.reroute = true
			if c.Departed != nil {
				c.Departed(s.shared)
			}
		}
	}
}
