package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/rota-lb/rota/balancer"
	"github.com/rota-lb/rota/cmd/rota/internal/sdnotify"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

// overrides are the flags that stand above the configuration file.
type overrides struct {
	file       string
	listen     []string
	admin      string
	etcd       etcdFlags
	prefix     string
	engine     string
	logLevel   string
	accessLog  string
	autoRoutes bool
	grace      time.Duration
}

func (o *overrides) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&o.listen, "listen", nil, "`address` to serve on, host:port; may be repeated (default :8080)")
	f.StringVar(&o.admin, "admin", "", "loopback `address` of the admin API, or \"off\" (default 127.0.0.1:9797)")
	f.StringVar(&o.prefix, "prefix", "", "`prefix` of all keys in etcd (default /rota)")
	f.StringVar(&o.engine, "engine", "", "\"loops\" (epoll) or \"goroutines\" (portable)")
	f.StringVar(&o.logLevel, "log-level", "", "debug, info, warn or error (default info)")
	f.StringVar(&o.accessLog, "access-log", "", "\"stdout\", \"off\" or a file")
	f.DurationVar(&o.grace, "grace", 0, "how long exchanges in flight may take to finish at the end (default 30s)")
}

// apply puts the flags that were given over a configuration.
func (o *overrides) apply(cmd *cobra.Command, c *config.Config) {
	set := func(name string, do func()) {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
			do()
		}
	}
	set("listen", func() {
		c.Listeners = nil
		for _, a := range o.listen {
			c.Listeners = append(c.Listeners, config.Listener{Address: a, Protocol: "http"})
		}
	})
	set("admin", func() { c.Admin.Address = o.admin })
	o.etcd.override(&c.Etcd)
	set("prefix", func() { c.Etcd.Prefix = o.prefix })
	set("engine", func() { c.Engine = o.engine })
	set("log-level", func() { c.Log.Level = o.logLevel })
	set("access-log", func() { c.Log.Access = o.accessLog })
	set("auto-routes", func() { c.AutoRoutes = o.autoRoutes })
	set("grace", func() { c.Grace = o.grace })
}

func serveCommand() *cobra.Command {
	var o overrides
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: `Run the daemon in the foreground.

The configuration is defaults < file < ROTA_SECTION_KEY environment < flags. Without
-c, ./rota.yaml, $XDG_CONFIG_HOME/rota/rota.yaml and /etc/rota/rota.yaml are looked
for; without any of them the defaults serve: etcd on 127.0.0.1:2379, listening on :8080.

Signals: HUP reads the file again (a bad one changes nothing) and looks at certificates:
kill -HUP or systemctl reload rota is what "reload" is elsewhere;
USR1 opens the access log's file anew, USR2 starts the binary anew, gives it the listening
sockets, and drains when the new process is warm (if it fails, nothing changes); TERM and
INT drain and end, a second one ends at once.`,
		Example: `  rota serve -c /etc/rota/rota.yaml
  rota serve --endpoints 10.0.0.1:2379,10.0.0.2:2379 --auto-routes`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd, &o) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "config", "c", "", "configuration `file`")
	o.etcd.flags(cmd)
	f.BoolVar(&o.autoRoutes, "auto-routes", false, "route <service>.localhost and /<service>/ to every service")
	o.flags(cmd)
	return cmd
}

func serve(cmd *cobra.Command, o *overrides) error {
	if err := o.etcd.complete(); err != nil {
		return err
	}
	file := o.file
	if file == "" {
		file = config.Find()
	}
	flagged := func(c *config.Config, err error) (*config.Config, error) {
		if err != nil {
			return nil, err
		}
		o.apply(cmd, c)
		return c, c.Validate()
	}
	load := func() (*config.Config, error) { return flagged(config.Load(file)) }
	cfg, err := load()
	if err != nil {
		return err
	}
	log, level, err := daemonLogger(cmd, cfg.Log.Level)
	if err != nil {
		return err
	}
	log.Info("rota starts", zap.String("version", versionText()), zap.String("config", orNone(file)), zap.Int("pid", os.Getpid()))

	sockets, err := balancer.InheritSockets()
	if err != nil {
		return err
	}
	options := balancer.Options{Logger: log, Version: versionText(), Sockets: sockets, ConfigFile: file, LogLevel: &level}
	options.ReadConfig = func(text []byte) (*config.Config, error) {
		return flagged(config.Parse("plan", text, config.WithEnviron(os.Environ())))
	}
	if e := cfg.Etcd.Embedded; e.Dir != "" {
		member, err := startMember(e, log.WithOptions(zap.IncreaseLevel(zap.WarnLevel)))
		if err != nil {
			return err
		}
		defer member.Close()
		go func() {
			if err := <-member.Err(); err != nil {
				log.Error("the etcd member in this process has failed; the last table serves on", zap.Error(err))
			}
		}()
		if cfg.Etcd.CACert+cfg.Etcd.Cert == "" { // its own certificate is as good as a client's
			cfg.Etcd.CACert, cfg.Etcd.Cert, cfg.Etcd.Key = e.CACert, e.Cert, e.Key
		}
	}
	if !cfg.Etcd.Disabled {
		client, err := connect(cfg.Etcd, log)
		if err != nil {
			return err
		}
		defer client.Close()
		options.Registry, options.LeaseTTL = client, presenceTTL
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		go func() {
			if err := client.Check(ctx); err != nil && !errors.Is(ctx.Err(), context.Canceled) {
				log.Error("etcd is out of reach; trying on", zap.Error(err))
			}
		}()
	}
	b, err := balancer.New(cfg, options)
	if err != nil {
		return err
	}
	reload := func(ctx context.Context) {
		next, err := load()
		if err != nil {
			log.Error("configuration not reloaded, the old one stays", zap.Error(err))
			b.ReloadFailed(err)
			return
		}
		if l, err := zapcore.ParseLevel(next.Log.Level); err == nil {
			level.SetLevel(l)
		}
		b.Reload(ctx, next.Dynamic)
		log.Info("configuration reloaded", zap.String("config", orNone(file)))
	}
	succeed := b.Handover
	if cfg.Etcd.Embedded.Dir != "" {
		succeed = func(context.Context) error { return errMember }
	}
	return runUntilSignal(context.Background(), b, log, reload, succeed)
}

