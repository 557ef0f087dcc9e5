// Package tracing sends spans of exchanges to an OpenTelemetry collector: one for the exchange, one for each attempt.
//
// It is set up by OpenTelemetry's own environment variables, and off unless they name a collector:
// OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, with _PROTOCOL (http/protobuf, the default, or grpc), _HEADERS,
// _CERTIFICATE and the others; OTEL_SERVICE_NAME (rota) and OTEL_RESOURCE_ATTRIBUTES; OTEL_TRACES_SAMPLER and _ARG
// (parentbased_always_on); OTEL_BSP_*; OTEL_TRACES_EXPORTER=none and OTEL_SDK_DISABLED=true switch it off.
//
// Whether an exchange is traced is decided before it, on its loop; its spans are made after it, by one goroutine. When the collector is
// slower than the traffic, or not there, spans are lost and counted, and the log says so now and then. A request never waits, and the
// end of the daemon not long.
package tracing

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
)

// The ids of a trace and of its spans.
type (
	TraceID = trace.TraceID
	SpanID  = trace.SpanID
)

// Exchange is what spans are made of.
type Exchange struct {
	Trace                     trace.TraceID
	Parent, Span              trace.SpanID // Parent is zero where the trace begins
	Start                     time.Time
	Duration                  time.Duration
	Method, Host, Path, Query string // Query without secrets
	Scheme, Client, UserAgent string
	Minor, Status             int
	Route, Service, Reason    string
	ID                        string // of the request
	Revision                  int64  // of the table
	Attempts                  []Attempt
}

// Attempt is an attempt of it.
type Attempt struct {
	Span       trace.SpanID
	Start, End time.Time
	Upstream   string // host:port
	Status     int
	Reason     string
}

// queued is how many exchanges wait for their spans to be made, at most.
const queued = 4096

// Tracing sends spans. Use [New]. A nil *Tracing does nothing.
type Tracing struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	ids      *given
	sampler  sampler
	queue    chan Exchange
	dropped  atomic.Uint64 // spans that were never made
	exporter *exporter
}

// New sets tracing up as the environment says; nil when that names no collector. An error names the variable that is wrong. logger is
// told when spans cannot be sent.
func New(ctx context.Context, version string, logger *zap.Logger) (*Tracing, error) {
	endpoint := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") + os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); {
	case strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true"), exporter == "none", exporter == "" && endpoint == "":
		return nil, nil
	case exporter != "" && exporter != "otlp":
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER=%s: use otlp or none", exporter)
	}
	if err := checkEnvironment(); err != nil {
		return nil, err
	}
	s, err := samplerFromEnv()
	if err != nil {
		return nil, err
	}
	var client otlptrace.Client
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	switch protocol {
	case "", "http/protobuf":
		client = otlptracehttp.NewClient()
	case "grpc":
		client = otlptracegrpc.NewClient()
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%s: use http/protobuf or grpc", protocol)
	}
	otlp, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "rota"), attribute.String("service.version", version)),
		resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	t := &Tracing{ids: &given{}, sampler: s, queue: make(chan Exchange, queued), exporter: newExporter(otlp, logger)}
	t.provider = sdk.NewTracerProvider(sdk.WithResource(about), sdk.WithIDGenerator(t.ids), sdk.WithSampler(sdk.AlwaysSample()),
		sdk.WithBatcher(t.exporter, sdk.WithBlocking())) // the queue is where spans are lost, and counted
	t.tracer = t.provider.Tracer("rota", trace.WithInstrumentationVersion(version))
	return t, nil
}

// Sample decides whether an exchange is traced.
func (t *Tracing) Sample(id *[16]byte, parent, sampled bool) bool {
	return t.sampler.sample(id, parent, sampled)
}

// Add hands an exchange over. It does not block.
func (t *Tracing) Add(x Exchange) {
	select {
	case t.queue <- x:
	default:
		t.lose(&x)
	}
}

// lose counts the spans of an exchange that are not made.
func (t *Tracing) lose(x *Exchange) { t.dropped.Add(uint64(1 + len(x.Attempts))) }

// Dropped is the number of spans that were lost: because the collector is slower than the traffic, and because it could not be sent
// them.
func (t *Tracing) Dropped() (slow, failed uint64) {
	if t == nil {
		return 0, 0
	}
	return t.dropped.Load(), t.exporter.lost.Load()
}

const (
	// flushFor is how long the last spans may take to be sent.
	flushFor = 2 * time.Second
	// endFor is how long after that there may still be something to be counted.
	endFor = time.Second
)

// Run makes spans until ctx ends and the last ones are sent, or cannot be.
func (t *Tracing) Run(ctx context.Context) {
	if t == nil {
		return
	}
	// From the end of ctx on what is being sent has its time, too: making spans may be waiting for it.
	context.AfterFunc(ctx, func() { time.AfterFunc(flushFor, t.exporter.giveUp) })
	for ctx.Err() == nil {
		select {
		case x := <-t.queue:
			t.spans(&x)
		case <-ctx.Done():
		}
	}
	for len(t.queue) > 0 {
		if x := <-t.queue; t.exporter.sending.Err() == nil {
			t.spans(&x)
		} else {
			t.lose(&x)
		}
	}
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushFor+endFor)
	defer cancel()
	t.provider.Shutdown(short)
}

