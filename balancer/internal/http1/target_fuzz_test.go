package http1

import (
	"bytes"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

// targetSeeds are those of the corpora: ambiguous, opaque and climbing targets.
var targetSeeds = []string{
	"/", "/a/b/", "/a//b", "/pub/../admin", "/pub/%2e%2e/admin", "/pub/%2E./admin", "/pub/..%2fadmin", "/pub%2f..%2fadmin", "/pub/..;/admin", "/pub//admin",
	"/./admin", "/pub/%252e%252e/admin", "/%c0%af", "/%00", "/%0d%0aX:1", "/%", "/%f", "/a%zz", "/é", "/\x80", "/#frag", "/?a=1;b=2", "/?%zz", "/ADMIN", "/%41dmin",
	"/a%2f.;%2fb", "/x/..//evil", "/%2e//evil", "/..%3bx", "/%25%32%65", "/%7f%80%ff", "/a/b/../../c/./d/..", "/a/..?/../%2e%2f\\", "/a/%2f/../%Ce..1a",
	"x:admin/secret", "http:example.com/admin", "http:http://internal/admin", "haproxy.org:80", "admin", "*", "*/test", "//evil/x", "///x", "\\x", "/a\\..\\b", "http:/x",
	"http://a/x/../y", "HTTPS://A/?", "http://a//x", "http://evil/", "http://u@a/", "http://a:80/", "pkg.Svc/M",
}

// hostSeeds are those of the corpora.
var hostSeeds = []string{
	"a", "A.Example.COM", "a.", "a.:80", "a:1", "a:65535", "a_b-c.d", "xn--example-.com", "127.0.0.1:8080", "[::1]", "[::1]:80", "[2001:DB8::A]", "[::FFFF:10.0.0.1]:9", " \ta\t ",
	"", "a, b", "a b", "a/", "u@a", "a:", "a:1.2", "a:99999", "a:80:80", "..a", ".", "[::1", "x[::1]", "[::1%25en0]", "\x02", "é", "a..b", "a:0", "a:080", "[]", "[1.2.3.4]", "[::1]x", "a%00",
	strings.Repeat("a", 255), strings.Repeat("a", 4096), "!$&'()*;=", "a,b", "a\tb", "\"a\"",
}

// The path that is matched is the path that is forwarded; it is its own normal form, holds nothing that another reader takes
// for a way up or for the end of the path, and the query goes on as it came.
func FuzzTarget(f *testing.F) {
	for _, s := range targetSeeds {
		f.Add("GET", s)
	}
	f.Add("OPTIONS", "*")
	f.Fuzz(func(t *testing.T, method, target string) {
		r, rest, err := parse([]byte(method + " " + target + " HTTP/1.1\r\nHost: a\r\n\r\n"))
		if err != nil || len(rest) > 0 {
			return // a line end in it makes another request
		}
		if string(r.Path) == "*" {
			if string(r.Method) != "OPTIONS" || len(r.Query) > 0 {
				t.Fatalf("%s %q was accepted", r.Method, target)
			}
			return
		}
		path := string(r.Path)
		if path == "" || path[0] != '/' || strings.HasPrefix(path, "//") {
			t.Fatalf("%q became the path %q", target, path)
		}
		for _, c := range []byte(path) {
			if c <= ' ' || c >= 0x7f || strings.IndexByte("\\#?", c) >= 0 {
				t.Fatalf("%q became the path %q, with %q in it", target, path, c)
			}
		}
		decoded, bad := url.PathUnescape(path)
		if bad != nil || strings.Contains(decoded, "\x00") {
			t.Fatalf("%q became the path %q: %q, %v", target, path, decoded, bad)
		}
		// As a reader takes it that decodes slashes, or takes what follows a semicolon for a parameter.
		split := func(c rune) bool { return c == '/' || c == '\\' }
		climbs := strings.FieldsFunc(path, split)
		if r.EncodedSlash {
			climbs = append(climbs, strings.FieldsFunc(decoded, split)...)
		} else if strings.Count(decoded, "/")+strings.Count(decoded, "\\") != strings.Count(path, "/") {
			t.Fatalf("%q became the path %q: an encoded slash that nobody is told of", target, path)
		}
		for _, segment := range climbs {
			if !strings.Contains(path, segment) {
				continue // of the decoded path, and no more than an encoded semicolon makes it one
			}
			if name, _, _ := strings.Cut(segment, ";"); name == "." || name == ".." {
				t.Fatalf("%q became the path %q, with the segment %q", target, path, segment)
			}
		}
		if _, query, ok := strings.Cut(target, "?"); ok && string(r.Query) != "?"+query || !ok && len(r.Query) > 0 {
			t.Fatalf("the query of %q became %q", target, r.Query)
		}
		hop := Hop{Peer: netip.MustParseAddr("192.0.2.1"), Proto: "http", Via: "rota"}
		line, _, _ := bytes.Cut(AppendRequest(nil, r, &hop), []byte("\r\n"))
		if want := string(r.Method) + " " + path + string(r.Query) + " HTTP/1.1"; string(line) != want {
			t.Fatalf("matched %q, forwarded %q", want, line)
		}
		again, _, err := parse([]byte("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n"))
		if err != nil || string(again.Path) != path || again.EncodedSlash != r.EncodedSlash {
			t.Fatalf("%q became %q, and that %q, %v", target, path, again.Path, err)
		}
	})
}

// A host that is accepted is a name or an address and nothing else, in the one form that routes are looked up by, and goes
// upstream as it was understood.
func FuzzHost(f *testing.F) {
	for _, s := range hostSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		r, rest, err := parse([]byte("GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n"))
		if err != nil || len(rest) > 0 || strings.ContainsAny(host, "\r\n") {
			return
		}
		name, port := string(r.Host), string(r.Port)
		given := strings.Trim(host, " \t")
		if !strings.EqualFold(name+port, given) && !strings.EqualFold(name+"."+port, given) {
			t.Fatalf("%q was read as %q %q", host, name, port)
		}
		if name != strings.ToLower(name) || name == "" || len(given) > maxHost {
			t.Fatalf("%q was read as %q", host, name)
		}
		if inner, ok := strings.CutPrefix(name, "["); ok {
			if a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]")); err != nil || !a.Is6() || a.Zone() != "" || !strings.HasSuffix(name, "]") {
				t.Fatalf("%q was read as the address %q", host, name)
			}
		} else {
			for label := range strings.SplitSeq(name, ".") {
				if label == "" || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
					t.Fatalf("%q was read as the name %q", host, name)
				}
			}
		}
		if port != "" {
			if ap, err := netip.ParseAddrPort("127.0.0.1" + port); err != nil || ap.Port() == 0 || port[1] == '0' {
				t.Fatalf("%q was read with the port %q", host, port)
			}
		}
		hop := Hop{Peer: netip.MustParseAddr("192.0.2.1"), Proto: "http", Via: "rota"}
		again, _, err := parse(AppendRequest(nil, r, &hop))
		if err != nil || string(again.Host) != name || string(again.Port) != port {
			t.Fatalf("%q was read as %q %q and forwarded as %q %q, %v", host, name, port, again.Host, again.Port, err)
		}
	})
}
