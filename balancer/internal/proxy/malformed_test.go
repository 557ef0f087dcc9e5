package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// malformed are requests that must be refused, with nothing reaching an upstream. The ids are those of the catalogue of
// attacks that the rules were made for: S framing, HO host, P path.
func malformed() map[string]string {
	const h, post = "Host: a\r\n", "POST / HTTP/1.1\r\nHost: a\r\n"
	get := func(target string) string { return "GET " + target + " HTTP/1.1\r\n" + h + "\r\n" }
	te := func(v string) string { return post + "Transfer-Encoding: " + v + "\r\n\r\n0\r\n\r\n" }
	cl := func(v string) string { return post + "Content-Length: " + v + "\r\n\r\nhello" }
	host := func(v string) string { return "GET / HTTP/1.1\r\nHost: " + v + "\r\n\r\n" }
	m := map[string]string{
		"S01 CL.TE":                post + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
		"S02 TE.CL":                post + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGPOST / HTTP/1.1\r\nContent-Length: 15\r\n\r\nx=1\r\n0\r\n\r\n",
		"S03 two TE":               post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"S03 same TE twice":        post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"S03 cow first":            post + "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"S06 TE in 1.0":            "POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"S07 folded TE":            post + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\nhello",
		"S07 fold":                 "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
		"S08 space before colon":   post + "Content-Length : 5\r\n\r\nhello",
		"S08 Host":                 "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
		"S11 CL twice":             post + "Content-Length: 5\r\nContent-Length: 10\r\n\r\nhello",
		"S11 same CL twice":        post + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"S17 expect list":          post + "Content-Length: 5\r\nExpect: y 100-continue\r\n\r\nhello",
		"S17 expect empty":         post + "Content-Length: 5\r\nExpect:\r\n\r\nhello",
		"S18 bare LF":              "GET / HTTP/1.1\nHost: a\n\n",
		"S18 one bare LF":          "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
		"S18 bare CR":              "GET / HTTP/1.1\r\nHost: a\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n",
		"S18 NUL in value":         "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
		"S18 NUL in name":          "GET / HTTP/1.1\r\nHost: a\r\nX\x00: a\r\n\r\n",
		"S18 NUL in target":        get("/\x00"),
		"S18 NBSP in name":         "GET / HTTP/1.1\r\nHost: a\r\nX\xa0: a\r\n\r\n",
		"S18 NEL in name":          "GET / HTTP/1.1\r\nHost: a\r\n\x85X: a\r\n\r\n",
		"S19 two spaces":           "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
		"S19 space before version": "GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
		"S19 tab":                  "GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n",
		"S19 trailing":             "GET / HTTP/1.1 x\r\nHost: a\r\n\r\n",
		"S19 lower case":           "GET / http/1.1\r\nHost: a\r\n\r\n",
		"S19 HTTP/1":               "GET / HTTP/1\r\nHost: a\r\n\r\n",
		"S19 HTTP/01.1":            "GET / HTTP/01.1\r\nHost: a\r\n\r\n",
		"S19 HTTP/1.10":            "GET / HTTP/1.10\r\nHost: a\r\n\r\n",
		"S19 HTTP/1.2":             "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
		"S19 HTTP/2.0":             "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
		"S19 HTTP/0.9":             "GET /\r\n\r\n",
		"S19 space first":          "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
		"S19 empty method":         " / HTTP/1.1\r\nHost: a\r\n\r\n",
		"S20 CONNECT":              "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
		"S20 CONNECT path":         "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
		"S20 TRACE":                "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
		"S20 PRI":                  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"S20 long method":          strings.Repeat("G", 1024) + " / HTTP/1.1\r\nHost: a\r\n\r\n",
		"S20 odd method":           "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
		"L1 long target":           get("/" + strings.Repeat("a", 100_000)),
		"L1 long field":            "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 100_000) + "\r\n\r\n",
		"L1 long name":             "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("a", 70_000) + ": b\r\n\r\n",
		"L1 many fields":           "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: a\r\n", 10_000) + "\r\n",
		"HO1 two hosts":            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"HO1 same host twice":      "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
		"HO1 no host":              "GET / HTTP/1.1\r\n\r\n",
		"HO2 mismatch":             "GET http://evil/ HTTP/1.1\r\nHost: good\r\n\r\n",
		"HO2 user info":            "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"P4 no slash":              get("pkg.Svc/M"),
	}
	for _, v := range []string{"chunked, chunked", "gzip, chunked", "chunked, gzip", ", chunked", "chunked,", "identity", "xchunked", `"chunked"`, "chunked;x=1", "", "chunked\x0b", "\x0bchunked"} {
		m["S04 "+v] = te(v)
	}
	for b := range 256 { // around the colon, the name and the value
		c := string([]byte{byte(b)})
		if b == '\t' || b == ' ' || b == '\n' {
			continue // white space around the value is none of its
		}
		if b < ' ' || b >= 0x7f {
			m[fmt.Sprintf("S05 value %02x", b)] = te(c + "chunked")
			m[fmt.Sprintf("S05 value end %02x", b)] = te("chunked" + c)
			m[fmt.Sprintf("S05 name end %02x", b)] = post + "Transfer-Encoding" + c + ": chunked\r\n\r\n0\r\n\r\n"
			m[fmt.Sprintf("S05 name %02x", b)] = post + c + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
		}
	}
	delete(m, "S05 value end 0d") // "chunked\r\r\n" is in S18
	for _, v := range []string{"5, 5", "5, 10", "+5", "-1", "-0", "0x5", "0o5", "1_0", "5 5", "5e0", "", "٥", "18446744073709551621", "99999999999999999999", "5;", "5\x0b", "\"5\""} {
		m["S10 "+v] = cl(v)
	}
	for _, v := range []string{"", "a, b", "a b", "a/", "u@a", "a:", "a:1.2", "a:99999", "a:0", "a:080", "a:80:80", "..a", ".", "a..b", "[::1", "x[::1]", "[::1]x", "[::1%25en0]", "[v1.a]", "[]", "[1.2.3.4]", "\x02",
		"é", "a\xff", strings.Repeat("a", 4096), "a,b", "a;b", "a'b", "a\"b", "a<b", "a%41", "a?b", "a#b", "a\\b", "a=b", "*", "a*", "(a)", "a!", "$a", "a&b", "a+b", "{a}", "a|b", "a^b", "a`b", "~a", "http://a"} {
		m["HO1 "+v] = host(v)
	}
	for _, v := range []string{"x:admin/secret", "http:example.com/admin", "http:http://internal/admin", "haproxy.org:80", "admin", "*", "*/test", "//evil/x", "///x", "\\x", "/a\\..\\b", "http:/x", "http://", "http:///x", "ftp://a/", "/#frag", "/a#", "?a",
		"/%", "/%f", "/a%zz", "/%00", "/a/%00/b", "/\xc3\xa9", "/\x80", "/a b", "/\x7f", "/pub/..;/admin", "/pub/..;x=1/admin", "/.;/x", "/?a=\x80", "/?a#b", "/x/..//evil", "//", "/%2e%2e;/x"} {
		m["P "+v] = get(v)
	}
	return m
}

