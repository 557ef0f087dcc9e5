package control

import (
	"errors"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/internal/snapshot"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

const (
	// restoreAfter is how long a start waits for the registry before the snapshot is used.
	restoreAfter = 200 * time.Millisecond
	// gateTime is how long the first table of a snapshot waits for its instances to have been probed.
	gateTime = 700 * time.Millisecond
	// saveShare bounds what saving costs: its pauses are so many times as long as it takes, and a second at least.
	saveShare = 50
)

// keeping is how things stand with the snapshot.
type keeping struct {
	tried   bool // to read it
	serving bool // what it held, since the registry has not been there yet
	gate    map[*pool.Endpoint]bool
	until   time.Time // the gate opens by itself

	unsaved bool
	saving  chan result // of the save under way; nil when none is
	next    time.Time   // when it may be saved again
	failing bool
}

type result struct {
	took time.Duration
	err  error
}

// begun says that the registry is there.
func (k *keeping) begun(u *registry.Update) {
	k.tried, k.serving, k.gate = true, false, nil
	k.unsaved = k.unsaved || u.Reset || len(u.Changes) > 0
}

// gated reports whether there are instances that have yet to be probed before anybody is served.
func (k *keeping) gated() bool {
	if len(k.gate) > 0 && time.Now().After(k.until) {
		k.gate = nil
	}
	return len(k.gate) > 0
}

// restore serves what the snapshot holds, as long as the registry is away and nothing else is known.
func (c *Controller) restore(why string) {
	if c.synced || c.snapshot.tried || c.Snapshot == "" {
		return
	}
	c.snapshot.tried = true
	t, err := snapshot.Read(c.Snapshot, c.Prefix)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			c.Logger.Error("the snapshot is not used; waiting for the registry", zap.Error(err))
		}
		return
	}
	now := time.Now()
	u := registry.Update{Reset: true, StoreID: t.StoreID, Revision: t.Revision, Changes: t.Changes}
	for i := range t.Changes {
		c.configure(&t.Changes[i])
	}
	c.fold.Restore(u, now, c.touched)
	c.storeID, c.synced, c.reroute = t.StoreID, true, true
	c.snapshot.serving = true
	c.snapshot.until = now.Add(gateTime)
	c.snapshot.gate = map[*pool.Endpoint]bool{}
	for e := range c.fold.Doubted() {
		c.snapshot.gate[e] = true
	}
	c.counters.Synced.Store(true)
	c.counters.Revision.Store(c.fold.Revision())
	c.counters.Instances.Store(int64(c.fold.Instances()))
	c.say(EventRegistry, "out of reach; serving the snapshot: "+why)
	c.Logger.Warn("registry out of reach: serving the snapshot, as far as its instances answer", zap.String("reason", why),
		zap.Time("saved", t.Saved), zap.Int64("revision", t.Revision), zap.Int("instances", c.fold.Instances()))
}

// save writes the snapshot if there is something new to be saved, beside the loop.
func (c *Controller) save(now time.Time) {
	k := &c.snapshot
	if k.saving != nil {
		select {
		case r := <-k.saving:
			c.saved(r, now)
		default:
		}
	}
	if !k.unsaved || k.saving != nil || c.Snapshot == "" || now.Before(k.next) {
		return
	}
	k.unsaved = false
	t, done := c.content(), make(chan result, 1)
	k.saving = done
	go func() {
		began := time.Now()
		err := snapshot.Write(c.Snapshot, t)
		done <- result{time.Since(began), err}
	}()
}

func (c *Controller) saved(r result, now time.Time) {
	k := &c.snapshot
	k.saving, k.next = nil, now.Add(min(max(time.Second, saveShare*r.took), time.Minute))
	if r.err == nil {
		k.failing = false
		return
	}
	k.unsaved = true
	if !k.failing {
		k.failing = true
		c.Logger.Error("the snapshot is not saved, the last one stays", zap.Error(r.err))
	}
}

// content is what there is to be saved.
func (c *Controller) content() snapshot.Table {
	t := snapshot.Table{Prefix: c.Prefix, StoreID: c.storeID, Revision: c.fold.Revision(), Changes: c.fold.Records()}
	for name, r := range c.etcd {
		t.Changes = append(t.Changes, r.change(registry.Change{Kind: registry.KindRoute, ID: name}))
	}
	for name, p := range c.policies {
		t.Changes = append(t.Changes, p.change(registry.Change{Kind: registry.KindPolicy, Service: name}))
	}
	for name, g := range c.grants {
		t.Changes = append(t.Changes, g.change(registry.Change{Kind: registry.KindGrant, Service: name}))
	}
	return t
}

// saveLast saves what has not been, at the end.
func (c *Controller) saveLast() {
	k := &c.snapshot
	if k.saving != nil {
		c.saved(<-k.saving, time.Now())
	}
	if !k.unsaved || c.Snapshot == "" {
		return
	}
	if err := snapshot.Write(c.Snapshot, c.content()); err != nil {
		c.Logger.Error("the snapshot is not saved, the last one stays", zap.Error(err))
	}
}

// change completes the change that would bring the value about.
func (v *kv[T]) change(ch registry.Change) registry.Change {
	ch.Key, ch.Value, ch.CreateRevision, ch.ModRevision = v.key, v.raw, v.created, v.modified
	return ch
}
