package balancer

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rota-lb/rota/config"
)

// pair makes a self-signed certificate for names and writes it down.
func pair(t *testing.T, names ...string) (cert tls.Certificate, pool *x509.CertPool, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM, keyPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	if os.WriteFile(certFile, certPEM, 0o600) != nil || os.WriteFile(keyFile, keyPEM, 0o600) != nil {
		t.Fatal("cannot write the pair")
	}
	if cert, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, pool, certFile, keyFile
}

// reflector answers with what it was asked, and echoes a body.
func reflector(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "websocket" {
			sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
			c, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\nearly", base64.StdEncoding.EncodeToString(sum[:]))
			io.Copy(c, rw)
			return
		}
		w.Header().Set("X-Seen-Path", r.URL.RequestURI())
		for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Request-Id", "X-Client-Cert-Subject", "X-Added", "X-Gone"} {
			w.Header().Set("Seen-"+name, r.Header.Get(name))
		}
		w.Header().Set("Server", "secret/1.0")
		body, _ := io.ReadAll(r.Body) // net/http takes the rest of a body away once an answer has begun
		w.Write(body)
	})
}

func static(addresses ...string) config.Service {
	var s config.Service
	for _, a := range addresses {
		s.Instances = append(s.Instances, config.StaticInstance{Address: a})
	}
	return s
}

func must(t *testing.T, client *http.Client, method, url string, body io.Reader, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// browser does not follow redirects and keeps no connection when the test ends.
func browser(t *testing.T, cfg *tls.Config) *http.Client {
	tr := &http.Transport{TLSClientConfig: cfg}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// TLS on both sides, with client certificates, bodies of every size, and certificates that change.
func TestTLS(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := httptest.NewUnstartedServer(reflector(t))
		upCert, _, upFile, _ := pair(t, "s")
		up.TLS = &tls.Config{Certificates: []tls.Certificate{upCert}}
		up.StartTLS()
		defer up.Close()
		mine, minePool, certFile, keyFile := pair(t, "shop.example")
		d := run(t, nil, func(c *config.Config) {
			c.Engine = engine
			c.Etcd.Disabled = true
			c.Listeners[0].Protocol = "https"
			c.Listeners[0].TLS = config.TLS{Certificates: []config.Certificate{{Cert: certFile, Key: keyFile}}, ClientCA: certFile, ClientAuth: "optional"}
			c.Routes = []config.Route{{Name: "r", Service: "s"}, {Name: "bad", Path: "/bad", Service: "unverified"}}
			s := static(up.Listener.Addr().String())
			s.Protocol = "https"
			unverified := s
			s.TLS.CA = upFile
			c.Services = map[string]config.Service{"s": s, "unverified": unverified}
		})
		url := strings.Replace(d.url, "http://", "https://", 1)
		c := browser(t, &tls.Config{RootCAs: minePool, ServerName: "shop.example", Certificates: []tls.Certificate{mine}})
		for _, size := range []int{0, 1, 1000, 16 << 10, 16<<10 + 1, 300_000, 5 << 20} {
			sent := bytes.Repeat([]byte("rota"), size/4+1)[:size]
			resp := must(t, c, "POST", url+"/x", bytes.NewReader(sent), "X-Client-Cert-Subject", "CN=forged")
			got, err := io.ReadAll(resp.Body)
			if resp.StatusCode != 200 || err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("%d bytes: %d, %d bytes back, %v", size, resp.StatusCode, len(got), err)
			}
			if h := resp.Header; h.Get("Seen-X-Forwarded-Proto") != "https" || h.Get("Seen-X-Client-Cert-Subject") != "CN=shop.example" {
				t.Fatalf("%v", h)
			}
		}
		resp := must(t, c, "GET", url+"/bad", nil)
		if resp.StatusCode != 502 || resp.Header.Get("X-Rota-Reason") == "" {
			t.Errorf("an instance whose certificate is not verified: %d %v", resp.StatusCode, resp.Header)
		}
		anonymous := browser(t, &tls.Config{RootCAs: minePool, ServerName: "shop.example"})
		if h := must(t, anonymous, "GET", url+"/x", nil, "X-Client-Cert-Subject", "CN=forged").Header; h.Get("Seen-X-Client-Cert-Subject") != "" {
			t.Errorf("a client without a certificate is %q", h.Get("Seen-X-Client-Cert-Subject"))
		}

		// A new pair: the open connection goes on, new ones see it.
		_, newPool, newCert, newKey := pair(t, "shop.example")
		for from, to := range map[string]string{newCert: certFile, newKey: keyFile} {
			data, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d.Reload(t.Context(), d.config.Dynamic)
		if resp := must(t, anonymous, "GET", url+"/x", nil); resp.StatusCode != 200 {
			t.Errorf("the old connection: %d", resp.StatusCode)
		}
		fresh := browser(t, &tls.Config{RootCAs: newPool, ServerName: "shop.example"})
		if resp := must(t, fresh, "GET", url+"/x", nil); resp.StatusCode != 200 {
			t.Errorf("a new connection: %d", resp.StatusCode)
		}
		if text := d.metrics(t); !strings.Contains(text, "rota_certificate_not_after_timestamp_seconds{file=") {
			t.Error("no expiry in the metrics")
		}
	})
}

