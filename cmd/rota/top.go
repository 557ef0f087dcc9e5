package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-lb/rota/balancer"
)

func topCommand() *cobra.Command {
	var l look
	var every time.Duration
	var rounds int
	cmd := l.flags(&cobra.Command{
		Use: "top [service]", Short: "Show rates, errors and latencies as they are", Args: args(cobra.MaximumNArgs(1)),
		Long: "Show, every two seconds until Ctrl-C, what each service does; of a service, what each instance does. The busiest come\n" +
			"first. Rates and latencies are those between two looks; the first one shows those since the daemon runs.",
		ValidArgsFunction: completeNames(1),
		RunE: func(cmd *cobra.Command, list []string) error {
			switch {
			case l.etcdctl:
				return noEtcdctl("what instances do is counted by the daemon")
			case every < 100*time.Millisecond:
				return usageError{errors.New("--interval: write 100ms or more")}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return l.top(ctx, cmd.OutOrStdout(), strings.Join(list, ""), every, rounds)
		},
	})
	cmd.Flags().DurationVarP(&every, "interval", "n", 2*time.Second, "`time` between two looks")
	cmd.Flags().IntVar(&rounds, "rounds", 0, "`number` of looks; 0 is until Ctrl-C")
	return cmd
}

// top shows a table after another. On a terminal each takes the place of the last one.
func (l *look) top(ctx context.Context, w io.Writer, service string, every time.Duration, rounds int) error {
	s := screenOf(w)
	path := "/api/v1/stats"
	if service != "" {
		path += "?service=" + url.QueryEscape(service)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last balancer.Stats
	for n := 1; ; n++ {
		var now balancer.Stats
		body, err := l.get(ctx, path, &now)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (n == 1 || s.columns == 0):
			return err
		case err != nil:
			fmt.Fprintf(w, "\x1b[H\x1b[2J%s\n", s.cut(err.Error()))
		case l.output == "json":
			w.Write(body)
		default:
			var out bytes.Buffer
			if s.columns > 0 {
				out.WriteString("\x1b[H\x1b[2J")
			}
			if err := s.table(&out, func(w io.Writer) { topTable(w, &last, &now, service, s.rows) }); err != nil {
				return err
			}
			if _, err := w.Write(out.Bytes()); err != nil {
				return err
			}
			last = now
		}
		if n == rounds {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// figures are what is shown in a line.
type figures struct {
	name             string
	requests, errors uint64
	inFlight         int
	buckets          []uint64
	note             string
}

// since is what was counted after last; all of it when the daemon has started anew.
func (f figures) since(last figures) figures {
	if f.requests < last.requests || len(f.buckets) < len(last.buckets) {
		return f
	}
	f.requests -= last.requests
	f.errors -= min(last.errors, f.errors)
	f.buckets = slices.Clone(f.buckets)
	for i := range last.buckets {
		f.buckets[i] -= min(last.buckets[i], f.buckets[i])
	}
	return f
}

func topTable(w io.Writer, last, now *balancer.Stats, service string, rows int) {
	seconds := now.At.Sub(last.At).Seconds()
	if last.At.IsZero() {
		seconds = 0
	}
	was := map[string]figures{}
	for _, f := range lines(last, service) {
		was[f.name] = f
	}
	list := lines(now, service)
	for i, f := range list {
		list[i] = f.since(was[f.name])
	}
	slices.SortStableFunc(list[1:], func(a, b figures) int { return int(int64(b.requests) - int64(a.requests)) })
	if rows > 4 && len(list) > rows-2 {
		list = list[:rows-2]
	}
	what, note, rate := "SERVICE", "INSTANCES", "REQUESTS/S"
	if service != "" {
		what, note = "INSTANCE", "ADDRESS"
	}
	if seconds == 0 {
		rate = "REQUESTS"
	}
	fmt.Fprintf(w, "%s\t%s\tERRORS\tIN FLIGHT\tP50\tP95\tP99\t%s\n", what, rate, note)
	for _, f := range list {
		shown := fmt.Sprint(f.requests)
		if seconds > 0 {
			shown = fmt.Sprintf("%.1f", float64(f.requests)/seconds)
		}
		share := "–"
		if f.requests > 0 {
			share = fmt.Sprintf("%.1f %%", 100*float64(f.errors)/float64(f.requests))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", printable(f.name), shown, share, f.inFlight,
			quantile(f.buckets, now.Bounds, 0.5), quantile(f.buckets, now.Bounds, 0.95), quantile(f.buckets, now.Bounds, 0.99), f.note)
	}
}

// lines are what is shown of stats: the sum first.
func lines(s *balancer.Stats, service string) []figures {
	t := &s.Total
	list := []figures{{"all", t.Requests, t.Errors, t.InFlight, t.Buckets, fmt.Sprintf("%d of %d ready", t.Ready, t.Instances)}}
	if service != "" {
		for _, e := range s.Endpoints {
			list = append(list, figures{e.ID, e.Requests, e.Errors, e.InFlight, e.Buckets, e.Address})
		}
		return list
	}
	for _, v := range s.Services {
		list = append(list, figures{v.Name, v.Requests, v.Errors, v.InFlight, v.Buckets, fmt.Sprintf("%d of %d ready", v.Ready, v.Instances)})
	}
	return list
}

// quantile estimates a quantile, within its bucket in proportion.
func quantile(buckets []uint64, bounds []float64, q float64) string {
	var total uint64
	for _, n := range buckets {
		total += n
	}
	if total == 0 {
		return "–"
	}
	rank, seen := q*float64(total), 0.0
	for i, n := range buckets {
		if i == len(bounds) {
			break
		}
		if seen+float64(n) >= rank && n > 0 {
			from := 0.0
			if i > 0 {
				from = bounds[i-1]
			}
			return short(from + (bounds[i]-from)*(rank-seen)/float64(n))
		}
		seen += float64(n)
	}
	return "> " + short(bounds[len(bounds)-1])
}

// short writes seconds with three digits.
func short(seconds float64) string {
	switch {
	case seconds < 0.001:
		return fmt.Sprintf("%.0f µs", seconds*1e6)
	case seconds < 1:
		return fmt.Sprintf("%.3g ms", seconds*1e3)
	}
	return fmt.Sprintf("%.3g s", seconds)
}
