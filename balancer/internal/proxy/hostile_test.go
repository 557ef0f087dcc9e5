package proxy

import (
	"bufio"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// These are the faults and attacks of upstreams (R in the catalogue). Whatever an upstream does, its client is not told a
// part for the whole, and no other client gets anything of it.

// hostile is what an upstream answers to one request.
type hostile struct {
	id     string
	send   string // the request; empty is GET /hostile
	answer string // a "|" stands where it waits until the client has what came before
	then   string // "": it goes on; "fin" and "rst": it ends the connection
	want   wantAnswer
}

// wantAnswer is what is seen of it.
type wantAnswer struct {
	status int
	body   string
	reason Reason
	header map[string]string
	cut    bool // the client is not told that it has everything
	closed bool // the client's connection ends with the answer
	// pooled says that the upstream connection serves again. Else nothing more reaches the upstream over it.
	pooled bool
}

// own is what each client's own answer is made of.
func own(target string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nX-Own: %s\r\nContent-Length: %d\r\n\r\nown %s", target, len("own "+target), target)
}

// asks sends a request and expects its own answer, to the byte.
func (c *client) asks(target string) {
	c.t.Helper()
	c.SetDeadline(time.Now().Add(patience)) // of this answer, however many came before it
	c.send("GET " + target + " HTTP/1.1\r\nHost: v\r\n\r\n")
	want := own(target)
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
		c.t.Errorf("%s was answered\n%.300q, %v, want\n%q", target, got[:n], err, want)
	}
	if n := c.r.Buffered(); n > 0 {
		rest, _ := c.r.Peek(n)
		c.t.Errorf("behind the answer to %s came %.300q", target, rest)
	}
}

// script is an upstream that answers every request with its own answer, but /hostile as it is told.
type script struct {
	*upstream
	seen    chan struct{} // the client has what there was of the answer so far
	written chan struct{} // all of the answer is with the kernel
	after   atomic.Int32  // requests that came over a connection after a hostile answer
	all     sync.Map      // targets that were asked for
}

func newScript(t *testing.T, answer, then string) *script {
	s := &script{seen: make(chan struct{}), written: make(chan struct{}, 1)}
	stop := make(chan struct{})
	s.upstream = newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for bad := false; ; {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			s.all.Store(req.RequestURI, true)
			if bad {
				s.after.Add(1)
			}
			if req.RequestURI != "/hostile" {
				if _, err := io.WriteString(c, own(req.RequestURI)); err != nil {
					return
				}
				continue
			}
			bad = true
			for i, piece := range strings.Split(answer, "|") {
				if i > 0 {
					select {
					case <-s.seen:
					case <-stop:
						return
					}
				}
				if _, err := io.WriteString(c, piece); err != nil && piece != "" {
					break
				}
			}
			if then == "rst" {
				c.(*net.TCPConn).SetLinger(0)
			}
			if then != "" {
				c.Close()
			}
			s.written <- struct{}{}
		}
	})
	t.Cleanup(func() { close(stop) })
	return s
}

