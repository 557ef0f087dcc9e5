package control

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/internal/health"
	"github.com/rota-lb/rota/balancer/internal/membership"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

const (
	// doubtInterval is how often an endpoint in doubt is probed.
	doubtInterval = time.Second
	// doubtTimeout is how long it may take to answer.
	doubtTimeout = time.Second
	// mostAsks is how many leases are asked about at a time. Beyond it a store is not worth troubling: who has lost its lease
	// is a suspect either way.
	mostAsks = 1000
)

// Refused tells the controller that an endpoint refused a connection. It may be called from any goroutine and does not
// block; of the calls about one endpoint one a second counts.
func (c *Controller) Refused(e *pool.Endpoint) {
	if !e.Suspect() {
		return
	}
	c.send(message{at: time.Now(), call: func() {
		c.refused = append(c.refused, e)
		c.fold.Refused(e, time.Now(), c.touched)
	}})
}

// expire is what there is to do every second.
func (c *Controller) expire() {
	c.fold.Expire(time.Now(), c.touched)
	for _, e := range c.refused {
		e.Trust()
	}
	clear(c.refused)
	c.refused = c.refused[:0]
}

// probed takes in the outcome of a probe.
func (c *Controller) probed(r health.Result) {
	if own(r.Err) {
		return
	}
	c.send(message{at: r.At, call: func() {
		before, known := c.fold.Doubted()[r.Endpoint]
		c.fold.Probed(r.Endpoint, r.Err == nil, c.touched)
		if _, still := c.fold.Doubted()[r.Endpoint]; known && !still {
			c.Logger.Info("an instance in doubt was probed", zap.String("service", r.Endpoint.Service), zap.String("instance", r.Endpoint.ID),
				zap.String("address", r.Endpoint.Name), zap.String("was", string(before.Verdict.State)), zap.Bool("answers", r.Err == nil), zap.Error(r.Err))
		}
	}})
}

// own reports whether a probe has failed for want of something of ours, which says nothing about the endpoint.
func own(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// ask asks the store about leases, and takes the answers in as they come.
func (c *Controller) ask(ctx context.Context, asks []membership.Ask) {
	leases, ok := c.Registry.(registry.Leases)
	if !ok || len(asks) > mostAsks {
		return
	}
	c.asking.Go(func() {
		var wg sync.WaitGroup
		room := make(chan struct{}, 16)
		for _, a := range asks {
			room <- struct{}{}
			wg.Go(func() {
				defer func() { <-room }()
				if alive, err := leases.LeaseAlive(ctx, a.Lease); err == nil {
					c.send(message{at: time.Now(), call: func() { c.fold.Answer(a.Lease, alive, c.touched) }})
				}
			})
		}
		wg.Wait()
	})
}

// doubt has the endpoints in doubt probed, asks about leases, and says when the brake engages and, at a tick, is released.
func (c *Controller) doubt(ctx context.Context, tick bool) {
	if asks := c.fold.Asks(); len(asks) > 0 {
		c.ask(ctx, asks)
	}
	if c.doubts == c.fold.Doubts() && !tick {
		return
	}
	c.doubts = c.fold.Doubts()
	doubted := c.fold.Doubted()
	for e := range c.probing {
		if doubted[e] == nil {
			c.prober.Remove(e)
			delete(c.probing, e)
		}
	}
	for e, m := range doubted {
		if !c.probing[e] {
			c.probing[e] = true
			c.prober.Set(e, c.check(m))
		}
	}
	c.counters.Suspects.Store(int64(len(doubted)))
	braked := map[string]bool{}
	for _, b := range c.fold.Brakes() {
		braked[b.Service] = true
		if !c.braked[b.Service] {
			c.Logger.Warn("brake engaged: many records were lost at once; who answers serves on",
				zap.String("service", b.Service), zap.Int("lost", b.Lost), zap.Int("of", b.Of))
		}
	}
	for service := range c.braked {
		if !braked[service] {
			c.Logger.Info("brake released", zap.String("service", service))
		}
	}
	c.braked = braked
	c.counters.Brakes.Store(int64(len(braked)))
}

// check is how a member in doubt is probed: as it asks for itself, if it does, else by a connection.
func (c *Controller) check(m *membership.Member) health.Check {
	h := health.Check{Interval: doubtInterval, Timeout: doubtTimeout}
	k := m.Instance.Check
	if k == nil {
		return h
	}
	switch k.Type {
	case "", "http":
		h.Type, h.Path = health.HTTP, k.Path
	case "grpc":
		h.Type, h.Path = health.GRPC, k.Path
	}
	if s := c.services[m.Endpoint.Service]; s != nil && s.settings.IsSecure(m.Endpoint) {
		h.TLS = s.settings.TLS
	}
	return h
}

// ReleaseBrake makes the suspects of a service go at once.
func (c *Controller) ReleaseBrake(ctx context.Context, service string) error {
	if !c.do(ctx, func() { c.fold.ReleaseBrake(service, c.touched) }) {
		return endedOr(ctx)
	}
	return nil
}
