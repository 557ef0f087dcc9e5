package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
)

// greeter counts the connections that have passed, and says hello on them.
type greeter struct{ served atomic.Int32 }

func (g *greeter) Serve(c netloop.Conn) time.Duration {
	g.served.Add(1)
	io.WriteString(c, "hello")
	return 0
}

// oneFlight lets one write through and swallows all others.
type oneFlight struct {
	net.Conn
	written bool
}

func (c *oneFlight) Write(b []byte) (int, error) {
	if c.written {
		return len(b), nil
	}
	c.written = true
	return c.Conn.Write(b)
}

// Whoever does not get through the door in time is put out, whatever it sends to be let in (L3): the time is for all of it,
// and what is sent has an end too.
func TestDoorDeadline(t *testing.T) {
	const brief, soon = 300 * time.Millisecond, 3 * time.Second
	ca := newAuthority(t, "ca")
	f := newFolder(t)
	cert, key := ca.issue(t, "a")
	server := load(t, TLSOptions{MinVersion: tls.VersionTLS12, Pairs: []Pair{f.pair("a", cert, key)}}).Config()
	client := &tls.Config{RootCAs: ca.pool(), ServerName: "a"}
	const (
		hello = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" // the beginning of a ClientHello
		v1    = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
		v2    = "\r\n\r\n\x00\r\nQUIT\n\x21\x11" // a length follows
	)
	send := func(first, again string) func(c net.Conn) {
		return func(c net.Conn) {
			for piece := first; ; piece = again { // ends when the connection does
				if _, err := io.WriteString(c, piece); err != nil || again == "" {
					return
				}
				time.Sleep(brief / 6)
			}
		}
	}
	var all sync.WaitGroup // they wait most of the time: more of them at once than there are processors
	for _, row := range []struct {
		name         string
		tls, proxied bool
		attack       func(c net.Conn)
		late         bool // it takes the time that is allowed, else none
		passes       bool
	}{
		{"TLS: no byte", true, false, send("", ""), true, false},
		{"TLS: one byte", true, false, send("\x16", ""), true, false},
		{"TLS: half a ClientHello", true, false, send(hello, ""), true, false},
		{"TLS: a byte at a time", true, false, send(hello, "a"), true, false},
		{"TLS: a ClientHello and no more", true, false, func(c net.Conn) { tls.Client(&oneFlight{Conn: c}, client).Handshake() }, true, false},
		{"TLS: silence behind the door", true, false, func(c net.Conn) { tls.Client(c, client).Handshake() }, true, false},
		{"TLS: plain HTTP", true, false, send("GET / HTTP/1.1\r\nHost: a\r\n\r\n", ""), false, false},
		{"TLS: a record that is too long", true, false, send("\x16\x03\x01\xff\xff"+strings.Repeat("a", 1000), ""), false, false},
		{"TLS: through", true, false, func(c net.Conn) { io.WriteString(tls.Client(c, client), "x") }, false, true},
		{"PROXY: no byte", false, true, send("", ""), true, false},
		{"PROXY: half a line", false, true, send("PROXY TCP4 192", ""), true, false},
		{"PROXY: a byte at a time", false, true, send("PROXY TCP4 192.0.2.1 192.0.2.2 ", "1"), true, false},
		{"PROXY: a line without end", false, true, send("PROXY UNKNOWN "+strings.Repeat("a", 500), ""), false, false},
		{"PROXY: 65,535 bytes to come", false, true, send(v2+"\xff\xff", ""), false, false},
		{"PROXY: bytes that do not come", false, true, send(v2+"\x00\x80", ""), true, false},
		{"PROXY: bytes, one at a time", false, true, send(v2+"\x00\x80", "a"), true, false},
		{"PROXY: a request", false, true, send("GET / HTTP/1.1\r\nHost: a\r\n\r\n", ""), false, false},
		{"PROXY: silence behind the door", false, true, send(v1, ""), true, false},
		{"PROXY: through", false, true, send(v1+"x", ""), false, true},
		{"both: a line and half a ClientHello", true, true, send(v1+hello, ""), true, false},
		{"both: a line, a byte at a time", true, true, send(v1+hello, "a"), true, false},
	} {
		for _, engine := range []string{netloop.Loops, netloop.Goroutines} {
			test := func(t *testing.T) {
				limit := brief
				if !row.late {
					limit = 2 * soon // it has to do without
				}
				e, err := netloop.New(netloop.Options{Engine: engine, Loops: 1, FirstByte: limit})
				if err != nil {
					t.Skip(err)
				}
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				address := ln.Addr().String()
				g := &greeter{}
				d := &Door{Next: g, Handshake: limit, FirstByte: limit}
				if row.tls {
					d.TLS = server
				}
				if row.proxied {
					d.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
				}
				ctx, cancel := context.WithCancel(context.Background())
				var running sync.WaitGroup
				running.Go(func() { e.Run(ctx) })
				defer running.Wait()
				defer cancel()
				if _, err := e.Listen(ln, d, nil); err != nil {
					t.Fatal(err)
				}
				began := time.Now() // before the other side can know of it
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(began.Add(soon))
				row.attack(c)
				if _, err := io.Copy(io.Discard, c); isTimeout(err) {
					t.Fatalf("still open after %v", time.Since(began))
				}
				for open := 1; open > 0; time.Sleep(time.Millisecond) {
					if open, _ = e.Connections(); open > 0 && time.Since(began) > soon {
						t.Fatalf("still open after %v", time.Since(began))
					}
				}
				took := time.Since(began)
				if row.late && took < brief*9/10 || took > soon {
					t.Errorf("it took %v", took)
				}
				if passed := g.served.Load() > 0; passed != row.passes {
					t.Errorf("passed %v", passed)
				}
			}
			all.Go(func() { t.Run(row.name+" "+engine, test) })
		}
	}
	all.Wait()
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
