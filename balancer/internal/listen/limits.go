package listen

import (
	"net/netip"
	"sync"
)

// Limits bound the open connections of a listener. Its zero value bounds nothing and costs nothing. It implements
// netloop.Admission and may be used concurrently.
type Limits struct {
	Max, PerClient int // zero is no bound

	mu      sync.Mutex
	open    int
	clients map[netip.Addr]int
}

// Admit counts a connection in, if there is room for it. The zero address, of a unix socket, counts for Max alone.
func (l *Limits) Admit(remote netip.Addr) bool {
	if l.Max <= 0 && l.PerClient <= 0 {
		return true
	}
	client := clientOf(remote)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Max > 0 && l.open >= l.Max {
		return false
	}
	if l.PerClient > 0 && client.IsValid() {
		if l.clients[client] >= l.PerClient {
			return false
		}
		if l.clients == nil {
			l.clients = map[netip.Addr]int{}
		}
		l.clients[client]++
	}
	l.open++
	return true
}

// Release counts an admitted connection out.
func (l *Limits) Release(remote netip.Addr) {
	if l.Max <= 0 && l.PerClient <= 0 {
		return
	}
	client := clientOf(remote)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if n, ok := l.clients[client]; ok {
		if n--; n == 0 {
			delete(l.clients, client)
		} else {
			l.clients[client] = n
		}
	}
}

// clientOf is what one client has: an IPv4 address, or the /64 of an IPv6 one.
func clientOf(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		p, _ := a.WithZone("").Prefix(64)
		return p.Addr()
	}
	return a
}
