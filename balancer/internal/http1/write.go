package http1

import (
	"net/netip"
	"slices"
	"strconv"
)

// Hop is what we say about the way a request came by, and what a route changes in it.
type Hop struct {
	// Peer is the address the request came from; the invalid Addr, of a unix socket, is written as "unknown".
	Peer netip.Addr
	// Client is the address of the client, as a trusted peer tells it; without one it is not looked at.
	Client netip.Addr
	// Trusted says that what the peer tells about the way before it is passed on; else it is dropped.
	Trusted bool
	// Proto is http or https, Host and Port what the client asked for; told as X-Forwarded-Proto and -Host.
	Proto      string
	Host, Port []byte
	Via        string // pseudonym for the Via field
	// Strip is the length of the path prefix that is not forwarded; Prefix, which has no slash at its end, takes its place.
	Strip  int
	Prefix string
	// ID is the value of the field IDName, if that is not empty; IDLower is the name in lower case.
	IDName, IDLower string
	ID              []byte
	// Subject is that of the client's certificate; empty is none.
	Subject []byte
	// Upgrade is the protocol to ask for; empty is none.
	Upgrade []byte
	// TraceParent takes the place of the client's; empty leaves that as it is.
	TraceParent []byte
	// NewTrace says that TraceParent begins a trace: a tracestate of the client's belongs to another one.
	NewTrace bool
	Edit     Edit
}

// Edit changes fields that are passed on. The zero value changes nothing.
type Edit struct {
	Remove []string // lower-case names
	Add    []byte   // whole lines with their CRLF
}

// AppendRequest appends the head to be sent upstream: our request line and Host, the client's fields without those that
// are hop-by-hop or ours to set, and ours.
func AppendRequest(out []byte, r *Request, hop *Hop) []byte {
	out = append(out, r.Method...)
	out = append(out, ' ')
	out = append(out, hop.Prefix...)
	path := r.Path[hop.Strip:]
	for hop.Strip > 0 && len(path) > 1 && path[0] == '/' && path[1] == '/' {
		path = path[1:] // "//host" would be a reference to another host
	}
	if len(path) == 0 && hop.Prefix == "" || len(path) > 0 && path[0] != '/' && path[0] != '*' {
		out = append(out, '/')
	}
	out = append(out, path...)
	out = append(out, r.Query...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, r.Host...)
	out = append(out, r.Port...)
	out = append(out, "\r\n"...)
	out = appendFields(out, &r.fields, r.names, hop, hop.Edit.Remove)
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
	if len(hop.Upgrade) > 0 {
		out = append(out, "Connection: Upgrade\r\nUpgrade: "...)
		out = append(out, hop.Upgrade...)
		out = append(out, "\r\n"...)
	}
	if hop.Trusted {
		out = appendForwarded(out, r, hop)
	}
	out = append(out, "X-Forwarded-For: "...)
	if hop.Trusted {
		for n := 0; ; n++ {
			chain, ok := r.Value("x-forwarded-for", n)
			if !ok {
				break
			}
			if len(chain) > 0 {
				out = append(out, chain...)
				out = append(out, ", "...)
			}
		}
	}
	if hop.Peer.IsValid() {
		out = hop.Peer.AppendTo(out)
	} else {
		out = append(out, "unknown"...)
	}
	out = append(out, "\r\nX-Forwarded-Proto: "...)
	out = append(out, hop.Proto...)
	out = append(out, "\r\n"...)
	if len(hop.Host) > 0 {
		out = append(out, "X-Forwarded-Host: "...)
		out = append(out, hop.Host...)
		out = append(out, hop.Port...)
		out = append(out, "\r\n"...)
	}
	if hop.IDName != "" {
		out = append(out, hop.IDName...)
		out = append(out, ": "...)
		out = append(out, hop.ID...)
		out = append(out, "\r\n"...)
	}
	if len(hop.TraceParent) > 0 {
		out = append(out, "Traceparent: "...)
		out = append(out, hop.TraceParent...)
		out = append(out, "\r\n"...)
	}
	if len(hop.Subject) > 0 {
		out = append(out, "X-Client-Cert-Subject: "...)
		out = append(out, hop.Subject...)
		out = append(out, "\r\n"...)
	}
	out = append(out, hop.Edit.Add...)
	if r.Minor == 0 {
		out = append(out, "Via: 1.0 "...)
	} else {
		out = append(out, "Via: 1.1 "...)
	}
	out = append(out, hop.Via...)
	return append(out, "\r\n\r\n"...)
}

