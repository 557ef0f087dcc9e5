package balancer

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/telemetry"
	"github.com/rota-lb/rota/config"
)

// What a configuration may name is what the log knows.
func TestLogVariables(t *testing.T) {
	if !slices.Equal(config.LogVariables, telemetry.Variables()) {
		t.Errorf("config knows\n%q\nthe log\n%q", config.LogVariables, telemetry.Variables())
	}
	for _, format := range config.LogFormats {
		if err := telemetry.CheckFormat(format); err != nil {
			t.Error(err)
		}
	}
}

// A reload changes the format and the filter of a log that is open.
func TestAccessLogReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "access.log")
	change := func(format string) func(c *config.Config) {
		return func(c *config.Config) {
			c.Etcd.Disabled, c.Log.Access, c.Log.Format = true, file, format
			c.Services = map[string]config.Service{"web": {Instances: []config.StaticInstance{{Address: backend(t, "hello")}}}}
		}
	}
	d := run(t, nil, change("combined"))
	log := func(count int) []string {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"); len(lines) >= count && lines[0] != "" {
				return lines
			}
			if time.Now().After(deadline) {
				t.Fatalf("no %d lines in %q", count, text)
			}
		}
	}
	d.get("web", "/a?token=s3cret")
	if lines := log(1); !regexp.MustCompile(`^127\.0\.0\.1 - - \[.*\] "GET /a\?token=REDACTED HTTP/1\.1" 200 5 "-" "Go-http-client/1\.1"$`).MatchString(lines[0]) {
		t.Errorf("combined: %q", lines)
	}
	next := *d.config
	next.Dynamic = *d.dynamic.Load()
	next.Log.Format, next.Log.Filter.Status = "$status $uri $service", []string{"404"}
	d.Reload(t.Context(), next.Dynamic)
	d.get("web", "/b")
	d.get("nowhere", "/c")
	if lines := log(2); len(lines) != 2 || lines[1] != "404 /c -" {
		t.Errorf("after the reload: %q", lines)
	}
	if path, text := d.effective(); path != "" || !strings.Contains(string(text), "$status $uri $service") {
		t.Errorf("in effect: %s", text)
	}
}

// Listeners that leave their port open are two, and told apart by what was bound.
func TestListenerMetrics(t *testing.T) {
	d := run(t, nil, func(c *config.Config) {
		c.Etcd.Disabled = true
		c.Listeners = append(c.Listeners, c.Listeners[0])
	})
	text := d.metrics(t)
	for _, a := range d.Addresses() {
		if want := `rota_open_connections{listener="` + a.String() + `"} 0`; !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
}

// The figures of an exchange that is traced lead to its trace: the histograms of its time show it, as what they have counted.
func TestExemplars(t *testing.T) {
	s := httptest.NewServer(&receiver{})
	t.Cleanup(s.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", s.URL)
	t.Setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
	d := run(t, nil, func(c *config.Config) {
		c.Etcd.Disabled, c.AutoRoutes = true, false
		c.Routes = []config.Route{{Name: "all", Path: "/", Service: "web"}}
		c.Services = map[string]config.Service{"web": static(backend(t, "hello"))}
	})
	const sampled, passedBy = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c"
	must(t, client, "GET", d.url, nil, "traceparent", "00-"+passedBy+"-b7ad6b7169203331-00")
	must(t, client, "GET", d.url, nil, "traceparent", "00-"+sampled+"-b7ad6b7169203331-01")
	var text string
	// An exchange is counted when it has ended, which may be after its client has read the answer.
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(text, `rota_http_request_duration_seconds_count{service="web"} 2`); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no two requests in %s", text)
		}
		_, text = d.ask("GET", "/metrics", "", "Accept", "application/openmetrics-text; version=1.0.0")
	}
	for _, name := range []string{"rota_http_request_duration_seconds", "rota_proxy_overhead_seconds", "rota_upstream_duration_seconds"} {
		m := regexp.MustCompile(`(?m)^` + name + `_bucket\{service="web".*,le="([^"]+)"\} \d+ # \{trace_id="` + sampled + `"\} (\S+) \S+$`).FindStringSubmatch(text)
		if m == nil {
			t.Errorf("%s does not lead to the trace", name)
			continue
		}
		bound, _ := strconv.ParseFloat(m[1], 64)
		if value, err := strconv.ParseFloat(m[2], 64); err != nil || value > bound {
			t.Errorf("%s: %s is in the bucket up to %s (%v)", name, m[2], m[1], err)
		}
	}
	if strings.Contains(text, passedBy) {
		t.Error("what is not sampled is shown")
	}
}

