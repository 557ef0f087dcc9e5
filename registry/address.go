package registry

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// ParseAddress reads an address to be dialled: host:port, where host is an IPv4 address in four decimal parts, an
// IPv6 address in brackets, or a DNS name, and port is 1 to 65535 in decimal.
//
// Only one spelling of a number is accepted: no zone ids, no user info, no scheme, no hexadecimal, octal, shortened
// or single-number IPv4 addresses. Wildcard, multicast and broadcast addresses are refused, as nothing can be dialled
// there; whether a balancer may dial the rest is its dial policy's question. An IP comes back in its canonical form.
// Errors wrap ErrInvalid, for a wildcard also ErrNotAdvertisable.
func ParseAddress(s string) (host string, port int, err error) {
	if len(s) > maxAddressBytes {
		return "", 0, invalid("address: %d bytes; write host:port in at most %d", len(s), maxAddressBytes)
	}
	if strings.Contains(s, "://") {
		return "", 0, invalid("address %s: leave out the scheme and write host:port; the protocol has a field of its own", quote(s))
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", 0, invalid("address %s: the port is missing; write host:port, as in \"10.0.0.7:5001\"", quote(s))
	}
	host, digits := s[:i], s[i+1:]
	if port, err = parsePort(digits); err != nil {
		return "", 0, invalid("address %s: %w", quote(s), err)
	}
	if host, err = parseHost(host); err != nil {
		return "", 0, fmt.Errorf("%w address %s: %w", ErrInvalid, quote(s), err)
	}
	return host, port, nil
}

// DialAddress is where to dial an address that ParseAddress accepts. Names are not resolved, but for localhost, which is
// 127.0.0.1; and link-local addresses are refused, as metadata services answer there. See
// docs/decisions/0006-no-names.md. The error says what to register instead.
func DialAddress(s string) (netip.AddrPort, error) {
	host, port, err := ParseAddress(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q is a name: register an IP address, names are not resolved", s)
	}
	ip = ip.Unmap()
	switch {
	case ip.IsUnspecified(), ip.IsMulticast(), ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.AddrPort{}, fmt.Errorf("address %q cannot be dialled: register the address of one interface", s)
	case ip.IsLinkLocalUnicast(), ip == metadata6:
		return netip.AddrPort{}, fmt.Errorf("address %q is link-local: such addresses are never dialled, they hold metadata services", s)
	}
	return netip.AddrPortFrom(ip, uint16(port)), nil
}

// metadata6 is where a cloud's metadata service answers over IPv6.
var metadata6 = netip.MustParseAddr("fd00:ec2::254")

// A name of 253 bytes, its final dot, a colon and five digits.
const maxAddressBytes = 253 + 1 + 1 + 5

func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16) // refuses signs; underscores are for base 0 only
	if err != nil || n == 0 || s[0] == '0' {
		return 0, fmt.Errorf("port %s; write a decimal number from 1 to 65535", quote(s))
	}
	return int(n), nil
}

// parseHost returns IP literals canonical and without brackets.
func parseHost(s string) (string, error) {
	switch {
	case s == "":
		return "", fmt.Errorf("the host is missing: %w; write host:port, as in \"10.0.0.7:5001\"", ErrNotAdvertisable)
	case strings.Contains(s, "@"):
		return "", fmt.Errorf("leave out the user info")
	case strings.Contains(s, "%"):
		return "", fmt.Errorf("leave out the zone id; a link-local address means nothing to another machine")
	case s[0] == '[' && s[len(s)-1] == ']':
		ip, err := netip.ParseAddr(s[1 : len(s)-1])
		if err != nil || !ip.Is6() {
			return "", fmt.Errorf("write an IPv6 address between the brackets")
		}
		return ip.String(), checkIP(ip)
	case strings.Contains(s, ":"):
		return "", fmt.Errorf("write an IPv6 address in brackets, as in \"[2001:db8::7]:5001\"")
	}
	if ip, err := netip.ParseAddr(s); err == nil {
		return ip.String(), checkIP(ip)
	}
	return s, checkHostname(s)
}

func checkIP(ip netip.Addr) error {
	ip = ip.Unmap()
	switch {
	case ip.IsUnspecified():
		return fmt.Errorf("a wildcard is for listening: %w; write an address that balancers can dial", ErrNotAdvertisable)
	case ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("write the address of one machine, not of many")
	}
	return nil
}

// checkHostname accepts letters, digits, "-" and "_" in labels of at most 63 bytes. A name whose last label is a
// number is refused: libraries disagree on whether "0x7f.1" is a name or 127.0.0.1.
func checkHostname(s string) error {
	name := strings.TrimSuffix(s, ".")
	if name == "" || len(name) > 253 {
		return fmt.Errorf("write a DNS name of 1 to 253 bytes or an IP address")
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%s is neither an IP address nor a DNS name", quote(s))
		}
		for i := range len(label) {
			if c := label[i]; !isIDByte(c) || c == ':' {
				return fmt.Errorf("%s is neither an IP address nor a DNS name: character %+q", quote(s), rune(c))
			}
		}
		last = label
	}
	if looksNumeric(last) {
		return fmt.Errorf("%s looks like a number; write an IPv4 address as four decimal parts without leading zeros", quote(s))
	}
	return nil
}

func looksNumeric(label string) bool {
	if hex, ok := strings.CutPrefix(strings.ToLower(label), "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

func joinHostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
