package listen

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = a.sign(t, template, a.key, template)
	return a
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign fills in what template leaves out.
func (a *authority) sign(t testing.TB, template *x509.Certificate, key crypto.Signer, parent *x509.Certificate) *x509.Certificate {
	t.Helper()
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(30*24*time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issue returns a certificate for names, and its key, in PEM form.
func (a *authority) issue(t testing.TB, names ...string) (cert, key []byte) {
	t.Helper()
	return a.issueAs(t, &x509.Certificate{DNSNames: names}, newKey(t))
}

func (a *authority) issueAs(t testing.TB, template *x509.Certificate, k crypto.Signer) (cert, key []byte) {
	t.Helper()
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return inPEM("CERTIFICATE", a.sign(t, template, k, a.cert).Raw), inPEM("PRIVATE KEY", der)
}

func (a *authority) pem() []byte { return inPEM("CERTIFICATE", a.cert.Raw) }

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func inPEM(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }

// folder holds the files of a test.
type folder struct {
	testing.TB
	dir string
}

func newFolder(t testing.TB) folder { return folder{t, t.TempDir()} }

func (f folder) write(name string, content []byte) string {
	f.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		f.Fatal(err)
	}
	return path
}

// pair writes a certificate and its key.
func (f folder) pair(name string, cert, key []byte) Pair {
	f.Helper()
	return Pair{Cert: f.write(name+".crt", cert), Key: f.write(name+".key", key)}
}

func load(t testing.TB, o TLSOptions) *Certificates {
	t.Helper()
	c, err := LoadCertificates(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// connection is an established one, both ends.
type connection struct{ client, server *tls.Conn }

// connect does a handshake over loopback, and passes one byte to the client, so that it has seen what comes after it.
func connect(server, client *tls.Config) (connection, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return connection{}, err
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return connection{}, err
	}
	b, err := ln.Accept()
	if err != nil {
		a.Close()
		return connection{}, err
	}
	c := connection{client: tls.Client(a, client), server: tls.Server(b, server)}
	served := make(chan error, 1)
	go func() {
		_, err := c.server.Write([]byte{'!'})
		if err != nil {
			b.Close()
		}
		served <- err
	}()
	_, err = io.ReadFull(c.client, make([]byte, 1))
	if err != nil {
		a.Close()
	}
	if serr := <-served; err == nil {
		err = serr
	}
	if err != nil {
		c.close()
	}
	return c, err
}

func (c connection) close() {
	c.client.NetConn().Close()
	c.server.NetConn().Close()
}

// echo passes a word through a connection.
func (c connection) echo(t *testing.T) {
	t.Helper()
	go c.client.Write([]byte("word"))
	b := make([]byte, 4)
	if _, err := io.ReadFull(c.server, b); err != nil || string(b) != "word" {
		t.Errorf("an open connection passed %q, %v", b, err)
	}
}

// shown is the serial number of what a server shows to a client.
func shown(t *testing.T, server, client *tls.Config) *big.Int {
	t.Helper()
	c, err := connect(server, client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	return c.client.ConnectionState().PeerCertificates[0].SerialNumber
}

func serial(t *testing.T, cert []byte) *big.Int {
	t.Helper()
	b, _ := pem.Decode(cert)
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c.SerialNumber
}

func TestChoice(t *testing.T) {
	ca := newAuthority(t, "ca")
	f := newFolder(t)
	var o TLSOptions
	bySerial := map[string]string{}
	for _, p := range []struct {
		name  string
		names []string
	}{
		{"first", []string{"first.test"}},
		{"exact", []string{"a.example.com", "Upper.Example.com"}},
		{"wildcard", []string{"*.example.com", "example.com"}},
		{"deep", []string{"*.b.example.com"}},
		{"late", []string{"a.example.com", "late.test"}}, // its first name is taken
	} {
		cert, key := ca.issue(t, p.names...)
		bySerial[serial(t, cert).String()] = p.name
		o.Pairs = append(o.Pairs, f.pair(p.name, cert, key))
	}
	config := load(t, o).Config()
	for _, c := range []struct{ sni, want string }{
		{"first.test", "first"},
		{"", "first"},
		{"127.0.0.1", "first"}, // clients send no name then
		{"unknown.test", "first"},
		{"com", "first"},
		{"a.example.com", "exact"},
		{"A.EXAMPLE.com", "exact"},
		{"a.example.com.", "exact"},
		{"upper.example.com", "exact"},
		{"x.example.com", "wildcard"},
		{"X.Example.Com", "wildcard"},
		{"x.example.com.", "wildcard"},
		{"example.com", "wildcard"},
		{"b.example.com", "wildcard"},
		{"x.b.example.com", "deep"},
		{"x.y.b.example.com", "first"},
		{"x.y.example.com", "first"},
		{"late.test", "late"},
		{"*.example.com", "wildcard"},
	} {
		got := shown(t, config, &tls.Config{ServerName: c.sni, InsecureSkipVerify: true})
		if bySerial[got.String()] != c.want {
			t.Errorf("%q is shown the certificate %q, want %q", c.sni, bySerial[got.String()], c.want)
		}
	}
	// crypto/tls refuses a trailing dot before we see it; a name that begins with one has no label to stand for the star.
	set := load(t, o).current.Load()
	for sni, want := range map[string]string{"A.example.com.": "exact", ".example.com": "first", ".": "first", "": "first"} {
		got, err := set.choose(&tls.ClientHelloInfo{ServerName: sni})
		if err != nil || bySerial[got.Leaf.SerialNumber.String()] != want {
			t.Errorf("%q: %v, want %s", sni, err, want)
		}
	}
}

// TestChoiceByAlgorithm has two certificates of one name, for clients that can verify only one of them.
func TestChoiceByAlgorithm(t *testing.T) {
	ca := newAuthority(t, "ca")
	f := newFolder(t)
	cert, key := ca.issue(t, "a.test")
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaCert, rsaKey := ca.issueAs(t, &x509.Certificate{DNSNames: []string{"a.test"}}, k)
	config := load(t, TLSOptions{Pairs: []Pair{f.pair("ecdsa", cert, key), f.pair("rsa", rsaCert, rsaKey)}}).Config()
	client := &tls.Config{ServerName: "a.test", RootCAs: ca.pool()}
	if got := shown(t, config, client); got.Cmp(serial(t, cert)) != 0 {
		t.Error("a client that takes both is not shown the first")
	}
	client.MaxVersion, client.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	if got := shown(t, config, client); got.Cmp(serial(t, rsaCert)) != 0 {
		t.Error("a client that takes RSA only is shown something else")
	}
}

func TestVersionsAndSuites(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, key := ca.issue(t, "a.test")
	pairs := []Pair{newFolder(t).pair("a", cert, key)}
	for _, c := range []struct {
		name     string
		least    uint16
		min, max uint16
		suites   []uint16
		protos   []string
		want     uint16 // zero is refused
	}{
		{name: "tls 1.0", min: tls.VersionTLS10, max: tls.VersionTLS10},
		{name: "tls 1.1", min: tls.VersionTLS10, max: tls.VersionTLS11},
		{name: "tls 1.2", max: tls.VersionTLS12, want: tls.VersionTLS12},
		{name: "tls 1.3", want: tls.VersionTLS13},
		{name: "tls 1.2, least 1.3", least: tls.VersionTLS13, max: tls.VersionTLS12},
		{name: "tls 1.3, least 1.3", least: tls.VersionTLS13, want: tls.VersionTLS13},
		{name: "cbc", max: tls.VersionTLS12, suites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
		{name: "rsa key exchange", max: tls.VersionTLS12, suites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
		{name: "chacha", max: tls.VersionTLS12, suites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256}, want: tls.VersionTLS12},
		{name: "http/1.1", protos: []string{"h2", "http/1.1"}, want: tls.VersionTLS13},
		{name: "h2 alone", protos: []string{"h2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := load(t, TLSOptions{Pairs: pairs, MinVersion: c.least}).Config()
			got, err := connect(config, &tls.Config{
				ServerName: "a.test", RootCAs: ca.pool(), MinVersion: c.min, MaxVersion: c.max, CipherSuites: c.suites, NextProtos: c.protos,
			})
			if err != nil {
				if c.want != 0 {
					t.Fatal(err)
				}
				return
			}
			defer got.close()
			state := got.client.ConnectionState()
			if state.Version != c.want {
				t.Errorf("version %x, want %x", state.Version, c.want)
			}
			if want := ""; c.protos != nil && state.NegotiatedProtocol != "http/1.1" || c.protos == nil && state.NegotiatedProtocol != want {
				t.Errorf("protocol %q", state.NegotiatedProtocol)
			}
		})
	}
}

func TestClientCertificates(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	f := newFolder(t)
	cert, key := ca.issue(t, "a.test")
	pairs := []Pair{f.pair("a", cert, key)}
	clientOf := func(a *authority, template *x509.Certificate) *tls.Certificate {
		template.Subject = pkix.Name{CommonName: "somebody"}
		pair, err := tls.X509KeyPair(a.issueAs(t, template, newKey(t)))
		if err != nil {
			t.Fatal(err)
		}
		return &pair
	}
	good, untrusted := clientOf(ca, &x509.Certificate{}), clientOf(other, &x509.Certificate{})
	expired := clientOf(ca, &x509.Certificate{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	file := f.write("ca.pem", ca.pem())
	for _, c := range []struct {
		name   string
		file   string
		auth   tls.ClientAuthType
		client *tls.Certificate
		ok     bool
		known  bool
	}{
		{name: "none asked, none shown", ok: true},
		{name: "none asked, one there", client: good, ok: true},
		{name: "required by default, good", file: file, client: good, ok: true, known: true},
		{name: "required by default, none", file: file},
		{name: "required, good", file: file, auth: tls.RequireAndVerifyClientCert, client: good, ok: true, known: true},
		{name: "required, none", file: file, auth: tls.RequireAndVerifyClientCert},
		{name: "required, untrusted", file: file, auth: tls.RequireAndVerifyClientCert, client: untrusted},
		{name: "required, expired", file: file, auth: tls.RequireAndVerifyClientCert, client: expired},
		{name: "optional, good", file: file, auth: tls.VerifyClientCertIfGiven, client: good, ok: true, known: true},
		{name: "optional, none", file: file, auth: tls.VerifyClientCertIfGiven, ok: true},
		{name: "optional, untrusted", file: file, auth: tls.VerifyClientCertIfGiven, client: untrusted},
		{name: "required, but by nobody", auth: tls.RequireAndVerifyClientCert, ok: true},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(c.name+" "+tls.VersionName(version), func(t *testing.T) {
				config := load(t, TLSOptions{Pairs: pairs, ClientCA: c.file, ClientAuth: c.auth}).Config()
				client := &tls.Config{ServerName: "a.test", RootCAs: ca.pool(), MaxVersion: version}
				client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if c.client == nil {
						return new(tls.Certificate), nil
					}
					return c.client, nil
				}
				got, err := connect(config, client)
				if (err == nil) != c.ok {
					t.Fatalf("handshake: %v", err)
				}
				if err != nil {
					return
				}
				defer got.close()
				if known := len(got.server.ConnectionState().VerifiedChains) > 0; known != c.known {
					t.Errorf("client known: %v, want %v", known, c.known)
				}
			})
		}
	}
	if _, err := LoadCertificates(TLSOptions{Pairs: pairs, ClientCA: file, ClientAuth: tls.RequestClientCert}); err == nil {
		t.Error("client certificates that nobody verifies were accepted")
	}
}

// TestClientCAReload changes the authority of clients: neither a certificate of the old one nor a session that began with
// one is taken any more.
func TestClientCAReload(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	f := newFolder(t)
	cert, key := ca.issue(t, "a.test")
	certs := load(t, TLSOptions{Pairs: []Pair{f.pair("a", cert, key)}, ClientCA: f.write("ca.pem", ca.pem())})
	shows := func(a *authority) *tls.Config {
		pair, err := tls.X509KeyPair(a.issue(t, "client"))
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{
			ServerName: "a.test", RootCAs: ca.pool(), Certificates: []tls.Certificate{pair}, ClientSessionCache: new(firstTicket),
		}
	}
	before, after := shows(ca), shows(other)
	try := func(client *tls.Config, ok bool) {
		t.Helper()
		c, err := connect(certs.Config(), client)
		if (err == nil) != ok {
			t.Errorf("handshake: %v, want success: %v", err, ok)
		}
		if err == nil {
			c.close()
		}
	}
	try(before, true)
	try(before, true)
	try(after, false)
	f.write("ca.pem", append(other.pem(), "\n"...))
	if swapped, err := certs.Reload(); !swapped || err != nil {
		t.Fatalf("reload: %v, %v", swapped, err)
	}
	try(before, false)
	try(after, true)
}

// firstTicket keeps the first ticket it gets for ever.
type firstTicket struct {
	mu    sync.Mutex
	state *tls.ClientSessionState
}

func (f *firstTicket) Get(string) (*tls.ClientSessionState, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state, f.state != nil
}

func (f *firstTicket) Put(_ string, s *tls.ClientSessionState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == nil {
		f.state = s
	}
}

// running runs certs until the test ends, inside a bubble of synctest, and returns where the changes are told.
func running(t *testing.T, certs *Certificates) <-chan error {
	changes := make(chan error, 100)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- certs.Run(ctx, func(err error) { changes <- err }) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return changes
}

func TestTickets(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := newAuthority(t, "ca")
				cert, key := ca.issue(t, "a.test")
				f := newFolder(t)
				certs := load(t, TLSOptions{Pairs: []Pair{f.pair("a", cert, key)}})
				running(t, certs)
				ticket := new(firstTicket)
				resumed := func() bool {
					t.Helper()
					c, err := connect(certs.Config(), &tls.Config{
						ServerName: "a.test", RootCAs: ca.pool(), MaxVersion: version, ClientSessionCache: ticket,
					})
					if err != nil {
						t.Fatal(err)
					}
					defer c.close()
					return c.client.ConnectionState().DidResume
				}
				if resumed() {
					t.Fatal("the first handshake resumes something")
				}
				time.Sleep(30 * time.Minute)
				for hour := range 4 {
					if got, want := resumed(), hour < ticketKeys; got != want {
						t.Errorf("after %d rotations resumed: %v, want %v", hour, got, want)
					}
					if hour == 0 { // a new certificate does not end sessions
						f.pair("a", cert, key)
					}
					time.Sleep(time.Hour)
				}
			})
		})
	}
}

