// Package control is the reconcile loop: it folds registry updates and configuration into tables and publishes them.
//
// A [Controller] is the sole owner of all mutable control state. One goroutine runs it; updates, reloads and questions
// reach it as messages. Each round takes everything that has arrived, folds it, builds the pools of the services that were
// touched, derives the next table from the last one, and publishes it. The first change after a quiet time is published
// at once, a flood at most every [Settle]. The cost of a change is that of the service it touches.
//
// When the registry is out of reach nothing changes: the last table serves on. A route or policy that cannot be read is
// quarantined, and its last good version stays. Endpoints in doubt, whose record was lost or who refused a connection, are
// probed until the doubt is settled.
package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/internal/health"
	"github.com/rota-lb/rota/balancer/internal/membership"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
)

// Settle is the time between two tables that a flood of changes is held to. A burst may be ahead of it by as much as
// Ahead, so changes that come a few at a time are published at once, each in a table of its own.
const (
	Settle = time.Millisecond
	Ahead  = 2 * time.Millisecond
)

// Options are what a controller works with.
type Options struct {
	// Registry is watched; nil means that only the configuration counts.
	Registry registry.Registry
	// Store is where tables are published. Required.
	Store *route.Store
	// Logger gets the story; nil is silence.
	Logger *zap.Logger
	// Deny says why an address is not to be dialled; see [membership.Fold]. nil denies nothing more.
	Deny func(a netip.AddrPort, registered bool) error
	// Self is this balancer as it shows itself in the registry, if that is a [registry.Balancers]; without an id it does
	// not.
	Self registry.Balancer
	// Snapshot is the file that the content of the registry is kept in; empty is none. Prefix is that of the registry's keys.
	Snapshot, Prefix string
	// Published is told, in the loop, how long the oldest change in a table waited since it came in; nil is nobody.
	Published func(waited time.Duration)
	// Departed is told, in the loop, of a service that is forgotten, because nothing has spoken of it for a while; nil is nobody.
	Departed func(*pool.Service)
}

// Controller runs the reconcile loop. Use [New], then [Controller.Run].
type Controller struct {
	Options

	mu    sync.Mutex // guards the mailbox
	inbox []message
	bell  chan struct{} // one slot: something is in the inbox
	ended chan struct{}

	counters Counters
	events   Events
	told     int // changes that were logged in this second
	untold   int // and that were not

	// The rest belongs to the goroutine of Run.
	fold     *membership.Fold
	first    config.Dynamic // to begin with
	dynamic  config.Dynamic
	etcd     map[string]kv[config.Route]
	policies map[string]kv[config.Service]
	grants   map[string]kv[config.Grant]
	claims   map[string]*claims // by service, of those whose instances claim something
	services map[string]*service
	nextSlot int
	// freeSlots may be used again, vacated ones after the next table.
	freeSlots []int
	vacated   []int
	pruned    time.Time
	filesAt   time.Time      // when certificates were looked at last
	slots     map[string]int // what the table's Services is made of
	touched   map[string]bool
	reroute   bool // routes or the set of services have changed
	synced    bool
	link      error
	linkedAt  time.Time
	storeID   uint64
	table     *route.Table
	due       time.Time // when the next table would be due if changes never ceased
	oldest    time.Time // when the oldest unpublished change came in
	reset     int       // changes of the last Reset, until its table is published
	trimming  sync.WaitGroup

	// Of the endpoints in doubt.
	prober  *health.Prober
	watches map[*pool.Endpoint]*watch
	recheck map[string]bool // services whose policy has changed
	rates   map[*pool.Endpoint]rated
	rated   time.Time        // when rates are from
	sick    bool             // somebody was in doubt at the last tick
	braked  map[string]bool  // services
	panics  map[string]bool  // likewise
	refused []*pool.Endpoint // in the last second
	asking  sync.WaitGroup
	// inquiring says that leases are being asked about, askAgain when there is a point in it after the store did not answer.
	inquiring bool
	askAgain  time.Time

	snapshot keeping

	presence registry.Presence // nil until there is one
	acked    map[*pool.Endpoint]bool
	closing  []*pool.Endpoint // are in no pool of the next table
}

