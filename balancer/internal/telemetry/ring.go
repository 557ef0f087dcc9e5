package telemetry

import (
	"net/netip"
	"time"
	"unsafe"
)

// batch holds lines between the loop that adds them and the goroutine that writes them out. What one core has written is dear to the
// other, by the cache line; so an entry is small, and has no pointers that the garbage collector would follow.
type batch struct {
	entries []entry
	text    []byte // of all entries, one after another
}

// entry is an [Access], but for its text.
type entry struct {
	seconds                             int64 // when it started, since 1970
	duration, latency                   time.Duration
	size, bodySize, bytesRead, bodyRead int64
	tableRevision                       int64
	peer, client                        address
	lengths                             [15]uint32 // of the text, in the order of texts
	nanos                               uint32
	status, upstreamStatus, attempts    uint16
	tlsVersion, tlsCipher               uint16
	minor                               uint8
	tls, tlsResumed                     bool
}

// address is a netip.AddrPort, but for the zone.
type address struct {
	ip   [16]byte
	port uint16
	bits uint8 // 32, 128, or 0 if it is not valid
}

func (b *batch) add(l *Access) {
	n := len(b.entries)
	if n == cap(b.entries) {
		b.entries = append(b.entries, entry{})
	}
	b.entries = b.entries[:n+1]
	e := &b.entries[n]
	e.seconds, e.nanos = l.Start.Unix(), uint32(l.Start.Nanosecond())
	e.duration, e.latency = l.Duration, l.UpstreamLatency
	e.size, e.bodySize, e.bytesRead, e.bodyRead = l.Size, l.BodySize, l.BytesRead, l.BodyRead
	e.tableRevision = l.TableRevision
	e.peer.set(l.Peer)
	e.client.set(l.Client)
	e.status, e.upstreamStatus, e.attempts = uint16(l.Status), uint16(l.UpstreamStatus), uint16(l.Attempts)
	e.minor, e.tls, e.tlsResumed, e.tlsVersion, e.tlsCipher = uint8(l.Minor), l.TLS, l.TLSResumed, l.TLSVersion, l.TLSCipher

	text := b.text
	for i, s := range [...][]byte{l.Method, l.Host, l.URI, l.Query, l.UserAgent, l.Referer, l.ID} {
		e.lengths[i] = uint32(len(s))
		text = append(text, s...)
	}
	for i, s := range [...]string{l.Route, l.Service, l.Upstream, l.Reason, l.Flag, l.Trace, l.Peer.Addr().Zone(), l.Client.Addr().Zone()} {
		e.lengths[7+i] = uint32(len(s))
		text = append(text, s...)
	}
	b.text = text
}

// all calls yield with each line, which is good until the next one.
func (b *batch) all(yield func(*Access) bool) {
	var l Access
	text := b.text
	for i := range b.entries {
		e := &b.entries[i]
		l.Start = time.Unix(e.seconds, int64(e.nanos))
		l.Duration, l.UpstreamLatency = e.duration, e.latency
		l.Size, l.BodySize, l.BytesRead, l.BodyRead = e.size, e.bodySize, e.bytesRead, e.bodyRead
		l.TableRevision = e.tableRevision
		l.Status, l.UpstreamStatus, l.Attempts = int(e.status), int(e.upstreamStatus), int(e.attempts)
		l.Minor, l.TLS, l.TLSResumed, l.TLSVersion, l.TLSCipher = int(e.minor), e.tls, e.tlsResumed, e.tlsVersion, e.tlsCipher
		for i, to := range [...]*[]byte{&l.Method, &l.Host, &l.URI, &l.Query, &l.UserAgent, &l.Referer, &l.ID} {
			n := e.lengths[i]
			*to, text = text[:n:n], text[n:]
		}
		var peer, client string
		for i, to := range [...]*string{&l.Route, &l.Service, &l.Upstream, &l.Reason, &l.Flag, &l.Trace, &peer, &client} {
			n := e.lengths[7+i]
			*to, text = unsafe.String(unsafe.SliceData(text), n), text[n:] // nobody writes there before the batch is empty
		}
		l.Peer, l.Client = e.peer.get(peer), e.client.get(client)
		if !yield(&l) {
			return
		}
	}
}

// empty drops all lines. Room for their text is kept, unless it is a lot.
func (b *batch) empty() {
	b.entries = b.entries[:0]
	if b.text = b.text[:0]; cap(b.text) > 4<<20 {
		b.text = nil
	}
}

func (a *address) set(from netip.AddrPort) {
	ip := from.Addr()
	a.port, a.bits = from.Port(), uint8(ip.BitLen())
	if ip.IsValid() {
		a.ip = ip.As16()
	}
}

func (a *address) get(zone string) netip.AddrPort {
	var ip netip.Addr
	switch a.bits {
	case 32:
		ip = netip.AddrFrom4([4]byte(a.ip[12:]))
	case 128:
		if ip = netip.AddrFrom16(a.ip); zone != "" {
			ip = ip.WithZone(zone)
		}
	}
	return netip.AddrPortFrom(ip, a.port)
}
