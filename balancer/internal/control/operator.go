package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
)

// Errors of what operators ask for.
var (
	// ErrNoInstance says that no instance of that id is known.
	ErrNoInstance = errors.New("no such instance")
	// ErrReadOnly says that there is no registry that could take the change.
	ErrReadOnly = errors.New("there is no registry to write to: change the configuration file")
)

// Override changes an operator's word about an instance, in the policy of its service in the registry, so that every
// balancer heeds it, and it outlives them all. An override that says nothing any more is taken away.
func (c *Controller) Override(ctx context.Context, by, service, id string, change func(*config.Override)) error {
	editor, ok := c.Registry.(registry.Editor)
	if !ok {
		return ErrReadOnly
	}
	known := false
	if !c.do(ctx, func() {
		for _, m := range c.fold.Members(service) {
			known = known || m.Endpoint.ID == id
		}
		known = known || c.policy(service).Overrides[id] != config.Override{}
	}) {
		return endedOr(ctx)
	}
	if !known {
		return fmt.Errorf("%w: %s/%s", ErrNoInstance, service, id)
	}
	var said config.Override
	err := editor.Edit(ctx, registry.Keys{Prefix: c.Prefix}.Policy(service), func(old []byte) ([]byte, error) {
		return config.EditPolicy(service, old, func(p *config.Service) {
			said = p.Overrides[id]
			change(&said)
			p.Overrides = maps.Clone(p.Overrides)
			if said == (config.Override{}) {
				delete(p.Overrides, id)
			} else {
				if p.Overrides == nil {
					p.Overrides = map[string]config.Override{}
				}
				p.Overrides[id] = said
			}
			if len(p.Overrides) == 0 {
				p.Overrides = nil
			}
		})
	})
	if err != nil {
		return err
	}
	text := "as it says itself"
	switch {
	case said.Drain && said.Weight != nil:
		text = fmt.Sprintf("drained, with weight %d", *said.Weight)
	case said.Drain:
		text = "drained"
	case said.Weight != nil:
		text = fmt.Sprintf("weight %d", *said.Weight)
	}
	c.Audit(by, service, id, text)
	return nil
}

// Audit notes what an operator has done, and from where.
func (c *Controller) Audit(by, service, id, text string) {
	c.events.add(Event{At: time.Now(), Kind: EventOperator, Service: service, Instance: id, Text: text + ", by " + by})
	c.Logger.Info("an operator has changed something", zap.String("service", service), zap.String("instance", id), zap.String("what", text), zap.String("by", by))
}