// Counters are read by telemetry at any time.
type Counters struct {
	Puts, Deletes atomic.Uint64
	Relists       pool.Counts[string] // times the whole content was received, by reason
	Connected     atomic.Bool
	Synced        atomic.Bool
	Revision      atomic.Int64
	Quarantined   atomic.Int64
	Instances     atomic.Int64
	Tables        atomic.Uint64
	LastSync      atomic.Int64 // Unix nanoseconds of the last word from the store
	Suspects      atomic.Int64 // endpoints in doubt: suspects, and those ejected
	Panics        atomic.Int64 // services so few of which are in a good condition that all serve
	Brakes        atomic.Int64 // services whose brake is engaged
}

type kv[T any] struct {
	value    T
	raw      []byte
	key      string
	created  int64
	modified int64
	// orphaned says that the store is another one by now, which does not have the key: the last value stays until
	// somebody writes it anew.
	orphaned bool
}

// service is what control keeps of a service between tables.
type service struct {
	shared *pool.Service
	slot   int
	pool   *pool.Pool
	series pool.Series
	// subsets are those that routes name.
	subsets []*subset
	// settings are made of policy.
	settings *pool.Settings
	policy   config.Service
	files    string // a stamp of those that the settings were made of

	routed bool      // a route names it
	idle   time.Time // since when nothing speaks of it; zero when something does
}

type message struct {
	update *registry.Update
	at     time.Time
	call   func()
}

// New makes a controller for a configuration. It does nothing until Run.
func New(o Options, dynamic config.Dynamic) *Controller {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	c := &Controller{
		Options: o, bell: make(chan struct{}, 1), ended: make(chan struct{}),
		fold: membership.New(), etcd: map[string]kv[config.Route]{}, policies: map[string]kv[config.Service]{},
		grants: map[string]kv[config.Grant]{}, claims: map[string]*claims{},
		services: map[string]*service{}, slots: map[string]int{}, touched: map[string]bool{},
		table: o.Store.Load(), watches: map[*pool.Endpoint]*watch{}, recheck: map[string]bool{}, rates: map[*pool.Endpoint]rated{}, acked: map[*pool.Endpoint]bool{},
	}
	c.fold.Deny = o.Deny
	c.prober = health.New(health.Options{Report: c.probed})
	c.first = dynamic
	return c
}

// Counters returns the controller's counters.
func (c *Controller) Counters() *Counters { return &c.counters }

// Run watches the registry and publishes tables until ctx ends; then it returns nil.
func (c *Controller) Run(ctx context.Context) error {
	defer close(c.ended)
	c.setDynamic(c.first)
	if c.Registry != nil {
		c.readSnapshot()
	}
	var watching sync.WaitGroup
	defer watching.Wait()
	defer c.trimming.Wait()
	defer c.asking.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	watching.Go(func() { c.prober.Run(ctx) })
	if c.Registry == nil {
		c.synced = true
		c.counters.Synced.Store(true)
		c.publish()
	} else {
		watching.Go(func() {
			err := c.Registry.Watch(ctx, registry.Scope{}, func(u registry.Update) {
				c.send(message{update: &u, at: time.Now()})
			})
			if ctx.Err() == nil {
				c.Logger.Error("watch of the registry ended", zap.Error(err))
			}
		})
	}
	settle := time.NewTimer(time.Hour)
	settle.Stop()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	drain := time.NewTimer(time.Hour)
	defer drain.Stop()
	restore := time.NewTimer(restoreAfter)
	defer restore.Stop()
	defer c.saveLast()
	defer c.leave()
	for {
		tick := false
		select {
		case <-ctx.Done():
			return nil
		case <-c.bell:
			c.take()
		case <-second.C:
			tick = true
			c.expire(time.Now())
			c.save(time.Now())
		case <-settle.C:
		case <-drain.C:
		case <-restore.C:
			c.restore("the registry has not answered yet")
			if c.snapshot.gated() {
				restore.Reset(gateTime)
			}
		}
		c.look(time.Now())
		c.tell()
		c.doubt(ctx, tick)
		if c.acknowledge() {
			drain.Reset(drainInterval)
		}
		if !c.dirty() {
			continue
		}
		now := time.Now()
		if c.due.Before(now) {
			c.due = now
		}
		if wait := c.due.Sub(now) - Ahead; wait > 0 {
			settle.Reset(wait)
			continue
		}
		c.due = c.due.Add(Settle)
		c.publish()
		if c.acknowledge() {
			drain.Reset(drainInterval)
		}
	}
}

