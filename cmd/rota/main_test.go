package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/internal/leaktest"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

// roleEnv makes the test binary something else than rota: what roles has under that name, which returns the exit status.
const roleEnv = "ROTA_TEST_ROLE"

var roles = map[string]func() int{}

// TestMain lets the test binary be the command, so that signals and exit statuses are the real ones, and the program that
// the command runs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == programArg {
		program(os.Args[2:])
	}
	if os.Getenv("ROTA_TEST_MAIN") == "1" {
		if role := os.Getenv(roleEnv); role != "" {
			os.Exit(roles[role]())
		}
		main()
	}
	flag.Set("test.parallel", "4") // those tests wait, most of the time
	leaktest.Main(m)
}

// programArg makes the test binary what "rota register" runs.
const programArg = "test-program"

// command runs a command line to its end, in this process.
func command(t *testing.T, list ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out bytes.Buffer
	errs := newSyncBuffer() // a daemon that has ended may still be logging
	status = run(list, &out, errs)
	if strings.Contains(errs.String(), "goroutine ") {
		t.Errorf("a stack: %s", errs.String())
	}
	return status, out.String(), errs.String()
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUsage(t *testing.T) {
	for _, list := range [][]string{
		{"frobnicate"}, {"--frob"}, {"serve", "--frob"}, {"serve", "extra"}, {"services", "get"}, {"services", "frob"}, {"instances", "get", "one"},
		{"status", "-o", "xml"}, {"serve", "--grace", "soon"}, {"check", "a", "b"}, {"routes", "ls", "x"},
	} {
		status, _, errs := command(t, list...)
		if status != exitUsage || !strings.HasPrefix(errs, "rota: ") || !strings.Contains(errs, "--help") || strings.Count(errs, "\n") > 3 {
			t.Errorf("%v: %d %q", list, status, errs)
		}
	}
}

// Every command and every flag says what it is for.
func TestHelp(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no description", c.CommandPath())
		}
		if status, out, _ := command(t, append(strings.Fields(c.CommandPath())[1:], "--help")...); status != 0 || !strings.Contains(out, "Usage:") {
			t.Errorf("%s --help: %d %q", c.CommandPath(), status, out)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root())
	if status, out, _ := command(t, "version"); status != 0 || !strings.HasPrefix(out, "rota ") {
		t.Errorf("version: %d %q", status, out)
	}
}

func TestCheck(t *testing.T) {
	if status, out, errs := command(t, "check", "../../config/rota.example.yaml"); status != 0 || !strings.Contains(out, "ok") {
		t.Errorf("the example: %d %s", status, errs)
	}
	bad := write(t, "bad.yaml", "routes:\n  - {name: a, servce: b}\n")
	if status, _, errs := command(t, "check", bad); status != exitFailed || !strings.Contains(errs, bad+":2:15:") || !strings.Contains(errs, `did you mean "service"`) {
		t.Errorf("a bad file: %d %s", status, errs)
	}
	if status, out, errs := command(t, "validate", "../../config/rota.example.yaml"); status != 0 || !strings.Contains(out, "ok") {
		t.Errorf("by its other name: %d %s", status, errs)
	}
	broken, err := os.ReadFile("../../config/testdata/bad.txt")
	if err != nil {
		t.Fatal(err)
	}
	cases := strings.Split(string(broken), "====\n")
	if len(cases) < 50 {
		t.Errorf("%d broken files", len(cases))
	}
	for _, c := range cases {
		in, want, _ := strings.Cut(c, "----\n")
		file := write(t, "rota.yaml", in)
		if status, _, errs := command(t, "check", file); status != exitFailed || strings.ReplaceAll(errs, file, "rota.yaml") != "rota: "+want {
			t.Errorf("%s\n%d %s", in, status, errs)
		}
	}
	if status, _, errs := command(t, "check", filepath.Join(t.TempDir(), "none.yaml")); status != exitFailed || !strings.Contains(errs, "none.yaml") {
		t.Errorf("no file: %d %s", status, errs)
	}
}

