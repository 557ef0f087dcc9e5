//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rota-lb/rota/bench/internal/rig"
)

// pace is how often something is asked: the resolution of the latency figures.
const pace = 200 * time.Microsecond

// unpaced is a rate that etcd never reaches: changes come as fast as it takes them.
const unpaced = 1_000_000

// bench is one run.
type bench struct {
	*options
	rig      *rig.Rig
	binary   string
	store    *store
	rota     *rig.Process
	address  string
	backends [2]*backend
	services atomic.Int64 // names given out so far
	report   report
}

func (b *bench) close() {
	if b.rota != nil {
		b.rota.Stop()
	}
	for _, s := range b.backends {
		if s != nil {
			s.Close()
		}
	}
	if b.store != nil {
		b.store.close()
	}
}

func (b *bench) run(ctx context.Context) error {
	b.report.Machine = rig.ReadMachine()
	b.report.Small, b.report.Large, b.report.Changes, b.report.Samples = b.small, b.large, b.changes, b.samples
	system := rig.ReadSystem()
	var err error
	dir := b.dir
	if dir == "" {
		dir = b.rig.Dir
	}
	if b.store, err = startStore(ctx, dir); err != nil {
		return err
	}
	start := time.Now()
	for i := range b.backends {
		if b.backends[i], err = startBackend(start); err != nil {
			return err
		}
	}
	progress("loading %d instances", b.small)
	if err := b.store.load(ctx, 0, b.small); err != nil {
		return err
	}
	if _, err := b.launch(ctx); err != nil {
		return err
	}
	smallMemory, err := b.settled(ctx)
	if err != nil {
		return err
	}

	if b.report.PutIdle, err = b.puts(ctx); err != nil {
		return err
	}
	if b.report.DeleteIdle, err = b.deletes(ctx); err != nil {
		return err
	}
	stop := b.churn(ctx, b.rate)
	b.report.PutBusy, err = b.puts(ctx)
	if err == nil {
		b.report.DeleteBusy, err = b.deletes(ctx)
	}
	var churnErr error
	if b.report.Rate, churnErr = stop(); err != nil || churnErr != nil {
		return errors.Join(err, churnErr)
	}

	if b.report.ChangeSmall, err = b.change(ctx, b.small, b.rate); err != nil {
		return err
	}
	if b.report.BurstSmall, err = b.change(ctx, b.small, unpaced); err != nil {
		return err
	}
	progress("loading %d instances", b.large)
	loading := time.Now()
	if err := b.store.load(ctx, b.small, b.large); err != nil {
		return err
	}
	if err := b.applied(ctx); err != nil {
		return err
	}
	b.report.Load = time.Since(loading).Seconds()
	if b.report.ChangeLarge, err = b.change(ctx, b.large, b.rate); err != nil {
		return err
	}
	if b.report.BurstLarge, err = b.change(ctx, b.large, unpaced); err != nil {
		return err
	}
	largeMemory, err := b.settled(ctx)
	if err != nil {
		return err
	}
	b.report.MemorySmall, b.report.MemoryLarge = smallMemory, largeMemory

	b.rota.Stop()
	cold, err := b.launch(ctx)
	if err != nil {
		return err
	}
	b.report.Cold = cold.Seconds()
	b.report.Steal = rig.ReadSystem().Since(system).StealShare()
	return nil
}

