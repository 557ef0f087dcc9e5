package proxy

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
)

// secureClient opens a connection to a rig that serves TLS.
func (r *rig) secureClient(config *tls.Config) *client {
	r.t.Helper()
	raw := r.dial()
	c := tls.Client(&below{Conn: raw.Conn}, config)
	if err := c.Handshake(); err != nil {
		r.t.Fatal(err)
	}
	return &client{t: r.t, Conn: c, r: bufio.NewReader(c)}
}

// below is what TLS is spoken over. crypto/tls takes the end of that for the end of what is said, if it is at the end of a record;
// below knows better.
type below struct {
	net.Conn
	ended bool
}

func (b *below) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	b.ended = b.ended || err == io.EOF
	return n, err
}

// secureUpstream is newSilent with TLS, unless config is nil. serve ends its connection.
func secureUpstream(t *testing.T, config *tls.Config, serve func(c net.Conn, r *bufio.Reader)) (address string) {
	return newSilent(t, func(c net.Conn, r *bufio.Reader) {
		if config == nil {
			serve(c, r)
			return
		}
		s := tls.Server(&buffered{c, r}, config)
		serve(s, bufio.NewReader(s))
	})
}

// Long bodies go through TLS both ways as they are, and in the memory of a short one.
func TestLongSecureBodies(t *testing.T) {
	length := int64(32 << 20)
	if raceEnabled {
		length = 6 << 20
	}
	block := make([]byte, 1<<20+17) // no multiple of anything
	for i := range block {
		block[i] = byte(i * 31 >> 3)
	}
	want := digest(block, length)
	cert, roots := certificate(t, time.Now().Add(time.Hour), "s")
	server, dialer := &tls.Config{Certificates: []tls.Certificate{cert}}, &tls.Config{RootCAs: roots, ServerName: "s"}
	for _, s := range []struct {
		id, framing string
		secure      bool // the instance
	}{
		{"to plaintext, length", "length", false},
		{"to plaintext, chunks", "chunks", false},
		{"to TLS, length", "length", true},
		{"to TLS, chunks", "chunks", true},
	} {
		t.Run(s.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				send := func(w io.Writer, head string) error {
					if s.framing == "length" {
						if _, err := fmt.Fprintf(w, "%sContent-Length: %d\r\n\r\n", head, length); err != nil {
							return err
						}
						return pour(w, block, length)
					}
					if _, err := fmt.Fprintf(w, "%sTransfer-Encoding: chunked\r\n\r\n", head); err != nil {
						return err
					}
					if err := pour(writer(func(b []byte) (int, error) {
						if _, err := fmt.Fprintf(w, "%x\r\n", len(b)); err != nil {
							return 0, err
						}
						n, err := w.Write(b)
						if err == nil {
							_, err = io.WriteString(w, "\r\n")
						}
						return n, err
					}), block, length); err != nil {
						return err
					}
					_, err := io.WriteString(w, "0\r\n\r\n")
					return err
				}
				receive := func(body io.Reader) (string, int64, error) {
					h := sha256.New()
					n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{body}, make([]byte, 64<<10))
					return sum(h), n, err
				}
				settings := &pool.Settings{}
				var config *tls.Config
				if s.secure {
					config, settings.Secure, settings.TLS = server, true, dialer
				}
				up := secureUpstream(t, config, func(c net.Conn, r *bufio.Reader) {
					for {
						req, err := http.ReadRequest(r)
						if err != nil {
							return
						}
						got, n, err := receive(req.Body)
						if err != nil {
							t.Errorf("the instance got %d bytes, then %v", n, err)
							return
						}
						if send(c, "HTTP/1.1 200 OK\r\nX-Sum: "+got+"\r\n") != nil {
							return
						}
					}
				})
				r := startWith(t, engine, Settings{}, func(r *rig) { r.secure, r.upstreams = server, settings }, up)
				c := r.secureClient(dialer)
				c.SetDeadline(time.Now().Add(6 * patience))
				runtime.GC()
				var before, now runtime.MemStats
				runtime.ReadMemStats(&before)
				for range 2 { // the connection goes on
					sent := make(chan error, 1)
					go func() { sent <- send(c.Conn, "POST / HTTP/1.1\r\nHost: a\r\n") }()
					resp, err := http.ReadResponse(c.r, nil)
					if err != nil {
						t.Fatal(err)
					}
					if got := resp.Header.Get("X-Sum"); resp.StatusCode != 200 || resp.Close || got != want {
						t.Errorf("answered %d, close %v; the upload is %s, want %s", resp.StatusCode, resp.Close, got, want)
					}
					if got, n, err := receive(resp.Body); got != want || n != length || err != nil {
						t.Errorf("%d bytes of %d came, %v; equal %v", n, length, err, got == want)
					}
					if err := <-sent; err != nil {
						t.Errorf("sending: %v", err)
					}
				}
				runtime.ReadMemStats(&now)
				if grown := int64(now.Sys - before.Sys); grown > 16<<20 { // what was had from the system at the peak
					t.Errorf("%d KiB of memory for %d MiB", grown>>10, 4*length>>20)
				}
				c.Close()
				r.eventually("everything is given back", func() bool { u := r.engine.Usage(); return u.Buffers == 0 && u.Pipes == 0 })
			})
		})
	}
}

