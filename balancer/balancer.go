// Package balancer is the daemon as a library: it watches a registry, keeps a table of routes and pools, and serves HTTP
// from it.
//
//	b, err := balancer.New(cfg, balancer.Options{Registry: client})
//	...
//	err = b.Run(ctx)
//
// New binds the sockets and starts nothing; Run runs until ctx ends and drains. The data plane and the control plane meet
// in one place: control publishes tables, the data plane loads them. See docs/ARCHITECTURE.md.
package balancer

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/internal/admin"
	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/balancer/internal/journal"
	"github.com/rota-lb/rota/balancer/internal/listen"
	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/proxy"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/internal/telemetry"
	"github.com/rota-lb/rota/balancer/internal/tracing"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
)

// ErrDrainDeadline says that exchanges were still in flight when the grace period ended.
var ErrDrainDeadline = listen.ErrDeadline

// firstTable is how long listeners wait for the first table before they open and answer 503.
const firstTable = time.Second

// lastLines is how long the end waits for the access log: nobody may be reading it any more.
const lastLines = time.Second

// Options are what a balancer works with beside its configuration.
type Options struct {
	// Registry is watched for instances, routes and policies; nil means that only the configuration counts.
	Registry registry.Registry
	// Logger gets the story of the daemon; nil is silence.
	Logger *zap.Logger
	// Version is shown in metrics and status.
	Version string
	// LogLevel is that of Logger, so that it can be changed through the admin API; nil is one that changes nothing.
	LogLevel *zap.AtomicLevel
	// LeaseTTL is how long the lease of this daemon in the registry runs, to be shown; zero is none.
	LeaseTTL time.Duration
	// ConfigFile is where the configuration came from, to be shown; empty is no file.
	ConfigFile string
	// ReadConfig reads the text of a configuration file as a reload would, with what stands above the file; a plan goes by it. Nil
	// reads the text alone.
	ReadConfig func(text []byte) (*config.Config, error)
	// Sockets were passed to this process; nil are none.
	Sockets *Sockets
}

// Balancer is a daemon. Use [New].
type Balancer struct {
	options  Options
	config   *config.Config // as it was at the start
	dynamic  atomic.Pointer[config.Dynamic]
	reloads  reloads
	started  time.Time
	store    route.Store
	control  *control.Controller
	proxy    *proxy.Proxy
	engine   netloop.Engine
	sockets  *listen.Sockets
	serving  []listen.Listener
	limits   []*listen.Limits       // of those
	failed   []*pool.Counts[string] // likewise: connections that did not get as far as a request, by reason
	certs    []*listen.Certificates
	guard    *proxy.Guard
	admin    net.Listener // nil when off
	networks []netip.Prefix
	tokens   admin.Tokens // of the admin API
	refused  pool.Counts[string]
	access   *telemetry.AccessLog
	journal  *journal.Journal
	tracing  *tracing.Tracing // nil when it is off
	redact   telemetry.Redactor
	metrics  *telemetry.Metrics
	hurry    chan struct{}
	hurried  sync.Once
	draining atomic.Bool
	opened   chan struct{}

	succeed   sync.Once
	succeeded chan struct{} // closed when a successor accepts
}

// Sockets are the listening sockets that were passed to this process, by systemd or by a predecessor.
type Sockets = listen.Sockets

// InheritSockets takes over what was passed to this process. It may be called once.
func InheritSockets() (*Sockets, error) { return listen.Inherit() }

