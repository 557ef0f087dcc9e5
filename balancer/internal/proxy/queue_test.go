package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// Beyond the cap requests wait, the last come first; when the queue is full the first one goes, and after its time everyone.
func TestQueue(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		arrived, release := make(chan string, 10), make(chan struct{})
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			for {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				arrived <- req.URL.Path
				<-release
				if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
					return
				}
			}
		})
		r := startWith(t, engine, Settings{}, func(r *rig) {
			r.upstreams = &pool.Settings{MaxConcurrent: 1, Queue: 2, QueueTimeout: 5 * time.Second}
		}, up.address)
		waiting := func(n int32) {
			t.Helper()
			for deadline := time.Now().Add(5 * time.Second); r.proxy.queueOf(r.service).waiting.Load() != n; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d wait, not %d", r.proxy.queueOf(r.service).waiting.Load(), n)
				}
			}
		}
		send := func(path string) *client {
			c := r.dial()
			c.send("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n")
			return c
		}
		first := send("/1")
		if got := <-arrived; got != "/1" {
			t.Fatal(got)
		}
		second := send("/2")
		waiting(1)
		third := send("/3")
		waiting(2)
		fourth := send("/4") // pushes the second one out
		if resp, _ := second.answer("GET"); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("the one that waited longest: %d", resp.StatusCode)
		}
		waiting(2)
		gone := third
		gone.Close() // whoever leaves takes no place
		waiting(1)
		release <- struct{}{}
		if resp, _ := first.answer("GET"); resp.StatusCode != 200 {
			t.Error(resp.StatusCode)
		}
		if got := <-arrived; got != "/4" {
			t.Errorf("%s came next", got)
		}
		release <- struct{}{}
		if resp, _ := fourth.answer("GET"); resp.StatusCode != 200 {
			t.Error(resp.StatusCode)
		}
	})
}

func TestQueueTimeout(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		arrived, release := make(chan struct{}, 10), make(chan struct{})
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err == nil {
				arrived <- struct{}{}
				<-release
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		})
		r := startWith(t, engine, Settings{}, func(r *rig) {
			r.upstreams = &pool.Settings{MaxConcurrent: 1, Queue: 2, QueueTimeout: 50 * time.Millisecond}
		}, up.address)
		a := r.dial()
		a.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
		<-arrived
		b := r.dial()
		b.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := b.answer("GET"); resp.StatusCode != 503 || resp.Header.Get("X-Rota-Reason") != string(Overloaded) {
			t.Errorf("%d %v", resp.StatusCode, resp.Header)
		}
		close(release)
		if resp, _ := a.answer("GET"); resp.StatusCode != 200 {
			t.Error(resp.StatusCode)
		}
	})
}

// A pattern does not match a path in which a slash is hidden: servers disagree on where its segments end. A route may say that it does.
func TestPatternAndHiddenSlash(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		pattern, err := route.NewPattern("/users/[^/]+")
		if err != nil {
			t.Fatal(err)
		}
		up := echo(t)
		r := startWith(t, engine, Settings{}, func(r *rig) {
			r.routes = []route.Route{
				{Name: "users", Service: "s", Rules: &route.Rules{Pattern: pattern}},
				{Name: "objects", Service: "s", Path: "/objects", Strip: true, Rules: &route.Rules{EncodedSlashes: true}},
			}
		}, up.address)
		for path, want := range map[string]int{
			"/users/a": 200, "/users/a%2Fb": 400, "/users/a/b": 404, "/objects/a%2Fb": 200, "/objects%2Fb": 404, "/objects/%2e%2e%2Fb": 400, "/objects/a%5c..": 400,
		} {
			c := r.dial()
			c.send("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, _ := c.answer("GET"); resp.StatusCode != want {
				t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
			}
		}
	})
}

// A copy goes to the mirror, whatever comes of it, and the client gets the service's answer.
func TestMirror(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		main, copies := echo(t), scripted(t, "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", true)
		r := startWith(t, engine, Settings{}, func(r *rig) {
			r.routes = []route.Route{{Name: "m", Service: "s", Rules: &route.Rules{Mirror: &route.Mirror{Service: "copies", Percent: 100}}}}
			r.mirror = copies.address
		}, main.address)
		c := r.dial()
		c.send("POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
		if resp, body := c.answer("POST"); resp.StatusCode != 200 || !strings.Contains(body, "hello") {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
		for deadline := time.Now().Add(5 * time.Second); !strings.HasSuffix(copies.bytes(), "hello"); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the copy is %q", copies.bytes())
			}
		}
	})
}
