package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/route"
)

func TestKeepAliveAndReuse(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := echo(t)
		r := start(t, engine, Settings{}, up.address)
		c := r.dial()
		for i := range 20 {
			c.send(fmt.Sprintf("GET /%d?q=1 HTTP/1.1\r\nHost: A.example.com:81\r\n\r\n", i))
			resp, body := c.answer("GET")
			if want := fmt.Sprintf("GET /%d?q=1 ", i); resp.StatusCode != 200 || body != want {
				t.Fatalf("got %d %q, want %q", resp.StatusCode, body, want)
			}
			if h := resp.Header.Get("X-Saw-Host"); h != "a.example.com:81" {
				t.Fatalf("upstream saw host %q", h)
			}
		}
		if n := up.connections(); n != 1 {
			t.Errorf("%d upstream connections for 20 requests in turn, want 1", n)
		}
		rec := r.wait(20)[19]
		if rec.Status != 200 || rec.Attempts != 1 || rec.Endpoint == nil || rec.Route.Name != "all" || rec.Table.Revision != 7 {
			t.Errorf("record: %+v", rec)
		}
	})
}

func TestForwardedFields(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := echo(t)
		r := start(t, engine, Settings{}, up.address)
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Forwarded-For, x-secret, Host\r\nX-Secret: 1\r\nX-Forwarded-For: 6.6.6.6\r\n" +
			"X_Forwarded_For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nTE: trailers, gzip\r\nProxy: http://evil\r\n" +
			"Upgrade: h2c\r\nHTTP2-Settings: AAA\r\nKeep-Alive: 5\r\nX-Keep: yes\r\nVia: 1.0 fred\r\n\r\n")
		if resp, _ := c.answer("GET"); !resp.Close {
			t.Error("the client asked to close; the answer does not say so")
		}
		c.closed()
		head := up.bytes()
		want := "GET / HTTP/1.1\r\nHost: a\r\nX-Keep: yes\r\nVia: 1.0 fred\r\nX-Forwarded-For: 127.0.0.1\r\n" +
			"X-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\nVia: 1.1 rota\r\n\r\n"
		if head != want {
			t.Errorf("upstream saw\n%q, want\n%q", head, want)
		}
	})
}

func TestBodies(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 40_000) // 640 kB
	chunked := func(s string, size int) string {
		var b strings.Builder
		for len(s) > 0 {
			n := min(size, len(s))
			fmt.Fprintf(&b, "%x;ext=1\r\n%s\r\n", n, s[:n])
			s = s[n:]
		}
		return b.String() + "0\r\nX-Trailer: 1\r\n\r\n"
	}
	for name, tc := range map[string]struct{ head, body, want string }{
		"length":        {"Content-Length: 5\r\n", "hello", "hello"},
		"zero":          {"Content-Length: 0\r\n", "", ""},
		"big":           {fmt.Sprintf("Content-Length: %d\r\n", len(big)), big, big},
		"chunks":        {"Transfer-Encoding: chunked\r\n", chunked("hello world", 3), "hello world"},
		"big chunks":    {"Transfer-Encoding: chunked\r\n", chunked(big, 70_000), big},
		"small chunks":  {"Transfer-Encoding: chunked\r\n", chunked(big[:50_000], 7), big[:50_000]},
		"leading zeros": {"Content-Length: 005\r\n", "hello", "hello"},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				up := echo(t)
				r := start(t, engine, Settings{}, up.address)
				c := r.dial()
				go io.WriteString(c.Conn, "POST /p HTTP/1.1\r\nHost: a\r\n"+tc.head+"\r\n"+tc.body+"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
				resp, body := c.answer("POST")
				if resp.StatusCode != 200 || body != "POST /p "+tc.want {
					t.Fatalf("got %d, %d bytes: %.80q", resp.StatusCode, len(body), body)
				}
				if resp, body := c.answer("GET"); body != "GET /next " {
					t.Fatalf("after the body: %d %q", resp.StatusCode, body)
				}
				if strings.Contains(up.bytes(), "X-Trailer") || strings.Contains(up.bytes(), "ext=1") {
					t.Error("trailers or extensions of a request reached the upstream")
				}
			})
		})
	}
}

