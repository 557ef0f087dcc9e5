package http1

import (
	"strings"
	"testing"
)

// The normal form of paths, and what has none.
func TestTargets(t *testing.T) {
	for _, tc := range []struct {
		target string
		err    *Error
		want   string // path and query
		slash  bool
	}{
		// As they are.
		{"/", nil, "/", false},
		{"/a/b/", nil, "/a/b/", false},
		{"/a//b", nil, "/a//b", false},
		{"/...", nil, "/...", false},
		{"/.a/..b/c./d..", nil, "/.a/..b/c./d..", false},
		{"/a.b", nil, "/a.b", false},
		{"/a;x=1/b", nil, "/a;x=1/b", false},
		{"/!$&'()*+,=:@-_~", nil, "/!$&'()*+,=:@-_~", false},
		{"/[\"<>^`{|}]", nil, "/[\"<>^`{|}]", false},
		{"/pkg.Svc/M", nil, "/pkg.Svc/M", false},
		{"/http://b/", nil, "/http://b/", false},

		// Dot segments.
		{"/pub/../admin", nil, "/admin", false},
		{"/./admin", nil, "/admin", false},
		{"/a/.", nil, "/a/", false},
		{"/a/..", nil, "/", false},
		{"/a/b/..", nil, "/a/", false},
		{"/a/b/../", nil, "/a/", false},
		{"/.", nil, "/", false},
		{"/..", nil, "/", false},
		{"/../..", nil, "/", false},
		{"/../../x", nil, "/x", false},
		{"/a/../../../b", nil, "/b", false},
		{"/a/./b/./c", nil, "/a/b/c", false},
		{"/a//../b", nil, "/a/b", false},
		{"/a/b/../../c/./d/..", nil, "/c/", false},
		{"/..a/../.b", nil, "/.b", false},

		// Percent-encoding of what needs none, then dot segments, once.
		{"/%2e", nil, "/", false},
		{"/pub/%2e%2e/admin", nil, "/admin", false},
		{"/pub/%2E./admin", nil, "/admin", false},
		{"/pub/.%2e/admin", nil, "/admin", false},
		{"/%41dmin", nil, "/Admin", false},
		{"/%7Euser/%5f%2D%30", nil, "/~user/_-0", false},
		{"/pub/%252e%252e/admin", nil, "/pub/%252e%252e/admin", false},
		{"/%252f", nil, "/%252f", false},
		{"/%25%32%65", nil, "/%252e", false},
		{"/%20%3f%23%3B%22", nil, "/%20%3f%23%3B%22", false},
		{"/%c3%a9", nil, "/%c3%a9", false},
		{"/%c0%af", nil, "/%c0%af", false},
		{"/%0d%0aX:1", nil, "/%0d%0aX:1", false},
		{"/%7f%80%ff", nil, "/%7f%80%ff", false},
		{"/..%3bx", nil, "/..%3bx", false},

		// Encoded slashes stay, and are told.
		{"/a%2fb", nil, "/a%2fb", true},
		{"/a%2Fb", nil, "/a%2Fb", true},
		{"/a%5cb", nil, "/a%5cb", true},
		{"/%2f%2f", nil, "/%2f%2f", true},
		{"/a/../b%2f", nil, "/b%2f", true},
		{"/a/%2f/../%Ce..1a", nil, "/a/%Ce..1a", false},
		{"/a/%5c/../%Ce%2F", nil, "/a/%Ce%2F", true},
		{"/a%2f...", nil, "/a%2f...", true},
		{"/a%2f..b", nil, "/a%2f..b", true},
		{"/a%2fb/%2541", nil, "/a%2fb/%2541", true},

		// Absolute.
		{"http://a/x/../y", nil, "/y", false},
		{"http://a:80", ErrHostMismatch, "", false},
		{"HTTPS://A/?", nil, "/?", false},
		{"http://a//x", ErrPath, "", false},
		{"http://a/%", ErrPercent, "", false},

		// Queries are passed on.
		{"/?a=1;b=2", nil, "/?a=1;b=2", false},
		{"/?%zz&%", nil, "/?%zz&%", false},
		{"/a/..?/../%2e%2f\\", nil, "/?/../%2e%2f\\", false},
		{"/?a?b", nil, "/?a?b", false},
		{"/?" + strings.Repeat("p&", 8000), nil, "/?" + strings.Repeat("p&", 8000), false},
		{"/?\x80", ErrTarget, "", false},
		{"/?\x7f", ErrTarget, "", false},
		{"/?a#b", ErrTarget, "", false},
		{"/?\x00", ErrTarget, "", false},
		{"/?\t", ErrTarget, "", false},

		// Ambiguous paths.
		{"//", ErrPath, "", false},
		{"//evil/x", ErrPath, "", false},
		{"///x", ErrPath, "", false},
		{"/.//x", ErrPath, "", false},
		{"/x/..//evil", ErrPath, "", false},
		{"/..//evil", ErrPath, "", false},
		{"/%2e//evil", ErrPath, "", false},
		{"/%00", ErrPath, "", false},
		{"/a/%00/b", ErrPath, "", false},
		{"/pub/..;/admin", ErrPath, "", false},
		{"/pub/..;x=1/admin", ErrPath, "", false},
		{"/.;/x", ErrPath, "", false},
		{"/..;", ErrPath, "", false},
		{"/%2e%2e;/x", ErrPath, "", false},
		{"/%2e;/x", ErrPath, "", false},
		{"/pub/..%2fadmin", ErrPath, "", false},
		{"/pub%2f..%2fadmin", ErrPath, "", false},
		{"/pub%2f%2e%2e", ErrPath, "", false},
		{"/pub%5c..%5cadmin", ErrPath, "", false},
		{"/pub/..%5cadmin", ErrPath, "", false},
		{"/pub%2f.", ErrPath, "", false},
		{"/.%2fx", ErrPath, "", false},
		{"/a%2f..;x%2fb", ErrPath, "", false},
		{"/a%2f.;%2fb", ErrPath, "", false},
		{"/a%2f..;", ErrPath, "", false},

		// Malformed percent-encoding.
		{"/%", ErrPercent, "", false},
		{"/%f", ErrPercent, "", false},
		{"/a%zz", ErrPercent, "", false},
		{"/%%32%65", ErrPercent, "", false},
		{"/%2%65", ErrPercent, "", false},
		{"/%u002e", ErrPercent, "", false},
		{"/%+1", ErrPercent, "", false},

		// Bytes that have no place in a target.
		{"/a\\b", ErrTarget, "", false},
		{"/a\\..\\b", ErrTarget, "", false},
		{"/%41\\", ErrTarget, "", false},
		{"/\xc3\xa9", ErrTarget, "", false},
		{"/\x80", ErrTarget, "", false},
		{"/%41\x80", ErrTarget, "", false},
		{"/\x01", ErrTarget, "", false},
		{"/\x7f", ErrTarget, "", false},
		{"/#frag", ErrTarget, "", false},
		{"/a#", ErrTarget, "", false},
		{"/%41#", ErrTarget, "", false},

		// Neither origin nor absolute form.
		{"*", ErrTarget, "", false},
		{"*/test", ErrTarget, "", false},
		{"admin", ErrTarget, "", false},
		{"pkg.Svc/M", ErrTarget, "", false},
		{"x:admin/secret", ErrTarget, "", false},
		{"http:example.com/admin", ErrTarget, "", false},
		{"http:http://internal/admin", ErrTarget, "", false},
		{"haproxy.org:80", ErrTarget, "", false},
		{"a:80", ErrTarget, "", false},
		{"\\x", ErrTarget, "", false},
		{"http:/x", ErrTarget, "", false},
		{"http://", ErrTarget, "", false},
		{"http:///x", ErrTarget, "", false},
		{"http://?x", ErrTarget, "", false},
		{"http://#x", ErrTarget, "", false},
		{"http://a#x", ErrTarget, "", false},
		{"http://a\\x", ErrHostMismatch, "", false},
		{"ftp://a/", ErrTarget, "", false},
		{"ws://a/", ErrTarget, "", false},
		{"?a", ErrTarget, "", false},
		{"#", ErrTarget, "", false},
		{"%2f", ErrTarget, "", false},
		{"./x", ErrTarget, "", false},
	} {
		t.Run(tc.target, func(t *testing.T) {
			r, _, err := parse([]byte("GET " + tc.target + " HTTP/1.1\r\nHost: a\r\n\r\n"))
			if err != tc.err {
				t.Fatalf("%v, want %v", err, tc.err)
			}
			if err != nil {
				return
			}
			if got := string(r.Path) + string(r.Query); got != tc.want || r.EncodedSlash != tc.slash {
				t.Errorf("%q, encoded slash %v; want %q, %v", got, r.EncodedSlash, tc.want, tc.slash)
			}
		})
	}
}

