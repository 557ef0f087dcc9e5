package health

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/rota-lb/rota/balancer/pool"
)

// at is the endpoint at an address.
func at(a net.Addr) *pool.Endpoint {
	if a, ok := a.(*net.UnixAddr); ok {
		return pool.NewEndpoint(pool.Key{Service: "s", ID: "i", Socket: a.Name})
	}
	return pool.NewEndpoint(pool.Key{Service: "s", ID: "i", Address: netip.MustParseAddrPort(a.String())})
}

// once returns the result of one probe. Unless the check says otherwise it has long, for slow machines.
func once(t testing.TB, e *pool.Endpoint, c Check) Result {
	t.Helper()
	if c.Timeout == 0 {
		c.Timeout = DefaultInterval
	}
	results := make(chan Result, 1)
	p := New(Options{Report: func(r Result) {
		select {
		case results <- r:
		default:
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	p.Set(e, c)
	r := <-results
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if r.Endpoint != e || r.Took <= 0 || r.At.IsZero() {
		t.Errorf("%+v", r)
	}
	return r
}

// expect holds a result against what an error must contain; empty is a pass.
func expect(t *testing.T, r Result, want string, gone bool) {
	t.Helper()
	switch {
	case want == "" && r.Err != nil:
		t.Errorf("it fails: %v", r.Err)
	case want != "" && (r.Err == nil || !strings.Contains(r.Err.Error(), want)):
		t.Errorf("got %v, want %q", r.Err, want)
	case errors.Is(r.Err, ErrRefused) != gone:
		t.Errorf("%v: refused %v, want %v", r.Err, !gone, gone)
	}
}

// serve listens and does f with every connection, until the test ends.
func serve(t testing.TB, network, address string, f func(net.Conn)) net.Addr {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr()
}

// says is a server that answers a request with a text, whatever it was.
func says(text string) func(net.Conn) {
	return func(c net.Conn) {
		c.Read(make([]byte, 4096))
		io.WriteString(c, text)
	}
}

// reset makes closing a connection reset it.
func reset(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }

// nobody is an address that nobody listens on.
func nobody(t testing.TB) net.Addr {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr()
}

func TestTCP(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	expect(t, once(t, at(serve(t, "tcp", "127.0.0.1:0", func(net.Conn) {})), Check{}), "", false)
	expect(t, once(t, at(nobody(t)), Check{}), "connection refused", true)
	expect(t, once(t, at(&net.UnixAddr{Name: socket}), Check{}), "no such file", true)
	expect(t, once(t, at(serve(t, "unix", socket, func(net.Conn) {})), Check{}), "", false)
	expect(t, once(t, at(nobody(t)), Check{Type: 9}), "connection refused", true)
}

func TestHTTP(t *testing.T) {
	var last atomic.Pointer[http.Request]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last.Store(r)
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/bad", http.StatusFound)
		case "/bad":
			w.WriteHeader(503)
		case "/early":
			w.WriteHeader(http.StatusEarlyHints)
			io.WriteString(w, "fine")
		case "/long":
			for range 1000 {
				io.WriteString(w, strings.Repeat("x", 1000))
			}
			io.WriteString(w, "end")
		case "/stream":
			io.WriteString(w, "begin")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			io.WriteString(w, "all is well")
		}
	}))
	defer server.Close()
	e := at(server.Listener.Addr())
	hundred := 100 * time.Millisecond
	for _, tc := range []struct {
		check Check
		want  string
	}{
		{Check{}, ""},
		{Check{Path: "/moved"}, ""},
		{Check{Path: "/moved", Status: [][2]int{{200, 299}}}, "302 Found"},
		{Check{Path: "/bad"}, "503 Service Unavailable"},
		{Check{Path: "/bad", Status: [][2]int{{200, 200}, {500, 503}}}, ""},
		{Check{Path: "/early", Body: "fine"}, ""},
		{Check{Body: "is well"}, ""},
		{Check{Body: "is not"}, `"is not" is not in the first 11 bytes`},
		{Check{Path: "/long"}, ""},
		{Check{Path: "/long", Body: strings.Repeat("x", 60_000)}, ""},
		{Check{Path: "/long", Body: "end"}, "not in the first 65536 bytes"},
		{Check{Path: "/stream"}, ""},
		{Check{Path: "/stream", Body: "begin"}, ""},
		{Check{Path: "/stream", Body: "end", Timeout: hundred}, "no answer within 100ms: the body"},
		{Check{Path: "healthz"}, "healthz"},
		{Check{Path: "//a?b=%2f"}, ""},
		{Check{Host: "two words"}, "is not a host"},
	} {
		t.Run(fmt.Sprint(tc.check.Path, tc.check.Body[:min(9, len(tc.check.Body))], tc.check.Status), func(t *testing.T) {
			tc.check.Type = HTTP
			expect(t, once(t, e, tc.check), tc.want, false)
		})
	}
	once(t, e, Check{Type: HTTP, Path: "/a?b=c"})
	r := last.Load()
	if r.Method != "GET" || r.RequestURI != "/a?b=c" || r.Host != e.Name || !r.Close || r.Proto != "HTTP/1.1" ||
		fmt.Sprint(r.Header) != "map[Connection:[close] User-Agent:[rota-health]]" {
		t.Errorf("it asks %s %s, %s, close %v, %v", r.Method, r.RequestURI, r.Host, r.Close, r.Header)
	}
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	expect(t, once(t, e, Check{Type: HTTP, Path: "//a", Host: "h.example", Headers: [][2]string{{"user-agent", "me"}, {"x", "1"}, {"X", "2"}, {"Host", "no"}}}), "", false)
	r = last.Load()
	if r.RequestURI != "//a" || r.Host != "h.example" || fmt.Sprint(r.Header) != "map[Connection:[close] User-Agent:[me] X:[1 2]]" {
		t.Errorf("it asks %s, %s, %v", r.RequestURI, r.Host, r.Header)
	}
}

