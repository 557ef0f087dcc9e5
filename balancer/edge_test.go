package balancer

import (
	"bufio"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/config"
)

// counted is an upstream that counts the requests it gets.
func counted(t *testing.T) (address string, requests *atomic.Int32) {
	requests = new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		io.WriteString(w, "from "+r.Header.Get("X-Forwarded-For"))
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), requests
}

// v2 is a block of the PROXY protocol, version 2.
func v2(command, family byte, length int, content string) string {
	return "\r\n\r\n\x00\r\nQUIT\n" + string([]byte{command, family, byte(length >> 8), byte(length)}) + content
}

// A PROXY protocol header from where none is expected, and a malformed one from where it is, ends the connection, and what
// stands behind it is never taken for a request (HH6).
func TestProxyHeaders(t *testing.T) {
	const (
		request = "GET /smuggled HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
		four    = "\xcb\x00\x71\x09\xc6\x33\x64\x01\x15\xb3\x00\x50"
	)
	good := []string{"PROXY TCP4 203.0.113.9 198.51.100.1 5555 80\r\n", v2(0x21, 0x11, 12, four)}
	bad := []string{
		"", "PROXY\r\n", "PROXY \r\n", "proxy TCP4 203.0.113.9 198.51.100.1 5555 80\r\n", "PROXY TCP4\r\n", "PROXY TCP4 203.0.113.9 198.51.100.1 5555\r\n",
		"PROXY TCP4 203.0.113.9 198.51.100.1 5555 80 \r\n", "PROXY TCP4  203.0.113.9 198.51.100.1 5555 80\r\n", "PROXY TCP4 203.0.113.9 198.51.100.1 5555 80\n",
		"PROXY TCP4 203.0.113.256 198.51.100.1 5555 80\r\n", "PROXY TCP4 203.0.113.09 198.51.100.1 5555 80\r\n", "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
		"PROXY TCP6 203.0.113.9 198.51.100.1 5555 80\r\n", "PROXY TCP4 localhost 198.51.100.1 5555 80\r\n", "PROXY TCP4 203.0.113.9 198.51.100.1 65536 80\r\n",
		"PROXY TCP4 203.0.113.9 198.51.100.1 -1 80\r\n", "PROXY TCP4 203.0.113.9 198.51.100.1 0x5 80\r\n", "PROXY UDP4 203.0.113.9 198.51.100.1 5555 80\r\n",
		"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n", "PROXY UNKNOWN" + strings.Repeat(" x", 60) + "\r\n", " PROXY UNKNOWN\r\n", "PROXY\tUNKNOWN\r\n",
		"PROXY TCP4 203.0.113.9\x00 198.51.100.1 5555 80\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\nPROXY UNKNOWN\r\n",
		v2(0x11, 0x11, 12, four), v2(0x31, 0x11, 12, four), v2(0x22, 0x11, 12, four), v2(0x21, 0x12, 12, four), v2(0x21, 0x41, 12, four),
		v2(0x21, 0x11, 11, four[1:]), v2(0x21, 0x21, 12, four), v2(0x21, 0x11, 14, four+"\x01\x00"), v2(0x21, 0x11, 0xffff, four), v2(0x20, 0, 1, "\x01"),
		strings.Replace(v2(0x21, 0x11, 12, four), "QUIT", "QUIX", 1), "\r\n\r\n",
	}
	unbelieved := []string{ // those that name nobody
		"PROXY UNKNOWN\r\n", "PROXY UNKNOWN 203.0.113.9 198.51.100.1 5555 80\r\n", "PROXY TCP6 2001:db8::1 2001:db8::2 5555 80\r\n",
		v2(0x20, 0, 0, ""), v2(0x21, 0, 0, ""), v2(0x21, 0x21, 36, strings.Repeat("\x20\x01\x0d\xb8", 8)+"\x15\xb3\x00\x50"),
	}
	eachEngine(t, func(t *testing.T, engine string) {
		upstream, requests := counted(t)
		_, roots, certFile, keyFile := pair(t, "a")
		secure := config.TLS{Certificates: []config.Certificate{{Cert: certFile, Key: keyFile}}}
		d := run(t, nil, func(c *config.Config) {
			c.Engine, c.Etcd.Disabled = engine, true
			c.Listeners = []config.Listener{
				{Address: "127.0.0.1:0", Protocol: "http", ProxyProtocol: []string{"127.0.0.0/8"}},
				{Address: "127.0.0.1:0", Protocol: "http", ProxyProtocol: []string{"192.0.2.0/24"}},
				{Address: "127.0.0.1:0", Protocol: "https", ProxyProtocol: []string{"127.0.0.0/8"}, TLS: secure},
				{Address: "127.0.0.1:0", Protocol: "http"},
				{Address: "127.0.0.1:0", Protocol: "https", TLS: secure},
				{Address: "127.0.0.1:0", Protocol: "https", ProxyProtocol: []string{"192.0.2.0/24"}, TLS: secure},
			}
			c.Routes = []config.Route{{Name: "r", Service: "s"}}
			c.Services = map[string]config.Service{"s": static(upstream)}
		})
		// answers is what comes back until the connection ends. The pieces are sent one by one.
		answers := func(listener int, pieces ...string) string {
			t.Helper()
			c, err := net.Dial("tcp", d.Addresses()[listener].String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			for _, piece := range pieces {
				io.WriteString(c, piece)
			}
			got, err := io.ReadAll(c)
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatalf("%q: the connection stays open", pieces)
			}
			return string(got)
		}
		for _, header := range good {
			if got := answers(0, header+request); !strings.HasSuffix(got, "from 203.0.113.9") {
				t.Errorf("%q: answered %q", header, got)
			}
		}
		before := requests.Load()
		for _, header := range bad {
			if got := answers(0, header+request); got != "" {
				t.Errorf("%q: answered %.80q", header, got)
			}
		}
		// From elsewhere, and where none is expected at all, it is no header, and nothing behind it is a request: what looks like a
		// header is refused as a request that is none, once, or, where TLS is due, not answered at all, and the connection ends.
		for listener, refused := range map[int]string{1: "HTTP/1.1 400 ", 3: "HTTP/1.1 400 ", 4: "", 5: ""} {
			all := append(unbelieved, good...)
			for _, header := range bad {
				if strings.HasPrefix(header, "PROXY") || strings.HasPrefix(header, "\r\n\r\n\x00") {
					all = append(all, header)
				}
			}
			for _, header := range all {
				for _, pieces := range [][]string{{header + request}, {header, request}, strings.Split(header+request, "")} {
					got := answers(listener, pieces...)
					switch {
					case refused == "" && got == "":
					case refused == "" || !strings.HasPrefix(got, refused) || strings.Count(got, "HTTP/1.1") > 1 || !strings.Contains(got, "\r\nConnection: close\r\n"):
						t.Errorf("listener %d: %q is answered %q", listener, pieces[0], got)
					}
				}
			}
		}
		if n := requests.Load() - before; n > 0 {
			t.Errorf("%d requests behind bad headers went through", n)
		}
		// Behind a header may stand TLS; it is not asked for twice, and such a connection ends as others do.
		for range 3 {
			for _, header := range good {
				c, err := net.Dial("tcp", d.Addresses()[2].String())
				if err != nil {
					t.Fatal(err)
				}
				c.SetDeadline(time.Now().Add(10 * time.Second))
				io.WriteString(c, header)
				s := tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "a"})
				io.WriteString(s, request)
				if got, err := io.ReadAll(s); err != nil || !strings.HasSuffix(string(got), "from 203.0.113.9") {
					t.Errorf("TLS behind %q: %q, %v", header, got, err)
				}
				c.Close()
			}
			if got := answers(2, good[0]+request); strings.HasPrefix(got, "HTTP/1.1 200") {
				t.Errorf("plaintext behind a header where TLS is due: %q", got)
			}
		}
	})
}

