package balancer

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	zapobserver "go.uber.org/zap/zaptest/observer"

	"github.com/rota-lb/rota/balancer/internal/admin"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/internal/etcdtest"
)

// operations are those of the OpenAPI document: which of them a request is for, and what kind of content each of its statuses comes with,
// empty for any.
var operations = sync.OnceValues(func() (of *http.ServeMux, statuses map[string]map[int]string) {
	type responses map[string]struct {
		Ref     string `json:"$ref"`
		Content map[string]any
	}
	var doc struct {
		Paths      map[string]map[string]struct{ Responses responses }
		Components struct{ Responses responses }
	}
	if err := json.Unmarshal(admin.OpenAPI(), &doc); err != nil {
		panic(err)
	}
	of, statuses = http.NewServeMux(), map[string]map[int]string{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			pattern := strings.ToUpper(method) + " " + path
			of.Handle(pattern, http.NotFoundHandler())
			statuses[pattern] = map[int]string{}
			for status, r := range op.Responses {
				if name, ok := strings.CutPrefix(r.Ref, "#/components/responses/"); ok {
					r = doc.Components.Responses[name]
				}
				code, err := strconv.Atoi(status)
				if err != nil {
					panic(err)
				}
				statuses[pattern][code] = strings.Join(slices.Collect(maps.Keys(r.Content)), ", ")
			}
		}
	}
	return of, statuses
})

// ask does a request of the admin API and returns its status and body. What is answered has to be documented.
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
	of, statuses := operations()
	if _, op := of.Handler(req); op != "" {
		got := resp.Header.Get("Content-Type")
		if want, ok := statuses[op][resp.StatusCode]; !ok || want != "" && got != want {
			d.t.Errorf("%s: %d as %s is not documented", op, resp.StatusCode, got)
		}
	}
	return resp.StatusCode, string(text)
}

// resources are the methods and paths of the admin API, with names for what is in braces.
func resources(t *testing.T) (list [][2]string) {
	_, statuses := operations()
	for op := range statuses {
		method, path, _ := strings.Cut(op, " ")
		list = append(list, [2]string{method, strings.NewReplacer("{", "", "}", "").Replace(path)})
	}
	if len(list) < 20 {
		t.Fatalf("only %d", len(list))
	}
	return list
}

// probes are open to anybody.
var probes = []string{"/livez", "/readyz", "/healthz", "/ping"}

