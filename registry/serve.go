package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"
)

// Defaults of [ServeOptions].
const (
	DefaultSettle          = 250 * time.Millisecond
	DefaultShutdownTimeout = 10 * time.Second
)

// storeTimeout bounds each of the writes of a shutdown, so that a store that is away does not hold up the exit.
const storeTimeout = 2 * time.Second

// ServeOptions are the choices of [ServeOptions.Serve]. The zero value is what [Serve] uses.
type ServeOptions struct {
	// Listener is served instead of listening on srv.Addr. Serve closes it.
	Listener net.Listener
	// Ready, if not nil, is called once the server accepts connections, and waited for before the instance is
	// registered: warm caches there, or ask the service's own health page. Its context ends with Serve's. An error
	// ends Serve, which returns it.
	Ready func(ctx context.Context) error
	// Registered, if not nil, is called once with the registration, when it begins to be kept; the store may not have
	// it yet. It is for services that change their record later, or show how they stand. It must not block.
	Registered func(Registration)
	// Advertise finds the address to register when Instance.Address is empty.
	Advertise Advertise
	// Settle is how long the server goes on as before, at least, after the store took the state draining: the time for
	// those to see it who do not acknowledge, such as clients that find their instances by themselves. Zero means
	// DefaultSettle, a negative value none.
	Settle time.Duration
	// ShutdownTimeout is how long, after that, balancers may take to acknowledge that they have nothing in flight here,
	// and how long other requests may take then; those left are cut. Zero means DefaultShutdownTimeout.
	ShutdownTimeout time.Duration
	// Load, if not nil, counts the requests in flight and has each response report them: Serve puts its Middleware around
	// srv.Handler. Pass one Load to all servers of an instance.
	Load *Load
	// Logger takes a line for each step. nil means silence.
	Logger *zap.Logger
}

// Serve runs srv as one instance of a service; it is [ServeOptions.Serve] with the defaults.
func Serve(ctx context.Context, r Registry, srv *http.Server, in Instance) error {
	return ServeOptions{}.Serve(ctx, r, srv, in)
}

// Serve listens on srv.Addr (a free port if that is empty), serves, waits until the service is ready, and registers
// in; Instance.Address, if empty, becomes what [Advertise] finds for the listener. With srv.TLSConfig it serves TLS,
// and an empty Protocol becomes HTTPS. An empty Instance.IdleTimeout becomes the server's.
//
// When ctx ends, Serve puts the state draining, waits for the balancers' acknowledgements, shuts the server down, and deletes
// the registration; it returns nil if all of that was done in time. The same happens after the caller's own
// srv.Shutdown, and when a newer incarnation takes the id, which Serve returns as ErrSuperseded. When the server
// fails, Serve leaves and returns the server's error.
//
// The store may be away all the while: the service starts and serves without it, and registers when it is back.
// When it is away at the end, the lease removes the record, and Serve says so in its error.
func (o ServeOptions) Serve(ctx context.Context, r Registry, srv *http.Server, in Instance) error {
	log := o.Logger
	if log == nil {
		log = zap.NewNop()
	}
	ln, err := o.listen(ctx, srv)
	if err != nil {
		return err
	}
	defer ln.Close() // for the ends before the server took it over
	if in, err = o.complete(srv, in, ln); err != nil {
		return err
	}
	if o.Load != nil {
		if srv.Handler == nil {
			srv.Handler = http.DefaultServeMux // as net/http does
		}
		srv.Handler = o.Load.Middleware(srv.Handler)
	}

	served := make(chan error, 1) // what srv.Serve returned
	go func() {
		if srv.TLSConfig != nil {
			served <- srv.ServeTLS(ln, "", "")
		} else {
			served <- srv.Serve(ln)
		}
	}()
	log = log.With(zap.String("service", in.Service), zap.String("address", in.Address))
	log.Info("listening", zap.Stringer("listener", ln.Addr()))

	if started, err := o.waitReady(ctx, served); !started {
		return errors.Join(err, o.shutdown(ctx, srv))
	}

	// The registration must outlive ctx: it leaves after the server has drained, not before.
	keep, drop := context.WithCancel(context.WithoutCancel(ctx))
	defer drop()
	reg, err := r.Register(keep, in)
	if err != nil {
		return errors.Join(err, o.shutdown(ctx, srv))
	}
	log = log.With(zap.String("id", reg.Instance().ID), zap.String("incarnation", reg.Instance().Incarnation))

	if o.Registered != nil {
		o.Registered(reg)
	}

	end := o.attend(ctx, reg, served)
	if end != nil && !errors.Is(end, http.ErrServerClosed) && !errors.Is(end, ErrSuperseded) && !errors.Is(end, ErrLeft) {
		log.Error("server failed", zap.Error(end))
		leaveErr := o.leave(ctx, reg)
		srv.Close()
		return errors.Join(fmt.Errorf("registry: serve: %w", end), leaveErr)
	}
	if errors.Is(end, http.ErrServerClosed) {
		end = nil // the caller began the shutdown; the rest is the same
		served = nil
	}

	log.Info("draining", zap.NamedError("because", end))
	o.drain(ctx, reg, served, log)
	shutErr := o.shutdown(ctx, srv)
	leaveErr := o.leave(ctx, reg)
	err = errors.Join(end, shutErr, leaveErr)
	log.Info("left", zap.Error(err))
	return err
}