func TestHostileAnswers(t *testing.T) {
	const ok, chunked = "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	const none = "Content-Length: 0\r\n\r\n"
	const get10 = "GET /hostile HTTP/1.0\r\nHost: a\r\n\r\n"
	const head = "HEAD /hostile HTTP/1.1\r\nHost: a\r\n\r\n"
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret"
	var table []hostile
	invalid := func(id, answer string) {
		table = append(table, hostile{id: id, answer: answer, want: wantAnswer{status: 502, reason: UpstreamInvalid}})
	}
	add := func(id, answer, then string, want wantAnswer) {
		if want.status == 0 {
			want.status = 200
		}
		table = append(table, hostile{id: id, answer: answer, then: then, want: want})
	}
	asked := func(id, send, answer, then string, want wantAnswer) {
		add(id, answer, then, want)
		table[len(table)-1].send = send
	}

	invalid("R01 CL and TE", ok+"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n")
	invalid("R01 TE and CL", ok+"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\nsecret")
	invalid("R01 two CL", ok+"Content-Length: 6\r\nContent-Length: 7\r\n\r\nsecret!")
	invalid("R01 the same CL twice", ok+"Content-Length: 6\r\nContent-Length: 6\r\n\r\nsecret")
	for _, v := range []string{"foo", "", "+6", "-1", "6,6", "6, 7", "0x6", "6 6", "1_0", "99999999999999999999"} {
		invalid("R01 CL "+v, ok+"Content-Length: "+v+"\r\n\r\nsecret")
	}
	for _, v := range []string{"foo", "", "identity", "chunked, chunked", "gzip, chunked", "chunked, gzip", "\"chunked\"", "chunked;q=1", "xchunked", "chunked\x0b"} {
		invalid("R01 TE "+v, ok+"Transfer-Encoding: "+v+"\r\n\r\n6\r\nsecret\r\n0\r\n\r\n")
	}
	invalid("R01 two TE", ok+"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	invalid("R01 TE in 1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n")
	add("R01 twin of CL", ok+"Content_Length: 100\r\nContent-Length: 2\r\n\r\nok", "", wantAnswer{body: "ok", pooled: true, header: map[string]string{"Content_length": ""}})

	for name, answer := range map[string]string{
		"LF":                   "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"one LF":               ok + "X: a\nContent-Length: 0\r\n\r\n",
		"LF at the end":        ok + "Content-Length: 0\r\n\n",
		"NUL":                  ok + "X: a\x00secret\r\n" + none,
		"NUL in a name":        ok + "X\x00: secret\r\n" + none,
		"CR":                   ok + "X: a\rsecret\r\n" + none,
		"CR in the reason":     "HTTP/1.1 200 O\rK\r\n" + none,
		"space before colon":   ok + "X : secret\r\n" + none,
		"space before a name":  ok + " X: secret\r\n" + none,
		"no colon":             ok + "secret\r\n" + none,
		"no name":              ok + ": secret\r\n" + none,
		"fold":                 ok + "X: a\r\n secret\r\n" + none,
		"fold with tab":        ok + "X: a\r\n\tsecret\r\n" + none,
		"Connection":           ok + "Connection: \x01\r\n" + none,
		"status 99":            "HTTP/1.1 99 OK\r\n" + none,
		"status 099":           "HTTP/1.1 099 OK\r\n" + none,
		"status 600":           "HTTP/1.1 600 OK\r\n" + none,
		"status 1000":          "HTTP/1.1 1000 OK\r\n" + none,
		"status abc":           "HTTP/1.1 abc OK\r\n" + none,
		"status +20":           "HTTP/1.1 +20 OK\r\n" + none,
		"no status":            "HTTP/1.1\r\n" + none,
		"two spaces":           "HTTP/1.1  200 OK\r\n" + none,
		"no space":             "HTTP/1.1 200OK\r\n" + none,
		"tab":                  "HTTP/1.1\t200\tOK\r\n" + none,
		"HTTP/3.0":             "HTTP/3.0 200 OK\r\n" + none,
		"HTTP/2":               "HTTP/2 200\r\n" + none,
		"HTTP/1.2":             "HTTP/1.2 200 OK\r\n" + none,
		"HTTP/1.10":            "HTTP/1.10 200 OK\r\n" + none,
		"http/1.1":             "http/1.1 200 OK\r\n" + none,
		"ICY":                  "ICY 200 OK\r\n" + none,
		"empty line first":     "\r\n" + ok + none,
		"no status line":       "a secret page\r\n\r\n",
		"a field first":        "Content-Length: 0\r\n\r\n",
		"garbage of 16 KB":     strings.Repeat("secret garbage \x01\xff", 1000),
		"garbage with lines":   strings.Repeat("secret garbage\r\n", 10_000),
		"endless head":         ok + strings.Repeat("X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 4000),
		"endless line":         ok + "X-A: " + strings.Repeat("a", 200_000),
		"many fields":          ok + strings.Repeat("X: y\r\n", 1000) + none,
		"101 unasked":          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nsecret",
		"endless interim":      strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 1000),
		"interim with a body":  "HTTP/1.1 103 Early Hints\r\nContent-Length: 6\r\n\r\nsecret" + ok + none,
		"interim, then LF":     "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\n\n",
		"only interim, chunks": "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + ok + none,
	} {
		then := ""
		if name == "garbage of 16 KB" {
			then = "fin" // without an end of line there is only the end of the stream
		}
		table = append(table, hostile{id: "R02 " + name, answer: answer, then: then, want: wantAnswer{status: 502, reason: UpstreamInvalid}})
		if then != "" {
			table[len(table)-1].want.reason = UpstreamClosed
		}
	}

	add("R03 more than said", ok+"Content-Length: 8\r\n\r\n12345678secret", "", wantAnswer{body: "12345678"})
	add("R03 more than said, an answer", ok+"Content-Length: 8\r\n\r\n12345678"+evil, "", wantAnswer{body: "12345678"})
	add("R03 more than said, apart", ok+"Content-Length: 8\r\n\r\n1|2345678secret", "", wantAnswer{body: "12345678"})
	add("R03 more than said, later", ok+"Content-Length: 8\r\n\r\n12345678|"+evil, "", wantAnswer{body: "12345678"})
	add("R03 more than none", ok+none+evil, "", wantAnswer{})
	add("R03 long, and more", ok+"Content-Length: 100000\r\n\r\nx|"+strings.Repeat("x", 99_999)+evil, "", wantAnswer{body: strings.Repeat("x", 100_000)})

	for _, then := range []string{"fin", "rst"} {
		cut := wantAnswer{cut: true, closed: true, reason: UpstreamClosed}
		nothing := wantAnswer{status: 502, reason: UpstreamClosed}
		add("R04 length, "+then, ok+"Content-Length: 100\r\n\r\n"+strings.Repeat("y", 27), then, cut)
		add("R04 length apart, "+then, ok+"Content-Length: 100\r\n\r\ny|"+strings.Repeat("y", 27), then, cut)
		add("R04 length, nothing, "+then, ok+"Content-Length: 100\r\n\r\n", then, nothing)
		add("R04 long length, "+then, ok+"Content-Length: 1000000\r\n\r\ny|"+strings.Repeat("y", 200_000), then, cut)
		add("R04 in a chunk, "+then, chunked+"64\r\n"+strings.Repeat("y", 27), then, cut)
		add("R04 between chunks, "+then, chunked+"5\r\nhello\r\n|", then, cut)
		add("R04 in a size, "+then, chunked+"5\r\nhello\r\n|1", then, cut)
		add("R04 behind the last size, "+then, chunked+"5\r\nhello\r\n0|", then, cut)
		add("R04 behind the last chunk, "+then, chunked+"5\r\nhello\r\n|0\r\n", then, cut)
		add("R04 in a trailer, "+then, chunked+"5\r\nhello\r\n|0\r\nX: y\r\n", then, cut)
		add("R04 in the head, "+then, ok+"X: sec", then, nothing)
		add("R04 in the status line, "+then, "HTTP/1.1 200", then, nothing)
		add("R04 in the head behind an interim one, "+then, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nX: sec", then, nothing)
		asked("R04 length to 1.0, "+then, get10, ok+"Content-Length: 100\r\n\r\ny|"+strings.Repeat("y", 27), then, cut)
		asked("R04 chunks to 1.0, "+then, get10, chunked+"5\r\nhello\r\n|", then, cut)
	}
	add("R04 until close, rst", ok+"\r\nhello|", "rst", wantAnswer{cut: true, closed: true, reason: UpstreamClosed})
	asked("R04 until close to 1.0, rst", get10, ok+"\r\nhello|", "rst", wantAnswer{cut: true, closed: true, reason: UpstreamClosed})
	add("R04 until close, fin", ok+"\r\nhello|", "fin", wantAnswer{body: "hello"})
	bad := wantAnswer{cut: true, closed: true, reason: UpstreamInvalid}
	for name, rest := range map[string]string{
		"chunk LF": "5\nworld\r\n0\r\n\r\n", "chunk size": "zz\r\nsecret\r\n0\r\n\r\n", "data too long": "5\r\nsecret\r\n0\r\n\r\n", "negative": "-1\r\n\r\n", "huge": "FFFFFFFFFFFFFFFFF\r\nsecret",
		"extension": "5;a\x00\r\nworld\r\n0\r\n\r\n", "extensions": strings.Repeat("1;"+strings.Repeat("e", 200)+"\r\nx\r\n", 2000) + "0\r\n\r\n", "end LF": "0\r\n\n", "trailer": "0\r\nsecret\r\n\r\n",
	} {
		add("R04 bad "+name, chunked+"5\r\nhello\r\n|"+rest, "", bad)
		if len(rest) < 1000 {
			invalid("R04 bad at once "+name, chunked+"5\r\nhello\r\n"+rest)
		}
	}

	add("R05 204 with a body", "HTTP/1.1 204 No Content\r\n\r\nsecret", "", wantAnswer{status: 204})
	add("R05 204 with CL and a body", "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\nsecret", "", wantAnswer{status: 204, header: map[string]string{"Content-Length": ""}})
	add("R05 204 with CL", "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\n", "", wantAnswer{status: 204, pooled: true, header: map[string]string{"Content-Length": ""}})
	add("R05 204 with TE", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", wantAnswer{status: 204, header: map[string]string{"Transfer-Encoding": ""}})
	add("R05 204 with a late body", "HTTP/1.1 204 No Content\r\n\r\n|"+evil, "", wantAnswer{status: 204})
	add("R05 304 with a body", "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\nsecret", "", wantAnswer{status: 304})
	add("R05 304 with chunks", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n", "", wantAnswer{status: 304})
	add("R05 304 with CL", "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n", "", wantAnswer{status: 304, pooled: true})
	asked("R05 HEAD with a body", head, evil, "", wantAnswer{header: map[string]string{"Content-Length": "6"}})
	asked("R05 HEAD with a late body", head, ok+"Content-Length: 6\r\n\r\n|secret", "", wantAnswer{header: map[string]string{"Content-Length": "6"}})
	asked("R05 HEAD with chunks", head, chunked+"6\r\nsecret\r\n0\r\n\r\n", "", wantAnswer{})
	asked("R05 HEAD", head, ok+"Content-Length: 6\r\n\r\n", "", wantAnswer{pooled: true, header: map[string]string{"Content-Length": "6"}})
	asked("R05 chunks to 1.0", get10, chunked+"5\r\nhello\r\n|0\r\nX: y\r\n\r\n", "", wantAnswer{body: "hello", pooled: true, closed: true, header: map[string]string{"Transfer-Encoding": ""}})
	asked("R05 until close to 1.0", get10, ok+"\r\nhello|", "fin", wantAnswer{body: "hello", closed: true})

	add("R06 more behind the last chunk", chunked+"5\r\nhello\r\n0\r\n\r\n"+evil, "", wantAnswer{body: "hello"})
	add("R06 more behind the last chunk, apart", chunked+"5\r\nhello\r\n|0\r\n\r\n"+evil, "", wantAnswer{body: "hello"})
	add("R06 more behind the last chunk, later", chunked+"5\r\nhello\r\n0\r\n\r\n|"+evil, "", wantAnswer{body: "hello"})
	add("R06 line ends behind the answer", ok+none+"\r\n", "", wantAnswer{})
	add("R06 interim one behind the answer", ok+none+"|HTTP/1.1 103 Early Hints\r\n\r\n", "", wantAnswer{})
	add("R06 end behind the answer", ok+none+"|", "fin", wantAnswer{})
	add("R06 reset behind the answer", ok+none+"|", "rst", wantAnswer{})

	for field, value := range map[string]string{
		"Location": "/a%0d%0aSet-Cookie:%20x=y%0d%0a%0d%0asecret?%0D%0A", "Set-Cookie": "a=%0D%0AX-Evil:%201; Path=/\u560d\u560a", "X-Odd": "a\tb \"c\xff\xfe; d=%00",
	} {
		add("R09 "+field, ok+field+": "+value+"\r\nContent-Length: 2\r\n\r\nok", "", wantAnswer{body: "ok", pooled: true, header: map[string]string{field: value, "X-Evil": ""}})
	}
	invalid("R09 LF in Location", ok+"Location: /a\nSet-Cookie: x=y\r\n"+none)
	invalid("R09 CR in Set-Cookie", ok+"Set-Cookie: a\rX-Evil: 1\r\n"+none)
	add("R09 two cookies", ok+"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\nok", "", wantAnswer{body: "ok", pooled: true, header: map[string]string{"Set-Cookie": "a=1"}})

	eachEngine(t, func(t *testing.T, engine string) {
		for _, h := range table {
			t.Run(h.id, func(t *testing.T) {
				t.Parallel()
				up := newScript(t, h.answer, h.then)
				r := start(t, engine, Settings{}, up.address)
				c := r.dial()
				c.t = t
				c.asks("/warm") // so that the answer comes over a connection that was kept
				send := h.send
				if send == "" {
					send = "GET /hostile HTTP/1.1\r\nHost: a\r\n\r\n"
				}
				c.send(send)
				method, _, _ := strings.Cut(send, " ")
				resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
				for err == nil && resp.StatusCode < 200 {
					resp, err = http.ReadResponse(c.r, &http.Request{Method: method})
				}
				var body []byte
				if err == nil {
					for range strings.Count(h.answer, "|") {
						up.seen <- struct{}{}
					}
					<-up.written
					body, err = io.ReadAll(resp.Body)
				}
				want := h.want
				switch {
				case resp == nil:
					if !want.cut {
						t.Fatalf("no answer: %v", err)
					}
				case resp.StatusCode != want.status || resp.Close != want.closed && !want.cut || resp.Header.Get("X-Rota-Reason") != "" && resp.Header.Get("X-Rota-Reason") != string(want.reason):
					t.Errorf("answered %d, close %v, %v", resp.StatusCode, resp.Close, resp.Header)
				case strings.Contains(string(body)+fmt.Sprint(resp.Header["X"], resp.Header["X "], resp.Status), "secret"):
					t.Errorf("it reached the client: %v %q", resp.Header, body)
				}
				if (err != nil) != want.cut || !want.cut && want.status != 502 && string(body) != want.body {
					t.Errorf("%d bytes of body were read, %v: %.300q", len(body), err, body)
				}
				for name, value := range want.header {
					if got := resp.Header.Get(name); got != value {
						t.Errorf("%s is %q, want %q", name, got, value)
					}
				}
				if rec := r.wait(2)[1]; rec.Reason != want.reason {
					t.Errorf("reason %q, want %q", rec.Reason, want.reason)
				}
				if !want.cut && !want.closed {
					c.asks("/next")
					if n := up.after.Load(); n != 0 != want.pooled {
						t.Errorf("%d requests came over the connection after the answer", n)
					}
				} else if rest, err := io.ReadAll(c.r); err != nil && !errors.Is(err, syscall.ECONNRESET) || strings.Contains(string(rest), "secret") {
					t.Errorf("at the end came %.300q, %v", rest, err)
				}
				for n := range victims { // of which some are on each loop
					v := r.dial()
					v.t = t
					v.asks(fmt.Sprintf("/victim/%d", n))
					v.Close()
				}
				if n := up.after.Load(); n != 0 && !want.pooled {
					t.Errorf("%d requests came over the connection after the answer", n)
				}
			})
		}
		t.Logf("%d answers", len(table))
	})
}

// An answer that nobody has asked for, on a connection that is kept, goes to no one.
func TestPoisonedConnections(t *testing.T) {
	t.Parallel()
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret"
	for _, p := range []struct {
		id     string
		secure bool
		apart  bool // the second answer comes when the client has the first
		rounds int
	}{
		{"R06 second answer in one piece", false, false, 1000},
		{"R06 second answer later", false, true, 1000},
		{"R06 second answer in one piece, TLS", true, false, 50},
		{"R06 second answer later, TLS", true, true, 50},
	} {
		t.Run(p.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				t.Parallel()
				have, written := make(chan struct{}), make(chan struct{})
				stop := make(chan struct{})
				serve := func(c net.Conn, r *bufio.Reader) {
					for {
						req, err := http.ReadRequest(r)
						if err != nil {
							return
						}
						answer := own(req.RequestURI)
						if !p.apart {
							answer += evil
						}
						if _, err := io.WriteString(c, answer); err != nil {
							return
						}
						if !p.apart {
							continue
						}
						select {
						case <-have:
						case <-stop:
							return
						}
						io.WriteString(c, evil)
						written <- struct{}{}
					}
				}
				var up *upstream
				settings := &pool.Settings{}
				if p.secure {
					cert, roots := certificate(t, time.Now().Add(time.Hour), "s")
					settings.Secure, settings.TLS = true, &tls.Config{RootCAs: roots, ServerName: "s"}
					up = newUpstream(t, func(c net.Conn, r *bufio.Reader) {
						secure := tls.Server(&buffered{c, r}, &tls.Config{Certificates: []tls.Certificate{cert}})
						serve(secure, bufio.NewReader(secure))
					})
				} else {
					up = newUpstream(t, serve)
				}
				t.Cleanup(func() { close(stop) })
				r := startWith(t, engine, Settings{}, func(r *rig) { r.upstreams = settings }, up.address)
				clients := []*client{r.dial(), r.dial(), r.dial(), r.dial()}
				for i := range p.rounds {
					c := clients[i/2%len(clients)] // twice in turn: the second one finds what the first one left
					c.asks("/" + strconv.Itoa(i))
					if p.apart {
						have <- struct{}{}
						<-written
					}
					if t.Failed() {
						t.Fatalf("in round %d", i)
					}
				}
			})
		})
	}
}

// An answer that comes while the client is sending 100 MB reaches it whole, the upload stops, nobody else notices, and the
// memory does not grow by it.
func TestAnswersDuringUploads(t *testing.T) {
	const piece = 16 << 10
	const size = 100_000_000 / piece * piece
	for _, u := range []struct {
		id, framing string
		status      string
		after       int64 // bytes of the body that the instance has when it answers
		reads       bool  // it goes on reading
		then        string
		want        int
	}{
		{"R07 413 and the end", "length", "413 Content Too Large\r\nConnection: close", 0, false, "fin", 413},
		{"R07 413 and a reset", "length", "413 Content Too Large", 0, false, "rst", 413},
		{"R07 200 and the end", "length", "200 OK\r\nConnection: close", 0, false, "fin", 200},
		{"R07 413, chunks", "chunked", "413 Content Too Large\r\nConnection: close", 0, false, "fin", 413},
		{"R07 413, reads on", "length", "413 Content Too Large", 0, true, "", 413},
		{"R07 200, reads on", "length", "200 OK", 0, true, "", 200},
		{"R07 200, reads on, chunks", "chunked", "200 OK", 0, true, "", 200},
		{"R07 401, reads no more", "length", "401 Unauthorized", 0, false, "", 401},
		{"R07 413 and the end, late", "length", "413 Content Too Large\r\nConnection: close", size / 2, false, "fin", 413},
		{"R07 413 and the end, late, chunks", "chunked", "413 Content Too Large\r\nConnection: close", size / 2, false, "fin", 413},
		{"R07 413 and a reset, late", "length", "413 Content Too Large", size / 2, false, "rst", 413},
		{"R07 200 and the end, late", "length", "200 OK\r\nConnection: close", size / 2, false, "fin", 200},
		{"R07 200, reads on, late", "length", "200 OK", size / 2, true, "", 200},
		{"R07 200, reads on, late, chunks", "chunked", "200 OK", size / 2, true, "", 200},
		{"R07 413, reads no more, late", "length", "413 Content Too Large", size / 2, false, "", 413},
	} {
		t.Run(u.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				var whole atomic.Int32
				stop := make(chan struct{})
				up := newSilent(t, func(c net.Conn, r *bufio.Reader) {
					for {
						head := readHead(r)
						if head == "" {
							return
						}
						if !strings.HasPrefix(head, "POST ") {
							io.WriteString(c, own(strings.Fields(head)[1]))
							continue
						}
						if n, err := io.CopyN(io.Discard, r, u.after); err != nil {
							t.Errorf("the instance got %d bytes, then %v", n, err)
							return
						}
						io.WriteString(c, "HTTP/1.1 "+u.status+"\r\nContent-Length: 5\r\n\r\nearly")
						switch {
						case u.reads:
							n, _ := io.Copy(io.Discard, r)
							if u.after+n >= size {
								whole.Add(1)
							}
							return
						case u.then == "rst":
							c.(*net.TCPConn).SetLinger(0)
							return
						case u.then == "fin":
							return
						}
						<-stop
						return
					}
				})
				t.Cleanup(func() { close(stop) })
				r := start(t, engine, Settings{}, up)
				c := r.dial()
				c.asks("/warm")
				c.SetDeadline(time.Now().Add(6 * patience))
				runtime.GC()
				var before, now runtime.MemStats
				runtime.ReadMemStats(&before)
				framing := "Content-Length: " + strconv.Itoa(size)
				if u.framing == "chunked" {
					framing = "Transfer-Encoding: chunked"
				}
				c.send("POST /upload HTTP/1.1\r\nHost: a\r\n" + framing + "\r\n\r\n")
				answered := make(chan struct{})
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					some, last := strings.Repeat("z", piece), "z"
					if u.framing == "chunked" {
						some, last = fmt.Sprintf("%x\r\n%s\r\n", len(some), some), "0\r\n\r\n"
					}
					for n := 0; n < size; n += piece {
						if n == size-piece { // not the last piece: the answer is an early one, however fast all goes
							<-answered
							some = some[1:] + last
						}
						if _, err := io.WriteString(c.Conn, some); err != nil {
							return
						}
					}
				}()
				resp, body := c.answer("POST")
				close(answered)
				if resp.StatusCode != u.want || body != "early" || !resp.Close {
					t.Errorf("answered %d %q, close %v", resp.StatusCode, body, resp.Close)
				}
				for n := range victims {
					v := r.dial()
					v.asks(fmt.Sprintf("/victim/%d", n))
					v.Close()
				}
				c.Close()
				<-sent
				runtime.ReadMemStats(&now)
				if grown := int64(now.Sys - before.Sys); grown > 16<<20 { // what was had from the system at the peak
					t.Errorf("%d KiB of memory for %d MiB", grown>>10, size>>20)
				}
				if whole.Load() > 0 {
					t.Error("the upload went on to its end")
				}
				for _, rec := range r.wait(2 + victims) {
					if string(rec.Path) == "/upload" && (rec.Status != u.want || rec.Reason != "" || rec.BytesIn >= size || rec.BytesIn < u.after) {
						t.Errorf("record: %d %q, %d bytes in", rec.Status, rec.Reason, rec.BytesIn)
					}
				}
			})
		})
	}
}

