package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// slowReader takes a line for each permit.
type slowReader struct {
	permits chan error // what becomes of the line

	mu    sync.Mutex
	lines []string
}

func (r *slowReader) Write(text []byte) (int, error) {
	if err := <-r.permits; err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, string(text))
	return len(text), nil
}

// read has n lines read, and returns all that were.
func (r *slowReader) read(n int) []string {
	for range n {
		r.permits <- nil
	}
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

// queueing makes a queue whose reader has stopped. It reads on at the end: nothing outlives the test.
func queueing(t *testing.T, do func(t *testing.T, q *logQueue, r *slowReader)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &slowReader{permits: make(chan error)}
		do(t, newLogQueue(r, zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())), r)
		close(r.permits)
	})
}

// put writes lines with the numbers from one to another, in a buffer that is used again, and sees that it takes no time.
func (q *logQueue) put(t *testing.T, from, to int) {
	t.Helper()
	began := time.Now()
	var b []byte
	for n := from; n < to; n++ {
		b = append(strconv.AppendInt(b[:0], int64(n), 10), '\n')
		if written, err := q.Write(b); written != len(b) || err != nil {
			t.Fatalf("line %d: %d, %v", n, written, err)
		}
	}
	if d := time.Since(began); d > 0 {
		t.Errorf("lines %d to %d took %v", from, to, d)
	}
}

func numbers(from, to int) (list []string) {
	for n := from; n < to; n++ {
		list = append(list, strconv.Itoa(n)+"\n")
	}
	return list
}

// missing is how many lines a line says are missing; zero when it is no such line.
func missing(line string) (n int) {
	var v struct {
		Level, Msg string
		Lines      int
	}
	if json.Unmarshal([]byte(line), &v) != nil || v.Level != "warn" || !strings.Contains(v.Msg, "missing") || !strings.HasSuffix(line, "\n") {
		return 0
	}
	return v.Lines
}

// As many lines as there is room for wait for the reader; they come in order, and the queue can fill again.
func TestLogQueue(t *testing.T) {
	queueing(t, func(t *testing.T, q *logQueue, r *slowReader) {
		for round := range 3 {
			first := round * queuedLines
			q.put(t, first, first+queuedLines)
			synctest.Wait()
			if n := len(r.lines); n != first {
				t.Fatalf("%d lines written, %d read", n, first)
			}
			if got := r.read(queuedLines); !slices.Equal(got, numbers(0, first+queuedLines)) {
				t.Fatalf("round %d: %d lines, or not in order", round, len(got))
			}
			if err := q.Sync(); err != nil {
				t.Error(err)
			}
		}
	})
}

// What does not fit is lost, and told once, where it is missing.
func TestLogQueueFull(t *testing.T) {
	queueing(t, func(t *testing.T, q *logQueue, r *slowReader) {
		const last = queuedLines + 10
		q.put(t, 0, last) // ten are lost
		r.read(3)
		q.put(t, last, last+5) // three fit, two are lost
		got := r.read(queuedLines - 3)
		if !slices.Equal(got, numbers(0, queuedLines)) {
			t.Fatalf("%d lines before the gap, or not in order", len(got))
		}
		got = r.read(1)
		if n := missing(got[len(got)-1]); n != 12 {
			t.Errorf("12 lines are lost: %s", got[len(got)-1])
		}
		got = r.read(3)
		if behind := got[queuedLines+1:]; !slices.Equal(behind, numbers(last, last+3)) {
			t.Errorf("behind the gap: %q", behind)
		}
		q.put(t, 0, 1) // and nothing more is told
		if got = r.read(1); len(got) != queuedLines+5 {
			t.Errorf("%d lines: %q", len(got), got[queuedLines:])
		}
	})
}

// Long lines fill the queue before many do.
func TestLogQueueBytes(t *testing.T) {
	queueing(t, func(t *testing.T, q *logQueue, r *slowReader) {
		line := append(bytes.Repeat([]byte{'x'}, queuedBytes/8-1), '\n')
		for range 10 {
			q.Write(line)
		}
		got := r.read(9)
		if len(got) != 9 || missing(got[8]) != 2 {
			t.Errorf("%d lines, the last is %.200s", len(got), got[len(got)-1])
		}
		q.Write(bytes.Repeat(line, 10)) // a line may be longer than all of the room
		if got = r.read(1); len(got) != 10 || len(got[9]) != 10*len(line) {
			t.Errorf("%d lines", len(got))
		}
	})
}

