package route

import "github.com/rota-lb/rota/balancer/pool"

// Destination is one of the places that requests go to which meet a target.
type Destination struct {
	Service string
	Subset  Subset     // of its instances; the zero value is all of them
	Pool    *pool.Pool // nil when the service has never had an instance
	Share   float64    // of the requests; those of all destinations are 1 together
}

// Destinations lists where requests go that meet a target of this table: to the shares of a split, as they are drawn, or to the one
// service. There are none where the target has no route, or a redirect.
func (t *Table) Destinations(to Target) []Destination {
	r := to.Route
	switch {
	case r == nil || r.Rules != nil && r.Rules.Redirect != nil:
		return nil
	case r.Rules == nil || len(r.Rules.Split) == 0:
		return []Destination{{Service: r.Service, Pool: to.Pool, Share: 1}}
	}
	total := 0
	var list []Destination
	empty := Destination{Service: r.Rules.Split[0].Service, Subset: r.Rules.Split[0].Subset, Share: 1}
	for _, s := range r.Rules.Split {
		d := Destination{Service: s.Service, Subset: s.Subset, Pool: t.pool(s.slot), Share: float64(s.Weight)}
		switch {
		case s.Weight <= 0 || d.Pool == nil:
		case d.Pool.Len() > 0:
			total += s.Weight
			list = append(list, d)
		case empty.Pool == nil:
			empty = d
			empty.Share = 1
		}
	}
	if total == 0 {
		return []Destination{empty}
	}
	for i := range list {
		list[i].Share /= float64(total)
	}
	return list
}
