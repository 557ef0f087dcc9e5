package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// brief is every timeout that is waited for, and soon is within what time a connection must have ended, however
// busy the machine is.
const (
	brief = slower * 300 * time.Millisecond
	soon  = slower * 3 * time.Second
)

// exhaustion is an attempt to hold or to use up something of the proxy. The ids are those of the catalogue: L.
type exhaustion struct {
	id, name string
	settings Settings                            // the timeouts are brief, if they matter
	up       func(t *testing.T) *upstream        // nil is echo
	first    string                              // is sent at once;
	again    string                              // then this, again and again
	pause    time.Duration                       // with this pause
	read     func(c *client, deadline time.Time) // in place of reading the answers; nil reads them

	served int  // answers with 200 that come before
	status int  // of the last answer; 0: the connection is closed without one
	cut    bool // the answer is cut off, or is a 502 if it was known in time what it is
	reason Reason
	alone  bool // no upstream hears of it
	late   bool // it ends because of a timeout: not before one has passed
}

// unread reads nothing, and returns when there would be something to read.
func unread(c *client, _ time.Time) {
	if _, err := c.r.Peek(1); err != nil {
		c.t.Error(err)
	}
}

// sipping reads a byte now and then, of few that have come.
func sipping(c *client, deadline time.Time) {
	c.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	for b := make([]byte, 1); time.Now().Before(deadline); time.Sleep(brief / 6) {
		if _, err := c.Conn.Read(b); err != nil {
			return
		}
	}
}

// flooding answers every request with first, then again and again without end.
func flooding(first, again string, pause time.Duration) func(t *testing.T) *upstream {
	return func(t *testing.T) *upstream {
		return newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			_, err := io.WriteString(c, first)
			for err == nil && again != "" {
				_, err = io.WriteString(c, again)
				time.Sleep(pause)
			}
			io.Copy(io.Discard, r)
		})
	}
}

// deaf reads heads, and nothing more.
func deaf(t *testing.T) *upstream {
	ended := make(chan struct{})
	up := newUpstream(t, func(_ net.Conn, r *bufio.Reader) {
		http.ReadRequest(r)
		<-ended
	})
	t.Cleanup(func() { close(ended) })
	return up
}

// long10MB answers with ten megabytes.
func long10MB(t *testing.T) *upstream {
	const size = 10 << 20
	answer := append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size), bytes.Repeat([]byte("x"), size)...)
	return newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
}

