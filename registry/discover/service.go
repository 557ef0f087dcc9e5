package discover

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

const (
	// lostFor is how long an instance whose lease was lost is used on, beside others, unless it refuses: it comes back sooner than
	// that if it lives.
	lostFor = time.Minute
	// together is how long after one another instances may be lost to be kept together when no other serves.
	together = 10 * time.Second
	// An instance is passed over for the first of these, then for twice as long each time, up to the second.
	firstEjection = time.Second
	mostEjection  = 30 * time.Second
	// forgets is how long after an ejection the next one is a first one again.
	forgets = time.Minute
)

// View is what is known of a service at one time. It is immutable, but for the counters that its endpoints share with
// every other view.
type View struct {
	// Service is what pools of this service share: the rotation and the totals.
	Service *pool.Service
	// Policy is that of [Options].
	Policy string
	// Members are the instances that take new requests, whatever they speak, by id. Read-only.
	Members []pool.Member

	idle    []string // what the others say, for messages
	changed chan struct{}

	// What HTTP requests go by.
	web    *pool.Pool // nil when err is not
	all    *pool.Pool // with those that are ejected
	webErr error
	until  time.Time // when the first ejection ends; zero: there is none
}

// Changed returns a channel that is closed when there is a newer view.
func (v *View) Changed() <-chan struct{} { return v.changed }

// Speaking are the members that speak one of the protocols. Where there is none, the error wraps ErrNoInstance and says
// what there is.
func (v *View) Speaking(protocols ...registry.Protocol) ([]pool.Member, error) {
	var list []pool.Member
	others := slices.Clone(v.idle)
	for _, m := range v.Members {
		if slices.Contains(protocols, registry.Protocol(m.Endpoint.Protocol)) {
			list = append(list, m)
		} else {
			others = append(others, "speaking "+m.Endpoint.Protocol)
		}
	}
	if len(list) > 0 {
		return list, nil
	}
	if len(others) == 0 {
		return nil, noInstance(v.Service.Name, nothing)
	}
	return nil, noInstance(v.Service.Name, "looked for one that is ready and speaks "+join(protocols)+", found "+tally(others))
}

const (
	nothing = "nothing is registered under that name; correct the name, or start it"
	unnamed = "it is not among Options.Services; name it there"
)

func noInstance(service, why string) error {
	return fmt.Errorf("discover: %w of service %q: %s", ErrNoInstance, service, why)
}

func join(protocols []registry.Protocol) string {
	var s []string
	for _, p := range protocols {
		s = append(s, string(p))
	}
	return strings.Join(s, " or ")
}

// tally counts equal words: "2 draining, 1 starting".
func tally(words []string) string {
	count := map[string]int{}
	for _, w := range words {
		count[w]++
	}
	var out []string
	for _, w := range slices.Sorted(maps.Keys(count)) {
		out = append(out, fmt.Sprintf("%d %s", count[w], w))
	}
	return strings.Join(out, ", ")
}

// service is what is known of one service. Discovery.mu protects all but what is said to be free.
type service struct {
	name   string        // free
	shared *pool.Service // free
	policy string        // free
	view   atomic.Pointer[View]

	members map[string]*member // registered, by id
	aside   map[string]error   // by id: why a record cannot be used
	// lost are those that served when their records went, of late. Those that had a lease serve on for a while; while nobody else
	// serves they all are stranded and serve on.
	lost     []*member
	stranded bool

	dial      sync.Once
	transport atomic.Pointer[http.Transport] // for a nil base; free
}

// member is one instance.
type member struct {
	endpoint  *pool.Endpoint
	state     registry.State
	weight    int
	created   int64 // revision
	lease     int64
	lost      time.Time // when its record went
	meant     bool      // that it went, because it had no lease: somebody has removed it by hand
	ejections int
	until     time.Time // end of the last ejection
}

func (m *member) serves() bool { return m.state == registry.Ready && m.weight > 0 }

