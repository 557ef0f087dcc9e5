package route

import (
	"bytes"
	"fmt"
	"strings"
)

// Fit says how a route stands to a request.
type Fit struct {
	Route *Route
	// Why is why the route does not match; empty if it does.
	Why string
	// Covered says that the route can never match, because another one takes all of its requests.
	Covered *Route
}

// Explain lists all routes, those that can match by precedence and then those that never can: the first one without a Why is
// the one that [Table.Match] finds. It is for people who ask; its cost is that of all routes.
func (t *Table) Explain(q *Request) []Fit {
	var list []Fit
	if t.router != nil {
		for _, r := range t.router.Routes {
			list = append(list, Fit{Route: r, Why: r.mismatch(q)})
		}
	}
	if to := t.automatic(q); to.Route != nil {
		list = append(list, Fit{Route: to.Route})
	}
	if t.router != nil {
		for _, c := range t.router.Conflicts {
			list = append(list, Fit{Route: c.Loser, Why: "another route takes all of its requests", Covered: c.Winner})
		}
	}
	return list
}

// mismatch says why a route does not match a request; empty if it does.
func (r *Route) mismatch(q *Request) string {
	host, path := string(q.Host), string(q.Path)
	switch suffix, wild := strings.CutPrefix(r.Host, "*"); {
	case r.Host == "":
	case wild && (!strings.HasSuffix(host, suffix) || len(host) == len(suffix)):
		return fmt.Sprintf("the host is %q, not below %q", host, suffix[1:])
	case !wild && host != r.Host:
		return fmt.Sprintf("the host is %q, not %q", host, r.Host)
	}
	switch p := r.pattern(); {
	case p != nil:
		if !p.Match(q.Path) {
			return fmt.Sprintf("the path does not match %q", p)
		}
	case r.Exact:
		if path != r.Path {
			return fmt.Sprintf("the path is not exactly %q", r.Path)
		}
	case r.Path != "" && path != r.Path && !strings.HasPrefix(path, r.Path+"/"):
		return fmt.Sprintf("the path is not %q, nor below it", r.Path)
	}
	for _, c := range r.conditions() {
		if !c.holds(q) {
			return c.unmet()
		}
	}
	return ""
}

// unmet says what a request lacks for which a condition does not hold.
func (c *Condition) unmet() string {
	want := fmt.Sprintf("%q", c.Value)
	switch {
	case c.Any:
		want = "there"
	case c.Pattern != nil:
		want = fmt.Sprintf("like %q", c.Pattern)
	}
	switch c.Of {
	case OfScheme:
		return "the scheme is not " + c.Value
	case OfMethod:
		return "the method is none of " + strings.Join(c.Methods, ", ")
	case OfHeader:
		return fmt.Sprintf("the field %s is not %s", c.Name, want)
	}
	return fmt.Sprintf("the parameter %s of the query is not %s", c.Name, want)
}

// automatic finds the service that a request names by auto_routes.
func (t *Table) automatic(q *Request) Target {
	if !t.auto {
		return Target{}
	}
	if name, ok := bytes.CutSuffix(q.Host, []byte(autoSuffix)); ok && len(name) > 0 {
		if r := t.services[string(name)]; r != nil {
			return Target{Route: r, Pool: t.pool(r.slot)}
		}
	}
	path := q.Path
	if len(path) > 1 {
		end := 1
		for end < len(path) && path[end] != '/' {
			end++
		}
		if r := t.services[string(path[1:end])]; r != nil {
			return Target{Route: r, Pool: t.pool(r.slot), Strip: end}
		}
	}
	return Target{}
}