// pieces cuts what is written first, a ClientHello, into TLS records of a few bytes of payload, and each of them into single bytes.
type pieces struct {
	net.Conn
	done bool
}

func (p *pieces) Write(b []byte) (int, error) {
	if p.done {
		return p.Conn.Write(b)
	}
	p.done = true
	for payload := b[5:]; len(payload) > 0; {
		n := min(7, len(payload))
		for _, one := range append([]byte{b[0], b[1], b[2], 0, byte(n)}, payload[:n]...) {
			if _, err := p.Conn.Write([]byte{one}); err != nil {
				return 0, err
			}
		}
		payload = payload[n:]
	}
	return len(b), nil
}

// Who must show a certificate must do so by whatever name, in whatever pieces and with whatever ticket it comes, and whatever
// Host it asks for: the policy is the listener's, not the name's (HH7).
func TestServerNames(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		upstream, requests := counted(t)
		mine, roots, certFile, keyFile := pair(t, "shop.example", "*.wild.example", "xn--bcher-kva.example")
		_, otherRoots, otherCert, otherKey := pair(t, "other.example")
		certificates := []config.Certificate{{Cert: certFile, Key: keyFile}, {Cert: otherCert, Key: otherKey}}
		d := run(t, nil, func(c *config.Config) {
			c.Engine, c.Etcd.Disabled = engine, true
			c.Listeners = []config.Listener{
				{Address: "127.0.0.1:0", Protocol: "https", TLS: config.TLS{Certificates: certificates, ClientCA: certFile, ClientAuth: "required"}},
				{Address: "127.0.0.1:0", Protocol: "https", TLS: config.TLS{Certificates: certificates}},
			}
			c.Routes = []config.Route{{Name: "r", Service: "s"}}
			c.Services = map[string]config.Service{"s": static(upstream)}
		})
		ask := func(listener int, cfg *tls.Config, host string, cut bool) (int, error) {
			t.Helper()
			raw, err := net.Dial("tcp", d.Addresses()[listener].String())
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			raw.SetDeadline(time.Now().Add(10 * time.Second))
			c := tls.Client(&pieces{raw, !cut}, cfg)
			fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
			return resp.StatusCode, err
		}
		tickets := tls.NewLRUClientSessionCache(8)
		if status, err := ask(1, &tls.Config{RootCAs: roots, ServerName: "shop.example", ClientSessionCache: tickets}, "shop.example", false); status != 200 {
			t.Fatal(status, err)
		}
		requests.Store(0)
		for _, name := range []string{"shop.example", "SHOP.Example", "shop.example.", "a.wild.example", "xn--bcher-kva.example", "other.example", "nobody.example", ""} {
			for _, host := range []string{"shop.example", "SHOP.EXAMPLE.", "other.example", "nobody.example:444"} {
				for _, cut := range []bool{false, true} {
					verify := roots
					if name == "other.example" {
						verify = otherRoots
					}
					cfg := &tls.Config{RootCAs: verify, ServerName: strings.TrimSuffix(name, "."), ClientSessionCache: tickets}
					if name == "" || name == "nobody.example" {
						cfg.InsecureSkipVerify = true // the first certificate is shown
					}
					if status, err := ask(0, cfg, host, cut); err == nil {
						t.Errorf("SNI %q, Host %q, in pieces %v: %d without a certificate", name, host, cut, status)
					}
					with := cfg.Clone()
					with.Certificates, with.ClientSessionCache = []tls.Certificate{mine}, nil
					if status, err := ask(0, with, host, cut); status != 200 || err != nil {
						t.Errorf("SNI %q, Host %q, in pieces %v: %d, %v with a certificate", name, host, cut, status, err)
					}
				}
			}
		}
		if n := requests.Load(); n != 8*4*2 {
			t.Errorf("%d requests went through", n)
		}
	})
}