// What an operator has named is written down nowhere: not in the log, nor in spans, nor in what is remembered of requests; beside the
// usual names, and from a reload on.
func TestRedaction(t *testing.T) {
	r := &receiver{}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", s.URL)
	file := filepath.Join(t.TempDir(), "access.log")
	d := run(t, nil, func(c *config.Config) {
		c.Etcd.Disabled, c.Log.Access, c.Log.Redact = true, file, []string{"card_number"}
		c.Services = map[string]config.Service{"web": {Instances: []config.StaticInstance{{Address: backend(t, "hello")}}}}
	})
	ask := func(id, path string) {
		t.Helper()
		req, err := http.NewRequest("GET", d.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "web.localhost"
		req.Header = http.Header{"X-Request-Id": {id}, "X-Card-Number": {"canary"}, "Referer": {"http://a/?token=canary&card_number=canary"}, "X-Pin": {"7"}}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	// Not every request is remembered: one in a hundredth of a second is.
	remembered := func(id, path, want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			ask(id, path)
			var w Why
			d.api("/api/v1/why?request_id="+id, &w)
			if w.Query == want {
				return
			} else if w.Query != "" || time.Now().After(deadline) {
				t.Fatalf("remembered is %q, want %q", w.Query, want)
			}
		}
	}
	remembered("first-one", "/a?card_number=canary&token=canary&pin=7", "?card_number=REDACTED&token=REDACTED&pin=7")
	next := *d.dynamic.Load()
	next.Log.Redact = []string{"card_number", "pin"}
	d.Reload(t.Context(), next)
	remembered("second-one", "/b?card_number=canary&token=canary&pin=canary", "?card_number=REDACTED&token=REDACTED&pin=REDACTED")
	for _, e := range d.journal.Sample() {
		if _, _, known := e.Fields.Value("x-pin", 0); known == (e.ID == "second-one") || strings.Contains(string(e.Fields), "canary") {
			t.Errorf("remembered of %s is %q", e.ID, e.Fields)
		}
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), "/b?card_number=REDACTED") || strings.Contains(string(text), "canary") {
		t.Errorf("logged: %v %s", err, text)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := map[string]bool{}
	for _, span := range r.spans {
		seen[attributes(span.Attributes)["url.query"]] = true
	}
	if !seen["card_number=REDACTED&token=REDACTED&pin=7"] || !seen["card_number=REDACTED&token=REDACTED&pin=REDACTED"] || strings.Contains(fmt.Sprint(r.spans), "canary") {
		t.Errorf("spans are about %v", seen)
	}
}

// The access log tells who is connected from whom a trusted proxy names, counts bodies without heads, and knows the TLS of a connection.
func TestAccessLogConnection(t *testing.T) {
	_, trusted, certFile, keyFile := pair(t, "shop.example")
	file := filepath.Join(t.TempDir(), "access.log")
	d := run(t, nil, func(c *config.Config) {
		c.Etcd.Disabled, c.Log.Access, c.TrustedProxies = true, file, []string{"127.0.0.0/8"}
		c.Listeners[0].Protocol, c.Listeners[0].TLS = "https", config.TLS{Certificates: []config.Certificate{{Cert: certFile, Key: keyFile}}}
		c.Routes = []config.Route{{Name: "r", Service: "web"}}
		c.Services = map[string]config.Service{"web": static(backend(t, "hello"))}
	})
	req, err := http.NewRequest("POST", strings.Replace(d.url, "http://", "https://", 1)+"/cart", strings.NewReader("four"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", "192.0.2.7")
	resp, err := browser(t, &tls.Config{RootCAs: trusted, ServerName: "shop.example", MinVersion: tls.VersionTLS13}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var line struct {
		Request struct {
			Remote string `json:"remote_ip"`
			Port   string `json:"remote_port"`
			Client string `json:"client_ip"`
			TLS    struct {
				Version int
				Resumed bool
				Suite   int `json:"cipher_suite"`
			}
		}
		Size int
		Read int `json:"bytes_read"`
	}
	if err := json.Unmarshal(text, &line); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if r := line.Request; r.Remote != "127.0.0.1" || r.Port == "0" || r.Client != "192.0.2.7" || r.TLS.Version != tls.VersionTLS13 || r.TLS.Suite == 0 || r.TLS.Resumed ||
		line.Size != len("hello") || line.Read != len("four") {
		t.Errorf("logged: %s", text)
	}
}
