package http1

import (
	"bytes"
	"net/netip"
)

// host splits and checks the value of Host, and makes it lower-case in place.
func (r *Request) host(h []byte) *Error {
	if len(h) == 0 || len(h) > maxHost {
		return ErrHost
	}
	name := h
	if h[0] == '[' {
		end := indexByte(h, ']')
		if end < 0 {
			return ErrHost
		}
		name = h[:end+1]
		inner := h[1:end]
		for _, c := range inner { // keeps ParseAddr from being asked for zones and worse
			if !isHex(c) && c != ':' && c != '.' {
				return ErrHost
			}
		}
		if a, err := netip.ParseAddr(string(inner)); err != nil || !a.Is6() {
			return ErrHost
		}
	} else if i := indexByte(h, ':'); i >= 0 {
		name = h[:i]
	}
	port := h[len(name):]
	if len(port) > 0 && !validPort(port) {
		return ErrHost
	}
	if h[0] != '[' {
		if n := len(name); n > 1 && name[n-1] == '.' {
			name = name[:n-1]
		}
		if !validName(name) {
			return ErrHost
		}
	}
	lower(name)
	r.Host, r.Port = name, port
	return nil
}

// validPort checks a port with its colon: 1 to 65535, without leading zeros.
func validPort(p []byte) bool {
	if p[0] != ':' || len(p) < 2 || len(p) > 6 || p[1] == '0' {
		return false
	}
	n := 0
	for _, c := range p[1:] {
		if c < '0' || c > '9' {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

// validName checks a host name: letters, digits, hyphens and underscores in labels that are not empty.
func validName(name []byte) bool {
	label := 0
	for _, c := range name {
		switch {
		case c == '.':
			if label == 0 {
				return false
			}
			label = 0
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_':
			label++
		default:
			return false
		}
	}
	return label > 0
}

// plain are the characters of a path that need no thought.
var plain = func() (t [256]bool) {
	for c := 0x21; c < 0x7f; c++ {
		t[c] = c != '%' && c != '#' && c != '\\' && c != '?'
	}
	return t
}()

// normalise checks the path and sets r.Path to its normal form: percent-encoded unreserved characters decoded (RFC 3986
// §6.2.2.2), then dot segments removed (§5.2.4), once. A path that already is in normal form, as nearly all are, is
// taken as it is.
func (r *Request) normalise(p []byte) *Error {
	if len(p) > 1 && p[1] == '/' {
		return ErrPath // "//host/x" is a reference to another host
	}
	dots := false
	for i, c := range p {
		if !plain[c] {
			if c != '%' {
				return ErrTarget
			}
			return r.decode(p)
		}
		if c == '.' && p[i-1] == '/' { // p[0] is "/"
			dots = true
		}
	}
	if dots {
		r.path = append(r.path[:0], p...)
		return r.removeDots()
	}
	r.Path = p
	return nil
}

// decode copies p to the scratch buffer with unreserved characters decoded.
func (r *Request) decode(p []byte) *Error {
	out := r.path[:0]
	for i := 0; i < len(p); i++ {
		c := p[i]
		if c != '%' {
			if !plain[c] {
				return ErrTarget
			}
			out = append(out, c)
			continue
		}
		if i+2 >= len(p) || !isHex(p[i+1]) || !isHex(p[i+2]) {
			return ErrPercent
		}
		d := unhex(p[i+1])<<4 | unhex(p[i+2])
		switch {
		case d == 0:
			return ErrPath
		case d == '/' || d == '\\':
			r.EncodedSlash = true
			out = append(out, p[i:i+3]...)
		case d >= 'a' && d <= 'z' || d >= 'A' && d <= 'Z' || d >= '0' && d <= '9' || d == '-' || d == '.' || d == '_' || d == '~':
			out = append(out, d)
		default:
			out = append(out, p[i:i+3]...)
		}
		i += 2
	}
	r.path = out
	return r.removeDots()
}

// removeDots removes dot segments in the scratch buffer. Segments such as "..;x", which some servers take for "..", are
// refused, and so are those joined by an encoded slash.
func (r *Request) removeDots() *Error {
	in, w := r.path, 0
	for i := 0; i < len(in); {
		end := i + 1
		for end < len(in) && in[end] != '/' {
			end++
		}
		segment := in[i+1 : end] // in[i] is "/"
		switch {
		case string(segment) == ".":
			if end == len(in) {
				in[w] = '/'
				w++
			}
		case string(segment) == "..":
			w = max(0, bytes.LastIndexByte(in[:w], '/'))
			if end == len(in) {
				in[w] = '/'
				w++
			}
		case len(segment) > 1 && segment[0] == '.' && dotted(segment):
			return ErrPath
		case r.EncodedSlash && hiddenDots(segment):
			return ErrPath
		default:
			w += copy(in[w:], in[i:end])
		}
		i = end
	}
	if w == 0 {
		in[0], w = '/', 1
	}
	if w > 1 && in[1] == '/' {
		return ErrPath // "/x/..//host" has become "//host"
	}
	r.Path = in[:w]
	r.EncodedSlash = r.EncodedSlash && encodesSlash(r.Path) // it may have gone with a segment
	return nil
}

// encodesSlash reports whether a path, whose percent-encoding is right, holds %2F or %5C.
func encodesSlash(p []byte) bool {
	for i := bytes.IndexByte(p, '%'); i >= 0; i = bytes.IndexByte(p, '%') {
		if d := unhex(p[i+1])<<4 | unhex(p[i+2]); d == '/' || d == '\\' {
			return true
		}
		p = p[i+3:]
	}
	return false
}

// dotted reports whether a segment is "." or ".." with parameters.
func dotted(s []byte) bool {
	i := bytes.IndexByte(s, ';')
	return i == 1 || i == 2 && s[1] == '.'
}

// hiddenDots reports whether a segment, with its encoded slashes decoded, would hold a dot segment.
func hiddenDots(s []byte) bool {
	start := 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '%' {
			continue
		}
		part := s[start:i]
		if string(part) == "." || string(part) == ".." || len(part) > 1 && part[0] == '.' && dotted(part) {
			return true
		}
		start = i + 3
		i += 2
	}
	return false
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}
