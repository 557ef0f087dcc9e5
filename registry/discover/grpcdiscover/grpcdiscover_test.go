package grpcdiscover_test

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/discover"
	"github.com/rota-lb/rota/registry/discover/grpcdiscover"
	"github.com/rota-lb/rota/registry/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a Discovery over a store in memory, and a connection to cart.
type rig struct {
	*testing.T
	store  memory.Store
	client *memory.Client
	d      *discover.Discovery
	conn   *grpc.ClientConn
	health grpc_health_v1.HealthClient
}

func start(t *testing.T, o discover.Options) *rig {
	t.Helper()
	r := &rig{T: t}
	r.client = r.store.NewClient()
	r.d = discover.New(r.client, o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.d.Run(ctx) }()
	options := append(grpcdiscover.Options(r.d), grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("rota:///cart", options...)
	if err != nil {
		t.Fatal(err)
	}
	r.conn, r.health = conn, grpc_health_v1.NewHealthClient(conn)
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

// limit is a context for what should not take long.
func (r *rig) limit() context.Context {
	ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
	r.Cleanup(cancel)
	return ctx
}

// server is one instance; it counts the calls that it gets.
type server struct {
	*grpc.Server
	address string
	calls   atomic.Int64
}

func (r *rig) serve() *server {
	r.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.Fatal(err)
	}
	s := &server{address: ln.Addr().String()}
	s.Server = grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			s.calls.Add(1)
			return handle(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			s.calls.Add(1)
			return handle(srv, ss)
		}))
	grpc_health_v1.RegisterHealthServer(s.Server, health.NewServer())
	var serving sync.WaitGroup
	serving.Go(func() { s.Serve(ln) })
	r.Cleanup(func() { s.Stop(); serving.Wait() })
	return s
}

func (r *rig) put(id, address string, change ...func(*registry.Instance)) {
	r.Helper()
	in := registry.Instance{Address: address, Protocol: registry.GRPC}
	for _, c := range change {
		c(&in)
	}
	value, err := json.Marshal(in)
	if err != nil {
		r.Fatal(err)
	}
	r.store.Put(r.store.Keys.Instance("cart", id), value)
}

func (r *rig) check(o ...grpc.CallOption) error {
	_, err := r.health.Check(r.limit(), &grpc_health_v1.HealthCheckRequest{}, o...)
	return err
}

// wait has a call wait for the first instance.
var wait = grpc.WaitForReady(true)

// all calls until each of these has been called, which takes until they are connected, and returns when n further calls
// have gone to them and nobody else.
func (r *rig) all(n int, servers ...*server) {
	r.Helper()
	before := make([]int64, len(servers))
	for i, s := range servers {
		before[i] = s.calls.Load()
	}
	ctx := r.limit()
	for missing := true; missing; {
		if err := r.check(wait); err != nil {
			r.Fatal(err)
		}
		missing = false
		for i, s := range servers {
			missing = missing || s.calls.Load() == before[i]
		}
		if ctx.Err() != nil {
			r.Fatal("not everybody is called")
		}
	}
	sum := func() (n int64) {
		for _, s := range servers {
			n += s.calls.Load()
		}
		return n
	}
	start := sum()
	for range n {
		if err := r.check(); err != nil {
			r.Fatal(err)
		}
	}
	if got := sum() - start; got != int64(n) {
		r.Errorf("%d of %d calls went where they should", got, n)
	}
}

func (r *rig) idle() {
	r.Helper()
	v := r.d.View("cart")
	deadline := time.Now().Add(10 * time.Second)
	for v.Service.InFlight() != 0 && time.Now().Before(deadline) { // Done is called after the caller has its answer
		time.Sleep(time.Millisecond)
	}
	for _, m := range v.Members {
		if n := m.Endpoint.InFlight(); n != 0 || v.Service.InFlight() != 0 {
			r.Errorf("%d in flight on %s, %d on the service", n, m.Endpoint.ID, v.Service.InFlight())
		}
	}
}

func draining(in *registry.Instance) { in.State = registry.Draining }

// TestLive follows a service as the registry changes.
func TestLive(t *testing.T) {
	r := start(t, discover.Options{Policy: "round_robin"})
	a, b := r.serve(), r.serve()
	r.put("a", a.address)
	r.all(5, a)
	r.put("b", b.address)
	r.all(10, a, b)
	r.put("a", a.address, draining)
	for b.calls.Load() < 1000 { // until nothing goes to a
		before := a.calls.Load()
		for range 5 {
			if err := r.check(); err != nil {
				t.Fatal(err)
			}
		}
		if a.calls.Load() == before {
			break
		}
	}
	r.all(20, b)
	r.idle()
	stats := r.d.View("cart").Members[0].Endpoint.Stats().View()
	if stats.Classes[2] == 0 || stats.Classes[2] != stats.Durations.Count() {
		t.Errorf("counted %+v", stats)
	}
}

