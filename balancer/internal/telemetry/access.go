package telemetry

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Access is one line of the access log. The byte slices are copied by [AccessLog.Log].
type Access struct {
	Start                     time.Time
	Client                    netip.AddrPort
	Method, Host, URI, Query  []byte
	UserAgent, ID             []byte
	Minor                     int
	Route, Service, Upstream  string
	Reason, Flag              string
	Status, UpstreamStatus    int
	Attempts                  int
	Size, BytesRead           int64
	Duration, UpstreamLatency time.Duration
	TableRevision             int64
}

const (
	ringLines = 4096 // per shard, between two visits of the writer
	flushEach = 50 * time.Millisecond
)

// AccessLog writes access log lines away from the loops that produce them: a loop copies the line into its own ring, and
// one goroutine writes them out. When the log is slower than the traffic, lines are dropped and counted; a request never
// waits. Use [NewAccessLog]; a nil *AccessLog logs nothing.
type AccessLog struct {
	out     *zap.Logger
	file    *File // nil when it is none
	shards  []*shard
	dropped atomic.Uint64
	wake    chan struct{}
}

type shard struct {
	mu   sync.Mutex // held for a copy or a swap, never across I/O
	fill *batch
	idle *batch
}

// batch is a number of lines with the bytes they point into.
type batch struct {
	lines []Access
	text  []byte
}

// NewAccessLog makes a log for a number of loops. w must be safe for one goroutine; it is synced when Run ends.
func NewAccessLog(w zapcore.WriteSyncer, loops int) *AccessLog {
	enc := zapcore.EncoderConfig{
		TimeKey: "ts", LevelKey: "level", NameKey: "logger", MessageKey: "msg",
		EncodeLevel: zapcore.LowercaseLevelEncoder, EncodeTime: zapcore.EpochTimeEncoder,
		EncodeDuration: zapcore.SecondsDurationEncoder,
	}
	core := zapcore.NewCore(zapcore.NewJSONEncoder(enc), w, zapcore.InfoLevel)
	file, _ := w.(*File)
	a := &AccessLog{file: file, out: zap.New(core).Named("http.log.access"), wake: make(chan struct{}, 1)}
	for range loops {
		a.shards = append(a.shards, &shard{fill: &batch{}, idle: &batch{}})
	}
	return a
}

// Reopen opens the file anew, if the log goes to a [File].
func (a *AccessLog) Reopen() error {
	if a == nil || a.file == nil {
		return nil
	}
	return a.file.Reopen()
}

// Dropped is the number of lines lost.
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
	s := a.shards[loop%len(a.shards)]
	s.mu.Lock()
	b := s.fill
	if len(b.lines) == ringLines {
		s.mu.Unlock()
		a.dropped.Add(1)
		return
	}
	c := *line
	c.Method, c.Host, c.URI = b.keep(c.Method), b.keep(c.Host), b.keep(c.URI)
	c.Query, c.UserAgent, c.ID = b.keep(c.Query), b.keep(c.UserAgent), b.keep(c.ID)
	b.lines = append(b.lines, c)
	half := len(b.lines) == ringLines/2
	s.mu.Unlock()
	if half {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

// keep copies v into the batch.
func (b *batch) keep(v []byte) []byte {
	if len(v) == 0 {
		return nil
	}
	n := len(b.text)
	b.text = append(b.text, v...)
	return b.text[n:len(b.text):len(b.text)]
}

// Run writes lines until ctx ends and the last ones are out.
func (a *AccessLog) Run(ctx context.Context) error {
	if a == nil {
		return nil
	}
	tick := time.NewTicker(flushEach)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-a.wake:
		}
		a.flush()
	}
	a.out.Sync()
	return nil
}

func (a *AccessLog) flush() {
	for _, s := range a.shards {
		s.mu.Lock()
		b := s.fill
		s.fill, s.idle = s.idle, nil
		s.mu.Unlock()
		for i := range b.lines {
			a.write(&b.lines[i])
		}
		clear(b.lines)
		b.lines = b.lines[:0]
		if b.text = b.text[:0]; cap(b.text) > 4<<20 {
			b.text = nil
		}
		s.mu.Lock()
		s.idle = b
		s.mu.Unlock()
	}
}

// write names the fields: Caddy's where Caddy has them.
func (a *AccessLog) write(l *Access) {
	msg := a.out.Check(zapcore.InfoLevel, "handled request")
	msg.Time = l.Start.Add(l.Duration)
	fields := []zap.Field{
		zap.Object("request", requestFields{l}),
		zap.Int64("bytes_read", l.BytesRead), zap.Duration("duration", l.Duration),
		zap.Int64("size", l.Size), zap.Int("status", l.Status),
	}
	text := func(key, v string) {
		if v != "" {
			fields = append(fields, zap.String(key, v))
		}
	}
	text("request_id", string(l.ID))
	text("route", l.Route)
	text("service", l.Service)
	text("upstream", l.Upstream)
	if l.Attempts > 0 {
		fields = append(fields, zap.Int("attempts", l.Attempts))
	}
	if l.UpstreamStatus != 0 {
		fields = append(fields, zap.Int("upstream_status", l.UpstreamStatus), zap.Duration("upstream_duration", l.UpstreamLatency))
	}
	text("reason", l.Reason)
	text("flag", l.Flag)
	fields = append(fields, zap.Int64("table_revision", l.TableRevision))
	msg.Write(fields...)
}

type requestFields struct{ *Access }

func (l requestFields) MarshalLogObject(e zapcore.ObjectEncoder) error {
	if l.Client.IsValid() {
		ip := l.Client.Addr().String()
		e.AddString("remote_ip", ip)
		e.AddUint16("remote_port", l.Client.Port())
		e.AddString("client_ip", ip)
	}
	e.AddString("proto", [...]string{"HTTP/1.0", "HTTP/1.1"}[l.Minor&1])
	e.AddByteString("method", l.Method)
	e.AddByteString("host", l.Host)
	e.AddByteString("uri", append(l.URI[:len(l.URI):len(l.URI)], l.Query...))
	if len(l.UserAgent) > 0 {
		e.AddByteString("user_agent", l.UserAgent)
	}
	return nil
}
