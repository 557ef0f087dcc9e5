package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
)

type handlerFunc func(c netloop.Conn) time.Duration

func (f handlerFunc) Serve(c netloop.Conn) time.Duration { return f(c) }

// Behind a PROXY protocol header the bytes of a connection are moved within the kernel as without one, both ways, as soon as
// nothing that came with the header is left. TLS behind it has a part in every byte.
func TestSpliceBehindHeader(t *testing.T) {
	const header = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
	body := bytes.Repeat([]byte("rota"), 64<<10)
	ca := newAuthority(t, "ca")
	cert, key := ca.issue(t, "a")
	secure := load(t, TLSOptions{MinVersion: tls.VersionTLS12, Pairs: []Pair{newFolder(t).pair("a", cert, key)}}).Config()
	for name, encrypted := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			begun := make(chan struct{}) // what came with the header is read
			e, err := netloop.New(netloop.Options{Engine: netloop.Loops, Loops: 1})
			if err != nil {
				t.Fatal(err)
			}
			up, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer up.Close()
			var running sync.WaitGroup
			defer running.Wait()
			running.Go(func() { // an upstream that sends back what it gets
				c, err := up.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				io.Copy(c, c)
			})
			move := func(to, from netloop.Conn) (unsupported bool) {
				for left := int64(len(body)); left > 0; {
					if err := from.Wait(nil); err != nil {
						t.Error(err)
						return false
					}
					n, rerr, werr := netloop.Splice(to, from, nil, left)
					if errors.Is(rerr, errors.ErrUnsupported) {
						return true
					}
					if rerr != nil || werr != nil {
						t.Errorf("splice: %v, %v", rerr, werr)
						return false
					}
					left -= n
				}
				return false
			}
			door := &Door{
				Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Handshake: 10 * time.Second, FirstByte: 10 * time.Second,
				Next: handlerFunc(func(c netloop.Conn) time.Duration {
					if c.Remote().String() != "192.0.2.1:1" {
						t.Errorf("the client is %v", c.Remote())
					}
					u, err := c.Loop().Dial(netip.MustParseAddrPort(up.Addr().String()), time.Second)
					if err != nil {
						t.Error(err)
						return 0
					}
					defer u.Close()
					if _, rerr, _ := netloop.Splice(u, c, nil, 1); !errors.Is(rerr, errors.ErrUnsupported) {
						t.Errorf("with something pending: %v", rerr)
					}
					if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
						t.Errorf("the first byte: %d, %v", n, err)
					}
					close(begun)
					if unsupported := move(u, c) || move(c, u); unsupported != encrypted {
						t.Errorf("unsupported %v", unsupported)
					}
					return 0
				}),
			}
			if encrypted {
				door.TLS = secure
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			address := ln.Addr().String()
			ctx, cancel := context.WithCancel(context.Background())
			running.Go(func() { e.Run(ctx) })
			defer cancel()
			if _, err := e.Listen(ln, door, nil); err != nil {
				t.Fatal(err)
			}
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			if encrypted {
				io.WriteString(c, header)
				s := tls.Client(c, &tls.Config{RootCAs: ca.pool(), ServerName: "a"})
				io.WriteString(s, "x")
				io.Copy(io.Discard, s)
				return
			}
			io.WriteString(c, header+"x")
			running.Go(func() { <-begun; c.Write(body) })
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes of %d came back, %v", len(got), len(body), err)
			}
			if u := e.Usage(); u.Spliced < 2*int64(len(body)) || u.Buffers != 0 || u.Pipes != 0 {
				t.Errorf("%+v", u)
			}
		})
	}
}
