package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/rota-lb/rota/balancer/internal/route"
)

// These are the attacks on fields that are the proxy's own: the hop-by-hop ones, and those that say where a request came
// from (HH in the catalogue). Want is always the whole head that the upstream sees: what is not in it did not get through.

// wantHop is what both sides must see of a request.
type wantHop struct {
	status   int
	upstream string // the bytes that reach the upstream; empty is none
	client   string // the address that the record names; empty is the peer
}

// hop is one request from a client that would have a say in what is ours.
type hop struct {
	id, send string
	want     wantHop
}

// ours is what follows the fields that are passed on, in a request for host a that nobody vouches for.
const ours = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n"

// end is what every request to an upstream ends with, when the operator names a field and ids have a name.
const end = "X-Request-Id: mine\r\nX-Operator: set\r\nVia: 1.1 rota\r\n\r\n"

// hops runs requests against a proxy with every field that it can set.
func hops(t *testing.T, settings Settings, table []hop) {
	settings.RequestID = "X-Request-Id"
	eachEngine(t, func(t *testing.T, engine string) {
		for _, h := range table {
			t.Run(h.id, func(t *testing.T) {
				up := record(t)
				r := startWith(t, engine, settings, func(r *rig) {
					r.routes[0].Rules = &route.Rules{Request: route.Edit{
						Remove: []string{"x-gone", "x-operator"}, Add: []byte("X-Operator: set\r\n"),
					}}
				}, up.address)
				c := r.dial()
				c.send(h.send)
				resp, body := c.final("GET")
				if resp.StatusCode != h.want.status {
					t.Fatalf("answered %d %s, want %d", resp.StatusCode, body, h.want.status)
				}
				if seen := up.bytes(); seen != h.want.upstream {
					t.Errorf("the upstream saw\n%q, want\n%q", seen, h.want.upstream)
				}
				if client := h.want.client; client != "" {
					if got := r.wait(1)[0].Client.Addr(); got != netip.MustParseAddr(client) {
						t.Errorf("the client is %v, want %s", got, client)
					}
				}
				if resp.StatusCode == 200 && !resp.Close { // what follows is a request of its own
					c.send("GET /next HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n\r\n")
					if resp, body := c.answer("GET"); resp.StatusCode != 200 || body != "GET /next " {
						t.Errorf("the next request got %d %q", resp.StatusCode, body)
					}
				}
			})
		}
	})
}