func TestResponses(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for name, tc := range map[string]struct {
		method, answer string
		last           bool // the upstream closes after it
		status         int
		body           string
		reused         bool // the upstream connection may serve again
	}{
		"length":                           {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false, 200, "ok", true},
		"long":                             {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + long, false, 200, long, true},
		"chunks":                           {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0003\r\ndef\r\n0\r\n\r\n", false, 200, "abcdef", true},
		"until close":                      {"GET", "HTTP/1.1 200 OK\r\n\r\n" + long, true, 200, long, false},
		"1.0":                              {"GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false, 200, "ok", false},
		"1.0 keep-alive":                   {"GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", false, 200, "ok", true},
		"close":                            {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", false, 200, "ok", false},
		"head":                             {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n", false, 200, "", true},
		"204":                              {"GET", "HTTP/1.1 204 No Content\r\n\r\n", false, 204, "", true},
		"304":                              {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n", false, 304, "", true},
		"103 first":                        {"GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false, 200, "ok", true},
		"extra bytes":                      {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", false, 200, "ok", false},
		"no reason":                        {"GET", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", false, 200, "ok", true},
		"big head":                         {"GET", "HTTP/1.1 200 OK\r\nX-Big: " + strings.Repeat("y", 40_000) + "\r\nContent-Length: 2\r\n\r\nok", false, 200, "ok", true},
		"status line only over two chunks": {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\"x\"\r\nhello\r\n0\r\nT: 1\r\n\r\n", false, 200, "hello", true},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				up := scripted(t, tc.answer, tc.last)
				r := start(t, engine, Settings{}, up.address)
				c := r.dial()
				for range 2 {
					c.send(tc.method + " / HTTP/1.1\r\nHost: a\r\n\r\n")
					resp, body := c.answer(tc.method)
					for resp.StatusCode == 103 {
						resp, body = c.answer(tc.method)
					}
					if resp.StatusCode != tc.status || body != tc.body {
						t.Fatalf("got %d, %d bytes: %.80q", resp.StatusCode, len(body), body)
					}
				}
				r.wait(2)
				if n, want := up.connections(), 2; tc.reused && n != 1 || !tc.reused && n != want {
					t.Errorf("%d upstream connections, reuse should be %v", n, tc.reused)
				}
			})
		})
	}
}

func TestHTTP10Client(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := scripted(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n", false)
		r := start(t, engine, Settings{}, up.address)
		c := r.dial()
		c.send("GET / HTTP/1.0\r\n\r\n")
		all, _ := io.ReadAll(c.r)
		head, body, _ := strings.Cut(string(all), "\r\n\r\n")
		if body != "abcdef" || strings.Contains(head, "chunked") || !strings.Contains(head, "Connection: close") {
			t.Fatalf("an HTTP/1.0 client got %q", all)
		}
	})
}

func TestPipelining(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		r := start(t, engine, Settings{}, echo(t).address)
		c := r.dial()
		var all strings.Builder
		for i := range 49 {
			if i%3 == 0 {
				fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", i)
			} else {
				fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i)
			}
		}
		c.send(all.String() + "GET /bad HTTP/1.1\r\nHost : a\r\n\r\n")
		for i := range 49 {
			want := fmt.Sprintf("GET /%d ", i)
			if i%3 == 0 {
				want = fmt.Sprintf("POST /%d abc", i)
			}
			if _, body := c.answer("GET"); body != want {
				t.Fatalf("answer %d is %q", i, body)
			}
		}
		if resp, _ := c.answer("GET"); resp.StatusCode != 400 {
			t.Fatalf("the malformed one: %d", resp.StatusCode)
		}
		c.closed()
	})
}

