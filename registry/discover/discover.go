package discover

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

// Errors that callers can test for with errors.Is.
var (
	// ErrNoInstance is wrapped by every error about a service that has no instance for a request. The text says what was
	// looked for, and what was found instead.
	ErrNoInstance = errors.New("no instance")
	// ErrNotReady is wrapped by errors about a Discovery that has not heard from the registry yet.
	ErrNotReady = errors.New("the registry has not answered yet")
)

// Options are the choices of [New]. The zero value watches every service and uses the defaults.
type Options struct {
	// Services are those that will be called. Empty means all there are: right for a small fleet, while in a large one
	// every process would hold every instance. Access control that grants single services wants them named, too.
	Services []string
	// Policy is one of [pool.Policies]; empty means [pool.DefaultPolicy].
	Policy string
	// TLS is how to speak TLS with instances that say https or h2, for requests that go through a nil base; nil is the
	// defaults of Go. An empty ServerName is the name of the service, which the certificate must then have.
	TLS *tls.Config
	// Logger takes a line when the registry is lost and found, when a record is of no use, and when an instance cannot be
	// connected to. nil means silence.
	Logger *zap.Logger
}

// Discovery knows who is on duty. All methods may be called concurrently.
type Discovery struct {
	registry registry.Registry
	options  Options
	log      *zap.Logger

	started atomic.Bool
	ready   chan struct{} // closed when every watch has had its first Reset
	ended   chan struct{} // closed when Run has returned

	services sync.Map // name to *service; those that were ever registered or asked for by View

	mu       sync.Mutex // protects what follows, and services as far as they say so
	unsynced int        // watches without a first Reset
	asking   sync.WaitGroup
	link     error // why the store is out of reach; nil when it is not
}

// New makes a Discovery that knows nothing until [Discovery.Run] is called.
func New(r registry.Registry, o Options) *Discovery {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return &Discovery{
		registry: r, options: o, log: o.Logger,
		ready: make(chan struct{}), ended: make(chan struct{}),
	}
}

// Run follows the registry until ctx ends; then it returns nil. It returns an error at once when the options are wrong,
// and when it is called a second time. What it knew at its end goes on being used, so that requests which are still to be
// finished can make their calls.
func (d *Discovery) Run(ctx context.Context) error {
	if !d.started.CompareAndSwap(false, true) {
		return errors.New("discover: Run was called before: make another Discovery")
	}
	defer close(d.ended)
	if _, err := pool.New(nil, d.options.Policy, nil); err != nil {
		return fmt.Errorf("discover: %w", err)
	}
	scopes := []registry.Scope{{Instances: true}}
	if len(d.options.Services) > 0 {
		scopes = nil
		for _, name := range d.options.Services {
			scopes = append(scopes, registry.Scope{Service: name})
		}
	}
	d.unsynced = len(scopes)

	watching, stop := context.WithCancel(ctx)
	defer stop()
	ends := make(chan error, len(scopes))
	for _, scope := range scopes {
		go func() { ends <- d.watch(watching, scope) }()
	}
	defer d.asking.Wait()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var errs error
	for range scopes {
		for ended := false; !ended; {
			select {
			case <-second.C:
				d.fade()
				d.expire(time.Now())
			case err := <-ends:
				ended = true
				if watching.Err() == nil { // it is the first, and ends the others
					errs = fmt.Errorf("discover: %w", err)
				}
				stop()
			}
		}
	}
	return errs
}

func (d *Discovery) watch(ctx context.Context, scope registry.Scope) error {
	synced, at := false, place{}
	return d.registry.Watch(ctx, scope, func(u registry.Update) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if u.Err != nil {
			if d.link == nil {
				d.log.Warn("registry out of reach: calls go to the instances known last", zap.Error(u.Err))
			}
			d.link = u.Err
			return
		}
		if d.link != nil {
			d.log.Info("registry in reach again", zap.Int64("revision", u.Revision))
			d.link = nil
		}
		d.fold(ctx, &at, scope, &u, time.Now())
		if u.Reset && !synced {
			synced = true
			if d.unsynced--; d.unsynced == 0 {
				close(d.ready)
			}
		}
	})
}

// place is which store was read, and how far.
type place struct {
	id       uint64
	revision int64
}

// ask asks the store about the leases of instances whose records are gone: one that is alive means that somebody has removed the
// record by hand, and the instance is not to be used. Callers hold mu.
func (d *Discovery) ask(ctx context.Context, s *service, lost []*member) {
	leases, ok := d.registry.(registry.Leases)
	if !ok || len(lost) == 0 {
		return
	}
	d.asking.Go(func() {
		for _, m := range lost {
			left, err := leases.LeaseLeft(ctx, m.lease)
			if err != nil || left <= 0 {
				continue
			}
			d.mu.Lock()
			s.forget(func(l *member) bool { return l == m })
			s.build(time.Now())
			d.mu.Unlock()
		}
	})
}

// expire lets go of instances that were lost for too long. Callers do not hold mu.
func (d *Discovery) expire(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.services.Range {
		if s := v.(*service); !s.stranded && slices.ContainsFunc(s.lost, func(m *member) bool { return m.over(now) }) {
			s.build(now)
		}
	}
}

