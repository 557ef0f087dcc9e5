//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rota-lb/rota/bench/internal/rig"
)

// bench is one run.
type bench struct {
	*options
	rig          *rig.Rig
	up           *upstream
	participants []*contestant
	report       report
}

// prepare builds what must be built, starts the upstream, and lets every contestant show that it forwards bodies
// unchanged and adds the client's address.
func (b *bench) prepare(ctx context.Context) error {
	b.report.Machine = rig.ReadMachine()
	b.report.Run = runInfo{Case: asked.name, About: asked.about, Rounds: b.options.rounds, Duration: b.duration.String(), Connections: b.connections, Workers: workers, Apart: cpus != nil, Idle: b.idle}
	for _, name := range b.contestants {
		progress("preparing %s", name)
		c, err := find(ctx, b.rig, name, b.options)
		if err != nil {
			return err
		}
		b.participants = append(b.participants, c)
	}
	for _, spec := range b.extra {
		b.participants = append(b.participants, extra(spec))
	}
	if b.upstream != "" {
		b.up = &upstream{address: b.upstream}
		if err := verifyAt("http://"+b.upstream, 1); err != nil {
			return fmt.Errorf("upstream %s: %w", b.upstream, err)
		}
	} else {
		var err error
		if b.up, err = startUpstream(ctx, b.rig); err != nil {
			return err
		}
	}
	for _, c := range b.participants {
		res := &result{Name: c.name, Version: c.version}
		b.report.Results = append(b.report.Results, res)
		if err := b.checkForwarding(ctx, c); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			res.unfair("%v", err)
		}
	}
	return nil
}

// launch starts c in front of the upstream at address and waits until it serves.
func (b *bench) launch(ctx context.Context, c *contestant, address string) (*running, error) {
	listen, err := rig.Address()
	if err != nil {
		return nil, err
	}
	p, err := startApart(func() (*running, error) { return c.start(b.rig, listen, address) })
	if err != nil {
		return nil, err
	}
	if err := p.Ready(ctx, func() error { return verify(p.address, 1) }); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

func (b *bench) checkForwarding(ctx context.Context, c *contestant) error {
	e, err := startEcho()
	if err != nil {
		return err
	}
	defer e.Close()
	p, err := b.launch(ctx, c, e.Addr().String())
	if err != nil {
		return err
	}
	defer p.Stop()
	if got := <-e.forwarded; got != "127.0.0.1" && !c.copies {
		return fmt.Errorf("X-Forwarded-For is %q, not the client's address", got)
	}
	return nil
}

// rounds lets everybody take its turn, in an order that rotates.
func (b *bench) rounds(ctx context.Context) error {
	n := len(b.participants)
	for round := range b.options.rounds {
		for i := range n {
			k := (round + i) % n
			c, res := b.participants[k], b.report.Results[k]
			if res.Unfair != "" {
				continue
			}
			t, err := b.turn(ctx, c)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				res.unfair("%v", err)
				continue
			}
			t.Round = round
			res.Turns = append(res.Turns, t)
			progress("round %d/%d %-10s %6.2f µs/request %8.0f requests/s", round+1, b.options.rounds, c.name, t.CPU, t.PerSec)
		}
	}
	return nil
}

// turn measures one contestant once: a fresh process, warmed up, under load.
func (b *bench) turn(ctx context.Context, c *contestant) (turn, error) {
	p, err := b.launch(ctx, c, b.up.address)
	if err != nil {
		return turn{}, err
	}
	defer p.Stop()
	if err := verify(p.address, 100); err != nil {
		return turn{}, err
	}
	if _, err := runLoad(ctx, b.rig, p.address, b.connections, b.warmup); err != nil {
		return turn{}, err
	}
	time.Sleep(300 * time.Millisecond) // the warm-up's connections close

	before, err := b.moment(p)
	if err != nil {
		return turn{}, err
	}
	l, err := runLoad(ctx, b.rig, p.address, b.connections, b.duration)
	if err != nil {
		return turn{}, err
	}
	after, err := b.moment(p)
	if err != nil {
		return turn{}, err
	}
	if err := verify(p.address, 100); err != nil {
		return turn{}, err
	}
	if err := b.fair(l, after.up.accepted-before.up.accepted); err != nil {
		return turn{}, err
	}
	cpu, userShare := after.contestant.Since(before.contestant)
	upCPU, _ := after.upstream.Since(before.upstream)
	system := after.system.Since(before.system)
	perRequest := func(d time.Duration) float64 { return float64(d) / 1e3 / float64(l.requests) }
	return turn{
		CPU:       perRequest(cpu),
		User:      perRequest(cpu) * userShare,
		PerSec:    l.perSec,
		P50:       float64(l.p50) / 1e3,
		P99:       float64(l.p99) / 1e3,
		Requests:  l.requests,
		Reconnect: after.up.accepted - before.up.accepted,
		Steal:     system.StealShare(),
		Foreign:   max(0, float64(system.BusyTime()-cpu-upCPU-l.cpu)/(float64(system.Total)*1e7)),
	}, nil
}

