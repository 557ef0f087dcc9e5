package proxy

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/pool"
)

// queue holds the exchanges that wait for an endpoint of a service to have room. The last one comes first: under overload
// those who came last still have time, while the first ones are about to give up. When it is full, the first one goes.
type queue struct {
	waiting atomic.Int32 // len(stack), read without the lock

	mu    sync.Mutex // never held across a wait
	stack []*queued
}

type queued struct {
	netloop.Waiter
	pushed bool // out of the queue by another one
}

// queueOf returns the queue of a service.
func (p *Proxy) queueOf(s *pool.Service) *queue {
	if q, ok := p.queues.Load(s); ok {
		return q.(*queue)
	}
	q, _ := p.queues.LoadOrStore(s, &queue{})
	return q.(*queue)
}

// Forget lets go of what is kept for a service that is forgotten.
func (p *Proxy) Forget(s *pool.Service) { p.queues.Delete(s) }

// again is how often those who wait look for themselves: a place may come up without an exchange having ended, where a pool
// gets another endpoint, and one that is free for a moment only may be missed.
const again = 2 * netloop.Tick

// wait waits until an exchange has ended, or there is room, at most until then, among at most so many. It returns the failure
// that ends the exchange, or none when it is worth looking again.
func (q *queue) wait(x *exchange, most int, until time.Time, room func() bool) failure {
	if most <= 0 {
		return fail(Overloaded)
	}
	w := &queued{Waiter: x.loop.NewWaiter()}
	var first *queued
	q.mu.Lock()
	if len(q.stack) >= most {
		first = q.stack[0]
		q.stack = q.stack[1:]
		first.pushed = true
	}
	q.stack = append(q.stack, w)
	q.waiting.Store(int32(len(q.stack)))
	q.mu.Unlock()
	if first != nil {
		first.Wake(x.loop)
	}

	// An exchange that ended before this one could be seen here has woken nobody: look once more.
	var err error
	for found := room(); !found; found = room() {
		look := x.loop.Now().Add(again)
		if last := !look.Before(until); last {
			err = w.Wait(until, x.conn)
			break
		}
		if err = w.Wait(look, x.conn); err == nil || !isTimeout(err) {
			break
		}
		err = nil
	}
	q.mu.Lock()
	i := slices.Index(q.stack, w)
	if i >= 0 {
		q.stack = slices.Delete(q.stack, i, i+1)
		q.waiting.Store(int32(len(q.stack)))
	}
	q.mu.Unlock()
	switch {
	case w.pushed:
		return fail(Overloaded)
	case err == nil:
		return failure{}
	case i < 0:
		q.next(x.loop) // it was this one's turn: pass it on
	}
	if errors.Is(err, netloop.ErrPeerGone) {
		return fail(ClientClosed)
	}
	return fail(Overloaded)
}

// next wakes the one that came last.
func (q *queue) next(on netloop.Loop) {
	if q.waiting.Load() == 0 {
		return
	}
	q.mu.Lock()
	var w *queued
	if k := len(q.stack) - 1; k >= 0 {
		w = q.stack[k]
		q.stack = q.stack[:k]
		q.waiting.Store(int32(k))
	}
	q.mu.Unlock()
	if w != nil {
		w.Wake(on)
	}
}
