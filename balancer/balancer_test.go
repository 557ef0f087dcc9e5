package balancer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/internal/leaktest"
	"github.com/rota-lb/rota/registry"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func eachEngine(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range []string{"loops", "goroutines"} {
		t.Run(engine, func(t *testing.T) { test(t, engine) })
	}
}

// daemon is a balancer that runs on free ports.
type daemon struct {
	*Balancer
	t     *testing.T
	url   string // of the first listener
	admin string
	stop  func() error
}

func run(t *testing.T, etcd *etcdtest.Server, change func(*config.Config)) *daemon {
	t.Helper()
	return runLogged(t, etcd, zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)), change)
}

func runLogged(t *testing.T, etcd *etcdtest.Server, logger *zap.Logger, change func(*config.Config)) *daemon {
	t.Helper()
	cfg := config.Default()
	cfg.Listeners = []config.Listener{{Address: "127.0.0.1:0", Protocol: "http"}}
	cfg.Admin.Address = "127.0.0.1:0"
	cfg.Log.Access = "off"
	cfg.Loops = 2
	cfg.AutoRoutes = true
	if change != nil {
		change(cfg)
	}
	o := Options{Logger: logger, Version: "test"}
	if etcd != nil {
		client, err := registryetcd.Connect(registryetcd.Options{Endpoints: etcd.Endpoints()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		o.Registry = client
	}
	b, err := New(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{Balancer: b, t: t, url: "http://" + b.Addresses()[0].String(), admin: "http://" + b.AdminAddress().String()}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	d.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { d.stop() })
	<-b.Opened()
	return d
}

// get asks for a path of a service by its automatic host.
func (d *daemon) get(service, path string) (int, string) {
	d.t.Helper()
	req, _ := http.NewRequest("GET", d.url+path, nil)
	req.Host = service + ".localhost"
	resp, err := client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func (d *daemon) until(service string, status int) {
	d.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		got, _ := d.get(service, "/")
		if got == status {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%s answers %d, never %d", service, got, status)
		}
	}
}

func (d *daemon) api(path string, v any) {
	d.t.Helper()
	resp, err := client.Get(d.admin + path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		d.t.Fatal(err)
	}
}

// backend is a service that says its name, and its address.
func backend(t *testing.T, name string) (address string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func put(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := c.Put(ctx, key, value); err != nil {
		t.Fatal(err)
	}
}

// From registration to response, through real etcd and real sockets.
func TestSpine(t *testing.T) {
	etcd := etcdtest.Start(t)
	eachEngine(t, func(t *testing.T, engine string) {
		d := run(t, etcd, func(c *config.Config) { c.Engine = engine })
		svc := "spine-" + engine
		if status, _ := d.get(svc, "/"); status != 404 {
			t.Errorf("before anything: %d", status)
		}
		// A bare address, as etcdctl would put it.
		put(t, etcd.Client(), "/rota/services/"+svc+"/a", backend(t, "one"))
		d.until(svc, 200)
		// A service that registers itself.
		reg, err := registryetcd.Connect(registryetcd.Options{Endpoints: etcd.Endpoints()})
		if err != nil {
			t.Fatal(err)
		}
		defer reg.Close()
		ctx, leave := context.WithCancel(context.Background())
		served := make(chan error, 1)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "two") })}
			served <- registry.ServeOptions{Listener: ln, Settle: 50 * time.Millisecond}.Serve(ctx, reg, srv,
				registry.Instance{Service: svc, Address: ln.Addr().String()})
		}()
		seen := map[string]int{}
		for deadline := time.Now().Add(10 * time.Second); seen["two"] == 0; {
			_, body := d.get(svc, "/")
			if seen[body]++; time.Now().After(deadline) {
				t.Fatal("the registered instance got no request")
			}
		}
		clear(seen)
		for range 20 {
			_, body := d.get(svc, "/")
			seen[body]++
		}
		if seen["one"] != 10 || seen["two"] != 10 {
			t.Errorf("idle instances are not taken in turn: %v", seen)
		}
		leave()
		for {
			if _, body := d.get(svc, "/"); body != "one" && body != "two" {
				t.Fatalf("got %q while an instance left", body)
			}
			select {
			case err := <-served:
				if err != nil {
					t.Error(err)
				}
			default:
				continue
			}
			break
		}
		for range 10 {
			if _, body := d.get(svc, "/"); body != "one" {
				t.Errorf("got %q after the other instance left", body)
			}
		}
	})
}

