package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/route"
)

// attack is one request that two servers could read differently. The ids are those of the catalogue: S framing, HO host, P
// path.
type attack struct {
	id, bytes string
	// refused are the statuses that may answer it; nothing of it reaches an upstream, and the connection is closed.
	refused []int
	// inBody says that the fault is in the body: the upstream may see a part of it, but never a whole message.
	inBody bool
	// seen is what the upstream must see of a request that is accepted, without the fields we set.
	seen string
	host string // that the upstream is told
	// last says that the connection is closed after the answer.
	last bool
}

// marker is in the target of every request that hides in another one, or stands behind a request that is refused. It
// must never be in a request line that an upstream sees.
const marker = "/smuggled"

const smuggled = "GET " + marker + " HTTP/1.1\r\nHost: a\r\n\r\n"

// attacks is the catalogue.
func attacks() []attack {
	const (
		h    = "Host: a\r\n"
		get  = "GET / HTTP/1.1\r\nHost: a\r\n"
		post = "POST / HTTP/1.1\r\nHost: a\r\n"
		te   = "Transfer-Encoding: chunked\r\n"
		end  = "0\r\n\r\n"
	)
	var all []attack
	refuse := func(id, bytes string, status ...int) {
		all = append(all, attack{id: id, bytes: bytes, refused: status})
	}
	body := func(id, bytes string) {
		all = append(all, attack{id: id, bytes: post + te + "\r\n" + bytes, refused: []int{400}, inBody: true})
	}
	accept := func(id, bytes, seen string) {
		all = append(all, attack{id: id, bytes: bytes, seen: seen, host: "a"})
	}
	target := func(t string) string { return "GET " + t + " HTTP/1.1\r\n" + h + "\r\n" }

	refuse("S01 CL.TE", post+"Content-Length: 6\r\n"+te+"\r\n0\r\n\r\nX", 400)
	refuse("S01 CL.TE with a request", post+"Content-Length: "+strconv.Itoa(len(end+smuggled))+"\r\n"+te+"\r\n"+end+smuggled, 400)
	refuse("S01 CL 0", post+"Content-Length: 0\r\n"+te+"\r\n"+end, 400)
	refuse("S02 TE.CL", post+te+"Content-Length: 4\r\n\r\n5c\r\nGPOST "+marker+" HTTP/1.1\r\nContent-Length: 15\r\n\r\nx=1\r\n0\r\n\r\n", 400)
	refuse("S03 chunked, identity", post+te+"Transfer-Encoding: identity\r\n\r\n"+end, 400)
	refuse("S03 twice", post+te+te+"\r\n"+end, 400)
	refuse("S03 cow, chunked", post+"Transfer-Encoding: cow\r\n"+te+"\r\n"+end, 400)
	for value, status := range map[string]int{
		"chunked, chunked": 400, "gzip, chunked": 400, "chunked, gzip": 400, ", chunked": 400, "chunked,": 400, "\"chunked\"": 400, "chunked;x=1": 400, "": 400,
		"identity": 501, "xchunked": 501, "gzip": 501,
	} {
		refuse("S04 "+value, post+"Transfer-Encoding: "+value+"\r\n\r\n"+end, status)
		refuse("S04 with CL "+value, post+"Content-Length: 5\r\nTransfer-Encoding: "+value+"\r\n\r\n"+end, 400)
	}
	for b := 1; b < 256; b++ {
		if b >= ' ' && b < 0x7f || b == '\t' || b == '\n' {
			continue
		}
		one := string([]byte{byte(b)})
		for _, c := range []string{one, one + one} {
			for place, line := range map[string]string{
				"before the value": "Transfer-Encoding:" + c + "chunked", "before the colon": "Transfer-Encoding" + c + ": chunked",
				"before the name": c + "Transfer-Encoding: chunked", "behind the value": "Transfer-Encoding: chunked" + c,
			} {
				refuse(fmt.Sprintf("S05 %x %s", c, place), post+line+"\r\n\r\n"+end, 400)
			}
		}
	}
	accept("S05 white space", "POST / HTTP/1.1\r\nHost:\ta \t\r\nTransfer-Encoding:\t chunked \t\r\n\r\n"+end, post+te+"|"+end)
	refuse("S06 TE in 1.0", "POST / HTTP/1.0\r\n"+h+"Connection: keep-alive\r\n"+te+"\r\n"+end, 400)
	refuse("S07 folded TE", post+"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\nhello", 400)
	refuse("S07 fold", get+"X: a\r\n b\r\n\r\n", 400)
	refuse("S07 fold with tab", get+"X: a\r\n\tb\r\n\r\n", 400)
	refuse("S08 Content-Length", post+"Content-Length : 5\r\n\r\nhello", 400)
	refuse("S08 Host", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400)
	accept("S09 twin of TE", post+"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello", post+"Content-Length: 5\r\n|hello")
	accept("S09 twin of CL", post+"Content_Length: 5\r\n\r\n", post+"|")
	for _, value := range []string{
		"5, 5", "5, 10", "+5", "-1", "-0", "0x5", "0o5", "1_0", "5 5", "5e0", "", "٥", "18446744073709551621", "99999999999999999999",
	} {
		refuse("S10 "+value, post+"Content-Length: "+value+"\r\n\r\nhello", 400)
	}
	refuse("S11 two", post+"Content-Length: 5\r\nContent-Length: 10\r\n\r\nhello", 400)
	refuse("S11 the same twice", post+"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400)
	accept("S11 zeros", post+"Content-Length: 005\r\n\r\nhello", post+"Content-Length: 5\r\n|hello")
	for _, size := range []string{
		"0x5", "+5", "-1", " 5", "5 ", "1_0", "5\t", "", "FFFFFFFFFFFFFFFF", "FFFFFFFFFFFFFFFFF", "00000000000000000005",
	} {
		body("S12 "+size, size+"\r\nhello\r\n0\r\n\r\n")
	}
	accept("S12 capitals and zeros", post+te+"\r\n00A\r\n0123456789\r\n000\r\n\r\n", post+te+"|a\r\n0123456789\r\n0\r\n\r\n")
	body("S13 LF", "5\nhello\r\n0\r\n\r\n")
	body("S13 CR", "5\rhello\r\n0\r\n\r\n")
	body("S13 LF behind the data", "5\r\nhello\n0\r\n\r\n")
	body("S13 nothing behind the data", "5\r\nhello0\r\n\r\n")
	body("S13 LF at the end", "5\r\nhello\r\n0\r\n\n")
	body("S13 LF behind the last", "5\r\nhello\r\n0\n\r\n")
	body("S14 LF", "5;\nhello\r\n0\r\n\r\n")
	body("S14 NUL", "5;\x00a\r\nhello\r\n0\r\n\r\n")
	body("S14 quoted request", "5;a=\"\r\nGET "+marker+" HTTP/1.1\r\nHost: a\r\n\r\n\"\r\nhello\r\n0\r\n\r\n")
	body("S14 long", "5;"+strings.Repeat("a", 5000)+"\r\nhello\r\n0\r\n\r\n")
	body("S14 many", strings.Repeat("1;"+strings.Repeat("e", 200)+"\r\nx\r\n", 2000)+"0\r\n\r\n")
	accept("S14 empty", post+te+"\r\n5;\r\nhello\r\n0;\r\n\r\n", post+te+"|5\r\nhello\r\n0\r\n\r\n")
	accept("S14 odd name", post+te+"\r\n5;bad[=x\r\nhello\r\n0\r\n\r\n", post+te+"|5\r\nhello\r\n0\r\n\r\n")
	body("S15 spill", "5\r\nhello!!\r\n0\r\n\r\n")
	body("S15 short", "7\r\nhello\r\n0\r\n\r\n")
	body("S16 no field", "5\r\nhello\r\n0\r\nGET "+marker+" HTTP/1.1\r\n\r\n")
	body("S16 fold", "5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n")
	for _, trailer := range []string{"Content-Length: 50", "Transfer-Encoding: chunked", "Host: evil", "Authorization: x", "X-Forwarded-For: 1"} {
		accept("S16 "+trailer, post+"Trailer: x\r\n"+te+"\r\n5\r\nhello\r\n0\r\n"+trailer+"\r\n\r\n", post+te+"|5\r\nhello\r\n0\r\n\r\n")
	}
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "DELETE"} {
		line := method + " / HTTP/1.1\r\n" + h + "Content-Length: " + strconv.Itoa(len(smuggled)) + "\r\n"
		accept("S17 CL.0 "+method, line+"\r\n"+smuggled, line+"|"+smuggled)
	}
	accept("S17 CL.0 POST", post+"Content-Length: "+strconv.Itoa(len(smuggled))+"\r\n\r\n"+smuggled, post+"Content-Length: "+strconv.Itoa(len(smuggled))+"\r\n|"+smuggled)
	accept("S17 expect", post+"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", post+"Content-Length: 5\r\nExpect: 100-continue\r\n|hello")
	accept("S17 expect, no body", get+"Expect: 100-continue\r\n\r\n", get+"|")
	refuse("S17 expect y", post+"Content-Length: 5\r\nExpect: y 100-continue\r\n\r\nhello", 417)
	refuse("S17 expect nothing", post+"Content-Length: 5\r\nExpect:\r\n\r\nhello", 417)
	refuse("S18 LF", "GET / HTTP/1.1\nHost: a\n\n", 400)
	refuse("S18 one LF", get+"X: y\n\r\n", 400)
	refuse("S18 LF at the end", get+"\n", 400)
	refuse("S18 LF first", "\n"+get+"\r\n", 400)
	refuse("S18 CRLF, LF first", "\r\n\n"+get+"\r\n", 400)
	refuse("S18 two empty lines first", "\r\n\r\n"+get+"\r\n", 400)
	accept("S18 an empty line first", "\r\n"+get+"\r\n", get+"|")
	refuse("S18 CR in a line", "GET / HTTP/1.1\r\r\n"+h+"\r\n", 400)
	refuse("S18 CR in a value", get+"X: a\rTransfer-Encoding: chunked\r\n\r\n", 400)
	refuse("S18 NUL in a value", get+"X: a\x00b\r\n\r\n", 400)
	refuse("S18 NUL in a name", get+"X\x00: a\r\n\r\n", 400)
	refuse("S18 NUL in the target", target("/\x00"), 400)
	refuse("S18 NBSP", get+"\xa0X: a\r\n\r\n", 400)
	refuse("S18 NEL", get+"X\x85: a\r\n\r\n", 400)
	for line, status := range map[string]int{
		"GET  / HTTP/1.1": 400, "GET /  HTTP/1.1": 400, "GET\t/ HTTP/1.1": 400, "GET /\tHTTP/1.1": 400, "GET / HTTP/1.1 x": 400, "GET / HTTP/1.1 ": 400, "GET / http/1.1": 400,
		"GET / HTTP/1": 400, "GET / HTTP/01.1": 400, "GET / HTTP/1.10": 400, "GET / HTTP/1.2": 505, "GET / HTTP/2.0": 505, "GET /": 400, "GET / ": 400, " GET / HTTP/1.1": 400, "/ HTTP/1.1": 400,
	} {
		refuse("S19 "+line, line+"\r\n"+h+"\r\n", status)
	}
	refuse("S19 space before a field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400)
	refuse("S20 CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405)
	refuse("S20 CONNECT with a path", "CONNECT / HTTP/1.1\r\n"+h+"\r\n", 405)
	refuse("S20 TRACE", "TRACE / HTTP/1.1\r\n"+h+"\r\n", 405)
	refuse("S20 long", strings.Repeat("G", 1024)+" / HTTP/1.1\r\n"+h+"\r\n", 400)
	refuse("S20 PRI", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405, 505)
	accept("S20 GPOST", "GPOST / HTTP/1.1\r\n"+h+"\r\n", "GPOST / HTTP/1.1\r\n"+h+"|")

	for _, value := range []string{
		"", "a, b", "a,b", "a b", "a/", "u@a", "a:", "a:1.2", "a:99999", "a:80:80", "a:0", "..a", ".", "a..b", "[::1", "x[::1]", "[::1]x", "[::1%25en0]", "[1.2.3.4]", "\x02", "é", "a\xff",
		strings.Repeat("a", 4096), "!$&'()*;=", "a?b", "a#b", "a\\b", "a%41", "http://a",
	} {
		refuse("HO1 "+value, "GET / HTTP/1.1\r\nHost: "+value+"\r\n\r\n", 400)
	}
	refuse("HO1 two", get+"Host: b\r\n\r\n", 400)
	refuse("HO1 the same twice", get+h+"\r\n", 400)
	refuse("HO1 none", "GET / HTTP/1.1\r\n\r\n", 400)
	refuse("HO2 mismatch", "GET http://evil/ HTTP/1.1\r\nHost: good\r\n\r\n", 400)
	refuse("HO2 mismatch of port", "GET http://a:81/ HTTP/1.1\r\n"+h+"\r\n", 400)
	refuse("HO2 no Host", "GET http://a/ HTTP/1.1\r\n\r\n", 400)
	accept("HO2 match", "GET HTTP://A/x?y HTTP/1.1\r\n"+h+"\r\n", "GET /x?y HTTP/1.1\r\n"+h+"|")
	all = append(all, attack{id: "HO2 1.0", bytes: "GET http://A:81/x HTTP/1.0\r\n\r\n", seen: "GET /x HTTP/1.1\r\nHost: a:81\r\n|", host: "a:81", last: true})

	for _, t := range []string{
		"x:admin/secret", "http:example.com/admin", "http:http://internal/admin", "haproxy.org:80", "admin", "*", "*/test", "//evil/x", "///x", "\\x", "/a\\..\\b", "http:/x", "http:///x",
	} {
		refuse("P1 "+t, target(t), 400)
	}
	for _, t := range []string{"/pub/..%2fadmin", "/pub%2f..%2fadmin", "/pub/..;/admin", "/.;/x", "/%2e%2e;/x", "/a%2f..;x%2fb", "/x/..//evil", "/%00", "/%", "/%f", "/a%zz", "/é", "/\x80", "/#frag", "/?\x80", "/?a#b", "/\x7f"} {
		refuse("P2 "+t, target(t), 400)
	}
	for t, seen := range map[string]string{
		"/pub/../admin": "/admin", "/pub/%2e%2e/admin": "/admin", "/pub/%2E./admin": "/admin", "/pub//admin": "/pub//admin", "/./admin": "/admin", "/../../x": "/x", "/a/..": "/",
		"/pub/%252e%252e/admin": "/pub/%252e%252e/admin", "/%c0%af": "/%c0%af", "/%0d%0aX:1": "/%0d%0aX:1", "/?a=1;b=2": "/?a=1;b=2", "/?%zz": "/?%zz", "/?/../%2e": "/?/../%2e", "/a%2Fb": "/a%2Fb",
		"/?" + strings.Repeat("p&", 8000): "/?" + strings.Repeat("p&", 8000),
	} {
		accept("P2 "+t[:min(len(t), 40)], target(t), "GET "+seen+" HTTP/1.1\r\n"+h+"|")
	}
	accept("P3 case of the path", target("/ADMIN"), "GET /ADMIN HTTP/1.1\r\n"+h+"|")
	accept("P3 encoded letter", target("/%41dmin"), "GET /Admin HTTP/1.1\r\n"+h+"|")
	accept("P3 case of the host", "GET / HTTP/1.1\r\nHost: A\r\n\r\n", get+"|")
	refuse("P4 no slash", target("pkg.Svc/M"), 400)
	return all
}

// recorder is an upstream that answers with what it was asked, as echo does, and keeps apart what each connection got.
type recorder struct {
	*upstream
	mu   sync.Mutex
	logs []*bytes.Buffer
}

func record(t *testing.T) *recorder {
	rec := &recorder{}
	rec.upstream = newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		log := &bytes.Buffer{}
		rec.mu.Lock()
		rec.logs = append(rec.logs, log)
		rec.mu.Unlock()
		r = bufio.NewReader(io.TeeReader(r, writer(func(b []byte) (int, error) {
			rec.mu.Lock()
			defer rec.mu.Unlock()
			return log.Write(b)
		})))
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.Header.Get("Expect") != "" {
				if _, err := io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
					return
				}
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			answer := req.Method + " " + req.RequestURI + " " + string(body)
			head := "HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(answer)) + "\r\n\r\n"
			if req.Method == "HEAD" {
				answer = ""
			}
			if _, err := io.WriteString(c, head+answer); err != nil {
				return
			}
		}
	})
	return rec
}