// TestWeights has the shares that weights say, and has them change without connecting anew.
func TestWeights(t *testing.T) {
	r := start(t, discover.Options{Policy: "round_robin"})
	a, b := r.serve(), r.serve()
	weigh := func(n int) func(*registry.Instance) { return func(in *registry.Instance) { in.Weight = new(n) } }
	share := func(n int) int64 {
		before := a.calls.Load()
		for range n {
			if err := r.check(); err != nil {
				t.Fatal(err)
			}
		}
		return a.calls.Load() - before
	}
	r.put("a", a.address, weigh(10))
	r.put("b", b.address, weigh(30))
	r.all(0, a, b)
	if n := share(200); n < 48 || n > 52 {
		t.Errorf("%d of 200 calls at a quarter of the weight", n)
	}
	r.put("a", a.address, weigh(30))
	deadline := time.Now().Add(20 * time.Second)
	for n := int64(0); n < 19 || n > 21; n = share(40) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of 40 calls at the same weight", n)
		}
	}
	r.idle()
}

// TestRefused has instances that nobody listens for: calls go to the others.
func TestRefused(t *testing.T) {
	r := start(t, discover.Options{})
	b := r.serve()
	r.put("a", "127.0.0.1:1")
	r.put("b", b.address)
	r.put("c", "127.0.0.1:2")
	r.all(20, b)
	r.idle()
}

// TestInFlight has a stream count until its end, on an instance that drains meanwhile: it goes on.
func TestInFlight(t *testing.T) {
	r := start(t, discover.Options{})
	a, b := r.serve(), r.serve()
	r.put("a", a.address)
	ctx, cancel := context.WithCancel(r.limit())
	defer cancel()
	stream, err := r.health.Watch(ctx, &grpc_health_v1.HealthCheckRequest{}, wait)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	e := r.d.View("cart").Members[0].Endpoint
	if n := e.InFlight(); n != 1 {
		t.Errorf("%d in flight", n)
	}
	r.put("b", b.address)
	r.all(0, b)
	r.put("a", a.address, draining)
	for v := r.d.View("cart"); len(v.Members) != 1; v = r.d.View("cart") {
		<-v.Changed()
	}
	r.all(10, b)
	if n := e.InFlight(); n != 1 {
		t.Errorf("%d in flight while draining", n)
	}
	cancel()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	r.idle()
	if n := e.InFlight(); n != 0 {
		t.Errorf("%d in flight at the end", n)
	}
}

// TestNoInstance wants errors that say what was looked for.
func TestNoInstance(t *testing.T) {
	r := start(t, discover.Options{})
	unavailable := func(says string) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		err := r.check()
		for !strings.Contains(status.Convert(err).Message(), says) && time.Now().Before(deadline) {
			err = r.check()
		}
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want %q", err, says)
		}
	}
	unavailable(`no instance of service "cart": nothing is registered under that name`)
	r.put("a", "127.0.0.1:1", func(in *registry.Instance) { in.Protocol = registry.HTTP })
	unavailable("looked for one that is ready and speaks grpc or h2 or h2c, found 1 speaking http")
	a := r.serve()
	r.put("a", a.address)
	if err := r.check(wait); err != nil {
		t.Fatal(err)
	}
	r.put("a", a.address, draining)
	unavailable("1 draining")
	if _, err := grpc.NewClient("rota:///Cart", grpcdiscover.Options(r.d)...); err == nil {
		t.Error("a service Cart")
	}
}

// TestStoreAway has the store go: calls go where they went.
func TestStoreAway(t *testing.T) {
	r := start(t, discover.Options{})
	a, b := r.serve(), r.serve()
	r.put("a", a.address)
	r.all(1, a)
	r.client.Disconnect()
	r.put("b", b.address)
	r.all(10, a)
	r.client.Reconnect()
	r.all(10, a, b)
}

// TestWaits has calls made before the registry has answered.
func TestWaits(t *testing.T) {
	var store memory.Store
	c := store.NewClient()
	c.Disconnect()
	r := &rig{T: t}
	a := r.serve()
	store.Put("/rota/services/cart/a", []byte(`{"address":"`+a.address+`","protocol":"grpc"}`))
	r.d = discover.New(c, discover.Options{})
	conn, err := grpc.NewClient("rota:///cart", append(grpcdiscover.Options(r.d), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r.health = grpc_health_v1.NewHealthClient(conn)
	called := make(chan error)
	go func() { called <- r.check() }()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.d.Run(ctx) }()
	c.Reconnect()
	if err := <-called; err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
