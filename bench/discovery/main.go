//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rota-lb/rota/bench/internal/rig"
)

type options struct {
	rota     string
	dir      string
	small    int
	large    int
	changes  int
	samples  int
	rate     int
	settle   time.Duration
	smoke    bool
	jsonFile string
	timeout  time.Duration
	watch    string
}

// perService is how many instances the services of the fleet have.
const perService = 50

func main() {
	var o options
	flag.StringVar(&o.rota, "rota", "", "a rota `binary`; empty builds it")
	flag.StringVar(&o.dir, "dir", "", "where etcd keeps its data for the run; empty is the temporary directory")
	flag.IntVar(&o.small, "small", 1000, "instances of the small fleet")
	flag.IntVar(&o.large, "large", 100_000, "instances of the large fleet")
	flag.IntVar(&o.changes, "changes", 5000, "changes per CPU figure")
	flag.IntVar(&o.samples, "samples", 300, "samples per latency figure")
	flag.IntVar(&o.rate, "rate", 1000, "unrelated changes a second beside the busy latency figures, and pace of the CPU ones")
	flag.DurationVar(&o.settle, "settle", 15*time.Second, "how long memory may settle before it is read")
	flag.BoolVar(&o.smoke, "smoke", false, "a small, short run that only shows that it works")
	flag.StringVar(&o.jsonFile, "json", "", "write the figures to this `file` too")
	flag.StringVar(&o.watch, "watch", "", "only watch the etcd at this `endpoint` and do nothing with it: the run starts itself so, as the reference")
	flag.DurationVar(&o.timeout, "timeout", 15*time.Minute, "limit of the whole run")
	flag.Parse()
	if o.smoke {
		o.small, o.large, o.changes, o.samples, o.rate, o.settle = 100, 1000, 200, 20, 200, time.Second
	}
	if err := run(&o); err != nil {
		fmt.Fprintln(os.Stderr, "discovery:", err)
		os.Exit(1)
	}
}

func run(o *options) error {
	if o.small < perService || o.large <= o.small || o.changes < 1 || o.samples < 1 || o.rate < 1 || o.large > 1<<22 {
		return fmt.Errorf("-small must be at least %d, -large more and at most %d; -changes, -samples and -rate at least 1", perService, 1<<22)
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.timeout)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.watch != "" {
		return watch(ctx, o.watch)
	}
	r, err := rig.New()
	if err != nil {
		return err
	}
	defer r.Close()
	binary := o.rota
	if binary == "" {
		progress("building rota")
		if binary, err = r.Build(ctx, "cmd/rota"); err != nil {
			return err
		}
	}
	b := &bench{options: o, rig: r, binary: binary}
	err = b.run(ctx)
	b.close()
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	fmt.Print(b.report.markdown())
	if o.jsonFile == "" {
		return nil
	}
	data, err := json.MarshalIndent(&b.report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.jsonFile, append(data, '\n'), 0o644)
}

// progress says on standard error what is going on; standard output is the report's.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
