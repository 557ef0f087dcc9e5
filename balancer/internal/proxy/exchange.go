package proxy

import (
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/pool"
)

// exchange is the state of one request with its response. It is used again and again: for the next request of the same
// connection, then by another connection.
type exchange struct {
	proxy    *Proxy
	conn     netloop.Conn
	loop     netloop.Loop
	timeouts *Timeouts

	req  http1.Request
	resp http1.Response
	rec  Record

	in   []byte // bytes from the client: in[:n] is held, in[:next] is used up
	n    int
	next int
	head int       // length of the request head in in
	hop  http1.Hop // what the upstream is told of the way it came
	out  []byte    // the request as it goes upstream; later the head of the answer as it goes to the client; nil between
	keep bool      // the client connection goes on after this exchange

	load   *pool.Endpoint // counts this exchange
	body   body
	upload *upload // of the attempt in progress, when the body is being streamed
}

// serve reads and answers requests until there is none left to be read. It returns how long the connection may stay
// idle; zero closes it.
func (x *exchange) serve(c netloop.Conn) time.Duration {
	x.conn, x.loop, x.timeouts = c, c.Loop(), x.proxy.timeouts.Load()
	x.in, x.n, x.next = x.loop.Buffer(), 0, 0
	defer x.release()
	for {
		head, ok := x.readHead()
		if !ok || !x.exchange(head) {
			return 0
		}
		if x.n = copy(x.in, x.in[x.next:x.n]); x.n == 0 {
			return x.timeouts.KeepAlive
		}
	}
}

// release gives back what was borrowed, also after a panic.
func (x *exchange) release() {
	x.unload()
	x.loop.Free(x.in)
	x.loop.Free(x.out)
	x.rec = Record{}
	x.conn, x.loop, x.in, x.out, x.upload = nil, nil, nil, nil, nil
}

// readHead reads until a whole head is in x.in and returns its length. When it returns false, the client was told why,
// if it is there to be told.
func (x *exchange) readHead() (int, bool) {
	var scan http1.Scanner
	x.conn.SetReadDeadline(x.loop.Now().Add(x.timeouts.RequestHead))
	for fresh := true; ; {
		if fresh && x.n >= 2 {
			// One empty line before a request is overlooked (RFC 9112 §2.2).
			if x.in[0] == '\r' && x.in[1] == '\n' {
				x.n = copy(x.in, x.in[2:x.n])
			}
			fresh = false
		}
		end, bad := scan.Scan(x.in[:x.n])
		if bad != nil {
			x.begin(nil)
			x.answer(refused(bad))
			return 0, false
		}
		if end > 0 {
			return end, true
		}
		if x.n == len(x.in) {
			x.in = append(make([]byte, 0, http1.MaxHead+netloop.BufferSize), x.in...)[:http1.MaxHead]
		}
		n, err := x.conn.Read(x.in[x.n:])
		x.n += n
		if err != nil {
			if x.n > 0 && isTimeout(err) {
				x.begin(nil)
				x.answer(fail(RequestTimeout))
			}
			return 0, false
		}
	}
}

// begin starts the record of an exchange.
func (x *exchange) begin(head []byte) {
	x.rec = Record{
		Loop: x.loop.Index(), Start: x.loop.Now(), Client: x.conn.Remote(), Table: x.proxy.store.Load(),
		BytesIn: int64(len(head)),
	}
	x.keep, x.body = false, body{}
}

// exchange does one request, whose head is x.in[:head]. It reports whether the connection can go on; then x.next is
// where the next request begins.
func (x *exchange) exchange(head int) (keep bool) {
	x.begin(x.in[:head])
	defer func() {
		if x.upload != nil {
			x.upload.end()
		}
	}()
	r, rec := &x.req, &x.rec
	if bad := r.Parse(x.in[:head]); bad != nil {
		rec.Method = r.Method
		return x.answer(refused(bad))
	}
	rec.Method, rec.Host, rec.Path, rec.Query, rec.Minor = r.Method, r.Host, r.Path, r.Query, r.Minor
	rec.UserAgent = r.UserAgent()
	x.keep = r.KeepAlive && !x.proxy.draining.Load()

	rt, pl, strip := rec.Table.Match(r.Host, r.Path)
	rec.Route = rt
	x.head, x.hop = head, http1.Hop{Client: rec.Client.Addr(), Via: via, Strip: strip}
	if bad := x.compose(); bad != nil {
		return x.answer(refused(bad))
	}
	switch {
	case rt == nil && rec.Table.Generation == 0:
		return x.answer(fail(NotSynced))
	case rt == nil:
		return x.answer(fail(NoRoute))
	case r.EncodedSlash && !rt.Exact && rt.Path != "":
		return x.answer(refused(http1.ErrPath))
	case pl == nil:
		return x.answer(fail(NoUpstream))
	}
	rec.Service = pl.Service
	pl.Service.Take()
	defer pl.Service.Release()
	return x.attempts(pl, rt.Timeout)
}

