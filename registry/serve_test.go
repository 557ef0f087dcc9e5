package registry_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/memory"
	"github.com/rota-lb/rota/registry/registrytest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// serving is a Serve under way.
type serving struct {
	t      *testing.T
	store  *memory.Store
	client *memory.Client
	watch  *registrytest.Watcher
	stop   context.CancelFunc
	done   chan error
}

// serve starts Serve on a listener on loopback that it may advertise.
func serve(t *testing.T, o registry.ServeOptions, srv *http.Server, in registry.Instance) *serving {
	t.Helper()
	t.Setenv(registry.AdvertiseEnv, "")
	store := new(memory.Store)
	s := &serving{t: t, store: store, client: store.NewClient(), done: make(chan error, 1)}
	s.watch = registrytest.Watch(t, store.NewClient(), registry.Scope{Service: "cart"})
	o.Advertise.AllowLoopback = true
	if o.Listener == nil {
		o.Listener = listen(t)
	}
	if o.Logger == nil {
		o.Logger = zaptest.NewLogger(t)
	}
	in.Service = "cart"
	ctx, cancel := context.WithCancel(t.Context())
	s.stop = cancel
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.done <- o.Serve(ctx, s.client, srv, in)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return s
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// instance waits for the one instance of the service to satisfy ok.
func (s *serving) instance(what string, ok func(registry.Instance) bool) registry.Instance {
	s.t.Helper()
	var found registry.Instance
	s.watch.Wait(s.t, what, func(view map[string]registry.Change) bool {
		for _, ch := range view {
			if ch.Instance != nil && ok(*ch.Instance) {
				found = *ch.Instance
				return true
			}
		}
		return false
	})
	return found
}

func (s *serving) gone() {
	s.t.Helper()
	s.watch.Wait(s.t, "the record to be gone", func(view map[string]registry.Change) bool { return len(view) == 0 })
}

func (s *serving) result() error {
	s.t.Helper()
	select {
	case err := <-s.done:
		return err
	case <-time.After(20 * time.Second):
		s.t.Fatal("Serve does not return")
		return nil
	}
}

func there(registry.Instance) bool { return true }

func inState(st registry.State) func(registry.Instance) bool {
	return func(in registry.Instance) bool { return in.State == st }
}

// get may be called from any goroutine.
func get(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func answer(s string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, s) })
}

func TestServe(t *testing.T) {
	regs := make(chan registry.Registration, 1)
	o := registry.ServeOptions{Settle: -1, Registered: func(r registry.Registration) { regs <- r }}
	s := serve(t, o, &http.Server{Handler: answer("hello"), IdleTimeout: 3 * time.Second}, registry.Instance{Version: "1"})
	in := s.instance("registered", there)
	if err := (<-regs).Update(t.Context(), func(in *registry.Instance) { in.Weight = new(7) }); err != nil {
		t.Error(err)
	}
	s.instance("updated", func(in registry.Instance) bool { return in.EffectiveWeight() == 7 })
	if in.Version != "1" || in.Protocol != "" || in.IdleTimeout != registry.Duration(3*time.Second) || in.ID == "" {
		t.Errorf("registered as %+v", in)
	}
	if got := get(t, newClient(t), "http://"+in.Address); got != "hello" {
		t.Errorf("got %q", got)
	}
	s.stop()
	if err := s.result(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	s.gone()
	if _, err := net.Dial("tcp", in.Address); err == nil {
		t.Error("still listening")
	}
}

// pipes is a listener without a network, for tests in virtual time.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	close func()
}

func newPipes() *pipes {
	p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	p.close = sync.OnceFunc(func() { close(p.done) })
	return p
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.close(); return nil }

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 80} }

