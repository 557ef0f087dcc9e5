package registryetcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/rota-lb/rota/registry"
)

// presence keeps the keys of a balancer: its record and its acknowledgements. Its goroutine, run, is the only one that
// writes them; the others change what is to stand there.
type presence struct {
	c    *Client
	log  *zap.Logger
	id   string
	key  string
	stop context.CancelFunc
	done chan struct{} // closed when run has returned
	wake chan struct{} // holds a token when there is something new to write

	mu    sync.Mutex        // protects what follows
	keys  map[string]string // what is to stand under the lease
	stale map[string]bool   // keys of which etcd may hold something else
}

// Join implements [registry.Balancers]. The presence ends also with the client's Close.
func (c *Client) Join(b registry.Balancer) (registry.Presence, error) {
	value, err := b.Encode()
	if err != nil {
		return nil, err
	}
	p := &presence{
		c: c, log: c.log.With(zap.String("balancer", b.ID)), id: b.ID, key: c.keys.Balancer(b.ID),
		done: make(chan struct{}), wake: make(chan struct{}, 1), stale: map[string]bool{},
	}
	p.keys = map[string]string{p.key: string(value)}
	var ctx context.Context
	ctx, p.stop = context.WithCancel(c.ctx)
	c.lease.start()
	if !c.goroutine(func() { defer close(p.done); p.run(ctx) }) {
		p.stop()
		return nil, ErrClosed
	}
	return p, nil
}

// Acknowledge implements [registry.Presence].
func (p *presence) Acknowledge(service, id, incarnation string) {
	p.set(p.c.keys.Ack(service, id, p.id), string(registry.Ack{Incarnation: incarnation}.Encode()))
}

// Forget implements [registry.Presence].
func (p *presence) Forget(service, id string) { p.set(p.c.keys.Ack(service, id, p.id), "") }

// set says what is to stand under a key; empty is nothing.
func (p *presence) set(key, value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keys[key] == value {
		return
	}
	if p.keys[key] = value; value == "" {
		delete(p.keys, key)
	}
	p.stale[key] = true
	p.ring()
}

// Renew implements [registry.Presence].
func (p *presence) Renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.keys {
		p.stale[key] = true
	}
	p.ring()
}

func (p *presence) ring() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run keeps the keys under a live lease until ctx ends.
func (p *presence) run(ctx context.Context) {
	retry := p.c.retry()
	failing := false
	failed := func(err error) {
		if !failing && ctx.Err() == nil {
			p.log.Warn("the balancer does not show in the registry", zap.Error(err))
			failing = true
		}
	}
	for sleep(ctx, retry.next()) {
		l, err := p.c.lease.await(ctx, failed)
		if err != nil {
			return
		}
		p.Renew() // a lease takes nothing over from the last one
		since := time.Now()
		err = p.hold(ctx, l, func() {
			failing = false
			p.log.Debug("the balancer shows in the registry")
		})
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			l.lose(err)
		} else if err != nil {
			failed(p.c.explain(err))
		}
		if time.Since(since) > atRest {
			retry.reset()
		}
	}
}

