// Hello is a service that keeps itself registered: it listens on a free port, tells etcd where, and leaves in order on
// Ctrl-C or SIGTERM. It finds etcd as etcdctl does, by ETCDCTL_ENDPOINTS or on this machine. Start a few of them:
//
//	go run ./examples/hello
//	etcdctl get --prefix /rota/services/hello/
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/rota-lb/rota/registry"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	host, _ := os.Hostname()
	id := fmt.Sprintf("%s-%d", host, os.Getpid())
	client, err := registryetcd.Connect(registryetcd.Options{})
	if err != nil {
		return err
	}
	defer client.Close()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from %s\n", id)
	})}
	return registry.Serve(ctx, client, server, registry.Instance{Service: "hello", ID: id})
}