func exhaustions() []exhaustion {
	const (
		get    = "GET / HTTP/1.1\r\nHost: a\r\n"
		post   = "POST / HTTP/1.1\r\nHost: a\r\n"
		chunks = post + "Transfer-Encoding: chunked\r\n\r\n"
		ok     = "HTTP/1.1 200 OK\r\n"
		now    = 0
		slowly = brief / 6
	)
	a := func(n int) string { return strings.Repeat("a", n) }
	small := Settings{MaxBody: 1000}
	return []exhaustion{
		{id: "L1", name: "a target of 100 KB", first: "GET /" + a(100_000) + " HTTP/1.1\r\nHost: a\r\n\r\n", status: 414, reason: BadRequest, alone: true},
		{id: "L1", name: "a target without end", first: "GET /", again: a(1000), status: 414, reason: BadRequest, alone: true},
		{id: "L1", name: "a field of 100 KB", first: get + "X: " + a(100_000) + "\r\n\r\n", status: 431, reason: BadRequest, alone: true},
		{id: "L1", name: "a field without end", first: get + "X: ", again: a(1000), status: 431, reason: BadRequest, alone: true},
		{id: "L1", name: "10,000 fields", first: get + strings.Repeat("X: a\r\n", 10_000) + "\r\n", status: 431, reason: BadRequest, alone: true},
		{id: "L1", name: "one field too many", first: get + strings.Repeat("X: a\r\n", http1.MaxFields) + "\r\n", status: 431, reason: BadRequest, alone: true},
		{id: "L1", name: "fields without end", first: get, again: "X: " + a(100) + "\r\n", status: 431, reason: BadRequest, alone: true},
		{id: "L1", name: "a name of 64 KB", first: get + a(64<<10) + ": b\r\n\r\n", status: 431, reason: BadRequest, alone: true},
		{id: "L1", name: "a method without end", again: a(100), status: 414, reason: BadRequest, alone: true},
		{id: "L1", name: "as many fields as may be", first: get + strings.Repeat("X: a\r\n", http1.MaxFields-2) + "Connection: close\r\n\r\n", status: 200},
		{id: "L1", name: "as long a target as may be", first: "GET /" + a(http1.MaxTarget-1) + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", status: 200},
		{id: "L1", name: "a head of 63 KB", first: get + "Connection: close\r\nX: " + a(63<<10) + "\r\n\r\n", status: 200},

		{id: "L2", name: "a length over the limit", settings: small, first: post + "Content-Length: 1001\r\n\r\n", status: 413, reason: BodyTooLong, alone: true},
		{id: "L2", name: "a length over the limit, with the body", settings: small, first: post + "Content-Length: 1001\r\n\r\n" + a(1001), status: 413, reason: BodyTooLong, alone: true},
		{id: "L2", name: "chunks over the limit in one piece", settings: small, first: chunks + "7d0\r\n" + a(2000) + "\r\n0\r\n\r\n", status: 413, reason: BodyTooLong, alone: true},
		{id: "L2", name: "chunks over the limit, unfinished", settings: small, first: chunks + "7d0\r\n" + a(2000) + "\r\n", status: 413, reason: BodyTooLong},
		{id: "L2", name: "chunks without end", settings: small, first: chunks, again: "1\r\na\r\n", status: 413, reason: BodyTooLong},
		{id: "L2", name: "a length of 999999999 and no body", first: post + "Content-Length: 999999999\r\n\r\n", status: 408, reason: RequestTimeout, late: true},
		{id: "L2", name: "a chunk of 999999999 and no body", first: chunks + "3b9ac9ff\r\n", status: 408, reason: RequestTimeout, late: true},

		{id: "L3", name: "no byte", status: now, late: true, alone: true},
		{id: "L3", name: "one byte", first: "G", status: 408, reason: RequestTimeout, late: true, alone: true},
		{id: "L3", name: "a request line, a byte at a time", again: "G", pause: slowly, status: 408, reason: RequestTimeout, late: true, alone: true},
		{id: "L3", name: "a field, a byte at a time", first: get + "X: ", again: "a", pause: slowly, status: 408, reason: RequestTimeout, late: true, alone: true},
		{id: "L3", name: "a field at a time", first: get, again: "X: a\r\n", pause: slowly, status: 408, reason: RequestTimeout, late: true, alone: true},
		{id: "L3", name: "an empty line", first: "\r\n", status: now, late: true, alone: true},
		{id: "L3", name: "silence after an answer", first: get + "\r\n", served: 1, late: true},
		{id: "L3", name: "a second head, a byte at a time", first: get + "\r\n" + get + "X: ", again: "a", pause: slowly, served: 1, status: 408, reason: RequestTimeout, late: true},

		{id: "L4", name: "a short body, a byte at a time", first: post + "Content-Length: 1000\r\n\r\n", again: "a", pause: slowly, status: 408, reason: RequestTimeout, late: true, alone: true},
		{id: "L4", name: "a long body, a byte at a time", first: post + "Content-Length: 100000\r\n\r\n", again: "a", pause: slowly, status: 408, reason: RequestTimeout, late: true},
		{id: "L4", name: "chunks of a byte, one at a time", first: chunks, again: "1\r\na\r\n", pause: slowly, status: 408, reason: RequestTimeout, late: true},
		{id: "L4", name: "a chunk extension, a byte at a time", first: chunks + "1;", again: "a", pause: slowly, status: 408, reason: RequestTimeout, late: true},
		{id: "L4", name: "a trailer, a byte at a time", first: chunks + "0\r\nX: ", again: "a", pause: slowly, status: 408, reason: RequestTimeout, late: true},
		{id: "L4", name: "a body that was promised", first: post + "Expect: 100-continue\r\nContent-Length: 10\r\n\r\n", up: func(t *testing.T) *upstream { return record(t).upstream }, status: 408, reason: RequestTimeout, late: true},
		{id: "L4", name: "ten megabytes, unread", first: get + "\r\n", up: long10MB, read: unread, reason: ClientClosed, late: true},
		{id: "L4", name: "ten megabytes, a byte at a time", first: get + "\r\n", up: long10MB, read: sipping, reason: ClientClosed, late: true},
		{id: "L4", name: "requests without end, answers unread", again: "GET /" + a(8000) + " HTTP/1.1\r\nHost: a\r\n\r\n", read: unread, reason: ClientClosed, late: true},

		{id: "L4", name: "a body that the instance does not read", first: post + "Content-Length: 1000000000\r\n\r\n", again: a(64 << 10), up: deaf, status: 504, reason: UpstreamTimeout, late: true},
		{id: "L4", name: "chunks that the instance does not read", first: chunks, again: "8000\r\n" + a(32<<10) + "\r\n", up: deaf, status: 504, reason: UpstreamTimeout, late: true},

		{id: "L8", name: "103 without end", first: get + "\r\n", up: flooding("", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 0), status: 502, reason: UpstreamInvalid},
		{id: "L8", name: "100 without end", first: get + "\r\n", up: flooding("", "HTTP/1.1 100 Continue\r\n\r\n", 0), status: 502, reason: UpstreamInvalid},
		{id: "L8", name: "103 now and then", first: get + "\r\n", up: flooding("", "HTTP/1.1 103 Early Hints\r\n\r\n", brief/3), status: 504, reason: UpstreamTimeout, late: true},

		{id: "L9", name: "a field of ten megabytes", first: get + "\r\n", up: flooding(ok+"X: "+a(10<<20)+"\r\n\r\n", "", 0), status: 502, reason: UpstreamInvalid},
		{id: "L9", name: "10,000 fields", first: get + "\r\n", up: flooding(ok+strings.Repeat("X: a\r\n", 10_000)+"Content-Length: 0\r\n\r\n", "", 0), status: 502, reason: UpstreamInvalid},
		{id: "L9", name: "fields without end", first: get + "\r\n", up: flooding(ok, strings.Repeat("X: a\r\n", 20), 0), status: 502, reason: UpstreamInvalid},
		{id: "L9", name: "a head, a byte at a time", first: get + "\r\n", up: flooding(ok+"X: ", "a", slowly), status: 504, reason: UpstreamTimeout, late: true},
		{id: "L9", name: "chunk extensions without end", first: get + "\r\n", up: flooding(ok+"Transfer-Encoding: chunked\r\n\r\n1;", "a", 0), cut: true, reason: UpstreamInvalid},
		{id: "L9", name: "small chunks with long extensions", first: get + "\r\n", up: flooding(ok+"Transfer-Encoding: chunked\r\n\r\n", "1;"+a(200)+"\r\nx\r\n", 0), cut: true, reason: UpstreamInvalid},
		{id: "L9", name: "trailers without end", first: get + "\r\n", up: flooding(ok+"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", "X: a\r\n", 0), cut: true, reason: UpstreamInvalid},
	}
}

// Whoever takes too long, or sends too much, gets one answer at most, and the connection is gone.
func TestExhaustion(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel()
		var all sync.WaitGroup // they wait most of the time: more of them at once than there are processors
		room := make(chan struct{}, 12)
		for _, l := range exhaustions() {
			room <- struct{}{}
			all.Go(func() {
				t.Run(l.id+" "+l.name, func(t *testing.T) { l.run(t, engine) })
				<-room
			})
		}
		all.Wait()
	})
}

