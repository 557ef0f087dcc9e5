// Package proxyproto reads and writes the header of the PROXY protocol, versions 1 and 2, as bytes: the line, or block, at
// the beginning of a connection with which a proxy says whom it speaks for (HAProxy's doc/proxy-protocol.txt).
//
// Reading is strict: bytes that are not a header are refused at the first wrong one, and none is longer than [MaxHeader].
// Whether a peer may be believed is the caller's to decide, before anything is read.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"strconv"
)

// MaxHeader is the longest header that is read: a version 1 line takes at most 107 bytes, a version 2 block may carry
// extensions.
const MaxHeader = 4 << 10

// The errors of Parse.
var (
	ErrNoHeader  = errors.New("proxyproto: the connection does not begin with a PROXY protocol header")
	ErrMalformed = errors.New("proxyproto: malformed header")
	ErrTooLong   = errors.New("proxyproto: header too long")
	ErrChecksum  = errors.New("proxyproto: wrong checksum")
)

// Header is what a proxy says about a connection.
type Header struct {
	Source, Destination netip.AddrPort
	// Local says that the connection is the proxy's own, a health check for instance, or that it does not know for whom it
	// is: the addresses of the connection itself stand.
	Local bool
}

const (
	maxLine   = 107
	prefix    = "PROXY "
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	blockHead = len(signature) + 4
)

// Parse reads the header that b begins with and returns its length; zero, with a nil error, when it is not complete yet.
func Parse(b []byte) (h Header, n int, err error) {
	switch {
	case len(b) == 0:
		return h, 0, nil
	case b[0] == prefix[0]:
		return parseLine(b)
	case b[0] == signature[0]:
		return parseBlock(b)
	}
	return h, 0, ErrNoHeader
}

// begins reports whether b and s agree as far as both go.
func begins(b []byte, s string) bool {
	n := min(len(b), len(s))
	return string(b[:n]) == s[:n]
}

func parseLine(b []byte) (h Header, n int, err error) {
	if !begins(b, prefix) {
		return h, 0, ErrNoHeader
	}
	end := bytes.IndexByte(b[:min(len(b), maxLine)], '\n')
	if end < 0 {
		if len(b) >= maxLine {
			return h, 0, ErrTooLong
		}
		for i, c := range b {
			if c != '\r' && (c < ' ' || c > '~') || c == '\r' && i != len(b)-1 {
				return h, 0, ErrMalformed
			}
		}
		return h, 0, nil
	}
	if end < 1 || b[end-1] != '\r' {
		return h, 0, ErrMalformed
	}
	line := b[len(prefix) : end-1]
	for _, c := range line {
		if c < ' ' || c > '~' {
			return h, 0, ErrMalformed
		}
	}
	if begins(line, "UNKNOWN") && len(line) >= 7 && (len(line) == 7 || line[7] == ' ') {
		return Header{Local: true}, end + 1, nil
	}
	words := bytes.Split(line, []byte{' '})
	if len(words) != 5 {
		return h, 0, ErrMalformed
	}
	four := string(words[0]) == "TCP4"
	if !four && string(words[0]) != "TCP6" {
		return h, 0, ErrMalformed
	}
	var ok [2]bool
	h.Source, ok[0] = parseAddress(words[1], words[3], four)
	h.Destination, ok[1] = parseAddress(words[2], words[4], four)
	if !ok[0] || !ok[1] {
		return Header{}, 0, ErrMalformed
	}
	return h, end + 1, nil
}

func parseAddress(address, port []byte, four bool) (netip.AddrPort, bool) {
	p, err := strconv.ParseUint(string(port), 10, 16)
	if err != nil || strconv.FormatUint(p, 10) != string(port) {
		return netip.AddrPort{}, false
	}
	a, err := netip.ParseAddr(string(address))
	if err != nil || a.Zone() != "" || a.Is4() != four {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), true
}

