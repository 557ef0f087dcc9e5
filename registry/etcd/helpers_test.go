package registryetcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
	"github.com/rota-lb/rota/registry/registrytest"
)

// testTTL is the shortest lifetime of a lease that leaves room for a busy machine.
const testTTL = 2 * time.Second

const deadline = 30 * time.Second

// noEnv keeps the machine's variables out of tests.
func noEnv(string) string { return "" }

// dial returns a client that is closed with the test, with change applied to options that suit tests.
func dial(tb testing.TB, endpoints []string, change ...func(*Options)) *Client {
	tb.Helper()
	o := Options{Endpoints: endpoints, TTL: testTTL, Logger: zap.NewNop()}
	if os.Getenv("ROTA_TEST_LOG") != "" {
		o.Logger = zaptest.NewLogger(tb)
	}
	for _, f := range change {
		f(&o)
	}
	c, err := connect(o, noEnv)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

func limit(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	tb.Cleanup(cancel)
	return ctx
}

func instance(service, id string) registry.Instance {
	return registry.Instance{Service: service, ID: id, Address: "10.0.0.7:5001"}
}

// register registers and waits for etcd.
func register(tb testing.TB, c *Client, in registry.Instance) registry.Registration {
	tb.Helper()
	reg, err := c.Register(context.Background(), in)
	if err != nil {
		tb.Fatal(err)
	}
	if err := registry.WaitRegistered(limit(tb), reg); err != nil {
		tb.Fatal(err)
	}
	return reg
}

// waitState waits until the registration is in the state.
func waitState(tb testing.TB, reg registry.Registration, want registry.RegistrationState) {
	tb.Helper()
	timeout := time.After(deadline)
	for {
		changed := reg.Changed()
		if reg.State() == want {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			tb.Fatalf("registration is in state %d (%v), want %d", reg.State(), reg.Err(), want)
		}
	}
}

// waitErr waits until the registration's error is err.
func waitErr(tb testing.TB, reg registry.Registration, err error) {
	tb.Helper()
	timeout := time.After(deadline)
	for {
		changed := reg.Changed()
		if errors.Is(reg.Err(), err) {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			tb.Fatalf("registration's error is %v, want %v", reg.Err(), err)
		}
	}
}

// eventually asks until ok returns nil.
func eventually(tb testing.TB, ok func() error) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var err error
	for end := time.Now().Add(deadline); time.Now().Before(end); <-tick.C {
		if err = ok(); err == nil {
			return
		}
	}
	tb.Fatalf("after %s: %v", deadline, err)
}

// stored returns what etcd holds for an instance, nil if nothing.
func stored(tb testing.TB, s *etcdtest.Server, service, id string) (*registry.Instance, int64) {
	tb.Helper()
	resp, err := s.Client().Get(limit(tb), registry.Keys{}.Instance(service, id))
	if err != nil {
		tb.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return nil, 0
	}
	in, err := codec.Decode(service, id, resp.Kvs[0].Value)
	if err != nil {
		return nil, 0 // somebody has overwritten it, and it has not been put again yet
	}
	return &in, resp.Kvs[0].Lease
}

// waitStored waits until etcd holds the registration under the client's present lease, and that is the only record of
// the service.
func waitStored(tb testing.TB, s *etcdtest.Server, c *Client, reg registry.Registration) {
	tb.Helper()
	want := reg.Instance()
	waitState(tb, reg, registry.Registered)
	eventually(tb, func() error {
		in, lease := stored(tb, s, want.Service, want.ID)
		l, _, _ := c.lease.get()
		switch {
		case in == nil:
			return fmt.Errorf("%s/%s is not in etcd", want.Service, want.ID)
		case in.Incarnation != want.Incarnation:
			return fmt.Errorf("etcd holds incarnation %s, want %s", in.Incarnation, want.Incarnation)
		case l == nil || int64(l.id) != lease:
			return fmt.Errorf("it is under lease %x, which is not the client's", lease)
		}
		resp, err := s.Client().Get(limit(tb), registry.Keys{}.RangePrefix(registry.Scope{Service: want.Service}), clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		if resp.Count != 1 {
			return fmt.Errorf("the service has %d records, want 1", resp.Count)
		}
		return nil
	})
}

// watchAll watches every instance through a client of its own.
func watchAll(tb testing.TB, c *Client) *registrytest.Watcher {
	tb.Helper()
	w := registrytest.Watch(tb, c, registry.Scope{Instances: true})
	w.WaitReset(tb)
	return w
}

// waitView waits until the watch shows exactly these addresses by key.
func waitView(tb testing.TB, w *registrytest.Watcher, want map[string]string) {
	tb.Helper()
	w.Wait(tb, fmt.Sprintf("the content to be %v", want), func(view map[string]registry.Change) bool {
		if len(view) != len(want) {
			return false
		}
		for key, address := range want {
			if ch := view[key]; ch.Instance == nil || ch.Instance.Address != address {
				return false
			}
		}
		return true
	})
}

func put(tb testing.TB, s *etcdtest.Server, key, value string) {
	tb.Helper()
	if _, err := s.Client().Put(limit(tb), key, value); err != nil {
		tb.Fatal(err)
	}
}

func revoke(tb testing.TB, s *etcdtest.Server, c *Client) {
	tb.Helper()
	if l, _, _ := c.lease.get(); l != nil {
		if _, err := s.Client().Revoke(limit(tb), l.id); err != nil {
			tb.Fatal(err)
		}
	}
}
