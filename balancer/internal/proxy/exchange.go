package proxy

import (
	"bytes"
	"sync"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// exchange is the state of one request with its response. It is used again and again: for the next request of the same
// connection, then by another connection.
type exchange struct {
	proxy    *Proxy
	conn     netloop.Conn
	loop     netloop.Loop
	settings *Settings

	req   http1.Request
	resp  http1.Response
	rec   Record
	known pool.Method // what rec.Method is counted as
	match route.Request
	rules *route.Rules // of the route; never nil once there is one
	// timeouts and retries are those of the route.
	timeouts route.Timeouts
	retries  route.Retries
	deadline time.Time // of the whole exchange; zero is none

	in   []byte // bytes from the client: in[:n] is held, in[:next] is used up
	n    int
	next int
	head int       // length of the request head in in
	kept []byte    // the body as it goes upstream, if it is held whole and in has no room for it, or what was sent of one that comes; else nil
	hop  http1.Hop // what the upstream is told of the way it came
	id   [32]byte  // a request id of our own
	out  []byte    // the request as it goes upstream; later the head of the answer as it goes to the client; nil between
	keep bool      // the client connection goes on after this exchange

	pool   *pool.Pool     // whose endpoints are tried
	load   *pool.Endpoint // counts this exchange
	queue  *queue         // of those who wait for load's service; nil when nobody can
	body   body
	upload *upload // of the attempt in progress, when the body is being streamed
}

// serve reads and answers requests until there is none left to be read. It returns how long the connection may stay
// idle; zero closes it.
func (x *exchange) serve(c netloop.Conn) time.Duration {
	x.conn, x.loop, x.settings = c, c.Loop(), x.proxy.settings.Load()
	x.n, x.next = 0, 0
	defer x.release()
	for {
		head, bad := x.readHead()
		if head == 0 || !x.exchange(head, bad) {
			return 0
		}
		if x.n = copy(x.in, x.in[x.next:x.n]); x.n == 0 {
			return x.proxy.Guard.keepAlive(x.settings.KeepAlive)
		}
	}
}

// release gives back what was borrowed, also after a panic.
func (x *exchange) release() {
	x.unload()
	x.free(x.in)
	x.free(x.out)
	x.free(x.kept)
	x.rec = Record{}
	x.conn, x.loop, x.in, x.out, x.kept, x.upload, x.rules = nil, nil, nil, nil, nil, nil, nil
	x.hop = http1.Hop{}
	x.match = route.Request{}
	x.req.Reset()
}

// long is the length of the buffers for what does not fit into one of the loop's: a head of any length with some body.
const long = http1.MaxHead + netloop.BufferSize

var longBuffers = sync.Pool{New: func() any { return new([long]byte) }}

// room lends a buffer of at least n bytes.
func (x *exchange) room(n int) []byte {
	switch {
	case n <= netloop.BufferSize:
		return x.loop.Buffer()
	case n <= long:
		return longBuffers.Get().(*[long]byte)[:]
	}
	return make([]byte, n)
}

// free takes back a buffer from room.
func (x *exchange) free(b []byte) {
	switch cap(b) {
	case netloop.BufferSize:
		x.loop.Free(b)
	case long:
		longBuffers.Put((*[long]byte)(b[:long]))
	}
}

// readHead reads until a whole head is in x.in, and x.req is read from it, and returns its length, and what is wrong with it. When it
// returns zero, the client was told why, if it is there to be told.
func (x *exchange) readHead() (int, *http1.Error) {
	var scan http1.Scanner
	x.conn.ReadWithin(x.settings.RequestHead)
	for fresh := true; ; {
		if x.in == nil {
			var err error
			if x.in, x.n, err = x.conn.Receive(nil); err != nil {
				return 0, nil
			}
		}
		if fresh && x.n >= 2 {
			// One empty line before a request is overlooked (RFC 9112 §2.2).
			if x.in[0] == '\r' && x.in[1] == '\n' {
				x.n = copy(x.in, x.in[2:x.n])
			}
			fresh = false
		}
		head, bad := x.req.Read(&scan, x.in[:x.n])
		if head > 0 {
			return head, bad
		}
		if bad != nil {
			x.begin(nil)
			x.answer(refused(bad))
			return 0, nil
		}
		if x.n == len(x.in) {
			longer := x.room(long)
			copy(longer, x.in)
			x.free(x.in)
			x.in = longer[:http1.MaxHead]
		}
		n, err := x.conn.Read(x.in[x.n:])
		x.n += n
		if err != nil {
			if x.n > 0 && isTimeout(err) {
				x.begin(nil)
				x.answer(fail(RequestTimeout))
			}
			return 0, nil
		}
	}
}

// begin starts the record of an exchange. Without a head there is no request: the last one's is forgotten.
func (x *exchange) begin(head []byte) {
	if head == nil {
		x.req.Reset()
		x.hop = http1.Hop{}
	}
	x.rec = Record{}
	rec := &x.rec
	rec.Loop, rec.Start, rec.Table = x.loop.Index(), x.loop.Now(), x.proxy.store.Load()
	rec.Peer = x.conn.Remote()
	rec.Client = rec.Peer
	rec.BytesIn, rec.HeadIn = int64(len(head)), int64(len(head))
	x.body = body{}
	x.known, x.keep, x.rules, x.deadline = pool.Unknown, false, &plainRules, time.Time{}
	x.timeouts, x.retries = x.settings.Timeouts, x.settings.Retries
}

// plainRules are those of a route that has none.
var plainRules route.Rules

// exchange does one request, whose head is x.in[:head]; bad is what is wrong with it. It reports whether the connection can go on; then
// x.next is where the next request begins.
func (x *exchange) exchange(head int, bad *http1.Error) (keep bool) {
	x.begin(x.in[:head])
	defer x.end()
	x.rec.Method, x.known = x.req.Method, pool.MethodOf(x.req.Method)
	if bad != nil {
		return x.answer(refused(bad))
	}
	return x.handle(head)
}

// handle is the exchange between its beginning and its end. It is a function of its own for the compiler, which makes a list of what
// is deferred at run time where there are many ways out.
func (x *exchange) handle(head int) (keep bool) {
	r, rec := &x.req, &x.rec
	x.describe()
	x.keep = r.KeepAlive && !x.proxy.draining.Load()
	x.head = head
	x.frame()
	x.identify()
	x.trace()
	if r.Passes(x.proxy.Name) >= mostPasses {
		return x.answer(fail(Looped))
	}

	x.match = route.Request{}
	m := &x.match
	m.Scheme, m.Method, m.Host, m.Path, m.Query, m.Fields = x.hop.Proto, r.Method, r.Host, r.Path, r.Query, r
	to := rec.Table.Match(&x.match)
	rec.Route = to.Route
	switch {
	case to.Route == nil && rec.Table.Generation == 0:
		return x.answer(fail(NotSynced))
	case to.Route == nil:
		return x.answer(fail(NoRoute))
	}
	if to.Route.Rules != nil {
		x.rules = to.Route.Rules
		x.apply()
	}
	if r.EncodedSlash && !x.rules.EncodedSlashes && !to.Route.Exact && (to.Route.Path != "" || to.Strip > 0 || x.rules.Pattern != nil) {
		return x.answer(refused(http1.ErrPath))
	}
	if why := x.admit(to.Route); why.reason != "" {
		return x.answer(why)
	}
	if x.rules.Redirect != nil {
		return x.redirect()
	}
	if to.Pool == nil {
		return x.answer(fail(NoUpstream))
	}
	rec.Service = to.Pool.Service
	x.hop.Strip, x.hop.Prefix = to.Strip, x.rules.Prefix
	x.hop.Edit = http1.Edit(x.rules.Request)
	x.hop.Upgrade = x.upgradable()
	if why := x.hold(); why.reason != "" {
		return x.answer(why)
	}
	if bad := x.compose(); bad != nil {
		return x.answer(refused(bad))
	}
	if most := x.mostBody(); most > 0 && x.body.taken > most {
		return x.answer(fail(BodyTooLong)) // its chunks came with the head
	}
	if to.Mirror != nil {
		x.mirror(to.Mirror)
	}
	tally := rec.Service.Tally(rec.Loop)
	tally.Take()
	defer tally.Release()
	return x.attempts(to.Pool, to.Route.Timeout)
}

// describe has the record tell of the request.
func (x *exchange) describe() {
	r, rec := &x.req, &x.rec
	rec.Method, rec.Host, rec.Path, rec.Query, rec.Minor = r.Method, r.Host, r.Path, r.Query, r.Minor
	rec.Head, rec.UserAgent = r, r.UserAgent()
	rec.Referer, _ = r.Value("referer", 0)
}

// shrink gives the buffer of the client's bytes back, all of which are used up, and holds the head in memory of its own length:
// what comes now may last for days.
func (x *exchange) shrink() {
	head := bytes.Clone(x.in[:x.head])
	x.rec.ID = bytes.Clone(x.rec.ID)
	x.req.Parse(head) // once more
	x.describe()
	x.free(x.in)
	x.in, x.n, x.next = nil, 0, 0
}

// end ends what an exchange leaves behind.
func (x *exchange) end() {
	if x.upload != nil {
		x.upload.end()
	}
	x.free(x.kept)
	x.kept = nil
}

// apply takes over what the route says differently.
func (x *exchange) apply() {
	instead(&x.timeouts.Connect, x.rules.Timeouts.Connect)
	instead(&x.timeouts.ResponseHead, x.rules.Timeouts.ResponseHead)
	instead(&x.timeouts.IdleBody, x.rules.Timeouts.IdleBody)
	instead(&x.timeouts.Tunnel, x.rules.Timeouts.Tunnel)
	instead(&x.timeouts.Request, x.rules.Timeouts.Request)
	instead(&x.retries.Attempts, x.rules.Retries.Attempts)
	instead(&x.retries.Budget, x.rules.Retries.Budget)
	instead(&x.retries.Buffer, x.rules.Retries.Buffer)
}

func instead[T comparable](v *T, value T) {
	var zero T
	if value != zero {
		*v = value
	}
}

// compose builds the request as it goes upstream in x.out: head, and what is held of the body.
func (x *exchange) compose() *http1.Error {
	if need := x.n + 1024 + len(x.kept); cap(x.out) < need {
		x.free(x.out)
		x.out = x.room(need)
	}
	x.out = http1.AppendRequest(x.out[:0], &x.req, &x.hop)
	return x.takeBody()
}

// scratch is x.out, emptied, with room for at least n bytes.
func (x *exchange) scratch(n int) []byte {
	if cap(x.out) < n || x.out == nil {
		x.free(x.out)
		x.out = x.room(n)
	}
	return x.out[:0]
}

// attempts tries endpoints until one answers or there is no use in going on.
func (x *exchange) attempts(pl *pool.Pool, headIn time.Duration) (keep bool) {
	x.pool = pl
	s, service := pl.SettingsOf(), pl.Service
	service.Earn(x.retries.Budget)
	var headBy time.Time
	if headIn > 0 {
		headBy = x.rec.Start.Add(headIn)
	}
	if x.timeouts.Request > 0 {
		x.deadline = x.rec.Start.Add(x.timeouts.Request)
	}
	why := fail(NoUpstream)
	var tried [mostRefused + maxAttempts]*pool.Endpoint
	n, refused, fresh := 0, 0, false
	for {
		if x.rec.Attempts-refused >= min(x.retries.Attempts, maxAttempts) {
			x.rec.Spent = true
			break
		}
		e, busy := x.pick(pl, s, tried[:n])
		if busy.reason != "" {
			why = busy
		}
		if e == nil {
			break
		}
		x.rec.Attempts++
		x.rec.Endpoint, x.load = e, e
		began, retried := x.loop.Now(), why.reason
		if x.rec.Trace != nil && x.rec.Attempts > 1 {
			x.nextSpan()
			x.free(x.out)
			x.out = nil // it names the attempt before
		}
		outcome := x.attempt(e, s, fresh, headBy)
		x.unload()
		if x.rec.Attempts > 1 {
			x.retried(retried, outcome.answered)
		}
		if outcome.answered {
			return outcome.keep
		}
		why = outcome.failure
		x.traced(e, began, why.reason)
		if why.reason.upstream() {
			e.Stats().Errors.Add(string(why.reason))
			x.record(e, s, 0, x.loop.Now().Sub(began))
		}
		if !outcome.again || expired(x.deadline, x.loop.Now()) || expired(headBy, x.loop.Now()) {
			break
		}
		if fresh = outcome.stale; fresh {
			// The same endpoint most likely, on a new connection: nothing is asked of it twice. It does not count either: where many
			// die at once, every one of them has dead connections here.
			if x.retries.Attempts > 1 && refused < mostRefused {
				refused++
			}
			continue
		}
		if outcome.free && x.retries.Attempts > 1 && refused < mostRefused {
			refused++ // nothing was asked of anybody: it does not count
		} else if !outcome.free && !service.Spend() {
			service.Retries.Add(pool.Retry{Reason: string(why.reason), Outcome: pool.NoBudget})
			x.rec.Spent = true
			break
		}
		tried[n] = e
		n++
		pl = pl.Latest()
	}
	return x.answer(why)
}

// retried counts an attempt that was not the first.
func (x *exchange) retried(why Reason, answered bool) {
	r := pool.Retry{Reason: string(why), Outcome: pool.Failed}
	if answered {
		r.Outcome = pool.Answered
	}
	x.rec.Service.Retries.Add(r)
}

func expired(deadline, now time.Time) bool { return !deadline.IsZero() && !now.Before(deadline) }

// unload counts the exchange out of the endpoint it is on. That is done as soon as the endpoint has nothing more to do for
// it, before the client has the end of the answer: its next request must find the endpoint free.
func (x *exchange) unload() {
	if x.load != nil {
		x.load.Release()
		x.load = nil
		if x.queue != nil {
			x.queue.next(x.loop)
			x.queue = nil
		}
	}
}

// within is d, or the time left until the deadline of the exchange when that is less.
func (x *exchange) within(d time.Duration) time.Duration {
	if x.deadline.IsZero() {
		return d
	}
	return min(d, x.deadline.Sub(x.loop.Now()))
}

// progress is how soon the client must have sent, or taken, the next bytes of a body, of which so many have gone since started:
// within the idle time, and once that has passed, at the least rate on average. Whoever makes progress gets more time, but a
// byte now and then is none. What the exchange has waited for the other side is not the client's time: the caller moves
// started on by it, so that an upstream may be as slow as the idle time lets it.
func (x *exchange) progress(started time.Time, bytes int64) time.Duration {
	d := x.within(x.timeouts.IdleBody)
	if x.settings.MinRate > 0 {
		d = min(d, x.timeouts.IdleBody+time.Duration(bytes/x.settings.MinRate)*time.Second-x.loop.Now().Sub(started))
	}
	return d
}

// answer ends an exchange with an answer of our own and reports whether the connection goes on.
func (x *exchange) answer(f failure) (keep bool) {
	x.rec.Reason, x.rec.Status = f.reason, f.code()
	if f.reason == ClientClosed {
		x.done()
		return false
	}
	x.keep = x.keep && !x.bodyPending()
	return x.say(f.appendAnswer(x.scratch(0), x))
}

// say ends an exchange with an answer of our own that is built in out.
func (x *exchange) say(out []byte) (keep bool) {
	x.out = out
	x.rec.HeadOut = int64(max(0, bytes.Index(out, headEnd)+len(headEnd)))
	x.conn.WriteWithin(x.timeouts.IdleBody)
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

var headEnd = []byte("\r\n\r\n")

// done completes the record and hands it out.
func (x *exchange) done() {
	r := &x.rec
	if x.upload != nil {
		r.BytesIn += x.upload.bytes.Load()
	}
	r.Duration = x.loop.Now().Sub(r.Start)
	if r.Trace != nil {
		x.traceEnds()
	}
	service := r.Service
	if service == nil {
		service = x.proxy.nowhere
	}
	o := pool.Outcome{
		Method: x.known, Protocol: r.Protocol, Status: r.Status, Duration: r.Duration, Upstream: r.Upstream, In: r.BytesIn, Out: r.BytesOut,
		Exemplar: x.exemplar(),
	}
	service.Tally(r.Loop).Done(&o)
	if r.Reason != "" {
		service.Failures.Add(string(r.Reason))
	}
	if r.Endpoint != nil && r.UpstreamStatus != 0 {
		x.record(r.Endpoint, x.pool.SettingsOf(), r.UpstreamStatus, r.Upstream)
	}
	if x.proxy.observer != nil {
		x.proxy.observer.Done(r)
	}
}

// record counts the outcome of an attempt, and tells who wants to know when the endpoint has failed too often.
func (x *exchange) record(e *pool.Endpoint, s *pool.Settings, status int, took time.Duration) {
	n := e.Stats().Record(status, took, x.exemplar())
	if n > 0 && s.Failures > 0 && n%s.Failures == 0 && x.proxy.observer != nil {
		x.proxy.observer.Failing(e)
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
	x.conn.ReadWithin(lingerTime)
	for got := 0; got < lingerBytes; {
		n, err := x.conn.Read(x.in)
		if err != nil {
			return
		}
		got += n
	}
}
