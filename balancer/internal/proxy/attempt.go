package proxy

import (
	"errors"
	"io"
	"syscall"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/pool"
)

// outcome says what became of an attempt.
type outcome struct {
	answered bool // the client got an answer, or part of one; keep says whether its connection goes on
	keep     bool
	failure  failure
	again    bool // another attempt may be made
	free     bool // and costs nothing of the budget: it was refused before it did anything
	stale    bool // the attempt met a pooled connection that was dead: the endpoint is not to blame
}

// attempt sends the request to an endpoint and relays the answer, whose head must have come by headBy (zero: whenever).
func (x *exchange) attempt(e *pool.Endpoint, s *pool.Settings, fresh bool, headBy time.Time) outcome {
	started := x.loop.Now()
	up, reused, why := x.connect(e, s, fresh)
	if up == nil {
		switch {
		case why.reason == ConnectTimeout, errors.Is(why.cause, syscall.ECONNREFUSED):
			x.refused(e, false)
		case errors.Is(why.cause, syscall.ECONNRESET):
			x.refused(e, true)
		}
		return outcome{failure: why, again: true, free: why.reason == ConnectFailed}
	}
	if x.out == nil {
		x.compose() // again: an earlier attempt has sent it
	}
	harmless := x.req.Retryable()
	up.WriteWithin(x.within(x.timeouts.IdleBody))
	sent := len(x.out)
	if err := x.pass(up); err != nil {
		return x.unsent(e, up, reused, err)
	}
	if x.body.done {
		up.ReadWithin(x.answerIn(headBy))
	} else {
		up.SetReadDeadline(x.deadline)
		x.startUpload(up, headBy)
	}

	var buf []byte
	defer func() { x.free(buf) }()
	n, interim := 0, 0
	for {
		var head int
		var why failure
		if buf, n, head, why = x.readAnswer(up, buf, n); why.reason != "" {
			if lost, ok := why.cause.(*netloop.SendError); ok {
				return x.unsent(e, up, reused, lost)
			}
			// A connection that ends without a byte of an answer, although it was good before, was closed while the request was
			// on its way.
			silent := n == 0 && interim == 0 && why.reason == UpstreamClosed
			unsent := silent && !harmless && why.cause == io.EOF && reused && x.unread(up, sent)
			up.Close()
			if silent && !reused && errors.Is(why.cause, syscall.ECONNRESET) {
				x.refused(e, true)
			}
			late := n == 0 && why.reason == UpstreamTimeout && x.retryTimeouts(headBy)
			return outcome{failure: why, again: (unsent || harmless && (silent || late)) && x.recall(), stale: reused && silent}
		}
		if x.resp.Status >= 200 {
			x.upload.almost()
			x.rec.UpstreamStatus, x.rec.Upstream = x.resp.Status, x.loop.Now().Sub(started)
			x.traced(e, started, "")
			if x.resp.Load > 0 {
				e.Reported(x.resp.Load)
				x.pool.Service.Reports()
			}
			if n == head {
				if n, why = x.readMore(up, buf, n); why.reason != "" {
					up.Close()
					return outcome{failure: why, again: harmless && x.recall()}
				}
			}
			return x.relay(e, s, up, &buf, head, n)
		}
		if x.resp.Status == 101 {
			if !x.switches() {
				up.Close()
				return outcome{failure: failure{reason: UpstreamInvalid, detail: "the instance switches to a protocol that it was not asked for"}}
			}
			x.rec.UpstreamStatus, x.rec.Upstream = x.resp.Status, x.loop.Now().Sub(started)
			x.traced(e, started, "")
			return x.tunnel(up, &buf, head, n)
		}
		if interim++; interim > maxInterim {
			up.Close()
			return outcome{failure: failure{reason: UpstreamInvalid, detail: "the instance sends interim answers without end"}}
		}
		if x.req.Minor == 1 {
			x.conn.WriteWithin(x.within(x.timeouts.IdleBody))
			line := http1.AppendResponse(make([]byte, 0, 256), &x.resp, http1.AsIs, 1, true, &noEdit)
			k, err := x.conn.Write(line)
			x.rec.BytesOut += int64(k)
			if err != nil {
				up.Close()
				return outcome{failure: fail(ClientClosed)}
			}
		}
		n = copy(buf, buf[head:n])
	}
}

