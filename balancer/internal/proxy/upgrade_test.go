package proxy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/route"
)

// These are the attacks on upgrades and on the tunnels that they lead to (U in the catalogue).

// key is a Sec-WebSocket-Key, accept what proves that it was understood (RFC 6455 §1.3).
const (
	key    = "dGhlIHNhbXBsZSBub25jZQ=="
	accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

const (
	upgrade  = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + "\r\n\r\n"
	switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + accept + "\r\n\r\n"
)

// routed is a request for a route that takes a prefix away: what an upstream gets of it shows whether it was routed.
const routed = "GET /pub/internal HTTP/1.1\r\nHost: strip.example.com\r\n\r\n"

// frame is one masked text frame, as a client sends it.
const frame = "\x81\x85\x01\x02\x03\x04\x69\x67\x6f\x68\x6e"

// readHead reads up to the empty line that ends a head. It is empty when there is no whole one.
func readHead(r *bufio.Reader) string {
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return ""
		}
		head.WriteString(line)
		if line == "\r\n" {
			return head.String()
		}
	}
}

// answering is an upstream that answers requests for an upgrade with these bytes, and others with their target.
func answering(t *testing.T, answer string) *upstream {
	return newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			head := readHead(r)
			if head == "" {
				return
			}
			reply := answer
			if !strings.Contains(head, "\r\nUpgrade: ") {
				target := strings.Fields(head)[1]
				reply = fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(target), target)
			}
			if _, err := io.WriteString(c, reply); err != nil {
				return
			}
		}
	})
}

// switching is an upstream that agrees to every upgrade and hands the connection to serve.
func switching(t *testing.T, serve func(c *net.TCPConn, r *bufio.Reader)) *upstream {
	return newUpstream(t, func(c net.Conn, r *bufio.Reader) {
		if readHead(r) == "" {
			return
		}
		if _, err := io.WriteString(c, switched); err == nil {
			serve(c.(*net.TCPConn), r)
		}
	})
}

// upgraded asks for an upgrade and reads the 101.
func (r *rig) upgraded() *client {
	r.t.Helper()
	c := r.dial()
	c.send(upgrade)
	if resp, _ := c.answer("GET"); resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Sec-WebSocket-Accept") != accept {
		r.t.Fatalf("the upgrade was answered with %d %v", resp.StatusCode, resp.Header)
	}
	return c
}

// What follows an upgrade that the instance refuses is a request like any other, never bytes for the instance.
func TestRefusedUpgrades(t *testing.T) {
	type want struct {
		status, next int    // of the refusal, and of what follows
		body         string // of what follows, when that is served
	}
	refusal := func(status string) string { return "HTTP/1.1 " + status + "\r\nContent-Length: 2\r\n\r\nno" }
	for _, u := range []struct {
		id, answer, behind string
		want               want
	}{
		{"U1 426", refusal("426 Upgrade Required"), routed, want{426, 200, "/internal"}},
		{"U1 426 with what it wants", "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno", routed, want{426, 200, "/internal"}},
		{"U1 426 without a body", "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n", routed, want{426, 200, "/internal"}},
		{"U1 frames", refusal("426 Upgrade Required"), frame + routed, want{426, 400, ""}},
		{"U1 a request in a frame", refusal("426 Upgrade Required"), "\x82\x40" + routed, want{426, 400, ""}},
		{"U2 200", refusal("200 OK"), routed, want{200, 200, "/internal"}},
		{"U2 302", refusal("302 Found"), routed, want{302, 200, "/internal"}},
		{"U2 401", refusal("401 Unauthorized"), routed, want{401, 200, "/internal"}},
		{"U2 500", refusal("500 Internal Server Error"), routed, want{500, 200, "/internal"}},
		{"U2 200 that looks like a switch", "HTTP/1.1 200 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + accept + "\r\nContent-Length: 2\r\n\r\nno", routed, want{200, 200, "/internal"}},
	} {
		t.Run(u.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				for _, atOnce := range []bool{true, false} {
					up := answering(t, u.answer)
					r := start(t, engine, Settings{}, up.address)
					c := r.dial()
					send := strings.Replace(upgrade, "Version: 13", "Version: 1337", 1)
					if atOnce {
						send += u.behind
					}
					c.send(send)
					if resp, _ := c.answer("GET"); resp.StatusCode != u.want.status || resp.Close || resp.Header.Get("Upgrade") != "" {
						t.Fatalf("answered %d, close %v, %v", resp.StatusCode, resp.Close, resp.Header)
					}
					if !atOnce {
						c.send(u.behind)
					}
					resp, body := c.answer("GET")
					if resp.StatusCode != u.want.next || u.want.body != "" && body != u.want.body {
						t.Errorf("what follows got %d %q", resp.StatusCode, body)
					}
					first, second, _ := strings.Cut(up.bytes(), "\r\n\r\n")
					wantSecond := ""
					if u.want.next == 200 {
						wantSecond = "GET /internal HTTP/1.1\r\nHost: strip.example.com\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: strip.example.com\r\nVia: 1.1 rota\r\n\r\n"
						if rec := r.wait(2)[1]; rec.Route.Name != "strip" {
							t.Errorf("what follows took route %s", rec.Route.Name)
						}
					}
					if !strings.Contains(first, "\r\nUpgrade: websocket") || second != wantSecond || up.connections() != 1 {
						t.Errorf("the upstream saw\n%q\n%q\nover %d connections", first, second, up.connections())
					}
				}
			})
		})
	}
}

