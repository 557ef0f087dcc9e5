//go:build linux

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/internal/etcdtest"
)

const foreignConfig = `
etcd:
  endpoints: ["%s"]
  foreign:
    - {prefix: /microservices}
    - {prefix: hertz/registry-etcd, protocol: http}
    - {prefix: /services}
    - {prefix: user.rpc, service: user, format: go-zero, protocol: http}
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
log: {access: off}
auto_routes: true
snapshot: {path: "%s"}
`

// What other products register is served, leaves, and is known to the daemon that comes after, which finds no etcd.
func TestForeignInstances(t *testing.T) {
	etcd := etcdtest.Start(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	t.Cleanup(backend.Close)
	address := strings.TrimPrefix(backend.URL, "http://")
	lease, err := etcd.Client().Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	records := map[string]string{
		"/microservices/Orders/7":            `{"id":"7","name":"Orders","endpoints":["http://` + address + `"]}`,
		"hertz/registry-etcd/pay/" + address: `{"network":"tcp","address":"` + address + `","weight":10,"tags":null}`,
		"/services/cart/node1:cart:80":       address,
		"user.rpc/7587862116842342415":       address,
		"/services/broken/node1:broken:80":   "{",
		"/rota/services/own/1":               address,
		"/microservices/grpc-only/1":         `{"endpoints":["grpc://` + address + `"]}`,
	}
	for key, value := range records {
		if _, err := etcd.Client().Put(t.Context(), key, value, clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
	}
	snapshot := filepath.Join(t.TempDir(), "table.json")
	config := write(t, "rota.yaml", fmt.Sprintf(foreignConfig, strings.Join(etcd.Endpoints(), `","`), snapshot))
	served := []string{"orders", "pay", "cart", "user", "own"}
	all := func(daemon *child) (listen, admin string) {
		listen, admin = daemon.find(listening), daemon.find(adminURL)
		for _, service := range served {
			until(t, "an answer of "+service, func() bool {
				code, body, _ := get(t, listen, listen, "/"+service+"/")
				return code == 200 && body == "hello"
			})
		}
		return listen, admin
	}
	daemon := spawn(t, "serve", "-c", config)
	listen, admin := all(daemon)
	if _, body, _ := get(t, admin, admin, "/api/v1/services/orders"); !strings.Contains(body, "/microservices/Orders/7") || !strings.Contains(body, `"microservices:7-`) {
		t.Errorf("the admin API does not say where it is from: %s", body)
	}
	if _, body, _ := get(t, admin, admin, "/api/v1/status"); !strings.Contains(body, "/services/broken/node1:broken:80") || !strings.Contains(body, "/microservices/grpc-only/1") {
		t.Errorf("what cannot be served is not shown: %s", body)
	}
	for _, key := range []string{"/services/cart/node1:cart:80", "user.rpc/7587862116842342415"} {
		if _, err := etcd.Client().Delete(t.Context(), key); err != nil { // its lease is alive: it has left
			t.Fatal(err)
		}
	}
	for _, service := range []string{"cart", "user"} {
		until(t, service+" gone", func() bool { code, _, _ := get(t, listen, listen, "/"+service+"/"); return code != 200 })
	}
	served = []string{"orders", "pay", "own"}
	until(t, "a snapshot", func() bool {
		text, err := os.ReadFile(snapshot)
		return err == nil && strings.Contains(string(text), "/microservices/Orders/7") && !strings.Contains(string(text), "user.rpc/")
	})
	daemon.Process.Kill()
	daemon.exit()
	etcd.Stop()
	all(spawn(t, "serve", "-c", config))
}