// Whatever a client names in Connection, the upstream gets every field that we set, and the client's own named ones go.
func TestConnectionNamesOurs(t *testing.T) {
	const get, id = "GET / HTTP/1.1\r\nHost: a\r\n", "X-Request-Id: mine\r\n"
	const got = get + ours + end
	spellings := map[string]func(name string) string{
		"alone":       func(n string) string { return "Connection: " + n },
		"lower case":  func(n string) string { return "connection: " + strings.ToLower(n) },
		"upper case":  func(n string) string { return "CONNECTION: " + strings.ToUpper(n) },
		"in a list":   func(n string) string { return "Connection: keep-alive, x-gone," + n + ",cookie" },
		"over lines":  func(n string) string { return "Connection: keep-alive\r\nX-Between: 1\r\nConnection: " + n },
		"with tabs":   func(n string) string { return "Connection:\tkeep-alive\t,\t" + n + "\t" },
		"with commas": func(n string) string { return "Connection: ,, " + n + " ,," },
		"twice":       func(n string) string { return "Connection: " + n + ", " + n + "\r\nConnection: " + n },
	}
	between := func(spelling, head string) string {
		if spelling == "over lines" {
			return strings.Replace(head, "X-Forwarded-For", "X-Between: 1\r\nX-Forwarded-For", 1)
		}
		return head
	}
	var table []hop
	for spelling, line := range spellings {
		add := func(name, forged, upstream string) {
			table = append(table, hop{"HH1 Connection names " + name + " " + spelling, get + forged + id + line(name) + "\r\n\r\n",
				wantHop{status: 200, upstream: between(spelling, upstream)}})
		}
		add("Host", "", got)
		add("X-Forwarded-For", "X-Forwarded-For: 6.6.6.6\r\n", got)
		add("X-Forwarded-Proto", "X-Forwarded-Proto: https\r\n", got)
		add("X-Forwarded-Host", "X-Forwarded-Host: evil\r\n", got)
		add("X-Request-Id", "", got)
		add("X-Operator", "X-Operator: forged\r\n", got)
		add("Via", "Via: 1.0 evil\r\n", got)
		add("Connection", "", got)
		add("Authorization", "Authorization: Basic eDp5\r\n", got)
		add("Cookie", "Cookie: a=b\r\n", got)
		add("TE", "TE: trailers\r\n", got)
		add("close2", "Close2: 1\r\n", got)
		// Who asks for an upgrade must name it, and nothing else of it can be taken away.
		table = append(table, hop{"HH1 Connection names Upgrade, but there is none " + spelling, get + id + line("Upgrade") + "\r\n\r\n",
			wantHop{status: 200, upstream: between(spelling, got)}})
		// The framing is ours too.
		for _, name := range []string{"Content-Length", "Expect", "Transfer-Encoding"} {
			for framing, body := range map[string]string{"Content-Length: 5\r\n": "hello", "Transfer-Encoding: chunked\r\n": "5\r\nhello\r\n0\r\n\r\n"} {
				post := "POST / HTTP/1.1\r\nHost: a\r\n"
				head := post + framing
				expect := ""
				if name == "Expect" {
					expect = "Expect: 100-continue\r\n"
				}
				want := strings.Replace(head, post, between(spelling, post+"X-Forwarded-For"), 1)
				want = strings.Replace(want, "X-Forwarded-For", "", 1) + expect + ours + end + body
				table = append(table, hop{fmt.Sprintf("HH1 Connection names %s of a body by %.14s %s", name, framing, spelling),
					head + expect + id + line(name) + "\r\n\r\n" + body, wantHop{status: 200, upstream: want}})
			}
		}
	}
	table = append(table,
		hop{"HH1 Connection closes and names Host", get + id + "Connection: close, Host, X-Forwarded-For\r\n\r\n", wantHop{status: 200, upstream: got}},
		hop{"HH1 all at once", get + id + "Connection: close, X-Forwarded-For, x-forwarded-host, X-Real-Ip, Authorization, Host, Content-Length, Cookie, X-Request-Id, Via, X-Operator\r\n" +
			"X-Real-Ip: 6.6.6.6\r\nAuthorization: x\r\nCookie: y\r\nX-Forwarded-Host: evil\r\n\r\n", wantHop{status: 200, upstream: got}},
		hop{"HH1 folded", get + id + "Connection: close,\r\n X-Forwarded-For\r\n\r\n", wantHop{status: 400}},
		hop{"HH1 folded with a tab", get + id + "Connection: close,\r\n\tHost\r\n\r\n", wantHop{status: 400}},
		hop{"HH1 no token", get + id + "Connection: close, Ho st\r\n\r\n", wantHop{status: 400}},
		hop{"HH1 quoted", get + id + "Connection: \"Host\"\r\n\r\n", wantHop{status: 400}},
		hop{"HH1 twin of Connection", get + id + "Connection_: Host\r\nX-Kept: 1\r\n\r\n",
			wantHop{status: 200, upstream: get + "Connection_: Host\r\nX-Kept: 1\r\n" + ours + end}},
	)
	hops(t, Settings{}, table)
}

