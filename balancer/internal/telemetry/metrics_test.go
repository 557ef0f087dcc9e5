package telemetry

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// scrape returns the metrics as they are asked for by accept.
func scrape(t *testing.T, m *Metrics, accept string) (body string, families map[string]*dto.MetricFamily) {
	t.Helper()
	req := httptest.NewRequest("GET", "/metrics", nil)
	req.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, req)
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	body = w.Body.String()
	if format := expfmt.ResponseFormat(w.Header()); strings.Contains(accept, "protobuf") {
		families = map[string]*dto.MetricFamily{}
		for d := expfmt.NewDecoder(w.Body, format); ; {
			var f dto.MetricFamily
			if d.Decode(&f) != nil {
				break
			}
			families[f.GetName()] = &f
		}
	}
	return body, families
}

const (
	asText     = "text/plain"
	asOpen     = "application/openmetrics-text; version=1.0.0"
	asProtobuf = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)

func full() Sample {
	fine := make([]uint64, 81)
	fine[0], fine[20], fine[80] = 1, 2, 3
	h := Histogram{
		Bounds: []float64{0.001, 0.01, 1}, Buckets: []uint64{1, 2, 0, 3}, Sum: 1000, Fine: fine, FineOffset: -56,
		Exemplars: []Exemplar{{Trace: "t1", Value: 0.002, At: time.Unix(1700000000, 0)}, {Request: "r1", Value: 100, At: time.Unix(1700000000, 0)}},
	}
	list := []Named{{"connect_failed", 7}}
	return Sample{
		Services: []Service{{
			Name: "web", InFlight: 2, Requests: []Count{{"GET", "http", 200, 5}, {"GET", "websocket", 101, 1}}, Failures: list,
			Retries: []Retry{{"connect_failed", "answered", 3}}, BytesIn: 10, BytesOut: 20, Duration: h, Overhead: h,
		}},
		Upstreams: []Upstream{{
			Service: "web", Upstream: "10.0.0.1:80", State: "ready", ID: "a", Zone: "eu", Version: "1", Weight: 100, InFlight: 1,
			Classes: [6]uint64{1, 0, 5}, Errors: list, Ejections: []Named{{"refused", 1}}, Duration: h,
		}},
		Listeners: []Listener{{":8080", 3, 9, 1, []Named{{"tls", 1}}}}, AdminRefused: []Named{{"token", 2}},
		Registry: &Registry{Connected: true, Synced: true, Revision: 9, Relists: []Named{{"start", 1}}, LastSync: time.Unix(1, 0), LeaseTTL: 5 * time.Second},
		Config:   Config{Good: 1, Last: time.Unix(1, 0)}, Certificates: []Certificate{{"a.pem", "a.example.com", time.Unix(1, 0)}},
	}
}

// Every family that is documented is there, with its labels, and nothing else of ours is.
func TestFamilies(t *testing.T) {
	m := NewMetrics("test", full)
	m.EventToRoute(time.Millisecond)
	_, got := scrape(t, m, asProtobuf)
	known := map[string]bool{}
	for _, f := range families {
		known[f.Name] = true
		g := got[f.Name]
		if g == nil {
			t.Errorf("%s is not there", f.Name)
			continue
		}
		var labels []string
		for _, l := range g.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		if len(labels) != len(f.Labels) || strings.ToLower(g.GetType().String()) != f.Kind || g.GetHelp() != f.Help {
			t.Errorf("%s is a %s with %v: %s", f.Name, g.GetType(), labels, g.GetHelp())
		}
		for _, l := range labels {
			if l == "instance" || l == "job" {
				t.Errorf("%s has a label that belongs to Prometheus: %s", f.Name, l)
			}
		}
	}
	for name := range got {
		if strings.HasPrefix(name, "rota_") && !known[name] {
			t.Errorf("%s is not documented", name)
		}
	}
}

// Series that look alike, for labels are cut, hide nothing but one another.
func TestAlike(t *testing.T) {
	s := full()
	long := strings.Repeat("x", 200)
	s.Certificates = append(s.Certificates, Certificate{File: long + "1"}, Certificate{File: long + "2"})
	_, got := scrape(t, NewMetrics("test", func() Sample { return s }), asProtobuf)
	if n := len(got[certificateEnd.Name].GetMetric()); n != 2 {
		t.Errorf("%d certificates are shown", n)
	}
	if got[httpRequests.Name] == nil {
		t.Error("nothing else is")
	}
}