// pass sends x.out upstream, or leaves that to the loop where nothing more of the request is to come. While the upstream works, an
// exchange holds nothing but the request as it came: what is built from it goes back, and the buffer for the answer is
// taken when there is one. So the same few buffers, warm in the cache, serve all.
func (x *exchange) pass(up netloop.Conn) error {
	out := x.out
	x.out = nil
	if x.body.done && cap(out) == netloop.BufferSize {
		return up.Send(out)
	}
	n, err := up.Write(out)
	x.free(out)
	if err != nil {
		return &netloop.SendError{Sent: n, Err: err}
	}
	return nil
}

// unsent ends an attempt whose request could not be sent, or not all of it. If nothing of it arrived it may be sent again; if some
// did, only when doing it twice does no harm. In both cases all that was taken of it must be held.
func (x *exchange) unsent(e *pool.Endpoint, up netloop.Conn, reused bool, err error) outcome {
	up.Close()
	if !reused && errors.Is(err, syscall.ECONNRESET) {
		x.refused(e, true)
	}
	lost, ok := errors.AsType[*netloop.SendError](err)
	nothing := ok && lost.Sent == 0
	return outcome{failure: fail(UpstreamClosed), again: nothing || x.req.Retryable() && x.recall(), stale: reused && nothing}
}

// refused tells who wants to know that an endpoint has turned a new connection away.
func (x *exchange) refused(e *pool.Endpoint, reset bool) {
	if x.proxy.observer != nil {
		x.proxy.observer.Refused(e, reset)
	}
}

var noEdit http1.Edit

// acknowledged is the longest time that a receiver may delay an acknowledgement (RFC 1122 §4.2.3.2).
const acknowledged = 500 * time.Millisecond

// unread reports whether nobody can have read the request, whose first part of so many bytes was sent to a peer that has ended the
// connection: its kernel has not acknowledged any of it, nor does it when it had time to. Without that time, a peer that
// has ended its own direction only, and reads on, would look the same.
func (x *exchange) unread(up netloop.Conn, sent int) bool {
	if x.upload != nil {
		// Many short records may be longer than what they hold by more than one of them is long; and a long body is not held, whoever has
		// read of it.
		if _, secure := up.(*netloop.Secure); secure || x.req.Length > int64(x.retries.Buffer) {
			return false
		}
	}
	if up.Unacknowledged() < sent {
		return false
	}
	x.loop.NewWaiter().Wait(x.loop.Now().Add(acknowledged), x.watched())
	unacknowledged := up.Unacknowledged() // is asked before what was written: that may grow
	if x.upload != nil {
		sent += int(x.upload.written.Load())
	}
	return unacknowledged >= sent
}

// answerIn is how soon the head of an answer to a request that has just been sent must come.
func (x *exchange) answerIn(headBy time.Time) time.Duration {
	d := x.within(x.timeouts.ResponseHead)
	if !headBy.IsZero() {
		d = min(d, headBy.Sub(x.loop.Now()))
	}
	return d
}

// retryTimeouts reports whether there is a point in trying again after an attempt took all the time it had: only where
// the whole exchange is given a time, and has more than that.
func (x *exchange) retryTimeouts(headBy time.Time) bool {
	by := headBy
	if by.IsZero() || !x.deadline.IsZero() && x.deadline.Before(by) {
		by = x.deadline
	}
	return !by.IsZero() && x.loop.Now().Before(by)
}

// readAnswer reads until a whole response head is in buf, of which n bytes are held already, and x.resp is read from it, and returns its
// length. It takes a buffer when there is something, and a longer one for a head that does not fit.
func (x *exchange) readAnswer(up netloop.Conn, buf []byte, n int) (_ []byte, held, head int, _ failure) {
	var scan http1.Scanner
	for {
		if buf == nil {
			var err error
			if buf, n, err = up.Receive(x.watched()); err != nil {
				why := x.blame(err)
				why.cause = err
				return nil, 0, 0, why
			}
		}
		head, bad := x.resp.Read(&scan, buf[:n], x.req.IsHead())
		if bad != nil {
			return buf, n, 0, failure{reason: UpstreamInvalid, detail: bad.Text}
		}
		if head > 0 {
			return buf, n, head, failure{}
		}
		if n == len(buf)-netloop.Slack {
			longer := x.room(http1.MaxHead + netloop.Slack)
			copy(longer, buf)
			x.free(buf)
			buf = longer[:http1.MaxHead+netloop.Slack]
		}
		k, err := x.readUpstream(up, buf[n:len(buf)-netloop.Slack])
		n += k
		if err != nil {
			why := x.blame(err)
			why.cause = err
			return buf, n, 0, why
		}
	}
}

