package http1

import "bytes"

// Request is a parsed request head.
type Request struct {
	Method []byte
	// Path is normalised: dot segments resolved, unreserved characters decoded. It is what is matched and forwarded.
	// For OPTIONS it may be "*".
	Path []byte
	// Query is what follows the path, with its "?"; verbatim.
	Query []byte
	// Host is lower-case, without port and trailing dot; empty for an HTTP/1.0 request without Host.
	Host []byte
	// Port is the port in Host or target, with its colon; usually empty.
	Port []byte
	fields

	Minor   int   // 0 or 1
	Length  int64 // of the body; zero when there is none, -1 when chunked
	Chunked bool
	// KeepAlive says that the client wants to go on after the answer.
	KeepAlive bool
	// Continue says that the client waits for 100 (Continue) before sending the body.
	Continue bool
	// Upgrade is the protocol, lower-case, that the client would like to go on with (RFC 9110 §7.8); empty when it asks for
	// none, for several, or in a request that has a body or cannot be upgraded.
	Upgrade []byte
	// EncodedSlash says that Path holds %2F or %5C, which servers read in different ways.
	EncodedSlash bool

	hasLength bool

	names bool   // Connection names fields
	path  []byte // scratch for a normalised path
}

// Retryable reports whether the method is idempotent (RFC 9110 §9.2.2): doing it twice is doing it once.
func (r *Request) Retryable() bool {
	switch string(r.Method) {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE":
		return true
	}
	return false
}

// IsHead reports whether the response has no body whatever its fields say.
func (r *Request) IsHead() bool { return string(r.Method) == "HEAD" }

// Reset makes the request empty. It holds nothing of a head any more.
func (r *Request) Reset() {
	path, all := r.path, r.all[:0]
	*r = Request{}
	r.path, r.all = path, all
}

// Read reads the head at the beginning of b, which holds all bytes so far, and returns its length; zero when more bytes are
// needed. With s, the same for all calls, it looks at no byte again and again. An error that comes with a length is about the head that is
// so long. b may be changed: the host is made lower-case.
func (r *Request) Read(s *Scanner, b []byte) (int, *Error) { return s.read(b, r.parse) }

// Parse reads a head that is complete, as Read has returned it before.
func (r *Request) Parse(head []byte) *Error {
	_, err := r.parse(head)
	return err
}

// parse reads the head at the beginning of b, if it is there.
func (r *Request) parse(b []byte) (int, *Error) {
	r.Reset()
	eol := indexByte(b, '\n')
	if eol < 1 || b[eol-1] != '\r' {
		return 0, ErrLineEnd
	}
	target, err := r.requestLine(b[:eol-1])
	if err != nil {
		return 0, err
	}
	n, err := r.fields.parse(b, eol+1)
	if n == 0 {
		return 0, err
	}
	authority, err := r.target(target)
	if err != nil {
		return 0, err
	}
	return n, r.decide(authority)
}

// requestLine reads method and version and returns the target.
func (r *Request) requestLine(line []byte) ([]byte, *Error) {
	i := indexByte(line, ' ')
	if i <= 0 {
		return nil, ErrRequestLine
	}
	r.Method = line[:i]
	if i > maxMethod || !isToken(r.Method) {
		return nil, ErrMethodSyntax
	}
	line = line[i+1:]
	if i = indexByte(line, ' '); i <= 0 {
		return nil, ErrRequestLine
	}
	target, version := line[:i], line[i+1:]
	switch string(version) {
	case "HTTP/1.1":
		r.Minor = 1
	case "HTTP/1.0":
	default:
		if len(version) == 8 && string(version[:5]) == "HTTP/" && version[6] == '.' &&
			version[5] >= '0' && version[5] <= '9' && version[7] >= '0' && version[7] <= '9' {
			return nil, ErrVersion
		}
		return nil, ErrRequestLine
	}
	if len(target) > MaxTarget {
		return nil, ErrTargetLong
	}
	switch string(r.Method) {
	case "CONNECT", "TRACE", "PRI":
		return nil, ErrMethod
	}
	return target, nil
}

