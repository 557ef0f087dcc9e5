//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/bench/internal/rig"
)

func TestParseWrk(t *testing.T) {
	got, err := parseWrk(`Running 3s test @ http://127.0.0.1:8080/1k
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.98ms  312.00us  12.41ms   93.31%
    Req/Sec    65.21k     2.11k   69.02k    80.00%
  Latency Distribution
     50%  835.00us
     75%    1.02ms
     90%    1.21ms
     99%    1.62ms
  194552 requests in 3.00s, 243.25MB read
Requests/sec:  64850.71
Transfer/sec:     81.08MB
`)
	if err != nil {
		t.Fatal(err)
	}
	want := load{requests: 194552, bytes: 255066112, perSec: 64850.71, p50: 835 * time.Microsecond, p99: 1620 * time.Microsecond}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}

	got, err = parseWrk(`  10 requests in 1.00m, 900.00B read
  Socket errors: connect 0, read 3, write 0, timeout 1
  Non-2xx or 3xx responses: 7
Requests/sec:      0.17
`)
	if err != nil || got.bytes != 900 || got.errors != "socket errors: connect 0, read 3, write 0, timeout 1, 7 answers not 2xx" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseWrk("unable to connect to 127.0.0.1:1 Connection refused"); err == nil {
		t.Error("accepted")
	}
}

func TestLapRatio(t *testing.T) {
	laps := func(cpu ...float64) (out []lap) {
		for _, c := range cpu {
			out = append(out, lap{CPU: c})
		}
		return out
	}
	ones := laps(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
	for _, c := range []struct {
		a, b           []lap
		mid, low, high float64
	}{
		{laps(3), laps(2), 1.5, 1.5, 1.5},
		{laps(3, 1), laps(2, 2, 9), 1, 0.5, 1.5},
		{laps(16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), ones, 8.5, 5, 12},
	} {
		if mid, low, high := lapRatio(c.a, c.b); mid != c.mid || low != c.low || high != c.high {
			t.Errorf("%v by %v: %v (%v to %v), want %v (%v to %v)", c.a, c.b, mid, low, high, c.mid, c.low, c.high)
		}
	}
}

func TestParseStatus(t *testing.T) {
	got, err := parseStatus("Active connections: 3 \nserver accepts handled requests\n 65 65 203506 \nReading: 0 Writing: 1 Waiting: 2 \n")
	if want := (counters{65, 203506}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseStatus("<html>\n404\nnot found\n"); err == nil {
		t.Error("accepted")
	}
}

func TestParseStrace(t *testing.T) {
	calls, err := parseStrace("strace: Process 12 attached\n    calls syscall\n--------- ----------------\n     2001 recvfrom\n     1999 sendto\n        1 read\n       60 epoll_wait\n        9 getrandom\n--------- ----------------\n     4070 total\n")
	if err != nil {
		t.Fatal(err)
	}
	got := classify(calls)
	if got["receive"] != 2002 || got["send"] != 1999 || got["socket"] != 4001 || got["epoll_wait"] != 60 || got["other"] != 9 {
		t.Errorf("%v", got)
	}
	if _, err := parseStrace("strace: attach: Operation not permitted"); err == nil {
		t.Error("accepted")
	}
}

func TestParseMetric(t *testing.T) {
	text := "# TYPE go_memstats_mallocs_total counter\ngo_memstats_mallocs_total 1.5e+06\ngo_memstats_mallocs_total_other 2\n"
	if got, err := parseMetric(text, mallocs); err != nil || got != 1.5e6 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseMetric(text, "absent"); err == nil {
		t.Error("found")
	}
}

func TestReport(t *testing.T) {
	turns := func(cpu ...float64) (out []turn) {
		for i, c := range cpu {
			out = append(out, turn{Round: i, CPU: c})
		}
		return out
	}
	idle := 640.0
	r := report{Results: []*result{
		{Name: "floor", Turns: turns(10, 20, 12)},
		{Name: "rota", Version: "1.2", Turns: turns(11, 24, 12), Syscalls: map[string]float64{"socket": 4, "receive": 2, "send": 2, "futex": 0.5}, IdleBytes: &idle},
		{Name: "nginx", Turns: turns(20, 22), Unfair: "7 answers\nnot 2xx"},
	}}
	r.Results[0].Turns[1].Steal = 0.02
	got := r.markdown()
	for _, want := range []string{
		// Round by round the ratios are 1.1, 1.2, 1.0; nginx is not compared.
		"| rota  | 12.00 (11.00–24.00) | 0.00      | 0          | 0      | 0      | 1.10          | –             | –               |\n",
		"| rota | 4.00                 | 2.00    | 2.00 | 0.00       | 0.50        | 640                       | –                   |\n",
		"- nginx is not compared: 7 answers not 2xx\n",
		"- round 2, floor: the hypervisor took 2.0 % of the machine\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no line\n%s in\n%s", want, got)
		}
	}
	if got := r.unfair(); len(got) != 1 {
		t.Errorf("%v", got)
	}

	if strings.Contains(got, "rota-b") {
		t.Errorf("a column against nobody in\n%s", got)
	}
	r.Results = append(r.Results, &result{Name: "rota-b", Turns: turns(22, 24, 36)})
	got = r.markdown()
	if want := "| 1.10          | –             | –               | 0.50           |\n"; !strings.Contains(got, want) {
		t.Errorf("no line ends in\n%s in\n%s", want, got)
	}
}

