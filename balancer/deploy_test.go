package balancer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/config"
	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	registryetcd "github.com/rota-lb/rota/registry/etcd"
)

// restarts is how many there are in all on each engine; ROTA_TEST_RESTARTS says another number.
func restarts(t *testing.T, n int) int {
	if text := os.Getenv("ROTA_TEST_RESTARTS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// worker is a service instance that echoes bodies and WebSockets, and says goodbye to these when it leaves.
func worker(ctx context.Context, reg registry.Registry, service, id string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var tunnels sync.WaitGroup
	defer tunnels.Wait()
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			body, _ := io.ReadAll(r.Body)
			w.Write(append([]byte(r.Method+" "), body...))
			return
		}
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
		tunnels.Add(1)
		defer tunnels.Done()
		stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Now()) })
		defer stop()
		for {
			line, err := rw.ReadString('\n')
			io.WriteString(c, line)
			if err != nil {
				break
			}
		}
		// The goodbye: the client closes when it has read it, so that nothing of what it sends is lost.
		io.WriteString(c, "bye\n")
		c.(*net.TCPConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		io.Copy(io.Discard, c)
	})}
	return registry.ServeOptions{Listener: ln, Settle: 100 * time.Millisecond}.Serve(ctx, reg, srv,
		registry.Instance{Service: service, ID: id, Address: ln.Addr().String()})
}

// Five instances are restarted one after the other, again and again, under requests with and without bodies and under
// WebSockets. No request fails; tunnels end with the goodbye of the instance that leaves.
func TestRollingRestarts(t *testing.T) { eachEngine(t, rollingRestarts) }

func rollingRestarts(t *testing.T, engine string) {
	etcd := etcdtest.Start(t)
	d := run(t, etcd, func(c *config.Config) { c.Engine, c.Loops = engine, 2 })
	const service, instances = "rolling", 5
	type life struct {
		stop context.CancelFunc
		done chan error
	}
	start := func(i int) life {
		reg, err := registryetcd.Connect(registryetcd.Options{Endpoints: etcd.Endpoints()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		l := life{stop, make(chan error, 1)}
		go func() {
			defer reg.Close()
			l.done <- worker(ctx, reg, service, fmt.Sprint(i))
		}()
		return l
	}
	var lives [instances]life
	for i := range lives {
		lives[i] = start(i)
	}
	ready := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if p := d.store.Load().Pool(service); p != nil && p.Len() == n {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("instances missing")
			}
		}
	}
	ready(instances)

	var requests, tunnels, failed atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	fail := func(err error) {
		if failed.Add(1) < 5 {
			t.Error(err)
		}
	}
	for n := range 6 {
		wg.Go(func() {
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			client := http.Client{Transport: tr, Timeout: 10 * time.Second}
			sizes := []int{0, 10, 10_000, 100_000}
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				body, method := bytes.Repeat([]byte("x"), sizes[i%len(sizes)]), "POST"
				if n%2 == 0 {
					body, method = nil, "GET"
				}
				req, _ := http.NewRequest(method, d.url, bytes.NewReader(body))
				req.Host = service + ".localhost"
				requests.Add(1)
				resp, err := client.Do(req)
				if err != nil {
					fail(fmt.Errorf("%s: %w", method, err))
					continue
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || string(got) != method+" "+string(body) {
					fail(fmt.Errorf("%s with %d bytes: %d %s, %d bytes, %w", method, len(body), resp.StatusCode, resp.Header.Get("X-Rota-Reason"), len(got), err))
				}
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				tunnels.Add(1)
				if err := converse(strings.TrimPrefix(d.url, "http://"), service, stop); err != nil {
					fail(fmt.Errorf("tunnel: %w", err))
				}
			}
		})
	}
	for i := range restarts(t, 5) {
		l := &lives[i%instances]
		l.stop()
		if err := <-l.done; err != nil {
			t.Errorf("instance %d left with %v", i%instances, err)
		}
		*l = start(i % instances)
		ready(instances)
	}
	close(stop)
	wg.Wait()
	for i := range lives {
		lives[i].stop()
	}
	for i := range lives {
		<-lives[i].done
	}
	t.Logf("%d requests and %d tunnels, %d failed", requests.Load(), tunnels.Load(), failed.Load())
}

// converse opens a WebSocket and sends lines that come back, until the instance says goodbye or stop is closed.
func converse(address, service string, stop <-chan struct{}) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", service)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != 101 {
		return fmt.Errorf("status %d %s", resp.StatusCode, resp.Header.Get("X-Rota-Reason"))
	}
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		case <-time.After(time.Millisecond):
		}
		sent := fmt.Sprintf("line %d\n", i)
		if _, err := io.WriteString(c, sent); err != nil {
			return err
		}
		got, err := r.ReadString('\n')
		switch {
		case err != nil:
			return err
		case got == "bye\n":
			if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
				return errors.Join(fmt.Errorf("after the goodbye came %q", rest), err)
			}
			return nil
		case got != sent:
			return fmt.Errorf("sent %q, got %q", sent, got)
		}
	}
}
