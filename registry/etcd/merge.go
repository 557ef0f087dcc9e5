package registryetcd

import (
	"cmp"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
)

// Foreign prefixes are read beside ours: one list of all, at one revision, makes a Reset, and one stream holds a watch
// of each.

// prefixes are those that a scope is spread over, in their order.
func (c *Client) prefixes(scope registry.Scope) []string {
	all := []string{c.keys.RangePrefix(scope)}
	for _, f := range c.opts.Foreign {
		if scope.Service == "" || f.Service == "" || f.Service == scope.Service {
			all = append(all, f.Prefix+"/")
		}
	}
	slices.Sort(all)
	return all
}

// foreign returns who reads a key, nil if it is ours.
func (c *Client) foreign(key string) *codec.Foreign {
	for i := range c.opts.Foreign {
		f := &c.opts.Foreign[i]
		if rest, ok := strings.CutPrefix(key, f.Prefix); ok && strings.HasPrefix(rest, "/") {
			return f
		}
	}
	return nil
}

// concerns reports whether a change is of the scope. Below a foreign prefix there are all services.
func (w *watch) concerns(ch *registry.Change) bool {
	return w.service == "" || ch.Service == w.service || w.c.foreign(ch.Key) == nil
}

// merger puts what several watches of one stream say into one order. Each tells of its keys in order, but one may be behind
// another, and a revision that touches the keys of two is told in two parts. So events are held until etcd says up to which
// revision all watches of the stream have been told everything, for which it is asked as soon as there is something to hold:
// one more round trip, and the reader has whole revisions in order, as of a single watch. A nil merger holds nothing.
type merger struct {
	held  []*mvccpb.Event
	asked bool
}

// askAgain is how long an answer may take: etcd gives none as long as a watch is behind.
const askAgain = 20 * time.Millisecond

// ask reports whether etcd is to be asked now.
func (m *merger) ask() bool {
	if m == nil || m.asked || len(m.held) == 0 {
		return false
	}
	m.asked = true
	return true
}

// forget gives up waiting for an answer.
func (m *merger) forget() {
	if m != nil {
		m.asked = false
	}
}

// takeTo returns what is held up to a revision up to which everything has been told, in order.
func (m *merger) takeTo(rev int64) []*mvccpb.Event {
	if m == nil {
		return nil
	}
	m.asked = false
	slices.SortStableFunc(m.held, func(a, b *mvccpb.Event) int { return cmp.Compare(a.Kv.ModRevision, b.Kv.ModRevision) })
	n, _ := slices.BinarySearchFunc(m.held, rev+1, func(ev *mvccpb.Event, rev int64) int { return cmp.Compare(ev.Kv.ModRevision, rev) })
	out := m.held[:n:n]
	m.held = m.held[n:]
	return out
}

// ofOne says that a response tells how far one of several watches is, which says nothing of the others.
func (m *merger) ofOne(resp *pb.WatchResponse) bool {
	return m != nil && resp.WatchId != clientv3.InvalidWatchID
}
