// Package http1 reads and writes HTTP/1.x messages as bytes: heads, framing, serialising.
//
// Everything here is a pure function over byte slices, or a small state machine fed with them: no connection, no
// allocation, no clock. Reading is strict (RFC 9112, and stricter where leniency is what request smuggling is made of):
// a message that two readers could understand differently is refused with an [Error] that says why and which status
// answers it. What is written is canonical: hop-by-hop fields of the sender are removed first and ours are set after, so
// nothing a sender names in its Connection field can remove what we set.
//
// A parsed [Request] or [Response] points into the bytes it was parsed from and is valid as long as they are.
package http1

// Limits of a head.
const (
	MaxHead   = 64 << 10 // bytes, request or status line and all fields
	MaxFields = 100
	MaxTarget = 16 << 10
	maxNames  = 100 // in all Connection fields: each is compared with every field
	maxMethod = 32
	maxHost   = 255
)

// Error says why a message is refused. Errors of this package are all of this type, made once and comparable.
type Error struct {
	Status int    // the answer to the client, when a request was refused; 502 for responses
	Text   string // the reason, fit for a client to read
}

func (e *Error) Error() string { return e.Text }

func bad(text string) *Error      { return &Error{400, text} }
func upstream(text string) *Error { return &Error{502, text} }

// The reasons to refuse a request.
var (
	ErrLineEnd       = bad("line does not end in CRLF")
	ErrRequestLine   = bad("malformed request line")
	ErrVersion       = &Error{505, "HTTP version not supported"}
	ErrMethod        = &Error{405, "method not allowed through this proxy"}
	ErrMethodSyntax  = bad("malformed method")
	ErrTarget        = bad("malformed request target")
	ErrTargetLong    = &Error{414, "request target too long"}
	ErrPercent       = bad("malformed percent-encoding in path")
	ErrPath          = bad("ambiguous path")
	ErrHeadLong      = &Error{431, "request header too large"}
	ErrFields        = &Error{431, "too many header fields"}
	ErrFieldName     = bad("malformed field name")
	ErrFieldValue    = bad("malformed field value")
	ErrFold          = bad("folded header line")
	ErrHost          = bad("missing, repeated or malformed Host")
	ErrHostMismatch  = bad("Host differs from request target")
	ErrLength        = bad("malformed or repeated Content-Length")
	ErrLengthAndTE   = bad("both Content-Length and Transfer-Encoding")
	ErrTE            = bad("malformed or repeated Transfer-Encoding")
	ErrTECoding      = &Error{501, "transfer coding not supported"}
	ErrTEVersion     = bad("Transfer-Encoding in HTTP/1.0")
	ErrExpect        = &Error{417, "expectation not supported"}
	ErrConnection    = bad("malformed or endless Connection")
	ErrChunk         = bad("malformed chunk")
	ErrChunkLong     = bad("chunk extensions or trailers too long")
	ErrResponseHead  = upstream("malformed response head")
	ErrResponseFrame = upstream("ambiguous response framing")
)

// fields are the header fields of a head, by their places in it: nothing to follow for the collector, nothing to tell it
// about when they are written.
type fields struct {
	head []byte
	all  []field
}

// field is the place of one field: its line is head[start:end], CRLF included, its name ends at colon, and its value,
// without the white space around it, is head[value:valueEnd].
type field struct {
	start, colon, value, valueEnd, end uint32
	kind                               kind
}

// name returns the name of the i-th field.
func (f *fields) name(i int) []byte { return f.head[f.all[i].start:f.all[i].colon] }

// value returns the value of the i-th field.
func (f *fields) value(i int) []byte { return f.head[f.all[i].value:f.all[i].valueEnd] }

// kind tells apart the fields that a proxy must know.
type kind uint8

// The kinds of fields; other is any that is simply passed on.
const (
	other kind = iota
	kindHost
	kindContentLength
	kindTransferEncoding
	kindConnection
	kindExpect
	kindHop       // hop-by-hop whatever Connection says
	kindTE        // hop-by-hop, but "trailers" is passed on
	kindForwarded // says where a request came from: passed on for those we trust only
	kindOrigin    // likewise, and set by us
	kindVia
	kindUpgrade
	kindLoad // says how busy an instance is, to us
)