func TestRetries(t *testing.T) {
	dead := func(t *testing.T) string { // an address where nobody listens
		ln, err := net.Listen("tcp", private)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		return ln.Addr().String()
	}
	eachEngine(t, func(t *testing.T, engine string) {
		t.Run("refused", func(t *testing.T) {
			r := start(t, engine, Settings{}, dead(t), echo(t).address)
			c := r.dial()
			for range 6 { // also a POST: nothing was sent
				c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
				if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != "POST / hi" {
					t.Fatalf("got %d %q", resp.StatusCode, body)
				}
			}
		})
		t.Run("all refused", func(t *testing.T) {
			r := start(t, engine, Settings{}, dead(t), dead(t))
			c := r.dial()
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, _ := c.answer("GET"); resp.StatusCode != 502 || resp.Header.Get("X-Rota-Reason") != "connect_failed" {
				t.Fatalf("got %d %v", resp.StatusCode, resp.Header)
			}
			if rec := r.wait(1)[0]; rec.Attempts != 2 {
				t.Errorf("%d attempts on two endpoints", rec.Attempts)
			}
		})
		t.Run("no endpoint", func(t *testing.T) {
			r := start(t, engine, Settings{})
			c := r.dial()
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			resp, _ := c.answer("GET")
			if resp.StatusCode != 503 || resp.Header.Get("X-Rota-Reason") != "no_healthy_upstream" || resp.Header.Get("Retry-After") == "" {
				t.Fatalf("got %d %v", resp.StatusCode, resp.Header)
			}
		})
		t.Run("closed without an answer", func(t *testing.T) {
			var hits atomic.Int32
			rude := newUpstream(t, func(c net.Conn, r *bufio.Reader) { http.ReadRequest(r); hits.Add(1) })
			r := start(t, engine, Settings{}, rude.address, echo(t).address)
			for range 4 {
				c := r.dial()
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
					t.Fatalf("GET: %d", resp.StatusCode)
				}
			}
			for _, rec := range r.wait(4) {
				if rec.Flags() != "" {
					t.Errorf("flags %q of an answer", rec.Flags())
				}
			}
			before, failed := hits.Load(), 0
			for range 4 {
				c := r.dial()
				c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
				if resp, _ := c.answer("POST"); resp.StatusCode == 502 {
					failed++
				}
			}
			if n := int(hits.Load() - before); n != failed || n == 0 {
				t.Errorf("%d POSTs met the rude upstream, %d failed: a POST that was sent must not be repeated", n, failed)
			}
		})
		t.Run("pooled connection died", func(t *testing.T) {
			// Each connection serves one request and is closed without a word at the second one.
			up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
				if _, err := http.ReadRequest(r); err == nil {
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					http.ReadRequest(r)
				}
			})
			r := start(t, engine, Settings{}, up.address)
			c := r.dial()
			for i := range 10 {
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
					t.Fatalf("request %d: %d", i, resp.StatusCode)
				}
			}
		})
	})
}

