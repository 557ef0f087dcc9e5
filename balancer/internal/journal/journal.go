// Package journal remembers exchanges for a while: the last ones that went wrong or were slow, to be asked about by their id,
// and a sample of all, to replay against a table that is not there yet.
//
// It holds no bodies, and of header fields those that a replay may ask about; whoever adds entries takes secrets out. Memory is
// bounded: a few thousand entries a loop.
package journal

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Entry is what is kept of an exchange.
type Entry struct {
	Facts
	ID                        string
	Method, Host, Path, Query string // Host and Path as they are matched, Query with its "?"
	Client                    string
	Fields                    Fields
}

// Texts are the texts of an [Entry] to be. They are copied.
type Texts struct{ ID, Method, Host, Path, Query, Client, Fields []byte }

// Facts are what is known of an exchange beside the texts of its request.
type Facts struct {
	At                       time.Time // its beginning
	Scheme                   string    // http or https
	Route, Service, Upstream string    // Upstream is that of the last attempt
	Status, UpstreamStatus   int
	Reason                   string
	Attempts                 int
	Duration, UpstreamTook   time.Duration
	Revision                 int64 // of the table
	// Sampled says that it was taken for being there, not for what became of it.
	Sampled bool
}

// Fields are header fields as far as they are kept: lines, of which each is "name: value", or a name alone when the value is
// not kept. One that is empty says that there were more. The zero value is no field at all.
type Fields string

// mostFields is how many bytes of header fields are kept of a request.
const mostFields = 1024

// AppendField appends a field, of a name in any case, to fields that are being put together; AppendHidden one whose value is not kept.
func AppendField(fields, name, value []byte) []byte {
	if len(fields)+len(name)+len(value) > mostFields {
		return appendMore(fields)
	}
	fields = append(appendLower(fields, name), ": "...)
	return append(append(fields, value...), '\n')
}

// AppendHidden: see [AppendField].
func AppendHidden(fields, name []byte) []byte {
	if len(fields)+len(name) > mostFields {
		return appendMore(fields)
	}
	return append(appendLower(fields, name), '\n')
}

// appendMore notes that there were more fields, once.
func appendMore(fields []byte) []byte {
	if string(fields) == "\n" || bytes.HasSuffix(fields, []byte("\n\n")) {
		return fields
	}
	return append(fields, '\n')
}

func appendLower(dst, name []byte) []byte {
	for _, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
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

// shard is what one loop keeps.
type shard struct {
	due atomic.Int64 // when the next sample is, in nanoseconds of Unix time

	mu      sync.Mutex
	sampled ring
	notable ring
	slab    []byte // what is left of the memory that texts are cut from
	since   int64  // when the window began, Unix nanoseconds
	taken   int    // of notable ones, in it
}

// ring holds the latest entries; next is the place of the one after. What an entry takes, the one that comes in its place uses again:
// a loop that has filled its rings allocates nothing.
type ring struct {
	entries []stored
	next    int
}

// stored is an entry as it is kept: its texts stand in one piece of memory, in the order of [Texts].
type stored struct {
	Facts
	text []byte
	ends [7]uint32
}

// entry is the entry with its texts.
func (s *stored) entry() Entry {
	e, all, from := Entry{Facts: s.Facts}, string(s.text), uint32(0)
	for i, text := range [...]*string{&e.ID, &e.Method, &e.Host, &e.Path, &e.Query, &e.Client, (*string)(&e.Fields)} {
		*text = all[from:s.ends[i]]
		from = s.ends[i]
	}
	return e
}

// id is the id of the request.
func (s *stored) id() []byte { return s.text[:s.ends[0]] }

// place is where the next entry goes.
func (r *ring) place() *stored {
	if len(r.entries) < kept {
		if r.entries == nil {
			r.entries = make([]stored, 0, kept)
		}
		r.entries = r.entries[:len(r.entries)+1]
		return &r.entries[len(r.entries)-1]
	}
	e := &r.entries[r.next]
	r.next = (r.next + 1) % kept
	return e
}

// add keeps an exchange in a ring.
func (s *shard) add(r *ring, f *Facts, t *Texts) {
	e, length := r.place(), 0
	all := [len(e.ends)][]byte{t.ID, t.Method, t.Host, t.Path, t.Query, t.Client, t.Fields}
	for _, text := range all {
		length += len(text)
	}
	if cap(e.text) < length || cap(e.text) > longText && length <= longText {
		e.text = s.room(length)
	}
	e.Facts, e.text = *f, e.text[:0]
	for i, text := range all {
		e.text = append(e.text, text...)
		e.ends[i] = uint32(len(e.text))
	}
}

const (
	slabLength = 64 << 10
	textUnit   = 256     // what the length of a text's memory is a multiple of
	longText   = 4 << 10 // beyond that it has memory of its own, which does not outlive it
)

// room is memory for a text.
func (s *shard) room(length int) []byte {
	if length > longText {
		return make([]byte, 0, length)
	}
	length = (length + textUnit - 1) / textUnit * textUnit
	if len(s.slab) < length {
		s.slab = make([]byte, slabLength)
	}
	b := s.slab[:0:length]
	s.slab = s.slab[length:]
	return b
}

// New makes a journal for a number of loops.
func New(loops int) *Journal { return &Journal{shards: make([]shard, max(loops, 1))} }

func (j *Journal) shard(loop int) *shard { return &j.shards[loop%len(j.shards)] }

// Wants reports whether an exchange that ended at that Unix time in nanoseconds is to be added: because it is notable, or because a sample is due. It costs
// little, so that the entry is only made when it is wanted.
func (j *Journal) Wants(loop int, at int64, notable bool) (wanted, sampled bool) {
	s := j.shard(loop)
	due := s.due.Load()
	// A clock that was set back does not end the sampling.
	sampled = (at >= due || at < due-int64(time.Minute)) && s.due.CompareAndSwap(due, at+int64(sampleEach))
	if !notable {
		return sampled, sampled
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if past := at - s.since; past >= int64(window) || past < 0 {
		s.since, s.taken = at, 0
	}
	s.taken++
	return sampled || s.taken <= mostNotable, sampled
}

// Add adds an exchange. One that is both sampled and notable is kept as both.
func (j *Journal) Add(loop int, f *Facts, t *Texts, notable bool) {
	s := j.shard(loop)
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Sampled {
		s.add(&s.sampled, f, t)
	}
	if notable {
		s.add(&s.notable, f, t)
	}
}

// Find returns the latest entry of a request id that is still there.
func (j *Journal) Find(id string) (found Entry, ok bool) {
	if id == "" {
		return found, false
	}
	j.each(func(s *stored) {
		if string(s.id()) == id && (!ok || s.At.After(found.At)) {
			found, ok = s.entry(), true
		}
	})
	return found, ok
}

// Sample returns the sampled entries, the latest first.
func (j *Journal) Sample() (list []Entry) {
	for i := range j.shards {
		s := &j.shards[i]
		s.mu.Lock()
		for k := range s.sampled.entries {
			list = append(list, s.sampled.entries[k].entry())
		}
		s.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b Entry) int { return b.At.Compare(a.At) })
	return list
}

func (j *Journal) each(f func(*stored)) {
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