// launch starts rota and waits until it serves what etcd holds; it returns how long that took.
func (b *bench) launch(ctx context.Context) (time.Duration, error) {
	admin, err := rig.Address()
	if err != nil {
		return 0, err
	}
	if b.address, err = rig.Address(); err != nil {
		return 0, err
	}
	config, err := b.rig.File("rota.yaml", fmt.Sprintf(`etcd: {endpoints: ["%s"]}
listeners: [{address: "%s"}]
admin: {address: "%s"}
auto_routes: true
grace: 0s
log: {level: warn, access: "off"}
`, b.store.endpoint, b.address, admin))
	if err != nil {
		return 0, err
	}
	binary, err := filepath.Abs(b.binary)
	if err != nil {
		return 0, err
	}
	// The names sort behind the fleet's, so a listing in pages has them last, as a watch has.
	service := fmt.Sprintf("sentinel-%d", b.services.Add(1))
	if err := b.store.put(ctx, service, "a", b.backends[0].address()); err != nil {
		return 0, err
	}
	start := time.Now()
	if b.rota, err = b.rig.Start("rota", nil, binary, "serve", "-c", config); err != nil {
		return 0, err
	}
	c := &client{address: b.address}
	defer c.close()
	err = b.rota.Ready(ctx, func() error {
		status, err := c.get(service + ".localhost")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d for %s.localhost", status, service)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, b.store.remove(ctx, service, "a")
}

// applied waits until rota has applied everything that etcd acknowledged before: events come in order, so a put that
// is seen was the last.
func (b *bench) applied(ctx context.Context) error {
	service := fmt.Sprintf("sentinel-%d", b.services.Add(1))
	if err := b.store.put(ctx, service, "a", b.backends[0].address()); err != nil {
		return err
	}
	c := &client{address: b.address}
	defer c.close()
	if _, err := b.until(ctx, c, service, 60*time.Second); err != nil {
		return err
	}
	return b.store.remove(ctx, service, "a")
}

// until asks for a service until it is served.
func (b *bench) until(ctx context.Context, c *client, service string, limit time.Duration) (time.Duration, error) {
	start := time.Now()
	for {
		asked := time.Now()
		status, err := c.get(service + ".localhost")
		switch {
		case err == nil && status == http.StatusOK:
			return time.Since(start), nil
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case time.Since(start) > limit:
			return 0, errors.Join(fmt.Errorf("%s is not served after %s: status %d", service, limit, status), err, errors.New(b.rota.Output()))
		}
		time.Sleep(pace - min(pace, time.Since(asked)))
	}
}

// puts measures from the acknowledgement of a put to the first request served, for services that did not exist.
func (b *bench) puts(ctx context.Context) (latency, error) {
	progress("put → routable, %d samples", b.samples)
	c := &client{address: b.address}
	defer c.close()
	var out []time.Duration
	for range b.samples {
		service := fmt.Sprintf("put-%d", b.services.Add(1))
		// The connection is open and warm, the host unknown so far.
		if status, err := c.get(service + ".localhost"); err != nil || status == http.StatusOK {
			return latency{}, fmt.Errorf("an unknown host was answered with %d: %w", status, err)
		}
		if err := b.store.put(ctx, service, "a", b.backends[0].address()); err != nil {
			return latency{}, err
		}
		took, err := b.until(ctx, c, service, 5*time.Second)
		if err != nil {
			return latency{}, err
		}
		out = append(out, took)
		if err := b.store.remove(ctx, service, "a"); err != nil {
			return latency{}, err
		}
		time.Sleep(5*time.Millisecond + rand.N(5*time.Millisecond))
	}
	return summarize(out), nil
}

// deletes measures from the acknowledgement of a delete to the last request that reached the deleted instance, one of
// two, under steady requests. An instance that got its last request before that counts as zero.
func (b *bench) deletes(ctx context.Context) (latency, error) {
	progress("delete → last request, %d samples", b.samples)
	service := fmt.Sprintf("delete-%d", b.services.Add(1))
	for i, s := range b.backends {
		if err := b.store.put(ctx, service, fmt.Sprint(i), s.address()); err != nil {
			return latency{}, err
		}
	}
	first := &client{address: b.address}
	defer first.close()
	if _, err := b.until(ctx, first, service, 5*time.Second); err != nil {
		return latency{}, err
	}

	var failed atomic.Int64
	loadCtx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			c := &client{address: b.address}
			defer c.close()
			for loadCtx.Err() == nil {
				asked := time.Now()
				if status, err := c.get(service + ".localhost"); err != nil || status != http.StatusOK {
					failed.Add(1)
				}
				time.Sleep(2*pace - min(2*pace, time.Since(asked)))
			}
		})
	}
	defer wg.Wait()
	defer stop()

	const quiet = 25 * time.Millisecond
	gone := b.backends[1]
	var out []time.Duration
	for range b.samples {
		before := gone.asked.Load()
		for deadline := time.Now().Add(5 * time.Second); gone.asked.Load() < before+3; time.Sleep(time.Millisecond) {
			if ctx.Err() != nil {
				return latency{}, ctx.Err()
			}
			if time.Now().After(deadline) {
				return latency{}, errors.New("an instance is not asked within 5s of its put")
			}
		}
		if err := b.store.remove(ctx, service, "1"); err != nil {
			return latency{}, err
		}
		acknowledged := time.Now()
		for deadline := acknowledged.Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			last := gone.lastAsked()
			if last.Before(acknowledged) {
				last = acknowledged
			}
			if time.Since(last) > quiet {
				out = append(out, last.Sub(acknowledged))
				break
			}
			if time.Now().After(deadline) {
				return latency{}, errors.New("an instance is still asked 5s after its delete")
			}
		}
		if err := b.store.put(ctx, service, "1", gone.address()); err != nil {
			return latency{}, err
		}
	}
	if n := failed.Load(); n > 0 {
		return latency{}, fmt.Errorf("%d requests failed while instances came and went", n)
	}
	return summarize(out), nil
}

