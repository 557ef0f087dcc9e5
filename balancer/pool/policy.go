package pool

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// DefaultPolicy is used where none is named.
const DefaultPolicy = "least_request"

// policies is the one place where a policy has its name.
var policies = map[string]func(*Service, []Member) picker{
	"round_robin":   newRoundRobin,
	"least_request": newLeastRequest,
	"p2c":           newP2C,
	"random":        newRandom,
}

// Policies lists the names of the policies, sorted.
func Policies() []string { return slices.Sorted(maps.Keys(policies)) }

// roundRobin takes the members in turn, each as often as its weight says, evenly spread.
type roundRobin struct {
	service *Service
	turns   schedule
}

func newRoundRobin(s *Service, members []Member) picker {
	return &roundRobin{s, newSchedule(members)}
}

func (r *roundRobin) pick() int { return r.turns.at(r.service.cursor.Add(1)) }

// random draws a member with a probability proportional to its weight.
type random struct{ turns schedule }

func newRandom(_ *Service, members []Member) picker { return &random{newSchedule(members)} }

func (r *random) pick() int { return r.turns.random() }

// leastRequest takes the member with the fewest exchanges in flight per weight. Ties go in turn by weight, so an idle
// service behaves like round robin. Up to scanAll members are all compared; beyond, scanSome drawn at random.
type leastRequest struct {
	members []Member
	service *Service
	turns   schedule
}

const (
	scanAll  = 64
	scanSome = 8
)

func newLeastRequest(s *Service, members []Member) picker {
	return &leastRequest{members, s, newSchedule(members)}
}

func (l *leastRequest) pick() int {
	n := len(l.members)
	best := l.turns.at(l.service.cursor.Add(1))
	if n > scanAll {
		for range scanSome - 1 {
			if i := int(rand.Uint32N(uint32(n))); lighter(&l.members[i], &l.members[best]) {
				best = i
			}
		}
		return best
	}
	for start, i := best, best+1; ; i++ {
		if i == n {
			i = 0
		}
		if i == start {
			return best
		}
		if lighter(&l.members[i], &l.members[best]) {
			best = i
		}
	}
}

// lighter reports whether a carries less load per weight than b.
func lighter(a, b *Member) bool {
	return a.Endpoint.Load()*int64(b.Weight) < b.Endpoint.Load()*int64(a.Weight)
}

// p2c draws two different members and takes the lighter one (Mitzenmacher, "The power of two choices", 2001).
type p2c struct {
	members []Member
	turns   schedule
}

func newP2C(_ *Service, members []Member) picker { return &p2c{members, newSchedule(members)} }

func (p *p2c) pick() int {
	n := len(p.members)
	a := p.turns.random()
	b := a + 1 + int(rand.Uint32N(uint32(n-1)))
	if b >= n {
		b -= n
	}
	if lighter(&p.members[b], &p.members[a]) {
		return b
	}
	return a
}