// Only a 101 that is what was asked for switches. Any other one is an answer that makes no sense, its connection is not
// used again, and the client's goes on.
func TestSwitches(t *testing.T) {
	const yes, token, proof = "HTTP/1.1 101 Switching Protocols\r\n", "Upgrade: websocket\r\n", "Sec-WebSocket-Accept: " + accept + "\r\n"
	const named = "Connection: Upgrade\r\n"
	plain := "GET /plain HTTP/1.1\r\nHost: a\r\nX: \r\nUpgrade: websocket\r\n\r\n" // not named in Connection: no upgrade
	type want struct{ client, upstream int }                                       // status; connections when all is over
	for _, u := range []struct {
		id, request, answer string
		want                want
	}{
		{"U2 match", upgrade, yes + named + token + proof + "\r\n", want{101, 1}},
		{"U2 match in other cases", upgrade, yes + "CONNECTION: keep-alive, UPGRADE\r\nUPGRADE: WebSocket\r\nSEC-WEBSOCKET-ACCEPT: " + accept + "\r\n\r\n", want{101, 1}},
		{"U2 match behind interim answers", upgrade, "HTTP/1.1 103 Early Hints\r\n\r\n" + yes + named + token + proof + "\r\n", want{101, 1}},
		{"U2 length of 0 asked", strings.Replace(upgrade, "\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n", 1), yes + named + token + proof + "\r\n", want{101, 1}},
		{"U2 no Upgrade", upgrade, yes + named + proof + "\r\nsecret", want{502, 2}},
		{"U2 no Connection", upgrade, yes + token + proof + "\r\nsecret", want{502, 2}},
		{"U2 Connection closes", upgrade, yes + "Connection: close\r\n" + token + proof + "\r\nsecret", want{502, 2}},
		{"U2 h2c", upgrade, yes + named + "Upgrade: h2c\r\n" + proof + "\r\nsecret", want{502, 2}},
		{"U2 two tokens", upgrade, yes + named + "Upgrade: websocket, h2c\r\n" + proof + "\r\nsecret", want{502, 2}},
		{"U2 two Upgrades", upgrade, yes + named + token + "Upgrade: h2c\r\n" + proof + "\r\nsecret", want{502, 2}},
		{"U2 empty Upgrade", upgrade, yes + named + "Upgrade:\r\n" + proof + "\r\nsecret", want{502, 2}},
		{"U2 no proof", upgrade, yes + named + token + "\r\nsecret", want{502, 2}},
		{"U2 wrong proof", upgrade, yes + named + token + "Sec-WebSocket-Accept: " + key + "\r\n\r\nsecret", want{502, 2}},
		{"U2 two proofs", upgrade, yes + named + token + proof + proof + "\r\nsecret", want{502, 2}},
		{"U2 with Content-Length", upgrade, yes + named + token + proof + "Content-Length: 6\r\n\r\nsecret", want{502, 2}},
		{"U2 with Content-Length 0", upgrade, yes + named + token + proof + "Content-Length: 0\r\n\r\nsecret", want{502, 2}},
		{"U2 with Transfer-Encoding", upgrade, yes + named + token + proof + "Transfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n", want{502, 2}},
		{"U2 1.0", upgrade, strings.Replace(yes, "1.1", "1.0", 1) + named + token + proof + "\r\nsecret", want{502, 2}},
		{"U2 unasked", plain, yes + named + token + proof + "\r\nsecret", want{502, 2}},
		{"U2 unasked, bare", plain, yes + "\r\nsecret", want{502, 2}},
		{"U2 unasked, h2c", plain, yes + named + "Upgrade: h2c\r\n\r\nsecret", want{502, 2}},
	} {
		t.Run(u.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
					for {
						head := readHead(r)
						if head == "" {
							return
						}
						answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
						if strings.HasPrefix(head, "GET /ws ") || strings.HasPrefix(head, "GET /plain ") {
							answer = u.answer
						}
						if _, err := io.WriteString(c, answer); err != nil {
							return
						}
					}
				})
				r := start(t, engine, Settings{}, up.address)
				c := r.dial()
				c.send("GET /warm HTTP/1.1\r\nHost: a\r\n\r\n") // so that it goes over a connection that was kept
				c.answer("GET")
				c.send(u.request)
				resp, body := c.answer("GET")
				for resp.StatusCode == 103 {
					resp, body = c.answer("GET")
				}
				if resp.StatusCode != u.want.client || strings.Contains(body, "secret") || resp.StatusCode == 502 && (resp.Close || resp.Header.Get("X-Rota-Reason") != string(UpstreamInvalid)) {
					t.Fatalf("answered %d %q, want %d", resp.StatusCode, body, u.want.client)
				}
				c.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n") // to the proxy, or to the instance
				if resp, body := c.answer("GET"); resp.StatusCode != 200 || body != "ok" || resp.Header.Get("Upgrade") != "" {
					t.Errorf("then came %d %q", resp.StatusCode, body)
				}
				if n := up.connections(); n != u.want.upstream {
					t.Errorf("%d upstream connections, want %d", n, u.want.upstream)
				}
				if through := strings.Contains(up.bytes(), "GET /next HTTP/1.1\r\nHost: a\r\n\r\n"); through != (u.want.client == 101) {
					t.Errorf("the upstream saw %q", up.bytes())
				}
			})
		})
	}
}

