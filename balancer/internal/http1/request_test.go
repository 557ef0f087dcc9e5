package http1

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// summary is all that a request head means, in one line.
func summary(r *Request) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s%s %s%s %d", r.Method, r.Path, r.Query, r.Host, r.Port, r.Length)
	for _, flag := range []struct {
		set  bool
		name string
	}{
		{r.Minor == 0, "1.0"}, {r.Chunked, "chunked"}, {r.KeepAlive, "keep"}, {r.Continue, "continue"}, {r.EncodedSlash, "slash"},
	} {
		if flag.set {
			b.WriteString(" " + flag.name)
		}
	}
	return b.String()
}

// read is what becomes of a head: its summary, or the reason to refuse it.
func read(head string) (string, *Error) {
	r, _, err := parse([]byte(head))
	if err != nil {
		return "", err
	}
	return summary(r), nil
}

func TestRequestHeads(t *testing.T) {
	const h = "Host: a\r\n"
	fields := func(n int) string { return strings.Repeat("X: y\r\n", n) }
	for _, tc := range []struct {
		name, head string
		err        *Error
		want       string
	}{
		// Accepted.
		{"plain", "GET / HTTP/1.1\r\n" + h + "\r\n", nil, "GET / a 0 keep"},
		{"query and port", "GET /x?y=%zz&?/.. HTTP/1.1\r\nHost: A.b:8080\r\n\r\n", nil, "GET /x?y=%zz&?/.. a.b:8080 0 keep"},
		{"empty query", "GET /x? HTTP/1.1\r\n" + h + "\r\n", nil, "GET /x? a 0 keep"},
		{"close", "GET / HTTP/1.1\r\n" + h + "Connection: x, Close\r\n\r\n", nil, "GET / a 0"},
		{"close and keep-alive", "GET / HTTP/1.1\r\n" + h + "Connection: keep-alive\r\nConnection: close\r\n\r\n", nil, "GET / a 0"},
		{"close among empty elements", "GET / HTTP/1.1\r\n" + h + "Connection: ,\t, close ,,\r\n\r\n", nil, "GET / a 0"},
		{"1.0", "GET / HTTP/1.0\r\n\r\n", nil, "GET /  0 1.0"},
		{"1.0 keep-alive", "GET / HTTP/1.0\r\n" + h + "Connection: Keep-Alive\r\n\r\n", nil, "GET / a 0 1.0 keep"},
		{"1.0 length", "POST / HTTP/1.0\r\n" + h + "Content-Length: 5\r\n\r\n", nil, "POST / a 5 1.0"},
		{"1.0 absolute without Host", "GET http://B:81/x HTTP/1.0\r\n\r\n", nil, "GET /x b:81 0 1.0"},
		{"1.0 does not wait for 100", "POST / HTTP/1.0\r\n" + h + "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", nil, "POST / a 5 1.0"},
		{"length", "POST / HTTP/1.1\r\n" + h + "Content-Length: 5\r\n\r\n", nil, "POST / a 5 keep"},
		{"GET with length", "GET / HTTP/1.1\r\n" + h + "Content-Length: 5\r\n\r\n", nil, "GET / a 5 keep"},
		{"chunked", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n", nil, "POST / a -1 chunked keep"},
		{"chunked in capitals", "POST / HTTP/1.1\r\n" + h + "TRANSFER-ENCODING:CHUNKED\r\n\r\n", nil, "POST / a -1 chunked keep"},
		{"continue", "POST / HTTP/1.1\r\n" + h + "Expect: 100-Continue\r\nContent-Length: 1\r\n\r\n", nil, "POST / a 1 keep continue"},
		{"absolute", "GET HTTP://A/b?c HTTP/1.1\r\n" + h + "\r\n", nil, "GET /b?c a 0 keep"},
		{"absolute https", "GET https://a HTTP/1.1\r\n" + h + "\r\n", nil, "GET / a 0 keep"},
		{"absolute, query only", "GET http://a?b HTTP/1.1\r\n" + h + "\r\n", nil, "GET /?b a 0 keep"},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\n" + h + "\r\n", nil, "OPTIONS * a 0 keep"},
		{"odd method", "GPOST / HTTP/1.1\r\n" + h + "\r\n", nil, "GPOST / a 0 keep"},
		{"method of 32", strings.Repeat("M", 32) + " / HTTP/1.1\r\n" + h + "\r\n", nil, strings.Repeat("M", 32) + " / a 0 keep"},
		{"encoded slash", "GET /a%2Fb HTTP/1.1\r\n" + h + "\r\n", nil, "GET /a%2Fb a 0 keep slash"},
		{"100 fields", "GET / HTTP/1.1\r\n" + h + fields(99) + "\r\n", nil, "GET / a 0 keep"},
		{"empty value", "GET / HTTP/1.1\r\n" + h + "X:\r\nY: \t \r\n\r\n", nil, "GET / a 0 keep"},
		{"high bytes in a value", "GET / HTTP/1.1\r\n" + h + "X: \x80\xff\xc3\xa9\r\n\r\n", nil, "GET / a 0 keep"},
		{"twins of framing", "POST / HTTP/1.1\r\n" + h + "Content_Length: 9\r\nTransfer_Encoding: chunked\r\nHost_: b\r\n\r\n", nil, "POST / a 0 keep"},
		{"target of 16384", "GET /" + strings.Repeat("a", MaxTarget-1) + " HTTP/1.1\r\n" + h + "\r\n", nil, "GET /" + strings.Repeat("a", MaxTarget-1) + " a 0 keep"},

		// S18: line ends and bytes that end no line.
		{"S18 bare LF", "GET / HTTP/1.1\n" + h + "\r\n", ErrLineEnd, ""},
		{"S18 bare LF in fields", "GET / HTTP/1.1\r\n" + h + "X: y\n\r\n", ErrLineEnd, ""},
		{"S18 bare LF at the end", "GET / HTTP/1.1\r\n" + h + "\n", ErrLineEnd, ""},
		{"S18 LF first", "\nGET / HTTP/1.1\r\n" + h + "\r\n", ErrLineEnd, ""},
		{"S18 two CR", "GET / HTTP/1.1\r\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S18 CR in value", "GET / HTTP/1.1\r\n" + h + "X: a\rTransfer-Encoding: chunked\r\n\r\n", ErrFieldValue, ""},
		{"S18 CR in target", "GET /\r HTTP/1.1\r\n" + h + "\r\n", ErrTarget, ""},
		{"S18 CR in method", "GE\rT / HTTP/1.1\r\n" + h + "\r\n", ErrMethodSyntax, ""},
		{"S18 CR line", "GET / HTTP/1.1\r\n" + h + "\r\r\n\r\n", ErrFieldName, ""},
		{"S18 NUL in value", "GET / HTTP/1.1\r\n" + h + "X: a\x00b\r\n\r\n", ErrFieldValue, ""},
		{"S18 NUL in long value", "GET / HTTP/1.1\r\n" + h + "X: 0123456789\x00abcdef\r\n\r\n", ErrFieldValue, ""},
		{"S18 DEL in value", "GET / HTTP/1.1\r\n" + h + "X: 01234567\x7f\r\n\r\n", ErrFieldValue, ""},
		{"S18 NUL in name", "GET / HTTP/1.1\r\n" + h + "X\x00: a\r\n\r\n", ErrFieldName, ""},
		{"S18 NUL in target", "GET /\x00 HTTP/1.1\r\n" + h + "\r\n", ErrTarget, ""},
		{"S18 NBSP in name", "GET / HTTP/1.1\r\n" + h + "\xa0X: a\r\n\r\n", ErrFieldName, ""},
		{"S18 NEL in name", "GET / HTTP/1.1\r\n" + h + "X\x85: a\r\n\r\n", ErrFieldName, ""},

		// S19: request lines.
		{"S19 two spaces", "GET  / HTTP/1.1\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 two spaces later", "GET /  HTTP/1.1\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 tabs", "GET\t/\tHTTP/1.1\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 one tab", "GET /\tHTTP/1.1\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 space first", " GET / HTTP/1.1\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 more behind", "GET / HTTP/1.1 x\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 space behind", "GET / HTTP/1.1 \r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 lower case", "GET / http/1.1\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 HTTP/1", "GET / HTTP/1\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 HTTP/01.1", "GET / HTTP/01.1\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 HTTP/1.10", "GET / HTTP/1.10\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 HTTP/+1.1", "GET / HTTP/+1.1\r\n" + h + "\r\n", ErrRequestLine, ""},
		{"S19 HTTP/1.2", "GET / HTTP/1.2\r\n" + h + "\r\n", ErrVersion, ""},
		{"S19 HTTP/2.0", "GET / HTTP/2.0\r\n" + h + "\r\n", ErrVersion, ""},
		{"S19 HTTP/0.9", "GET / HTTP/0.9\r\n" + h + "\r\n", ErrVersion, ""},
		{"S19 0.9", "GET /\r\n\r\n", ErrRequestLine, ""},
		{"S19 method only", "GET\r\n\r\n", ErrRequestLine, ""},
		{"S19 empty line", "\r\n", ErrRequestLine, ""},
		{"S19 no method", " / HTTP/1.1\r\n" + h + "\r\n", ErrRequestLine, ""},

		// S20: methods.
		{"S20 CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", ErrMethod, ""},
		{"S20 CONNECT with a path", "CONNECT / HTTP/1.1\r\n" + h + "\r\n", ErrMethod, ""},
		{"S20 TRACE", "TRACE / HTTP/1.1\r\n" + h + "\r\n", ErrMethod, ""},
		{"S20 PRI", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ErrVersion, ""},
		{"S20 PRI in 1.1", "PRI * HTTP/1.1\r\n" + h + "\r\n", ErrMethod, ""},
		{"S20 long", strings.Repeat("M", 33) + " / HTTP/1.1\r\n" + h + "\r\n", ErrMethodSyntax, ""},
		{"S20 not a token", "GET/ / HTTP/1.1\r\n" + h + "\r\n", ErrMethodSyntax, ""},
		{"S20 high byte", "G\xc9T / HTTP/1.1\r\n" + h + "\r\n", ErrMethodSyntax, ""},

		// S07, S08 and other fields.
		{"S07 fold", "GET / HTTP/1.1\r\n" + h + "X: a\r\n b\r\n\r\n", ErrFold, ""},
		{"S07 fold with tab", "GET / HTTP/1.1\r\n" + h + "X: a\r\n\tb\r\n\r\n", ErrFold, ""},
		{"S07 folded TE", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n", ErrFold, ""},
		{"S07 first field folded", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", ErrFold, ""},
		{"S07 line of spaces", "GET / HTTP/1.1\r\n" + h + "  \r\n\r\n", ErrFold, ""},
		{"S08 Content-Length", "POST / HTTP/1.1\r\n" + h + "Content-Length : 5\r\n\r\n", ErrFieldName, ""},
		{"S08 Host", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", ErrFieldName, ""},
		{"S08 tab", "GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", ErrFieldName, ""},
		{"no colon", "GET / HTTP/1.1\r\n" + h + "X\r\n\r\n", ErrFieldName, ""},
		{"no name", "GET / HTTP/1.1\r\n" + h + ": x\r\n\r\n", ErrFieldName, ""},
		{"quoted name", "GET / HTTP/1.1\r\n" + h + "\"X\": x\r\n\r\n", ErrFieldName, ""},
		{"101 fields", "GET / HTTP/1.1\r\n" + h + fields(100) + "\r\n", ErrFields, ""},
		{"Connection not tokens", "GET / HTTP/1.1\r\n" + h + "Connection: a b\r\n\r\n", ErrConnection, ""},
		{"Connection without end", "GET / HTTP/1.1\r\n" + h + "Connection: " + strings.Repeat("a,", 51) + "\r\nConnection: " + strings.Repeat(",", 50) + "\r\n\r\n", ErrConnection, ""},
		{"Connection quoted", "GET / HTTP/1.1\r\n" + h + "Connection: \"close\"\r\n\r\n", ErrConnection, ""},
		{"S17 other expectation", "POST / HTTP/1.1\r\n" + h + "Expect: y\r\n\r\n", ErrExpect, ""},
		{"S17 expectations", "POST / HTTP/1.1\r\n" + h + "Expect: y 100-continue\r\n\r\n", ErrExpect, ""},
		{"S17 no expectation", "POST / HTTP/1.1\r\n" + h + "Expect:\r\n\r\n", ErrExpect, ""},

		// Length and coding together.
		{"S01", "POST / HTTP/1.1\r\n" + h + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n", ErrLengthAndTE, ""},
		{"S02", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n", ErrLengthAndTE, ""},
		{"S01 length 0", "POST / HTTP/1.1\r\n" + h + "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", ErrLengthAndTE, ""},
		{"S01 identity", "POST / HTTP/1.1\r\n" + h + "Content-Length: 6\r\nTransfer-Encoding: identity\r\n\r\n", ErrLengthAndTE, ""},
		{"S06 TE in 1.0", "POST / HTTP/1.0\r\n" + h + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n", ErrTEVersion, ""},

		// Host and target.
		{"HO1 none", "GET / HTTP/1.1\r\n\r\n", ErrHost, ""},
		{"HO1 none, absolute", "GET http://a/ HTTP/1.1\r\n\r\n", ErrHost, ""},
		{"HO1 two", "GET / HTTP/1.1\r\n" + h + "Host: b\r\n\r\n", ErrHost, ""},
		{"HO1 the same twice", "GET / HTTP/1.1\r\n" + h + h + "\r\n", ErrHost, ""},
		{"HO1 two in 1.0", "GET / HTTP/1.0\r\n" + h + "Host: b\r\n\r\n", ErrHost, ""},
		{"HO1 empty in 1.0", "GET / HTTP/1.0\r\nHost:\r\n\r\n", ErrHost, ""},
		{"HO2 mismatch", "GET http://evil/ HTTP/1.1\r\nHost: good\r\n\r\n", ErrHostMismatch, ""},
		{"HO2 mismatch of the same length", "GET http://evil/ HTTP/1.1\r\nHost: gods\r\n\r\n", ErrHostMismatch, ""},
		{"HO2 mismatch of port", "GET http://a:81/ HTTP/1.1\r\n" + h + "\r\n", ErrHostMismatch, ""},
		{"HO2 user", "GET http://u@a/ HTTP/1.1\r\nHost: u@a\r\n\r\n", ErrHost, ""},
		{"HO2 user before", "GET http://u@a/ HTTP/1.1\r\n" + h + "\r\n", ErrHostMismatch, ""},
		{"target of 16385", "GET /" + strings.Repeat("a", MaxTarget) + " HTTP/1.1\r\n" + h + "\r\n", ErrTargetLong, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := read(tc.head)
			if err != tc.err || got != tc.want {
				t.Errorf("%.200q\nis %q, %v\nwant %q, %v", tc.head, got, err, tc.want, tc.err)
			}
		})
	}
}

// S10 and S11: a length is digits, fewer than 19, and said once.
func TestContentLength(t *testing.T) {
	for value, want := range map[string]int64{
		"0": 0, "5": 5, "005": 5, "000000000000000005": 5, "999999999999999999": 999999999999999999, "\t5 ": 5,
		"5, 5": -1, "5, 10": -1, "5,": -1, ",5": -1, "+5": -1, "-1": -1, "-0": -1, "0x5": -1, "0o5": -1, "0b1": -1, "1_0": -1, "5 5": -1, "5\t5": -1,
		"5e0": -1, "5.0": -1, "": -1, " ": -1, "٥": -1, "\"5\"": -1, "5;": -1, "5\x0b": -1, "\x0c5": -1, "\xa05": -1, "x": -1,
		"9223372036854775807": -1, "9223372036854775808": -1, "18446744073709551621": -1, "99999999999999999999": -1, "0000000000000000005": -1,
	} {
		got, err := read("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + value + "\r\n\r\n")
		switch {
		case want >= 0 && (err != nil || got != fmt.Sprintf("POST / a %d keep", want)):
			t.Errorf("%q is %q, %v; want %d", value, got, err, want)
		case want < 0 && err != ErrLength && err != ErrFieldValue:
			t.Errorf("%q is %q, %v; want it refused", value, got, err)
		}
	}
	for _, fields := range []string{
		"Content-Length: 5\r\nContent-Length: 10\r\n", "Content-Length: 5\r\nContent-Length: 5\r\n", "Content-Length: 5\r\ncontent-length: 05\r\n",
		"Content-Length: 0\r\nContent-Length: 0\r\n", "Content-Length: 5\r\nContent-Length:\r\n",
	} {
		if got, err := read("POST / HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n"); err != ErrLength {
			t.Errorf("%q is %q, %v; want it refused", fields, got, err)
		}
	}
}

// S03 and S04: there is one transfer coding, chunked, said once.
func TestTransferEncoding(t *testing.T) {
	for value, want := range map[string]*Error{
		"chunked": nil, "Chunked": nil, "\t chunked \t": nil,
		"identity": ErrTECoding, "gzip": ErrTECoding, "xchunked": ErrTECoding, "chunkedx": ErrTECoding, "cow": ErrTECoding, "chunke": ErrTECoding,
		"chunked, chunked": ErrTE, "gzip, chunked": ErrTE, "chunked, gzip": ErrTE, "chunked,gzip": ErrTE, ", chunked": ErrTE, "chunked,": ErrTE, ",": ErrTE,
		"\"chunked\"": ErrTE, "chunked;x=1": ErrTE, "chunked;": ErrTE, "": ErrTE, "chunked chunked": ErrTE, "chun ked": ErrTE, "chunked\tx": ErrTE,
		"\xc2\xa0chunked": ErrTE, "ch\xc5\xbfnked": ErrTE, "chun\xe2\x84\xaaed": ErrTE, "chunked\x0b": ErrFieldValue, "\x00chunked": ErrFieldValue,
	} {
		got, err := read("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: " + value + "\r\n\r\n")
		if err != want || err == nil && got != "POST / a -1 chunked keep" {
			t.Errorf("%q is %q, %v; want %v", value, got, err, want)
		}
	}
	for _, fields := range []string{
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: cow\r\ntransfer-encoding: chunked\r\n",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n",
	} {
		if got, err := read("POST / HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n"); err != ErrTE {
			t.Errorf("%q is %q, %v; want it refused", fields, got, err)
		}
	}
}

// S05: no byte, and no two bytes, in or around the field line make it mean anything but what it says. White space around the value is
// none of it; CRLF ends the line, and the head with it. All else is refused.
func TestTransferEncodingMutations(t *testing.T) {
	odd := []string{""}
	for b := 1; b < 256; b++ {
		if b <= ' ' || b >= 0x7f {
			odd = append(odd, string([]byte{byte(b)}))
		}
	}
	const post = "POST / HTTP/1.1\r\nHost: a\r\n"
	places := []struct {
		name          string
		before, after string
		value         bool   // white space is allowed here
		crlf          string // what a CRLF here makes of the head; empty when it is refused
	}{
		{"before the value", "Transfer-Encoding:", "chunked", true, ""},
		{"behind the value", "Transfer-Encoding: chunked", "", true, "POST / a -1 chunked keep"},
		{"in the value", "Transfer-Encoding: chu", "nked", false, ""},
		{"before the colon", "Transfer-Encoding", ": chunked", false, ""},
		{"before the name", "", "Transfer-Encoding: chunked", false, "POST / a 0 keep"},
		{"in the name", "Transfer-", "Encoding: chunked", false, ""},
	}
	n := 0
	for _, first := range odd {
		for _, second := range odd {
			bytes := first + second
			for _, p := range places {
				want := ""
				switch {
				case bytes == "" || p.value && strings.Trim(bytes, " \t") == "":
					want = "POST / a -1 chunked keep"
				case bytes == "\r\n":
					want = p.crlf
				}
				got, err := read(post + p.before + bytes + p.after + "\r\n\r\n")
				if got != want || (err == nil) != (want != "") {
					t.Errorf("%q %s: %q, %v; want %q", bytes, p.name, got, err, want)
				}
				n++
			}
		}
	}
	// Printable bytes make another field of it, or an unknown coding; they never hide a coding that others could see.
	for b := '!'; b < 0x7f; b++ {
		for _, p := range places {
			got, err := read(post + p.before + string(b) + p.after + "\r\n\r\n")
			if err == nil && (p.value || p.name == "in the value" || got != "POST / a 0 keep") {
				t.Errorf("%q %s: %q", b, p.name, got)
			}
			n++
		}
	}
	t.Logf("%d mutations", n)
}

// At least the fields that a framing depends on are found whatever their case, and never in what only looks like them.
func TestFieldNames(t *testing.T) {
	for name, want := range map[string]string{
		"content-length": "POST / a 7 keep", "CONTENT-LENGTH": "POST / a 7 keep", "cOnTeNt-LeNgTh": "POST / a 7 keep",
		"Content_Length": "POST / a 0 keep", "content_length": "POST / a 0 keep", "Content-Length2": "POST / a 0 keep", "XContent-Length": "POST / a 0 keep",
		"Content--Length": "POST / a 0 keep", "Content-Lengt": "POST / a 0 keep", "Content.Length": "POST / a 0 keep",
	} {
		if got, err := read("POST / HTTP/1.1\r\nHost: a\r\n" + name + ": 7\r\n\r\n"); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

// textLen looks at eight bytes at a time; wherever bytes stand, it says what the slow way says.
func TestTextLen(t *testing.T) {
	slow := func(v []byte) int {
		for i, b := range v {
			if b < ' ' && b != '\t' || b == 0x7f {
				return i
			}
		}
		return len(v)
	}
	for b := range 256 {
		for size := 1; size <= 20; size++ {
			for at := range size {
				for _, next := range []byte{'a', '\t', '\r', 0x7f, 0x80} {
					v := bytes.Repeat([]byte{'a', 0xff}, 10)[:size]
					v[at] = byte(b)
					v[(at+1)%size] = next
					if got, want := textLen(v), slow(v); got != want {
						t.Fatalf("%q: %d, want %d", v, got, want)
					}
				}
			}
		}
	}
}

// What the methods promise to a retry.
func TestRetryable(t *testing.T) {
	for method, want := range map[string]bool{"GET": true, "HEAD": true, "OPTIONS": true, "PUT": true, "DELETE": true, "POST": false, "PATCH": false, "get": false, "GETX": false} {
		r := Request{Method: []byte(method)}
		if r.Retryable() != want || r.IsHead() != (method == "HEAD") {
			t.Errorf("%s: retryable %v, head %v", method, r.Retryable(), r.IsHead())
		}
	}
}

func TestUserAgent(t *testing.T) {
	for fields, want := range map[string]string{"": "", "User-Agent: curl/8\r\n": "curl/8", "X: y\r\nuSER-aGENT:  x y \r\n": "x y", "User-Agent2: x\r\n": "", "User_Agent: x\r\n": ""} {
		r, _, err := parse([]byte("GET / HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n"))
		if err != nil || string(r.UserAgent()) != want {
			t.Errorf("%q: %q, %v; want %q", fields, r.UserAgent(), err, want)
		}
	}
}
