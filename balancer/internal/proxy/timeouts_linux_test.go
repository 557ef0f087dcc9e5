package proxy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/route"
)

// blackhole is an address whose kernel answers no connection any more, as behind a firewall that drops: its queue is full.
func blackhole(t *testing.T) (address string) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address = fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	for {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if errors.Is(err, os.ErrDeadlineExceeded) || isTimeout(err) {
			return address
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// The time that connecting may take is the route's too, where no packet comes back.
func TestRouteConnectTimeout(t *testing.T) {
	t.Parallel()
	lost := blackhole(t)
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel()
		r := startWith(t, engine, Settings{Timeouts: route.Timeouts{Connect: 2 * patience}, Retries: route.Retries{Attempts: 1}}, func(r *rig) {
			r.routes = []route.Route{{Name: "r", Service: "s", Rules: &route.Rules{Timeouts: route.Timeouts{Connect: brief}}}}
		}, lost)
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, _ := c.answer("GET")
		rec := r.wait(1)[0]
		if resp.StatusCode != 504 || rec.Reason != ConnectTimeout || rec.Attempts != 1 {
			t.Errorf("answered %d, reason %q after %d attempts", resp.StatusCode, rec.Reason, rec.Attempts)
		}
		if rec.Duration < brief*9/10 || rec.Duration > brief+soon {
			t.Errorf("it ended after %v of %v", rec.Duration, brief)
		}
	})
}
