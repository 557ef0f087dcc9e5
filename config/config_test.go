package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEmptyFileIsTheDefault(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "etcd:\nlisteners:\nroutes:\nlog: {}\n", "\ufeff"} {
		c, err := Parse("rota.yaml", []byte(text))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if diff := cmp.Diff(Default(), c); diff != "" {
			t.Errorf("%q (-default +got):\n%s", text, diff)
		}
	}
}

func TestExample(t *testing.T) {
	c, err := Parse("rota.example.yaml", Example())
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Routes) != 2 || len(c.Services) != 2 {
		t.Errorf("the samples are gone: %+v", c)
	}
	c.Routes, c.Services = nil, nil
	if diff := cmp.Diff(Default(), c); diff != "" {
		t.Errorf("the example's values are not the defaults (-default +example):\n%s", diff)
	}
}

// With its comments taken away the example is right too, and has every key.
func TestExampleComments(t *testing.T) {
	text := regexp.MustCompile(`(?m)^( *)# ([a-z_]+:( |$)|  |- )`).ReplaceAllString(string(Example()), "$1$2")
	s, c := newSource("rota.example.yaml", []byte(text)), Default()
	s.read([]byte(text), maxFileBytes, c)
	c.fill()
	s.validate(c)
	if err := s.err(); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
	has := map[string]bool{"etcd.password": true, "admin.token": true, "admin.tokens.token": true} // not beside their files
	for path := range s.keys {
		path = regexp.MustCompile(`\[\d+\]`).ReplaceAllString(path, "")
		path = regexp.MustCompile(`^(services|admin\.tokens)\.[a-z]+`).ReplaceAllString(path, "$1")
		has[regexp.MustCompile(`\.overrides\.[a-z0-9-]+`).ReplaceAllString(path, ".overrides")] = true
	}
	// What routes may have is not shown twice.
	for _, f := range fieldsOf(reflect.TypeFor[Timeouts]()) {
		has["routes.timeouts."+f.key] = true
	}
	for _, f := range fieldsOf(reflect.TypeFor[Retries]()) {
		has["routes.retries."+f.key] = true
	}
	var check func(v reflect.Type, path string)
	check = func(v reflect.Type, path string) {
		for v.Kind() == reflect.Slice || v.Kind() == reflect.Map {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct {
			return
		}
		for _, f := range fieldsOf(v) {
			if !has[join(path, f.key)] {
				t.Errorf("not in the example: %s", join(path, f.key))
			}
			check(f.typ, join(path, f.key))
		}
	}
	check(configType, "")
}

func TestParse(t *testing.T) {
	c, err := Parse("rota.yaml", []byte(`
etcd: {disabled: true}
listeners:
  - address: 127.0.0.1:0
  - address: "[::1]:8080"
admin: {address: off}
engine: goroutines
loops: 2
grace: 0s
drain_delay: 1m30s
routes:
  - {name: a, path: =/x, service: b.c, priority: -1, timeout: 250ms}
services:
  b.c: {instances: [{address: 127.0.0.1:9001, weight: 0}, {address: "[::1]:9001"}, {address: localhost:80}]}
auto_routes: true
timeouts: {connect: 0, idle_body: 5s}
log: {level: debug, access: ./access.log}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Etcd.Disabled, want.Etcd.Endpoints = true, []string{"127.0.0.1:2379"}
	want.Listeners = []Listener{{Address: "127.0.0.1:0", Protocol: "http"}, {Address: "[::1]:8080", Protocol: "http"}}
	want.Admin.Address = "off"
	want.Engine, want.Loops, want.Grace, want.DrainDelay = "goroutines", 2, 0, 90*time.Second
	want.Routes = []Route{{Name: "a", Path: "=/x", Service: "b.c", Priority: -1, Timeout: 250 * time.Millisecond}}
	want.Services = map[string]Service{"b.c": {Balance: "least_request", Instances: []StaticInstance{
		{Address: "127.0.0.1:9001", Weight: new(0)}, {Address: "[::1]:9001"}, {Address: "localhost:80"}}}}
	want.AutoRoutes = true
	want.Timeouts.IdleBody = 5 * time.Second
	want.Log = Log{Level: "debug", Access: "./access.log", Format: "json"}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestErrors(t *testing.T) {
	_, err := Parse("rota.yaml", []byte("routes:\n  - name: a\n    servce: b\n    path: nope\nloops: -1\n"))
	var first *Error
	if !errors.As(err, &first) {
		t.Fatalf("%T is no *Error", err)
	}
	if first.File != "rota.yaml" || first.Line != 3 || first.Column != 5 || first.Message != `unknown key "servce"` || first.Hint != `did you mean "service"?` {
		t.Errorf("%+v", first)
	}
	var all Errors
	if !errors.As(err, &all) || len(all) != 3 {
		t.Fatalf("want three errors: %v", err)
	}
	want := `rota.yaml:3:5: unknown key "servce"
        servce: b
        ^~~~~~
  did you mean "service"?
rota.yaml:4:11: path "nope" must begin with /
        path: nope
              ^~~~
  write /nope
rota.yaml:5:8: loops must be 0 (one per CPU) to 1024, not -1
    loops: -1
           ^~`
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Error(diff)
	}
}

func TestTooManyErrors(t *testing.T) {
	_, err := Parse("rota.yaml", []byte(strings.Repeat("- x\n", 5)+strings.Repeat(" ", 3)))
	if es, ok := errors.AsType[Errors](err); !ok || len(es) != 1 {
		t.Errorf("a list instead of a mapping: %v", err)
	}
	var b strings.Builder
	b.WriteString("listeners:\n")
	for range 500 {
		b.WriteString("  - address: nowhere\n")
	}
	_, err = Parse("rota.yaml", []byte(b.String()))
	if es, ok := errors.AsType[Errors](err); !ok || len(es) != maxErrors+1 || es[maxErrors].Message != "400 more problems are not shown" {
		t.Errorf("%d, %v", len(es), err)
	}
}

func TestBounds(t *testing.T) {
	for name, text := range map[string]string{
		"aliases": "a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nservices: *c\n",
		"depth":   strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
		"size":    "routes: " + strings.Repeat(" ", maxFileBytes) + "[]",
		"line":    "{" + strings.Repeat("a: 1, b: 2, password: x, ", maxFileBytes/100) + "}",
		"lines":   strings.Repeat("key: [a, b]\n", maxFileBytes/13),
		"merge":   "etcd: {<<: {prefix: /a}}\n",
	} {
		begin := time.Now()
		_, err := Parse("rota.yaml", []byte(text))
		took := time.Since(begin)
		if err == nil || took > 30*time.Second || len(err.Error()) > 64<<10 {
			t.Errorf("%s after %s: %.500v", name, took, err)
		}
		t.Log(name, took)
	}
}

func TestSecretsAreHidden(t *testing.T) {
	for _, line := range []string{
		"etcd: {passwrd: hunter2, usrname: x}",
		`etcd: {"password":"hunter2 \" hunter2", "usrname": 1}`,
		"etcd: {password: 'hunter2', usrname: x}",
		"etcd: {password: [hunter2]}",
	} {
		_, err := Parse("rota.yaml", []byte(line))
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
	}
	_, err := Parse("rota.yaml", []byte("etcd: {password_file: /etc/pw, usrname: x}"))
	if err == nil || !strings.Contains(err.Error(), "/etc/pw") {
		t.Errorf("a path is no secret: %v", err)
	}
	_, err = Parse("rota.yaml", []byte("etcd: {endpoints: ['http://u:hunter2@h:1']}"))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	file := filepath.Join(dir, "x.yaml")
	if err := os.WriteFile(file, []byte("etcd: {prefix: /file, endpoints: [file:1]}\nlog: {level: warn}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func(environ ...string) *Config {
		t.Helper()
		c, err := Load(file, WithEnviron(environ))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := load(); c.Etcd.Prefix != "/file" || c.Log.Level != "warn" {
		t.Errorf("%+v", c)
	}
	c := load("ROTA_ETCD_ENDPOINTS=a:1, b:2,", "ROTA_ADMIN_ADDRESS=off", "ROTA_LOG_LEVEL=debug", "ROTA_AUTO_ROUTES=true",
		"ROTA_ENGINE=goroutines", "ROTA_LOOPS=3", "ROTA_GRACE=1s", "ROTA_TIMEOUTS_KEEP_ALIVE=2s", "ROTA_ETCD_PREFIX=",
		"ETCDCTL_ENDPOINTS=ctl:1", "ETCDCTL_USER=u:p:q", "ROTA_SERVICE_NAME=x", "ROTA_PORT_80_TCP=tcp://10.0.0.1:80")
	if diff := cmp.Diff([]string{"a:1", "b:2"}, c.Etcd.Endpoints); diff != "" {
		t.Error(diff)
	}
	if c.Admin.Address != "off" || c.Log.Level != "debug" || !c.AutoRoutes || c.Engine != "goroutines" || c.Loops != 3 ||
		c.Grace != time.Second || c.Timeouts.KeepAlive != 2*time.Second || c.Etcd.Prefix != "/file" ||
		c.Etcd.Username != "u" || c.Etcd.Password != "p:q" {
		t.Errorf("%+v", c)
	}
	if c := load("ETCDCTL_ENDPOINTS=ctl:1", "ETCDCTL_DIAL_TIMEOUT=7s"); c.Etcd.Endpoints[0] != "file:1" || c.Etcd.DialTimeout != 7*time.Second {
		t.Errorf("the file stands over etcdctl's variables: %+v", c.Etcd)
	}
	if c := load("ETCDCTL_USER=u:p", "ROTA_ETCD_PASSWORD_FILE=/x"); c.Etcd.Password != "" || c.Etcd.PasswordFile != "/x" {
		t.Errorf("%+v", c.Etcd)
	}

	for environ, want := range map[string]string{
		"ROTA_LOOPS=two":                  "ROTA_LOOPS: must be a whole number, not \"two\"\n  write digits alone, as in 4",
		"ROTA_GRACE=30":                   "ROTA_GRACE: must have a unit, not \"30\"\n  write 30s for seconds",
		"ROTA_LOG_LEVEL=wran":             "ROTA_LOG_LEVEL: unknown level \"wran\"\n  did you mean \"warn\"?",
		"ROTA_ETCD_ENDPOINTS=a:1,b":       "ROTA_ETCD_ENDPOINTS: etcd endpoint \"b\" has no port\n  write b:2379",
		"ROTA_ETCD_ENDPOINT=a:1":          "ROTA_ETCD_ENDPOINT: unknown variable\n  did you mean ROTA_ETCD_ENDPOINTS?",
		"ETCDCTL_CERT=/c.pem":             "ETCDCTL_CERT: a certificate without its key\n  add etcd.key",
		"ROTA_ADMIN_ADDRESS=0.0.0.0:9797": "ROTA_ADMIN_ADDRESS: admin address \"0.0.0.0:9797\" is not on loopback, and there is no token\n  write 127.0.0.1:9797, or off, or name a token_file",
	} {
		_, err := Load(file, WithEnviron([]string{environ}))
		if err == nil || err.Error() != want {
			t.Errorf("%s: got\n%v\nwant\n%s", environ, err, want)
		}
	}

	_, err := Load("absent.yaml")
	if !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "absent.yaml: cannot be read: no such file or directory\n") {
		t.Errorf("%v", err)
	}
	if _, err = Load(dir); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("%v", err)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "xdg"))
	write := func(path string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("engine: goroutines"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	xdg := filepath.Join(dir, "xdg", "rota", "rota.yaml")
	write(xdg)
	if got := Find(); got != xdg {
		t.Errorf("got %q", got)
	}
	write("rota.yaml")
	if got := Find(); got != "rota.yaml" {
		t.Errorf("got %q", got)
	}
	c, err := Load("", WithEnviron(nil))
	if err != nil || c.Engine != "goroutines" {
		t.Errorf("%v, %v", c, err)
	}
}

func TestVariables(t *testing.T) {
	got := strings.Join(Variables(), " ")
	for _, want := range []string{"ROTA_ETCD_DISABLED", "ROTA_ETCD_PASSWORD_FILE", "ROTA_TIMEOUTS_RESPONSE_HEAD", "ROTA_DRAIN_DELAY", "ROTA_LOG_ACCESS", "ETCDCTL_ENDPOINTS"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	if strings.Contains(got, "ROUTES_") || strings.Contains(got, "SERVICES") || strings.Contains(got, "LISTENERS") {
		t.Errorf("%s", got)
	}
}

func TestValidate(t *testing.T) {
	c := Default()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	c.Listeners = []Listener{{Address: "127.0.0.1:0"}, {Address: "8080"}}
	c.Etcd.Endpoints = []string{"a:1", "b"}
	err := c.Validate()
	want := "etcd.endpoints[1]: etcd endpoint \"b\" has no port\n  write b:2379\n" +
		"listeners[1].address: listener address \"8080\" is not host:port\n  write :8080"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if c.Listeners[0].Protocol != "http" {
		t.Error("the protocol's default is missing")
	}
}

func TestParseRoute(t *testing.T) {
	want := Route{Name: "cart", Host: "*.example.com", Path: "/cart", Service: "cart", StripPrefix: true, Priority: 3, Timeout: time.Minute}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(data); !strings.Contains(s, `"timeout":"1m"`) {
		t.Error(s)
	}
	got, err := ParseRoute("cart", data)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	var back Route
	if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, want) {
		t.Error(err, back)
	}
	got, err = ParseRoute("cart", []byte("{\n\t\"service\": \"cart\"\n}\n"))
	if err != nil || !reflect.DeepEqual(got, Route{Name: "cart", Service: "cart"}) {
		t.Error(err, got)
	}
	for in, want := range map[string]string{
		`{"service":"cart","hots":"a"}`: "routes/cart:1:19: unknown key \"hots\"\n    {\"service\":\"cart\",\"hots\":\"a\"}\n                      ^~~~~~\n  did you mean \"host\"?",
		`{"service":"cart","name":"b"}`: "routes/cart:1:26: name \"b\" is not the key's name \"cart\"\n    {\"service\":\"cart\",\"name\":\"b\"}\n                             ^~~\n  leave name out",
		``:                              "routes/cart: the value is empty\n  write a route such as {\"service\": \"cart\", \"path\": \"/cart\"}",
		`{}`:                            "routes/cart:1:1: a route needs a service\n    {}\n    ^\n  add service: cart",
		`null`:                          "routes/cart:1:1: a route needs a service\n    null\n    ^~~~\n  add service: cart",
		"{" + strings.Repeat(" ", maxValueBytes) + "}": "routes/cart: 65538 bytes are more than the 65536 allowed\n  is this what was meant to be read?",
	} {
		_, err := ParseRoute("cart", []byte(in))
		if err == nil || err.Error() != want {
			t.Errorf("%.60s: got\n%v\nwant\n%s", in, err, want)
		}
	}
	if _, err := ParseRoute("a b", []byte(`{"service":"cart"}`)); err == nil {
		t.Error("a route's name has no space")
	}
}

func TestParsePolicy(t *testing.T) {
	got, err := ParsePolicy("cart", []byte(`{"balance":"round_robin","instances":[{"address":"10.0.0.7:1","weight":5}]}`))
	want := Service{Balance: "round_robin", Instances: []StaticInstance{{Address: "10.0.0.7:1", Weight: new(5)}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if got, err := ParsePolicy("cart", []byte(`{}`)); err != nil || got.Balance != "least_request" {
		t.Error(err, got)
	}
	_, err = ParsePolicy("cart", []byte(`{"balance":"round-robin"}`))
	if err == nil || !strings.HasPrefix(err.Error(), `policies/cart:1:12: unknown balance "round-robin"`) || !strings.HasSuffix(err.Error(), `did you mean "round_robin"?`) {
		t.Error(err)
	}
	if _, err = ParsePolicy("Cart", []byte(`{}`)); err == nil || !strings.Contains(err.Error(), `"Cart" is not a service name`) {
		t.Error(err)
	}
}

func TestLongLinesAreCut(t *testing.T) {
	_, err := ParseRoute("cart", []byte(`{"service":"cart","path":"/`+strings.Repeat("x", 300)+`","hots":"a","host":"`+strings.Repeat("y", 100)+`"}`))
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 4 || len([]rune(lines[1])) > shownWidth+6 {
		t.Fatalf("%v", err)
	}
	at := strings.IndexByte(lines[2], '^')
	if got := string([]rune(lines[1])[at : at+6]); got != `"hots"` {
		t.Errorf("the caret is under %q:\n%v", got, err)
	}
}

func TestReadPassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pw")
	if err := os.WriteFile(file, []byte("s3cret\r\nsecond"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, e := range []Etcd{{Password: "s3cret"}, {PasswordFile: file}} {
		if got, err := e.ReadPassword(); err != nil || got != "s3cret" {
			t.Errorf("%q, %v", got, err)
		}
	}
	if _, err := (Etcd{PasswordFile: file + "x"}).ReadPassword(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestSchema(t *testing.T) {
	var schema struct {
		Properties map[string]struct {
			Type       string
			Enum       []string
			Default    any
			Properties map[string]struct{ Default any }
			Items      struct {
				Required             []string
				AdditionalProperties any
			}
		}
		AdditionalProperties any
	}
	if err := json.Unmarshal(Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	if schema.AdditionalProperties != false || len(schema.Properties) != len(fieldsOf(configType)) {
		t.Errorf("%s", Schema())
	}
	if p := schema.Properties["engine"]; p.Default != nil || len(p.Enum) != 2 {
		t.Errorf("%+v", p)
	}
	if p := schema.Properties["timeouts"].Properties["keep_alive"]; p.Default != "1m15s" {
		t.Errorf("%+v", p)
	}
	if p := schema.Properties["routes"].Items; len(p.Required) != 1 || p.AdditionalProperties != false {
		t.Errorf("%+v", p)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "4096": 4096, "10B": 10, "10MB": 10e6, "16KiB": 16 << 10, `"2 GiB"`: 2 << 30, "7TiB": 7 << 40, "9223372036854775807": 1<<63 - 1,
	} {
		c, err := Parse("rota.yaml", []byte("limits: {body: "+text+"}"))
		if err != nil || c.Limits.Body != want {
			t.Errorf("%s: %d, %v", text, c.Limits.Body, err)
		}
	}
	for _, text := range []string{"-1", "-1KiB", "1e3", "0x10", "1.5MiB", "1kb", "1iB", "16 kib", "9223372036854775808", "8388608TiB", "{}", "true"} {
		if c, err := Parse("rota.yaml", []byte("limits: {body: "+text+"}")); err == nil {
			t.Errorf("%s: %d", text, c.Limits.Body)
		}
	}
}

func TestNetworks(t *testing.T) {
	got, unix, err := Networks([]string{"10.0.0.0/8", "unix", "192.0.2.1", "::ffff:192.0.2.0/120", "::ffff:192.0.2.2", "2001:db8::/32", "::/0"})
	want := "[10.0.0.0/8 192.0.2.1/32 192.0.2.0/24 192.0.2.2/32 2001:db8::/32 ::/0]"
	if err != nil || !unix || fmt.Sprint(got) != want {
		t.Errorf("%v %v %v", got, unix, err)
	}
	for _, text := range []string{"", "10.0.0.1/8", "fe80::1%eth0", "10.0.0.0/33", "localhost", "Unix"} {
		if _, _, err := Networks([]string{text}); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestRateLimit(t *testing.T) {
	for r, want := range map[RateLimit]string{
		{}:                                     "0s 0  <nil>",
		{Rate: "100/s"}:                        "10ms 100  <nil>",
		{Rate: "30/m"}:                         "2s 1  <nil>",
		{Rate: "1000/h", Burst: 5}:             "3.6s 5  <nil>",
		{Rate: "1/s", Key: "client"}:           "1s 1  <nil>",
		{Rate: "1/s", Key: "header:X-Api-Key"}: "1s 1 x-api-key <nil>",
		{Rate: "0/s"}:                          `0s 0  "0/s" is not a rate`,
		{Rate: "1/d"}:                          `0s 0  "1/d" is not a rate`,
		{Rate: "1/s", Key: "header:"}:          `0s 0  key "header:" is neither client nor header:Name`,
		{Burst: 1}:                             "0s 0  a rate limit needs a rate",
	} {
		every, burst, header, err := r.Parse()
		if got := fmt.Sprint(every, " ", burst, " ", header, " ", err); got != want {
			t.Errorf("%+v: %s, want %s", r, got, want)
		}
	}
}

// What a client may choose of a redirect never ends the host.
func TestRedirectHosts(t *testing.T) {
	for to, ok := range map[string]bool{
		"https://{host}{uri}": true, "{scheme}://{host}:8443{path}": true, "https://{1}.example.com/": true, "https://example.com/{1}": true,
		"/{1}": true, "{path}/": true, "http://[::1]:80{uri}": true, "https://{host}{port}{uri}": true,
		"https://{1}": false, "https://example.com{1}/": false, "https://{1}:443/": false, "https://{1}{port}{uri}": false,
		"https://example.com@{1}": false, "https:///x": false, "https://{uri}": false, "{1}": false, "//{host}": false, "ftp://a": false,
		"https://a\\b": false, "/\r\nX: y": false, "/{1": false, "/}": false,
	} {
		data, _ := json.Marshal(Route{Path: "~/(.*)", Redirect: Redirect{To: to}})
		if _, err := ParseRoute("r", data); (err == nil) != ok {
			t.Errorf("%q: %v", to, err)
		}
	}
}

func TestParsedForms(t *testing.T) {
	if m := (Listener{}).FileMode(); m != 0o660 {
		t.Error(m)
	}
	if m := (Listener{Mode: "0600"}).FileMode(); m != 0o600 {
		t.Error(m)
	}
	if d := Default().Limits.ShedAfter(); d != 500*time.Millisecond {
		t.Error(d)
	}
	if d := (Limits{Shed: "off"}).ShedAfter(); d != 0 {
		t.Error(d)
	}
}

// The examples of the documentation are configurations.
func TestDocumentation(t *testing.T) {
	for file, least := range map[string]int{"docs/routing.md": 4, "docs/registration.md": 1} {
		text, err := os.ReadFile("../" + file)
		if err != nil {
			t.Fatal(err)
		}
		parts := strings.Split(string(text), "```yaml\n")[1:]
		for _, part := range parts {
			example, _, _ := strings.Cut(part, "```\n")
			if _, err := Parse(file, []byte(example)); err != nil {
				t.Errorf("%s\n%v", example, err)
			}
		}
		if len(parts) < least {
			t.Errorf("%s: %d examples", file, len(parts))
		}
	}
}

func TestGrant(t *testing.T) {
	for value, claims := range map[string]map[string]bool{ // host and path, whether they are granted
		`{"claims":[{"host":"shop.example.com","path":"/cart"}]}`: {
			"shop.example.com/cart": true, "Shop.Example.com/cart/7": true, "shop.example.com/cartoon": false, "shop.example.com": false,
			"example.com/cart": false, "/cart": false, "a.shop.example.com/cart": false,
		},
		`{"claims":[{"host":"*.example.com"}]}`: {
			"a.example.com": true, "a.b.example.com/x": true, "*.example.com": true, "*.b.example.com": true, "example.com": false,
			"aexample.com": false, "/x": false,
		},
		`{"claims":[{"path":"/api/"}]}`: {"/api": true, "a.example.com/api/x": true, "a.example.com": false},
		`{"claims":[{"path":"/"}]}`:     {"": true, "a.example.com/x": true},
		`{"claims":[]}`:                 {"": false, "a.example.com/x": false},
		`{}`:                            {"a.example.com/x": false},
	} {
		g, err := ParseGrant("cart", []byte(value))
		if err != nil {
			t.Errorf("%s: %v", value, err)
		}
		for claim, want := range claims {
			host, path := claim, ""
			if i := strings.IndexByte(claim, '/'); i >= 0 {
				host, path = claim[:i], claim[i:]
			}
			if got := g.Covers(host, path); got != want {
				t.Errorf("%s covers %s: %v", value, claim, got)
			}
		}
	}
	for value, want := range map[string]string{
		``: "the value is empty", `{"hosts":[]}`: "unknown key", `{"claims":[{}]}`: "every host and path", `{"claims":[{"host":"a:80"}]}`: "host",
		`{"claims":[{"path":"=/a"}]}`: "no prefix", `{"claims":[{"path":"a"}]}`: "path", `[]`: "must be a mapping",
	} {
		if _, err := ParseGrant("cart", []byte(value)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", value, err, want)
		}
	}
}

// Tokens are read by the names of who has them; one that two have would not tell them apart.
func TestReadTokens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("of-the-file\nand more\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		admin Admin
		want  map[string]string
		err   string
	}{
		{Admin{}, map[string]string{}, ""},
		{Admin{TokenFile: file}, map[string]string{"": "of-the-file"}, ""},
		{Admin{Token: "a", Tokens: map[string]AdminToken{"alice": {Token: "b"}, "bob": {TokenFile: file}}}, map[string]string{"": "a", "alice": "b", "bob": "of-the-file"}, ""},
		{Admin{Tokens: map[string]AdminToken{"alice": {Token: "a"}, "bob": {Token: "a"}}}, nil, "admin.tokens.bob: it is the token of alice, too"},
		{Admin{Token: "a", Tokens: map[string]AdminToken{"alice": {Token: "a"}}}, nil, "admin.tokens.alice: it is the token of nobody in particular, too"},
		{Admin{Tokens: map[string]AdminToken{"alice": {TokenFile: os.DevNull}}}, nil, "admin.tokens.alice: " + os.DevNull + " is empty"},
		{Admin{TokenFile: file + "?"}, nil, "admin.token_file: open "},
	} {
		got, err := c.admin.ReadTokens()
		if c.err != "" {
			if err == nil || !strings.HasPrefix(err.Error(), c.err) {
				t.Errorf("%+v: %v, want %s", c.admin, err, c.err)
			}
		} else if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("%+v: %v %s", c.admin, err, diff)
		}
	}
}