// appendForwarded extends the chain of a trusted peer that speaks of the way in Forwarded fields (RFC 7239), and in these only:
// beside X-Forwarded-For they are most likely what a client has sent to a peer that does not know of them.
func appendForwarded(out []byte, r *Request, hop *Hop) []byte {
	_, told := r.Value("forwarded", 0)
	if _, other := r.Value("x-forwarded-for", 0); !told || other {
		return out
	}
	out = append(out, "Forwarded: "...)
	for n := 0; ; n++ {
		chain, ok := r.Value("forwarded", n)
		if !ok {
			break
		}
		if len(chain) > 0 {
			out = append(out, chain...)
			out = append(out, ", "...)
		}
	}
	out = append(out, "for="...)
	switch {
	case !hop.Peer.IsValid():
		out = append(out, "unknown"...)
	case hop.Peer.Is4():
		out = hop.Peer.AppendTo(out)
	default:
		out = append(out, `"[`...)
		out = append(hop.Peer.WithZone("").AppendTo(out), `]"`...)
	}
	out = append(out, ";proto="...)
	out = append(out, hop.Proto...)
	return append(out, "\r\n"...)
}

// told reports whether a field about the way, kindForwarded, is to be passed on for a trusted peer: not one that contradicts
// what the peer says in X-Forwarded-For, or what we say ourselves.
func told(f *fields, i int, hop *Hop) bool {
	switch name := f.name(i); {
	case EqualFold(name, "forwarded"): // appendForwarded has it
		return false
	case EqualFold(name, "x-real-ip"):
		a, ok := parseNode(f.value(i))
		return ok && a == hop.Client.Unmap()
	case EqualFold(name, "x-client-cert-subject"):
		return len(hop.Subject) == 0
	}
	return true
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
// stays open after the body. A 101 announces r.Upgrade.
func AppendResponse(out []byte, r *Response, body Body, minor int, keep bool, edit *Edit) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = append(out, byte('0'+r.Status/100), byte('0'+r.Status/10%10), byte('0'+r.Status%10), ' ')
	out = append(out, r.Reason...)
	out = append(out, "\r\n"...)
	out = appendFields(out, &r.fields, r.names, nil, edit.Remove)
	switch {
	case body == AsChunks:
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	case body == AsIs && r.HasLength:
		out = append(out, "Content-Length: "...)
		out = append(out, r.length...)
		out = append(out, "\r\n"...)
	}
	out = append(out, edit.Add...)
	switch {
	case r.Status == 101:
		out = append(out, "Connection: Upgrade\r\nUpgrade: "...)
		out = append(out, r.Upgrade...)
		out = append(out, "\r\n"...)
	case r.Status < 200:
	case !keep:
		out = append(out, "Connection: close\r\n"...)
	case minor == 0:
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	return append(out, "\r\n"...)
}

// appendFields appends the lines that are passed on, in runs that are as long as possible. hop is nil for a response.
func appendFields(out []byte, f *fields, names bool, hop *Hop, remove []string) []byte {
	from, to := uint32(0), uint32(0)
	for i := range f.all {
		x := &f.all[i]
		keep := true
		switch x.kind {
		case other, kindVia:
		case kindTE:
			keep = EqualFold(f.value(i), "trailers")
		case kindForwarded:
			keep = hop == nil || hop.Trusted && told(f, i, hop)
		case kindOrigin:
			keep = hop == nil
		case kindHop:
			keep = hop == nil && EqualFold(f.name(i), "trailer")
		default:
			keep = false
		}
		if !keep || names && f.named(f.name(i)) || remove != nil && removed(remove, f.name(i)) ||
			hop != nil && (int(x.colon-x.start) == len(hop.IDLower) && twins(f.name(i), hop.IDLower) ||
				len(hop.TraceParent) > 0 && (EqualFold(f.name(i), "traceparent") || hop.NewTrace && EqualFold(f.name(i), "tracestate"))) {
			continue
		}
		if x.start != to {
			out = append(out, f.head[from:to]...)
			from = x.start
		}
		to = x.end
	}
	return append(out, f.head[from:to]...)
}

// removed reports whether a name is on a list.
func removed(list []string, name []byte) bool {
	return slices.ContainsFunc(list, func(s string) bool { return twins(name, s) })
}

// twins reports whether a name is the other, lower-case one to servers that do not tell underscores from hyphens.
func twins(name []byte, other string) bool {
	same := len(name) == len(other)
	for i := 0; same && i < len(name); i++ {
		c, o := name[i], other[i]
		same = EqualFold(name[i:i+1], other[i:i+1]) || (c == '_' || c == '-') && (o == '_' || o == '-')
	}
	return same
}