func TestTimeouts(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		short := Settings{
			RequestHead: 150 * time.Millisecond, KeepAlive: 150 * time.Millisecond,
			Timeouts: route.Timeouts{ResponseHead: 150 * time.Millisecond, IdleBody: 150 * time.Millisecond},
		}
		silent := newUpstream(t, func(c net.Conn, r *bufio.Reader) { io.Copy(io.Discard, r) })
		t.Run("response", func(t *testing.T) {
			r := start(t, engine, short, silent.address)
			c := r.dial()
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, _ := c.answer("GET"); resp.StatusCode != 504 || resp.Header.Get("X-Rota-Reason") != "upstream_timeout" {
				t.Fatalf("got %d", resp.StatusCode)
			}
		})
		t.Run("request head", func(t *testing.T) {
			r := start(t, engine, short, silent.address)
			c := r.dial()
			c.send("GET / HTTP/1.1\r\nHost:")
			if resp, _ := c.answer("GET"); resp.StatusCode != 408 {
				t.Fatalf("got %d", resp.StatusCode)
			}
			c.closed()
		})
		t.Run("request body", func(t *testing.T) {
			r := start(t, engine, short, silent.address)
			c := r.dial()
			c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
			if resp, _ := c.answer("POST"); resp.StatusCode != 408 {
				t.Fatalf("got %d", resp.StatusCode)
			}
			c.closed()
		})
		t.Run("idle", func(t *testing.T) {
			r := start(t, engine, short, echo(t).address)
			c := r.dial()
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			c.answer("GET")
			c.closed()
		})
		t.Run("response body", func(t *testing.T) {
			up := scripted(t, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", false)
			r := start(t, engine, short, up.address)
			c := r.dial()
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			resp, err := http.ReadResponse(c.r, nil)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			if err == nil {
				t.Fatal("a stalled body was read as a whole one")
			}
		})
	})
}

func TestClientGoesAway(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		gone := make(chan struct{})
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err == nil {
				r.ReadByte() // until the proxy gives up
				close(gone)
			}
		})
		r := start(t, engine, Settings{}, up.address)
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		for up.bytes() == "" {
			time.Sleep(time.Millisecond)
		}
		c.Close()
		select {
		case <-gone:
		case <-time.After(5 * time.Second):
			t.Fatal("the upstream was not told that the client went away")
		}
		if rec := r.wait(1)[0]; rec.Status != 499 || rec.Reason != ClientClosed {
			t.Errorf("record %d %q", rec.Status, rec.Reason)
		}
	})
}

func TestExpectContinue(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.Header.Get("Expect") != "100-continue" {
				t.Error("expectation not passed on")
			}
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			body, _ := io.ReadAll(req.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		})
		r := start(t, engine, Settings{}, up.address)
		c := r.dial()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
		if resp, _ := c.answer("POST"); resp.StatusCode != 100 {
			t.Fatalf("got %d", resp.StatusCode)
		}
		c.send("hello")
		if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != "hello" {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
	})
}

// An answer that comes while the body is still on its way reaches the client, and the upload stops.
func TestEarlyResponse(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			http.ReadRequest(r)
			io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
		})
		r := start(t, engine, Settings{}, up.address)
		c := r.dial()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
		stop := make(chan struct{})
		sent := make(chan int)
		go func() {
			n, piece := 0, make([]byte, 16<<10)
			for {
				select {
				case <-stop:
					sent <- n
					return
				default:
				}
				k, err := c.Write(piece)
				if n += k; err != nil {
					<-stop
					sent <- n
					return
				}
			}
		}()
		resp, body := c.answer("POST")
		close(stop)
		if n := <-sent; n >= 100_000_000 {
			t.Errorf("all %d bytes were sent", n)
		}
		if resp.StatusCode != 413 || body != "big" {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
	})
}

func TestUploadErrors(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		t.Run("bad chunk later", func(t *testing.T) {
			up := echo(t)
			r := start(t, engine, Settings{}, up.address)
			c := r.dial()
			c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
			for !strings.Contains(up.bytes(), "hello") {
				time.Sleep(time.Millisecond)
			}
			c.send("5\nworld\r\n0\r\n\r\n")
			if resp, _ := c.answer("POST"); resp.StatusCode != 400 {
				t.Fatalf("got %d", resp.StatusCode)
			}
			c.closed()
			if strings.Contains(up.bytes(), "world") || strings.Contains(up.bytes(), "0\r\n\r\n") {
				t.Errorf("upstream saw %q", up.bytes())
			}
		})
		t.Run("client gone", func(t *testing.T) {
			ended := make(chan error, 1)
			up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
				req, err := http.ReadRequest(r)
				if err == nil {
					_, err = io.ReadAll(req.Body)
				}
				ended <- err
			})
			r := start(t, engine, streaming, up.address)
			c := r.dial()
			c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
			for !strings.Contains(up.bytes(), "abc") {
				time.Sleep(time.Millisecond)
			}
			c.Close()
			select {
			case err := <-ended:
				if err == nil {
					t.Error("the upstream took a part for the whole")
				}
			case <-time.After(5 * time.Second):
				t.Fatal("upstream not told")
			}
		})
	})
}