// A request that cannot be upgraded, or asks for it in a form that could be understood in two ways, is forwarded without
// the wish; its body is a body.
func TestStrippedUpgrades(t *testing.T) {
	const get, named, token, proof = "GET /ws HTTP/1.1\r\nHost: a\r\n", "Connection: Upgrade\r\n", "Upgrade: websocket\r\n", "Sec-WebSocket-Key: " + key + "\r\n"
	const line = "GET /ws HTTP/1.1"
	length := fmt.Sprintf("Content-Length: %d\r\n", len(smuggled))
	chunked := fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(smuggled), smuggled)
	type want struct {
		status   int
		upstream message
		last     bool
	}
	for _, u := range []struct {
		id, send string
		want     want
	}{
		{"U3 body by length", get + named + token + proof + "Content-Length: 5\r\n\r\nhello", want{200, message{line, "a", "hello"}, false}},
		{"U3 request in a body by length", get + named + token + proof + length + "\r\n" + smuggled, want{200, message{line, "a", smuggled}, false}},
		{"U3 request in a chunked body", get + named + token + proof + chunked, want{200, message{line, "a", smuggled}, false}},
		{"U3 both", get + named + token + proof + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", want{400, message{}, true}},
		{"U3 POST", "POST /ws HTTP/1.1\r\nHost: a\r\n" + named + token + proof + "\r\n", want{200, message{"POST /ws HTTP/1.1", "a", ""}, false}},
		{"U3 POST with a body", "POST /ws HTTP/1.1\r\nHost: a\r\n" + named + token + proof + length + "\r\n" + smuggled, want{200, message{"POST /ws HTTP/1.1", "a", smuggled}, false}},
		{"U3 HEAD", "HEAD /ws HTTP/1.1\r\nHost: a\r\n" + named + token + proof + "\r\n", want{200, message{"HEAD /ws HTTP/1.1", "a", ""}, false}},
		{"U3 1.0", "GET /ws HTTP/1.0\r\nHost: a\r\n" + named + token + proof + "\r\n", want{200, message{line, "a", ""}, true}},
		{"U3 1.0 kept", "GET /ws HTTP/1.0\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n" + token + proof + "\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 not named", get + token + proof + "\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 another one named", get + "Connection: Upgrades\r\n" + token + proof + "\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 named only", get + named + proof + "\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 two tokens", get + named + "Upgrade: websocket, h2c\r\n" + proof + "\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 the same token twice", get + named + token + token + proof + "\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 with a version", get + named + "Upgrade: websocket/13\r\n" + proof + "\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 empty token", get + named + "Upgrade:\r\n" + proof + "\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 unknown token", get + named + "Upgrade: mqtt\r\n\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 TLS", get + named + "Upgrade: TLS/1.0\r\n\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 no key", get + named + token + "\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 empty key", get + named + token + "Sec-WebSocket-Key:\r\n\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 short key", get + named + token + "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 key of 17 bytes", get + named + token + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTE=\r\n\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 key of 18 bytes", get + named + token + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTEy\r\n\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 key that is no base64", get + named + token + "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==\r\n\r\n", want{200, message{line, "a", ""}, false}},
		{"U3 two keys", get + named + token + proof + proof + "\r\n", want{200, message{line, "a", ""}, false}},
	} {
		t.Run(u.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				up := record(t)
				r := start(t, engine, Settings{}, up.address)
				c := r.dial()
				method, _, _ := strings.Cut(u.send, " ")
				c.send(u.send + "GET /next HTTP/1.1\r\nHost: b\r\n\r\n")
				if resp, body := c.answer(method); resp.StatusCode != u.want.status || resp.Close != u.want.last {
					t.Fatalf("answered %d %q, close %v", resp.StatusCode, body, resp.Close)
				}
				want := []message{u.want.upstream, {"GET /next HTTP/1.1", "b", ""}}
				if u.want.last {
					c.closed()
					want = want[:1]
				} else if resp, body := c.answer("GET"); resp.StatusCode != 200 || body != "GET /next " {
					t.Errorf("what follows got %d %q", resp.StatusCode, body)
				}
				if u.want.status != 200 {
					want = nil
				}
				if got := up.messages(t); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("the upstream saw\n%q, want\n%q", got, want)
				}
			})
		})
	}
}

