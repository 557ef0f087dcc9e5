package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
)

// leaveTimeout bounds the leaving of a registration whose context ended.
const leaveTimeout = 2 * time.Second

// registration is one instance being kept. Store.mu protects it all, but for updates.
type registration struct {
	client *Client
	key    string

	updates sync.Mutex // one Update at a time; taken before Store.mu

	in      registry.Instance
	state   registry.RegistrationState
	err     error
	changed chan struct{}

	held    int64 // the revision at which the key is ours; zero: it is not
	version int   // counts the changes of in
	written int   // the version the store holds
	leaving bool
	stop    func() bool // forgets ctx
}

// Register is that of [registry.Registry].
func (c *Client) Register(ctx context.Context, in registry.Instance) (registry.Registration, error) {
	in, err := registry.Prepare(in, time.Now())
	if err != nil {
		return nil, err
	}
	if _, err := codec.Encode(in); err != nil {
		return nil, err
	}
	s := c.store
	r := &registration{client: c, key: s.Keys.Instance(in.Service, in.ID), in: in, changed: make(chan struct{}), version: 1}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range slices.Clone(s.registrations[r.key]) {
		if o.in.Incarnation == in.Incarnation {
			o.end(registry.Superseded, registry.ErrSuperseded) // two of one incarnation would overwrite each other for ever
		}
	}
	s.registrations[r.key] = append(s.registrations[r.key], r)
	r.stop = context.AfterFunc(ctx, func() {
		lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
		defer cancel()
		_ = r.Leave(lctx) // its error stays to be read from Err
	})
	r.settle()
	return r, nil
}

func (r *registration) over() bool {
	return r.state == registry.Superseded || r.state == registry.Left
}

// settle brings the store and the registration together, as far as they are in touch. It is called after everything
// that may have parted them. Callers hold Store.mu.
func (r *registration) settle() {
	if r.over() && !r.leaving {
		return
	}
	c, s := r.client, r.client.store
	if !c.connected {
		if r.state == registry.Registering && r.err == nil {
			r.set(registry.Registering, ErrDisconnected)
		}
		return
	}
	e, exists := s.entries[r.key]
	ours := exists && e.mod == r.held
	switch {
	case r.leaving:
		if ours {
			r.delete()
		}
		r.end(registry.Left, registry.ErrLeft)
		return
	case ours && r.written == r.version:
		return
	case exists && !ours:
		if other, err := codec.Decode(r.in.Service, r.in.ID, e.value); err == nil && other.Incarnation > r.in.Incarnation {
			r.end(registry.Superseded, registry.ErrSuperseded)
			return
		}
	}
	if r.state == registry.Registered && !ours {
		r.set(registry.Retrying, errors.New("the key was deleted or overwritten"))
	}
	r.put()
}

// put writes the record. Callers hold Store.mu.
func (r *registration) put() {
	value, err := codec.Encode(r.in)
	if err != nil {
		panic(fmt.Sprintf("memory: a record that was checked cannot be encoded: %v", err))
	}
	s := r.client.store
	r.held = s.revision + 1 // before watches and others see it
	r.written = r.version
	ops := []op{{key: r.key, value: value, lease: r.client.grant()}}
	s.commit(ops)
	r.set(registry.Registered, nil)
	s.settle(ops) // a predecessor learns of it
}

// delete announces the leaving, so that it can be told from a lost lease, and leaves. Callers hold Store.mu.
func (r *registration) delete() {
	s := r.client.store
	if r.in.State != registry.Draining {
		r.in.State = registry.Draining
		if value, err := codec.Encode(r.in); err == nil {
			r.held = s.revision + 1
			s.commit([]op{{key: r.key, value: value, lease: r.client.grant()}})
		}
	}
	r.held = 0
	s.commit([]op{{key: r.key, deleted: true}})
}

// set changes the state and tells those who wait. Callers hold Store.mu.
func (r *registration) set(state registry.RegistrationState, err error) {
	r.state, r.err = state, err
	close(r.changed)
	r.changed = make(chan struct{})
}

// end makes the registration over. Callers hold Store.mu.
func (r *registration) end(state registry.RegistrationState, err error) {
	r.leaving = false
	r.stop()
	regs := r.client.store.registrations
	regs[r.key] = slices.DeleteFunc(regs[r.key], func(o *registration) bool { return o == r })
	if len(regs[r.key]) == 0 {
		delete(regs, r.key)
	}
	r.set(state, err)
}

func (r *registration) lock() func() {
	r.client.store.mu.Lock()
	return r.client.store.mu.Unlock
}

func (r *registration) Instance() registry.Instance {
	defer r.lock()()
	return r.in.Clone()
}

func (r *registration) State() registry.RegistrationState {
	defer r.lock()()
	return r.state
}

func (r *registration) Err() error {
	defer r.lock()()
	return r.err
}

func (r *registration) Changed() <-chan struct{} {
	defer r.lock()()
	return r.changed
}

func (r *registration) Update(ctx context.Context, change func(*registry.Instance)) error {
	version, err := r.change(change)
	if err != nil {
		return err
	}
	return r.wait(ctx, func() (bool, error) {
		switch {
		case r.written >= version:
			return true, nil
		case r.over():
			return true, r.err
		case r.leaving:
			return true, registry.ErrLeft
		}
		return false, nil
	})
}

// change makes the change and returns its version.
func (r *registration) change(change func(*registry.Instance)) (version int, err error) {
	r.updates.Lock()
	defer r.updates.Unlock()
	old := r.Instance()
	in := old.Clone()
	change(&in)
	in = in.Clone() // change may have kept what it put in
	in.Service, in.ID, in.Incarnation = old.Service, old.ID, old.Incarnation

	defer r.lock()()
	switch {
	case r.over():
		return 0, r.err
	case r.leaving:
		return 0, registry.ErrLeft
	}
	value, err := codec.Encode(in)
	if err != nil {
		return 0, err
	}
	if same, err := codec.Encode(old); err == nil && bytes.Equal(value, same) {
		return r.version, nil
	}
	r.in = in
	r.version++
	version = r.version
	r.set(r.state, r.err)
	r.settle()
	return version, nil
}

func (r *registration) Leave(ctx context.Context) error {
	unlock := r.lock()
	if r.over() {
		unlock()
		return nil
	}
	r.leaving = true
	r.settle()
	unlock()
	err := r.wait(ctx, func() (bool, error) { return r.over(), nil })
	if err == nil {
		return nil
	}
	defer r.lock()()
	if !r.over() { // the record is still deleted on Reconnect
		r.set(registry.Left, errors.Join(registry.ErrLeft, err))
	}
	return err
}

// wait returns what done does, once it is done, or why it is not when ctx ends. done is called with Store.mu held.
func (r *registration) wait(ctx context.Context, done func() (bool, error)) error {
	for {
		unlock := r.lock()
		changed, connected, crashed := r.changed, r.client.connected, r.client.crashed
		ok, err := done()
		unlock()
		switch {
		case ok:
			return err
		case crashed:
			return ErrDisconnected // the dead do not wait
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if !connected {
				return errors.Join(ctx.Err(), ErrDisconnected)
			}
			return ctx.Err()
		}
	}
}