// below is what TLS is spoken over. crypto/tls takes the end of that for the end of what is said, if it is at the end of a record;
// below knows better.
type below struct {
	net.Conn
	ended atomic.Bool
}

func (b *below) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if err == io.EOF {
		b.ended.Store(true)
	}
	return n, err
}

// unsaid is the end of a TLS connection without a close_notify, of which nil was read.
func unsaid(c net.Conn) bool {
	s, secure := c.(*tls.Conn)
	return secure && s.NetConn().(*below).ended.Load()
}

// listenBelow accepts such connections.
type listenBelow struct{ net.Listener }

func (l listenBelow) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &below{Conn: c}, nil
}

// hello is a WebSocket through the daemon, over TLS where there is a configuration of it, on which a line comes back.
func hello(t *testing.T, d *daemon, secure *tls.Config) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if secure != nil {
		c = tls.Client(&below{Conn: c}, secure)
	}
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	r := bufio.NewReader(c)
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	io.WriteString(c, "ping\n")
	if line, err := r.ReadString('\n'); err != nil || line != "ping\n" {
		t.Fatal(line, err)
	}
	return c, r
}

// Tunnels end when nothing moves for the time that a tunnel may be silent, and when the daemon is told to stop: then shortly
// before the deadline, cleanly on both sides, so that the daemon ends in time. Over TLS a clean end is one that is said
// (close_notify).
func TestTunnels(t *testing.T) {
	_, roots, certFile, keyFile := pair(t, "a")
	theirs, _, theirFile, _ := pair(t, "s")
	var all sync.WaitGroup // they wait most of the time: more of them at once than there are processors
	defer all.Wait()
	for _, w := range []struct {
		id           string
		client, inst bool // TLS on that side
	}{{"ws", false, false}, {"wss", true, false}, {"ws to TLS", false, true}, {"wss to TLS", true, true}} {
		for _, engine := range []string{"loops", "goroutines"} {
			all.Go(func() {
				t.Run(w.id+" "+engine, func(t *testing.T) {
					var ends sync.WaitGroup
					var endings [2]atomic.Int32 // clean ones, others
					up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
						c, rw, err := w.(http.Hijacker).Hijack()
						if err != nil {
							t.Error(err)
							return
						}
						defer c.Close()
						ends.Add(1)
						defer ends.Done()
						fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
						if _, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{rw}); err == nil && !unsaid(c) {
							endings[0].Add(1)
						} else {
							endings[1].Add(1)
						}
					}))
					if w.inst {
						up.Listener = listenBelow{up.Listener}
						up.TLS = &tls.Config{Certificates: []tls.Certificate{theirs}, NextProtos: []string{"http/1.1"}}
						up.StartTLS()
					} else {
						up.Start()
					}
					t.Cleanup(up.Close)
					settings := func(grace, idle time.Duration) func(c *config.Config) {
						return func(c *config.Config) {
							c.Engine, c.Etcd.Disabled, c.Grace, c.Timeouts.Tunnel = engine, true, grace, idle
							c.Routes = []config.Route{{Name: "r", Service: "s"}}
							s := static(up.Listener.Addr().String())
							if w.inst {
								s.Protocol, s.TLS = "https", config.UpstreamTLS{CA: theirFile, ServerName: "s"}
							}
							c.Services = map[string]config.Service{"s": s}
							if w.client {
								c.Listeners[0].Protocol = "https"
								c.Listeners[0].TLS = config.TLS{Certificates: []config.Certificate{{Cert: certFile, Key: keyFile}}}
							}
						}
					}
					var secure *tls.Config
					if w.client {
						secure = &tls.Config{RootCAs: roots, ServerName: "a"}
					}
					clean := func(what string, c net.Conn, r io.Reader, tunnels int32) {
						t.Helper()
						if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 || unsaid(c) {
							t.Errorf("%s: %q, %v, unsaid %v", what, rest, err, unsaid(c))
						}
						ends.Wait()
						if good, bad := endings[0].Swap(0), endings[1].Swap(0); good != tunnels || bad != 0 {
							t.Errorf("%s: the instance did not see a clean end", what)
						}
					}

					const idle = 600 * time.Millisecond
					d := run(t, nil, settings(10*time.Second, idle))
					c, r := hello(t, d, secure)
					for began := time.Now(); time.Since(began) < 2*idle; time.Sleep(idle / 6) { // it is not silent
						io.WriteString(c, "more\n")
						if line, err := r.ReadString('\n'); err != nil || line != "more\n" {
							t.Fatal(line, err)
						}
					}
					quiet := time.Now()
					clean("idle", c, r, 1)
					if took := time.Since(quiet); took < idle/2 {
						t.Errorf("ended after %v of silence, %v are allowed", took, idle)
					}
					c.Close()

					const grace = 2 * time.Second
					d = run(t, nil, settings(grace, time.Hour))
					c, r = hello(t, d, secure)
					ended := make(chan error, 1)
					go func() { ended <- d.stop() }()
					for !d.draining.Load() {
						time.Sleep(time.Millisecond)
					}
					io.WriteString(c, "late\n") // it goes on while others finish
					if line, err := r.ReadString('\n'); err != nil || line != "late\n" {
						t.Errorf("while draining: %q, %v", line, err)
					}
					clean("drained", c, r, 1)
					if err := <-ended; err != nil {
						t.Errorf("the daemon ended with %v", err)
					}
				})
			})
		}
	}
}

