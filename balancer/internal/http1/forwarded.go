package http1

import (
	"bytes"
	"net/netip"
)

// MaxHops is how many addresses of a forwarding chain are looked at.
const MaxHops = 64

// ForwardedFor finds the client in the chain of addresses that X-Forwarded-For fields, or the for= parameters of
// Forwarded fields (RFC 7239), make up: the right-most one that trusted does not hold for. The fields are read from the
// last to the first. An element that is no address ends the walk, because whoever wrote it cannot be told from one who
// lies: then, and when the chain is all trusted, the left-most address that was trusted is the client. The zero Addr
// means that there is no chain.
//
// peer is where the request came from; trusted holds for it.
func ForwardedFor(r *Request, peer netip.Addr, trusted func(netip.Addr) bool) netip.Addr {
	name, parse := "x-forwarded-for", parseNode
	if _, ok := r.Value(name, 0); !ok {
		name, parse = "forwarded", parseForwarded
	}
	fields := 0
	for _, ok := r.Value(name, 0); ok; _, ok = r.Value(name, fields) {
		fields++
	}
	client := peer
	for hops := 0; fields > 0; {
		fields--
		rest, _ := r.Value(name, fields)
		for len(rest) > 0 {
			i := bytes.LastIndexByte(rest, ',')
			element := trim(rest[i+1:])
			rest = rest[:max(i, 0)]
			if len(element) == 0 {
				continue
			}
			a, ok := parse(element)
			if hops++; !ok || hops > MaxHops {
				return client
			}
			client = a
			if !trusted(a) {
				return client
			}
		}
	}
	return client
}

// parseForwarded finds the address in one element of a Forwarded field.
func parseForwarded(element []byte) (netip.Addr, bool) {
	for len(element) > 0 {
		var pair []byte
		if i := indexByte(element, ';'); i >= 0 {
			pair, element = element[:i], element[i+1:]
		} else {
			pair, element = element, nil
		}
		if pair = trim(pair); len(pair) > 4 && EqualFold(pair[:4], "for=") {
			return parseNode(pair[4:])
		}
	}
	return netip.Addr{}, false
}

// parseNode reads an address as proxies write it: with or without quotes, brackets and port.
func parseNode(b []byte) (netip.Addr, bool) {
	if n := len(b); n >= 2 && b[0] == '"' && b[n-1] == '"' {
		b = b[1 : n-1]
	}
	if len(b) == 0 || len(b) > 64 {
		return netip.Addr{}, false
	}
	port := []byte(nil)
	switch end := indexByte(b, ']'); {
	case b[0] == '[' && end > 0:
		b, port = b[1:end], b[end+1:]
		if indexByte(b, ':') < 0 {
			return netip.Addr{}, false
		}
	case bytes.Count(b, []byte{':'}) == 1:
		i := indexByte(b, ':')
		b, port = b[:i], b[i:]
	}
	if len(port) > 0 && !validPort(port) {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(string(b))
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// Passes counts how often a request has passed the proxy of that pseudonym, by its Via fields (RFC 9110 §7.6.3).
func (r *Request) Passes(pseudonym string) (n int) {
	for i := range r.all {
		if r.all[i].kind != kindVia {
			continue
		}
		for item := range bytes.SplitSeq(r.value(i), []byte{','}) {
			item = bytes.Trim(item, " \t")
			if _, by, ok := bytes.Cut(item, []byte{' '}); ok {
				by, _, _ = bytes.Cut(bytes.TrimLeft(by, " \t"), []byte{' '})
				if string(by) == pseudonym {
					n++
				}
			}
		}
	}
	return n
}