func TestDrain(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel()
		release := make(chan struct{})
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err == nil {
				<-release
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		})
		r := start(t, engine, Settings{}, up.address)
		idle, busy := r.dial(), r.dial()
		busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		for up.bytes() == "" {
			time.Sleep(time.Millisecond)
		}
		r.proxy.Drain()
		r.engine.CloseIdle()
		idle.closed()
		close(release)
		if _, body := busy.answer("GET"); body != "ok" {
			t.Fatalf("got %q", body)
		}
		busy.closed()
	})
}

// Many clients, many requests, endpoints coming and going: every answer is the right one and nothing leaks.
func TestChurn(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		before := descriptors(t)
		t.Run("run", func(t *testing.T) {
			a, b := echo(t), echo(t)
			r := start(t, engine, Settings{}, a.address, b.address)
			stop := make(chan struct{})
			var publishing sync.WaitGroup
			publishing.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					case <-time.After(2 * time.Millisecond):
					}
					switch i % 3 {
					case 0:
						r.publish(a.address)
					case 1:
						r.publish(b.address)
					default:
						r.publish(a.address, b.address)
					}
				}
			})
			var wg sync.WaitGroup
			for n := range 16 {
				wg.Go(func() {
					tr := &http.Transport{}
					defer tr.CloseIdleConnections()
					client := http.Client{Transport: tr, Timeout: 10 * time.Second}
					for i := range 100 {
						want := fmt.Sprintf("/%d/%d", n, i)
						resp, err := client.Get("http://" + r.address + want)
						if err != nil {
							t.Errorf("%s: %v", want, err)
							return
						}
						body, err := io.ReadAll(resp.Body)
						resp.Body.Close()
						if err != nil || string(body) != "GET "+want+" " {
							t.Errorf("%s: %q %v", want, body, err)
						}
					}
				})
			}
			wg.Wait()
			close(stop)
			publishing.Wait()
			// A client has its answer a moment before the exchange is over.
			for deadline := time.Now().Add(5 * time.Second); r.service.InFlight() != 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d exchanges still counted in flight", r.service.InFlight())
				}
			}
		})
		for i := 0; descriptors(t) > before+5; i++ {
			if i > 500 {
				t.Fatalf("%d descriptors, %d before", descriptors(t), before)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func TestUnroutedAndErrors(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := echo(t)
		r := start(t, engine, Settings{}, up.address)
		c := r.dial()
		c.send("GET /nope HTTP/1.1\r\nHost: prefix.example.com\r\n\r\n") // falls through to "all"
		if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
			t.Fatalf("got %d", resp.StatusCode)
		}
		c.send("GET /pub/x HTTP/1.1\r\nHost: strip.example.com.\r\n\r\n")
		if _, body := c.answer("GET"); body != "GET /x " {
			t.Fatalf("got %q", body)
		}
		c.send("GET /pub//evil HTTP/1.1\r\nHost: strip.example.com\r\n\r\n") // must not become "//evil"
		if _, body := c.answer("GET"); body != "GET /evil " {
			t.Fatalf("got %q", body)
		}
		c.send("GET /pub HTTP/1.1\r\nHost: strip.example.com\r\n\r\n")
		if _, body := c.answer("GET"); body != "GET / " {
			t.Fatalf("got %q", body)
		}
		c.send("HEAD /x HTTP/1.1\r\nHost: prefix.example.com\r\n\r\n")
		if _, body := c.answer("HEAD"); body != "" {
			t.Fatalf("got %q", body)
		}
	})
}