// target takes the target apart and returns the authority of an absolute one.
func (r *Request) target(t []byte) (authority []byte, err *Error) {
	if len(t) == 1 && t[0] == '*' {
		if string(r.Method) != "OPTIONS" {
			return nil, ErrTarget
		}
		r.Path = t
		return nil, nil
	}
	if t[0] != '/' { // absolute form: http://authority/path
		n := 0
		switch {
		case len(t) > 7 && EqualFold(t[:7], "http://"):
			n = 7
		case len(t) > 8 && EqualFold(t[:8], "https://"):
			n = 8
		default:
			return nil, ErrTarget
		}
		t = t[n:]
		end := bytes.IndexAny(t, "/?#")
		if end < 0 {
			end = len(t)
		}
		authority, t = t[:end], t[end:]
		if len(authority) == 0 {
			return nil, ErrTarget
		}
	}
	path := t
	if i := indexByte(t, '?'); i >= 0 {
		path, r.Query = t[:i], t[i:]
		if err := checkQuery(r.Query); err != nil {
			return nil, err
		}
	}
	if len(path) == 0 {
		path = slash // http://authority or http://authority?query
	}
	return authority, r.normalise(path)
}

var slash = []byte{'/'}

// checkQuery refuses what may not stand in a target. Malformed percent-encoding is the upstream's to judge.
func checkQuery(q []byte) *Error {
	for _, c := range q {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return ErrTarget
		}
	}
	return nil
}

// decide reads the fields that decide on host, framing and connection.
func (r *Request) decide(authority []byte) *Error {
	var host, te, upgrade []byte
	hosts, lengths, tes, upgrades, listed := 0, 0, 0, 0, 0
	closing, keep := false, false
	for i := range r.all {
		switch r.all[i].kind {
		case kindHost:
			host = r.value(i)
			hosts++
		case kindContentLength:
			n, ok := parseLength(r.value(i))
			if !ok {
				return ErrLength
			}
			r.Length = n
			lengths++
		case kindTransferEncoding:
			te = r.value(i)
			tes++
		case kindConnection:
			c, k, names, err := connection(r.value(i), &listed)
			if err != nil {
				return err
			}
			closing, keep, r.names = closing || c, keep || k, r.names || names
		case kindUpgrade:
			upgrade = r.value(i)
			upgrades++
		case kindExpect:
			if !EqualFold(r.value(i), "100-continue") {
				return ErrExpect
			}
			r.Continue = r.Minor == 1
		}
	}
	switch {
	case lengths > 1:
		return ErrLength
	case tes > 0 && lengths > 0:
		return ErrLengthAndTE
	case tes > 1:
		return ErrTE
	case tes == 1 && r.Minor == 0:
		return ErrTEVersion
	case tes == 1 && EqualFold(te, "chunked"):
		r.Chunked, r.Length = true, -1
	case tes == 1 && isToken(te):
		return ErrTECoding
	case tes == 1:
		return ErrTE
	}
	r.hasLength = lengths == 1
	r.KeepAlive = !closing && (r.Minor == 1 || keep)
	if upgrades == 1 && r.Minor == 1 && r.Length == 0 && string(r.Method) == "GET" && isToken(upgrade) && r.named(upgradeName) {
		lower(upgrade)
		r.Upgrade = upgrade
	}
	if hosts > 1 || hosts == 0 && r.Minor == 1 {
		return ErrHost
	}
	if hosts == 0 {
		host = authority
	} else if authority != nil && (len(authority) != len(host) || !equalFoldBytes(authority, host)) {
		return ErrHostMismatch
	}
	if hosts == 0 && authority == nil {
		return nil
	}
	return r.host(host)
}

var upgradeName = []byte("upgrade")

// UserAgent is the value of the User-Agent field, or nil.
func (r *Request) UserAgent() []byte {
	v, _ := r.Value("user-agent", 0)
	return v
}
