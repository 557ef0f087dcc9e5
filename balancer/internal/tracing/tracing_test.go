package tracing

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/proto"
)

func TestSampler(t *testing.T) {
	for name, c := range map[string]struct {
		sampler, arg  string
		root, yes, no float64 // shares without a parent, with one that is sampled, and with one that is not
		wrong         string
	}{
		"default":     {"", "", 1, 1, 0, ""},
		"on":          {"always_on", "", 1, 1, 1, ""},
		"off":         {"always_off", "", 0, 0, 0, ""},
		"ratio":       {"traceidratio", "0.25", 0.25, 0.25, 0.25, ""},
		"parent":      {"parentbased_traceidratio", "0.25", 0.25, 1, 0, ""},
		"parent off":  {"parentbased_always_off", "", 0, 1, 0, ""},
		"all of them": {"traceidratio", "1", 1, 1, 1, ""},
		"none":        {"traceidratio", "0", 0, 0, 0, ""},
		"nonsense":    {"sometimes", "", 0, 0, 0, "OTEL_TRACES_SAMPLER=sometimes"},
		"no ratio":    {"traceidratio", "2", 0, 0, 0, "OTEL_TRACES_SAMPLER_ARG=2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_TRACES_SAMPLER", c.sampler)
			t.Setenv("OTEL_TRACES_SAMPLER_ARG", c.arg)
			s, err := samplerFromEnv()
			if c.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), c.wrong) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			share := func(parent, sampled bool) float64 {
				const n = 20000
				r, hits := rand.New(rand.NewPCG(1, 2)), 0
				for range n {
					var id [16]byte
					for i := range id {
						id[i] = byte(r.Uint32())
					}
					if s.sample(&id, parent, sampled) {
						hits++
					}
				}
				return float64(hits) / n
			}
			for what, got := range map[string][2]float64{"root": {share(false, false), c.root}, "yes": {share(true, true), c.yes}, "no": {share(true, false), c.no}} {
				if got[0] < got[1]-0.02 || got[0] > got[1]+0.02 {
					t.Errorf("%s: %g, want %g", what, got[0], got[1])
				}
			}
		})
	}
}

func TestSwitchedOff(t *testing.T) {
	for name, env := range map[string][2]string{
		"nothing named": {"OTEL_SERVICE_NAME", "x"}, "none": {"OTEL_TRACES_EXPORTER", "none"}, "disabled": {"OTEL_SDK_DISABLED", "true"},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "nothing named" {
				t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			}
			t.Setenv(env[0], env[1])
			on, err := New(t.Context(), "test", zap.NewNop())
			if on != nil || err != nil {
				t.Errorf("%v %v", on, err)
			}
			on.Run(context.Background())
			if slow, failed := on.Dropped(); slow+failed != 0 {
				t.Error("something was dropped")
			}
		})
	}
}

