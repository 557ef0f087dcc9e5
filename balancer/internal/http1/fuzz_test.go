package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"testing"
)

// parse reads a request as a connection would deliver it.
func parse(data []byte) (*Request, []byte, *Error) {
	r := new(Request)
	n, err := r.Read(new(Scanner), bytes.Clone(data))
	if err != nil {
		return nil, nil, err
	}
	if n == 0 {
		return nil, nil, ErrRequestLine
	}
	return r, data[n:], nil
}

// twoWays reads a head that comes whole, with read, and one whose end is looked for first, with parse, and reports on what differs.
func twoWays(t *testing.T, data []byte, read func(s *Scanner, b []byte) (int, *Error), parse func(b []byte) *Error) {
	t.Helper()
	data = data[:min(len(data), MaxHead)]
	n, err := read(new(Scanner), bytes.Clone(data))
	end, want := new(Scanner).Scan(data)
	if end > 0 {
		want = parse(bytes.Clone(data[:end]))
	}
	if n != end || err != want {
		t.Fatalf("%q: a head of %d bytes, %v; scanned first: %d, %v", data, n, err, end, want)
	}
}

var requestSeeds = []string{
	sampleRequest,
	"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST /x?y HTTP/1.1\r\nHost: a:81\r\nContent-Length: 5\r\n\r\nhello",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
	"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
	"GET /a/../%2e%2e/%41%2f;x HTTP/1.0\r\nConnection: keep-alive, x\r\nX: y\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent_Length: 1\r\nContent-Length: 07\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
}

// What is accepted is unambiguous, and what we make of it reads the same when it is read again.
func FuzzRequest(f *testing.F) {
	for _, s := range requestSeeds {
		f.Add([]byte(s))
	}
	hop := Hop{Peer: netip.MustParseAddr("192.0.2.1"), Proto: "http", Via: "rota"}
	f.Fuzz(func(t *testing.T, data []byte) {
		twoWays(t, data, new(Request).Read, new(Request).Parse)
		r, _, err := parse(data)
		if err != nil {
			return
		}
		out := AppendRequest(nil, r, &hop)
		if len(r.Host) == 0 { // HTTP/1.0 without Host: ours is empty, as it must be (RFC 9110 §7.2), but we would refuse it
			out = bytes.Replace(out, []byte("\r\nHost: \r\n"), []byte("\r\nHost: none\r\n"), 1)
		}
		again, rest, err := parse(out)
		if err != nil || len(rest) > 0 {
			t.Fatalf("%q became %q: %v, %d bytes left", data, out, err, len(rest))
		}
		if r.Chunked && r.Length != -1 || bytes.Contains(out, []byte("\r\nContent-Length:")) && bytes.Contains(out, []byte("\r\nTransfer-Encoding:")) {
			t.Fatalf("two framings in %q", out)
		}
		if string(again.Method) != string(r.Method) || string(again.Path) != string(r.Path) || string(again.Query) != string(r.Query) ||
			len(r.Host) > 0 && (string(again.Host) != string(r.Host) || string(again.Port) != string(r.Port)) ||
			again.Length != r.Length || again.Chunked != r.Chunked {
			t.Fatalf("%q reads differently as %q", data, out)
		}
		if bytes.ContainsAny(r.Path, "\x00 \r\n\\#") || bytes.Contains(append(bytes.Clone(r.Path), '/'), []byte("/../")) || bytes.HasPrefix(r.Path, []byte("//")) {
			t.Fatalf("path %q", r.Path)
		}
		hosts := 0
		for _, line := range strings.Split(string(out), "\r\n") {
			if strings.ContainsAny(line, "\r\n\x00") {
				t.Fatalf("a bare CR, LF or NUL in %q", line)
			}
			if strings.HasPrefix(strings.ToLower(line), "host:") {
				hosts++
			}
		}
		if hosts != 1 {
			t.Fatalf("%d hosts in %q", hosts, out)
		}
	})
}

