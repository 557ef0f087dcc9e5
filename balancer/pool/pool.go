package pool

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// Member is an endpoint as a pool sees it.
type Member struct {
	Endpoint *Endpoint
	Weight   int // relative share of traffic; zero takes none
}

// Pool is the eligible endpoints of one service, of one generation. It is immutable and may be used concurrently.
type Pool struct {
	Service *Service
	Policy  string
	Weights []Member // all members, those of weight zero included; read-only
	// Settings may be set before the pool is used; nil is the zero value.
	Settings *Settings
	// Series may be set before the pool is used; nil is none.
	Series *Series

	members []Member // weight > 0
	picker  picker
}

// picker is the one method of a policy: it returns the index of a member. It is called with at least two members.
type picker interface{ pick() int }

// New builds a pool. policy is one of [Policies]; empty means [DefaultPolicy]. The pool keeps members: the caller
// must not change the slice any more.
func New(service *Service, policy string, members []Member) (*Pool, error) {
	if policy == "" {
		policy = DefaultPolicy
	}
	build, ok := policies[policy]
	if !ok {
		return nil, fmt.Errorf("unknown balancing policy %q: use one of %v", policy, Policies())
	}
	p := &Pool{Service: service, Policy: policy, Weights: members, members: members}
	if slices.ContainsFunc(members, func(m Member) bool { return m.Weight <= 0 }) {
		p.members = nil
		for _, m := range members {
			if m.Weight > 0 {
				p.members = append(p.members, m)
			}
		}
	}
	if len(p.members) > 1 {
		p.picker = build(service, p.members)
	}
	return p, nil
}

// Series is the pools of one name, one after the other. The zero value is ready.
type Series struct{ latest atomic.Pointer[Pool] }

// Set makes a pool the latest of its series.
func (s *Series) Set(p *Pool) {
	p.Series = s
	s.latest.Store(p)
}

// Latest is the pool that has taken this one's place; the pool itself as long as none has. An exchange that picks again
// after a while does so there.
func (p *Pool) Latest() *Pool {
	if p.Series == nil {
		return p
	}
	return p.Series.latest.Load()
}

// Len is the number of endpoints that may be picked.
func (p *Pool) Len() int { return len(p.members) }

// WithRoom returns the endpoint with the fewest exchanges in flight, if they are fewer than limit, else nil. Endpoints in
// tried are not looked at.
func (p *Pool) WithRoom(limit int, tried ...*Endpoint) *Endpoint {
	var best *Endpoint
	least := limit
	for i := range p.members {
		if e := p.members[i].Endpoint; e.InFlight() < least && !slices.Contains(tried, e) {
			best, least = e, e.InFlight()
		}
	}
	return best
}

// Pick chooses an endpoint that is not among tried, or nil when there is none. It does not count the exchange in:
// the caller calls [Endpoint.Take].
func (p *Pool) Pick(tried ...*Endpoint) *Endpoint {
	n := len(p.members)
	if n == 0 {
		return nil
	}
	i := 0
	switch {
	case n > 1 && len(tried) < 2:
		i = p.picker.pick()
	case n > 1: // neighbours may have failed together, so that the turn of the next one is no better
		i = rand.IntN(n)
	}
	if e := p.members[i].Endpoint; len(tried) == 0 || !slices.Contains(tried, e) {
		return e
	}
	for step := 1; step < n; step++ {
		if e := p.members[(i+step)%n].Endpoint; !slices.Contains(tried, e) {
			return e
		}
	}
	return nil
}
