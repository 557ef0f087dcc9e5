package registryetcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
)

// Why a key that was in the store is put again.
var (
	errDeleted     = errors.New("the key was deleted")
	errOverwritten = errors.New("the key was overwritten")
)

// leaveTimeout bounds the leaving of a registration whose context has ended.
const leaveTimeout = 2 * time.Second

// atRest is how long a key or a lease must have been ours for the next attempt to come at once again.
const atRest = 200 * time.Millisecond

// registration keeps one key. Its goroutine, run, is the only one that writes the key; the others change what it is to
// write and wait for it.
type registration struct {
	c           *Client
	log         *zap.Logger
	key         string
	service, id string
	incarnation string

	// keeping ends when the registration leaves, is superseded or its client has closed.
	keeping context.Context
	leave   context.CancelFunc
	wake    chan struct{} // holds a token when there is something new to write
	gone    chan struct{} // closed when run is done with the key

	updating sync.Mutex // serialises Update; taken before mu

	mu       sync.Mutex // protects what follows
	in       registry.Instance
	value    []byte // of in
	version  uint64 // counts changes of in
	written  uint64 // the version that the store holds
	leaving  bool
	replaced bool // by a registration of the same incarnation in this process
	state    registry.RegistrationState
	err      error
	leaveErr error // of the last attempt to delete the key
	changed  chan struct{}

	// Only run uses what follows.
	rev       int64 // of the key when we last wrote or saw it; 0: not there
	asOf      int64 // the store's revision when that was so
	uncertain bool  // a put may yet arrive whose answer we did not get
}

// Register implements [registry.Registry]. The registration ends also with the client's Close.
func (c *Client) Register(ctx context.Context, in registry.Instance) (registry.Registration, error) {
	in, err := registry.Prepare(in, time.Now())
	if err != nil {
		return nil, err
	}
	value, err := codec.Encode(in)
	if err != nil {
		return nil, err
	}
	r := &registration{
		c:           c,
		log:         c.log.With(zap.String("service", in.Service), zap.String("id", in.ID), zap.String("incarnation", in.Incarnation)),
		key:         c.keys.Instance(in.Service, in.ID),
		service:     in.Service,
		id:          in.ID,
		incarnation: in.Incarnation,
		wake:        make(chan struct{}, 1),
		gone:        make(chan struct{}),
		in:          in,
		value:       value,
		version:     1,
		changed:     make(chan struct{}),
	}
	r.keeping, r.leave = context.WithCancel(c.ctx)
	c.lease.start()

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		r.leave()
		return nil, ErrClosed
	}
	for o := range c.regs {
		if o.key == r.key && o.incarnation == r.incarnation {
			o.replace() // the two would overwrite each other for ever
		}
	}
	c.regs[r] = struct{}{}
	stop := context.AfterFunc(ctx, func() { c.goroutine(r.leaveSoon) })
	c.wg.Go(func() {
		defer stop()
		r.run()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.regs, r)
	})
	return r, nil
}

// leaveSoon is what happens when the context of Register ends.
func (r *registration) leaveSoon() {
	ctx, cancel := context.WithTimeout(r.c.ctx, leaveTimeout)
	defer cancel()
	if err := r.Leave(ctx); err != nil {
		r.log.Warn("left, but could not delete the key yet", zap.Error(err))
	}
}

// Instance implements [registry.Registration].
func (r *registration) Instance() registry.Instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.in.Clone()
}

// State implements [registry.Registration].
func (r *registration) State() registry.RegistrationState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// Err implements [registry.Registration].
func (r *registration) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Changed implements [registry.Registration].
func (r *registration) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Update implements [registry.Registration].
func (r *registration) Update(ctx context.Context, change func(*registry.Instance)) error {
	version, err := r.change(change)
	if err != nil {
		return err
	}
	select {
	case r.wake <- struct{}{}:
	default: // run is yet to see the last token, and will then write this version too
	}
	for {
		r.mu.Lock()
		changed, written, over, last := r.changed, r.written, r.over(), r.err
		r.mu.Unlock()
		switch {
		case written >= version:
			return nil
		case over != nil:
			return over
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), last)
		}
	}
}