// load sends requests to a service until stopped, and counts those that fail.
type load struct {
	total, failed atomic.Int64
	first         atomic.Pointer[string]
	stop          chan struct{}
	wg            sync.WaitGroup
}

func (d *daemon) load(service string, clients int) *load {
	l := &load{stop: make(chan struct{})}
	for range clients {
		l.wg.Go(func() {
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			c := http.Client{Transport: tr, Timeout: 5 * time.Second}
			for {
				select {
				case <-l.stop:
					return
				case <-time.After(time.Millisecond):
				}
				l.total.Add(1)
				req, _ := http.NewRequest("GET", d.url, nil)
				req.Host = service + ".localhost"
				resp, err := c.Do(req)
				var what string
				if err != nil {
					what = err.Error()
				} else {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if resp.StatusCode != 200 {
						what = resp.Status + " " + resp.Header.Get("X-Rota-Reason")
					}
				}
				if what != "" {
					l.failed.Add(1)
					l.first.CompareAndSwap(nil, &what)
				}
			}
		})
	}
	return l
}

func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	t.Logf("%d requests", l.total.Load())
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed, the first: %s", n, l.total.Load(), *l.first.Load())
	}
	if l.total.Load() == 0 {
		t.Error("no requests")
	}
}

// etcd goes away under load and comes back: no request fails, and what changed meanwhile is seen. ROTA_TEST_OUTAGE sets how
// long it is away.
func TestEtcdOutage(t *testing.T) {
	outage := 3 * time.Second
	if v, err := time.ParseDuration(os.Getenv("ROTA_TEST_OUTAGE")); err == nil {
		outage = v
	}
	etcd := etcdtest.Start(t)
	d := run(t, etcd, nil)
	reg, err := registryetcd.Connect(registryetcd.Options{Endpoints: etcd.Endpoints(), TTL: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	for i := range 3 {
		r, err := reg.Register(context.Background(), registry.Instance{Service: "web", ID: fmt.Sprint(i), Address: backend(t, "ok")})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := registry.WaitRegistered(ctx, r); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	d.until("web", 200)
	l := d.load("web", 4)
	time.Sleep(200 * time.Millisecond)
	etcd.Stop()
	over := time.After(outage)
	for s := (Status{}); ; d.api("/api/v1/status", &s) {
		if s.Registry != nil && !s.Registry.Connected {
			if !s.Ready || len(s.Reasons) == 0 {
				t.Errorf("out of touch after the first sync is degraded, not unready: %+v", s)
			}
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	<-over
	etcd.Restart()
	put(t, etcd.Client(), "/rota/services/late/a", backend(t, "late"))
	d.until("late", 200)
	time.Sleep(300 * time.Millisecond)
	l.end(t)
	var s []Service
	d.api("/api/v1/services", &s)
	for _, v := range s {
		if v.Name == "web" && v.Eligible != 3 {
			t.Errorf("%d of 3 instances after the outage", v.Eligible)
		}
	}
}

// 300 kinds of hostile values beside good ones, under load: nothing else is disturbed, and each is shown with its reason.
func TestPoisonedValues(t *testing.T) {
	etcd := etcdtest.Start(t)
	d := run(t, etcd, nil)
	put(t, etcd.Client(), "/rota/services/web/good", backend(t, "ok"))
	d.until("web", 200)
	l := d.load("web", 2)
	values := []string{
		"", " ", "\x00", "\xff\xfe", "\ufeff{}", "null", "true", "0", "[]", "\"\"", "{", "}", "{}", "{\"address\":}", "{\"address\":\"10.0.0.1:80\"",
		"{\"address\":\"10.0.0.1:80\"}{}", "{\"address\":\"10.0.0.1:80\",\"address\":\"10.0.0.2:80\"}", strings.Repeat("[", 100_000),
		strings.Repeat("{\"a\":", 10_000), strings.Repeat("x", 200_000), "address: 10.0.0.1:80", "<script>alert(1)</script>", "\x1b[2J", "10.0.0.1", "10.0.0.1:",
		":80", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:-1", "10.0.0.1:+80", "10.0.0.1: 80", "10.0.0.1:80 ", "10.0.0.1:080", "10.0.0.1:0x50",
		"0x7f.1:80", "017700000001:80", "2852039166:80", "[::1]", "[::1]:99999", "[fe80::1%25eth0]:80", "::1:80", "http://10.0.0.1:80", "user@10.0.0.1:80",
		"10.0.0.1:80/path", "10.0.0.1:80\n", "a b:80", "0.0.0.0:80", "[::]:80", "169.254.169.254:80", "[::ffff:169.254.169.254]:80", "224.0.0.1:80", "255.255.255.255:80",
	}
	for field, bad := range map[string][]string{
		"weight":        {"-1", "10001", "1.5", "1e308", "\"5\"", "NaN", "true", "[]", "{}", "9223372036854775808"},
		"state":         {"\"gone\"", "\"READY\"", "1", "{}", "[]", "\"ready \""},
		"protocol":      {"\"gopher\"", "\"HTTP\"", "1", "{}", "\"http\\n\""},
		"zone":          {"1", "{}", "\"" + strings.Repeat("z", 2000) + "\"", "\"a\\nb\"", "\"\\u0000\""},
		"version":       {"1", "{}", "\"" + strings.Repeat("v", 2000) + "\"", "\"\\u001b[2J\"", "[]"},
		"metadata":      {"1", "[]", "{\"a\":1}", "{\"a\":{}}", "{\"a\":\"b\",\"a\":\"c\"}", "{\"\\u0000\":\"x\"}", "\"x\""},
		"claims":        {"1", "{}", "[1]", "[{\"host\":1}]", "[{\"host\":\"a b\"}]", "[{\"path\":\"no-slash\"}]"},
		"check":         {"1", "[]", "{\"type\":\"telepathy\"}", "{\"interval\":5}", "{\"interval\":\"-1s\"}", "{\"timeout\":\"x\"}", "{\"path\":1}"},
		"idle_timeout":  {"1", "{}", "\"-2s\"", "\"x\""},
		"drain_ack":     {"1", "\"yes\"", "{}", "[]"},
		"incarnation":   {"1", "{}", "\"" + strings.Repeat("i", 2000) + "\"", "\"a b\"", "\"\\n\""},
		"registered_at": {"1", "{}", "\"yesterday\"", "\"2026-13-01T00:00:00Z\"", "\"\""},
		"address":       {"1", "{}", "[]", "null", "\"\"", "\"x\"", "\"10.0.0.1:80\\u0000\""},
	} {
		for _, v := range bad {
			values = append(values, fmt.Sprintf(`{"address":"10.0.0.1:80",%q:%s}`, field, v), fmt.Sprintf(`{%q:%s}`, field, v))
		}
	}
	for b := range 256 { // bytes that may not stand in an address
		if c := byte(b); c < ' ' || c >= 0x7f && c < 0xa0 {
			values = append(values, "{\"address\":\"10.0.0.1"+string(c)+":80\"}", "10.0.0.1"+string(rune(c))+":80")
		}
	}
	ctx := context.Background()
	count := 0
	key := func(i int) string { return fmt.Sprintf("/rota/services/web/p%d", i) }
	for i, v := range values {
		if v == `{"address":"10.0.0.1:80"}` {
			continue
		}
		if _, err := etcd.Client().Put(ctx, key(i), v); err != nil {
			t.Fatal(err)
		}
		count++
	}
	for i, k := range []string{ // keys of no known shape, with a good value
		"/rota/services/web", "/rota/services/web/", "/rota/services//x", "/rota/services/WEB/x", "/rota/services/web/a/b", "/rota/services/web/a b",
		"/rota/services/web/../x", "/rota/services/web/%2f", "/rota/services/-web/x", "/rota/services/web-/x", "/rota/services/" + strings.Repeat("w", 80) + "/x",
		"/rota/services/web/" + strings.Repeat("i", 200), "/rota/servicesweb/x", "/rota/unknown/x", "/rota/services/web/\x00", "/rota/services/wéb/x", "/rota/routes/a/b",
	} {
		if _, err := etcd.Client().Put(ctx, k, fmt.Sprintf("10.9.9.%d:80", i)); err != nil {
			t.Fatal(err)
		}
		count++
	}
	for name, v := range map[string]string{
		"r1": "", "r2": "{", "r3": `{"host":"x"}`, "r4": `{"service":"WEB"}`, "r5": `{"service":"web","host":"a b"}`, "r6": `{"service":"web","path":"x"}`,
		"r7": `{"service":"web","priority":"high"}`, "r8": `{"service":"web","timeout":"-1s"}`, "r9": `{"service":"web","unknown":1}`, "r10": strings.Repeat("a: &a [*a]\n", 10),
		"r11": `{"service":"web","path":"/a/../b"}`, "r12": "\x00", "r13": `{"service":"web","service":"db"}`, "r14": `[]`, "r15": `{"service":["web"]}`,
	} {
		if _, err := etcd.Client().Put(ctx, "/rota/routes/"+name, v); err != nil {
			t.Fatal(err)
		}
		if _, err := etcd.Client().Put(ctx, "/rota/policies/"+name, strings.ReplaceAll(v, "service", "balance")); err != nil {
			t.Fatal(err)
		}
		count += 2
	}
	t.Logf("%d kinds of poison", count)
	if count < 300 {
		t.Errorf("only %d kinds", count)
	}
	put(t, etcd.Client(), "/rota/services/marker/a", backend(t, "marker"))
	d.until("marker", 200)
	l.end(t)
	var s Status
	d.api("/api/v1/status", &s)
	for _, q := range s.Quarantined {
		if q.Reason == "" || strings.ContainsAny(q.Reason, "\x00\x1b\n") {
			t.Errorf("reason %q of %q", q.Reason, q.Key)
		}
	}
	var services []Service
	d.api("/api/v1/services", &services)
	for _, v := range services {
		for _, in := range v.Instances {
			if v.Name == "web" && in.ID != "good" {
				resp, err := etcd.Client().Get(ctx, "/rota/services/web/"+in.ID)
				if err == nil && len(resp.Kvs) > 0 {
					t.Errorf("poison became an instance: %q", resp.Kvs[0].Value)
				}
			}
		}
	}
	if len(s.Quarantined) < count*9/10 {
		t.Errorf("%d of %d are set aside", len(s.Quarantined), count)
	}
	if resp, err := client.Get(d.admin + "/metrics"); err != nil || resp.StatusCode != 200 {
		t.Errorf("metrics: %v", err)
	} else {
		resp.Body.Close()
	}
}

// Before the registry was ever read the daemon says so, and serves as soon as it is there.
func TestStartWithoutEtcd(t *testing.T) {
	etcd := etcdtest.Start(t)
	put(t, etcd.Client(), "/rota/services/web/a", backend(t, "ok"))
	etcd.Stop()
	d := run(t, etcd, nil)
	if status, body := d.get("web", "/"); status != 503 || !strings.Contains(body, "not been loaded") {
		t.Errorf("got %d %q", status, body)
	}
	if resp := must(t, client, "GET", d.admin+"/readyz", nil); resp.StatusCode != 503 {
		t.Errorf("readyz: %v", resp)
	}
	etcd.Restart()
	d.until("web", 200)
	if resp := must(t, client, "GET", d.admin+"/readyz", nil); resp.StatusCode != 200 {
		t.Errorf("readyz: %v", resp)
	}
}

// Draining finishes what is in flight; past the grace period it says that it could not.
func TestDrain(t *testing.T) {
	release, entered := make(chan struct{}, 8), make(chan struct{}, 2)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-release
		io.WriteString(w, "done")
	}))
	defer slow.Close()
	static := func(grace time.Duration, engine string) func(c *config.Config) {
		return func(c *config.Config) {
			c.Engine, c.Grace, c.Etcd.Disabled = engine, grace, true
			c.Services = map[string]config.Service{"slow": {Instances: []config.StaticInstance{{Address: slow.Listener.Addr().String()}}}}
		}
	}
	eachEngine(t, func(t *testing.T, engine string) {
		d := run(t, nil, static(10*time.Second, engine))
		d.until("other", 404)
		got := make(chan string)
		go func() { _, body := d.get("slow", "/"); got <- body }()
		<-entered
		ended := make(chan error)
		go func() { ended <- d.stop() }()
		for {
			c, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
			if err != nil {
				break
			}
			c.Close()
			time.Sleep(time.Millisecond)
		}
		release <- struct{}{}
		if body := <-got; body != "done" {
			t.Errorf("got %q", body)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		d := run(t, nil, static(50*time.Millisecond, ""))
		c, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: slow.localhost\r\n\r\n")
		<-entered
		if err := d.stop(); !errors.Is(err, ErrDrainDeadline) {
			t.Errorf("got %v", err)
		}
		release <- struct{}{}
	})
}

func TestTelemetry(t *testing.T) {
	file := filepath.Join(t.TempDir(), "access.log")
	d := run(t, nil, func(c *config.Config) {
		c.Etcd.Disabled, c.Log.Access = true, file
		c.Services = map[string]config.Service{"web": {Instances: []config.StaticInstance{{Address: backend(t, "hello")}}}}
	})
	for range 3 {
		d.get("web", "/x?a=%22")
	}
	d.get("nowhere", "/")
	// An exchange is counted when it has ended, which may be after its client has read the answer.
	var missing []string
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		resp, err := client.Get(d.admin + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		missing = missing[:0]
		for _, want := range []string{
			`rota_http_requests_total{code="200",method="GET",protocol="http",service="web"} 3`,
			`rota_http_requests_total{code="404",method="GET",protocol="http",service="_other"} 1`,
			`rota_http_request_duration_seconds_count{service="web"} 3`,
			`rota_upstream_requests_total{code="2xx",service="web",upstream="127.0.0.1:`,
			`rota_upstream_state{service="web",state="up",upstream="127.0.0.1:`,
			`rota_http_requests_in_flight{service="web"} 0`,
			`rota_build_info{`, `go_goroutines`,
		} {
			if !strings.Contains(string(body), want) {
				missing = append(missing, want)
			}
		}
		if len(missing) == 0 || time.Now().After(deadline) {
			break
		}
	}
	for _, want := range missing {
		t.Errorf("metrics lack %s", want)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	var statuses []int
	for lines.Scan() {
		var line struct {
			Logger, Service, Upstream, Reason, Flag string
			Status, Attempts                        int
			Duration                                float64
			Request                                 struct{ Method, Host, URI, Proto, Remote_IP string }
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		statuses = append(statuses, line.Status)
		if line.Status == 200 && (line.Service != "web" || line.Upstream == "" || line.Attempts != 1 || line.Request.Host != "web.localhost" || line.Duration <= 0 || !strings.HasPrefix(line.Request.URI, "/x?a=")) ||
			line.Status == 404 && (line.Reason != "no_route" || line.Flag != "NR") {
			t.Errorf("%s", lines.Text())
		}
	}
	if slices.Sort(statuses); fmt.Sprint(statuses) != "[200 200 200 404]" { // of connections of two loops: in any order
		t.Errorf("logged %v", statuses)
	}
}

func TestAdminRefusesOtherHosts(t *testing.T) {
	d := run(t, nil, func(c *config.Config) { c.Etcd.Disabled = true })
	if resp := must(t, client, "GET", d.admin+"/api/v1/status", nil, "Host", "evil.example.com:9797"); resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("got %v", resp)
	}
	if resp := must(t, client, "POST", d.admin+"/api/v1/status", nil, "Content-Type", "text/plain"); resp.StatusCode < 400 {
		t.Errorf("a write got %v", resp)
	}
}

func TestBusyPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg := config.Default()
	cfg.Listeners = []config.Listener{{Address: ln.Addr().String(), Protocol: "http"}}
	_, err = New(cfg, Options{})
	if err == nil || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("got %v", err)
	}
}