type writer func(b []byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// messages are what the connections got, read strictly. Whatever is forwarded must pass this.
func (rec *recorder) messages(t *testing.T) (all []message) {
	t.Helper()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for _, log := range rec.logs {
		messages, rest, err := strictly(log.String())
		if err != nil {
			t.Errorf("the upstream saw %.300q after %d messages: %v", rest, len(messages), err)
		}
		if line, _, _ := strings.Cut(rest, "\r\n"); strings.Contains(line, marker) {
			t.Errorf("the upstream saw a smuggled request: %.300q", rest)
		}
		for _, m := range messages {
			if strings.Contains(m.line, marker) {
				t.Errorf("the upstream saw a smuggled request: %+v", m)
			}
		}
		all = append(all, messages...)
	}
	return all
}

// message is a request as an upstream reads it.
type message struct{ line, host, body string }

// strictly takes apart what came over a connection by RFC 9112 alone, sharing no code with the proxy. rest is the last
// message when that is not whole.
func strictly(log string) (messages []message, rest string, _ error) {
	for log != "" {
		head, body, whole := strings.Cut(log, "\r\n\r\n")
		if !whole {
			return messages, log, nil
		}
		lines := strings.Split(head, "\r\n")
		m := message{line: lines[0]}
		if parts := strings.Split(m.line, " "); len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] != "HTTP/1.1" || parts[1][0] != '/' && parts[1] != "*" {
			return messages, log, fmt.Errorf("request line %q", m.line)
		}
		hosts, length, chunked := 0, -1, 0
		for _, line := range lines {
			if strings.ContainsAny(line, "\r\n\x00") {
				return messages, log, fmt.Errorf("a bare CR, LF or NUL in %q", line)
			}
		}
		for _, line := range lines[1:] {
			name, value, found := strings.Cut(line, ": ")
			if !found {
				name, value, found = strings.Cut(line, ":")
			}
			if !found || name == "" || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c >= 0x7f || strings.ContainsRune("()<>@,;:\\\"/[]?={}", c) }) {
				return messages, log, fmt.Errorf("field line %q", line)
			}
			switch strings.ToLower(name) {
			case "host":
				m.host = value
				hosts++
			case "content-length":
				n, err := strconv.Atoi(value)
				if err != nil || length >= 0 || strconv.Itoa(n) != value || n < 0 {
					return messages, log, fmt.Errorf("%q, length %d before", line, length)
				}
				length = n
			case "transfer-encoding":
				if value != "chunked" {
					return messages, log, fmt.Errorf("coding %q", line)
				}
				chunked++
			case "connection", "upgrade", "keep-alive", "proxy-connection", "trailer":
				return messages, log, fmt.Errorf("hop-by-hop field %q", line)
			}
		}
		if hosts != 1 || chunked > 1 || chunked == 1 && length >= 0 {
			return messages, log, fmt.Errorf("%d hosts, length %d, %d codings", hosts, length, chunked)
		}
		switch {
		case chunked == 1:
			for done := false; !done; {
				size, data, found := strings.Cut(body, "\r\n")
				n, err := strconv.ParseUint(size, 16, 60)
				switch {
				case !found:
					return messages, log, nil
				case err != nil || strconv.FormatUint(n, 16) != size:
					return messages, log, fmt.Errorf("chunk size %q", size)
				case uint64(len(data)) < n+2:
					return messages, log, nil
				case data[n:n+2] != "\r\n":
					return messages, log, fmt.Errorf("chunk %q is followed by %q", data[:n], data[n:n+2])
				}
				m.body += data[:n]
				body, done = data[n+2:], n == 0
			}
		case length > len(body):
			return messages, log, nil
		case length > 0:
			m.body, body = body[:length], body[length:]
		}
		messages = append(messages, m)
		log = body
	}
	return messages, "", nil
}