func (l exhaustion) run(t *testing.T, engine string) {
	timeout := brief
	if !l.late {
		timeout = 2 * soon // it has to do without
	}
	s := l.settings
	s.RequestHead, s.KeepAlive = timeout, brief
	s.Timeouts = route.Timeouts{ResponseHead: timeout, IdleBody: timeout}
	var up *upstream
	if l.up == nil {
		up = echo(t)
	} else {
		up = l.up(t)
	}
	r := startWith(t, engine, s, func(r *rig) { r.firstByte = timeout }, up.address)
	began := time.Now()
	c := r.dial()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for piece := l.first; ; piece = l.again {
			if _, err := io.WriteString(c.Conn, piece); err != nil || l.again == "" {
				return
			}
			time.Sleep(l.pause)
		}
	}()
	defer func() { c.Close(); <-sent }()
	if l.read != nil {
		l.read(c, began.Add(soon/2))
	} else {
		l.answers(t, c)
	}
	// The connection is gone, and not only half of it.
	for open := 1; open > 0; time.Sleep(time.Millisecond) {
		if open, _ = r.engine.Connections(); open > 0 && time.Since(began) > soon {
			t.Fatalf("still open after %v", time.Since(began))
		}
	}
	if took := time.Since(began); took > soon || l.late && took < brief*9/10 {
		t.Errorf("ended after %v", took)
	}
	want := l.served
	if l.reason != "" {
		want++
	}
	if want > 0 {
		records := r.wait(want)
		if last := records[len(records)-1]; last.Reason != l.reason {
			t.Errorf("%d records; the reason is %q, status %d", len(records), last.Reason, last.Status)
		}
	}
	if n := up.connections(); l.alone && n > 0 {
		t.Errorf("%d upstream connections; it saw %.100q", n, up.bytes())
	}
	if l.status == 408 || l.status == 413 {
		if messages, rest, err := strictly(up.bytes()); len(messages) > l.served || err != nil {
			t.Errorf("the upstream saw %+v, %.100q, %v", messages, rest, err)
		}
	}
}

