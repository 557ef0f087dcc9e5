//go:build linux

package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// delays are the latencies of one turn at a fixed rate, in microseconds from the moment a request was due.
type delays struct {
	Round   int     `json:"round"`
	Percent int     `json:"percent_of_slowest_peer"`
	Rate    float64 `json:"requests_per_second"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p999_us"`
	// Late is the p99 of how long after it was due a request was sent. The load's own lateness is in it, and in the others.
	Late float64 `json:"sent_late_p99_us"`
}

// percents are the rates, of what the slowest peer can do.
var percents = []int{30, 50, 70}

// latency lets everybody answer requests that come at fixed rates. It needs the rounds, for what the peers can do.
func (b *bench) latency(ctx context.Context) error {
	slowest := 0.0
	for _, res := range b.report.Results {
		n := median(values(res.Turns, func(t turn) float64 { return t.PerSec }))
		if (res.Name == "nginx" || res.Name == "haproxy") && len(res.Turns) > 0 && (slowest == 0 || n < slowest) {
			slowest = n
		}
	}
	if slowest == 0 {
		return errors.New("nobody to take the rate from: run the part cpu with nginx or haproxy too")
	}
	for round := range b.options.rounds {
		for i := range b.participants {
			k := (round + i) % len(b.participants)
			c, res := b.participants[k], b.report.Results[k]
			if res.Unfair != "" || c.copies {
				continue
			}
			p, err := b.launch(ctx, c, b.up.address)
			if err != nil {
				return err
			}
			for _, percent := range percents {
				rate := slowest * float64(percent) / 100
				if _, err = openLoop(ctx, p.address, b.connections, rate, b.warmup); err != nil {
					break
				}
				var l openLoad
				if l, err = openLoop(ctx, p.address, b.connections, rate, b.duration); err != nil {
					break
				}
				at := func(of []time.Duration, share float64) float64 { return float64(quantile(of, share)) / 1e3 }
				d := delays{round, percent, rate, at(l.took, 0.5), at(l.took, 0.99), at(l.took, 0.999), at(l.late, 0.99)}
				res.Delays = append(res.Delays, d)
				progress("round %d/%d %-10s at %d %%: p50 %.0f, p99 %.0f, p99.9 %.0f, sent late %.0f µs", round+1, b.options.rounds, c.name, percent, d.P50, d.P99, d.P999, d.Late)
			}
			p.Stop()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				res.unfair("at a fixed rate: %v", err)
			}
		}
	}
	return nil
}

// openLoad is what an open loop saw, sorted.
type openLoad struct {
	took []time.Duration // from when a request was due until its answer was read
	late []time.Duration // from when it was due until it was sent
}

// openLoop sends requests that are due at even distances, whether or not earlier ones were answered, over so many connections.
// Those that come due while every connection waits for an answer are sent as soon as one does not.
func openLoop(ctx context.Context, address string, connections int, rate float64, d time.Duration) (openLoad, error) {
	var (
		mu      sync.Mutex
		wg      sync.WaitGroup
		all     openLoad
		failure error
	)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one thread, as wrk is: waking a second costs more than it brings
	every, total := time.Duration(float64(time.Second)/rate), int(rate*d.Seconds())
	conns := make([]net.Conn, connections)
	for i := range conns {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return all, err
		}
		defer c.Close()
		if asked.tls {
			secure := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
			if err := secure.HandshakeContext(ctx); err != nil {
				return all, err
			}
			c = secure
		}
		conns[i] = c
	}
	m, err := newMetronome(every)
	if err != nil {
		return all, err
	}
	defer m.Close()
	due := make(chan time.Time, total) // never full: who keeps the time must not wait
	for _, c := range conns {
		wg.Go(func() {
			var mine openLoad
			c.SetDeadline(m.start.Add(d + 10*time.Second))
			r := bufio.NewReaderSize(c, min(32<<10, len(body)+1<<10))
			var err error
			for due := range due {
				late := time.Since(due)
				if err = exchange(c, r); err != nil {
					break
				}
				mine.took, mine.late = append(mine.took, time.Since(due)), append(mine.late, late)
			}
			mu.Lock()
			defer mu.Unlock()
			all.took, all.late = append(all.took, mine.took...), append(all.late, mine.late...)
			if failure == nil {
				failure = err
			}
		})
	}
	for sent := 0; sent < total && err == nil && ctx.Err() == nil; {
		var n int
		if n, err = m.wait(); err != nil {
			break
		}
		for range min(n, total-sent) {
			due <- m.start.Add(time.Duration(sent) * every)
			sent++
		}
	}
	close(due)
	wg.Wait()
	if err = cmp.Or(err, ctx.Err(), failure); err == nil && len(all.took) == 0 {
		err = errors.New("no request was answered")
	}
	slices.Sort(all.took)
	slices.Sort(all.late)
	return all, err
}

// metronome ticks at even distances. A timer of Go's is late by up to a millisecond when the process has nothing else to do,
// for the runtime waits in epoll, which counts in these; one of the kernel's is an event like a socket's.
type metronome struct {
	*os.File
	start time.Time // of the first tick
}

func newMetronome(every time.Duration) (*metronome, error) {
	const monotonic, lead = 1, 10 * time.Millisecond
	fd, _, errno := syscall.Syscall(syscall.SYS_TIMERFD_CREATE, monotonic, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("timerfd_create", errno)
	}
	m := &metronome{os.NewFile(fd, "timerfd"), time.Now().Add(lead)}
	spec := [2]syscall.Timespec{syscall.NsecToTimespec(int64(every)), syscall.NsecToTimespec(int64(lead))} // interval, first
	if _, _, errno := syscall.Syscall6(syscall.SYS_TIMERFD_SETTIME, fd, 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		m.Close()
		return nil, os.NewSyscallError("timerfd_settime", errno)
	}
	return m, nil
}

// wait returns how many ticks there were since it last did, at least one.
func (m *metronome) wait() (int, error) {
	var b [8]byte
	_, err := m.Read(b[:])
	return int(binary.NativeEndian.Uint64(b[:])), err
}

// exchange does one request without allocating, and checks status and length.
func exchange(c net.Conn, r *bufio.Reader) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	line, err := r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(line), "HTTP/1.1 200") {
		return fmt.Errorf("answered %q", line)
	}
	for len(line) > 2 {
		if line, err = r.ReadSlice('\n'); err != nil {
			return err
		}
	}
	_, err = r.Discard(len(body))
	return err
}

// delayTable shows the medians.
func (r *report) delayTable() table {
	head := []string{""}
	for _, p := range percents {
		for _, q := range []string{"p50", "p99", "p99.9", "sent late"} {
			head = append(head, fmt.Sprintf("%s µs at %d %%", q, p))
		}
	}
	t := table{head}
	for _, res := range r.Results {
		if len(res.Delays) == 0 {
			continue
		}
		row := []string{res.Name}
		for _, p := range percents {
			var at [4][]float64
			for _, d := range res.Delays {
				if d.Percent == p {
					at[0], at[1] = append(at[0], d.P50), append(at[1], d.P99)
					at[2], at[3] = append(at[2], d.P999), append(at[3], d.Late)
				}
			}
			for _, v := range at {
				row = append(row, fmt.Sprintf("%.0f", median(v)))
			}
		}
		t = append(t, row)
	}
	return t
}