// hold writes what is stale until the lease or ctx ends, which is no error, or a write fails.
func (p *presence) hold(ctx context.Context, l *lease, written func()) error {
	for {
		if err := p.write(ctx, l); err != nil {
			return err
		}
		written()
		select {
		case <-p.wake:
		case <-l.ctx.Done():
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// write brings etcd up to date.
func (p *presence) write(ctx context.Context, l *lease) error {
	for {
		p.mu.Lock()
		var ops []clientv3.Op
		for key := range p.stale {
			if value, ok := p.keys[key]; ok {
				ops = append(ops, clientv3.OpPut(key, value, clientv3.WithLease(l.id)))
			} else {
				ops = append(ops, clientv3.OpDelete(key))
			}
			if delete(p.stale, key); len(ops) == mostOps {
				break
			}
		}
		p.mu.Unlock()
		if len(ops) == 0 {
			return nil
		}
		cctx, cancel := context.WithTimeout(ctx, p.c.callTimeout())
		_, err := p.c.etcd.Txn(cctx).Then(ops...).Commit()
		cancel()
		if err != nil {
			p.mu.Lock()
			for _, op := range ops {
				p.stale[string(op.KeyBytes())] = true
			}
			p.mu.Unlock()
			return err
		}
	}
}

// mostOps is how many operations go into a transaction; etcd takes 128 by default.
const mostOps = 100

// Leave implements [registry.Presence].
func (p *presence) Leave(ctx context.Context) error {
	p.stop()
	select {
	case <-p.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	p.mu.Lock()
	keys := slices.Collect(maps.Keys(p.keys))
	clear(p.keys)
	p.mu.Unlock()
	for batch := range slices.Chunk(keys, mostOps) {
		ops := make([]clientv3.Op, len(batch))
		for i, key := range batch {
			ops[i] = clientv3.OpDelete(key)
		}
		if _, err := p.c.etcd.Txn(ctx).Then(ops...).Commit(); err != nil {
			return fmt.Errorf("the record of the balancer stays until its lease ends: %w", p.c.explain(err))
		}
	}
	return nil
}

// Drain implements [registry.Registration].
func (r *registration) Drain(ctx context.Context) error {
	err := r.Update(ctx, func(in *registry.Instance) { in.State, in.DrainAck = registry.Draining, true })
	if err != nil {
		return err
	}
	retry := r.c.retry()
	for sleep(ctx, retry.next()) {
		if err = r.acknowledged(ctx); err == nil || errors.Is(err, rpctypes.ErrPermissionDenied) {
			return err
		}
		r.mu.Lock()
		over := r.over()
		r.mu.Unlock()
		if over != nil {
			return over
		}
	}
	return errors.Join(err, ctx.Err())
}

// acknowledged returns nil when every live balancer has acknowledged, and otherwise an error when ctx or the registration
// ends or etcd fails.
func (r *registration) acknowledged(ctx context.Context) error {
	watching, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	balancers, acks := r.c.keys.Balancers(), r.c.keys.Acks(r.service, r.id)
	var news <-chan struct{}
	for {
		cctx, cancel := context.WithTimeout(ctx, r.c.callTimeout())
		resp, err := r.c.etcd.Txn(cctx).Then(
			clientv3.OpGet(balancers, clientv3.WithPrefix(), clientv3.WithKeysOnly()),
			clientv3.OpGet(acks, clientv3.WithPrefix()),
		).Commit()
		cancel()
		if err != nil {
			return r.c.explain(err)
		}
		var live []string
		for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
			live = append(live, strings.TrimPrefix(string(kv.Key), balancers))
		}
		have := map[string][]byte{}
		for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
			have[strings.TrimPrefix(string(kv.Key), acks)] = kv.Value
		}
		missing := registry.Unacknowledged(r.incarnation, live, have)
		if missing == nil {
			return nil
		}
		if news == nil {
			news = r.c.notify(watching, resp.Header.Revision+1, balancers, acks)
		}
		changed := r.Changed()
		if s := r.State(); s == registry.Superseded || s == registry.Left {
			return missing
		}
		select {
		case _, ok := <-news:
			if !ok {
				return missing // the watch is over: begin anew
			}
		case <-changed:
		case <-ctx.Done():
			return missing
		}
	}
}

// notify watches prefixes from a revision on. The channel holds a token when there were events, and is closed when ctx or
// one of the watches has ended.
func (c *Client) notify(ctx context.Context, from int64, prefixes ...string) <-chan struct{} {
	ctx, cancel := context.WithCancel(ctx)
	news := make(chan struct{}, 1)
	var watches sync.WaitGroup
	for _, prefix := range prefixes {
		watches.Go(func() {
			defer cancel()
			for resp := range c.etcd.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
				if resp.Err() != nil {
					return
				}
				select {
				case news <- struct{}{}:
				default:
				}
			}
		})
	}
	c.goroutine(func() { watches.Wait(); cancel(); close(news) })
	return news
}
