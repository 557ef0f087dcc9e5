// Package journal remembers exchanges for a while: the last ones that went wrong or were slow, to be asked about by their id,
// and a sample of all, to replay against a table that is not there yet.
//
// It holds no bodies, and of header fields those that a replay may ask about; whoever adds entries takes secrets out. Memory is
// bounded: a few thousand entries a loop.
package journal

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// Entry is what is kept of an exchange.
type Entry struct {
	At                        time.Time // its beginning
	ID                        string
	Method, Host, Path, Query string // Host and Path as they are matched, Query with its "?"
	Client                    string
	Route, Service, Upstream  string // Upstream is that of the last attempt
	Status, UpstreamStatus    int
	Reason                    string
	Attempts                  int
	Duration, UpstreamTook    time.Duration
	Revision                  int64 // of the table
	// Sampled says that it was taken for being there, not for what became of it.
	Sampled bool
	// Fields are the header fields of a sampled request.
	Fields Fields
}

// Fields are header fields as far as they are kept: lines, of which each is "name: value", or a name alone when the value is
// not kept. One that is empty says that there were more. The zero value is no field at all.
type Fields string

// mostFields is how many bytes of header fields are kept of a request.
const mostFields = 1024

// Add returns the fields and one more, of a name in any case.
func (f Fields) Add(name, value []byte) Fields {
	if len(f)+len(name)+len(value) > mostFields {
		return f.add("")
	}
	return f.add(strings.ToLower(string(name)) + ": " + string(value))
}

// Hide returns the fields and one more, whose value is not kept.
func (f Fields) Hide(name []byte) Fields {
	if len(f)+len(name) > mostFields {
		return f.add("")
	}
	return f.add(strings.ToLower(string(name)))
}

func (f Fields) add(line string) Fields {
	if line == "" && (f == "\n" || strings.HasSuffix(string(f), "\n\n")) { // it is known that there were more
		return f
	}
	return f + Fields(line) + "\n"
}

// Value returns the value of the n-th field, counted from 0, of a lower-case name. When that is not kept, or may not be, known
// is false.
func (f Fields) Value(name string, n int) (value string, ok, known bool) {
	for line := range strings.Lines(string(f)) {
		line = line[:len(line)-1]
		got, value, kept := strings.Cut(line, ": ")
		if line == "" || got == name && !kept {
			return "", false, false
		}
		if got == name {
			if n--; n < 0 {
				return value, true, true
			}
		}
	}
	return "", false, true
}

const (
	// kept is how many entries of each kind a loop keeps.
	kept = 2048
	// sampleEach is how often a loop takes a sample.
	sampleEach = 10 * time.Millisecond
	// mostNotable is how many notable exchanges a loop takes in a window: in a flood of failures, the rest would only push out
	// what came before.
	mostNotable = 200
	window      = 100 * time.Millisecond
	// Slow is from when on an exchange is worth remembering.
	Slow = time.Second
)

// Journal keeps entries. Use [New]. Its methods may be called concurrently.
type Journal struct{ shards []shard }

type shard struct {
	mu      sync.Mutex
	sampled ring
	notable ring
	last    time.Time // when the last sample was taken
	since   time.Time // when the window began
	taken   int       // of notable ones, in it
}

// ring holds the latest entries; next is the place of the one after.
type ring struct {
	entries []Entry
	next    int
}

func (r *ring) add(e Entry) {
	if len(r.entries) < kept {
		r.entries = append(r.entries, e)
		return
	}
	r.entries[r.next] = e
	r.next = (r.next + 1) % kept
}

// New makes a journal for a number of loops.
func New(loops int) *Journal { return &Journal{shards: make([]shard, max(loops, 1))} }

func (j *Journal) shard(loop int) *shard { return &j.shards[loop%len(j.shards)] }

// Wants reports whether an exchange that ended now is to be added: because it is notable, or because a sample is due. It costs
// little, so that the entry is only made when it is wanted.
func (j *Journal) Wants(loop int, now time.Time, notable bool) (wanted, sampled bool) {
	s := j.shard(loop)
	s.mu.Lock()
	defer s.mu.Unlock()
	if notable {
		if now.Sub(s.since) >= window {
			s.since, s.taken = now, 0
		}
		s.taken++
		notable = s.taken <= mostNotable
	}
	if now.Sub(s.last) < sampleEach {
		return notable, false
	}
	s.last = now
	return true, true
}

// Add adds an exchange. One that is both sampled and notable is kept as both.
func (j *Journal) Add(loop int, e Entry, notable bool) {
	s := j.shard(loop)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Sampled {
		s.sampled.add(e)
	}
	if notable {
		s.notable.add(e)
	}
}

// Find returns the latest entry of a request id that is still there.
func (j *Journal) Find(id string) (found Entry, ok bool) {
	if id == "" {
		return found, false
	}
	j.each(func(e *Entry) {
		if e.ID == id && (!ok || e.At.After(found.At)) {
			found, ok = *e, true
		}
	})
	return found, ok
}

// Sample returns the sampled entries, the latest first.
func (j *Journal) Sample() (list []Entry) {
	for i := range j.shards {
		s := &j.shards[i]
		s.mu.Lock()
		list = append(list, s.sampled.entries...)
		s.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b Entry) int { return b.At.Compare(a.At) })
	return list
}

func (j *Journal) each(f func(*Entry)) {
	for i := range j.shards {
		s := &j.shards[i]
		s.mu.Lock()
		for _, r := range []*ring{&s.sampled, &s.notable} {
			for k := range r.entries {
				f(&r.entries[k])
			}
		}
		s.mu.Unlock()
	}
}
