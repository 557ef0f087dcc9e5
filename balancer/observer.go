package balancer

import (
	"bytes"
	"cmp"
	"encoding/hex"

	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/journal"
	"github.com/rota-lb/rota/balancer/internal/proxy"
	"github.com/rota-lb/rota/balancer/internal/telemetry"
	"github.com/rota-lb/rota/balancer/internal/tracing"
	"github.com/rota-lb/rota/balancer/pool"
)

// observer turns records of exchanges into access log lines, and tells the control plane who refuses connections.
type observer struct {
	log     *telemetry.AccessLog
	journal *journal.Journal
	tracing *tracing.Tracing
	control *control.Controller
	redact  *telemetry.Redactor
}

func (o observer) Refused(e *pool.Endpoint, reset bool) { o.control.Refused(e, reset) }

func (o observer) Failing(e *pool.Endpoint) { o.control.Failing(e) }

func (o observer) Done(r *proxy.Record) {
	o.remember(r)
	if r.Trace != nil {
		o.tracing.Add(o.traced(r))
	}
	o.log.Log(r.Loop, func(a *telemetry.Access) {
		a.Start, a.Duration, a.UpstreamLatency = r.Start, r.Duration, r.Upstream
		a.Peer, a.Client = r.Peer, r.Client
		a.Method, a.Host, a.URI, a.Query, a.Minor = r.Method, r.Host, r.Path, r.Query, r.Minor
		a.UserAgent, a.Referer, a.ID = r.UserAgent, r.Referer, r.ID
		a.TLS, a.TLSVersion, a.TLSCipher, a.TLSResumed = r.TLS, r.TLSVersion, r.TLSCipher, r.TLSResumed
		a.Status, a.UpstreamStatus, a.Attempts = r.Status, r.UpstreamStatus, r.Attempts
		a.Size, a.BodySize = r.BytesOut, max(0, r.BytesOut-r.HeadOut)
		a.BytesRead, a.BodyRead = r.BytesIn, max(0, r.BytesIn-r.HeadIn)
		a.TableRevision, a.Reason, a.Flag = r.Table.Revision, string(r.Reason), r.Flags()
		a.Route, a.Service, a.Upstream = names(r)
		if r.Trace != nil {
			a.Trace = hex.EncodeToString(r.Trace.ID[:])
		}
	})
}

// names are what the exchange got to, each empty where it got to none.
func names(r *proxy.Record) (route, service, upstream string) {
	if r.Route != nil {
		route = r.Route.Name
	}
	if r.Service != nil {
		service = r.Service.Name
	}
	if r.Endpoint != nil {
		upstream = r.Endpoint.Name
	}
	return route, service, upstream
}

// remember keeps an exchange in the journal if it is worth that.
func (o observer) remember(r *proxy.Record) {
	notable := r.Reason != "" || r.Status >= 500 || r.Attempts > 1 || r.Duration >= journal.Slow && r.Protocol == pool.HTTP
	if wanted, sampled := o.journal.Wants(r.Loop, r.Start.UnixNano()+int64(r.Duration), notable); wanted && len(r.Path) > 0 {
		o.note(r, notable, sampled)
	}
}

// note is remember for one that is. It stands by itself for its scratch memory, which most exchanges need not have.
//
//go:noinline
func (o observer) note(r *proxy.Record, notable, sampled bool) {
	var fields [1536]byte
	var client [48]byte
	f := journal.Facts{
		At: r.Start, Scheme: r.Scheme, Status: r.Status, UpstreamStatus: r.UpstreamStatus, Reason: string(r.Reason), Attempts: r.Attempts,
		Duration: r.Duration, UpstreamTook: r.Upstream, Revision: r.Table.Revision, Sampled: sampled,
	}
	f.Route, f.Service, f.Upstream = names(r)
	texts := journal.Texts{ID: r.ID, Method: r.Method, Host: r.Host, Path: r.Path, Query: o.redact.Query(r.Query)}
	if r.Head != nil {
		texts.Fields = o.fields(fields[:0], r.Head)
	}
	if r.Client.IsValid() {
		texts.Client = r.Client.Addr().AppendTo(client[:0])
	}
	o.journal.Add(r.Loop, &f, &texts, notable)
}

// fields appends what a replay may ask about. Fields hold secrets by their names, or as a Referer does, within a URL.
func (o observer) fields(dst []byte, r *http1.Request) []byte {
	for name, value := range r.All {
		if o.redact.Secret(name) || !bytes.Equal(o.redact.Query(value), value) {
			dst = journal.AppendHidden(dst, name)
		} else {
			dst = journal.AppendField(dst, name, value)
		}
	}
	return dst
}

// traced is what spans are made of, of an exchange that is traced.
func (o observer) traced(r *proxy.Record) tracing.Exchange {
	x := tracing.Exchange{
		Trace: tracing.TraceID(r.Trace.ID), Parent: tracing.SpanID(r.Trace.Parent), Span: tracing.SpanID(r.Trace.Span), Start: r.Start, Duration: r.Duration,
		Method: string(r.Method), Host: string(r.Host), Path: string(r.Path), Query: string(o.redact.Query(r.Query)), Scheme: cmp.Or(r.Scheme, "http"),
		UserAgent: string(r.UserAgent), Minor: r.Minor, Status: r.Status, Reason: string(r.Reason), ID: string(r.ID), Revision: r.Table.Revision,
	}
	if a := r.Client.Addr(); a.IsValid() {
		x.Client = a.String()
	}
	x.Route, x.Service, _ = names(r)
	for _, a := range r.Trace.Attempts {
		if a.Endpoint != nil { // else it was never made
			x.Attempts = append(x.Attempts, tracing.Attempt{
				Span: tracing.SpanID(a.ID), Start: a.Start, End: a.End, Upstream: a.Endpoint.Name, Status: a.Status, Reason: string(a.Reason),
			})
		}
	}
	return x
}
