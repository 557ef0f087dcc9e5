package discover_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/discover"
	"github.com/rota-lb/rota/registry/memory"
)

// found is a registry with one instance of cart, as an etcd would have it.
func found() (r registry.Registry, stop func()) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s of %s", r.URL.Path, r.Host)
	}))
	var store memory.Store
	store.Put("/rota/services/cart/a", []byte(srv.Listener.Addr().String()))
	return store.NewClient(), srv.Close
}

func Example() {
	client, stop := found() // registryetcd.Connect(registryetcd.Options{})
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	d := discover.New(client, discover.Options{Services: []string{"cart"}})
	go d.Run(ctx)

	web := &http.Client{Transport: d.Transport(nil)}
	resp, err := web.Get("http://cart/items")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Println(string(body))
	// Output: /items of cart
}

func ExampleDiscovery_Client() {
	client, stop := found()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d := discover.New(client, discover.Options{})
	go d.Run(ctx)

	retrying := d.Client()
	req, err := retryablehttp.NewRequestWithContext(ctx, "PUT", "http://cart/items/7", []byte("two of them"))
	if err != nil {
		fmt.Println(err)
		return
	}
	resp, err := retrying.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}

func ExampleDiscovery_View() {
	client, stop := found()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d := discover.New(client, discover.Options{})
	go d.Run(ctx)
	if err := d.WaitReady(ctx); err != nil {
		fmt.Println(err)
		return
	}

	v := d.View("cart")
	for _, m := range v.Members {
		fmt.Println(m.Endpoint.ID, m.Endpoint.Protocol, m.Weight)
	}
	// Output: a http 100
}