// errMember says why a daemon with an etcd member inside has no successor.
var errMember = errors.New("the etcd member in this process cannot be handed over: restart it, one balancer after the other")

// sameSignal is how soon after the first signal another one counts as the same.
const sameSignal = 250 * time.Millisecond

// runUntilSignal runs a balancer until a signal or the end of ctx, and translates signals.
func runUntilSignal(parent context.Context, b *balancer.Balancer, log *zap.Logger, reload func(context.Context), succeed func(context.Context) error) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, reopenSignal, handoverSignal)
	defer signal.Stop(signals)
	ctx, stop := context.WithCancel(parent)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	manager := sdnotify.FromEnv()
	go manager.Watch(ctx, b.Alive)
	go func() {
		select {
		case <-b.Opened():
			for _, a := range b.Addresses() {
				log.Info("listening", zap.Stringer("address", a))
			}
			if a := b.AdminAddress(); a != nil {
				log.Info("admin API", zap.String("url", "http://"+a.String()))
			}
			manager.Ready()
		case <-ctx.Done():
		}
	}()
	stopping, stopped := false, time.Time{}
	succeeded := make(chan error, 1)
	for {
		select {
		case err := <-done:
			return err
		case err := <-succeeded:
			if err != nil {
				log.Error("hand-over failed; going on as before", zap.Error(err))
				manager.Ready() // the successor may have said that it is the main process
				continue
			}
			log.Info("the successor serves; draining")
			stopping, stopped = true, time.Now()
			stop()
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				if reload != nil {
					manager.Reloading()
					reload(ctx)
					manager.Ready()
				}
			case s == reopenSignal:
				go b.ReopenLogs() // that waits for a line that is being written, perhaps for ever
			case s == handoverSignal && stopping: // it is leaving anyway
			case s == handoverSignal:
				log.Info("starting a successor")
				go func() { succeeded <- succeed(ctx) }()
			case !stopping:
				stopping = true
				stopped = time.Now()
				manager.Stopping()
				log.Info("draining; once more to stop at once", zap.Stringer("signal", s))
				stop()
			case time.Since(stopped) < sameSignal: // a process and its group are often signalled together
			default:
				b.Hurry()
				<-done
				return errForced
			}
		}
	}
}

func orNone(file string) string {
	if file == "" {
		return "none: defaults and environment"
	}
	return file
}

// connect makes a client of the configured etcd. It does not wait for etcd.
func connect(c config.Etcd, log *zap.Logger) (*registryetcd.Client, error) {
	password, err := c.ReadPassword()
	if err != nil {
		return nil, err
	}
	var foreign []codec.Foreign
	for _, f := range c.Foreign {
		foreign = append(foreign, codec.Foreign{
			Prefix: f.Prefix, Format: codec.Format(f.Format), Service: f.Service, Protocol: registry.Protocol(f.Protocol),
		})
	}
	return registryetcd.Connect(registryetcd.Options{
		Foreign:   foreign,
		Endpoints: c.Endpoints, Prefix: c.Prefix, Username: c.Username, Password: password,
		CACert: c.CACert, Cert: c.Cert, Key: c.Key, InsecureSkipVerify: c.InsecureSkipVerify,
		DialTimeout: c.DialTimeout, TTL: presenceTTL, Logger: log.Named("etcd"),
	})
}

// presenceTTL is how long a daemon that has died still shows in the registry: instances that leave wait for it that long.
const presenceTTL = 5 * time.Second

// newLogger logs to out, through which it gets to stderr.
func newLogger(level string, out zapcore.WriteSyncer) (*zap.Logger, zap.AtomicLevel, error) {
	at, err := zap.ParseAtomicLevel(level)
	if err != nil {
		return nil, at, fmt.Errorf("log level %q: use debug, info, warn or error", level)
	}
	return zap.New(zapcore.NewCore(newEncoder(), out, at), zap.ErrorOutput(out)), at, nil
}

// newEncoder writes lines for a terminal, JSON for anything else.
func newEncoder() zapcore.Encoder {
	enc := zap.NewProductionEncoderConfig()
	if !isTerminal(os.Stderr) {
		return zapcore.NewJSONEncoder(enc)
	}
	enc.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
	enc.EncodeLevel = zapcore.CapitalLevelEncoder
	enc.ConsoleSeparator = "  "
	return zapcore.NewConsoleEncoder(enc)
}

// isTerminal reports whether f is a character device.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