// Whatever net/http and we both accept is read alike.
func FuzzRequestDifferential(f *testing.F) {
	for _, s := range requestSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, rest, err := parse(data)
		if err != nil {
			return
		}
		theirs, goErr := http.ReadRequest(bufio.NewReader(bytes.NewReader(data)))
		if goErr != nil {
			return
		}
		if theirs.Method != string(r.Method) {
			t.Fatalf("method %q, theirs %q", r.Method, theirs.Method)
		}
		if want := strings.TrimSuffix(strings.ToLower(hostOnly(theirs.Host)), "."); want != string(r.Host) {
			t.Fatalf("host %q, theirs %q", r.Host, theirs.Host)
		}
		if q := strings.TrimPrefix(string(r.Query), "?"); q != theirs.URL.RawQuery {
			t.Fatalf("query %q, theirs %q", q, theirs.URL.RawQuery)
		}
		if r.Chunked != (len(theirs.TransferEncoding) == 1) || r.Length != theirs.ContentLength {
			t.Fatalf("%q: length %d chunked %v, theirs %d %v", data, r.Length, r.Chunked, theirs.ContentLength, theirs.TransferEncoding)
		}
		if !r.KeepAlive != theirs.Close && r.Minor == 1 {
			t.Fatalf("%q: keep-alive %v, theirs close %v", data, r.KeepAlive, theirs.Close)
		}
		if r.Length > 0 && int64(len(rest)) >= r.Length {
			body, err := io.ReadAll(theirs.Body)
			if err != nil || !bytes.Equal(body, rest[:r.Length]) {
				t.Fatalf("body %q, theirs %q, %v", rest[:r.Length], body, err)
			}
		}
	})
}

// hostOnly is a host without its port.
func hostOnly(h string) string {
	if i := strings.LastIndexByte(h, ':'); i >= 0 && !strings.HasSuffix(h, "]") {
		return h[:i]
	}
	return h
}

// What is accepted of a response is read as net/http reads it, and what we pass on reads the same again.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		sampleResponse, "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\nConnection: x-y\r\nX-Y: 1\r\n\r\n0\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, head bool) {
		twoWays(t, data, func(s *Scanner, b []byte) (int, *Error) { return new(Response).Read(s, b, head) },
			func(b []byte) *Error { return new(Response).Parse(b, head) })
		var s Scanner
		n, err := s.Scan(data)
		if n == 0 || err != nil {
			return
		}
		var r Response
		if err := r.Parse(data[:n], head); err != nil {
			if err.Status != 502 {
				t.Fatalf("%q: %v has status %d", data, err, err.Status)
			}
			return
		}
		method := "GET"
		if head {
			method = "HEAD"
		}
		theirs, goErr := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), &http.Request{Method: method})
		if goErr == nil {
			if theirs.StatusCode != r.Status {
				t.Fatalf("status %d, theirs %d", r.Status, theirs.StatusCode)
			}
			if r.Chunked != (len(theirs.TransferEncoding) > 0) && !head && r.Status >= 200 && r.Status != 204 && r.Status != 304 {
				t.Fatalf("%q: chunked %v, theirs %v", data, r.Chunked, theirs.TransferEncoding)
			}
			if !head && !r.Chunked && r.Length > 0 && theirs.ContentLength != r.Length {
				t.Fatalf("%q: length %d, theirs %d", data, r.Length, theirs.ContentLength)
			}
		}
		framing := AsIs
		if r.Chunked || r.UntilClose {
			framing = AsChunks
		}
		out := AppendResponse(nil, &r, framing, 1, true, new(Edit))
		var again Response
		var s2 Scanner
		if m, err := s2.Scan(out); m != len(out) || err != nil {
			t.Fatalf("%q became %q: %v", data, out, err)
		}
		if err := again.Parse(out, head); err != nil || again.Status != r.Status || again.Chunked != (framing == AsChunks && !head) || !r.UntilClose && !r.Chunked && again.Length != r.Length && r.HasLength {
			t.Fatalf("%q reads differently as %q: %v", data, out, err)
		}
	})
}