// What an answer names in its Connection goes, and the framing towards the client stays ours.
func TestConnectionNamesInAnswers(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		for _, a := range []struct{ id, answer, want string }{
			{"HH1 answer names Content-Length", "Content-Length: 2\r\nConnection: Content-Length\r\n\r\nok", "Content-Length: 2\r\n\r\nok"},
			{"HH1 answer names Transfer-Encoding", "Transfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n\r\n2\r\nok\r\n0\r\n\r\n",
				"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
			{"HH1 answer names its own", "X-Internal: 1\r\nX-Kept: 2\r\nContent-Length: 2\r\nConnection: keep-alive,\tx-internal\r\n\r\nok",
				"X-Kept: 2\r\nContent-Length: 2\r\n\r\nok"},
			{"HH1 answer names what the operator adds", "X-Frame-Options: no\r\nContent-Length: 2\r\nConnection: X-Frame-Options\r\n\r\nok",
				"Content-Length: 2\r\n\r\nok"},
			{"HH3 hop-by-hop answer", "Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nUpgrade: h2c\r\nHost: evil\r\nContent-Length: 2\r\n\r\nok",
				"Content-Length: 2\r\n\r\nok"},
		} {
			t.Run(a.id, func(t *testing.T) {
				up := scripted(t, "HTTP/1.1 200 OK\r\n"+a.answer, false)
				r := startWith(t, engine, Settings{}, func(r *rig) {
					r.routes[0].Rules = &route.Rules{Response: route.Edit{Remove: []string{"x-frame-options"}, Add: []byte("X-Frame-Options: DENY\r\n")}}
				}, up.address)
				c := r.dial()
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
				all, err := io.ReadAll(c.r)
				if err != nil {
					t.Fatal(err)
				}
				head, body, _ := strings.Cut(a.want, "\r\n\r\n")
				head = "HTTP/1.1 200 OK\r\n" + head + "\r\nX-Frame-Options: DENY\r\n"
				if want := head + "\r\n" + body + head + "Connection: close\r\n\r\n" + body; string(all) != want {
					t.Errorf("the client got\n%q, want\n%q", all, want)
				}
				if n := up.connections(); n != 1 {
					t.Errorf("%d upstream connections", n)
				}
			})
		}
	})
}

// An upgrade to HTTP/2 in the clear would take the connection out of the proxy's hands: it is never asked for, and an
// instance that agrees all the same is not believed.
func TestNoUpgradeToHTTP2(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: a\r\n"
	for _, h := range []struct{ id, fields string }{
		{"HH2 as specified", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"},
		{"HH2 settings not named", "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"},
		{"HH2 upper case", "CONNECTION: UPGRADE, HTTP2-SETTINGS\r\nUPGRADE: H2C\r\nHTTP2-SETTINGS: AAMAAABk\r\n"},
		{"HH2 not named", "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"},
		{"HH2 with keep-alive", "Connection: keep-alive, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"},
		{"HH2 h2", "Connection: Upgrade\r\nUpgrade: h2\r\n"},
		{"HH2 HTTP/2.0", "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n"},
		{"HH2 behind websocket", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Key: " + key + "\r\n"},
		{"HH2 before websocket", "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\nSec-WebSocket-Key: " + key + "\r\n"},
		{"HH2 second field", "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\nSec-WebSocket-Key: " + key + "\r\n"},
		{"HH2 twin", "Connection: Upgrade\r\nUpgrade_: h2c\r\nHTTP2_Settings: AAMAAABk\r\n"},
	} {
		t.Run(h.id, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				for _, agrees := range []bool{false, true} { // the instance says 101 whatever it is asked
					up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
						for {
							if req, err := http.ReadRequest(r); err != nil {
								return
							} else if agrees || req.Header.Get("Upgrade") != "" {
								io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nsecret")
								continue
							}
							io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
						}
					})
					r := start(t, engine, Settings{}, up.address)
					c := r.dial()
					c.send(get + h.fields + "\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
					resp, body := c.answer("GET")
					if want := map[bool]int{false: 200, true: 502}[agrees]; resp.StatusCode != want || strings.Contains(body, "secret") {
						t.Errorf("answered %d %q, want %d", resp.StatusCode, body, want)
					}
					if resp, _ := c.answer("GET"); resp.StatusCode != 405 && resp.StatusCode != 505 { // the preface is a request like any other
						t.Errorf("the preface was answered with %d", resp.StatusCode)
					}
					c.closed()
					seen := strings.ToLower(up.bytes())
					if h.id == "HH2 twin" {
						seen = strings.Replace(seen, "upgrade_: h2c\r\n", "", 1) // the name of another field
					}
					if strings.Contains(seen, "upgrade") || strings.Contains(seen, "settings") || strings.Contains(seen, "pri *") || strings.Count(seen, "\r\n\r\n") != 1 {
						t.Errorf("the upstream saw %q", seen)
					}
				}
			})
		})
	}
}