// The oracle knows what it must not let pass, and when a message is not whole.
func TestStrictly(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: a\r\n"
	for log, want := range map[string]struct {
		n    int
		rest bool
		bad  bool
	}{
		head + "\r\n":                                                             {1, false, false},
		head + "\r\n" + head + "\r\n":                                             {2, false, false},
		head + "Content-Length: 2\r\n\r\nab" + head:                               {1, true, false},
		head + "Content-Length: 3\r\n\r\nab":                                      {0, true, false},
		head + "Transfer-Encoding: chunked\r\n\r\n":                               {0, true, false},
		head + "Transfer-Encoding: chunked\r\n\r\n0\r\n":                          {0, true, false},
		head + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n":            {1, false, false},
		head + "Transfer-Encoding: chunked\r\n\r\n01\r\na\r\n0\r\n\r\n":           {0, true, true},
		head + "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n":           {0, true, true},
		head + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": {0, true, true},
		head + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nab":                 {0, true, true},
		head + "Content-Length: 02\r\n\r\nab":                                     {0, true, true},
		head + "Host: a\r\n\r\n":                                                  {0, true, true},
		head + "X: a\rb\r\n\r\n":                                                  {0, true, true},
		head + "X: a\r\n b: c\r\n\r\n":                                            {0, true, true},
		"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n":                               {0, true, true},
		"GET / HTTP/1.1 \r\nHost: a\r\n\r\n":                                      {0, true, true},
	} {
		if messages, rest, err := strictly(log); len(messages) != want.n || (rest != "") != want.rest || (err != nil) != want.bad {
			t.Errorf("%q: %d messages, rest %q, %v", log, len(messages), rest, err)
		}
	}
}

