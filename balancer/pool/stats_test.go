package pool

import (
	"math"
	"sync"
	"testing"
	"time"
)

// A duration is in the fine bucket whose bounds are around it.
func TestFineBucket(t *testing.T) {
	for d := time.Nanosecond; d < 10*time.Minute; d += d/7 + 1 {
		i := fineBucket(d)
		if s := d.Seconds(); i > 0 && s <= FineBound(i-1)*(1-1e-12) || i < FineBuckets-1 && s > FineBound(i)*(1+1e-12) {
			t.Fatalf("%s is in bucket %d, up to %g", d, i, FineBound(i))
		}
	}
	for power := -14; power <= 6; power++ { // the upper bound belongs to the bucket
		d := time.Duration(math.Exp2(float64(power)) * 1e9)
		if float64(d) != math.Exp2(float64(power))*1e9 {
			continue
		}
		if i := fineBucket(d); i != 4*power-FineOffset {
			t.Errorf("2^%d s is in bucket %d, want %d", power, i, 4*power-FineOffset)
		}
	}
	if fineBucket(0) != 0 || fineBucket(time.Hour) != FineBuckets-1 {
		t.Error("the ends are not those")
	}
}

// What many loops count is all there.
func TestTallies(t *testing.T) {
	s := NewService("s")
	if s.Used() || s.InFlight() != 0 {
		t.Error("used before it was")
	}
	const loops, each = 20, 100
	var group sync.WaitGroup
	for loop := range loops {
		group.Go(func() {
			for range each {
				tally := s.Tally(loop)
				tally.Take()
				tally.Done(&Outcome{Method: MethodOf([]byte("GET")), Status: 200, Duration: 3 * time.Millisecond, Upstream: 2 * time.Millisecond, In: 10, Out: 100,
					Exemplar: &Exemplar{Trace: "t"}})
				tally.Done(&Outcome{Method: MethodOf([]byte("BREW")), Status: 999, Duration: time.Second, In: 1})
				tally.Done(&Outcome{Method: MethodOf([]byte("GET")), Protocol: WebSocket, Status: 101, Duration: time.Hour})
				if loop > 0 {
					tally.Release()
				}
			}
		})
	}
	group.Wait()
	const n = loops * each
	v := s.Totals()
	if v.Requests != 2*n || v.Errors != n || v.In != 11*n || v.Out != 100*n || s.InFlight() != each {
		t.Errorf("%d requests, %d errors, %d in, %d out, %d in flight", v.Requests, v.Errors, v.In, v.Out, s.InFlight())
	}
	if v.Durations.Sum != n*(time.Second+3*time.Millisecond) || v.Overhead.Sum != n*time.Millisecond || v.Overhead.Count() != n {
		t.Errorf("durations %s, overhead %s of %d", v.Durations.Sum, v.Overhead.Sum, v.Overhead.Count())
	}
	var fine uint64
	for _, c := range v.Durations.Fine {
		fine += c
	}
	if fine != v.Durations.Count() {
		t.Errorf("%d in fine buckets, %d in the others", fine, v.Durations.Count())
	}
	if x := v.Durations.Exemplars; len(x) == 0 || x[0] != (Exemplar{Trace: "t", Took: 3 * time.Millisecond}) {
		t.Errorf("exemplars %v", x)
	}
	if x := v.Overhead.Exemplars; len(x) == 0 || x[0] != (Exemplar{Trace: "t", Took: time.Millisecond}) {
		t.Errorf("exemplars of the overhead %v", x)
	}
	got := map[Count]bool{}
	s.EachCount(func(c Count) { got[c] = true })
	for _, want := range []Count{{"GET", HTTP, 200, n}, {"_OTHER", HTTP, 500, n}, {"GET", WebSocket, 101, n}} {
		if !got[want] || len(got) != 3 {
			t.Errorf("%v is not among %v", want, got)
		}
	}
}

func BenchmarkDone(b *testing.B) {
	s := NewService("s")
	b.RunParallel(func(pb *testing.PB) {
		tally, method := s.Tally(int(time.Now().UnixNano())), MethodOf([]byte("GET"))
		for pb.Next() {
			tally.Done(&Outcome{Method: method, Status: 200, Duration: 3 * time.Millisecond, Upstream: 2 * time.Millisecond, In: 10, Out: 100})
		}
	})
}
