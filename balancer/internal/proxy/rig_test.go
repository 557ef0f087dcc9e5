package proxy

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/internal/leaktest"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "6") // those tests wait, most of the time
	leaktest.Main(m)
}

// streaming are settings that hold no body.
var streaming = Settings{Retries: route.Retries{Buffer: 1}}

// eachEngine runs a test on both engines.
func eachEngine(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range []string{netloop.Loops, netloop.Goroutines} {
		t.Run(engine, func(t *testing.T) { test(t, engine) })
	}
}

// rig is a proxy on a real engine in front of upstreams.
type rig struct {
	t       *testing.T
	address string
	store   *route.Store
	proxy   *Proxy
	engine  netloop.Engine
	service *pool.Service
	// routes and upstreams are what publish makes a table of.
	routes    []route.Route
	upstreams *pool.Settings
	stop      func()            // ends the engine; again does nothing
	done      func(rec *Record) // is told of a record too, on the loop, which stands still meanwhile; nil is nobody
	mirror    string            // address of the one instance of the service "copies"
	firstByte time.Duration     // how long a new connection may stay silent; zero is the engine's default
	sockets   int               // that may be open; zero is no bound
	guard     *Guard            // of the proxy; nil is none
	loops     int               // zero is two
	secure    *tls.Config       // what clients are served with; nil is plaintext

	mu      sync.Mutex
	records []Record

	failing atomic.Int32 // calls of Failing
	refused atomic.Int32 // and of Refused
}

func (r *rig) Refused(*pool.Endpoint, bool) { r.refused.Add(1) }
func (r *rig) Failing(*pool.Endpoint)       { r.failing.Add(1) }

func (r *rig) Done(rec *Record) {
	if r.done != nil {
		r.done(rec)
	}
	c := *rec
	c.Path, c.Query = bytes.Clone(c.Path), bytes.Clone(c.Query)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, c)
}

// wait returns the records once there are n of them.
func (r *rig) wait(n int) []Record {
	r.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		r.mu.Lock()
		if len(r.records) >= n {
			defer r.mu.Unlock()
			return append([]Record(nil), r.records...)
		}
		r.mu.Unlock()
	}
	r.t.Fatalf("no %d records came", n)
	return nil
}

// start runs a proxy that sends everything to the upstreams. Functions in with may change the rig before it serves.
func start(t *testing.T, engine string, settings Settings, upstreams ...string) *rig {
	return startWith(t, engine, settings, func(*rig) {}, upstreams...)
}

