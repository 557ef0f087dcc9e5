package http1

import (
	"net/netip"
	"strings"
	"testing"
)

// chain parses a request with these header lines, for the walker.
func chain(t testing.TB, lines string) *Request {
	t.Helper()
	var r Request
	if err := r.Parse([]byte("GET / HTTP/1.1\r\nHost: a\r\n" + lines + "\r\n")); err != nil {
		t.Skip(err)
	}
	return &r
}

// trusted are 10.0.0.0/8, loopback and fd00::/8.
func trusted(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback()
}

func TestForwardedFor(t *testing.T) {
	const peer = "10.0.0.1"
	many := "X-Forwarded-For: 203.0.113.1" + strings.Repeat(", 10.0.0.2", MaxHops+5) + "\r\n"
	for _, tc := range []struct{ lines, want string }{
		{"", peer},
		{"X-Forwarded-For: 203.0.113.7\r\n", "203.0.113.7"},
		{"X-Forwarded-For: 198.51.100.1, 203.0.113.7\r\n", "203.0.113.7"}, // what the client wrote itself is not believed
		{"X-Forwarded-For: 203.0.113.7, 10.0.0.9\r\n", "203.0.113.7"},
		{"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For: 10.0.0.9\r\n", "203.0.113.7"},
		{"X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 203.0.113.7\r\n", "203.0.113.7"},
		{"X-Forwarded-For: 10.0.0.9, 10.0.0.8\r\n", "10.0.0.9"},
		{"X-Forwarded-For: nonsense, 10.0.0.8\r\n", "10.0.0.8"},
		{"X-Forwarded-For: unknown\r\n", peer},
		{"X-Forwarded-For: ,, 203.0.113.7 ,\r\n", "203.0.113.7"},
		{"X-Forwarded-For: 203.0.113.7:1234\r\n", "203.0.113.7"},
		{"X-Forwarded-For: [2001:db8::1]:1234\r\n", "2001:db8::1"},
		{"X-Forwarded-For: 2001:db8::1\r\n", "2001:db8::1"},
		{"X-Forwarded-For: ::ffff:203.0.113.7\r\n", "203.0.113.7"},
		{"X-Forwarded-For: fe80::1%eth0\r\n", peer},
		{"X-Forwarded-For: 203.0.113.7:99999\r\n", peer},
		{"X-Forwarded-For: 203.0.113.007\r\n", peer},
		{"X-Forwarded-For: [203.0.113.7]\r\n", peer},
		{"Forwarded: for=203.0.113.7;proto=https\r\n", "203.0.113.7"},
		{"Forwarded: for=198.51.100.1, for=\"[2001:db8::1]:80\"\r\n", "2001:db8::1"},
		{"Forwarded: proto=https;For=203.0.113.7;by=10.0.0.3, for=10.0.0.9\r\n", "203.0.113.7"},
		{"Forwarded: for=_hidden, for=10.0.0.9\r\n", "10.0.0.9"},
		{"Forwarded: proto=https\r\n", peer},
		{"Forwarded: for=203.0.113.7\r\nX-Forwarded-For: 198.51.100.2\r\n", "198.51.100.2"}, // one chain, never both
		{many, "10.0.0.2"},
	} {
		if got := ForwardedFor(chain(t, tc.lines), netip.MustParseAddr(peer), trusted); got.String() != tc.want {
			t.Errorf("%.80q: %v, want %s", tc.lines, got, tc.want)
		}
	}
}

// Whatever is sent, the client is the peer, or an address that stands in the request behind nothing but trusted ones.
func FuzzForwardedFor(f *testing.F) {
	for _, s := range []string{"203.0.113.7, 10.0.0.9", "for=\"[2001:db8::1]:80\"", ",,", "\"", "[", "1.2.3.4:", "for=", "a:b:c"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	peer := netip.MustParseAddr("10.0.0.1")
	f.Fuzz(func(t *testing.T, value string, forwarded bool) {
		name := "X-Forwarded-For"
		if forwarded {
			name = "Forwarded"
		}
		got := ForwardedFor(chain(t, name+": "+value+"\r\n"), peer, trusted)
		if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("%q: %v", value, got)
		}
		if last := value[strings.LastIndexByte(value, ',')+1:]; got != peer && !trusted(got) && !forwarded && !strings.Contains(value, ",") {
			if a, ok := parseNode([]byte(strings.Trim(last, " \t"))); !ok || a != got {
				t.Fatalf("%q: %v", value, got)
			}
		}
	})
}

func TestPasses(t *testing.T) {
	for fields, want := range map[string]int{
		"":                                      0,
		"Via: 1.1 rota-1\r\n":                   1,
		"Via: 1.1 rota-1, 1.0 rota-1\r\n":       2,
		"Via: 1.1 rota-12\r\nVia: 1.1 rota\r\n": 0,
		"via: HTTP/1.1 rota-1 (a comment),1.1 x,\t2 \t rota-1\r\nVia: 1.1 rota-1\r\n": 3,
		"Via: rota-1\r\nVia: ,,\r\nVia:\r\n":                                          0,
		"X-Via: 1.1 rota-1\r\n":                                                       0,
	} {
		var r Request
		if err := r.Parse([]byte("GET / HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n")); err != nil {
			t.Fatal(err)
		}
		if got := r.Passes("rota-1"); got != want {
			t.Errorf("%q: %d, want %d", fields, got, want)
		}
	}
}
