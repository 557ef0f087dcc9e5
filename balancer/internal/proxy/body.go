package proxy

import (
	"sync/atomic"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/netloop"
)

// body is how far the request body has come.
type body struct {
	done   bool  // all of it was taken from the client
	left   int64 // by Content-Length: still to be taken
	chunks http1.Chunked
}

// bodyPending reports whether some of the request body has not been sent on yet.
func (x *exchange) bodyPending() bool {
	if x.upload != nil {
		return !x.upload.finished.Load()
	}
	return !x.body.done
}

// takeBody appends to x.out what x.in holds of the body behind the head, and sets x.next to what follows.
func (x *exchange) takeBody(head int) *http1.Error {
	b := &x.body
	*b = body{}
	x.next = head
	x.rec.BytesIn = int64(head)
	have := x.in[head:x.n]
	if !x.req.Chunked {
		n := int(min(int64(len(have)), x.req.Length))
		x.out = append(x.out, have[:n]...)
		x.next += n
		x.rec.BytesIn += int64(n)
		b.left = x.req.Length - int64(n)
		b.done = b.left == 0
		return nil
	}
	at := len(x.out)
	x.out = append(x.out, make([]byte, http1.Headroom)...)
	x.out = append(x.out, have...)
	start, end, used, err := b.chunks.Filter(x.out, at+http1.Headroom, len(x.out))
	if err != nil {
		return err
	}
	x.out = x.out[:at+copy(x.out[at:], x.out[start:end])]
	x.next += used
	x.rec.BytesIn += int64(used)
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
	finished atomic.Bool // the body is complete, and the answer may be timed
	failed   atomic.Bool // why says what went wrong on the client's side
	why      failure
	bytes    atomic.Int64
	buf      []byte // rest is what it holds of the next request
	rest     []byte
}

// startUpload begins to stream. From here on the request cannot be repeated.
func (x *exchange) startUpload(to netloop.Conn, answerIn time.Duration) {
	u := &upload{x: x, to: to, buf: x.loop.Buffer()}
	x.upload = u
	u.task = x.loop.Go(func() { u.run(answerIn) })
}

func (u *upload) run(answerIn time.Duration) {
	x, b := u.x, &u.x.body
	for !b.done {
		x.conn.SetReadDeadline(x.loop.Now().Add(x.timeouts.IdleBody))
		if u.stopping.Load() {
			return
		}
		n, err := x.conn.Read(u.buf[http1.Headroom:])
		if err != nil {
			if isTimeout(err) {
				u.fail(fail(RequestTimeout))
			} else {
				u.fail(fail(ClientClosed))
			}
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
		u.to.SetWriteDeadline(x.loop.Now().Add(x.timeouts.IdleBody))
		if _, err := u.to.Write(u.buf[from:to]); err != nil {
			return // the upstream takes no more; its answer, or the lack of one, says why
		}
	}
	u.to.SetReadDeadline(x.loop.Now().Add(answerIn))
	u.finished.Store(true)
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

// end stops the upload, if it still runs, and waits for it. The upstream connection cannot be used any more unless the
// upload had finished.
func (u *upload) end() {
	if !u.finished.Load() {
		u.stopping.Store(true)
		u.to.Close()
		u.x.conn.SetReadDeadline(longAgo)
	}
	u.task.Wait()
	x := u.x
	x.n, x.next = copy(x.in, u.rest), 0
	x.loop.Free(u.buf)
	x.upload = nil
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)
