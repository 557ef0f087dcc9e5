package proxy

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// routeTimeout is a timeout that a route may have of its own, and an exchange that somebody holds up at the place that it is about.
// hold reports whether the exchange goes on.
type routeTimeout struct {
	name   string
	set    func(t *route.Timeouts, d time.Duration)
	secure bool // the instance speaks TLS
	serve  func(c net.Conn, r *bufio.Reader, hold func() bool)
	ask    func(c *client, hold func() bool) (status int, whole bool)
	// what becomes of it when it is held up for too long; a status of 200 is that of an answer that was cut off
	status int
	reason Reason
}

func routeTimeouts(secure *tls.Config) []routeTimeout {
	const (
		get   = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
		ok    = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
		first = "01234"
		rest  = "56789"
	)
	head := func(t *route.Timeouts, d time.Duration) { t.ResponseHead = d }
	body := func(t *route.Timeouts, d time.Duration) { t.IdleBody = d }
	shake := func(c net.Conn, r *bufio.Reader, hold func() bool) {
		if !hold() {
			return
		}
		s := tls.Server(&buffered{c, r}, secure)
		if readHead(bufio.NewReader(s)) != "" {
			io.WriteString(s, ok+first+rest)
		}
	}
	late := func(c net.Conn, r *bufio.Reader, hold func() bool) {
		if readHead(r) != "" && hold() {
			io.WriteString(c, ok+first+rest)
		}
	}
	stalls := func(c net.Conn, r *bufio.Reader, hold func() bool) {
		if readHead(r) != "" {
			io.WriteString(c, ok+first)
			if hold() {
				io.WriteString(c, rest)
			}
		}
	}
	takes := func(c net.Conn, r *bufio.Reader, _ func() bool) {
		if req, err := http.ReadRequest(r); err == nil {
			if got, err := io.ReadAll(req.Body); err == nil {
				io.WriteString(c, ok+string(got))
			}
		}
	}
	echoes := func(c net.Conn, r *bufio.Reader, _ func() bool) {
		if readHead(r) != "" {
			io.WriteString(c, switched)
			io.Copy(c, r)
		}
	}
	// answer reads an answer, which may be cut off.
	answer := func(c *client) (int, bool) {
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			c.t.Error(err)
			return 0, false
		}
		got, err := io.ReadAll(resp.Body)
		return resp.StatusCode, err == nil && string(got) == first+rest
	}
	asks := func(c *client, _ func() bool) (int, bool) {
		c.send(get)
		return answer(c)
	}
	uploads := func(head string, parts ...string) func(c *client, hold func() bool) (int, bool) {
		return func(c *client, hold func() bool) (int, bool) {
			c.send("POST / HTTP/1.1\r\nHost: a\r\n" + head + "\r\n\r\n" + parts[0])
			if hold() {
				c.send(parts[1])
			}
			return answer(c)
		}
	}
	talks := func(c *client, hold func() bool) (int, bool) {
		c.send(upgrade)
		resp, _ := c.answer("GET")
		if hold() {
			c.send(first)
			got, err := c.r.Peek(len(first))
			return resp.StatusCode, err == nil && string(got) == first
		}
		c.closed()
		return resp.StatusCode, false
	}
	return []routeTimeout{
		{"connect, TLS", func(t *route.Timeouts, d time.Duration) { t.Connect = d }, true, shake, asks, 502, TLSFailed},
		{"response_head", head, false, late, asks, 504, UpstreamTimeout},
		{"response_head, behind an upload", head, false, late, uploads("Content-Length: 10", first+rest, ""), 504, UpstreamTimeout},
		{"idle_body, of an answer", body, false, stalls, asks, 200, UpstreamTimeout},
		{"idle_body, of a request that is held", body, false, takes, uploads("Content-Length: 10", first, rest), 408, RequestTimeout},
		{"idle_body, of chunks", body, false, takes, uploads("Transfer-Encoding: chunked", "5\r\n"+first+"\r\n", "5\r\n"+rest+"\r\n0\r\n\r\n"), 408, RequestTimeout},
		{"tunnel", func(t *route.Timeouts, d time.Duration) { t.Tunnel = d }, false, echoes, talks, 101, ""},
		{"request", func(t *route.Timeouts, d time.Duration) { t.Request = d }, false, late, asks, 504, UpstreamTimeout},
	}
}

