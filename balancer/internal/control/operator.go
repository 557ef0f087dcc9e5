package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
)

// Errors of what operators ask for.
var (
	// ErrNoInstance says that no instance of that id is known.
	ErrNoInstance = errors.New("no such instance")
	// ErrChanged says that a value is not any more what it was when it was read.
	ErrChanged = errors.New("the value has changed since it was read: read it again")
	// ErrReadOnly says that there is no registry that could take the change.
	ErrReadOnly = errors.New("there is no registry to write to: change the configuration file")
	// ErrSilent says that the registry has not answered in time.
	ErrSilent = errors.New("the registry does not answer")
)

// writeTime is how long the registry may take over what an operator writes.
const writeTime = 5 * time.Second

// edit changes a value of the registry. While that does not answer, whoever waits is told so.
func (c *Controller) edit(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	editor, ok := c.Registry.(registry.Editor)
	if !ok {
		return ErrReadOnly
	}
	within, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	err := editor.Edit(within, key, change)
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w for %v: look whether the change was made before you make it again", ErrSilent, writeTime)
	}
	return err
}

// Write replaces what the registry has under the key of a draft's route or policy by value; nil deletes it. check is asked about
// what is there before; its error is returned.
func (c *Controller) Write(ctx context.Context, by string, d Draft, value []byte, check func(old []byte) error) error {
	keys := registry.Keys{Prefix: c.Prefix}
	key, service, what := "", "", ""
	var known func(context.Context) ([]byte, error)
	switch {
	case d.Route != nil:
		key, what = keys.Route(d.Route.Name), "route "+d.Route.Name
		known = func(ctx context.Context) ([]byte, error) { return c.RouteValue(ctx, d.Route.Name) }
	case d.Policy != nil:
		key, service, what = keys.Policy(d.Policy.Service), d.Policy.Service, "policy"
		known = func(ctx context.Context) ([]byte, error) { return c.PolicyValue(ctx, d.Policy.Service) }
	default:
		return errDraft
	}
	done := " deleted"
	if value != nil {
		done = " written"
	}
	err := c.edit(ctx, key, func(old []byte) ([]byte, error) { return value, check(old) })
	if err == nil {
		follow(ctx, value, known)
		c.Audit(by, service, "", what+done)
	}
	return err
}

// follow waits until what was written is known here, so that whoever reads next finds it: for a second at most, since others
// may write, too, and the registry has it in any case.
func follow(ctx context.Context, value []byte, known func(context.Context) ([]byte, error)) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if now, err := known(ctx); err != nil || bytes.Equal(now, value) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// RouteValue is what the registry has under the key of a route; nil is nothing.
func (c *Controller) RouteValue(ctx context.Context, name string) (value []byte, err error) {
	if !c.do(ctx, func() { value = c.etcd[name].raw }) {
		return nil, endedOr(ctx)
	}
	return value, nil
}

// PolicyValue is what the registry has under the key of a policy; nil is nothing.
func (c *Controller) PolicyValue(ctx context.Context, service string) (value []byte, err error) {
	if !c.do(ctx, func() { value = c.policies[service].raw }) {
		return nil, endedOr(ctx)
	}
	return value, nil
}

// Override changes an operator's word about an instance, in the policy of its service in the registry, so that every
// balancer heeds it, and it outlives them all. An override that says nothing any more is taken away.
func (c *Controller) Override(ctx context.Context, by, service, id string, change func(*config.Override)) error {
	if _, ok := c.Registry.(registry.Editor); !ok {
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
	var value []byte
	err := c.edit(ctx, registry.Keys{Prefix: c.Prefix}.Policy(service), func(old []byte) (_ []byte, err error) {
		value, err = config.EditPolicy(service, old, func(p *config.Service) { said = p.Override(id, change) })
		return value, err
	})
	if err != nil {
		return err
	}
	follow(ctx, value, func(ctx context.Context) ([]byte, error) { return c.PolicyValue(ctx, service) })
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