// filter runs a body through a Chunked in pieces of the given sizes, over and over, and returns what comes out.
func filter(c *Chunked, body []byte, sizes ...int) (out []byte, used int, err *Error) {
	for i := 0; len(body) > 0 && !c.Done(); i++ {
		n := min(len(body), max(1, sizes[i%len(sizes)]))
		buf := append(make([]byte, Headroom), body[:n]...)
		start, end, k, err := c.Filter(buf, Headroom, len(buf))
		if err != nil {
			return out, used, err
		}
		out = append(out, buf[start:end]...)
		used += k
		if k < n && !c.Done() {
			panic("input left over")
		}
		body = body[k:]
	}
	return out, used, nil
}

// However a chunked body is cut into pieces, the result is the same; it is canonical, and decodes to what net/http reads.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{
		"5\r\nhello\r\n0\r\n\r\n", "0\r\n\r\n", "00a;x=y\r\n0123456789\r\n1\r\nx\r\n0;z\r\nA: b\r\nC:d\r\n\r\nnext", "5;a=\"b;c\"\r\nhello\r\n0\r\n\r\n",
		"5\nhello\r\n0\r\n\r\n", "FFFFFFFFFFFFFFFF\r\n", "3\r\nabcd\r\n0\r\n\r\n",
	} {
		f.Add([]byte(s), byte(1), byte(3))
	}
	f.Fuzz(func(t *testing.T, body []byte, a, b byte) {
		if len(body) > 4096 {
			return
		}
		whole := Chunked{}
		out, used, err := filter(&whole, body, len(body))
		pieces := Chunked{}
		out2, used2, err2 := filter(&pieces, body, int(a), int(b))
		if err != err2 || err == nil && (!bytes.Equal(out, out2) || used != used2) {
			t.Fatalf("%q: whole %q %d %v, in pieces %q %d %v", body, out, used, err, out2, used2, err2)
		}
		decoded := Chunked{Decode: true}
		data, _, err3 := filter(&decoded, body, int(b), int(a))
		kept := Chunked{Trailers: true}
		if _, _, err4 := filter(&kept, body, int(a)); err3 != err || err4 != err {
			t.Fatalf("%q: %v, decoding %v, with trailers %v", body, err, err3, err4)
		}
		if err != nil || !whole.Done() {
			return
		}
		theirs, goErr := io.ReadAll(httputil.NewChunkedReader(bufio.NewReader(bytes.NewReader(out))))
		if goErr != nil || !bytes.Equal(theirs, data) {
			t.Fatalf("%q became %q: data %q, theirs %q, %v", body, out, data, theirs, goErr)
		}
		if theirs, goErr = io.ReadAll(httputil.NewChunkedReader(bufio.NewReader(bytes.NewReader(body)))); goErr == nil && !bytes.Equal(theirs, data) {
			t.Fatalf("%q: data %q, theirs %q", body, data, theirs)
		}
		again := Chunked{}
		if same, _, err := filter(&again, out, 7); err != nil || !bytes.Equal(same, out) {
			t.Fatalf("%q is not canonical: %q, %v", out, same, err)
		}
	})
}

// A head that arrives byte by byte is read, or refused, as the one that arrives at once.
func TestScannerByteByByte(t *testing.T) {
	for _, head := range requestSeeds {
		whole, bits := new(Scanner), new(Scanner)
		read := func(s *Scanner, b string) (int, *Error) {
			n, err := s.Scan([]byte(b))
			if n > 0 {
				err = new(Request).Parse([]byte(b[:n]))
			}
			return n, err
		}
		n, err := read(whole, head)
		var m int
		var err2 *Error
		for i := 1; i <= len(head) && m == 0 && err2 == nil; i++ {
			m, err2 = read(bits, head[:i])
		}
		if (err == nil) != (err2 == nil) || err == nil && n != m {
			t.Errorf("%q: %d %v at once, %d %v byte by byte", head, n, err, m, err2)
		}
	}
}

func TestChunkLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		body string
		want *Error
	}{
		"16 digits":        {"0000000000000005\r\nhello\r\n", ErrChunk},
		"long extension":   {"5;" + strings.Repeat("e", 5000) + "\r\n", ErrChunkLong},
		"many extensions":  {strings.Repeat("1;"+strings.Repeat("e", 200)+"\r\nx\r\n", 100), ErrChunkLong},
		"small ones":       {strings.Repeat("1;a=b\r\nx\r\n", 10_000) + "0\r\n\r\n", nil},
		"long trailers":    {"0\r\n" + strings.Repeat("A: b\r\n", 2000), ErrChunkLong},
		"no size":          {"\r\n", ErrChunk},
		"control in ext":   {"5;a\x01\r\n", ErrChunk},
		"CR in quoted ext": {"5;a=\"\r\n", ErrChunk},
	} {
		var c Chunked
		if _, _, err := filter(&c, []byte(tc.body), 100); err != tc.want {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}

// Parsing and serialising allocate nothing once their buffers have grown.
func TestNoAllocations(t *testing.T) {
	var req Request
	var resp Response
	request, response, out := []byte(sampleRequest), []byte(sampleResponse), make([]byte, 0, 4096)
	hop := Hop{Peer: netip.MustParseAddr("2001:db8::1"), Proto: "http", Via: "rota"}
	n := testing.AllocsPerRun(100, func() {
		if req.Parse(request) != nil || resp.Parse(response, false) != nil {
			t.Error("refused")
		}
		out = AppendResponse(AppendRequest(out[:0], &req, &hop), &resp, AsIs, 1, true, new(Edit))
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Every error has a status that answers it.
func TestErrorStatus(t *testing.T) {
	for _, e := range []*Error{ErrLineEnd, ErrVersion, ErrMethod, ErrTargetLong, ErrHeadLong, ErrFields, ErrTECoding, ErrExpect, ErrResponseHead} {
		var target *Error
		if !errors.As(error(e), &target) || http.StatusText(e.Status) == "" || e.Error() == "" {
			t.Errorf("%v: status %s", e, strconv.Itoa(e.Status))
		}
	}
}

// Every kind is found under its name in any case, and under its twin with underscores.
func TestClassify(t *testing.T) {
	for name, want := range map[string]kind{
		"host": kindHost, "content-length": kindContentLength, "transfer-encoding": kindTransferEncoding, "connection": kindConnection,
		"expect": kindExpect, "te": kindTE, "via": kindVia, "keep-alive": kindHop, "proxy-connection": kindHop, "upgrade": kindUpgrade, "rota-load": kindLoad,
		"http2-settings": kindHop, "proxy-authorization": kindHop, "proxy": kindHop, "trailer": kindHop, "forwarded": kindForwarded,
		"x-real-ip": kindForwarded, "x-original-url": kindForwarded, "x-rewrite-url": kindForwarded, "x-client-cert": kindForwarded,
		"x-forwarded-for": kindOrigin, "x-forwarded-host": kindOrigin, "x-forwarded-proto": kindOrigin, "x-client-cert-subject": kindForwarded, "x-forwarded-anything-at-all": kindForwarded, "x-forwarded": other, "cookie": other, "x-a": other,
	} {
		for _, n := range []string{name, strings.ToUpper(name), strings.ReplaceAll(name, "-", "_")} {
			if got, underscored := classify([]byte(n)); got != want || underscored != (strings.Contains(n, "_") && (want != other || len(n) <= longestKnown && underscored)) {
				t.Errorf("%s is %d (underscored %v), want %d", n, got, underscored, want)
			}
		}
	}
}
