package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/internal/etcdtest"
)

// blackhole is an address whose kernel answers no connection any more, as behind a firewall that drops: its queue is full. It
// answers again after open.
func blackhole(t *testing.T) (address string, open func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address = fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
	for full := false; !full; {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if full = err != nil; !full {
			t.Cleanup(func() { c.Close() })
		}
	}
	return address, func() {
		if err := unix.Listen(fd, 100); err != nil {
			t.Error(err)
		}
		go func() {
			for {
				c, _, err := unix.Accept(fd)
				switch {
				case err == nil:
					unix.Close(c)
				case err != unix.EAGAIN && err != unix.EINTR:
					return
				default:
					time.Sleep(time.Millisecond)
				}
			}
		}()
	}
}

// An instance to which every packet is lost costs the requests that meet it a connect timeout, once: then it is out until it
// answers, and no request fails.
func TestBlackhole(t *testing.T) {
	etcd := etcdtest.Start(t)
	d := run(t, etcd, func(c *config.Config) { c.Timeouts.Connect = 100 * time.Millisecond })
	newFleet(t, etcd.Client(), "cart", 2)
	lost, open := blackhole(t)
	put(t, etcd.Client(), "/rota/services/cart/lost", lost)
	d.until("cart", 200)
	l := d.load("cart", 4)
	d.count("cart", map[string]int{"ready": 2, "ejected": 1})
	for before, deadline := l.total.Load(), time.Now().Add(10*time.Second); l.total.Load() < before+200; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("only %d requests", l.total.Load()-before)
		}
	}
	open()
	d.count("cart", map[string]int{"ready": 3})
	l.end(t)
}

// A network that is away for a moment between the daemon and all instances takes nobody out for long, and those that were lost
// in a storm meanwhile are back with it.
func TestAllRefuseForAMoment(t *testing.T) {
	etcd := etcdtest.Start(t)
	d := run(t, etcd, nil)
	f := newFleet(t, etcd.Client(), "cart", 5)
	d.count("cart", map[string]int{"ready": 5})
	d.until("cart", 200)
	f.each(0, 5, func(_ context.Context, i int) error { return f.servers[i].Close() })
	d.until("cart", 502)
	f.each(0, 5, func(_ context.Context, i int) error {
		ln, err := net.Listen("tcp", f.address[i])
		if err != nil {
			return err
		}
		f.servers[i] = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, f.address[i]) })}
		go f.servers[i].Serve(ln)
		t.Cleanup(func() { f.servers[i].Close() })
		return nil
	})
	back := time.Now()
	d.until("cart", 200)
	t.Logf("served %v after the network was back", time.Since(back))
	d.count("cart", map[string]int{"ready": 5})
}

// An instance that fails faster than the others work draws no more than its share, and soon nothing.
func TestSinkhole(t *testing.T) {
	etcd := etcdtest.Start(t)
	d := run(t, etcd, nil)
	var sunk, served atomic.Int64
	serve := func(id string, h http.HandlerFunc) {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		put(t, etcd.Client(), "/rota/services/cart/"+id, s.Listener.Addr().String())
	}
	for i := range 4 {
		serve(fmt.Sprint("good-", i), func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(5 * time.Millisecond)
			served.Add(1)
		})
	}
	serve("sinkhole", func(w http.ResponseWriter, _ *http.Request) {
		sunk.Add(1)
		w.WriteHeader(http.StatusInternalServerError)
	})
	put(t, etcd.Client(), "/rota/policies/cart", `{"balance":"least_request"}`)
	d.count("cart", map[string]int{"ready": 5})
	l := d.load("cart", 8)
	for deadline := time.Now().Add(20 * time.Second); served.Load() < 1000 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	close(l.stop)
	l.wg.Wait()
	if n, of := sunk.Load(), sunk.Load()+served.Load(); n == 0 || n*5 > of {
		t.Errorf("%d of %d requests went to the one of five that fails", n, of)
	} else {
		t.Logf("%d of %d requests went to the one that fails", n, of)
	}
}

// Records of an older and of a newer version than ours stand side by side: what is not known is kept and shown, and disturbs
// nothing.
func TestOtherVersions(t *testing.T) {
	etcd := etcdtest.Start(t)
	d := run(t, etcd, nil)
	newFleet(t, etcd.Client(), "cart", 1)
	for id, value := range map[string]string{
		"older": `{"address":%q}`,
		"newer": `{"address":%q,"schema":9,"shard":{"of":3,"is":1},"state":"ready","check":{"type":"tcp","burst":2},"claims":[],"priority":"low"}`,
	} {
		s := httptest.NewServer(http.NotFoundHandler())
		t.Cleanup(s.Close)
		put(t, etcd.Client(), "/rota/services/cart/"+id, fmt.Sprintf(value, s.Listener.Addr()))
	}
	put(t, etcd.Client(), "/rota/balancers/newer", `{"version":"99","admin":"10.0.0.1:1","capabilities":["x"]}`)
	put(t, etcd.Client(), "/rota/experiments/x", `whatever`)
	d.count("cart", map[string]int{"ready": 3})
	if _, body := d.ask("GET", "/api/v1/services/cart", ""); !strings.Contains(body, `"shard"`) || !strings.Contains(body, `"priority"`) {
		t.Errorf("what is not known is not shown: %s", body)
	}
}
