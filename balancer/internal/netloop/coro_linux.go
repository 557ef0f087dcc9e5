package netloop

import (
	"iter"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"
)

// coro is a coroutine of a loop: it runs jobs, one after the other, and is spare between them.
type coro struct {
	loop   *loop
	next   func() (struct{}, bool)
	stop   func()
	yield  func(struct{}) bool
	queued bool
	later  bool // will be queued in the next round
	moved  int  // bytes read since it was resumed

	wants *conn // what it will receive from when it is resumed; nil is nothing that is known

	conn *conn // the job: serve this connection,
	task *task // or run this function
}

// task is a function running beside its starter.
type task struct {
	fn     func()
	done   bool
	waiter *coro
}

// Go implements [Loop].
func (l *loop) Go(fn func()) Task {
	t := &task{fn: fn}
	co := l.spare()
	co.task = t
	co.wake()
	return waiting{l, t}
}

// waiting is a task as its starter sees it.
type waiting struct {
	loop *loop
	task *task
}

// Wait implements [Task].
func (w waiting) Wait() {
	for !w.task.done {
		w.task.waiter = w.loop.running
		w.loop.park()
		w.task.waiter = nil
	}
}

// spare takes a coroutine that has no job.
func (l *loop) spare() *coro {
	if co, ok := l.coros.take(); ok {
		return co
	}
	co := &coro{loop: l}
	co.next, co.stop = iter.Pull(func(yield func(struct{}) bool) {
		co.yield = yield
		for {
			co.job()
			co.conn, co.task = nil, nil
			l.coros.give(co)
			if !yield(struct{}{}) {
				return
			}
		}
	})
	return co
}

// job runs the coroutine's job. A panic ends the job and its connection, nothing else.
func (co *coro) job() {
	defer func() {
		if v := recover(); v != nil {
			co.loop.engine.Panic(v, debug.Stack())
			if co.conn != nil {
				co.conn.close()
			}
		}
		if t := co.task; t != nil {
			t.done = true
			if t.waiter != nil {
				t.waiter.wake()
			}
		}
	}()
	if co.task != nil {
		co.task.fn()
		return
	}
	co.conn.serve()
}

// wake has the coroutine resumed in this round.
func (co *coro) wake() {
	if !co.queued && !co.later {
		co.queued = true
		co.loop.ready = append(co.loop.ready, co)
	}
}

// park gives the thread back to the loop until the running coroutine is woken.
func (l *loop) park() {
	co := l.running
	co.yield(struct{}{})
}

// turn is how many bytes a coroutine may read before others get their turn.
const turn = 256 << 10

// took notes that the running coroutine has read so many bytes. Where it never has to wait, because both sides of a body
// are always ready, it lets what else is ready go first.
func (l *loop) took(n int) {
	co := l.running
	if co.moved += n; co.moved < turn || l.stopping {
		return
	}
	co.later = true
	l.later = append(l.later, co)
	l.park()
}

// waiter implements [Waiter].
type waiter struct {
	loop  *loop
	co    *coro
	until int64
	woken atomic.Bool
}

// NewWaiter implements [Loop].
func (l *loop) NewWaiter() Waiter { return &waiter{loop: l} }

// Wait implements [Waiter].
func (w *waiter) Wait(until time.Time, watch Conn) error {
	l := w.loop
	var other *conn
	if watch != nil {
		other = baseConn(watch)
	}
	w.co, w.until = l.running, l.ticks(until)
	l.waiters = append(l.waiters, w)
	defer func() {
		i := slices.Index(l.waiters, w)
		l.waiters = slices.Delete(l.waiters, i, i+1)
		w.co = nil
	}()
	for {
		switch {
		case w.woken.Swap(false):
			return nil
		case l.stopping:
			return net.ErrClosed
		case other != nil && other.gone():
			return ErrPeerGone
		case l.tick > w.until:
			return os.ErrDeadlineExceeded
		}
		if other != nil {
			other.watcher = l.running
		}
		l.park()
		if other != nil {
			other.watcher = nil
		}
	}
}

// Wake implements [Waiter].
func (w *waiter) Wake(from Loop) {
	if w.woken.Swap(true) {
		return
	}
	resume := func() {
		if w.co != nil {
			w.co.wake()
		}
	}
	if from == Loop(w.loop) {
		resume()
		return
	}
	w.loop.post(resume)
}
