package proxy

import (
	"encoding/hex"
	"math/rand/v2"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/pool"
)

// TraceID is the id of a trace, SpanID that of a span in it (W3C Trace Context, §3.2.2).
type (
	TraceID [16]byte
	SpanID  [8]byte
)

// Sampler decides on its loop whether an exchange is traced. parent says that the request is part of a trace, and sampled that it
// is recorded elsewhere.
type Sampler func(id *TraceID, parent, sampled bool) bool

// Trace is what is recorded of an exchange that is traced.
type Trace struct {
	ID           TraceID
	Parent, Span SpanID // Parent is zero where the trace begins
	Attempts     []AttemptSpan

	field [55]byte // the traceparent of the present attempt
}

// AttemptSpan is an attempt of an exchange that is traced.
type AttemptSpan struct {
	ID         SpanID
	Endpoint   *pool.Endpoint
	Start, End time.Time
	Status     int    // zero when there was no answer
	Reason     Reason // empty when there was
}

// trace begins to record the exchange if it is sampled. Else its traceparent, if it has one, is passed on as it is.
func (x *exchange) trace() {
	sample := x.proxy.Sampler
	if sample == nil {
		return
	}
	var t Trace
	parent, sampled := t.parse(&x.req)
	if !parent {
		t.ID = TraceID(twice(rand.Uint64(), rand.Uint64()))
	}
	if !sample(&t.ID, parent, sampled) {
		return
	}
	t.Span = newSpanID()
	x.rec.Trace = &t
	x.nextSpan()
}

// nextSpan makes the span of the next attempt: what is sent with it names it as its parent.
func (x *exchange) nextSpan() {
	t := x.rec.Trace
	id := newSpanID()
	t.Attempts = append(t.Attempts, AttemptSpan{ID: id})
	f := &t.field
	copy(f[:], "00-")
	hex.Encode(f[3:35], t.ID[:])
	f[35] = '-'
	hex.Encode(f[36:52], id[:])
	copy(f[52:], "-01")
	x.hop.TraceParent, x.hop.NewTrace = f[:], t.Parent == SpanID{}
}

// traced records an attempt that has ended.
func (x *exchange) traced(e *pool.Endpoint, began time.Time, why Reason) {
	t := x.rec.Trace
	if t == nil {
		return
	}
	a := &t.Attempts[len(t.Attempts)-1]
	a.Endpoint, a.Start, a.End, a.Reason = e, began, x.loop.Now(), why
	if why == "" {
		a.Status = x.resp.Status
	}
}

// traceEnds ends the attempt that was answered, with the exchange.
func (x *exchange) traceEnds() {
	t := x.rec.Trace
	if a := &t.Attempts[len(t.Attempts)-1]; a.Status != 0 {
		a.End = x.loop.Now()
		if x.rec.Reason.upstream() {
			a.Reason = x.rec.Reason
		}
	}
}

// exemplar names an exchange that is traced, so that a figure leads to its trace.
func (x *exchange) exemplar() *pool.Exemplar {
	t := x.rec.Trace
	if t == nil {
		return nil
	}
	return &pool.Exemplar{Trace: hex.EncodeToString(t.ID[:]), At: x.loop.Now()}
}

// parse reads the traceparent of a request. One that is not valid is none.
func (t *Trace) parse(r *http1.Request) (parent, sampled bool) {
	v, ok := r.Value("traceparent", 0)
	if _, twice := r.Value("traceparent", 1); !ok || twice || len(v) < 55 || v[2] != '-' || v[35] != '-' || v[52] != '-' {
		return false, false
	}
	// A later version may have more behind a hyphen (§3.2.4).
	if string(v[:2]) == "ff" || string(v[:2]) == "00" && len(v) != 55 || len(v) > 55 && v[55] != '-' {
		return false, false
	}
	var version, flags [1]byte
	for _, p := range []struct{ to, from []byte }{{version[:], v[:2]}, {t.ID[:], v[3:35]}, {t.Parent[:], v[36:52]}, {flags[:], v[53:55]}} {
		for _, c := range p.from {
			if c >= 'A' && c <= 'F' {
				*t = Trace{}
				return false, false
			}
		}
		if _, err := hex.Decode(p.to, p.from); err != nil {
			*t = Trace{}
			return false, false
		}
	}
	if t.ID == (TraceID{}) || t.Parent == (SpanID{}) {
		*t = Trace{}
		return false, false
	}
	return true, flags[0]&1 != 0
}

func newSpanID() (id SpanID) {
	for id == (SpanID{}) {
		whole := twice(rand.Uint64(), 0)
		copy(id[:], whole[:])
	}
	return id
}

func twice(a, b uint64) (raw [16]byte) {
	for i := range 8 {
		raw[i], raw[8+i] = byte(a>>(8*i)), byte(b>>(8*i))
	}
	return raw
}
