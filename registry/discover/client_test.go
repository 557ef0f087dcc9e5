package discover_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/rota-lb/rota/registry/discover"
)

// fast is a Client that does not wait.
func (r *rig) fast() *retryablehttp.Client {
	c := r.d.Client()
	c.RetryWaitMin, c.RetryWaitMax = time.Microsecond, time.Microsecond
	return c
}

// answering starts instances a, b, c that answer with a status; what they were asked is in the slice they share.
func (r *rig) answering(status ...int) *asked {
	list := new(asked)
	for i, s := range status {
		id := string(rune('a' + i))
		r.put(id, r.handle(func(w http.ResponseWriter, req *http.Request) {
			body, _ := io.ReadAll(req.Body)
			list.add(strings.TrimSpace(id + " " + req.Method + " " + string(body)))
			if s == 0 {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(s)
			fmt.Fprintf(w, "%s says %d", id, s)
		}))
	}
	r.until("all", func(v *discover.View) bool { return len(v.Members) == len(status) })
	return list
}

type asked struct {
	mu   sync.Mutex
	list []string
}

func (a *asked) add(s string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, s)
}

// distinct are how many requests there were, and at how many instances.
func (a *asked) distinct() (requests, instances int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := map[string]bool{}
	for _, s := range a.list {
		seen[s[:1]] = true
	}
	return len(a.list), len(seen)
}

func do(t *testing.T, c *retryablehttp.Client, method string, body any) (*http.Response, error) {
	t.Helper()
	req, err := retryablehttp.NewRequestWithContext(t.Context(), method, "http://cart/items", body)
	if err != nil {
		t.Fatal(err)
	}
	return c.Do(req)
}

// TestClientWalks has every instance fail: each is asked once, and the caller gets the last answer.
func TestClientWalks(t *testing.T) {
	for _, status := range []int{503, 502, 504} {
		r := start(t, discover.Options{})
		list := r.answering(status, status, status)
		resp, err := do(t, r.fast(), "GET", nil)
		if err != nil || resp.StatusCode != status {
			t.Fatalf("%v, %v", resp, err)
		}
		if got := r.body(resp, nil); !strings.HasSuffix(got, fmt.Sprintf("says %d", status)) {
			t.Errorf("%q", got)
		}
		if n, of := list.distinct(); n != 3 || of != 3 {
			t.Errorf("asked %v", list.list)
		}
		r.idle()
	}
}

// TestClientFinds has one of three be well: every caller finds it.
func TestClientFinds(t *testing.T) {
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		for _, status := range []int{503, 0} {
			r := start(t, discover.Options{})
			r.answering(status, 200, status)
			c := r.fast()
			for range 10 {
				resp, err := do(t, c, method, []byte("body"))
				if got := r.body(resp, err); got != "b says 200" {
					t.Errorf("%s, %d: %q", method, status, got)
				}
			}
			r.idle()
		}
	}
}

// TestClientOnce has what is not to be repeated asked for once.
func TestClientOnce(t *testing.T) {
	for _, c := range []struct {
		method string
		status int
	}{{"POST", 0}, {"POST", 503}, {"PATCH", 0}, {"GET", 500}, {"GET", 429}, {"GET", 404}} {
		r := start(t, discover.Options{})
		list := r.answering(c.status, c.status)
		resp, err := do(t, r.fast(), c.method, []byte("body"))
		switch {
		case c.status == 0:
			r.fails(resp, err, nil)
		case err != nil || resp.StatusCode != c.status:
			t.Errorf("%v: %v", c, err)
		default:
			resp.Body.Close()
		}
		if n, _ := list.distinct(); n != 1 {
			t.Errorf("%v: asked %v", c, list.list)
		}
		r.idle()
	}
}