// The document in docs is that of the API.
func TestOpenAPI(t *testing.T) {
	const file = "../docs/openapi.json"
	if os.Getenv("ROTA_TEST_UPDATE") != "" {
		if err := os.WriteFile(file, admin.OpenAPI(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil || string(have) != string(admin.OpenAPI()) {
		t.Errorf("docs/openapi.json is not up to date: ROTA_TEST_UPDATE=1 go test -run TestOpenAPI ./balancer (%v)", err)
	}
}

// Every status that the document has for an operation is one that it answers with. That it has all of them is what ask holds.
func TestOpenAPIStatuses(t *testing.T) {
	srv := etcdtest.Start(t)
	const token = "correct-horse-battery-staple"
	d := run(t, srv, func(c *config.Config) { c.Admin.Token = token })
	alone := run(t, nil, func(c *config.Config) { c.Services = map[string]config.Service{"web": static("127.0.0.1:1")} })
	newFleet(t, srv.Client(), "web", 1)
	_, statuses := operations()
	missing := map[string]bool{}
	for op, list := range statuses {
		for status := range list {
			if status != 503 && status != 304 { // the one is said by who is not ready, or ends; TestStats has the other
				missing[fmt.Sprint(op, " ", status)] = true
			}
		}
	}
	try := func(d *daemon, method, path, body string, want int, fields ...string) {
		t.Helper()
		status, text := d.ask(method, path, body, append([]string{"Authorization", "Bearer " + token}, fields...)...)
		if status != want {
			t.Errorf("%s %s %s: %d %s, want %d", method, path, body, status, text, want)
		}
		of, _ := operations()
		req, err := http.NewRequest(method, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, op := of.Handler(req)
		delete(missing, fmt.Sprint(op, " ", status))
	}
	for deadline := time.Now().Add(10 * time.Second); d.store.Load().Pool("web") == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no instance")
		}
	}
	for _, r := range resources(t) {
		try(d, r[0], r[1], "", 403, "Origin", "http://evil.example.com")
		try(d, r[0], r[1], "", 421, "Host", "evil.example.com")
		if !slices.Contains(probes, r[1]) {
			try(d, r[0], r[1], "", 401, "Authorization", "Bearer wrong")
		}
	}
	for _, path := range []string{"status", "services", "services/web", "services/web/instances/0", "routes", "why?url=http://web.localhost/", "stats", "events", "config", "loglevel", "openapi.json"} {
		try(d, "GET", "/api/v1/"+path, "", 200)
	}
	for _, path := range append([]string{"/metrics"}, probes...) {
		try(d, "GET", path, "", 200)
	}
	for _, path := range []string{"services/nobody", "services/web/instances/9", "services/web/policy", "routes/shop", "why?request_id=nothing", "stats?service=nobody"} {
		try(d, "GET", "/api/v1/"+path, "", 404)
	}
	for _, path := range []string{"why?header=x", "events?since=x"} {
		try(d, "GET", "/api/v1/"+path, "", 400)
	}
	try(d, "POST", "/api/v1/services/web/release", "", 200)
	try(d, "DELETE", "/api/v1/orphans", "", 200)
	try(d, "PUT", "/api/v1/loglevel", `{"level":"info"}`, 200)
	try(d, "PUT", "/api/v1/loglevel", `{"level":"loud"}`, 400)
	try(d, "POST", "/api/v1/plan", `{"route":"shop"}`, 200)
	try(d, "POST", "/api/v1/plan", `{}`, 400)
	try(d, "POST", "/api/v1/plan", `{"config":"rutes: []"}`, 422)
	const instance = "/api/v1/services/web/instances/0"
	try(d, "PATCH", instance, `{"weight":7}`, 204)
	try(d, "PATCH", instance, `{"drian":true}`, 400)
	try(d, "PATCH", "/api/v1/services/web/instances/9", `{"drain":true}`, 404)
	try(alone, "PATCH", "/api/v1/services/web/instances/127.0.0.1:1", `{"drain":true}`, 409)
	try(d, "PATCH", instance, `{"weight":10001}`, 422)
	written := map[string][2]string{ // a good value, a bad one
		"/api/v1/services/web/policy": {`{"balance":"p2c"}`, `{"balance":"luck"}`},
		"/api/v1/routes/shop":         {`{"path":"/","service":"web"}`, `{"path":"/","service":"web","timeout":"soon"}`},
	}
	for path, value := range written {
		try(d, "PUT", path, value[0], 204)
		try(d, "GET", path, "", 200)
		try(d, "PUT", path, `{`, 400)
		try(d, "PUT", path, value[1], 422)
		try(d, "DELETE", path+"?limit=x", "", 400)
		for _, method := range []string{"PUT", "DELETE"} {
			try(d, method, path, value[0], 412, "If-Match", `"other"`)
			try(alone, method, path, value[0], 409)
		}
		try(d, "DELETE", path, "", 204)
	}
	// From now on etcd lets nobody write who does not say who he is.
	cli := srv.Client()
	if _, err := cli.UserAdd(t.Context(), "root", "secret"); err != nil {
		t.Fatal(err)
	}
	if _, err := cli.UserGrantRole(t.Context(), "root", "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := cli.AuthEnable(t.Context()); err != nil {
		t.Fatal(err)
	}
	try(d, "PATCH", instance, `{"drain":true}`, 502)
	for path, value := range written {
		try(d, "PUT", path, value[0], 502)
		try(d, "DELETE", path, "", 502)
	}
	for status := range missing {
		t.Errorf("documented, and not seen: %s", status)
	}
}

// Every route refuses a host that is not this daemon's, and pages of other origins, with the right token too; and every route but the
// probes a token that is not right.
func TestAdminAccess(t *testing.T) {
	const token, alice = "correct-horse-battery-staple", "alice-has-another-one"
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	log, logged := zapobserver.New(zap.WarnLevel)
	d := runLogged(t, nil, zap.New(log), func(c *config.Config) {
		c.Admin.TokenFile, c.Admin.Hosts = file("token", token), []string{"rota.example.com"}
		c.Admin.Tokens = map[string]config.AdminToken{"alice": {TokenFile: file("alice", alice)}, "bob": {Token: "bob-has-yet-another-one"}}
	})
	open := run(t, nil, nil)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(d.admin, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	const right = "Bearer " + token
	type ask struct {
		name   string
		fields []string
		want   int // zero is any answer that is no refusal
	}
	asks := []ask{
		{"right", []string{"Authorization", right}, 0},
		{"alice", []string{"Authorization", "Bearer " + alice}, 0},
		{"by a name of loopback", []string{"Authorization", right, "Host", "LOCALHOST:" + port}, 0},
		{"by another address of loopback", []string{"Authorization", right, "Host", "[::1]:" + port}, 0},
		{"by a configured name", []string{"Authorization", right, "Host", "Rota.example.com"}, 0},
		{"by a configured name, through a proxy", []string{"Authorization", right, "Host", "rota.example.com", "Origin", "https://rota.example.com"}, 0},
		{"from its own page", []string{"Authorization", right, "Origin", d.admin, "Sec-Fetch-Site", "same-origin"}, 0},
		{"typed in", []string{"Authorization", right, "Sec-Fetch-Site", "none"}, 0},

		{"no token", nil, 401},
		{"a wrong one", []string{"Authorization", "Bearer wrong"}, 401},
		{"half of it", []string{"Authorization", right[:16]}, 401},
		{"more than it", []string{"Authorization", right + "x"}, 401},
		{"another scheme", []string{"Authorization", "Basic " + token}, 401},
		{"no scheme", []string{"Authorization", token}, 401},
		{"an empty one", []string{"Authorization", "Bearer "}, 401},
		{"the name of one", []string{"Authorization", "Bearer alice"}, 401},

		{"by a foreign name", []string{"Authorization", right, "Host", "evil.example.com:" + port}, 421},
		{"by a name below", []string{"Authorization", right, "Host", "x.rota.example.com"}, 421},
		{"by a name above", []string{"Authorization", right, "Host", "localhost.example.com"}, 421},
		{"by a foreign address", []string{"Authorization", right, "Host", "192.0.2.1:" + port}, 421},
		{"by any address", []string{"Authorization", right, "Host", "0.0.0.0:" + port}, 421},
		{"by a number", []string{"Authorization", right, "Host", "2130706433"}, 421},

		{"from a foreign page", []string{"Authorization", right, "Origin", "http://evil.example.com"}, 403},
		{"from nowhere", []string{"Authorization", right, "Origin", "null"}, 403},
		{"from another port", []string{"Authorization", right, "Origin", "http://127.0.0.1:1"}, 403},
		{"from a look-alike", []string{"Authorization", right, "Origin", d.admin + ".evil.example.com"}, 403},
		{"from another site", []string{"Authorization", right, "Sec-Fetch-Site", "cross-site"}, 403},
		{"from another port, as browsers say", []string{"Authorization", right, "Sec-Fetch-Site", "same-site"}, 403},
		{"followed from another site", []string{"Authorization", right, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}, 403},
		{"framed by another site", []string{"Authorization", right, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, 403},
	}
	refusal := func(status int) bool { return status == 401 || status == 403 || status == 421 }
	asked := map[int]int{} // refusals of d, by status
	list := append(resources(t), [2]string{"GET", "/"}, [2]string{"GET", "/assets/dashboard.js"}, [2]string{"GET", "/nothing"}, [2]string{"GET", "/debug/pprof/heap"})
	for _, r := range list {
		method, path := r[0], r[1]
		toAll := slices.Contains(probes, path) || path == "/" || strings.HasPrefix(path, "/assets/")
		for _, a := range asks {
			want, wantOpen := a.want, a.want
			if a.want == 401 {
				if wantOpen = 0; toAll {
					want = 0
				}
			}
			if path == "/" && a.name == "followed from another site" { // a link to the dashboard may be anywhere
				want, wantOpen = 0, 0
			}
			status, body := d.ask(method, path, "{}", a.fields...)
			if status != want && (want != 0 || refusal(status)) || strings.Contains(body, token) {
				t.Errorf("%s %s, %s: %d %s", method, path, a.name, status, body)
			}
			asked[status]++
			if strings.Contains(strings.ToLower(strings.Join(a.fields, " ")), "rota.example.com") || slices.Contains(a.fields, d.admin) {
				continue // names that the other one does not have
			}
			if status, body = open.ask(method, path, "{}", a.fields...); status != wantOpen && (wantOpen != 0 || refusal(status)) {
				t.Errorf("%s %s without any token, %s: %d %s", method, path, a.name, status, body)
			}
		}
	}
	_, text := d.ask("GET", "/metrics", "", "Authorization", right)
	for why, status := range map[string]int{"token": 401, "origin": 403, "host": 421} {
		if want := fmt.Sprintf("rota_admin_refused_total{reason=%q} %d\n", why, asked[status]); asked[status] == 0 || !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	// One is logged at once, of the flood that follows one a second.
	lines := logged.FilterMessage("a request of the admin API was refused").All()
	if len(lines) == 0 || len(lines) > 1+int(time.Since(d.started)/time.Second) || asked[map[any]int{"token": 401, "origin": 403, "host": 421}[lines[0].ContextMap()["why"]]] == 0 {
		t.Errorf("%d lines: %v", len(lines), lines)
	}
	for _, l := range logged.All() {
		if said := fmt.Sprint(l.Message, l.ContextMap()); strings.Contains(said, token) || strings.Contains(said, alice) {
			t.Errorf("a token is logged: %s", said)
		}
	}
}

// Whatever is answered, and to whom: browsers are told to show it nowhere else, to guess nothing, to load nothing but what the page itself
// has, and to tell nobody where they were.
func TestSecurityHeaders(t *testing.T) {
	const (
		token = "correct-horse-battery-staple"
		none  = "default-src 'none'; frame-ancestors 'none'"
		page  = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	)
	d := run(t, nil, func(c *config.Config) { c.Admin.Token = token })
	get := func(path string, status int, fields ...string) *http.Response {
		t.Helper()
		resp := must(t, client, "GET", d.admin+path, nil, append([]string{"Authorization", "Bearer " + token}, fields...)...)
		if resp.StatusCode != status {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, status)
		}
		return resp
	}
	for _, r := range []struct {
		path   string
		status int
		policy string
		fields []string
	}{
		{"/", 200, page, nil},
		{"/assets/dashboard.js", 200, page, nil},
		{"/assets/dashboard.css", 200, page, nil},
		{"/assets/icon.svg", 200, page, nil},
		{"/api/v1/status", 200, none, nil},
		{"/api/v1/services/nobody", 404, none, nil},
		{"/metrics", 200, none, nil},
		{"/livez", 200, none, nil},
		{"/nothing", 404, none, nil},
		{"/api/v1/status", 401, none, []string{"Authorization", "Bearer wrong"}},
		{"/", 403, none, []string{"Origin", "http://evil.example.com"}},
		{"/", 421, none, []string{"Host", "evil.example.com"}},
	} {
		want := map[string]string{"Content-Security-Policy": r.policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "", "Access-Control-Allow-Origin": ""}
		if r.policy == page {
			want["Referrer-Policy"] = "no-referrer"
		}
		got := get(r.path, r.status, r.fields...).Header
		for name, value := range want {
			if strings.Join(got[name], " and ") != value {
				t.Errorf("%s, %d: %s is %q, want %q", r.path, r.status, name, got[name], value)
			}
		}
	}

	// Nothing in the page needs more than its policy allows.
	html := xml.NewDecoder(get("/", 200).Body)
	html.Strict, html.AutoClose, html.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	loaded, inside := 0, ""
	for {
		part, err := html.Token()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch part := part.(type) {
		case xml.StartElement:
			inside = part.Name.Local
			for _, a := range part.Attr {
				switch name := a.Name.Local; {
				case name == "src" || name == "href":
					get(a.Value, 200).Body.Close()
					loaded++
				case name == "style" || strings.HasPrefix(name, "on"):
					t.Errorf("<%s %s=%q>", inside, name, a.Value)
				}
			}
		case xml.EndElement:
			inside = ""
		case xml.CharData:
			if text := strings.TrimSpace(string(part)); text != "" && (inside == "script" || inside == "style") {
				t.Errorf("<%s> with %.50q in the page", inside, text)
			}
		}
	}
	if loaded != 3 {
		t.Errorf("the page loads %d files", loaded)
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
		if len(w.Candidates) == 3 && w.Candidates[0].Share == 7 && w.Candidates[0].Weight == 7 && w.Candidates[0].OwnWeight == 100 {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("weights %+v", w.Candidates)
		}
	}
	// Whoever shows its weight shows the one that counts, and its own beside.
	patch("0", `{"drain":true}`, 204)
	d.count("cart", map[string]int{"ready": 2, "draining": 1})
	var list Service
	d.api("/api/v1/services/cart", &list)
	var one, another Instance
	d.api("/api/v1/services/cart/instances/0", &one)
	d.api("/api/v1/services/cart/instances/1", &another)
	for _, in := range []Instance{list.Instances[0], one} {
		if o := in.Override; in.Weight != 7 || in.OwnWeight != 100 || o == nil || !o.Drain || o.Weight == nil || *o.Weight != 7 || in.Ramp != nil {
			t.Errorf("with an override: %+v", in)
		}
	}
	if another.Weight != 100 || another.OwnWeight != 100 || another.Override != nil {
		t.Errorf("without: %+v", another)
	}
	if text := d.metrics(t); !strings.Contains(text, `rota_upstream_weight{service="cart",upstream="`+one.Address+`"} 7`) {
		t.Error("the metric is of another weight")
	}
	patch("0", `{"drain":false}`, 204)
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
	if said != 6 {
		t.Errorf("%d of 6 writes are on record: %+v", said, events)
	}
}

// An instance in its slow start shows how far it has come, and what it is to have.
func TestRamp(t *testing.T) {
	etcd := etcdtest.Start(t)
	d := run(t, etcd, func(c *config.Config) {
		c.Services = map[string]config.Service{"web": {SlowStart: "10m", Instances: []config.StaticInstance{{Address: backend(t, "old")}}}}
	})
	newFleet(t, etcd.Client(), "web", 1)
	d.count("web", map[string]int{"ready": 2})
	if status, body := d.ask("PATCH", "/api/v1/services/web/instances/0", `{"weight": 1000}`); status != 204 {
		t.Fatalf("%d %s", status, body)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		var w Why
		d.api("/api/v1/why?url=http://web.localhost/", &w)
		if len(w.Candidates) != 2 || time.Now().After(deadline) {
			t.Fatalf("candidates %+v", w.Candidates)
		}
		old, fresh := w.Candidates[1], w.Candidates[0]
		if fresh.Weight != 1000 || fresh.Share < 100 { // the policy is under way
			continue
		}
		if r := fresh.Ramp; fresh.OwnWeight != 100 || r == nil || r.Weight != fresh.Share || r.Weight > 900 || time.Until(r.Until) < time.Minute || old.Ramp != nil {
			t.Errorf("new: %+v with %+v, old: %+v", fresh, r, old)
		}
		return
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
	// An exchange is counted when it has ended, which may be after its client has read the answer.
	for deadline := time.Now().Add(5 * time.Second); after.Total.Requests-before.Total.Requests < 10 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		after = Stats{}
		d.api("/api/v1/stats?service=web", &after)
	}
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

// A route is written, read, changed only by who has seen its last state, and taken away; each is noted, and counts for requests.
func TestWriteRoute(t *testing.T) {
	srv := etcdtest.Start(t)
	d := run(t, srv, func(c *config.Config) { c.AutoRoutes = false })
	newFleet(t, srv.Client(), "web", 1)
	d.count("web", map[string]int{"ready": 1})
	const path = "/api/v1/routes/shop"
	if status, body := d.ask("GET", path, ""); status != 404 {
		t.Errorf("before: %d %s", status, body)
	}
	if status, body := d.ask("PUT", path, `{"path": "/", "service": "web", "timeout": "soon"}`); status != 422 || !strings.Contains(body, "timeout") {
		t.Errorf("a bad one: %d %s", status, body)
	}
	if status, body := d.ask("PUT", path, `{`); status != 400 {
		t.Errorf("no JSON: %d %s", status, body)
	}
	if status, body := d.ask("PUT", path, `{"path": "/", "service": "web"}`); status != 204 {
		t.Fatalf("a good one: %d %s", status, body)
	}
	d.until("web", 200)
	resp, err := client.Get(d.admin + path)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	tag := resp.Header.Get("ETag")
	if status, _ := d.ask("PUT", path, `{"path": "/", "service": "web", "timeout": "9s"}`, "If-Match", `"other"`); status != 412 {
		t.Errorf("with another's tag: %d", status)
	}
	if status, _ := d.ask("PUT", path, `{"path": "/", "service": "web", "timeout": "9s"}`, "If-Match", tag); status != 204 {
		t.Errorf("with its tag: %d", status)
	}
	if status, _ := d.ask("DELETE", path, "", "Origin", "http://evil.example.com"); status != 403 {
		t.Errorf("from a page: %d", status)
	}

	// What would break the requests of late is not written, unless it has to be.
	var plan Plan
	var status int
	var body string
	for plan.Replayed < 5 { // one in a hundredth of a second is remembered
		d.get("web", "/cart")
		status, body = d.ask("POST", "/api/v1/plan", `{"route": "shop", "value": null}`)
		if plan = (Plan{}); json.Unmarshal([]byte(body), &plan) != nil || status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	if len(plan.Moves) != 1 || plan.Moves[0].From != "web" || plan.Moves[0].To != "404 no_route" || plan.Broken < 0.5 || plan.Replayed < 5 || len(plan.Differences) == 0 {
		t.Errorf("plan: %s", body)
	}
	status, body = d.ask("POST", "/api/v1/plan", `{"route": "other", "value": {"path": "/cart", "service": "nobody"}}`)
	if plan = (Plan{}); json.Unmarshal([]byte(body), &plan) != nil || len(plan.Moves) != 1 || plan.Moves[0].To != "503 no_healthy_upstream of nobody" {
		t.Errorf("plan: %d %s", status, body)
	}
	if status, body := d.ask("POST", "/api/v1/plan", `{"route": "a", "service": "b"}`); status != 400 {
		t.Errorf("no plan: %d %s", status, body)
	}
	if status, body := d.ask("DELETE", path, ""); status != 409 || !strings.Contains(body, "would break") {
		t.Errorf("away: %d %s", status, body)
	}
	if status, body := d.ask("DELETE", path+"?force=true", ""); status != 204 {
		t.Errorf("away by force: %d %s", status, body)
	}
	d.until("web", 404)
	var events []Event
	d.api("/api/v1/events", &events)
	var told []string
	for _, e := range events {
		if e.Kind == "operator" {
			told = append(told, e.Text)
		}
	}
	if len(told) != 3 || !strings.HasPrefix(told[0], "route shop written, by 127.0.0.1:") || !strings.HasPrefix(told[2], "route shop deleted, by ") {
		t.Errorf("noted: %q", told)
	}

	// A file as it is to be.
	status, body = d.ask("POST", "/api/v1/plan", `{"config": "routes: [{name: r, path: /, service: web}]\nlisteners: [{address: \":1\"}]\n"}`)
	if plan = (Plan{}); json.Unmarshal([]byte(body), &plan) != nil || status != 200 || len(plan.Moves) == 0 || plan.Moves[0].To != "web" || plan.Broken != 0 {
		t.Errorf("plan of a file: %d %s", status, body)
	}
	restart := false
	for _, x := range plan.Differences {
		restart = restart || x.Restart && x.Path == "listeners"
	}
	if !restart {
		t.Errorf("plan of a file: %+v", plan.Differences)
	}
	if status, body := d.ask("POST", "/api/v1/plan", `{"config": "rutes: []"}`); status != 422 || !strings.Contains(body, "routes") {
		t.Errorf("plan of a bad file: %d %s", status, body)
	}
	const policy = "/api/v1/services/web/policy"
	if status, body := d.ask("PUT", policy, `{"balance": "round_robin"}`); status != 204 {
		t.Errorf("policy: %d %s", status, body)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if status, body := d.ask("GET", policy, ""); status == 200 && strings.Contains(body, "round_robin") {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("policy: %d %s", status, body)
		}
	}
	if status, body := d.ask("DELETE", policy, ""); status != 204 {
		t.Errorf("policy away: %d %s", status, body)
	}
	if status, body := d.ask("PUT", "/api/v1/loglevel", `{"level": "debug"}`); status != 200 || d.options.LogLevel.Level() != zap.DebugLevel {
		t.Errorf("level: %d %s", status, body)
	}
	if status, body := d.ask("PUT", "/api/v1/loglevel", `{"level": "loud"}`); status != 400 {
		t.Errorf("level: %d %s", status, body)
	}
}

// Whatever is changed is on record, as an event and in the log, with who and from where; what was refused is not.
func TestAudit(t *testing.T) {
	etcd := etcdtest.Start(t)
	log, logged := zapobserver.New(zap.InfoLevel)
	d := runLogged(t, etcd, zap.New(log), func(c *config.Config) {
		c.Admin.Token = "nobody-in-particular"
		c.Admin.Tokens = map[string]config.AdminToken{"alice": {Token: "alice-has-another-one"}}
	})
	newFleet(t, etcd.Client(), "cart", 3)
	as := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if p := d.store.Load().Pool("cart"); p != nil && p.Len() == 3 {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("instances missing")
		}
	}
	const instance, policy, route = "/api/v1/services/cart/instances/0", "/api/v1/services/cart/policy", "/api/v1/routes/shop"
	writes := []struct {
		method, path, body    string
		status                int
		what, service, id, by string // what is empty for what changes nothing
	}{
		{"PATCH", instance, `{"drain":true}`, 204, "drained", "cart", "0", "alice"},
		{"PATCH", instance, `{"drain":false}`, 204, "as it says itself", "cart", "0", "alice"},
		{"PATCH", instance, `{"weight":7}`, 204, "weight 7", "cart", "0", "alice"},
		{"PATCH", instance, `{"weight":10001}`, 422, "", "", "", "alice"},
		{"PUT", policy, `{"balance":"p2c"}`, 204, "policy written", "cart", "", "alice"},
		{"PUT", policy, `{"balance":"luck"}`, 422, "", "", "", "alice"},
		{"DELETE", policy, "", 204, "policy deleted", "cart", "", "alice"},
		{"PUT", route, `{"path":"/","service":"cart"}`, 204, "route shop written", "", "", "alice"},
		{"DELETE", route, "", 204, "route shop deleted", "", "", ""},
		{"POST", "/api/v1/services/cart/release", "", 200, "0 suspects given up", "cart", "", "alice"},
		{"DELETE", "/api/v1/orphans", "", 200, "0 keys given up that the registry does not have", "", "", "alice"},
		{"PUT", "/api/v1/loglevel", `{"level":"info"}`, 200, "log level info", "", "", "alice"},
		{"PUT", "/api/v1/loglevel", `{"level":"info"}`, 401, "", "", "", "mallory"},
	}
	for _, w := range writes {
		token := map[string]string{"alice": "alice-has-another-one", "": "nobody-in-particular"}[w.by]
		if status, body := d.ask(w.method, w.path, w.body, as(token)...); status != w.status {
			t.Errorf("%s %s %s: %d %s", w.method, w.path, w.body, status, body)
		}
	}
	_, text := d.ask("GET", "/api/v1/events", "", as("nobody-in-particular")...)
	var events []Event
	if err := json.Unmarshal([]byte(text), &events); err != nil {
		t.Fatal(err)
	}
	events = slices.DeleteFunc(events, func(e Event) bool { return e.Kind != "operator" })
	lines := logged.FilterMessage("an operator has changed something").All()
	for _, w := range writes {
		if w.what == "" {
			continue
		}
		if len(events) == 0 || len(lines) == 0 {
			t.Fatalf("%s is not on record", w.what)
		}
		by := regexp.MustCompile(`^127\.0\.0\.1:\d+ with the token$`)
		if w.by != "" {
			by = regexp.MustCompile(`^` + w.by + ` from 127\.0\.0\.1:\d+$`)
		}
		e, l := events[0], lines[0].ContextMap()
		events, lines = events[1:], lines[1:]
		what, who, _ := strings.Cut(e.Text, ", by ")
		if what != w.what || !by.MatchString(who) || e.Service != w.service || e.Instance != w.id || time.Since(e.At) > time.Minute {
			t.Errorf("%s is on record as %+v", w.what, e)
		}
		if said, _ := l["by"].(string); l["what"] != w.what || !by.MatchString(said) || l["service"] != w.service || l["instance"] != w.id {
			t.Errorf("%s is logged as %v", w.what, l)
		}
	}
	if len(events)+len(lines) > 0 {
		t.Errorf("on record as well: %v %v", events, lines)
	}
}

// stream reads n events of text/event-stream, with the ids that a client resumes by.
func (d *daemon) stream(n int, last string) (list []Event, ids []string) {
	d.t.Helper()
	ctx, stop := context.WithTimeout(d.t.Context(), 10*time.Second)
	defer stop()
	req, err := http.NewRequestWithContext(ctx, "GET", d.admin+"/api/v1/events", nil)
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); len(list) < n && lines.Scan(); {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			ids = append(ids, id)
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var e Event
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				d.t.Fatal(err)
			}
			list = append(list, e)
		}
	}
	if len(list) != n || len(ids) != n {
		d.t.Fatalf("%d events with %d ids, want %d", len(list), len(ids), n)
	}
	return list, ids
}

// A stream goes on after the event that its client had last; after another life of the daemon it begins anew, also when this one
// has had as many events.
func TestResumeEvents(t *testing.T) {
	life := func(events int) *daemon {
		d := run(t, nil, nil)
		for i := range events {
			d.control.Audit("test", "", "", fmt.Sprint(i))
		}
		return d
	}
	d := life(5)
	list, ids := d.stream(5, "")
	if list[4].Text != "4, by test" || list[4].ID != ids[4] {
		t.Fatalf("%+v with %q", list, ids)
	}
	if list, _ := d.stream(3, ids[1]); list[0].Text != "2, by test" || list[2].Text != "4, by test" {
		t.Errorf("after the second: %+v", list)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	d = life(8)
	if list, _ := d.stream(8, ids[4]); list[0].Text != "0, by test" || list[7].Text != "7, by test" {
		t.Errorf("in the next life: %+v", list)
	}
	for query, want := range map[string]int{"": 8, "?since=" + ids[4]: 8, "?since=6": 2, "?since=x": -1} {
		var list []Event
		status, body := d.ask("GET", "/api/v1/events"+query, "")
		if want < 0 {
			if status != 400 {
				t.Errorf("%s: %d", query, status)
			}
		} else if err := json.Unmarshal([]byte(body), &list); err != nil || len(list) != want {
			t.Errorf("%s: %d events, want %d (%v)", query, len(list), want, err)
		}
	}
}