// answers reads the answers to the end of the connection and looks whether they are those that are wanted.
func (l exhaustion) answers(t *testing.T, c *client) {
	for range l.served {
		if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
			t.Errorf("answered %d", resp.StatusCode)
		}
	}
	if l.status == 0 && !l.cut {
		c.closed()
		return
	}
	for interim := 0; ; interim++ {
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatalf("reading the answer: %v", err)
		}
		if resp.StatusCode < 200 {
			if interim == maxInterim {
				t.Fatalf("interim answer %d", interim)
			}
			continue
		}
		_, err = io.Copy(io.Discard, resp.Body)
		switch {
		case l.cut && resp.StatusCode == 200 && err != nil:
		case l.cut && resp.StatusCode == 502 && err == nil:
		case l.cut || err != nil || resp.StatusCode != l.status:
			t.Errorf("answered %d, %v", resp.StatusCode, err)
		}
		break
	}
	if rest, _ := io.ReadAll(c.r); len(rest) > 0 && !l.cut {
		t.Errorf("after the answer came %.100q", rest)
	}
}

// A length that is merely declared takes no memory (L2).
func TestDeclaredLengths(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) { io.Copy(io.Discard, r) })
		r := start(t, engine, Settings{}, up.address)
		const n = 50
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range n {
			declared := "Content-Length: 999999999\r\n\r\na"
			if i%2 == 1 {
				declared = "Transfer-Encoding: chunked\r\n\r\n3b9ac9ff\r\na"
			}
			r.dial().send("POST / HTTP/1.1\r\nHost: a\r\n" + declared)
		}
		for deadline := time.Now().Add(5 * time.Second); up.connections() < n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d upstream connections", up.connections())
			}
		}
		runtime.ReadMemStats(&after)
		each := (after.TotalAlloc - before.TotalAlloc) / n
		t.Logf("%d bytes allocated for each, test and upstream included", each)
		if each > 200<<10 {
			t.Errorf("%d bytes allocated for each", each)
		}
	})
}