// What is no HTTP, or ends too early.
func TestHTTPBroken(t *testing.T) {
	for name, tc := range map[string]struct {
		f    func(net.Conn)
		want string
		gone bool
	}{
		"ends before an answer":   {says(""), "EOF", true},
		"reset before an answer":  {func(c net.Conn) { c.Read(make([]byte, 1)); reset(c) }, "reset", true},
		"ends in the head":        {says("HTTP/1.1 200 OK\r\nA: "), "unexpected EOF", false},
		"ends in the body":        {says("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), "unexpected EOF", false},
		"no HTTP":                 {says("220 mail.example ESMTP\r\n"), "malformed", false},
		"an endless head":         {says("HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 200<<10)), "too long", false},
		"interim answers only":    {says(strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 50)), "103", false},
		"another protocol":        {says("HTTP/1.1 101 Switching Protocols\r\n\r\n"), "101", false},
		"HTTP/1.0, to the end":    {says("HTTP/1.0 200 OK\r\n\r\nxyz"), "", false},
		"chunked":                 {says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n2\r\nyz\r\n0\r\n\r\n"), "", false},
		"silent":                  {func(c net.Conn) { io.Copy(io.Discard, c) }, "no answer within 200ms", false},
		"a certificate, not HTTP": {says("\x15\x03\x01\x00\x02\x02\x16"), "malformed", false},
	} {
		t.Run(name, func(t *testing.T) {
			e := at(serve(t, "tcp", "127.0.0.1:0", tc.f))
			c := Check{Type: HTTP, Body: "xyz"}
			if name == "silent" {
				c.Timeout = 200 * time.Millisecond
			}
			expect(t, once(t, e, c), tc.want, tc.gone)
		})
	}
	expect(t, once(t, at(nobody(t)), Check{Type: HTTP}), "connection refused", true)
}

func TestHTTPSocket(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) })}
	defer server.Close()
	go server.Serve(l)
	expect(t, once(t, at(l.Addr()), Check{Type: HTTP, Body: "localhost"}), "", false)
}

