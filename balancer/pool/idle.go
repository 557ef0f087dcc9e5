package pool

import (
	"sync/atomic"
	"time"
)

// Idle connections are kept for so long where nothing shorter is known, and at least for as long as is worth keeping.
const (
	maxIdle = time.Minute
	minIdle = 100 * time.Millisecond
)

// idle is what is known of when an instance closes idle connections. The zero value knows nothing.
type idle struct {
	last    atomic.Int64 // nanoseconds after which the instance closed one
	learned atomic.Int64 // what several were closed after; zero is unknown
}

// KeepIdle is how long to keep an idle connection to the endpoint. It is shorter than the time after which the instance is
// known to close it, so that no request meets a closing connection: what the instance or the settings say, or what was
// learned from connections that it closed.
func (e *Endpoint) KeepIdle(s *Settings) time.Duration {
	d := time.Duration(maxIdle)
	said := e.IdleTimeout
	if said == 0 && s != nil {
		said = s.IdleTimeout
	}
	if said > 0 {
		d = min(d, beforehand(said))
	}
	if learned := time.Duration(e.idle.learned.Load()); learned > 0 {
		d = min(d, beforehand(learned))
	}
	return d
}

// beforehand is a while before d.
func beforehand(d time.Duration) time.Duration {
	return max(d-max(d/8, 200*time.Millisecond), min(d/2, minIdle))
}

// ClosedIdle tells that the instance has closed a connection which was idle for d. Two that were closed after about the
// same time are taken for its timeout; one alone may have been a restart.
func (e *Endpoint) ClosedIdle(d time.Duration) {
	last := time.Duration(e.idle.last.Swap(int64(d)))
	if d < minIdle || last < minIdle || max(d, last)-min(d, last) > max(d/8, 100*time.Millisecond) {
		return
	}
	d = min(d, last)
	for {
		old := e.idle.learned.Load()
		if old > 0 && old <= int64(d) || e.idle.learned.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}