// Whatever clients and instances make up, there are so many series and no more (L11): methods and statuses are folded, and
// a host, path or service that is not known is none. Statuses that are none are refused. Each request has a method, a host, a
// path and fields of its own; all series there can be are there after the first tenth of them.
func TestSeries(t *testing.T) {
	n, clients, batch := 100_000, 4, 50
	if raceEnabled || testing.Short() {
		n = 20_000
	}
	const statuses = 400 // of an answer: 200 to 599
	eachEngine(t, func(t *testing.T, engine string) {
		var next atomic.Int64
		up := newSilent(t, func(c net.Conn, r *bufio.Reader) {
			for {
				for line := []byte(nil); string(line) != "\r\n"; {
					var err error
					if line, err = r.ReadSlice('\n'); err != nil {
						return
					}
				}
				i := next.Add(1)
				status := 200 + i%statuses
				if i%(5*statuses+1) == 0 {
					status += statuses // which is none, and costs the connection
				}
				if _, err := fmt.Fprintf(c, "HTTP/1.1 %03d x\r\nContent-Length: 0\r\n\r\n", status); err != nil {
					return
				}
			}
		})
		r := startWith(t, engine, Settings{}, func(r *rig) { r.routes = []route.Route{{Name: "one", Path: "/one", Service: "s"}} }, up)
		count := func(s *pool.Service) (series int, total uint64) {
			s.EachCount(func(c pool.Count) {
				if !slices.Contains(pool.Methods[:], c.Method) || c.Status < 200 || c.Status > 599 {
					t.Errorf("a series for %s %d", c.Method, c.Status)
				}
				series++
				total += c.N
			})
			return series, total
		}
		// ask sends requests from, from+1, … and reads the answers, a batch at a time.
		ask := func(c *client, from, to int) error {
			var all bytes.Buffer
			for ; from < to; from += batch {
				all.Reset()
				for i := from; i < from+batch; i++ {
					path := "/one"
					if i%2 == 1 {
						path = fmt.Sprintf("/%d", i)
					}
					fmt.Fprintf(&all, "M%d %s?%d HTTP/1.1\r\nHost: service-%d.localhost\r\nUser-Agent: u%d\r\nX-Request-Id: r%d\r\n\r\n", i, path, i, i, i, i)
				}
				if _, err := c.Conn.Write(all.Bytes()); err != nil {
					return err
				}
				for range batch {
					resp, err := http.ReadResponse(c.r, nil)
					if err != nil {
						return err
					}
					if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.Close {
						return fmt.Errorf("close %v, %v", resp.Close, err)
					}
				}
			}
			return nil
		}
		var sent uint64
		run := func(requests int) {
			var all sync.WaitGroup
			for k := range clients {
				c := r.dial()
				c.SetDeadline(time.Now().Add(6 * patience))
				from := int(sent) + k*requests/clients
				all.Go(func() {
					if err := ask(c, from, from+requests/clients); err != nil {
						t.Errorf("from %d on: %v", from, err)
					}
					c.Close()
				})
			}
			all.Wait()
			sent += uint64(requests)
			r.eventually("all are counted", func() bool {
				_, a := count(r.service)
				_, b := count(r.proxy.Unrouted())
				return a+b == sent || t.Failed()
			})
			r.mu.Lock()
			r.records = nil
			r.mu.Unlock()
		}
		run(n / 10)
		first, _ := count(r.service)
		for sent < uint64(n) && !t.Failed() {
			run(n / 10)
		}
		known, a := count(r.service)
		unknown, b := count(r.proxy.Unrouted())
		t.Logf("%d requests: %d series of the service, %d after a tenth of them, %d of none", a+b, known, first, unknown)
		if a != sent/2 || b != sent/2 || known != first || known > statuses || unknown != 1 {
			t.Errorf("%d requests in %d series, %d of them after a tenth, %d in %d", a, known, first, b, unknown)
		}
	})
}