// attempt reads the answer to an attack, skipping interim ones.
func (c *client) final(method string) (*http.Response, string) {
	c.t.Helper()
	for {
		resp, body := c.answer(method)
		if resp.StatusCode >= 200 {
			return resp, body
		}
	}
}

// Requests that are refused: one answer, which says why and closes; nothing behind is answered, and nothing of it all
// reaches the upstream.
func TestAttacksRefused(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := record(t)
		r := start(t, engine, Settings{}, up.address)
		n := 0
		for _, a := range attacks() {
			if a.refused == nil || a.inBody {
				continue
			}
			n++
			c := r.dial()
			go io.WriteString(c.Conn, a.bytes+smuggled)
			method, _, _ := strings.Cut(a.bytes, " ")
			resp, body := c.answer(method)
			if !slices.Contains(a.refused, resp.StatusCode) || !resp.Close || resp.Header.Get("X-Rota-Reason") != "bad_request" {
				t.Errorf("%s: answered %d, close %v, %s; want %d", a.id, resp.StatusCode, resp.Close, body, a.refused)
			}
			if rest, err := io.ReadAll(c.r); len(rest) > 0 || err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
				t.Errorf("%s: after the answer came %q, %v", a.id, rest, err)
			}
			c.Close()
			if seen := up.bytes(); seen != "" {
				t.Fatalf("%s: the upstream saw %q", a.id, seen)
			}
		}
		if up.connections() > 0 {
			t.Errorf("%d upstream connections", up.connections())
		}
		t.Logf("%d refused", n)
	})
}

