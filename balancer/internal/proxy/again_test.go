package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/route"
)

// A body that is sent on as it comes is kept as long as it is short: if the instance goes before its answer, another one gets all of
// it, and what comes after.
func TestStreamedBodiesAgain(t *testing.T) {
	const buffer = 20 << 10
	chunk := func(n int) string { return fmt.Sprintf("%x\r\n%s\r\n", n, strings.Repeat("x", n)) }
	for _, row := range []struct {
		id      string
		method  string
		framing string
		first   string // comes with the head or right after it, and is met by an instance that goes
		rest    string // comes when that instance has gone
		length  int    // of the whole body, without framing
		status  int
	}{
		{"ended before", "PUT", "Transfer-Encoding: chunked", chunk(3) + "0\r\n\r\n", "", 3, 200},
		{"more comes", "PUT", "Transfer-Encoding: chunked", chunk(3), chunk(5) + "0\r\n\r\n", 8, 200},
		{"a part of a chunk", "PUT", "Transfer-Encoding: chunked", "5\r\nxx", "xxx\r\n0\r\n\r\n", 5, 200},
		{"longer than a buffer", "PUT", "Transfer-Encoding: chunked", chunk(18 << 10), chunk(9) + "0\r\n\r\n", 18<<10 + 9, 200},
		{"too long in the end", "PUT", "Transfer-Encoding: chunked", chunk(3), chunk(2*buffer) + "0\r\n\r\n", 2*buffer + 3, 200},
		{"too long already", "PUT", "Transfer-Encoding: chunked", chunk(2 * buffer), "", 0, 502},
		{"expected", "PUT", "Expect: 100-continue\r\nContent-Length: 8", "xxx", "xxxxx", 8, 200},
		{"may have been done", "POST", "Transfer-Encoding: chunked", chunk(3), "", 0, 502},
	} {
		t.Run(row.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				gone := make(chan struct{})
				again := make(chan struct{}, 1) // the next instance has it
				var met atomic.Bool
				serve := func(c net.Conn, r *bufio.Reader) {
					for {
						if start, err := r.Peek(3); err != nil {
							return
						} else if string(start) != "GET" && met.CompareAndSwap(false, true) {
							readHead(r)
							for want := strings.Count(row.first, "x"); want > 0; {
								if b, _ := r.ReadByte(); b == 'x' {
									want--
								}
							}
							c.Close()
							close(gone)
							return
						}
						req, err := http.ReadRequest(r)
						if err != nil {
							return
						}
						if req.Method != "GET" {
							again <- struct{}{}
						}
						body, err := io.ReadAll(req.Body)
						if err != nil {
							return
						}
						if n := bytes.Count(body, []byte("x")); n != len(body) {
							t.Errorf("%d bytes, %d of them sent by the client", len(body), n)
						}
						fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
					}
				}
				a, b := newUpstream(t, serve), newUpstream(t, serve)
				r := start(t, engine, Settings{Retries: route.Retries{Buffer: buffer}}, a.address, b.address)
				c := r.dial()
				c.send(fmt.Sprintf("%s / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n", row.method, row.framing))
				for !met.Load() { // the head has gone: nothing of the body came with it
					time.Sleep(time.Millisecond)
				}
				c.send(row.first)
				<-gone
				if row.status == 200 {
					<-again
					c.send(row.rest + "GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
				}
				resp, body := c.answer(row.method)
				if resp.StatusCode != row.status || row.status == 200 && len(body) != row.length {
					t.Fatalf("answered with %d and %d bytes, want %d and %d", resp.StatusCode, len(body), row.status, row.length)
				}
				rec := r.wait(1)[0]
				if want := int64(len(row.first) + len(row.rest)); row.status == 200 && rec.BytesIn-rec.HeadIn != want {
					t.Errorf("%d bytes of body counted, want %d", rec.BytesIn-rec.HeadIn, want)
				}
				if row.status != 200 {
					c.Close()
				} else if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
					t.Errorf("the next request was answered with %d", resp.StatusCode)
				} else {
					c.Close()
				}
				r.eventually("everything is given back", func() bool { return r.engine.Usage().Buffers == 0 })
			})
		})
	}
}
