package membership

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

// Preview judges the members of a service as they are, but under another policy and with other static instances, and changes nothing.
// It returns those that would take new exchanges, as [Fold.Eligible] does, and how many members there would be in all. A check that
// the policy brings has found nothing yet; what one has found that the policy takes away does not count. Slow starts go on, but none
// begins.
func (f *Fold) Preview(service string, p Policy, statics []registry.Instance, now time.Time) (eligible []pool.Member, members int) {
	draft := New()
	draft.policies[service] = p
	judge := func(m Member) *Member {
		if m.condition != nil && !draft.checked(&m) {
			c := *m.condition
			c.down, c.unproven = note{}, note{}
			m.condition = &c
		}
		m.Verdict = draft.verdict(&m)
		if f.warming[m.Endpoint] != nil {
			draft.warming[m.Endpoint] = &m
		}
		return &m
	}
	for _, m := range f.services[service] {
		draft.services[service] = append(draft.services[service], judge(*m))
	}
	var listed []*Member
	for i := range statics {
		in := &statics[i]
		at, twice := find(listed, in.Address)
		m, ok := f.static(service, in, p)
		if ok && !twice {
			listed = slices.Insert(listed, at, judge(m))
		}
	}
	draft.statics = map[string][]*Member{service: listed}
	return draft.Eligible(service, now), len(draft.Members(service))
}

// static is the member that a static instance is, or would be; ok is false when it cannot be dialled.
func (f *Fold) static(service string, in *registry.Instance, p Policy) (m Member, ok bool) {
	m = Member{Instance: in, Static: true}
	if at, kept := find(f.statics[service], in.Address); kept {
		m.Endpoint, m.condition = f.statics[service][at].Endpoint, f.statics[service][at].condition
		return m, true
	}
	addr, err := netip.AddrPort{}, error(nil)
	if !strings.HasPrefix(in.Address, unixPrefix) {
		addr, err = f.dialable(in, false)
	}
	if p.Check {
		m.condition = &condition{unproven: note{reason: "its check has not passed yet"}}
	}
	m.Endpoint = pool.NewEndpoint(pool.Key{Service: service, ID: in.Address, Address: addr})
	return m, err == nil
}