func (r *registration) change(change func(*registry.Instance)) (version uint64, err error) {
	r.updating.Lock()
	defer r.updating.Unlock()
	in := r.Instance()
	registeredAt := in.RegisteredAt
	change(&in)
	in = in.Clone() // the caller may keep what it put in
	in.Service, in.ID, in.Incarnation = r.service, r.id, r.incarnation
	if in.RegisteredAt.IsZero() { // change put a whole new record there
		in.RegisteredAt = registeredAt
	}
	value, err := codec.Encode(in)
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.over(); err != nil {
		return 0, err
	}
	if bytes.Equal(value, r.value) {
		return r.version, nil
	}
	r.in, r.value = in, value
	r.version++
	r.broadcast()
	return r.version, nil
}

// Leave implements [registry.Registration]. When ctx ends first, the key is deleted in the background as soon as etcd
// allows, for the lease may live on for other registrations.
func (r *registration) Leave(ctx context.Context) error {
	r.mu.Lock()
	r.leaving = true
	r.mu.Unlock()
	r.leave()
	select {
	case <-r.gone:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-r.gone: // both: the better news
		return nil
	default:
	}
	r.finish(registry.Left, registry.ErrLeft)
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(ctx.Err(), r.leaveErr)
}

// replace ends the registration as superseded, and leaves the key alone.
func (r *registration) replace() {
	r.mu.Lock()
	r.replaced = true
	r.mu.Unlock()
	r.leave()
}

// over returns why nothing more is written, or nil. mu is held.
func (r *registration) over() error {
	switch {
	case r.state == registry.Superseded:
		return registry.ErrSuperseded
	case r.leaving || r.state == registry.Left:
		return registry.ErrLeft
	}
	return nil
}

// broadcast wakes those who wait on Changed. mu is held.
func (r *registration) broadcast() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// finish enters a state that is never left.
func (r *registration) finish(state registry.RegistrationState, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == registry.Superseded || r.state == registry.Left {
		return
	}
	r.enter(state, err)
	r.log.Info("registration over", zap.NamedError("because", err))
}

// enter changes the state. mu is held.
func (r *registration) enter(state registry.RegistrationState, err error) {
	if r.state == registry.Registered {
		r.c.stats.registered.Add(-1)
	}
	if state == registry.Registered {
		r.c.stats.registered.Add(1)
	}
	r.state, r.err = state, err
	r.broadcast()
}

// failed notes why the key is not in the store, or not known to be.
func (r *registration) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over() != nil {
		return
	}
	first := r.err == nil
	state := r.state
	if state == registry.Registered {
		state = registry.Retrying
		r.c.stats.lost.Add(1)
	}
	if !first && r.err.Error() == err.Error() {
		return
	}
	r.enter(state, err)
	if first {
		r.log.Warn("not registered, trying again until it works", zap.Error(err))
	}
}

// succeeded notes that the store holds a version.
func (r *registration) succeeded(version uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written = max(r.written, version)
	if r.over() == nil && r.state != registry.Registered {
		r.log.Info("registered", zap.String("address", r.in.Address), zap.Int64("revision", r.rev), zap.Bool("again", r.state == registry.Retrying))
		r.enter(registry.Registered, nil)
		return
	}
	r.broadcast()
}

// run keeps the key until the registration leaves or is superseded, then deletes it.
func (r *registration) run() {
	defer r.leave()
	err := r.keep()
	r.mu.Lock()
	replaced := r.replaced && !r.leaving
	r.mu.Unlock()
	if replaced || errors.Is(err, registry.ErrSuperseded) {
		r.finish(registry.Superseded, registry.ErrSuperseded)
		close(r.gone)
		return
	}
	r.remove()
	close(r.gone)
	if !r.uncertain {
		return
	}
	// etcd gives up a request after five seconds and two elections. Until then a put of ours may still arrive.
	for _, pause := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second} {
		if sleep(r.c.ctx, pause) {
			r.remove()
		}
	}
}

