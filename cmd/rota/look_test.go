//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/rota-lb/rota/internal/etcdtest"
)

const lookConfig = `
etcd: {endpoints: ["%s"]}
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
log: {access: "off"}
auto_routes: true
routes:
  - {name: page, host: file.example.com, path: /page, service: checked, timeout: 7s}
  - {name: late, host: file.example.com, path: /page, service: checked}
services:
  checked:
    check: {path: /healthz, interval: 100ms, fall: 1}
    instances: [{address: "%s"}, {address: "%s"}]
  flaky:
    ejection: {failures: 2, time: 1m}
    instances: [{address: "%[2]s"}, {address: "%[4]s"}, {address: "%[3]s"}]
  web:
    slow_start: 10m
    instances: [{address: "%[3]s"}]
`

// What the daemon has is what is shown of it: routes of each source, and what became of instances.
func TestLook(t *testing.T) {
	backend := func(serve http.HandlerFunc) string {
		up := httptest.NewServer(serve)
		t.Cleanup(up.Close)
		return up.Listener.Addr().String()
	}
	good := backend(func(http.ResponseWriter, *http.Request) {})
	unwell := backend(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			w.WriteHeader(500)
		}
	})
	failing := backend(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	etcd := etcdtest.Start(t)
	lease, err := etcd.Client().Grant(t.Context(), 600)
	if err != nil {
		t.Fatal(err)
	}
	put := func(key, value string, opts ...clientv3.OpOption) {
		t.Helper()
		if _, err := etcd.Client().Put(t.Context(), "/rota/"+key, value, opts...); err != nil {
			t.Fatal(err)
		}
	}
	c := spawn(t, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(lookConfig, etcd.Endpoints()[0], good, unwell, failing)))
	address, admin := c.find(listening), c.find(adminURL)
	until(t, "ready", func() bool { status, _, _ := get(t, admin, admin, "/readyz"); return status == 200 })
	put("grants/web", `{"claims": [{"host": "claim.example.com"}]}`)
	put("services/web/a", `{"address": "`+good+`", "claims": [{"host": "claim.example.com", "path": "/c"}]}`, clientv3.WithLease(lease.ID))
	put("routes/page", `{"host": "etcd.example.com",
		"service": "web"}`)
	t.Setenv("ROTA_ADMIN_ADDRESS", admin)
	until(t, "an ejection", func() bool {
		get(t, address, "flaky.localhost", "/")
		_, out, _ := command(t, "instances", "get", "flaky", failing)
		return strings.Contains(out, "ejected")
	})
	const date = `\d{4}-\d\d-\d\d \d\d:\d\d:\d\d, `
	for list, want := range map[string]string{
		"routes get page": `^route +page \(etcd\), revision \d+\nhost +etcd\.example\.com\npath +\*\nservice +web\npriority +0\nvalue +\{"host":"etcd\.example\.com","service":"web"\}\n` +
			`route +page \(file\)\nhost +file\.example\.com\npath +/page\nservice +checked\npriority +0\ntimeout +7s\n$`,
		"routes get page -o json":                  `^\[(?s:.*)"source": "etcd"(?s:.*)"revision": \d+,\n +"value": \{\n +"host": "etcd\.example\.com"`,
		"routes get late":                          `\nnote +never matches: page \(file\) is older\n`,
		"routes get claim:web:claim.example.com/c": `^route +claim:web:claim\.example\.com/c \(claim\), revision \d+\n`,
		"__complete routes get p":                  `\npage\tetcd etcd\.example\.com\npage\tfile file\.example\.com/page\nlate\tfile `,
		"__complete routes get c":                  `^claim:web:claim\.example\.com/c\tclaim claim\.example\.com/c\n`,
		"__complete routes put p":                  `^page\tetcd etcd\.example\.com\n:4\n`,
		"__complete routes rm p":                   `^page\tetcd etcd\.example\.com\n:4\n`,
		"__complete plan --route p":                `^page\tetcd etcd\.example\.com\n:4\n`,
		"__complete plan --policy c":               `^checked\t1 of 2 can take requests\n`,
		"instances get checked " + good:            `\nlast check +passed; after [0-9.]+ .?s, at ` + date + `[0-9ms]+ ago\n`,
		"instances get checked " + unwell:          `\nsince +` + date + `[0-9ms]+ ago\nlast check +failed: \S.*; after [0-9.]+ .?s, at ` + date,
		"instances get flaky " + failing:           `\nstate +ejected: .*\nsince +` + date + `[0-9ms]+ ago\nuntil +` + date + `in [0-9ms]+\n`,
		"instances get web a":                      `\nslow start +weight \d+ by now, all of it at ` + date + `in (9m\d+s|10m0s)\n(?s:.*)\nkey +/rota/services/web/a at revision \d+, lease [0-9a-f]+, which runs for another \d+s\n`,
		"instances get web a -o json":              `"lease_left": \d`,
	} {
		like, shown := regexp.MustCompile(want), ""
		for deadline := time.Now().Add(20 * time.Second); !like.MatchString(shown); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("%s is not like %s:\n%s", list, want, shown)
				break
			}
			_, shown, _ = command(t, strings.Fields(list)...)
		}
	}
}

