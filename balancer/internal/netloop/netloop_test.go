package netloop

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

type handlerFunc func(c Conn) time.Duration

func (f handlerFunc) Serve(c Conn) time.Duration { return f(c) }

// rig is an engine that serves one listener.
type rig struct {
	Engine
	t        *testing.T
	address  string
	listener Listener
	stop     func()
	panics   atomic.Int32
}

func eachEngine(t *testing.T, test func(t *testing.T, engine string)) {
	for _, e := range []string{Loops, Goroutines} {
		if e == Loops && !haveEpoll {
			continue
		}
		t.Run(e, func(t *testing.T) { test(t, e) })
	}
}

func start(t *testing.T, o Options, h handlerFunc) *rig {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, o, ln, h)
}

func startOn(t *testing.T, o Options, ln net.Listener, h handlerFunc) *rig {
	t.Helper()
	r := &rig{t: t}
	if o.Loops == 0 {
		o.Loops = 2
	}
	o.Panic = func(any, []byte) { r.panics.Add(1) }
	var err error
	if r.Engine, err = New(o); err != nil {
		t.Fatal(err)
	}
	r.address = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { r.Run(ctx); close(ended) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
		if u := r.Usage(); u.Buffers != 0 || u.Pipes != 0 {
			t.Errorf("not given back: %+v", u)
		}
	})
	t.Cleanup(r.stop)
	if r.listener, err = r.Listen(ln, h, nil); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) dial() net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("never: %s", what)
		}
	}
}

// echo sends back what one read returns.
func echo(c Conn) time.Duration {
	b := c.Loop().Buffer()
	defer c.Loop().Free(b)
	n, err := c.Read(b)
	if err != nil {
		return 0
	}
	if _, err := c.Write(b[:n]); err != nil {
		return 0
	}
	return time.Minute
}

func say(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(s))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != s {
		t.Fatalf("got %q, %v; want %q", b, err, s)
	}
}

func expectClosed(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("not closed: %d bytes, %v", n, err)
	}
}

func TestEcho(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		r := start(t, Options{Engine: engine}, echo)
		var wg sync.WaitGroup
		for i := range 50 {
			c := r.dial()
			wg.Go(func() {
				for j := range 20 {
					say(t, c, fmt.Sprintf("%d-%d", i, j))
				}
			})
		}
		wg.Wait()
		if open, _ := r.Connections(); open != 50 {
			t.Errorf("%d connections open, want 50", open)
		}
		r.eventually("nothing is being served", func() bool { _, n := r.Connections(); return n == 0 })
	})
}

// A write larger than any socket buffer waits for a slow reader, while the loop serves others.
func TestBackPressure(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		big := strings.Repeat("x", 20<<20)
		r := start(t, Options{Engine: engine, Loops: 1}, func(c Conn) time.Duration {
			var b [1]byte
			if _, err := c.Read(b[:]); err != nil {
				return 0
			}
			if b[0] == 'b' {
				io.WriteString(c, big)
			} else {
				c.Write(b[:])
			}
			return time.Minute
		})
		slow, quick := r.dial(), r.dial()
		io.WriteString(slow, "b")
		for range 100 {
			say(t, quick, "q")
		}
		if n, err := io.CopyN(io.Discard, slow, int64(len(big))); err != nil {
			t.Fatal(n, err)
		}
	})
}

func TestDeadlines(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		results := make(chan error, 2)
		r := start(t, Options{Engine: engine, FirstByte: 100 * time.Millisecond}, func(c Conn) time.Duration {
			b := make([]byte, 8<<20)
			if _, err := c.Read(b[:1]); err != nil {
				return 0
			}
			c.SetReadDeadline(time.Now().Add(60 * time.Millisecond))
			_, err := c.Read(b)
			results <- err
			c.SetWriteDeadline(time.Now().Add(60 * time.Millisecond))
			for err = nil; err == nil; {
				_, err = c.Write(b)
			}
			results <- err
			c.SetReadDeadline(time.Unix(1, 0))
			_, err = c.Read(b)
			results <- err
			return 0
		})
		silent := r.dial()
		began := time.Now()
		expectClosed(t, silent)
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("a silent connection was closed after %v", d)
		}
		c := r.dial()
		io.WriteString(c, "x")
		for _, what := range []string{"read", "write", "a deadline in the past"} {
			if err := <-results; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func TestIdle(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		r := start(t, Options{Engine: engine}, func(c Conn) time.Duration {
			if echo(c) == 0 {
				return 0
			}
			return 100 * time.Millisecond
		})
		c := r.dial()
		say(t, c, "one")
		say(t, c, "two")
		expectClosed(t, c)
	})
}

