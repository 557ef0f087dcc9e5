package control

import (
	"maps"
	"slices"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/internal/route"
)

// mostNamed is how many routes are named in a line of the log.
const mostNamed = 20

// tellRoutes logs which routes have come, changed and gone, by name.
func (c *Controller) tellRoutes(was, is *route.Router) {
	before, now := byName(was), byName(is)
	var added, changed, removed []string
	for _, name := range slices.Sorted(maps.Keys(now)) {
		switch old := before[name]; {
		case old == nil:
			added = append(added, name)
		case !sameRoute(old, now[name]):
			changed = append(changed, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if now[name] == nil {
			removed = append(removed, name)
		}
	}
	fields := []zap.Field{zap.Int("routes", len(is.Routes)), zap.Int("never match", len(is.Conflicts)), zap.Int64("revision", c.fold.Revision())}
	for _, l := range []struct {
		what  string
		names []string
	}{{"added", added}, {"changed", changed}, {"removed", removed}} {
		if len(l.names) > 0 {
			fields = append(fields, zap.Strings(l.what, l.names[:min(len(l.names), mostNamed)]))
		}
	}
	c.Logger.Info("routes have changed", fields...)
}

// byName are the routes of a router that can match; of those that share a name, the last.
func byName(r *route.Router) map[string]*route.Route {
	list := map[string]*route.Route{}
	if r != nil {
		for _, x := range r.Routes {
			list[x.Source.String()+" "+x.Name] = x
		}
	}
	return list
}
