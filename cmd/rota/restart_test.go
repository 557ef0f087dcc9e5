//go:build unix

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rota-lb/rota/internal/etcdtest"
)

// times is how often a restart is done on each engine; ROTA_TEST_RESTARTS says another number.
func times(t *testing.T, n int) int {
	if text := os.Getenv("ROTA_TEST_RESTARTS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// arrivals makes connections at a rate until it is ended, one request on each, and counts those that fail.
type arrivals struct {
	done, failed atomic.Int64
	stop         chan struct{}
	wg           sync.WaitGroup
	mu           sync.Mutex
	first        error
}

const perSecond = 500

func arrive(address func() string) *arrivals {
	a := &arrivals{stop: make(chan struct{})}
	a.wg.Go(func() {
		tick := time.NewTicker(time.Second / perSecond)
		defer tick.Stop()
		for {
			select {
			case <-a.stop:
				return
			case <-tick.C:
				a.wg.Go(func() {
					a.done.Add(1)
					if err := once(address()); err != nil {
						a.failed.Add(1)
						a.mu.Lock()
						a.first = errors.Join(a.first, err)
						a.mu.Unlock()
					}
				})
			}
		}
	})
	return a
}

// once makes a connection and does a request with an answer of some length on it.
func once(address string) error {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return fmt.Errorf("refused: %w", err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
		return fmt.Errorf("reset while sending: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != answerLength || resp.StatusCode != 200 {
		return fmt.Errorf("truncated: status %d, %d bytes, %w", resp.StatusCode, n, err)
	}
	return nil
}

func (a *arrivals) end(t *testing.T) {
	t.Helper()
	close(a.stop)
	a.wg.Wait()
	t.Logf("%d of %d connections failed", a.failed.Load(), a.done.Load())
	if a.failed.Load() > 0 {
		t.Errorf("failed: %.2000v", a.first)
	}
}

func eachEngine(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range []string{"loops", "goroutines"} {
		t.Run(engine, func(t *testing.T) { test(t, engine) })
	}
}

const answerLength = 20_000

func answering(t *testing.T) (address string) {
	body := strings.Repeat("x", answerLength)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }))
	t.Cleanup(up.Close)
	return up.Listener.Addr().String()
}

const restartConfig = `
engine: %s
etcd: {disabled: true}
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
log: {access: off}
drain_delay: 150ms
routes: [{name: a, service: s}]
services: {s: {instances: [{address: "%s"}]}}
`

// New binaries take over the listening sockets, again and again, while connections come in: none is refused, reset or
// truncated.
func TestHandovers(t *testing.T) { eachEngine(t, handovers) }

// startedAs finds the pids of those that have started.
var startedAs = regexp.MustCompile(`"rota starts".*"pid":([0-9]+)`)

func handovers(t *testing.T, engine string) {
	t.Parallel()
	file := write(t, "rota.yaml", fmt.Sprintf(restartConfig, engine, answering(t)))
	c := spawn(t, "serve", "-c", file)
	address := c.find(listening)
	pid := c.Process.Pid
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	load := arrive(func() string { return address })
	for i := range times(t, 2) {
		if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		old := pid
		until(t, "a successor that serves", func() bool {
			all := startedAs.FindAllStringSubmatch(c.out.String(), -1)
			pid, _ = strconv.Atoi(all[len(all)-1][1])
			return len(all) == i+2 && strings.Count(c.out.String(), "the successor serves") == i+1
		})
		if i > 0 { // the first one stays a zombie until the test reaps it
			until(t, "the old one has ended", func() bool { return syscall.Kill(old, 0) != nil })
		}
	}
	load.end(t)
	syscall.Kill(pid, syscall.SIGTERM)
	if c.exit() != 0 {
		t.Errorf("status %d", c.ProcessState.ExitCode())
	}
}

const awayConfig = `
etcd: {endpoints: ["%s"]}
listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
log: {access: off}
routes: [{name: a, service: s}]
services: {s: {instances: [{address: "%s"}]}}
`

// A new binary that has no table, for etcd is away, does not serve: the old one goes on until there is one.
func TestHandoverWithoutTable(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.NewRelay(t, etcdtest.Start(t).Endpoints()[0])
	c := spawn(t, "serve", "-c", write(t, "rota.yaml", fmt.Sprintf(awayConfig, etcd.Addr(), answering(t))))
	started := func() (pids []int) {
		for _, m := range startedAs.FindAllStringSubmatch(c.out.String(), -1) {
			pid, _ := strconv.Atoi(m[1])
			pids = append(pids, pid)
		}
		return pids
	}
	t.Cleanup(func() {
		for _, pid := range started()[1:] {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	address := c.find(listening)
	load := arrive(func() string { return address })
	etcd.Refuse()
	c.Process.Signal(syscall.SIGUSR2)
	c.find("(no table yet: the predecessor serves)")
	for done := load.done.Load(); load.done.Load() < done+300; {
		time.Sleep(time.Millisecond)
	}
	if strings.Contains(c.out.String(), "the successor serves") {
		t.Error("it has taken over without a table")
	}
	etcd.Accept()
	c.find("(the successor serves)")
	load.end(t)
	pids := started()
	syscall.Kill(pids[len(pids)-1], syscall.SIGTERM)
	if c.exit() != 0 || len(pids) != 2 {
		t.Errorf("%v have started, status %d", pids, c.ProcessState.ExitCode())
	}
}

// balance is a balancer of connections, as stands before daemons: it sends them to those that are ready.
type balance struct {
	ready [2]atomic.Pointer[string]
	next  atomic.Uint32
}

func (b *balance) address() string {
	for {
		if a := b.ready[b.next.Add(1)%2].Load(); a != nil {
			return *a
		}
	}
}

// Two daemons are restarted in turn behind a balancer that looks at their readiness: no connection is lost.
func TestRestarts(t *testing.T) { eachEngine(t, inTurn) }

func inTurn(t *testing.T, engine string) {
	t.Parallel()
	file := write(t, "rota.yaml", fmt.Sprintf(restartConfig, engine, answering(t)))
	b := &balance{}
	admin := regexp.MustCompile(`"admin API","url":"([^"]+)"`)
	start := func(i int) *child {
		c := spawn(t, "serve", "-c", file)
		address := c.find(listening)
		c.find(admin.String())
		b.ready[i].Store(&address)
		return c
	}
	children := [2]*child{start(0), start(1)}
	stop, watching := make(chan struct{}), sync.WaitGroup{}
	load := arrive(b.address)
	for i := range times(t, 2) {
		c := children[i%2]
		url := admin.FindStringSubmatch(c.out.String())[1]
		c.Process.Signal(syscall.SIGTERM)
		watching.Go(func() { // the balancer's health check
			for {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				resp, err := http.Get(url + "/readyz")
				if err == nil {
					resp.Body.Close()
				}
				if err != nil || resp.StatusCode != 200 {
					b.ready[i%2].Store(nil)
					return
				}
			}
		})
		if status := c.exit(); status != 0 {
			t.Errorf("status %d", status)
		}
		watching.Wait()
		children[i%2] = start(i % 2)
	}
	load.end(t)
	close(stop)
	watching.Wait()
}
