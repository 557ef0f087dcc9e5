package telemetry

import (
	"bytes"
	"slices"
	"sync/atomic"
)

// usual are names of query parameters and header fields whose values are not written down. A long one is found anywhere in a name, one
// of four letters or fewer only as a whole word.
var usual = newNames([]string{"token", "auth", "secret", "password", "passwd", "apikey", "api_key", "signature", "credential", "session", "sig", "key", "code"})

// credentials are names of header fields that carry some beside.
var credentials = newNames([]string{"authorization", "cookie"})

// Redacted stands for a value that is not written down.
const Redacted = "REDACTED"

// Redactor knows the names of what is not written down, in logs, spans and the journal: the usual ones, and those that [Redactor.Set]
// has added. The zero value and nil know the usual ones. It may be used concurrently.
type Redactor struct{ further atomic.Pointer[names] }

// Set replaces the names that are known beside the usual ones. They are found as those are.
func (r *Redactor) Set(further []string) {
	n := newNames(further)
	r.further.Store(&n)
}

// Query takes the values of parameters with such names out of a query, or of a URL with one; it returns text itself when there are
// none.
func (r *Redactor) Query(text []byte) []byte { return query(text, r.named) }

// Secret reports whether the value of a header field of that name is not to be kept.
func (r *Redactor) Secret(name []byte) bool { return credentials.has(name) || r.named(name) }

func (r *Redactor) named(name []byte) bool {
	if usual.has(name) {
		return true
	}
	if r == nil {
		return false
	}
	further := r.further.Load()
	return further != nil && further.has(name)
}

// names are [plain]: those that are found anywhere, and those that are words.
type names struct {
	long, short [][]byte
	begins      [256]bool // a long one begins so
}

func newNames(list []string) (n names) {
	for _, name := range list {
		if known := plain(nil, []byte(name)); len(known) > 4 {
			n.long, n.begins[known[0]] = append(n.long, known), true
		} else if len(known) > 0 {
			n.short = append(n.short, known)
		}
	}
	return n
}

// query returns text with the values of named parameters replaced; text itself when there are none.
func query(text []byte, named func(name []byte) bool) []byte {
	if len(text) == 0 {
		return text
	}
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
		if value := at + secretValue(text[at:end], named); value < end {
			if out == nil {
				out = make([]byte, 0, len(text)+2*len(Redacted))
			}
			out = append(append(out, text[done:value]...), Redacted...)
			done = end
		}
		at = end + 1
	}
	if out == nil {
		return text
	}
	return append(out, text[done:]...)
}

// secretValue is where in name=value;name=value the first value is that is not to be seen: some take a ";" for a "&", so a name may
// stand behind it, and others do not, so no value ends there.
func secretValue(pair []byte, named func(name []byte) bool) int {
	for at := 0; at < len(pair); {
		end := len(pair)
		if i := bytes.IndexByte(pair[at:], ';'); i >= 0 {
			end = at + i
		}
		if i := bytes.IndexByte(pair[at:end], '='); i >= 0 && named(pair[at:at+i]) {
			return at + i + 1
		}
		at = end + 1
	}
	return len(pair)
}

func (n *names) has(name []byte) bool {
	var short [64]byte // what is longer is allocated
	name = plain(short[:0], name)
	for i, c := range name {
		if n.begins[c] && slices.ContainsFunc(n.long, func(known []byte) bool { return bytes.HasPrefix(name[i:], known) }) {
			return true
		}
	}
	for len(name) > 0 {
		end := 0
		for end < len(name) && (name[end] >= '0' && name[end] <= '9' || name[end] >= 'a' && name[end] <= 'z') {
			end++
		}
		for _, known := range n.short {
			if bytes.Equal(name[:end], known) {
				return true
			}
		}
		name = name[min(end+1, len(name)):]
	}
	return false
}

// plain appends a name in lower case, without percent-encoding, and with "_" for "-", so that it cannot hide behind any of these.
func plain(out, name []byte) []byte {
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == '%' && i+2 < len(name) {
			if a, b := unhex(name[i+1]), unhex(name[i+2]); a >= 0 && b >= 0 {
				c = byte(a<<4 | b)
				i += 2
			}
		}
		switch {
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		case c == '-':
			c = '_'
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
