package http1

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// tokens are the characters of a token (RFC 9110 §5.6.2).
var tokens = func() (t [256]bool) {
	for c := range 256 {
		t[c] = c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] = true
	}
	return t
}()

func isToken(b []byte) bool {
	for _, c := range b {
		if !tokens[c] {
			return false
		}
	}
	return len(b) > 0
}

func indexByte(b []byte, c byte) int { return bytes.IndexByte(b, c) }

// trim removes optional white space at both ends.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// textLen is the number of bytes before the first one that may not stand in a field value: a control character other than
// a tab. It looks at eight at a time.
func textLen(b []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		y := x ^ ones*0x7f
		// The lowest bit that is set is exact; those above it may come from a borrow.
		control := ((x-ones*0x20)&^x | (y-ones)&^y) & highs
		if control == 0 {
			continue
		}
		at := i + bits.TrailingZeros64(control)/8
		if b[at] != '\t' {
			return at
		}
		i = at + 1 - 8 // go on behind the tab
	}
	for i < len(b) && (b[i] >= ' ' && b[i] != 0x7f || b[i] == '\t') {
		i++
	}
	return i
}

// EqualFold reports whether b is s, which must be lower-case, in any ASCII case.
func EqualFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

func equalFoldBytes(a, b []byte) bool {
	for i, c := range a {
		d := b[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if d >= 'A' && d <= 'Z' {
			d |= 0x20
		}
		if c != d {
			return false
		}
	}
	return true
}

// lower makes b lower-case in place.
func lower(b []byte) {
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
}
