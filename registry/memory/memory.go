// Package memory keeps a registry in the process: the whole contract of package registry without a store to run,
// for tests and examples.
//
// A [Store] stands for etcd, with revisions, leases and watches. Each [Client] of it stands for one process: it holds
// one lease, and can lose it ([Client.Expire]), lose touch with the store ([Client.Disconnect]), or die
// ([Client.Crash]).
//
// Nothing here waits or has a goroutine of its own: a write is done, and what follows from it is done and queued for
// the watches, when the call returns. A lease ends only when told to, never by time. So tests need no sleeps.
package memory

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
)

// ErrDisconnected is why a client that was disconnected cannot reach its store.
var ErrDisconnected = errors.New("disconnected from the store")

// Store holds keys and tells watches of their changes. The zero Store is empty and ready; it must not be copied. All
// methods may be called concurrently.
type Store struct {
	// Keys are those of the registry. Set them before the first client; the zero Keys has the default prefix.
	Keys registry.Keys

	mu        sync.Mutex // protects what follows, and all of Client, registration and watch but what they say
	id        uint64     // of the present life; see Wipe
	revision  int64
	lastLease int64
	alive     map[int64]bool // leases
	entries   map[string]entry
	watches   map[*watch]struct{}
	// registrations are those that are not over, by key; of one key there may be several until one has won.
	registrations map[string][]*registration
	presences     map[*presence]struct{}
}

type entry struct {
	value               []byte
	created, mod, lease int64
}

// init makes the zero Store usable. Callers hold mu.
func (s *Store) init() {
	if s.entries == nil {
		s.id, s.revision = 1, 1
		s.entries = make(map[string]entry)
		s.alive = make(map[int64]bool)
		s.watches = make(map[*watch]struct{})
		s.registrations = make(map[string][]*registration)
		s.presences = make(map[*presence]struct{})
	}
}

// NewClient returns a client that stands for a process of its own.
func (s *Store) NewClient() *Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	return &Client{store: s, connected: true}
}

// Revision is the revision of the last change. A new store begins at 1.
func (s *Store) Revision() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	return s.revision
}

// Get returns the value of a key, and whether there is one.
func (s *Store) Get(key string) (value []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[key]
	return bytes.Clone(e.value), ok
}

// Put writes a key without a lease, as an operator would. The revision returned is that of the write; a registration
// that finds its key overwritten puts it again at the next.
func (s *Store) Put(key string, value []byte) (revision int64) {
	return s.PutAll(map[string][]byte{key: value})
}

// PutAll writes several keys in one revision.
func (s *Store) PutAll(values map[string][]byte) (revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	var ops []op
	for _, key := range slices.Sorted(maps.Keys(values)) {
		ops = append(ops, op{key: key, value: bytes.Clone(values[key])})
	}
	revision = s.commit(ops)
	s.settle(ops)
	return revision
}

// Delete deletes a key, as an operator would, and reports whether it was there. A registration puts it again.
func (s *Store) Delete(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.entries[key]
	if ok {
		ops := []op{{key: key, deleted: true}}
		s.commit(ops)
		s.settle(ops)
	}
	return ok
}

// Wipe makes the store another one: empty, with another id, at revision 1, as an etcd whose data directory was lost.
// Watches are told by a Reset; registrations put their records again.
func (s *Store) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	s.id++
	s.revision = 1
	clear(s.entries)
	clear(s.alive)
	for w := range s.watches {
		if w.client.connected {
			w.reset()
		}
	}
	for _, r := range s.all(nil) {
		r.held, r.client.lease = 0, 0
	}
	for p := range s.presences {
		p.client.lease = 0
	}
	for _, r := range s.all(nil) {
		r.settle()
	}
	for p := range s.presences {
		p.settle()
	}
}

// op is one write of a revision.
type op struct {
	key     string
	value   []byte
	lease   int64
	deleted bool
}

