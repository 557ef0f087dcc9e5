package http1

import "strconv"

// Headroom is how many bytes must be free before the input of [Chunked.Filter]: the length of the longest chunk line
// that may have come in pieces, with the line end before it.
const Headroom = 24

// How much may stand between the data.
const (
	maxExtensions = 4 << 10 // beyond 16 bytes a chunk and twice the data
	maxTrailers   = 8 << 10
)

// lastChunk goes out when the whole body was read and found good, not before: to some readers "0" is the end already.
const lastChunk = "0\r\n\r\n"

// Chunked is a reader of the chunked coding (RFC 9112 §7.1) that turns its input, in place, into canonical chunks: sizes
// without leading zeros, no extensions. Trailers are checked and, if Trailers is set, kept, but for those that mean something
// only before a body (RFC 9110 §6.5.1): there are readers that take them for fields of the head. With Decode set only the data
// remains. The zero value begins at the first chunk.
type Chunked struct {
	Decode   bool
	Trailers bool

	state   chunkState
	digits  int
	left    uint64 // of the chunk's data
	extra   int    // bytes of extensions beyond what the chunks so far are good for
	trailer int    // bytes of trailers so far
	quoted  bool
	dropped bool // the trailer being read
	named   int  // bytes of name held back until it is known whether the trailer is dropped
	name    [longestFraming]byte
}

// framing are the names that no trailer may have.
var framing = map[string]bool{
	"content-length": true, "transfer-encoding": true, "trailer": true, "te": true, "connection": true, "keep-alive": true, "proxy-connection": true,
	"upgrade": true, "host": true, "content-encoding": true, "content-type": true, "content-range": true, "set-cookie": true, "location": true,
	"authorization": true, "www-authenticate": true, "proxy-authenticate": true, "age": true, "cache-control": true, "expires": true, "vary": true,
}

const longestFraming = len("proxy-authenticate")

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExt
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart
	trailerName
	trailerValue
	trailerLF
	trailerEndLF
	chunkDone
)

// Done reports whether the last byte of the message was consumed.
func (c *Chunked) Done() bool { return c.state == chunkDone }

// Filter reads b[from:to] and returns the place of the output, b[start:end], and how much of the input it consumed:
// all of it, unless the message ended. There must be [Headroom] bytes before from. After an error nothing of the input
// may be forwarded.
func (c *Chunked) Filter(b []byte, from, to int) (start, end, consumed int, err *Error) {
	w := from
	if c.withholds() {
		w -= Headroom
	}
	start = w
	for i := from; i < to; {
		ch := b[i]
		switch c.state {
		case chunkData:
			n := min(uint64(to-i), c.left)
			if w != i {
				copy(b[w:], b[i:i+int(n)])
			}
			w += int(n)
			i += int(n)
			if c.left -= n; c.left == 0 {
				c.state = chunkDataCR
			}
			continue
		case chunkSize:
			switch {
			case isHex(ch):
				if c.digits++; c.digits > 15 {
					return 0, 0, 0, ErrChunk
				}
				c.left = c.left<<4 | uint64(unhex(ch))
			case c.digits == 0:
				return 0, 0, 0, ErrChunk
			case ch == ';':
				c.state = chunkExt
			case ch == '\r':
				c.state = chunkSizeLF
			default:
				return 0, 0, 0, ErrChunk
			}
		case chunkExt:
			c.extra++
			switch {
			case c.extra > maxExtensions:
				return 0, 0, 0, ErrChunkLong
			case ch == '"':
				c.quoted = !c.quoted
			case ch == '\r' && !c.quoted:
				c.state = chunkSizeLF
			case ch < ' ' && ch != '\t' || ch == 0x7f:
				return 0, 0, 0, ErrChunk
			}
		case chunkSizeLF:
			if ch != '\n' {
				return 0, 0, 0, ErrChunk
			}
			c.extra -= int(min(uint64(c.extra), 16+2*c.left))
			c.digits, c.state = 0, chunkData
			if c.left == 0 {
				c.state = trailerStart
			}
			if !c.Decode && (c.left > 0 || c.Trailers) {
				w += len(strconv.AppendUint(b[w:w], c.left, 16))
				w += copy(b[w:], "\r\n")
			}
		case chunkDataCR:
			if ch != '\r' {
				return 0, 0, 0, ErrChunk
			}
			c.state = chunkDataLF
		case chunkDataLF:
			if ch != '\n' {
				return 0, 0, 0, ErrChunk
			}
			if !c.Decode {
				w += copy(b[w:], "\r\n")
			}
			c.state = chunkSize
		default:
			was := c.state
			if ok := c.trailers(ch); !ok {
				return 0, 0, 0, ErrChunk
			}
			if c.trailer++; c.trailer > maxTrailers {
				return 0, 0, 0, ErrChunkLong
			}
			if c.Trailers && !c.Decode {
				w = c.keep(b, w, was, ch)
			}
			if c.state == chunkDone {
				if !c.Trailers && !c.Decode {
					w += copy(b[w:], lastChunk)
				}
				return start, w, i + 1 - from, nil
			}
		}
		i++
	}
	return start, w, to - from, nil
}

// withholds reports whether bytes were consumed that have not been written yet.
func (c *Chunked) withholds() bool {
	switch c.state {
	case chunkSize:
		return c.digits > 0
	case chunkExt, chunkSizeLF, chunkDataLF, trailerEndLF:
		return true
	case trailerStart, trailerName, trailerValue, trailerLF:
		return !c.Trailers || c.named > 0
	}
	return false
}

// keep writes a byte of the trailers, that was read in the state was, to b[w:], or holds it back, or drops it, and returns the new w.
func (c *Chunked) keep(b []byte, w int, was chunkState, ch byte) int {
	if c.state == trailerName { // of which ch is
		if was == trailerStart {
			c.named = 0
		}
		if c.named >= 0 && c.named < len(c.name) {
			c.name[c.named] = ch
			c.named++
			return w
		}
	}
	if c.named > 0 { // the name is complete, or longer than any that is dropped
		name := c.name[:c.named]
		if was == trailerName && c.state == trailerValue {
			var buf [longestFraming]byte
			n := copy(buf[:], name)
			lower(buf[:n])
			c.dropped = framing[string(buf[:n])]
		}
		if !c.dropped {
			w += copy(b[w:], name)
		}
		c.named = -1
	}
	if !c.dropped {
		b[w] = ch
		w++
	}
	if c.state == trailerStart || c.state == trailerEndLF {
		c.dropped, c.named = false, 0
	}
	return w
}

// trailers reads one byte of the trailer section.
func (c *Chunked) trailers(ch byte) bool {
	switch c.state {
	case trailerStart:
		if ch == '\r' {
			c.state = trailerEndLF
			return true
		}
		c.state = trailerName
		return tokens[ch]
	case trailerName:
		if ch == ':' {
			c.state = trailerValue
			return true
		}
		return tokens[ch]
	case trailerValue:
		if ch == '\r' {
			c.state = trailerLF
			return true
		}
		return ch >= ' ' && ch != 0x7f || ch == '\t'
	case trailerLF:
		c.state = trailerStart
		return ch == '\n'
	case trailerEndLF:
		if ch == '\n' {
			c.state = chunkDone
		}
		return ch == '\n'
	}
	return false
}