func TestSwap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "ca")
		f := newFolder(t)
		var certs *Certificates
		client := &tls.Config{ServerName: "a.test", RootCAs: ca.pool()}
		shows := func(cert []byte) {
			t.Helper()
			if got := shown(t, certs.Config(), client); got.Cmp(serial(t, cert)) != 0 {
				t.Errorf("certificate %v is shown, want %v", got, serial(t, cert))
			}
		}
		cert, key := ca.issue(t, "a.test")
		certs = load(t, TLSOptions{Pairs: []Pair{f.pair("a", cert, key)}})
		changes := running(t, certs)
		told := func(want ...bool) {
			t.Helper()
			time.Sleep(5 * lookEach)
			var got []bool
			for len(changes) > 0 {
				got = append(got, <-changes == nil)
			}
			if !slices.Equal(got, want) {
				t.Errorf("told of changes %v, want %v (true is a good one)", got, want)
			}
		}
		shows(cert)
		open, err := connect(certs.Config(), client)
		if err != nil {
			t.Fatal(err)
		}
		defer open.close()

		// A new pair, one file after the other.
		next, nextKey := ca.issue(t, "a.test")
		time.Sleep(lookEach / 4)
		f.write("a.crt", next)
		time.Sleep(lookEach)
		shows(cert)
		f.write("a.key", nextKey)
		told(true)
		shows(next)
		open.echo(t)

		// The wrong key: told once.
		f.write("a.key", key)
		told(false)
		shows(next)
		if swapped, err := certs.Reload(); swapped || err == nil {
			t.Errorf("Reload forgets the error of the files: %v, %v", swapped, err)
		}
		told()
		// Nothing at all, then rubbish.
		os.Remove(filepath.Join(f.dir, "a.crt"))
		told(false)
		f.write("a.crt", []byte("rubbish"))
		told(false)
		shows(next)
		// Back to a good one.
		f.pair("a", cert, key)
		told(true)
		shows(cert)
		open.echo(t)
		if swapped, err := certs.Reload(); swapped || err != nil {
			t.Errorf("Reload of nothing new: %v, %v", swapped, err)
		}
		told()
	})
}