// What a route says of its timeouts is what its exchanges have, be that less than the default or more.
func TestRouteTimeouts(t *testing.T) {
	t.Parallel()
	cert, roots := certificate(t, time.Now().Add(time.Hour), "s")
	for _, u := range routeTimeouts(&tls.Config{Certificates: []tls.Certificate{cert}}) {
		for _, shorter := range []bool{true, false} {
			name := u.name + ": longer than the default"
			if shorter {
				name = u.name + ": shorter than the default"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				eachEngine(t, func(t *testing.T, engine string) {
					t.Parallel()
					long := route.Timeouts{Connect: 2 * patience, ResponseHead: 2 * patience, IdleBody: 2 * patience, Tunnel: 2 * patience, Request: 2 * patience}
					defaults, rules := long, route.Timeouts{}
					u.set(&rules, brief)
					ended := make(chan struct{})
					hold := func() bool { // for good
						select {
						case <-ended:
						case <-t.Context().Done():
						}
						return false
					}
					want := u.status
					if !shorter {
						u.set(&defaults, brief)
						u.set(&rules, 2*patience)
						hold = func() bool { time.Sleep(2 * brief); return true }
						if want != 101 {
							want = 200
						}
					}
					up := newSilent(t, func(c net.Conn, r *bufio.Reader) { u.serve(c, r, hold) })
					r := startWith(t, engine, Settings{Timeouts: defaults}, func(r *rig) {
						r.routes = []route.Route{{Name: "r", Service: "s", Rules: &route.Rules{Timeouts: rules}}}
						r.done = func(*Record) { close(ended) }
						if u.secure {
							r.upstreams = &pool.Settings{Secure: true, TLS: &tls.Config{RootCAs: roots, ServerName: "s"}}
						}
					}, up)
					c := r.dial()
					status, whole := u.ask(c, hold)
					c.Close()
					rec := r.wait(1)[0]
					if status != want || whole == shorter {
						t.Errorf("answered %d, whole %v, want %d", status, whole, want)
					}
					switch {
					case !shorter && rec.Reason != "", shorter && rec.Reason != u.reason:
						t.Errorf("the reason is %q, want %q", rec.Reason, u.reason)
					case shorter && (rec.Duration < brief*9/10 || rec.Duration > brief+soon):
						t.Errorf("it ended after %v of %v", rec.Duration, brief)
					}
				})
			})
		}
	}
}

// Who has been silent in a tunnel for longer than a tunnel may be, while the other side was not, may end its direction as any other.
func TestSilentSideEnds(t *testing.T) {
	cert, roots := certificate(t, time.Now().Add(time.Hour), "s")
	eachEngine(t, func(t *testing.T, engine string) {
		got := make(chan struct{}, 1000)
		end := make(chan struct{})
		up := switching(t, func(c *net.TCPConn, r *bufio.Reader) {
			r.ReadByte()
			io.WriteString(c, "y") // by itself, behind the 101
			go func() { <-end; c.CloseWrite() }()
			for {
				if _, err := r.ReadByte(); err != nil {
					return
				}
				got <- struct{}{}
			}
		})
		r := startWith(t, engine, Settings{Timeouts: route.Timeouts{Tunnel: brief}}, func(r *rig) {
			r.secure = &tls.Config{Certificates: []tls.Certificate{cert}}
		}, up.address)
		c := r.secureClient(&tls.Config{RootCAs: roots, ServerName: "s"})
		c.send(upgrade)
		c.answer("GET")
		c.send("x")
		if b, err := c.r.ReadByte(); b != 'y' {
			t.Fatal(b, err)
		}
		for began := time.Now(); time.Since(began) < 2*brief; time.Sleep(brief / 10) {
			c.send("x")
			<-got
		}
		close(end)
		if rest, err := io.ReadAll(c.r); len(rest) > 0 || err != nil {
			t.Errorf("the client reads %q, %v", rest, err)
		}
	})
}