func TestPanicIsolation(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		r := start(t, Options{Engine: engine, Loops: 1}, func(c Conn) time.Duration {
			var b [1]byte
			if _, err := c.Read(b[:]); err != nil {
				return 0
			}
			switch b[0] {
			case 'p':
				panic("deliberate")
			case 't':
				c.Loop().Go(func() { panic("deliberate") }).Wait()
			}
			c.Write(b[:])
			return time.Minute
		})
		other := r.dial()
		say(t, other, "x")
		bad := r.dial()
		io.WriteString(bad, "p")
		expectClosed(t, bad)
		say(t, r.dial(), "t")
		say(t, other, "y")
		if n := r.panics.Load(); n != 2 {
			t.Errorf("%d panics reported, want 2", n)
		}
	})
}

// ReadWatching serves the first connection while the handler of the second one waits for it.
func TestReadWatching(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer up.Close()
		upstream := netip.MustParseAddrPort(up.Addr().String())
		results := make(chan error, 1)
		r := start(t, Options{Engine: engine}, func(c Conn) time.Duration {
			b := make([]byte, 16)
			if _, err := c.Read(b[:1]); err != nil {
				return 0
			}
			u, err := c.Loop().Dial(upstream, time.Second)
			if err != nil {
				t.Error(err)
				return 0
			}
			defer u.Close()
			n, err := u.ReadWatching(b, c)
			if err == nil && string(b[:n]) != "answer" {
				err = fmt.Errorf("got %q", b[:n])
			}
			results <- err
			return 0
		})
		for name, tc := range map[string]struct {
			then func(client *net.TCPConn, upstream net.Conn)
			want error
		}{
			"answer":          {func(_ *net.TCPConn, u net.Conn) { io.WriteString(u, "answer") }, nil},
			"client closes":   {func(c *net.TCPConn, _ net.Conn) { c.Close() }, ErrPeerGone},
			"client resets":   {func(c *net.TCPConn, _ net.Conn) { c.SetLinger(0); c.Close() }, ErrPeerGone},
			"upstream closes": {func(_ *net.TCPConn, u net.Conn) { u.Close() }, io.EOF},
			"pipelined, then closed": {func(c *net.TCPConn, u net.Conn) {
				io.WriteString(c, "more")
				c.CloseWrite()
				time.Sleep(20 * time.Millisecond)
				io.WriteString(u, "answer")
			}, nil},
		} {
			t.Run(name, func(t *testing.T) {
				c := r.dial()
				io.WriteString(c, "x")
				u, err := up.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				tc.then(c.(*net.TCPConn), u)
				select {
				case err := <-results:
					if !errors.Is(err, tc.want) {
						t.Errorf("got %v, want %v", err, tc.want)
					}
				case <-time.After(5 * time.Second):
					t.Fatal("still waiting")
				}
			})
		}
	})
}

