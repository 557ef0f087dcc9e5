package grpcdiscover

import (
	"context"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/resolver"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/discover"
)

// Scheme is that of targets: rota:///cart.
const Scheme = "rota"

// ServiceConfig is the one that [Options] give. Who has a service config of their own, for retries or health checks, puts
// its loadBalancingConfig there.
const ServiceConfig = `{"loadBalancingConfig":[{"` + Name + `":{}}]}`

// Options are what grpc.NewClient needs for targets such as rota:///cart. The credentials are the caller's; with TLS the
// certificate must have the name of the service, unless grpc.WithAuthority says another. A later
// grpc.WithDefaultServiceConfig replaces ServiceConfig.
func Options(d *discover.Discovery) []grpc.DialOption {
	return []grpc.DialOption{grpc.WithResolvers(Builder(d)), grpc.WithDefaultServiceConfig(ServiceConfig)}
}

// Builder makes resolvers for the scheme [Scheme]. Before the registry has answered calls wait for it, as long as their
// context lets them. A service without an instance fails calls with Unavailable and a text that says why, but for those
// that wait for ready.
func Builder(d *discover.Discovery) resolver.Builder { return builder{d} }

type builder struct{ discovery *discover.Discovery }

// Scheme implements [resolver.Builder].
func (builder) Scheme() string { return Scheme }

// Build implements [resolver.Builder].
func (b builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	service := target.Endpoint()
	if err := registry.CheckService(service); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &following{cancel: cancel}
	r.done.Go(func() { follow(ctx, b.discovery, service, cc) })
	return r, nil
}

// following is a resolver: it lives from Build to Close, as gRPC wants it.
type following struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// ResolveNow implements [resolver.Resolver]. There is nothing to ask: changes come by themselves.
func (*following) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements [resolver.Resolver].
func (r *following) Close() {
	r.cancel()
	r.done.Wait()
}

// instance is what an address says of itself to the balancer. It stays the same as long as the instance does, or gRPC
// would connect anew.
type instance struct {
	endpoint *pool.Endpoint
	latest   *atomic.Pointer[discover.View] // of the service, weights included
}

type instanceKey struct{}

// follow tells cc of every change of a service until ctx ends.
func follow(ctx context.Context, d *discover.Discovery, service string, cc resolver.ClientConn) {
	if err := d.WaitReady(ctx); err != nil {
		if ctx.Err() == nil {
			cc.ReportError(err)
		}
		return
	}
	latest := new(atomic.Pointer[discover.View])
	told := false // of an address
	for ctx.Err() == nil {
		v := d.View(service)
		latest.Store(v)
		members, none := v.Speaking(registry.GRPC, registry.H2, registry.H2C)
		state := resolver.State{}
		for _, m := range members {
			state.Addresses = append(state.Addresses, resolver.Address{
				Addr: m.Endpoint.Name, Attributes: attributes.New(instanceKey{}, instance{m.Endpoint, latest}),
			})
		}
		if told = told || none == nil; told {
			// The error asks for another resolution, which could say nothing else.
			_ = cc.UpdateState(state)
		}
		if none != nil {
			cc.ReportError(none)
		}
		select {
		case <-v.Changed():
		case <-ctx.Done():
		}
	}
}
