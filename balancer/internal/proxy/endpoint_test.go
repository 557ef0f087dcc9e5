package proxy

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// statuses is an instance that answers with the status that the path names.
func statuses(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(r.URL.Path[1:])
		w.WriteHeader(status)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// Failures in a row are told, each time there are so many, and a success between them counts.
func TestFailing(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		r := startWith(t, engine, Settings{}, func(r *rig) { r.upstreams = &pool.Settings{Failures: 3} }, statuses(t))
		c := r.dial()
		for i, step := range []struct {
			status int
			told   int32
		}{{500, 0}, {503, 0}, {500, 1}, {200, 1}, {500, 1}, {502, 1}, {404, 1}, {500, 1}, {500, 1}, {500, 2}, {500, 2}, {500, 2}, {500, 3}} {
			c.send(fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", step.status))
			if resp, _ := c.answer("POST"); resp.StatusCode != step.status {
				t.Fatalf("step %d: got %d", i, resp.StatusCode)
			}
			r.wait(i + 1)
			if n := r.failing.Load(); n != step.told {
				t.Fatalf("step %d: told %d times, want %d", i, n, step.told)
			}
		}
	})
}

// An endpoint that was closed gets nothing, though the table of the exchange has it: the latest pool is asked.
func TestClosedEndpoint(t *testing.T) {
	for _, most := range []int{0, 1} {
		eachEngine(t, func(t *testing.T, engine string) {
			old, next := statuses(t), statuses(t)
			r := startWith(t, engine, Settings{}, func(r *rig) { r.upstreams = &pool.Settings{MaxConcurrent: most} }, old)
			stale := poolOf(r)
			other := startWith(t, engine, Settings{}, func(*rig) {}, next)
			latest := poolOf(other)
			var series pool.Series
			series.Set(stale)
			stale.Weights[0].Endpoint.Close()
			c := r.dial()
			ask := func() {
				t.Helper()
				c.send("GET /200 HTTP/1.1\r\nHost: a\r\n\r\n")
				if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
					t.Fatalf("got %d", resp.StatusCode)
				}
				if e := stale.Weights[0].Endpoint; e.InFlight() != 0 {
					t.Errorf("%d in flight", e.InFlight())
				}
			}
			ask() // there is no other
			series.Set(latest)
			ask()
			records := r.wait(2)
			if a, b := records[0].Endpoint.Name, records[1].Endpoint.Name; a != old || b != next {
				t.Errorf("%s, then %s answered; want %s, then %s", a, b, old, next)
			}
			none, err := pool.New(r.service, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			series.Set(none)
			c.send("GET /200 HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, _ := c.answer("GET"); resp.StatusCode != 503 {
				t.Errorf("nobody is left: got %d", resp.StatusCode)
			}
		})
	}
}

func poolOf(r *rig) *pool.Pool {
	return r.store.Load().Match(&route.Request{Method: []byte("GET"), Host: []byte("a"), Path: []byte("/")}).Pool
}

// What an instance says of its load counts, as far as it is not ours, and is not passed on.
func TestReportedLoad(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		report := "10"
		up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Rota-Load", report) }))
		t.Cleanup(up.Close)
		r := startWith(t, engine, Settings{}, func(*rig) {}, up.Listener.Addr().String())
		e := poolOf(r).Weights[0].Endpoint
		c := r.dial()
		for i, step := range []struct {
			report string
			load   int64
		}{{"10", 9}, {"1", 0}, {"7", 6}, {"", 6}, {"x", 6}, {"-3", 6}, {"99999999999999999999", 6}, {"9999999999", 1<<20 - 1}} {
			report = step.report
			c.send("GET / HTTP/1.1\r\nHost: a\r\nRota-Load: 5\r\n\r\n")
			resp, _ := c.answer("GET")
			if resp.StatusCode != 200 || resp.Header["Rota-Load"] != nil {
				t.Errorf("got %d %v", resp.StatusCode, resp.Header)
			}
			r.wait(i + 1)
			if got := e.Load(); got != step.load {
				t.Errorf("%q: load %d, want %d", step.report, got, step.load)
			}
		}
		if !r.service.DoReport() {
			t.Error("nobody knows that the service reports")
		}
		for range 21 {
			e.Fade()
		}
		if e.Load() != 0 {
			t.Errorf("load %d does not fade", e.Load())
		}
	})
}
