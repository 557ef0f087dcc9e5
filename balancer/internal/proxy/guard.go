package proxy

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"math"
	"net/netip"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// Guard sheds load when there is more than the daemon can carry, so that what is admitted is served well.
//
// When requests wait longer than Lag for their turn, for half a second on end, the busiest clients are refused first: each client may have so many
// requests in a turn of the guard, a number that shrinks while the wait goes on and grows again when it is over. A client
// that sends little is served even then. When memory runs short, idle connections are closed early, then the busiest clients are refused
// likewise, and at last everybody.
//
// A nil Guard sheds nothing.
type Guard struct {
	// Lag is how long requests may wait for the CPU; zero does not look at that.
	Lag time.Duration
	// Memory is how many bytes the process may use; zero does not look at that.
	Memory int64
	// Waiting tells how long requests wait at present.
	Waiting func() time.Duration

	memory atomic.Int32  // percent of Memory in use
	share  atomic.Uint32 // requests a client may have in this turn; zero is any number
	short  atomic.Bool   // it is memory that bounds them
	late   int           // turns in a row in which requests have waited too long; Run's own
	counts [1024]atomic.Uint32
	turn   atomic.Uint64 // which clients share a count changes with it: nobody pays for another one for long
}

const (
	guardTurn   = 100 * time.Millisecond
	lateTurns   = 5  // a process that was not run for a moment has a queue that goes by itself: refusing helps nobody
	tightMemory = 85 // percent: idle connections are closed early
	shortMemory = 90 // percent: the busiest clients are refused
	fullMemory  = 95 // percent: all requests are
	tightIdle   = time.Second
)

// Run looks at the load until ctx ends, then returns nil.
func (g *Guard) Run(ctx context.Context) error {
	if g == nil {
		return nil
	}
	if g.Memory > 0 && debug.SetMemoryLimit(-1) == math.MaxInt64 {
		// The collector works harder before anything has to be refused.
		debug.SetMemoryLimit(g.Memory / 100 * 80)
		defer debug.SetMemoryLimit(math.MaxInt64)
	}
	turn := time.NewTicker(guardTurn)
	defer turn.Stop()
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-turn.C:
		}
		if g.Memory > 0 {
			metrics.Read(sample)
			used := int64(sample[0].Value.Uint64() - sample[1].Value.Uint64())
			g.memory.Store(int32(used * 100 / g.Memory))
		}
		var lag time.Duration
		if g.Lag > 0 && g.Waiting != nil {
			lag = g.Waiting()
		}
		g.share.Store(g.nextShare(g.share.Load(), lag))
	}
}

// nextShare is what a client may have in the next turn, by how it was in the last one.
func (g *Guard) nextShare(share uint32, lag time.Duration) uint32 {
	memory := g.memory.Load()
	if g.late++; lag <= g.Lag {
		g.late = 0
	}
	over := g.late >= lateTurns || memory >= shortMemory
	calm := lag <= g.Lag/2 && memory < tightMemory
	if over {
		g.short.Store(memory >= shortMemory)
	}
	if share == 0 && calm {
		return 0 // all is well; nobody counts
	}
	g.turn.Add(1)
	var busiest uint32
	for i := range g.counts {
		busiest = max(busiest, g.counts[i].Swap(0))
	}
	switch {
	case share == 0:
		return math.MaxUint32 // near the bound: count, and refuse nobody yet
	case over:
		return max(1, min(share, busiest)/4*3)
	case share > 2*busiest:
		if calm {
			return 0
		}
		return math.MaxUint32
	}
	return share + share/8 + 1
}

var guardSeed = maphash.MakeSeed()

// admit counts a request and says why it is refused; empty is not.
func (g *Guard) admit(client netip.Addr) Reason {
	if g == nil {
		return ""
	}
	if g.memory.Load() >= fullMemory {
		return MemoryPressure
	}
	share := g.share.Load()
	if share == 0 {
		return ""
	}
	var buf [16]byte
	key := binary.LittleEndian.AppendUint64(clientKey(&buf, client), g.turn.Load())
	i := maphash.Bytes(guardSeed, key) % uint64(len(g.counts))
	switch {
	case g.counts[i].Add(1) <= share:
		return ""
	case g.short.Load():
		return MemoryPressure
	}
	return CPUPressure
}

// keepAlive is how long an idle connection is kept.
func (g *Guard) keepAlive(d time.Duration) time.Duration {
	if g != nil && g.memory.Load() >= tightMemory {
		return min(d, tightIdle)
	}
	return d
}

// Shedding reports whether requests are refused at present.
func (g *Guard) Shedding() bool {
	if g == nil {
		return false
	}
	share := g.share.Load()
	return g.memory.Load() >= fullMemory || share > 0 && share < math.MaxUint32
}

// MemoryLimit is how much memory the process may use, by the limit of its control group or GOMEMLIMIT; zero is unknown.
func MemoryLimit() int64 {
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		return limit
	}
	if runtime.GOOS != "linux" {
		return 0
	}
	return cgroupLimit()
}