func TestServeRefuses(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for name, tc := range map[string]struct {
		list []string
		want []string
	}{
		"busy port":   {[]string{"--listen", busy.Addr().String(), "--admin", "off"}, []string{busy.Addr().String(), "in use", "choose another"}},
		"busy admin":  {[]string{"--listen", "127.0.0.1:0", "--admin", busy.Addr().String()}, []string{"admin", "in use"}},
		"engine":      {[]string{"--engine", "steam"}, []string{"steam", "loops"}},
		"admin":       {[]string{"--admin", "0.0.0.0:9797"}, []string{"loopback"}},
		"level":       {[]string{"--log-level", "loud"}, []string{"loud", "info"}},
		"bad file":    {[]string{"-c", write(t, "bad.yaml", "listeners: 5\n")}, []string{"bad.yaml:1:12", "list"}},
		"no file":     {[]string{"-c", "/none/such.yaml"}, []string{"/none/such.yaml"}},
		"bad address": {[]string{"--listen", "nonsense"}, []string{"nonsense"}},
	} {
		t.Run(name, func(t *testing.T) {
			status, _, errs := command(t, append([]string{"serve"}, tc.list...)...)
			if status != exitFailed {
				t.Errorf("status %d", status)
			}
			for _, want := range tc.want {
				if !strings.Contains(errs, want) {
					t.Errorf("%q does not say %q", errs, want)
				}
			}
			if log, _, _ := strings.Cut(errs, "rota: "); strings.HasPrefix(name, "busy") && !strings.Contains(log, "rota starts") {
				t.Errorf("the log is not before the last word: %q", errs)
			}
		})
	}
}

// child is the command in a process of its own.
type child struct {
	*exec.Cmd
	t    *testing.T
	out  *syncBuffer
	done chan struct{}
}

type syncBuffer struct {
	ch  chan struct{}
	buf bytes.Buffer
}

func newSyncBuffer() *syncBuffer { return &syncBuffer{ch: make(chan struct{}, 1)} }

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.ch <- struct{}{}
	defer func() { <-b.ch }()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.ch <- struct{}{}
	defer func() { <-b.ch }()
	return b.buf.String()
}

func spawn(t *testing.T, list ...string) *child {
	t.Helper()
	return launch(t, exec.Command(os.Args[0], list...))
}

// launch starts what becomes the command sooner or later.
func launch(t *testing.T, cmd *exec.Cmd) *child {
	t.Helper()
	c := &child{Cmd: cmd, t: t, out: newSyncBuffer(), done: make(chan struct{})}
	c.Env = append(append(os.Environ(), "ROTA_TEST_MAIN=1"), cmd.Env...)
	if c.Stdout == nil {
		c.Stdout = c.out
	}
	if c.Stderr == nil {
		c.Stderr = c.out
	}
	c.Dir = t.TempDir()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { c.Wait(); close(c.done) }()
	t.Cleanup(func() {
		c.Process.Kill()
		<-c.done
		if s := c.out.String(); strings.Contains(s, "goroutine ") {
			t.Errorf("a stack: %s", s)
		}
	})
	return c
}

// find waits for output that matches and returns its first group.
func (c *child) find(pattern string) string {
	c.t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if m := re.FindStringSubmatch(c.out.String()); m != nil {
			return m[len(m)-1]
		}
		select {
		case <-c.done:
			c.t.Fatalf("ended without %s: %s", pattern, c.out.String())
		default:
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("never %s: %s", pattern, c.out.String())
		}
	}
}

// exit waits for the end and returns the status.
func (c *child) exit() int {
	c.t.Helper()
	select {
	case <-c.done:
		return c.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		c.t.Fatalf("still running: %s", c.out.String())
		return -1
	}
}

