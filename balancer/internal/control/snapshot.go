package control

import (
	"errors"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/internal/membership"
	"github.com/rota-lb/rota/balancer/internal/snapshot"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

const (
	// restoreAfter is how long a start waits for the registry before the snapshot is used.
	restoreAfter = 200 * time.Millisecond
	// gateTime is how long the first table of a snapshot waits for its instances to have been probed.
	gateTime = 700 * time.Millisecond
	// touchEvery is how often a snapshot that has nothing new is said to be still true.
	touchEvery = 30 * time.Second
	// saveShare bounds what saving costs: its pauses are so many times as long as it takes, and a second at least.
	saveShare = 50
)

// keeping is how things stand with the snapshot.
type keeping struct {
	tried   bool // to read it
	serving bool // what it held, since the registry has not been there yet
	gate    map[*pool.Endpoint]bool
	until   time.Time    // the gate opens by itself
	reading chan reading // what is in the file; nil before it is read

	unsaved bool
	saving  chan result // of the save under way; nil when none is
	next    time.Time   // when it may be saved again
	touched time.Time   // when it was last written, or said to be still true
	failing bool
}

// reading is what was found in the file.
type reading struct {
	table snapshot.Table
	err   error
}

type result struct {
	took time.Duration
	err  error
}

// begun says that the registry is there.
func (k *keeping) begun(u *registry.Update) {
	if k.serving {
		k.gate = nil // the registry knows them
	}
	k.tried, k.serving = true, false
	k.unsaved = k.unsaved || u.Reset || len(u.Changes) > 0
}

// gated reports whether there are instances that have yet to be probed before anybody is served.
func (k *keeping) gated() bool {
	if len(k.gate) > 0 && time.Now().After(k.until) {
		k.gate = nil
	}
	return len(k.gate) > 0
}

// readSnapshot begins to read the file, beside the loop.
func (c *Controller) readSnapshot() {
	if c.Snapshot == "" || c.snapshot.reading != nil {
		return
	}
	done := make(chan reading, 1)
	c.snapshot.reading = done
	go func() {
		t, err := snapshot.Read(c.Snapshot, c.Prefix)
		done <- reading{t, err}
	}()
}

// kept returns what the snapshot holds, once, if it can be read and nothing was known before.
func (c *Controller) kept() (t snapshot.Table, ok bool) {
	if c.snapshot.tried || c.Snapshot == "" {
		return t, false
	}
	c.snapshot.tried = true
	c.readSnapshot()
	r := <-c.snapshot.reading
	if r.err != nil && !errors.Is(r.err, os.ErrNotExist) {
		c.Logger.Error("the snapshot is not used", zap.Error(r.err))
	}
	return r.table, r.err == nil
}

// hold takes in what a snapshot holds, as if it were the registry's, but that who does not answer does not serve.
func (c *Controller) hold(t *snapshot.Table, now time.Time) {
	for i := range t.Changes {
		c.configure(&t.Changes[i])
	}
	c.orphan(t)
	c.fold.Restore(registry.Update{Reset: true, StoreID: t.StoreID, Revision: t.Revision, Changes: t.Changes}, now, c.touched)
	c.storeID, c.reroute = t.StoreID, true
	c.snapshot.until = now.Add(gateTime)
	c.snapshot.gate = map[*pool.Endpoint]bool{}
	for e := range c.fold.Doubted() {
		c.snapshot.gate[e] = true
	}
}

// remember holds the first content of the registry against a snapshot that was true until a moment ago: what it does not have was
// lost while this balancer was away, and is doubted as if it had been there. It returns what is to be done after the content
// was folded.
func (c *Controller) remember(u *registry.Update, now time.Time) (after func()) {
	after = func() {}
	if !u.Reset || c.synced {
		return after
	}
	t, ok := c.kept()
	switch {
	case !ok || now.Sub(t.Until) > membership.SuspectFor:
	case u.StoreID != t.StoreID || u.Revision < t.Revision: // another store, or an older state of it: the fold will see that
		c.hold(&t, now)
	default:
		present := make(map[string]bool, len(u.Changes))
		for i := range u.Changes {
			present[u.Changes[i].Key] = true
		}
		after = func() {
			c.fold.Recall(t.Changes, t.Until, now, c.touched)
			for i := range t.Changes {
				if key := t.Changes[i].Key; t.Orphaned[key] && !present[key] {
					c.configure(&t.Changes[i])
				}
			}
			c.orphan(&t)
		}
	}
	return after
}

// restore serves what the snapshot holds, as long as the registry is away and nothing else is known.
func (c *Controller) restore(why string) {
	if c.synced {
		return
	}
	t, ok := c.kept()
	if !ok {
		return
	}
	c.hold(&t, time.Now())
	c.synced = true
	c.snapshot.serving = true
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
	if k.saving != nil || c.Snapshot == "" || now.Before(k.next) {
		return
	}
	if !k.unsaved {
		c.touch(now)
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
		k.failing, k.touched = false, now
		return
	}
	k.unsaved = true
	if !k.failing {
		k.failing = true
		c.Logger.Error("the snapshot is not saved, the last one stays", zap.Error(r.err))
	}
}

// touch says now and then that what was saved is still what the registry holds, as far as that is known.
func (c *Controller) touch(now time.Time) {
	k := &c.snapshot
	if c.link == nil && !k.serving && !k.touched.IsZero() && now.Sub(k.touched) >= touchEvery {
		k.touched = now
		if err := snapshot.Touch(c.Snapshot); err != nil {
			k.unsaved = true // it has gone: write it anew
		}
	}
}

// content is what there is to be saved.
func (c *Controller) content() snapshot.Table {
	t := snapshot.Table{
		Prefix: c.Prefix, StoreID: c.storeID, Revision: c.fold.Revision(), Changes: c.fold.Records(), Orphaned: map[string]bool{},
	}
	for name, r := range c.etcd {
		t.Changes = append(t.Changes, r.change(registry.Change{Kind: registry.KindRoute, ID: name}))
	}
	for name, p := range c.policies {
		t.Changes = append(t.Changes, p.change(registry.Change{Kind: registry.KindPolicy, Service: name}))
	}
	for name, g := range c.grants {
		t.Changes = append(t.Changes, g.change(registry.Change{Kind: registry.KindGrant, Service: name}))
	}
	for _, key := range c.orphans() {
		t.Orphaned[key] = true
	}
	return t
}

// saveLast saves what has not been, at the end.
func (c *Controller) saveLast() {
	k := &c.snapshot
	if k.saving != nil {
		c.saved(<-k.saving, time.Now())
	}
	if c.Snapshot == "" {
		return
	}
	if !k.unsaved {
		k.touched = k.touched.Add(-touchEvery)
		c.touch(time.Now())
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
