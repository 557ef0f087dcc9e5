package proxyproto

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
)

// block makes a header of version 2.
func block(command, family byte, body string) string {
	b := append([]byte(signature), command, family)
	return string(binary.BigEndian.AppendUint16(b, uint16(len(body)))) + body
}

func extension(kind byte, value string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value)))) + value
}

// checked ends a block in a checksum, which is off by some.
func checked(addresses string, off uint32) string {
	h := []byte(block(0x21, 0x11, addresses+extension(3, "\x00\x00\x00\x00")))
	sum := crc32.Checksum(h, crc32.MakeTable(crc32.Castagnoli)) + off
	binary.BigEndian.PutUint32(h[len(h)-4:], sum)
	return string(h)
}

const (
	four = "\x0a\x00\x00\x01\x0a\x00\x00\x02\x1f\x90\x01\xbb" // 10.0.0.1:8080 to 10.0.0.2:443
	one6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
	six  = one6 + one6 + "\x1f\x90\x01\xbb"
)

var good = []struct {
	name, header        string
	source, destination string // empty is local
}{
	{"v1 four", "PROXY TCP4 10.0.0.1 10.0.0.2 8080 443\r\n", "10.0.0.1:8080", "10.0.0.2:443"},
	{"v1 six", "PROXY TCP6 2001:db8::1 2001:db8::2 8080 443\r\n", "[2001:db8::1]:8080", "[2001:db8::2]:443"},
	{"v1 mapped", "PROXY TCP6 ::ffff:10.0.0.1 ::ffff:10.0.0.2 8080 443\r\n", "10.0.0.1:8080", "10.0.0.2:443"},
	{"v1 ports at the ends", "PROXY TCP4 10.0.0.1 10.0.0.2 0 65535\r\n", "10.0.0.1:0", "10.0.0.2:65535"},
	{"v1 unknown", "PROXY UNKNOWN\r\n", "", ""},
	{"v1 unknown with words", "PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", "", ""},
	{"v2 four", block(0x21, 0x11, four), "10.0.0.1:8080", "10.0.0.2:443"},
	{"v2 six", block(0x21, 0x21, six), "[2001:db8::1]:8080", "[2001:db8::1]:443"},
	{"v2 local", block(0x20, 0x00, ""), "", ""},
	{"v2 local with addresses", block(0x20, 0x11, four), "", ""},
	{"v2 unspecified", block(0x21, 0x00, ""), "", ""},
	{"v2 extensions", block(0x21, 0x11, four+extension(1, "h2")+extension(4, "")), "10.0.0.1:8080", "10.0.0.2:443"},
	{"v2 checksum", checked(four, 0), "10.0.0.1:8080", "10.0.0.2:443"},
}

// TestParse also feeds each header byte by byte: nothing but the whole is an answer, and what follows is left alone.
func TestParse(t *testing.T) {
	for _, c := range good {
		t.Run(c.name, func(t *testing.T) {
			for i := range len(c.header) {
				if h, n, err := Parse([]byte(c.header[:i])); n != 0 || err != nil || h != (Header{}) {
					t.Fatalf("after %d bytes: %v, %d, %v", i, h, n, err)
				}
			}
			want := Header{Local: true}
			if c.source != "" {
				want = Header{Source: netip.MustParseAddrPort(c.source), Destination: netip.MustParseAddrPort(c.destination)}
			}
			for _, rest := range []string{"", "\n", "GET / HTTP/1.1\r\n\r\n", c.header} {
				h, n, err := Parse([]byte(c.header + rest))
				if h != want || n != len(c.header) || err != nil {
					t.Errorf("before %q: %v, %d, %v, want %v, %d", rest, h, n, err, want, len(c.header))
				}
			}
		})
	}
}

