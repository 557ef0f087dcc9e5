package telemetry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Access is one line of the access log. The byte slices are copied by [AccessLog.Log].
type Access struct {
	Start time.Time
	// Peer is who is connected, Client the client as a trusted proxy names it, perhaps without port. Either may be the zero value.
	Peer, Client              netip.AddrPort
	Method, Host, URI, Query  []byte // Query with its "?"
	UserAgent, Referer, ID    []byte
	Minor                     int
	TLS                       bool
	TLSVersion, TLSCipher     uint16 // as crypto/tls numbers them; zero when they are not known
	TLSResumed                bool
	Route, Service, Upstream  string
	Reason, Flag, Trace       string
	Status, UpstreamStatus    int
	Attempts                  int
	Size, BodySize            int64 // sent, with heads and without
	BytesRead, BodyRead       int64 // read, likewise
	Duration, UpstreamLatency time.Duration
	TableRevision             int64
}

const (
	ringLines = 4096 // per shard, between two visits of the writer
	flushEach = 50 * time.Millisecond
)

// AccessOptions say what is logged, and how.
type AccessOptions struct {
	// Format is json, common, combined, or a template; see [CheckFormat]. Empty is json.
	Format string
	Filter Filter
	// Sample is the share of the lines that no filter takes and that are logged all the same. Failures always are.
	Sample float64
	// Redact takes out what is nobody's business; nil takes out the usual.
	Redact *Redactor
}

// Filter takes lines: those that any of its conditions is true of. The zero value takes none.
type Filter struct {
	Status      [][2]int // ranges, ends included
	MinDuration time.Duration
	Retried     bool
	Failed      bool
}

func (f *Filter) takes(l *Access) bool {
	switch {
	case f.MinDuration > 0 && l.Duration >= f.MinDuration, f.Retried && l.Attempts > 1, f.Failed && (l.Reason != "" || l.Status >= 500):
		return true
	}
	for _, r := range f.Status {
		if l.Status >= r[0] && l.Status <= r[1] {
			return true
		}
	}
	return false
}

// AccessLog writes access log lines away from the loops that produce them: a loop copies the line into its own ring, and
// one goroutine writes them out. When the log is slower than the traffic, lines are dropped and counted; a request never
// waits. Use [NewAccessLog]; a nil *AccessLog logs nothing.
type AccessLog struct {
	to      io.Writer
	style   atomic.Pointer[style]
	shards  []*shard
	dropped atomic.Uint64
	wake    chan struct{}
	// Of the goroutine that writes: lines, how many they are, and whether the last one that was written broke off.
	out   []byte
	lines int
	torn  bool
}

// style is what a log was asked for last.
type style struct {
	AccessOptions
	format format
}

type shard struct {
	mu   sync.Mutex // held for a copy or a swap, never across I/O
	fill *batch
	idle *batch
}

// NewAccessLog makes a log for a number of loops. It writes to out from one goroutine; a [File] can be opened anew. An error is
// about the format.
func NewAccessLog(out io.Writer, loops int, o AccessOptions) (*AccessLog, error) {
	a := &AccessLog{to: out, wake: make(chan struct{}, 1)}
	for range max(loops, 1) {
		a.shards = append(a.shards, &shard{fill: &batch{}, idle: &batch{}})
	}
	return a, a.Set(o)
}

// Set changes what is logged, and how, for lines that come from now on. An error is about the format, and changes nothing.
func (a *AccessLog) Set(o AccessOptions) error {
	if a == nil {
		return nil
	}
	f, err := parseFormat(o.Format)
	if err != nil {
		return err
	}
	a.style.Store(&style{o, f})
	return nil
}

// Reopen opens the file anew, if the log goes to a [File].
func (a *AccessLog) Reopen() error {
	if a == nil {
		return nil
	}
	if f, ok := a.to.(*File); ok {
		return f.Reopen()
	}
	return nil
}

// Dropped is the number of lines lost: the log was too slow for them, or they could not be written.
func (a *AccessLog) Dropped() uint64 {
	if a == nil {
		return 0
	}
	return a.dropped.Load()
}

// Log copies a line for writing, or drops it.
func (a *AccessLog) Log(loop int, line *Access) {
	if a == nil {
		return
	}
	o := a.style.Load()
	if line.Reason == "" && o.Sample < 1 && !o.Filter.takes(line) && rand.Float64() >= o.Sample {
		return
	}
	s := a.shards[loop%len(a.shards)]
	s.mu.Lock()
	b := s.fill
	if len(b.entries) == ringLines {
		s.mu.Unlock()
		a.dropped.Add(1)
		return
	}
	b.add(line)
	half := len(b.entries) == ringLines/2
	s.mu.Unlock()
	if half {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

// Close closes the file of a log that is not run, if it goes to a [File].
func (a *AccessLog) Close() error {
	if a == nil {
		return nil
	}
	if f, ok := a.to.(*File); ok {
		return f.Close()
	}
	return nil
}

// Run writes lines until ctx ends and the last ones are out. Then it closes the file, if the log goes to a [File].
func (a *AccessLog) Run(ctx context.Context) error {
	if a == nil {
		return nil
	}
	tick := time.NewTicker(flushEach)
	defer tick.Stop()
	for ended := false; !ended; a.flush() {
		select {
		case <-ctx.Done():
			ended = true
		case <-tick.C:
		case <-a.wake:
		}
	}
	if f, ok := a.to.(interface{ Sync() error }); ok {
		f.Sync()
	}
	return a.Close()
}

// writeFrom is how many bytes are written at a time, or a few more.
const writeFrom = 64 << 10

func (a *AccessLog) flush() {
	style := a.style.Load()
	for _, s := range a.shards {
		s.mu.Lock()
		b := s.fill
		s.fill, s.idle = s.idle, nil
		s.mu.Unlock()
		for l := range b.all {
			l.Query, l.Referer = style.Redact.Query(l.Query), style.Redact.Query(l.Referer)
			a.out = append(style.format(a.out, l), '\n')
			if a.lines++; len(a.out) >= writeFrom {
				a.write()
			}
		}
		a.write()
		b.empty()
		s.mu.Lock()
		s.idle = b
		s.mu.Unlock()
	}
}

// write writes what is formatted. What cannot be written is lost and counted; a line that broke off, on a full disk, is ended before
// the next one.
func (a *AccessLog) write() {
	if a.lines == 0 {
		return
	}
	out, ends := a.out, a.lines
	if a.torn {
		out, ends = slices.Insert(out, 0, '\n'), ends+1
	}
	n, err := a.to.Write(out)
	if err != nil {
		a.dropped.Add(uint64(min(a.lines, ends-bytes.Count(out[:n], []byte{'\n'}))))
	}
	if n > 0 {
		a.torn = out[n-1] != '\n'
	}
	a.out, a.lines = out[:0], 0
}

// CheckFormat says what is wrong with a format: json, common, combined, or a template with variables.
func CheckFormat(text string) error {
	_, err := parseFormat(text)
	return err
}

func parseFormat(text string) (format, error) {
	switch text {
	case "", "json":
		return appendJSON, nil
	case "common":
		return parseTemplate(commonFormat)
	case "combined":
		return parseTemplate(combinedFormat)
	}
	f, err := parseTemplate(text)
	if err != nil {
		return nil, fmt.Errorf("%w: use json, common, combined, or a template with variables such as $status", err)
	}
	return f, nil
}
