package discover_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/discover"
	"github.com/rota-lb/rota/registry/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Nothing listens at these addresses.
const refusing, refusingToo = "127.0.0.1:1", "127.0.0.1:2"

// rig is a Discovery that runs over a store in memory.
type rig struct {
	*testing.T
	store  memory.Store
	client *memory.Client // that of the Discovery
	d      *discover.Discovery
	stop   func() error
}

func newRig(t *testing.T, o discover.Options) *rig {
	t.Helper()
	r := &rig{T: t}
	r.client = r.store.NewClient()
	if o.Logger == nil {
		o.Logger = zaptest.NewLogger(t)
	}
	r.d = discover.New(r.client, o)
	r.stop = func() error { return nil }
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		r.d.CloseIdleConnections()
	})
	return r
}

// run begins Run; it ends with the test or by stop.
func (r *rig) run() *rig {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.d.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	return r
}

func start(t *testing.T, o discover.Options) *rig {
	t.Helper()
	r := newRig(t, o).run()
	if err := r.d.WaitReady(r.limit()); err != nil {
		t.Fatal(err)
	}
	return r
}

// limit is a context for what should not take long.
func (r *rig) limit() context.Context {
	ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
	r.Cleanup(cancel)
	return ctx
}

// put registers an instance of cart. That it is known is seen by members.
func (r *rig) put(id, address string, change ...func(*registry.Instance)) {
	r.Helper()
	in := registry.Instance{Address: address}
	for _, c := range change {
		c(&in)
	}
	value, err := json.Marshal(in)
	if err != nil {
		r.Fatal(err)
	}
	r.store.Put(r.store.Keys.Instance("cart", id), value)
}

func (r *rig) delete(id string) { r.store.Delete(r.store.Keys.Instance("cart", id)) }

func weight(n int) func(*registry.Instance) {
	return func(in *registry.Instance) { in.Weight = new(n) }
}

func state(s registry.State) func(*registry.Instance) {
	return func(in *registry.Instance) { in.State = s }
}

func speaks(p registry.Protocol) func(*registry.Instance) {
	return func(in *registry.Instance) { in.Protocol = p }
}

// until waits for the view of cart to satisfy ok.
func (r *rig) until(what string, ok func(*discover.View) bool) {
	r.Helper()
	ctx := r.limit()
	for {
		v := r.d.View("cart")
		if ok(v) {
			return
		}
		select {
		case <-v.Changed():
		case <-ctx.Done():
			r.Fatalf("waiting for %s: there is %s", what, ids(v))
		}
	}
}

// members waits for cart to have these, by id.
func (r *rig) members(want string) {
	r.Helper()
	r.until(want, func(v *discover.View) bool { return ids(v) == want })
}

func ids(v *discover.View) string {
	var list []string
	for _, m := range v.Members {
		list = append(list, m.Endpoint.ID)
	}
	return strings.Join(list, " ")
}

// web is a client of the plain way.
func (r *rig) web() *http.Client { return &http.Client{Transport: r.d.Transport(nil)} }

// serve starts an instance that answers its name, and returns its address.
func (r *rig) serve(name string) string {
	return r.handle(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) })
}

func (r *rig) handle(h http.HandlerFunc) string {
	srv := httptest.NewServer(h)
	r.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// get returns the body of what must be an answer.
func (r *rig) get(c *http.Client, url string) string {
	r.Helper()
	req, err := http.NewRequestWithContext(r.limit(), "GET", url, nil)
	if err != nil {
		r.Fatal(err)
	}
	return r.body(c.Do(req))
}

func (r *rig) body(resp *http.Response, err error) string {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.Fatal(err)
	}
	return string(b)
}

// fails returns the error of what must not be answered.
func (r *rig) fails(resp *http.Response, err error, is error) string {
	r.Helper()
	if err == nil {
		resp.Body.Close()
		r.Fatalf("answered %s", resp.Status)
	}
	if is != nil && !errors.Is(err, is) {
		r.Errorf("%v; want %v", err, is)
	}
	return err.Error()
}

// idle checks that nothing is in flight.
func (r *rig) idle() {
	r.Helper()
	v := r.d.View("cart")
	if n := v.Service.InFlight(); n != 0 {
		r.Errorf("%d in flight on the service", n)
	}
	for _, m := range v.Members {
		if n := m.Endpoint.InFlight(); n != 0 {
			r.Errorf("%d in flight on %s", n, m.Endpoint.ID)
		}
	}
}
