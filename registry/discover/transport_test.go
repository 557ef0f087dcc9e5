package discover_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/discover"
)

// recorder is a base that notes where requests go.
type recorder struct {
	http.RoundTripper
	mu   sync.Mutex
	asks []string
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.asks = append(r.asks, req.URL.Host)
	r.mu.Unlock()
	return r.RoundTripper.RoundTrip(req)
}

func (r *recorder) asked(address string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.asks {
		if a == address {
			n++
		}
	}
	return n
}

func newRecorder(t *testing.T) *recorder {
	base := &http.Transport{}
	t.Cleanup(base.CloseIdleConnections)
	return &recorder{RoundTripper: base}
}

// TestRequest looks at what an instance gets, and at what the caller keeps.
func TestRequest(t *testing.T) {
	r := start(t, discover.Options{})
	address := r.handle(func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprintf(w, "%s %s %s", req.Method, req.Host, req.RequestURI)
	})
	r.put("a", address)
	r.members("a")
	for url, host := range map[string]string{"http://cart/items?n=1": "", "http://cart/items?n=2": "shop.example.com"} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", url, nil)
		want := "cart"
		if host != "" {
			req.Host, want = host, host
		}
		resp, err := r.web().Do(req)
		if err == nil && resp.Request.URL.String() != url {
			t.Errorf("the response is to %s", resp.Request.URL)
		}
		if got := r.body(resp, err); got != "GET "+want+" "+req.URL.RequestURI() {
			t.Errorf("%s: %q", url, got)
		}
		if req.URL.String() != url {
			t.Errorf("the caller's URL is %s now", req.URL)
		}
	}
	if stats := r.d.View("cart").Members[0].Endpoint.Stats().View(); stats.Classes[2] != 2 || stats.Durations.Count() != 2 {
		t.Errorf("counted %+v", stats)
	}
}

// TestRefused has instances that nobody listens for: no caller notices, and they are asked once only.
func TestRefused(t *testing.T) {
	r := start(t, discover.Options{Policy: "round_robin"})
	r.put("a", refusing)
	r.put("b", r.handle(func(w http.ResponseWriter, req *http.Request) { io.Copy(w, req.Body) }))
	r.put("c", refusingToo)
	r.put("d", r.serve("hello"))
	r.members("a b c d")
	base := newRecorder(t)
	web := &http.Client{Transport: r.d.Transport(base)}
	for range 20 {
		resp, err := web.Post("http://cart/", "text/plain", strings.NewReader("hello"))
		if got := r.body(resp, err); got != "hello" {
			t.Errorf("%q answered", got)
		}
	}
	if a, c := base.asked(refusing), base.asked(refusingToo); a != 1 || c != 1 {
		t.Errorf("asked those who refuse %d and %d times", a, c)
	}
	r.idle()
}

// TestRefusedAll has nobody listen: each is tried once, those that are ejected included, and the error says so.
func TestRefusedAll(t *testing.T) {
	r := start(t, discover.Options{})
	r.put("a", refusing)
	r.put("b", refusingToo)
	r.members("a b")
	base := newRecorder(t)
	web := &http.Client{Transport: r.d.Transport(base)}
	for n := 1; n <= 3; n++ {
		resp, err := web.Get("http://cart/")
		if text := r.fails(resp, err, nil); !strings.Contains(text, `service "cart": instance`) || !strings.Contains(text, "the last of 2 tried") {
			t.Error(text)
		}
		if a, b := base.asked(refusing), base.asked(refusingToo); a != n || b != n {
			t.Errorf("asked %d and %d times in %d requests", a, b, n)
		}
	}
	// A body that cannot be had again is sent nowhere else.
	resp, err := web.Post("http://cart/", "text/plain", io.MultiReader(strings.NewReader("once")))
	if text := r.fails(resp, err, nil); !strings.Contains(text, "the last of 1 tried") {
		t.Error(text)
	}
	r.idle()
}

// closed is a body that knows whether it was closed.
type closed struct {
	io.Reader
	yes atomic.Bool
}

