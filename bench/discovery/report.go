//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rota-lb/rota/bench/internal/rig"
)

// report is everything a run found out.
type report struct {
	Machine     rig.Machine `json:"machine"`
	Small       int         `json:"small_fleet"`
	Large       int         `json:"large_fleet"`
	Changes     int         `json:"changes"`
	Samples     int         `json:"samples"`
	Rate        float64     `json:"unrelated_changes_per_second"`
	PutIdle     latency     `json:"put_to_routable_idle"`
	PutBusy     latency     `json:"put_to_routable_busy"`
	DeleteIdle  latency     `json:"delete_to_last_request_idle"`
	DeleteBusy  latency     `json:"delete_to_last_request_busy"`
	ChangeSmall cost        `json:"change_small"`
	ChangeLarge cost        `json:"change_large"`
	BurstSmall  cost        `json:"burst_small"`
	BurstLarge  cost        `json:"burst_large"`
	MemorySmall int64       `json:"memory_bytes_small"`
	MemoryLarge int64       `json:"memory_bytes_large"`
	Load        float64     `json:"load_seconds"`
	Cold        float64     `json:"cold_start_seconds"`
	Steal       float64     `json:"steal"`
}

// latency is a distribution, in milliseconds.
type latency struct {
	P50  float64 `json:"p50_ms"`
	P99  float64 `json:"p99_ms"`
	Most float64 `json:"most_ms"`
}

// cost is CPU time per change, in microseconds.
type cost struct {
	Rota      float64 `json:"cpu_us"`
	Watch     float64 `json:"bare_watch_cpu_us"` // of a process that only watches
	PerSecond float64 `json:"changes_per_second"`
}

func summarize(samples []time.Duration) latency {
	samples = slices.Sorted(slices.Values(samples))
	at := func(q float64) float64 {
		i := min(int(q*float64(len(samples))), len(samples)-1)
		return float64(samples[i]) / 1e6
	}
	return latency{P50: at(0.50), P99: at(0.99), Most: at(1)}
}

// perInstance is what an instance adds to memory.
func (r *report) perInstance() float64 {
	return float64(r.MemoryLarge-r.MemorySmall) / float64(r.Large-r.Small)
}

// markdown is the report as tables.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d cores, %s, Go %s; etcd of one member beside it, with fsync.\n", r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel, r.Machine.Go)
	fmt.Fprintf(&b, "%d samples a latency figure, asked every %s; services of %d instances.\n\n", r.Samples, pace, perService)
	b.WriteString("| ms, from the acknowledgement by etcd | p50 | p99 | most |\n| --- | --- | --- | --- |\n")
	for _, row := range []struct {
		name string
		latency
	}{
		{"put → first request served", r.PutIdle},
		{fmt.Sprintf("the same at %.0f unrelated changes/s", r.Rate), r.PutBusy},
		{"delete → last request", r.DeleteIdle},
		{fmt.Sprintf("the same at %.0f unrelated changes/s", r.Rate), r.DeleteBusy},
	} {
		fmt.Fprintf(&b, "| %s | %.2f | %.2f | %.2f |\n", row.name, row.P50, row.P99, row.Most)
	}
	fmt.Fprintf(&b, "\n| | %d instances | %d instances | |\n| --- | --- | --- | --- |\n", r.Small, r.Large)
	for _, row := range []struct {
		name         string
		small, large cost
	}{{"paced", r.ChangeSmall, r.ChangeLarge}, {"as fast as etcd takes them", r.BurstSmall, r.BurstLarge}} {
		fmt.Fprintf(&b, "| CPU µs per change of one weight, %s: %.0f and %.0f/s | %.1f | %.1f | ratio %.2f |\n",
			row.name, row.small.PerSecond, row.large.PerSecond, row.small.Rota, row.large.Rota, row.large.Rota/row.small.Rota)
		fmt.Fprintf(&b, "| of that beyond a bare watch by etcd's client | %.1f | %.1f | |\n", row.small.Rota-row.small.Watch, row.large.Rota-row.large.Watch)
	}
	fmt.Fprintf(&b, "| memory, MiB | %.1f | %.1f | %.0f bytes per instance |\n", float64(r.MemorySmall)/(1<<20), float64(r.MemoryLarge)/(1<<20), r.perInstance())
	fmt.Fprintf(&b, "| seconds to load while running | | %.2f | |\n| seconds to start with them | | %.2f | |\n", r.Load, r.Cold)
	if r.Steal > 0.01 {
		fmt.Fprintf(&b, "\n- the hypervisor took %.1f %% of the machine\n", 100*r.Steal)
	}
	return b.String()
}