// Fields that are for the next hop alone, or that say what only we can know, do not get through from whom we do not trust;
// nor do their twins with underscores, which many servers read as the same.
func TestForgedFields(t *testing.T) {
	const get, id = "GET / HTTP/1.1\r\nHost: a\r\n", "X-Request-Id: mine\r\n"
	var table []hop
	drop := func(name, fields string) {
		table = append(table, hop{name, get + fields + id + "\r\n", wantHop{status: 200, upstream: get + ours + end, client: "127.0.0.1"}})
	}
	pass := func(name, fields, seen string) {
		table = append(table, hop{name, get + fields + id + "\r\n", wantHop{status: 200, upstream: get + seen + ours + end}})
	}
	drop("HH3 TE with more", "TE: trailers, gzip\r\n")
	drop("HH3 TE deflate", "TE: deflate\r\n")
	drop("HH3 TE chunked", "TE: chunked\r\n")
	pass("HH3 TE trailers", "Te: trailers\r\n", "Te: trailers\r\n")
	pass("HH3 TE two fields", "Te: trailers\r\nTE: gzip\r\n", "Te: trailers\r\n")
	for _, field := range []string{
		"Proxy-Connection: keep-alive", "Proxy-Authorization: Basic eDp5", "Proxy: http://evil", "Keep-Alive: timeout=5", "Trailer: Host", "Upgrade: websocket", "HTTP2-Settings: AAMAAABk",
	} {
		name, value, _ := strings.Cut(field, ":")
		drop("HH3 "+name, field+"\r\n")
		drop("HH3 twice "+name, strings.ToUpper(field)+"\r\n"+strings.ToLower(field)+"\r\n")
		if twin := strings.ReplaceAll(name, "-", "_"); twin != name {
			drop("HH3 "+twin, twin+":"+value+"\r\n")
		}
	}
	for _, name := range []string{
		"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Server", "X-Forwarded-Method", "X-Forwarded-Uri",
		"X-Forwarded-User", "X-Forwarded-Ssl", "X-Forwarded-Client-Cert", "Forwarded", "X-Real-Ip", "X-Original-URL", "X-Rewrite-URL", "X-Client-Cert",
		"X-Client-Cert-Subject", "X-Client-Cert-Issuer",
	} {
		forged := name + ": 6.6.6.6\r\n"
		drop("HH4 "+name, forged)
		drop("HH4 cases of "+name, strings.ToLower(forged)+strings.ToUpper(forged))
		drop("HH4 twice "+name, forged+forged+strings.Repeat(forged, 50))
		if twin := strings.ReplaceAll(name, "-", "_"); twin != name {
			drop("HH4 twin "+twin, twin+": 6.6.6.6\r\n")
			drop("HH4 twins of "+name, forged+strings.Replace(name, "-", "_", 1)+": 6.6.6.6\r\n"+strings.ToUpper(twin)+": 6.6.6.6\r\n")
		}
	}
	drop("HH4 twin of X-Request-Id", "X_Request_Id: forged\r\nx-request_id: forged\r\n")
	drop("HH4 twin of a field that the operator sets", "X_Operator: forged\r\n")
	drop("HH4 twin of a field that the operator removes", "X_Gone: forged\r\nX-Gone: forged\r\n")
	drop("HH4 twin in other cases of a field that the operator removes", "X_gone: forged\r\nX-GONE: forged\r\n")
	drop("HH4 what the operator sets", "X-Operator: forged\r\nx-operator: forged\r\n")
	drop("HH4 second id", id)
	pass("HH4 other underscores", "X_Mine: 1\r\n", "X_Mine: 1\r\n")
	table = append(table, hop{"HH4 flood", get + strings.Repeat("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n", 200) + "\r\n", wantHop{status: 431}})
	hops(t, Settings{}, table)
}