// client returns a client whose connections all go to the listener.
func (p *pipes) client(t *testing.T) *http.Client {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		select {
		case p.conns <- there:
			return here, nil
		case <-p.done:
			return nil, net.ErrClosed
		}
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// TestServeOrder holds a request in flight over the end, and looks at what balancers can see meanwhile.
func TestServeOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finish := make(chan struct{})
		mux := http.NewServeMux()
		mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
			<-finish
			io.WriteString(w, "done")
		})
		mux.Handle("/", answer("quick"))
		ln := newPipes()
		s := serve(t, registry.ServeOptions{Listener: ln}, &http.Server{Handler: mux}, registry.Instance{})
		in := s.instance("registered", there)
		if in.Address != "10.0.0.7:80" {
			t.Errorf("address %q", in.Address)
		}
		slow := make(chan string, 1)
		go func() { slow <- get(t, ln.client(t), "http://cart/slow") }()
		synctest.Wait()

		begun := time.Now()
		s.stop()
		synctest.Wait()
		s.instance("draining", inState(registry.Draining))
		// A balancer that has not seen it yet still gets an answer, until the settling is over.
		time.Sleep(registry.DefaultSettle - time.Millisecond)
		if got := get(t, ln.client(t), "http://cart/"); got != "quick" {
			t.Errorf("while settling: %q", got)
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if resp, err := ln.client(t).Get("http://cart/"); err == nil {
			resp.Body.Close()
			t.Error("still accepting after it settled")
		}
		time.Sleep(5 * time.Second)
		s.instance("still registered", inState(registry.Draining))
		close(finish)
		if got := <-slow; got != "done" {
			t.Errorf("the request in flight got %q", got)
		}
		if err := s.result(); err != nil {
			t.Errorf("Serve: %v", err)
		}
		s.gone()
		if d := time.Since(begun); d > 6*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func TestServeCutsAtDeadline(t *testing.T) {
	entered := make(chan struct{})
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	s := serve(t, registry.ServeOptions{Settle: -1, ShutdownTimeout: 20 * time.Millisecond}, &http.Server{Handler: h}, registry.Instance{})
	in := s.instance("registered", there)
	got := make(chan error, 1)
	c := newClient(t)
	go func() {
		resp, err := c.Get("http://" + in.Address)
		if err == nil {
			resp.Body.Close()
		}
		got <- err
	}()
	<-entered
	s.stop()
	if err := s.result(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Serve: %v, want the deadline", err)
	}
	<-got
	s.gone()
}

func TestServeReady(t *testing.T) {
	ready := make(chan struct{})
	ln := listen(t)
	asked := make(chan string, 1)
	s := serve(t, registry.ServeOptions{Listener: ln, Settle: -1, Ready: func(ctx context.Context) error {
		asked <- get(t, newClient(t), "http://"+ln.Addr().String()) // it can ask itself
		<-ready
		return nil
	}}, &http.Server{Handler: answer("warm")}, registry.Instance{})
	if got := <-asked; got != "warm" {
		t.Errorf("got %q", got)
	}
	if s.store.Revision() != 1 {
		t.Error("registered before it was ready")
	}
	close(ready)
	s.instance("registered", there)
	s.stop()
	if err := s.result(); err != nil {
		t.Error(err)
	}
}

func TestServeNotReady(t *testing.T) {
	cold := errors.New("cold")
	s := serve(t, registry.ServeOptions{Ready: func(context.Context) error { return cold }}, &http.Server{}, registry.Instance{})
	if err := s.result(); !errors.Is(err, cold) {
		t.Errorf("Serve: %v", err)
	}
	if s.store.Revision() != 1 {
		t.Error("something was registered")
	}
}

func TestServeEndsWhileNotReady(t *testing.T) {
	waiting := make(chan struct{})
	s := serve(t, registry.ServeOptions{Ready: func(ctx context.Context) error {
		close(waiting)
		<-ctx.Done()
		return ctx.Err()
	}}, &http.Server{}, registry.Instance{})
	<-waiting
	s.stop()
	if err := s.result(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeServerFailsWhileNotReady(t *testing.T) {
	ln := listen(t)
	s := serve(t, registry.ServeOptions{Listener: ln, Ready: func(ctx context.Context) error {
		ln.Close()
		<-ctx.Done()
		return nil
	}}, &http.Server{}, registry.Instance{})
	if err := s.result(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeServerFails(t *testing.T) {
	ln := listen(t)
	s := serve(t, registry.ServeOptions{Listener: ln, Settle: time.Hour}, &http.Server{}, registry.Instance{})
	s.instance("registered", there)
	ln.Close()
	if err := s.result(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve: %v, want the server's error", err)
	}
	s.gone()
}

func TestServeShutDownByCaller(t *testing.T) {
	srv := &http.Server{}
	s := serve(t, registry.ServeOptions{Settle: time.Hour}, srv, registry.Instance{})
	s.instance("registered", there)
	srv.Shutdown(t.Context())
	if err := s.result(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	s.gone()
}

func TestServeSuperseded(t *testing.T) {
	s := serve(t, registry.ServeOptions{Settle: -1}, &http.Server{}, registry.Instance{ID: "a"})
	s.instance("registered", there)
	if _, err := s.store.NewClient().Register(t.Context(), registry.Instance{Service: "cart", ID: "a", Address: "10.0.0.8:1"}); err != nil {
		t.Fatal(err)
	}
	if err := s.result(); !errors.Is(err, registry.ErrSuperseded) {
		t.Errorf("Serve: %v", err)
	}
	s.instance("the successor's", func(in registry.Instance) bool { return in.Address == "10.0.0.8:1" && in.State == "" })
}

func TestServeStoreAway(t *testing.T) {
	store := new(memory.Store)
	client := store.NewClient()
	client.Disconnect()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ln := listen(t)
	done := make(chan error, 1)
	o := registry.ServeOptions{Listener: ln, Settle: -1, Advertise: registry.Advertise{AllowLoopback: true}}
	go func() {
		done <- o.Serve(ctx, client, &http.Server{Handler: answer("hello")}, registry.Instance{Service: "cart"})
	}()
	if got := get(t, newClient(t), "http://"+ln.Addr().String()); got != "hello" {
		t.Errorf("got %q", got)
	}
	w := registrytest.Watch(t, store.NewClient(), registry.Scope{})
	client.Reconnect()
	w.Wait(t, "registered", func(view map[string]registry.Change) bool { return len(view) == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestServeStoreAwayAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, registry.ServeOptions{Listener: newPipes()}, &http.Server{}, registry.Instance{})
		s.instance("registered", there)
		s.client.Disconnect()
		begun := time.Now()
		s.stop()
		if err := s.result(); !errors.Is(err, memory.ErrDisconnected) {
			t.Errorf("Serve: %v, want it to say that the record stays", err)
		}
		if d := time.Since(begun); d > 5*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func TestServeTLS(t *testing.T) {
	pair := httptest.NewUnstartedServer(nil)
	pair.StartTLS()
	defer pair.Close()
	srv := &http.Server{Handler: answer("secret"), TLSConfig: &tls.Config{Certificates: pair.TLS.Certificates}}
	s := serve(t, registry.ServeOptions{Settle: -1}, srv, registry.Instance{})
	in := s.instance("registered", there)
	if in.Protocol != registry.HTTPS {
		t.Errorf("protocol %q", in.Protocol)
	}
	c := pair.Client()
	if got := get(t, c, "https://"+in.Address); got != "secret" {
		t.Errorf("got %q", got)
	}
	c.CloseIdleConnections()
}

func TestServeRefuses(t *testing.T) {
	t.Setenv(registry.AdvertiseEnv, "")
	client := new(memory.Store).NewClient()
	for name, test := range map[string]struct {
		srv  *http.Server
		in   registry.Instance
		env  string
		want error
	}{
		"loopback listener":  {&http.Server{Addr: "127.0.0.1:0"}, registry.Instance{Service: "cart"}, "", registry.ErrNotAdvertisable},
		"wildcard address":   {&http.Server{Addr: "127.0.0.1:0"}, registry.Instance{Service: "cart", Address: "0.0.0.0:80"}, "", registry.ErrNotAdvertisable},
		"service":            {&http.Server{Addr: "127.0.0.1:0"}, registry.Instance{Service: "Cart", Address: "127.0.0.1:1"}, "", registry.ErrInvalid},
		"weight":             {&http.Server{Addr: "127.0.0.1:0"}, registry.Instance{Service: "cart", Address: "127.0.0.1:1", Weight: new(-1)}, "", registry.ErrInvalid},
		"malformed variable": {&http.Server{Addr: "127.0.0.1:0"}, registry.Instance{Service: "cart"}, "0x7f.1", registry.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(registry.AdvertiseEnv, test.env)
			if err := registry.Serve(t.Context(), client, test.srv, test.in); !errors.Is(err, test.want) {
				t.Errorf("Serve: %v, want %q", err, test.want)
			}
		})
	}
	ln := listen(t)
	defer ln.Close()
	err := registry.Serve(t.Context(), client, &http.Server{Addr: ln.Addr().String()}, registry.Instance{Service: "cart"})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a taken port: %v", err)
	}
}

func TestServeExplicitLoopback(t *testing.T) {
	for _, env := range []string{"", "127.0.0.1"} {
		t.Setenv(registry.AdvertiseEnv, env)
		store := new(memory.Store)
		w := registrytest.Watch(t, store.NewClient(), registry.Scope{})
		in := registry.Instance{Service: "cart"}
		if env == "" {
			in.Address = "127.0.0.1:5001"
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- registry.Serve(ctx, store.NewClient(), &http.Server{Addr: "127.0.0.1:0"}, in)
		}()
		w.Wait(t, "registered", func(view map[string]registry.Change) bool { return len(view) == 1 })
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