func (c *closed) Close() error { c.yes.Store(true); return nil }

// TestBodyClosed holds RoundTrip to closing the body, also of a request that goes nowhere.
func TestBodyClosed(t *testing.T) {
	r := start(t, discover.Options{})
	body := &closed{Reader: strings.NewReader("hello")}
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://cart/", body)
	resp, err := r.d.Transport(nil).RoundTrip(req)
	r.fails(resp, err, discover.ErrNoInstance)
	if !body.yes.Load() {
		t.Error("the body is open")
	}
}

// breaking is an instance that reads requests and hangs up. It counts them.
func (r *rig) breaking() (address string, requests *atomic.Int64) {
	requests = new(atomic.Int64)
	return r.handle(func(_ http.ResponseWriter, req *http.Request) {
		io.Copy(io.Discard, req.Body)
		requests.Add(1)
		panic(http.ErrAbortHandler)
	}), requests
}

// TestSentOnce has an instance hang up after it has read: what was sent is not sent again, whatever the method.
func TestSentOnce(t *testing.T) {
	r := start(t, discover.Options{})
	a, requests := r.breaking()
	b, others := r.breaking()
	r.put("a", a)
	r.put("b", b)
	r.members("a b")
	for n, method := range []string{"POST", "PUT"} {
		req, _ := http.NewRequestWithContext(t.Context(), method, "http://cart/", strings.NewReader("hello"))
		resp, err := r.web().Do(req)
		r.fails(resp, err, nil)
		if got := requests.Load() + others.Load(); got != int64(n+1) {
			t.Errorf("%s: %d requests by now", method, got)
		}
	}
	r.idle()
}

// TestInFlight follows the count from the head of a response to its end.
func TestInFlight(t *testing.T) {
	for name, end := range map[string]func(*http.Response){
		"closed":   func(resp *http.Response) { resp.Body.Close() },
		"read":     func(resp *http.Response) { io.Copy(io.Discard, resp.Body) },
		"twice":    func(resp *http.Response) { io.Copy(io.Discard, resp.Body); resp.Body.Close(); resp.Body.Close() },
		"no close": func(resp *http.Response) { io.ReadAll(resp.Body); resp.Body.Read(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, discover.Options{})
			more := make(chan struct{})
			r.put("a", r.handle(func(w http.ResponseWriter, _ *http.Request) {
				w.(http.Flusher).Flush()
				<-more
				io.WriteString(w, "done")
			}))
			r.members("a")
			resp, err := r.web().Get("http://cart/")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			v := r.d.View("cart")
			if e, s := v.Members[0].Endpoint.InFlight(), v.Service.InFlight(); e != 1 || s != 1 {
				t.Errorf("%d in flight on the endpoint, %d on the service", e, s)
			}
			r.put("a", refusing, state(registry.Draining)) // those in flight go on
			r.members("")
			close(more)
			end(resp)
			if e, s := v.Members[0].Endpoint.InFlight(), v.Service.InFlight(); e != 0 || s != 0 {
				t.Errorf("%d in flight on the endpoint, %d on the service at the end", e, s)
			}
		})
	}
}

// TestDrains has an instance drain while a request is in flight on it: that one ends well, the next goes elsewhere.
func TestDrains(t *testing.T) {
	r := start(t, discover.Options{})
	arrived, goOn := make(chan struct{}), make(chan struct{})
	a := r.handle(func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-goOn
		io.WriteString(w, "a")
	})
	r.put("a", a)
	r.members("a")
	web := r.web()
	first := make(chan string)
	go func() { first <- r.get(web, "http://cart/") }()
	<-arrived
	r.put("b", r.serve("b"))
	r.put("a", a, state(registry.Draining))
	r.members("b")
	for range 5 {
		if got := r.get(web, "http://cart/"); got != "b" {
			t.Errorf("%q answered while a drains", got)
		}
	}
	close(goOn)
	if got := <-first; got != "a" {
		t.Errorf("the request in flight got %q", got)
	}
}

