//go:build linux && !race

package main

import (
	"bufio"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// cpu is the CPU time that a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	const sched = 2 // the clock of the scheduler, which is exact; see clock_getcpuclockid(3)
	var ts syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(^pid<<3|sched), uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		t.Fatalf("CPU time of %d: %v", pid, errno)
	}
	return time.Duration(ts.Nano())
}

// resident is the memory that a process has in use.
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// target is a daemon under attack.
type target struct {
	*child
	plain, secure string // its listeners
}

const harmConfig = `
engine: %s
etcd: {disabled: true}
listeners:
  - {address: "127.0.0.1:0"}
  - {address: "127.0.0.1:0", protocol: https, tls: {certificates: [{cert: %q, key: %q}]}}
admin: {address: "off"}
log: {access: off}
routes:
  - {name: r, service: s}
  - {name: interim, path: /interim, service: interim}
  - {name: endless, path: /endless, service: endless}
services:
  s: {instances: [{address: %q}]}
  interim: {instances: [{address: %q}]}
  endless: {instances: [{address: %q}]}
`

func (b *bench) target() *target {
	d := &target{child: spawn(b.t, "serve", "-c", b.config)}
	re := regexp.MustCompile(listening)
	until(b.t, "two listeners", func() bool { return len(re.FindAllString(d.out.String(), -1)) == 2 })
	all := re.FindAllStringSubmatch(d.out.String(), -1)
	d.plain, d.secure = all[0][1], all[1][1]
	return d
}

// stop ends the daemon at once: the next one is not to share the machine with it.
func (d *target) stop() {
	d.Process.Kill()
	<-d.done
}

// bench is what daemons are measured with.
type bench struct {
	t       *testing.T
	config  string
	release chan struct{} // one for each request to /hold that may end
	hostile atomic.Int64  // bytes that hostile instances have sent
}

func newBench(t *testing.T, engine string) *bench {
	b := &bench{t: t, release: make(chan struct{})}
	roomy(t)
	answer, piece := strings.Repeat("x", 1024), make([]byte, 64<<10)
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/hold":
			<-b.release
		case "/long":
			// As fast as from elsewhere: what a machine does that copies to itself all the time is another question.
			w.Header().Set("Content-Length", strconv.Itoa(10<<20))
			for range 10 << 20 / len(piece) {
				if _, err := w.Write(piece); err != nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
			return
		}
		io.WriteString(w, answer)
	}))
	up.Start()
	t.Cleanup(up.Close)
	secure := httptest.NewTLSServer(nil) // for its certificate
	secure.Close()
	pair := secure.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert := write(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})))
	keyFile := write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	interim := b.instance("", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
	endless := b.instance("HTTP/1.1 200 OK\r\n", "X-Field: "+strings.Repeat("a", 100)+"\r\n")
	b.config = write(t, "rota.yaml", fmt.Sprintf(harmConfig, engine, cert, keyFile, up.Listener.Addr(), interim, endless))
	return b
}

// roomy makes the table of descriptors of this process, which is that of the clients and instances, large at once: while the
// kernel makes it larger, everybody waits.
func roomy(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if fd, _, errno := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_DUPFD_CLOEXEC, 1<<13); errno == 0 {
		syscall.Close(int(fd))
	}
}

// instance is a hostile one: it answers with first, then with again until nobody takes it any more. It sends little more
// than a daemon may read, so that what the kernel holds does not count as sent.
func (b *bench) instance(first, again string) (address string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	answer := first + strings.Repeat(again, 80<<10/len(again))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					n, _ := io.WriteString(c, answer)
					b.hostile.Add(int64(n))
					io.Copy(io.Discard, c)
				}
			})
		}
	})
	b.t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// honestRequest is one as browsers send it: 1 KiB, most of it cookies.
var honestRequest = func(path string) string {
	head := "GET " + path + " HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: honest\r\nAccept: */*\r\nCookie: "
	return head + strings.Repeat("c", 1024-len(head)-4) + "\r\n\r\n"
}

// visit does requests on a connection: do(path) does one.
func visit(address string) (do func(path string) error, end func(), err error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, nil, err
	}
	r := bufio.NewReader(c)
	return func(path string) error {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, honestRequest(path)); err != nil {
			return err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 || n != 1024 {
			return fmt.Errorf("status %d, %d bytes, %v", resp.StatusCode, n, err)
		}
		return nil
	}, func() { c.Close() }, nil
}

