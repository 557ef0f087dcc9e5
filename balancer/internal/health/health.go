// Package health asks endpoints whether they are well, and judges from what they answer.
//
// A [Prober] asks actively, over TCP, HTTP or gRPC: each endpoint at its own interval, never twice at a time, and no
// probe outlives its timeout. It decides nothing, it reports every outcome. A [Judge] makes a verdict of these outcomes,
// with hysteresis. An [Outlier] looks at the exchanges that clients had and says when an endpoint is ejected, and for how
// long; [MostEjected] says how many of a pool may be. Both are pure: they hold no clock, start nothing and know no
// endpoint.
//
// The cost of a Prober is that of the probes that are due. An endpoint between two probes has an entry in a heap and
// nothing else: no goroutine, no timer, no connection.
package health

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
)

// ErrRefused is what the error of a [Result] wraps when the connection was refused, or was reset or closed before the
// first byte of an answer. Nobody listens there, or whoever does has died.
var ErrRefused = errors.New("connection refused")

// Type is the kind of question that a probe asks.
type Type uint8

// The types. What a TLS handshake fails on fails any of them, where [Check.TLS] is set.
const (
	TCP  Type = iota // can a connection be made?
	HTTP             // does a GET get the answer that is wanted?
	GRPC             // does grpc.health.v1.Health/Check say SERVING?
)

// String is the name as configuration writes it.
func (t Type) String() string {
	switch t {
	case TCP:
		return "tcp"
	case HTTP:
		return "http"
	case GRPC:
		return "grpc"
	}
	return "type " + strconv.Itoa(int(t))
}

// The values of fields of [Check] and [Options] that are zero, and how short an interval may be.
const (
	DefaultInterval    = 5 * time.Second
	DefaultTimeout     = time.Second
	DefaultConcurrency = 128
	MinInterval        = 100 * time.Millisecond
)

// Check says how an endpoint is probed. The zero Check asks whether a TCP connection can be made. Fields that its Type
// does not name are not looked at. No redirect is followed, no proxy of the environment is used, and nothing is decoded.
type Check struct {
	Type Type
	// Path is the target of an HTTP request, with a query if there is one; empty is "/". For GRPC it is the name of the
	// service asked for; empty is the server as a whole.
	Path string
	// Host is the Host field of HTTP and the authority of GRPC; empty is the endpoint's address, or localhost for a unix
	// socket. It is also what a certificate must name if TLS says no ServerName.
	Host string
	// Headers are further fields of an HTTP request, each a name and a value. A name may come twice. Host is not taken
	// from here. Without a User-Agent among them it is "rota-health".
	Headers [][2]string
	// Status lists ranges of statuses that pass an HTTP check, both ends included; empty accepts 200 to 399.
	Status [][2]int
	// Body is a text that the first 64 KiB of an HTTP body must hold; empty accepts any and does not wait for the body.
	Body string
	// Interval is the time from the begin of one probe to the begin of the next, give or take a tenth. Zero or less is
	// 5 s, anything below 100 ms is 100 ms.
	Interval time.Duration
	// Timeout bounds a probe from dialling to its last byte. Zero or less is 1 s; it is at most Interval.
	Timeout time.Duration
	// ProxyProtocol is the version, 1 or 2, of the PROXY protocol header that the connection begins with; zero is none.
	ProxyProtocol int
	// TLS is how to speak TLS; nil is plain. It is copied, and compared by pointer when a check is set anew. ServerName is
	// filled if empty, sessions are kept for each endpoint, and the protocols offered are those of Type.
	TLS *tls.Config
}

// withDefaults returns c with zero fields filled and slices of its own.
func (c Check) withDefaults() Check {
	if c.Interval <= 0 {
		c.Interval = DefaultInterval
	}
	c.Interval = max(c.Interval, MinInterval)
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	c.Timeout = min(c.Timeout, c.Interval)
	c.Headers, c.Status = slices.Clone(c.Headers), slices.Clone(c.Status)
	return c
}

// asksSame reports whether two checks ask the same question, at whatever times.
func (c *Check) asksSame(o *Check) bool {
	return c.Type == o.Type && c.ProxyProtocol == o.ProxyProtocol && c.Path == o.Path && c.Host == o.Host && c.Body == o.Body && c.TLS == o.TLS &&
		slices.Equal(c.Headers, o.Headers) && slices.Equal(c.Status, o.Status)
}

// Result is the outcome of one probe.
type Result struct {
	Endpoint *pool.Endpoint
	// Err is nil if the endpoint answered as the check wants. It wraps [ErrRefused] when the connection was refused, or
	// reset before an answer. A check that cannot be asked, such as one whose Path is no path, says so here.
	Err error
	// Answered says that the endpoint did answer, whatever its answer was.
	Answered bool
	Took     time.Duration // from dialling to the outcome
	At       time.Time     // when it ended
}

// Options are what a [Prober] needs. Only Report is required.
type Options struct {
	// Report is told of every probe that ends, one after the other for each endpoint but from many goroutines at once. It
	// must not block: what it waits for, probes wait for. It may call the methods of the Prober but for Run.
	Report func(Result)
	// Dial makes the connection for a probe. It must return when ctx ends: a probe cannot end before. Nil dials the
	// endpoint's Address, or its Socket.
	Dial func(ctx context.Context, e *pool.Endpoint) (net.Conn, error)
	// Concurrency is how many probes run at a time, at most. Zero or less is 128. Endpoints that do not answer hold one for
	// their whole timeout, so a fleet of which n are silent is probed on time while n timeouts in an interval fit in.
	Concurrency int
}
