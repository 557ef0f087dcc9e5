//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/rota-lb/rota/bench/internal/rig"
)

// report is everything a run found out.
type report struct {
	Machine rig.Machine `json:"machine"`
	Run     runInfo     `json:"run"`
	Results []*result   `json:"results"`
}

type runInfo struct {
	Case        string `json:"case"`
	About       string `json:"about"`
	Rounds      int    `json:"rounds"`
	Duration    string `json:"duration"`
	Connections int    `json:"connections"`
	Workers     int    `json:"workers"`
	Apart       bool   `json:"alone_on_a_processor"`
	Idle        int    `json:"idle_connections"`
}

// result is one contestant's. Microseconds, unless a name says otherwise.
type result struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	// Unfair says why no ratio is given, or is empty.
	Unfair      string             `json:"unfair,omitempty"`
	Turns       []turn             `json:"turns,omitempty"`
	Laps        []lap              `json:"laps,omitempty"`
	Delays      []delays           `json:"fixed_rate,omitempty"`
	Syscalls    map[string]float64 `json:"syscalls_per_request,omitempty"`
	IdleBytes   *float64           `json:"idle_connection_bytes,omitempty"`
	Allocations *float64           `json:"allocations_per_request,omitempty"`
}

// turn is one contestant's in one round.
type turn struct {
	Round     int     `json:"round"`
	CPU       float64 `json:"cpu_us_per_request"`
	User      float64 `json:"user_us_per_request"`
	PerSec    float64 `json:"requests_per_second"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
	Requests  int64   `json:"requests"`
	Reconnect int64   `json:"upstream_connections_opened"`
	// Steal is the share of the machine that the hypervisor took, Foreign the share that went to processes that
	// have no part in the run.
	Steal   float64 `json:"steal"`
	Foreign float64 `json:"foreign"`
}

func (r *result) unfair(format string, args ...any) {
	r.Unfair = fmt.Sprintf(format, args...)
	progress("%s: %s", r.Name, r.Unfair)
}

func (r *report) unfair() []string {
	var out []string
	for _, res := range r.Results {
		if res.Unfair != "" {
			out = append(out, res.Name+": "+res.Unfair)
		}
	}
	return out
}

func (r *report) find(name string) *result {
	for _, res := range r.Results {
		if res.Name == name {
			return res
		}
	}
	return nil
}

// Beyond these shares a turn is marked: what it shows may be the neighbours'.
const (
	tooMuchSteal   = 0.01
	tooMuchForeign = 0.10
)

// markdown is the report as tables.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d cores, %s", r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel)
	for _, res := range r.Results {
		if res.Version != "" {
			fmt.Fprintf(&b, ", %s %s", res.Name, res.Version)
		}
	}
	where := fmt.Sprintf("%d workers each", r.Run.Workers)
	if r.Run.Apart {
		where = "one worker each, alone on a processor"
	}
	fmt.Fprintf(&b, ", Go %s.\n%s: %s; c = %d, %s; %d rounds of %s, in turn; median (least–most).\n\n",
		r.Machine.Go, r.Run.Case, r.Run.About, r.Run.Connections, where, r.Run.Rounds, r.Run.Duration)

	peers := []string{"floor", "nginx", "haproxy"}
	t := table{{"", "CPU µs/request", "user part", "requests/s", "p50 µs", "p99 µs", "against floor", "against nginx", "against HAProxy"}}
	if r.find("rota-b") != nil {
		peers, t[0] = append(peers, "rota-b"), append(t[0], "against rota-b")
	}
	for _, res := range r.Results {
		if len(res.Turns) == 0 {
			continue
		}
		row := []string{res.Name,
			spread(res.Turns, func(t turn) float64 { return t.CPU }, "%.2f"),
			middle(res.Turns, func(t turn) float64 { return t.User }, "%.2f"),
			middle(res.Turns, func(t turn) float64 { return t.PerSec }, "%.0f"),
			middle(res.Turns, func(t turn) float64 { return t.P50 }, "%.0f"),
			middle(res.Turns, func(t turn) float64 { return t.P99 }, "%.0f"),
		}
		for _, peer := range peers {
			row = append(row, ratio(res, r.find(peer)))
		}
		t = append(t, row)
	}
	if len(t) > 1 {
		b.WriteString(t.String() + "\n")
	}

	t = table{{"", "socket calls/request", "receive", "send", "epoll_wait", "other calls", "bytes per idle connection", "allocations/request"}}
	for _, res := range r.Results {
		if res.Syscalls == nil && res.IdleBytes == nil && res.Allocations == nil {
			continue
		}
		row := []string{res.Name, "–", "–", "–", "–", "–", number("%.0f", res.IdleBytes), number("%.4f", res.Allocations)}
		if s := res.Syscalls; s != nil {
			var all float64
			for class, n := range s {
				if class != "socket" {
					all += n
				}
			}
			for i, v := range []float64{s["socket"], s["receive"], s["send"], s["epoll_wait"], all - s["socket"] - s["epoll_wait"]} {
				row[i+1] = fmt.Sprintf("%.2f", v)
			}
		}
		t = append(t, row)
	}
	if len(t) > 1 {
		b.WriteString(t.String() + "\n")
	}

	if t := r.pairTable(); len(t) > 1 {
		b.WriteString("All running, their load alternating; median of the ratios (where it is with 95 %):\n\n" + t.String() + "\n")
	}

	if t := r.delayTable(); len(t) > 1 {
		b.WriteString("At fixed rates, of what the slowest peer can do, from the moment a request was due:\n\n" + t.String() + "\n")
	}

	for _, res := range r.Results {
		if res.Unfair != "" {
			fmt.Fprintf(&b, "- %s is not compared: %s\n", res.Name, strings.Join(strings.Fields(res.Unfair), " "))
		}
		for _, t := range res.Turns {
			if t.Steal > tooMuchSteal {
				fmt.Fprintf(&b, "- round %d, %s: the hypervisor took %.1f %% of the machine\n", t.Round+1, res.Name, 100*t.Steal)
			}
			if t.Foreign > tooMuchForeign {
				fmt.Fprintf(&b, "- round %d, %s: other processes took %.0f %% of the machine\n", t.Round+1, res.Name, 100*t.Foreign)
			}
		}
	}
	return b.String()
}

// ratio is the median of res against peer, round by round; nothing is said of who did not serve correctly.
func ratio(res, peer *result) string {
	if peer == nil || res.Unfair != "" || peer.Unfair != "" {
		return "–"
	}
	var ratios []float64
	for _, t := range res.Turns {
		for _, p := range peer.Turns {
			if p.Round == t.Round {
				ratios = append(ratios, t.CPU/p.CPU)
			}
		}
	}
	if len(ratios) == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", median(ratios))
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func values[T any](turns []T, of func(T) float64) []float64 {
	out := make([]float64, len(turns))
	for i, t := range turns {
		out[i] = of(t)
	}
	return out
}

func middle(turns []turn, of func(turn) float64, format string) string {
	return fmt.Sprintf(format, median(values(turns, of)))
}

func spread(turns []turn, of func(turn) float64, format string) string {
	v := values(turns, of)
	return fmt.Sprintf(format+" ("+format+"–"+format+")", median(v), slices.Min(v), slices.Max(v))
}

func number(format string, v *float64) string {
	if v == nil {
		return "–"
	}
	return fmt.Sprintf(format, *v)
}

// table is rows of cells, the first row being the head, written as Markdown with aligned columns.
type table [][]string

func (t table) String() string {
	widths := make([]int, len(t[0]))
	for _, row := range t {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	line := func(row []string) {
		for i, cell := range row {
			fmt.Fprintf(&b, "| %s%s ", cell, strings.Repeat(" ", widths[i]-len([]rune(cell))))
		}
		b.WriteString("|\n")
	}
	line(t[0])
	for _, w := range widths {
		b.WriteString("| " + strings.Repeat("-", max(w, 3)) + " ")
	}
	b.WriteString("|\n")
	for _, row := range t[1:] {
		line(row)
	}
	return b.String()
}
