package registry

import (
	"strings"
)

// DefaultPrefix is the key prefix used when none is configured.
const DefaultPrefix = "/rota"

// Longest names, in bytes.
const (
	MaxServiceBytes = 63
	MaxIDBytes      = 128
)

// Keys builds and reads the keys below one prefix. The zero Keys uses [DefaultPrefix]. It is a value without state
// and may be used concurrently.
type Keys struct {
	// Prefix begins with "/" and does not end in one; empty means DefaultPrefix. See [Keys.Validate].
	Prefix string
}

// Key is what a key of the store says.
type Key struct {
	Kind Kind
	// Service is set for KindInstance, KindPolicy, KindGrant and KindAck.
	Service string
	// ID is the instance id of KindInstance and KindAck, the name of a route, the id of a balancer.
	ID string
	// Balancer is the id of the balancer that wrote a KindAck.
	Balancer string
}

// The first segment below the prefix.
const (
	segServices  = "services"
	segRoutes    = "routes"
	segPolicies  = "policies"
	segGrants    = "grants"
	segBalancers = "balancers"
	segAcks      = "acks"
)

// Validate says whether the prefix is usable: segments of letters, digits, ".", "_" and "-", each begun by a "/".
// The error wraps ErrInvalid.
func (k Keys) Validate() error {
	p := k.prefix()
	if p[0] != '/' {
		return invalid("prefix %s: begin it with a slash, as in %q", quote(p), DefaultPrefix)
	}
	if len(p) > 1 && p[len(p)-1] == '/' {
		return invalid("prefix %s: leave out the slash at the end, as in %q", quote(p), DefaultPrefix)
	}
	for seg := range strings.SplitSeq(p[1:], "/") {
		if !isID(seg) || strings.Contains(seg, ":") {
			return invalid("prefix %s: write segments of letters, digits, \".\", \"_\" and \"-\", as in %q", quote(p), DefaultPrefix)
		}
	}
	return nil
}

func (k Keys) prefix() string {
	if k.Prefix == "" {
		return DefaultPrefix
	}
	return k.Prefix
}

// Instance is the key of an instance. Names are not checked here; see [CheckService] and [CheckID].
func (k Keys) Instance(service, id string) string {
	return k.prefix() + "/" + segServices + "/" + service + "/" + id
}

// Route is the key of a route.
func (k Keys) Route(name string) string { return k.prefix() + "/" + segRoutes + "/" + name }

// Policy is the key of a service's policy.
func (k Keys) Policy(service string) string { return k.prefix() + "/" + segPolicies + "/" + service }

// Grant is the key of what a service may claim.
func (k Keys) Grant(service string) string { return k.prefix() + "/" + segGrants + "/" + service }

// Balancer is the key of a balancer's record.
func (k Keys) Balancer(id string) string { return k.prefix() + "/" + segBalancers + "/" + id }

// Ack is the key by which a balancer acknowledges that an instance is drained.
func (k Keys) Ack(service, id, balancer string) string {
	return k.prefix() + "/" + segAcks + "/" + service + "/" + id + "/" + balancer
}

// Balancers is the prefix of the keys of all balancers.
func (k Keys) Balancers() string { return k.prefix() + "/" + segBalancers + "/" }

// Acks is the prefix of the acknowledgements of an instance.
func (k Keys) Acks(service, id string) string { return k.Ack(service, id, "") }

// RangePrefix is the prefix of all keys in the scope. It always ends in "/", so that service "foo" never includes
// "foobar".
func (k Keys) RangePrefix(s Scope) string {
	switch {
	case s.Service != "":
		return k.prefix() + "/" + segServices + "/" + s.Service + "/"
	case s.Instances:
		return k.prefix() + "/" + segServices + "/"
	}
	return k.prefix() + "/"
}

// Parse reads a key. A key that does not have exactly one of the known shapes comes back as KindUnknown with an
// error that wraps ErrInvalid; nothing is cleaned, decoded or folded first.
func (k Keys) Parse(key string) (Key, error) {
	rest, ok := strings.CutPrefix(key, k.prefix()+"/")
	if !ok {
		return Key{Kind: KindUnknown}, invalid("key %s: not below %s/", quote(key), k.prefix())
	}
	seg := strings.SplitN(rest, "/", 5) // the deepest shape has four
	n := len(seg)
	var out Key
	var err error
	switch {
	case seg[0] == segServices && n == 3:
		out = Key{Kind: KindInstance, Service: seg[1], ID: seg[2]}
		err = firstError(CheckService(out.Service), CheckID(out.ID))
	case seg[0] == segRoutes && n == 2:
		out = Key{Kind: KindRoute, ID: seg[1]}
		err = CheckID(out.ID)
	case seg[0] == segPolicies && n == 2:
		out = Key{Kind: KindPolicy, Service: seg[1]}
		err = CheckService(out.Service)
	case seg[0] == segGrants && n == 2:
		out = Key{Kind: KindGrant, Service: seg[1]}
		err = CheckService(out.Service)
	case seg[0] == segBalancers && n == 2:
		out = Key{Kind: KindBalancer, ID: seg[1]}
		err = CheckID(out.ID)
	case seg[0] == segAcks && n == 4:
		out = Key{Kind: KindAck, Service: seg[1], ID: seg[2], Balancer: seg[3]}
		err = firstError(CheckService(out.Service), CheckID(out.ID), CheckID(out.Balancer))
	default:
		err = invalid("key %s: write %s/services/<service>/<id> for an instance; "+
			"the other shapes are routes/<name>, policies/<service>, grants/<service>, balancers/<id> and acks/<service>/<id>/<balancer>",
			quote(key), k.prefix())
	}
	if err != nil {
		return Key{Kind: KindUnknown}, err
	}
	return out, nil
}

// Validate says whether the scope names a possible service. The error wraps ErrInvalid.
func (s Scope) Validate() error {
	if s.Service == "" {
		return nil
	}
	return CheckService(s.Service)
}

// CheckService says whether s can name a service: [a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?. The error wraps ErrInvalid.
func CheckService(s string) error {
	if isService(s) {
		return nil
	}
	return invalid("service %s: write 1 to %d lower-case letters, digits, \"-\" and \".\", with a letter or digit at both ends, as in \"cart\"",
		quote(s), MaxServiceBytes)
}

// CheckID says whether s can be the id of an instance or balancer, or the name of a route: [A-Za-z0-9._:-]{1,128},
// but not "." or "..", which every URL library would swallow. The error wraps ErrInvalid.
func CheckID(s string) error {
	if isID(s) {
		return nil
	}
	return invalid("id %s: write 1 to %d letters, digits, \".\", \"_\", \":\" and \"-\", as in \"cart-5001\"", quote(s), MaxIDBytes)
}

func isService(s string) bool {
	if s == "" || len(s) > MaxServiceBytes {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case (c == '-' || c == '.') && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return true
}

func isID(s string) bool {
	if s == "" || len(s) > MaxIDBytes || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		if !isIDByte(s[i]) {
			return false
		}
	}
	return true
}

func isIDByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == ':' || c == '-'
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
