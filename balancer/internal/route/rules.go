package route

import (
	"bytes"
	"cmp"
	"math/rand/v2"
	"regexp"
	"slices"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
)

// Rules are what a route asks for beyond sending a prefix to a service. Zero fields ask for nothing.
type Rules struct {
	// Pattern must match the whole path; Path and Exact are empty then.
	Pattern *regexp.Regexp
	// EncodedSlashes lets the route take paths with %2F or %5C, whatever it matches.
	EncodedSlashes bool
	// Conditions must all hold.
	Conditions []Condition
	// Split replaces Service.
	Split []Share
	// Redirect is the answer; there is no service then.
	Redirect *Redirect
	// Prefix is put in the place of the prefix that is stripped.
	Prefix string
	// Request is changed on the way to the service, Response on the way back.
	Request, Response Edit
	Mirror            *Mirror
	Timeouts          Timeouts
	Retries           Retries
	Rate              *Rate
	// MaxBody is the longest request body; zero is that of all routes.
	MaxBody int64
	// Upgrades are the tokens, lower-case, that a connection may be upgraded to; nil is websocket alone.
	Upgrades []string
}

// Share is a part of a split.
type Share struct {
	Service string
	Subset  Subset
	Weight  int // relative to the others; zero takes nothing

	slot int
}

// Subset names some of the instances of a service: those that registered all of this. The zero value is all of them.
type Subset struct {
	Version  string
	Metadata string // "key=value" lines, sorted
}

// Edit changes header fields: removed first, then added. The zero value changes nothing.
type Edit struct {
	Remove []string // lower-case names
	Add    []byte   // whole lines with their CRLF
}

// Mirror names a service that gets copies.
type Mirror struct {
	Service string
	Percent int // 1 to 100

	slot int
}

// Timeouts of exchanges; what each means is told by config.Timeouts.
type Timeouts struct {
	Connect, ResponseHead, IdleBody, Tunnel, Request time.Duration
}

// Retries say how often a request is tried.
type Retries struct {
	Attempts int // in all; 1 is once
	Budget   int // retries per hundred requests
	Buffer   int // bytes of body that are kept to be sent again
}

// Rate is a token bucket for each key.
type Rate struct {
	Every  time.Duration // one token
	Burst  int           // at least 1
	Header string        // lower-case name of the field that is the key; empty is the client's address
}

// Condition is about the scheme, the method, a header field or a parameter of the query.
type Condition struct {
	Of   Part
	Name string // of the field, lower-case, or of the parameter
	// Methods are those that match; of OfMethod only.
	Methods []string
	// Value must be the whole value, unless Pattern matches the whole value instead, or Any says that any will do.
	Value   string
	Pattern *regexp.Regexp
	Any     bool
}

// Part is what a condition is about.
type Part uint8

// The parts.
const (
	OfMethod Part = iota
	OfHeader
	OfQuery
	OfScheme
)

// placed is a copy with the places of its services in the table.
func (u *Rules) placed(slot func(service string, s Subset) int) *Rules {
	c := *u
	c.Split = slices.Clone(c.Split)
	for i := range c.Split {
		c.Split[i].slot = slot(c.Split[i].Service, c.Split[i].Subset)
	}
	if c.Mirror != nil {
		m := *c.Mirror
		m.slot = slot(m.Service, Subset{})
		c.Mirror = &m
	}
	return &c
}

// choose picks the share of a split and whether there is a copy.
func (t *Table) choose(u *Rules, to *Target) {
	if len(u.Split) > 0 {
		to.Pool = t.share(u.Split)
	}
	if m := u.Mirror; m != nil && (m.Percent >= 100 || rand.IntN(100) < m.Percent) {
		to.Mirror = t.pool(m.slot)
	}
}

// share picks a pool by weight. Those without endpoints are left out as long as another one has some.
func (t *Table) share(shares []Share) *pool.Pool {
	total := 0
	var empty *pool.Pool
	for i := range shares {
		s := &shares[i]
		switch p := t.pool(s.slot); {
		case s.Weight <= 0 || p == nil:
		case p.Len() > 0:
			total += s.Weight
		case empty == nil:
			empty = p
		}
	}
	if total == 0 {
		return empty
	}
	n := rand.IntN(total)
	for i := range shares {
		s := &shares[i]
		if p := t.pool(s.slot); s.Weight > 0 && p != nil && p.Len() > 0 {
			if n -= s.Weight; n < 0 {
				return p
			}
		}
	}
	return empty
}

func (r *Route) pattern() *regexp.Regexp {
	if r.Rules == nil {
		return nil
	}
	return r.Rules.Pattern
}

func (r *Route) conditions() []Condition {
	if r.Rules == nil {
		return nil
	}
	return r.Rules.Conditions
}

// covers reports whether r, which is of the same host and path, has the same conditions as s. (One whose conditions are
// part of the other's is behind it by precedence.)
func (r *Route) covers(s *Route) bool {
	a, b := r.conditions(), s.conditions()
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !slices.ContainsFunc(b, a[i].equal) {
			return false
		}
	}
	return true
}

func (c Condition) equal(d Condition) bool {
	return c.Of == d.Of && c.Name == d.Name && c.Value == d.Value && c.Any == d.Any && slices.Equal(c.Methods, d.Methods) &&
		(c.Pattern == nil) == (d.Pattern == nil) && (c.Pattern == nil || c.Pattern.String() == d.Pattern.String())
}

// holds reports whether all conditions of the route do.
func (r *Route) holds(q *Request) bool {
	if r.Rules == nil {
		return true
	}
	for i := range r.Rules.Conditions {
		if !r.Rules.Conditions[i].holds(q) {
			return false
		}
	}
	return true
}

// holds reports whether any field, or parameter, of the name has the value.
func (c *Condition) holds(q *Request) bool {
	switch c.Of {
	case OfMethod:
		for _, m := range c.Methods {
			if m == string(q.Method) {
				return true
			}
		}
	case OfScheme:
		return c.Value == cmp.Or(q.Scheme, "http")
	case OfHeader:
		for n := 0; ; n++ {
			value, ok := q.Fields.Value(c.Name, n)
			if !ok {
				return false
			}
			if c.is(value) {
				return true
			}
		}
	case OfQuery:
		rest, _ := bytes.CutPrefix(q.Query, []byte{'?'})
		for len(rest) > 0 {
			var parameter []byte
			parameter, rest, _ = bytes.Cut(rest, []byte{'&'})
			name, value, _ := bytes.Cut(parameter, []byte{'='})
			var buf [256]byte
			if string(decode(buf[:0], name)) == c.Name && c.is(decode(buf[:0], value)) {
				return true
			}
		}
	}
	return false
}

func (c *Condition) is(value []byte) bool {
	switch {
	case c.Any:
		return true
	case c.Pattern != nil:
		return c.Pattern.Match(value)
	}
	return string(value) == c.Value
}

// decode appends the text that a part of a query stands for: "+" is a space, and what is no percent-encoding is itself.
func decode(out, text []byte) []byte {
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '+':
			out = append(out, ' ')
		case c == '%' && i+2 < len(text) && unhex(text[i+1]) < 16 && unhex(text[i+2]) < 16:
			out = append(out, unhex(text[i+1])<<4|unhex(text[i+2]))
			i += 2
		default:
			out = append(out, c)
		}
	}
	return out
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// NewPattern compiles an RE2 expression that has to match the whole of a text.
func NewPattern(expression string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(expression); err != nil { // by itself: "a)(b" is none
		return nil, err
	}
	return regexp.Compile(`\A(?:` + expression + `)\z`)
}
