package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// silence is an upstream that reads and never answers.
func silence(t *testing.T) *upstream {
	return newUpstream(t, func(c net.Conn, r *bufio.Reader) { io.Copy(io.Discard, r) })
}

// Each bound on the time of an exchange ends it with 504: that of one attempt, that of all attempts, and that of the whole. One
// attempt that took too long is tried again only where all of them have more time than that.
func TestTimeBounds(t *testing.T) {
	t.Parallel()
	const brief, long = 200 * time.Millisecond, 30 * time.Second
	for name, tc := range map[string]struct {
		route    time.Duration // route.Timeout
		timeouts route.Timeouts
		attempts int
		method   string
		status   int
	}{
		"an attempt":                              {0, route.Timeouts{ResponseHead: brief}, 1, "GET", 504},
		"an attempt, with time for another":       {long, route.Timeouts{ResponseHead: brief}, 2, "GET", 200},
		"an attempt that may have been executed":  {long, route.Timeouts{ResponseHead: brief}, 1, "POST", 504},
		"all attempts":                            {brief, route.Timeouts{ResponseHead: long}, 1, "GET", 504},
		"the whole":                               {0, route.Timeouts{Request: brief, ResponseHead: long}, 1, "GET", 504},
		"the whole, although attempts may go on":  {long, route.Timeouts{Request: brief, ResponseHead: long}, 1, "GET", 504},
		"the whole, shorter than that of a route": {long, route.Timeouts{Request: long / 2, ResponseHead: brief}, 2, "GET", 200},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				t.Parallel()
				r := startWith(t, engine, Settings{}, func(r *rig) {
					r.routes = []route.Route{{Name: "r", Service: "s", Timeout: tc.route, Rules: &route.Rules{Timeouts: tc.timeouts}}}
				}, silence(t).address, echo(t).address)
				for range 2 { // one of the two begins with the silent one
					c := r.dial()
					began := time.Now()
					c.send(tc.method + " / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
					resp, _ := c.answer(tc.method)
					if took := time.Since(began); took > long/2 {
						t.Errorf("it took %v", took)
					}
					if resp.StatusCode == 504 && resp.Header.Get("X-Rota-Reason") != "upstream_timeout" {
						t.Errorf("the reason is %q", resp.Header.Get("X-Rota-Reason"))
					}
				}
				records := r.wait(2)
				i := slices.IndexFunc(records, func(rec Record) bool { return rec.Attempts > 1 || rec.Status != 200 })
				if tc.status == 200 && i < 0 || i >= 0 && (records[i].Status != tc.status || records[i].Attempts != tc.attempts) {
					t.Errorf("want %d after %d attempts, got %+v", tc.status, tc.attempts, status(records))
				}
				if tc.status != 200 && i < 0 {
					t.Errorf("nobody met the silent one: %v", status(records))
				}
			})
		})
	}
}

// status is what became of exchanges, in short.
func status(records []Record) (list []string) {
	for _, rec := range records {
		list = append(list, fmt.Sprintf("%d %s after %d", rec.Status, rec.Reason, rec.Attempts))
	}
	return list
}

// When all instances fail, requests are tried again until the budget is spent, and then once each: trouble is not multiplied.
func TestRetryBudget(t *testing.T) {
	const requests, reserve = 200, 20
	eachEngine(t, func(t *testing.T, engine string) {
		dying := func() string {
			return newUpstream(t, func(c net.Conn, r *bufio.Reader) { http.ReadRequest(r) }).address // it reads, and closes
		}
		r := start(t, engine, Settings{Retries: route.Retries{Budget: 10}}, dying(), dying(), dying())
		for range requests {
			c := r.dial()
			c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			if resp, _ := c.answer("GET"); resp.StatusCode != 502 {
				t.Fatalf("status %d", resp.StatusCode)
			}
			c.Close()
		}
		retries := 0
		for _, rec := range r.wait(requests) {
			retries += rec.Attempts - 1
			if rec.Flags() != "UC,URX" {
				t.Fatalf("flags %q after %d attempts", rec.Flags(), rec.Attempts)
			}
		}
		if most := reserve + requests/10 + 1; retries < reserve || retries > most {
			t.Errorf("%d retries, want between %d and %d", retries, reserve, most)
		}
		counted := map[string]int{}
		r.service.Retries.Each(func(key pool.Retry, n uint64) { counted[key.Outcome] += int(n) })
		if counted[pool.Failed] != retries || counted[pool.NoBudget] == 0 {
			t.Errorf("counted %v, %d retries were made", counted, retries)
		}
	})
}