// A route says which protocols its connections may be upgraded to.
func TestUpgradesOfRoutes(t *testing.T) {
	const mqtt = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: MQTT\r\n\r\n"
	for _, u := range []struct {
		id, send, answer string
		upgrades         []string
		want             int
	}{
		{"U2 none", upgrade, switched, []string{"none"}, 200},
		{"U2 another one", upgrade, switched, []string{"mqtt"}, 200},
		{"U2 named one", mqtt, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: mqtt\r\n\r\n", []string{"websocket", "mqtt"}, 101},
		{"U2 named one, other answer", mqtt, switched, []string{"websocket", "mqtt"}, 502},
	} {
		t.Run(u.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				up := answering(t, u.answer)
				r := startWith(t, engine, Settings{}, func(r *rig) { r.routes[0].Rules = &route.Rules{Upgrades: u.upgrades} }, up.address)
				c := r.dial()
				c.send(u.send)
				if resp, _ := c.answer("GET"); resp.StatusCode != u.want {
					t.Errorf("answered %d, want %d", resp.StatusCode, u.want)
				}
				if asked := strings.Contains(up.bytes(), "\r\nUpgrade: "); asked != (u.want != 200) {
					t.Errorf("the upstream saw %q", up.bytes())
				}
			})
		})
	}
}

