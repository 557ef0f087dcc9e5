package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
	"github.com/rota-lb/rota/registry/registrytest"
)

// TestHello runs the service against a real etcd: it is found there, answers at the address found, and is gone from
// there when it ends.
func TestHello(t *testing.T) {
	etcd := etcdtest.Start(t)
	t.Setenv("ROTA_ETCD_ENDPOINTS", "")
	t.Setenv("ETCDCTL_ENDPOINTS", etcd.Endpoints()[0])
	t.Setenv(registry.AdvertiseEnv, "127.0.0.1")

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		done <- run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended })

	client, err := registryetcd.Connect(registryetcd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	w := registrytest.Watch(t, client, registry.Scope{Service: "hello"})
	var in registry.Instance
	w.Wait(t, "the instance", func(view map[string]registry.Change) bool {
		for _, ch := range view {
			in = *ch.Instance
		}
		return len(view) == 1
	})

	resp, err := http.Get("http://" + in.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if want := fmt.Sprintf("hello from %s\n", in.ID); err != nil || string(body) != want {
		t.Errorf("got %q, %v; want %q", body, err, want)
	}

	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	w.Wait(t, "it to leave", func(view map[string]registry.Change) bool { return len(view) == 0 })
}