// A final answer to who waits for 100 leaves nobody in doubt of where the next request begins.
func TestExpectations(t *testing.T) {
	const rounds = 170 // a thousand in all, on each engine
	for _, e := range []struct {
		id, status string
		body       string // what the client sends after the answer all the same; empty is nothing
		want       int
	}{
		{"R08 200, no body", "200 OK", "", 200},
		{"R08 417, no body", "417 Expectation Failed", "", 417},
		{"R08 200, body", "200 OK", smuggled, 200},
		{"R08 417, body", "417 Expectation Failed", smuggled, 417},
		{"R08 417 and close, body", "417 Expectation Failed\r\nConnection: close", smuggled, 417},
		{"R08 401 behind an interim answer, body", "103 Early Hints\r\n\r\nHTTP/1.1 401 Unauthorized", smuggled, 401},
	} {
		t.Run(e.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				var hidden atomic.Int32
				up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
					for { // who has not said 100 takes what follows the head for a request
						head := readHead(r)
						if head == "" {
							return
						}
						target := strings.Fields(head)[1]
						switch {
						case target == marker:
							hidden.Add(1)
						case strings.Contains(head, "Expect: 100-continue"):
							io.WriteString(c, "HTTP/1.1 "+e.status+"\r\nContent-Length: 4\r\n\r\nsoon")
							continue
						}
						if _, err := io.WriteString(c, own(target)); err != nil {
							return
						}
					}
				})
				r := start(t, engine, Settings{}, up.address)
				v := r.dial()
				var took []time.Duration
				for i := range rounds {
					c := r.dial()
					c.asks("/warm")
					began := time.Now()
					c.send(fmt.Sprintf("POST /expect HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(smuggled)))
					if resp, body := c.final("POST"); resp.StatusCode != e.want || body != "soon" || !resp.Close {
						t.Fatalf("round %d: answered %d %q, close %v", i, resp.StatusCode, body, resp.Close)
					}
					took = append(took, time.Since(began))
					io.WriteString(c.Conn, e.body)
					v.asks(fmt.Sprintf("/victim/%d", i))
					c.Conn.(*net.TCPConn).CloseWrite()
					c.closed()
					c.Close()
					if t.Failed() {
						t.Fatalf("in round %d", i)
					}
				}
				if slices.Sort(took); took[rounds/2] > netloop.Tick/2 {
					t.Errorf("half of the answers took more than %v: they waited for the upload to be stopped", took[rounds/2])
				}
				if n := hidden.Load(); n > 0 {
					t.Errorf("%d bodies were taken for requests", n)
				}
			})
		})
	}
}