func get(t *testing.T, address, host, path string) (int, string, http.Header) {
	t.Helper()
	req, _ := http.NewRequest("GET", "http://"+address+path, nil)
	req.Host = host
	resp, err := (&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), resp.Header
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

const listening = `"listening","address":"([^"]+)"`

// A daemon from a file: it serves, reloads, keeps the old configuration when the new one is bad, drains, and says how it ended.
func TestServe(t *testing.T) {
	release := make(chan struct{}, 8) // one for each slow request
	entered := make(chan struct{}, 1)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			entered <- struct{}{}
			<-release
		}
		io.WriteString(w, "ok "+r.URL.Path)
	}))
	defer up.Close()
	text := func(path string) string {
		return fmt.Sprintf("etcd: {disabled: true}\nlisteners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"off\"}\nroutes: [{name: r, path: %s, service: s}]\nservices: {s: {instances: [{address: %q}]}}\n", path, up.Listener.Addr())
	}
	for _, engine := range []string{"loops", "goroutines"} {
		t.Run(engine, func(t *testing.T) {
			file := write(t, "rota.yaml", text("/a"))
			c := spawn(t, "serve", "-c", file, "--engine", engine)
			address := c.find(listening)
			if status, body, _ := get(t, address, "x", "/a/1"); status != 200 || body != "ok /a/1" {
				t.Fatalf("%d %q", status, body)
			}
			os.WriteFile(file, []byte(text("/b")), 0o600)
			c.Process.Signal(syscall.SIGHUP)
			until(t, "the new route", func() bool { status, _, _ := get(t, address, "x", "/b"); return status == 200 })
			os.WriteFile(file, []byte("routes: [{nam: x}]\n"), 0o600)
			c.Process.Signal(syscall.SIGHUP)
			c.find(`(not reloaded.*rota.yaml:1:)`)
			if status, _, _ := get(t, address, "x", "/b"); status != 200 {
				t.Errorf("the old route is gone: %d", status)
			}
			os.WriteFile(file, []byte(text("/slow")), 0o600)
			c.Process.Signal(syscall.SIGHUP)
			until(t, "the slow route", func() bool { status, _, _ := get(t, address, "x", "/b"); return status == 404 })
			answer := make(chan string)
			go func() { _, body, _ := get(t, address, "x", "/slow"); answer <- body }()
			<-entered
			c.Process.Signal(syscall.SIGTERM)
			c.find(`(draining)`)
			release <- struct{}{}
			if body := <-answer; body != "ok /slow" {
				t.Errorf("in flight: %q", body)
			}
			if status := c.exit(); status != exitOK {
				t.Errorf("exit %d: %s", status, c.out)
			}
		})
	}
	stuck := func(t *testing.T, list ...string) *child {
		t.Cleanup(func() { release <- struct{}{} })
		c := spawn(t, append([]string{"serve", "-c", write(t, "rota.yaml", text("/slow"))}, list...)...)
		conn, err := net.Dial("tcp", c.find(listening))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		io.WriteString(conn, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
		<-entered
		c.Process.Signal(syscall.SIGTERM)
		c.find(`(draining)`)
		return c
	}
	t.Run("grace over", func(t *testing.T) {
		if status := stuck(t, "--grace", "50ms").exit(); status != exitDrain {
			t.Errorf("exit %d", status)
		}
	})
	t.Run("forced", func(t *testing.T) {
		c := stuck(t)
		time.Sleep(2 * sameSignal) // a second signal, and not the same one twice
		c.Process.Signal(syscall.SIGTERM)
		if status := c.exit(); status != exitForced {
			t.Errorf("exit %d", status)
		}
	})
}

