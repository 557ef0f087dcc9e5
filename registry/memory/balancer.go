package memory

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/rota-lb/rota/registry"
)

// presence is one balancer being kept. Store.mu protects it all.
type presence struct {
	client *Client
	id     string
	keys   map[string][]byte // what is to stand under the client's lease
}

// Join is that of [registry.Balancers].
func (c *Client) Join(b registry.Balancer) (registry.Presence, error) {
	value, err := b.Encode()
	if err != nil {
		return nil, err
	}
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	p := &presence{client: c, id: b.ID, keys: map[string][]byte{c.store.Keys.Balancer(b.ID): value}}
	c.store.presences[p] = struct{}{}
	p.settle()
	return p, nil
}

// settle writes what the store lacks. Callers hold Store.mu.
func (p *presence) settle() {
	if !p.client.connected {
		return
	}
	var ops []op
	for key, value := range p.keys {
		if e, ok := p.client.store.entries[key]; !ok || string(e.value) != string(value) || e.lease != p.client.lease {
			ops = append(ops, op{key: key, value: value, lease: p.client.grant()})
		}
	}
	p.client.store.commit(ops)
}

func (p *presence) Acknowledge(service, id, incarnation string) {
	p.client.store.mu.Lock()
	defer p.client.store.mu.Unlock()
	p.keys[p.client.store.Keys.Ack(service, id, p.id)] = registry.Ack{Incarnation: incarnation}.Encode()
	p.settle()
}

func (p *presence) Forget(service, id string) {
	p.client.store.mu.Lock()
	defer p.client.store.mu.Unlock()
	p.drop(p.client.store.Keys.Ack(service, id, p.id))
}

// drop deletes keys. Callers hold Store.mu.
func (p *presence) drop(keys ...string) {
	var ops []op
	for _, key := range keys {
		delete(p.keys, key)
		if _, ok := p.client.store.entries[key]; ok && p.client.connected {
			ops = append(ops, op{key: key, deleted: true})
		}
	}
	p.client.store.commit(ops)
}

func (p *presence) Renew() {
	p.client.store.mu.Lock()
	defer p.client.store.mu.Unlock()
	p.settle()
}

func (p *presence) Leave(context.Context) error {
	c := p.client
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	p.drop(slices.Collect(maps.Keys(p.keys))...)
	delete(c.store.presences, p)
	if !c.connected {
		return ErrDisconnected
	}
	return nil
}

// Drain is that of [registry.Registration].
func (r *registration) Drain(ctx context.Context) error {
	err := r.Update(ctx, func(in *registry.Instance) { in.State, in.DrainAck = registry.Draining, true })
	if err != nil {
		return err
	}
	in := r.Instance()
	ctx, done := context.WithCancelCause(ctx)
	over := make(chan struct{})
	defer func() { done(nil); <-over }()
	go func() {
		defer close(over)
		done(r.wait(ctx, func() (bool, error) { return r.over(), r.err }))
	}()
	var missing error
	live, acks := map[string]bool{}, map[string][]byte{}
	err = r.client.Watch(ctx, registry.Scope{}, func(u registry.Update) {
		if u.Reset {
			clear(live)
			clear(acks)
		}
		for _, ch := range u.Changes {
			switch {
			case ch.Kind == registry.KindBalancer && ch.Deleted:
				delete(live, ch.ID)
			case ch.Kind == registry.KindBalancer:
				live[ch.ID] = true
			case ch.Kind == registry.KindAck && ch.Service == in.Service && ch.ID == in.ID:
				acks[ch.Balancer] = ch.Value
			}
		}
		if missing = registry.Unacknowledged(in.Incarnation, slices.Collect(maps.Keys(live)), acks); missing == nil && u.Err == nil {
			done(errDrained)
		}
	})
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errDrained):
		return nil
	case errors.Is(cause, err):
		return errors.Join(missing, err)
	default:
		return cause
	}
}

// errDrained ends the watch of a Drain.
var errDrained = errors.New("drained")
