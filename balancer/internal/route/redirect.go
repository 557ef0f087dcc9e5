package route

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
)

// Redirect is an answer that sends the client elsewhere. Use [NewRedirect].
type Redirect struct {
	Status int

	to      string
	parts   []part
	pattern *regexp.Regexp
}

// part is a piece of text, or what stands in its place.
type part struct {
	text  string
	of    string // scheme, host, port, path, query, uri, or group
	group int
	// host says that the part is inside of the host of an absolute URL, where a slash would end it.
	host bool
}

// NewRedirect compiles a redirect. to is an absolute URL or a path, with {scheme}, {host}, {port}, {path}, {query} (with its
// "?") and {uri} (path and query) for those of the request, and {1} to {9} for the groups of pattern, the route's pattern
// for the path, which may be nil.
func NewRedirect(to string, status int, pattern *regexp.Regexp) (*Redirect, error) {
	switch status {
	case 301, 302, 303, 307, 308:
	default:
		return nil, fmt.Errorf("status %d is no redirect: use 301, 302, 303, 307 or 308", status)
	}
	r := &Redirect{Status: status, to: to, pattern: pattern}
	rest, host := to, true
	switch {
	case strings.HasPrefix(to, "http://"), strings.HasPrefix(to, "https://"), strings.HasPrefix(to, "{scheme}://"):
		at := strings.Index(to, "://") + 3
		if rest = to[at:]; rest == "" {
			return nil, fmt.Errorf("%q names no host", to)
		}
		if scheme := to[:at-3]; scheme == "{scheme}" {
			r.parts = append(r.parts, part{of: "scheme"}, part{text: "://"})
		} else {
			r.parts = append(r.parts, part{text: to[:at]})
		}
	case strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "//"), strings.HasPrefix(to, "{path}"), strings.HasPrefix(to, "{uri}"):
		host = false
	default:
		return nil, fmt.Errorf("%q is neither an absolute URL (http://, https://, {scheme}://) nor a path that begins with one slash", to)
	}
	for rest != "" {
		text, after, found := strings.Cut(rest, "{")
		if i := strings.IndexFunc(text, func(c rune) bool { return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"<>\^`+"`|}", c) }); i >= 0 {
			return nil, fmt.Errorf("%q may not be in a URL: percent-encode it", text[i:i+1])
		}
		if text != "" {
			r.parts = append(r.parts, part{text: text})
			host = host && !strings.ContainsAny(text, "/?#")
		}
		if !found {
			break
		}
		name, after, found := strings.Cut(after, "}")
		if !found {
			return nil, fmt.Errorf("%q is not closed", "{"+name)
		}
		p := part{of: name, host: host}
		switch name {
		case "scheme", "host", "port":
		case "path", "uri":
			host = false
		case "query":
			if host {
				return nil, fmt.Errorf("{query} cannot be part of a host: put {path} or / before it")
			}
		default:
			if len(name) != 1 || name[0] < '1' || name[0] > '9' {
				return nil, fmt.Errorf("{%s} is unknown: there are {scheme}, {host}, {port}, {path}, {query}, {uri}, and {1} to {9}", name)
			}
			p.of, p.group = "group", int(name[0]-'0')
			if pattern == nil || p.group > pattern.NumSubexp() {
				return nil, fmt.Errorf("{%s} needs a path that is a regular expression with as many groups", name)
			}
		}
		r.parts = append(r.parts, p)
		rest = after
	}
	for i, p := range r.parts {
		if p.host && p.group > 0 && (i+1 == len(r.parts) || !strings.HasPrefix(r.parts[i+1].text, ".")) {
			return nil, fmt.Errorf("{%d} would let the client choose the host: name what it belongs to, as in https://{%d}.example.com/", p.group, p.group)
		}
	}
	return r, nil
}

// String is the status and what was compiled, as in "308 https://{host}{uri}".
func (r *Redirect) String() string { return fmt.Sprintf("%d %s", r.Status, r.to) }

// Append appends the value of Location for a request that came with this scheme and port (perhaps with its colon; empty for the scheme's own).
// Nothing in the request can add a line or lead to another host than the template names.
func (r *Redirect) Append(out []byte, scheme string, q *Request, port []byte) []byte {
	start := len(out)
	for i := range r.parts {
		p := &r.parts[i]
		switch p.of {
		case "":
			out = append(out, p.text...)
		case "scheme":
			out = append(out, scheme...)
		case "host":
			out = appendEscaped(out, q.Host, false) // of an address in brackets nothing is to be escaped
		case "port":
			out = appendEscaped(out, bytes.TrimPrefix(port, []byte{':'}), true)
		case "path":
			out = appendPath(out, q.Path)
		case "query":
			out = appendEscaped(out, q.Query, false)
		case "uri":
			out = appendEscaped(appendPath(out, q.Path), q.Query, false)
		case "group":
			if at := r.pattern.FindSubmatchIndex(q.Path); at != nil && at[2*p.group] >= 0 {
				out = appendEscaped(out, q.Path[at[2*p.group]:at[2*p.group+1]], p.host)
			}
		}
	}
	// A path that begins with two slashes would name a host (RFC 3986 §4.2).
	for len(out) > start+1 && out[start] == '/' && out[start+1] == '/' {
		out = append(out[:start], out[start+1:]...)
	}
	return out
}

// appendPath appends a path that begins with one slash.
func appendPath(out, path []byte) []byte {
	for len(path) > 0 && (path[0] == '/' || path[0] == '*') {
		path = path[1:]
	}
	return appendEscaped(append(out, '/'), path, false)
}

// appendEscaped percent-encodes what may not be in a URL, and in a host whatever is not part of a name.
func appendEscaped(out, text []byte, host bool) []byte {
	const digits = "0123456789ABCDEF"
	for _, c := range text {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.',
			!host && c > ' ' && c < 0x7f && !strings.ContainsRune(`"<>\^`+"`{|}#", rune(c)):
			out = append(out, c)
		default:
			out = append(out, '%', digits[c>>4], digits[c&15])
		}
	}
	return out
}