// What a client sends before it knows that the connection has switched waits for that, and arrives in order.
func TestEarlyFrames(t *testing.T) {
	for _, size := range []int{1, 100, netloop.BufferSize - len(upgrade), netloop.BufferSize - len(upgrade) + 1, http1.MaxHead, 1 << 20} {
		t.Run(fmt.Sprintf("U4 %d bytes", size), func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				asked, checked := make(chan struct{}), make(chan struct{})
				up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
					if head := readHead(r); !strings.Contains(head, "Upgrade: websocket") {
						if head != "" {
							io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
						}
						return
					}
					close(asked)
					<-checked
					c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
					if b, err := r.Peek(1); !errors.Is(err, syscall.EAGAIN) && !isTimeout(err) {
						t.Errorf("before the 101 the upstream saw %q, %v", b, err)
					}
					c.SetReadDeadline(time.Time{})
					io.WriteString(c, switched)
					io.Copy(c, r)
				})
				r := start(t, engine, Settings{}, up.address)
				random := rand.New(rand.NewPCG(uint64(size), 4))
				early := make([]byte, size)
				for i := range early {
					early[i] = byte(random.Uint32())
				}
				c := r.dial()
				sent := make(chan error, 1)
				go func() {
					_, err := io.WriteString(c.Conn, upgrade+string(early)+"second")
					sent <- err
				}()
				<-asked
				if size <= http1.MaxHead { // it is with the kernel at least
					if err := <-sent; err != nil {
						t.Fatal(err)
					}
					sent <- nil
				}
				for range 8 { // both loops have looked at what there is
					other := r.dial()
					other.send("GET /other HTTP/1.1\r\nHost: a\r\n\r\n")
					other.answer("GET")
				}
				close(checked)
				if resp, _ := c.answer("GET"); resp.StatusCode != 101 {
					t.Fatalf("answered %d", resp.StatusCode)
				}
				want := string(early) + "secondthird"
				go func() {
					if err := <-sent; err == nil {
						io.WriteString(c.Conn, "third")
					}
				}()
				got := make([]byte, len(want))
				if n, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
					t.Errorf("%d of %d bytes came back, %v", n, len(want), err)
				}
				c.Conn.(*net.TCPConn).CloseWrite()
				c.closed()
				if all := r.wait(9); !slices.ContainsFunc(all, func(rec Record) bool { return rec.Status == 101 && rec.BytesIn == int64(len(upgrade)+len(want)) }) {
					t.Errorf("no record of %d bytes in", len(upgrade)+len(want))
				}
			})
		})
	}
}

// What the instance sends in one piece with its 101 is delivered, however the pieces are cut.
func TestFirstFrames(t *testing.T) {
	whole := func(size int) string { return switched + strings.Repeat("x", size) }
	for _, u := range []struct {
		id, send string
		each     int  // bytes of a write
		fin      bool // the instance ends right behind it
	}{
		{"U5 one frame", switched + frame, 1 << 20, false},
		{"U5 one frame and the end", switched + frame, 1 << 20, true},
		{"U5 byte by byte", switched + frame, 1, false},
		{"U5 byte by byte and the end", switched + frame, 1, true},
		{"U5 as much as is read with a head", whole(netloop.BufferSize - netloop.Slack - len(switched)), 1 << 20, true},
		{"U5 one more", whole(netloop.BufferSize - netloop.Slack - len(switched) + 1), 1 << 20, true},
		{"U5 a whole buffer", whole(netloop.BufferSize), 1 << 20, true},
		{"U5 long", whole(1 << 20), 1 << 20, true},
		{"U5 long, cut at odd places", whole(100_000), 4099, true},
	} {
		t.Run(u.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
					readHead(r)
					for rest := u.send; rest != ""; {
						n := min(len(rest), u.each)
						if _, err := io.WriteString(c, rest[:n]); err != nil {
							return
						}
						rest = rest[n:]
					}
					if !u.fin {
						io.Copy(io.Discard, r)
					}
				})
				r := start(t, engine, Settings{}, up.address)
				c := r.upgraded()
				want := u.send[len(switched):]
				got := make([]byte, len(want))
				if n, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
					t.Errorf("%d of %d bytes came, %v", n, len(want), err)
				}
				if !u.fin {
					c.Conn.(*net.TCPConn).CloseWrite()
				}
				c.closed()
			})
		})
	}
}

