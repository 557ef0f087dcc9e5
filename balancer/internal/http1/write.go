package http1

import (
	"net/netip"
	"strconv"
)

// Hop is what we say about the connection a request came by.
type Hop struct {
	Client netip.Addr // the invalid Addr, of a unix socket, is written as "unknown"
	TLS    bool
	Via    string // pseudonym for the Via field
	// Strip is the length of the path prefix that is not forwarded.
	Strip int
}

// AppendRequest appends the head to be sent upstream: our request line and Host, the client's fields without those that
// are hop-by-hop or ours to set, and ours.
func AppendRequest(out []byte, r *Request, hop *Hop) []byte {
	out = append(out, r.Method...)
	out = append(out, ' ')
	path := r.Path[hop.Strip:]
	for hop.Strip > 0 && len(path) > 1 && path[0] == '/' && path[1] == '/' {
		path = path[1:] // "//host" would be a reference to another host
	}
	if len(path) == 0 || path[0] != '/' && path[0] != '*' {
		out = append(out, '/')
	}
	out = append(out, path...)
	out = append(out, r.Query...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, r.Host...)
	out = append(out, r.Port...)
	out = append(out, "\r\n"...)
	out = appendFields(out, r.head, r.Fields, r.names, true)
	switch {
	case r.Chunked:
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	case r.hasLength: // also zero, which POST needs
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, r.Length, 10)
		out = append(out, "\r\n"...)
	}
	if r.Continue && (r.Chunked || r.Length > 0) {
		out = append(out, "Expect: 100-continue\r\n"...)
	}
	out = append(out, "X-Forwarded-For: "...)
	if hop.Client.IsValid() {
		out = hop.Client.AppendTo(out)
	} else {
		out = append(out, "unknown"...)
	}
	if hop.TLS {
		out = append(out, "\r\nX-Forwarded-Proto: https\r\n"...)
	} else {
		out = append(out, "\r\nX-Forwarded-Proto: http\r\n"...)
	}
	if len(r.Host) > 0 {
		out = append(out, "X-Forwarded-Host: "...)
		out = append(out, r.Host...)
		out = append(out, r.Port...)
		out = append(out, "\r\n"...)
	}
	if r.Minor == 0 {
		out = append(out, "Via: 1.0 "...)
	} else {
		out = append(out, "Via: 1.1 "...)
	}
	out = append(out, hop.Via...)
	return append(out, "\r\n\r\n"...)
}

// Body says how the body of a response is framed towards the client.
type Body uint8

// The framings.
const (
	AsIs      Body = iota // by Content-Length, or none
	AsChunks              // Transfer-Encoding: chunked
	TillClose             // by closing the connection
)

// AppendResponse appends the head to be sent to the client. minor is the client's version; keep says that the connection
// stays open after the body.
func AppendResponse(out []byte, r *Response, body Body, minor int, keep bool) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = append(out, byte('0'+r.Status/100), byte('0'+r.Status/10%10), byte('0'+r.Status%10), ' ')
	out = append(out, r.Reason...)
	out = append(out, "\r\n"...)
	out = appendFields(out, r.head, r.Fields, r.names, false)
	switch {
	case body == AsChunks:
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	case body == AsIs && r.HasLength:
		out = append(out, "Content-Length: "...)
		out = append(out, r.length...)
		out = append(out, "\r\n"...)
	}
	switch {
	case r.Status < 200:
	case !keep:
		out = append(out, "Connection: close\r\n"...)
	case minor == 0:
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	return append(out, "\r\n"...)
}

// appendFields appends the lines that are passed on, in runs that are as long as possible.
func appendFields(out, head []byte, fields []Field, names, request bool) []byte {
	from, to := 0, 0
	for i := range fields {
		f := &fields[i]
		keep := true
		switch f.Kind {
		case other, kindVia:
		case kindTE:
			keep = EqualFold(f.Value, "trailers")
		case kindForwarded:
			keep = !request
		case kindHop:
			keep = !request && EqualFold(f.Name, "trailer")
		default:
			keep = false
		}
		if !keep || names && named(fields, f.Name) {
			continue
		}
		if f.start != to {
			out = append(out, head[from:to]...)
			from = f.start
		}
		to = f.end
	}
	return append(out, head[from:to]...)
}
