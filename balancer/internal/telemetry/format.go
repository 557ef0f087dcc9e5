package telemetry

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// format appends a line, without its end.
type format func(out []byte, l *Access) []byte

// The formats that NCSA's httpd had, and every log analyser knows.
const (
	commonFormat   = `$remote_addr - - [$time_local] "$request" $status $body_bytes_sent`
	combinedFormat = commonFormat + ` "$http_referer" "$http_user_agent"`
)

// variables are those of templates, as nginx calls them, and ours. Text is escaped, so that nothing of a request can end a field or
// a line; what is not there is "-".
var variables = map[string]format{
	"remote_addr":            func(out []byte, l *Access) []byte { return appendAddr(out, l, "-") },
	"remote_port":            func(out []byte, l *Access) []byte { return appendInt(out, int64(l.Client.Port())) },
	"remote_user":            func(out []byte, _ *Access) []byte { return append(out, '-') },
	"time_local":             func(out []byte, l *Access) []byte { return l.end().AppendFormat(out, "02/Jan/2006:15:04:05 -0700") },
	"time_iso8601":           func(out []byte, l *Access) []byte { return l.end().AppendFormat(out, time.RFC3339) },
	"msec":                   func(out []byte, l *Access) []byte { return appendSeconds(out, time.Duration(l.end().UnixNano()), 3) },
	"request":                appendRequest,
	"request_method":         func(out []byte, l *Access) []byte { return appendText(out, l.Method) },
	"request_uri":            appendURI,
	"uri":                    func(out []byte, l *Access) []byte { return appendText(out, l.URI) },
	"args":                   func(out []byte, l *Access) []byte { return appendText(out, trimMark(l.Query)) },
	"host":                   func(out []byte, l *Access) []byte { return appendText(out, l.Host) },
	"scheme":                 func(out []byte, l *Access) []byte { return append(out, l.scheme()...) },
	"status":                 func(out []byte, l *Access) []byte { return appendInt(out, int64(l.Status)) },
	"body_bytes_sent":        func(out []byte, l *Access) []byte { return appendInt(out, l.BodySize) },
	"bytes_sent":             func(out []byte, l *Access) []byte { return appendInt(out, l.Size) },
	"request_length":         func(out []byte, l *Access) []byte { return appendInt(out, l.BytesRead) },
	"request_time":           func(out []byte, l *Access) []byte { return appendSeconds(out, l.Duration, 3) },
	"upstream_addr":          func(out []byte, l *Access) []byte { return appendText(out, []byte(l.Upstream)) },
	"upstream_status":        appendUpstreamStatus,
	"upstream_response_time": appendUpstreamTime,
	"http_user_agent":        func(out []byte, l *Access) []byte { return appendText(out, l.UserAgent) },
	"http_referer":           func(out []byte, l *Access) []byte { return appendText(out, l.Referer) },
	"request_id":             func(out []byte, l *Access) []byte { return appendText(out, l.ID) },
	"trace_id":               func(out []byte, l *Access) []byte { return appendText(out, []byte(l.Trace)) },
	"server_protocol":        func(out []byte, l *Access) []byte { return append(out, l.proto()...) },
	"service":                func(out []byte, l *Access) []byte { return appendText(out, []byte(l.Service)) },
	"route":                  func(out []byte, l *Access) []byte { return appendText(out, []byte(l.Route)) },
	"reason":                 func(out []byte, l *Access) []byte { return appendText(out, []byte(l.Reason)) },
	"flag":                   func(out []byte, l *Access) []byte { return appendText(out, []byte(l.Flag)) },
	"attempts":               func(out []byte, l *Access) []byte { return appendInt(out, int64(l.Attempts)) },
	"table_revision":         func(out []byte, l *Access) []byte { return appendInt(out, l.TableRevision) },
}

// Variables are the names that templates know, sorted.
func Variables() []string { return slices.Sorted(maps.Keys(variables)) }

// errNoVariable says that a template is no format.
var errNoVariable = errors.New("it names no variable")

