package control

import (
	"cmp"
	"fmt"
	"maps"
	"net/textproto"
	"slices"
	"strings"

	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/config"
)

// convert turns a route of the configuration into one of the table. It fails where the validation of the configuration has
// let something through that the router cannot do.
func convert(r config.Route, source route.Source, order int64) (route.Route, error) {
	out := route.Route{
		Name: r.Name, Source: source, Host: strings.ToLower(r.Host), Service: r.Service,
		Strip: r.StripPrefix || r.ReplacePrefix != "", Priority: r.Priority, Timeout: r.Timeout, Order: order,
	}
	u := route.Rules{
		EncodedSlashes: r.EncodedSlashes, Conditions: conditions(r), Prefix: strings.TrimRight(r.ReplacePrefix, "/"),
		Request: edit(r.RequestHeaders), Response: edit(r.ResponseHeaders),
		Timeouts: Timeouts(r.Timeouts), Retries: Retries(r.Retries), MaxBody: int64(r.MaxBody),
	}
	var err error
	switch {
	case strings.HasPrefix(r.Path, "~"):
		u.Pattern, err = route.NewPattern(r.Path[1:])
	case strings.HasPrefix(r.Path, "="):
		out.Path, out.Exact = r.Path[1:], true
	default:
		out.Path = strings.TrimRight(r.Path, "/")
	}
	if err != nil {
		return out, fmt.Errorf("path: %w", err)
	}
	for i := range u.Conditions {
		c := &u.Conditions[i]
		switch text, pattern := strings.CutPrefix(c.Value, "~"); {
		case c.Of == route.OfMethod, c.Of == route.OfScheme:
		case pattern:
			if c.Pattern, err = route.NewPattern(text); err != nil {
				return out, fmt.Errorf("%s: %w", c.Name, err)
			}
		case c.Value == "*":
			c.Any = true
		}
	}
	for _, s := range r.Split {
		var lines []string
		for _, key := range slices.Sorted(maps.Keys(s.Metadata)) {
			lines = append(lines, key+"="+s.Metadata[key])
		}
		u.Split = append(u.Split, route.Share{
			Service: s.Service, Subset: route.Subset{Version: s.Version, Metadata: strings.Join(lines, "\n")}, Weight: s.Weight,
		})
	}
	if r.Redirect.To != "" {
		if u.Redirect, err = route.NewRedirect(r.Redirect.To, cmp.Or(r.Redirect.Status, 308), u.Pattern); err != nil {
			return out, fmt.Errorf("redirect: %w", err)
		}
	}
	if r.Service == "" && u.Split == nil && u.Redirect == nil {
		return out, errNoAction
	}
	if r.Mirror.Service != "" {
		u.Mirror = &route.Mirror{Service: r.Mirror.Service, Percent: cmp.Or(r.Mirror.Percent, 100)}
	}
	every, burst, header, err := r.RateLimit.Parse()
	if err != nil {
		return out, fmt.Errorf("rate_limit: %w", err)
	}
	if every > 0 {
		u.Rate = &route.Rate{Every: every, Burst: burst, Header: header}
	}
	if len(r.Upgrades) > 0 {
		u.Upgrades = []string{"websocket"}
		for _, token := range r.Upgrades {
			if token == "none" {
				u.Upgrades = []string{}
				break
			}
			u.Upgrades = append(u.Upgrades, strings.ToLower(token))
		}
	}
	if !plain(r) {
		out.Rules = &u
	}
	return out, nil
}

// plain reports whether a route asks for nothing that needs rules.
func plain(r config.Route) bool {
	return !strings.HasPrefix(r.Path, "~") && len(r.Scheme)+len(r.Methods)+len(r.Headers)+len(r.Query)+len(r.Split)+len(r.Upgrades) == 0 &&
		r.Redirect == config.Redirect{} && r.ReplacePrefix == "" && len(r.RequestHeaders.Set)+len(r.RequestHeaders.Remove) == 0 &&
		len(r.ResponseHeaders.Set)+len(r.ResponseHeaders.Remove) == 0 && r.Mirror == config.Mirror{} &&
		r.Timeouts == config.Timeouts{} && r.Retries == config.Retries{} && r.RateLimit == config.RateLimit{} && r.MaxBody == 0 && !r.EncodedSlashes
}

func conditions(r config.Route) []route.Condition {
	var list []route.Condition
	if r.Scheme != "" {
		list = append(list, route.Condition{Of: route.OfScheme, Value: r.Scheme})
	}
	if len(r.Methods) > 0 {
		list = append(list, route.Condition{Of: route.OfMethod, Methods: r.Methods})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		list = append(list, route.Condition{Of: route.OfHeader, Name: strings.ToLower(name), Value: r.Headers[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Query)) {
		list = append(list, route.Condition{Of: route.OfQuery, Name: name, Value: r.Query[name]})
	}
	return list
}

// edit turns a change of header fields into what the proxy does: fields that are set replace those that are there.
func edit(e config.HeaderEdit) route.Edit {
	var out route.Edit
	for _, name := range e.Remove {
		out.Remove = append(out.Remove, strings.ToLower(name))
	}
	for _, name := range slices.Sorted(maps.Keys(e.Set)) {
		out.Remove = append(out.Remove, strings.ToLower(name))
		out.Add = append(out.Add, textproto.CanonicalMIMEHeaderKey(name)+": "+e.Set[name]+"\r\n"...)
	}
	return out
}

// Timeouts are the timeouts of the configuration that routes may have too.
func Timeouts(t config.Timeouts) route.Timeouts {
	return route.Timeouts{Connect: t.Connect, ResponseHead: t.ResponseHead, IdleBody: t.IdleBody, Tunnel: t.Tunnel, Request: t.Request}
}

// Retries are the retries of the configuration as the table has them.
func Retries(r config.Retries) route.Retries {
	return route.Retries{Attempts: r.Attempts, Budget: r.Budget, Buffer: int(r.Buffer)}
}
