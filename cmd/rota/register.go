package main

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap/zapcore"

	"github.com/rota-lb/rota/cmd/rota/internal/sidecar"
	"github.com/rota-lb/rota/registry"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

// registering are the flags of register. What a flag says goes straight to where it is used.
type registering struct {
	in          registry.Instance
	port        int
	protocol    string
	weight      int
	metadata    []string
	claims      []string
	idleTimeout time.Duration

	check        sidecar.Check
	where        etcdFlags
	etcd         registryetcd.Options
	drainTimeout time.Duration
	grace        time.Duration
	logLevel     string
}

func registerCommand() *cobra.Command {
	var r registering
	cmd := &cobra.Command{
		Use:   "register --service <name> [flags] [-- program [argument]...]",
		Short: "Register a program that knows nothing of etcd, and run it",
		Long: `Run a program and keep it registered while it is well.

The program gets its port in PORT; without --port a free one is found. It is registered
when its check passes for the first time: a GET of the path of --check-http, or else a TCP
connection. While the check fails, balancers send nothing there. When the program ends, its
record goes at once, and its exit status becomes that of rota: 128+n after signal n, 126 or
127 when it could not be run. That etcd is away is no reason to stop or to delay it.

TERM, INT and QUIT first put the record draining and wait until every balancer has said that
it sends nothing more, and only then go on to the program and its children (its process
group), which are killed when --grace is over. A second one does not wait for balancers, a
third one kills. HUP, USR1, USR2, WINCH, TTIN and TTOU go on to the program at once.

Without a program, what is registered runs elsewhere: --address says where.

The address to register is --address, or else what ROTA_ADVERTISE says, or else this machine's
on the way to etcd; it is never a loopback address unless one of the first two says so.
Where etcd is: --endpoints, ROTA_ETCD_ENDPOINTS or ETCDCTL_ENDPOINTS, and likewise for TLS
and passwords. The program finds its instance's id in ROTA_INSTANCE.`,
		Example: `  rota register --service cart --port 5001 --check-http /healthz -- gunicorn app:app
  rota register --service web -- sh -c 'exec python3 -m http.server $PORT'
  rota register --service web --address 127.0.0.1 -- node server.js    beside "rota dev"
  rota register --service old --address 10.0.0.7:5001 --check-http /   runs elsewhere`,
		Args: func(cmd *cobra.Command, list []string) error {
			switch dash := cmd.ArgsLenAtDash(); {
			case dash < 0 && len(list) > 0:
				return usageError{fmt.Errorf("%q: write -- before the program, as in: rota register --service cart -- %s", list[0], strings.Join(list, " "))}
			case dash > 0:
				return usageError{fmt.Errorf("%q before --: the program and its arguments come after it", list[0])}
			case dash == 0 && len(list) == 0:
				return usageError{errors.New("nothing after --: name a program, or leave -- out to register what runs elsewhere")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, list []string) error { return r.run(cmd, list) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&r.in.Service, "service", "", "`name` of the service; required")
	f.IntVar(&r.port, "port", 0, "`port` the program listens on; 0: a free one, from 20000 to 29999")
	f.StringVar(&r.in.Address, "address", "", "where balancers reach it: `host`, or host:port (default as above)")
	f.StringVar(&r.in.ID, "id", "", "`id` of the instance (default <hostname>-<port>)")
	f.StringVar(&r.protocol, "protocol", "", "what it speaks: http, https, h2c, h2, grpc or tcp (default http)")
	f.IntVar(&r.weight, "weight", registry.DefaultWeight, "share of the traffic, 0 to 10000")
	f.StringVar(&r.in.Zone, "zone", "", "`zone` it is in")
	f.StringVar(&r.in.Version, "version-label", "", "`version` of the program, for splits and for people")
	f.StringArrayVar(&r.metadata, "metadata", nil, "`name=value` to add to the record; may be repeated")
	f.StringArrayVar(&r.claims, "claim", nil, "`host/path` it asks to serve, as far as it is granted: shop.example.com, shop.example.com/cart, /cart; may be repeated")
	f.DurationVar(&r.idleTimeout, "idle-timeout", 0, "when it closes idle connections (gunicorn's threads: 2s); 0: unknown")

	f.StringVar(&r.check.Path, "check-http", "", "`path` that answers 200 to 399 while it is well (default: a TCP connection)")
	f.StringVar(&r.check.Address, "check-address", "", "`host:port` to check instead of where it is registered")
	f.DurationVar(&r.check.Interval, "check-interval", sidecar.DefaultInterval, "pause between checks")
	f.DurationVar(&r.check.Timeout, "check-timeout", sidecar.DefaultTimeout, "how long a check may take")
	f.IntVar(&r.check.Fall, "fall", sidecar.DefaultFall, "failures in a row after which it gets no traffic")
	f.IntVar(&r.check.Rise, "rise", sidecar.DefaultRise, "passes in a row after which it gets traffic again")
	f.BoolVar(&r.check.Off, "no-check", false, "register at once and check nothing")

	r.where.flags(cmd)
	f.StringVar(&r.etcd.Prefix, "prefix", "", "`prefix` of all keys in etcd (default /rota)")
	f.DurationVar(&r.etcd.TTL, "ttl", registryetcd.DefaultTTL, "how long the record outlives a crash of rota itself")
	f.DurationVar(&r.drainTimeout, "drain-timeout", 10*time.Second, "how long balancers may take at the end to send nothing more")
	f.DurationVar(&r.grace, "grace", 30*time.Second, "how long the program may take to stop before it is killed")
	f.StringVar(&r.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func (r *registering) run(cmd *cobra.Command, command []string) error {
	if err := r.complete(cmd, len(command) > 0); err != nil {
		return usageError{err}
	}
	if err := r.where.complete(); err != nil {
		return err
	}
	r.where.options(&r.etcd)
	log, _, err := newLogger(r.logLevel, zapcore.Lock(os.Stderr))
	if err != nil {
		return usageError{err}
	}
	defer log.Sync()
	r.etcd.Logger = log.Named("etcd")
	client, err := registryetcd.Connect(r.etcd)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := r.locate(client.Endpoints(), len(command) > 0); err != nil {
		return err
	}
	in, err := registry.Prepare(r.in, time.Now())
	if err != nil {
		return usageError{err}
	}
	status, err := sidecar.Run(sidecar.Options{
		Registry: client, Instance: in, Command: command,
		Env:   []string{"PORT=" + strconv.Itoa(r.port), "ROTA_INSTANCE=" + in.ID},
		Check: r.check, DrainTimeout: r.drainTimeout, Grace: r.grace, Logger: log,
	})
	if status != 0 || err != nil {
		return statusError{status, err}
	}
	return nil
}

// complete turns flags into the record and refuses those that make no sense.
func (r *registering) complete(cmd *cobra.Command, program bool) error {
	given := func(flag string) bool { return cmd.Flags().Changed(flag) }
	switch {
	case r.in.Service == "":
		return errors.New("--service is missing: whose instance is it?")
	case r.port < 0 || r.port > 65535:
		return fmt.Errorf("--port %d: write 1 to 65535, or 0 for a free one", r.port)
	case !program && r.port == 0 && r.in.Address == "":
		return errors.New("what should be registered? Say --address host:port, or --port for this machine, or the program after --")
	case r.check.Interval <= 0 || r.check.Timeout <= 0:
		return errors.New("--check-interval and --check-timeout: write more than zero, as in 2s")
	case r.check.Fall < 1 || r.check.Rise < 1:
		return errors.New("--fall and --rise: write 1 or more")
	case r.drainTimeout < 0 || r.grace < 0:
		return errors.New("--drain-timeout and --grace: write zero or more, as in 10s")
	case r.etcd.TTL < time.Second:
		return fmt.Errorf("--ttl %s: write 1s or more", r.etcd.TTL)
	case r.check.Off && r.check.Path != "":
		return errors.New("--no-check and --check-http: say one of them")
	}
	if !given("ttl") {
		r.etcd.TTL = 0 // the environment may say
	}
	if given("weight") {
		r.in.Weight = &r.weight
	}
	r.in.Protocol = registry.Protocol(r.protocol)
	r.check.Protocol = r.in.Protocol
	r.in.IdleTimeout = registry.Duration(r.idleTimeout)
	for _, m := range r.metadata {
		name, value, ok := strings.Cut(m, "=")
		if !ok {
			return fmt.Errorf("--metadata %q: write name=value", m)
		}
		if r.in.Metadata == nil {
			r.in.Metadata = map[string]string{}
		}
		r.in.Metadata[name] = value
	}
	for _, c := range r.claims {
		claim := registry.Claim{Host: c}
		if i := strings.IndexByte(c, '/'); i >= 0 {
			claim.Host, claim.Path = c[:i], c[i:]
		}
		r.in.Claims = append(r.in.Claims, claim)
	}
	if r.check.Path != "" && r.check.Address == "" { // balancers may ask the same
		r.in.Check = &registry.Check{Path: r.check.Path}
		if given("check-interval") {
			r.in.Check.Interval = registry.Duration(r.check.Interval)
		}
		if given("check-timeout") {
			r.in.Check.Timeout = registry.Duration(r.check.Timeout)
		}
	}
	// Whatever is wrong with the record is wrong with a flag. What is not known yet is not looked at.
	trial := r.in
	if r.check.Path != "" && trial.Check == nil {
		trial.Check = &registry.Check{Path: r.check.Path}
	}
	trial.ID, trial.Address = cmp.Or(trial.ID, "any"), "192.0.2.1:1"
	if err := trial.Validate(); err != nil {
		return err
	}
	return r.splitAddress()
}

// splitAddress takes the port from --address where --port does not say, and the other way round.
func (r *registering) splitAddress() error {
	if r.in.Address == "" {
		return nil
	}
	if _, port, err := registry.ParseAddress(r.in.Address); err == nil {
		if r.port == 0 {
			r.port = port
		}
		return nil
	}
	host := r.in.Address
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is6() {
		host = "[" + host + "]"
	}
	if _, _, err := registry.ParseAddress(host + ":1"); err != nil { // nor is it a host
		_, _, err = registry.ParseAddress(r.in.Address)
		return fmt.Errorf("--address: %w", err)
	}
	r.in.Address = host
	return nil
}

// locate settles on which port the program listens, which address is registered, and which is checked.
func (r *registering) locate(endpoints []string, program bool) error {
	if r.port == 0 && program {
		port, err := freePort(r.in.Address)
		if err != nil {
			return err
		}
		r.port = port
	}
	if r.in.Address == "" {
		_, via, ok := strings.Cut(endpoints[0], "://")
		if !ok {
			via = endpoints[0]
		}
		address, err := registry.Advertise{Via: via}.Resolve(&net.TCPAddr{Port: r.port})
		if err != nil {
			return fmt.Errorf("%w, or say it with --address", err)
		}
		r.in.Address = address
	} else if _, _, err := registry.ParseAddress(r.in.Address); err != nil { // a host alone
		if r.port == 0 {
			return usageError{fmt.Errorf("--address %s: the port is missing; write host:port, or say --port", r.in.Address)}
		}
		r.in.Address += ":" + strconv.Itoa(r.port)
	}
	if r.check.Address == "" {
		// An address of this machine shows most: that it can be reached from outside the program's own. One that others
		// see, as that of a container's host, may not lead back to us.
		r.check.Address = r.in.Address
		if program && !listensHere(r.in.Address, r.port) {
			r.check.Address = net.JoinHostPort("localhost", strconv.Itoa(r.port))
		}
	}
	return nil
}

// Ports that kernels give to nobody who does not ask for them by number: theirs begin at 32768, or higher. Those of Kubernetes' nodes
// begin at 30000.
const lowestPort, ports = 20000, 10000

// freePort returns a port on which nobody listens. Any other one that the kernel finds free now it may have given to somebody else before
// the program listens there.
func freePort(host string) (int, error) {
	ln, err := net.Listen("tcp", host+":0")
	if err != nil { // not an address of ours
		if ln, err = net.Listen("tcp", ":0"); err != nil {
			return 0, fmt.Errorf("no free port: %w; name one with --port", err)
		}
		host = ""
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	for range 100 {
		likely := lowestPort + rand.IntN(ports)
		if ln, err := net.Listen("tcp", host+":"+strconv.Itoa(likely)); err == nil {
			ln.Close()
			return likely, nil
		}
	}
	return port, nil
}

// listensHere reports whether an address is that of a port of this machine.
func listensHere(address string, port int) bool {
	at, err := netip.ParseAddrPort(address)
	if err != nil || int(at.Port()) != port {
		return false
	}
	if at.Addr().IsLoopback() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(at.Addr().AsSlice()) {
			return true
		}
	}
	return false
}