// compose builds the request as it goes upstream in x.out: head, and what is held of the body.
func (x *exchange) compose() *http1.Error {
	x.out = http1.AppendRequest(x.scratch(), &x.req, &x.hop)
	return x.takeBody(x.head)
}

// scratch is x.out, emptied.
func (x *exchange) scratch() []byte {
	if x.out == nil {
		x.out = x.loop.Buffer()
	}
	return x.out[:0]
}

// attempts tries endpoints until one answers or there is no use in going on.
func (x *exchange) attempts(pl *pool.Pool, timeout time.Duration) (keep bool) {
	if timeout <= 0 {
		timeout = x.timeouts.ResponseHead
	}
	why := fail(NoUpstream)
	var tried [maxAttempts]*pool.Endpoint
	n, fresh := 0, false
	for x.rec.Attempts < maxAttempts {
		e := pl.Pick(tried[:n]...)
		if e == nil {
			break
		}
		x.rec.Attempts++
		x.rec.Endpoint, x.load = e, e
		e.Take()
		outcome := x.attempt(e, fresh, timeout)
		x.unload()
		if outcome.answered {
			return outcome.keep
		}
		why = outcome.failure
		if why.reason.upstream() {
			e.Stats().Record(0, x.loop.Now().Sub(x.rec.Start))
		}
		if !outcome.again {
			break
		}
		if fresh = outcome.stale; !fresh {
			tried[n] = e
			n++
		}
	}
	return x.answer(why)
}

// unload counts the exchange out of the endpoint it is on. That is done as soon as the endpoint has nothing more to do for
// it, before the client has the end of the answer: its next request must find the endpoint free.
func (x *exchange) unload() {
	if x.load != nil {
		x.load.Release()
		x.load = nil
	}
}

// answer ends an exchange with an answer of our own and reports whether the connection goes on.
func (x *exchange) answer(f failure) (keep bool) {
	x.rec.Reason, x.rec.Status = f.reason, f.code()
	if f.reason == ClientClosed {
		x.done()
		return false
	}
	x.keep = x.keep && !x.bodyPending()
	out := f.appendAnswer(x.scratch(), x.loop.Now(), x.keep, x.req.IsHead() && len(x.rec.Method) > 0)
	x.out = out
	x.conn.SetWriteDeadline(x.loop.Now().Add(x.timeouts.IdleBody))
	n, err := x.conn.Write(out)
	x.rec.BytesOut += int64(n)
	x.done()
	if err != nil {
		return false
	}
	if !x.keep && (x.bodyPending() || x.next < x.n) {
		x.linger()
	}
	return x.keep
}

// done completes the record and hands it out.
func (x *exchange) done() {
	r := &x.rec
	if x.upload != nil {
		r.BytesIn += x.upload.bytes.Load()
	}
	r.Duration = x.loop.Now().Sub(r.Start)
	service := r.Service
	if service == nil {
		service = x.proxy.nowhere
	}
	service.Count(r.Method, r.Status)
	service.Stats().Record(r.Status, r.Duration)
	if r.Endpoint != nil && r.UpstreamStatus != 0 {
		r.Endpoint.Stats().Record(r.UpstreamStatus, r.Upstream)
	}
	if x.proxy.observer != nil {
		x.proxy.observer.Done(r)
	}
}

// linger closes the sending side and reads for a while what the client may still be sending: closing with unread bytes
// would reset the connection, and the answer could be lost with it (RFC 9112 §9.6).
func (x *exchange) linger() {
	if x.upload != nil {
		x.upload.end()
	}
	if x.conn.CloseWrite() != nil {
		return
	}
	x.conn.SetReadDeadline(x.loop.Now().Add(lingerTime))
	for got := 0; got < lingerBytes; {
		n, err := x.conn.Read(x.in)
		if err != nil {
			return
		}
		got += n
	}
}
