package balancer

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/balancer/internal/control"
	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

// fleet are instances of a service, each with a server and a lease of its own.
type fleet struct {
	t       *testing.T
	etcd    *clientv3.Client
	service string
	servers []*http.Server
	address []string
	leases  []clientv3.LeaseID
}

func newFleet(t *testing.T, etcd *clientv3.Client, service string, n int) *fleet {
	t.Helper()
	f := &fleet{t, etcd, service, make([]*http.Server, n), make([]string, n), make([]clientv3.LeaseID, n)}
	for i := range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f.address[i] = ln.Addr().String()
		f.servers[i] = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, f.address[i]) })}
		go f.servers[i].Serve(ln)
		t.Cleanup(func() { f.servers[i].Close() })
	}
	f.each(0, n, f.register)
	return f
}

// each does something for instances, many at a time.
func (f *fleet) each(from, to int, do func(ctx context.Context, i int) error) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := from; i < to; i++ {
		wg.Go(func() {
			if err := do(ctx, i); err != nil {
				f.t.Errorf("instance %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func (f *fleet) key(i int) string { return fmt.Sprintf("/rota/services/%s/%d", f.service, i) }

func (f *fleet) register(ctx context.Context, i int) error {
	lease, err := f.etcd.Grant(ctx, 60)
	if err != nil {
		return err
	}
	f.leases[i] = lease.ID
	_, err = f.etcd.Put(ctx, f.key(i), fmt.Sprintf(`{"address":%q,"incarnation":"i%d"}`, f.address[i], i), clientv3.WithLease(lease.ID))
	return err
}

func (f *fleet) revoke(ctx context.Context, i int) error {
	_, err := f.etcd.Revoke(ctx, f.leases[i])
	return err
}

// count waits until so many instances of the service are in these states, and returns the control plane's status.
func (d *daemon) count(service string, want map[string]int) control.Status {
	d.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		list, err := d.control.Services(d.t.Context(), service)
		if err != nil {
			d.t.Fatal(err)
		}
		got := map[string]int{}
		if len(list) > 0 {
			for _, in := range list[0].Instances {
				got[string(in.Verdict.State)]++
			}
		}
		if fmt.Sprint(got) == fmt.Sprint(want) {
			s, err := d.control.Status(d.t.Context())
			if err != nil {
				d.t.Fatal(err)
			}
			return s
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%s: %v, never %v", service, got, want)
		}
	}
}

// All leases of a service go within a second or so while its instances live: nobody notices, the brake is shown, and it is
// released when they are back. Then all go again, and half of the instances are dead, or die: those are out soon.
func TestLeaseStorm(t *testing.T) {
	n := 200
	if testing.Short() {
		n = 40
	}
	etcd := etcdtest.Start(t)
	d := run(t, etcd, nil)
	f := newFleet(t, etcd.Client(), "cart", n)
	d.count("cart", map[string]int{"ready": n})
	l := d.load("cart", 8)
	stormed := time.Now()
	f.each(0, n, f.revoke)
	t.Logf("%d leases revoked in %v", n, time.Since(stormed))
	s := d.count("cart", map[string]int{"suspect": n})
	if len(s.Brakes) != 1 || s.Brakes[0].Service != "cart" || s.Doubted != n {
		t.Errorf("%d in doubt, brakes %+v", s.Doubted, s.Brakes)
	}
	f.each(0, n, f.register)
	d.count("cart", map[string]int{"ready": n})
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if s, _ = d.control.Status(t.Context()); len(s.Brakes) == 0 && s.Doubted == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the brake holds though all are back: %+v", s.Brakes)
		}
	}

	// The dead half: some die with their leases, some as suspects. What etcd takes to revoke leases does not count.
	kill := func(from, to int) {
		f.each(from, to, func(_ context.Context, i int) error { return f.servers[i].Close() })
	}
	out := func(left int) control.Status {
		t.Helper()
		began := time.Now()
		s := d.count("cart", map[string]int{"suspect": left})
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("the dead were out after %v", took)
		} else {
			t.Logf("%d of them dead: those were out after %v", n-left, took)
		}
		return s
	}
	kill(0, n/4)
	f.each(0, n, f.revoke)
	if s = out(n - n/4); len(s.Brakes) != 1 {
		t.Errorf("brakes %+v", s.Brakes)
	}
	kill(n/4, n/2)
	out(n - n/2)
	l.end(t)
}

// Who leaves by hand, or says so, is out at once, also when it is the last one; who dies is out at the first refusal.
func TestGoing(t *testing.T) {
	etcd := etcdtest.Start(t)
	d := run(t, etcd, nil)
	f := newFleet(t, etcd.Client(), "cart", 3)
	d.count("cart", map[string]int{"ready": 3})

	l := d.load("cart", 4)
	began := time.Now()
	f.servers[0].Close()
	d.count("cart", map[string]int{"ejected": 1, "ready": 2})
	t.Logf("the dead one took part for %v", time.Since(began))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := f.revoke(ctx, 0); err != nil { // it is known to be dead
		t.Fatal(err)
	}
	d.count("cart", map[string]int{"ready": 2})
	if _, err := f.etcd.Delete(ctx, f.key(1)); err != nil { // by hand: its lease is alive
		t.Fatal(err)
	}
	d.count("cart", map[string]int{"ready": 1})
	l.end(t)

	// The last one leaves as the library does it.
	if _, err := f.etcd.Delete(ctx, f.key(2)); err != nil {
		t.Fatal(err)
	}
	d.count("cart", map[string]int{})
	client, err := registryetcd.Connect(registryetcd.Options{Endpoints: etcd.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	last, err := client.Register(ctx, registry.Instance{Service: "cart", ID: "last", Address: f.address[2]})
	if err != nil {
		t.Fatal(err)
	}
	d.until("cart", 200)
	began = time.Now()
	if err := last.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	d.until("cart", 503)
	if took := time.Since(began); took > 200*time.Millisecond {
		t.Errorf("the last one's leave was honoured after %v", took)
	} else {
		t.Logf("the last one's leave was honoured after %v", took)
	}
}
