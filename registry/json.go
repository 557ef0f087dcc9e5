package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// maxDepth bounds how deeply the unknown parts of a record may nest.
const maxDepth = 16

// MarshalJSON writes the duration as time.Duration does, as in "1m30s".
func (d Duration) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(d).String())
}

// UnmarshalJSON reads what time.ParseDuration reads, from a string; a bare number has no unit and is refused.
func (d *Duration) UnmarshalJSON(data []byte) error {
	s, err := jsonString(data)
	if err != nil {
		return invalid("duration %s: write a string with a unit, as in \"5s\" or \"250ms\"", quote(string(data)))
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return invalid("duration %s: write a number with a unit, as in \"5s\" or \"250ms\"", quote(s))
	}
	*d = Duration(v)
	return nil
}

// String is that of time.Duration.
func (d Duration) String() string { return time.Duration(d).String() }

// instanceFields are the names of the record's fields, in the order of the struct.
var instanceFields = []string{"address", "protocol", "state", "weight", "zone", "version", "metadata", "claims", "check",
	"idle_timeout", "drain_ack", "incarnation", "registered_at"}

// knownField returns the field that name is, or is but for its case; "" if it is unknown.
func knownField(name string) string {
	return nearField(name, instanceFields)
}

func nearField(name string, fields []string) string {
	for _, f := range fields {
		if strings.EqualFold(f, name) {
			return f
		}
	}
	return ""
}

// plainInstance has the fields of Instance without its methods.
type plainInstance Instance