// crowded starts a daemon with one more route that cannot match than are listed, and then some; its one service has a long name.
func crowded(t *testing.T) (admin string) {
	t.Helper()
	var text strings.Builder
	text.WriteString("etcd: {disabled: true}\nlisteners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"127.0.0.1:0\"}\nlog: {access: \"off\"}\n")
	fmt.Fprintf(&text, "services: {%s: {instances: [{address: %q}]}}\nroutes:\n", longName, answering(t))
	for i := range 207 {
		fmt.Fprintf(&text, "  - {name: r%d, path: /only/%d, service: %s}\n", i, i, longName)
	}
	c := spawn(t, "serve", "-c", write(t, "rota.yaml", text.String()))
	admin = c.find(adminURL)
	until(t, "ready", func() bool { status, _, _ := get(t, admin, admin, "/readyz"); return status == 200 })
	return admin
}

var longName = strings.Repeat("service-", 7)[:55]

// A list of losers that is cut says so.
func TestWhyMany(t *testing.T) {
	t.Parallel()
	admin := crowded(t)
	for _, tc := range []struct{ path, flag, want string }{
		{"/nowhere", "--output=table", "\tand 202 more: --all\n"},
		{"/nowhere", "--all", "\tand 7 more, which the daemon does not list\n"},
		{"/nowhere", "--output=json", `"losers_unlisted": 7,`},
		{"/only/206", "--all", "\tand 6 more, which the daemon does not list\n"},
	} {
		status, out, errs := command(t, "why", "--admin", admin, tc.flag, "http://a"+tc.path)
		if want := strings.ReplaceAll(tc.want, "\t", "  "); status != 0 || !strings.Contains(out, want) || tc.flag == "--output=json" && !json.Valid([]byte(out)) {
			t.Errorf("%s %s: %d, not %q:\n%s%s", tc.flag, tc.path, status, want, out, errs)
		}
	}
}

// A daemon that is busy for a moment is asked again; one that is not there is told of soon.
func TestAskAgain(t *testing.T) {
	t.Parallel()
	daemon := &url.URL{Scheme: "http", Host: crowded(t)}
	var refuse, asked atomic.Int64
	to := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(daemon) }}
	busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) <= refuse.Load() {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		to.ServeHTTP(w, r)
	}))
	t.Cleanup(busy.Close)
	for _, tc := range []struct {
		refuse, asked int64
		status        int
		out, errs     string
	}{
		{2, 3, exitOK, "state      ready\n", ""},
		{3, 3, exitFailed, "", "rota: 503 Service Unavailable\n"},
	} {
		refuse.Store(tc.refuse)
		asked.Store(0)
		status, out, errs := command(t, "status", "--admin", busy.Listener.Addr().String())
		if status != tc.status || !strings.HasPrefix(out, tc.out) || errs != tc.errs || asked.Load() != tc.asked {
			t.Errorf("busy %d times: %d after %d, %s%s", tc.refuse, status, asked.Load(), out, errs)
		}
	}
	nowhere, began := freeAddr(t), time.Now()
	status, out, errs := command(t, "status", "--admin", nowhere)
	if want := "rota: no daemon answers at " + nowhere + ": is it running? "; status != exitFailed || out != "" || !strings.HasPrefix(errs, want) ||
		!strings.Contains(errs, "connection refused") || strings.Count(errs, "\n") != 1 || time.Since(began) > 3*time.Second {
		t.Errorf("nobody there: %d after %s, %s%s", status, time.Since(began), out, errs)
	}
}