// parseTemplate reads a template: text with $variable or ${variable}; "$$" is a dollar.
func parseTemplate(text string) (format, error) {
	if strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("a line break has no place in a line")
	}
	var parts []format
	literal := func(s string) {
		if s != "" {
			parts = append(parts, func(out []byte, _ *Access) []byte { return append(out, s...) })
		}
	}
	named := 0
	for i := strings.IndexByte(text, '$'); i >= 0; i = strings.IndexByte(text, '$') {
		literal(text[:i])
		text = text[i+1:]
		if rest, ok := strings.CutPrefix(text, "$"); ok {
			literal("$")
			text = rest
			continue
		}
		name, rest := "", ""
		if inner, ok := strings.CutPrefix(text, "{"); ok {
			if name, rest, ok = strings.Cut(inner, "}"); !ok {
				return nil, fmt.Errorf("${%s has no end", inner)
			}
		} else {
			end := 0
			for end < len(text) && (text[end] == '_' || text[end] >= 'a' && text[end] <= 'z' || text[end] >= '0' && text[end] <= '9') {
				end++
			}
			name, rest = text[:end], text[end:]
		}
		v := variables[name]
		if v == nil {
			return nil, fmt.Errorf("there is no variable $%s; there are $%s", name, strings.Join(Variables(), " $"))
		}
		parts = append(parts, v)
		named++
		text = rest
	}
	if literal(text); named == 0 {
		return nil, errNoVariable
	}
	return func(out []byte, l *Access) []byte {
		for _, p := range parts {
			out = p(out, l)
		}
		return out
	}, nil
}

func (l *Access) end() time.Time { return l.Start.Add(l.Duration) }

func (l *Access) proto() string { return [...]string{"HTTP/1.0", "HTTP/1.1"}[l.Minor&1] }

func (l *Access) scheme() string {
	if l.TLS {
		return "https"
	}
	return "http"
}

func appendAddr(out []byte, l *Access, none string) []byte {
	if !l.Client.Addr().IsValid() {
		return append(out, none...)
	}
	return l.Client.Addr().AppendTo(out)
}

func appendRequest(out []byte, l *Access) []byte {
	if len(l.Method) == 0 {
		return append(out, '-')
	}
	out = appendURI(append(appendText(out, l.Method), ' '), l)
	return append(append(out, ' '), l.proto()...)
}

func appendURI(out []byte, l *Access) []byte {
	out = appendText(out, l.URI)
	if len(l.Query) > 0 {
		out = appendText(out, l.Query)
	}
	return out
}

func appendUpstreamStatus(out []byte, l *Access) []byte {
	if l.UpstreamStatus == 0 {
		return append(out, '-')
	}
	return appendInt(out, int64(l.UpstreamStatus))
}

func appendUpstreamTime(out []byte, l *Access) []byte {
	if l.UpstreamStatus == 0 {
		return append(out, '-')
	}
	return appendSeconds(out, l.UpstreamLatency, 3)
}

// appendSeconds writes seconds with so many digits behind the point, nine at most.
func appendSeconds(out []byte, d time.Duration, digits int) []byte {
	if d < 0 {
		out, d = append(out, '-'), -d
	}
	one := units[digits]
	n := (uint64(d) + 5e8/one) / (1e9 / one)
	return appendDigits(append(appendInt(out, int64(n/one)), '.'), n%one, digits)
}

// units is how many of its last digits a second has.
var units = [10]uint64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9}

// appendDigits writes the last digits of n, leading zeros with them, nine at most.
func appendDigits(out []byte, n uint64, digits int) []byte {
	end := len(out) + digits
	out = append(out, "000000000"...)[:end]
	for ; digits >= 3; digits -= 3 {
		copy(out[end-3:end], triples[n%1000][:])
		end, n = end-3, n/1000
	}
	for ; n > 0; n /= 10 {
		end--
		out[end] += byte(n % 10)
	}
	return out
}

// triples is three digits of everything below a thousand.
var triples = func() (t [1000][3]byte) {
	for i := range t {
		t[i] = [3]byte{'0' + byte(i/100), '0' + byte(i/10%10), '0' + byte(i%10)}
	}
	return t
}()

// appendInt writes what strconv.AppendInt does, in place.
func appendInt(out []byte, n int64) []byte {
	if n < 0 || n >= 1e9 {
		return strconv.AppendInt(out, n, 10)
	}
	digits := 1
	for uint64(n) >= units[digits] {
		digits++
	}
	return appendDigits(out, uint64(n), digits)
}

func trimMark(query []byte) []byte {
	if len(query) > 0 && query[0] == '?' {
		return query[1:]
	}
	return query
}

const hexDigits = "0123456789ABCDEF"

// appendText writes text as nginx does: quotes, backslashes and whatever is not printable ASCII as \xHH; nothing as "-".
func appendText(out, text []byte) []byte {
	if len(text) == 0 {
		return append(out, '-')
	}
	for _, c := range text {
		if c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			out = append(out, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
			continue
		}
		out = append(out, c)
	}
	return out
}

// opening is how the lines that end in one second begin.
type opening struct {
	second int64
	text   []byte
}

