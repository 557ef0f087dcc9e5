package codec

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/rota-lb/rota/registry"
)

// Format says how another product writes its instances. The names are those of the configuration file.
type Format string

// The formats.
const (
	// Auto tells the others apart, record by record, by the fields of the value and the shape of the key.
	Auto Format = "auto"
	// Naming is that of package naming/endpoints of etcd's client, for gRPC: <target>/<any>, a JSON object with Addr.
	// Source: client/v3/naming/endpoints of etcd-io/etcd.
	Naming Format = "naming"
	// GoZero is that of go-zero: <key>/<lease>, a bare host:port. Source: core/discov of zeromicro/go-zero.
	GoZero Format = "go-zero"
	// Kratos is that of Kratos: /microservices/<name>/<id>, a JSON object with endpoints, which are URLs. Source:
	// contrib/registry/etcd and registry of go-kratos/kratos.
	Kratos Format = "kratos"
	// Kitex is that of Kitex and Hertz: kitex/registry-etcd/<name>/<address>, a JSON object with network and address.
	// Source: kitex-contrib/registry-etcd and hertz-contrib/registry.
	Kitex Format = "kitex"
	// Plain is that of Registrator, of scripts, and of the keys that confd's templates read: <prefix>/<name>/<id>, a
	// bare host:port. Source: etcd/etcd.go and docs/user/services.md of gliderlabs/registrator.
	Plain Format = "plain"
	// SkyDNS is that of SkyDNS and of CoreDNS's etcd plugin: /skydns/<the labels of a name, the last one first>, a JSON
	// object with host and port. Source: README.md of skynetservices/skydns, plugin/etcd/msg of coredns/coredns.
	SkyDNS Format = "skydns"
)

// decoders fill in an instance whose service and id are known, from a value that has the outer shape of their format.
var decoders = map[Format]func(f Foreign, r *record) error{
	Naming: naming, GoZero: address(registry.GRPC), Kratos: kratos, Kitex: kitex, Plain: address(""), SkyDNS: skyDNS,
}

// Formats lists the names of the formats, Auto first.
func Formats() []string {
	names := []string{string(Auto)}
	for _, f := range slices.Sorted(maps.Keys(decoders)) {
		names = append(names, string(f))
	}
	return names
}

// Foreign reads the instances that another product keeps below a prefix of its own. It only reads: nothing is ever
// written there. It is a value without state and may be used concurrently.
type Foreign struct {
	// Prefix stands before the keys, without the slash behind it: "/microservices", "kitex/registry-etcd".
	Prefix string
	// Format is how they are written; empty means Auto.
	Format Format
	// Service says that every key is <prefix>/<id> and belongs to this service. Empty means <prefix>/<service>/<id>,
	// where the service is written in lower case and with "-" for "_".
	Service string
	// Protocol is what the instances speak, in place of what the format says; of a Kratos instance it chooses the
	// endpoint. Empty leaves it to the format.
	Protocol registry.Protocol
}

// Validate says whether the fields can be meant. The error wraps [registry.ErrInvalid].
func (f Foreign) Validate() error {
	if !IsPrefix(f.Prefix) {
		return refuse("prefix %s: write segments of letters, digits, \".\", \"_\" and \"-\", as in \"/microservices\"", quote(f.Prefix))
	}
	if _, ok := decoders[f.format()]; !ok && f.format() != Auto {
		return refuse("format %s: write %s", quote(string(f.Format)), strings.Join(Formats(), ", "))
	}
	if f.Service != "" {
		if err := registry.CheckService(f.Service); err != nil {
			return err
		}
	}
	return registry.Instance{Service: "a", ID: "a", Address: "localhost:1", Protocol: f.Protocol}.Validate()
}

// IsPrefix says whether s can be the prefix of a Foreign.
func IsPrefix(s string) bool {
	for seg := range strings.SplitSeq(strings.TrimPrefix(s, "/"), "/") {
		if registry.CheckID(seg) != nil || strings.Contains(seg, ":") {
			return false
		}
	}
	return true
}

