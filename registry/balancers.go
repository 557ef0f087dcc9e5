package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrUnacknowledged is wrapped by the error of a [Registration.Drain] that ended before every live balancer had said that
// it sends nothing more; the text names those that had not.
var ErrUnacknowledged = errors.New("not acknowledged by every balancer")

// Balancers is what a Registry is, too, in which balancers show themselves, so that an instance can wait for them before
// it goes. Both drivers here are.
type Balancers interface {
	// Join begins to keep the record of a balancer in the store, under the lease of the process, until Leave. Like
	// Register it does not wait for the store and never gives up. The error is about the record and wraps ErrInvalid.
	Join(b Balancer) (Presence, error)
}

// Balancer is the record of a balancer, under <prefix>/balancers/<id>.
type Balancer struct {
	ID      string    `json:"-"`
	Version string    `json:"version,omitempty"`
	Admin   string    `json:"admin,omitempty"` // where its API listens
	Started time.Time `json:"started"`
}

// Presence is a balancer being kept in a registry. All methods may be called concurrently, and none but Leave waits for
// the store.
type Presence interface {
	// Acknowledge says that the balancer sends nothing any more to this incarnation of an instance, and has nothing of it
	// in flight. It is kept until Forget or Leave.
	Acknowledge(service, id, incarnation string)
	// Forget takes an acknowledgement back, because the instance is gone or has changed its mind.
	Forget(service, id string)
	// Renew writes everything again: for who has seen that the store has lost it.
	Renew()
	// Leave deletes the record and every acknowledgement. What cannot be deleted until ctx ends is left to the lease.
	Leave(ctx context.Context) error
}

// Ack is the acknowledgement of a balancer, under <prefix>/acks/<service>/<id>/<balancer>.
type Ack struct {
	Incarnation string `json:"incarnation"`
}

// Encode returns the value under the key of a balancer. It validates first; the error wraps ErrInvalid.
func (b Balancer) Encode() ([]byte, error) {
	if err := CheckID(b.ID); err != nil {
		return nil, fmt.Errorf("balancer: %w", err)
	}
	return json.Marshal(b)
}

// Encode returns the value under the key of an acknowledgement.
func (a Ack) Encode() []byte {
	value, _ := json.Marshal(a) // a string can always be encoded
	return value
}

// Unacknowledged says who is missing: nil when each of the live balancers has acknowledged this incarnation of an
// instance, else an error that wraps ErrUnacknowledged and names the others. acks holds, by balancer, the values of the
// instance's acknowledgements; one that cannot be read, or is of another incarnation, does not count.
func Unacknowledged(incarnation string, live []string, acks map[string][]byte) error {
	var missing []string
	for _, id := range live {
		var a Ack
		if json.Unmarshal(acks[id], &a) != nil || a.Incarnation != incarnation {
			missing = append(missing, id)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return fmt.Errorf("%w: %s", ErrUnacknowledged, strings.Join(missing, ", "))
}