// commit makes all of ops one revision and queues it for the watches. Callers hold mu.
func (s *Store) commit(ops []op) int64 {
	if len(ops) == 0 {
		return s.revision
	}
	s.revision++
	changes := make([]registry.Change, 0, len(ops))
	for _, o := range ops {
		if o.deleted {
			delete(s.entries, o.key)
			changes = append(changes, s.change(o.key, entry{mod: s.revision}, true))
			continue
		}
		e := entry{value: o.value, created: s.revision, mod: s.revision, lease: o.lease}
		if old, ok := s.entries[o.key]; ok {
			e.created = old.created
		}
		s.entries[o.key] = e
		changes = append(changes, s.change(o.key, e, false))
	}
	for w := range s.watches {
		if w.client.connected {
			w.deliver(changes)
		}
	}
	return s.revision
}

// change describes a key for the watches.
func (s *Store) change(key string, e entry, deleted bool) registry.Change {
	ch := registry.Change{Key: key, Deleted: deleted, CreateRevision: e.created, ModRevision: e.mod, Lease: e.lease}
	k, err := s.Keys.Parse(key)
	ch.Kind, ch.Service, ch.ID, ch.Balancer, ch.Err = k.Kind, k.Service, k.ID, k.Balancer, err
	if deleted {
		return ch
	}
	if ch.Kind != registry.KindInstance {
		ch.Value = bytes.Clone(e.value)
		return ch
	}
	in, err := codec.Decode(k.Service, k.ID, e.value)
	if err != nil {
		ch.Err, ch.Value = err, bytes.Clone(e.value)
		return ch
	}
	ch.Instance = &in
	return ch
}

// settle lets the registrations of the keys written look at them. Callers hold mu.
func (s *Store) settle(ops []op) {
	for _, o := range ops {
		for _, r := range slices.Clone(s.registrations[o.key]) {
			r.settle()
		}
	}
}

// all returns the registrations of a client, or of all clients if that is nil, by key. Callers hold mu.
func (s *Store) all(c *Client) []*registration {
	var out []*registration
	for _, key := range slices.Sorted(maps.Keys(s.registrations)) {
		for _, r := range s.registrations[key] {
			if c == nil || r.client == c {
				out = append(out, r)
			}
		}
	}
	return out
}

// Edit is that of [registry.Editor].
func (c *Client) Edit(_ context.Context, key string, change func(old []byte) ([]byte, error)) error {
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.connected {
		return ErrDisconnected
	}
	old, there := s.entries[key]
	value, err := change(bytes.Clone(old.value))
	switch {
	case err != nil:
		return err
	case value == nil && !there:
		return nil
	}
	ops := []op{{key: key, value: bytes.Clone(value), deleted: value == nil}}
	s.commit(ops)
	s.settle(ops)
	return nil
}

// Client is a [registry.Registry] that stands for one process. All methods may be called concurrently.
type Client struct {
	store     *Store
	connected bool
	crashed   bool
	lease     int64 // zero: none
}

var (
	_ registry.Registry  = (*Client)(nil)
	_ registry.Leases    = (*Client)(nil)
	_ registry.Balancers = (*Client)(nil)
	_ registry.Editor    = (*Client)(nil)
)

// Expire ends the client's lease, as if it had not been renewed in time: its keys are deleted in one revision. If the
// client is connected it puts them again at once, under another lease.
func (c *Client) Expire() {
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.lease == 0 {
		return
	}
	var ops []op
	for key, e := range s.entries {
		if e.lease == c.lease {
			ops = append(ops, op{key: key, deleted: true})
		}
	}
	slices.SortFunc(ops, func(a, b op) int { return cmp.Compare(a.key, b.key) })
	delete(s.alive, c.lease)
	c.lease = 0
	s.commit(ops)
	s.settle(ops)
	c.settlePresences()
}

// settlePresences writes what the store lacks of the client's balancers. Callers hold mu.
func (c *Client) settlePresences() {
	for p := range c.store.presences {
		if p.client == c {
			p.settle()
		}
	}
}