// Overlap says whether one of two prefixes is the other, or stands above it. Such prefixes cannot be read side by side:
// a key would be two instances, and so would two that differ in the slash they begin with.
func Overlap(a, b string) bool {
	a, b = strings.TrimPrefix(a, "/")+"/", strings.TrimPrefix(b, "/")+"/"
	return strings.HasPrefix(a, b) || strings.HasPrefix(b, a)
}

func (f Foreign) format() Format {
	if f.Format == "" {
		return Auto
	}
	return f.Format
}

// Key reads a key: the service it belongs to, and an id that no other key of any prefix has. That is the prefix and the
// last segment, with colons for slashes. Where something of the key cannot stand in a name and is changed, or left out
// because a DNS name has many labels, a part of the key's hash tells the id from others. The error wraps
// [registry.ErrInvalid].
func (f Foreign) Key(key string) (service, id string, err error) {
	rest, ok := strings.CutPrefix(key, f.Prefix+"/")
	seg := strings.Split(rest, "/")
	leaf, names := seg[len(seg)-1], seg[:len(seg)-1]
	deep := f.format() == Auto || f.format() == SkyDNS // a DNS name may have more than one label
	switch {
	case !ok || slices.Contains(seg, ""):
		err = refuse("key %s: write %s/…, with a name between any two slashes", quote(key), f.Prefix)
	case f.Service != "" && len(names) != 0:
		err = refuse("key %s: write %s/<id>; every key there is one of %s", quote(key), f.Prefix, f.Service)
	case f.Service == "" && (len(names) == 0 || len(names) > 1 && !deep):
		err = refuse("key %s: write %s/<service>/<id>, or name the service of all keys there", quote(key), f.Prefix)
	}
	if err != nil {
		return "", "", err
	}
	written := f.Service
	if written == "" {
		slices.Reverse(names)
		written = strings.Join(names, ".")
	}
	service = strings.ReplaceAll(strings.ToLower(written), "_", "-")
	if err := registry.CheckService(service); err != nil {
		return "", "", fmt.Errorf("key %s: %w; read a longer prefix, or name the service of all keys there", quote(key), err)
	}
	id = strings.ReplaceAll(strings.TrimPrefix(f.Prefix, "/"), "/", ":") + ":" + leaf
	if service != written || len(names) > 1 || registry.CheckID(id) != nil {
		id = distinct(id, key)
	}
	return service, id, nil
}

// distinct makes an id of what cannot be one.
func distinct(id, key string) string {
	sum := sha256.Sum256([]byte(key))
	tail := "-" + hex.EncodeToString(sum[:8])
	b := []byte(id)[:min(len(id), registry.MaxIDBytes-len(tail))]
	for i, c := range b {
		if registry.CheckID("a"+string(c)) != nil {
			b[i] = '-'
		}
	}
	return string(b) + tail
}

// Decode reads a record into an instance whose service and id are those of [Foreign.Key]. It is as wary of the value as
// the function Decode: errors wrap [registry.ErrInvalid], say what is wrong, and are about this value alone. It keeps no
// reference to value.
func (f Foreign) Decode(key string, value []byte) (registry.Instance, error) {
	in, err := f.decode(key, value)
	if err != nil {
		return registry.Instance{}, err
	}
	share(&in)
	return in, nil
}

func (f Foreign) decode(key string, value []byte) (in registry.Instance, err error) {
	if in.Service, in.ID, err = f.Key(key); err != nil {
		return in, err
	}
	if err := checkText(value); err != nil {
		return in, err
	}
	r := &record{Instance: in, segments: strings.Split(strings.TrimPrefix(key, f.Prefix+"/"), "/")}
	if isJSON(value) {
		if r.fields, err = object(value); err != nil {
			return in, invalid("%w", err)
		}
	} else {
		r.text = string(value)
	}
	format := f.format()
	if format == Auto {
		if format = r.guess(); format == "" {
			return in, invalid("neither host:port nor JSON of a known format; name the format of %s", f.Prefix)
		}
	}
	if format != SkyDNS && len(r.segments) > 2 {
		return in, invalid("more than a service and an id stand in its key, which is for format %s only", SkyDNS)
	}
	if plain := format == Plain || format == GoZero; plain != (r.fields == nil) {
		if plain {
			return in, invalid("JSON; format %s is a bare host:port", format)
		}
		return in, invalid("not a JSON object, as in format %s", format)
	}
	if err := decoders[format](f, r); err != nil {
		return in, invalid("of format %s: %w", format, err)
	}
	if f.Protocol != "" {
		r.Protocol = f.Protocol
	}
	return r.Instance, r.Validate()
}