func TestParkAndReuse(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer up.Close()
		var stale atomic.Bool
		upstream := netip.MustParseAddrPort(up.Addr().String())
		said := make(chan string, 1)
		r := start(t, Options{Engine: engine, Loops: 1, Stale: func(any) bool { return stale.Load() }}, func(c Conn) time.Duration {
			var b [1]byte
			if _, err := c.Read(b[:]); err != nil {
				return 0
			}
			l := c.Loop()
			switch b[0] {
			case 'd':
				u, err := l.Dial(upstream, time.Second)
				if err != nil {
					t.Error(err)
				}
				l.Park("key", u, time.Minute)
			case 's':
				u, _ := l.Dial(upstream, time.Second)
				l.Park("key", u, 60*time.Millisecond)
			case 'r':
				if u := l.Reuse("key"); u != nil {
					io.WriteString(u, "again")
					l.Park("key", u, time.Minute)
					said <- "reused"
				} else {
					said <- "none"
				}
			case 'k': // keep it for long: what is held of its key is given up meanwhile, if nothing else is parked
				u := l.Reuse("key")
				l.NewWaiter().Wait(l.Now().Add(1200*time.Millisecond), nil)
				l.Park("key", u, time.Minute)
			}
			c.Write(b[:])
			return time.Minute
		})
		c := r.dial()
		reuse := func(want string) {
			t.Helper()
			say(t, c, "r")
			if got := <-said; got != want {
				t.Fatalf("%s, want %s", got, want)
			}
		}
		accept := func() net.Conn {
			u, err := up.Accept()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { u.Close() })
			return u
		}
		reuse("none")
		say(t, c, "d")
		u := accept()
		reuse("reused")
		b := make([]byte, 5)
		if _, err := io.ReadFull(u, b); err != nil || string(b) != "again" {
			t.Fatal(string(b), err)
		}
		say(t, c, "k")
		reuse("reused")
		if _, err := io.ReadFull(u, b); err != nil || string(b) != "again" {
			t.Fatal(string(b), err)
		}
		u.Write([]byte("unasked")) // bytes on an idle connection end it
		expectClosedOrReset(t, u)
		reuse("none")

		say(t, c, "d")
		accept().Close() // so does closing
		r.eventually("the parked connection is dropped", func() bool { say(t, c, "r"); return <-said == "none" })

		say(t, c, "s") // and time
		expectClosedOrReset(t, accept())
		reuse("none")

		say(t, c, "d") // and being stale
		u = accept()
		stale.Store(true)
		expectClosedOrReset(t, u)
		reuse("none")
	})
}

// What comes on a connection right after it was parked is not taken for an answer to who reuses it before any event was looked at, and
// one of which it is known that nothing came is preferred to that.
func TestReuseUnread(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer up.Close()
		upstream := netip.MustParseAddrPort(up.Addr().String())
		parked, spoken := make(chan struct{}), make(chan struct{})
		said := make(chan string, 1)
		r := start(t, Options{Engine: engine, Loops: 1}, func(c Conn) time.Duration {
			var b [1]byte
			if _, err := c.Read(b[:]); err != nil {
				return 0
			}
			l := c.Loop()
			u, err := l.Dial(upstream, time.Second)
			if err != nil {
				t.Error(err)
				return 0
			}
			l.Park("key", u, time.Minute)
			if b[0] == 'q' {
				c.Write(b[:])
				return time.Minute
			}
			parked <- struct{}{}
			<-spoken // which holds up the loop
			switch got := l.Reuse("key"); got {
			case nil:
				said <- "none"
			case u:
				said <- "the poisoned one"
				got.Close()
			default:
				said <- "the other one"
				got.Close()
			}
			c.Write(b[:])
			return time.Minute
		})
		c := r.dial()
		poison := func() {
			io.WriteString(c, "p")
			u, err := up.Accept()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { u.Close() })
			<-parked
			io.WriteString(u, "poison")
			spoken <- struct{}{}
			io.ReadFull(c, make([]byte, 1))
		}
		poison()
		if got := <-said; got != "none" {
			t.Errorf("got %s", got)
		}
		say(t, c, "q")
		u, err := up.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		poison()
		if got := <-said; got != "the other one" {
			t.Errorf("got %s", got)
		}
	})
}

func expectClosedOrReset(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("not closed")
	}
}

func TestDialFailures(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		dead := netip.MustParseAddrPort(ln.Addr().String())
		ln.Close()
		errs := make(chan error, 1)
		r := start(t, Options{Engine: engine}, func(c Conn) time.Duration {
			c.Read(make([]byte, 1))
			_, err := c.Loop().Dial(dead, time.Second)
			errs <- err
			return 0
		})
		io.WriteString(r.dial(), "x")
		if err := <-errs; err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("got %v", err)
		}
	})
}

func TestDetach(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		detached := make(chan net.Conn, 1)
		r := start(t, Options{Engine: engine}, func(c Conn) time.Duration {
			n, err := c.Detach()
			if err != nil {
				t.Error(err)
			}
			detached <- n
			return time.Minute
		})
		c := r.dial()
		io.WriteString(c, "hello")
		d := <-detached
		defer d.Close()
		b := make([]byte, 5)
		if _, err := io.ReadFull(d, b); err != nil || string(b) != "hello" {
			t.Fatalf("got %q, %v", b, err)
		}
		io.WriteString(d, "world")
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "world" {
			t.Fatalf("got %q, %v", b, err)
		}
		if open, _ := r.Connections(); open != 0 {
			t.Errorf("%d connections still counted", open)
		}
	})
}

