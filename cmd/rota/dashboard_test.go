//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/internal/etcdtest"
)

// browser is a Chromium that is driven.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu   sync.Mutex
	said []string // what the console had to complain about
}

func newBrowser(t *testing.T, lasts time.Duration) *browser {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("chromium is not there: apt install chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.WindowSize(1280, 800),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("force-color-profile", "srgb"))
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, stop = chromedp.NewContext(ctx, chromedp.WithErrorf(func(string, ...any) {}))
	t.Cleanup(stop)
	ctx, stop = context.WithTimeout(ctx, lasts)
	t.Cleanup(stop)
	b := &browser{t: t, ctx: ctx}
	chromedp.ListenTarget(ctx, func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := ev.(type) {
		case *runtime.EventExceptionThrown:
			b.said = append(b.said, e.ExceptionDetails.Error())
		case *cdplog.EventEntryAdded:
			if e.Entry.Source == cdplog.SourceSecurity || strings.Contains(e.Entry.Text, "Content Security Policy") {
				b.said = append(b.said, e.Entry.Text)
			}
		}
	})
	b.do(cdplog.Enable(), chromedp.Navigate("about:blank"))
	return b
}

func (b *browser) do(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// eval evaluates an expression of the page.
func (b *browser) eval(expr string) (v any) {
	b.t.Helper()
	b.do(chromedp.Evaluate(expr, &v))
	return v
}

// until waits until the text of the page matches.
func (b *browser) until(pattern string) {
	b.t.Helper()
	re := regexp.MustCompile(pattern)
	var text string
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b.do(chromedp.Evaluate("document.body.innerText", &text))
		if re.MatchString(text) {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("the page never shows %s:\n%s", pattern, text)
		}
	}
}

// click clicks on the button with a text.
func (b *browser) click(text string) {
	b.t.Helper()
	for try := 1; ; try++ {
		err := chromedp.Run(b.ctx, chromedp.Click(fmt.Sprintf(`//button[normalize-space(.)=%q]`, text), chromedp.BySearch))
		if err == nil {
			return
		}
		if try == 20 || !strings.Contains(err.Error(), "-32000") { // it was drawn anew after it was found
			b.t.Fatal(err)
		}
	}
}

