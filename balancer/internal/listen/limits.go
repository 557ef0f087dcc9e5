package listen

import (
	"net/netip"
	"sync"
)

// Limits count the connections of a listener, and bound those that are open. Its zero value bounds nothing. It implements
// netloop.Admission and may be used concurrently.
type Limits struct {
	Max, PerClient int // zero is no bound
	// Speaks reports whether an address speaks for others, which it names in a PROXY protocol header: it counts for Max alone. nil
	// is none.
	Speaks func(netip.Addr) bool

	mu      sync.Mutex
	counts  Counts
	clients map[netip.Addr]int
}

// Counts are how many connections of a listener are open, and how many were accepted, or refused for its limits.
type Counts struct {
	Open              int
	Accepted, Refused uint64
}

// Counts returns what was counted.
func (l *Limits) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Admit counts a connection in, if there is room for it. The zero address, of a unix socket, counts for Max alone.
func (l *Limits) Admit(remote netip.Addr) bool {
	client := l.clientOf(remote)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Max > 0 && l.counts.Open >= l.Max || !l.take(client) {
		l.counts.Refused++
		return false
	}
	l.counts.Open++
	l.counts.Accepted++
	return true
}

// Readmit counts an admitted connection as another client's, if there is room for it.
func (l *Limits) Readmit(was, is netip.Addr) bool {
	from, to := l.clientOf(was), l.clientOf(is)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.take(to) {
		l.counts.Refused++
		return false
	}
	l.give(from)
	return true
}

// Release counts an admitted connection out.
func (l *Limits) Release(remote netip.Addr) {
	client := l.clientOf(remote)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Open--
	l.give(client)
}

// take counts one more connection of a client, if it may have one more. Callers hold mu.
func (l *Limits) take(client netip.Addr) bool {
	if l.PerClient <= 0 || !client.IsValid() {
		return true
	}
	if l.clients[client] >= l.PerClient {
		return false
	}
	if l.clients == nil {
		l.clients = map[netip.Addr]int{}
	}
	l.clients[client]++
	return true
}

// give counts a connection of a client out. Callers hold mu.
func (l *Limits) give(client netip.Addr) {
	if n, ok := l.clients[client]; ok {
		if n--; n == 0 {
			delete(l.clients, client)
		} else {
			l.clients[client] = n
		}
	}
}

// clientOf is what one client has: an IPv4 address, or the /64 of an IPv6 one; nothing for who speaks for others.
func (l *Limits) clientOf(a netip.Addr) netip.Addr {
	if l.Speaks != nil && l.Speaks(a) {
		return netip.Addr{}
	}
	if a = a.Unmap(); a.Is6() {
		p, _ := a.WithZone("").Prefix(64)
		return p.Addr()
	}
	return a
}
