package balancer

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/config"
)

// written runs a daemon as a file says, of which text is what the test is about.
func written(t *testing.T, engine, text string) *daemon {
	t.Helper()
	parsed, err := config.Parse("rota.yaml", []byte(`
etcd: {disabled: true}
admin: {address: "127.0.0.1:0"}
log: {access: "off"}
loops: 2
engine: `+engine+text))
	if err != nil {
		t.Fatal(err)
	}
	return run(t, nil, func(c *config.Config) { *c = *parsed })
}

// Routes match as they are written in the file: by method, field, parameter, expression, and all of that together.
func TestRoutesAsWritten(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Header.Get("X-Route")+" "+r.URL.Path)
	}))
	defer up.Close()
	const routes = `
listeners: [{address: "127.0.0.1:0", protocol: http}]
services: {s: {instances: [{address: "%s"}]}}
routes:
  - {name: plain, path: /m, service: s, request_headers: {set: {X-Route: plain}}}
  - {name: methods, path: /m, methods: [POST, PURGE], service: s, request_headers: {set: {X-Route: methods}}}
  - {name: get-only, path: /get, methods: [GET], service: s, request_headers: {set: {X-Route: get-only}}}
  - {name: field, path: /f, headers: {X-Beta: "1"}, service: s, request_headers: {set: {X-Route: field}}}
  - {name: field-any, path: /f, headers: {x-any: "*"}, service: s, request_headers: {set: {X-Route: field-any}}}
  - {name: field-expression, path: /f, headers: {X-Version: '~v[12](\.[0-9]+)?'}, service: s, request_headers: {set: {X-Route: field-expression}}}
  - {name: query, path: /q, query: {debug: "1"}, service: s, request_headers: {set: {X-Route: query}}}
  - {name: query-any, path: /q, query: {trace: "*"}, service: s, request_headers: {set: {X-Route: query-any}}}
  - {name: query-expression, path: /q, query: {id: "~[0-9]{3}|x"}, service: s, request_headers: {set: {X-Route: query-expression}}}
  - name: everything
    host: Shop.Example.com
    path: /q
    methods: [GET, HEAD]
    headers: {X-A: "1", X-B: "~b+"}
    query: {x: "y z", debug: "*"}
    service: s
    request_headers: {set: {X-Route: everything}}
  - {name: users, path: '~/users/([0-9]+|me)(/.*)?', service: s, request_headers: {set: {X-Route: users}}}
  - {name: user-7, path: =/users/7, service: s, request_headers: {set: {X-Route: user-7}}}
  - {name: users-post, path: '~/users/([0-9]+|me)(/.*)?', methods: [POST], service: s, request_headers: {set: {X-Route: users-post}}}
  - {name: replaced, path: /old, replace_prefix: /new/v1, headers: {X-Old: "*"}, service: s, request_headers: {set: {X-Route: replaced}}}
  - {name: secure, path: /scheme, scheme: https, service: s, request_headers: {set: {X-Route: secure}}}
  - {name: objects, path: /o, encoded_slashes: true, service: s}
  - {name: first, path: /m/admin, priority: 5, service: s, request_headers: {set: {X-Route: first}}}
`
	const none = "" // no route takes it
	eachEngine(t, func(t *testing.T, engine string) {
		d := written(t, engine, fmt.Sprintf(routes, up.Listener.Addr()))
		c, err := net.Dial("tcp", d.Addresses()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		answers := bufio.NewReader(c)
		for _, q := range []struct{ line, fields, want string }{
			{"GET /m", "", "plain /m"},
			{"GET /m/x", "", "plain /m/x"},
			{"GET /mx", "", none},
			{"POST /m", "", "methods /m"},
			{"PURGE /m/x", "", "methods /m/x"},
			{"PUT /m", "", "plain /m"},
			{"POST /m/admin", "", "first /m/admin"},
			{"GET /get", "", "get-only /get"},
			{"GET /o/a%2Fb", "", " /o/a/b"},
			{"POST /get", "", none},
			{"get /get", "", none},

			{"GET /f", "", none},
			{"GET /f", "X-Beta: 1", "field /f"},
			{"GET /f", "x-beta:1", "field /f"},
			{"GET /f", "X-Beta: 11", none},
			{"GET /f", "X-Beta: 0\r\nX-Beta: 1", "field /f"},
			{"GET /f", "X-Any: ", "field-any /f"},
			{"GET /f", "X-ANY: whatever", "field-any /f"},
			{"GET /f", "X-Version: v1", "field-expression /f"},
			{"GET /f", "X-Version: v2.17", "field-expression /f"},
			{"GET /f", "X-Version: v3", none},
			{"GET /f", "X-Version: av1", none},
			{"GET /f", "X-Version: v1x", none},

			{"GET /q", "", none},
			{"GET /q?debug=1", "", "query /q"},
			{"GET /q?a=b&debug=1&c", "", "query /q"},
			{"GET /q?debug=0", "", none},
			{"GET /q?debug=0&debug=1", "", "query /q"},
			{"GET /q?%64ebug=%31", "", "query /q"},
			{"GET /q?Debug=1", "", none},
			{"GET /q?trace", "", "query-any /q"},
			{"GET /q?trace=", "", "query-any /q"},
			{"GET /q?id=123", "", "query-expression /q"},
			{"GET /q?id=x", "", "query-expression /q"},
			{"GET /q?id=1234", "", none},
			{"GET /q?id=12a", "", none},

			{"GET /q?debug=7&x=y+z", "Host: shop.example.com\r\nX-A: 1\r\nX-B: bbb", "everything /q"},
			{"GET /q?debug=1&x=y%20z", "Host: SHOP.example.com:80\r\nX-A: 1\r\nX-B: b", "everything /q"},
			{"GET /q?debug=1&x=y+z", "X-A: 1\r\nX-B: b", "query /q"}, // another host
			{"GET /q?debug=1&x=y+z", "Host: shop.example.com\r\nX-A: 1\r\nX-B: c", "query /q"},
			{"GET /q?debug=1&x=y+z", "Host: shop.example.com\r\nX-B: b", "query /q"},
			{"GET /q?debug=1&x=yz", "Host: shop.example.com\r\nX-A: 1\r\nX-B: b", "query /q"},
			{"PUT /q?debug=1&x=y+z", "Host: shop.example.com\r\nX-A: 1\r\nX-B: b", "query /q"},

			{"GET /users/12", "", "users /users/12"},
			{"GET /users/me/photo", "", "users /users/me/photo"},
			{"GET /users/you", "", none},
			{"GET /v/users/12", "", none},
			{"GET /users/12x", "", none},
			{"GET /users/../users/12", "", "users /users/12"},
			{"GET /users/7", "", "user-7 /users/7"},
			{"GET /users/7/", "", "users /users/7/"},
			{"POST /users/12", "", "users-post /users/12"},

			{"GET /old/x", "X-Old: 1", "replaced /new/v1/x"},
			{"GET /old", "X-Old: 1", "replaced /new/v1"},
			{"GET /old/x", "", none},
			{"GET /scheme", "", none},
		} {
			fields := q.fields
			if !strings.HasPrefix(fields, "Host:") {
				fields = strings.TrimSuffix("Host: a\r\n"+fields, "\r\n")
			}
			fmt.Fprintf(c, "%s HTTP/1.1\r\n%s\r\nContent-Length: 0\r\n\r\n", q.line, fields)
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatalf("%s, %q: %v", q.line, q.fields, err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if q.want == none && (resp.StatusCode != 404 || resp.Header.Get("X-Rota-Reason") != "no_route") || q.want != none && string(body) != q.want {
				t.Errorf("%s, %q: %d %.60q, want %q", q.line, q.fields, resp.StatusCode, body, q.want)
			}
		}
	})
}

// What the file says of how many connections a listener takes, in all and of one client, and of how often a client may ask, holds:
// for that listener, that client and that route alone, and as long as the connections are open.
func TestLimitsAsWritten(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		upstream, _ := counted(t)
		d := written(t, engine, fmt.Sprintf(`
listeners:
  - {address: "127.0.0.1:0", protocol: http, max_connections: 2}
  - {address: "127.0.0.1:0", protocol: http, max_connections_per_client: 2}
  - {address: "127.0.0.1:0", protocol: http}
services: {s: {instances: [{address: "%s"}]}}
routes:
  - {name: r, service: s}
  - {name: limited, path: /limited, service: s, rate_limit: {rate: 1/h, burst: 2}}
  - {name: limited-by-key, path: /key, service: s, rate_limit: {rate: 1/h, burst: 2, key: "header:X-Key"}}
`, upstream))
		// connect opens a connection from an address.
		connect := func(listener int, from string) net.Conn {
			t.Helper()
			c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", d.Addresses()[listener].String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(20 * time.Second))
			return c
		}
		// ask is the status of an answer, 0 where the connection is closed without one.
		ask := func(c net.Conn, path, field string) int {
			t.Helper()
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n", path, field)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatal("neither answered nor closed")
			}
			if err != nil {
				return 0
			}
			io.Copy(io.Discard, resp.Body)
			return resp.StatusCode
		}
		const one = "127.0.0.1"
		two := one // another client, where the system has more loopback addresses
		if runtime.GOOS == "linux" {
			two = "127.0.0.2"
		}
		for listener, others := range map[int][]string{0: {two}, 1: {}} {
			first, second := connect(listener, one), connect(listener, one)
			if a, b := ask(first, "/", ""), ask(second, "/", ""); a != 200 || b != 200 {
				t.Fatalf("listener %d: the first two are answered %d and %d", listener, a, b)
			}
			for _, from := range append(others, one) {
				if status := ask(connect(listener, from), "/", ""); status != 0 {
					t.Errorf("listener %d: a third connection, from %s, is answered %d", listener, from, status)
				}
			}
			if listener == 1 && two != one {
				for range 2 {
					if status := ask(connect(listener, two), "/", ""); status != 200 {
						t.Errorf("another client is answered %d", status)
					}
				}
				if status := ask(connect(listener, two), "/", ""); status != 0 {
					t.Errorf("a third connection of another client is answered %d", status)
				}
			}
			if a, b := ask(first, "/", ""), ask(second, "/", ""); a != 200 || b != 200 {
				t.Errorf("listener %d: the first two are answered %d and %d afterwards", listener, a, b)
			}
			first.Close()
			for deadline := time.Now().Add(10 * time.Second); ask(connect(listener, one), "/", "") != 200; {
				if time.Now().After(deadline) {
					t.Fatalf("listener %d: no connection takes the place of one that is closed", listener)
				}
			}
		}
		var free []net.Conn
		for range 5 {
			free = append(free, connect(2, one))
		}
		for _, c := range free {
			if status := ask(c, "/", ""); status != 200 {
				t.Errorf("a listener without limits answers %d", status)
			}
		}
		text := d.metrics(t)
		for listener, least := range []int{2, 1, 0} {
			name := fmt.Sprintf(`rota_connections_refused_total{listener="%s"} `, d.Addresses()[listener])
			_, rest, found := strings.Cut(text, name)
			var n int
			if _, err := fmt.Sscan(rest, &n); !found || err != nil || n < least {
				t.Errorf("%s%d, %v, at least %d are", name, n, err, least)
			}
		}

		for i, q := range []struct {
			from, path, field string
			want              int
		}{
			{one, "/limited", "", 200}, {one, "/limited", "", 200}, {one, "/limited", "", 429}, {one, "/limited/x", "", 429}, {one, "/", "", 200},
			{two, "/key", "X-Key: a\r\n", 200}, {one, "/key", "X-Key: a\r\n", 200}, {one, "/key", "X-Key: a\r\n", 429}, {one, "/key", "X-Key: b\r\n", 200},
		} {
			if status := ask(connect(2, q.from), q.path, q.field); status != q.want {
				t.Errorf("%d: %s %q from %s is answered %d, want %d", i, q.path, q.field, q.from, status, q.want)
			}
		}
		if two != one {
			if status := ask(connect(2, two), "/limited", ""); status != 200 {
				t.Errorf("another client is answered %d", status)
			}
		}
	})
}