// Every malformed request is refused, on both engines; the connection is closed, and not a byte reaches the upstream.
func TestMalformedRequests(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := echo(t)
		r := start(t, engine, Settings{}, up.address)
		table := malformed()
		t.Logf("%d malformed requests", len(table))
		t.Run("all", func(t *testing.T) {
			for name, bytes := range table {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					c := r.dial()
					c.t = t
					go io.WriteString(c.Conn, bytes+"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
					resp, err := http.ReadResponse(c.r, nil)
					if err != nil {
						t.Fatalf("no answer: %v", err)
					}
					body, _ := io.ReadAll(resp.Body)
					if resp.StatusCode < 400 || resp.StatusCode > 505 || !resp.Close || resp.Header.Get("X-Rota-Reason") != "bad_request" {
						t.Errorf("answered %d, close %v: %s", resp.StatusCode, resp.Close, body)
					}
					if rest, _ := io.ReadAll(c.r); len(rest) > 0 {
						t.Errorf("a second answer: %q", rest)
					}
				})
			}
		})
		if seen := up.bytes(); seen != "" {
			t.Errorf("the upstream saw %q", seen)
		}
	})
}

// Chunked bodies that are wrong are refused, and the upstream never sees a complete message.
func TestMalformedChunks(t *testing.T) {
	bodies := map[string]string{
		"S13 size LF": "5\nhello\r\n0\r\n\r\n", "S13 size CR": "5\rhello\r\n0\r\n\r\n", "S13 data LF": "5\r\nhello\n0\r\n\r\n", "S13 no end": "5\r\nhello0\r\n\r\n", "S13 last LF": "5\r\nhello\r\n0\r\n\n",
		"S14 ext LF": "5;\nhello\r\n0\r\n\r\n", "S14 ext NUL": "5;\x00a\r\nhello\r\n0\r\n\r\n", "S14 ext CRLF": "5;a=\"\r\nGET /x\"\r\nhello\r\n0\r\n\r\n", "S14 long ext": "5;" + strings.Repeat("a", 5000) + "\r\nhello\r\n0\r\n\r\n",
		"S14 many ext": strings.Repeat("1;"+strings.Repeat("e", 200)+"\r\nx\r\n", 2000) + "0\r\n\r\n",
		"S15 spill":    "5\r\nhello!!\r\n0\r\n\r\n",
		"S16 trailer":  "5\r\nhello\r\n0\r\nbad trailer\r\n\r\n", "S16 fold": "5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n", "S16 long": "5\r\nhello\r\n0\r\nA: " + strings.Repeat("b", 10_000) + "\r\n\r\n",
	}
	for _, size := range []string{"0x5", "+5", "-1", " 5", "5 ", "1_0", "5\t", "", "FFFFFFFFFFFFFFFF", "FFFFFFFFFFFFFFFFF", "00000000000000000005", "g", "5,5", "\x005"} {
		bodies["S12 "+size] = size + "\r\nhello\r\n0\r\n\r\n"
	}
	eachEngine(t, func(t *testing.T, engine string) {
		for name, body := range bodies {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				for _, split := range []bool{false, true} {
					up := echo(t)
					r := start(t, engine, Settings{}, up.address)
					c := r.dial()
					head := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
					if split { // the body comes after the head has gone to the upstream
						c.send(head)
						for up.bytes() == "" {
						}
						head = ""
					}
					go io.WriteString(c.Conn, head+body)
					if resp, _ := c.answer("POST"); resp.StatusCode != 400 {
						t.Errorf("split %v: answered %d", split, resp.StatusCode)
					}
					req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(up.bytes())))
					if err == nil {
						_, err = io.ReadAll(req.Body)
					}
					if err == nil {
						t.Errorf("split %v: the upstream saw a whole request: %q", split, up.bytes())
					}
				}
			})
		}
	})
}

