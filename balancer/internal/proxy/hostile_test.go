package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
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
	add("R03 more than said, apart", ok+"Content-Length: 8\r\n\r\n|12345678secret", "", wantAnswer{body: "12345678"})
	add("R03 more than said, later", ok+"Content-Length: 8\r\n\r\n12345678|"+evil, "", wantAnswer{body: "12345678"})
	add("R03 more than none", ok+none+evil, "", wantAnswer{})
	add("R03 long, and more", ok+"Content-Length: 100000\r\n\r\n|"+strings.Repeat("x", 100_000)+evil, "", wantAnswer{body: strings.Repeat("x", 100_000)})

	for _, then := range []string{"fin", "rst"} {
		cut := wantAnswer{cut: true, closed: true, reason: UpstreamClosed}
		nothing := wantAnswer{status: 502, reason: UpstreamClosed}
		add("R04 length, "+then, ok+"Content-Length: 100\r\n\r\n"+strings.Repeat("y", 27), then, cut)
		add("R04 length apart, "+then, ok+"Content-Length: 100\r\n\r\n|"+strings.Repeat("y", 27), then, cut)
		add("R04 length, nothing, "+then, ok+"Content-Length: 100\r\n\r\n|", then, cut)
		add("R04 long length, "+then, ok+"Content-Length: 1000000\r\n\r\n|"+strings.Repeat("y", 200_000), then, cut)
		add("R04 in a chunk, "+then, chunked+"64\r\n"+strings.Repeat("y", 27), then, cut)
		add("R04 between chunks, "+then, chunked+"5\r\nhello\r\n|", then, cut)
		add("R04 in a size, "+then, chunked+"5\r\nhello\r\n|1", then, cut)
		add("R04 behind the last size, "+then, chunked+"5\r\nhello\r\n0|", then, cut)
		add("R04 behind the last chunk, "+then, chunked+"5\r\nhello\r\n|0\r\n", then, cut)
		add("R04 in a trailer, "+then, chunked+"5\r\nhello\r\n|0\r\nX: y\r\n", then, cut)
		add("R04 in the head, "+then, ok+"X: sec", then, nothing)
		add("R04 in the status line, "+then, "HTTP/1.1 200", then, nothing)
		add("R04 in the head behind an interim one, "+then, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nX: sec", then, nothing)
		asked("R04 length to 1.0, "+then, get10, ok+"Content-Length: 100\r\n\r\n|"+strings.Repeat("y", 27), then, cut)
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
				for n := range 4 { // of which some are on each loop
					v := r.dial()
					v.t = t
					v.asks(fmt.Sprintf("/victim/%d", n))
				}
				if n := up.after.Load(); n != 0 && !want.pooled {
					t.Errorf("%d requests came over the connection after the answer", n)
				}
			})
		}
		t.Logf("%d answers", len(table))
	})
}