func parseBlock(b []byte) (h Header, n int, err error) {
	if !begins(b, signature) {
		return h, 0, ErrNoHeader
	}
	if at := len(signature); len(b) > at && b[at] != 0x20 && b[at] != 0x21 {
		return h, 0, ErrMalformed
	}
	// Over a stream: nothing said, or TCP over either version of IP.
	if at := len(signature) + 1; len(b) > at && b[at] != 0x00 && b[at] != 0x11 && b[at] != 0x21 {
		return h, 0, ErrMalformed
	}
	if len(b) < blockHead {
		return h, 0, nil
	}
	local, family := b[12] == 0x20, b[13]
	length := int(binary.BigEndian.Uint16(b[14:]))
	size := map[byte]int{0x00: 0, 0x11: 12, 0x21: 36}[family]
	switch {
	case length < size:
		return h, 0, ErrMalformed
	case blockHead+length > MaxHeader:
		return h, 0, ErrTooLong
	case len(b) < blockHead+length:
		return h, 0, nil
	}
	n = blockHead + length
	body := b[blockHead:n]
	if err := checkExtensions(b[:n], blockHead+size); err != nil {
		return h, 0, err
	}
	switch {
	case local || family == 0x00:
		return Header{Local: true}, n, nil
	case family == 0x11:
		h.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[:4])), binary.BigEndian.Uint16(body[8:]))
		h.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[4:8])), binary.BigEndian.Uint16(body[10:]))
	default:
		h.Source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[:16])).Unmap(), binary.BigEndian.Uint16(body[32:]))
		h.Destination = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[16:32])).Unmap(), binary.BigEndian.Uint16(body[34:]))
	}
	return h, n, nil
}

// checkExtensions walks the type-length-value blocks from at on, and checks the header's checksum if there is one.
func checkExtensions(b []byte, at int) error {
	const checksum = 0x03
	for at < len(b) {
		if len(b)-at < 3 {
			return ErrMalformed
		}
		kind, length := b[at], int(binary.BigEndian.Uint16(b[at+1:]))
		if at += 3; len(b)-at < length {
			return ErrMalformed
		}
		if kind == checksum {
			if length != 4 {
				return ErrMalformed
			}
			want := binary.BigEndian.Uint32(b[at:])
			table := crc32.MakeTable(crc32.Castagnoli)
			got := crc32.Update(0, table, b[:at])
			got = crc32.Update(got, table, make([]byte, 4)) // it counts as zero
			if got = crc32.Update(got, table, b[at+4:]); got != want {
				return ErrChecksum
			}
		}
		at += length
	}
	return nil
}

// AppendV1 appends a header of version 1. With an address that is not valid it says that the client is unknown.
func AppendV1(out []byte, source, destination netip.AddrPort) []byte {
	if !source.Addr().IsValid() || !destination.Addr().IsValid() {
		return append(out, "PROXY UNKNOWN\r\n"...)
	}
	s, d, four := sameFamily(source, destination)
	out = append(out, "PROXY TCP6 "...)
	if four {
		out[len(out)-2] = '4'
	}
	out = append(s.AppendTo(out), ' ')
	out = append(d.AppendTo(out), ' ')
	out = append(strconv.AppendUint(out, uint64(source.Port()), 10), ' ')
	out = strconv.AppendUint(out, uint64(destination.Port()), 10)
	return append(out, "\r\n"...)
}

// AppendV2 appends a header of version 2. With an address that is not valid it says that the connection is our own.
func AppendV2(out []byte, source, destination netip.AddrPort) []byte {
	out = append(out, signature...)
	if !source.Addr().IsValid() || !destination.Addr().IsValid() {
		return append(out, 0x20, 0, 0, 0)
	}
	s, d, four := sameFamily(source, destination)
	if four {
		a, b := s.As4(), d.As4()
		out = append(out, 0x21, 0x11, 0, 12)
		out = append(append(out, a[:]...), b[:]...)
	} else {
		a, b := s.As16(), d.As16()
		out = append(out, 0x21, 0x21, 0, 36)
		out = append(append(out, a[:]...), b[:]...)
	}
	out = binary.BigEndian.AppendUint16(out, source.Port())
	return binary.BigEndian.AppendUint16(out, destination.Port())
}

// sameFamily returns both addresses as IPv4, if they are, else as IPv6.
func sameFamily(source, destination netip.AddrPort) (s, d netip.Addr, four bool) {
	s, d = source.Addr().Unmap().WithZone(""), destination.Addr().Unmap().WithZone("")
	if s.Is4() && d.Is4() {
		return s, d, true
	}
	return netip.AddrFrom16(s.As16()), netip.AddrFrom16(d.As16()), false
}