// What is accepted in a form that others could misread reaches the upstream in one form only.
func TestNormalisedRequests(t *testing.T) {
	const tail = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: %s\r\nVia: 1.1 rota\r\n\r\n"
	eachEngine(t, func(t *testing.T, engine string) {
		for name, tc := range map[string]struct{ send, want, host string }{
			"P2 dots":          {"GET /pub/../admin HTTP/1.1\r\nHost: a\r\n\r\n", "GET /admin HTTP/1.1\r\nHost: a\r\n", "a"},
			"P2 encoded dots":  {"GET /pub/%2e%2E/admin HTTP/1.1\r\nHost: a\r\n\r\n", "GET /admin HTTP/1.1\r\nHost: a\r\n", "a"},
			"P2 half encoded":  {"GET /pub/%2E./admin HTTP/1.1\r\nHost: a\r\n\r\n", "GET /admin HTTP/1.1\r\nHost: a\r\n", "a"},
			"P2 beyond root":   {"GET /../../x HTTP/1.1\r\nHost: a\r\n\r\n", "GET /x HTTP/1.1\r\nHost: a\r\n", "a"},
			"P2 one dot":       {"GET /./admin/. HTTP/1.1\r\nHost: a\r\n\r\n", "GET /admin/ HTTP/1.1\r\nHost: a\r\n", "a"},
			"P2 twice encoded": {"GET /pub/%252e%252e/x HTTP/1.1\r\nHost: a\r\n\r\n", "GET /pub/%252e%252e/x HTTP/1.1\r\nHost: a\r\n", "a"},
			"P2 query":         {"GET /?a=1;b=2&c=%zz HTTP/1.1\r\nHost: a\r\n\r\n", "GET /?a=1;b=2&c=%zz HTTP/1.1\r\nHost: a\r\n", "a"},
			"P2 CRLF encoded":  {"GET /%0d%0aX:1 HTTP/1.1\r\nHost: a\r\n\r\n", "GET /%0d%0aX:1 HTTP/1.1\r\nHost: a\r\n", "a"},
			"P3 case":          {"GET /%41dmin HTTP/1.1\r\nHost: A.COM.\r\n\r\n", "GET /Admin HTTP/1.1\r\nHost: a.com\r\n", "a.com"},
			"P slash on any":   {"GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n", "GET /a%2fb HTTP/1.1\r\nHost: a\r\n", "a"},
			"absolute":         {"GET http://A:81/x?y HTTP/1.1\r\nHost: a:81\r\n\r\n", "GET /x?y HTTP/1.1\r\nHost: a:81\r\n", "a:81"},
			"absolute, empty":  {"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n", "a"},
			"OPTIONS *":        {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n", "a"},
			"v6":               {"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", "GET / HTTP/1.1\r\nHost: [::1]:8080\r\n", "[::1]:8080"},
			"S05 white space":  {"POST / HTTP/1.1\r\nHost:\ta \r\nTransfer-Encoding: \tchunked\t\r\n\r\n0\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n", "a"},
			"S09 twin":         {"POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\nContent_Length: 0\r\nContent-Length: 2\r\n\r\nhi", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n", "a"},
			"S11 zeros":        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 002\r\n\r\nhi", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n", "a"},
			"S16 trailers":     {"POST / HTTP/1.1\r\nHost: a\r\nTrailer: Host\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: evil\r\nContent-Length: 50\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n", "a"},
			"empty line first": {"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n", "a"},
			"odd method":       {"GPOST / HTTP/1.1\r\nHost: a\r\n\r\n", "GPOST / HTTP/1.1\r\nHost: a\r\n", "a"},
		} {
			t.Run(name, func(t *testing.T) {
				up := echo(t)
				r := start(t, engine, Settings{}, up.address)
				c := r.dial()
				c.send(tc.send)
				if resp, body := c.answer("GET"); resp.StatusCode != 200 {
					t.Fatalf("answered %d %s", resp.StatusCode, body)
				}
				head, body, _ := strings.Cut(up.bytes(), "\r\n\r\n")
				if want := tc.want + fmt.Sprintf(tail, tc.host); head+"\r\n\r\n" != want {
					t.Errorf("upstream saw\n%q, want\n%q", head, want)
				}
				if strings.Contains(body, "evil") {
					t.Errorf("trailers reached the upstream: %q", body)
				}
			})
		}
	})
}

// Whatever the encoding, what the upstream gets lies under the prefix that was matched.
func TestPathsStayUnderTheirPrefix(t *testing.T) {
	t.Parallel()
	var paths []string
	for _, dots := range []string{"..", "%2e%2e", "%2E.", ".%2e", "..;", "%2e%2e;x", "%252e%252e", "...", ".", "%2e"} {
		for _, slash := range []string{"/", "%2f", "%2F", "\\", "%5c", "//", "%252f"} {
			paths = append(paths, "/pub"+slash+dots+slash+"admin", "/pub/x"+slash+dots+slash+dots+slash+"admin", "/pub/"+dots+"/pub/ok")
		}
	}
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel()
		up := echo(t)
		r := start(t, engine, Settings{}, up.address)
		refused, served := 0, 0
		for _, host := range []string{"prefix", "strip", "exact"} {
			for _, p := range paths {
				c := r.dial()
				query := fmt.Sprintf("?%d", refused+served)
				c.send("GET " + p + query + " HTTP/1.1\r\nHost: " + host + ".example.com\r\n\r\n")
				resp, body := c.answer("GET")
				c.Close()
				if resp.StatusCode == 400 {
					refused++
					continue
				}
				served++
				all := r.wait(refused + served)
				rec := all[slices.IndexFunc(all, func(rec Record) bool { return string(rec.Query) == query })]
				got, _, _ := strings.Cut(strings.Fields(body)[1], "?")
				clean := strings.NewReplacer("%2f", "/", "%2F", "/", "%5c", "/", "\\", "/").Replace(got)
				if rec.Route.Name != "all" && (strings.Contains(clean, "/../") || strings.HasSuffix(clean, "/..") || rec.Route.Name == "prefix" && got != "/pub" && !strings.HasPrefix(got, "/pub/")) {
					t.Errorf("%s on route %s reached the upstream as %s", p, rec.Route.Name, got)
				}
			}
		}
		t.Logf("%d refused, %d served under their prefix", refused, served)
	})
}