// A limit that is keyed by a field holds for each value of it, whoever sends it and over how many connections; those without
// the field share one.
func TestRateByHeader(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := echo(t)
		r := startWith(t, engine, Settings{}, func(r *rig) {
			r.routes = []route.Route{{Name: "limited", Service: "s", Rules: &route.Rules{Rate: &route.Rate{Every: time.Hour, Burst: 2, Header: "x-key"}}}}
		}, up.address)
		ask := func(field string) int {
			c := r.dial()
			defer c.Close()
			c.send("GET / HTTP/1.1\r\nHost: a\r\n" + field + "\r\n")
			resp, _ := c.answer("GET")
			if resp.StatusCode == 429 && (resp.Header.Get("Retry-After") == "" || resp.Header.Get("X-Rota-Reason") != "rate_limited") {
				t.Errorf("with %q: %v", field, resp.Header)
			}
			return resp.StatusCode
		}
		for _, field := range []string{"X-Key: a\r\n", "X-Key: b\r\n", "", "X-Key: A\r\n"} {
			if got := []int{ask(field), ask(field), ask(field)}; !slices.Equal(got, []int{200, 200, 429}) {
				t.Errorf("with %q: %v", field, got)
			}
		}
		if got := ask("x-KEY: a\r\n"); got != 429 {
			t.Errorf("the name in another case: %d", got)
		}
		if n := strings.Count(up.bytes(), "GET / "); n != 8 {
			t.Errorf("%d requests went through", n)
		}
	})
}

// An error page comes in the form that the client likes best; a HEAD gets what tells about it alone.
func TestErrorPages(t *testing.T) {
	const text, html, problem = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/problem+json"
	eachEngine(t, func(t *testing.T, engine string) {
		r := start(t, engine, Settings{}) // no instance: 503
		for _, tc := range []struct{ accept, want string }{
			{"", text},
			{"Accept: */*\r\n", text},
			{"Accept: text/html\r\n", html},
			{"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n", html}, // a browser
			{"Accept: application/json\r\n", problem},
			{"Accept: application/problem+json, text/html;q=0.9\r\n", problem},
			{"Accept: application/json;q=0.5, text/html;q=0.6\r\n", html},
			{"Accept: text/html;q=0.2, text/plain;q=0.3\r\n", text},
			{"Accept: text/html;q=0, */*\r\n", text},
			{"Accept: TEXT/HTML\r\n", html},
			{"Accept: image/png\r\n", text},
			{"Accept: text/html;q=2\r\n", text},
			{"Accept: text/html;q=NaN\r\n", text},
			{"Accept: image/png\r\nAccept: text/html\r\n", html},
			{"Accept: ;;,,;q=\r\n", text},
		} {
			for _, method := range []string{"GET", "HEAD"} {
				c := r.dial()
				for range 2 { // the connection goes on: the length is right
					c.send(method + " / HTTP/1.1\r\nHost: a\r\n" + tc.accept + "\r\n")
					resp, body := c.answer(method)
					if resp.StatusCode != 503 || resp.Header.Get("Content-Type") != tc.want || resp.Header.Get("X-Rota-Reason") != "no_healthy_upstream" || resp.Header.Get("Retry-After") == "" {
						t.Fatalf("%s %q: %d %v", method, tc.accept, resp.StatusCode, resp.Header)
					}
					if method == "HEAD" && body != "" || method == "GET" && (len(body) == 0 || strings.Contains(body, "<html") != (tc.want == html)) || resp.ContentLength <= 0 {
						t.Fatalf("%s %q: length %d, %q", method, tc.accept, resp.ContentLength, body)
					}
				}
			}
		}
	})
}

// A mirror that hangs, and one that refuses, cost the exchange nothing; beyond a bound no copies are made.
func TestMirrorHangs(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", private)
	if err != nil {
		t.Fatal(err)
	}
	refusing := ln.Addr().String()
	ln.Close()
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel()
		for name, hangs := range map[string]bool{"hangs": true, "refuses": false} {
			t.Run(name, func(t *testing.T) {
				const requests = maxMirrors + 100
				copies := silence(t)
				r := startWith(t, engine, Settings{Timeouts: route.Timeouts{ResponseHead: 5 * time.Second}}, func(r *rig) {
					r.routes = []route.Route{{Name: "m", Service: "s", Rules: &route.Rules{Mirror: &route.Mirror{Service: "copies", Percent: 100}}}}
					if r.mirror = refusing; hangs {
						r.mirror = copies.address
					}
				}, echo(t).address)
				c := r.dial()
				c.SetDeadline(time.Now().Add(time.Minute))
				for i := range requests {
					c.send(fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", i))
					if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != fmt.Sprintf("POST /%d hello", i) {
						t.Fatalf("request %d: %d %q", i, resp.StatusCode, body)
					}
				}
				for _, rec := range r.wait(requests) {
					if rec.Status != 200 || rec.Attempts != 1 || rec.Duration > mirrorTime/2 {
						t.Fatalf("%d after %d attempts and %v", rec.Status, rec.Attempts, rec.Duration)
					}
				}
				if hangs {
					r.eventually("all the copies there may be", func() bool { return copies.connections() >= maxMirrors })
				}
				if n := copies.connections(); n > maxMirrors {
					t.Errorf("%d copies at once, at most %d", n, maxMirrors)
				}
			})
		}
	})
}