// keep returns ErrSuperseded, or the error of keeping.
func (r *registration) keep() error {
	retry := r.c.retry()
	for sleep(r.keeping, retry.next()) {
		l, err := r.c.lease.await(r.keeping, r.failed)
		if err != nil {
			return err
		}
		if err = r.put(l); err == nil {
			since := time.Now()
			err = r.hold(l)
			if time.Since(since) > atRest {
				retry.reset()
			}
		}
		switch {
		case errors.Is(err, registry.ErrSuperseded) || r.keeping.Err() != nil:
			return err
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			l.lose(err) // nobody else may have noticed
			retry.n = 0
		}
		r.failed(err)
	}
	return r.keeping.Err()
}

// put writes the record under the lease, over everything that is not a newer incarnation's.
func (r *registration) put(l *lease) error {
	r.mu.Lock()
	value, version := r.value, r.version
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(r.keeping, r.c.callTimeout())
	defer cancel()
	for {
		ok, found, err := r.swap(ctx, clientv3.OpPut(r.key, string(value), clientv3.WithLease(l.id)))
		switch {
		case err != nil:
			return err
		case ok:
			r.uncertain = false
			r.succeeded(version)
			return nil
		case found == newer:
			return registry.ErrSuperseded
		}
	}
}

// swap does op if the key is as we last knew it. Else it returns false and whose record is there; the next swap is
// about that one.
func (r *registration) swap(ctx context.Context, op clientv3.Op) (bool, owner, error) {
	resp, err := r.c.etcd.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(r.key), "=", r.rev)).
		Then(op).
		Else(clientv3.OpGet(r.key)).
		Commit()
	if err != nil {
		if op.IsPut() && r.rev == 0 && !refused(err) {
			r.uncertain = true
		}
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			err = r.c.explain(err)
		}
		return false, nobody, err
	}
	r.asOf = resp.Header.Revision
	if resp.Succeeded {
		switch {
		case op.IsPut():
			r.rev = resp.Header.Revision
		case op.IsDelete():
			r.rev = 0
		}
		return true, nobody, nil
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		r.rev = 0
		return false, nobody, nil
	}
	r.rev = kvs[0].ModRevision
	return false, r.owner(kvs[0].Value), nil
}

// refused says that etcd answered, and the answer was no.
func refused(err error) bool {
	var e rpctypes.EtcdError
	return errors.As(err, &e) && !unreachable(err)
}

// Whose record a value is.
type owner int

const (
	nobody owner = iota
	older        // of an earlier incarnation, of none, or unreadable
	ours
	newer
)

func (r *registration) owner(value []byte) owner {
	in, err := codec.Decode(r.service, r.id, value)
	switch {
	case err != nil || in.Incarnation < r.incarnation:
		return older
	case in.Incarnation == r.incarnation:
		return ours
	}
	return newer
}

// verifyEvery is how often a key at rest is read, in case its watch is silent. It is jittered.
const verifyEvery = 30 * time.Second

// hold watches the key, which put has just written, and writes changes of the record. It returns when the key has to
// be put anew, with the reason.
func (r *registration) hold(l *lease) error {
	ctx, cancel := context.WithCancel(r.keeping)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	seen := r.observe(ctx)
	verify := time.NewTimer(jitter(verifyEvery))
	defer verify.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	again.Stop()
	rewatch := backoff{min: firstPause, max: 5 * time.Second}
	for {
		var err error
		select {
		case <-ctx.Done():
			if r.keeping.Err() != nil {
				return r.keeping.Err()
			}
			return fmt.Errorf("lease %s lost: %w", leaseName(l.id), context.Cause(l.ctx))
		case <-r.wake:
			err = r.update(l)
		case resp, ok := <-seen:
			if ok && resp.Err() == nil {
				err = r.noticed(resp.Events)
				break
			}
			// The watch is over, for example because it was away and its revision is compacted: look for
			// ourselves, and watch from there.
			seen = nil
			again.Reset(rewatch.next())
		case <-again.C:
			if err = r.verify(ctx); err == nil {
				seen = r.observe(ctx)
			}
		case <-verify.C:
			err = r.verify(ctx)
			verify.Reset(jitter(verifyEvery))
		}
		if err != nil {
			return err
		}
	}
}