// fold takes in the instances of an update. Callers hold mu.
func (d *Discovery) fold(ctx context.Context, at *place, scope registry.Scope, u *registry.Update, now time.Time) {
	touched := map[*service]bool{}
	elsewhere := u.Reset && at.id != 0 && (u.Elsewhere || u.StoreID != at.id || u.Revision < at.revision)
	if u.Reset {
		*at = place{u.StoreID, u.Revision}
		present := make(map[string]map[string]bool)
		for i := range u.Changes {
			if c := &u.Changes[i]; c.Kind == registry.KindInstance {
				if present[c.Service] == nil {
					present[c.Service] = make(map[string]bool)
				}
				present[c.Service][c.ID] = true
			}
		}
		for _, v := range d.services.Range {
			if s := v.(*service); scope.Service == "" || s.name == scope.Service {
				var lost []*member
				lost, touched[s] = s.keepOnly(present[s.name], elsewhere, now)
				d.ask(ctx, s, lost)
			}
		}
	}
	for i := range u.Changes {
		c := &u.Changes[i]
		// Drivers that read records of other products deliver those whatever the scope is.
		if c.Kind != registry.KindInstance || scope.Service != "" && c.Service != scope.Service {
			continue
		}
		s := d.service(c.Service)
		touched[s] = true
		switch {
		case c.Deleted:
			if m := s.vanish(c.ID, false, now); m != nil {
				d.ask(ctx, s, []*member{m})
			}
		case c.Err != nil:
			s.setAside(c.ID, c.Err)
			d.log.Warn("record set aside", zap.String("key", c.Key), zap.Error(c.Err))
		default:
			if err := s.put(c, elsewhere, now); err != nil {
				s.setAside(c.ID, err)
				d.log.Warn("record set aside", zap.String("key", c.Key), zap.Error(err))
			}
		}
	}
	for s, changed := range touched {
		if changed {
			s.build(now)
		}
	}
}

// service returns what is known of a service, made at the first call. Callers hold mu.
func (d *Discovery) service(name string) *service {
	if s, ok := d.services.Load(name); ok {
		return s.(*service)
	}
	s := &service{
		name: name, shared: pool.NewService(name), policy: d.options.Policy,
		members: map[string]*member{}, aside: map[string]error{},
	}
	s.build(time.Now())
	d.services.Store(name, s)
	return s
}

// find is the service of that name; nil when it was never heard of.
func (d *Discovery) find(name string) *service {
	if s, ok := d.services.Load(name); ok {
		return s.(*service)
	}
	return nil
}

// fade lets what instances reported of their load grow old.
func (d *Discovery) fade() {
	for _, v := range d.services.Range {
		if s := v.(*service); s.shared.DoReport() {
			for _, m := range s.view.Load().Members {
				m.Endpoint.Fade()
			}
		}
	}
}

// WaitReady waits until the registry has said, for the first time, who is there; it returns nil then and ever after. The
// error wraps ErrNotReady and, when that is why, the error of ctx. Everything that makes requests waits like this by
// itself: it is for those who want to know at their start.
func (d *Discovery) WaitReady(ctx context.Context) error {
	select {
	case <-d.ready:
		return nil
	default:
	}
	select {
	case <-d.ready:
		return nil
	case <-d.ended:
		return fmt.Errorf("discover: %w, and Run has returned: look at its error", ErrNotReady)
	case <-ctx.Done():
	}
	d.mu.Lock()
	link := d.link
	d.mu.Unlock()
	switch {
	case !d.started.Load():
		return fmt.Errorf("discover: %w: call Run: %w", ErrNotReady, ctx.Err())
	case link != nil:
		return fmt.Errorf("discover: %w (%w): %w", ErrNotReady, link, ctx.Err())
	}
	return fmt.Errorf("discover: %w: %w", ErrNotReady, ctx.Err())
}

// View is what is known of a service now. It waits for nothing: before the registry has answered there are no members.
// It is for those who make requests of another kind; the way to follow a service is
//
//	for {
//		v := d.View("cart")
//		… use v …
//		select {
//		case <-v.Changed():
//		case <-ctx.Done():
//			return
//		}
//	}
func (d *Discovery) View(service string) *View {
	s := d.find(service)
	if s == nil {
		d.mu.Lock()
		s = d.service(service)
		d.mu.Unlock()
	}
	return s.view.Load()
}

// lookup finds the service for a request, as soon as the registry has answered.
func (d *Discovery) lookup(ctx context.Context, name string) (*service, error) {
	if err := d.WaitReady(ctx); err != nil {
		return nil, fmt.Errorf("%w; looked for service %q", err, name)
	}
	if s := d.find(name); s != nil {
		return s, nil
	}
	if named := d.options.Services; len(named) > 0 && !slices.Contains(named, name) {
		return nil, noInstance(name, unnamed)
	}
	return nil, noInstance(name, nothing)
}

// current is the view of a service, with those back in the pool whose ejection is over.
func (d *Discovery) current(s *service) *View {
	v := s.view.Load()
	if v.until.IsZero() || time.Now().Before(v.until) {
		return v
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s.weed(time.Now())
	return s.view.Load()
}

// refused notes that an endpoint could not be connected to.
func (d *Discovery) refused(s *service, e *pool.Endpoint, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if lasts := s.eject(e, time.Now()); lasts > 0 {
		d.log.Warn("instance cannot be connected to", zap.String("service", e.Service), zap.String("id", e.ID),
			zap.String("address", e.Name), zap.Duration("passed over for", lasts), zap.Error(err))
	}
}
