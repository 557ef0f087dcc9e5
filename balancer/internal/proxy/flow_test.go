package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// An upstream that sends head and body apart: the client gets the body as it comes, a failure in between, before a body that
// is not moved within the kernel, is no answer cut off but one tried elsewhere, and nothing is held back of a body whose
// length is not known, nor of one that is not ready yet.
func TestHeadBeforeBody(t *testing.T) {
	for _, size := range []int{1, 1 << 10, 100 << 10} {
		eachEngine(t, func(t *testing.T, engine string) {
			body := strings.Repeat("x", size)
			seen, first := make(chan struct{}, 1), make(chan struct{}, 1)
			up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
				for n := 0; ; n++ {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					head := "HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(size) + "\r\n\r\n"
					if req.URL.Path == "/stream" {
						head = "HTTP/1.1 200 OK\r\n\r\n"
					}
					io.WriteString(c, head)
					if req.URL.Path == "/stream" {
						<-seen // the head is with the client before there is a body
						io.WriteString(c, body)
						return
					}
					if req.URL.Path == "/later" {
						<-seen
					} else if size < spliceFrom && len(first) == 0 {
						first <- struct{}{}
						return // cut off after the head
					}
					io.WriteString(c, body[:1])
					io.WriteString(c, body[1:])
				}
			})
			r := start(t, engine, streaming, up.address, up.address)
			c := r.dial()
			for range 3 {
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				if resp, got := c.answer("GET"); resp.StatusCode != 200 || got != body {
					t.Fatalf("%d, %d bytes", resp.StatusCode, len(got))
				}
			}
			if rec := r.wait(1)[0]; size < spliceFrom && rec.Attempts != 2 {
				t.Errorf("%d attempts", rec.Attempts)
			}
			for _, path := range []string{"/later", "/stream"} {
				c.send("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n")
				resp, err := http.ReadResponse(c.r, nil)
				if err != nil {
					t.Fatal(err)
				}
				seen <- struct{}{}
				if got, err := io.ReadAll(resp.Body); err != nil || string(got) != body {
					t.Errorf("%s: %v, %d bytes", path, err, len(got))
				}
			}
		})
	}
}
