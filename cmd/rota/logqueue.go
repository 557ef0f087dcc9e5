package main

import (
	"bytes"
	"errors"
	"io"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// How much of the log waits for its reader: whichever is reached first, or one line more.
const (
	queuedLines = 4096
	queuedBytes = 1 << 20
)

// flushWait is how long the end of the daemon waits for whoever reads the log.
const flushWait = time.Second

// errUnread says that the log could not be written out in time.
var errUnread = errors.New("the log is not read")

// logQueue stands between a daemon and whoever reads its stderr, so that a reader who is slow, or has stopped, holds up nobody
// who logs: not the control plane, not a loop, not the end.
//
// Write copies a line into memory, and never waits for the reader. One goroutine, which lives as long as there is something to
// write, writes the lines in order, and each by itself: a successor writes to the same stderr. When [queuedLines] or
// [queuedBytes] wait, further lines are lost and counted, as are those that cannot be written. Once writing goes on, a warning
// with their number stands where they are missing, whatever the level of the log: one for all that were lost until then. Sync
// waits until what was queued before it is out, but no longer than [flushWait]; zap calls it before it panics or exits.
//
// A panic that nobody has logged takes along what is in the queue then: next to nothing, unless the reader is behind.
//
// It may be used concurrently. Use newLogQueue; nothing needs to be closed.
type logQueue struct {
	to   io.Writer
	tell zapcore.Core // writes to the same place how many lines are lost

	mu      sync.Mutex    // never held across I/O
	lines   [][]byte      // the first one is being written
	size    int           // in bytes
	writing bool          // the goroutine is there
	lost    uint64        // and not told yet
	ahead   int           // how many lines come before that is told
	queued  uint64        // lines, ever
	done    uint64        // of which so many are out, or lost because they could not be written
	next    chan struct{} // closed when done grows; nil while nobody waits
}

// newLogQueue makes a queue before a writer, whose own lines are encoded as the log is.
func newLogQueue(to io.Writer, enc zapcore.Encoder) *logQueue {
	return &logQueue{to: to, tell: zapcore.NewCore(enc, zapcore.AddSync(to), zapcore.DebugLevel)}
}

// Write implements io.Writer. It takes one line, or some that belong together, and never returns an error.
func (q *logQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.lines) >= queuedLines || q.size >= queuedBytes {
		if q.lost++; q.ahead == 0 {
			q.ahead = len(q.lines)
		}
		return len(line), nil
	}
	q.lines = append(q.lines, bytes.Clone(line))
	q.size += len(line)
	q.queued++
	if !q.writing {
		q.writing = true
		go q.write()
	}
	return len(line), nil
}

// write writes until there is nothing left.
func (q *logQueue) write() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.lines) > 0 {
		line := q.lines[0]
		err := q.unlocked(func() error { _, err := q.to.Write(line); return err })
		q.lines[0], q.lines = nil, q.lines[1:]
		q.size -= len(line)
		q.ahead = max(q.ahead-1, 0)
		if err != nil {
			q.lost++
		} else if n := q.lost; n > 0 && q.ahead == 0 {
			q.lost = 0
			if q.unlocked(func() error { return q.tellLost(n) }) != nil {
				q.lost += n
			}
		}
		q.done++
		if q.next != nil {
			close(q.next)
			q.next = nil
		}
	}
	q.writing = false
}

// unlocked does what may take for ever.
func (q *logQueue) unlocked(do func() error) error {
	q.mu.Unlock()
	defer q.mu.Lock()
	return do()
}

func (q *logQueue) tellLost(n uint64) error {
	return q.tell.Write(zapcore.Entry{
		Level: zapcore.WarnLevel, Time: time.Now(), Message: "log lines are missing here: they came faster than they were read",
	}, []zapcore.Field{zap.Uint64("lines", n)})
}

// Sync implements zapcore.WriteSyncer.
func (q *logQueue) Sync() error {
	late := time.NewTimer(flushWait)
	defer late.Stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for last := q.queued; q.done < last; {
		if q.next == nil {
			q.next = make(chan struct{})
		}
		next := q.next
		if err := q.unlocked(func() error {
			select {
			case <-next:
				return nil
			case <-late.C:
				return errUnread
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// daemonLogger is the log of a daemon. From then on all that the command says on stderr takes its way, behind the log; [run]
// sees to it that it gets out.
func daemonLogger(cmd *cobra.Command, level string) (*zap.Logger, zap.AtomicLevel, error) {
	signal.Ignore(syscall.SIGPIPE) // else it ends with whoever reads stderr, or the access log on stdout
	q := newLogQueue(cmd.ErrOrStderr(), newEncoder())
	log, at, err := newLogger(level, q)
	if err == nil {
		cmd.Root().SetErr(q)
	}
	return log, at, err
}

// flush waits, within reason, until what a daemon has said on stderr is out. Other commands write at once.
func flush(cmd *cobra.Command) {
	if q, ok := cmd.ErrOrStderr().(*logQueue); ok {
		q.Sync()
	}
}
