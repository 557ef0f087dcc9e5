package codec

import (
	"hash/maphash"
	"maps"
	"sync/atomic"
	"unique"

	"github.com/rota-lb/rota/registry"
)

// share lets the many instances of a fleet hold the few strings, checks and metadata they have in common once.
func share(in *registry.Instance) {
	in.Service = intern(in.Service)
	in.Protocol = registry.Protocol(intern(string(in.Protocol)))
	in.State = registry.State(intern(string(in.State)))
	in.Zone = intern(in.Zone)
	in.Version = intern(in.Version)
	if in.Metadata != nil {
		in.Metadata = sharedMetadata(in.Metadata)
	}
	if in.Check != nil {
		in.Check = sharedCheck(in.Check)
	}
}

func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

// The caches hold the last value seen per slot. They are bounded, never locked, and only ever save memory: a slot
// taken by another value costs a copy.
var (
	seed     = maphash.MakeSeed()
	metadata [1024]atomic.Pointer[map[string]string]
	checks   [256]atomic.Pointer[registry.Check]
)

func sharedMetadata(m map[string]string) map[string]string {
	const most = 16 // larger ones are hardly shared, and would be held by the cache
	if len(m) > most {
		return m
	}
	var sum uint64 // in any order
	for name, value := range m {
		sum += maphash.Comparable(seed, [2]string{name, value})
	}
	slot := &metadata[sum%uint64(len(metadata))]
	if held := slot.Load(); held != nil && maps.Equal(*held, m) {
		return *held
	}
	slot.Store(&m)
	return m
}

func sharedCheck(c *registry.Check) *registry.Check {
	slot := &checks[maphash.Comparable(seed, *c)%uint64(len(checks))]
	if held := slot.Load(); held != nil && *held == *c {
		return held
	}
	slot.Store(c)
	return c
}
