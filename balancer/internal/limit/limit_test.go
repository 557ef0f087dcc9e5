package limit

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// bucket is the textbook token bucket.
type bucket struct {
	tokens float64
	last   time.Time
}

func (b *bucket) allow(now time.Time, every time.Duration, burst int) bool {
	b.tokens = min(float64(burst), b.tokens+float64(now.Sub(b.last))/float64(every))
	b.last = now
	if b.tokens < 1-1e-9 {
		return false
	}
	b.tokens--
	return true
}

// The table decides as a token bucket for each key does.
func TestTokenBucket(t *testing.T) {
	for _, tc := range []struct {
		every time.Duration
		burst int
	}{{time.Second, 1}, {100 * time.Millisecond, 5}, {time.Millisecond, 100}, {time.Minute, 3}} {
		table, now := NewTable(1024), time.Now()
		keys := map[byte]*bucket{}
		for i := range 5000 {
			now = now.Add(time.Duration(rand.Int64N(int64(tc.every))))
			k := byte(rand.IntN(4))
			if keys[k] == nil {
				keys[k] = &bucket{float64(tc.burst), now}
			}
			want := keys[k].allow(now, tc.every, tc.burst)
			got, after := table.Allow(now, 7, []byte{k}, tc.every, tc.burst)
			if got != want {
				t.Fatalf("%v: request %d of key %d: allowed %v, want %v", tc, i, k, got, want)
			}
			if !got && (after <= 0 || after > tc.every) {
				t.Fatalf("%v: try again after %v", tc, after)
			}
		}
	}
}

// Who comes back at the time told gets through.
func TestRetryAfter(t *testing.T) {
	table, now := NewTable(8), time.Now()
	for range 3 {
		if ok, _ := table.Allow(now, 1, nil, time.Second, 3); !ok {
			t.Fatal("the burst was refused")
		}
	}
	ok, after := table.Allow(now, 1, nil, time.Second, 3)
	if ok || after != time.Second {
		t.Fatalf("beyond the burst: %v, %v", ok, after)
	}
	if ok, _ := table.Allow(now.Add(after-1), 1, nil, time.Second, 3); ok {
		t.Error("allowed too early")
	}
	if ok, _ := table.Allow(now.Add(after), 1, nil, time.Second, 3); !ok {
		t.Error("refused at the time that was told")
	}
}

// Rules and keys are apart.
func TestApart(t *testing.T) {
	table, now := NewTable(64), time.Now()
	for rule := range uint64(4) {
		for k := range byte(4) {
			if ok, _ := table.Allow(now, rule, []byte{k}, time.Hour, 1); !ok {
				t.Errorf("rule %d, key %d met another one's bucket", rule, k)
			}
		}
	}
}

// A flood of keys neither grows the table nor lets a client that goes on be forgotten at once.
func TestFlood(t *testing.T) {
	table, now := NewTable(1024), time.Now()
	var k [8]byte
	allowed := 0
	for i := range uint64(100_000) {
		binary.LittleEndian.PutUint64(k[:], i)
		table.Allow(now, 1, k[:], time.Millisecond, 1)
		now = now.Add(time.Microsecond)
		if i%10 == 0 {
			if ok, _ := table.Allow(now, 1, []byte("steady"), time.Second, 2); ok {
				allowed++
			}
		}
	}
	if allowed > 4 {
		t.Errorf("10,000 requests in 0.1 s: %d allowed, want 2 and a few", allowed)
	}
	if n := testing.AllocsPerRun(100, func() { table.Allow(now, 1, k[:], time.Second, 2) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestConcurrent(t *testing.T) {
	table, now := NewTable(64), time.Now()
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for range 8 {
		wg.Go(func() {
			n := 0
			for range 1000 {
				if ok, _ := table.Allow(now, 1, []byte("k"), time.Hour, 100); ok {
					n++
				}
			}
			mu.Lock()
			total += n
			mu.Unlock()
		})
	}
	wg.Wait()
	if total != 100 {
		t.Errorf("%d allowed, want 100", total)
	}
}

func BenchmarkAllow(b *testing.B) {
	table, now := NewTable(64<<10), time.Now()
	key := []byte{10, 0, 0, 1}
	for b.Loop() {
		table.Allow(now, 1, key, time.Millisecond, 10)
	}
}
