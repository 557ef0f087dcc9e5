//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

const deployConfig = `
etcd: {endpoints: ["%s"]}
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
log: {access: off}
auto_routes: true
`

// clients do one request after the other through a balancer until they are stopped.
type clients struct {
	done, failed atomic.Int64
	gone         atomic.Bool // the balancer was killed: what fails is not the instances' fault
	first        atomic.Pointer[error]
	stop         context.CancelFunc
	wg           sync.WaitGroup
}

func ask(address, path string, n int) *clients {
	c := &clients{}
	var ctx context.Context
	ctx, c.stop = context.WithCancel(context.Background())
	hc := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: n}}
	for range n {
		c.wg.Go(func() {
			for ctx.Err() == nil && !c.gone.Load() {
				err := c.once(hc, "http://"+address+path)
				if c.gone.Load() {
					return
				}
				c.done.Add(1)
				if err != nil {
					c.failed.Add(1)
					c.first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	return c
}

func (c *clients) once(hc *http.Client, url string) error {
	resp, err := hc.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d, reason %s: %.200s", resp.StatusCode, resp.Header.Get("X-Rota-Reason"), body)
	}
	return err
}

// end stops the clients and fails the test if a request has failed.
func (c *clients) end(t *testing.T) int64 {
	t.Helper()
	c.stop()
	c.wg.Wait()
	if n := c.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed, first: %v", n, c.done.Load(), *c.first.Load())
	}
	return c.done.Load()
}

// serveInstance runs an instance of cart, and returns when it is registered. What it returns stops it and waits.
func serveInstance(t *testing.T, etcd *etcdtest.Server, i int, pause time.Duration, o registry.ServeOptions) (stop func()) {
	t.Helper()
	client, err := registryetcd.Connect(registryetcd.Options{Endpoints: etcd.Endpoints(), TTL: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	registered, served := make(chan registry.Registration, 1), make(chan error, 1)
	o.Advertise = registry.Advertise{AllowLoopback: true}
	o.Registered = func(r registry.Registration) { registered <- r }
	srv := &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(pause):
			io.WriteString(w, "done")
		case <-r.Context().Done():
		}
	})}
	go func() { served <- o.Serve(ctx, client, srv, registry.Instance{Service: "cart", ID: fmt.Sprint(i)}) }()
	limit, done := context.WithTimeout(ctx, 20*time.Second)
	defer done()
	select {
	case r := <-registered:
		if err := registry.WaitRegistered(limit, r); err != nil {
			t.Fatal(err)
		}
	case err := <-served:
		t.Fatal(err)
	}
	return func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("instance %d: %v", i, err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}

// ready waits until so many instances of cart are ready for a daemon, and returns how long that took.
func ready(t *testing.T, admin string, n int) time.Duration {
	t.Helper()
	began := time.Now()
	until(t, fmt.Sprint(n, " instances that are ready"), func() bool {
		code, body, _ := get(t, admin, admin, "/api/v1/services/cart")
		return code == 200 && strings.Count(body, `"state": "`) == n && strings.Count(body, `"state": "ready"`) == n
	})
	return time.Since(began)
}

// Ten instances are replaced, one after the other, again and again, while every one has requests in flight that take long,
// through three balancers, of which one is killed half-way. No request fails; an instance leaves when every balancer that
// lives has acknowledged, and never later than its deadline.
func TestDeploy(t *testing.T) {
	t.Parallel()
	const instances, deadline = 10, 15 * time.Second
	rounds, pause := times(t, 2), 100*time.Millisecond
	if rounds > 2 {
		pause = 2 * time.Second
	}
	etcd := etcdtest.Start(t)
	file := write(t, "rota.yaml", fmt.Sprintf(deployConfig, strings.Join(etcd.Endpoints(), `","`)))
	var balancers []*child
	for range 3 {
		balancers = append(balancers, spawn(t, "serve", "-c", file))
	}

	core, logs := observer.New(zapcore.WarnLevel)
	var slowest atomic.Int64
	start := func(i int) func() {
		stop := serveInstance(t, etcd, i, pause, registry.ServeOptions{ShutdownTimeout: deadline, Logger: zap.New(core)})
		return func() {
			began := time.Now()
			stop()
			slowest.Store(max(slowest.Load(), int64(time.Since(began))))
		}
	}
	stop := make([]func(), instances)
	for i := range stop {
		stop[i] = start(i)
	}
	var load []*clients
	for _, b := range balancers {
		address, admin := b.find(listening), b.find(adminURL)
		ready(t, admin, instances)
		load = append(load, ask(address, "/cart/", 10))
	}
	for round := range rounds {
		for i := range stop {
			if round == rounds/2 && i == instances/2 {
				load[0].gone.Store(true)
				balancers[0].Process.Kill()
			}
			stop[i]()
			stop[i] = start(i)
		}
	}
	var asked int64
	for _, l := range load {
		asked += l.end(t)
	}
	for _, s := range stop {
		s()
	}
	for _, l := range logs.FilterMessageSnippet("acknowledgement").All() {
		t.Errorf("%s: %v", l.Message, l.ContextMap())
	}
	t.Logf("%d restarts, %d requests of %v, 0 may fail; the slowest leave took %v", rounds*instances, asked, pause, time.Duration(slowest.Load()))
	if d := time.Duration(slowest.Load()); d > deadline {
		t.Errorf("an instance took %v to leave, its deadline is %v", d, deadline)
	}
	if asked == 0 {
		t.Error("no request was made")
	}
}