// etcd out of reach at the start: the daemon says so, answers 503, and serves when it is there. Then the verbs that look.
func TestServeWithEtcd(t *testing.T) {
	etcd := etcdtest.Start(t)
	etcd.Stop()
	c := spawn(t, "serve", "--endpoints", etcd.Endpoints()[0], "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--auto-routes")
	c.find(`(etcd is out of reach.*` + regexp.QuoteMeta(etcd.Endpoints()[0]) + `)`)
	address := c.find(listening)
	admin := c.find(`"admin API","url":"http://([^"]+)"`)
	if status, _, header := get(t, address, "web.localhost", "/"); status != 503 || header.Get("Retry-After") == "" {
		t.Errorf("without etcd: %d %v", status, header)
	}
	for output, want := range map[string]string{"table": "not ready: ", "json": `"status": "not ready"`} {
		if status, out, errs := command(t, "healthcheck", "--admin", admin, "-o", output); status != exitFailed || !strings.Contains(out, want) || !strings.Contains(errs, "takes no traffic") {
			t.Errorf("healthcheck without etcd: %d %s%s", status, out, errs)
		}
	}
	etcd.Restart()
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	defer up.Close()
	put := func(key, value string) {
		t.Helper()
		if _, err := etcd.Client().Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	put("/rota/services/web/a", up.Listener.Addr().String())
	put("/rota/services/web/b", `{"address":"10.0.0.1:80","state":"draining","metadata":{"evil":"x[2J"}}`)
	put("/rota/services/web/c", "\x1b[2Jnot an address")
	put("/rota/routes/r1", `{"host":"a.example.com","service":"web"}`)
	put("/rota/services/routes/r9", "not an address either")
	put("/rota/routes/broken", `{"hots":"a.example.com","service":"web"}`)
	until(t, "routable", func() bool { status, _, _ := get(t, address, "web.localhost", "/"); return status == 200 })
	until(t, "the route", func() bool { status, _, _ := get(t, address, "a.example.com", "/"); return status == 200 })
	t.Setenv("ROTA_ADMIN_ADDRESS", admin)
	lost, err := http.NewRequest("GET", "http://"+address+"/lost?token=canary", nil)
	if err != nil {
		t.Fatal(err)
	}
	lost.Header.Set("X-Request-Id", "lost-1")
	if resp, err := http.DefaultClient.Do(lost); err != nil {
		t.Fatal(err)
	} else {
		resp.Body.Close()
	}
	route := write(t, "route.json", `{"path": "/new", "service": "web"}`)
	members, err := etcd.Client().MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		list string
		want []string
	}{
		{"status", []string{"ready", "connected, member ", ", keys under /rota/\n", "1 route; generation ", "set aside", "/rota/services/web/c"}},
		{"status -o json", []string{`"ready": true`}},
		{"services ls", []string{"SERVICE", "web", "least_request"}},
		{"services get web", []string{up.Listener.Addr().String(), "draining"}},
		{"services ls -o json", []string{`"name": "web"`}},
		{"instances ls", []string{"web", "it says it is draining"}},
		{"instances ls web", []string{"registered"}},
		{"instances get web b", []string{"10.0.0.1:80", "evil", "draining"}},
		{"routes ls", []string{"r1", "etcd", "a.example.com"}},
		{"why http://a.example.com/x", []string{"r1 (etcd), revision ", "registered, revision ", "yes", "answer", "of one of those marked yes"}},
		{"why POST http://other.example.com/", []string{"404 no_route", "not r1: the host is"}},
		{"why --request-id lost-1", []string{"404 after", "no_route", "/lost?token=REDACTED", "now"}},
		{"top --rounds 2 -n 100ms", []string{"REQUESTS/S", "P99", "all", "web", "ready"}},
		{"top web --rounds 1", []string{"INSTANCE", "ADDRESS\n", up.Listener.Addr().String()}},
		{"top --rounds 1 -o json", []string{`"bounds"`}},
		{"healthcheck", []string{"ready\n"}},
		{"healthcheck -o json", []string{`"status": "ready"`}},
		{"loglevel", []string{"info\n"}},
		{"loglevel -o json", []string{`"level": "info"`}},
		{"loglevel debug", []string{"debug\n"}},
		{"loglevel debug -o json", []string{`"level": "debug"`}},
		{"config print --daemon", []string{"auto_routes: true"}},
		{"config print --daemon -o json", []string{`"yaml": "`, `auto_routes: true\n`}},
		{"config print ../../config/rota.example.yaml -o json", []string{`"path":"../../config/rota.example.yaml"`, `"yaml":"`}},
		{"plan --route r2 " + route, []string{"+ routes.r2.path: \"/new\"", "matched again"}},
		{"routes put r2 " + route, nil},
		{"routes put r2 " + route + " --etcdctl", []string{`etcdctl put /rota/routes/r2 '{"path": "/new", "service": "web"}'` + "\n"}},
		{"routes put r2 " + route + " -o json", []string{`{"change":"put","route":"r2"}` + "\n"}},
		{"routes get r1 --value", []string{`{"host":"a.example.com","service":"web"}` + "\n"}},
		{"routes rm r2", nil},
		{"policies put web " + write(t, "policy.json", `{"balance": "round_robin"}`), nil},
		{"policies get web", []string{`{"balance": "round_robin"}`}},
		{"policies rm web -o json", []string{`{"change":"rm","policy":"web"}` + "\n"}},
		{"__complete services get w", []string{"web\t1 of 2 can take requests\n"}},
		{"__complete drain web a", []string{"a\t" + up.Listener.Addr().String() + " ready\n"}},
		{"weight web a 7 --etcdctl", []string{`etcdctl put /rota/policies/web '{"overrides":{"a":{"weight":7}}}'` + "\n"}},
		{"weight web a 7", []string{"done"}},
		{"weight web a 7 -o json", []string{`{"change":"weight","instance":"a","override":{"weight":7},"service":"web"}` + "\n"}},
		{"drain web a --etcdctl", []string{`etcdctl put /rota/policies/web '{"overrides":{"a":{"drain":true,"weight":7}}}'` + "\n"}},
		{"drain web a --force", []string{"done"}},
		{"drain web a --force -o json", []string{`{"change":"drain","instance":"a","override":{"drain":true},"service":"web"}` + "\n"}},
		{"undrain web a --etcdctl", []string{`etcdctl put /rota/policies/web '{"overrides":{"a":{"weight":7}}}'` + "\n"}},
		{"undrain web a -o json", []string{`{"change":"undrain","instance":"a","override":{"drain":false},"service":"web"}` + "\n"}},
		{"undrain web a", []string{"done"}},
		{"weight web a own --etcdctl", []string{"etcdctl del /rota/policies/web\n"}},
		{"events", []string{"registry", "in sync"}},
		{"services release web", []string{"given up: 0 suspects\n"}},
		{"orphans ls", []string{""}},
		{"status", []string{"connected, member " + fmt.Sprintf("%x", members.Members[0].ID)}},
		{"orphans ls --output json", []string{"[]\n"}},
		{"orphans drop", []string{"given up: 0 keys\n"}},
		{"services ls --etcdctl", []string{"etcdctl get --keys-only --prefix /rota/services/\n"}},
		{"instances get web b --etcdctl", []string{"etcdctl get /rota/services/web/b\n"}},
		{"instances watch web --etcdctl", []string{"etcdctl watch --prefix /rota/services/web/\n"}},
		{"routes ls --etcdctl", []string{"etcdctl get --prefix /rota/routes/\n"}},
	} {
		status, out, errs := command(t, strings.Fields(tc.list)...)
		if status != 0 || strings.Contains(out, "\x1b") || strings.Contains(tc.list, " json") && !json.Valid([]byte(out)) {
			t.Errorf("%s: %d %q %s", tc.list, status, out, errs)
		}
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s does not show %q:\n%s", tc.list, want, out)
			}
		}
	}
	for _, tc := range []struct {
		list   string
		status int
		want   string
	}{
		{"plan --route r1", exitFailed, "would break"},
		{"plan", exitUsage, "give one of"},
		{"plan -c a --route b", exitUsage, "give one of"},
		{"plan -c " + write(t, "broken.yaml", "rutes: []\n"), exitFailed, `did you mean "routes"`},
		{"drain web a", exitFailed, "would break"},
		{"routes rm r1", exitFailed, "--force"},
		{"routes rm r1 --limit 101", exitFailed, "from 0 to 100"},
		{"routes put r1 " + route + " --limit 101", exitFailed, "from 0 to 100"},
		{"policies rm web --limit 101", exitFailed, "from 0 to 100"},
		{"drain web a --limit 101", exitFailed, "from 0 to 100"},
		{"undrain web a --limit 101", exitFailed, "from 0 to 100"},
		{"weight web a 7 --limit 101", exitFailed, "from 0 to 100"},
		{"weight web a 7 --limit half", exitUsage, "--limit"},
		{"routes rm r1 --force", 0, ""},
		{"routes get r9", exitFailed, "no route r9 is known"},
		{"routes get broken", exitFailed, "route broken is set aside: "},
		{"routes get r9 --value", exitFailed, "r9"},
		{"instances get web nobody", exitFailed, "nobody"},
		{"why", exitUsage, "--request-id"},
		{"why --request-id nobody", exitFailed, "not remembered"},
		{"loglevel loud", exitFailed, "loud"},
		{"top nobody", exitFailed, "nobody"},
		{"top -n 1ms", exitUsage, "100ms"},
		{"why http://a.example.com/ --etcdctl", exitUsage, "there is no such line"},
		{"events --etcdctl", exitUsage, "there is no such line"},
		{"top --etcdctl", exitUsage, "there is no such line"},
		{"loglevel --etcdctl", exitUsage, "there is no such line"},
		{"healthcheck --etcdctl", exitUsage, "there is no such line"},
		{"config print --etcdctl", exitUsage, "there is no such line"},
		{"plan --route r1 --etcdctl", exitUsage, "there is no such line"},
		{"services release web --etcdctl", exitUsage, "there is no such line"},
		{"orphans drop --etcdctl", exitUsage, "there is no such line"},
	} {
		if tc.list == "plan --route r1" { // what is sampled has to be there first
			until(t, "a plan with requests", func() bool {
				get(t, address, "a.example.com", "/")
				status, _, _ := command(t, "plan", "--route", "r1")
				return status != 0
			})
		}
		if status, out, errs := command(t, strings.Fields(tc.list)...); status != tc.status || !strings.Contains(errs, tc.want) {
			t.Errorf("%s: %d %s%s", tc.list, status, out, errs)
		}
	}
	watch := spawn(t, "instances", "watch", "web")
	watch.find(`(added +web/a)`)
	put("/rota/services/web/d", "10.0.0.4:80")
	watch.find(`(added +web/d)`)
	if _, err := etcd.Client().Delete(t.Context(), "/rota/services/web/d"); err != nil {
		t.Fatal(err)
	}
	watch.find(`(gone +web/d)`)
	for i := range 20 { // there for a moment: between two looks, but not between two events
		key := fmt.Sprint("/rota/services/web/brief-", i)
		put(key, "10.0.0.5:80")
		until(t, key, func() bool {
			_, out, _ := command(t, "events")
			return strings.Contains(out, fmt.Sprint("web/brief-", i))
		})
		if _, err := etcd.Client().Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		watch.find(fmt.Sprintf(`(added +web/brief-%d )`, i))
		watch.find(fmt.Sprintf(`(gone +web/brief-%d )`, i))
	}
	watch.Process.Signal(os.Interrupt)
	if status := watch.exit(); status != 0 {
		t.Errorf("watch ended with %d", status)
	}
	routes := spawn(t, "routes", "watch")
	put("/rota/routes/r3", `{"path":"/three","service":"web"}`)
	routes.find(`(added +r3 \(etcd\) +/three +web)`)
	if _, err := etcd.Client().Delete(t.Context(), "/rota/routes/r3"); err != nil {
		t.Fatal(err)
	}
	routes.find(`(gone +r3)`)
	routes.Process.Signal(os.Interrupt)
	if status := routes.exit(); status != 0 {
		t.Errorf("watch ended with %d", status)
	}
	if status, _, errs := command(t, "services", "get", "nope"); status != exitFailed || !strings.Contains(errs, "nope") {
		t.Errorf("an unknown service: %d %s", status, errs)
	}
	c.Process.Signal(syscall.SIGTERM)
	if status := c.exit(); status != 0 {
		t.Errorf("exit %d", status)
	}
	if status, _, errs := command(t, "status"); status != exitFailed || !strings.Contains(errs, "no daemon answers at "+admin) {
		t.Errorf("no daemon: %d %s", status, errs)
	}
}

