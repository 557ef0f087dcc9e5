package registry

import (
	"errors"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for s, want := range map[string]struct {
		host string
		port int
	}{
		"10.0.0.7:5001":             {"10.0.0.7", 5001},
		"127.0.0.1:1":               {"127.0.0.1", 1},
		"[2001:db8::7]:65535":       {"2001:db8::7", 65535},
		"[2001:DB8:0:0:0:0:0:7]:80": {"2001:db8::7", 80},
		"[::1]:80":                  {"::1", 80},
		"[::ffff:10.0.0.7]:80":      {"::ffff:10.0.0.7", 80},
		"localhost:80":              {"localhost", 80},
		"cart.svc.example:80":       {"cart.svc.example", 80},
		"cart.svc.example.:80":      {"cart.svc.example.", 80},
		"project_web_1:80":          {"project_web_1", 80},
		"xn--bcher-kva.example:80":  {"xn--bcher-kva.example", 80},
		"Host-1:80":                 {"Host-1", 80},
		"1host:80":                  {"1host", 80},
		"0xg:80":                    {"0xg", 80},
	} {
		host, port, err := ParseAddress(s)
		if err != nil || host != want.host || port != want.port {
			t.Errorf("ParseAddress(%q) = %q, %d, %v; want %q, %d", s, host, port, err, want.host, want.port)
		}
	}
}

func TestParseAddressRefuses(t *testing.T) {
	var hosts = []string{
		"", " ", "*", "0.0.0.0", "[::]", "[::ffff:0.0.0.0]", "224.0.0.1", "[ff02::1]", "255.255.255.255",
		"2852039166", "0x7f.1", "0x7f000001", "017700000001", "127.1", "127.0.1", "127.0.0.01", "127.0.0.1.", "010.0.0.7", "1.2.3.4.5", "256.1.1.1", "1.2.3", "a.0x1", "0x",
		"::1", "fe80::1", "[fe80::1%eth0]", "[::1", "::1]", "[]", "[10.0.0.7]", "[cart]", "[[::1]]", "x[::1]", "[::1]x",
		"user@host", "user:pw@host", "http://host", "//host", "host/path", "host?q", "host#f", "a b", "a\tb", "a\nb", "a\x00b", "a\x1b[2J", "-a", "a-", "a..b", ".a", ".", "..",
		"bücher.example", "\xff", "a,b", "a;b", "a%41", "a\u202eb", "a\u00a0b", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "b.c", strings.Repeat("a", 10000),
	}
	ports := []string{"", "0", "-1", "+80", "080", "65536", "99999999999999999999", "80 ", " 80", "8 0", "80\n", "0x50", "8_0", "8e1", "80.0", "http", "٨٠", "80/", "\"80\""}
	var bad []string
	for _, h := range hosts {
		bad = append(bad, h+":80")
	}
	for _, p := range ports {
		bad = append(bad, "10.0.0.7:"+p, "[::1]:"+p, "cart:"+p)
	}
	bad = append(bad, "", ":", ":80", "10.0.0.7", "cart", "[::1]", "10.0.0.7:80:80", "80", "unix:/run/cart.sock")
	for _, s := range bad {
		host, port, err := ParseAddress(s)
		if !errors.Is(err, ErrInvalid) || host != "" || port != 0 {
			t.Errorf("ParseAddress(%.60q) = %q, %d, %v; want ErrInvalid", s, host, port, err)
			continue
		}
		if msg := err.Error(); len(msg) > 600 || strings.ContainsAny(msg, "\x00\n\x1b\u202e") {
			t.Errorf("ParseAddress(%.60q): unsafe message %q", s, msg)
		}
	}
	for _, s := range []string{"0.0.0.0:80", "[::]:80", ":80"} {
		if _, _, err := ParseAddress(s); !errors.Is(err, ErrNotAdvertisable) {
			t.Errorf("ParseAddress(%q): %v; want ErrNotAdvertisable too", s, err)
		}
	}
}

func TestDialAddress(t *testing.T) {
	for s, want := range map[string]string{
		"10.0.0.7:5001": "10.0.0.7:5001", "[2001:db8::7]:80": "[2001:db8::7]:80", "localhost:80": "127.0.0.1:80",
		"[::ffff:10.0.0.7]:80": "10.0.0.7:80",
	} {
		if got, err := DialAddress(s); err != nil || got.String() != want {
			t.Errorf("DialAddress(%q) = %v, %v; want %s", s, got, err, want)
		}
	}
	for s, why := range map[string]string{
		"cart.example.com:80": "names are not resolved", "169.254.169.254:80": "link-local", "[fe80::1]:80": "link-local",
		"[fd00:ec2::254]:80": "link-local", "[::ffff:169.254.169.254]:80": "link-local", "10.0.0.7": "the port is missing",
	} {
		if got, err := DialAddress(s); err == nil || got.IsValid() || !strings.Contains(err.Error(), why) {
			t.Errorf("DialAddress(%q) = %v, %v; want an error that says %q", s, got, err, why)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"10.0.0.7:5001", "[::1]:80", "localhost:80", "0x7f.1:80", "[fe80::1%25en0]:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, port, err := ParseAddress(s)
		if err != nil {
			return
		}
		again := joinHostPort(host, port)
		host2, port2, err := ParseAddress(again)
		if err != nil || host2 != host || port2 != port {
			t.Fatalf("%q reads as %q, which reads as %q, %d, %v", s, again, host2, port2, err)
		}
	})
}