// moment is all accounts at one time.
type moment struct {
	contestant, upstream rig.Account
	up                   counters
	system               rig.System
}

func (b *bench) moment(p *running) (m moment, err error) {
	if m.up, err = b.up.counters(); err != nil {
		return m, err
	}
	if b.up.Process != nil {
		if m.upstream, err = b.up.Account(); err != nil {
			return m, err
		}
	}
	m.system = rig.ReadSystem()
	m.contestant, err = p.Account()
	return m, err
}

// fair refuses a turn that is not worth comparing: wrong answers, or upstream connections that do not last.
func (b *bench) fair(l load, accepted int64) error {
	// Four per client say nothing when there are thousands and each asks but a few times.
	limit := min(4*int64(b.connections)+16, max(2*int64(b.connections), l.requests/2))
	switch {
	case l.errors != "":
		return errors.New(l.errors)
	case l.requests == 0:
		return errors.New("no request was answered")
	case float64(l.bytes) < float64(l.requests)*float64(len(body))*0.99: // wrk rounds what it has read
		return fmt.Errorf("%d bytes are too few for %d answers", l.bytes, l.requests)
	case accepted > limit:
		return fmt.Errorf("%d upstream connections were opened for %d requests; more than %d mean that it does not keep them", accepted, l.requests, limit)
	}
	return nil
}

// each runs one part for every contestant that it fits and that is still in the race, one after the other, on a fresh
// process.
func (b *bench) each(ctx context.Context, part string, fits func(*contestant) bool, measure func(*running, *result) error) error {
	for i, c := range b.participants {
		res := b.report.Results[i]
		if res.Unfair != "" || !fits(c) {
			continue
		}
		progress("%s of %s", part, c.name)
		p, err := b.launch(ctx, c, b.up.address)
		if err == nil {
			err = measure(p, res)
			p.Stop()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			res.unfair("%s: %v", part, err)
		}
	}
	return nil
}

// syscalls counts system calls under strace, which slows everything down but does not change what is called.
func (b *bench) syscalls(ctx context.Context) error {
	if _, err := exec.LookPath("strace"); err != nil {
		progress("no system calls without strace: apt install strace")
		return nil
	}
	return b.each(ctx, "system calls", func(*contestant) bool { return true }, func(p *running, res *result) error {
		if _, err := runLoad(ctx, b.rig, p.address, b.connections, b.warmup); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
		pids, err := p.PIDs()
		if err != nil {
			return err
		}
		argv := []string{"strace", "-f", "-q", "-c", "-U", "calls,name"}
		for _, pid := range pids {
			argv = append(argv, "-p", strconv.Itoa(pid))
		}
		tracer, err := b.rig.Start("strace", nil, argv...)
		if err != nil {
			return err
		}
		defer tracer.Stop()
		time.Sleep(300 * time.Millisecond) // it attaches thread by thread
		l, err := runLoad(ctx, b.rig, p.address, b.connections, 3*time.Second)
		if err != nil {
			return err
		}
		tracer.Interrupt(ctx) // it ends by the signal, so its error says nothing
		calls, err := parseStrace(tracer.Output())
		if err != nil {
			return err
		}
		if l.requests == 0 {
			return errors.New("no request was answered under strace")
		}
		res.Syscalls = make(map[string]float64)
		for class, n := range classify(calls) {
			res.Syscalls[class] = float64(n) / float64(l.requests)
		}
		return nil
	})
}

// parseStrace reads a summary of calls and names.
func parseStrace(text string) (map[string]int64, error) {
	out := make(map[string]int64)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 2 {
			continue
		}
		if n, err := strconv.ParseInt(f[0], 10, 64); err == nil && f[1] != "total" {
			out[f[1]] += n
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("strace counted nothing:\n%s", text)
	}
	return out, nil
}

// classOf groups system calls. Reads and writes of anything else than sockets, such as a wake-up, count as well: they
// are rare, and nobody can be told apart by name alone.
var classOf = map[string]string{
	"read": "receive", "readv": "receive", "recvfrom": "receive", "recvmsg": "receive",
	"write": "send", "writev": "send", "sendto": "send", "sendmsg": "send", "sendfile": "send", "splice": "send",
	"accept": "accept", "accept4": "accept", "connect": "connect", "socket": "connect", "close": "close", "shutdown": "close",
	"epoll_wait": "epoll_wait", "epoll_pwait": "epoll_wait", "epoll_pwait2": "epoll_wait", "epoll_ctl": "epoll_ctl",
	"futex": "futex", "nanosleep": "sleep", "clock_nanosleep": "sleep",
}