// put takes in a record. One that cannot be used changes nothing. elsewhere says that it is from another store than before, or an
// older state of it: then it may be older than what it replaces, which is used on as if it had been lost.
func (s *service) put(c *registry.Change, elsewhere bool, now time.Time) error {
	addr, err := registry.DialAddress(c.Instance.Address)
	if err != nil {
		return err
	}
	delete(s.aside, c.ID)
	in := c.Instance
	key := pool.Key{Service: c.Service, ID: c.ID, Incarnation: in.Incarnation, Address: addr}
	protocol := in.Protocol
	if protocol == "" {
		protocol = registry.HTTP
	}
	m := s.members[c.ID]
	if at := slices.IndexFunc(s.lost, func(l *member) bool { return l.endpoint.Key == key }); at >= 0 { // it comes back
		if m != nil {
			m.endpoint.Retire()
		}
		m = s.lost[at]
	}
	if m != nil && m.endpoint.Key != key && elsewhere && m.serves() {
		m.lost, m.meant = now, false
		s.lost = append(s.lost, m)
		m = nil
	}
	if m == nil || m.endpoint.Key != key || m.endpoint.Protocol != string(protocol) || m.endpoint.IdleTimeout != time.Duration(in.IdleTimeout) {
		if m != nil {
			m.endpoint.Retire()
		}
		m = &member{endpoint: pool.NewEndpointNamed(key, in.Address)}
		m.endpoint.Protocol, m.endpoint.IdleTimeout = string(protocol), time.Duration(in.IdleTimeout)
	}
	if m.state = in.State; m.state == "" {
		m.state = registry.Ready
	}
	m.weight, m.created, m.lease = in.EffectiveWeight(), c.CreateRevision, c.Lease
	s.members[c.ID] = m
	s.forget(func(l *member) bool { // who is known better now
		return l == m || l.endpoint.ID == c.ID && !elsewhere || l.endpoint.Address == addr
	})
	return nil
}

// setAside notes that a record cannot be used. The last one under that id that could goes on being used.
func (s *service) setAside(id string, why error) { s.aside[id] = why }

// vanish takes in that a record is gone, and returns its instance if more can be learned about it from its lease: not elsewhere,
// in another store than before.
func (s *service) vanish(id string, elsewhere bool, now time.Time) *member {
	delete(s.aside, id)
	m := s.members[id]
	if m == nil {
		return nil
	}
	delete(s.members, id)
	if !m.serves() {
		m.endpoint.Retire()
		return nil
	}
	m.lost, m.meant = now, m.lease == 0 && !elsewhere
	s.lost = append(s.lost, m)
	if m.lease == 0 || elsewhere {
		return nil
	}
	return m
}

// keepOnly takes in that only these records are there. It reports whether others had been, and returns what vanish does of them.
func (s *service) keepOnly(present map[string]bool, elsewhere bool, now time.Time) (lost []*member, changed bool) {
	for id := range s.aside {
		if !present[id] {
			delete(s.aside, id)
			changed = true
		}
	}
	for id := range s.members {
		if !present[id] {
			if m := s.vanish(id, elsewhere, now); m != nil {
				lost = append(lost, m)
			}
			changed = true
		}
	}
	return lost, changed
}

// forget drops lost members.
func (s *service) forget(which func(*member) bool) {
	s.lost = slices.DeleteFunc(s.lost, func(m *member) bool {
		if !which(m) {
			return false
		}
		if s.members[m.endpoint.ID] != m {
			m.endpoint.Retire()
		}
		return true
	})
}

// over reports whether a lost member is of no use any more, while others serve.
func (m *member) over(now time.Time) bool {
	return now.Sub(m.lost) > together && (m.meant || now.Sub(m.lost) > lostFor)
}

// serving are the members that take new requests, by id. Of two that name one address, the younger is meant.
func (s *service) serving(now time.Time) []*member {
	if !s.stranded {
		s.forget(func(m *member) bool { return m.over(now) })
	}
	owners := map[string]*member{}
	for _, m := range s.members {
		if o := owners[m.endpoint.Name]; m.serves() && (o == nil || o.created < m.created) {
			owners[m.endpoint.Name] = m
		}
	}
	s.stranded = len(owners) == 0 && len(s.lost) > 0
	list := slices.Collect(maps.Values(owners))
	for _, m := range s.lost {
		if s.stranded || !m.meant && owners[m.endpoint.Name] == nil {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b *member) int { return strings.Compare(a.endpoint.ID, b.endpoint.ID) })
	return list
}