// New makes a balancer and binds its sockets. Errors say what is wrong and what to do; nothing needs to be closed after
// one. A Balancer that is never run must be closed.
func New(cfg *config.Config, o Options) (_ *Balancer, err error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.LogLevel == nil {
		level := zap.NewAtomicLevel()
		o.LogLevel = &level
	}
	b := &Balancer{options: o, config: cfg, started: time.Now(), hurry: make(chan struct{}), opened: make(chan struct{}), succeeded: make(chan struct{})}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	b.dynamic.Store(&cfg.Dynamic)
	b.reloads.last.Store(b.started.UnixNano())
	if b.sockets = o.Sockets; b.sockets == nil {
		b.sockets = new(listen.Sockets)
	}
	tokens, err := cfg.Admin.ReadTokens()
	if err != nil {
		return nil, err
	}
	b.tokens = admin.NewTokens(tokens)
	if cfg.Admin.Address != "off" {
		if b.admin, err = b.sockets.Bind(cfg.Admin.Address, 0); err != nil {
			return nil, fmt.Errorf("admin: %w", err)
		}
	}
	growTable()
	b.engine, err = netloop.New(netloop.Options{
		Engine: cfg.Engine, Loops: cfg.Loops, FirstByte: cfg.Timeouts.RequestHead,
		Sockets: socketBound(),
		Stale:   func(key any) bool { return key.(kept).Retired() },
		Closed:  func(key any, idle time.Duration) { key.(kept).ClosedIdle(idle) },
		Panic: func(v any, stack []byte) {
			o.Logger.Error("panic in an exchange; its connection was closed", zap.Any("panic", v), zap.ByteString("stack", stack))
		},
	})
	if err != nil {
		return nil, err
	}
	b.journal = journal.New(cfg.Loops)
	if b.tracing, err = tracing.New(context.Background(), o.Version, o.Logger.Named("tracing")); err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	b.redact.Set(cfg.Log.Redact)
	if b.access, err = b.accessLog(cfg); err != nil {
		return nil, err
	}
	if b.networks, _, err = config.Networks(cfg.InstanceNetworks); err != nil {
		return nil, fmt.Errorf("instance_networks: %w", err)
	}
	self := b.self()
	b.metrics = telemetry.NewMetrics(o.Version, b.sample)
	b.control = control.New(control.Options{
		Registry: o.Registry, Store: &b.store, Logger: o.Logger, Published: b.metrics.EventToRoute, Self: self, Deny: b.deny,
		Departed: func(s *pool.Service) { b.proxy.Forget(s) },
		Snapshot: cfg.Snapshot.Path, Prefix: cmp.Or(cfg.Etcd.Prefix, registry.DefaultPrefix),
	}, cfg.Dynamic)
	b.proxy = proxy.New(&b.store, settings(cfg.Dynamic), observer{b.access, b.journal, b.tracing, b.control, &b.redact})
	b.guard = &proxy.Guard{Lag: cfg.Limits.ShedAfter(), Memory: int64(cfg.Limits.Memory), Waiting: b.engine.Lag}
	if b.guard.Memory == 0 {
		b.guard.Memory = proxy.MemoryLimit()
	}
	b.proxy.Guard, b.proxy.Name = b.guard, self.ID
	if b.tracing != nil {
		b.proxy.Sampler = func(id *proxy.TraceID, parent, sampled bool) bool {
			return b.tracing.Sample((*[16]byte)(id), parent, sampled)
		}
	}
	for _, l := range cfg.Listeners {
		if err := b.bind(l); err != nil {
			return nil, err
		}
	}
	b.sockets.Unclaimed()
	return b, nil
}

// self is how the balancer shows in the registry. Its id is another one in every process, also on one host: a successor takes
// nothing away from its predecessor.
func (b *Balancer) self() registry.Balancer {
	r := registry.Balancer{Version: b.options.Version, Started: b.started.UTC()}
	host, err := os.Hostname()
	if err != nil || registry.CheckID(host) != nil {
		host = "rota"
	}
	life := strings.ToLower(registry.NewIncarnation())
	r.ID = host[:min(len(host), 100)] + "-" + life[len(life)-8:]
	if b.admin != nil {
		r.Admin = b.admin.Addr().String()
	}
	return r
}

// kept is what connections to upstreams are kept under.
type kept interface {
	Retired() bool
	ClosedIdle(time.Duration)
}

