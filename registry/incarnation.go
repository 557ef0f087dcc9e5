package registry

import (
	"crypto/rand"
	"sync"
	"time"
)

// NewIncarnation returns a name for one life of an instance: 26 characters that sort by time, as ULIDs do
// (48 bits of milliseconds, 80 random bits, Crockford's base 32). Within a process each call returns a greater one
// than the call before, whatever the clock does. It may be called concurrently.
//
// Between machines, or after a clock was set back, "newer" is as good as the clocks are; a predecessor that wins by
// a wrong clock loses its key when its lease ends.
func NewIncarnation() string { return incarnations.next(time.Now()) }

var incarnations incarnationSource

type incarnationSource struct {
	mu   sync.Mutex
	last [16]byte
}

func (s *incarnationSource) next(now time.Time) string {
	var id [16]byte
	ms := uint64(max(now.UnixMilli(), 0))
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	rand.Read(id[6:]) // never fails

	s.mu.Lock()
	defer s.mu.Unlock()
	if string(id[:6]) <= string(s.last[:6]) {
		id = s.last
		for i := len(id) - 1; i >= 0; i-- { // add one; a carry may run into the time, which keeps the order
			id[i]++
			if id[i] != 0 {
				break
			}
		}
	}
	s.last = id
	return encodeBase32(id)
}

func encodeBase32(id [16]byte) string {
	const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	var out [26]byte
	// 26 digits hold 130 bits: two zero bits, then the 128 of the id.
	acc, bits, n := uint(0), 2, 0
	for _, b := range id {
		acc = acc<<8 | uint(b)
		for bits += 8; bits >= 5; n++ {
			bits -= 5
			out[n] = alphabet[acc>>bits&31]
		}
		acc &= 1<<bits - 1
	}
	return string(out[:])
}