// TestClientIdempotencyKey has a POST that says it may be repeated.
func TestClientIdempotencyKey(t *testing.T) {
	r := start(t, discover.Options{})
	list := r.answering(0, 0)
	req, _ := retryablehttp.NewRequestWithContext(t.Context(), "POST", "http://cart/", []byte("body"))
	req.Header.Set("Idempotency-Key", "17")
	resp, err := r.fast().Do(req)
	r.fails(resp, err, nil)
	if n, of := list.distinct(); n != 3 || of != 2 {
		t.Errorf("asked %v", list.list)
	}
}

// TestClientRefused has a POST that nobody takes, until one does: it was never sent before.
func TestClientRefused(t *testing.T) {
	r := start(t, discover.Options{})
	r.put("a", refusing)
	r.members("a")
	c := r.fast()
	waits := 0
	c.Backoff = func(time.Duration, time.Duration, int, *http.Response) time.Duration {
		if waits++; waits == 2 {
			r.put("b", r.handle(func(w http.ResponseWriter, req *http.Request) { io.Copy(w, req.Body) }))
			r.members("a b")
		}
		return 0
	}
	resp, err := do(t, c, "POST", []byte("hello"))
	if got := r.body(resp, err); got != "hello" || waits != 2 {
		t.Errorf("%q after %d waits", got, waits)
	}
}

// TestClientRedirect has a service redirect to itself: the one instance is asked again, and a later hop that fails does not
// have the POST before it repeated.
func TestClientRedirect(t *testing.T) {
	r := start(t, discover.Options{})
	posts := new(asked)
	r.put("a", r.handle(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/items":
			posts.add("a")
			http.Redirect(w, req, "/there", http.StatusSeeOther)
		case "/there":
			http.Redirect(w, req, "http://stock/", http.StatusFound)
		}
	}))
	r.store.Put("/rota/services/stock/a", []byte(refusing))
	r.members("a")
	for v := r.d.View("stock"); ids(v) != "a"; v = r.d.View("stock") {
		<-v.Changed()
	}
	resp, err := do(t, r.fast(), "POST", []byte("hello"))
	if text := r.fails(resp, err, nil); !strings.Contains(text, `service "stock"`) {
		t.Error(text)
	}
	if n, _ := posts.distinct(); n != 1 {
		t.Errorf("%d POSTs", n)
	}
	r.idle()
}

// TestClientBudget has a service that fails throughout: the repetitions are bounded.
func TestClientBudget(t *testing.T) {
	r := start(t, discover.Options{})
	list := r.answering(503, 503)
	c := r.fast()
	const n = 200
	for range n {
		resp, err := do(t, c, "GET", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	if all, _ := list.distinct(); all < n+n/10 || all > n+n/5+30 {
		t.Errorf("%d requests became %d", n, all)
	}
}

// TestClientNoInstance does not wait for what is not there.
func TestClientNoInstance(t *testing.T) {
	r := start(t, discover.Options{})
	c := r.d.Client()
	c.Backoff = func(time.Duration, time.Duration, int, *http.Response) time.Duration {
		t.Error("waits")
		return 0
	}
	resp, err := do(t, c, "GET", nil)
	r.fails(resp, err, discover.ErrNoInstance)
}

// TestClientKeepsConnections has a request fail: the idle connections of others stay open, which retryablehttp would close.
func TestClientKeepsConnections(t *testing.T) {
	r := start(t, discover.Options{})
	seen := new(asked)
	r.put("a", r.handle(func(_ http.ResponseWriter, req *http.Request) { seen.add(req.RemoteAddr) }))
	r.members("a")
	r.body(do(t, r.fast(), "GET", nil))
	req, _ := retryablehttp.NewRequestWithContext(t.Context(), "GET", "http://nobody/", nil)
	resp, err := r.fast().Do(req)
	r.fails(resp, err, discover.ErrNoInstance)
	r.body(do(t, r.fast(), "GET", nil))
	if len(seen.list) != 2 || seen.list[0] != seen.list[1] {
		t.Errorf("connections %v", seen.list)
	}
}