// Each side may end while the other goes on; who breaks off breaks off for both.
func TestTunnelEnds(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	type want struct {
		client, upstream           string // what each reads
		clientReset, upstreamReset bool   // and how that ends
	}
	for _, u := range []struct {
		id               string
		client, upstream func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) // what each does, and reads
		want             want
	}{
		{"U6 client ends first",
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				io.WriteString(c, "up")
				c.CloseWrite()
				return io.ReadAll(r)
			},
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				got, err := io.ReadAll(r)
				io.WriteString(c, long)
				return got, err
			}, want{client: long, upstream: "up"}},
		{"U6 instance ends first",
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				got, err := io.ReadAll(r)
				io.WriteString(c, long)
				c.CloseWrite()
				return got, err
			},
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				io.WriteString(c, "down")
				c.CloseWrite()
				return io.ReadAll(r)
			}, want{client: "down", upstream: long}},
		{"U6 both end at once",
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				go func() { io.WriteString(c, long); c.CloseWrite() }()
				return io.ReadAll(r)
			},
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				go func() { io.WriteString(c, long); c.CloseWrite() }()
				return io.ReadAll(r)
			}, want{client: long, upstream: long}},
		{"U6 client breaks off",
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				io.WriteString(c, "up")
				got, err := r.Peek(4)
				c.SetLinger(0)
				c.Close()
				return got, err
			},
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				got := make([]byte, 2)
				io.ReadFull(r, got)
				io.WriteString(c, "down")
				rest, err := io.ReadAll(r)
				return append(got, rest...), err
			}, want{client: "down", upstream: "up", upstreamReset: true}},
		{"U6 instance breaks off",
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				got := make([]byte, 4)
				io.ReadFull(r, got)
				io.WriteString(c, "up")
				rest, err := io.ReadAll(r)
				return append(got, rest...), err
			},
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				io.WriteString(c, "down")
				got := make([]byte, 2)
				io.ReadFull(r, got)
				c.SetLinger(0)
				c.Close()
				return got, nil
			}, want{client: "down", upstream: "up", clientReset: true}},
		{"U6 client ends, instance breaks off",
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) { c.CloseWrite(); return io.ReadAll(r) },
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				got, err := io.ReadAll(r)
				c.SetLinger(0)
				c.Close()
				return got, err
			}, want{clientReset: true}},
		{"U6 instance ends, client breaks off",
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) {
				got, err := io.ReadAll(r)
				c.SetLinger(0)
				c.Close()
				return got, err
			},
			func(c *net.TCPConn, r *bufio.Reader) ([]byte, error) { c.CloseWrite(); return io.ReadAll(r) },
			want{upstreamReset: true}},
	} {
		t.Run(u.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				type end struct {
					read []byte
					err  error
				}
				there := make(chan end, 1)
				up := switching(t, func(c *net.TCPConn, r *bufio.Reader) {
					read, err := u.upstream(c, r)
					there <- end{read, err}
				})
				r := start(t, engine, Settings{}, up.address)
				c := r.upgraded()
				read, err := u.client(c.Conn.(*net.TCPConn), c.r)
				if string(read) != u.want.client || (err != nil) != u.want.clientReset || err != nil && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the client read %d bytes, then %v", len(read), err)
				}
				select {
				case e := <-there:
					if string(e.read) != u.want.upstream || (e.err != nil) != u.want.upstreamReset || e.err != nil && !errors.Is(e.err, syscall.ECONNRESET) {
						t.Errorf("the upstream read %d bytes, then %v", len(e.read), e.err)
					}
				case <-time.After(10 * time.Second):
					t.Fatal("the upstream was not told of the end")
				}
				rec := r.wait(1)[0]
				if rec.Status != 101 || rec.BytesIn != int64(len(upgrade)+len(u.want.upstream)) || rec.BytesOut != int64(len(switched)+len(u.want.client)) {
					t.Errorf("record: %d, %d bytes in, %d out; want %d and %d", rec.Status, rec.BytesIn, rec.BytesOut,
						len(upgrade)+len(u.want.upstream), len(switched)+len(u.want.client))
				}
				if n := r.proxy.Tunnels(); n != 0 {
					t.Errorf("%d tunnels are left", n)
				}
			})
		})
	}
}

// limitOfDescriptors is how many this process may have open. (Go has raised it as far as it goes.)
func limitOfDescriptors(t *testing.T) int {
	text, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		t.Skip("no /proc")
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			if n, err := strconv.Atoi(strings.Fields(rest)[0]); err == nil {
				return n
			}
			return 1 << 20 // "unlimited"
		}
	}
	t.Fatalf("no limit in %s", text)
	return 0
}

