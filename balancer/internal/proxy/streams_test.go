package proxy

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
)

// longBody is how long a long body is: 64 MiB; ROTA_TEST_BODY=1g makes it a GiB.
func longBody(t *testing.T) int64 {
	switch text := os.Getenv("ROTA_TEST_BODY"); text {
	case "":
		return 64 << 20
	case "1g":
		return 1 << 30
	default:
		t.Fatalf("ROTA_TEST_BODY=%s, want 1g", text)
		return 0
	}
}

// pour writes n bytes that repeat block.
func pour(w io.Writer, block []byte, n int64) error {
	for n > 0 {
		k, err := w.Write(block[:min(n, int64(len(block)))])
		if n -= int64(k); err != nil {
			return err
		}
	}
	return nil
}

func digest(block []byte, n int64) string {
	h := sha256.New()
	pour(h, block, n)
	return sum(h)
}

func sum(h hash.Hash) string { return fmt.Sprintf("%x", h.Sum(nil)) }

// A long body goes through both ways in the memory of a short one, and on the loops within the kernel.
func TestLongBodies(t *testing.T) {
	length := longBody(t)
	block := make([]byte, 1<<20+17) // no multiple of anything
	for i := range block {
		block[i] = byte(i * 31 >> 3)
	}
	want := digest(block, length)
	eachEngine(t, func(t *testing.T, engine string) {
		up := newSilent(t, func(c net.Conn, r *bufio.Reader) {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			h := sha256.New()
			io.CopyBuffer(struct{ io.Writer }{h}, req.Body, make([]byte, 64<<10))
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Sum: %s\r\n\r\n", length, sum(h))
			pour(c, block, length)
		})
		r := start(t, engine, Settings{}, up)
		c := r.dial()
		c.SetDeadline(time.Now().Add(5 * time.Minute))
		runtime.GC()
		var before, now runtime.MemStats
		runtime.ReadMemStats(&before)
		go func() {
			fmt.Fprintf(c.Conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", length)
			pour(c.Conn, block, length)
		}()
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Get("X-Sum"); got != want {
			t.Errorf("the upload is %s, want %s", got, want)
		}
		h := sha256.New()
		n, err := io.CopyBuffer(struct{ io.Writer }{h}, resp.Body, make([]byte, 64<<10))
		if err != nil || n != length || sum(h) != want {
			t.Errorf("%d bytes of %d came, %v; equal %v", n, length, err, sum(h) == want)
		}
		runtime.ReadMemStats(&now)
		if grown := int64(now.Sys - before.Sys); grown > 16<<20 { // what was had from the system at the peak
			t.Errorf("%d KiB of memory for %d MiB", grown>>10, 2*length>>20)
		}
		u := r.engine.Usage()
		if most := 2*length - 1<<20; engine == netloop.Loops && u.Spliced < most {
			t.Errorf("only %d of %d bytes were moved within the kernel", u.Spliced, 2*length)
		}
		r.eventually("everything is given back", func() bool { u := r.engine.Usage(); return u.Buffers == 0 && u.Pipes == 0 })
	})
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("never: %s (%+v)", what, r.engine.Usage())
		}
	}
}

// newSilent is newUpstream without the record of what it reads.
func newSilent(t *testing.T, serve func(c net.Conn, r *bufio.Reader)) (address string) {
	t.Helper()
	return newUpstream(t, func(c net.Conn, r *bufio.Reader) { serve(c, bufio.NewReader(c)) }).address
}