// Requests whose bodies are refused: whatever of them has gone upstream by then is no whole message, and its connection
// is closed.
func TestAttacksInBodies(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		for _, a := range attacks() {
			if !a.inBody {
				continue
			}
			head, body, _ := strings.Cut(a.bytes, "\r\n\r\n")
			for name, pieces := range map[string][]string{
				"at once":   {a.bytes + smuggled},
				"body late": {head + "\r\n\r\n", body + smuggled},
				"body cut":  {head + "\r\n\r\n5\r\nhello\r\n", body + smuggled},
			} {
				t.Run(a.id[:min(len(a.id), 20)]+" "+name, func(t *testing.T) {
					t.Parallel()
					up := record(t)
					r := start(t, engine, Settings{}, up.address)
					c := r.dial()
					for i, piece := range pieces {
						if i > 0 { // the piece before has gone to the upstream
							for want := pieces[0][len(head):]; !strings.HasSuffix(up.bytes(), want); time.Sleep(100 * time.Microsecond) {
								if _, err := c.Conn.Write(nil); err != nil {
									t.Fatal(err)
								}
							}
						}
						if i == len(pieces)-1 {
							go io.WriteString(c.Conn, piece)
						} else {
							c.send(piece)
						}
					}
					resp, text := c.answer("POST")
					if !slices.Contains(a.refused, resp.StatusCode) || !resp.Close || resp.Header.Get("X-Rota-Reason") != "bad_request" {
						t.Errorf("answered %d, close %v, %s", resp.StatusCode, resp.Close, text)
					}
					if rest, _ := io.ReadAll(c.r); len(rest) > 0 {
						t.Errorf("after the answer came %q", rest)
					}
					c.Close()
					// The requests of the next clients go over another connection.
					for n := range victims {
						v, target := r.dial(), fmt.Sprintf("/victim/%d", n)
						v.send("GET " + target + " HTTP/1.1\r\nHost: v\r\n\r\n")
						if resp, body := v.answer("GET"); resp.StatusCode != 200 || body != "GET "+target+" " {
							t.Errorf("%s got %d %q", target, resp.StatusCode, body)
						}
						v.Close()
					}
					messages := up.messages(t)
					if len(messages) != victims || slices.ContainsFunc(messages, func(m message) bool { return !strings.HasPrefix(m.line, "GET /victim/") }) {
						t.Errorf("the upstream saw %+v", messages)
					}
				})
			}
		}
	})
}

// verdict is what became of an attack.
type verdict int

const (
	unsafe     verdict = iota // anything else
	untouched                 // refused or closed, and not a byte of it reached an upstream
	broken                    // refused or closed after a part had gone upstream, which is no whole message
	normalised                // one message reached the upstream, in its canonical form
)

// judge throws an attack at the proxy and says what became of it. Of what the catalogue says of the attack it believes
// only whether the connection goes on.
func (r *rig) judge(a attack, up *recorder) (verdict, string) {
	before := len(up.bytes())
	c := r.dial()
	defer c.Close()
	const victim = "GET /victim HTTP/1.1\r\nHost: v\r\n\r\n"
	go io.WriteString(c.Conn, a.bytes+victim)
	method, _, _ := strings.Cut(strings.TrimLeft(a.bytes, "\r\n"), " ")
	status := 0 // closed without an answer
	for status < 200 {
		resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
		if err != nil {
			status = 0
			break
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return unsafe, err.Error()
		}
		if status = resp.StatusCode; status >= 400 && !resp.Close {
			return unsafe, fmt.Sprintf("%d, and the connection goes on", status)
		}
	}
	// What follows on the connection: the victim's answer and no other, or the end.
	served := 0
	for {
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			break
		}
		body, _ := io.ReadAll(resp.Body)
		if served++; string(body) != "GET /victim " {
			return unsafe, fmt.Sprintf("the victim got %d %q", resp.StatusCode, body)
		}
		c.Conn.(*net.TCPConn).CloseWrite()
	}
	seen := up.bytes()[before:]
	messages, rest, err := strictly(seen)
	for i, m := range messages {
		if line := m.line; i > 0 && line != "GET /victim HTTP/1.1" || strings.Contains(line, marker) {
			return unsafe, fmt.Sprintf("the upstream saw %+v", messages)
		}
	}
	switch refused := status == 0 || status >= 400; {
	case err != nil:
	case refused && served == 0 && seen == "":
		return untouched, ""
	case refused && served == 0 && len(messages) == 0:
		return broken, ""
	case !refused && len(messages) == 1+served && rest == "" && (served == 1) != a.last:
		return normalised, ""
	}
	return unsafe, fmt.Sprintf("answered %d, then %d; the upstream saw %.200q: %v", status, served, seen, err)
}

