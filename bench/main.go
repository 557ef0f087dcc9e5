//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rota-lb/rota/bench/internal/rig"
)

// workers is how many workers, loops or threads every contestant runs with.
var workers = 2

// options are what the command line says.
type options struct {
	contestants []string
	extra       []string
	rota        string
	ab          string
	upstream    string
	rounds      int
	duration    time.Duration
	warmup      time.Duration
	connections int
	idle        int
	settle      time.Duration
	parts       []string
	smoke       bool
	jsonFile    string
	timeout     time.Duration
}

// The parts of a run.
var allParts = []string{"cpu", "pairs", "latency", "syscalls", "idle", "allocs"}

func main() {
	var o options
	apart := flag.Bool("apart", false, "one worker each, alone on a processor; load and upstream share another one")
	contestants := flag.String("contestants", "floor,rota,nginx,haproxy", "who takes part, comma separated; there are caddy and httputil (Go's own ReverseProxy) too, for scale")
	parts := flag.String("parts", strings.Join(allParts, ","), "what to measure, comma separated")
	flag.Func("extra", "another contestant, `name=command`; run by sh with PORT and UPSTREAM (host:port) set; may be repeated", func(s string) error {
		if name, command, ok := strings.Cut(s, "="); !ok || name == "" || command == "" {
			return errors.New("write name=command")
		}
		o.extra = append(o.extra, s)
		return nil
	})
	flag.StringVar(&o.rota, "rota", "", "a rota `binary`; empty builds it")
	flag.StringVar(&o.ab, "ab", "", "another rota `binary`, say of before a change; it takes part as rota-b")
	flag.StringVar(&o.upstream, "upstream", "", "`host:port` of an upstream to use instead of the nginx started here; it must serve /body, and its connections are not counted")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds; every contestant takes its turn in each")
	flag.DurationVar(&o.duration, "duration", 5*time.Second, "load per turn")
	flag.DurationVar(&o.warmup, "warmup", time.Second, "load before it")
	flag.BoolVar(&logged, "logs", false, "everybody keeps an access log; rota-quiet takes part, which does not")
	name := flag.String("case", asked.name, "what is asked for: "+caseNames())
	flag.IntVar(&o.connections, "c", 0, "client connections; 0 is those of the case")
	flag.IntVar(&o.idle, "idle", 5000, "idle client connections to hold for the memory figure")
	flag.DurationVar(&o.settle, "settle", 8*time.Second, "how long memory may settle before it is read")
	flag.BoolVar(&o.smoke, "smoke", false, "one short round that only shows that everybody serves correctly")
	flag.StringVar(&o.jsonFile, "json", "", "write the figures to this `file` too")
	flag.DurationVar(&o.timeout, "timeout", 20*time.Minute, "limit of the whole run")
	flag.Parse()
	o.contestants, o.parts = list(*contestants), list(*parts)
	if o.ab != "" && !slices.Contains(o.contestants, "rota-b") {
		o.contestants = slices.Insert(o.contestants, slices.Index(o.contestants, "rota")+1, "rota-b")
	}
	if logged && !slices.Contains(o.contestants, "rota-quiet") {
		o.contestants = slices.Insert(o.contestants, slices.Index(o.contestants, "rota")+1, "rota-quiet")
	}
	c, err := findCase(*name)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	setCase(c)
	if o.connections == 0 {
		o.connections = c.connections
	}
	without := func(from []string, names ...string) []string {
		return slices.DeleteFunc(from, func(name string) bool { return slices.Contains(names, name) })
	}
	if c.tls || c.close { // the floor copies bytes, and a connection upstream for each of the clients' is no floor
		o.contestants, o.parts = without(o.contestants, "floor"), without(o.parts, "idle")
	}
	if c.tls || c.close {
		o.parts = without(o.parts, "latency")
	}
	if c.close { // some of these loads are this process, which cannot be stopped
		o.parts = without(o.parts, "pairs")
	}
	if o.smoke {
		o.rounds, o.duration, o.warmup, o.connections, o.idle, o.settle = 1, time.Second, time.Second, 16, 200, time.Second
		o.parts = slices.DeleteFunc(o.parts, func(part string) bool { return part != "cpu" && part != "pairs" && part != "idle" })
	}
	if *apart {
		if err := setApart(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(2)
		}
	}
	if err := run(&o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func list(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ","), func(s string) bool { return s == "" })
}

func run(o *options) error {
	for _, part := range o.parts {
		if !slices.Contains(allParts, part) {
			return fmt.Errorf("unknown part %q: there are %s", part, strings.Join(allParts, ", "))
		}
	}
	for _, tool := range []string{"wrk", "nginx"} {
		if _, err := exec.LookPath(tool); err != nil && (tool == "wrk" || o.upstream == "") {
			return fmt.Errorf("%s is needed: apt install %s", tool, tool)
		}
	}
	if o.rounds < 1 || o.connections < 1 || o.duration < time.Second || o.warmup < time.Second {
		return errors.New("-rounds and -c must be at least 1, -duration and -warmup at least 1s")
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.timeout)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := rig.New()
	if err != nil {
		return err
	}
	defer r.Close()

	b := &bench{options: o, rig: r}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	for _, part := range o.parts {
		var err error
		switch part {
		case "cpu":
			err = b.rounds(ctx)
		case "pairs":
			err = b.pairs(ctx)
		case "latency":
			err = b.latency(ctx)
		case "syscalls":
			err = b.syscalls(ctx)
		case "idle":
			err = b.idleMemory(ctx)
		case "allocs":
			err = b.allocations(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	fmt.Print(b.report.markdown())
	if o.jsonFile != "" {
		data, err := json.MarshalIndent(&b.report, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.jsonFile, append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	if unfair := b.report.unfair(); unfair != nil {
		return fmt.Errorf("did not serve correctly: %s", strings.Join(unfair, "; "))
	}
	return nil
}

// progress says on standard error what is going on; standard output is the report's.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