// What a configuration names is tried, and each thing that is not there is told.
func TestCheckProbe(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	cert, key, _ := keyPair(t, "one")
	_, other, _ := keyPair(t, "other")
	const text = `
etcd: {endpoints: [%q]}
listeners: [{address: ":8443", protocol: https, tls: {certificates: [{cert: %s, key: %s}], client_ca: %s}}]
services: {cart: {tls: {ca: %s}}}
admin: {token_file: %s}
`
	token := write(t, "token", "correct-horse-battery-staple")
	good := write(t, "good.yaml", fmt.Sprintf(text, etcd.Endpoints()[0], cert, key, cert, cert, token))
	if status, out, errs := command(t, "check", "--probe", good); status != 0 || !strings.Contains(out, "is for 127.0.0.1, until ") || !strings.Contains(out, "etcd: "+etcd.Endpoints()[0]+" can be read") {
		t.Errorf("all is there: %d %s%s", status, out, errs)
	}
	bad := write(t, "bad.yaml", fmt.Sprintf(text, freeAddr(t), cert, other, key, "/none.pem", "/none"))
	if status, _, _ := command(t, "check", bad); status != 0 {
		t.Errorf("without --probe files are looked at: %d", status)
	}
	status, _, errs := command(t, "check", "--probe", bad)
	for _, want := range []string{"listeners[0].tls.certificates[0]: tls:", "listeners[0].tls.client_ca: " + key + " holds no", "services.cart.tls.ca: open /none.pem", "admin.token_file: ", "etcd: "} {
		if status != exitFailed || !strings.Contains(errs, want) {
			t.Errorf("%d, and it does not say %s:\n%s", status, want, errs)
		}
	}
}

