package pool

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func members(weights ...int) []Member {
	list := make([]Member, len(weights))
	for i, w := range weights {
		list[i] = Member{NewEndpoint(Key{Service: "s", ID: fmt.Sprint(i), Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)}), w}
	}
	return list
}

func equal(n int) []Member { return members(slices.Repeat([]int{100}, n)...) }

func build(t testing.TB, policy string, list []Member) *Pool {
	t.Helper()
	p, err := New(NewService("s"), policy, list)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestUnknownPolicy(t *testing.T) {
	if _, err := New(NewService("s"), "fastest", nil); err == nil {
		t.Error("accepted")
	}
}

// Whatever the weights: a pick returns an endpoint of weight above zero, or nil if there is none, and one that was not
// tried as long as there is one.
func TestPickProperties(t *testing.T) {
	for _, policy := range Policies() {
		t.Run(policy, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				weights := rapid.SliceOfN(rapid.OneOf(rapid.Just(0), rapid.IntRange(0, 10000), rapid.Just(100)), 0, 130).Draw(t, "weights")
				list := members(weights...)
				p, err := New(NewService("s"), policy, list)
				if err != nil {
					t.Fatal(err)
				}
				usable := 0
				weight := map[*Endpoint]int{}
				for _, m := range list {
					weight[m.Endpoint] = m.Weight
					if m.Weight > 0 {
						usable++
					}
				}
				if p.Len() != usable {
					t.Fatalf("Len is %d, want %d", p.Len(), usable)
				}
				var tried []*Endpoint
				for range usable + 3 {
					e := p.Pick(tried...)
					if (e == nil) != (len(tried) >= usable) {
						t.Fatalf("picked %v with %d of %d tried", e, len(tried), usable)
					}
					if e == nil {
						break
					}
					if weight[e] == 0 || slices.Contains(tried, e) {
						t.Fatalf("picked one of weight %d, tried: %v", weight[e], slices.Contains(tried, e))
					}
					if rapid.Bool().Draw(t, "load") {
						e.Take()
					}
					tried = append(tried, e)
				}
			})
		})
	}
}

// Round robin gives every member exactly its share in each round, from any starting point.
func TestRoundRobinIsExact(t *testing.T) {
	for _, weights := range [][]int{{1, 1, 1}, {5, 1, 1}, {1, 2, 3}, {100, 100, 37}, {10000, 1}, {7, 0, 3}, {100, 50, 25, 25}} {
		p := build(t, "round_robin", members(weights...))
		divisor, total := uint64(0), 0
		for _, w := range weights {
			divisor = gcd(uint64(w), divisor)
			total += w
		}
		round := total / int(divisor)
		got := map[*Endpoint]int{}
		for range 3 * round {
			got[p.Pick()]++
		}
		for _, m := range p.Weights {
			if want := 3 * m.Weight / int(divisor); got[m.Endpoint] != want {
				t.Errorf("weights %v: weight %d was picked %d times, want %d", weights, m.Weight, got[m.Endpoint], want)
			}
		}
	}
}

// And it spreads them: the gap between two picks of a member is at most about twice the mean.
func TestRoundRobinIsSmooth(t *testing.T) {
	p := build(t, "round_robin", members(50, 30, 15, 5))
	last := map[*Endpoint]int{}
	for i := range 1000 {
		e := p.Pick()
		if before, ok := last[e]; ok {
			mean := 100.0 / float64([]int{50, 30, 15, 5}[slices.IndexFunc(p.Weights, func(m Member) bool { return m.Endpoint == e })])
			if gap := float64(i - before); gap > math.Ceil(2*mean)+1 {
				t.Fatalf("a gap of %v picks where the mean is %v", gap, mean)
			}
		}
		last[e] = i
	}
}

// A rebuild neither restarts the rotation nor forgets the load.
func TestRebuildKeepsState(t *testing.T) {
	s := NewService("s")
	list := equal(3)
	pick := func() *Endpoint {
		p, err := New(s, "round_robin", slices.Clone(list))
		if err != nil {
			t.Fatal(err)
		}
		return p.Pick()
	}
	seen := map[*Endpoint]int{}
	for range 30 {
		seen[pick()]++
	}
	for e, n := range seen {
		if n != 10 {
			t.Errorf("%s was picked %d times of 30 over 30 rebuilds, want 10", e.Name, n)
		}
	}
	list[0].Endpoint.Take()
	list[1].Endpoint.Take()
	p := build(t, "least_request", slices.Clone(list))
	if e := p.Pick(); e != list[2].Endpoint {
		t.Errorf("least_request picked %s", e.Name)
	}
}

func TestLeastRequest(t *testing.T) {
	list := equal(5)
	p := build(t, "least_request", list)
	for range 50 { // takes without releases fill evenly
		p.Pick().Take()
	}
	for _, m := range list {
		if n := m.Endpoint.InFlight(); n != 10 {
			t.Errorf("%s has %d in flight, want 10", m.Endpoint.Name, n)
		}
	}
	weighted := members(300, 100)
	p = build(t, "least_request", weighted)
	for range 80 {
		p.Pick().Take()
	}
	if a, b := weighted[0].Endpoint.InFlight(), weighted[1].Endpoint.InFlight(); a != 60 || b != 20 {
		t.Errorf("weights 3:1 hold %d and %d, want 60 and 20", a, b)
	}
}

// Random policies keep to the weights within five standard deviations.
func TestRandomShares(t *testing.T) {
	const picks = 60_000
	p := build(t, "random", members(100, 200, 300))
	got := map[*Endpoint]int{}
	for range picks {
		got[p.Pick()]++
	}
	for i, m := range p.Weights {
		share := float64(i+1) / 6
		if d := math.Abs(float64(got[m.Endpoint]) - picks*share); d > 5*math.Sqrt(picks*share*(1-share)) {
			t.Errorf("share %.3f, want %.3f", float64(got[m.Endpoint])/picks, share)
		}
	}
}

func TestP2CAvoidsTheBusy(t *testing.T) {
	list := equal(4)
	for range 100 {
		list[0].Endpoint.Take()
	}
	p := build(t, "p2c", list)
	for range 1000 {
		if p.Pick() == list[0].Endpoint {
			t.Fatal("picked the busiest of two")
		}
	}
}

func TestConcurrentPicks(t *testing.T) {
	for _, policy := range Policies() {
		list := equal(7)
		p := build(t, policy, list)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 2000 {
					e := p.Pick()
					e.Take()
					e.Stats().Record(200, 0, nil)
					e.Release()
				}
			})
		}
		wg.Wait()
		var total uint64
		for _, m := range list {
			if m.Endpoint.InFlight() != 0 {
				t.Errorf("%s: %d left in flight", policy, m.Endpoint.InFlight())
			}
			v := m.Endpoint.Stats().View()
			total += v.Durations.Count()
		}
		if total != 16000 {
			t.Errorf("%s: %d outcomes counted, want 16000", policy, total)
		}
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	for _, policy := range Policies() {
		for _, n := range []int{1, 16, 1000} {
			p := build(t, policy, equal(n))
			if a := testing.AllocsPerRun(100, func() { p.Pick() }); a != 0 {
				t.Errorf("%s over %d: %v allocations", policy, n, a)
			}
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, policy := range Policies() {
		for _, n := range []int{16, 1000} {
			b.Run(fmt.Sprintf("%s/%d", policy, n), func(b *testing.B) {
				p := build(b, policy, equal(n))
				b.ReportAllocs()
				for b.Loop() {
					p.Pick()
				}
			})
		}
	}
}