// send puts a message into the mailbox. It never blocks.
func (c *Controller) send(m message) {
	c.mu.Lock()
	c.inbox = append(c.inbox, m)
	c.mu.Unlock()
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

// take folds everything in the mailbox.
func (c *Controller) take() {
	c.mu.Lock()
	inbox := c.inbox
	c.inbox = nil
	c.mu.Unlock()
	for _, m := range inbox {
		if m.call != nil {
			m.call()
			continue
		}
		c.update(m.update)
		if c.dirty() && c.oldest.IsZero() {
			c.oldest = m.at
		}
	}
}

// do runs fn in the loop and waits for it. It reports whether fn ran: it does not when the loop has ended.
func (c *Controller) do(ctx context.Context, fn func()) bool {
	done := make(chan struct{})
	c.send(message{call: func() { fn(); close(done) }})
	select {
	case <-done:
		return true
	case <-c.ended:
	case <-ctx.Done():
	}
	return false
}

// Reload replaces what the configuration file says.
func (c *Controller) Reload(ctx context.Context, dynamic config.Dynamic) {
	c.do(ctx, func() {
		c.setDynamic(dynamic)
		c.say(EventConfig, "the configuration was read anew")
	})
}

func (c *Controller) setDynamic(d config.Dynamic) {
	statics := map[string][]registry.Instance{}
	names := map[string]bool{}
	for name, s := range d.Services {
		names[name] = true
		for _, in := range s.Instances {
			statics[name] = append(statics[name], registry.Instance{Service: name, ID: in.Address, Address: in.Address, Weight: in.Weight})
		}
	}
	for name := range c.dynamic.Services {
		names[name] = true
	}
	c.dynamic = d
	for name := range names {
		c.touched[name] = true
		c.applyPolicy(name)
	}
	for _, s := range c.services {
		if s.settings != nil && s.policy.TLS != (config.UpstreamTLS{}) {
			s.policy.Queue = -1 // unlike any policy: the files are read again
		}
	}
	if err := c.fold.SetStatic(statics, time.Now(), c.touched); err != nil {
		c.Logger.Error("static instances: some are not used", zap.Error(err))
	}
	c.reroute = true
}

// update folds one update of the registry.
func (c *Controller) update(u *registry.Update) {
	if u.Err != nil {
		if c.link == nil {
			c.say(EventRegistry, "out of reach: "+u.Err.Error())
			c.Logger.Warn("registry out of reach: serving the last table", zap.Error(u.Err), zap.Int64("revision", c.fold.Revision()))
		}
		c.link = u.Err
		c.counters.Connected.Store(false)
		c.restore(u.Err.Error())
		return
	}
	now := time.Now()
	c.counters.LastSync.Store(now.UnixNano())
	why := "gap"
	if c.link != nil {
		why = "outage"
	}
	if c.link != nil || !c.synced || c.snapshot.serving {
		c.say(EventRegistry, "in sync")
		c.Logger.Info("registry in sync", zap.Int64("revision", u.Revision), zap.Int("keys", len(u.Changes)))
		c.link, c.linkedAt = nil, now
	}
	c.counters.Connected.Store(true)
	after := c.remember(u, now)
	if u.Reset {
		c.reset = len(u.Changes)
		if !c.synced {
			why = "start"
			c.synced = true
			c.reroute = true // the first table is published even if it is empty
			c.counters.Synced.Store(true)
		}
	}
	c.snapshot.begun(u)
	was, revision := c.storeID, c.fold.Revision()
	elsewhere := c.fold.Apply(*u, now, c.touched)
	if elsewhere {
		c.say(EventRegistry, "another store, or an older state of it: what it does not have is doubted")
		c.Logger.Warn("the registry is another store now, or an older state of it: what it does not have serves on until it is known better",
			zap.Uint64("was", was), zap.Uint64("is", u.StoreID), zap.Int64("revision was", revision), zap.Int64("is now", u.Revision))
	}
	if u.Reset {
		if elsewhere {
			why = "store"
		}
		c.counters.Relists.Add(why)
		c.storeID = u.StoreID
		c.forget(u, elsewhere)
	}
	for i := range u.Changes {
		ch := &u.Changes[i]
		if ch.Deleted {
			c.counters.Deletes.Add(1)
		} else {
			c.counters.Puts.Add(1)
		}
		c.configure(ch)
		if ch.Err != nil {
			c.Logger.Warn("key set aside", zap.String("key", ch.Key), zap.Error(ch.Err))
		}
	}
	after()
	c.show(u)
	c.counters.Revision.Store(c.fold.Revision())
	c.counters.Quarantined.Store(int64(c.fold.QuarantinedCount()))
	c.counters.Instances.Store(int64(c.fold.Instances()))
}

// configure takes in a change of what operators write.
func (c *Controller) configure(ch *registry.Change) {
	switch ch.Kind {
	case registry.KindRoute:
		c.setRoute(ch)
	case registry.KindPolicy:
		c.setPolicy(ch)
	case registry.KindGrant:
		c.setGrant(ch)
	}
}

// sameRoute reports whether two routes of different routers are alike, as far as is shown.
func sameRoute(a, b *route.Route) bool {
	return a.Name == b.Name && a.Source == b.Source && a.Host == b.Host && a.Path == b.Path && a.Service == b.Service && a.Priority == b.Priority &&
		reflect.DeepEqual(a.Rules, b.Rules)
}

// setGrant takes in what a service may claim. Taking a grant away counts at once; that another store does not have it counts
// for nothing, as with routes and policies.
func (c *Controller) setGrant(ch *registry.Change) {
	if ch.Err != nil {
		return
	}
	c.touched[ch.Service] = true
	c.reroute = c.reroute || c.claims[ch.Service] != nil // its age counts, too
	if ch.Deleted {
		delete(c.grants, ch.Service)
		return
	}
	g, err := config.ParseGrant(ch.Service, ch.Value)
	if err != nil {
		c.setAside(ch, err)
		return
	}
	c.grants[ch.Service] = kv[config.Grant]{g, ch.Value, ch.Key, ch.CreateRevision, ch.ModRevision, false}
	c.fold.Release(ch.Key)
}

func (c *Controller) setRoute(ch *registry.Change) {
	if ch.Deleted {
		delete(c.etcd, ch.ID)
		c.reroute = true
		return
	}
	if ch.Err != nil {
		return
	}
	r, err := config.ParseRoute(ch.ID, ch.Value)
	if err != nil {
		c.setAside(ch, err)
		return
	}
	r.Name = ch.ID
	c.etcd[ch.ID] = kv[config.Route]{r, ch.Value, ch.Key, ch.CreateRevision, ch.ModRevision, false}
	c.fold.Release(ch.Key)
	c.reroute = true
}

func (c *Controller) setPolicy(ch *registry.Change) {
	if ch.Deleted {
		delete(c.policies, ch.Service)
		c.applyPolicy(ch.Service)
		return
	}
	if ch.Err != nil {
		return
	}
	p, err := config.ParsePolicy(ch.Service, ch.Value)
	if err == nil && len(p.Instances) > 0 {
		err = fmt.Errorf("%w: instances belong under services/%s/, not into a policy", registry.ErrInvalid, ch.Service)
	}
	if err != nil {
		c.setAside(ch, err)
		return
	}
	c.policies[ch.Service] = kv[config.Service]{p, ch.Value, ch.Key, ch.CreateRevision, ch.ModRevision, false}
	c.fold.Release(ch.Key)
	c.applyPolicy(ch.Service)
}

// applyPolicy takes in that the policy of a service may have changed.
func (c *Controller) applyPolicy(name string) {
	p := membershipPolicy(c.policy(name))
	if c.policies[name].value.Overrides != nil {
		p.Revision = c.policies[name].modified
	}
	c.fold.SetPolicy(name, p, time.Now(), c.touched)
	c.touched[name], c.recheck[name] = true, true
}

// setAside quarantines a route or policy. Of many problems the first one is told, on one line: where, what, what instead.
func (c *Controller) setAside(ch *registry.Change, err error) {
	var e *config.Error
	if errors.As(err, &e) {
		text := e.Message
		if e.Line > 0 {
			text = fmt.Sprintf("line %d, column %d: %s", e.Line, e.Column, text)
		}
		if e.Hint != "" {
			text += "; " + e.Hint
		}
		err = fmt.Errorf("%w: %s", registry.ErrInvalid, text)
	}
	c.fold.Quarantine(ch, err)
	c.Logger.Warn("key set aside, its last good value stays", zap.String("key", ch.Key), zap.Error(err))
}

func (c *Controller) dirty() bool {
	return c.synced && !c.snapshot.gated() && (c.reroute || len(c.touched) > 0)
}

// service returns the entry of a service, made when it is first spoken of.
func (c *Controller) service(name string) *service {
	s := c.services[name]
	if s == nil {
		s = &service{shared: pool.NewService(name), slot: c.newSlot()}
		c.services[name] = s
		c.reroute = true
	}
	return s
}

// newSlot is a slot that no table has a pool in.
func (c *Controller) newSlot() int {
	if n := len(c.freeSlots); n > 0 {
		slot := c.freeSlots[n-1]
		c.freeSlots = c.freeSlots[:n-1]
		return slot
	}
	c.nextSlot++
	return c.nextSlot - 1
}

// publish builds what was touched and makes the next table current.
func (c *Controller) publish() {
	change := route.Change{Revision: c.fold.Revision(), Pools: make(map[int]*pool.Pool, len(c.touched))}
	for name := range c.touched {
		c.service(name)
		if c.claims[name] != nil {
			c.claim(name)
		}
	}
	if c.reroute {
		change.Router = c.router(&change)
	}
	for name := range c.touched {
		c.build(name, change.Pools)
	}
	if c.reroute {
		if r := change.Router; c.table.Generation > 0 && !slices.EqualFunc(r.Routes, c.table.Router().Routes, sameRoute) {
			c.say(EventRoutes, fmt.Sprintf("%d routes, %d of them can never match", len(r.Routes), len(r.Conflicts)))
			c.tellRoutes(c.table.Router(), r)
		}
		for name, s := range c.services {
			c.slots[name] = s.slot
		}
		change.Services, change.Auto = c.slots, c.dynamic.AutoRoutes
	}
	for _, slot := range c.vacated {
		change.Pools[slot] = nil
	}
	c.freeSlots, c.vacated = append(c.freeSlots, c.vacated...), nil
	clear(c.touched)
	c.reroute = false
	c.table = c.table.With(change)
	c.Store.Publish(c.table)
	for _, e := range c.closing {
		e.Close()
	}
	c.closing = c.closing[:0]
	c.counters.Tables.Add(1)
	if c.Published != nil && !c.oldest.IsZero() {
		c.Published(time.Since(c.oldest))
	}
	c.oldest = time.Time{}
	if c.reset >= trimAfter {
		c.trimming.Go(debug.FreeOSMemory)
	}
	c.reset = 0
}

// build makes the pools of a service.
func (c *Controller) build(name string, pools map[int]*pool.Pool) {
	s := c.service(name)
	settings, balance, eligible := c.settings(name, s), c.policy(name).Balance, c.fold.Eligible(name, time.Now())
	add := func(slot int, series *pool.Series, members []pool.Member) *pool.Pool {
		p, err := pool.New(s.shared, balance, members)
		if err != nil { // validation lets no unknown policy through
			c.Logger.Error("pool not built", zap.String("service", name), zap.Error(err))
			return s.pool
		}
		p.Settings = settings
		series.Set(p)
		pools[slot] = p
		return p
	}
	c.opened(s.pool, eligible)
	s.pool = add(s.slot, &s.series, eligible)
	for _, sub := range s.subsets {
		add(sub.slot, &sub.series, c.part(name, eligible, sub.Subset))
	}
}

// trimAfter is the size of a Reset whose garbage, several times what is kept of it, is worth giving back at once.
const trimAfter = 10_000

// routes are all routes: those of the file, of etcd, and of claims.
func (c *Controller) routes(file []config.Route, etcd map[string]kv[config.Route]) []route.Route {
	list := make([]route.Route, 0, len(file)+len(etcd))
	add := func(r config.Route, source route.Source, order, revision int64) {
		converted, err := convert(r, source, order)
		if err != nil {
			c.Logger.Error("route not used", zap.String("route", r.Name), zap.Error(err))
			return
		}
		converted.Revision = revision
		list = append(list, converted)
	}
	for i, r := range file {
		add(r, route.File, int64(i), 0)
	}
	for _, name := range slices.Sorted(maps.Keys(etcd)) {
		add(etcd[name].value, route.Etcd, etcd[name].created, etcd[name].modified)
	}
	for _, name := range slices.Sorted(maps.Keys(c.claims)) {
		for _, r := range c.claims[name].routes(name) {
			add(r, route.Claimed, c.grants[name].created, c.grants[name].modified)
		}
	}
	return list
}
