package pool

import (
	"math/rand/v2"
	"sort"
)

// schedule turns a running number into a member so that every member comes as often as its weight says, exactly, in
// each round of total turns, and evenly spread within the round.
//
// Give member i the interval [ends[i-1], ends[i]) of the numbers below total. The turns of a round visit every number
// once, in the order 0, step, 2·step, … modulo total. With step near total divided by the golden ratio, and coprime to
// total, consecutive turns fall far apart and any interval is hit at nearly even distances (the three-distance
// theorem; Knuth, TAOCP 3, 6.4). There is no state but the running number, so picking is one multiplication and a
// binary search, and building is linear in the number of members.
type schedule struct {
	ends  []uint32 // nil when all weights are equal: then a turn is a member
	total uint64
	step  uint64
}

func newSchedule(members []Member) schedule {
	divisor, equal := uint64(0), true
	for _, m := range members {
		divisor = gcd(uint64(m.Weight), divisor)
		equal = equal && m.Weight == members[0].Weight
	}
	if equal {
		return schedule{total: uint64(len(members))}
	}
	s := schedule{ends: make([]uint32, len(members))}
	for i, m := range members {
		s.total += uint64(m.Weight) / divisor
		s.ends[i] = uint32(s.total)
	}
	const inverseGoldenRatio = 0.6180339887498949
	s.step = max(1, uint64(float64(s.total)*inverseGoldenRatio+0.5))
	for gcd(s.step, s.total) != 1 {
		s.step++
	}
	return s
}

// at returns the member of a turn.
func (s *schedule) at(turn uint64) int {
	turn %= s.total
	if s.ends == nil {
		return int(turn)
	}
	return s.find(uint32(turn * s.step % s.total))
}

// random draws a member.
func (s *schedule) random() int {
	n := rand.Uint64N(s.total)
	if s.ends == nil {
		return int(n)
	}
	return s.find(uint32(n))
}

// find returns the member whose interval holds n.
func (s *schedule) find(n uint32) int {
	return sort.Search(len(s.ends), func(i int) bool { return s.ends[i] > n })
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