// churn changes weights of the small fleet at a rate until stop is called, which returns the rate achieved.
func (b *bench) churn(ctx context.Context, rate int) (stop func() (float64, error)) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	start := time.Now()
	var n atomic.Int64
	go func() { done <- b.changeMany(ctx, b.small, 1<<30, rate, &n) }()
	return func() (float64, error) {
		achieved := float64(n.Load()) / time.Since(start).Seconds()
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			return achieved, err
		}
		return achieved, nil
	}
}

// changeMany puts n single weight changes, spread over the first size instances of the fleet, at a rate; done counts.
func (b *bench) changeMany(ctx context.Context, size, n, rate int, done *atomic.Int64) error {
	const writers = 32
	work := make(chan int)
	var wg sync.WaitGroup
	errs := make(chan error, writers)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range writers {
		wg.Go(func() {
			for i := range work {
				at := rand.IntN(size)
				if _, err := b.store.Put(ctx, fleetKey(at), fleetValue(at, 1+i%1000)); err != nil {
					errs <- err
					cancel()
					return
				}
				done.Add(1)
			}
		})
	}
	start := time.Now()
feed:
	for i := range n {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		select {
		case work <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return ctx.Err()
	}
}

// change measures rota's CPU time per change of one weight in a fleet of that size, less what it uses when idle, and
// beside it that of a process which only watches.
func (b *bench) change(ctx context.Context, size, rate int) (cost, error) {
	progress("CPU of %d changes among %d instances, at most %d/s", b.changes, size, rate)
	self, err := os.Executable()
	if err != nil {
		return cost{}, err
	}
	watcher, err := b.rig.Start("watcher", nil, self, "-watch", b.store.endpoint)
	if err != nil {
		return cost{}, err
	}
	defer watcher.Stop()
	if err := b.applied(ctx); err != nil {
		return cost{}, err
	}
	if err := sleep(ctx, time.Second); err != nil { // both have started and come to rest
		return cost{}, err
	}
	idle, err := b.used(watcher, func() error { return sleep(ctx, 2*time.Second) })
	if err != nil {
		return cost{}, err
	}
	busy, err := b.used(watcher, func() error {
		var n atomic.Int64
		if err := b.changeMany(ctx, size, b.changes, rate, &n); err != nil {
			return err
		}
		return b.applied(ctx)
	})
	if err != nil {
		return cost{}, err
	}
	per := func(busyCPU, idleCPU time.Duration) float64 {
		idleCPU = time.Duration(float64(idleCPU) * float64(busy.wall) / float64(idle.wall))
		return float64(max(busyCPU-idleCPU, 0)) / 1e3 / float64(b.changes)
	}
	return cost{Rota: per(busy.rota, idle.rota), Watch: per(busy.watcher, idle.watcher), PerSecond: float64(b.changes) / busy.wall.Seconds()}, nil
}

// usage is the CPU time of a span.
type usage struct{ rota, watcher, wall time.Duration }

func (b *bench) used(watcher *rig.Process, do func() error) (u usage, err error) {
	processes := []*rig.Process{b.rota, watcher}
	var before [2]rig.Account
	for i, p := range processes {
		if before[i], err = p.Account(); err != nil {
			return u, err
		}
	}
	start := time.Now()
	if err := do(); err != nil {
		return u, err
	}
	u.wall = time.Since(start)
	for i, out := range []*time.Duration{&u.rota, &u.watcher} {
		after, err := processes[i].Account()
		if err != nil {
			return u, err
		}
		*out, _ = after.Since(before[i])
	}
	return u, nil
}

// settled waits until memory has come to rest and returns the least that was seen.
func (b *bench) settled(ctx context.Context) (int64, error) {
	least, err := b.rota.PSS()
	for end := time.Now().Add(b.settle); err == nil && time.Now().Before(end); {
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return 0, err
		}
		var now int64
		now, err = b.rota.PSS()
		least = min(least, now)
	}
	return least, err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
