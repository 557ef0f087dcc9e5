package health

import (
	"container/heap"
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
)

// Prober probes endpoints, each at its own interval. Use [New]. Its methods may be called concurrently, and also before
// and after Run: what is set then is probed when it runs.
//
// One goroutine waits for the probe that is due first. A probe runs in a goroutine that goes on with the next one due and
// ends when there is none, so there are as many as probes overlap, and never more than [Options] allow. When more are due
// than may run, the one that waits longest is next.
type Prober struct {
	report      func(Result)
	dial        func(context.Context, *pool.Endpoint) (net.Conn, error)
	concurrency int
	wake        chan struct{} // holds one: look at the heap again

	mu      sync.Mutex // guards all below; held for heap operations only, never while a probe or Report runs
	running bool
	targets map[*pool.Endpoint]*target
	due     queue     // those of targets that are not being probed
	busy    int       // goroutines that probe
	armed   time.Time // when the scheduler will look by itself; zero when it will not
	last    *plan     // of the last Set: neighbours mostly share one
}

// target is an endpoint that is set.
type target struct {
	endpoint *pool.Endpoint
	plan     *plan
	tls      *tls.Config
	at       time.Time // when it is due
	index    int       // in Prober.due; meaningless while current is set
	current  *probe    // under way; nil when none is
	began    time.Time // when the last probe began; zero before the first
	first    bool      // that one was the first
	again    bool      // probe at once when current is over
	removed  bool      // forget it when current is over
}

// probe is one probe under way. It keeps what it began with.
type probe struct {
	*target
	plan   *plan
	tls    *tls.Config
	ctx    context.Context
	cancel context.CancelFunc
	stale  bool // nobody wants to know the outcome any more
	// answered is set by the probe itself.
	answered bool
	ended    bool // the outcome is known and is being reported
}

// New makes a Prober that probes nothing yet. It panics without [Options.Report].
func New(o Options) *Prober {
	if o.Report == nil {
		panic("health: Options.Report is nil")
	}
	if o.Dial == nil {
		o.Dial = dial
	}
	if o.Concurrency <= 0 {
		o.Concurrency = DefaultConcurrency
	}
	return &Prober{
		report: o.Report, dial: o.Dial, concurrency: o.Concurrency,
		wake: make(chan struct{}, 1), targets: map[*pool.Endpoint]*target{},
	}
}

// Run probes until ctx ends, and then returns nil once every probe has ended; those that were under way are given up and
// not reported. It fails only if it runs already. When it has returned it may be called again.
func (p *Prober) Run(ctx context.Context) error {
	p.mu.Lock()
	if p.running {
		p.mu.Unlock()
		return errors.New("health: the prober runs already")
	}
	p.running = true
	p.mu.Unlock()

	var workers sync.WaitGroup
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		p.mu.Lock()
		for p.busy < p.concurrency {
			first := p.begin(ctx)
			if first == nil {
				break
			}
			p.busy++
			workers.Go(func() { p.work(ctx, first) })
		}
		p.armed = time.Time{}
		timer.Stop()
		if p.busy < p.concurrency && len(p.due) > 0 {
			p.armed = p.due[0].at
			timer.Reset(time.Until(p.armed))
		}
		p.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-p.wake:
		}
	}
	workers.Wait()
	p.mu.Lock()
	p.running, p.armed = false, time.Time{}
	p.mu.Unlock()
	return nil
}

// Set begins to probe an endpoint, or changes how it is probed. A new one is probed at once, as soon as fewer than
// [Options.Concurrency] probes run; the second time after half an interval to a whole one, so that what was set together
// drifts apart; and then every interval, give or take a tenth. Set again with an equal check it changes nothing. If only
// the times of a check change, the next probe is an interval, as it is now, after the last. If it asks something else, it
// is asked at once, and a probe under way is given up and not reported.
//
// An endpoint is told by its pointer. It is probed until [Prober.Remove], also when it is retired.
func (p *Prober) Set(e *pool.Endpoint, c Check) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c = c.withDefaults()
	t := p.targets[e]
	if t == nil {
		t = &target{endpoint: e, plan: p.planOf(c), at: time.Now()}
		t.tls = t.plan.tlsOf(e)
		p.targets[e] = t
		heap.Push(&p.due, t)
		p.look()
		return
	}
	old := t.plan
	same := old.check.asksSame(&c) && !t.removed
	if same && old.check.Interval == c.Interval && old.check.Timeout == c.Timeout {
		return
	}
	t.removed = false
	t.plan = p.planOf(c)
	switch {
	case same:
		if t.current == nil && !t.began.IsZero() {
			p.move(t, t.next())
		}
		return
	case t.current != nil:
		t.current.giveUp()
		t.again = true
	default:
		p.move(t, time.Now())
	}
	t.tls, t.began = t.plan.tlsOf(e), time.Time{}
}

