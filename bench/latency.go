//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// delays are the latencies of one turn at a fixed rate, in microseconds from the moment a request was due.
type delays struct {
	Round   int     `json:"round"`
	Percent int     `json:"percent_of_slowest_peer"`
	Rate    float64 `json:"requests_per_second"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p999_us"`
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
				var all []time.Duration
				if all, err = openLoop(ctx, p.address, b.connections, rate, b.duration); err != nil {
					break
				}
				at := func(share float64) float64 { return float64(quantile(all, share)) / 1e3 }
				d := delays{round, percent, rate, at(0.5), at(0.99), at(0.999)}
				res.Delays = append(res.Delays, d)
				progress("round %d/%d %-10s at %d %%: p50 %.0f, p99 %.0f, p99.9 %.0f µs", round+1, b.options.rounds, c.name, percent, d.P50, d.P99, d.P999)
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

// openLoop sends requests that are due at even distances, whether or not earlier ones were answered, over so many connections,
// and returns how long each took from when it was due, sorted.
func openLoop(ctx context.Context, address string, connections int, rate float64, d time.Duration) ([]time.Duration, error) {
	var (
		next    atomic.Int64
		mu      sync.Mutex
		wg      sync.WaitGroup
		all     []time.Duration
		failure error
	)
	every, total := time.Duration(float64(time.Second)/rate), int64(rate*d.Seconds())
	conns := make([]net.Conn, connections)
	for i := range conns {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		if asked.tls {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		}
		conns[i] = c
	}
	start := time.Now().Add(10 * time.Millisecond)
	for _, c := range conns {
		wg.Go(func() {
			var mine []time.Duration
			c.SetDeadline(start.Add(d + 10*time.Second))
			r := bufio.NewReaderSize(c, 32<<10)
			var err error
			for ctx.Err() == nil {
				i := next.Add(1) - 1
				if i >= total {
					break
				}
				due := start.Add(time.Duration(i) * every)
				time.Sleep(time.Until(due))
				if err = exchange(c, r); err != nil {
					break
				}
				mine = append(mine, time.Since(due))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
			if err != nil && failure == nil {
				failure = err
			}
		})
	}
	wg.Wait()
	if failure == nil && len(all) == 0 {
		failure = errors.New("no request was answered")
	}
	slices.Sort(all)
	return all, failure
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
		for _, q := range []string{"p50", "p99", "p99.9"} {
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
			var at [3][]float64
			for _, d := range res.Delays {
				if d.Percent == p {
					at[0], at[1], at[2] = append(at[0], d.P50), append(at[1], d.P99), append(at[2], d.P999)
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