func (o ServeOptions) listen(ctx context.Context, srv *http.Server) (net.Listener, error) {
	if o.Listener != nil {
		return o.Listener, nil
	}
	addr := srv.Addr
	if addr == "" {
		addr = ":0"
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return ln, nil
}

// complete fills what the server and its listener know, and refuses a bad record before anything is served.
func (o ServeOptions) complete(srv *http.Server, in Instance, ln net.Listener) (Instance, error) {
	where := o.Advertise
	if in.Address != "" {
		where.Address = in.Address
	}
	addr, err := where.Resolve(ln.Addr())
	if err != nil {
		return Instance{}, err
	}
	in.Address = addr
	if in.Protocol == "" && srv.TLSConfig != nil {
		in.Protocol = HTTPS
	}
	if in.IdleTimeout == 0 {
		if in.IdleTimeout = Duration(srv.IdleTimeout); srv.IdleTimeout == 0 {
			in.IdleTimeout = Duration(srv.ReadTimeout) // as net/http does
		}
		in.IdleTimeout = max(in.IdleTimeout, 0)
	}
	if _, err := Prepare(in, time.Now()); err != nil {
		return Instance{}, err
	}
	return in, nil
}

// waitReady reports whether the instance may be registered; if not, err is what to return, nil when ctx ended.
func (o ServeOptions) waitReady(ctx context.Context, served chan error) (ok bool, err error) {
	if o.Ready == nil {
		return true, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan error, 1)
	go func() { ready <- o.Ready(ctx) }()
	select {
	case err := <-ready:
		if err != nil && ctx.Err() == nil {
			return false, fmt.Errorf("registry: not ready: %w", err)
		}
		return ctx.Err() == nil, nil
	case err := <-served:
		if errors.Is(err, http.ErrServerClosed) {
			return false, nil
		}
		return false, fmt.Errorf("registry: serve: %w", err)
	case <-ctx.Done():
		return false, nil
	}
}

// attend returns when ctx ends (nil), when the server stops (its error), or when the registration is over (its error).
func (o ServeOptions) attend(ctx context.Context, reg Registration, served <-chan error) error {
	for {
		changed := reg.Changed()
		if s := reg.State(); s == Superseded || s == Left {
			return reg.Err()
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return err
		case <-changed:
		}
	}
}

// drain puts the state draining, and waits until balancers and others have seen it, or the server has ended. A server that
// has ended already is not waited for.
func (o ServeOptions) drain(ctx context.Context, reg Registration, served <-chan error, log *zap.Logger) {
	ctx = context.WithoutCancel(ctx)
	told, cancel := context.WithTimeout(ctx, storeTimeout)
	err := reg.Update(told, func(in *Instance) { in.State, in.DrainAck = Draining, true })
	cancel()
	if err != nil {
		if !errors.Is(err, ErrSuperseded) {
			log.Warn("the state draining did not reach the store", zap.Error(err))
		}
		return
	}
	if served == nil {
		return
	}
	settle := cmp.Or(o.Settle, DefaultSettle)
	settled := time.After(max(settle, 0))
	ctx, cancel = context.WithTimeout(ctx, o.shutdownTimeout())
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- reg.Drain(ctx) }()
	for drained != nil || settled != nil {
		select {
		case err := <-drained:
			if err != nil {
				log.Warn("shutting down without every balancer's acknowledgement", zap.Error(err))
			}
			drained = nil
		case <-settled:
			settled = nil
		case <-served: // nothing left to wait for
			return
		}
	}
}

func (o ServeOptions) shutdownTimeout() time.Duration {
	return cmp.Or(o.ShutdownTimeout, DefaultShutdownTimeout)
}

func (o ServeOptions) shutdown(ctx context.Context, srv *http.Server) error {
	d := o.shutdownTimeout()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		srv.Close()
		return fmt.Errorf("registry: requests still in flight after %s were cut: %w", d, err)
	}
	return nil
}

func (o ServeOptions) leave(ctx context.Context, reg Registration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := reg.Leave(ctx); err != nil {
		return fmt.Errorf("registry: the record was not deleted, its lease will remove it: %w", err)
	}
	return nil
}