// Only OPTIONS may ask for "*", and only for that.
func TestAsterisk(t *testing.T) {
	for head, want := range map[string]*Error{"OPTIONS *": nil, "OPTIONS /": nil, "GET *": ErrTarget, "POST *": ErrTarget, "OPTIONS **": ErrTarget, "OPTIONS *?a": ErrTarget, "options *": ErrTarget} {
		if got, err := read(head + " HTTP/1.1\r\nHost: a\r\n\r\n"); err != want {
			t.Errorf("%s: %q, %v; want %v", head, got, err, want)
		}
	}
}

func TestHosts(t *testing.T) {
	label := strings.Repeat("a", 50)
	for _, tc := range []struct{ in, host, port string }{
		{"a", "a", ""},
		{"A.Example.COM", "a.example.com", ""},
		{"a.", "a", ""},
		{"a.:80", "a", ":80"},
		{"a:1", "a", ":1"},
		{"a:65535", "a", ":65535"},
		{"a_b-c.d", "a_b-c.d", ""},
		{"xn--example-.com", "xn--example-.com", ""},
		{"-a-", "-a-", ""},
		{"127.0.0.1", "127.0.0.1", ""},
		{"127.0.0.1:8080", "127.0.0.1", ":8080"},
		{"2130706433", "2130706433", ""},
		{"[::1]", "[::1]", ""},
		{"[::1]:80", "[::1]", ":80"},
		{"[2001:DB8::A]", "[2001:db8::a]", ""},
		{"[::FFFF:10.0.0.1]:9", "[::ffff:10.0.0.1]", ":9"},
		{" \ta\t ", "a", ""},
		{strings.Repeat(label+".", 5)[:254] + "b", strings.Repeat(label+".", 5)[:254] + "b", ""},
	} {
		r, _, err := parse([]byte("GET / HTTP/1.1\r\nHost:" + tc.in + "\r\n\r\n"))
		if err != nil {
			t.Errorf("%q: %v", tc.in, err)
		} else if string(r.Host) != tc.host || string(r.Port) != tc.port {
			t.Errorf("%q is %q %q, want %q %q", tc.in, r.Host, r.Port, tc.host, tc.port)
		}
	}
	refused := []string{
		"", " ", ".", "..", "..a", ".a", "a..b", "a..", ":80", ":", "a:", "a:1.2", "a:0", "a:080", "a:00080", "a:65536", "a:99999", "a:655350", "a:80:80", "a:+80", "a:-1",
		"a:8 0", "a:x", "a, b", "a,b", "a b", "a\tb", "a/", "a/b", "/a", "u@a", "u:p@a", "@", "a@", "http://a", "a?b", "a#b", "a\\b", "a%41", "a%00", "%61", "a;b", "a'b", "a\"b",
		"\"a\"", "a<b", "a>b", "a=b", "*", "*.a", "(a)", "a!", "$a", "a&b", "a+b", "{a}", "a|b", "a^b", "a`b", "~a", "é", "a\xff", "a\xa0", "\xe2\x80\xaea",
		"::1", "[", "]", "[]", "[::1", "::1]", "x[::1]", "[::1]x", "[::1]:", "[::1]:0", "[::1]80", "[::1]]", "[[::1]]", "[::1%25en0]", "[::1%en0]", "[v1.a]", "[1.2.3.4]", "[:::1]",
		"[::1]:80:80", "[12345::]", "[1:2:3:4:5:6:7]", "[1:2:3:4:5:6:7:8:9]", "[::1]@a", strings.Repeat("a", 256), strings.Repeat("a", 4096), strings.Repeat(".", 64),
	}
	for _, in := range refused {
		if got, err := read("GET / HTTP/1.1\r\nHost: " + in + "\r\n\r\n"); err != ErrHost {
			t.Errorf("%q is %q, %v; want it refused", in, got, err)
		}
	}
	for b := range 256 { // no byte but those of names, ports and addresses
		c := byte(b)
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' || c == '.' || c == '\n' {
			continue
		}
		for _, in := range []string{"a" + string([]byte{c}) + "b", "[::" + string([]byte{c}) + "]"} {
			if c == ':' && in[0] == '[' {
				continue // ":::" is in the table
			}
			if got, err := read("GET / HTTP/1.1\r\nHost: " + in + "\r\n\r\n"); err == nil {
				t.Errorf("%q is %q", in, got)
			}
		}
	}
}
