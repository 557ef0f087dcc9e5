package proxy

import (
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// memoryLoop and memoryConn stand for a loop and its sockets where only our own code is to be timed: a read returns the
// message at once, a write takes everything. No test uses them.
type memoryLoop struct {
	netloop.Loop
	now    time.Time
	spare  [][]byte
	parked netloop.Conn
}

func (l *memoryLoop) Index() int     { return 0 }
func (l *memoryLoop) Now() time.Time { return l.now }
func (l *memoryLoop) Buffer() []byte {
	if k := len(l.spare) - 1; k >= 0 {
		b := l.spare[k]
		l.spare = l.spare[:k]
		return b
	}
	return make([]byte, netloop.BufferSize)
}
func (l *memoryLoop) Free(b []byte) {
	if b != nil {
		l.spare = append(l.spare, b[:netloop.BufferSize])
	}
}
func (l *memoryLoop) Reuse(any) netloop.Conn                      { return l.parked }
func (l *memoryLoop) Park(_ any, c netloop.Conn, _ time.Duration) { l.parked = c }

type memoryConn struct {
	netloop.Conn
	loop    *memoryLoop
	message string
}

func (c *memoryConn) Loop() netloop.Loop         { return c.loop }
func (c *memoryConn) Remote() netip.AddrPort     { return client4 }
func (c *memoryConn) Read(b []byte) (int, error) { return copy(b, c.message), nil }
func (c *memoryConn) ReadWatching(b []byte, _ netloop.Conn) (int, error) {
	return copy(b, c.message), nil
}
func (c *memoryConn) Write(b []byte) (int, error) { return len(b), nil }
func (c *memoryConn) Send(b []byte) error         { c.loop.Free(b); return nil }
func (c *memoryConn) Receive(netloop.Conn) ([]byte, int, error) {
	b := c.loop.Buffer()
	return b, copy(b, c.message), nil
}
func (c *memoryConn) Wait(netloop.Conn) error   { return nil }
func (c *memoryConn) ReadWithin(time.Duration)  {}
func (c *memoryConn) WriteWithin(time.Duration) {}
func (c *memoryConn) Close() error              { return io.EOF }

var client4 = netip.MustParseAddrPort("127.0.0.1:40000")

// BenchmarkExchange is what our own code costs for a keep-alive GET of 1 KiB, without loop and kernel.
func BenchmarkExchange(b *testing.B) {
	service := pool.NewService("s")
	e := pool.NewEndpoint(pool.Key{Service: "s", ID: "0", Address: netip.MustParseAddrPort("127.0.0.1:9100")})
	pl, err := pool.New(service, "least_request", []pool.Member{{Endpoint: e, Weight: 100}})
	if err != nil {
		b.Fatal(err)
	}
	var store route.Store
	router := route.NewRouter([]route.Route{{Name: "a", Service: "s"}}, func(string, route.Subset) int { return 0 })
	store.Publish(store.Load().With(route.Change{Revision: 7, Router: router, Pools: map[int]*pool.Pool{0: pl}}))
	p := New(&store, Settings{}, nil)
	loop := &memoryLoop{now: time.Now()}
	body := make([]byte, 1024)
	for i := range body {
		body[i] = 'x'
	}
	loop.parked = &memoryConn{loop: loop, message: "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 23 Nov 2026 10:00:00 GMT\r\n" +
		"Content-Type: text/plain\r\nContent-Length: 1024\r\nLast-Modified: Mon, 23 Nov 2026 09:00:00 GMT\r\n" +
		"Connection: keep-alive\r\nETag: \"6922d0f0-400\"\r\nAccept-Ranges: bytes\r\n\r\n" + string(body)}
	client := &memoryConn{loop: loop, message: "GET /1k HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"}
	if p.Serve(client) == 0 {
		b.Fatal("the connection does not go on")
	}
	b.ReportAllocs()
	for b.Loop() {
		p.Serve(client)
	}
}
