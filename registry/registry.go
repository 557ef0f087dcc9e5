package registry

import (
	"context"
	"errors"
	"time"
)

// Errors that callers can test for with errors.Is.
var (
	// ErrInvalid is wrapped by every error about a record or key that breaks the rules; its text says which one
	// and what to write instead.
	ErrInvalid = errors.New("invalid")
	// ErrSuperseded says that a newer incarnation of the same id has taken the key. The registration is over;
	// it touched nothing of its successor.
	ErrSuperseded = errors.New("superseded by a newer incarnation")
	// ErrLeft says that the registration has left and cannot be used any more.
	ErrLeft = errors.New("registration has left")
	// ErrNotAdvertisable says that no address could be found that others can reach (loopback, wildcard, no port).
	ErrNotAdvertisable = errors.New("address cannot be advertised")
)

// Registry is a store in which services register and are found. All methods may be called concurrently.
type Registry interface {
	// Register validates the instance, fills ID, Incarnation and RegisteredAt where they are empty, and begins to
	// keep the record in the store. It does not wait for the store, so that a service starts while the store is
	// away: see [Registration.State], or [WaitRegistered] for those who want to wait.
	//
	// The registration is kept until Leave is called, ctx ends (which leaves, within two seconds), or a newer
	// incarnation supersedes it. Errors are about the instance and wrap ErrInvalid or ErrNotAdvertisable.
	Register(ctx context.Context, in Instance) (Registration, error)

	// Watch delivers the content of the scope and then every change, until ctx ends, whose error it returns.
	// It never returns for another reason: when the store goes away it says so by an Update with Err and goes on
	// trying. Only a scope that cannot exist is refused at once, with an error that wraps ErrInvalid.
	// apply is called from one goroutine at a time and must not block for long.
	Watch(ctx context.Context, scope Scope, apply func(Update)) error
}

// Leases is what a Registry says, too, whose keys have leases: why a key has gone may be learned from its lease.
type Leases interface {
	// LeaseLeft is how much longer a lease runs if nobody keeps it alive; zero when it does not run any more. It may be called
	// concurrently.
	LeaseLeft(ctx context.Context, lease int64) (time.Duration, error)
}

// Heard is what a Registry says, too, that has several members.
type Heard interface {
	// Member names the member that the watches hear at present, or heard last; empty before the first.
	Member() string
}

// Editor is a Registry, too, whose keys an operator's tool can change. Both drivers here are.
type Editor interface {
	// Edit replaces the value of a key, without a lease, by what change makes of it, and does so again from the value that
	// is there then if somebody else was quicker. old is nil when there is none; a new value of nil deletes the key. It
	// returns the error of change, of the store, or of ctx.
	Edit(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error
}

// RegistrationState is how a registration stands with the store.
type RegistrationState uint8

// The states of a registration.
const (
	Registering RegistrationState = iota // not yet in the store
	Registered                           // in the store, under a live lease as far as is known
	Retrying                             // was in the store, is being put again; Err says why
	Superseded                           // over: a newer incarnation has the key
	Left                                 // over: it left
)

// Registration is one instance being kept in a registry. All methods may be called concurrently.
type Registration interface {
	// Instance is the record as it is being kept.
	Instance() Instance
	// State is the present state.
	State() RegistrationState
	// Err is the last error: nil when Registered, ErrSuperseded or ErrLeft when over.
	Err() error
	// Changed returns a channel that is closed at the next change of State, Err or Instance. To wait for a state
	// without missing one, take the channel first and look at the state after.
	Changed() <-chan struct{}
	// Update changes the record (state, weight, metadata, …) and returns when the store holds it, when ctx ends,
	// or when the registration is over (ErrSuperseded, ErrLeft). Service, ID and Incarnation cannot be changed: what
	// change does to them is undone. A record that the change made invalid is refused with ErrInvalid and changes
	// nothing. Concurrent calls of change follow one another. A change whose ctx ended is still kept and written as
	// soon as possible.
	Update(ctx context.Context, change func(*Instance)) error
	// Drain puts the state draining, and returns once every live balancer has acknowledged that it sends no new
	// exchange here and has none in flight; at once if there is no balancer. What balancers do not know of, such as
	// clients that find their instances by themselves, it does not wait for. When ctx ends before, the error wraps
	// ErrUnacknowledged or is that of the store; the state stays draining. The instance goes on being registered until Leave.
	Drain(ctx context.Context) error
	// Leave puts the state draining and deletes the record, if it is still ours, so that watches can tell it from a
	// record whose lease was lost, and ends the registration. It returns nil when the record is known to be gone or
	// another's, else the error of the last attempt when ctx ends; the record is then deleted when the store is back,
	// or removed by its lease if the process ends before. Leaving twice is the same as leaving once.
	Leave(ctx context.Context) error
}

// WaitRegistered waits until the registration is in the store. It returns the error of a registration that is over,
// or ctx's error joined with the registration's last one.
func WaitRegistered(ctx context.Context, r Registration) error {
	for {
		changed := r.Changed()
		switch r.State() {
		case Registered:
			return nil
		case Superseded, Left:
			return r.Err()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), r.Err())
		}
	}
}