// Trailers of an answer are passed on as they are, or the client is not told that it has everything.
func TestHostileTrailers(t *testing.T) {
	const start11 = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
	type want struct {
		status int
		client string // the bytes behind the head; empty with a status of 200 is a cut
	}
	long := strings.Repeat("X-T: "+strings.Repeat("t", 1000)+"\r\n", 1000)
	for _, u := range []struct {
		id, request, head, data string
		want                    want
	}{
		{"R11 not declared", "1.1", "", "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", want{200, "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"}},
		{"R11 declared", "1.1", "Trailer: X-Sum\r\n", "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", want{200, "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"}},
		{"R11 gRPC", "1.1", "Trailer: grpc-status, grpc-message\r\n", "0\r\ngrpc-status: 13\r\ngrpc-message: a%0D%0Ab%20%E2%82%AC%25\r\n\r\n",
			want{200, "0\r\ngrpc-status: 13\r\ngrpc-message: a%0D%0Ab%20%E2%82%AC%25\r\n\r\n"}},
		{"R11 framing", "1.1", "", "5\r\nhello\r\n0\r\nContent-Length: 500\r\nTransfer-Encoding: gzip\r\nConnection: close\r\n\r\n",
			want{200, "5\r\nhello\r\n0\r\n\r\n"}},
		{"R11 framing among others", "1.1", "", "5\r\nhello\r\n0\r\nX-A-Long-Name-That-Is-None-Of-Them: 1\r\nCONTENT-length: 500\r\nX-Sum: 1\r\nHost: a\r\n\r\n",
			want{200, "5\r\nhello\r\n0\r\nX-A-Long-Name-That-Is-None-Of-Them: 1\r\nX-Sum: 1\r\n\r\n"}},
		{"R11 framing in pieces", "1.1", "", "5\r\nhello\r\n0\r\nX-S|um: 1\r\nConte|nt-Length: 5|00\r\nTransfer|-Encodings: 1\r\n\r\n",
			want{200, "5\r\nhello\r\n0\r\nX-Sum: 1\r\nTransfer-Encodings: 1\r\n\r\n"}},
		{"R11 to 1.0", "1.0", "", "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", want{200, "hello"}},
		{"R11 1 MB", "1.1", "", "5\r\nhello\r\n|0\r\n" + long + "\r\n", want{200, ""}},
		{"R11 1 MB in one", "1.1", "", "5\r\nhello\r\n|0\r\nX-T: " + strings.Repeat("t", 1<<20) + "\r\n\r\n", want{200, ""}},
		{"R11 1 MB to 1.0", "1.0", "", "5\r\nhello\r\n|0\r\n" + long + "\r\n", want{200, ""}},
		{"R11 LF", "1.1", "", "5\r\nhello\r\n|0\r\nX: y\n\r\n", want{200, ""}},
		{"R11 NUL", "1.1", "", "5\r\nhello\r\n|0\r\nX: \x00\r\n\r\n", want{200, ""}},
		{"R11 CR", "1.1", "", "5\r\nhello\r\n|0\r\nX: a\rb\r\n\r\n", want{200, ""}},
		{"R11 fold", "1.1", "", "5\r\nhello\r\n|0\r\nX: a\r\n b\r\n\r\n", want{200, ""}},
		{"R11 no colon", "1.1", "", "5\r\nhello\r\n|0\r\nsecret\r\n\r\n", want{200, ""}},
		{"R11 space before colon", "1.1", "", "5\r\nhello\r\n|0\r\nX : y\r\n\r\n", want{200, ""}},
		{"R11 an answer", "1.1", "", "5\r\nhello\r\n|0\r\nHTTP/1.1 200 OK\r\n\r\n", want{200, ""}},
		{"R11 LF at once", "1.1", "", "5\r\nhello\r\n0\r\nX: y\n\r\n", want{502, ""}},
		{"R11 1 MB at once", "1.1", "", "0\r\n" + long + "\r\n", want{502, ""}},
	} {
		t.Run(u.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				up := newScript(t, start11+u.head+"\r\n"+u.data, "")
				r := start(t, engine, Settings{}, up.address)
				c := r.dial()
				c.asks("/warm")
				c.send("GET /hostile HTTP/" + u.request + "\r\nHost: a\r\n\r\n")
				head := readHead(c.r)
				if !strings.HasPrefix(head, "HTTP/1.1 "+strconv.Itoa(u.want.status)) || u.head != "" && !strings.Contains(head, u.head) {
					t.Fatalf("answered %q", head)
				}
				for range strings.Count(u.data, "|") {
					up.seen <- struct{}{}
				}
				<-up.written
				switch {
				case u.want.client != "":
					got := make([]byte, len(u.want.client))
					if _, err := io.ReadFull(c.r, got); err != nil || string(got) != u.want.client {
						t.Errorf("the client got %q, %v", got, err)
					}
					if u.request == "1.0" {
						c.closed()
					} else {
						c.asks("/next")
						if up.after.Load() != 1 {
							t.Error("the connection was not used again")
						}
					}
				case u.want.status == 200:
					rest, err := io.ReadAll(c.r)
					if err != nil && !errors.Is(err, syscall.ECONNRESET) || err == nil && u.request == "1.0" || strings.HasSuffix(string(rest), "\r\n\r\n") || strings.Contains(string(rest), "secret") {
						t.Errorf("the client got %d bytes that end in %q, %v", len(rest), rest[max(0, len(rest)-40):], err)
					}
				}
				for n := range 4 {
					r.dial().asks(fmt.Sprintf("/victim/%d", n))
				}
				if up.after.Load() != 0 && u.want.client == "" {
					t.Errorf("%d requests came over the connection after the answer", up.after.Load())
				}
			})
		})
	}
}

