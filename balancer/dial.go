package balancer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// errOwn says that an instance is at an address of this daemon.
var errOwn = errors.New("this balancer itself listens there: requests would go in circles")

// deny says why an address is not to be dialled: it is ours, or outside of the networks that instances may be in.
func (b *Balancer) deny(a netip.AddrPort, registered bool) error {
	if registered && len(b.networks) > 0 && !slices.ContainsFunc(b.networks, func(n netip.Prefix) bool { return n.Contains(a.Addr()) }) {
		return fmt.Errorf("it is outside of instance_networks %v", b.networks)
	}
	for _, ln := range b.serving {
		if listensAt(ln.Addr(), a) {
			return errOwn
		}
	}
	if b.admin != nil && listensAt(b.admin.Addr(), a) {
		return errOwn
	}
	return nil
}

// listensAt reports whether a connection to an address reaches a listener of this process.
func listensAt(ln net.Addr, a netip.AddrPort) bool {
	tcp, ok := ln.(*net.TCPAddr)
	if !ok || tcp.Port != int(a.Port()) {
		return false
	}
	own := tcp.AddrPort().Addr().Unmap()
	switch {
	case own == a.Addr():
		return true
	case own.IsValid() && !own.IsUnspecified():
		return false
	case a.Addr().IsLoopback():
		return true
	}
	addrs, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addrs, func(i net.Addr) bool {
		n, ok := i.(*net.IPNet)
		if !ok {
			return false
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		return ok && ip.Unmap() == a.Addr()
	})
}