// etcdctl's flags stand above file and environment, and what belongs together is not mixed.
func TestEtcdFlags(t *testing.T) {
	etcd := etcdtest.Start(t)
	cli := etcd.Client()
	for _, user := range []string{"root", "rota"} {
		if _, err := cli.UserAdd(t.Context(), user, "secret"); err != nil {
			t.Fatal(err)
		}
		if _, err := cli.UserGrantRole(t.Context(), user, "root"); err != nil {
			t.Fatal(err)
		}
	}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	t.Cleanup(up.Close)
	if _, err := cli.Put(t.Context(), "/rota/services/web/a", up.Listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if _, err := cli.AuthEnable(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ETCDCTL_USER", "nobody:wrong")
	file := write(t, "rota.yaml", "etcd: {username: rota, password: wrong}\n")
	for _, who := range [][]string{{"--user", "rota:secret"}, {"--user", "rota", "--password", "secret"}} {
		c := spawn(t, append([]string{"serve", "-c", file, "--endpoints", etcd.Endpoints()[0], "--listen", "127.0.0.1:0", "--admin", "off", "--auto-routes"}, who...)...)
		address := c.find(listening)
		until(t, "routed", func() bool { status, _, _ := get(t, address, "web.localhost", "/"); return status == 200 })
		r := spawn(t, append([]string{"register", "--service", "more", "--address", up.Listener.Addr().String(), "--endpoints", etcd.Endpoints()[0]}, who...)...)
		until(t, "registered", func() bool { status, _, _ := get(t, address, "more.localhost", "/"); return status == 200 })
		r.Process.Signal(syscall.SIGTERM)
		r.exit()
	}
	e := etcdFlags{cacert: "ca", cert: "c", key: "k", insecureSkipVerify: true}
	c := config.Etcd{Cert: "old", Key: "old", Username: "u", PasswordFile: "f"}
	e.override(&c)
	if want := (config.Etcd{CACert: "ca", Cert: "c", Key: "k", InsecureSkipVerify: true, Username: "u", PasswordFile: "f"}); !reflect.DeepEqual(c, want) {
		t.Errorf("%+v", c)
	}
	var o registryetcd.Options
	if e.options(&o); o.CACert != "ca" || o.Cert != "c" || o.Key != "k" || !o.InsecureSkipVerify {
		t.Errorf("%+v", o)
	}
	for _, list := range [][]string{{"serve", "--cert", "c"}, {"register", "--service", "a", "--address", "127.0.0.1:1", "--key", "k"}, {"serve", "--password", "p"}} {
		if status, _, errs := command(t, list...); status != exitUsage {
			t.Errorf("%v: %d %s", list, status, errs)
		}
	}
}

// Text of others steers no terminal, and hides nothing.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain, ünïcode 漢字":                 "plain, ünïcode 漢字",
		"\x1b[2J\a\x7f\u0085\u009b":         "·[2J····",
		"a\u061cb":                          "a·b",
		"\u200b\u200c\u200d\u200e\u200f":    "·····",
		"\u202a\u202b\u202c\u202d\u202e":    "·····",
		"\u2066\u2067\u2068\u2069\u206a":    "·····",
		"line\u2028break\u2029and":          "line·break·and",
		"\ufeffmark\u00adhyphen\U000e0041t": "·mark·hyphen·t",
		"two\nlines\tand a tab":             "two·lines·and a tab",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q becomes %q, not %q", in, got, want)
		}
	}
}