// bind makes a listener ready to be served.
func (b *Balancer) bind(l config.Listener) error {
	failed := &pool.Counts[string]{}
	door := &listen.Door{
		Next: b.proxy, Handshake: b.config.Timeouts.Handshake, FirstByte: b.config.Timeouts.RequestHead,
		Failed: func(peer netip.AddrPort, reason string, err error) {
			failed.Add(reason)
			b.options.Logger.Debug("a connection did not get as far as a request", zap.String("listener", l.Address),
				zap.Stringer("peer", peer), zap.String("reason", reason), zap.Error(err))
		},
	}
	var err error
	if door.Proxies, door.ProxyUnix, err = config.Networks(l.ProxyProtocol); err != nil {
		return err
	}
	if l.Protocol == "https" {
		certs, err := listen.LoadCertificates(tlsOptions(l.TLS))
		if err != nil {
			return fmt.Errorf("listener %s: %w", l.Address, err)
		}
		for _, w := range certs.Warnings() {
			b.options.Logger.Warn("certificate", zap.String("listener", l.Address), zap.String("warning", w))
		}
		door.TLS = certs.Config()
		b.certs = append(b.certs, certs)
	}
	ln, err := b.sockets.Bind(l.Address, l.FileMode())
	if err != nil {
		return err
	}
	served := listen.Listener{Listener: ln, Handler: door}
	if door.TLS == nil && door.Proxies == nil && !door.ProxyUnix {
		served.Handler = b.proxy
	}
	limits := &listen.Limits{Max: l.MaxConnections, PerClient: l.MaxConnectionsPerClient}
	if door.Proxies != nil {
		limits.Speaks = door.Speaks
	}
	served.Admission = limits
	b.limits, b.failed = append(b.limits, limits), append(b.failed, failed)
	b.serving = append(b.serving, served)
	return nil
}

func tlsOptions(t config.TLS) listen.TLSOptions {
	o := listen.TLSOptions{MinVersion: tls.VersionTLS12, ClientCA: t.ClientCA, ClientAuth: tls.RequireAndVerifyClientCert}
	if t.MinVersion == "1.3" {
		o.MinVersion = tls.VersionTLS13
	}
	if t.ClientAuth == "optional" {
		o.ClientAuth = tls.VerifyClientCertIfGiven
	}
	for _, c := range t.Certificates {
		o.Pairs = append(o.Pairs, listen.Pair{Cert: c.Cert, Key: c.Key})
	}
	return o
}

// Close closes the sockets and files of a balancer that is not run.
func (b *Balancer) Close() {
	if b.engine != nil {
		ended, end := context.WithCancel(context.Background())
		end()
		b.engine.Run(ended) // it gives back what it has at its end
	}
	b.access.Close()
	for _, ln := range b.serving {
		ln.Close()
	}
	if b.admin != nil {
		b.admin.Close()
	}
	if b.sockets != nil {
		b.sockets.Close()
	}
}

// settings are what the proxy wants to know of the configuration.
func settings(d config.Dynamic) proxy.Settings {
	trusted, unix, err := config.Networks(d.TrustedProxies)
	if err != nil {
		trusted, unix = nil, false // validation lets none through; nobody is trusted
	}
	s := proxy.Settings{
		RequestHead: d.Timeouts.RequestHead, KeepAlive: d.Timeouts.KeepAlive, Timeouts: control.Timeouts(d.Timeouts),
		Retries: control.Retries(d.Retries), MaxBody: int64(d.Limits.Body), MinRate: d.Limits.MinBodyRate(),
		Trusted: trusted, TrustUnix: unix, RequestID: d.RequestID,
	}
	if s.RequestID == "off" {
		s.RequestID = ""
	}
	return s
}

// accessLog opens the access log; nil when it is off.
func (b *Balancer) accessLog(cfg *config.Config) (*telemetry.AccessLog, error) {
	var out io.Writer
	switch cfg.Log.Access {
	case "off":
		return nil, nil
	case "", "stdout":
		out = os.Stdout
	case "stderr":
		out = os.Stderr
	default:
		f, err := telemetry.OpenFile(cfg.Log.Access)
		if err != nil {
			return nil, fmt.Errorf("access log: %w", err)
		}
		out = f
	}
	log, err := telemetry.NewAccessLog(out, cfg.Loops, b.accessOptions(&cfg.Log))
	if err != nil {
		return nil, fmt.Errorf("log.format: %w", err)
	}
	return log, nil
}