// TestMalformed says after how many bytes each is refused at the latest.
func TestMalformed(t *testing.T) {
	v1 := func(s string) string { return "PROXY " + s + "\r\n" }
	for _, c := range []struct {
		name, header string
		at           int // zero is at the end
		want         error
	}{
		{"http", "GET / HTTP/1.1\r\n", 1, ErrNoHeader},
		{"post", "POST / HTTP/1.1\r\n", 2, ErrNoHeader},
		{"tls", "\x16\x03\x01\x02\x00", 1, ErrNoHeader},
		{"nothing", "\x00", 1, ErrNoHeader},
		{"lower case", "proxy TCP4", 1, ErrNoHeader},
		{"mixed case", "PROXy TCP4", 5, ErrNoHeader},
		{"space before", " PROXY UNKNOWN\r\n", 1, ErrNoHeader},
		{"tab", "PROXY\tUNKNOWN\r\n", 6, ErrNoHeader},
		{"no space", "PROXYUNKNOWN\r\n", 6, ErrNoHeader},
		{"empty line", "PROXY \r\n", 0, ErrMalformed},
		{"line feed alone", "PROXY UNKNOWN\n", 0, ErrMalformed},
		{"carriage return inside", "PROXY UNK\rNOWN\r\n", 11, ErrMalformed},
		{"zero byte", v1("TCP4 10.0.0.1\x00 10.0.0.2 1 2"), 20, ErrMalformed},
		{"not ASCII", v1("TCP4 10.0.0.1\xff 10.0.0.2 1 2"), 20, ErrMalformed},
		{"tab between", v1("TCP4\t10.0.0.1 10.0.0.2 1 2"), 11, ErrMalformed},
		{"unknown, longer", v1("UNKNOWNX"), 0, ErrMalformed},
		{"unknown, lower case", v1("unknown"), 0, ErrMalformed},
		{"udp", v1("UDP4 10.0.0.1 10.0.0.2 1 2"), 0, ErrMalformed},
		{"tcp5", v1("TCP5 10.0.0.1 10.0.0.2 1 2"), 0, ErrMalformed},
		{"tcp", v1("TCP 10.0.0.1 10.0.0.2 1 2"), 0, ErrMalformed},
		{"no addresses", v1("TCP4"), 0, ErrMalformed},
		{"one port", v1("TCP4 10.0.0.1 10.0.0.2 1"), 0, ErrMalformed},
		{"three ports", v1("TCP4 10.0.0.1 10.0.0.2 1 2 3"), 0, ErrMalformed},
		{"space after", v1("TCP4 10.0.0.1 10.0.0.2 1 2 "), 0, ErrMalformed},
		{"two spaces", v1("TCP4  10.0.0.1 10.0.0.2 1 2"), 0, ErrMalformed},
		{"six as four", v1("TCP4 2001:db8::1 2001:db8::2 1 2"), 0, ErrMalformed},
		{"four as six", v1("TCP6 10.0.0.1 10.0.0.2 1 2"), 0, ErrMalformed},
		{"families mixed", v1("TCP6 2001:db8::1 10.0.0.2 1 2"), 0, ErrMalformed},
		{"three bytes", v1("TCP4 10.0.1 10.0.0.2 1 2"), 0, ErrMalformed},
		{"byte too big", v1("TCP4 10.0.0.256 10.0.0.2 1 2"), 0, ErrMalformed},
		{"leading zero", v1("TCP4 10.0.0.01 10.0.0.2 1 2"), 0, ErrMalformed},
		{"zone", v1("TCP6 fe80::1%eth0 fe80::2 1 2"), 0, ErrMalformed},
		{"brackets", v1("TCP6 [2001:db8::1] 2001:db8::2 1 2"), 0, ErrMalformed},
		{"name", v1("TCP4 localhost 10.0.0.2 1 2"), 0, ErrMalformed},
		{"port too big", v1("TCP4 10.0.0.1 10.0.0.2 65536 2"), 0, ErrMalformed},
		{"port negative", v1("TCP4 10.0.0.1 10.0.0.2 -1 2"), 0, ErrMalformed},
		{"port with sign", v1("TCP4 10.0.0.1 10.0.0.2 +1 2"), 0, ErrMalformed},
		{"port with zero", v1("TCP4 10.0.0.1 10.0.0.2 01 2"), 0, ErrMalformed},
		{"port in hex", v1("TCP4 10.0.0.1 10.0.0.2 0x1 2"), 0, ErrMalformed},
		{"line too long", v1("UNKNOWN " + strings.Repeat("x", 92)), 107, ErrTooLong},
		{"line without end", "PROXY " + strings.Repeat("x", 200), 107, ErrTooLong},
		{"signature broken", "\r\n\r\n\x00\r\nQUIX\n", 11, ErrNoHeader},
		{"empty lines", "\r\n\r\nGET", 5, ErrNoHeader},
		{"version 1 as block", block(0x11, 0x11, four), 13, ErrMalformed},
		{"version 3", block(0x31, 0x11, four), 13, ErrMalformed},
		{"command 2", block(0x22, 0x11, four), 13, ErrMalformed},
		{"udp block", block(0x21, 0x12, four), 14, ErrMalformed},
		{"unix block", block(0x21, 0x31, strings.Repeat("x", 216)), 14, ErrMalformed},
		{"family 4", block(0x21, 0x41, four), 14, ErrMalformed},
		{"four too short", block(0x21, 0x11, four[1:]), 16, ErrMalformed},
		{"six too short", block(0x21, 0x21, six[1:]), 16, ErrMalformed},
		{"six with four", block(0x21, 0x21, four), 16, ErrMalformed},
		{"block too long", block(0x21, 0x11, strings.Repeat("\x00", MaxHeader)), 16, ErrTooLong},
		{"extension cut", block(0x21, 0x11, four+"\x01\x00"), 0, ErrMalformed},
		{"extension too long", block(0x21, 0x11, four+"\x01\x00\x05abcd"), 0, ErrMalformed},
		{"extension of local", block(0x20, 0x00, "\x01"), 0, ErrMalformed},
		{"checksum short", block(0x21, 0x11, four+extension(3, "abc")), 0, ErrMalformed},
		{"checksum wrong", checked(four, 1), 0, ErrChecksum},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := c.at
			if at == 0 {
				at = len(c.header)
			}
			for i := 1; i <= len(c.header); i++ {
				h, n, err := Parse([]byte(c.header[:i]))
				if n != 0 || h != (Header{}) {
					t.Fatalf("after %d bytes: %v, %d", i, h, n)
				}
				if err != nil && i < at {
					t.Fatalf("refused after %d bytes, want %d: %v", i, at, err)
				}
				if i >= at && !errors.Is(err, c.want) {
					t.Fatalf("after %d bytes: %v, want %v", i, err, c.want)
				}
			}
		})
	}
}