// certificate makes a certificate for names, which is its own authority.
func certificate(t *testing.T, until time.Time, names ...string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotBefore: until.Add(-24 * time.Hour), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(crand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, roots
}

// buffered is a connection of which a reader holds some already.
type buffered struct {
	net.Conn
	r io.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// An instance that cannot prove who it is, or does not shake hands, gets nothing of the request, and takes no longer than
// connecting may take. Another one is asked instead.
func TestHostileTLS(t *testing.T) {
	const connect = 150 * time.Millisecond
	type want struct {
		status int
		reason Reason
		cut    bool
	}
	good, roots := certificate(t, time.Now().Add(time.Hour), "s")
	wrong, wrongRoots := certificate(t, time.Now().Add(time.Hour), "other")
	expired, expiredRoots := certificate(t, time.Now().Add(-time.Minute), "s")
	early, earlyRoots := certificate(t, time.Now().Add(48*time.Hour), "s")
	stranger, _ := certificate(t, time.Now().Add(time.Hour), "s")
	failed := want{502, TLSFailed, false}
	serve := func(cert tls.Certificate, most uint16, answer string, end bool) func(c net.Conn, r *bufio.Reader) {
		return func(c net.Conn, r *bufio.Reader) {
			secure := tls.Server(&buffered{c, r}, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10, MaxVersion: most})
			req, err := http.ReadRequest(bufio.NewReader(secure))
			if err != nil {
				return
			}
			io.WriteString(secure, cmp.Or(answer, own(req.RequestURI)))
			if end {
				secure.CloseWrite()
			}
		}
	}
	untilClose := "HTTP/1.1 200 OK\r\n\r\npart"
	for _, u := range []struct {
		id    string
		serve func(c net.Conn, r *bufio.Reader)
		roots *x509.CertPool
		want  want
	}{
		{"R12 good", serve(good, 0, "", true), roots, want{200, "", false}},
		{"R12 wrong name", serve(wrong, 0, "", true), wrongRoots, failed},
		{"R12 expired", serve(expired, 0, "", true), expiredRoots, failed},
		{"R12 not valid yet", serve(early, 0, "", true), earlyRoots, failed},
		{"R12 unknown authority", serve(stranger, 0, "", true), roots, failed},
		{"R12 old version", serve(good, tls.VersionTLS11, "", true), roots, failed},
		{"R12 stalls at once", func(c net.Conn, r *bufio.Reader) { io.Copy(io.Discard, r) }, roots, failed},
		{"R12 stalls in a record", func(c net.Conn, r *bufio.Reader) {
			io.WriteString(c, "\x16\x03\x03\x02\x00\x02")
			io.Copy(io.Discard, r)
		}, roots, failed},
		{"R12 plain HTTP", func(c net.Conn, r *bufio.Reader) { io.WriteString(c, own("/secret")); io.Copy(io.Discard, r) }, roots, failed},
		{"R12 ends at once", func(c net.Conn, r *bufio.Reader) {}, roots, failed},
		{"R12 resets", func(c net.Conn, r *bufio.Reader) { r.Peek(1); c.(*net.TCPConn).SetLinger(0) }, roots, failed},
		{"R12 alert", func(c net.Conn, r *bufio.Reader) {
			io.WriteString(c, "\x15\x03\x03\x00\x02\x02\x28")
			io.Copy(io.Discard, r)
		}, roots, failed},
		{"R04 until close, TLS says so", serve(good, 0, untilClose, true), roots, want{200, "", false}},
		{"R04 until close, TLS does not", serve(good, 0, untilClose, false), roots, want{200, UpstreamClosed, true}},
		{"R04 length, TLS says the end", serve(good, 0, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart", true), roots, want{200, UpstreamClosed, true}},
	} {
		t.Run(u.id, func(t *testing.T) {
			t.Parallel()
			eachEngine(t, func(t *testing.T, engine string) {
				t.Parallel()
				up := newUpstream(t, u.serve)
				other := newUpstream(t, serve(good, 0, "", true))
				both := u.roots.Clone()
				both.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.Certificate[0]}))
				r := startWith(t, engine, Settings{Timeouts: route.Timeouts{Connect: connect}}, func(r *rig) {
					r.upstreams = &pool.Settings{Secure: true, TLS: &tls.Config{RootCAs: both, ServerName: "s"}}
				}, up.address)
				c := r.dial()
				began := time.Now()
				c.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
				resp, err := http.ReadResponse(c.r, nil)
				if err != nil {
					t.Fatal(err)
				}
				took := time.Since(began)
				body, err := io.ReadAll(resp.Body)
				if resp.StatusCode != u.want.status || (err != nil) != u.want.cut || strings.Contains(string(body), "secret") {
					t.Errorf("answered %d %q, %v", resp.StatusCode, body, err)
				}
				if took > connect+700*time.Millisecond {
					t.Errorf("it took %v", took)
				}
				if rec := r.wait(1)[0]; rec.Reason != u.want.reason {
					t.Errorf("reason %q, want %q", rec.Reason, u.want.reason)
				}
				if strings.Contains(up.bytes(), "GET ") {
					t.Error("the request was sent in the clear")
				}
				if u.want.status != 502 {
					return
				}
				r.publish(up.address, other.address)
				for range 2 { // of which one meets the bad one first
					r.dial().asks("/other")
				}
			})
		})
	}
}