// LeaseLeft implements [registry.Leases]. Leases here do not run out by themselves: one that is alive has a minute.
func (c *Client) LeaseLeft(_ context.Context, lease int64) (time.Duration, error) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if !c.connected {
		return 0, ErrDisconnected
	}
	if !c.store.alive[lease] {
		return 0, nil
	}
	return time.Minute, nil
}

// Disconnect cuts the client off: its watches say so by an Update with Err, its writes wait. Its lease stays until
// Expire.
func (c *Client) Disconnect() {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if !c.connected {
		return
	}
	c.connected = false
	for w := range c.store.watches {
		if w.client == c {
			w.queueUpdate(registry.Update{Revision: w.revision, StoreID: w.storeID, Err: ErrDisconnected})
		}
	}
}

// Reconnect undoes Disconnect: watches get a Reset, registrations put what is missing. After Crash it does nothing.
func (c *Client) Reconnect() {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if c.connected || c.crashed {
		return
	}
	c.connected = true
	for w := range c.store.watches {
		if w.client == c {
			w.reset()
		}
	}
	for _, r := range c.store.all(c) {
		r.settle()
	}
	c.settlePresences()
}

// Crash is Disconnect for good, as if the process had been killed. Its keys stay until Expire; what would wait for the
// store returns ErrDisconnected.
func (c *Client) Crash() {
	c.Disconnect()
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	c.crashed = true
	for _, r := range c.store.all(c) {
		r.set(r.state, ErrDisconnected)
	}
}

// grant returns the client's lease. Callers hold mu.
func (c *Client) grant() int64 {
	if c.lease == 0 {
		c.store.lastLease++
		c.lease = c.store.lastLease
		c.store.alive[c.lease] = true
	}
	return c.lease
}

// Watch is that of [registry.Registry].
func (c *Client) Watch(ctx context.Context, scope registry.Scope, apply func(registry.Update)) error {
	if err := scope.Validate(); err != nil {
		return err
	}
	s := c.store
	w := &watch{client: c, prefix: s.Keys.RangePrefix(scope), wake: make(chan struct{}, 1)}
	s.mu.Lock()
	s.watches[w] = struct{}{}
	if c.connected {
		w.reset()
	} else {
		w.queueUpdate(registry.Update{Err: ErrDisconnected})
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watches, w)
		s.mu.Unlock()
	}()

	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.wake:
		}
		s.mu.Lock()
		queue := w.queue
		w.queue = nil
		s.mu.Unlock()
		for _, u := range queue {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			apply(u)
		}
	}
}

// watch is a Watch under way. What the store queues, the goroutine in Watch delivers.
type watch struct {
	client   *Client
	prefix   string
	queue    []registry.Update
	wake     chan struct{} // holds one token when the queue is not empty
	revision int64         // of the last update queued
	storeID  uint64
}

func (w *watch) queueUpdate(u registry.Update) {
	w.queue = append(w.queue, u)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// reset queues the content of the scope.
func (w *watch) reset() {
	s := w.client.store
	w.revision, w.storeID = s.revision, s.id
	u := registry.Update{Reset: true, Revision: w.revision, StoreID: w.storeID}
	for _, key := range slices.Sorted(maps.Keys(s.entries)) {
		if strings.HasPrefix(key, w.prefix) {
			u.Changes = append(u.Changes, s.change(key, s.entries[key], false))
		}
	}
	w.queueUpdate(u)
}

// deliver queues what lies in the scope of one revision.
func (w *watch) deliver(changes []registry.Change) {
	var in []registry.Change
	for _, ch := range changes {
		if strings.HasPrefix(ch.Key, w.prefix) {
			in = append(in, ch)
		}
	}
	if len(in) == 0 {
		return
	}
	w.revision = w.client.store.revision
	w.queueUpdate(registry.Update{Revision: w.revision, StoreID: w.storeID, Changes: in})
}