// What a newcomer does: dev, curl, put, Ctrl-C.
func TestDev(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	c := spawn(t, "dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	address := "127.0.0.1:" + c.find(`balancer +http://localhost:(\d+)`)
	endpoint := c.find(`etcd +(127\.0\.0\.1:\d+)`)
	seen := map[string]bool{}
	until(t, "three instances in turn", func() bool {
		if status, body, _ := get(t, address, "hello.localhost", "/"); status == 200 {
			seen[strings.Fields(body)[2]] = true
		}
		return len(seen) == 3
	})
	if status, _, _ := get(t, address, "localhost", "/hello/"); status != 200 {
		t.Errorf("by path: %d", status)
	}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "mine") }))
	defer up.Close()
	etcd := etcdtest.NewClient(t, clientv3.Config{Endpoints: []string{endpoint}})
	if _, err := etcd.Put(t.Context(), "/rota/services/web/a", up.Listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	until(t, "routed", func() bool { status, _, _ := get(t, address, "web.localhost", "/"); return status == 200 })
	c.Process.Signal(os.Interrupt)
	if status := c.exit(); status != 0 {
		t.Errorf("exit %d: %s", status, c.out)
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, "rota-dev-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A configuration is begun, checked, printed and described by the verbs of config.
func TestConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rota.yaml")
	if status, out, errs := command(t, "config", "init", file); status != 0 || !strings.Contains(out, "rota check") {
		t.Fatalf("init: %d %s", status, errs)
	}
	if status, _, errs := command(t, "config", "init", file); status != exitFailed || !strings.Contains(errs, "--force") {
		t.Errorf("init again: %d %s", status, errs)
	}
	for _, list := range [][]string{{"config", "init", "--force", file}, {"check", file}} {
		if status, _, errs := command(t, list...); status != 0 {
			t.Errorf("%v: %d %s", list, status, errs)
		}
	}
	secret := write(t, "secret.yaml", "etcd: {username: u, password: canary}\n")
	if status, out, errs := command(t, "config", "print", secret); status != 0 || strings.Contains(out, "canary") || !strings.Contains(out, "password: (hidden)") {
		t.Errorf("print: %d %s%s", status, out, errs)
	}
	if status, out, _ := command(t, "config", "schema"); status != 0 || !strings.Contains(out, "$schema") {
		t.Errorf("schema: %d", status)
	}
	if status, out, _ := command(t, "version", "--json"); status != 0 || !strings.HasPrefix(out, `{"arch":`) {
		t.Errorf("version: %d %s", status, out)
	}
	if status, out, _ := command(t, "completion", "bash"); status != 0 || !strings.Contains(out, "__start_rota") {
		t.Errorf("completion: %d", status)
	}
}