// Sync waits for what was there before it, and the warning that belongs to it, and for no reader who never comes.
func TestLogQueueSync(t *testing.T) {
	queueing(t, func(t *testing.T, q *logQueue, r *slowReader) {
		if err := q.Sync(); err != nil {
			t.Errorf("nothing to wait for: %v", err)
		}
		q.put(t, 0, queuedLines+1)
		began := time.Now()
		if err := q.Sync(); !errors.Is(err, errUnread) || time.Since(began) != flushWait {
			t.Errorf("stuck: %v after %v", err, time.Since(began))
		}
		done := make(chan error)
		go func() { done <- q.Sync() }()
		synctest.Wait()
		r.read(1)
		q.put(t, 0, 1) // comes later
		r.read(queuedLines - 1)
		select {
		case err := <-done:
			t.Fatalf("returned %v before the warning", err)
		default:
		}
		r.permits <- nil
		if err := <-done; err != nil {
			t.Errorf("all was read: %v", err)
		}
		if got := r.read(1); missing(got[queuedLines]) != 1 || got[queuedLines+1] != "0\n" {
			t.Errorf("in the end: %q", got[queuedLines:])
		}
	})
}

// Lines that cannot be written are lost too; that is told when one can.
func TestLogQueueFails(t *testing.T) {
	queueing(t, func(t *testing.T, q *logQueue, r *slowReader) {
		q.put(t, 0, 6)
		full := errors.New("disk full")
		for _, err := range []error{nil, full, full, nil, full, nil} { // the fifth is the warning
			r.permits <- err
		}
		got := r.read(2)
		if len(got) != 5 || !slices.Equal(got[:3], []string{"0\n", "3\n", "4\n"}) || missing(got[3]) != 2 || got[4] != "5\n" {
			t.Errorf("%q", got)
		}
	})
}

// Writers from everywhere: what each has written stays in order, and all are told of.
func TestLogQueueConcurrent(t *testing.T) {
	queueing(t, func(t *testing.T, q *logQueue, r *slowReader) {
		const writers, each = 8, 1000
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for n := range each {
					fmt.Fprintf(q, "%d %d\n", w, n)
				}
			})
		}
		for range 100 { // a reader all the same
			r.permits <- nil
		}
		wg.Wait()
		close(r.permits)
		if err := q.Sync(); err != nil {
			t.Error(err)
		}
		r.permits = make(chan error)
		next, read, lost := [writers]int{}, 0, 0
		for _, line := range r.lines {
			var w, n int
			if _, err := fmt.Sscanf(line, "%d %d\n", &w, &n); err != nil {
				lost += missing(line)
				continue
			}
			if read++; n < next[w] {
				t.Fatalf("writer %d: line %d after %d", w, n, next[w]-1)
			}
			next[w] = n + 1
		}
		if read+lost != writers*each || read < queuedLines {
			t.Errorf("%d lines read, %d lost", read, lost)
		}
	})
}

// The logger of a daemon: a level that is the end syncs, but does not hang; the last word comes behind the log.
func TestDaemonLogger(t *testing.T) {
	queueing(t, func(t *testing.T, _ *logQueue, r *slowReader) {
		cmd := root()
		cmd.SetErr(r)
		log, _, err := daemonLogger(cmd.Commands()[0], "error")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		log.Error("goes on")
		if d := time.Since(began); d > 0 {
			t.Errorf("an error took %v", d)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			log.Panic("panics")
		}()
		if d := time.Since(began); d != flushWait {
			t.Errorf("a panic took %v", d)
		}
		io.WriteString(cmd.ErrOrStderr(), "rota: the end\n")
		go r.read(3)
		flush(cmd)
		if len(r.lines) != 3 || !strings.Contains(r.lines[0], "goes on") || !strings.Contains(r.lines[1], "panics") || r.lines[2] != "rota: the end\n" {
			t.Errorf("%q", r.lines)
		}
	})
}