// The bound on the connections of a client is one on those it has behind an L4 balancer, not on that balancer.
func TestClientLimitBehindBalancer(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		upstream, _ := counted(t)
		d := run(t, nil, func(c *config.Config) {
			c.Engine, c.Etcd.Disabled = engine, true
			c.Listeners = []config.Listener{{Address: "127.0.0.1:0", Protocol: "http", ProxyProtocol: []string{"127.0.0.0/8"}, MaxConnectionsPerClient: 2}}
			c.Routes = []config.Route{{Name: "r", Service: "s"}}
			c.Services = map[string]config.Service{"s": static(upstream)}
		})
		ask := func(client string) (net.Conn, error) {
			t.Helper()
			c, err := net.Dial("tcp", d.Addresses()[0].String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprintf(c, "PROXY TCP4 %s 198.51.100.1 5555 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", client)
			_, err = http.ReadResponse(bufio.NewReader(c), nil)
			return c, err
		}
		first, err := ask("203.0.113.1")
		for _, client := range []string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.3"} {
			if _, e := ask(client); e != nil {
				err = e
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ask("203.0.113.1"); err == nil {
			t.Error("a third connection of one client")
		}
		first.Close()
		for deadline := time.Now().Add(10 * time.Second); ; {
			if _, err := ask("203.0.113.1"); err == nil {
				break
			} else if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	})
}

// A connection that does not get as far as a request leaves a reason.
func TestFailedConnections(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		_, _, cert, key := pair(t, "shop.example")
		d := run(t, nil, func(c *config.Config) {
			c.Engine, c.Etcd.Disabled, c.Timeouts.Handshake = engine, true, 200*time.Millisecond
			c.Listeners = []config.Listener{
				{Address: "127.0.0.1:0", Protocol: "https", TLS: config.TLS{Certificates: []config.Certificate{{Cert: cert, Key: key}}}},
				{Address: "127.0.0.1:0", Protocol: "http", ProxyProtocol: []string{"127.0.0.0/8"}},
			}
		})
		for i, tc := range []struct {
			listener int
			says     string
			closes   bool
			reason   string
		}{
			{0, "GET / HTTP/1.1\r\n\r\n", false, "tls"}, {0, "\x16", true, "closed"}, {0, "\x16\x03\x01", false, "timeout"},
			{1, "GET / HTTP/1.1\r\n\r\n", false, "proxy_header"}, {1, "PROXY ", true, "closed"}, {1, "PROXY ", false, "timeout"},
		} {
			c, err := net.Dial("tcp", d.Addresses()[tc.listener].String())
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, tc.says)
			if tc.closes {
				c.Close()
			} else {
				io.Copy(io.Discard, c)
			}
			c.Close()
			count := func() (n uint64) {
				d.failed[tc.listener].Each(func(reason string, k uint64) {
					if reason == tc.reason {
						n = k
					}
				})
				return n
			}
			for deadline := time.Now().Add(10 * time.Second); count() != 1 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			if n := count(); n != 1 {
				t.Errorf("%d: %d of reason %s", i, n, tc.reason)
			}
		}
	})
}