// accessOptions are what the access log wants to know of a configuration that is valid.
func (b *Balancer) accessOptions(l *config.Log) telemetry.AccessOptions {
	o := telemetry.AccessOptions{Format: l.Format, Redact: &b.redact}
	o.Filter = telemetry.Filter{MinDuration: l.Filter.MinDuration, Retried: l.Filter.Retried, Failed: l.Filter.Failed}
	for _, text := range l.Filter.Status {
		if r, err := config.ParseStatus(text); err == nil {
			o.Filter.Status = append(o.Filter.Status, r)
		}
	}
	o.Sample, _ = l.SampleShare()
	return o
}

// Addresses are the bound addresses of the listeners.
func (b *Balancer) Addresses() []net.Addr {
	var list []net.Addr
	for _, ln := range b.serving {
		list = append(list, ln.Addr())
	}
	return list
}

// AdminAddress is the bound address of the admin API; nil when it is off.
func (b *Balancer) AdminAddress() net.Addr {
	if b.admin == nil {
		return nil
	}
	return b.admin.Addr()
}

// reloads are the attempts to read the configuration anew.
type reloads struct {
	good, bad atomic.Uint64
	last      atomic.Int64 // Unix nanoseconds of the last good one, the start included
	failed    atomic.Bool  // the last one
}

// effective is the configuration in effect.
func (b *Balancer) effective() (path string, text []byte) {
	c := config.Config{Static: b.config.Static, Dynamic: *b.dynamic.Load()}
	return b.options.ConfigFile, c.YAML()
}

// ReloadFailed notes that the configuration could not be read anew, so that the old one stays.
func (b *Balancer) ReloadFailed(err error) {
	b.reloads.bad.Add(1)
	b.reloads.failed.Store(true)
	b.control.ConfigRefused(err)
}

// Reload makes the reloadable part of a configuration current.
func (b *Balancer) Reload(ctx context.Context, d config.Dynamic) {
	b.dynamic.Store(&d)
	b.reloads.good.Add(1)
	b.reloads.failed.Store(false)
	b.reloads.last.Store(time.Now().UnixNano())
	b.proxy.SetSettings(settings(d))
	b.redact.Set(d.Log.Redact)
	if err := b.access.Set(b.accessOptions(&d.Log)); err != nil { // validation lets nothing through that is none
		b.options.Logger.Error("the access log goes on as it was", zap.Error(err))
	}
	b.control.Reload(ctx, d)
	for _, c := range b.certs {
		if swapped, err := c.Reload(); swapped || err != nil {
			b.certificatesChanged(err)
		}
	}
}

func (b *Balancer) certificatesChanged(err error) {
	if err != nil {
		b.options.Logger.Error("new certificates are not used, the old ones stay", zap.Error(err))
		return
	}
	b.options.Logger.Info("new certificates are in use")
}

// ReopenLogs opens the access log's file anew, after it was moved away.
func (b *Balancer) ReopenLogs() {
	if err := b.access.Reopen(); err != nil {
		b.options.Logger.Error("access log not opened anew, the old file stays", zap.Error(err))
	}
}

// Handover starts a successor, gives it the listening sockets, and returns nil when it is warm: then ctx of Run is to be
// ended. After an error this balancer goes on as if nothing had been.
func (b *Balancer) Handover(ctx context.Context) error {
	err := b.sockets.Handover(ctx, listen.Handover{})
	if err == nil {
		b.succeed.Do(func() { close(b.succeeded) })
		if b.admin != nil {
			b.admin.Close() // who asks for the state of the daemon means the successor
		}
	}
	return err
}

// Hurry ends the draining of a Run whose ctx has ended. It may be called more than once.
func (b *Balancer) Hurry() { b.hurried.Do(func() { close(b.hurry) }) }

// Opened is closed when the listeners serve: after the first table, or, unless a predecessor serves, a second after the start.
func (b *Balancer) Opened() <-chan struct{} { return b.opened }

