package registry

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// Limits of the parts of an instance record, in bytes unless they count.
const (
	MaxLabelBytes         = 128  // zone, version, metadata names
	MaxMetadata           = 64   // entries
	MaxMetadataValueBytes = 1024 // each
	MaxClaims             = 64   // entries
	MaxPathBytes          = 1024 // claims and checks
	MaxIncarnationBytes   = 64
	MaxExtra              = 64 // unknown fields kept
)

// Bounds of a check, so that no record can make balancers probe without pause.
const (
	MinCheckInterval = 100 * time.Millisecond
	MaxCheckInterval = 24 * time.Hour
)

// Clone returns a copy that shares nothing with in.
func (in Instance) Clone() Instance {
	if in.Weight != nil {
		in.Weight = new(*in.Weight)
	}
	if in.Check != nil {
		in.Check = new(*in.Check)
	}
	in.Metadata = maps.Clone(in.Metadata)
	in.Claims = slices.Clone(in.Claims)
	in.Extra = maps.Clone(in.Extra)
	for name, raw := range in.Extra {
		in.Extra[name] = slices.Clone(raw)
	}
	return in
}

// Prepare is what every driver does with an instance first: it returns a copy with ID, Incarnation and RegisteredAt
// filled where they are empty, or the error of [Instance.Validate]. now is in the driver's time.
func Prepare(in Instance, now time.Time) (Instance, error) {
	in = in.Clone()
	if in.ID == "" {
		_, port, err := ParseAddress(in.Address)
		if err != nil {
			return Instance{}, err
		}
		in.ID = defaultID(port)
	}
	if in.Incarnation == "" {
		in.Incarnation = NewIncarnation()
	}
	if in.RegisteredAt.IsZero() {
		in.RegisteredAt = now.UTC().Truncate(time.Second)
	}
	if err := in.Validate(); err != nil {
		return Instance{}, err
	}
	return in, nil
}

// defaultID is "<hostname>-<port>" with everything an id may not hold turned into "-".
func defaultID(port int) string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unnamed"
	}
	return idFrom(host, port)
}

func idFrom(host string, port int) string {
	suffix := fmt.Sprintf("-%d", port)
	b := []byte(host)
	b = b[:min(len(b), MaxIDBytes-len(suffix))]
	for i, c := range b {
		if !isIDByte(c) {
			b[i] = '-'
		}
	}
	return string(b) + suffix
}

// Validate says whether the record keeps the rules; Service, ID and Address are required. The error wraps ErrInvalid,
// names the field and says what to write instead.
func (in Instance) Validate() error {
	if err := CheckService(in.Service); err != nil {
		return err
	}
	if err := CheckID(in.ID); err != nil {
		return err
	}
	return in.validateRecord()
}

// validateRecord checks what stands in the value, not in the key.
func (in *Instance) validateRecord() error {
	if in.Address == "" {
		return invalid("address: it is missing; write host:port, as in \"10.0.0.7:5001\"")
	}
	if _, _, err := ParseAddress(in.Address); err != nil {
		return err
	}
	switch in.Protocol {
	case "", HTTP, HTTPS, H2C, H2, GRPC, TCP:
	default:
		return invalid("protocol %s: write http, https, h2c, h2, grpc or tcp", quote(string(in.Protocol)))
	}
	switch in.State {
	case "", Starting, Ready, Draining:
	default:
		return invalid("state %s: write starting, ready or draining", quote(string(in.State)))
	}
	if w := in.EffectiveWeight(); w < 0 || w > MaxWeight {
		return invalid("weight %d: write 0 to %d", w, MaxWeight)
	}
	if err := checkText("zone", in.Zone, MaxLabelBytes); err != nil {
		return err
	}
	if err := checkText("version", in.Version, MaxLabelBytes); err != nil {
		return err
	}
	if in.IdleTimeout < 0 {
		return invalid("idle_timeout %s: write a duration of zero or more, as in \"2s\"", time.Duration(in.IdleTimeout))
	}
	if s := in.Incarnation; s != "" && (!isID(s) || len(s) > MaxIncarnationBytes) {
		return invalid("incarnation %s: write 1 to %d letters, digits, \".\", \"_\", \":\" and \"-\" that sort by age, or leave it out",
			quote(s), MaxIncarnationBytes)
	}
	if y := in.RegisteredAt.Year(); y < 1 || y > 9999 {
		return invalid("registered_at: year %d; write a time as in \"2026-11-22T10:00:00Z\"", y)
	}
	if err := in.Check.validate(); err != nil {
		return err
	}
	return firstError(checkMetadata(in.Metadata), checkClaims(in.Claims), checkExtra(in.Extra))
}