// How the catalogue fares as a whole: everything is safe, and nine out of ten are refused before an upstream hears of
// them. Of the many mutations of single bytes (S05) that is easily said, so the rest is counted apart.
func TestAttackShares(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		shared := record(t)
		r := start(t, engine, Settings{}, shared.address)
		var all, others [normalised + 1]int
		total, rest := 0, 0
		for _, a := range attacks() {
			var v verdict
			var why string
			if a.inBody { // a part of it may reach the upstream later; its loops end with it, as many would hold each other up
				t.Run(a.id, func(t *testing.T) {
					up := record(t)
					v, why = start(t, engine, Settings{}, up.address).judge(a, up)
				})
			} else {
				v, why = r.judge(a, shared)
			}
			if v == unsafe {
				t.Errorf("%.40s: %s", a.id, why)
			}
			total++
			all[v]++
			if !strings.HasPrefix(a.id, "S05") {
				rest++
				others[v]++
			}
		}
		line := func(n int, of [normalised + 1]int) string {
			return fmt.Sprintf("%d: %.1f %% safe; refused %d (%.1f %%), broken off %d, normalised %d", n, 100-100*float64(of[unsafe])/float64(n),
				of[untouched], 100*float64(of[untouched])/float64(n), of[broken], of[normalised])
		}
		t.Logf("of %s", line(total, all))
		t.Logf("without mutations of bytes, of %s", line(rest, others))
		if all[unsafe] > 0 || 10*all[untouched] < 9*total {
			t.Errorf("%d of %d are not safe, %d are refused", all[unsafe], total, all[untouched])
		}
	})
}

// A body that ends before it should, because the client went away, is no whole one to the upstream (S15).
func TestTruncatedRequests(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		for name, request := range map[string]string{
			"length":    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello",
			"held":      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello",
			"chunk":     "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello",
			"between":   "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
			"last line": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
			"trailer":   "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n",
		} {
			for _, reset := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s reset %v", name, reset), func(t *testing.T) {
					up := record(t)
					settings := streaming
					if name == "held" {
						settings = Settings{}
					}
					r := start(t, engine, settings, up.address)
					c := r.dial()
					c.send(request)
					for name != "held" && !strings.Contains(up.bytes(), "hello") {
						time.Sleep(100 * time.Microsecond)
					}
					if reset {
						c.Conn.(*net.TCPConn).SetLinger(0)
						c.Close()
					} else {
						c.Conn.(*net.TCPConn).CloseWrite()
						c.closed()
					}
					if rec := r.wait(1)[0]; rec.Reason != ClientClosed {
						t.Errorf("record %d %q", rec.Status, rec.Reason)
					}
					if messages := up.messages(t); len(messages) > 0 {
						t.Errorf("the upstream saw %+v", messages)
					}
				})
			}
		}
	})
}

// Requests that are accepted reach the upstream in one form only, and the request behind gets its own answer.
func TestAttacksNormalised(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		n := 0
		for _, a := range attacks() {
			if a.refused != nil {
				continue
			}
			n++
			t.Run(a.id, func(t *testing.T) {
				t.Parallel()
				up := record(t)
				r := start(t, engine, Settings{}, up.address)
				c := r.dial()
				const victim = "GET /victim?1 HTTP/1.1\r\nHost: v\r\n"
				c.send(a.bytes + victim + "\r\n")
				method, _, _ := strings.Cut(strings.TrimLeft(a.bytes, "\r\n"), " ")
				if resp, body := c.final(method); resp.StatusCode != 200 || method != "HEAD" && !strings.HasPrefix(body, method+" ") {
					t.Fatalf("answered %d %q", resp.StatusCode, body)
				}
				head, body, _ := strings.Cut(a.seen, "|")
				ours := func(host, version string) string {
					return "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: " + host + "\r\nVia: " + version + " rota\r\n\r\n"
				}
				want := head + ours(a.host, "1.1") + body
				if a.last {
					want = head + ours(a.host, "1.0") + body
					c.closed()
				} else {
					want += victim + ours("v", "1.1")
					if resp, body := c.answer("GET"); resp.StatusCode != 200 || body != "GET /victim?1 " {
						t.Errorf("the victim got %d %q", resp.StatusCode, body)
					}
				}
				if seen := up.bytes(); seen != want {
					t.Errorf("the upstream saw\n%q, want\n%q", seen, want)
				}
				up.messages(t)
			})
		}
		t.Logf("%d normalised", n)
	})
}

// However a head is cut, it is the same head: also the empty line before it, and what is wrong with it.
func TestHeadsInPieces(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := record(t)
		r := start(t, engine, Settings{}, up.address)
		for whole, status := range map[string]int{
			"\r\nGET /?1 HTTP/1.1\r\nHost: a\r\n\r\n":   200,
			"\r\n\nGET /?1 HTTP/1.1\r\nHost: a\r\n\r\n": 400,
			"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n": 400,
			"GET / HTTP/1.1\r\n\nHost: a\r\n\r\n":       400,
			"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n":       400,
		} {
			t.Run(fmt.Sprintf("%.8q", whole), func(t *testing.T) {
				var wg sync.WaitGroup
				for cut := 1; cut < len(whole); cut++ {
					c := r.dial()
					wg.Go(func() {
						c.send(whole[:cut])
						time.Sleep(5 * time.Millisecond) // so that the pieces come apart
						io.WriteString(c.Conn, whole[cut:])
						resp, err := http.ReadResponse(c.r, nil)
						if err != nil {
							t.Errorf("cut at %d: %v", cut, err)
							return
						}
						if io.Copy(io.Discard, resp.Body); resp.StatusCode != status {
							t.Errorf("cut at %d: answered %d, want %d", cut, resp.StatusCode, status)
						}
						c.Close()
					})
				}
				wg.Wait()
			})
		}
		for _, m := range up.messages(t) {
			if m.line != "GET /?1 HTTP/1.1" {
				t.Errorf("the upstream saw %+v", m)
			}
		}
	})
}

