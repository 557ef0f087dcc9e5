package control

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/internal/membership"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

// mostAsks is how many leases are asked about at a time.
const mostAsks = 1000

// Refused tells the controller that an endpoint refused a connection, or reset a new one. It may be called from any goroutine and
// does not block; of the calls about one endpoint one a second counts.
func (c *Controller) Refused(e *pool.Endpoint, reset bool) {
	if !e.Suspect() {
		return
	}
	c.send(message{at: time.Now(), call: func() {
		c.refused = append(c.refused, e)
		c.fold.Refused(e, reset, time.Now(), c.touched)
	}})
}

// expire is what there is to do every second.
func (c *Controller) expire(now time.Time) {
	c.fold.Expire(now, c.touched)
	for _, e := range c.refused {
		e.Trust()
	}
	clear(c.refused)
	c.refused = c.refused[:0]
	c.readmit(now)
	c.prune(now)
	c.reread(now)
	c.fade()
	c.tellRest()
	if now.Sub(c.rated) >= rateInterval {
		c.rate(now)
	}
}

// ask asks the store about leases, some at a time, and takes the answers in as they come. What it does not answer it is asked again
// a second later.
func (c *Controller) ask(ctx context.Context) {
	leases, ok := c.Registry.(registry.Leases)
	if !ok || c.inquiring || time.Now().Before(c.askAgain) {
		return
	}
	asks := c.fold.Asks(mostAsks)
	if len(asks) == 0 {
		return
	}
	c.inquiring = true
	c.asking.Go(func() {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var failed []membership.Ask
		room := make(chan struct{}, 16)
		for _, a := range asks {
			room <- struct{}{}
			wg.Go(func() {
				defer func() { <-room }()
				left, err := leases.LeaseLeft(ctx, a.Lease)
				if err != nil {
					mu.Lock()
					failed = append(failed, a)
					mu.Unlock()
					return
				}
				c.send(message{at: time.Now(), call: func() { c.fold.Answer(a.Lease, left > 0, c.touched) }})
			})
		}
		wg.Wait()
		c.send(message{at: time.Now(), call: func() {
			c.inquiring = false
			if len(failed) > 0 {
				c.fold.Unanswered(failed)
				c.askAgain = time.Now().Add(time.Second)
			}
		}})
	})
}

// doubt asks about leases, and says when brake or panic engage and, at a tick, are released.
func (c *Controller) doubt(ctx context.Context, tick bool) {
	c.ask(ctx)
	doubted := len(c.fold.Doubted())
	if !tick && doubted == int(c.counters.Suspects.Load()) || doubted == 0 && !c.sick {
		return
	}
	c.sick = doubted > 0
	c.counters.Suspects.Store(int64(doubted))
	braked := map[string]bool{}
	for _, b := range c.fold.Brakes() {
		braked[b.Service] = true
		if !c.braked[b.Service] {
			c.events.add(Event{At: time.Now(), Kind: EventBrake, Service: b.Service, Text: fmt.Sprintf("engaged: %d of %d records were lost at once", b.Lost, b.Of)})
			c.Logger.Warn("brake engaged: many records were lost at once; who answers serves on",
				zap.String("service", b.Service), zap.Int("lost", b.Lost), zap.Int("of", b.Of))
		}
	}
	for service := range c.braked {
		if !braked[service] {
			c.events.add(Event{At: time.Now(), Kind: EventBrake, Service: service, Text: "released"})
			c.Logger.Info("brake released", zap.String("service", service))
		}
	}
	c.braked = braked
	c.counters.Brakes.Store(int64(len(braked)))
	panics := maps.Clone(c.fold.Panics())
	for service := range panics {
		if !c.panics[service] {
			c.events.add(Event{At: time.Now(), Kind: EventPanic, Service: service, Text: "so few instances are in a good condition that all get requests"})
			c.Logger.Warn("so few instances are in a good condition that all get requests", zap.String("service", service))
		}
	}
	for service := range c.panics {
		if !panics[service] {
			c.events.add(Event{At: time.Now(), Kind: EventPanic, Service: service, Text: "over"})
			c.Logger.Info("instances are in a good condition again: the others get no requests", zap.String("service", service))
		}
	}
	c.panics = panics
	c.counters.Panics.Store(int64(len(panics)))
}

// ReleaseBrake makes the suspects of a service go at once, and returns how many there were.
func (c *Controller) ReleaseBrake(ctx context.Context, by, service string) (gone int, err error) {
	if !c.do(ctx, func() { gone = c.fold.ReleaseBrake(service, c.touched) }) {
		return 0, endedOr(ctx)
	}
	c.Audit(by, service, "", fmt.Sprintf("%d suspects given up", gone))
	return gone, nil
}
