package proxy

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/netloop"
)

// body is how far the request body has come.
type body struct {
	done   bool  // all of it was taken from the client
	left   int64 // by Content-Length: still to be taken
	taken  int64 // of a chunked one, with its framing
	chunks http1.Chunked
}

// bodyPending reports whether some of the request body has not been sent on yet.
func (x *exchange) bodyPending() bool {
	if x.upload != nil {
		return !x.upload.finished.Load()
	}
	return !x.body.done
}

// frame finds out how much of the body has come with the head. A chunked one is not looked at yet.
func (x *exchange) frame() {
	x.next = x.head
	if x.req.Chunked {
		x.body = body{}
		return
	}
	n := int(min(int64(x.n-x.head), x.req.Length))
	x.next += n
	x.body = body{left: x.req.Length - int64(n), done: x.req.Length == int64(n)}
}

// hold reads the rest of a body that is short enough to be kept, so that the request can be sent again and a slow client
// does not hold an endpoint.
func (x *exchange) hold() failure {
	if x.body.done || x.req.Chunked || x.req.Continue || x.req.Length > int64(x.retries.Buffer) {
		return failure{}
	}
	started, length := x.loop.Now(), int(x.req.Length)
	into, have := x.in[x.head:], x.next-x.head
	if len(into) < length {
		into = x.room(length)
		copy(into, x.in[x.head:x.next])
		x.kept = into
	}
	for have < length {
		x.conn.ReadWithin(x.progress(started, int64(have)))
		n, err := x.conn.Read(into[have:length])
		have += n
		if err != nil {
			if isTimeout(err) {
				return fail(RequestTimeout)
			}
			return fail(ClientClosed)
		}
	}
	if x.kept != nil {
		x.kept = into[:length]
		x.rec.BytesIn = int64(x.head + length)
	} else {
		x.n, x.next = x.head+length, x.head+length
	}
	x.body = body{done: true}
	return failure{}
}

// takeBody appends to x.out what is held of the body, and sets x.next to what follows it. Where more is to come of a body that may
// be short, what is held is kept, and what comes will be.
func (x *exchange) takeBody() *http1.Error {
	if x.kept != nil {
		x.out = append(x.out, x.kept...)
		return nil
	}
	at := len(x.out)
	if bad := x.takeFirst(); bad != nil {
		return bad
	}
	if !x.body.done && x.retries.Attempts > 1 && x.req.Length <= int64(x.retries.Buffer) {
		x.kept = x.room(0)[:0]
		x.keepSent(x.out[at:])
	}
	return nil
}

// keepSent keeps a piece of a body as it goes upstream, as long as all of it is short enough.
func (x *exchange) keepSent(piece []byte) {
	need := len(x.kept) + len(piece)
	switch {
	case x.kept == nil:
	case need > x.retries.Buffer:
		x.free(x.kept)
		x.kept = nil
	case need > cap(x.kept):
		longer := append(x.room(min(2*need, x.retries.Buffer))[:0], x.kept...)
		x.free(x.kept)
		x.kept = append(longer, piece...)
	default:
		x.kept = append(x.kept, piece...)
	}
}

// takeFirst is takeBody with what has come with the head.
func (x *exchange) takeFirst() *http1.Error {
	b := &x.body
	if !x.req.Chunked {
		x.out = append(x.out, x.in[x.head:x.next]...)
		x.rec.BytesIn = int64(x.next)
		return nil
	}
	have := x.in[x.head:x.n]
	at := len(x.out)
	x.out = append(x.out, make([]byte, http1.Headroom)...)
	x.out = append(x.out, have...)
	*b = body{}
	start, end, used, err := b.chunks.Filter(x.out, at+http1.Headroom, len(x.out))
	if err != nil {
		return err
	}
	x.out = x.out[:at+copy(x.out[at:], x.out[start:end])]
	x.next = x.head + used
	x.rec.BytesIn = int64(x.next)
	b.taken = int64(used)
	b.done = b.chunks.Done()
	return nil
}

// upload streams the rest of a request body to an upstream connection, in a coroutine beside the one that waits for the
// answer.
type upload struct {
	x        *exchange
	to       netloop.Conn
	task     netloop.Task
	stopping atomic.Bool
	read     atomic.Bool // the last of the body has come, and is being sent
	finished atomic.Bool // the body is complete, and the answer may be timed
	ended    netloop.Waiter
	watching netloop.Waiter // for the client to go, once the body is complete
	failed   atomic.Bool    // why says what went wrong on the client's side
	why      failure
	bytes    atomic.Int64
	written  atomic.Int64 // at least what was written
	buf      []byte       // rest is what it holds of the next request
	rest     []byte
}

// startUpload begins to stream. From here on the request can be repeated only as long as all of it is kept ([exchange.recall]).
func (x *exchange) startUpload(to netloop.Conn, headBy time.Time) {
	u := &upload{x: x, to: to, buf: x.loop.Buffer(), ended: x.loop.NewWaiter(), watching: x.loop.NewWaiter()}
	x.upload = u
	u.task = x.loop.Go(func() { u.run(headBy) })
}

