package registrytest

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/registry"
)

type jsonRaw = json.RawMessage

// Watcher follows a scope and checks every update against the contract of [registry.Update].
type Watcher struct {
	tb       testing.TB
	deadline time.Duration
	cancel   context.CancelFunc
	done     chan struct{}
	err      error // what Watch returned; read after done

	applying atomic.Bool
	mu       sync.Mutex // protects what follows
	log      []registry.Update
	view     map[string]registry.Change // by key; what Changes add up to
	ended    map[string]registry.Change // the last change before the deletion
	deletes  map[string]int
	synced   bool // a Reset since the last Err
	changed  chan struct{}
}

// Watch begins to watch. It ends with the test, or by Stop. Broken promises are errors of tb.
func Watch(tb testing.TB, r registry.Registry, scope registry.Scope) *Watcher {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watcher{
		tb: tb, deadline: 15 * time.Second, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{}),
		view: make(map[string]registry.Change), ended: make(map[string]registry.Change), deletes: make(map[string]int),
	}
	go func() {
		defer close(w.done)
		w.err = r.Watch(ctx, scope, w.apply)
	}()
	tb.Cleanup(func() { w.Stop() })
	return w
}

// Stop ends the watch and returns what Watch returned.
func (w *Watcher) Stop() error {
	w.cancel()
	<-w.done
	return w.err
}

func (w *Watcher) apply(u registry.Update) {
	if !w.applying.CompareAndSwap(false, true) {
		w.tb.Error("apply was called twice at a time")
	}
	defer w.applying.Store(false)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.check(u)
	w.log = append(w.log, u)
	switch {
	case u.Err != nil:
		w.synced = false
	case u.Reset:
		w.synced = true
		clear(w.view)
	}
	for _, ch := range u.Changes {
		if !ch.Deleted {
			w.view[ch.Key] = ch
			continue
		}
		w.ended[ch.Key] = w.view[ch.Key]
		w.deletes[ch.Key]++
		delete(w.view, ch.Key)
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// check holds an update against those before it. Callers hold mu.
func (w *Watcher) check(u registry.Update) {
	bad := func(what string) { w.tb.Errorf("%s: %+v", what, u) }
	var before registry.Update
	if len(w.log) > 0 {
		before = w.log[len(w.log)-1]
	}
	switch {
	case u.Err != nil:
		if u.Reset || len(u.Changes) > 0 {
			bad("an update with Err is a Reset or holds changes")
		}
		return
	case u.Reset:
		for i, ch := range u.Changes {
			if ch.Deleted || i > 0 && u.Changes[i-1].Key >= ch.Key {
				bad("a Reset holds deletions, or keys twice or out of order")
				break
			}
		}
	case !w.synced:
		bad("an update that does not follow a Reset")
	case u.Revision < before.Revision:
		bad("the revision went back without a Reset")
	case u.StoreID != before.StoreID:
		bad("another store without a Reset")
	}
	last := before.Revision
	for _, ch := range u.Changes {
		w.checkChange(u, ch)
		if u.Reset {
			continue
		}
		if ch.ModRevision <= before.Revision {
			bad("a change of a revision that was said to be complete")
		}
		if ch.ModRevision < last {
			bad("changes out of order")
		}
		last = ch.ModRevision
	}
}

func (w *Watcher) checkChange(u registry.Update, ch registry.Change) {
	if ch.ModRevision == 0 || ch.ModRevision > u.Revision {
		w.tb.Errorf("%q: revision %d in an update to revision %d", ch.Key, ch.ModRevision, u.Revision)
	}
	ok := true
	switch {
	case ch.Kind == 0:
		ok = false
	case ch.Kind == registry.KindUnknown:
		ok = ch.Err != nil && ch.Instance == nil
	case ch.Deleted:
		ok = ch.Instance == nil && len(ch.Value) == 0
	case ch.Kind == registry.KindInstance && ch.Err == nil:
		ok = ch.Instance != nil && ch.Instance.Service == ch.Service && ch.Instance.ID == ch.ID && ch.Instance.Validate() == nil
	default:
		ok = ch.Instance == nil
	}
	if !ok {
		w.tb.Errorf("%q: the change contradicts itself: %+v", ch.Key, ch)
	}
}

// Wait waits until ok, given the content of the scope by key, is true. It ends the test at the deadline. ok must not
// keep view.
func (w *Watcher) Wait(tb testing.TB, what string, ok func(view map[string]registry.Change) bool) {
	tb.Helper()
	w.wait(tb, what, func() bool { return len(w.log) > 0 && ok(w.view) })
}

// WaitReset waits until the scope is known.
func (w *Watcher) WaitReset(tb testing.TB) {
	tb.Helper()
	w.wait(tb, "a Reset", func() bool { return w.synced })
}

// WaitErr waits until the watch has said that it lost touch with the store.
func (w *Watcher) WaitErr(tb testing.TB) {
	tb.Helper()
	w.wait(tb, "an Err", func() bool { return len(w.log) > 0 && !w.synced })
}

func (w *Watcher) wait(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	timeout := time.NewTimer(w.deadline)
	defer timeout.Stop()
	for {
		w.mu.Lock()
		changed, met := w.changed, ok()
		w.mu.Unlock()
		if met {
			return
		}
		select {
		case <-changed:
		case <-w.done:
			tb.Fatalf("waiting for %s: the watch ended: %v", what, w.err)
		case <-timeout.C:
			w.mu.Lock()
			defer w.mu.Unlock()
			tb.Fatalf("waited %v for %s; the watch delivered %d updates, and these keys stand: %q", w.deadline, what, len(w.log), slices.Sorted(maps.Keys(w.view)))
		}
	}
}

func (w *Watcher) updates() []registry.Update {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.log)
}

func (w *Watcher) resets() int {
	n := 0
	for _, u := range w.updates() {
		if u.Reset {
			n++
		}
	}
	return n
}

// last is what stood under a key before it was deleted.
func (w *Watcher) last(key string) registry.Change {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended[key]
}

func (w *Watcher) deleted(key string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deletes[key]
}
