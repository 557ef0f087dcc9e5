package control

import (
	"context"
	"crypto/x509"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/rota-lb/rota/balancer/internal/health"
	"github.com/rota-lb/rota/balancer/internal/membership"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

// ErrEnded says that the controller does not run any more.
var ErrEnded = errors.New("control loop has ended")

// Status is how the control plane stands.
type Status struct {
	Synced      bool // a table was built from the registry, or there is none
	Connected   bool
	LinkError   string
	Registry    bool // there is a registry
	Revision    int64
	StoreID     uint64
	Generation  uint64
	Services    int
	Instances   int
	Routes      int
	Conflicts   int
	Quarantined []membership.Quarantined
	Snapshot    bool // what is served is from the snapshot: the registry has not been there yet
	Doubted     int  // endpoints whose condition is not good
	Brakes      []membership.Brake
	Orphans     []string // keys in use that the store, another one than before, does not have
	Denied      []Denied // claims that no grant covers
	Panics      []string // services so few of which are in a good condition that all serve
	LastSync    time.Time
	Member      string // of the store, that is listened to; empty where that is not known
}

// Status returns the present state.
func (c *Controller) Status(ctx context.Context) (Status, error) {
	var s Status
	ok := c.do(ctx, func() {
		s = Status{
			Synced: c.synced, Connected: c.link == nil && c.synced && !c.snapshot.serving, Registry: c.Registry != nil,
			Revision: c.fold.Revision(), StoreID: c.storeID, Generation: c.table.Generation,
			Services: len(c.fold.Services()), Instances: c.fold.Instances(), Quarantined: c.fold.Quarantined(),
			Doubted: len(c.fold.Doubted()), Brakes: c.fold.Brakes(), Orphans: c.orphans(),
			Snapshot: c.snapshot.serving, Panics: slices.Sorted(maps.Keys(c.fold.Panics())),
		}
		for _, name := range slices.Sorted(maps.Keys(c.claims)) {
			for _, d := range c.claims[name].denied {
				s.Denied = append(s.Denied, Denied{name, d.Host, d.Path})
			}
		}
		if c.link != nil {
			s.LinkError = c.link.Error()
		}
		if rt := c.table.Router(); rt != nil {
			s.Routes, s.Conflicts = len(rt.Routes), len(rt.Conflicts)
		}
		if heard, ok := c.Registry.(registry.Heard); ok {
			s.Member = heard.Member()
		}
		if n := c.counters.LastSync.Load(); n != 0 {
			s.LastSync = time.Unix(0, n)
		}
	})
	if !ok {
		return s, endedOr(ctx)
	}
	return s, nil
}

// Instance is one instance as the control plane sees it.
type Instance struct {
	Record   registry.Instance
	Verdict  membership.Verdict
	Key      string
	Static   bool
	Endpoint *pool.Endpoint
	Lease    int64
	Since    time.Time      // of the verdict; zero when that is not known
	Until    time.Time      // its state ends by itself then; zero when it does not
	Probed   *health.Result // the last probe; nil when there was none
	// CreateRevision and ModRevision are the store's; zero when static.
	CreateRevision, ModRevision int64
}

// Ready reports whether it serves, and nothing speaks against it.
func (in *Instance) Ready() bool { return in.Verdict.State == membership.Ready }

// Service is a service with its instances.
type Service struct {
	Name      string
	Policy    string
	Shared    *pool.Service
	Eligible  int // endpoints that may be picked now
	Instances []Instance
	// Certificate is what instances are shown, of the file CertificateFile; nil when there is none.
	Certificate     *x509.Certificate
	CertificateFile string
}

// Services lists the services that have instances or a pool, by name; with a name, that one only.
func (c *Controller) Services(ctx context.Context, name string) ([]Service, error) {
	var list []Service
	ok := c.do(ctx, func() {
		names := slices.Sorted(maps.Keys(c.services))
		if name != "" {
			names = nil
			if c.services[name] != nil {
				names = []string{name}
			}
		}
		for _, n := range names {
			s := c.services[n]
			v := Service{Name: n, Shared: s.shared}
			if s.pool != nil {
				v.Policy, v.Eligible = s.pool.Policy, s.pool.Len()
			}
			if o := s.settings; o != nil && o.TLS != nil && len(o.TLS.Certificates) > 0 {
				v.Certificate, v.CertificateFile = o.TLS.Certificates[0].Leaf, s.policy.TLS.Cert
			}
			for _, m := range c.fold.Members(n) {
				v.Instances = append(v.Instances, c.instance(m))
			}
			list = append(list, v)
		}
	})
	if !ok {
		return nil, endedOr(ctx)
	}
	return list, nil
}

// instance is how a member is shown.
func (c *Controller) instance(m *membership.Member) Instance {
	until := m.Until()
	if w := c.watches[m.Endpoint]; w != nil && !w.until.IsZero() {
		until = w.until
	}
	var probed *health.Result
	if w := c.watches[m.Endpoint]; w != nil {
		probed = w.last
	}
	return Instance{
		Probed: probed,
		Record: *m.Instance, Verdict: m.Verdict, Key: m.Key, Static: m.Static, Endpoint: m.Endpoint,
		Lease: m.Lease, Since: m.Since(), Until: until, CreateRevision: m.CreateRevision, ModRevision: m.ModRevision,
	}
}

// LeaseLeft asks the registry how much longer a lease runs. [ErrReadOnly] says that it knows none.
func (c *Controller) LeaseLeft(ctx context.Context, lease int64) (time.Duration, error) {
	leases, ok := c.Registry.(registry.Leases)
	if !ok || lease == 0 {
		return 0, ErrReadOnly
	}
	return leases.LeaseLeft(ctx, lease)
}

// Choice is what a request may be sent to.
type Choice struct {
	Service   string
	Policy    string
	Revision  int64 // of the policy's key; zero when there is none
	Endpoints []Candidate
}

// Candidate is an instance of a service, and how it stands to a pool.
type Candidate struct {
	Instance
	// Chosen says that the pool picks among it and others; Weight is what the pool gives it, which in a slow start is less
	// than its own.
	Chosen bool
	Weight int
}

// Choice explains a pool: all instances of its service, by id.
func (c *Controller) Choice(ctx context.Context, p *pool.Pool) (choice Choice, err error) {
	if !c.do(ctx, func() { choice = c.choice(p) }) {
		return choice, endedOr(ctx)
	}
	return choice, nil
}

func (c *Controller) choice(p *pool.Pool) Choice {
	choice := Choice{Service: p.Service.Name, Policy: p.Policy, Revision: c.policies[p.Service.Name].modified}
	weights := make(map[*pool.Endpoint]int, len(p.Weights))
	for _, m := range p.Weights {
		weights[m.Endpoint] = m.Weight
	}
	for _, m := range c.fold.Members(choice.Service) {
		w := weights[m.Endpoint]
		choice.Endpoints = append(choice.Endpoints, Candidate{Instance: c.instance(m), Chosen: w > 0, Weight: w})
	}
	return choice
}

// Router returns the routes of the current table; nil before the first.
func (c *Controller) Router() *route.Router { return c.Store.Load().Router() }

func endedOr(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return ErrEnded
}