// Heads that make a careless reader look at everything for each of many things cost little more than plain ones of the
// same length (L12).
func TestLinear(t *testing.T) {
	const line = "GET / HTTP/1.1\r\nHost: a\r\n"
	fill := func(s string, n int) string { return strings.Repeat(s, n/len(s)) }
	field := func(name, value string) string { return line + name + ": " + value + "\r\n\r\n" }
	target := func(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n" }
	tokens := line + "Connection: " + fill("abcdefg, ", 32<<10) + "x\r\n"
	for i := range http1.MaxFields - 3 {
		tokens += fmt.Sprintf("abcde%02d: %s\r\n", i, strings.Repeat("v", 200))
	}
	commas := line + "Connection: a" + fill(",", 55<<10) + "\r\n" + strings.Repeat("X: y\r\n", http1.MaxFields-3)
	attacks := map[string]string{
		"dots down":              target("/" + fill("a/", 8000) + fill("../", 8000)),
		"dots there and back":    target(fill("/a/..", 16_000)),
		"encoded dots":           target(fill("/a/%2e%2e", 16_000)),
		"single dots":            target(fill("/.", 16_000) + "/"),
		"slashes":                target("/a" + fill("/", 16_000)),
		"percent":                target("/" + fill("%41", 16_000)),
		"parameters":             target("/?" + fill("a&", 16_000)),
		"1,000 ranges":           field("Range", "bytes="+fill("0-0,", 4000)+"1-1"),
		"cookies":                field("Cookie", fill("a=b; ", 60<<10)+"c=d"),
		"100 cookies":            line + strings.Repeat("Cookie: "+fill("a=b; ", 600)+"c=d\r\n", 98) + "\r\n",
		"connection":             field("Connection", fill("a,", 60<<10)+"b"),
		"connection, with names": tokens + "\r\n",
		"connection, commas":     commas + "\r\n",
		"forwarded":              field("X-Forwarded-For", fill("1.1.1.1, ", 60<<10)+"1.1.1.1"),
		"forwarded, empty":       field("X-Forwarded-For", fill(",", 60<<10)+"1.1.1.1"),
		"via":                    field("Via", fill("1.1 a, ", 60<<10)+"1.1 b"),
		"te":                     field("TE", fill("gzip, ", 60<<10)+"trailers"),
		"upgrade":                line + "Connection: Upgrade\r\nUpgrade: " + fill("h2c, ", 60<<10) + "x\r\n\r\n",
		"accept":                 field("Accept", fill("a/b;q=0.1,", 60<<10)+"*/*"),
		"white space":            field("X", fill(" ", 60<<10)+"a"+fill("\t", 1000)),
		"colons":                 field("X", fill(":", 60<<10)),
	}
	eachEngine(t, func(t *testing.T, engine string) {
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) { // the head is not looked at, that is not what is measured
			last := ""
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == "\r\n" && last != "" {
					if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); err != nil {
						return
					}
				}
				last = line
			}
		})
		trusting := Settings{Trusted: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}
		r := start(t, engine, trusting, up.address)
		// best is how long the proxy takes at best.
		best := func(request string) (d time.Duration, status int) {
			d = time.Hour
			for range 15 {
				c := r.dial()
				began := time.Now()
				c.send(request)
				resp, _ := c.answer("GET")
				d, status = min(d, time.Since(began)), resp.StatusCode
				c.Close()
			}
			return d, status
		}
		best(field("X", "warm"))
		for name, request := range attacks {
			plain, _ := best(field("X", strings.Repeat("a", min(len(request), 63<<10)-len(line)-10)))
			took, status := best(request)
			t.Logf("%-24s %6d bytes: %8v, plain %8v: %.1f (answered %d)", name, len(request), took, plain, float64(took)/float64(plain), status)
			if took > 10*plain && took > 5*time.Millisecond {
				t.Errorf("%s takes %v, a plain head %v", name, took, plain)
			}
		}
	})
}
