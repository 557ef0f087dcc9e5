package control

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"time"

	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
)

// Draft is a change that is about to be made. Exactly one of its parts is set.
type Draft struct {
	Config   *config.Dynamic // what the file is to say
	Route    *RouteDraft
	Policy   *PolicyDraft
	Override *OverrideDraft
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

// OverrideDraft is a change of an operator's word about an instance, in the policy of its service in the registry.
type OverrideDraft struct {
	Service, ID string
	Change      func(*config.Override)
}

// Part is a service, or those of its instances that are of a subset.
type Part struct {
	Service string
	Subset  route.Subset
}

// Preview is what a draft would make of the table.
type Preview struct {
	// Now is the current table, Then the one that would be: with the instances of now, in the condition of now.
	Now, Then *route.Table
	// Differences are those to what is in effect.
	Differences []config.Difference
	// Had is how many instances there are, whatever their state, and Has how many there would be: of every service, and of the subsets
	// that the routes of the draft name.
	Had, Has map[Part]int
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

// drafted is what the control plane would go by.
type drafted struct {
	dynamic  config.Dynamic
	routes   map[string]kv[config.Route]
	policies map[string]kv[config.Service]
}

func (c *Controller) draft(d Draft) (is drafted, differences []config.Difference, err error) {
	is = drafted{c.dynamic, c.etcd, c.policies}
	switch {
	case d.Config != nil:
		is.dynamic = *d.Config
		differences = config.Diff(&config.Config{Dynamic: c.dynamic}, &config.Config{Dynamic: is.dynamic})
	case d.Route != nil:
		is.routes = maps.Clone(c.etcd)
		was, value := c.etcd[d.Route.Name], d.Route.Value
		differences = config.DiffRoute(d.Route.Name, was.known(), value)
		if value == nil {
			delete(is.routes, d.Route.Name)
			break
		}
		if was.key == "" {
			was.created = 1 << 62 // the youngest
		}
		was.value, was.value.Name = *value, d.Route.Name
		is.routes[d.Route.Name] = was
	case d.Policy != nil:
		is.policies = maps.Clone(c.policies)
		was, value := c.policies[d.Policy.Service], d.Policy.Value
		differences = config.DiffPolicy(d.Policy.Service, was.known(), value)
		if value == nil {
			delete(is.policies, d.Policy.Service)
			break
		}
		was.value = *value
		is.policies[d.Policy.Service] = was
	case d.Override != nil:
		value := c.policies[d.Override.Service].value
		value.Override(d.Override.ID, d.Override.Change)
		return c.draft(Draft{Policy: &PolicyDraft{d.Override.Service, &value}})
	default:
		return is, nil, errDraft
	}
	return is, differences, nil
}

// known is the value, nil when there is none.
func (v *kv[T]) known() *T {
	if v.key == "" {
		return nil
	}
	return &v.value
}

func (c *Controller) preview(d Draft) (Preview, error) {
	is, differences, err := c.draft(d)
	if err != nil {
		return Preview{}, err
	}
	p := Preview{Now: c.Store.Load(), Differences: differences, Had: map[Part]int{}, Has: map[Part]int{}}
	names := map[string]bool{}
	for name := range c.services {
		names[name] = true
	}
	for name := range is.dynamic.Services {
		names[name] = true
	}

	// The slots of a table are its own affair: this one gives them anew.
	services, pools := map[string]int{}, map[int]*pool.Pool{}
	next := 0
	whole := map[string]*pool.Pool{}
	slot := func(name string, of route.Subset) int {
		n := next
		next++
		if pools[n] = whole[name]; of != (route.Subset{}) && whole[name] != nil {
			members := 0
			for _, m := range c.fold.Members(name) {
				if belongs(m.Instance, of) {
					members++
				}
			}
			p.Had[Part{name, of}], p.Has[Part{name, of}] = members, members
			pools[n] = repooled(whole[name], c.part(name, whole[name].Weights, of))
		}
		return n
	}
	for name := range names {
		var members int
		whole[name], members = c.serving(name, &is)
		p.Had[Part{Service: name}], p.Has[Part{Service: name}] = len(c.fold.Members(name)), members
		services[name] = slot(name, route.Subset{})
	}
	p.Then = new(route.Table).With(route.Change{
		Revision: c.fold.Revision(), Router: route.NewRouter(c.routes(is.dynamic.Routes, is.routes), slot), Services: services, Auto: is.dynamic.AutoRoutes, Pools: pools,
	})
	return p, nil
}

// serving is the pool that a service would have, nil when it would have had no instance yet, and how many members.
func (c *Controller) serving(name string, is *drafted) (*pool.Pool, int) {
	was, would := c.policy(name), (&Controller{dynamic: is.dynamic, policies: is.policies}).policy(name)
	listed := is.dynamic.Services[name].Instances
	s := c.services[name]
	if reflect.DeepEqual(was, would) && reflect.DeepEqual(c.dynamic.Services[name].Instances, listed) {
		if s == nil {
			return nil, 0
		}
		return s.pool, len(c.fold.Members(name))
	}
	var statics []registry.Instance
	for _, in := range listed {
		statics = append(statics, registry.Instance{Service: name, ID: in.Address, Address: in.Address, Weight: in.Weight})
	}
	eligible, members := c.fold.Preview(name, membershipPolicy(would), statics, time.Now())
	last := &pool.Pool{Service: pool.NewService(name)}
	if s != nil && s.pool != nil {
		last = s.pool
	} else if members == 0 {
		return nil, 0
	}
	return repooled(last, eligible), members
}

// repooled is a pool of other members. Nobody picks from it: it needs no policy.
func repooled(p *pool.Pool, members []pool.Member) *pool.Pool {
	of, err := pool.New(p.Service, p.Policy, members)
	if err != nil {
		return p
	}
	return of
}