// What is wrong in a variable is an error that names it, and no secret.
func TestEnvironment(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER=zipkin: use otlp or none"},
		{"OTEL_EXPORTER_OTLP_PROTOCOL", "smoke", "OTEL_EXPORTER_OTLP_PROTOCOL=smoke: use http/protobuf or grpc"},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "localhost:4318", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is no URL"},
		{"OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "OTEL_EXPORTER_OTLP_TIMEOUT=10s: write a number"},
		{"OTEL_BSP_MAX_QUEUE_SIZE", "many", "OTEL_BSP_MAX_QUEUE_SIZE=many: write a number"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "a=b,canary", "OTEL_EXPORTER_OTLP_HEADERS: field 2 has no name or no ="},
		{"OTEL_EXPORTER_OTLP_CERTIFICATE", "tracing.go", "OTEL_EXPORTER_OTLP_CERTIFICATE: tracing.go holds no certificate"},
		{"OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere", "OTEL_EXPORTER_OTLP_CERTIFICATE: open /nowhere: "},
		{"OTEL_EXPORTER_OTLP_CLIENT_KEY", "/nowhere", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY: "},
	} {
		t.Run(c.name+" "+c.value, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			t.Setenv(c.name, c.value)
			if _, err := New(t.Context(), "test", zap.NewNop()); err == nil || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

// A collector that does not answer, is not there, or takes its time, holds nobody up: neither those who hand exchanges over nor the
// end. Every span has arrived or is counted as lost, and the log says so once.
func TestBadCollector(t *testing.T) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { t.Errorf("the SDK writes to standard error: %v", err) }))
	t.Cleanup(func() { otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {})) })
	listen := func(t *testing.T) net.Listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	for name, c := range map[string]struct {
		collector func(t *testing.T, arrived *atomic.Uint64) (address string)
		works     bool
	}{
		"hanging": {collector: func(t *testing.T, _ *atomic.Uint64) string {
			return listen(t).Addr().String() // the kernel accepts, and nobody reads
		}},
		"refusing": {collector: func(t *testing.T, _ *atomic.Uint64) string {
			ln := listen(t)
			ln.Close()
			return ln.Addr().String()
		}},
		"failing": {collector: func(t *testing.T, _ *atomic.Uint64) string {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
			t.Cleanup(s.Close)
			return s.Listener.Addr().String()
		}},
		"slow": {works: true, collector: func(t *testing.T, arrived *atomic.Uint64) string {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				var req collector.ExportTraceServiceRequest
				if err != nil {
					return // it was given up
				}
				if err := proto.Unmarshal(body, &req); err != nil {
					t.Error(err)
				}
				time.Sleep(200 * time.Millisecond)
				for _, rs := range req.ResourceSpans {
					for _, ss := range rs.ScopeSpans {
						arrived.Add(uint64(len(ss.Spans)))
					}
				}
				w.Header().Set("Content-Type", "application/x-protobuf")
			}))
			t.Cleanup(s.Close)
			return s.Listener.Addr().String()
		}},
	} {
		for _, protocol := range []string{"http/protobuf", "grpc"} {
			if protocol == "grpc" && (name == "slow" || name == "failing") {
				continue // they speak HTTP
			}
			t.Run(name+" "+protocol, func(t *testing.T) {
				var arrived atomic.Uint64
				t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+c.collector(t, &arrived))
				t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
				t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "120000")
				t.Setenv("OTEL_BSP_EXPORT_TIMEOUT", "120000")
				log, logged := observer.New(zap.InfoLevel)
				on, err := New(t.Context(), "test", zap.New(log))
				if err != nil {
					t.Fatal(err)
				}
				ctx, end := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { on.Run(ctx); close(ended) }()
				const exchanges = 3 * queued // more than all queues together hold
				for i := range exchanges {
					on.Add(Exchange{
						Trace: TraceID{1, byte(i >> 8), byte(i)}, Span: SpanID{2, byte(i >> 8), byte(i)}, Start: time.Now(), Method: "GET",
						Attempts: []Attempt{{Span: SpanID{3, byte(i >> 8), byte(i)}, Upstream: "10.0.0.1:80"}},
					})
				}
				// The end comes while a batch is being sent.
				for deadline := time.Now().Add(10 * time.Second); len(on.queue) == queued && time.Now().Before(deadline); {
					time.Sleep(time.Millisecond)
				}
				end()
				select {
				case <-ended:
				case <-time.After(time.Minute): // half of what a batch may take
					t.Fatal("it does not end")
				}
				slow, failed := on.Dropped()
				if got := arrived.Load(); got+slow+failed < 2*exchanges || !c.works && (got > 0 || got+slow+failed > 2*exchanges) || c.works && got == 0 {
					t.Errorf("%d spans have arrived, %d were lost for slowness and %d for failure; there were %d", got, slow, failed, 2*exchanges)
				}
				complaints := logged.FilterMessage("spans could not be sent and are lost").Len()
				if complaints > 1 || complaints == 0 && !c.works {
					t.Errorf("logged: %v", logged.All())
				}
			})
		}
	}
}
