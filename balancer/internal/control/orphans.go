package control

import (
	"context"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/internal/snapshot"
	"github.com/rota-lb/rota/registry"
)

// Orphans are routes, policies and grants that are in use though the store does not have them: it is another one than that they were
// written to, or an older state of it. They stay until they are written anew, or given up; restarts do not end them.

// forget drops routes and policies that a complete content does not have. Those that another store does not have stay, as orphans.
func (c *Controller) forget(u *registry.Update, elsewhere bool) {
	present := map[string]bool{}
	for i := range u.Changes {
		if k := u.Changes[i].Kind; k == registry.KindRoute || k == registry.KindPolicy || k == registry.KindGrant {
			present[u.Changes[i].Key] = true
		}
	}
	c.drop(func(key string, orphaned bool) verdict {
		switch {
		case present[key] || orphaned:
			return keep
		case elsewhere:
			return orphan
		}
		return drop
	})
	if n := len(c.orphans()); elsewhere && n > 0 {
		c.say(EventRegistry, fmt.Sprintf("%d routes, policies or grants that the registry does not have stay in use, until they are written anew or given up", n))
		c.Logger.Warn("the registry does not have what is in use: write it anew, or give it up", zap.Strings("keys", c.orphans()))
	}
}

// GiveUpOrphans drops the routes, policies and grants that are in use though the store, another one than they were written to, does
// not have them. It returns their keys.
func (c *Controller) GiveUpOrphans(ctx context.Context, by string) (keys []string, err error) {
	if !c.do(ctx, func() {
		keys = c.orphans()
		c.drop(func(_ string, orphaned bool) verdict {
			if orphaned {
				return drop
			}
			return keep
		})
		c.snapshot.unsaved = c.snapshot.unsaved || len(keys) > 0
	}) {
		return nil, endedOr(ctx)
	}
	c.Audit(by, "", "", fmt.Sprintf("%d keys given up that the registry does not have", len(keys)))
	return keys, nil
}

// verdict is what becomes of a value that an operator has written.
type verdict uint8

const (
	keep   verdict = iota
	orphan         // it stays, though the store does not have it
	drop
)

// drop asks about each route, policy and grant of the registry what becomes of it.
func (c *Controller) drop(judge func(key string, orphaned bool) verdict) {
	for _, name := range dropped(c.etcd, judge) {
		delete(c.etcd, name)
		c.reroute = true
	}
	for _, name := range dropped(c.policies, judge) {
		delete(c.policies, name)
		c.applyPolicy(name)
	}
	for _, name := range dropped(c.grants, judge) {
		delete(c.grants, name)
		c.touched[name] = true
		c.reroute = c.reroute || c.claims[name] != nil
	}
}

// dropped lists what is to be dropped, and marks what is orphaned.
func dropped[T any](held map[string]kv[T], judge func(key string, orphaned bool) verdict) (names []string) {
	for name, v := range held {
		switch judge(v.key, v.orphaned) {
		case orphan:
			v.orphaned = true
			held[name] = v
		case drop:
			names = append(names, name)
		}
	}
	return names
}

// orphans lists the keys whose values are in use though the store does not have them, sorted.
func (c *Controller) orphans() (keys []string) {
	keys = slices.Concat(orphaned(c.etcd), orphaned(c.policies), orphaned(c.grants))
	slices.Sort(keys)
	return keys
}

func orphaned[T any](held map[string]kv[T]) (keys []string) {
	for _, v := range held {
		if v.orphaned {
			keys = append(keys, v.key)
		}
	}
	return keys
}

// orphan marks what a snapshot says the store does not have.
func (c *Controller) orphan(t *snapshot.Table) {
	if len(t.Orphaned) == 0 {
		return
	}
	mark(c.etcd, t.Orphaned)
	mark(c.policies, t.Orphaned)
	mark(c.grants, t.Orphaned)
}

func mark[T any](held map[string]kv[T], keys map[string]bool) {
	for name, v := range held {
		if keys[v.key] {
			v.orphaned = true
			held[name] = v
		}
	}
}
