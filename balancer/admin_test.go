package balancer

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/internal/etcdtest"
)

// ask does a request of the admin API and returns its status and body.
func (d *daemon) ask(method, path, body string, fields ...string) (int, string) {
	d.t.Helper()
	req, err := http.NewRequest(method, d.admin+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		if fields[i] == "Host" {
			req.Host = fields[i+1]
		}
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// Every route but the probes asks for the token, wherever it is asked from; a foreign Host or Origin is refused.
func TestAdminAccess(t *testing.T) {
	const token = "correct-horse-battery-staple"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := run(t, nil, func(c *config.Config) { c.Admin.TokenFile = file })
	open := run(t, nil, nil)
	for _, path := range []string{
		"/metrics", "/api/v1/status", "/api/v1/services", "/api/v1/services/x", "/api/v1/routes", "/api/v1/why?url=http://a/", "/api/v1/events", "/", "/nothing",
		"/debug/pprof/",
	} {
		for name, fields := range map[string][]string{
			"no token": nil, "a wrong one": {"Authorization", "Bearer wrong"}, "half of it": {"Authorization", "Bearer " + token[:9]},
			"another scheme": {"Authorization", "Basic " + token}, "an empty one": {"Authorization", "Bearer "},
		} {
			if status, body := d.ask("GET", path, "", fields...); status != 401 || strings.Contains(body, token) {
				t.Errorf("%s with %s: %d %s", path, name, status, body)
			}
		}
		if status, _ := d.ask("GET", path, "", "Authorization", "Bearer "+token); status == 401 {
			t.Errorf("%s with the token: %d", path, status)
		}
		if status, _ := d.ask("GET", path, "", "Authorization", "Bearer "+token, "Host", "rota.example.com"); status == 421 {
			t.Errorf("%s with the token, by a name: %d", path, status)
		}
		if status, _ := open.ask("GET", path, "", "Host", "rota.example.com"); status != 421 {
			t.Errorf("%s without any token, by a name: %d", path, status)
		}
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if status, _ := d.ask("GET", path, ""); status != 200 {
			t.Errorf("%s: %d", path, status)
		}
	}
	for _, w := range [][2]string{{"POST", "/api/v1/services/x/release"}, {"PATCH", "/api/v1/services/x/instances/y"}} {
		if status, _ := d.ask(w[0], w[1], "{}"); status != 401 {
			t.Errorf("%s without a token: %d", w[1], status)
		}
		for _, origin := range []string{"https://evil.example.com", "null", "http://127.0.0.1:1"} {
			if status, _ := open.ask(w[0], w[1], "{}", "Origin", origin); status != 403 {
				t.Errorf("%s from %s: %d", w[1], origin, status)
			}
		}
	}
}

// An operator's word about an instance goes through the policy in etcd, and leaves the rest of it alone.
func TestOverride(t *testing.T) {
	etcd := etcdtest.Start(t)
	d := run(t, etcd, nil)
	other := run(t, etcd, nil)
	newFleet(t, etcd.Client(), "cart", 3)
	d.count("cart", map[string]int{"ready": 3})
	if _, err := etcd.Client().Put(t.Context(), "/rota/policies/cart", `{"balance":"round_robin","check":{"type":"tcp","interval":"20s"}}`); err != nil {
		t.Fatal(err)
	}
	policy := func() string {
		resp, err := etcd.Client().Get(t.Context(), "/rota/policies/cart")
		if err != nil || len(resp.Kvs) != 1 {
			t.Fatal(err, resp)
		}
		return string(resp.Kvs[0].Value)
	}
	patch := func(id, body string, want int) {
		t.Helper()
		if status, text := d.ask("PATCH", "/api/v1/services/cart/instances/"+id, body); status != want {
			t.Errorf("%s %s: %d %s, want %d", id, body, status, text, want)
		}
	}
	patch("0", `{"drain":true}`, 204)
	d.count("cart", map[string]int{"ready": 2, "draining": 1})
	other.count("cart", map[string]int{"ready": 2, "draining": 1})
	patch("0", `{"weight":7}`, 204)
	if got, want := policy(), `{"balance":"round_robin","check":{"interval":"20s","type":"tcp"},"overrides":{"0":{"drain":true,"weight":7}}}`; got != want {
		t.Errorf("policy %s, want %s", got, want)
	}
	patch("0", `{"drain":false}`, 204)
	d.count("cart", map[string]int{"ready": 3})
	for late := time.Now().Add(5 * time.Second); ; {
		var w Why
		d.api("/api/v1/why?url=http://cart.localhost/", &w)
		if len(w.Candidates) == 3 && w.Candidates[0].Share == 7 {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("weights %+v", w.Candidates)
		}
	}
	patch("0", `{"weight":null}`, 204)
	if got, want := policy(), `{"balance":"round_robin","check":{"interval":"20s","type":"tcp"}}`; got != want {
		t.Errorf("policy %s, want %s", got, want)
	}
	patch("9", `{"drain":true}`, 404)
	patch("0", `{"drian":true}`, 400)
	patch("0", `{"weight":"heavy"}`, 400)
	patch("0", `{"weight":10001}`, 422)
	patch("0", `x`, 400)
	var events []Event
	d.api("/api/v1/events", &events)
	said := 0
	for _, e := range events {
		if e.Kind == "operator" && e.Service == "cart" && e.Instance == "0" && strings.Contains(e.Text, "by 127.0.0.1:") {
			said++
		}
	}
	if said != 4 {
		t.Errorf("%d of 4 writes are on record: %+v", said, events)
	}
}

// The counters say what has happened; what does not change is not sent again.
func TestStats(t *testing.T) {
	srv := etcdtest.Start(t)
	d := run(t, srv, nil)
	newFleet(t, srv.Client(), "web", 2)
	d.count("web", map[string]int{"ready": 2})
	var before, after Stats
	d.api("/api/v1/stats?service=web", &before)
	for range 10 {
		d.get("web", "/")
	}
	d.api("/api/v1/stats?service=web", &after)
	if n := after.Total.Requests - before.Total.Requests; n != 10 || len(after.Endpoints) != 2 || after.Total.Ready != 2 || len(after.Services) != 1 {
		t.Errorf("%d requests, %+v", n, after)
	}
	sum := func(list []uint64) (n uint64) {
		for _, c := range list {
			n += c
		}
		return n
	}
	if len(after.Total.Buckets) != len(after.Bounds)+1 || sum(after.Total.Buckets) != after.Total.Requests {
		t.Errorf("buckets %v for bounds %v", after.Total.Buckets, after.Bounds)
	}
	if e := after.Endpoints; e[0].Requests+e[1].Requests < 10 || sum(e[0].Buckets) != e[0].Requests {
		t.Errorf("endpoints %+v", e)
	}
	var all Stats
	if d.api("/api/v1/stats", &all); all.Total.Requests < after.Total.Requests || len(all.Services) != 1 || len(all.Endpoints) != 0 {
		t.Errorf("of all: %+v", all)
	}
	if status, _ := d.ask("GET", "/api/v1/stats?service=nobody", ""); status != 404 {
		t.Errorf("of nobody: %d", status)
	}

	var one Instance
	d.api("/api/v1/services/web/instances/0", &one)
	if one.LeaseLeft == nil || *one.LeaseLeft <= 0 || one.Latency <= 0 {
		t.Errorf("one instance: %+v", one)
	}
	resp, err := client.Get(d.admin + "/api/v1/config")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	tag := resp.Header.Get("ETag")
	if status, body := d.ask("GET", "/api/v1/config", "", "If-None-Match", tag); status != 304 || body != "" || tag == "" {
		t.Errorf("unchanged: %d %q for %s", status, body, tag)
	}
	if _, body := d.ask("GET", "/api/v1/config", ""); !strings.Contains(body, "listeners:") {
		t.Errorf("configuration: %s", body)
	}
}
