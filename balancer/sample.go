package balancer

import (
	"cmp"
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/balancer/internal/telemetry"
	"github.com/rota-lb/rota/balancer/pool"
)

// sample collects the figures for a scrape.
func (b *Balancer) sample() telemetry.Sample {
	s := telemetry.Sample{
		AccessLogDropped: b.access.Dropped(), Tunnels: b.proxy.Tunnels(), Shedding: b.guard.Shedding(), Lag: b.engine.Lag(),
		Config: telemetry.Config{
			Good: b.reloads.good.Load(), Bad: b.reloads.bad.Load(), Failed: b.reloads.failed.Load(), Last: time.Unix(0, b.reloads.last.Load()),
		},
		Registry: b.registrySample(), AdminRefused: named(&b.refused),
	}
	s.SpansSlow, s.SpansFailed = b.tracing.Dropped()
	for i, l := range b.limits {
		c := l.Counts()
		s.Listeners = append(s.Listeners, telemetry.Listener{Address: b.listener(i), Open: c.Open, Accepted: c.Accepted, Refused: c.Refused, Failed: named(b.failed[i])})
	}
	files := map[string]bool{} // listeners may share one
	for _, c := range b.certs {
		for _, e := range c.Expiry() {
			if files[e.File] {
				continue
			}
			files[e.File] = true
			s.Certificates = append(s.Certificates, telemetry.Certificate{File: e.File, Names: e.Name, NotAfter: e.NotAfter})
		}
	}
	s.Services = append(s.Services, serviceSample(b.proxy.Unrouted()))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	services, err := b.control.Services(ctx, "")
	if err != nil {
		return s
	}
	weights, err := b.control.Weights(ctx, "")
	if err != nil {
		return s
	}
	for _, v := range services {
		s.Services = append(s.Services, serviceSample(v.Shared))
		if cert, file := v.Certificate, v.CertificateFile; cert != nil && !files[file] {
			files[file] = true
			s.Certificates = append(s.Certificates, telemetry.Certificate{File: file, Names: cmp.Or(strings.Join(cert.DNSNames, ","), cert.Subject.CommonName), NotAfter: cert.NotAfter})
		}
		// Instances that name one address have the same labels: the one that is ready speaks for it.
		seen := map[string]bool{}
		slices.SortStableFunc(v.Instances, func(a, b control.Instance) int { return rank(a) - rank(b) })
		for _, in := range v.Instances {
			if name := in.Endpoint.Name; !seen[name] {
				seen[name] = true
				s.Upstreams = append(s.Upstreams, upstreamSample(v.Name, &in, weights[in.Endpoint]))
			}
		}
	}
	return s
}

// listener is the address of a listener as the configuration has it, but with the port that was bound where it leaves that open.
func (b *Balancer) listener(i int) string {
	address := b.config.Listeners[i].Address
	if _, port, err := net.SplitHostPort(address); err == nil && port == "0" {
		return b.serving[i].Addr().String()
	}
	return address
}

func rank(in control.Instance) int {
	if in.Ready() {
		return 0
	}
	return 1
}

func (b *Balancer) registrySample() *telemetry.Registry {
	if b.options.Registry == nil {
		return nil
	}
	c := b.control.Counters()
	r := &telemetry.Registry{
		Connected: c.Connected.Load(), Synced: c.Synced.Load(), Revision: c.Revision.Load(), Puts: c.Puts.Load(), Deletes: c.Deletes.Load(),
		Relists: named(&c.Relists), Quarantined: c.Quarantined.Load(), Doubted: c.Suspects.Load(), Brakes: c.Brakes.Load(), Panics: c.Panics.Load(),
		Instances: c.Instances.Load(), Tables: c.Tables.Load(), LeaseTTL: b.options.LeaseTTL,
	}
	if n := c.LastSync.Load(); n != 0 {
		r.LastSync = time.Unix(0, n)
	}
	return r
}

func serviceSample(v *pool.Service) telemetry.Service {
	t := v.Totals()
	s := telemetry.Service{
		Name: v.Name, InFlight: v.InFlight(), Failures: named(&v.Failures), BytesIn: t.In, BytesOut: t.Out,
		Duration: histogram(&t.Durations), Overhead: histogram(&t.Overhead),
	}
	v.EachCount(func(c pool.Count) {
		s.Requests = append(s.Requests, telemetry.Count{Method: c.Method, Protocol: c.Protocol.String(), Status: c.Status, N: c.N})
	})
	v.Retries.Each(func(r pool.Retry, n uint64) {
		s.Retries = append(s.Retries, telemetry.Retry{Reason: r.Reason, Outcome: r.Outcome, N: n})
	})
	return s
}

func upstreamSample(service string, in *control.Instance, weight control.Weight) telemetry.Upstream {
	e := in.Endpoint
	u := telemetry.Upstream{
		Service: service, Upstream: e.Name, State: string(in.Verdict.State), ID: in.Record.ID, Zone: in.Record.Zone, Version: in.Record.Version,
		Weight: weight.Of(in.Record.EffectiveWeight()), InFlight: e.InFlight(),
	}
	if st := e.PeekStats(); st != nil {
		view := st.View()
		u.Classes, u.Duration = view.Classes, histogram(&view.Durations)
		u.Errors, u.Ejections = named(&st.Errors), named(&st.Ejections)
	}
	return u
}

func named(c *pool.Counts[string]) (list []telemetry.Named) {
	c.Each(func(name string, n uint64) { list = append(list, telemetry.Named{Name: name, N: n}) })
	return list
}

// bounds are those of the classic buckets, in seconds.
var bounds = func() (list []float64) {
	for _, b := range pool.Bounds {
		list = append(list, b.Seconds())
	}
	return list
}()

// histogram hands a histogram over. Where nothing was counted there is none.
func histogram(v *pool.HistogramView) telemetry.Histogram {
	if v.Count() == 0 {
		return telemetry.Histogram{}
	}
	h := telemetry.Histogram{Bounds: bounds, Buckets: v.Buckets[:], Sum: v.Sum.Seconds(), Fine: v.Fine[:], FineOffset: pool.FineOffset}
	for _, x := range v.Exemplars {
		h.Exemplars = append(h.Exemplars, telemetry.Exemplar{Trace: x.Trace, Request: x.Request, Value: x.Took.Seconds(), At: x.At})
	}
	return h
}