// crypto/tls runs over a Conn as it is.
func TestTLS(t *testing.T) {
	cert, roots := certificate(t)
	eachEngine(t, func(t *testing.T, engine string) {
		r := start(t, Options{Engine: engine}, func(c Conn) time.Duration {
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
			c.SetDeadline(time.Now().Add(5 * time.Second))
			b := make([]byte, 4<<10)
			for {
				n, err := s.Read(b)
				if err != nil {
					if err != io.EOF && !errors.Is(err, net.ErrClosed) { // closed: the test is over
						t.Error(err)
					}
					return 0
				}
				s.Write(b[:n])
			}
		})
		var wg sync.WaitGroup
		for i := range 8 {
			c := tls.Client(r.dial(), &tls.Config{RootCAs: roots, ServerName: "test"})
			wg.Go(func() {
				for j := range 20 {
					say(t, c, strings.Repeat(fmt.Sprint(i, j, " "), 100+j))
				}
				c.Close()
			})
		}
		wg.Wait()
	})
}

// certificate makes a certificate for the name "test".
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

func TestAbort(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		r := start(t, Options{Engine: engine}, func(c Conn) time.Duration {
			c.Read(make([]byte, 1))
			io.WriteString(c, "part")
			c.Abort()
			return time.Minute
		})
		c := r.dial()
		io.WriteString(c, "x")
		if _, err := io.ReadAll(c); err == nil {
			t.Error("an aborted connection ended cleanly")
		}
	})
}

// A connection can be read by one coroutine and written by another, and closing wakes both.
func TestTwoCoroutines(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		r := start(t, Options{Engine: engine}, func(c Conn) time.Duration {
			c.Read(make([]byte, 1))
			reader := c.Loop().Go(func() {
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("reader: %v", err)
				}
			})
			io.WriteString(c, "ok")
			closer := c.Loop().Go(func() { c.Close() })
			closer.Wait()
			reader.Wait()
			return time.Minute
		})
		c := r.dial()
		io.WriteString(c, "x")
		if b, err := io.ReadAll(c); string(b) != "ok" || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	})
}

func TestCloseIdleAndListener(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		release := make(chan struct{})
		r := start(t, Options{Engine: engine, Loops: 2}, func(c Conn) time.Duration {
			var b [1]byte
			if _, err := c.Read(b[:]); err != nil {
				return 0
			}
			if b[0] == 'w' {
				// Test code may wait here although a handler may not: nothing else is to be served.
				<-release
			}
			c.Write(b[:])
			return time.Minute
		})
		idle := r.dial()
		say(t, idle, "i")
		r.eventually("idle", func() bool { _, n := r.Connections(); return n == 0 })
		if err := r.listener.Close(); err != nil {
			t.Fatal(err)
		}
		r.eventually("refused", func() bool {
			c, err := net.Dial("tcp", r.address)
			if err == nil {
				c.Close()
			}
			return err != nil
		})
		r.CloseIdle()
		expectClosed(t, idle)
		close(release)
	})
}

// Accepted connections are spread over the loops, but for a few that are not worth a hop ([loop.heir]).
func TestBalancedAccept(t *testing.T) {
	if !haveEpoll {
		t.Skip("loops only")
	}
	var per [2]atomic.Int32
	r := start(t, Options{Engine: Loops, Loops: 2}, func(c Conn) time.Duration {
		per[c.Loop().Index()].Add(1)
		return echo(c)
	})
	for range 40 {
		say(t, r.dial(), "x")
	}
	if a, b := per[0].Load(), per[1].Load(); a+b != 40 || max(a, b)-min(a, b) > 4 {
		t.Errorf("%d and %d connections", a, b)
	}
}