func TestDashboard(t *testing.T) {
	t.Parallel()
	b := newBrowser(t, 3*time.Minute)
	etcd := etcdtest.Start(t)
	serve := func(list ...string) (c *child, address, admin string) {
		c = spawn(t, append([]string{"serve", "--endpoints", etcd.Endpoints()[0], "--listen", "127.0.0.1:0", "--auto-routes"}, list...)...)
		address = c.find(listening)
		return c, address, c.find(`"admin API","url":"http://([^"]+)"`)
	}
	daemon, address, admin := serve("--admin", "127.0.0.1:0")
	b.do(emulation.SetDeviceMetricsOverride(1280, 800, 1, false), chromedp.Navigate("http://"+admin+"/"))
	page := func(hash string) { b.eval(fmt.Sprintf("location.hash = %q", hash)) }

	// Nothing is there yet.
	b.until("No service is known")
	b.until("etcd in reach")

	// A busy service; a record that tries everything.
	cli := etcd.Client()
	register := func(service, id, value string) clientv3.LeaseID {
		t.Helper()
		lease, err := cli.Grant(t.Context(), 600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cli.Put(t.Context(), "/rota/services/"+service+"/"+id, value, clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
		return lease.ID
	}
	var leases []clientv3.LeaseID
	for i := range 8 {
		up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if i == 3 && time.Now().UnixNano()%9 == 0 {
				http.Error(w, "no", http.StatusInternalServerError)
			}
		}))
		t.Cleanup(up.Close)
		value, err := json.Marshal(map[string]any{
			"address": up.Listener.Addr().String(), "version": "1.4." + fmt.Sprint(i%2), "zone": []string{"eu-1", "eu-2"}[i%2], "incarnation": fmt.Sprint("i", i),
		})
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, register("cart", fmt.Sprintf("cart-%d", i), string(value)))
	}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	t.Cleanup(up.Close)
	const evil = `<img src=x onerror=window.hacked=1><script>window.hacked=1</script>`
	hostile, err := json.Marshal(map[string]any{
		"address": up.Listener.Addr().String(), "version": evil, "zone": "eu", "metadata": map[string]string{evil: evil}, "incarnation": "i",
	})
	if err != nil {
		t.Fatal(err)
	}
	register("users", "evil", string(hostile))
	register("users", "odd", `{"address":"127.0.0.1:2","zone":"a\u202eb\u0007c"}`)
	register("users", "gone", `{"address":"127.0.0.1:1","state":"draining"}`)
	loaded, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	for i := range 4 {
		go func() {
			for loaded.Err() == nil {
				req, _ := http.NewRequestWithContext(loaded, "GET", "http://"+address+"/x", nil)
				req.Host = []string{"cart.localhost", "cart.localhost", "cart.localhost", "users.localhost"}[i]
				if resp, err := http.DefaultClient.Do(req); err == nil {
					resp.Body.Close()
				}
				time.Sleep(5 * time.Millisecond) // the pace of a client
			}
		}()
	}
	b.until(`cart\s+8 of 8\s+[\d,]+\s`)
	b.until(`users\s+1 of 2`)
	if got := b.eval(`document.querySelector("main td").textContent`); got != "cart" {
		t.Errorf("the first service is %v", got)
	}
	b.do(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}))
	if got := b.eval(`getComputedStyle(document.body).backgroundColor`); got != "rgb(17, 21, 27)" {
		t.Errorf("in the dark the page is %v", got)
	}
	b.do(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "light"}}))

	page("#/services/users")
	b.until(`eu\s+` + regexp.QuoteMeta(evil))
	b.until(`Set aside: /rota/services/users/odd invalid zone`)
	if strings.ContainsAny(fmt.Sprint(b.eval("document.body.innerText")), "\u202e\u0007") {
		t.Error("control characters are shown as they are")
	}
	b.click("evil")
	b.until(regexp.QuoteMeta(evil + ": " + evil))
	b.until(`Lease\s+\S+, \d+ s left`)
	if got := b.eval("window.hacked === undefined && document.querySelectorAll('main img, main script, dialog img, dialog script').length === 0"); got != true {
		t.Error("a record ran as script")
	}

	// A row that is pressed while figures come is still there to be clicked.
	page("#/services/cart")
	b.until(`cart-7`)
	b.eval(`(() => { window.held = [...document.querySelectorAll("main td button")].find((e) => e.textContent === "cart-5"); held.dispatchEvent(new PointerEvent("pointerdown", { bubbles: true })); performance.clearResourceTimings() })()`)
	until(t, "two looks", func() bool {
		return b.eval(`performance.getEntriesByType("resource").filter((e) => e.name.includes("stats?")).length`).(float64) >= 2
	})
	if b.eval(`held.isConnected`) != true {
		t.Error("a row is drawn anew under the pointer")
	}
	b.eval(`dispatchEvent(new PointerEvent("pointerup"))`)
	until(t, "rows drawn anew", func() bool { return b.eval(`held.isConnected`) == false })

	// A drain, through the dialog, with the words for elsewhere.
	b.until(`cart-7`)
	b.until(`cart-7\s+127\S+\s+● ready[^\n]*\s+registered\s+100\s[^●]*\s\d+ s\s`) // what is left of the lease, too
	if v := b.eval(`[...document.querySelectorAll("main .grid, .plot-body")].filter((e) => e.scrollWidth > e.clientWidth).length`); v != float64(0) {
		t.Error("at 1,280 points something has to be scrolled to the side")
	}
	if v := b.eval(`Math.max(...[...document.querySelectorAll(".plot")].map((p) => p.getBoundingClientRect().right - p.querySelector(".u-over").getBoundingClientRect().right))`); v.(float64) > 20 {
		t.Errorf("a plot ends %v before its card does", v)
	}
	b.click("cart-2")
	b.click("Drain…")
	b.until(`curl -X PATCH .*\{"drain":true\}`)
	b.eval(`Object.defineProperty(window, "isSecureContext", {value: false}), addEventListener("copy", () => window.copied = document.activeElement.value)`)
	b.click("Copy as etcdctl")
	b.until(`copied`)
	if got := b.eval("window.copied"); got != `etcdctl put /rota/policies/cart '{"overrides":{"cart-2":{"drain":true}}}'` {
		t.Errorf("without navigator.clipboard this is copied: %v", got)
	}
	b.click("Do it")
	b.until(`cart-2\s+127\S+\s+◐ draining`)
	page("#/events")
	b.until(`instance\s+cart / cart-2\s+◐ draining`)
	b.until(`operator\s+cart / cart-2\s+drained, by 127`)

	// Where a request would go.
	page("#/routes")
	b.do(chromedp.SetValue(`input[aria-label="URL"]`, "http://cart.localhost/cart/7", chromedp.ByQuery))
	b.click("Where would it go?")
	b.until(`cart-2.*no\s+0\s+◐ draining`)
	b.until(`cart-1.*✓ yes`)
	b.until(`Policy\s+\S+, revision \d+\n`)
	if _, err := cli.Put(t.Context(), "/rota/routes/shop", `{"host":"shop.localhost","service":"users"}`); err != nil {
		t.Fatal(err)
	}
	b.until(`shop\s+etcd`)
	b.do(chromedp.SetValue(`input[aria-label="URL"]`, "http://shop.localhost/", chromedp.ByQuery))
	b.click("Where would it go?")
	b.until(`Route\s+shop \(etcd\), revision \d+\s+Service\s+users\s+Policy\s+\w+\s+Answer`) // that policy has no key
	page("#/config")
	b.until(`auto_routes: true`)

	// The keyboard.
	b.do(chromedp.KeyEvent("g"), chromedp.KeyEvent("o"))
	b.until(`Requests a second`)
	for i := range 10 { // each asks at once, and makes no point of its own
		page([]string{"#/", "#/services/users"}[i%2])
		b.until([]string{`Services\s`, `Services / users`}[i%2])
	}
	b.do(chromedp.KeyEvent("t"))
	page("#/") // what was chosen there holds here
	b.until(`Time\s+requests/s`)
	if got := b.eval(`(() => { const at = [...document.querySelectorAll(".plot")][0].querySelectorAll("tbody td:first-child"); return at.length > 1 && new Set([...at].map((e) => e.textContent)).size === at.length })()`); got != true {
		t.Error("there are two points of one second")
	}
	if got := b.eval(`document.querySelectorAll(".plot canvas").length`); got != float64(4) {
		t.Errorf("%v plots stay beside their tables", got)
	}
	b.do(chromedp.KeyEvent("t"))
	b.click("Table")
	if got := b.eval(`document.querySelectorAll(".plot .figures:not([hidden])").length`); got != float64(1) {
		t.Errorf("the button of a plot opens %v tables", got)
	}
	b.eval(`(() => { const over = document.querySelectorAll(".plot .u-over")[2], at = over.getBoundingClientRect(); over.dispatchEvent(new MouseEvent("mousemove", { bubbles: true, clientX: at.right - 3, clientY: at.top + 9 })) })()`)
	until(t, "values where the pointer is", func() bool {
		return strings.Count(fmt.Sprint(b.eval(`document.querySelectorAll(".plot .span")[2].textContent`)), "s") >= 3
	})
	b.do(chromedp.KeyEvent("t"), chromedp.KeyEvent("?"))
	b.until(`tables under the plots`)
	b.do(chromedp.KeyEvent("\x1b"))

	// All leases of a service are lost.
	for _, id := range leases {
		if _, err := cli.Revoke(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	b.until(`Brake: cart has lost \d of \d records at once`)
	b.click("Release…")
	b.until(`curl -X POST 'http://\S+/api/v1/services/cart/release'`)
	b.click("Do it")
	b.until(`cart released|released, by 127|given up`)
	b.until(`Brake\s+not engaged`)

	// Many services lose one record each: nobody has to release that brake, and it ends with the suspects.
	var alone []*httptest.Server
	leases = nil
	for i := range 4 {
		up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
		t.Cleanup(up.Close)
		alone = append(alone, up)
		leases = append(leases, register(fmt.Sprint("alone-", i), "a", fmt.Sprintf(`{"address":%q}`, up.Listener.Addr())))
	}
	b.until(`alone-3\s+1 of 1`)
	for _, id := range leases {
		if _, err := cli.Revoke(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	b.until(`Brake: all services together have lost \d of \d records at once, \d+ s ago\. Who answers serves on\.\s`)
	b.until(`Brake\s+all services: \d of \d lost`)
	if got := b.eval(`[...document.querySelectorAll("button")].filter((e) => e.textContent === "Release…").length + [...document.querySelectorAll("a")].filter((e) => e.textContent === "").length`); got != float64(0) {
		t.Errorf("%v buttons or links are there for a brake that is no service's", got)
	}
	for _, up := range alone {
		up.Close()
	}
	b.until(`Brake\s+not engaged`)

	// etcd goes, and another one comes: what it does not have stays in use, and is told.
	etcd.Stop()
	b.until(`etcd is out of reach\. Requests are served by the last table`)
	etcd.Wipe()
	etcd.Restart()
	b.until(`etcd in reach`)
	b.until(`Orphans are in use, though etcd, another store than before, does not have them: /rota/policies/cart, /rota/routes/shop\. Write them anew, or: rota orphans drop`)
	b.until(`Orphans\s+2 keys`)

	// The daemon goes, and another one comes.
	daemon.Process.Signal(syscall.SIGKILL)
	b.until(`The daemon does not answer`)
	if b.eval("document.body.classList.contains('stale')") != true {
		t.Error("old figures look like new ones")
	}
	serve("--admin", admin)
	until(t, "figures that look new", func() bool { return b.eval("document.body.classList.contains('stale')") == false })
	b.until(`etcd in reach`)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.said {
		t.Errorf("the console says: %s", s)
	}
}

// A daemon with a token asks for it; with thousands of instances its page is there at once.
func TestDashboardLarge(t *testing.T) {
	b := newBrowser(t, 3*time.Minute)
	const token = "correct-horse-battery-staple"
	var text strings.Builder
	text.WriteString("etcd: {disabled: true}\nlisteners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"127.0.0.1:0\", token: " + token + "}\nlog: {access: \"off\"}\nauto_routes: true\nservices:\n  many:\n    instances:\n")
	for i := range 5000 {
		fmt.Fprintf(&text, "      - {address: \"127.1.%d.%d:80\"}\n", i/250, i%250+1)
	}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	t.Cleanup(up.Close)
	for i := range 20 {
		fmt.Fprintf(&text, "  some-%d: {instances: [{address: %q}]}\n", i, up.Listener.Addr())
	}
	c := spawn(t, "serve", "-c", write(t, "rota.yaml", text.String()))
	address, admin := c.find(listening), c.find(`"admin API","url":"http://([^"]+)"`)
	for i := range 100 {
		resp, err := http.Get(fmt.Sprintf("http://%s/some-%d/", address, i%10))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	b.do(chromedp.Navigate("http://" + admin + "/#/services/many"))
	b.until("asks for a token")
	until(t, "the dialog is closed", func() bool { // a look that was under way may have opened it once more
		b.do(chromedp.KeyEvent(kb.Escape))
		return b.eval(`document.querySelector("dialog") === null`) == true
	})
	b.until("Nothing is shown without a token")
	b.click("Give it…")
	b.until("asks for a token")
	b.do(chromedp.SendKeys(`input[type="password"]`, "wrong", chromedp.ByQuery))
	b.click("Show")
	b.until("That was not the token")
	b.do(chromedp.SetValue(`input[type="password"]`, token, chromedp.ByQuery))
	b.click("Show")
	b.until("5000 of 5000")
	if b.eval(`sessionStorage.length + localStorage.length`) != float64(1) || strings.Contains(fmt.Sprint(b.eval(`JSON.stringify(localStorage)`)), token) {
		t.Error("the token is kept elsewhere than in the tab")
	}
	took := time.Hour
	for try := 0; try < 3 && took > 2*time.Second; try++ { // others use the machine, too
		began := time.Now()
		b.do(chromedp.Reload())
		b.until("5000 of 5000")
		took = min(took, time.Since(began))
	}
	if took > 2*time.Second {
		t.Errorf("5,000 instances took %v", took)
	}
	if rows := b.eval(`document.querySelectorAll("main tbody tr").length`).(float64); rows > 100 {
		t.Errorf("%v rows are there", rows)
	}
	b.eval(`document.querySelector("main .grid").scrollTop = 1e9`)
	b.until(`127\.1\.9\.9:80`) // the last by name
	b.do(chromedp.SendKeys(`input.filter`, "127.1.7.77:", chromedp.ByQuery))
	b.until(`127\.1\.7\.77:80`)
	if rows := b.eval(`document.querySelectorAll("main .grid tbody tr").length`).(float64); rows != 1 {
		t.Errorf("%v rows match", rows)
	}

	// The overview asks for little, however many instances there are.
	b.eval(`location.hash = "#/"`)
	b.until(`many\s+5000 of 5000`)
	b.eval(`performance.clearResourceTimings(), window.clearedAt = performance.now()`) // what the page before asked for may end later
	var asked struct {
		Looks int
		Bytes float64
		Paths []string
	}
	until(t, "three looks", func() bool {
		b.do(chromedp.Evaluate(`(() => { const list = performance.getEntriesByType("resource").filter((e) => e.startTime > clearedAt && e.responseEnd > 0);
			return { looks: list.filter((e) => e.name.endsWith("/stats")).length, bytes: list.reduce((n, e) => n + e.encodedBodySize, 0), paths: [...new Set(list.map((e) => new URL(e.name).pathname))].sort() } })()`, &asked))
		return asked.Looks >= 3
	})
	if per := asked.Bytes / float64(asked.Looks); per > 64<<10 || strings.Join(asked.Paths, " ") != "/api/v1/stats /api/v1/status" {
		t.Errorf("a look takes %.0f bytes of %v", per, asked.Paths)
	} else {
		t.Logf("a look takes %.0f bytes", per)
	}
}

// Whatever is shown is set as text.
func TestDashboardSources(t *testing.T) {
	files, err := filepath.Glob("../../balancer/internal/admin/dashboard/src/*.ts")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if at := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|new Function|srcdoc`).Find(text); at != nil {
			t.Errorf("%s: %s", f, at)
		}
	}
}