// Remove ends the probing of an endpoint. A probe under way is given up and not reported; a report that had begun may go
// on after Remove has returned. Removing what is not set does nothing.
func (p *Prober) Remove(e *pool.Endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.targets[e]
	if t == nil {
		return
	}
	if t.current != nil {
		t.current.giveUp()
		t.removed, t.again = true, false
		return
	}
	heap.Remove(&p.due, t.index)
	delete(p.targets, e)
}

// Probe makes the next probe of an endpoint due now. It does nothing if the endpoint is not set or is being probed right
// now, in which case the answer is on its way.
func (p *Prober) Probe(e *pool.Endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.targets[e]
	switch {
	case t == nil || t.removed:
	case t.current == nil:
		if now := time.Now(); now.Before(t.at) {
			p.move(t, now)
		}
	case t.current.ended:
		t.again = true
	}
}

// work runs probes, one after the other, until none is due.
func (p *Prober) work(ctx context.Context, pr *probe) {
	for pr != nil {
		began := time.Now()
		err := p.ask(pr)
		r := Result{Endpoint: pr.endpoint, Err: err, Answered: err == nil || pr.answered, At: time.Now()}
		r.Took = r.At.Sub(began)
		pr.cancel()

		p.mu.Lock()
		wanted := !pr.stale && ctx.Err() == nil
		pr.ended = true
		p.mu.Unlock()
		if wanted {
			p.report(r)
		}
		p.mu.Lock()
		p.end(pr, ctx.Err() != nil)
		if pr = p.begin(ctx); pr == nil {
			p.busy--
		}
		p.look()
		p.mu.Unlock()
	}
}

// begin takes the first target that is due, or returns nil. The caller holds mu.
func (p *Prober) begin(ctx context.Context) *probe {
	now := time.Now()
	if len(p.due) == 0 || p.due[0].at.After(now) || ctx.Err() != nil {
		return nil
	}
	t := heap.Pop(&p.due).(*target)
	t.first, t.began = t.began.IsZero(), now
	pr := &probe{target: t, plan: t.plan, tls: t.tls}
	pr.ctx, pr.cancel = context.WithTimeout(ctx, t.plan.check.Timeout)
	t.current = pr
	return pr
}

// end puts the target of a probe that is over back. The caller holds mu.
func (p *Prober) end(pr *probe, cut bool) {
	t := pr.target
	t.current = nil
	if t.removed {
		delete(p.targets, t.endpoint)
		return
	}
	if t.again || cut {
		t.at = time.Now()
	} else {
		t.at = t.next()
	}
	t.again = false
	heap.Push(&p.due, t)
}

// move gives a target that is not being probed another time. The caller holds mu.
func (p *Prober) move(t *target, at time.Time) {
	t.at = at
	heap.Fix(&p.due, t.index)
	p.look()
}

// look wakes the scheduler if it would come too late by itself. The caller holds mu.
func (p *Prober) look() {
	if p.busy >= p.concurrency || len(p.due) == 0 || !p.armed.IsZero() && !p.due[0].at.Before(p.armed) {
		return
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// planOf returns the plan of a check, the last one again if it is equal. The caller holds mu.
func (p *Prober) planOf(c Check) *plan {
	if l := p.last; l == nil || !l.check.asksSame(&c) || l.check.Interval != c.Interval || l.check.Timeout != c.Timeout {
		p.last = newPlan(c)
	}
	return p.last
}

// next is when to probe again after the last probe.
func (t *target) next() time.Time {
	d := t.plan.check.Interval
	if t.first {
		return t.began.Add(d/2 + rand.N(d/2))
	}
	return t.began.Add(d - d/10 + rand.N(d/5))
}

// giveUp ends a probe early. The caller holds mu.
func (pr *probe) giveUp() {
	pr.stale = true
	pr.cancel()
}

// queue is the heap of targets by when they are due; see [heap.Interface].
type queue []*target

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	t := x.(*target)
	t.index = len(*q)
	*q = append(*q, t)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return t
}
