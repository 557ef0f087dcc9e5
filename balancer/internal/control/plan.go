package control

import (
	"context"
	"errors"

	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
)

// Draft is a change that is about to be made. Exactly one of its parts is set.
type Draft struct {
	Config *config.Dynamic // what the file is to say
	Route  *RouteDraft
	Policy *PolicyDraft
}

// RouteDraft is what is to be under a route's key in the registry; a nil Value is nothing.
type RouteDraft struct {
	Name  string
	Value *config.Route
}

// PolicyDraft is what is to be under a policy's key; likewise.
type PolicyDraft struct {
	Service string
	Value   *config.Service
}

// Preview is what a draft would make of the table.
type Preview struct {
	// Now is the current table, Then the one that would be: with the instances of now, as they are.
	Now, Then *route.Table
	// Differences are those to what is in effect.
	Differences []config.Difference
	// Instances is how many instances a service has, whatever their state; of a drafted service those of the draft.
	Instances map[string]int
}

// Preview builds the table that a draft would lead to, and changes nothing.
func (c *Controller) Preview(ctx context.Context, d Draft) (p Preview, err error) {
	if !c.do(ctx, func() { p, err = c.preview(d) }) {
		return p, endedOr(ctx)
	}
	return p, err
}

// errDraft says that a draft says nothing.
var errDraft = errors.New("nothing is drafted")

func (c *Controller) preview(d Draft) (Preview, error) {
	p := Preview{Now: c.Store.Load(), Instances: map[string]int{}}
	dynamic, etcd := c.dynamic, c.etcd
	switch {
	case d.Config != nil:
		dynamic = *d.Config
		p.Differences = config.Diff(&config.Config{Dynamic: c.dynamic}, &config.Config{Dynamic: dynamic})
	case d.Route != nil:
		etcd = make(map[string]kv[config.Route], len(c.etcd)+1)
		for name, r := range c.etcd {
			etcd[name] = r
		}
		was, is := c.etcd[d.Route.Name], d.Route.Value
		var before *config.Route
		if was.key != "" {
			before = &was.value
		}
		p.Differences = config.DiffRoute(d.Route.Name, before, is)
		if is == nil {
			delete(etcd, d.Route.Name)
			break
		}
		if was.key == "" {
			was.created = 1 << 62 // the youngest
		}
		was.value, was.value.Name = *is, d.Route.Name
		etcd[d.Route.Name] = was
	case d.Policy != nil:
		var before *config.Service
		if was := c.policies[d.Policy.Service]; was.key != "" {
			before = &was.value
		}
		p.Differences = config.DiffPolicy(d.Policy.Service, before, d.Policy.Value)
	default:
		return p, errDraft
	}

	// The slots of a table are its own affair: this one gives them anew.
	services, pools := map[string]int{}, map[int]*pool.Pool{}
	next := 0
	slot := func(name string, of route.Subset) int {
		n := next
		next++
		s := c.services[name]
		if s == nil || s.pool == nil || s.pool.Len() == 0 {
			pools[n] = drafted(name, dynamic.Services[name].Instances)
			return n
		}
		pools[n] = s.pool
		if of != (route.Subset{}) {
			part, err := pool.New(s.shared, s.pool.Policy, c.part(name, s.pool.Weights, of))
			if err != nil {
				return n
			}
			pools[n] = part
		}
		return n
	}
	for name := range c.services {
		services[name] = slot(name, route.Subset{})
		p.Instances[name] = len(c.fold.Members(name))
	}
	for name := range dynamic.Services {
		if _, ok := services[name]; !ok {
			services[name] = slot(name, route.Subset{})
		}
	}
	p.Then = new(route.Table).With(route.Change{
		Revision: c.fold.Revision(), Router: route.NewRouter(c.routes(dynamic.Routes, etcd), slot), Services: services, Auto: dynamic.AutoRoutes, Pools: pools,
	})
	return p, nil
}

// drafted is a pool of the instances that a file is to name; nil when there are none.
func drafted(service string, list []config.StaticInstance) *pool.Pool {
	var members []pool.Member
	for _, in := range list {
		e := pool.NewEndpoint(pool.Key{Service: service, ID: in.Address})
		members = append(members, pool.Member{Endpoint: e, Weight: 1})
	}
	if members == nil {
		return nil
	}
	p, err := pool.New(pool.NewService(service), "", members)
	if err != nil {
		return nil
	}
	return p
}
