package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/rota-lb/rota/balancer/pool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a Prober over connections that answer nothing, with what it reported.
type world struct {
	*Prober
	mu      sync.Mutex
	results []Result
	dials   []time.Duration // since the begin
}

// newWorld runs a Prober in a bubble until the test ends. A dial takes as long as delay says, or until it is given up.
func newWorld(t *testing.T, concurrency int, delay func(*pool.Endpoint) time.Duration) *world {
	w := &world{}
	begin := time.Now()
	w.Prober = New(Options{
		Concurrency: concurrency,
		Report: func(r Result) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.results = append(w.results, r)
		},
		Dial: func(ctx context.Context, e *pool.Endpoint) (net.Conn, error) {
			w.mu.Lock()
			w.dials = append(w.dials, time.Since(begin))
			w.mu.Unlock()
			if delay != nil {
				select {
				case <-time.After(delay(e)):
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			here, there := net.Pipe()
			there.Close()
			return here, nil
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

// take returns what was dialled and reported since the last call, when all that can happen now has happened.
func (w *world) take() (dials []time.Duration, results []Result) {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	dials, results = w.dials, w.results
	w.dials, w.results = nil, nil
	return dials, results
}

func endpoint(n int) *pool.Endpoint {
	return pool.NewEndpoint(pool.Key{
		Service: "s", ID: fmt.Sprint(n), Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(n >> 8), byte(n)}), 80),
	})
}

// The first probe is at once, the second within an interval, the others an interval apart, give or take a tenth.
func TestIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0, nil)
		time.Sleep(time.Second)
		w.Set(endpoint(1), Check{})
		time.Sleep(time.Hour)
		dials, results := w.take()
		if len(dials) < 690 || len(dials) > 750 || len(results) != len(dials) {
			t.Fatalf("%d dials, %d results in an hour", len(dials), len(results))
		}
		if dials[0] != time.Second {
			t.Errorf("the first at %v", dials[0])
		}
		different := map[time.Duration]bool{}
		for i := 1; i < len(dials); i++ {
			d, least, most := dials[i]-dials[i-1], 4500*time.Millisecond, 5500*time.Millisecond
			if i == 1 {
				least, most = 2500*time.Millisecond, 5*time.Second
			}
			if d < least || d > most {
				t.Fatalf("the %dth after %v", i, d)
			}
			different[d] = true
		}
		if len(different) < len(dials)/2 {
			t.Error("no jitter")
		}
	})
}

func TestSetBeforeRunAndRunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		p := New(Options{
			Report: func(Result) { n.Add(1) },
			Dial: func(context.Context, *pool.Endpoint) (net.Conn, error) {
				return nil, errors.New("no")
			},
		})
		p.Set(endpoint(1), Check{})
		p.Set(endpoint(2), Check{})
		p.Probe(endpoint(2))
		p.Remove(endpoint(3))
		for round := range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- p.Run(ctx) }()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if n.Load() < 2 {
				t.Errorf("round %d: %d reports of two endpoints", round, n.Load())
			}
			if p.Run(ctx) == nil {
				t.Error("it runs twice at a time")
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			n.Store(0)
		}
		time.Sleep(time.Minute)
		if n.Load() != 0 {
			t.Error("a report after Run has returned")
		}
	})
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := endpoint(1)
		w := newWorld(t, 0, func(*pool.Endpoint) time.Duration { return time.Hour })
		w.Set(e, Check{})
		time.Sleep(time.Second)
		_, results := w.take()
		if len(results) != 1 || results[0].Took != time.Second || !errors.Is(results[0].Err, context.DeadlineExceeded) ||
			errors.Is(results[0].Err, ErrRefused) || !results[0].At.Equal(time.Now()) {
			t.Fatalf("%+v", results)
		}
		// The timeout is at most the interval, and probes do not overlap when jitter brings them close.
		w.Set(e, Check{Interval: 200 * time.Millisecond})
		time.Sleep(20 * time.Second)
		_, results = w.take()
		for i, r := range results[1:] {
			if r.Took != 200*time.Millisecond || r.At.Sub(results[i].At) < r.Took {
				t.Fatalf("took %v, %v after the last", r.Took, r.At.Sub(results[i].At))
			}
		}
	})
}