func startWith(t *testing.T, engine string, settings Settings, with func(r *rig), upstreams ...string) *rig {
	t.Helper()
	r := &rig{t: t, store: &route.Store{}, service: pool.NewService("s"), routes: []route.Route{
		{Name: "all", Service: "s"},
		{Name: "prefix", Host: "prefix.example.com", Path: "/pub", Service: "s"},
		{Name: "strip", Host: "strip.example.com", Path: "/pub", Strip: true, Service: "s"},
		{Name: "exact", Host: "exact.example.com", Path: "/pub", Exact: true, Service: "s"},
	}}
	with(r)
	r.publish(upstreams...)
	var err error
	if r.engine, err = netloop.New(netloop.Options{Engine: engine, Loops: cmp.Or(r.loops, 2), FirstByte: r.firstByte, Sockets: r.sockets,
		Stale:  func(key any) bool { return key.(interface{ Retired() bool }).Retired() },
		Closed: func(key any, d time.Duration) { key.(interface{ ClosedIdle(time.Duration) }).ClosedIdle(d) },
		Panic:  func(v any, stack []byte) { t.Errorf("panic: %v\n%s", v, stack) }}); err != nil {
		t.Fatal(err)
	}
	r.proxy = New(r.store, settings, r)
	r.proxy.Guard = r.guard
	ln, err := net.Listen("tcp", private)
	if err != nil {
		t.Fatal(err)
	}
	r.address = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { r.engine.Run(ctx); close(ended) }()
	var handler netloop.Handler = r.proxy
	if r.secure != nil {
		handler = secured{r.proxy, r.secure}
	}
	if _, err := r.engine.Listen(ln, handler, nil); err != nil {
		t.Fatal(err)
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
		if u := r.engine.Usage(); u.Buffers != 0 || u.Pipes != 0 {
			t.Errorf("not given back: %+v", u)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// secured stands for the door of a listener: it shakes hands and hands the connection on.
type secured struct {
	next   netloop.Handler
	config *tls.Config
}

func (s secured) Serve(c netloop.Conn) time.Duration {
	if _, passed := c.(netloop.Layer); passed {
		return s.next.Serve(c)
	}
	c.SetDeadline(c.Loop().Now().Add(patience))
	if _, err := netloop.Server(c, s.config); err != nil {
		return 0
	}
	return patience
}

// publish makes a table with these upstreams current.
func (r *rig) publish(upstreams ...string) {
	r.t.Helper()
	var members []pool.Member
	for i, u := range upstreams {
		key := pool.Key{Service: "s", ID: strconv.Itoa(i)}
		if path, ok := strings.CutPrefix(u, "unix:"); ok {
			key.Socket = path
		} else {
			key.Address = netip.MustParseAddrPort(u)
		}
		e := pool.NewEndpoint(key)
		members = append(members, pool.Member{Endpoint: e, Weight: 100})
	}
	p, err := pool.New(r.service, "round_robin", members)
	if err != nil {
		r.t.Fatal(err)
	}
	p.Settings = r.upstreams
	pools := map[int]*pool.Pool{0: p}
	if r.mirror != "" {
		e := pool.NewEndpoint(pool.Key{Service: "copies", Address: netip.MustParseAddrPort(r.mirror)})
		if pools[1], err = pool.New(pool.NewService("copies"), "", []pool.Member{{Endpoint: e, Weight: 100}}); err != nil {
			r.t.Fatal(err)
		}
	}
	router := route.NewRouter(r.routes, func(service string, _ route.Subset) int {
		if service == "copies" {
			return 1
		}
		return 0
	})
	r.store.Publish(r.store.Load().With(route.Change{Revision: 7, Router: router, Pools: pools}))
}

// patience is how long an answer may take before a test gives up: a bound against hanging, beside whatever else the machine does.
const patience = slower * 10 * time.Second

// dial opens a raw connection to the proxy.
func (r *rig) dial() *client {
	r.t.Helper()
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &client{t: r.t, Conn: c, r: bufio.NewReader(c)}
}

// client is a raw connection with a reader of responses.
type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatal(err)
	}
}

// answer reads one response with its body.
func (c *client) answer(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("reading the answer: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("reading the body: %v", err)
	}
	return resp, string(body)
}

// closed asserts that the proxy closes the connection without sending more.
func (c *client) closed() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if len(rest) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		c.t.Fatalf("connection not closed: %q, %v", rest, err)
	}
}

// private is where upstreams and the proxy listen: an address of this process alone, where there are many, so that nobody who dials a port
// that was another's before meets them.
var private = func() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1:0"
	}
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d:0", 1+pid>>16&0x3f, pid>>8&0xff, pid&0xff)
}()

// upstream is a raw server: each connection is given to serve, and everything read from it is recorded.
type upstream struct {
	address string
	ln      net.Listener
	mu      sync.Mutex
	seen    bytes.Buffer
	opened  int
	wg      sync.WaitGroup
}

func newUpstream(t *testing.T, serve func(c net.Conn, r *bufio.Reader)) *upstream {
	t.Helper()
	ln, err := net.Listen("tcp", private)
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{address: ln.Addr().String(), ln: ln}
	conns := map[net.Conn]bool{}
	u.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			u.mu.Lock()
			u.opened++
			conns[c] = true
			u.mu.Unlock()
			u.wg.Go(func() {
				defer c.Close()
				serve(c, bufio.NewReader(io.TeeReader(c, u)))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		u.mu.Lock()
		for c := range conns {
			c.Close()
		}
		u.mu.Unlock()
		u.wg.Wait()
	})
	return u
}

func (u *upstream) Write(b []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.seen.Write(b)
}

func (u *upstream) bytes() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.seen.String()
}

func (u *upstream) connections() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.opened
}

// echo answers every request with its method, target and body.
func echo(t *testing.T) *upstream {
	return newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			answer := req.Method + " " + req.RequestURI + " " + string(body)
			head := "HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(answer)) + "\r\nX-Saw-Host: " + req.Host + "\r\n\r\n"
			if req.Method == "HEAD" {
				answer = ""
			}
			if _, err := io.WriteString(c, head+answer); err != nil {
				return
			}
		}
	})
}

// scripted answers every request with these bytes and closes if last says so.
func scripted(t *testing.T, answer string, last bool) *upstream {
	return newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			if _, err := io.WriteString(c, answer); err != nil || last {
				return
			}
		}
	})
}

func descriptors(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc")
	}
	return len(list)
}