// together is how long the head of an answer waits for its body. Who sends the one and thinks about the other has it sent on.
const together = 50 * time.Millisecond

// readMore waits a little for the first bytes of a body of known length whose head has come alone, and reads them into buf behind
// the n that are held, unless they are to be moved within the kernel. Many servers send head and body in two writes: they go
// out in one, and a failure before bytes that are read here is no answer cut off.
func (x *exchange) readMore(up netloop.Conn, buf []byte, n int) (held int, _ failure) {
	left := x.resp.Length
	if left <= 0 || x.bodyPending() {
		return n, failure{}
	}
	up.ReadWithin(x.within(min(together, x.timeouts.IdleBody)))
	err := up.Wait(x.watched())
	if err == nil && left < spliceFrom {
		var k int
		k, err = x.readUpstream(up, buf[n:len(buf)-netloop.Slack])
		n += k
	}
	if err != nil && (!isTimeout(err) || expired(x.deadline, x.loop.Now())) {
		why := x.blame(err)
		why.cause = err
		return n, why
	}
	up.ReadWithin(x.within(x.timeouts.IdleBody))
	return n, failure{}
}

// readUpstream reads while keeping an eye on the client.
func (x *exchange) readUpstream(up netloop.Conn, b []byte) (int, error) {
	if c := x.watched(); c != nil {
		return up.ReadWatching(b, c)
	}
	return up.Read(b)
}

// watched is the client connection to keep an eye on; none while the body is being streamed, for then the upload does, and
// goes on to until it is told here not to.
func (x *exchange) watched() netloop.Conn {
	if x.upload != nil {
		if x.bodyPending() {
			return nil
		}
		x.upload.unwatch()
	}
	return x.conn
}

// blame finds out who made a read from the upstream fail.
func (x *exchange) blame(err error) failure {
	switch {
	case x.upload != nil && x.upload.failed.Load():
		return x.upload.why
	case errors.Is(err, netloop.ErrPeerGone):
		return fail(ClientClosed)
	case isTimeout(err):
		return fail(UpstreamTimeout)
	}
	return fail(UpstreamClosed)
}

// spliceFrom is the length of what is left of a body from which on it is moved within the kernel.
const spliceFrom = 32 << 10

// gained is how much longer than it came a head may be when it goes on, without what the route adds.
const gained = 1 << 10