// A part of an answer is never told to be the whole over TLS (R04): whoever breaks off, and however, the client sees no end of
// the body, and where the end of the connection is what ends it, no close_notify.
func TestSecureTruncation(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	cert, roots := certificate(t, time.Now().Add(time.Hour), "s")
	server, dialer := &tls.Config{Certificates: []tls.Certificate{cert}}, &tls.Config{RootCAs: roots, ServerName: "s"}
	bodies := map[string]string{ // what there is of them; the head goes on when the first part has come
		"length":                ok + "Content-Length: 100000\r\n\r\n" + strings.Repeat("y", 40_000),
		"short length":          ok + "Content-Length: 100\r\n\r\n" + strings.Repeat("y", 27),
		"in a chunk":            ok + "Transfer-Encoding: chunked\r\n\r\n64\r\n" + strings.Repeat("y", 27),
		"between chunks":        ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"behind the last chunk": ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
		"until close":           ok + "\r\nhello",
	}
	type end struct {
		name   string
		secure bool // the instance speaks TLS
		do     func(c net.Conn)
		honest bool // an answer that goes on until then has its end
	}
	socket := func(c net.Conn) *net.TCPConn { return c.(*tls.Conn).NetConn().(*buffered).Conn.(*net.TCPConn) }
	for _, e := range []end{
		{"plaintext, end", false, func(c net.Conn) { c.Close() }, true},
		{"plaintext, reset", false, func(c net.Conn) { c.(*net.TCPConn).SetLinger(0); c.Close() }, false},
		{"TLS, close_notify", true, func(c net.Conn) { c.Close() }, true},
		{"TLS, end without close_notify", true, func(c net.Conn) { socket(c).Close() }, false},
		{"TLS, half an end without close_notify", true, func(c net.Conn) { socket(c).CloseWrite(); io.Copy(io.Discard, socket(c)) }, false},
		{"TLS, reset", true, func(c net.Conn) { socket(c).SetLinger(0); socket(c).Close() }, false},
		{"TLS, half a record", true, func(c net.Conn) { io.WriteString(socket(c), "\x17\x03\x03\x00\x40abc"); socket(c).Close() }, false},
		{"TLS, a record that is none", true, func(c net.Conn) {
			io.WriteString(socket(c), "\x17\x03\x03\x00\x20"+strings.Repeat("x", 32))
			socket(c).Close()
		}, false},
	} {
		t.Run(e.name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				for name, part := range bodies {
					for _, version := range []string{"1.1", "1.0"} {
						for _, late := range []bool{false, true} { // the client has what there is before it ends
							t.Run(fmt.Sprintf("%s to %s, late %v", name, version, late), func(t *testing.T) {
								have, settings := make(chan struct{}), &pool.Settings{}
								var config *tls.Config
								if e.secure {
									config, settings.Secure, settings.TLS = server, true, dialer
								}
								up := secureUpstream(t, config, func(c net.Conn, r *bufio.Reader) {
									if _, err := http.ReadRequest(r); err != nil {
										return
									}
									io.WriteString(c, part)
									if late {
										<-have
									}
									e.do(c)
								})
								r := startWith(t, engine, Settings{}, func(r *rig) { r.secure, r.upstreams = server, settings }, up)
								c := r.secureClient(dialer)
								c.send("POST / HTTP/" + version + "\r\nHost: a\r\nContent-Length: 0\r\n\r\n") // which is not sent again
								resp, err := http.ReadResponse(c.r, nil)
								if late {
									close(have)
								}
								if err != nil { // it was broken off before the client had a head
									if late || !cutOff(err) {
										t.Fatal(err)
									}
									return
								}
								_, err = io.Copy(io.Discard, resp.Body)
								whole := name == "until close" && e.honest
								switch {
								case whole && (resp.StatusCode != 200 || err != nil || c.Conn.(*tls.Conn).NetConn().(*below).ended):
									t.Errorf("a whole answer: %d, %v, or its end is not said", resp.StatusCode, err)
								case !whole && resp.StatusCode == 200 && !cutOff(err):
									t.Errorf("the client takes a part for the whole: %v", err)
								case !whole && resp.StatusCode != 200 && (late || resp.StatusCode != 502 || err != nil):
									t.Errorf("answered %d, %v", resp.StatusCode, err)
								}
								if rec := r.wait(1)[0]; whole != (rec.Reason == "") {
									t.Errorf("the reason is %q", rec.Reason)
								}
							})
						}
					}
				}
			})
		})
	}
}

// cutOff reports whether an error is what a client sees of an answer that was cut off.
func cutOff(err error) bool { return err != nil && !isTimeout(err) }