func (d *daemon) metrics(t *testing.T) string {
	t.Helper()
	resp, err := http.Get(d.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Sockets of every kind, and who the client is.
func TestSocketsAndForwarding(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		dir := t.TempDir()
		socket := filepath.Join(dir, "up")
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		up := &http.Server{Handler: reflector(t)}
		go up.Serve(ln)
		defer up.Close()
		mine := filepath.Join(dir, "rota")
		d := run(t, nil, func(c *config.Config) {
			c.Engine = engine
			c.Etcd.Disabled = true
			c.Listeners = append(c.Listeners, config.Listener{Address: "unix:" + mine, Protocol: "http", Mode: "0600"},
				config.Listener{Address: "127.0.0.1:0", Protocol: "http", ProxyProtocol: []string{"127.0.0.0/8"}})
			c.TrustedProxies = []string{"unix"}
			c.Routes = []config.Route{{Name: "r", Service: "s"}}
			c.Services = map[string]config.Service{"s": static("unix:" + socket)}
		})
		ask := func(c net.Conn, before string) http.Header {
			t.Helper()
			defer c.Close()
			fmt.Fprint(c, before+"GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.7\r\nX-Request-Id: mine\r\nConnection: close\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			return resp.Header
		}
		dial := func(network, address string) net.Conn {
			t.Helper()
			c, err := net.Dial(network, address)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		addresses := d.Addresses()
		if h := ask(dial("tcp", addresses[0].String()), ""); h.Get("Seen-X-Forwarded-For") != "127.0.0.1" || h.Get("Seen-X-Request-Id") != "mine" {
			t.Errorf("over TCP, not trusted: %v", h)
		}
		if h := ask(dial("unix", mine), ""); !strings.HasPrefix(h.Get("Seen-X-Forwarded-For"), "192.0.2.7") {
			t.Errorf("over the unix socket, trusted: %v", h)
		}
		if h := ask(dial("tcp", addresses[2].String()), "PROXY TCP4 203.0.113.9 198.51.100.1 5555 80\r\n"); h.Get("Seen-X-Forwarded-For") != "203.0.113.9" {
			t.Errorf("behind a proxy: %v", h)
		}
		c := dial("tcp", addresses[2].String())
		defer c.Close()
		fmt.Fprint(c, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Error("a request without the header that has to come first is answered")
		}
	})
}

func TestActions(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := httptest.NewServer(reflector(t))
		defer up.Close()
		d := run(t, nil, func(c *config.Config) {
			c.Engine = engine
			c.Etcd.Disabled = true
			c.Limits.Body = 1 << 20
			c.Routes = []config.Route{
				{Name: "main", Service: "s"},
				{Name: "old", Path: "/old", Redirect: config.Redirect{To: "https://{host}/new{query}", Status: 301}},
				{Name: "replaced", Path: "/api/v1", ReplacePrefix: "/v1", Service: "s"},
				{Name: "edited", Path: "/edit", Service: "s",
					RequestHeaders:  config.HeaderEdit{Set: map[string]string{"X-Added": "yes"}, Remove: []string{"X-Gone"}},
					ResponseHeaders: config.HeaderEdit{Set: map[string]string{"X-Frame-Options": "DENY"}, Remove: []string{"Server"}}},
				{Name: "limited", Path: "/limited", Service: "s", RateLimit: config.RateLimit{Rate: "1/h", Burst: 2}},
				{Name: "small", Path: "/small", Service: "s", MaxBody: 10},
				{Name: "ws-off", Path: "/nows", Service: "s", Upgrades: []string{"none"}},
				{Name: "delete", Path: "/", Methods: []string{"DELETE"}, Redirect: config.Redirect{To: "/never", Status: 303}},
			}
			c.Services = map[string]config.Service{"s": static(up.Listener.Addr().String())}
		})
		c := browser(t, nil)
		resp := must(t, c, "GET", d.url+"/old?a=1", nil, "Host", "shop.example")
		if resp.StatusCode != 301 || resp.Header.Get("Location") != "https://shop.example/new?a=1" {
			t.Errorf("redirect: %d %v", resp.StatusCode, resp.Header)
		}
		if resp = must(t, c, "DELETE", d.url+"/x", nil); resp.StatusCode != 303 {
			t.Errorf("method: %d", resp.StatusCode)
		}
		if got := must(t, c, "GET", d.url+"/api/v1/users?q=1", nil).Header.Get("X-Seen-Path"); got != "/v1/users?q=1" {
			t.Errorf("replaced: %s", got)
		}
		h := must(t, c, "GET", d.url+"/edit", nil, "X-Gone", "1", "X-Added", "no").Header
		if h.Get("Seen-X-Added") != "yes" || h.Get("Seen-X-Gone") != "" || h.Get("Server") != "" || h.Get("X-Frame-Options") != "DENY" {
			t.Errorf("edited: %v", h)
		}
		if id := h.Get("Seen-X-Request-Id"); len(id) != 32 {
			t.Errorf("request id %q", id)
		}
		for i, want := range []int{200, 200, 429} {
			resp := must(t, c, "GET", d.url+"/limited", nil, "Accept", "application/problem+json")
			if resp.StatusCode != want || want == 429 && (resp.Header.Get("Retry-After") == "" || resp.Header.Get("Content-Type") != "application/problem+json") {
				t.Errorf("request %d: %d %v", i, resp.StatusCode, resp.Header)
			}
		}
		if resp := must(t, c, "POST", d.url+"/small", strings.NewReader("eleven bytes")); resp.StatusCode != 413 {
			t.Errorf("a body that is too long: %d", resp.StatusCode)
		}

		for path, want := range map[string]int{"/ws": 101, "/nows": 200} {
			ws, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer ws.Close()
			fmt.Fprintf(ws, "GET %s HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nfirst", path)
			r := bufio.NewReader(ws)
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != want {
				t.Fatalf("%s: %v %v", path, resp, err)
			}
			if want != 101 {
				continue
			}
			fmt.Fprint(ws, "second")
			ws.(*net.TCPConn).CloseWrite()
			if text, err := io.ReadAll(r); string(text) != "earlyfirstsecond" || err != nil {
				t.Errorf("the tunnel brought %q, %v", text, err)
			}
		}
	})
}