// What is silent in the middle of an answer is given up as well, and so it is when ctx ends.
func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var there []net.Conn
		reports := make(chan Result, 10)
		p := New(Options{
			Report: func(r Result) { reports <- r },
			Dial: func(context.Context, *pool.Endpoint) (net.Conn, error) {
				a, b := net.Pipe()
				there = append(there, b)
				return a, nil
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		p.Set(endpoint(1), Check{Type: HTTP})
		if r := <-reports; r.Took != time.Second || r.Err == nil || errors.Is(r.Err, ErrRefused) {
			t.Errorf("%+v", r)
		}
		p.Probe(endpoint(1)) // does nothing: the same key is not the same endpoint
		time.Sleep(5 * time.Second)
		<-reports
		p.Set(endpoint(2), Check{Type: HTTP})
		synctest.Wait()
		before := time.Now()
		cancel()
		if err := <-ended; err != nil || time.Since(before) != 0 {
			t.Errorf("Run: %v after %v", err, time.Since(before))
		}
		if len(reports) > 0 {
			t.Errorf("what was given up is reported: %+v", <-reports)
		}
		for _, c := range there {
			if _, err := c.Write([]byte("x")); err == nil {
				t.Error("a connection is open")
			}
			c.Close()
		}
	})
}

func TestSetAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := endpoint(1)
		var slow atomic.Bool
		w := newWorld(t, 0, func(*pool.Endpoint) time.Duration {
			if slow.Load() {
				return 500 * time.Millisecond
			}
			return 0
		})
		count := func(after time.Duration, dials, results int) {
			t.Helper()
			time.Sleep(after)
			if d, r := w.take(); len(d) != dials || len(r) != results {
				t.Fatalf("%d dials, %d results; want %d, %d", len(d), len(r), dials, results)
			}
		}
		slow10 := Check{Interval: 10 * time.Second, Status: [][2]int{{200, 200}}, Headers: [][2]string{{"A", "b"}}}
		w.Set(e, slow10)
		count(0, 1, 1)
		equal := slow10
		equal.Status, equal.Headers = [][2]int{{200, 200}}, [][2]string{{"A", "b"}}
		w.Set(e, equal)
		count(4*time.Second, 0, 0)
		// Faster: the last probe was 4 s ago.
		fast := slow10
		fast.Interval = time.Second
		w.Set(e, fast)
		count(0, 1, 1)
		count(500*time.Millisecond, 0, 0)
		count(600*time.Millisecond, 1, 1)
		w.Set(e, slow10)
		count(8900*time.Millisecond-600*time.Millisecond, 0, 0)
		// Another question is asked at once.
		other := slow10
		other.Host = "other"
		w.Set(e, other)
		count(0, 1, 1)
		// Also while it is being probed; the old answer does not count.
		slow.Store(true)
		w.Probe(e)
		count(100*time.Millisecond, 1, 0)
		w.Probe(e)
		count(0, 0, 0)
		w.Set(e, slow10)
		count(0, 1, 0)
		count(499*time.Millisecond, 0, 0)
		count(time.Millisecond, 0, 1)
		// Removed while it is being probed, and set anew at once.
		w.Probe(e)
		count(100*time.Millisecond, 1, 0)
		w.Remove(e)
		w.Probe(e)
		w.Set(e, slow10)
		w.Remove(e)
		w.Set(e, slow10)
		count(0, 1, 0)
		count(time.Second, 0, 1)
		w.Probe(e)
		count(100*time.Millisecond, 1, 0)
		w.Remove(e)
		count(time.Hour, 0, 0)
		if len(w.targets) != 0 || len(w.due) != 0 || w.busy != 0 {
			t.Errorf("left: %d targets, %d due, %d busy", len(w.targets), len(w.due), w.busy)
		}
	})
}