// build makes the next view of what has been folded.
func (s *service) build(now time.Time) {
	v := &View{Service: s.shared, Policy: s.policy, changed: make(chan struct{})}
	for _, m := range s.serving(now) {
		v.Members = append(v.Members, pool.Member{Endpoint: m.endpoint, Weight: m.weight})
	}
	for _, m := range s.members {
		switch {
		case m.state != registry.Ready:
			v.idle = append(v.idle, string(m.state))
		case m.weight == 0:
			v.idle = append(v.idle, "of weight 0")
		}
	}
	for id, why := range s.aside {
		if s.members[id] == nil {
			v.idle = append(v.idle, fmt.Sprintf("of no use (%v)", why))
		}
	}
	old := s.view.Swap(s.weeded(v, now))
	if old != nil {
		close(old.changed)
	}
}

// weed makes the pool anew of those that are not ejected now. To those who follow the members that is no change.
func (s *service) weed(now time.Time) { s.view.Store(s.weeded(s.view.Load(), now)) }

// weeded is a copy of v with pools for HTTP. At most half of the members are left out: those that were ejected first
// return first.
func (s *service) weeded(v *View, now time.Time) *View {
	next := *v
	next.web, next.all, next.until = nil, nil, time.Time{}
	var members []pool.Member
	if members, next.webErr = v.Speaking(registry.HTTP, registry.HTTPS, registry.H2); next.webErr != nil {
		return &next
	}
	var out []*member
	for i := range members {
		if m := s.find(members[i].Endpoint); m != nil && now.Before(m.until) {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b *member) int { return b.until.Compare(a.until) })
	out = out[:min(len(out), len(members)/2)]
	// The policy is known to be good: Run has seen to that.
	next.all, _ = pool.New(s.shared, s.policy, members)
	next.web = next.all
	if len(out) > 0 {
		next.until = out[len(out)-1].until
		next.web, _ = pool.New(s.shared, s.policy, slices.DeleteFunc(slices.Clone(members), func(m pool.Member) bool {
			return slices.ContainsFunc(out, func(o *member) bool { return o.endpoint == m.Endpoint })
		}))
	}
	return &next
}

// find is the member of an endpoint; nil when it is gone.
func (s *service) find(e *pool.Endpoint) *member {
	if m := s.members[e.ID]; m != nil && m.endpoint == e {
		return m
	}
	if at := slices.IndexFunc(s.lost, func(m *member) bool { return m.endpoint == e }); at >= 0 {
		return s.lost[at]
	}
	return nil
}

// eject leaves an endpoint out for a while. It returns for how long, or zero when that was so already.
func (s *service) eject(e *pool.Endpoint, now time.Time) time.Duration {
	m := s.find(e)
	if m == nil || now.Before(m.until) {
		return 0
	}
	if s.members[e.ID] != m && !s.stranded { // it was lost, and does not answer: that is the end of it
		s.forget(func(l *member) bool { return l == m })
		s.build(now)
		return lostFor
	}
	if now.Sub(m.until) > forgets {
		m.ejections = 0
	}
	lasts := min(firstEjection<<m.ejections, mostEjection)
	m.ejections = min(m.ejections+1, 10)
	m.until = now.Add(lasts)
	s.weed(now)
	return lasts
}

// pick chooses an endpoint for an HTTP request: one that was not tried, of the ejected ones only if there is no other; nil
// when all were tried.
func (v *View) pick(tried []*pool.Endpoint) *pool.Endpoint {
	if v.webErr != nil {
		return nil
	}
	if e := v.web.Pick(tried...); e != nil {
		return e
	}
	return v.all.Pick(tried...)
}