func TestTLS(t *testing.T) {
	var resumed atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.DidResume {
			resumed.Add(1)
		}
		fmt.Fprintf(w, "%s %s", r.TLS.NegotiatedProtocol, r.TLS.ServerName)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	e := at(server.Listener.Addr())
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	named := &tls.Config{RootCAs: roots, ServerName: "example.com", NextProtos: []string{"h2", "http/1.1"}}
	for name, tc := range map[string]struct {
		check Check
		want  string
	}{
		"named":               {Check{Type: HTTP, TLS: named, Body: "http/1.1 example.com"}, ""},
		"by its address":      {Check{Type: HTTP, TLS: &tls.Config{RootCAs: roots}, Body: "http/1.1 "}, ""},
		"by Host":             {Check{Type: HTTP, TLS: &tls.Config{RootCAs: roots}, Host: "example.com:443", Body: " example.com"}, ""},
		"another name":        {Check{Type: HTTP, TLS: &tls.Config{RootCAs: roots, ServerName: "other.test"}}, "other.test"},
		"unknown authority":   {Check{Type: HTTP, TLS: &tls.Config{ServerName: "example.com"}}, "unknown authority"},
		"not looked at":       {Check{Type: HTTP, TLS: &tls.Config{InsecureSkipVerify: true}}, ""},
		"the handshake alone": {Check{TLS: named}, ""},
		"plain":               {Check{Type: HTTP}, "400 Bad Request"},
		"no HTTP/2":           {Check{Type: GRPC, TLS: named}, "TLS handshake"},
	} {
		t.Run(name, func(t *testing.T) { expect(t, once(t, e, tc.check), tc.want, false) })
	}
	expect(t, once(t, at(serve(t, "tcp", "127.0.0.1:0", says(""))), Check{TLS: named}), "TLS handshake: EOF", true)

	// The session of an endpoint is used again.
	resumed.Store(0)
	results := make(chan Result)
	p := New(Options{Report: func(r Result) { results <- r }})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	p.Set(e, Check{Type: HTTP, TLS: named, Timeout: DefaultInterval})
	for n := range 3 {
		if n > 0 {
			p.Probe(e)
		}
		if r := <-results; r.Err != nil {
			t.Error(r.Err)
		}
	}
	p.Remove(e)
	cancel()
	for {
		select {
		case <-results:
			continue
		case <-ended:
		}
		break
	}
	if resumed.Load() < 2 {
		t.Errorf("%d of 2 sessions were used again", resumed.Load())
	}
}

func TestGRPC(t *testing.T) {
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	defer certificate.Close()
	roots := x509.NewCertPool()
	roots.AddCert(certificate.Certificate())

	start := func(network, address string, options ...grpc.ServerOption) (net.Addr, *grpchealth.Server) {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		server, state := grpc.NewServer(options...), grpchealth.NewServer()
		grpc_health_v1.RegisterHealthServer(server, state)
		go server.Serve(l)
		t.Cleanup(server.Stop)
		return l.Addr(), state
	}
	plain, state := start("tcp", "127.0.0.1:0")
	state.SetServingStatus("shop", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	secure, _ := start("tcp", "127.0.0.1:0", grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: certificate.TLS.Certificates})))
	socket, _ := start("unix", filepath.Join(t.TempDir(), "s"))
	empty := httptest.NewUnstartedServer(http.NotFoundHandler())
	empty.Config.Protocols = new(http.Protocols)
	empty.Config.Protocols.SetUnencryptedHTTP2(true)
	empty.Start()
	defer empty.Close()

	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	ok := &tls.Config{RootCAs: roots, ServerName: "example.com"}
	for name, tc := range map[string]struct {
		addr  net.Addr
		check Check
		want  string
		gone  bool
	}{
		"serving":           {plain, Check{}, "", false},
		"with an authority": {plain, Check{Host: "shop.example"}, "", false},
		"not serving":       {plain, Check{Path: "shop"}, "it says NOT_SERVING", false},
		"unknown service":   {plain, Check{Path: "cart"}, "NotFound", false},
		"over a socket":     {socket, Check{}, "", false},
		"over TLS":          {secure, Check{TLS: ok}, "", false},
		"TLS and Host":      {secure, Check{TLS: ok, Host: "shop.example:443"}, "", false},
		"TLS, unknown":      {secure, Check{TLS: &tls.Config{}}, "TLS handshake: ", false},
		"not gRPC":          {empty.Listener.Addr(), Check{}, "404", false},
		"nobody":            {nobody(t), Check{}, "connection refused", true},
		"ends at once":      {serve(t, "tcp", "127.0.0.1:0", says("")), Check{}, "Unavailable", true},
		"reset at once":     {serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) { c.Read(make([]byte, 1)); reset(c) }), Check{}, "Unavailable", true},
		"silent":            {serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) { io.Copy(io.Discard, c) }), Check{Timeout: 200 * time.Millisecond}, "no answer within 200ms", false},
	} {
		t.Run(name, func(t *testing.T) {
			tc.check.Type = GRPC
			expect(t, once(t, at(tc.addr), tc.check), tc.want, tc.gone)
		})
	}
}