// An instance that closes idle connections at just the moment when requests are sent: none is done twice, whatever its
// method, and a POST fails only where the instance may have got it.
func TestClosingWhileSending(t *testing.T) {
	t.Parallel()
	const clients, each = 4, 125
	for _, u := range []struct {
		id    string
		looks bool // the instance serves what comes before it closes; else it closes without looking, which resets that
	}{
		{"closes when nothing has come for a while", true},
		{"closes after one request", false},
	} {
		t.Run(u.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				t.Parallel()
				var mu sync.Mutex
				touched, done := map[string]bool{}, map[string]int{}
				up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
					for {
						head := readHead(r)
						if head == "" {
							return
						}
						id := strings.TrimPrefix(strings.Fields(head)[1], "/")
						mu.Lock()
						touched[id] = true
						mu.Unlock()
						c.SetReadDeadline(time.Time{})
						body := make([]byte, len(id))
						if _, err := io.ReadFull(r, body); err != nil || string(body) != id {
							t.Errorf("the body of %s is %q, %v", id, body, err)
							return
						}
						mu.Lock()
						done[id]++
						mu.Unlock()
						if _, err := io.WriteString(c, own("/"+id)); err != nil {
							return
						}
						pause := time.Duration(rand.IntN(300)) * time.Microsecond
						if !u.looks {
							time.Sleep(pause)
							return
						}
						c.SetReadDeadline(time.Now().Add(pause))
					}
				})
				r := start(t, engine, Settings{}, up.address)
				var served, failed, unread atomic.Int32
				var all sync.WaitGroup
				for n := range clients {
					c := r.dial()
					all.Go(func() {
						for i := range each {
							id := fmt.Sprintf("%d-%d", n, i)
							if _, err := fmt.Fprintf(c.Conn, "POST /%s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", id, len(id), id); err != nil {
								t.Errorf("%s: %v", id, err)
								return
							}
							resp, err := http.ReadResponse(c.r, nil)
							if err != nil {
								t.Errorf("%s: %v", id, err)
								return
							}
							body, err := io.ReadAll(resp.Body)
							mu.Lock()
							times, seen := done[id], touched[id]
							mu.Unlock()
							switch {
							case err != nil || resp.Close:
								t.Errorf("%s: close %v, %v", id, resp.Close, err)
								return
							case resp.StatusCode == 200 && string(body) == "own /"+id && times == 1:
								served.Add(1)
							case resp.StatusCode == 502 && resp.Header.Get("X-Rota-Reason") == string(UpstreamClosed) && times <= 1:
								failed.Add(1)
								if !seen {
									unread.Add(1)
								}
							default:
								t.Errorf("%s: answered %d %q, done %d times", id, resp.StatusCode, body, times)
							}
						}
					})
				}
				all.Wait()
				again, most := 0, 0
				for _, rec := range r.wait(clients * each) {
					if rec.Attempts > 1 {
						again++
					}
					most = max(most, rec.Attempts)
				}
				mu.Lock()
				defer mu.Unlock()
				for id, times := range done {
					if times != 1 {
						t.Errorf("%s was done %d times", id, times)
					}
				}
				if len(done) < int(served.Load()) || again+int(failed.Load()) == 0 {
					t.Errorf("%d served, %d done, none of them met a closing connection", served.Load(), len(done))
				}
				t.Logf("%d POSTs: %d served, %d of them sent again (%d attempts at most), %d failed, of which the instance had read nothing of %d",
					clients*each, served.Load(), again, most, failed.Load(), unread.Load())
			})
		})
	}
}