// crowd does requests on so many connections as fast as it can.
func (d *target) crowd(connections, each int, path string) {
	var wg sync.WaitGroup
	for range connections {
		do, end, err := visit(d.plain)
		if err != nil {
			d.t.Fatal(err)
		}
		defer end()
		wg.Go(func() {
			for range each {
				if err := do(path); err != nil {
					d.t.Errorf("without an attack: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// crowdLong does so many requests for ten megabytes at a time.
func (d *target) crowdLong(connections int) {
	var wg sync.WaitGroup
	for range connections {
		wg.Go(func() {
			resp, err := http.Get("http://" + d.plain + "/long")
			if err != nil {
				d.t.Error(err)
				return
			}
			defer resp.Body.Close()
			if n, err := io.Copy(io.Discard, resp.Body); n != 10<<20 || err != nil {
				d.t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
	wg.Wait()
}

// honest are the figures of honest traffic.
type honest struct {
	requests, failed int
	p99, max         time.Duration
	cpu              time.Duration // of the daemon, in all
	took             time.Duration
	grown            int64 // memory of the daemon at its highest, less before
	first            error
}

// watch sends two hundred requests a second over twenty connections of their own, each due at its time whatever the others do,
// while attack runs, which ends when stop is closed.
func (d *target) watch(lasting time.Duration, attack func(stop chan struct{})) honest {
	const connections, rate = 20, 200
	h := honest{}
	d.crowd(8, 100, "/") // the heap and the pools are as they will be
	var mu sync.Mutex
	var wg, attacking sync.WaitGroup
	var took []time.Duration
	visitors := make([]func(string) error, connections)
	for i := range visitors {
		do, end, err := visit(d.plain)
		if err != nil {
			d.t.Fatal(err)
		}
		defer end()
		if err := do("/"); err != nil {
			d.t.Fatal(err)
		}
		visitors[i] = do
	}
	memory, used, began := resident(d.t, d.Process.Pid), cpu(d.t, d.Process.Pid), time.Now()
	stop := make(chan struct{})
	attacking.Go(func() { attack(stop) })
	for i, do := range visitors {
		wg.Go(func() {
			for due := began.Add(time.Duration(i) * time.Second / rate); due.Before(began.Add(lasting)); due = due.Add(connections * time.Second / rate) {
				time.Sleep(time.Until(due))
				err := do("/")
				mu.Lock()
				took = append(took, time.Since(due))
				if h.requests++; err != nil {
					h.failed++
					h.first = errors.Join(h.first, err)
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	measured := make(chan struct{})
	wg.Go(func() {
		defer close(measured)
		for look := time.NewTicker(20 * time.Millisecond); time.Since(began) < lasting; <-look.C {
			h.grown = max(h.grown, resident(d.t, d.Process.Pid)-memory)
		}
		h.cpu, h.took = cpu(d.t, d.Process.Pid)-used, time.Since(began)
	})
	wg.Wait()
	close(stop)
	attacking.Wait()
	slices.Sort(took)
	h.p99, h.max = took[(len(took)-1)*99/100], took[len(took)-1]
	return h
}

// assault is an attack in progress.
type assault struct {
	plain, secure string // the listeners of the daemon
	stop          chan struct{}
	wg            sync.WaitGroup
	sent          atomic.Int64 // bytes
	made          atomic.Int64 // connections
	done          atomic.Int64 // requests
}

// assaultSpec is what an attacker is to do, assaultSum what it has done.
type (
	assaultSpec struct {
		Plain, Secure, Name string
		Times               int
	}
	assaultSum struct{ Sent, Made, Done int64 }
)

// assaultEnv holds an assaultSpec.
const assaultEnv = "ROTA_TEST_ASSAULT"

func init() { roles["attacker"] = beAttacker }

// beAttacker attacks until the input ends.
func beAttacker() int {
	var spec assaultSpec
	if err := json.Unmarshal([]byte(os.Getenv(assaultEnv)), &spec); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	a := &assault{plain: spec.Plain, secure: spec.Secure, stop: make(chan struct{})}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(a.stop)
	}()
	for _, kind := range harmful() {
		if kind.name == spec.Name {
			kind.run(a, spec.Times)
		}
	}
	<-a.stop
	a.wg.Wait()
	json.NewEncoder(os.Stdout).Encode(assaultSum{a.sent.Load(), a.made.Load(), a.done.Load()})
	return 0
}

// attack lets a process of its own attack until stop is closed. It gets the time that nobody else on this machine wants:
// attackers have machines of their own, and are not to be seen as harm that the daemon does.
func (d *target) attack(name string, times int, stop chan struct{}) (sum assaultSum) {
	spec, err := json.Marshal(assaultSpec{d.plain, d.secure, name, times})
	if err != nil {
		d.t.Error(err)
		return sum
	}
	cmd := exec.Command("chrt", "--idle", "0", os.Args[0])
	cmd.Env = append(os.Environ(), "ROTA_TEST_MAIN=1", roleEnv+"=attacker", assaultEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		d.t.Error(err)
		return sum
	}
	go func() { <-stop; in.Close() }()
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &sum)
	}
	if err != nil {
		d.t.Errorf("the attacker: %v", err)
	}
	return sum
}

// dial makes a connection that is closed at the end; nil when that is there, or when the daemon takes none.
func (a *assault) dial(d *net.Dialer, address string) net.Conn {
	select {
	case <-a.stop:
		return nil
	default:
	}
	d.Timeout = 2 * time.Second
	c, err := d.Dial("tcp", address)
	if err != nil {
		return nil
	}
	a.made.Add(1)
	a.wg.Go(func() { <-a.stop; c.Close() })
	return c
}

func (a *assault) send(c net.Conn, s string) bool {
	n, err := io.WriteString(c, s)
	a.sent.Add(int64(n))
	return err == nil
}

// pause reports whether the attack goes on after it.
func (a *assault) pause(d time.Duration) bool {
	select {
	case <-a.stop:
		return false
	case <-time.After(d):
		return true
	}
}

// held opens n connections, one after the other with a pause, and lets each of them be held.
func (a *assault) held(n int, pause time.Duration, d *net.Dialer, address string, hold func(i int, c net.Conn)) {
	began := time.Now()
	for i := range n {
		c := a.dial(d, address)
		if c == nil {
			return
		}
		a.wg.Go(func() { hold(i, c) })
		if wait := time.Until(began.Add(time.Duration(i+1) * pause)); wait > time.Millisecond && !a.pause(wait) {
			return
		}
	}
}

// dribble sends first, then a piece at a time.
func (a *assault) dribble(first, piece string, each time.Duration) func(int, net.Conn) {
	return func(i int, c net.Conn) {
		a.send(c, first)
		for wait := each * time.Duration(i%100) / 100; a.pause(wait); wait = each {
			if !a.send(c, piece) {
				return
			}
		}
	}
}

// again has workers make connections, one after the other: send, read what comes, close.
func (a *assault) again(workers int, pause time.Duration, text func(i int) string) {
	for w := range workers {
		a.wg.Go(func() {
			for i := w; a.pause(pause); i += workers {
				c, err := net.Dial("tcp", a.plain)
				if err != nil {
					continue
				}
				a.made.Add(1)
				a.done.Add(1)
				c.SetDeadline(time.Now().Add(2 * time.Second))
				if s := text(i); s != "" {
					a.send(c, s)
					c.Read(make([]byte, 512))
				}
				c.Close()
			}
		})
	}
}

// The units that an attack is measured in.
const (
	aByte    = "byte"     // that attackers send, against one of honest requests of 1 KiB
	aSecond  = "conn·s"   // that a connection lasts, against an honest request. They send next to nothing
	aRequest = "request"  // or connection, against an honest request. Bytes would only say that it is a short one
	aLong    = "long one" // request for 10 MB, against an honest one of those
	mostHarm = 20         // times
	quick    = 2 * time.Second
)

// attack is a kind of attack. run starts it; it ends when the assault is stopped. The rates are such that the attacker,
// who shares the machine with everybody else, does not take it all.
type attack struct {
	name, unit string
	run        func(a *assault, n int) // n times as many connections as usual; it returns once it is under way
}

const getHead = "GET / HTTP/1.1\r\nHost: a\r\n"

func harmful() []attack {
	broken := []string{
		"GET / HTTP/1.1\r\n\r\n", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", getHead + "Content-Length: 5, 5\r\n\r\n", getHead + "X : y\r\n\r\n",
		getHead + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", getHead + "X: a\r\n b\r\n\r\n", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
		"GET / HTTP/3.0\r\nHost: a\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "GET / HTTP/1.1\nHost: a\n\n", getHead + "Expect: x\r\n\r\n",
	}
	url := "GET /" + strings.Repeat("a", 100_000) + " HTTP/1.1\r\nHost: a\r\n\r\n"
	many := getHead + strings.Repeat("X: a\r\n", 10_000) + "\r\n"
	commas := getHead + "Connection: a" + strings.Repeat(",", 55<<10) + "\r\n" + strings.Repeat("X: y\r\n", 90) + "\r\n"
	chunks := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+strings.Repeat("e", 200)+"\r\nx\r\n", 500) + "0\r\n\r\n"
	few := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nx\r\n", 5000) + "0\r\n\r\n"
	batch := strings.Repeat(getHead+"\r\n", 20)
	say := func(s string) func(int) string { return func(int) string { return s } }
	plain := &net.Dialer{}
	deafened := &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 2048) })
	}}
	return []attack{
		{"slowloris", aSecond, func(a *assault, n int) {
			a.held(1000*n, time.Millisecond, plain, a.plain, a.dribble(getHead+"X: ", "a", 5*time.Second))
		}},
		{"slow bodies", aSecond, func(a *assault, n int) {
			a.held(200*n, time.Millisecond, plain, a.plain, a.dribble("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n", "a", time.Second))
		}},
		{"slow readers of 10 MB", aLong, func(a *assault, n int) {
			a.held(20*n, 50*time.Millisecond, deafened, a.plain, func(_ int, c net.Conn) {
				a.send(c, "GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
				for b := make([]byte, 1); a.pause(100 * time.Millisecond); {
					if _, err := c.Read(b); err != nil {
						return
					}
				}
			})
		}},
		{"targets of 100 KB", aByte, func(a *assault, _ int) { a.again(4, 20*time.Millisecond, say(url)) }},
		{"heads of 10,000 fields", aByte, func(a *assault, _ int) { a.again(4, 20*time.Millisecond, say(many)) }},
		{"heads of 50,000 commas", aByte, func(a *assault, _ int) { a.again(4, 20*time.Millisecond, say(commas)) }},
		{"malformed heads", aRequest, func(a *assault, _ int) {
			a.again(8, 5*time.Millisecond, func(i int) string { return broken[i%len(broken)] })
		}},
		{"long chunk extensions", aByte, func(a *assault, _ int) { a.again(4, 20*time.Millisecond, say(chunks)) }},
		{"chunks of one byte", aByte, func(a *assault, _ int) { a.again(4, 20*time.Millisecond, say(few)) }},
		{"pipelined requests", aRequest, func(a *assault, n int) {
			a.held(20*n, time.Millisecond, plain, a.plain, func(_ int, c net.Conn) {
				a.wg.Go(func() {
					for r := bufio.NewReader(c); ; a.done.Add(1) {
						resp, err := http.ReadResponse(r, nil)
						if err != nil {
							return
						}
						io.Copy(io.Discard, resp.Body)
					}
				})
				for a.pause(200*time.Millisecond) && a.send(c, batch) {
				}
			})
		}},
		{"connections without a byte", aRequest, func(a *assault, _ int) { a.again(8, 2*time.Millisecond, say("")) }},
		{"instances that send 1xx", aRequest, func(a *assault, _ int) {
			a.again(4, 20*time.Millisecond, say("GET /interim HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
		}},
		{"instances with endless heads", aByte, func(a *assault, _ int) {
			a.again(4, 20*time.Millisecond, say("GET /endless HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
		}},
		{"stalled TLS handshakes", aSecond, func(a *assault, n int) {
			// The beginning of a ClientHello of 508 bytes.
			a.held(500*n, time.Millisecond, plain, a.secure, a.dribble("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "a", time.Second))
		}},
	}
}

// What attacks do to honest clients, and what they make the daemon spend, against what honest traffic makes it spend. Each
// meets a daemon of its own, with the timeouts that it has by default. ROTA_TEST_HARM=full is longer, with more connections, compares
// each with the moment before it, and does all of them on goroutines too, where else every fourth one has to do.
func TestHarm(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	eachEngine(t, harm)
}

func harm(t *testing.T, engine string) {
	lasting, times := quick, 1
	kinds := harmful()
	full := os.Getenv("ROTA_TEST_HARM") == "full"
	if full {
		lasting, times = 5*time.Second, 5
	} else if engine == "goroutines" {
		for i := range (len(kinds) + 3) / 4 {
			kinds[i] = kinds[4*i]
		}
		kinds = kinds[:(len(kinds)+3)/4]
	}
	b := newBench(t, engine)

	// What honest traffic costs: a request, one of its bytes, an open connection with a request in flight.
	d := b.target()
	const requests, longs, connections = 4000, 10, 500
	d.crowd(8, 200, "/")
	used := cpu(t, d.Process.Pid)
	d.crowd(8, requests/8, "/")
	request := float64(cpu(t, d.Process.Pid)-used) / requests
	used = cpu(t, d.Process.Pid)
	d.crowdLong(longs)
	long := float64(cpu(t, d.Process.Pid)-used) / longs
	nothing := func(stop chan struct{}) { <-stop }
	quiet := d.watch(lasting, nothing)
	d.stop()

	// The memory is looked at while all are in flight.
	d = b.target()
	d.crowd(8, 200, "/")
	before, held := resident(t, d.Process.Pid), make(chan struct{})
	go func() { defer close(held); d.crowd(connections, 1, "/hold") }()
	peak := before
	for settled := time.Now().Add(500 * time.Millisecond); time.Now().Before(settled); time.Sleep(10 * time.Millisecond) {
		peak = max(peak, resident(t, d.Process.Pid))
	}
	for range connections {
		b.release <- struct{}{}
	}
	<-held
	connection := float64(peak-before) / connections
	d.stop()
	t.Logf("honest: %.1f µs of CPU for a request, %.1f ns for a byte, %.1f ms for one of 10 MB, %.1f KiB for a connection; p99 %v, max %v, %.1f %% of a core; %d processors",
		request/1e3, request/1024, long/1e6, connection/1024, quiet.p99, quiet.max, 100*quiet.cpu.Seconds()/quiet.took.Seconds(), runtime.NumCPU())
	t.Logf("%-28s %6s %8s %7s  %-18s %-20s %s", "attack", "conns", "KiB sent", "CPU", "CPU times honest", "memory times honest", "honest: failed, p99, times")

	// measure does an attack on a daemon of its own and returns its line of the table, what is wrong with it, and how many times as
	// long honest requests took as without it: just before it, if anew.
	measure := func(kind attack, anew bool) (line string, wrong []string, longer float64) {
		d := b.target()
		defer d.stop()
		quiet := quiet
		if anew {
			quiet = d.watch(lasting, nothing)
		}
		var a assaultSum
		hostile := b.hostile.Load()
		h := d.watch(lasting, func(stop chan struct{}) { a = d.attack(kind.name, times, stop) })
		spent := max(0, float64(h.cpu)-float64(quiet.cpu)*h.took.Seconds()/quiet.took.Seconds())
		sent := float64(a.Sent + b.hostile.Load() - hostile)
		var amplified float64
		switch kind.unit {
		case aByte:
			amplified = spent / sent / (request / 1024)
		case aLong:
			amplified = spent / float64(a.Made) / long
		case aSecond:
			amplified = spent / (float64(a.Made) * h.took.Seconds()) / request
		default:
			amplified = spent / float64(a.Done) / request
		}
		memory := float64(h.grown) / float64(a.Made) / connection
		complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
		if a.Made == 0 || sent == 0 && kind.unit == aByte || a.Done == 0 && kind.unit == aRequest {
			complain("it did not take place")
		}
		if h.failed > 0 {
			complain("%d of %d honest requests failed: %.500v", h.failed, h.requests, h.first)
		}
		if h.p99 > max(2*quiet.p99, 20*time.Millisecond) {
			complain("the p99 of honest requests is %v, without it %v", h.p99, quiet.p99)
		}
		if amplified > mostHarm || memory > mostHarm {
			complain("%.1f times the CPU, %.1f times the memory of honest traffic", amplified, memory)
		}
		longer = float64(h.p99) / float64(quiet.p99)
		return fmt.Sprintf("%-28s %6d %8.0f %6.1f%%  %5.2f a %-10s  %5.2f (%5.1f MiB)    %d of %d, %v, %.1f", kind.name, a.Made, sent/1024,
			100*h.cpu.Seconds()/h.took.Seconds(), amplified, kind.unit, memory, float64(h.grown)/(1<<20),
			h.failed, h.requests, h.p99.Round(10*time.Microsecond), longer), wrong, longer
	}
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			line, wrong, longer := measure(kind, full)
			t.Log(line)
			if len(wrong) > 0 { // the machine may have been busy with something else: what is wrong is wrong twice
				t.Logf("once more: %s", strings.Join(wrong, "; "))
				line, wrong, longer = measure(kind, full)
				t.Log(line)
			}
			if all := []float64{longer}; full && longer >= 2 {
				for len(all) < 5 {
					line, _, again := measure(kind, true)
					t.Log(line)
					all = append(all, again)
				}
				slices.Sort(all)
				t.Logf("honest p99, times: the median of five is %.1f, of %.1f", all[2], all)
			}
			for _, w := range wrong {
				t.Error(w)
			}
		})
	}
}
