package telemetry

import (
	"bytes"
	"strings"
)

// DefaultRedact are names of query parameters whose values are not written down.
var DefaultRedact = []string{"token", "auth", "secret", "password", "passwd", "apikey", "api_key", "signature", "credential", "session", "sig", "key", "code"}

// redacted stands for a value that is not written down.
const redacted = "REDACTED"

// redactor knows names. A long one is found anywhere in the name of a parameter, one of four letters or fewer only as a whole word.
type redactor struct{ long, short [][]byte }

func newRedactor(names []string) (r redactor) {
	for _, n := range names {
		if n = strings.ToLower(n); len(n) > 4 {
			r.long = append(r.long, []byte(n))
		} else if n != "" {
			r.short = append(r.short, []byte(n))
		}
	}
	return r
}

// Redact takes the values out of a query, or of a URL with one, that [DefaultRedact] names.
func Redact(text []byte) []byte { return byDefault.query(text) }

// Secret reports whether the value of a header field or parameter of that name is not to be kept.
func Secret(name []byte) bool { return credentials.named(name) || byDefault.named(name) }

// credentials are names of header fields that carry some; the rest is in the default.
var credentials = newRedactor([]string{"authorization", "cookie"})

var byDefault = newRedactor(DefaultRedact)

// query returns text with the values of named parameters replaced; text itself when there are none.
func (r *redactor) query(text []byte) []byte {
	start := bytes.IndexByte(text, '?')
	if start < 0 {
		return text
	}
	var out []byte
	done := 0
	for at := start + 1; at < len(text); {
		end := len(text)
		if i := bytes.IndexByte(text[at:], '&'); i >= 0 {
			end = at + i
		}
		if value := at + r.value(text[at:end]); value < end {
			if out == nil {
				out = make([]byte, 0, len(text)+2*len(redacted))
			}
			out = append(append(out, text[done:value]...), redacted...)
			done = end
		}
		at = end + 1
	}
	if out == nil {
		return text
	}
	return append(out, text[done:]...)
}

// value is where in name=value;name=value the first value is that is not to be seen: some take a ";" for a "&", so a name may
// stand behind it, and others do not, so no value ends there.
func (r *redactor) value(pair []byte) int {
	for at := 0; at < len(pair); {
		end := len(pair)
		if i := bytes.IndexByte(pair[at:], ';'); i >= 0 {
			end = at + i
		}
		if i := bytes.IndexByte(pair[at:end], '='); i >= 0 && r.named(pair[at:at+i]) {
			return at + i + 1
		}
		at = end + 1
	}
	return len(pair)
}

func (r *redactor) named(name []byte) bool {
	var short [64]byte // what is longer is allocated
	name = plain(short[:0], name)
	for _, n := range r.long {
		if bytes.Contains(name, n) {
			return true
		}
	}
	for len(name) > 0 {
		end := 0
		for end < len(name) && (name[end] >= '0' && name[end] <= '9' || name[end] >= 'a' && name[end] <= 'z') {
			end++
		}
		for _, n := range r.short {
			if bytes.Equal(name[:end], n) {
				return true
			}
		}
		name = name[min(end+1, len(name)):]
	}
	return false
}

// plain appends a name in lower case and without percent-encoding, so that it cannot hide behind either.
func plain(out, name []byte) []byte {
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == '%' && i+2 < len(name) {
			if a, b := unhex(name[i+1]), unhex(name[i+2]); a >= 0 && b >= 0 {
				c = byte(a<<4 | b)
				i += 2
			}
		}
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		out = append(out, c)
	}
	return out
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}