// Who reads slowly, or not at all, costs the buffer that its request is in and the one that is on its way, and no more, however long
// the answer is.
func TestSlowReaders(t *testing.T) {
	const readers, perReader = 200, 2 << 20 // bytes are sent, and more promised
	piece := bytes.Repeat([]byte("x"), 64<<10)
	chunk := fmt.Appendf(nil, "%x\r\n%s\r\n", len(piece), piece)
	for name, head := range map[string]string{
		"length": "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n",
		"chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				var written atomic.Int64
				flow := make(chan struct{})
				up := newSilent(t, func(c net.Conn, r *bufio.Reader) {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					c.(*net.TCPConn).SetWriteBuffer(16 << 10)
					body := piece
					if name == "chunks" {
						body = chunk
					}
					_, err := io.WriteString(c, head+string(body[:len(body)/2]))
					<-flow
					body = append(body[len(body)/2:len(body):len(body)], body[:len(body)/2]...) // goes on where it was
					for sent := 0; err == nil && sent < perReader; {
						var n int
						n, err = c.Write(body)
						sent += n
						written.Add(int64(n))
					}
					io.Copy(io.Discard, r) // until the end
				})
				begin := sync.OnceFunc(func() { close(flow) })
				t.Cleanup(begin)
				r := start(t, engine, Settings{}, up)
				var clients []*client
				for range readers {
					c := r.dial()
					c.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
					c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
					clients = append(clients, c)
				}
				for _, c := range clients {
					if resp, err := http.ReadResponse(c.r, nil); err != nil || resp.StatusCode != 200 {
						t.Fatal(resp, err)
					}
				}
				begin()
				r.eventually("the answers have come to a stop", func() bool {
					before := written.Load()
					time.Sleep(100 * time.Millisecond)
					return before > 0 && before == written.Load()
				})
				if _, serving := r.engine.Connections(); serving != readers {
					t.Errorf("%d of %d readers are being served", serving, readers)
				}
				if u := r.engine.Usage(); u.Buffers > 2*readers {
					t.Errorf("%d buffers are out for %d slow readers", u.Buffers, readers)
				} else {
					t.Logf("%.2f buffers and %.2f pipes a reader", float64(u.Buffers)/readers, float64(u.Pipes)/readers)
				}
				for _, c := range clients {
					c.Close()
				}
				r.eventually("everything is given back", func() bool { u := r.engine.Usage(); return u.Buffers == 0 && u.Pipes == 0 })
			})
		})
	}
}

// Events of a few bytes go on when they come: the next one is sent when the client has the last.
func TestEvents(t *testing.T) {
	const events = 50
	for name, chunked := range map[string]bool{"chunks": true, "until close": false} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				have := make(chan struct{})
				up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					framing := "Connection: close\r\n\r\n"
					if chunked {
						framing = "Transfer-Encoding: chunked\r\n\r\n"
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"+framing)
					for i := range events {
						if _, ok := <-have; !ok {
							return
						}
						event := fmt.Sprintf("data: %d\n\n", i)
						if chunked {
							event = fmt.Sprintf("%x\r\n%s\r\n", len(event), event)
						}
						io.WriteString(c, event)
					}
					if chunked {
						io.WriteString(c, "0\r\n\r\n")
					}
				})
				defer close(have)
				r := start(t, engine, Settings{}, up.address)
				c := r.dial()
				c.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")
				resp, err := http.ReadResponse(c.r, nil) // the head does not wait for the first event
				if err != nil || resp.Header.Get("Content-Type") != "text/event-stream" {
					t.Fatal(resp, err)
				}
				b := make([]byte, 64)
				for i := range events {
					have <- struct{}{}
					want := fmt.Sprintf("data: %d\n\n", i)
					if n, err := io.ReadFull(resp.Body, b[:len(want)]); err != nil || string(b[:n]) != want {
						t.Fatalf("event %d is %q, %v", i, b[:n], err)
					}
				}
				if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
					t.Errorf("after the last event: %q, %v", rest, err)
				}
			})
		})
	}
}

// A compressed answer goes through byte for byte with all that tells about it (L10).
func TestCompressed(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	io.WriteString(w, strings.Repeat("a bomb, if anybody unpacked it. ", 40_000))
	w.Close()
	eachEngine(t, func(t *testing.T, engine string) {
		for name, framing := range map[string]string{"length": "", "chunks": "chunks"} {
			t.Run(name, func(t *testing.T) {
				answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nETag: \"abc\"\r\nVary: Accept-Encoding\r\nContent-Length: %d\r\n\r\n%s", packed.Len(), packed.Bytes())
				if framing != "" {
					answer = fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nETag: \"abc\"\r\nVary: Accept-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", packed.Len(), packed.Bytes())
				}
				up := scripted(t, answer, false)
				r := start(t, engine, Settings{}, up.address)
				for _, accept := range []string{"", "Accept-Encoding: gzip\r\n", "Accept-Encoding: identity\r\n"} {
					c := r.dial()
					c.send("GET / HTTP/1.1\r\nHost: a\r\n" + accept + "\r\n")
					resp, body := c.answer("GET")
					h := resp.Header
					if body != packed.String() || h.Get("Content-Encoding") != "gzip" || h.Get("ETag") != `"abc"` || h.Get("Vary") != "Accept-Encoding" {
						t.Errorf("with %q: %d bytes, equal %v, %v", accept, len(body), body == packed.String(), h)
					}
					if framing == "" && resp.ContentLength != int64(packed.Len()) {
						t.Errorf("with %q: length %d", accept, resp.ContentLength)
					}
					if asked := strings.Contains(up.bytes(), accept); !asked {
						t.Errorf("the upstream was not asked with %q", accept)
					}
				}
			})
		}
	})
}