// From a peer that is trusted the chain is believed up to the right-most address that is not, and passed on.
func TestTrustedPeer(t *testing.T) {
	const get, id = "GET / HTTP/1.1\r\nHost: a\r\n", "X-Request-Id: mine\r\n"
	var table []hop
	add := func(name, fields, passed, chain, proto, host, client string) {
		if chain != "" {
			chain += ", "
		}
		table = append(table, hop{"HH5 " + name, get + fields + id + "\r\n", wantHop{status: 200, client: client,
			upstream: get + passed + "X-Forwarded-For: " + chain + "127.0.0.1\r\nX-Forwarded-Proto: " + proto + "\r\nX-Forwarded-Host: " + host + "\r\n" + end}})
	}
	walk := func(name, chain, client string) {
		add(name, "X-Forwarded-For: "+chain+"\r\n", "", chain, "http", "a", client)
	}
	walk("one", "203.0.113.7", "203.0.113.7")
	walk("right-most that is not trusted", "198.51.100.1, 203.0.113.7, 10.0.0.9", "203.0.113.7")
	walk("mapped", "203.0.113.7, ::ffff:10.0.0.9", "203.0.113.7")
	walk("mapped client", "::ffff:203.0.113.7", "203.0.113.7")
	walk("bracketed with port", "a, b, , \"[2001:db8::1]:80\"", "2001:db8::1")
	walk("zone", "203.0.113.7, fe80::1%eth0", "127.0.0.1")
	walk("unknown", "203.0.113.7, unknown", "127.0.0.1")
	walk("no address", "203.0.113.7, 999.1.1.1, 10.0.0.9", "10.0.0.9")
	walk("1,000 hops", "203.0.113.7"+strings.Repeat(", 10.0.0.9", 1000), "10.0.0.9")
	walk("1,000 hops, one not trusted", strings.Repeat("10.0.0.9, ", 1000)+"203.0.113.7", "203.0.113.7")
	add("two lines", "X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 203.0.113.7, 10.0.0.9\r\n", "", "198.51.100.1, 203.0.113.7, 10.0.0.9", "http", "a", "203.0.113.7")
	add("an empty line", "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For:\r\n", "", "203.0.113.7", "http", "a", "203.0.113.7")
	add("none", "", "", "", "http", "a", "127.0.0.1")
	add("named in Connection", "X-Forwarded-For: 203.0.113.7\r\nConnection: x-forwarded-for\r\n", "", "203.0.113.7", "http", "a", "203.0.113.7")
	add("twins", "X_Forwarded_For: 6.6.6.6\r\nX-Forwarded_Proto: https\r\nX_Forwarded_Host: evil\r\nX_Real_IP: 6.6.6.6\r\nX_Forwarded_Port: 1\r\n", "", "", "http", "a", "127.0.0.1")
	add("proto and host", "X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n", "", "", "https", "shop.example", "127.0.0.1")
	add("odd proto", "X-Forwarded-Proto: HTTPS\r\n", "", "", "http", "a", "127.0.0.1")
	add("proto list", "X-Forwarded-Proto: https, http\r\n", "", "", "http", "a", "127.0.0.1")
	add("first proto and host", "X-Forwarded-Proto: http\r\nX-Forwarded-Host: one\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: two\r\n", "", "", "http", "one", "127.0.0.1")
	add("empty host", "X-Forwarded-Host:\r\n", "", "", "http", "a", "127.0.0.1")
	const kept, forwarded = "X-Real-IP: 203.0.113.7\r\nX-Forwarded-Port: 443\r\n", "Forwarded: for=203.0.113.7"
	add("passed on", forwarded+"\r\n"+kept, kept+forwarded+", for=127.0.0.1;proto=http\r\n", "", "http", "a", "203.0.113.7")
	add("Forwarded twice", forwarded+"\r\nForwarded: for=10.0.0.9;by=x\r\n", forwarded+", for=10.0.0.9;by=x, for=127.0.0.1;proto=http\r\n", "", "http", "a", "203.0.113.7")
	add("Forwarded from whom the peer does not speak of", "Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 203.0.113.7\r\n", "", "203.0.113.7", "http", "a", "203.0.113.7")
	add("X-Real-IP of another", "X-Real-IP: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.7\r\n", "", "203.0.113.7", "http", "a", "203.0.113.7")
	add("X-Real-IP that is none", "X-Real-IP: me\r\nX-Forwarded-For: 203.0.113.7\r\n", "", "203.0.113.7", "http", "a", "203.0.113.7")
	hops(t, Settings{Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}}, table)
}
