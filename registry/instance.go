package registry

import (
	"encoding/json"
	"time"
)

// Protocol is what an instance speaks on its address.
type Protocol string

// The protocols an instance may name; the empty string means [HTTP].
const (
	HTTP  Protocol = "http"
	HTTPS Protocol = "https"
	H2C   Protocol = "h2c"
	H2    Protocol = "h2"
	GRPC  Protocol = "grpc"
	TCP   Protocol = "tcp"
)

// State is what an instance says of itself: its intent. What a balancer thinks of it is decided elsewhere.
type State string

// The states an instance may name; the empty string means [Ready].
const (
	Starting State = "starting" // registered, takes no traffic yet
	Ready    State = "ready"    // takes traffic
	Draining State = "draining" // takes no new exchange; those in flight go on
)

// Limits and defaults of an instance record.
const (
	DefaultWeight = 100
	MaxWeight     = 10000
	MaxValueBytes = 64 << 10 // a longer value is quarantined
)

// Instance is one record of the registry: a service says where it can be reached and how it wants to be treated.
// Only Service and Address are required; Address may be left empty in [Serve], which fills it from its listener.
//
// An Instance is a value: copy it freely, but treat the maps and slices of a received one as read-only.
type Instance struct {
	// Service is the name that instances share: [a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?. It is part of the key.
	Service string `json:"-"`
	// ID tells the instances of a service apart: [A-Za-z0-9._:-]{1,128}. Empty when registering means
	// "<hostname>-<port>". It is part of the key.
	ID string `json:"-"`
	// Address is host:port as balancers should dial it.
	Address string `json:"address"`
	// Protocol defaults to HTTP.
	Protocol Protocol `json:"protocol,omitempty"`
	// State defaults to Ready.
	State State `json:"state,omitempty"`
	// Weight is the share of traffic relative to the other instances, 0 to MaxWeight. nil means DefaultWeight;
	// zero takes no new traffic. Write new(50) for fifty.
	Weight *int `json:"weight,omitempty"`
	// Zone, Version and Metadata are for people, policies and splits; they may be empty.
	Zone     string            `json:"zone,omitempty"`
	Version  string            `json:"version,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	// Claims are hosts and paths the instance asks to serve; they count only where a grant allows them.
	Claims []Claim `json:"claims,omitempty"`
	// Check is how balancers may probe the instance; nil means no active check.
	Check *Check `json:"check,omitempty"`
	// IdleTimeout is when the instance closes idle connections (gunicorn: 2s), so that balancers retire theirs
	// earlier. Zero means unknown.
	IdleTimeout Duration `json:"idle_timeout,omitempty"`
	// DrainAck says that the instance waits for balancers to acknowledge its draining.
	DrainAck bool `json:"drain_ack,omitempty"`
	// Incarnation tells two lives of one id apart; it sorts by age. Register fills it.
	Incarnation string `json:"incarnation,omitempty"`
	// RegisteredAt is when this incarnation first registered. Register fills it.
	RegisteredAt time.Time `json:"registered_at,omitzero"`
	// Extra holds the fields of the record that this version does not know. They are kept and written back.
	Extra map[string]json.RawMessage `json:"-"`
}

// Claim is a host and path prefix an instance asks to serve.
type Claim struct {
	Host string `json:"host,omitempty"` // empty: any host
	Path string `json:"path,omitempty"` // empty: any path
}

// Check describes an active health check. Zero fields take the balancer's defaults.
type Check struct {
	Type     string   `json:"type,omitempty"` // http (default), tcp, grpc
	Path     string   `json:"path,omitempty"` // http only; default "/"
	Interval Duration `json:"interval,omitempty"`
	Timeout  Duration `json:"timeout,omitempty"`
}

// EffectiveWeight is the weight with the default applied.
func (in Instance) EffectiveWeight() int {
	if in.Weight == nil {
		return DefaultWeight
	}
	return *in.Weight
}

// Duration is a time.Duration that reads and writes as a string such as "5s" or "250ms" in JSON.
type Duration time.Duration
