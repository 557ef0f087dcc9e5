package registryetcd

import (
	"strconv"
	"sync/atomic"
)

// Stats are counts since Connect, and present values where that is said.
type Stats struct {
	// Registered is the number of registrations whose key is in etcd, at present.
	Registered int
	// Lost counts registrations that were in etcd and had to be put again.
	Lost int64
	// Leases counts leases granted, LeasesLost those lost, Renewals successful renewals.
	Leases, LeasesLost, Renewals int64

	// Watches is the number of watches running, Connected the number of those in touch with etcd, at present.
	Watches, Connected int
	// Revision is the revision up to which the most recent update of any watch was current.
	Revision int64
	// Puts and Deletes count the changes delivered by watches, without those of a Reset.
	Puts, Deletes int64
	// Relists counts Resets by their reason.
	Relists map[string]int64
	// Resumes counts watches that went on after a broken connection without a Reset.
	Resumes int64
	// Audits counts comparisons of what was delivered with etcd.
	Audits int64
}

// The reasons of a Reset, as they stand in [Stats].
const (
	RelistStart     = "start"     // the first list of a watch
	RelistLost      = "lost"      // the connection broke for longer than a moment
	RelistSilent    = "silent"    // etcd gave no sign of life
	RelistCompacted = "compacted" // the next revision is no longer to be had
	RelistStore     = "store"     // another cluster id, or a revision that went back
	RelistOrder     = "order"     // a change came after it should have
	RelistAudit     = "audit"     // the audit found a difference
	RelistCanceled  = "canceled"  // etcd ended the watch for another reason
)

var relistReasons = []string{RelistStart, RelistLost, RelistSilent, RelistCompacted, RelistStore, RelistOrder, RelistAudit, RelistCanceled}

type counters struct {
	registered                         atomic.Int64
	lost, leases, leasesLost, renewals atomic.Int64
	watches, connected                 atomic.Int64
	revision, puts, deletes            atomic.Int64
	member                             atomic.Uint64
	resumes, audits                    atomic.Int64
	relists                            [8]atomic.Int64 // by index in relistReasons
}

func (s *counters) relisted(reason string) {
	for i, r := range relistReasons {
		if r == reason {
			s.relists[i].Add(1)
		}
	}
}

// Stats returns the present counts. It may be called at any time and costs little.
func (c *Client) Stats() Stats {
	s := &c.stats
	out := Stats{
		Registered: int(s.registered.Load()),
		Lost:       s.lost.Load(),
		Leases:     s.leases.Load(),
		LeasesLost: s.leasesLost.Load(),
		Renewals:   s.renewals.Load(),
		Watches:    int(s.watches.Load()),
		Connected:  int(s.connected.Load()),
		Revision:   s.revision.Load(),
		Puts:       s.puts.Load(),
		Deletes:    s.deletes.Load(),
		Resumes:    s.resumes.Load(),
		Audits:     s.audits.Load(),
		Relists:    make(map[string]int64, len(relistReasons)),
	}
	for i, r := range relistReasons {
		out.Relists[r] = s.relists[i].Load()
	}
	return out
}

// Member implements [registry.Heard]: the id of the etcd member that the watches hear, as etcdctl writes it.
func (c *Client) Member() string {
	if id := c.stats.member.Load(); id != 0 {
		return strconv.FormatUint(id, 16)
	}
	return ""
}
