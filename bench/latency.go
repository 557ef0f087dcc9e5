//go:build linux

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/rota-lb/rota/bench/internal/rig"
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
	// Usual is the median of the p99 of every tenth of a second: those in which the machine stood still do not move it.
	Usual float64 `json:"usual_p99_us"`
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
	load, err := newOpenLoop(ctx, b.rig)
	if err != nil {
		return err
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
				if _, err = load.run(ctx, p.address, b.connections, rate, b.warmup); err != nil {
					break
				}
				var d delays
				if d, err = load.run(ctx, p.address, b.connections, rate, b.duration); err != nil {
					break
				}
				d.Round, d.Percent, d.Rate = round, percent, rate
				res.Delays = append(res.Delays, d)
				progress("round %d/%d %-10s at %d %%: p50 %.0f, p99 %.0f, p99.9 %.0f, sent late %.0f, usual p99 %.0f µs", round+1, b.options.rounds, c.name, percent, d.P50, d.P99, d.P999, d.Late, d.Usual)
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

//go:embed openloop/openloop.c
var openLoopSource string

// openLoop is a load whose requests are due at even distances, compiled for this run.
type openLoop struct {
	rig             *rig.Rig
	binary, request string
}

func newOpenLoop(ctx context.Context, r *rig.Rig) (*openLoop, error) {
	binary, err := compile(ctx, r, "openloop", openLoopSource)
	if err != nil {
		return nil, err
	}
	file, err := r.File("request", string(request))
	return &openLoop{r, binary, file}, err
}

// run lasts d and returns the microseconds.
func (l *openLoop) run(ctx context.Context, address string, connections int, rate float64, d time.Duration) (delays, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return delays{}, err
	}
	p, err := l.rig.Start("openloop", nil, l.binary, port, l.request, fmt.Sprint(len(body)), fmt.Sprint(connections),
		fmt.Sprint(rate), fmt.Sprint(d.Seconds()))
	if err != nil {
		return delays{}, err
	}
	if err := p.Wait(ctx); err != nil {
		return delays{}, err
	}
	var n int
	var of delays
	if _, err := fmt.Sscan(p.Output(), &n, &of.P50, &of.P99, &of.P999, &of.Late, &of.Usual); err != nil {
		return delays{}, fmt.Errorf("openloop says %q: %w", p.Output(), err)
	}
	return of, nil
}

// delayTable shows the medians.
func (r *report) delayTable() table {
	head := []string{""}
	for _, p := range percents {
		for _, q := range []string{"p50", "p99", "p99.9", "usual p99", "sent late"} {
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
			for _, of := range []func(delays) float64{
				func(d delays) float64 { return d.P50 },
				func(d delays) float64 { return d.P99 },
				func(d delays) float64 { return d.P999 },
				func(d delays) float64 { return d.Usual },
				func(d delays) float64 { return d.Late },
			} {
				at := slices.DeleteFunc(slices.Clone(res.Delays), func(d delays) bool { return d.Percent != p })
				row = append(row, fmt.Sprintf("%.0f", median(values(at, of))))
			}
		}
		t = append(t, row)
	}
	return t
}