func (u *upload) run(headBy time.Time) {
	x, b := u.x, &u.x.body
	started, most := x.loop.Now(), x.mostBody()
	for !b.done {
		x.conn.ReadWithin(x.progress(started, u.bytes.Load()))
		if u.stopping.Load() {
			return
		}
		if b.left >= spliceFrom {
			if err := x.conn.Wait(nil); err != nil {
				u.lost(err)
				return
			}
			began := x.loop.Now()
			u.to.WriteWithin(x.within(x.timeouts.IdleBody))
			n, rerr, werr := netloop.Splice(u.to, x.conn, nil, b.left)
			started = started.Add(x.loop.Now().Sub(began))
			u.bytes.Add(n)
			b.left -= n
			switch {
			case errors.Is(rerr, errors.ErrUnsupported):
			case werr != nil:
				u.to.ReadWithin(x.answerIn(headBy))
				return
			case rerr != nil:
				u.lost(rerr)
				return
			default:
				b.done = b.left == 0
				continue
			}
		}
		n, err := x.conn.Read(u.buf[http1.Headroom:])
		if err != nil {
			u.lost(err)
			return
		}
		from, to := http1.Headroom, http1.Headroom+n
		all := u.buf[:to]
		if x.req.Chunked {
			start, end, used, bad := b.chunks.Filter(u.buf, from, to)
			if bad != nil {
				u.fail(refused(bad))
				return
			}
			if b.taken += int64(used); most > 0 && b.taken > most {
				u.fail(fail(BodyTooLong))
				return
			}
			u.rest = all[from+used:]
			from, to, n = start, end, used
			b.done = b.chunks.Done()
		} else {
			n = int(min(int64(n), b.left))
			to = from + n
			u.rest = all[to:]
			b.left -= int64(n)
			b.done = b.left == 0
		}
		u.bytes.Add(int64(n))
		u.read.Store(b.done)
		began := x.loop.Now()
		u.to.WriteWithin(x.within(x.timeouts.IdleBody)) // the least rate is asked of the client
		x.keepSent(u.buf[from:to])
		u.written.Add(int64(to - from))
		k, err := u.to.Write(u.buf[from:to])
		u.written.Add(int64(k - (to - from)))
		started = started.Add(x.loop.Now().Sub(began))
		if err != nil {
			// The upstream takes no more; its answer, or the lack of one, says why.
			u.to.ReadWithin(x.answerIn(headBy))
			return
		}
	}
	u.to.ReadWithin(x.answerIn(headBy))
	u.finished.Store(true)
	u.ended.Wake(x.loop)
	if len(u.rest) > 0 {
		return // the next request is here: the client is
	}
	x.conn.SetReadDeadline(time.Time{})
	if err := u.watching.Wait(x.loop.Now().Add(maxWatch), x.conn); err == netloop.ErrPeerGone {
		u.fail(fail(ClientClosed))
	}
}

// maxWatch is longer than any exchange.
const maxWatch = 365 * 24 * time.Hour

// unwatch ends the watch that an upload which has finished keeps over the client, before somebody else looks at it.
func (u *upload) unwatch() {
	u.watching.Wake(u.x.loop)
	u.task.Wait()
}

// almost waits, when there is an answer, for an upload that has but to send the last of the body, or to say that it has: an instance
// may answer before it does, where the two run beside one another. Without that a connection would be closed that can go on.
func (u *upload) almost() {
	if u != nil && u.read.Load() && !u.finished.Load() {
		u.ended.Wait(u.x.loop.Now().Add(netloop.Tick), nil)
	}
}

// lost ends the exchange because the rest of the body does not come.
func (u *upload) lost(err error) {
	if isTimeout(err) {
		u.fail(fail(RequestTimeout))
	} else {
		u.fail(fail(ClientClosed))
	}
}

// fail ends the exchange from the client's side: the upstream must not take what it got for a whole request, and whoever
// waits for its answer is woken.
func (u *upload) fail(why failure) {
	if u.stopping.Load() {
		return
	}
	u.why = why
	u.failed.Store(true)
	u.to.Abort()
}

// stop stops the upload, if it still runs, and waits for it. The upstream connection cannot be used any more unless the
// upload had finished.
func (u *upload) stop() {
	if !u.finished.Load() {
		u.stopping.Store(true)
		u.to.Close()
		u.x.conn.SetReadDeadline(longAgo)
	}
	u.unwatch()
}

// recall ends an attempt and reports whether all that was taken from the client is held: then it is as if nothing had been sent. Of what
// it returns false for, nothing can be sent again.
func (x *exchange) recall() bool {
	u := x.upload
	if u == nil {
		return x.body.done || x.kept != nil
	}
	u.stop()
	if x.kept == nil || u.failed.Load() || x.head+len(u.rest) > len(x.in) {
		return false
	}
	x.n, x.next = x.head+copy(x.in[x.head:], u.rest), x.head
	x.conn.SetReadDeadline(time.Time{})
	x.rec.BytesIn += u.bytes.Load()
	x.loop.Free(u.buf)
	x.upload = nil
	return true
}

// end stops the upload and takes over what it holds of the next request.
func (u *upload) end() {
	u.stop()
	x := u.x
	x.n, x.next = copy(x.in, u.rest), 0
	x.loop.Free(u.buf)
	x.upload = nil
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)