// An instance that closes its idle connections just when the next request comes, as gunicorn does after two seconds of its own: a GET
// that meets that is sent again, and no client sees any of it.
func TestIdleRace(t *testing.T) {
	t.Parallel()
	const clients, each = 8, 400
	eachEngine(t, func(t *testing.T, engine string) {
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			for {
				head := readHead(r)
				if head == "" {
					return
				}
				if _, err := io.WriteString(c, own(strings.Fields(head)[1])); err != nil {
					return
				}
				c.SetReadDeadline(time.Now().Add(time.Duration(rand.IntN(300)) * time.Microsecond))
			}
		})
		r := start(t, engine, Settings{}, up.address)
		var all sync.WaitGroup
		for n := range clients {
			c := r.dial()
			all.Go(func() {
				for i := range each {
					id := fmt.Sprintf("/%d-%d", n, i)
					fmt.Fprintf(c.Conn, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", id)
					resp, err := http.ReadResponse(c.r, nil)
					if err != nil {
						t.Errorf("%s: %v", id, err)
						return
					}
					body, err := io.ReadAll(resp.Body)
					if resp.StatusCode != 200 || string(body) != "own "+id || err != nil {
						t.Errorf("%s: answered %d %q %v", id, resp.StatusCode, body, err)
					}
				}
			})
		}
		all.Wait()
		met := 0
		for _, rec := range r.wait(clients * each) {
			if rec.Attempts > 1 {
				met++
			}
		}
		if t.Logf("%d of %d met a closing connection", met, clients*each); met == 0 {
			t.Error("none met a closing connection")
		}
	})
}