// Run runs the daemon until ctx ends, drains, and returns nil, or ErrDrainDeadline. It may be called once.
func (b *Balancer) Run(ctx context.Context) error {
	// Control, admin and the access log live until the data plane has drained.
	behind, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	logged := make(chan struct{})
	defer func() {
		select {
		case <-logged:
		case <-time.After(lastLines):
		}
	}()
	defer stop()
	wg.Go(func() { b.control.Run(behind) })
	go func() { b.access.Run(behind); close(logged) }()
	wg.Go(func() { b.guard.Run(behind) })
	wg.Go(func() { b.tracing.Run(behind) })
	for _, c := range b.certs {
		wg.Go(func() { c.Run(behind, b.certificatesChanged) })
	}
	if b.admin != nil {
		wg.Go(func() { b.serveAdmin(behind) })
	}
	wg.Go(func() { b.open(behind) })
	context.AfterFunc(ctx, func() { b.draining.Store(true) })
	server := listen.Server{
		Engine: b.engine, Listeners: b.serving, Open: b.opened, Serving: b.sockets.Ready, Draining: b.proxy.Drain,
		DrainDelay: b.config.DrainDelay, Grace: b.config.Grace, Succeeded: b.succeeded, Closed: b.sockets.Close, Ending: b.proxy.EndTunnels,
	}
	return server.Run(ctx, b.hurry)
}

// open opens the listeners once there is a table, or after a second without one; but as long as a predecessor serves, not without.
func (b *Balancer) open(ctx context.Context) {
	late := time.NewTicker(firstTable)
	defer late.Stop()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for told := false; ; {
		select {
		case <-look.C:
			if b.store.Load().Generation == 0 {
				continue
			}
		case <-late.C:
			if b.sockets.Awaited() {
				if !told {
					b.options.Logger.Warn("no table yet: the predecessor serves until the registry is in reach")
				}
				told = true
				continue
			}
			b.options.Logger.Warn("no table yet: answering 503 until the registry is in reach")
		case <-ctx.Done():
			return
		}
		close(b.opened)
		return
	}
}

// hosts are the names of the admin API: those that are configured, and the one that it was bound by. An address is known from the
// connection.
func (b *Balancer) hosts() []string {
	host, _, err := net.SplitHostPort(b.config.Admin.Address)
	if _, address := netip.ParseAddr(host); err != nil || host == "" || address == nil {
		return b.config.Admin.Hosts
	}
	return append([]string{host}, b.config.Admin.Hosts...)
}

func (b *Balancer) serveAdmin(ctx context.Context) {
	var names []string
	for _, a := range b.Addresses() {
		names = append(names, a.String())
	}
	read := b.options.ReadConfig
	if read == nil {
		read = func(text []byte) (*config.Config, error) { return config.Parse("plan", text) }
	}
	api := &admin.API{
		Control: b.control, Metrics: b.metrics, Version: b.options.Version, Started: b.started,
		Ready: b.ready, Connections: b.engine.Connections, Engine: b.engine.Name(), Listeners: names,
		Tokens: b.tokens, Hosts: b.hosts(), Refused: &b.refused, Logger: b.options.Logger, Request: readRequest, Ended: ctx.Done(), Unrouted: b.proxy.Unrouted(), Config: b.effective,
		Static: &b.config.Static, ReadConfig: read, LogLevel: b.options.LogLevel, Journal: b.journal,
	}
	srv := &http.Server{
		Handler: api.Handler(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: zap.NewStdLog(b.options.Logger.Named("admin")),
	}
	stopped := context.AfterFunc(ctx, func() {
		short, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		srv.Shutdown(short)
		srv.Close()
	})
	defer stopped()
	if err := srv.Serve(b.admin); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		b.options.Logger.Error("admin API ended", zap.Error(err))
	}
}

// Alive reports whether the control loop and every event loop answer before ctx ends: for watchdogs.
func (b *Balancer) Alive(ctx context.Context) error {
	if err := b.engine.Answer(ctx); err != nil {
		return err
	}
	_, err := b.control.Status(ctx)
	return err
}

// ready reports whether the daemon takes traffic. Losing the registry after the first sync only degrades it.
func (b *Balancer) ready() (bool, []string) {
	c := b.control.Counters()
	switch {
	case b.draining.Load():
		return false, []string{"draining"}
	case !c.Synced.Load():
		return false, []string{"the registry has not been read yet"}
	case b.options.Registry != nil && !c.Connected.Load():
		return true, []string{"the registry is out of reach; serving the last table"}
	}
	return true, nil
}
