package control

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"syscall"
	"time"

	"github.com/rota-lb/rota/balancer/internal/health"
	"github.com/rota-lb/rota/balancer/internal/membership"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
)

const (
	// doubtInterval is how often an endpoint in doubt is probed, at least.
	doubtInterval = time.Second
	// rateInterval is how often the endpoints of a service are compared.
	rateInterval = 10 * time.Second

	defaultRise = 2
	defaultFall = 3
)

// watch is what is kept of an endpoint that is probed or was ejected. Most have none.
type watch struct {
	probed, checked bool
	judge           health.Judge
	rise, fall      int
	last            *health.Result // of a probe
	outlier         health.Outlier
	until           time.Time // of the ejection for failing; zero when there is none
	allowed         int       // failures in a row
}

func (c *Controller) watchOf(e *pool.Endpoint) *watch {
	w := c.watches[e]
	if w == nil {
		w = &watch{}
		c.watches[e] = w
	}
	return w
}

// look sees to it that endpoints which have changed are probed as they should be, those which have gone are not, and claims are
// known of.
func (c *Controller) look(now time.Time) {
	for name := range c.recheck {
		for _, m := range c.fold.Members(name) {
			c.lookAt(m, now)
		}
	}
	clear(c.recheck)
	fresh, gone := c.fold.Changes()
	for _, m := range fresh {
		if m.Endpoint.Retired() {
			continue
		}
		c.lookAt(m, now)
		if name := m.Endpoint.Service; len(m.Instance.Claims) > 0 && c.claims[name] == nil {
			c.claims[name] = &claims{} // from now on its instances are asked
		}
	}
	for _, e := range gone {
		c.prober.Remove(e)
		delete(c.watches, e)
		delete(c.rates, e)
	}
}

func (c *Controller) lookAt(m *membership.Member, now time.Time) {
	e := m.Endpoint
	check, checked := c.check(m)
	w := c.watches[e]
	if w != nil && w.checked && !checked {
		w.checked, w.judge = false, health.Judge{}
		c.fold.Unchecked(e, now, c.touched)
	}
	if !checked && !m.Probe() {
		if w != nil && w.probed {
			w.probed = false
			c.prober.Remove(e)
		}
		return
	}
	w = c.watchOf(e)
	if checked && !w.checked && !c.fold.Unproven(e) {
		w.judge = health.Trusted() // it serves already: one failure is not enough
	}
	w.probed, w.checked, w.rise, w.fall = true, checked, check.rise, check.fall
	c.prober.Set(e, check.Check)
}

// check is how a member is checked.
type check struct {
	health.Check
	rise, fall int
}

// check is how a member is probed: as it asks for itself, else as its service's policy says, else by a connection; in doubt,
// soon and often. It reports whether that is a check; else it is only done in doubt.
func (c *Controller) check(m *membership.Member) (h check, checked bool) {
	own, service := m.Instance.Check, m.Endpoint.Service
	if own == nil && !m.Probe() && !c.fold.HasCheck(service) {
		return h, false
	}
	p := c.policy(service).Check
	checked = own != nil || p != nil
	if p == nil {
		p = &config.Check{}
	}
	kind := p.Type
	h.Check = health.Check{Path: p.Path, Interval: p.Interval, Timeout: p.Timeout, Host: p.Host, Body: p.Body}
	h.rise, h.fall = cmp.Or(p.Rise, defaultRise), cmp.Or(p.Fall, defaultFall)
	for name, value := range p.Headers {
		h.Headers = append(h.Headers, [2]string{name, value})
	}
	for _, text := range p.Status {
		if r, err := config.ParseStatus(text); err == nil { // validation lets nothing else through
			h.Status = append(h.Status, r)
		}
	}
	if own != nil {
		kind, h.Path = own.Type, own.Path
		h.Interval = cmp.Or(time.Duration(own.Interval), h.Interval)
		h.Timeout = cmp.Or(time.Duration(own.Timeout), h.Timeout)
	}
	switch {
	case !checked || kind == "tcp":
		h.Type = health.TCP
	case kind == "grpc":
		h.Type = health.GRPC
	default:
		h.Type = health.HTTP
	}
	if h.Interval = cmp.Or(h.Interval, health.DefaultInterval); m.Probe() {
		h.Interval = min(h.Interval, doubtInterval)
	}
	s := c.settings(service, c.service(service))
	if h.ProxyProtocol = s.ProxyProtocol; s.IsSecure(m.Endpoint) {
		h.TLS = s.TLS
	}
	return h, checked
}

