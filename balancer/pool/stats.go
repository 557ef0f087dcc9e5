package pool

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds are the upper bounds of the buckets that are counted one by one.
var Bounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	1 * time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 75 * time.Millisecond, 100 * time.Millisecond,
	250 * time.Millisecond, 500 * time.Millisecond, 750 * time.Millisecond, 1 * time.Second,
	2500 * time.Millisecond, 5 * time.Second, 7500 * time.Millisecond, 10 * time.Second,
}

// Fine buckets grow by 2^(1/4), schema 2 of Prometheus' native histograms: bucket i holds what is longer than
// 2^((i-1+FineOffset)/4) seconds, but not longer than 2^((i+FineOffset)/4). The first holds what is shorter, too, the last
// what is longer.
const (
	FineOffset  = -14 * 4 // the first ends at 61 µs
	FineBuckets = 20*4 + 1
)

// FineBound is the upper bound of a fine bucket, in seconds.
func FineBound(i int) float64 { return math.Exp2(float64(i+FineOffset) / 4) }

// Histogram counts durations. The zero value is ready; it may be used concurrently.
type Histogram struct {
	buckets   [len(Bounds) + 1]atomic.Uint64
	fine      [FineBuckets]atomic.Uint64
	sum       atomic.Int64 // nanoseconds
	exemplars atomic.Pointer[[len(Bounds) + 1]atomic.Pointer[Exemplar]]
}

// Exemplar is one of those that were counted, by name.
type Exemplar struct {
	Trace, Request string        // their ids
	Took           time.Duration // as it was counted, whatever was given
	At             time.Time
}

// Add counts a duration; less than nothing counts as nothing. An exemplar takes the place of the last one of its bucket.
func (h *Histogram) Add(d time.Duration, x *Exemplar) {
	d = max(d, 0)
	i := 0
	for i < len(Bounds) && d > Bounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.fine[fineBucket(d)].Add(1)
	h.sum.Add(int64(d))
	if x != nil {
		own := *x
		own.Took = d
		lazy(&h.exemplars)[i].Store(&own)
	}
}

// fineBucket is the bucket of a duration: four times its binary logarithm, rounded up.
func fineBucket(d time.Duration) int {
	if d <= 0 {
		return 0
	}
	frac, exp := math.Frexp(d.Seconds()) // frac is from a half to one
	i := 4 * (exp - 1)
	for _, bound := range [...]float64{0.5, 0.5 * 1.189207115002721, 0.5 * math.Sqrt2, 0.5 * 1.681792830507429} {
		if frac > bound {
			i++
		}
	}
	return min(max(i-FineOffset, 0), FineBuckets-1)
}

// HistogramView is a copy of a histogram, or the sum of several.
type HistogramView struct {
	Buckets   [len(Bounds) + 1]uint64
	Fine      [FineBuckets]uint64
	Sum       time.Duration
	Exemplars []Exemplar
}

// Count is how many were counted.
func (v *HistogramView) Count() uint64 {
	var n uint64
	for _, c := range v.Buckets {
		n += c
	}
	return n
}

func (h *Histogram) addTo(v *HistogramView) {
	for i := range h.buckets {
		v.Buckets[i] += h.buckets[i].Load()
	}
	for i := range h.fine {
		v.Fine[i] += h.fine[i].Load()
	}
	v.Sum += time.Duration(h.sum.Load())
	if list := h.exemplars.Load(); list != nil {
		for i := range list {
			if x := list[i].Load(); x != nil {
				v.Exemplars = append(v.Exemplars, *x)
			}
		}
	}
}

// Counts counts what is rare, by name. The zero value is ready; it may be used concurrently.
type Counts[K comparable] struct{ byName sync.Map } // K → *atomic.Uint64

// Add counts one more.
func (c *Counts[K]) Add(name K) {
	n, ok := c.byName.Load(name)
	if !ok {
		n, _ = c.byName.LoadOrStore(name, new(atomic.Uint64))
	}
	n.(*atomic.Uint64).Add(1)
}

// Each calls f with every count, in no order.
func (c *Counts[K]) Each(f func(name K, n uint64)) {
	c.byName.Range(func(name, n any) bool {
		f(name.(K), n.(*atomic.Uint64).Load())
		return true
	})
}

// Stats counts what became of attempts on an endpoint. The zero value is ready.
type Stats struct {
	classes   [6]atomic.Uint64 // [0] attempts that ended without an answer
	durations Histogram
	failed    atomic.Int32 // outcomes in a row that are failures
	// Errors counts attempts without an answer, by reason; Ejections how often the endpoint was taken out of its pool, likewise.
	Errors, Ejections Counts[string]
}

// Record counts one outcome. A status outside 100–599 means that there was no answer. It returns how many outcomes in a row,
// this one included, were failures: no answer, or a status of 500 and more. The exemplar may be nil.
func (s *Stats) Record(status int, d time.Duration, x *Exemplar) (failures int) {
	class := status / 100
	if class < 1 || class > 5 {
		class = 0
	}
	s.classes[class].Add(1)
	s.durations.Add(d, x)
	if class == 0 || class == 5 {
		return int(s.failed.Add(1))
	}
	if s.failed.Load() != 0 {
		s.failed.Store(0)
	}
	return 0
}

// SetFailures says how many outcomes in a row are to be taken for failures from now on: who is on trial begins with all but
// the last.
func (s *Stats) SetFailures(n int) { s.failed.Store(int32(n)) }

// Outcomes are how many there were, and how many of them were failures.
func (s *Stats) Outcomes() (all, failures uint64) {
	for i := range s.classes {
		all += s.classes[i].Load()
	}
	return all, s.classes[0].Load() + s.classes[5].Load()
}

// StatsView is a copy of the counters, for telemetry. The parts are read one after the other and may differ by the
// exchanges that end meanwhile.
type StatsView struct {
	Classes   [6]uint64     // index 1 to 5: answers 1xx to 5xx; index 0: no answer
	Durations HistogramView // to the head of the answer, or the failure
}

// View copies the counters.
func (s *Stats) View() StatsView {
	var v StatsView
	for i := range s.classes {
		v.Classes[i] = s.classes[i].Load()
	}
	s.durations.addTo(&v.Durations)
	return v
}