// BenchmarkProbe is what a probe costs over loopback, the other side included, which runs in the same process. Many
// addresses take part, so that what is measured is not the search for a port that no closed connection holds.
func BenchmarkProbe(b *testing.B) {
	const addresses = 64
	listen := func(b *testing.B, serve func(net.Listener) error) (endpoints []*pool.Endpoint) {
		for i := range addresses {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.1.%d:0", i+1))
			if err != nil {
				b.Skip(err) // not every system has more than one loopback address
			}
			b.Cleanup(func() { l.Close() })
			go serve(l)
			endpoints = append(endpoints, at(l.Addr()))
		}
		return endpoints
	}
	accept := func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			c.Close()
		}
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	server := httptest.NewTLSServer(handler)
	defer server.Close()
	secure := &http.Server{Handler: handler, TLSConfig: server.TLS.Clone()}
	rpc := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(rpc, grpchealth.NewServer())
	defer rpc.Stop()

	p := New(Options{Report: func(Result) {}})
	for _, bc := range []struct {
		name  string
		serve func(net.Listener) error
		check Check
	}{
		{"tcp", accept, Check{}},
		{"http", (&http.Server{Handler: handler}).Serve, Check{Type: HTTP}},
		{"http-body", (&http.Server{Handler: handler}).Serve, Check{Type: HTTP, Body: "ok"}},
		{"https", func(l net.Listener) error { return secure.ServeTLS(l, "", "") }, Check{Type: HTTP, TLS: &tls.Config{InsecureSkipVerify: true}}},
		{"grpc", rpc.Serve, Check{Type: GRPC}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			pl := newPlan(bc.check.withDefaults())
			var probes []*probe
			for _, e := range listen(b, bc.serve) {
				probes = append(probes, &probe{target: &target{endpoint: e}, plan: pl, tls: pl.tlsOf(e)})
			}
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				pr := probes[n%addresses]
				pr.ctx, pr.cancel = context.WithTimeout(b.Context(), time.Second)
				if err := p.ask(pr); err != nil {
					b.Fatal(err)
				}
				pr.cancel()
			}
		})
	}
}

// BenchmarkSchedule is what the schedule costs for a probe among 10,000 endpoints, the probe itself left out.
func BenchmarkSchedule(b *testing.B) {
	const endpoints = 10_000
	p := New(Options{Report: func(Result) {}})
	for i := range endpoints {
		p.Set(endpoint(i), Check{})
	}
	b.ReportAllocs()
	for b.Loop() {
		p.due[0].at = time.Time{}
		pr := p.begin(b.Context())
		pr.cancel()
		p.end(pr, false)
		p.look()
	}
}
