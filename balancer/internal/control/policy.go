package control

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/internal/membership"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
)

const (
	defaultQueue        = 128
	defaultQueueTimeout = time.Second
	defaultFailures     = 5
)

// policy is what holds for a service: etcd's word counts before the file's, key by key.
func (c *Controller) policy(name string) config.Service {
	p, file := c.policies[name].value, c.dynamic.Services[name]
	if p.Overrides == nil {
		p.Overrides = file.Overrides
	}
	return config.Service{
		Balance:       cmp.Or(p.Balance, file.Balance),
		MaxConcurrent: cmp.Or(p.MaxConcurrent, file.MaxConcurrent), Queue: cmp.Or(p.Queue, file.Queue, defaultQueue),
		QueueTimeout: cmp.Or(p.QueueTimeout, file.QueueTimeout, defaultQueueTimeout),
		IdleTimeout:  cmp.Or(p.IdleTimeout, file.IdleTimeout), Protocol: cmp.Or(p.Protocol, file.Protocol),
		TLS: cmp.Or(p.TLS, file.TLS), SendProxyProtocol: cmp.Or(p.SendProxyProtocol, file.SendProxyProtocol),
		Overrides: p.Overrides, Check: cmp.Or(p.Check, file.Check), SlowStart: cmp.Or(p.SlowStart, file.SlowStart), Panic: cmp.Or(p.Panic, file.Panic),
		Ejection: config.Ejection{
			Failures: cmp.Or(p.Ejection.Failures, file.Ejection.Failures, defaultFailures),
			Time:     cmp.Or(p.Ejection.Time, file.Ejection.Time), MaxTime: cmp.Or(p.Ejection.MaxTime, file.Ejection.MaxTime),
		},
	}
}

// membershipPolicy is what of a policy is about who serves.
func membershipPolicy(s config.Service) membership.Policy {
	p := membership.Policy{Check: s.Check != nil, Panic: s.Panic}
	p.SlowStart, _ = time.ParseDuration(s.SlowStart) // validation lets nothing else through
	if s.SlowStart == "off" {
		p.SlowStart = -1
	}
	if len(s.Overrides) > 0 {
		p.Overrides = make(map[string]membership.Override, len(s.Overrides))
		for id, o := range s.Overrides {
			p.Overrides[id] = membership.Override(o)
		}
	}
	return p
}

// settings are a service's policy in the form that pools have it, made anew when it has changed. Certificates are read then,
// and at a reload. When they cannot be read, connections by TLS fail until they can: nothing goes out unverified.
func (c *Controller) settings(name string, s *service) *pool.Settings {
	p := c.policy(name)
	p.Balance = ""
	if s.settings != nil && reflect.DeepEqual(s.policy, p) {
		return s.settings
	}
	s.files = stamp(p.TLS)
	t, err := clientTLS(name, p.TLS)
	if err != nil {
		c.Logger.Error("TLS to the instances of a service is not possible", zap.String("service", name), zap.Error(err))
		if s.settings != nil && s.policy.TLS == p.TLS {
			t = s.settings.TLS // the last good one
		} else {
			t = &tls.Config{VerifyConnection: func(tls.ConnectionState) error { return err }}
		}
	}
	s.policy = p
	s.settings = &pool.Settings{
		Secure: p.Protocol == "https", TLS: t, MaxConcurrent: p.MaxConcurrent, Queue: p.Queue, QueueTimeout: p.QueueTimeout,
		IdleTimeout: p.IdleTimeout, Failures: max(p.Ejection.Failures, 0), ProxyProtocol: slices.Index([]string{"", "v1", "v2"}, p.SendProxyProtocol),
	}
	return s.settings
}

// stamp tells versions of the files of a policy apart.
func stamp(o config.UpstreamTLS) (text string) {
	for _, file := range []string{o.CA, o.Cert, o.Key} {
		if file == "" {
			continue
		}
		if info, err := os.Stat(file); err == nil {
			text += fmt.Sprintf("%s %d %d\n", file, info.ModTime().UnixNano(), info.Size())
		}
	}
	return text
}

// filesEvery is how often the certificates for instances are looked at.
const filesEvery = 10 * time.Second

// reread has the services built anew whose certificates have changed. Connections go on with what they have.
func (c *Controller) reread(now time.Time) {
	if now.Sub(c.filesAt) < filesEvery {
		return
	}
	c.filesAt = now
	for name, s := range c.services {
		if s.settings != nil && s.files != stamp(s.policy.TLS) {
			c.Logger.Info("certificates for the instances of a service have changed", zap.String("service", name))
			s.policy.Queue = -1 // unlike any policy: the files are read again
			c.touched[name] = true
		}
	}
}

// sessions is how many TLS sessions with the instances of a service are kept to be resumed.
const sessions = 256

func clientTLS(service string, o config.UpstreamTLS) (*tls.Config, error) {
	t := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: cmp.Or(o.ServerName, service), InsecureSkipVerify: o.InsecureSkipVerify,
		NextProtos: []string{"http/1.1"}, ClientSessionCache: tls.NewLRUClientSessionCache(sessions),
	}
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", o.CA)
		}
	}
	if o.Cert != "" {
		pair, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// subset is a part of a service that routes name.
type subset struct {
	route.Subset
	slot   int
	used   bool // by the present routes
	series pool.Series
}

// place is the slot of a service, or of a subset of it, in the table.
func (c *Controller) place(name string, of route.Subset) int {
	s := c.service(name)
	s.routed = true
	if of == (route.Subset{}) {
		return s.slot
	}
	for _, sub := range s.subsets {
		if sub.Subset == of {
			sub.used = true
			return sub.slot
		}
	}
	slot := c.newSlot()
	s.subsets = append(s.subsets, &subset{Subset: of, slot: slot, used: true})
	c.touched[name] = true
	return slot
}

// router builds the router, and drops the subsets that no route names any more.
func (c *Controller) router(change *route.Change) *route.Router {
	for _, s := range c.services {
		s.routed = false
		for _, sub := range s.subsets {
			sub.used = false
		}
	}
	rt := route.NewRouter(c.routes(c.dynamic.Routes, c.etcd), c.place)
	for _, s := range c.services {
		s.subsets = slices.DeleteFunc(s.subsets, func(sub *subset) bool {
			if !sub.used {
				change.Pools[sub.slot] = nil
				c.freeSlots = append(c.freeSlots, sub.slot)
			}
			return !sub.used
		})
	}
	return rt
}

// part leaves of the eligible members of a service those that are of a subset.
func (c *Controller) part(name string, eligible []pool.Member, of route.Subset) []pool.Member {
	in := map[*pool.Endpoint]bool{}
	for _, m := range c.fold.Members(name) {
		in[m.Endpoint] = belongs(m.Instance, of)
	}
	return slices.DeleteFunc(slices.Clone(eligible), func(m pool.Member) bool { return !in[m.Endpoint] })
}

func belongs(in *registry.Instance, of route.Subset) bool {
	if of.Version != "" && in.Version != of.Version {
		return false
	}
	for line := range strings.Lines(of.Metadata) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if have, ok := in.Metadata[key]; !ok || have != value {
			return false
		}
	}
	return true
}

// errNoAction says that a route names nothing to do; validation lets none through.
var errNoAction = errors.New("a route needs a service, a split or a redirect")