// TestSwapByLink changes files as Kubernetes does: by a link to a directory, which is replaced at one stroke.
func TestSwapByLink(t *testing.T) {
	ca := newAuthority(t, "ca")
	f := newFolder(t)
	version := func(name string) []byte {
		t.Helper()
		cert, key := ca.issue(t, "a.test")
		if err := os.Mkdir(filepath.Join(f.dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		f.write(name+"/tls.crt", cert)
		f.write(name+"/tls.key", key)
		if err := os.Symlink(name, filepath.Join(f.dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(f.dir, "..data_tmp"), filepath.Join(f.dir, "..data")); err != nil {
			t.Fatal(err)
		}
		return cert
	}
	first := version("..1")
	for _, name := range []string{"tls.crt", "tls.key"} {
		if err := os.Symlink("..data/"+name, filepath.Join(f.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	certs := load(t, TLSOptions{Pairs: []Pair{{filepath.Join(f.dir, "tls.crt"), filepath.Join(f.dir, "tls.key")}}})
	client := &tls.Config{ServerName: "a.test", RootCAs: ca.pool()}
	if got := shown(t, certs.Config(), client); got.Cmp(serial(t, first)) != 0 {
		t.Error("the first version is not shown")
	}
	second := version("..2")
	if swapped, err := certs.Reload(); !swapped || err != nil {
		t.Fatalf("reload: %v, %v", swapped, err)
	}
	if got := shown(t, certs.Config(), client); got.Cmp(serial(t, second)) != 0 {
		t.Error("the second version is not shown")
	}
}

// TestSwapUnderLoad swaps between two pairs while clients connect: every one of them is shown a whole pair.
func TestSwapUnderLoad(t *testing.T) {
	ca := newAuthority(t, "ca")
	f := newFolder(t)
	certA, keyA := ca.issue(t, "a.test")
	certB, keyB := ca.issue(t, "a.test")
	certs := load(t, TLSOptions{Pairs: []Pair{f.pair("a", certA, keyA)}})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range 40 {
				c, err := connect(certs.Config(), &tls.Config{ServerName: "a.test", RootCAs: ca.pool()})
				if err != nil {
					t.Error(err)
					return
				}
				c.close()
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		clients.Wait()
		close(ended)
	}()
	for i := 0; ; i++ {
		select {
		case <-ended:
			return
		default:
		}
		if i%2 == 0 {
			f.pair("a", certB, append(keyB, '\n'))
		} else {
			f.pair("a", certA, keyA)
		}
		if _, err := certs.Reload(); err != nil {
			t.Error(err)
		}
		certs.Expiry()
	}
}

func TestBadCertificates(t *testing.T) {
	ca := newAuthority(t, "ca")
	f := newFolder(t)
	cert, key := ca.issue(t, "a.test")
	_, otherKey := ca.issue(t, "b.test")
	der, _ := pem.Decode(cert)
	good := f.pair("good", cert, key)
	path := func(name string) string { return filepath.Join(f.dir, name) }
	damaged := inPEM("CERTIFICATE", der.Bytes[:len(der.Bytes)-7])
	for _, c := range []struct {
		name string
		pair Pair
		want []string // in the error
	}{
		{"no certificate", Pair{path("none.crt"), good.Key}, []string{"none.crt", "no such file", "check the path"}},
		{"no key", Pair{good.Cert, path("none.key")}, []string{"none.key", "no such file"}},
		{"a directory", Pair{f.dir, good.Key}, []string{f.dir, "directory"}},
		{"empty", f.pair("empty", nil, key), []string{"empty.crt", "no certificate in PEM form"}},
		{"DER", f.pair("der", der.Bytes, key), []string{"der.crt", "openssl x509"}},
		{"key is DER", f.pair("derkey", cert, der.Bytes), []string{"derkey.key", "openssl pkey"}},
		{"wrong way round", Pair{good.Key, good.Cert}, []string{"good.key", "wrong way round"}},
		{"certificate twice", Pair{good.Cert, good.Cert}, []string{"good.crt holds a certificate and no key"}},
		{"damaged", f.pair("damaged", damaged, key), []string{"damaged.crt", "is damaged"}},
		{"damaged chain", f.pair("chain", slices.Concat(cert, damaged), key), []string{"certificate 2 in", "chain.crt"}},
		{"another's key", f.pair("other", cert, otherKey), []string{"other.crt", "other.key", "does not match"}},
		{"wrong order", f.pair("order", slices.Concat(ca.pem(), cert), key), []string{"certificate 2 of", "put that one first"}},
		{"encrypted key", f.pair("enc", cert, inPEM("ENCRYPTED PRIVATE KEY", []byte("x"))), []string{"enc.key is encrypted"}},
		{"old encrypted key", f.pair("old", cert, pem.EncodeToMemory(&pem.Block{
			Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: []byte("x"),
		})), []string{"old.key is encrypted"}},
		{"damaged key", f.pair("badkey", cert, inPEM("PRIVATE KEY", []byte("x"))), []string{"badkey.key"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := LoadCertificates(TLSOptions{Pairs: []Pair{good, c.pair}})
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		if os.Geteuid() == 0 {
			t.Skip("root reads everything")
		}
		if err := os.Chmod(good.Key, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadCertificates(TLSOptions{Pairs: []Pair{good}}); !errors.Is(err, os.ErrPermission) {
			t.Error(err)
		}
	})
	if _, err := LoadCertificates(TLSOptions{}); err == nil {
		t.Error("a listener without certificates was accepted")
	}
	for _, name := range []string{path("none.pem"), f.write("rubbish.pem", []byte("rubbish"))} {
		_, err := LoadCertificates(TLSOptions{Pairs: []Pair{good}, ClientCA: name})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("client_ca %s: %v", name, err)
		}
	}
}

func TestExpiryAndWarnings(t *testing.T) {
	ca := newAuthority(t, "ca")
	f := newFolder(t)
	cert, key := ca.issue(t, "a.test", "*.b.test")
	hour := time.Hour
	issue := func(template *x509.Certificate) ([]byte, []byte) { return ca.issueAs(t, template, newKey(t)) }
	pair := func(name string, template *x509.Certificate) Pair {
		c, k := issue(template)
		return f.pair(name, c, k)
	}
	now := time.Now().Truncate(time.Second)
	certs := load(t, TLSOptions{Pairs: []Pair{
		f.pair("good", cert, key),
		pair("expired", &x509.Certificate{DNSNames: []string{"c.test"}, NotBefore: now.Add(-2 * hour), NotAfter: now.Add(-hour)}),
		pair("early", &x509.Certificate{DNSNames: []string{"d.test"}, NotBefore: now.Add(hour), NotAfter: now.Add(2 * hour)}),
		pair("nameless", &x509.Certificate{Subject: pkix.Name{CommonName: "e.test"}}),
		pair("address", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}),
	}})
	expiry := certs.Expiry()
	if len(expiry) != 5 {
		t.Fatalf("%d certificates expire, want 5", len(expiry))
	}
	if e := expiry[0]; e.Name != "a.test,*.b.test" || e.File != filepath.Join(f.dir, "good.crt") {
		t.Errorf("%+v", e)
	}
	if e := expiry[1]; !e.NotAfter.Equal(now.Add(-hour)) {
		t.Errorf("%+v", e)
	}
	if e := expiry[4]; e.Name != "127.0.0.1" {
		t.Errorf("%+v", e)
	}
	warnings := certs.Warnings()
	want := []string{"expired.crt has expired", "early.crt is not valid before", "nameless.crt has no names", "address.crt has addresses only"}
	if len(warnings) != len(want) {
		t.Fatalf("warnings %q", warnings)
	}
	for i, w := range want {
		if !strings.Contains(warnings[i], w) {
			t.Errorf("warning %q, want %q", warnings[i], w)
		}
	}
}