// appendJSON names the fields: Caddy's where Caddy has them.
func appendJSON(out []byte, l *Access, o *opening) []byte {
	end := l.end()
	if s := end.Unix(); s != o.second || o.text == nil {
		o.second, o.text = s, append(appendInt(append(o.text[:0], `{"level":"info","ts":`...), s), '.')
	}
	out = append(out, o.text...)
	out = appendDigits(out, uint64(end.Nanosecond()/1000), 6)
	out = append(out, `,"logger":"http.log.access","msg":"handled request","request":{`...)
	peer := l.Peer
	if !peer.IsValid() {
		peer = l.Client
	}
	from, to := 0, 0 // where the peer's address stands
	if peer.IsValid() {
		out = append(out, `"remote_ip":"`...)
		from = len(out)
		out = peer.Addr().AppendTo(out)
		to = len(out)
		out = append(out, `","remote_port":"`...)
		out = appendInt(out, int64(peer.Port()))
		out = append(out, `",`...)
	}
	if l.Client.IsValid() {
		out = append(out, `"client_ip":"`...)
		if l.Client == peer {
			out = append(out, out[from:to]...)
		} else {
			out = l.Client.Addr().AppendTo(out)
		}
		out = append(out, `",`...)
	}
	out = append(append(out, `"proto":"`...), l.proto()...)
	out = appendString(append(out, `","method":"`...), l.Method)
	out = appendString(append(out, `","host":"`...), l.Host)
	out = appendString(appendString(append(out, `","uri":"`...), l.URI), l.Query)
	out = append(out, '"')
	out = appendField(out, `,"user_agent":"`, l.UserAgent)
	out = appendField(out, `,"referer":"`, l.Referer)
	if l.TLS {
		out = strconv.AppendBool(append(out, `,"tls":{"resumed":`...), l.TLSResumed)
		out = appendNumber(out, `,"version":`, int64(l.TLSVersion))
		out = appendNumber(out, `,"cipher_suite":`, int64(l.TLSCipher))
		out = append(out, '}')
	}
	out = appendNumber(out, `},"bytes_read":`, l.BodyRead)
	out = appendSeconds(append(out, `,"duration":`...), l.Duration, 6)
	out = appendNumber(out, `,"size":`, l.BodySize)
	out = appendNumber(out, `,"status":`, int64(l.Status))
	out = appendField(out, `,"trace_id":"`, l.Trace)
	out = appendField(out, `,"route":"`, l.Route)
	out = appendField(out, `,"service":"`, l.Service)
	out = appendField(out, `,"upstream":"`, l.Upstream)
	out = appendField(out, `,"reason":"`, l.Reason)
	out = appendField(out, `,"flag":"`, l.Flag)
	out = appendField(out, `,"request_id":"`, l.ID)
	if l.Attempts > 0 {
		out = appendNumber(out, `,"attempts":`, int64(l.Attempts))
	}
	if l.UpstreamStatus != 0 {
		out = appendNumber(out, `,"upstream_status":`, int64(l.UpstreamStatus))
		out = appendSeconds(append(out, `,"upstream_duration":`...), l.UpstreamLatency, 6)
		out = appendSeconds(append(out, `,"overhead":`...), l.Duration-l.UpstreamLatency, 6)
	}
	return append(appendNumber(out, `,"table_revision":`, l.TableRevision), '}')
}

// appendField writes a field of text, unless there is none; the key goes before it as it is.
func appendField[T string | []byte](out []byte, key string, text T) []byte {
	if len(text) == 0 {
		return out
	}
	return append(appendString(append(out, key...), text), '"')
}

func appendNumber(out []byte, key string, n int64) []byte { return appendInt(append(out, key...), n) }

// asItIs says which bytes need nothing done to them in a JSON string.
var asItIs = func() (is [256]bool) {
	for c := ' '; c < 0x7f; c++ {
		is[c] = c != '"' && c != '\\'
	}
	return is
}()

// appendString writes the inside of a JSON string. What is no UTF-8, and characters that are not to be seen, such as those that
// steer a terminal or turn text around, do not get through as they are.
func appendString[T string | []byte](out []byte, text T) []byte {
	for i := 0; i < len(text); {
		from := i
		for i < len(text) && asItIs[text[i]] {
			i++
		}
		out = append(out, text[from:i]...)
		if i == len(text) {
			break
		}
		c := text[i]
		if c < 0x80 {
			switch c {
			case '"', '\\':
				out = append(out, '\\', c)
			default:
				out = append(out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(string(text[i:min(i+utf8.UTFMax, len(text))]))
		switch {
		case r == utf8.RuneError && size == 1:
			out = append(out, `\uFFFD`...)
		case unicode.IsPrint(r):
			out = append(out, text[i:i+size]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = appendUnit(appendUnit(out, high), low)
		default:
			out = appendUnit(out, r)
		}
		i += size
	}
	return out
}

func appendUnit(out []byte, u rune) []byte {
	return append(out, '\\', 'u', hexDigits[u>>12], hexDigits[u>>8&15], hexDigits[u>>4&15], hexDigits[u&15])
}