// onTerminal runs a command line on a terminal, and returns what is written to it.
func onTerminal(t *testing.T, columns, rows uint16, list ...string) string {
	t.Helper()
	host, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if err := unix.IoctlSetPointerInt(int(host.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetUint32(int(host.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(filepath.Join("/dev/pts", fmt.Sprint(n)), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	shown := make(chan string)
	go func() {
		text, _ := io.ReadAll(host) // it ends with EIO when the other side is closed
		shown <- strings.ReplaceAll(string(text), "\r\n", "\n")
	}()
	err = unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	status := run(list, terminal, t.Output())
	terminal.Close()
	text := <-shown
	if err != nil || status != 0 {
		t.Errorf("%v: %d %v %s", list, status, err, text)
	}
	return text
}

// On a terminal tables have colours, but for NO_COLOR, and fit.
func TestTerminal(t *testing.T) {
	t.Setenv("ROTA_ADMIN_ADDRESS", crowded(t))
	t.Setenv("TERM", "xterm")
	t.Setenv("COLUMNS", "")
	painted := regexp.MustCompile("\x1b\\[[0-9]+m")
	for _, list := range []string{"status", "services ls", "instances ls", "routes ls", "events"} {
		t.Setenv("NO_COLOR", "")
		colours := onTerminal(t, 80, 24, strings.Fields(list)...)
		if !painted.MatchString(colours) {
			t.Errorf("%s has no colours: %.200q", list, colours)
		}
		t.Setenv("NO_COLOR", "1")
		if plain := onTerminal(t, 80, 24, strings.Fields(list)...); strings.Contains(plain, "\x1b") || list != "status" && plain != painted.ReplaceAllString(colours, "") {
			t.Errorf("%s with NO_COLOR: %.200q", list, plain)
		}
	}
	for list, want := range map[string]string{
		"top --rounds 1":               `^SERVICE +REQUESTS +ERRORS +IN .*\nall +0 .*\n` + longName + ` +0 .*…\n$`,
		"top --rounds 1 " + longName:   `^INSTANCE +REQUESTS +ERRORS +IN FLIGHT +P50 +P95 +P99 +ADDRESS\nall +0 .*\n127\.0\.0\.1:\d+ +0 +.* 127\.0\.0\.1:\d+\n$`,
		"top --rounds 2 --interval 1s": `\x1b\[H\x1b\[2JSERVICE +REQUESTS/S .*\nall +0\.0 `,
	} {
		frame := strings.TrimPrefix(onTerminal(t, 80, 24, strings.Fields(list)...), "\x1b[H\x1b[2J")
		if !regexp.MustCompile(want).MatchString(frame) {
			t.Errorf("%s is not like %s:\n%q", list, want, frame)
		}
		for line := range strings.Lines(frame) {
			if line = strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "\x1b[H\x1b[2J"); utf8.RuneCountInString(line) > 80 {
				t.Errorf("%s does not fit: %q", list, line)
			}
		}
	}
}

// A file is planned as the daemon would read it: with its environment and flags above it, not those of who asks.
func TestPlanOverrides(t *testing.T) {
	file := fmt.Sprintf("etcd: {disabled: true}\nlisteners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"127.0.0.1:0\"}\nservices: {web: {instances: [{address: %q}]}}\n", answering(t))
	cmd := exec.Command(os.Args[0], "serve", "-c", write(t, "rota.yaml", file), "--access-log", "off")
	cmd.Env = []string{"ROTA_GRACE=5s", "ROTA_AUTO_ROUTES=true"}
	c := launch(t, cmd)
	address, admin := c.find(listening), c.find(adminURL)
	t.Setenv("ROTA_ADMIN_ADDRESS", admin)
	t.Setenv("ROTA_GRACE", "7s")
	t.Setenv("ROTA_TIMEOUTS_CONNECT", "a while") // of no concern to the daemon
	for more, want := range map[string]string{
		"":                                `^nothing would be different\n\n[1-9].* matched again\nall of them would go where they go now\n$`,
		"grace: 9s\nauto_routes: false\n": `^nothing would be different\n`,
		"timeouts: {connect: 3s}\n":       `^~ timeouts\.connect: 1s > 3s\n\n`,
	} {
		like, shown, status := regexp.MustCompile(want), "", 0
		for deadline := time.Now().Add(10 * time.Second); !like.MatchString(shown) && time.Now().Before(deadline); {
			get(t, address, "web.localhost", "/") // one in a hundredth of a second is remembered
			status, shown, _ = command(t, "plan", "-c", write(t, "new.yaml", file+more))
		}
		if status != 0 || !like.MatchString(shown) {
			t.Errorf("%q: %d, not like %s:\n%s", more, status, want, shown)
		}
	}
	if status, _, errs := command(t, "plan", "-c", write(t, "broken.yaml", "rutes: []\n")); status != exitFailed || !strings.Contains(errs, "broken.yaml:1:1: ") {
		t.Errorf("a broken file: %d %s", status, errs)
	}
}