// A kept connection that ends just before the request is sent. What it shows when it is looked at is heeded; where it ends after that, the
// chunkedHi is "hi" as a chunked body.
const chunkedHi = "2\r\nhi\r\n0\r\n\r\n"

// proof that nobody has got the request is what decides. Loops look, and then let others go first.
func TestUnsent(t *testing.T) {
	t.Parallel()
	const rounds = 8
	type want struct {
		status int
		done   int // how often the instance gets the whole request
		again  int // attempts where it ends after the look
	}
	for _, u := range []struct {
		id   string
		ends func(c *net.TCPConn, r *bufio.Reader) // before the request is sent
		gets func(c *net.TCPConn, r *bufio.Reader) // on the same connection, after; nil when there is none any more
		want want
	}{
		{"closed in order", func(c *net.TCPConn, r *bufio.Reader) { c.Close() }, nil, want{200, 1, 2}},
		{"reset", func(c *net.TCPConn, r *bufio.Reader) { c.SetLinger(0); c.Close() }, nil, want{200, 1, 2}},
		{"half-closed, reads on", func(c *net.TCPConn, r *bufio.Reader) { c.CloseWrite() }, func(c *net.TCPConn, r *bufio.Reader) { c.Close() }, want{502, 1, 1}},
		{"closed when it was read", func(c *net.TCPConn, r *bufio.Reader) {}, func(c *net.TCPConn, r *bufio.Reader) { c.Close() }, want{502, 1, 1}},
		{"reset when it was read", func(c *net.TCPConn, r *bufio.Reader) {}, func(c *net.TCPConn, r *bufio.Reader) { c.SetLinger(0); c.Close() }, want{502, 1, 1}},
	} {
		// start makes a proxy. end has its instance end the connection of "/first", got says how often it was asked for a target.
		start := func(t *testing.T, engine string, done func(rec *Record, end func())) (r *rig, end func(), got func(target string) int) {
			answered, ended, stop := make(chan struct{}), make(chan struct{}), make(chan struct{})
			var mu sync.Mutex
			times := map[string]int{}
			up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
				for {
					head := readHead(r)
					if head == "" {
						return
					}
					target := strings.Fields(head)[1]
					body := len("hi")
					if strings.Contains(head, "chunked") {
						body = len(chunkedHi)
					}
					if _, err := r.Discard(body); err != nil {
						return
					}
					mu.Lock()
					times[target]++
					again := times[target] > 1
					mu.Unlock()
					if u.gets != nil && strings.HasPrefix(target, "/second") && !again {
						u.gets(c.(*net.TCPConn), r)
						return
					}
					if _, err := io.WriteString(c, own(target)); err != nil {
						return
					}
					if strings.HasPrefix(target, "/first") {
						select {
						case <-answered:
						case <-stop:
							return
						}
						u.ends(c.(*net.TCPConn), r)
						ended <- struct{}{}
					}
				}
			})
			t.Cleanup(func() { close(stop) })
			end = func() { answered <- struct{}{}; <-ended }
			got = func(target string) int {
				mu.Lock()
				defer mu.Unlock()
				return times[target]
			}
			return startWith(t, engine, Settings{}, func(r *rig) {
				r.done, r.loops = func(rec *Record) { done(rec, end) }, 1
			}, up.address), end, got
		}
		post := func(target string, i int) string {
			return fmt.Sprintf("POST /%s/%d HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", target, i)
		}
		answered := func(t *testing.T, c *client, i int) {
			t.Helper()
			resp, body := c.answer("POST")
			if resp.StatusCode != u.want.status || resp.StatusCode == 200 && body != fmt.Sprintf("own /second/%d", i) {
				t.Fatalf("round %d: answered with %d %q", i, resp.StatusCode, body)
			}
		}
		t.Run(u.id+" before the look", func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				t.Parallel()
				r, _, got := start(t, engine, func(rec *Record, end func()) { // the answer to the first is relayed; the second is held already
					if strings.HasPrefix(string(rec.Path), "/first") {
						end()
					}
				})
				for i := range rounds {
					c := r.dial()
					c.send(post("first", i) + post("second", i))
					if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != fmt.Sprintf("own /first/%d", i) {
						t.Fatalf("round %d: the first was answered with %d %q", i, resp.StatusCode, body)
					}
					answered(t, c, i)
					rec := r.wait(2*i + 2)[2*i+1]
					if n := got(fmt.Sprintf("/second/%d", i)); n != u.want.done || rec.Attempts != 1 {
						t.Fatalf("round %d: done %d times after %d attempts", i, n, rec.Attempts)
					}
					c.Close()
				}
			})
		})
		for _, streamed := range []bool{false, true} {
			name, request := u.id+" after the look", post
			if streamed { // the end of the body comes later
				name, request = name+", streamed", func(target string, i int) string {
					return fmt.Sprintf("POST /%s/%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%s", target, i, chunkedHi[:4])
				}
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				held, proceed := make(chan struct{}), make(chan struct{})
				r, end, got := start(t, netloop.Loops, func(rec *Record, _ func()) { // a request nobody understands is answered at once
					if rec.Status == 400 {
						held <- struct{}{}
						<-proceed
					}
				})
				for i := range rounds {
					c, second, first := r.dial(), r.dial(), r.dial() // and accepted in this order
					c.send(post("first", i))
					c.answer("POST")
					first.send("nonsense\r\n\r\n")
					<-held
					// One round finds these two: the one waits for the other before it sends, and has looked by then.
					c.send(request("second", i))
					second.send("nonsense\r\n\r\n")
					proceed <- struct{}{}
					<-held
					end()
					proceed <- struct{}{}
					if streamed {
						c.send(chunkedHi[4:])
					}
					answered(t, c, i)
					rec := r.wait(4*i + 4)[4*i+3]
					if n := got(fmt.Sprintf("/second/%d", i)); n != u.want.done || rec.Attempts != u.want.again {
						t.Fatalf("round %d: done %d times after %d attempts, %s", i, n, rec.Attempts, rec.Path)
					}
					for _, c := range []*client{c, first, second} {
						c.Close()
					}
				}
			})
		}
	}
}