// update writes the record if it is newer than what the store holds.
func (r *registration) update(l *lease) error {
	r.mu.Lock()
	news := r.version > r.written
	r.mu.Unlock()
	if !news {
		return nil
	}
	return r.put(l)
}

// observe watches the key from the revision after the one we know of, until ctx ends. That is the store's revision, not
// the key's, which may be compacted.
func (r *registration) observe(ctx context.Context) <-chan clientv3.WatchResponse {
	out := make(chan clientv3.WatchResponse)
	from := r.asOf + 1
	r.c.wg.Go(func() { // Watch itself waits until etcd answers
		defer close(out)
		for resp := range r.c.etcd.Watch(clientv3.WithRequireLeader(ctx), r.key, clientv3.WithRev(from)) {
			select {
			case out <- resp:
			case <-ctx.Done():
				return
			}
		}
	})
	return out
}

// noticed judges what happened to the key. What we did ourselves is not newer than what we know.
func (r *registration) noticed(events []*clientv3.Event) error {
	var err error
	for _, ev := range events {
		switch {
		case ev.Kv.ModRevision <= r.rev:
		case ev.Type == clientv3.EventTypeDelete:
			r.rev, err = 0, errDeleted
		case r.owner(ev.Kv.Value) == newer:
			return registry.ErrSuperseded
		default:
			r.rev, err = ev.Kv.ModRevision, errOverwritten
		}
	}
	return err
}

// verify reads the key. Only an answer counts: the lease tells whether etcd is there.
func (r *registration) verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.c.callTimeout())
	defer cancel()
	resp, err := r.c.etcd.Get(ctx, r.key)
	if err != nil {
		return nil
	}
	r.asOf = resp.Header.Revision
	switch {
	case len(resp.Kvs) == 0:
		r.rev = 0
		return errDeleted
	case resp.Kvs[0].ModRevision == r.rev:
		return nil
	case r.owner(resp.Kvs[0].Value) == newer:
		return registry.ErrSuperseded
	}
	r.rev = resp.Kvs[0].ModRevision
	return errOverwritten
}

// remove deletes the key unless it is another's, and tries until that is known or the client has closed.
func (r *registration) remove() {
	retry := r.c.retry()
	for sleep(r.c.ctx, retry.next()) {
		ctx, cancel := context.WithTimeout(r.c.ctx, r.c.callTimeout())
		err := r.tryRemove(ctx)
		cancel()
		if err == nil {
			break
		}
		r.mu.Lock()
		r.leaveErr = err
		r.mu.Unlock()
	}
	r.finish(registry.Left, registry.ErrLeft)
}

func (r *registration) tryRemove(ctx context.Context) error {
	// With "draining" as its last word a deleted record has left; without it, its lease may have run out. If the key
	// is no longer as we know it, the delete finds out why.
	if value := r.lastWord(); r.rev != 0 && value != nil {
		if _, found, err := r.swap(ctx, clientv3.OpPut(r.key, string(value), clientv3.WithIgnoreLease())); err != nil {
			return err
		} else if found == older || found == newer {
			return nil
		}
	}
	for {
		op := clientv3.OpDelete(r.key)
		if r.rev == 0 {
			op = clientv3.OpGet(r.key) // not there, as far as we know
		}
		ok, found, err := r.swap(ctx, op)
		if ok || err != nil || found == older || found == newer {
			return err
		}
	}
}

// lastWord is the record in the state draining, nil if that is what the store holds already.
func (r *registration) lastWord() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.in.State == registry.Draining && r.written == r.version {
		return nil
	}
	in := r.in.Clone()
	in.State = registry.Draining
	value, err := codec.Encode(in)
	if err != nil {
		return nil // a few bytes too long: the delete has to do
	}
	return value
}
