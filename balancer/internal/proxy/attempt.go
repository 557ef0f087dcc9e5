package proxy

import (
	"errors"
	"io"
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
	stale    bool // the attempt met a pooled connection that was dead: the endpoint is not to blame
}

// attempt sends the request to an endpoint and relays the answer.
func (x *exchange) attempt(e *pool.Endpoint, fresh bool, timeout time.Duration) outcome {
	started := x.loop.Now()
	var up netloop.Conn
	if !fresh {
		up = x.loop.Reuse(e)
	}
	reused := up != nil
	if !reused {
		var err error
		if up, err = x.loop.Dial(e.Address, x.timeouts.Connect); err != nil {
			if isTimeout(err) {
				return outcome{failure: fail(ConnectTimeout), again: true}
			}
			return outcome{failure: fail(ConnectFailed), again: true}
		}
	}
	if x.out == nil {
		x.compose() // again: an earlier attempt has sent it
	}
	// repeatable: everything there is of the request is held, and doing it twice does no harm.
	repeatable := x.body.done && x.req.Retryable()

	up.SetWriteDeadline(started.Add(x.timeouts.IdleBody))
	if n, err := up.Write(x.out); err != nil {
		up.Close()
		unsent := n == 0 && x.upload == nil
		return outcome{failure: fail(UpstreamClosed), again: unsent || repeatable, stale: reused}
	}
	// While the upstream works, an exchange holds nothing but the request as it came: what is built from it goes back now,
	// and the buffer for the answer is taken when there is one. So the same few buffers, warm in the cache, serve all.
	x.loop.Free(x.out)
	x.out = nil
	up.SetReadDeadline(started.Add(timeout))
	if !x.body.done {
		up.SetReadDeadline(time.Time{})
		x.startUpload(up, timeout)
	}

	if err := up.Wait(x.watched()); err != nil {
		up.Close()
		return outcome{failure: x.blame(err), stale: reused}
	}
	buf := x.loop.Buffer()
	defer func() { x.loop.Free(buf) }()
	n, interim := 0, 0
	for {
		var head int
		var why failure
		if buf, n, head, why = x.readAnswer(up, buf, n); why.reason != "" {
			up.Close()
			again := repeatable && n == 0 && why.reason == UpstreamClosed && interim == 0
			return outcome{failure: why, again: again, stale: reused}
		}
		if bad := x.resp.Parse(buf[:head], x.req.IsHead()); bad != nil {
			up.Close()
			return outcome{failure: failure{reason: UpstreamInvalid, detail: bad.Text}}
		}
		if x.resp.Status >= 200 {
			x.rec.UpstreamStatus, x.rec.Upstream = x.resp.Status, x.loop.Now().Sub(started)
			return x.relay(e, up, buf, head, n)
		}
		// An interim answer. We asked for no upgrade, so 101 is none.
		if interim++; x.resp.Status == 101 || interim > maxInterim {
			up.Close()
			return outcome{failure: fail(UpstreamInvalid)}
		}
		if x.req.Minor == 1 {
			x.conn.SetWriteDeadline(x.loop.Now().Add(x.timeouts.IdleBody))
			line := http1.AppendResponse(make([]byte, 0, 256), &x.resp, http1.AsIs, 1, true)
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

// readAnswer reads until a whole response head is in buf, of which n bytes are held already, and returns its length.
// A head that does not fit makes it return a longer buffer.
func (x *exchange) readAnswer(up netloop.Conn, buf []byte, n int) (_ []byte, held, head int, _ failure) {
	var scan http1.Scanner
	for {
		head, bad := scan.Scan(buf[:n])
		if bad != nil {
			return buf, n, 0, fail(UpstreamInvalid)
		}
		if head > 0 {
			return buf, n, head, failure{}
		}
		if n == len(buf)-tail {
			longer := make([]byte, http1.MaxHead+tail)
			copy(longer, buf)
			x.loop.Free(buf)
			buf = longer
		}
		k, err := x.readUpstream(up, buf[n:len(buf)-tail])
		n += k
		if err != nil {
			return buf, n, 0, x.blame(err)
		}
	}
}

// readUpstream reads while keeping an eye on the client.
func (x *exchange) readUpstream(up netloop.Conn, b []byte) (int, error) {
	if c := x.watched(); c != nil {
		return up.ReadWatching(b, c)
	}
	return up.Read(b)
}

// watched is the client connection to keep an eye on; none while the body is being streamed, for then the upload does.
func (x *exchange) watched() netloop.Conn {
	if x.upload != nil && x.bodyPending() {
		return nil
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

// relay sends the answer, whose head is buf[:head] and of which n bytes are held, to the client.
func (x *exchange) relay(e *pool.Endpoint, up netloop.Conn, buf []byte, head, n int) outcome {
	r := &x.resp
	framing := http1.AsIs
	chunks := http1.Chunked{Trailers: true}
	switch {
	case x.req.Minor == 0 && (r.Chunked || r.UntilClose):
		framing, chunks.Decode = http1.TillClose, true
	case r.Chunked || r.UntilClose:
		framing = http1.AsChunks
	}
	x.keep = x.keep && framing != http1.TillClose && !x.bodyPending()
	out := http1.AppendResponse(x.scratch(), r, framing, x.req.Minor, x.keep)

	// The part of the body that came with the head goes out with it, in one write.
	left, from, to := r.Length, head, n
	complete, extra := false, false
	var why failure
	for first := true; ; first = false {
		switch {
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
		}
		piece := buf[from:to]
		if first {
			out = append(out, piece...)
			x.out, piece = out, out
		}
		if len(piece) > 0 {
			x.conn.SetWriteDeadline(x.loop.Now().Add(x.timeouts.IdleBody))
			k, err := x.conn.Write(piece)
			x.rec.BytesOut += int64(k)
			if err != nil {
				why = fail(ClientClosed)
			}
		}
		if complete || why.reason != "" {
			break
		}
		up.SetReadDeadline(x.loop.Now().Add(x.timeouts.IdleBody))
		k, err := x.readUpstream(up, buf[http1.Headroom:len(buf)-tail])
		if err == io.EOF && r.UntilClose {
			complete = true
			x.unload()
			if framing == http1.AsChunks {
				k, err := x.conn.Write(lastChunk)
				x.rec.BytesOut += int64(k)
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

	x.rec.Status, x.rec.Reason = r.Status, why.reason
	if why.reason == ClientClosed {
		x.rec.Status = why.code()
	}
	if complete && why.reason == "" && r.KeepAlive && !extra && !x.bodyPending() && !e.Retired() {
		x.loop.Park(e, up, upstreamIdle)
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