// A histogram has classic buckets for everybody, native ones for who asks for protobuf, and exemplars.
func TestHistogram(t *testing.T) {
	m := NewMetrics("test", full)
	text, _ := scrape(t, m, asText)
	for _, want := range []string{
		`rota_http_request_duration_seconds_bucket{service="web",le="0.001"} 1`, `rota_http_request_duration_seconds_bucket{service="web",le="1"} 3`,
		`rota_http_request_duration_seconds_bucket{service="web",le="+Inf"} 6`, `rota_http_request_duration_seconds_count{service="web"} 6`,
		`rota_upstream_state{service="web",state="up",upstream="10.0.0.1:80"} 1`, `rota_upstream_state{service="web",state="down",upstream="10.0.0.1:80"} 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	open, _ := scrape(t, m, asOpen)
	for _, want := range []string{`le="0.01"} 3 # {trace_id="t1"} 0.002 1.7e+09`, `le="+Inf"} 6 # {request_id="r1"} 100.0 1.7e+09`} {
		if !strings.Contains(open, want) {
			t.Errorf("no %s", want)
		}
	}
	_, families := scrape(t, m, asProtobuf)
	h := families["rota_http_request_duration_seconds"].Metric[0].Histogram
	total := int64(h.GetZeroCount())
	last := int64(0)
	for _, d := range h.PositiveDelta {
		last += d
		total += last
	}
	if h.GetSchema() != 2 || h.GetSampleCount() != 6 || total != 6 || len(h.Bucket) < 3 || h.GetZeroCount() != 1 {
		t.Errorf("native: %v", h)
	}
	if at := h.PositiveSpan[0].GetOffset(); at != 20-56 {
		t.Errorf("the first native bucket is %d", at)
	}
}

// An upstream that has gone is shown for a while, in no state, and then not any more.
func TestDeparted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := full()
		m := NewMetrics("test", func() Sample { return s })
		const requests = `rota_upstream_requests_total{code="2xx",service="web",upstream="10.0.0.1:80"} 5`
		const up = `rota_upstream_state{service="web",state="up",upstream="10.0.0.1:80"} `
		look := func(when string, there bool, state string) {
			t.Helper()
			text, _ := scrape(t, m, asText)
			if strings.Contains(text, requests) != there || there && !strings.Contains(text, up+state) {
				t.Errorf("%s: %v, state %s", when, there, state)
			}
		}
		look("there", true, "1")
		list := s.Upstreams
		s.Upstreams = nil
		look("gone", true, "0")
		time.Sleep(grace)
		look("at the end of the grace", true, "0")
		time.Sleep(time.Second)
		look("after it", false, "")
		s.Upstreams = list
		look("back", true, "1")

		for i := range 3 * mostDeparted {
			s.Upstreams = append(s.Upstreams, Upstream{Service: "many", Upstream: fmt.Sprint(i)})
		}
		m.upstreams(s.Upstreams, time.Now())
		if n := len(m.upstreams(nil, time.Now())); n != mostDeparted {
			t.Errorf("%d are shown of those that have gone", n)
		}
	})
}

func TestLabel(t *testing.T) {
	for v, want := range map[string]string{
		"": "", "plain": "plain", "a\xffb": "a\uFFFDb", strings.Repeat("x", 128): strings.Repeat("x", 128),
		strings.Repeat("x", 129): strings.Repeat("x", 125) + "…", strings.Repeat("ä", 100): strings.Repeat("ä", 62) + "…",
	} {
		if got := label(v); got != want {
			t.Errorf("%q: %q", v, got)
		}
	}
}

// docs/metrics.md is made of the families.
func TestDocumented(t *testing.T) {
	const file = "../../../docs/metrics.md"
	const begin, end = "<!-- made by TestDocumented -->\n", "<!-- end -->"
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(have), begin)
	_, after, ok := strings.Cut(rest, end)
	if !ok {
		t.Fatalf("%s has no place for the table: %q … %q", file, begin, end)
	}
	var table strings.Builder
	table.WriteString("| Name | Kind | Labels | Is |\n| --- | --- | --- | --- |\n")
	for _, f := range families {
		labels := ""
		if len(f.Labels) > 0 {
			labels = "`" + strings.Join(f.Labels, "` `") + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", f.Name, f.Kind, labels, strings.TrimSpace(f.Help+" "+f.Use))
	}
	want := before + begin + table.String() + end + after
	if want == string(have) {
		return
	}
	if os.Getenv("ROTA_TEST_UPDATE") == "" {
		t.Fatalf("%s is not up to date: ROTA_TEST_UPDATE=1 go test -run TestDocumented ./balancer/internal/telemetry", file)
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
