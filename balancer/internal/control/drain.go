package control

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

const (
	// drainInterval is how often the exchanges are counted that draining instances still have.
	drainInterval = 10 * time.Millisecond
	// leaveTimeout bounds the deletion of the balancer's own keys.
	leaveTimeout = time.Second
)

// show sees to it that the balancer is in the registry once it has read it, of which u is the latest.
func (c *Controller) show(u *registry.Update) {
	b, ok := c.Registry.(registry.Balancers)
	if !ok || c.Self.ID == "" {
		return
	}
	if c.presence == nil {
		p, err := b.Join(c.Self)
		if err != nil {
			c.Logger.Error("the balancer does not show in the registry: instances will not wait for it", zap.Error(err))
			c.Self.ID = ""
			return
		}
		c.presence = p
		return
	}
	lost := u.Reset
	for i := range u.Changes {
		if ch := &u.Changes[i]; ch.Kind == registry.KindBalancer && ch.ID == c.Self.ID {
			lost = ch.Deleted
		}
	}
	if lost {
		c.presence.Renew()
	}
}

// leave takes the balancer out of the registry.
func (c *Controller) leave() {
	if c.presence == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := c.presence.Leave(ctx); err != nil {
		c.Logger.Warn("the balancer stays in the registry until its lease ends", zap.Error(err))
	}
}

// opened opens the endpoints of the next pool of a service, and notes which ones of the last it has not: they are closed when
// it is in use. Both are sorted by id.
func (c *Controller) opened(last *pool.Pool, next []pool.Member) {
	for _, m := range next {
		m.Endpoint.Open()
	}
	if last == nil {
		return
	}
	for _, old := range last.Weights {
		for len(next) > 0 && strings.Compare(next[0].Endpoint.ID, old.Endpoint.ID) < 0 {
			next = next[1:]
		}
		if len(next) == 0 || next[0].Endpoint != old.Endpoint {
			c.closing = append(c.closing, old.Endpoint)
		}
	}
}

// acknowledge tells the instances that drain, and want to know, that nothing of theirs is in flight here any more. It
// reports whether it has to look again: some of them are busy. The table in use is one without them, because a table that
// is due is published first.
func (c *Controller) acknowledge() (again bool) {
	if c.presence == nil {
		return false
	}
	leaving := c.fold.Leaving()
	for e := range c.acked {
		if leaving[e] == nil {
			delete(c.acked, e)
			c.presence.Forget(e.Service, e.ID)
		}
	}
	for e := range leaving {
		switch {
		case c.acked[e]:
		case c.touched[e.Service] || e.InFlight() > 0:
			again = true
		default:
			c.acked[e] = true
			c.presence.Acknowledge(e.Service, e.ID, e.Incarnation)
		}
	}
	return again
}