// record is a value on its way to an instance.
type record struct {
	registry.Instance
	segments []string // of the key, after the prefix
	text     string   // of a value that is not JSON
	fields   map[string]json.RawMessage
}

func (r *record) leaf() string { return r.segments[len(r.segments)-1] }

// guess tells the formats apart; it returns none when it cannot.
func (r *record) guess() Format {
	if r.fields == nil {
		// The id of a lease is a random number of 63 bits. Nobody else names instances so.
		if s := r.leaf(); len(s) >= 15 && strings.Trim(s, "0123456789") == "" {
			return GoZero
		}
		return Plain
	}
	for _, is := range []struct {
		field  string
		format Format
	}{{"Addr", Naming}, {"endpoints", Kratos}, {"network", Kitex}, {"host", SkyDNS}} {
		if _, ok := r.fields[is.field]; ok {
			return is.format
		}
	}
	return ""
}

// field reads a field into v and leaves v as it is when the field is absent or null.
func (r *record) field(name string, v any) error {
	raw, ok := r.fields[name]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("field %s holds %s, which is not what the format has there", name, quote(string(raw)))
	}
	return nil
}

// strings reads a field that is an object of strings.
func (r *record) strings(name string) (map[string]string, error) {
	raw, ok := r.fields[name]
	if !ok || string(raw) == "null" {
		return nil, nil
	}
	fields, err := object(raw)
	if err != nil || len(fields) == 0 {
		return nil, err
	}
	m := make(map[string]string, len(fields))
	for key, raw := range fields {
		var s *string
		if err := json.Unmarshal(raw, &s); err != nil || s == nil {
			return nil, fmt.Errorf("field %s: %s is not a string", name, quote(key))
		}
		m[key] = *s
	}
	return m, nil
}

// object reads the fields of a JSON object, none of which may stand twice: two readers could understand that differently.
func object(value []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(value))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object: %s", quote(string(value)))
	}
	fields := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		name, _ := t.(string)
		var raw json.RawMessage
		if err == nil {
			err = d.Decode(&raw)
		}
		if err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("field %s stands twice", quote(name))
		}
		fields[name] = raw
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("something follows the JSON object")
	}
	return fields, nil
}

// The formats, one by one. What they ignore stands in docs/registration.md.

// address reads a bare host:port of those who speak a protocol.
func address(speak registry.Protocol) func(Foreign, *record) error {
	return func(_ Foreign, r *record) error {
		// Registrator ends the id of what listens on UDP so.
		if strings.HasSuffix(r.leaf(), ":udp") {
			return fmt.Errorf("it is for UDP, which is not balanced")
		}
		r.Address, r.Protocol = r.text, speak
		_, _, err := registry.ParseAddress(r.Address)
		return err
	}
}

func naming(_ Foreign, r *record) error {
	var op int
	if err := r.field("Op", &op); err != nil {
		return err
	}
	if op != 0 {
		return fmt.Errorf("field Op is %d, which is not that of an address to add", op)
	}
	r.Protocol = registry.GRPC
	var entries map[string]json.RawMessage // Metadata is whatever the service likes
	if raw, ok := r.fields["Metadata"]; ok && raw[0] == '{' {
		var err error
		if entries, err = object(raw); err != nil {
			return err
		}
	}
	for name, raw := range entries {
		var s string
		if raw[0] == '"' && json.Unmarshal(raw, &s) == nil {
			if r.Metadata == nil {
				r.Metadata = map[string]string{}
			}
			r.Metadata[name] = s
		}
	}
	return r.field("Addr", &r.Address)
}

