package registry

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
)

// AdvertiseEnv is the environment variable by which an operator says, as "host" or "host:port", where the instances of
// this machine or container can be reached.
const AdvertiseEnv = "ROTA_ADVERTISE"

// Advertise finds the address that others should dial to reach a listener. The zero value is the usual way. It asks
// the kernel about interfaces and routes and sends nothing.
type Advertise struct {
	// Address, if not empty, is host:port and wins over everything else. It may be a loopback address: who writes
	// one means it.
	Address string
	// Via, if not empty, is the host:port of something whose users are to reach the listener too, such as the store:
	// a wildcard listener is then advertised by the local address that leads there. Empty means the default route.
	// Via itself is ignored when it is on this machine or there is no way to it; host names are not looked up.
	Via string
	// AllowLoopback accepts a loopback address when the listener is bound to one, or when the machine has no other.
	// For tests and demonstrations: a balancer elsewhere cannot reach it.
	AllowLoopback bool
}

// Resolve returns the address to register for a listener's address, in this order: Address; the environment variable
// ROTA_ADVERTISE, with the listener's port where it names none; the host the listener is bound to; for a wildcard
// listener the address of the interface that leads to Via, that of the default route, or the only one there is.
//
// It never falls back to a wildcard or loopback address on its own: the error then wraps ErrNotAdvertisable and says
// what to set. A malformed Address or variable wraps ErrInvalid.
func (a Advertise) Resolve(listener net.Addr) (string, error) {
	return a.resolve(listener, hostNetwork)
}

// network is what resolve asks of the system.
type network struct {
	getenv func(string) string
	// route returns the local address from which remote would be dialled.
	route func(remote string) (netip.Addr, error)
	// addresses are those of all interfaces that are up.
	addresses func() ([]netip.Addr, error)
}

var hostNetwork = network{getenv: os.Getenv, route: localAddrTowards, addresses: interfaceAddrs}

func (a Advertise) resolve(listener net.Addr, n network) (string, error) {
	if a.Address != "" {
		host, port, err := ParseAddress(a.Address)
		if err != nil {
			return "", err
		}
		return joinHostPort(host, port), nil
	}
	tcp, _ := listener.(*net.TCPAddr)
	if env := n.getenv(AdvertiseEnv); env != "" {
		return fromEnv(env, tcp)
	}
	if tcp == nil {
		return "", notAdvertisable("a %s listener has no host and port", listener.Network())
	}
	ip := tcp.AddrPort().Addr().Unmap()
	switch {
	case !ip.IsValid() || ip.IsUnspecified():
		var err error
		if ip, err = a.outbound(ip.Is4(), n); err != nil {
			return "", err
		}
	case ip.IsLoopback():
		if !a.AllowLoopback {
			return "", notAdvertisable("the listener %s is bound to loopback, where no other machine reaches it", listener)
		}
	case ip.IsLinkLocalUnicast():
		return "", notAdvertisable("the listener %s is bound to a link-local address, which means nothing to other machines", listener)
	}
	return joinHostPort(ip.String(), tcp.Port), nil
}

// fromEnv reads "host" or "host:port".
func fromEnv(env string, listener *net.TCPAddr) (string, error) {
	host, port, err := ParseAddress(env)
	if err == nil {
		return joinHostPort(host, port), nil
	}
	bare := env
	if strings.Count(env, ":") > 1 && env[0] != '[' {
		bare = "[" + env + "]" // an IPv6 address without a port
	}
	if host, hostErr := parseHost(bare); hostErr == nil {
		if listener == nil {
			return "", invalid("%s=%s: write host:port; the listener has no port", AdvertiseEnv, quote(env))
		}
		return joinHostPort(host, listener.Port), nil
	}
	return "", fmt.Errorf("%s: %w", AdvertiseEnv, err)
}

// outbound returns the address of this machine that others most likely reach.
func (a Advertise) outbound(only4 bool, n network) (netip.Addr, error) {
	// The addresses 192.0.2.1 and 2001:db8::1 are reserved for documentation: only the default route leads there.
	for _, remote := range []string{a.Via, "192.0.2.1:9", "[2001:db8::1]:9"} {
		if remote == "" {
			continue
		}
		ip, err := n.route(remote)
		if ip = ip.Unmap(); err == nil && reachable(ip) && (ip.Is4() || !only4) {
			return ip, nil
		}
	}
	addrs, err := n.addresses()
	if err != nil {
		return netip.Addr{}, notAdvertisable("the addresses of this machine cannot be read (%v)", err)
	}
	var v4, v6 []netip.Addr
	for _, ip := range addrs {
		if ip = ip.Unmap(); !reachable(ip) {
			continue
		}
		if ip.Is4() {
			v4 = append(v4, ip)
		} else if !only4 {
			v6 = append(v6, ip)
		}
	}
	for _, found := range [][]netip.Addr{v4, v6} {
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return netip.Addr{}, notAdvertisable("the listener takes every address, there is no default route, and this machine has several: %v", found)
		}
	}
	if a.AllowLoopback {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	}
	return netip.Addr{}, notAdvertisable("the listener takes every address, and this machine has none but loopback")
}

func reachable(ip netip.Addr) bool {
	return ip.IsGlobalUnicast() // neither loopback, link-local, multicast nor unspecified
}

func notAdvertisable(format string, args ...any) error {
	return fmt.Errorf("%w: %s; set Instance.Address or %s to a host:port that balancers can dial", ErrNotAdvertisable, fmt.Sprintf(format, args...), AdvertiseEnv)
}

// localAddrTowards connects a UDP socket, which chooses a route and an address but sends nothing.
func localAddrTowards(remote string) (netip.Addr, error) {
	to, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}, err
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr(), nil
}

func interfaceAddrs() ([]netip.Addr, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, i := range ifs {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if ipnet, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(ipnet.IP); ok {
					out = append(out, ip.Unmap())
				}
			}
		}
	}
	return out, nil
}
