package telemetry

import "time"

// Sample is everything at one moment.
type Sample struct {
	Services     []Service
	Upstreams    []Upstream
	Listeners    []Listener
	Registry     *Registry // nil when there is none
	Certificates []Certificate
	Config       Config
	Tunnels      int
	Shedding     bool
	Lag          time.Duration // how long what is ready waits for its loop
	// AccessLogDropped counts lines that were lost; SpansSlow and SpansFailed spans: because the collector was too slow, and because
	// they could not be sent.
	AccessLogDropped, SpansSlow, SpansFailed uint64
	AdminRefused                             []Named // requests of the admin API, by reason
}

// Histogram is a histogram with Prometheus' meaning of bounds: upper ones, inclusive, in seconds. Buckets has one more
// element than Bounds and is not cumulative.
type Histogram struct {
	Bounds  []float64
	Buckets []uint64
	Sum     float64
	// Fine are the same counts in buckets of schema 2 of native histograms: i has what is up to 2^((i+FineOffset)/4). The first
	// has what is shorter, too, and the last what is longer. Nil is none.
	Fine       []uint64
	FineOffset int
	Exemplars  []Exemplar
}

// Exemplar is one of what was counted, that can be looked up.
type Exemplar struct {
	Trace, Request string // ids; empty is none
	Value          float64
	At             time.Time
}

// Count is a number of requests by method, protocol and status.
type Count struct {
	Method, Protocol string
	Status           int
	N                uint64
}

// Named is a number of something, by name.
type Named struct {
	Name string
	N    uint64
}

// Retry is a number of attempts after the first.
type Retry struct {
	Reason, Outcome string
	N               uint64
}

// Service are the figures of a service.
type Service struct {
	Name               string
	InFlight           int
	Requests           []Count
	Failures           []Named // by reason
	Retries            []Retry
	BytesIn, BytesOut  uint64
	Duration, Overhead Histogram
}

// Upstream are the figures of an endpoint.
type Upstream struct {
	Service, Upstream, State string
	ID, Zone, Version        string
	Weight, InFlight         int
	// Classes are answers by class of status; index 0 counts attempts without an answer.
	Classes           [6]uint64
	Errors, Ejections []Named // by reason
	Duration          Histogram
}

// Listener are the figures of a listener.
type Listener struct {
	Address           string
	Open              int
	Accepted, Refused uint64
	Failed            []Named // by reason
}

// Registry are the figures of the control plane.
type Registry struct {
	Connected, Synced bool
	Revision          int64
	Puts, Deletes     uint64
	Relists           []Named // by reason
	Quarantined       int64
	Doubted, Brakes   int64
	Panics            int64
	Instances         int64
	Tables            uint64
	LastSync          time.Time // zero when there was none
	LeaseTTL          time.Duration
}

// Certificate is one that a listener shows.
type Certificate struct {
	File, Names string
	NotAfter    time.Time
}

// Config are the attempts to read the configuration anew.
type Config struct {
	Good, Bad uint64
	Failed    bool      // the last one
	Last      time.Time // of the last good one, the start included
}
