//go:build linux

package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/rota-lb/rota/bench/internal/rig"
)

const (
	spell  = 400 * time.Millisecond // of load that counts, before it is another one's turn
	easeIn = 100 * time.Millisecond // of load before it: the caches are another one's
)

// lap is what one contestant used in two spells of load, as far before the middle of a lap of everybody as behind it. What
// changes steadily about the machine meanwhile is the same for all.
type lap struct {
	Round    int     `json:"round"`
	CPU      float64 `json:"cpu_us_per_request"`
	Requests int64   `json:"requests"`
}

// paced is a contestant whose load stands still but for its spells.
type paced struct {
	*result
	contestant *running
	load       *rig.Process
	accepted   int64 // upstream connections opened in its spells
}

// pairs compares contestants whose turns are as short as half a second: all of them run, each with a load of its own, and
// all loads but one are stopped. On a machine whose speed changes from second to second, ratios then are known several times better
// than from turns of seconds.
func (b *bench) pairs(ctx context.Context) error {
	if b.up.Process == nil {
		progress("no short turns with -upstream: requests are counted by an upstream of our own")
		return nil
	}
	for round := range b.options.rounds {
		if err := b.pairsRound(ctx, round); err != nil {
			return err
		}
	}
	return nil
}

// pairsRound starts everybody anew, and lets them alternate for the duration of a round each.
func (b *bench) pairsRound(ctx context.Context, round int) error {
	laps := max(1, int(b.duration/(2*spell)))
	var all []*paced
	defer func() {
		for _, p := range all {
			if p.load != nil {
				p.load.Resume()
				p.load.Stop()
			}
			p.contestant.Stop()
		}
	}()
	for i, c := range b.participants {
		if b.report.Results[i].Unfair != "" {
			continue
		}
		p, err := b.launch(ctx, c, b.up.address)
		if err != nil {
			return err
		}
		all = append(all, &paced{result: b.report.Results[i], contestant: p})
		if err := verify(p.address, 100); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for _, p := range all {
		argv, err := wrkCommand(b.rig, p.contestant.address, b.connections, b.timeout, b.timeout) // it stands still most of the time, and is ended
		if err == nil {
			p.load, err = b.rig.Start("wrk", nil, argv...)
		}
		if err == nil {
			err = sleep(ctx, b.warmup)
		}
		if err != nil {
			return err
		}
		p.load.Pause()
	}
	for n := range laps {
		used, requests := make([]time.Duration, len(all)), make([]int64, len(all))
		for i := range 2 * len(all) {
			k := (min(i, 2*len(all)-1-i) + n) % len(all)
			cpu, asked, err := b.spell(ctx, all[k])
			if err != nil {
				return fmt.Errorf("%s: %w", all[k].Name, err)
			}
			used[k], requests[k] = used[k]+cpu, requests[k]+asked
		}
		for k, p := range all {
			p.Laps = append(p.Laps, lap{round, float64(used[k]) / 1e3 / float64(requests[k]), requests[k]})
		}
	}
	for _, p := range all {
		p.load.Resume()
		if err := sleep(ctx, easeIn); err != nil { // what comes together with SIGCONT may wake another thread than the first, which then sleeps on
			return err
		}
		if err := p.load.Interrupt(ctx); err != nil {
			return err
		}
		l, err := parseWrk(p.load.Output())
		if err == nil {
			err = b.fair(l, p.accepted)
		}
		if err == nil {
			err = verify(p.contestant.address, 100)
		}
		if err != nil {
			p.unfair("%v", err)
		}
		progress("round %d/%d %-10s %6.2f µs/request", round+1, b.options.rounds, p.Name, median(values(p.Laps[len(p.Laps)-laps:], func(l lap) float64 { return l.CPU })))
	}
	return nil
}

// spell lets one load go on.
func (b *bench) spell(ctx context.Context, p *paced) (time.Duration, int64, error) {
	p.load.Resume()
	defer p.load.Pause()
	if err := sleep(ctx, easeIn); err != nil {
		return 0, 0, err
	}
	before, err := b.moment(p.contestant)
	if err != nil {
		return 0, 0, err
	}
	if err := sleep(ctx, spell); err != nil {
		return 0, 0, err
	}
	after, err := b.moment(p.contestant)
	if err != nil {
		return 0, 0, err
	}
	cpu, _ := after.contestant.Since(before.contestant)
	p.accepted += after.up.accepted - before.up.accepted
	requests := after.up.requests - before.up.requests - 1
	if requests < 1 {
		return 0, 0, fmt.Errorf("no request in %v", spell)
	}
	return cpu, requests, nil
}

// pairTable is everybody against everybody.
func (r *report) pairTable() table {
	var in []*result
	for _, res := range r.Results {
		if len(res.Laps) > 0 && res.Unfair == "" {
			in = append(in, res)
		}
	}
	head := []string{"", "CPU µs/request"}
	for _, peer := range in {
		head = append(head, "against "+peer.Name)
	}
	t := table{head}
	for _, res := range in {
		row := []string{res.Name, fmt.Sprintf("%.2f", median(values(res.Laps, func(l lap) float64 { return l.CPU })))}
		for _, peer := range in {
			if peer == res {
				row = append(row, "–")
				continue
			}
			mid, low, high := lapRatio(res.Laps, peer.Laps)
			row = append(row, fmt.Sprintf("%.3f (%.3f–%.3f)", mid, low, high))
		}
		t = append(t, row)
	}
	return t
}

// lapRatio is the median of the ratios of laps, and where it is with a probability of 95 %: between two of them that are as far from the
// middle as a fair coin tossed so often comes to lie, by the normal approximation.
func lapRatio(a, b []lap) (mid, low, high float64) {
	ratios := make([]float64, min(len(a), len(b)))
	for i := range ratios {
		ratios[i] = a[i].CPU / b[i].CPU
	}
	slices.Sort(ratios)
	n := float64(len(ratios))
	from := max(0, int(n/2-0.98*math.Sqrt(n)))
	return median(ratios), ratios[from], ratios[len(ratios)-1-from]
}