// Fifty requests in one write, the last one malformed: 49 answers, each to its request, then the refusal (S21).
func TestPipelinedAttack(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := record(t)
		r := start(t, engine, Settings{}, up.address)
		c := r.dial()
		var all strings.Builder
		methods := []string{"GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE"}
		for i := range 49 {
			method := methods[i%len(methods)]
			switch {
			case method == "POST":
				fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n", i)
			case method == "PUT":
				fmt.Fprintf(&all, "PUT /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", i)
			default:
				fmt.Fprintf(&all, "\r\n%s /%d HTTP/1.1\r\nHost: a\r\n\r\n", method, i)
			}
		}
		c.send(all.String() + "GET " + marker + " HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n" + smuggled)
		for i := range 49 {
			method := methods[i%len(methods)]
			want := fmt.Sprintf("%s /%d ", method, i)
			if method == "POST" || method == "PUT" {
				want += "abc"
			}
			if method == "HEAD" {
				want = ""
			}
			if resp, body := c.answer(method); resp.StatusCode != 200 || body != want || method == "HEAD" && resp.ContentLength != int64(len(fmt.Sprintf("HEAD /%d ", i))) {
				t.Fatalf("answer %d is %d %q, want %q", i, resp.StatusCode, body, want)
			}
		}
		if resp, _ := c.answer("GET"); resp.StatusCode != 400 || !resp.Close {
			t.Errorf("the malformed one: %d", resp.StatusCode)
		}
		c.closed()
		if n := len(up.messages(t)); n != 49 {
			t.Errorf("the upstream saw %d messages", n)
		}
	})
}

// An answer that comes before the body has been sent leaves an upstream connection that nobody knows the state of: what
// would be read from it next could be a request that hides in the body (S17). It is not used again.
func TestEarlyAnswers(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		var unread atomic.Int32
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			for n := 0; ; n++ { // reads heads only: what follows one is the next request
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				if n > 0 {
					unread.Add(1)
				}
				answer := req.Method + " " + req.RequestURI
				if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer); err != nil {
					return
				}
				if req.Method == "POST" {
					r.Discard(r.Buffered())
				}
			}
		})
		r := start(t, engine, streaming, up.address)
		for i := range 50 {
			a := r.dial()
			a.send(fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", i, len(smuggled)+1))
			resp, body := a.answer("POST")
			if resp.StatusCode != 200 || body != fmt.Sprintf("POST /%d", i) || !resp.Close {
				t.Fatalf("answered %d %q, close %v", resp.StatusCode, body, resp.Close)
			}
			go io.WriteString(a.Conn, smuggled) // late, and a byte short
			v := r.dial()
			v.send(fmt.Sprintf("GET /victim/%d HTTP/1.1\r\nHost: v\r\n\r\n", i))
			if resp, body := v.answer("GET"); resp.StatusCode != 200 || body != fmt.Sprintf("GET /victim/%d", i) {
				t.Fatalf("the victim got %d %q", resp.StatusCode, body)
			}
			v.Close()
			a.closed()
			a.Close()
		}
		if strings.Contains(up.bytes(), marker) {
			t.Error("the body was sent after the answer")
		}
	})
}

// Whatever its encoding, a path either is refused or reaches the upstream under the prefix that was matched (P2).
func TestPathMatrix(t *testing.T) {
	t.Parallel()
	segments := []string{
		"", "a", ".", "..", "%2e", "%2e%2e", ".%2E", "%2e.", "...", "..;", "..;x", "%2e%2e;", "..%3b", "..%2f", "%2f..", "a%2f..", "..%5c", "%5c..", "..\\", "%2f", "%252e%252e",
		"..%252f", "..%c0%af", "%c0%ae%c0%ae", "..%00", "..%20", "..%09", "pub", "%70ub", "PUB", "a%2f..;x%2f", "*", "%",
	}
	var paths []string
	for _, prefix := range []string{"/pub", "/pub/a", "/x/../%70ub"} {
		paths = append(paths, prefix)
		for _, one := range segments {
			paths = append(paths, prefix+"/"+one)
			for _, two := range segments {
				paths = append(paths, prefix+"/"+one+"/"+two, prefix+one+"/"+two)
			}
		}
	}
	if raceEnabled { // values need no detector: some of them do
		some := paths[:0]
		for i := 0; i < len(paths); i += 4 {
			some = append(some, paths[i])
		}
		paths = some
	}
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel()
		up := record(t)
		r := startWith(t, engine, Settings{}, func(r *rig) {
			r.routes = append(r.routes, route.Route{
				Name: "replace", Host: "replace.example.com", Path: "/pub", Strip: true, Service: "s", Rules: &route.Rules{Prefix: "/new/v1"},
			})
		}, up.address)
		refused, total, got := 0, 0, map[string]string{}
		for _, host := range []string{"prefix.example.com", "strip.example.com", "exact.example.com", "replace.example.com", "any"} {
			var c *client
			for i, p := range paths {
				if c == nil {
					c = r.dial()
				}
				query := fmt.Sprintf("?%s%d", host[:1], i)
				c.send("GET " + p + query + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
				resp, body := c.answer("GET")
				total++
				if resp.StatusCode == 200 {
					got[query] = strings.TrimSuffix(strings.Fields(body)[1], query)
				} else if refused++; resp.StatusCode != 400 {
					t.Fatalf("%s: answered %d %s", p, resp.StatusCode, body)
				}
				if resp.Close {
					c.Close()
					c = nil
				}
			}
			if c != nil {
				c.Close()
			}
		}
		under := map[string]int{}
		for _, rec := range r.wait(total) {
			path, served := got[string(rec.Query)]
			if !served {
				continue
			}
			decoded, err := url.PathUnescape(path)
			decoded = strings.ReplaceAll(decoded, "\\", "/")
			name := rec.Route.Name
			under[name]++
			switch {
			case err != nil || strings.HasPrefix(path, "//") || path == "" || path[0] != '/':
				t.Errorf("%s on route %s reached the upstream as %s", rec.Path, name, path)
			case name == "prefix" && decoded != "/pub" && !strings.HasPrefix(decoded, "/pub/"), name == "exact" && decoded != "/pub":
				t.Errorf("%s on route %s reached the upstream as %s", rec.Path, name, path)
			case name == "strip" && strings.TrimLeft(path, "/") != strings.TrimLeft(strings.TrimPrefix(string(rec.Path), "/pub"), "/"):
				t.Errorf("%s on route %s reached the upstream as %s", rec.Path, name, path)
			case name == "replace" && decoded != "/new/v1" && !strings.HasPrefix(decoded, "/new/v1/"):
				t.Errorf("%s on route %s reached the upstream as %s", rec.Path, name, path)
			case name == "replace" && strings.TrimLeft(path[len("/new/v1"):], "/") != strings.TrimLeft(strings.TrimPrefix(string(rec.Path), "/pub"), "/"):
				t.Errorf("%s on route %s reached the upstream as %s", rec.Path, name, path)
			case name != "strip" && name != "replace" && path != string(rec.Path):
				t.Errorf("%s was matched, %s was forwarded", rec.Path, path)
			case name != "all" && (strings.Contains(strings.ToLower(path), "%2f") || strings.Contains(strings.ToLower(path), "%5c")):
				t.Errorf("an encoded slash on route %s: %s", name, path)
			}
			for _, segment := range strings.Split(decoded, "/") {
				if s, _, _ := strings.Cut(segment, ";"); (s == "." || s == "..") && !strings.Contains(path, "%3b") {
					t.Errorf("%s on route %s reached the upstream as %s", rec.Path, name, path)
				}
			}
		}
		up.messages(t)
		for _, name := range []string{"all", "prefix", "strip", "exact", "replace"} {
			if under[name] == 0 {
				t.Errorf("route %s was never taken", name)
			}
		}
		t.Logf("%d paths on five routes: %d refused, served %v", len(paths), refused, under)
	})
}