// A report may call back, and a Probe from it is not lost.
func TestReportCallsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p *Prober
		var n atomic.Int64
		p = New(Options{
			Dial: func(context.Context, *pool.Endpoint) (net.Conn, error) { return nil, errors.New("no") },
			Report: func(r Result) {
				switch n.Add(1) {
				case 1, 2, 3:
					p.Probe(r.Endpoint)
				case 4:
					p.Set(r.Endpoint, Check{Interval: time.Second})
				case 10:
					p.Remove(r.Endpoint)
				}
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		p.Set(endpoint(1), Check{Interval: time.Hour})
		synctest.Wait()
		if n.Load() != 4 {
			t.Errorf("%d reports at once", n.Load())
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n.Load() != 10 {
			t.Errorf("%d reports until it was removed", n.Load())
		}
		cancel()
		<-ended
	})
}

// 10,000 endpoints are all probed on time by few goroutines, also if one in a hundred is silent.
func TestMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const endpoints, concurrency = 10_000, 64
		silent := map[*pool.Endpoint]bool{}
		var mu sync.Mutex
		counts, running := map[*pool.Endpoint]int{}, map[*pool.Endpoint]bool{}
		most, goroutines := 0, 0
		p := New(Options{
			Concurrency: concurrency,
			Report: func(r Result) {
				mu.Lock()
				defer mu.Unlock()
				counts[r.Endpoint]++
				delete(running, r.Endpoint)
			},
			Dial: func(ctx context.Context, e *pool.Endpoint) (net.Conn, error) {
				mu.Lock()
				if running[e] {
					t.Errorf("%s is probed twice at a time", e.ID)
				}
				running[e] = true
				most, goroutines = max(most, len(running)), max(goroutines, runtime.NumGoroutine())
				mu.Unlock()
				if silent[e] {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				time.Sleep(time.Millisecond)
				return nil, errors.New("no")
			},
		})
		before := runtime.NumGoroutine()
		for i := range endpoints {
			e := endpoint(i)
			silent[e] = i%100 == 0
			p.Set(e, Check{})
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		for e := range silent {
			if n := counts[e]; n < 11 || n > 15 {
				t.Fatalf("%s was probed %d times in a minute", e.ID, n)
			}
		}
		t.Logf("at most %d probes at a time, %d goroutines; %d before", most, goroutines, before)
		const timers = 20 // timeouts that fire run in a goroutine each, for a moment
		if most > concurrency || goroutines > before+concurrency+timers {
			t.Errorf("at most %d probes at a time, %d goroutines", most, goroutines)
		}
		mu.Unlock()
		cancel()
		<-ended
	})
}

// Everything at once, for the race detector and for what must hold in the end.
func TestConcurrent(t *testing.T) {
	var probing [8]atomic.Int32
	var reports atomic.Int64
	endpoints := make([]*pool.Endpoint, len(probing))
	at := map[*pool.Endpoint]int{}
	for i := range endpoints {
		endpoints[i] = endpoint(i)
		at[endpoints[i]] = i
	}
	enough := make(chan struct{})
	p := New(Options{
		Concurrency: 4,
		Report: func(Result) {
			if reports.Add(1) == 5000 {
				close(enough)
			}
		},
		Dial: func(_ context.Context, e *pool.Endpoint) (net.Conn, error) {
			if probing[at[e]].Add(1) > 1 {
				t.Error("probed twice at a time")
			}
			runtime.Gosched()
			probing[at[e]].Add(-1)
			return nil, errors.New("no")
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for g := range 4 {
		all.Go(func() {
			for i := g; ctx.Err() == nil; i++ {
				e := endpoints[i*7%len(endpoints)]
				switch i % 5 {
				case 0:
					p.Set(e, Check{Host: fmt.Sprint(i % 3)})
				case 1:
					p.Set(e, Check{Interval: time.Duration(i%3) * time.Second})
				case 2:
					p.Remove(e)
				default:
					p.Probe(e)
				}
				runtime.Gosched()
			}
		})
	}
	<-enough
	cancel()
	all.Wait()
	if p.busy != 0 || len(p.due) != len(p.targets) {
		t.Errorf("%d busy, %d due of %d", p.busy, len(p.due), len(p.targets))
	}
}

func TestNewPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("New takes options without Report")
		}
	}()
	New(Options{})
}
