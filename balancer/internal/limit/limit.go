// Package limit bounds the rate of requests of each client.
//
// A [Table] holds, for each rule and key, when its bucket will be full again: the generic cell rate algorithm (ITU-T
// I.371, a token bucket that needs one number). Memory is fixed: a table has so many places, and when those a key may be
// in are taken, the one whose bucket is full again, or will be first, is given to it. A client that is forgotten this way
// begins anew with a full bucket, so under a flood of keys the table errs towards letting through.
package limit

import (
	"encoding/binary"
	"hash/maphash"
	"sync"
	"time"
)

// ways is how many places a key may be in.
const ways = 8

// Table is the state of rate limits. Use [NewTable]. Its methods may be called concurrently.
type Table struct {
	seed  maphash.Seed
	start time.Time
	sets  []set
}

type set struct {
	mu     sync.Mutex
	places [ways]place
}

type place struct {
	hash uint64
	full int64 // nanoseconds since start at which the bucket is full again
}

// NewTable makes a table with at least size places, each of which takes 16 bytes.
func NewTable(size int) *Table {
	n := 1
	for n*ways < size {
		n *= 2
	}
	return &Table{seed: maphash.MakeSeed(), start: time.Now(), sets: make([]set, n)}
}

// Allow takes a token from the bucket of key under rule, which holds burst tokens (at least 1) and gets a new one every so
// often. Without a token it says after how long there will be one. It does not allocate.
func (t *Table) Allow(now time.Time, rule uint64, key []byte, every time.Duration, burst int) (ok bool, retryAfter time.Duration) {
	var h maphash.Hash
	h.SetSeed(t.seed)
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], rule)
	h.Write(b[:])
	h.Write(key)
	hash := h.Sum64()
	at := int64(now.Sub(t.start))

	s := &t.sets[hash%uint64(len(t.sets))]
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.places[0]
	for i := range s.places {
		q := &s.places[i]
		if q.hash == hash {
			p = q
			break
		}
		if q.full < p.full {
			p = q
		}
	}
	if p.hash != hash {
		*p = place{hash: hash, full: at}
	}
	// A bucket that lacks n tokens is full again n intervals from now; it may lack burst of them after this one.
	full := max(p.full, at) + int64(every)
	if most := at + int64(every)*int64(max(burst, 1)); full > most {
		return false, time.Duration(full - most)
	}
	p.full = full
	return true, 0
}