// Stopping closes what is open and ends what waits.
func TestStop(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		waiting := make(chan struct{}, 1)
		ended := make(chan error, 1)
		r := start(t, Options{Engine: engine}, func(c Conn) time.Duration {
			var b [1]byte
			c.Read(b[:])
			waiting <- struct{}{}
			_, err := c.Read(b[:])
			ended <- err
			return time.Minute
		})
		c, idle := r.dial(), r.dial()
		io.WriteString(c, "x")
		<-waiting
		r.stop()
		if err := <-ended; err == nil {
			t.Error("a read went on after the engine had stopped")
		}
		expectClosed(t, c)
		expectClosed(t, idle)
	})
}

// After a burst the coroutines and buffers it needed are given up again.
func TestShrink(t *testing.T) {
	if !haveEpoll {
		t.Skip("loops only")
	}
	const burst = 300
	var in atomic.Int32
	var all atomic.Bool
	r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
		b := c.Loop().Buffer()
		defer c.Loop().Free(b)
		if _, err := c.Read(b); err != nil {
			return 0
		}
		in.Add(1)
		for !all.Load() { // each is in flight until the last has come
			c.SetReadDeadline(c.Loop().Now().Add(20 * time.Millisecond)) // more often, and the loop does nothing else
			if _, err := c.Read(b[:1]); !errors.Is(err, os.ErrDeadlineExceeded) {
				return 0 // the test is over
			}
		}
		c.SetReadDeadline(time.Time{})
		c.Write([]byte("x"))
		return time.Minute
	})
	before := runtime.NumGoroutine() // those that an earlier test is about to lose among them
	var conns []net.Conn
	for range burst {
		c := r.dial()
		io.WriteString(c, "x")
		conns = append(conns, c)
	}
	r.eventually("all are in flight", func() bool { return in.Load() == burst })
	if n := runtime.NumGoroutine(); n < burst {
		t.Fatalf("%d goroutines for %d exchanges in flight", n, burst)
	}
	all.Store(true)
	for _, c := range conns {
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before+burst/10; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines left, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// The keep-alive path allocates nothing.
func TestNoAllocations(t *testing.T) {
	if !haveEpoll || raceEnabled {
		t.Skip("loops without the race detector only")
	}
	r := start(t, Options{Engine: Loops, Loops: 1}, echo)
	c := r.dial()
	b := make([]byte, 4)
	exchange := func() {
		c.Write(b)
		io.ReadFull(c, b)
	}
	for range 100 {
		exchange()
	}
	// Not testing.AllocsPerRun: it leaves one P, which the waiting loop does not give away.
	const runs = 2000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		exchange()
	}
	runtime.ReadMemStats(&after)
	if n := after.Mallocs - before.Mallocs; n > runs/10 {
		t.Errorf("%d allocations in %d exchanges", n, runs)
	}
}

func TestUnknownEngine(t *testing.T) {
	if _, err := New(Options{Engine: "steam"}); err == nil || !strings.Contains(err.Error(), Goroutines) {
		t.Errorf("got %v", err)
	}
}

// A loop that is stuck does not answer; the others do not hide it.
func TestAnswer(t *testing.T) {
	e, err := New(Options{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := e.Answer(short); err != nil {
		t.Errorf("running: %v", err)
	}
	if l, ok := e.(interface{ stick(until <-chan struct{}) }); ok {
		free := make(chan struct{})
		l.stick(free)
		moment, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if err := e.Answer(moment); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stuck: %v", err)
		}
		close(free)
		if err := e.Answer(short); err != nil {
			t.Errorf("free again: %v", err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Lag shows that what is ready has to wait for a processor, and fades when it has not any more.
func TestLag(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		r := start(t, Options{Engine: engine}, echo)
		say(t, r.dial(), "x")
		r.eventually("no lag", func() bool { return r.Lag() < 100*time.Millisecond })
		var hogs sync.WaitGroup
		end := make(chan struct{})
		for range 200 * runtime.GOMAXPROCS(0) {
			hogs.Go(func() {
				for n := 0; ; n++ {
					if n%1000 == 0 {
						select {
						case <-end:
							return
						default:
						}
					}
				}
			})
		}
		if engine == Goroutines { // loops have threads of their own
			r.eventually("lag", func() bool { return r.Lag() > 5*time.Millisecond })
		}
		close(end)
		hogs.Wait()
		r.eventually("no lag any more", func() bool { return r.Lag() < 100*time.Millisecond })
	})
}
