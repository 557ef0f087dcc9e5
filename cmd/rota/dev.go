package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer"
	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/registry"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

func devCommand() *cobra.Command {
	var o overrides
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "See it work: etcd inside, three sample instances, auto routes",
		Long: `Run etcd, the balancer and three instances of a sample service in this process.
Nothing needs to be installed and nothing is kept: the data is removed at the end.
A port that is taken is replaced by a free one, which is said.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return dev(cmd, &o) },
	}
	o.flags(cmd)
	return cmd
}

func dev(cmd *cobra.Command, o *overrides) error {
	out := cmd.OutOrStdout()
	cfg := config.Default()
	cfg.Log.Access, cfg.Log.Level, cfg.AutoRoutes = "off", "warn", true
	o.apply(cmd, cfg)
	if err := cfg.Validate(); err != nil {
		return err
	}
	log, _, err := daemonLogger(cmd, cfg.Log.Level)
	if err != nil {
		return err
	}

	endpoint, stop, err := devMember(out, log)
	if err != nil {
		return err
	}
	defer stop()
	cfg.Etcd.Endpoints = []string{endpoint}

	for i := range cfg.Listeners {
		cfg.Listeners[i].Address = freeAddress(out, "balancer", cfg.Listeners[i].Address)
	}
	if cfg.Admin.Address != "off" {
		cfg.Admin.Address = freeAddress(out, "admin API", cfg.Admin.Address)
	}
	client, err := connect(cfg.Etcd, log)
	if err != nil {
		return err
	}
	defer client.Close()
	b, err := balancer.New(cfg, balancer.Options{Registry: client, Logger: log, Version: versionText()})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(cmd.Context())
	var samples sync.WaitGroup
	defer samples.Wait()
	defer stop()
	for i := range 3 {
		samples.Go(func() {
			if err := hello(ctx, endpoint, "hello-"+strconv.Itoa(i+1), cfg.Etcd.Prefix); err != nil {
				log.Error("sample instance ended", zap.Error(err))
			}
		})
	}
	go func() {
		select {
		case <-b.Opened():
			welcome(out, b, endpoint, cfg.Etcd.Prefix)
		case <-ctx.Done():
		}
	}()
	return runUntilSignal(ctx, b, log, nil, func(context.Context) error { return errMember })
}

// welcome says what runs and what to type next.
func welcome(out io.Writer, b *balancer.Balancer, endpoint, prefix string) {
	_, port, _ := net.SplitHostPort(b.Addresses()[0].String())
	etcdctl, rota, admin := "etcdctl", invocation(), ""
	if endpoint != "127.0.0.1:2379" {
		etcdctl += " --endpoints " + endpoint
		rota = "ETCDCTL_ENDPOINTS=" + endpoint + " " + rota
	}
	fmt.Fprintf(out, "\nrota dev is ready.\n\n")
	if a := b.AdminAddress(); a != nil {
		fmt.Fprintf(out, "  dashboard  http://%s/\n", a)
		if a.String() != defaultAdmin {
			admin = " --admin " + a.String()
		}
	}
	fmt.Fprintf(out, `  balancer   http://localhost:%[1]s/
  etcd       %[5]s

In another terminal:

  curl http://hello.localhost:%[1]s/
      three instances answer in turn; http://localhost:%[1]s/hello/ is the same
  %[3]s why%[4]s http://hello.localhost:%[1]s/
      where a request goes, and why not elsewhere
  %[2]s put %[6]s/services/web/a 127.0.0.1:9001
      whatever listens there is http://web.localhost:%[1]s/ at once
  %[3]s register --service web --address 127.0.0.1 -- sh -c 'exec python3 -m http.server $PORT'
      likewise, for as long as the program runs and is well

Ctrl-C stops all of it, and nothing is kept.
`, port, etcdctl, rota, admin, endpoint, prefix)
}

// invocation is how this program was called.
func invocation() string {
	if strings.Contains(os.Args[0], "go-build") {
		return "go run ./cmd/rota"
	}
	return os.Args[0]
}

// freeAddress returns address, or one with a free port when that is taken, saying so.
func freeAddress(out io.Writer, what, address string) string {
	ln, err := net.Listen("tcp", address)
	if err == nil {
		ln.Close()
		return address
	}
	host, _, splitErr := net.SplitHostPort(address)
	if splitErr != nil {
		return address
	}
	ln, err2 := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err2 != nil {
		return address
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	free := net.JoinHostPort(host, port)
	fmt.Fprintf(out, "%s: %s is taken, using %s\n", what, address, free)
	return free
}

// devMember starts a member with an empty store on loopback, and returns what ends it.
func devMember(out io.Writer, log *zap.Logger) (endpoint string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "rota-dev-")
	if err != nil {
		return "", nil, err
	}
	endpoint = freeAddress(out, "etcd", "127.0.0.1:2379")
	member, err := startMember(config.Embedded{Dir: dir, Name: "rota-dev", Client: endpoint}, log.WithOptions(zap.IncreaseLevel(zap.DPanicLevel)))
	if err == nil {
		select {
		case <-member.Server.ReadyNotify():
			return endpoint, func() { member.Close(); os.RemoveAll(dir) }, nil
		case err = <-member.Err():
		case <-time.After(20 * time.Second):
			err = errors.New("not ready within 20s")
		}
		member.Close()
	}
	os.RemoveAll(dir)
	return "", nil, fmt.Errorf("etcd inside this process: %w", err)
}

// hello is a sample instance: a service as a Go developer writes one, with a client, and so a lease, of its own.
func hello(ctx context.Context, endpoint, id, prefix string) error {
	client, err := registryetcd.Connect(registryetcd.Options{Endpoints: []string{endpoint}, Prefix: prefix})
	if err != nil {
		return err
	}
	defer client.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := ln.Addr().String()
	ln.Close()
	server := &http.Server{Addr: address, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from %s at %s\n", id, address)
	})}
	return registry.Serve(ctx, client, server, registry.Instance{Service: "hello", ID: id, Address: address})
}