// Tunnels on which nothing moves cost next to nothing, outlive the registration of their instance, and leave nothing behind
// when they are ended or the engine is. There are 10,000 of them where so many descriptors may be open: each takes four here.
// ROTA_TEST_TUNNELS says how many there are at most.
func TestIdleTunnels(t *testing.T) {
	many := 10_000
	if raceEnabled || testing.Short() {
		many = 1000
	}
	if text := os.Getenv("ROTA_TEST_TUNNELS"); text != "" {
		var err error
		if many, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	many = min(many, (limitOfDescriptors(t)-500)/4)
	for _, u := range []struct {
		id    string
		n     int
		do    func(r *rig)
		clean bool // both sides read the end of the stream; else they may read a reset
		goes  bool // they go on
	}{
		{"U6 engine stops", many, func(r *rig) { r.stop() }, false, false},
		{"U6 drain", 100, func(r *rig) { r.proxy.EndTunnels() }, true, false},
		{"U6 drain of the connections", 20, func(r *rig) { r.proxy.Drain(); r.engine.CloseIdle() }, true, true},
		{"U6 instance deregistered", 20, func(r *rig) { r.publish() }, true, true},
	} {
		t.Run(u.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				before, goroutines := descriptors(t), runtime.NumGoroutine()
				t.Run("tunnels", func(t *testing.T) {
					ends := make(chan error, u.n)
					up := switching(t, func(c *net.TCPConn, r *bufio.Reader) {
						var err error
						for b := make([]byte, 5); err == nil; { // no long buffer: it would be counted
							var n int
							if n, err = c.Read(b); err == nil {
								_, err = c.Write(b[:n])
							}
						}
						if err == io.EOF {
							err = nil
						}
						ends <- err
					})
					// upgraded connects so many clients, which keep what it takes them in memory, through the proxy or without it.
					upgraded := func(address string) (conns []net.Conn) {
						for range u.n {
							c, err := net.Dial("tcp", address)
							if err != nil {
								t.Fatal(err)
							}
							t.Cleanup(func() { c.Close() })
							c.SetDeadline(time.Now().Add(2 * patience))
							head := make([]byte, len(switched)+200)
							io.WriteString(c, upgrade)
							for n := 0; !bytes.HasSuffix(head[:n], []byte("\r\n\r\n")); {
								k, err := c.Read(head[n:])
								if n += k; err != nil {
									t.Fatalf("the upgrade was answered with %q, %v", head[:n], err)
								}
							}
							if !strings.HasPrefix(string(head), "HTTP/1.1 101 ") {
								t.Fatalf("the upgrade was answered with %q", head)
							}
							conns = append(conns, c)
						}
						return conns
					}
					inUse := func() int64 {
						var m runtime.MemStats
						runtime.GC()
						runtime.GC() // what is in a sync.Pool goes the second time
						runtime.ReadMemStats(&m)
						return int64(m.HeapAlloc + m.StackInuse)
					}
					var base, ours int64
					if u.n >= 1000 { // the test's own part of the memory
						base = inUse()
						direct := upgraded(up.address)
						ours = inUse() - base
						for _, c := range direct {
							c.Close()
							<-ends
						}
					}
					r := start(t, engine, Settings{}, up.address)
					base = inUse()
					clients := upgraded(r.address)
					r.eventually("all are tunnels", func() bool { return r.proxy.Tunnels() == u.n }) // a client has its 101 a moment before
					// None; goroutines, which cannot wait without one, have one for each direction.
					buffers, most := 0, int64(24<<10)
					if engine == netloop.Goroutines {
						buffers, most = 2, 68<<10
					}
					if usage := r.engine.Usage(); usage.Buffers > buffers*u.n || usage.Pipes != 0 {
						t.Errorf("%d idle tunnels hold %+v", u.n, usage)
					}
					if u.n >= 1000 {
						each := (inUse() - base - ours) / int64(u.n)
						t.Logf("%d tunnels: %d bytes for each, beside %d of the test", u.n, each, ours/int64(u.n))
						if each > most && !raceEnabled {
							t.Errorf("an idle tunnel takes %d bytes", each)
						}
					}
					u.do(r)
					if u.goes {
						for i, c := range clients {
							io.WriteString(c, "still")
							got := make([]byte, 5)
							if _, err := io.ReadFull(c, got); err != nil || string(got) != "still" {
								t.Fatalf("tunnel %d brought %q, %v", i, got, err)
							}
							c.(*net.TCPConn).CloseWrite()
						}
					}
					for i, c := range clients {
						if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil && (u.clean || !errors.Is(err, syscall.ECONNRESET)) {
							t.Fatalf("client %d read %q, %v", i, rest, err)
						}
						c.Close()
					}
					for range clients {
						select {
						case err := <-ends:
							if err != nil && (u.clean || !errors.Is(err, syscall.ECONNRESET)) {
								t.Fatalf("an upstream read %v", err)
							}
						case <-time.After(10 * time.Second):
							t.Fatal("an upstream was not told of the end")
						}
					}
					r.wait(u.n)
					// An exchange is told of a moment before it is counted out.
					r.eventually("none is left", func() bool { return r.proxy.Tunnels()+r.service.InFlight() == 0 })
				})
				for deadline := time.Now().Add(10 * time.Second); descriptors(t) > before+5 || runtime.NumGoroutine() > goroutines+5; time.Sleep(time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("%d descriptors and %d goroutines, %d and %d before", descriptors(t), runtime.NumGoroutine(), before, goroutines)
					}
				}
			})
		})
	}
}