func checkMetadata(m map[string]string) error {
	if len(m) > MaxMetadata {
		return invalid("metadata: %d entries; write at most %d", len(m), MaxMetadata)
	}
	for name, value := range m {
		if name == "" {
			return invalid("metadata: an entry without a name")
		}
		if err := checkText("metadata name", name, MaxLabelBytes); err != nil {
			return err
		}
		if err := checkText("metadata value", value, MaxMetadataValueBytes); err != nil {
			return fmt.Errorf("%w (of %s)", err, quote(name))
		}
	}
	return nil
}

func checkClaims(claims []Claim) error {
	if len(claims) > MaxClaims {
		return invalid("claims: %d entries; write at most %d", len(claims), MaxClaims)
	}
	for _, c := range claims {
		if c.Host == "" && c.Path == "" {
			return invalid("claim: write a host, a path or both")
		}
		if c.Host != "" {
			if err := checkHostname(strings.TrimPrefix(c.Host, "*.")); err != nil {
				return invalid("claim host %s: write a DNS name without a port, as in \"shop.example.com\" or \"*.example.com\": %w", quote(c.Host), err)
			}
		}
		if c.Path != "" {
			if err := checkPath("claim path", c.Path, "?#"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Check) validate() error {
	if c == nil {
		return nil
	}
	switch c.Type {
	case "", "http":
		if c.Path != "" {
			if err := checkPath("check path", c.Path, "#"); err != nil {
				return err
			}
		}
	case "tcp", "grpc":
		if c.Path != "" {
			return invalid("check path %s: leave it out, type %s has none", quote(c.Path), c.Type)
		}
	default:
		return invalid("check type %s: write http, tcp or grpc", quote(c.Type))
	}
	if d := time.Duration(c.Interval); d != 0 && (d < MinCheckInterval || d > MaxCheckInterval) {
		return invalid("check interval %s: write %s to %s, or leave it out", d, MinCheckInterval, MaxCheckInterval)
	}
	if d := time.Duration(c.Timeout); d < 0 || d > MaxCheckInterval {
		return invalid("check timeout %s: write more than zero and at most %s, or leave it out", d, MaxCheckInterval)
	}
	return nil
}

// checkPath refuses paths that could not stand in a request line as they are, or that mean another path than they
// say.
func checkPath(what, p, banned string) error {
	if len(p) > MaxPathBytes {
		return invalid("%s: %d bytes; write at most %d", what, len(p), MaxPathBytes)
	}
	if p[0] != '/' {
		return invalid("%s %s: begin it with a slash, as in \"/healthz\"", what, quote(p))
	}
	for i := range len(p) {
		if c := p[i]; c <= ' ' || c >= 0x7f || c == '\\' || strings.IndexByte(banned, c) >= 0 {
			return invalid("%s %s: write it in plain ASCII without spaces, backslashes or any of %q", what, quote(p), banned)
		}
	}
	path, _, _ := strings.Cut(p, "?")
	for seg := range strings.SplitSeq(path, "/") {
		if seg == "." || seg == ".." {
			return invalid("%s %s: write it without %q", what, quote(p), seg)
		}
	}
	return nil
}

func checkExtra(extra map[string]json.RawMessage) error {
	if len(extra) > MaxExtra {
		return invalid("record: %d unknown fields; write at most %d", len(extra), MaxExtra)
	}
	for name, raw := range extra {
		if err := checkText("field name", name, MaxLabelBytes); err != nil {
			return err
		}
		if near := knownField(name); near != "" {
			return invalid("field %s: write it as %q", quote(name), near)
		}
		if !json.Valid(raw) {
			return invalid("field %s: not JSON", quote(name))
		}
	}
	return nil
}