// TestUpgrade has a connection change its protocol: its body can be written to, and it counts until it is closed.
func TestUpgrade(t *testing.T) {
	r := start(t, discover.Options{})
	r.put("a", r.handle(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, _ := rw.ReadString('\n')
		io.WriteString(conn, line)
	}))
	r.members("a")
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://cart/", nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := r.web().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(resp.Body.(io.Writer), "hello\n")
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); line != "hello\n" {
		t.Errorf("%q, %v", line, err)
	}
	if n := r.d.View("cart").Service.InFlight(); n != 1 {
		t.Errorf("%d in flight", n)
	}
	resp.Body.Close()
	r.idle()
}

// TestTLS has instances that speak TLS, with a certificate for the name of the service.
func TestTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { io.WriteString(w, req.Host) }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate()) // it names example.com
	r := start(t, discover.Options{TLS: &tls.Config{RootCAs: roots}})
	web := r.web()
	in := `{"address":"` + srv.Listener.Addr().String() + `","protocol":"https"}`
	r.store.Put("/rota/services/example.com/a", []byte(in))
	r.store.Put("/rota/services/cart/a", []byte(in))
	r.members("a")
	for _, scheme := range []string{"http", "https"} {
		if got := r.get(web, scheme+"://example.com/"); got != "example.com" {
			t.Errorf("%s: %q", scheme, got)
		}
	}
	resp, err := web.Get("http://cart/") // whose name the certificate has not
	if text := r.fails(resp, err, nil); !strings.Contains(text, "not cart") {
		t.Error(text)
	}
	// What is asked for by https is not sent in plain.
	plain, requests := r.breaking()
	r.put("a", plain)
	r.until("the plain one", func(v *discover.View) bool { return v.Members[0].Endpoint.Protocol == "http" })
	resp, err = web.Get("https://cart/")
	r.fails(resp, err, nil)
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests in plain", n)
	}
}

// TestLoadReported has an instance say that others keep it busy: it is left alone.
func TestLoadReported(t *testing.T) {
	r := start(t, discover.Options{})
	r.put("a", r.handle(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(registry.LoadHeader, "1000")
		io.WriteString(w, "a")
	}))
	r.put("b", r.serve("b"))
	r.members("a b")
	web, seen := r.web(), []string{}
	for range 6 {
		seen = append(seen, r.get(web, "http://cart/"))
	}
	if n := len(slices.DeleteFunc(seen, func(s string) bool { return s == "b" })); n > 1 {
		t.Errorf("the busy one was asked %d times", n)
	}
}

// TestCallerGivesUp does not blame the instance for a caller who went away.
func TestCallerGivesUp(t *testing.T) {
	r := start(t, discover.Options{})
	arrived, over := make(chan struct{}), make(chan struct{})
	r.put("a", r.handle(func(_ http.ResponseWriter, req *http.Request) {
		close(arrived)
		<-req.Context().Done()
		close(over)
	}))
	r.members("a")
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://cart/", nil)
	resp, err := r.web().Do(req)
	r.fails(resp, err, context.Canceled)
	<-over
	r.idle()
	if stats := r.d.View("cart").Members[0].Endpoint.Stats().View(); stats.Durations.Count() != 0 {
		t.Errorf("counted %+v", stats)
	}
}

// TestConcurrent has many callers while the service changes: none fails, and nothing is left in flight.
func TestConcurrent(t *testing.T) {
	r := start(t, discover.Options{})
	addresses := map[string]string{"a": r.serve("a"), "b": r.serve("b"), "c": r.serve("c"), "dead": refusing}
	r.put("c", addresses["c"])
	r.members("c")
	web := r.web()
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := web.Get("http://cart/")
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	for round := range 300 {
		id := []string{"a", "b", "dead"}[round%3]
		r.put(id, addresses[id])
		r.until("c and "+id, func(v *discover.View) bool { return len(v.Members) == 2 })
		r.put(id, addresses[id], state(registry.Draining))
		r.members("c")
		r.delete(id)
	}
	close(stop)
	callers.Wait()
	r.idle()
}
