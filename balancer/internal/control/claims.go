package control

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
)

// claims are what the instances of a service ask to serve.
type claims struct {
	granted, denied []registry.Claim // sorted
}

// Denied is a claim that no grant covers.
type Denied struct{ Service, Host, Path string }

// claim takes in what the instances of a service, of which one has claimed something, claim now. While there are none of them,
// what was claimed last stays: a service that restarts is not there for a moment, which is not the same as nobody knowing of it.
func (c *Controller) claim(name string) {
	members, last := c.fold.Members(name), c.claims[name]
	set := map[registry.Claim]bool{}
	for _, m := range members {
		for _, cl := range m.Instance.Claims {
			set[registry.Claim{Host: strings.ToLower(cl.Host), Path: strings.TrimRight(cl.Path, "/")}] = true
		}
	}
	if len(members) == 0 {
		for _, cl := range slices.Concat(last.granted, last.denied) {
			set[cl] = true
		}
	}
	next := &claims{}
	for _, cl := range slices.SortedFunc(maps.Keys(set), compareClaims) {
		if c.grants[name].value.Covers(cl.Host, cl.Path) {
			next.granted = append(next.granted, cl)
		} else {
			next.denied = append(next.denied, cl)
		}
	}
	for _, cl := range next.denied {
		if !slices.Contains(last.denied, cl) {
			c.Logger.Warn("a claim that no grant covers does not count", zap.String("service", name), zap.String("host", cl.Host),
				zap.String("path", cl.Path), zap.String("remedy", "put a grant under grants/"+name))
		}
	}
	// The routes are made of the claims and of the age of the grant.
	c.reroute = c.reroute || !slices.Equal(next.granted, last.granted)
	if c.claims[name] = next; len(set) == 0 {
		delete(c.claims, name)
	}
}

func compareClaims(a, b registry.Claim) int {
	return cmp.Or(strings.Compare(a.Host, b.Host), strings.Compare(a.Path, b.Path))
}

// routes are those of the claims that are granted.
func (cl *claims) routes(service string) []config.Route {
	var list []config.Route
	for _, g := range cl.granted {
		list = append(list, config.Route{Name: "claim:" + service + ":" + g.Host + g.Path, Host: g.Host, Path: g.Path, Service: service})
	}
	return list
}
