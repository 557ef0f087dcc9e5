//go:build linux

package main

import (
	"context"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rota-lb/rota/bench/internal/rig"
)

// load is what wrk reports, and what it used itself.
type load struct {
	requests int64
	bytes    int64
	perSec   float64
	p50, p99 time.Duration
	errors   string // socket errors and answers that are not 2xx, or empty
	cpu      time.Duration
}

// runLoad asks as the case does over so many connections for so long.
func runLoad(ctx context.Context, r *rig.Rig, address string, connections int, d time.Duration) (load, error) {
	if asked.tls && asked.close {
		return handshakes(ctx, address, connections, d)
	}
	return runWrk(ctx, r, address, connections, d)
}

// wrkCommand is a load of one thread. An answer that takes longer than patience is an error. It knows whole seconds only; a part of one
// counts as one.
func wrkCommand(r *rig.Rig, address string, connections int, d, patience time.Duration) ([]string, error) {
	argv := []string{"wrk", "-t1", fmt.Sprintf("-c%d", connections), fmt.Sprintf("-d%d", int(math.Ceil(d.Seconds()))),
		"--timeout", fmt.Sprintf("%ds", int(patience.Seconds())), "--latency"}
	if asked.close {
		argv = append(argv, "-H", "Connection: close")
	}
	if asked.post > 0 {
		script, err := r.File("post.lua", fmt.Sprintf("wrk.method, wrk.body = %q, %q\n", method(), sent))
		if err != nil {
			return nil, err
		}
		argv = append(argv, "-s", script)
	}
	return append(argv, scheme()+address+bodyPath), nil
}

func runWrk(ctx context.Context, r *rig.Rig, address string, connections int, d time.Duration) (load, error) {
	argv, err := wrkCommand(r, address, connections, d, 5*time.Second)
	if err != nil {
		return load{}, err
	}
	p, err := r.Start("wrk", nil, argv...)
	if err != nil {
		return load{}, err
	}
	if err := p.Wait(ctx); err != nil {
		return load{}, err
	}
	l, err := parseWrk(p.Output())
	l.cpu = p.CPU()
	return l, err
}

var (
	wrkTotal  = regexp.MustCompile(`(\d+) requests in ([0-9.]+[a-z]+), ([0-9.]+)([KMGT]?)B read`)
	wrkRate   = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkSocket = regexp.MustCompile(`Socket errors: (.*)`)
	wrkStatus = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
)

// parseWrk reads wrk's report.
func parseWrk(text string) (load, error) {
	var l load
	total, rate := wrkTotal.FindStringSubmatch(text), wrkRate.FindStringSubmatch(text)
	if total == nil || rate == nil {
		return l, fmt.Errorf("unreadable report of wrk:\n%s", text)
	}
	var err error
	if l.requests, err = strconv.ParseInt(total[1], 10, 64); err != nil {
		return l, err
	}
	read, err := strconv.ParseFloat(total[3], 64)
	if err != nil {
		return l, err
	}
	unit := map[string]float64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}[total[4]]
	l.bytes = int64(read * unit)
	if l.perSec, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return l, err
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 2 {
			continue
		}
		switch f[0] {
		case "50%":
			l.p50, err = time.ParseDuration(f[1])
		case "99%":
			l.p99, err = time.ParseDuration(f[1])
		}
		if err != nil {
			return l, err
		}
	}
	if m := wrkSocket.FindStringSubmatch(text); m != nil {
		l.errors = "socket errors: " + strings.TrimSpace(m[1])
	}
	if m := wrkStatus.FindStringSubmatch(text); m != nil {
		l.errors = strings.TrimPrefix(l.errors+", "+m[1]+" answers not 2xx", ", ")
	}
	return l, nil
}