func kratos(f Foreign, r *record) (err error) {
	var name string
	var endpoints []string
	for field, v := range map[string]any{"name": &name, "version": &r.Version, "endpoints": &endpoints} {
		if err := r.field(field, v); err != nil {
			return err
		}
	}
	if len(r.segments) == 2 && name != "" && name != r.segments[0] {
		return fmt.Errorf("it says that its name is %s, its key says %s", quote(name), quote(r.segments[0])) // Kratos skips it too
	}
	if r.Metadata, err = r.strings("metadata"); err != nil {
		return err
	}
	if w, err := strconv.Atoi(r.Metadata["weight"]); err == nil { // where Kratos's selectors look for it
		r.Weight = &w
	}
	best := 0
	for _, s := range endpoints {
		protocol, host, err := endpoint(s)
		if err != nil {
			return err
		}
		if n := preference(protocol, f.Protocol); n > best {
			best, r.Protocol, r.Address = n, protocol, host
		}
	}
	if best == 0 {
		return fmt.Errorf("none of its %d endpoints is of a protocol that is wanted", len(endpoints))
	}
	return nil
}

// endpoint reads an endpoint of Kratos: scheme://host:port, with ?isSecure=true for TLS. Of a scheme that is not known the
// protocol is empty.
func endpoint(s string) (registry.Protocol, string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Path != "" && u.Path != "/" {
		return "", "", fmt.Errorf("endpoint %s is not scheme://host:port", quote(s))
	}
	secure, _ := strconv.ParseBool(u.Query().Get("isSecure"))
	switch {
	case u.Scheme == "https" || u.Scheme == "http" && secure:
		return registry.HTTPS, u.Host, nil
	case u.Scheme == "http":
		return registry.HTTP, u.Host, nil
	case u.Scheme == "grpcs" || u.Scheme == "grpc" && secure:
		return registry.H2, u.Host, nil
	case u.Scheme == "grpc":
		return registry.GRPC, u.Host, nil
	}
	return "", u.Host, nil
}

// preference ranks the protocol of an endpoint: the one that is wanted, or HTTP before gRPC. 0 is not at all.
func preference(p, want registry.Protocol) int {
	switch {
	case p == "" || want != "" && p != want:
		return 0
	case p == registry.HTTP || p == registry.HTTPS:
		return 2
	}
	return 1
}

func kitex(_ Foreign, r *record) (err error) {
	var network string
	var weight int
	for field, v := range map[string]any{"network": &network, "address": &r.Address, "weight": &weight} {
		if err := r.field(field, v); err != nil {
			return err
		}
	}
	if network != "tcp" {
		return fmt.Errorf("network %s is not tcp", quote(network))
	}
	const scale = 10 // its default is 10, ours 100
	if weight > registry.MaxWeight/scale {
		return fmt.Errorf("weight %d is more than %d", weight, registry.MaxWeight/scale)
	}
	if weight > 0 {
		r.Weight = new(weight * scale)
	}
	r.Protocol = registry.TCP
	r.Metadata, err = r.strings("tags")
	return err
}

func skyDNS(_ Foreign, r *record) error {
	var host string
	var port, weight int
	var mail bool
	for field, v := range map[string]any{"host": &host, "port": &port, "weight": &weight, "mail": &mail} {
		if err := r.field(field, v); err != nil {
			return err
		}
	}
	switch {
	case mail:
		return fmt.Errorf("it is for mail")
	case port <= 0:
		return fmt.Errorf("it has no port")
	}
	if weight != 0 { // which stands for 100 there
		r.Weight = &weight
	}
	r.Address = net.JoinHostPort(host, strconv.Itoa(port))
	return nil
}

// refuse returns an error about a key or a setting.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w foreign "+format, append([]any{registry.ErrInvalid}, args...)...)
}

// quote shows what comes from outside as a short ASCII literal.
func quote(s string) string { return fmt.Sprintf("%+.80q", s) }