// MarshalJSON writes the value of the record: the known fields, then Extra sorted by name. It does not validate.
func (in Instance) MarshalJSON() ([]byte, error) {
	out, err := marshalPlain(plainInstance(in))
	if err != nil || len(in.Extra) == 0 {
		return out, err
	}
	b := bytes.NewBuffer(out[:len(out)-1]) // "address" is always there, so a comma fits
	for _, name := range slices.Sorted(maps.Keys(in.Extra)) {
		if knownField(name) != "" {
			return nil, invalid("field %s: Extra is for fields that Instance does not have", quote(name))
		}
		quoted, err := marshalPlain(name)
		if err != nil {
			return nil, err
		}
		b.WriteByte(',')
		b.Write(quoted)
		b.WriteByte(':')
		if err := json.Compact(b, in.Extra[name]); err != nil {
			return nil, invalid("field %s: %w", quote(name), err)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshalPlain is json.Marshal without the HTML escapes, which only get in the way of those who read with etcdctl.
func marshalPlain(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// UnmarshalJSON reads the value of a record, strictly: types and field names must match exactly, no name may stand
// twice in one object, and nothing may follow. null stands for an absent field. Fields that Instance does not have
// go to Extra. Service and ID, which stand in the key, are left as they are. It does not judge what the fields say;
// see [Instance.Validate]. Errors wrap ErrInvalid.
func (in *Instance) UnmarshalJSON(data []byte) error {
	if !utf8.Valid(data) {
		return invalid("record: not UTF-8")
	}
	whole := bytes.Trim(data, " \t\r\n")
	if !json.Valid(whole) { // the syntax, and that nothing follows
		return invalid("record: not JSON, %s", syntaxError(whole))
	}
	if kind(whole) != '{' {
		return invalid("record: write a JSON object, as in {\"address\":\"10.0.0.7:5001\"}")
	}
	out := Instance{Service: in.Service, ID: in.ID}
	err := eachField(whole, instanceFields, func(name string, raw []byte) error {
		if string(raw) == "null" && slices.Contains(instanceFields, name) {
			return nil
		}
		var err error
		switch name {
		case "address":
			out.Address, err = jsonString(raw)
		case "protocol":
			var s string
			s, err = jsonString(raw)
			out.Protocol = Protocol(s)
		case "state":
			var s string
			s, err = jsonString(raw)
			out.State = State(s)
		case "weight":
			var w int
			w, err = jsonInt(raw)
			out.Weight = &w
		case "zone":
			out.Zone, err = jsonString(raw)
		case "version":
			out.Version, err = jsonString(raw)
		case "metadata":
			out.Metadata, err = jsonStrings(raw)
		case "claims":
			out.Claims, err = jsonClaims(raw)
		case "check":
			out.Check, err = jsonCheck(raw)
		case "idle_timeout":
			err = out.IdleTimeout.UnmarshalJSON(raw)
		case "drain_ack":
			out.DrainAck, err = jsonBool(raw)
		case "incarnation":
			out.Incarnation, err = jsonString(raw)
		case "registered_at":
			out.RegisteredAt, err = jsonTime(raw)
		default:
			if err = checkNesting(raw, 1); err == nil {
				if out.Extra == nil {
					out.Extra = make(map[string]json.RawMessage)
				}
				var compact bytes.Buffer
				err = json.Compact(&compact, raw)
				out.Extra[name] = compact.Bytes()
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", quote(name), err)
		}
		return nil
	})
	if err != nil {
		return invalid("record: %w", err)
	}
	*in = out
	return nil
}

// syntaxError says where data stops being JSON.
func syntaxError(data []byte) string {
	var se *json.SyntaxError
	if err := json.Unmarshal(data, new(json.RawMessage)); !errors.As(err, &se) || se.Offset >= int64(len(data)) {
		return "it ends too early"
	}
	at := int(se.Offset)
	return fmt.Sprintf("after byte %d, behind %s", at, quote(string(data[max(0, at-20):at])))
}

var claimFields = []string{"host", "path"}

func jsonClaims(raw []byte) ([]Claim, error) {
	if kind(raw) != '[' {
		return nil, wantErr(raw, "an array of objects")
	}
	var claims []Claim
	err := eachElement(raw, func(raw []byte) error {
		if kind(raw) != '{' {
			return wantErr(raw, "an array of objects")
		}
		var c Claim
		err := eachField(raw, claimFields, func(name string, raw []byte) (err error) {
			switch name {
			case "host":
				c.Host, err = jsonString(raw)
			case "path":
				c.Path, err = jsonString(raw)
			default:
				err = checkNesting(raw, 3)
			}
			return err
		})
		claims = append(claims, c)
		return err
	})
	return claims, err
}

var checkFields = []string{"type", "path", "interval", "timeout"}

func jsonCheck(raw []byte) (*Check, error) {
	if kind(raw) != '{' {
		return nil, wantErr(raw, "an object, as in {\"type\":\"http\",\"path\":\"/healthz\"}")
	}
	var c Check
	err := eachField(raw, checkFields, func(name string, raw []byte) (err error) {
		switch name {
		case "type":
			c.Type, err = jsonString(raw)
		case "path":
			c.Path, err = jsonString(raw)
		case "interval":
			err = c.Interval.UnmarshalJSON(raw)
		case "timeout":
			err = c.Timeout.UnmarshalJSON(raw)
		default:
			err = checkNesting(raw, 2)
		}
		return err
	})
	return &c, err
}

func jsonStrings(raw []byte) (map[string]string, error) {
	if kind(raw) != '{' {
		return nil, wantErr(raw, "an object of strings")
	}
	m := make(map[string]string)
	err := eachField(raw, nil, func(name string, raw []byte) (err error) {
		m[name], err = jsonString(raw)
		return err
	})
	if len(m) == 0 {
		return nil, err
	}
	return m, err
}

func jsonString(raw []byte) (s string, err error) {
	if kind(raw) != '"' {
		return "", wantErr(raw, "a string")
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), nil
	}
	err = json.Unmarshal(raw, &s)
	return s, err
}

func jsonInt(raw []byte) (n int, err error) {
	n, err = strconv.Atoi(string(raw)) // what JSON allows, but for "-0", and none of what it does not
	if err != nil || string(raw) == "-0" {
		return 0, wantErr(raw, "a whole number without quotes, point or exponent")
	}
	return n, nil
}

func jsonBool(raw []byte) (bool, error) {
	switch string(raw) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, wantErr(raw, "true or false")
}

func jsonTime(raw []byte) (time.Time, error) {
	s, err := jsonString(raw)
	if err != nil {
		return time.Time{}, err
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, wantErr(raw, "a time as in \"2026-11-22T10:00:00Z\"")
	}
	return t.UTC(), nil
}

func wantErr(raw []byte, want string) error {
	return fmt.Errorf("%s; write %s", quote(string(raw)), want)
}

// What follows walks JSON that is known to be well formed.

// kind is the first byte of a value: '{', '[', '"', 't', 'f', 'n', or a digit or sign.
func kind(raw []byte) byte {
	if len(raw) == 0 {
		return 0
	}
	return raw[0]
}

// eachField calls f for every field of an object. It refuses a name that stands twice, and one that differs only in
// case from one of known: other readers would take it for that.
func eachField(raw []byte, known []string, f func(name string, value []byte) error) error {
	var few [24]string
	seen := few[:0]
	var many map[string]struct{}
	p := space(raw, 1)
	for raw[p] != '}' {
		end := valueEnd(raw, p)
		name, isKnown, err := fieldName(raw[p:end], known)
		if err != nil {
			return err
		}
		switch {
		case many != nil:
			if _, twice := many[name]; twice {
				return fmt.Errorf("field %s stands twice", quote(name))
			}
			many[name] = struct{}{}
		case slices.Contains(seen, name):
			return fmt.Errorf("field %s stands twice", quote(name))
		case len(seen) == cap(seen):
			many = make(map[string]struct{})
			for _, s := range append(seen, name) {
				many[s] = struct{}{}
			}
		default:
			seen = append(seen, name)
		}
		if !isKnown {
			if near := nearField(name, known); near != "" {
				return fmt.Errorf("field %s; write it as %q", quote(name), near)
			}
		}
		p = space(raw, space(raw, end)+1) // over the colon
		end = valueEnd(raw, p)
		if err := f(name, raw[p:end]); err != nil {
			return err
		}
		if p = space(raw, end); raw[p] == ',' {
			p = space(raw, p+1)
		}
	}
	return nil
}

// fieldName reads the name of a field, without an allocation if it is one of known.
func fieldName(raw []byte, known []string) (name string, isKnown bool, err error) {
	for _, k := range known {
		if string(raw[1:len(raw)-1]) == k {
			return k, true, nil
		}
	}
	name, err = jsonString(raw)
	return name, slices.Contains(known, name), err // with an escape in it, it may be one of them
}

// eachElement calls f for every element of an array.
func eachElement(raw []byte, f func(value []byte) error) error {
	p := space(raw, 1)
	for raw[p] != ']' {
		end := valueEnd(raw, p)
		if err := f(raw[p:end]); err != nil {
			return err
		}
		if p = space(raw, end); raw[p] == ',' {
			p = space(raw, p+1)
		}
	}
	return nil
}

// checkNesting walks a value that nobody here understands: it may nest maxDepth levels and repeat no name.
func checkNesting(raw []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nests more than %d levels", maxDepth)
	}
	switch kind(raw) {
	case '{':
		return eachField(raw, nil, func(_ string, value []byte) error { return checkNesting(value, depth+1) })
	case '[':
		return eachElement(raw, func(value []byte) error { return checkNesting(value, depth+1) })
	}
	return nil
}

func space(raw []byte, p int) int {
	for p < len(raw) && (raw[p] == ' ' || raw[p] == '\t' || raw[p] == '\n' || raw[p] == '\r') {
		p++
	}
	return p
}

// valueEnd returns the index after the value that begins at p.
func valueEnd(raw []byte, p int) int {
	switch raw[p] {
	case '"':
		return stringEnd(raw, p)
	case '{', '[':
		for depth := 0; p < len(raw); {
			switch raw[p] {
			case '"':
				p = stringEnd(raw, p)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return p + 1
				}
			}
			p++
		}
		return p
	}
	for p < len(raw) && !strings.ContainsRune(",:]} \t\r\n", rune(raw[p])) {
		p++
	}
	return p
}

func stringEnd(raw []byte, p int) int {
	for p++; raw[p] != '"'; p++ {
		if raw[p] == '\\' {
			p++
		}
	}
	return p + 1
}