// probed takes in the outcome of a probe. It is called by the prober.
func (c *Controller) probed(r health.Result) {
	if ours(r.Err) {
		return
	}
	c.send(message{at: r.At, call: func() {
		delete(c.snapshot.gate, r.Endpoint)
		w := c.watches[r.Endpoint]
		if w == nil || !w.probed {
			return
		}
		w.last = &r
		outcome := membership.Passed
		switch {
		case r.Err != nil && r.Answered:
			outcome = membership.Answered
		case r.Err != nil:
			outcome = membership.Silent
		}
		c.fold.Probed(r.Endpoint, outcome, r.At, c.touched)
		if w.checked {
			c.judge(w, r)
		}
	}})
}

// judge tells the fold when a check has shown something new. Who has not passed yet is waited for.
func (c *Controller) judge(w *watch, r health.Result) {
	if c.fold.Unproven(r.Endpoint) {
		if r.Err != nil {
			return
		}
		w.judge = health.Judge{}
	}
	up, changed := w.judge.Add(r.Err == nil, w.rise, w.fall)
	if !changed {
		return
	}
	reason := ""
	if r.Err != nil {
		reason = r.Err.Error()
	}
	c.fold.Checked(r.Endpoint, up, reason, r.At, c.touched)
}

// ours reports whether a probe has failed for want of something of ours, which says nothing about the endpoint.
func ours(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Failing tells the controller that an endpoint has failed as often in a row as its pool allows. It may be called from any
// goroutine and does not block.
func (c *Controller) Failing(e *pool.Endpoint) {
	c.send(message{at: time.Now(), call: func() { c.eject(e, "failures_in_a_row", "too many failures in a row", time.Now()) }})
}

// eject leaves an endpoint alone for a while, the longer the more often it was.
func (c *Controller) eject(e *pool.Endpoint, kind, reason string, now time.Time) {
	if c.fold.Member(e) == nil {
		return
	}
	p := c.policy(e.Service).Ejection
	w := c.watchOf(e)
	next := w.outlier
	if !next.Note(health.ServerError, now, health.OutlierSettings{Consecutive5xx: 1, Base: p.Time, Max: p.MaxTime}) {
		return
	}
	if !c.fold.Failing(e, kind, fmt.Sprintf("%s; for %s", reason, next.Until(now).Sub(now)), now, c.touched) {
		return
	}
	w.outlier, w.until, w.allowed = next, next.Until(now), max(p.Failures, 1)
}

// readmit ends the ejections whose time is over. Who returns is on trial: its next failure ejects it again, its next success
// clears it.
func (c *Controller) readmit(now time.Time) {
	for e := range maps.Clone(c.fold.Doubted()) {
		w := c.watches[e]
		if w == nil || w.until.IsZero() || now.Before(w.until) {
			continue
		}
		w.until = time.Time{}
		e.Stats().SetFailures(w.allowed - 1)
		c.fold.Readmit(e, now, c.touched)
	}
}

// fade lets what instances say of their load grow old.
func (c *Controller) fade() {
	for name, s := range c.services {
		if s.shared.DoReport() {
			for _, m := range c.fold.Members(name) {
				m.Endpoint.Fade()
			}
		}
	}
}

// rated is what an endpoint had done when its service was compared last.
type rated struct{ all, failures uint64 }

// rate compares the endpoints of each service that has traffic, and ejects those that fail much more often than the others.
func (c *Controller) rate(now time.Time) {
	c.rated = now
	for name, s := range c.services {
		if !s.shared.Used() || c.policy(name).Ejection.Failures < 0 {
			continue
		}
		var endpoints []*pool.Endpoint
		var shares []float64
		for _, m := range c.fold.Members(name) {
			st := m.Endpoint.PeekStats()
			if st == nil {
				continue
			}
			all, failures := st.Outcomes()
			last := c.rates[m.Endpoint]
			c.rates[m.Endpoint] = rated{all, failures}
			if n := all - last.all; n >= health.RateOutcomes {
				endpoints = append(endpoints, m.Endpoint)
				shares = append(shares, float64(failures-last.failures)/float64(n))
			}
		}
		limit := health.FailureLimit(shares)
		for i, e := range endpoints {
			if shares[i] > limit {
				c.eject(e, "failure_rate", "it fails much more often than the others", now)
			}
		}
	}
}