// spans makes the spans of an exchange, with the attributes of OpenTelemetry's conventions for HTTP, and ours.
func (t *Tracing) spans(x *Exchange) {
	ctx := context.Background()
	if x.Parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: x.Trace, SpanID: x.Parent, TraceFlags: trace.FlagsSampled, Remote: true,
		}))
	}
	t.ids.trace, t.ids.span = x.Trace, x.Span
	name := x.Method
	if x.Route != "" {
		name += " " + x.Route
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithTimestamp(x.Start), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(set(
		attribute.String("http.request.method", x.Method), attribute.String("url.scheme", x.Scheme), attribute.String("url.path", x.Path),
		attribute.String("url.query", strings.TrimPrefix(x.Query, "?")), attribute.String("server.address", x.Host), attribute.String("client.address", x.Client),
		attribute.String("user_agent.original", x.UserAgent), attribute.String("network.protocol.name", "http"),
		attribute.String("network.protocol.version", "1."+strconv.Itoa(x.Minor)), attribute.Int("http.response.status_code", x.Status),
		attribute.String("rota.route", x.Route), attribute.String("rota.service", x.Service), attribute.String("rota.reason", x.Reason),
		attribute.String("rota.request_id", x.ID), attribute.Int64("rota.table_revision", x.Revision),
	)...))
	for i := range x.Attempts {
		t.attempt(ctx, x, &x.Attempts[i], i)
	}
	fail(span, x.Status, x.Reason, 500)
	span.End(trace.WithTimestamp(x.Start.Add(x.Duration)))
}

func (t *Tracing) attempt(ctx context.Context, x *Exchange, a *Attempt, n int) {
	t.ids.span = a.Span
	host, port, err := net.SplitHostPort(a.Upstream)
	if err != nil {
		host = a.Upstream
	}
	number, _ := strconv.Atoi(port)
	_, span := t.tracer.Start(ctx, x.Method, trace.WithTimestamp(a.Start), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(set(
		attribute.String("http.request.method", x.Method), attribute.String("server.address", host), attribute.Int("server.port", number),
		attribute.Int("http.response.status_code", a.Status), attribute.Int("http.request.resend_count", n), attribute.String("rota.reason", a.Reason),
	)...))
	fail(span, a.Status, a.Reason, 400)
	span.End(trace.WithTimestamp(a.End))
}

// fail marks a span as failed: for a reason, or by a status from a number on (client spans count what is their own fault, too).
func fail(span trace.Span, status int, reason string, from int) {
	switch {
	case reason != "":
		span.SetAttributes(attribute.String("error.type", reason))
		if status == 0 || status >= from {
			span.SetStatus(codes.Error, reason)
		}
	case status >= from:
		span.SetAttributes(attribute.String("error.type", strconv.Itoa(status)))
		span.SetStatus(codes.Error, "")
	}
}

// set leaves attributes out that say nothing.
func set(list ...attribute.KeyValue) []attribute.KeyValue {
	out := list[:0]
	for _, kv := range list {
		if kv.Value.Type() == attribute.STRING && kv.Value.AsString() == "" || kv.Value.Type() == attribute.INT64 && kv.Value.AsInt64() == 0 {
			continue
		}
		out = append(out, kv)
	}
	return out
}

// given gives the ids that exchanges have already. It is used by one goroutine.
type given struct {
	trace trace.TraceID
	span  trace.SpanID
}

// NewIDs implements sdk.IDGenerator.
func (g *given) NewIDs(context.Context) (trace.TraceID, trace.SpanID) { return g.trace, g.span }

// NewSpanID implements sdk.IDGenerator.
func (g *given) NewSpanID(context.Context, trace.TraceID) trace.SpanID { return g.span }

// sampler is one of those that OTEL_TRACES_SAMPLER names.
type sampler struct {
	parents bool   // what a parent says counts
	below   uint64 // of those without one, the trace ids whose last half is below are sampled
	all     bool
}

func samplerFromEnv() (s sampler, err error) {
	name := os.Getenv("OTEL_TRACES_SAMPLER")
	kind, parents := strings.CutPrefix(name, "parentbased_")
	s.parents = parents || name == ""
	switch kind {
	case "", "always_on":
		s.all = true
	case "always_off":
	case "traceidratio":
		ratio, text := 1.0, os.Getenv("OTEL_TRACES_SAMPLER_ARG")
		if text != "" {
			if ratio, err = strconv.ParseFloat(text, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
				return s, fmt.Errorf("OTEL_TRACES_SAMPLER_ARG=%s: write a number from 0 to 1", text)
			}
		}
		if s.all = ratio == 1; !s.all {
			s.below = uint64(ratio * (1 << 63))
		}
	default:
		return s, fmt.Errorf("OTEL_TRACES_SAMPLER=%s: use always_on, always_off or traceidratio, or one of them after parentbased_", name)
	}
	return s, nil
}

func (s *sampler) sample(id *[16]byte, parent, sampled bool) bool {
	if s.parents && parent {
		return sampled
	}
	return s.all || binary.BigEndian.Uint64(id[8:])>>1 < s.below
}