// Whatever goes through a tunnel arrives as it was, in both directions at once, and the memory does not grow by it.
// ROTA_TEST_BODY=1g makes it a GiB each way.
func TestLongTunnel(t *testing.T) {
	size := 256 << 20
	switch {
	case os.Getenv("ROTA_TEST_BODY") == "1g":
		size = 1 << 30
	case testing.Short() || raceEnabled:
		size = 64 << 20
	}
	block := make([]byte, 1<<20+7)
	random := rand.New(rand.NewPCG(6, 6))
	for i := range block {
		block[i] = byte(random.Uint32())
	}
	send := func(c net.Conn, of []byte) (sum [32]byte, err error) {
		h := sha256.New()
		for left := size; left > 0 && err == nil; {
			n := min(left, len(of))
			h.Write(of[:n])
			_, err = c.Write(of[:n])
			left -= n
		}
		c.(*net.TCPConn).CloseWrite()
		return [32]byte(h.Sum(nil)), err
	}
	receive := func(r io.Reader, buf []byte) (sum [32]byte, n int, err error) {
		h := sha256.New()
		for err == nil {
			var k int
			k, err = r.Read(buf)
			h.Write(buf[:k])
			n += k
		}
		if err == io.EOF {
			err = nil
		}
		return [32]byte(h.Sum(nil)), n, err
	}
	eachEngine(t, func(t *testing.T, engine string) {
		ln, err := net.Listen("tcp", private)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		r := start(t, engine, Settings{}, ln.Addr().String())
		accepted := make(chan net.Conn, 1)
		go func() {
			defer close(accepted)
			if up, err := ln.Accept(); err == nil {
				if readHead(bufio.NewReader(up)) != "" {
					io.WriteString(up, switched)
				}
				accepted <- up
			}
		}()
		c := r.upgraded()
		up, ok := <-accepted
		if !ok {
			t.Fatal("no upstream connection")
		}
		defer up.Close()
		for _, conn := range []net.Conn{c.Conn, up} {
			conn.SetDeadline(time.Now().Add(5 * time.Minute))
		}
		there, back := make([]byte, 256<<10), make([]byte, 256<<10)
		other := bytes.Clone(block[1:])
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var sent, got [2][32]byte
		var fault [4]error
		var bytesGot [2]int
		var all sync.WaitGroup
		all.Go(func() { sent[0], fault[0] = send(c.Conn, block) })
		all.Go(func() { sent[1], fault[1] = send(up, other) })
		all.Go(func() { got[0], bytesGot[0], fault[2] = receive(up, there) })
		all.Go(func() { got[1], bytesGot[1], fault[3] = receive(c.r, back) })
		all.Wait()
		runtime.ReadMemStats(&after)
		if err := errors.Join(fault[:]...); err != nil {
			t.Fatal(err)
		}
		if sent != got || bytesGot != [2]int{size, size} {
			t.Errorf("of %d bytes came %v, sums equal: %v, %v", size, bytesGot, sent[0] == got[0], sent[1] == got[1])
		}
		t.Logf("%d MiB each way; heap of %d KiB in use grew by %d, of the system by %d; %d KiB were allocated", size>>20, before.HeapInuse>>10,
			int64(after.HeapInuse-before.HeapInuse)>>10, int64(after.HeapSys-before.HeapSys)>>10, (after.TotalAlloc-before.TotalAlloc)>>10)
		const most = 8 << 20
		if int64(after.HeapInuse-before.HeapInuse) > most || int64(after.HeapSys-before.HeapSys) > most {
			t.Error("the memory grew by it")
		}
		if rec := r.wait(1)[0]; rec.BytesIn != int64(size+len(upgrade)) || rec.BytesOut != int64(size+len(switched)) {
			t.Errorf("record: %d bytes in, %d out", rec.BytesIn, rec.BytesOut)
		}
	})
}
