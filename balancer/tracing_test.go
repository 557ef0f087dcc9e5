package balancer

import (
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/rota-lb/rota/config"
)

// receiver is an OpenTelemetry collector that keeps what it gets.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []*tracepb.Span
	about map[string]string // of the resource
}

func (r *receiver) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rs := range req.ResourceSpans {
		r.about = attributes(rs.Resource.Attributes)
		for _, ss := range rs.ScopeSpans {
			r.spans = append(r.spans, ss.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	var req collector.ExportTraceServiceRequest
	if err != nil || q.URL.Path != "/v1/traces" || proto.Unmarshal(body, &req) != nil {
		http.Error(w, "no", http.StatusBadRequest)
		return
	}
	r.Export(q.Context(), &req)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// A sampled request gives a span for itself and one for each attempt, over both protocols; the instance gets the id of its attempt. What
// is not sampled is passed on as it was.
func TestTracing(t *testing.T) {
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			r := &receiver{}
			if protocol == "grpc" {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				s := grpc.NewServer()
				collector.RegisterTraceServiceServer(s, r)
				go s.Serve(ln)
				t.Cleanup(s.Stop)
				t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+ln.Addr().String())
			} else {
				s := httptest.NewServer(r)
				t.Cleanup(s.Close)
				t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", s.URL)
			}
			t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
			t.Setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
			t.Setenv("OTEL_SERVICE_NAME", "edge")
			got := make(chan string, 10)
			up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { got <- strings.Join(q.Header["Traceparent"], ",") }))
			t.Cleanup(up.Close)
			dead, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			dead.Close()
			d := run(t, nil, func(c *config.Config) {
				c.Etcd.Disabled, c.AutoRoutes = true, false
				c.Routes = []config.Route{{Name: "all", Path: "/", Service: "web"}}
				c.Services = map[string]config.Service{"web": {Balance: "round_robin", Ejection: config.Ejection{Failures: -1}, Instances: []config.StaticInstance{
					{Address: up.Listener.Addr().String()}, {Address: dead.Addr().String()},
				}}}
			})
			const id = "0af7651916cd43dd8448eb211c80319c"
			ask := func(parent string) string {
				t.Helper()
				req, err := http.NewRequest("GET", d.url+"/cart?token=s3cret&a=1", nil)
				if err != nil {
					t.Fatal(err)
				}
				if parent != "" {
					req.Header.Set("traceparent", parent)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				return <-got
			}
			passed := map[string]bool{}
			for range 2 { // at least one of them meets the dead instance first
				p := ask("00-" + id + "-b7ad6b7169203331-01")
				if !strings.HasPrefix(p, "00-"+id+"-") || !strings.HasSuffix(p, "-01") || strings.Contains(p, "b7ad6b7169203331") {
					t.Errorf("the instance got %q", p)
				}
				passed[p[36:52]] = true
			}
			for name, parent := range map[string]string{
				"none": "", "not sampled": "00-" + id + "-b7ad6b7169203331-00", "no trace": "00-00000000000000000000000000000000-b7ad6b7169203331-01",
				"short": "00-" + id + "-b7ad6b7169203331", "upper case": "00-" + strings.ToUpper(id) + "-b7ad6b7169203331-01", "version ff": "ff-" + id + "-b7ad6b7169203331-01",
			} {
				if passed := ask(parent); passed != parent {
					t.Errorf("%s: the instance got %q", name, passed)
				}
			}
			if err := d.stop(); err != nil {
				t.Fatal(err)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			servers, answered, refused := map[string]bool{}, 0, 0
			for _, s := range r.spans {
				if hex.EncodeToString(s.TraceId) != id {
					t.Errorf("trace %x", s.TraceId)
				}
				if took := time.Duration(s.EndTimeUnixNano - s.StartTimeUnixNano); took < 0 || took > time.Minute {
					t.Errorf("%s took %s", s.Name, took)
				}
				a := attributes(s.Attributes)
				if s.Kind == tracepb.Span_SPAN_KIND_SERVER {
					servers[hex.EncodeToString(s.SpanId)] = true
					if hex.EncodeToString(s.ParentSpanId) != "b7ad6b7169203331" || s.Name != "GET all" || a["http.response.status_code"] != "200" ||
						a["url.query"] != "token=REDACTED&a=1" || a["rota.service"] != "web" || a["client.address"] != "127.0.0.1" {
						t.Errorf("server span %s %v of %x", s.Name, a, s.ParentSpanId)
					}
				}
			}
			for _, s := range r.spans {
				if s.Kind != tracepb.Span_SPAN_KIND_CLIENT {
					continue
				}
				a := attributes(s.Attributes)
				switch {
				case !servers[hex.EncodeToString(s.ParentSpanId)]:
					t.Errorf("an attempt of nobody: %x", s.ParentSpanId)
				case a["http.response.status_code"] == "200" && passed[hex.EncodeToString(s.SpanId)]:
					answered++
				case a["error.type"] == "connect_failed" && s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR:
					refused++
				default:
					t.Errorf("attempt %v", a)
				}
			}
			// The other exchange meets the dead instance too if that has not been ejected yet.
			if len(servers) != 2 || answered != 2 || refused < 1 || refused > 2 || r.about["service.name"] != "edge" {
				t.Errorf("%d exchanges, %d attempts that were answered, %d refused, of %v", len(servers), answered, refused, r.about)
			}
		})
	}
}

func attributes(list []*commonpb.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range list {
		switch v := kv.Value.Value.(type) {
		case *commonpb.AnyValue_StringValue:
			out[kv.Key] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			out[kv.Key] = strconv.FormatInt(v.IntValue, 10)
		}
	}
	return out
}

// Where a trace begins here, nothing is left of what a client sends of another one; where it goes on, its state goes along.
func TestTraceState(t *testing.T) {
	s := httptest.NewServer(&receiver{})
	t.Cleanup(s.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", s.URL)
	var got http.Header
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { got = q.Header }))
	t.Cleanup(up.Close)
	d := run(t, nil, func(c *config.Config) {
		c.Etcd.Disabled, c.AutoRoutes = true, false
		c.Routes = []config.Route{{Name: "all", Path: "/", Service: "web"}}
		c.Services = map[string]config.Service{"web": {Instances: []config.StaticInstance{{Address: up.Listener.Addr().String()}}}}
	})
	const id = "0af7651916cd43dd8448eb211c80319c"
	for parent, goesOn := range map[string]bool{
		"00-" + id + "-b7ad6b7169203331-01": true,
		"00-" + id + "-0000000000000000-01": false,
		"00-" + id:                          false,
		"":                                  false,
	} {
		req, err := http.NewRequest("GET", d.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Traceparent": {parent}, "Tracestate": {"a=b"}, "Baggage": {"c=d"}}
		if parent == "" {
			req.Header.Del("Traceparent")
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		fields := got["Traceparent"]
		if len(fields) != 1 || len(fields[0]) != 55 || strings.Contains(fields[0], id) != goesOn || (got.Get("Tracestate") == "a=b") != goesOn || got.Get("Baggage") != "c=d" {
			t.Errorf("%q: the instance got %v", parent, got)
		}
	}
}