// victims is how many honest clients stand beside an attacker.
const victims = 20

// Honest clients beside attackers get their own answers, all of them, and the upstream never sees what hides in the
// attacks.
func TestVictimsBesideAttackers(t *testing.T) {
	requests := 100 // of each; ROTA_TEST_VICTIMS says how many in all
	if text := os.Getenv("ROTA_TEST_VICTIMS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		requests = n / victims
	}
	corpus := attacks()
	eachEngine(t, func(t *testing.T, engine string) {
		before := descriptors(t)
		up := record(t)
		r := start(t, engine, Settings{}, up.address)
		var passes, served atomic.Int64
		var attackers, honest sync.WaitGroup
		stop := make(chan struct{})
		for n := range 3 {
			attackers.Go(func() {
				random := rand.New(rand.NewPCG(uint64(n), 1))
				for {
					for _, i := range random.Perm(len(corpus)) {
						select {
						case <-stop:
							return
						default:
						}
						throw(r.address, corpus[i], random)
					}
					passes.Add(1)
				}
			})
		}
		var clients []*client
		for n := range victims {
			c := r.dial()
			clients = append(clients, c)
			c.SetDeadline(time.Now().Add(time.Minute))
			honest.Go(func() {
				for i := 0; i < requests || passes.Load() == 0; i++ {
					id := fmt.Sprintf("victim-%d-%d", n, i)
					var request, want string
					switch i % 3 {
					case 0:
						request, want = "GET /?"+id+" HTTP/1.1\r\nHost: v\r\n\r\n", "GET /?"+id+" "
					case 1:
						request, want = fmt.Sprintf("POST /p HTTP/1.1\r\nHost: v\r\nContent-Length: %d\r\n\r\n%s", len(id), id), "POST /p "+id
					default:
						request, want = fmt.Sprintf("PUT /p HTTP/1.1\r\nHost: v\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(id), id), "PUT /p "+id
					}
					if _, err := io.WriteString(c.Conn, request); err != nil {
						t.Errorf("%s: %v", id, err)
						return
					}
					resp, err := http.ReadResponse(c.r, nil)
					if err != nil {
						t.Errorf("%s: %v", id, err)
						return
					}
					body, err := io.ReadAll(resp.Body)
					if err != nil || resp.StatusCode != 200 || string(body) != want || resp.Close {
						t.Errorf("%s: got %d %q, %v", id, resp.StatusCode, body, err)
						return
					}
					served.Add(1)
				}
			})
		}
		honest.Wait()
		close(stop)
		attackers.Wait()
		r.eventually("the attackers' connections are closed", func() bool {
			open, serving := r.engine.Connections()
			return open == victims && serving == 0
		})
		for _, c := range clients {
			c.Close()
		}
		r.stop()
		r.eventually("all descriptors are closed", func() bool { return descriptors(t) <= before+5 })
		messages := up.messages(t)
		t.Logf("%d honest requests beside %d passes of %d attacks, %d messages upstream", served.Load(), passes.Load(), len(corpus), len(messages))
		if served.Load() < int64(victims*requests) {
			t.Errorf("%d of %d honest requests were served", served.Load(), victims*requests)
		}
	})
}

// throw sends an attack, now and then in pieces, now and then without waiting for the answer.
func throw(address string, a attack, random *rand.Rand) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	all := a.bytes
	if a.refused != nil {
		all += smuggled
	}
	if cut := random.IntN(2 * len(all)); cut < len(all) && random.IntN(2) == 0 {
		io.WriteString(c, all[:cut])
		all = all[cut:]
	}
	io.WriteString(c, all)
	if random.IntN(4) > 0 {
		c.Read(make([]byte, 512))
	}
}