// An instance that asks for a certificate gets ours, under a name of its own; who is shown another one, or none, serves nobody. A
// tunnel goes through TLS on both sides, with what either side says early, and its ends.
func TestTLSToInstances(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		_, ours, ourFile, ourKey := pair(t, "balancer")
		up := httptest.NewUnstartedServer(reflector(t))
		theirs, _, theirFile, _ := pair(t, "backend.internal")
		up.TLS = &tls.Config{Certificates: []tls.Certificate{theirs}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours}
		up.Config.ErrorLog = log.New(io.Discard, "", 0)
		up.StartTLS()
		defer up.Close()
		_, edge, certFile, keyFile := pair(t, "shop.example")
		d := run(t, nil, func(c *config.Config) {
			c.Engine, c.Etcd.Disabled = engine, true
			c.Listeners[0].Protocol = "https"
			c.Listeners[0].TLS = config.TLS{Certificates: []config.Certificate{{Cert: certFile, Key: keyFile}}}
			c.Services = map[string]config.Service{}
			for name, with := range map[string]config.UpstreamTLS{
				"right":     {CA: theirFile, ServerName: "backend.internal", Cert: ourFile, Key: ourKey},
				"misnamed":  {CA: theirFile, Cert: ourFile, Key: ourKey}, // by the service's name
				"anonymous": {CA: theirFile, ServerName: "backend.internal"},
			} {
				s := static(up.Listener.Addr().String())
				s.Protocol, s.TLS = "https", with
				c.Services[name] = s
				c.Routes = append(c.Routes, config.Route{Name: name, Path: "/" + name, Service: name})
			}
		})
		client := &tls.Config{RootCAs: edge, ServerName: "shop.example"}
		b := browser(t, client)
		for name, want := range map[string]int{"right": 200, "misnamed": 502, "anonymous": 502} {
			if resp := must(t, b, "GET", strings.Replace(d.url, "http://", "https://", 1)+"/"+name, nil); resp.StatusCode != want {
				t.Errorf("%s: %d %v", name, resp.StatusCode, resp.Header)
			}
		}
		ws, err := tls.Dial("tcp", strings.TrimPrefix(d.url, "http://"), client)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		fmt.Fprint(ws, "GET /right HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nfirst")
		r := bufio.NewReader(ws)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("%v %v", resp, err)
		}
		big := strings.Repeat("0123456789abcdef", 64<<10)
		go func() {
			fmt.Fprint(ws, big)
			ws.CloseWrite()
		}()
		if text, err := io.ReadAll(r); string(text) != "earlyfirst"+big || err != nil {
			t.Errorf("the tunnel brought %d bytes, %v", len(text), err)
		}
	})
}