func TestAppend(t *testing.T) {
	for _, c := range []struct{ source, destination, v1 string }{
		{"10.0.0.1:8080", "10.0.0.2:443", "PROXY TCP4 10.0.0.1 10.0.0.2 8080 443\r\n"},
		{"[::ffff:10.0.0.1]:8080", "10.0.0.2:443", "PROXY TCP4 10.0.0.1 10.0.0.2 8080 443\r\n"},
		{"[2001:db8::1]:1", "[2001:db8::2]:2", "PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n"},
		{"10.0.0.1:1", "[2001:db8::2]:2", "PROXY TCP6 ::ffff:10.0.0.1 2001:db8::2 1 2\r\n"},
		{"[fe80::1%eth0]:1", "[fe80::2]:2", "PROXY TCP6 fe80::1 fe80::2 1 2\r\n"},
		{"", "10.0.0.2:443", "PROXY UNKNOWN\r\n"},
	} {
		var source netip.AddrPort
		if c.source != "" {
			source = netip.MustParseAddrPort(c.source)
		}
		destination := netip.MustParseAddrPort(c.destination)
		if got := string(AppendV1([]byte("x"), source, destination)); got != "x"+c.v1 {
			t.Errorf("%s: %q, want %q", c.source, got, c.v1)
		}
		one, _, err1 := Parse(AppendV1(nil, source, destination))
		two, _, err2 := Parse(AppendV2(nil, source, destination))
		if err1 != nil || err2 != nil || one != two {
			t.Errorf("%s: read back as %v, %v and %v, %v", c.source, one, err1, two, err2)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range good {
		f.Add([]byte(c.header))
	}
	f.Add([]byte("PROXY TCP4 10.0.0.1"))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte(block(0x21, 0x11, four+"\x01\x00\x05abcd")))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		if n < 0 || n > len(b) || n > MaxHeader || (n == 0 || err != nil) && h != (Header{}) || err != nil && n != 0 {
			t.Fatalf("%v, %d, %v of %d bytes", h, n, err, len(b))
		}
		if n == 0 {
			if err == nil && len(b) >= MaxHeader {
				t.Fatalf("%d bytes are not enough", len(b))
			}
			return
		}
		if again, m, err := Parse(b[:n]); again != h || m != n || err != nil {
			t.Fatalf("the header alone: %v, %d, %v, want %v, %d", again, m, err, h, n)
		}
		if before, m, err := Parse(b[:n-1]); m != 0 || err != nil {
			t.Fatalf("without its last byte: %v, %d, %v", before, m, err)
		}
		for _, out := range [][]byte{AppendV1(nil, h.Source, h.Destination), AppendV2(nil, h.Source, h.Destination)} {
			if back, m, err := Parse(out); back != h || m != len(out) || err != nil {
				t.Fatalf("%q is read back as %v, %d, %v, want %v", out, back, m, err, h)
			}
		}
	})
}
