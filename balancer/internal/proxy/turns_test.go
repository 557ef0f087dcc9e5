package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
)

// Bodies whose two sides are always ready do not keep a loop to themselves (L4): what else is ready waits for a turn of
// them, not for their end.
func TestTurns(t *testing.T) {
	block := bytes.Repeat([]byte("x"), 1<<20)
	for name, framing := range map[string]string{"length": "Content-Length: 1099511627776\r\n\r\n", "chunks": "Transfer-Encoding: chunked\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				piece := block
				if name == "chunks" {
					piece = fmt.Appendf(nil, "100000\r\n%s\r\n", block)
				}
				_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n"+framing)
				for err == nil {
					_, err = c.Write(piece)
				}
			})
			r := start(t, netloop.Loops, Settings{}, up.address)
			for range 2 {
				c := r.dial()
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				go io.Copy(io.Discard, c.Conn)
			}
			// Other processes may hold the loop up for a second, but not for one after the other.
			for try := 1; ; try++ {
				late, looks := 0, 0
				var most time.Duration
				for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
					lag := r.engine.Lag()
					most = max(most, lag)
					if looks++; lag > 20*time.Millisecond {
						late++
					}
				}
				t.Logf("a round takes %v at most, more than 20 ms at %d of %d looks", most, late, looks)
				if late <= looks/4 {
					break
				}
				if try == 5 {
					t.Fatalf("a round takes more than 20 ms at %d of %d looks, %v at most", late, looks, most)
				}
			}
		})
	}
}