func TestCases(t *testing.T) {
	defer setCase(testCases[0])
	for _, c := range testCases {
		setCase(c)
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(request)))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got, err := io.ReadAll(req.Body)
		if err != nil || len(got) != c.post || req.Method != method() || req.URL.Path != bodyPath || req.Close != c.close {
			t.Errorf("%s: %s %s with %d bytes, close %t, %v", c.name, req.Method, req.URL, len(got), req.Close, err)
		}
		if len(body) != c.size {
			t.Errorf("%s: a body of %d bytes", c.name, len(body))
		}
	}
	if _, err := findCase("h1"); err == nil {
		t.Error("found")
	}
}

func TestHandshakes(t *testing.T) {
	defer setCase(testCases[0])
	for _, name := range []string{"tls-handshake", "tls-resume"} {
		c, err := findCase(name)
		if err != nil {
			t.Fatal(err)
		}
		setCase(c)
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.TLS.Version != tls.VersionTLS13 || req.TLS.CurveID != tls.X25519 {
				w.WriteHeader(http.StatusUpgradeRequired)
			}
			w.Write(body)
		}))
		s.StartTLS()
		defer s.Close()
		l, err := handshakes(t.Context(), s.Listener.Addr().String(), 2, 50*time.Millisecond)
		if err != nil || l.requests < 2 || l.perSec <= 0 || l.p50 <= 0 || l.p99 < l.p50 || l.cpu <= 0 {
			t.Errorf("%s: %+v, %v", name, l, err)
		}

		s = httptest.NewUnstartedServer(http.NotFoundHandler())
		s.TLS = &tls.Config{SessionTicketsDisabled: true}
		s.StartTLS()
		defer s.Close()
		if _, err := handshakes(t.Context(), s.Listener.Addr().String(), 2, 50*time.Millisecond); err == nil {
			t.Errorf("%s: neither a status nor a session is missed", name)
		}
	}
}

func TestOpenLoop(t *testing.T) {
	const slow = 30 * time.Millisecond
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		time.Sleep(slow)
		w.Write(body)
	}))
	defer s.Close()
	r, err := rig.New()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	load, err := newOpenLoop(t.Context(), r)
	if err != nil {
		t.Skip(err) // no C compiler
	}
	// Two connections answer 66 a second at most, so of the 20 due within 100 ms the last waits for nine others.
	d, err := load.run(t.Context(), s.Listener.Addr().String(), 2, 200, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if least, most := float64(slow/time.Microsecond), float64(150*time.Millisecond/time.Microsecond); d.P50 < least || d.P999 < most || d.Late < most-least {
		t.Errorf("%+v", d)
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	if _, err := load.run(t.Context(), other.Listener.Addr().String(), 2, 200, 100*time.Millisecond); err == nil {
		t.Error("accepted another status")
	}
}

func TestFair(t *testing.T) {
	good := load{requests: 10000, bytes: 10000 * int64(len(body))}
	for _, c := range []struct {
		connections int
		load        load
		accepted    int64
		fair        bool
	}{
		{64, good, 272, true},
		{64, good, 273, false},
		{5000, good, 10000, true}, // the warm-up was too short for all of them
		{5000, good, 10001, false},
		{64, load{}, 0, false},
		{64, load{requests: 10000, bytes: 10000}, 0, false},
		{64, load{requests: good.requests, bytes: good.bytes, errors: "1 answers not 2xx"}, 0, false},
	} {
		b := &bench{options: &options{connections: c.connections}}
		if err := b.fair(c.load, c.accepted); (err == nil) != c.fair {
			t.Errorf("%d clients, %+v, %d upstream connections: %v", c.connections, c.load, c.accepted, err)
		}
	}
}

func TestMedian(t *testing.T) {
	if got := median([]float64{3, 1, 2}); got != 2 {
		t.Error(got)
	}
	if got := median([]float64{4, 1, 2, 3}); got != 2.5 {
		t.Error(got)
	}
}