func classify(calls map[string]int64) map[string]int64 {
	out := make(map[string]int64)
	for name, n := range calls {
		class, ok := classOf[name]
		if !ok {
			class = "other"
		}
		out[class] += n
	}
	out["socket"] = out["receive"] + out["send"]
	return out
}

// idleMemory opens many connections, asks once on each, and divides what memory grew by.
func (b *bench) idleMemory(ctx context.Context) error {
	// Who only copies holds an upstream connection per client, which nobody else does.
	return b.each(ctx, "memory", func(c *contestant) bool { return !c.copies }, func(p *running, res *result) error {
		// Pools and buffers first grow to what so many requests at a time need.
		if _, err := runLoad(ctx, b.rig, p.address, 64, b.warmup); err != nil {
			return err
		}
		if err := sleep(ctx, b.settle); err != nil {
			return err
		}
		before, err := p.PSS()
		if err != nil {
			return err
		}
		conns, err := openIdle(ctx, p.address, b.idle)
		defer func() {
			for _, c := range conns {
				c.Close()
			}
		}()
		if err != nil {
			return err
		}
		if err := sleep(ctx, b.settle); err != nil {
			return err
		}
		after, err := p.PSS()
		if err != nil {
			return err
		}
		for _, c := range conns[:min(len(conns), 100)] { // they are still served
			if err := ask(c); err != nil {
				return fmt.Errorf("an idle connection: %w", err)
			}
		}
		perConnection := float64(after-before) / float64(len(conns))
		res.IdleBytes = &perConnection
		return nil
	})
}

// openIdle opens n connections and asks once on each, at most 64 at a time. Source addresses are spread, for a
// single one has not ports enough for ever.
func openIdle(ctx context.Context, address string, n int) ([]net.Conn, error) {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns []net.Conn
		errs  error
		slots = make(chan struct{}, 64)
	)
	for i := range n {
		slots <- struct{}{}
		mu.Lock()
		failed := errs != nil || ctx.Err() != nil
		mu.Unlock()
		if failed {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i/2500))}}
			c, err := d.DialContext(ctx, "tcp", address)
			if err == nil {
				err = ask(c)
			}
			mu.Lock()
			defer mu.Unlock()
			if c != nil {
				conns = append(conns, c)
			}
			if err != nil && errs == nil {
				errs = err
			}
		})
	}
	wg.Wait()
	if errs == nil {
		errs = ctx.Err()
	}
	return conns, errs
}

// ask sends one request and reads the whole answer.
func ask(c net.Conn) error {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write(request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 2048), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != int64(len(body)) || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d with %d bytes: %w", resp.StatusCode, n, err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mallocs is the metric of Go's allocator that a contestant may export.
const mallocs = "go_memstats_mallocs_total"

// allocations divides the allocations of a loaded window by its requests, without those of an idle window.
func (b *bench) allocations(ctx context.Context) error {
	const window = 5 * time.Second
	return b.each(ctx, "allocations", func(c *contestant) bool { return c.metrics && b.up.Process != nil }, func(p *running, res *result) error {
		if _, err := metric(p.metrics, mallocs); err != nil {
			progress("  none: %v", err)
			return nil
		}
		lap := func() (allocated, requests float64, err error) {
			c0, err := b.up.counters()
			if err != nil {
				return 0, 0, err
			}
			a0, err := metric(p.metrics, mallocs)
			if err != nil {
				return 0, 0, err
			}
			if err := sleep(ctx, window); err != nil {
				return 0, 0, err
			}
			c1, err := b.up.counters()
			if err != nil {
				return 0, 0, err
			}
			a1, err := metric(p.metrics, mallocs)
			return a1 - a0, float64(c1.requests - c0.requests - 1), err
		}
		if err := sleep(ctx, time.Second); err != nil { // what starts has started
			return err
		}
		idle, _, err := lap()
		if err != nil {
			return err
		}
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		ended := make(chan error, 1)
		go func() {
			_, err := runLoad(ctx, b.rig, p.address, b.connections, window+2*time.Second)
			ended <- err
		}()
		if err := sleep(ctx, time.Second); err != nil { // connections are opened, pools filled
			return err
		}
		loaded, requests, err := lap()
		if err != nil {
			return err
		}
		if err := <-ended; err != nil {
			return err
		}
		if requests <= 0 {
			return errors.New("no requests")
		}
		perRequest := max(0, loaded-idle) / requests
		res.Allocations = &perRequest
		return nil
	})
}

// metric reads one sample without labels.
func metric(url, name string) (float64, error) {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: status %d", url, resp.StatusCode)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	return parseMetric(string(text), name)
}

func parseMetric(text, name string) (float64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.Fields(value)[0], 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}