// kindOf classifies a lower-case name.
func kindOf(name []byte) kind {
	switch string(name) {
	case "host":
		return kindHost
	case "content-length":
		return kindContentLength
	case "transfer-encoding":
		return kindTransferEncoding
	case "connection":
		return kindConnection
	case "expect":
		return kindExpect
	case "te":
		return kindTE
	case "via":
		return kindVia
	case "upgrade":
		return kindUpgrade
	case "rota-load":
		return kindLoad
	case "keep-alive", "proxy-connection", "http2-settings", "proxy-authorization", "proxy", "trailer":
		return kindHop
	case "forwarded", "x-real-ip", "x-original-url", "x-rewrite-url", "x-client-cert":
		return kindForwarded
	case "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto":
		return kindOrigin
	}
	return other
}

// longestKnown is the length of the longest name that kindOf knows.
const longestKnown = len("proxy-authorization")

// lengths has, for each length, a bit for the first letter of every name that kindOf knows: most names need no more.
var lengths = func() (m [longestKnown + 1]uint32) {
	for _, name := range []string{
		"host", "content-length", "transfer-encoding", "connection", "expect", "te", "via", "rota-load", "keep-alive", "proxy-connection",
		"upgrade", "http2-settings", "proxy-authorization", "proxy", "trailer", "forwarded", "x-real-ip", "x-original-url",
		"x-rewrite-url", "x-client-cert", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "rota-load",
	} {
		m[len(name)] |= 1 << (name[0] & 0x1f)
	}
	return m
}()

// Whatever begins with these is kindForwarded, if it is nothing else.
const (
	forwardedPrefix = "x-forwarded-"
	certPrefix      = "x-client-cert-"
)

// classify returns the kind of a field name and whether it is written with underscores. A name with underscores is
// classified as if they were hyphens, because many servers do not tell the two apart.
func classify(name []byte) (k kind, underscored bool) {
	x := name[0]|0x20 == 'x' && len(name) > len(forwardedPrefix)
	if !x && (len(name) > longestKnown || lengths[len(name)]&(1<<(name[0]&0x1f)) == 0) {
		return other, false
	}
	var buf [longestKnown]byte
	n := copy(buf[:], name)
	for i, c := range buf[:n] {
		switch {
		case c >= 'A' && c <= 'Z':
			buf[i] = c | 0x20
		case c == '_':
			buf[i], underscored = '-', true
		}
	}
	if len(name) <= longestKnown {
		if k = kindOf(buf[:n]); k != other {
			return k, underscored
		}
	}
	if x && (string(buf[:len(forwardedPrefix)]) == forwardedPrefix || string(buf[:len(certPrefix)]) == certPrefix) {
		return kindForwarded, underscored
	}
	return other, false
}

// Scanner finds the end of a head in bytes that arrive piece by piece, each looked at once. The zero value is ready. See
// [Request.Read] and [Response.Read].
type Scanner struct {
	pos  int // everything before was looked at
	line int // where the present line begins
}

// Scan looks for the empty line in b, which holds all bytes so far. It returns the length of the head, or zero when more
// bytes are needed. A line that ends in a bare LF is refused as soon as it is seen.
func (s *Scanner) Scan(b []byte) (int, *Error) {
	b = b[:min(len(b), MaxHead)]
	for s.pos < len(b) {
		i := indexByte(b[s.pos:], '\n')
		if i < 0 {
			s.pos = len(b)
			break
		}
		end := s.pos + i
		if end == 0 || b[end-1] != '\r' {
			return 0, ErrLineEnd
		}
		empty := end-1 == s.line
		s.pos, s.line = end+1, end+1
		if empty {
			return end + 1, nil
		}
	}
	if len(b) == MaxHead {
		if s.line == 0 {
			return 0, ErrTargetLong
		}
		return 0, ErrHeadLong
	}
	return 0, nil
}

// read is what Request.Read and Response.Read have in common. Most heads come whole and are as they should be: then they need not be
// scanned before they are parsed. parse returns the length of the head at the beginning of what it is given; zero when
// there is none, or a bad one.
func (s *Scanner) read(b []byte, parse func(b []byte) (int, *Error)) (int, *Error) {
	if s.pos == 0 {
		if n, err := parse(b[:min(len(b), MaxHead)]); n > 0 && err == nil {
			return n, nil
		}
	}
	n, err := s.Scan(b)
	if n == 0 || err != nil {
		return 0, err
	}
	_, err = parse(b[:n])
	return n, err
}

