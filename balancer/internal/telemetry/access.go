package telemetry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Access is one line of the access log. What its byte slices hold is copied by [AccessLog.Log].
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
	shardBytes = 8 << 20 // of lines per shard, between two visits of the writer, or as many more as are made at a time
	together   = 32      // lines that are made at a time, fewer where their texts have
	textBytes  = 8 << 10 // bytes by then
	flushEach  = 250 * time.Millisecond
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

// AccessLog writes access log lines away from the loops that produce them: a loop puts the line into its own buffer, and
// one goroutine writes them out. When the log is slower than the traffic, lines are dropped and counted; a request never
// waits. Use [NewAccessLog]; a nil *AccessLog logs nothing.
type AccessLog struct {
	to      io.Writer
	style   atomic.Pointer[style]
	shards  []*shard
	dropped atomic.Uint64
	wake    chan struct{}
	torn    bool // the last line that was written broke off; of the goroutine that writes
}

// style is what a log was asked for last.
type style struct {
	AccessOptions
	format format // nil for json
}

// shard is what a loop has logged and nobody has taken. Lines wait as they came and are made several at a time: only the first then
// finds the caches full of requests.
type shard struct {
	mu      sync.Mutex // held for some lines or a swap, never across I/O
	waiting [together]Access
	lines   int    // that wait
	texts   []byte // theirs
	made    []byte // lines
	spare   []byte // that the writer is done with
	opening opening
}

// NewAccessLog makes a log for a number of loops. It writes to out from one goroutine; a [File] can be opened anew. An error is
// about the format.
func NewAccessLog(out io.Writer, loops int, o AccessOptions) (*AccessLog, error) {
	a := &AccessLog{to: out, wake: make(chan struct{}, 1)}
	for range max(loops, 1) {
		a.shards = append(a.shards, &shard{})
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
	before := a.style.Swap(&style{o, f})
	for _, s := range a.shards {
		s.mu.Lock()
		s.make(before)
		s.mu.Unlock()
	}
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

// Log has a line filled in, at once, and takes it for writing, or drops it. What nobody is to know is taken out.
func (a *AccessLog) Log(loop int, fill func(*Access)) {
	if a == nil {
		return
	}
	o := a.style.Load()
	s := a.shards[loop%len(a.shards)]
	s.mu.Lock()
	defer s.mu.Unlock()
	line := &s.waiting[s.lines]
	*line = Access{}
	fill(line)
	switch {
	case !o.takes(line):
	case len(s.made) >= shardBytes:
		a.dropped.Add(1)
	default:
		line.Query, line.Referer = o.Redact.Query(line.Query), o.Redact.Query(line.Referer)
		if s.keep(line); s.lines == together || len(s.texts) >= textBytes {
			before := len(s.made)
			if s.make(o); before < shardBytes/2 && len(s.made) >= shardBytes/2 {
				select {
				case a.wake <- struct{}{}:
				default:
				}
			}
		}
	}
}

// takes says whether a line is to be written.
func (o *style) takes(l *Access) bool {
	return l.Reason != "" || o.Sample >= 1 || o.Filter.takes(l) || rand.Float64() < o.Sample
}

// keep has a line wait that stands behind those that wait.
func (s *shard) keep(l *Access) {
	s.lines++
	l.Method, l.Host, l.URI, l.Query = s.text(l.Method), s.text(l.Host), s.text(l.URI), s.text(l.Query)
	l.UserAgent, l.Referer, l.ID = s.text(l.UserAgent), s.text(l.Referer), s.text(l.ID)
}

func (s *shard) text(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	from := len(s.texts)
	s.texts = append(s.texts, b...)
	return s.texts[from:]
}

// make makes the lines that wait.
func (s *shard) make(o *style) {
	for i := range s.lines {
		if l := &s.waiting[i]; o.format == nil {
			s.made = appendJSON(s.made, l, &s.opening)
		} else {
			s.made = o.format(s.made, l)
		}
		s.made = append(s.made, '\n')
	}
	if s.lines, s.texts = 0, s.texts[:0]; cap(s.texts) > 8*textBytes {
		s.texts = nil // a long line has made it long
	}
}

// take returns all that there is.
func (s *shard) take(o *style) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.make(o)
	text := s.made
	s.made, s.spare = s.spare, nil
	return text
}

// give returns what take has returned.
func (s *shard) give(text []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spare = text[:0]
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

func (a *AccessLog) flush() {
	for _, s := range a.shards {
		text := s.take(a.style.Load())
		if len(text) > 0 {
			a.write(text)
		}
		s.give(text)
	}
}

// write writes lines. What cannot be written is lost and counted; a line that broke off, on a full disk, is ended before the next
// one.
func (a *AccessLog) write(text []byte) {
	if a.torn {
		n, err := a.to.Write([]byte{'\n'})
		a.torn = n == 0
		if err != nil {
			a.dropped.Add(uint64(bytes.Count(text, []byte{'\n'})))
			return
		}
	}
	n, err := a.to.Write(text)
	if err != nil {
		a.dropped.Add(uint64(bytes.Count(text[n:], []byte{'\n'})))
	}
	if n > 0 {
		a.torn = text[n-1] != '\n'
	}
}

// CheckFormat says what is wrong with a format: json, common, combined, or a template with variables.
func CheckFormat(text string) error {
	_, err := parseFormat(text)
	return err
}

func parseFormat(text string) (format, error) {
	switch text {
	case "", "json":
		return nil, nil
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