// relay sends the answer, whose head is (*held)[:head] and of which n bytes are held, to the client. While it waits for the
// instance, or moves bytes within the kernel, it gives the buffer back.
func (x *exchange) relay(e *pool.Endpoint, s *pool.Settings, up netloop.Conn, held *[]byte, head, n int) outcome {
	r, buf := &x.resp, *held
	framing := http1.AsIs
	chunks := http1.Chunked{Trailers: true}
	switch {
	case x.req.Minor == 0 && (r.Chunked || r.UntilClose):
		framing, chunks.Decode = http1.TillClose, true
	case r.Chunked || r.UntilClose:
		framing = http1.AsChunks
	}
	x.keep = x.keep && framing != http1.TillClose && !x.bodyPending()
	edit := http1.Edit(x.rules.Response)
	out := http1.AppendResponse(x.scratch(n+gained+len(edit.Add)), r, framing, x.req.Minor, x.keep, &edit)
	x.rec.HeadOut = int64(len(out))

	// The part of the body that came with the head goes out with it, in one write.
	left, from, to := r.Length, head, n
	started, moved := x.loop.Now(), int64(0)
	complete, extra, spliced := false, false, false
	var why failure
	for first := true; ; first = false {
		switch {
		case spliced:
			complete = left == 0
		case r.Chunked:
			start, end, used, bad := chunks.Filter(buf, from, to)
			if bad != nil {
				why = failure{reason: UpstreamInvalid, detail: bad.Text}
				break
			}
			complete, extra = chunks.Done(), used < to-from
			from, to = start, end
		case r.UntilClose:
			if framing == http1.AsChunks && to > from {
				from, to = frameChunk(buf, from, to)
			}
		default:
			take := int(min(left, int64(to-from)))
			left -= int64(take)
			complete, extra = left == 0, take < to-from
			to = from + take
		}
		if why.reason != "" {
			if first {
				up.Close()
				return outcome{failure: why}
			}
			break
		}
		if complete {
			x.unload()
			if x.upload != nil && x.bodyPending() {
				x.upload.stop() // whatever the client sends after the answer goes nowhere
			}
		}
		piece := buf[from:to]
		if first {
			out = append(out, piece...)
			x.out, piece = out, out
		}
		spliced = false
		if left >= spliceFrom && len(piece) == 0 {
			x.free(*held)
			x.free(x.out)
			*held, x.out = nil, nil
			began := x.loop.Now()
			up.ReadWithin(x.within(x.timeouts.IdleBody))
			if err := up.Wait(x.watched()); err != nil {
				why = x.blame(err)
				break
			}
			started = started.Add(x.loop.Now().Sub(began))
		}
		x.conn.WriteWithin(x.progress(started, moved))
		if left >= spliceFrom {
			k, rerr, werr := netloop.Splice(x.conn, up, piece, left)
			moved += k
			left -= max(0, k-int64(len(piece)))
			switch {
			case errors.Is(rerr, errors.ErrUnsupported):
			case werr != nil:
				why = fail(ClientClosed)
			case rerr != nil:
				why = x.blame(rerr)
			default:
				from, to, spliced = 0, 0, true
				continue
			}
			if why.reason != "" {
				break
			}
		}
		if len(piece) > 0 {
			k, err := x.deliver(piece, first && complete)
			moved += int64(k)
			if err != nil {
				why = fail(ClientClosed)
			}
		}
		if complete || why.reason != "" {
			break
		}
		x.free(*held)
		*held = nil
		if first {
			x.free(x.out)
			x.out = nil
		}
		began, k := x.loop.Now(), 0
		up.ReadWithin(x.within(x.timeouts.IdleBody))
		err := up.Wait(x.watched())
		if err == nil {
			buf = x.loop.Buffer()
			*held = buf
			k, err = x.readUpstream(up, buf[http1.Headroom:len(buf)-tail])
		}
		started = started.Add(x.loop.Now().Sub(began)) // the client has not been waited for
		if err == io.EOF && r.UntilClose {
			complete = true
			x.unload()
			if framing == http1.AsChunks {
				k, err := x.conn.Write(lastChunk)
				moved += int64(k)
				if err != nil {
					why = fail(ClientClosed)
				}
			}
			break
		}
		if err != nil {
			why = x.blame(err)
			break
		}
		from, to = http1.Headroom, http1.Headroom+k
	}

	x.rec.BytesOut += moved
	x.rec.Status, x.rec.Reason = r.Status, why.reason
	if why.reason == ClientClosed {
		x.rec.Status = why.code()
	}
	if complete && why.reason == "" && r.KeepAlive && !extra && !x.bodyPending() && !e.Retired() {
		x.park(e, s, up)
	} else {
		up.Close()
	}
	x.done()
	switch {
	case why.reason != "" || !complete:
		// The client must not take a part for the whole.
		x.conn.Abort()
		return outcome{answered: true}
	case !x.keep && x.bodyPending():
		x.linger()
	}
	return outcome{answered: true, keep: x.keep}
}

// deliver sends a piece of the answer to the client. The whole of it, short and built in x.out, is left to the loop when the connection goes on.
func (x *exchange) deliver(piece []byte, whole bool) (int, error) {
	if !whole || !x.keep || cap(piece) != netloop.BufferSize || x.bodyPending() {
		return x.conn.Write(piece)
	}
	x.out = nil
	err := x.conn.Send(piece)
	if lost, ok := errors.AsType[*netloop.SendError](err); ok {
		return lost.Sent, err
	}
	return len(piece), err
}

// tail is how many bytes stay free behind what is read, for the line end that [frameChunk] writes.
const tail = 2

var lastChunk = []byte("0\r\n\r\n")

// frameChunk puts a chunk's size before b[from:to] and its line end behind; there is room for both.
func frameChunk(b []byte, from, to int) (int, int) {
	const digits = "0123456789abcdef"
	b[to], b[to+1] = '\r', '\n'
	size := to - from
	from -= 2
	b[from], b[from+1] = '\r', '\n'
	for ; size > 0; size >>= 4 {
		from--
		b[from] = digits[size&15]
	}
	return from, to + 2
}