// parse reads the field lines of the head at the beginning of b, which are from pos on. It returns the length of the head, or zero
// when b has no empty line behind them.
func (f *fields) parse(b []byte, pos int) (int, *Error) {
	f.head, f.all = b, f.all[:0]
	for {
		line := b[pos:]
		if len(line) < 2 {
			return 0, nil
		}
		if line[0] == '\r' && line[1] == '\n' {
			f.head = b[:pos+2]
			return pos + 2, nil
		}
		colon := 0
		for colon < len(line) && tokens[line[colon]] {
			colon++
		}
		if colon == len(line) {
			return 0, nil
		}
		if line[colon] != ':' || colon == 0 {
			if line[0] == ' ' || line[0] == '\t' {
				return 0, ErrFold
			}
			return 0, ErrFieldName
		}
		if len(f.all) == MaxFields {
			return 0, ErrFields
		}
		value := colon + 1
		for value < len(line) && (line[value] == ' ' || line[value] == '\t') {
			value++
		}
		eol := value + textLen(line[value:])
		if eol+1 >= len(line) {
			return 0, nil
		}
		if line[eol] != '\r' || line[eol+1] != '\n' {
			return 0, ErrFieldValue
		}
		end := eol
		for end > value && (line[end-1] == ' ' || line[end-1] == '\t') {
			end--
		}
		kind, underscored := classify(line[:colon])
		if underscored && kind != other {
			kind = kindHop
		}
		// Written in place: built beside it, the parts would be read back by a copy before they have left the store buffer.
		f.all = append(f.all, field{})
		at := &f.all[len(f.all)-1]
		at.start, at.colon, at.value, at.valueEnd, at.end = uint32(pos), uint32(pos+colon), uint32(pos+value), uint32(pos+end), uint32(pos+eol+2)
		at.kind = kind
		pos += eol + 2
	}
}

// connection reads a Connection field: whether it says close or keep-alive, and whether it names other fields. It counts
// in total what all of them list.
func connection(value []byte, total *int) (close, keep, names bool, err *Error) {
	for len(value) > 0 {
		if *total++; *total > maxNames {
			return close, keep, names, ErrConnection
		}
		var t []byte
		t, value = nextElement(value)
		switch {
		case len(t) == 0:
		case EqualFold(t, "close"):
			close = true
		case EqualFold(t, "keep-alive"):
			keep = true
		default:
			if !isToken(t) {
				return close, keep, names, ErrConnection
			}
			names = true
		}
	}
	return close, keep, names, nil
}

// nextElement splits a comma-separated list.
func nextElement(list []byte) (element, rest []byte) {
	if i := indexByte(list, ','); i >= 0 {
		return trim(list[:i]), list[i+1:]
	}
	return trim(list), nil
}

// named reports whether a Connection field of the message names this field.
func (f *fields) named(name []byte) bool {
	for i := range f.all {
		if f.all[i].kind != kindConnection {
			continue
		}
		for rest := f.value(i); len(rest) > 0; {
			var t []byte
			t, rest = nextElement(rest)
			if len(t) == len(name) && equalFoldBytes(t, name) {
				return true
			}
		}
	}
	return false
}

// parseLength reads a Content-Length: digits only, below 2^63.
func parseLength(v []byte) (int64, bool) {
	if len(v) == 0 || len(v) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// Value returns the value of the n-th field, counted from 0, of that lower-case name.
func (f *fields) Value(name string, n int) ([]byte, bool) {
	for i := range f.all {
		if x := &f.all[i]; int(x.colon-x.start) == len(name) && EqualFold(f.name(i), name) {
			if n--; n < 0 {
				return f.value(i), true
			}
		}
	}
	return nil, false
}

// All yields the names, as they came, and values of all fields.
func (f *fields) All(yield func(name, value []byte) bool) {
	for i := range f.all {
		if !yield(f.name(i), f.value(i)) {
			return
		}
	}
}
