package registryetcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/registrytest"
)

func TestFromEnv(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("from file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	given := &tls.Config{ServerName: "given"}
	for _, test := range []struct {
		name string
		in   Options
		env  map[string]string
		want Options
		err  string
	}{
		{name: "nothing"},
		{
			name: "etcdctl's",
			env: map[string]string{
				"ETCDCTL_ENDPOINTS": "https://a:1, b:2,", "ETCDCTL_CACERT": "ca", "ETCDCTL_CERT": "cert", "ETCDCTL_KEY": "key",
				"ETCDCTL_USER": "user:pa:ss", "ETCDCTL_INSECURE_SKIP_TLS_VERIFY": "true", "ETCDCTL_DIAL_TIMEOUT": "7s",
			},
			want: Options{
				Endpoints: []string{"https://a:1", "b:2"}, CACert: "ca", Cert: "cert", Key: "key", Username: "user",
				Password: "pa:ss", InsecureSkipVerify: true, DialTimeout: 7 * time.Second,
			},
		},
		{
			name: "ours come first",
			env: map[string]string{
				"ROTA_ETCD_ENDPOINTS": "ours:1", "ETCDCTL_ENDPOINTS": "theirs:1", "ROTA_ETCD_PREFIX": "/p", "ROTA_ETCD_TTL": "5s",
				"ROTA_ETCD_USERNAME": "us", "ROTA_ETCD_PASSWORD": "secret", "ETCDCTL_USER": "them:other",
			},
			want: Options{Endpoints: []string{"ours:1"}, Prefix: "/p", TTL: 5 * time.Second, Username: "us", Password: "secret"},
		},
		{
			name: "fields come before all",
			in:   Options{Endpoints: []string{"field:1"}, Username: "me", Password: "mine", Prefix: "/f", TTL: time.Second},
			env: map[string]string{
				"ROTA_ETCD_ENDPOINTS": "ours:1", "ROTA_ETCD_USER": "us:secret", "ROTA_ETCD_PREFIX": "/p", "ROTA_ETCD_TTL": "5s",
			},
			want: Options{Endpoints: []string{"field:1"}, Username: "me", Password: "mine", Prefix: "/f", TTL: time.Second},
		},
		{
			name: "a password stays with its name",
			in:   Options{Username: "me"},
			env:  map[string]string{"ETCDCTL_USER": "root:secret"},
			want: Options{Username: "me"},
		},
		{
			name: "a password alone joins the name",
			in:   Options{Username: "me"},
			env:  map[string]string{"ROTA_ETCD_PASSWORD": "secret"},
			want: Options{Username: "me", Password: "secret"},
		},
		{
			name: "with a password etcdctl takes the user whole",
			env:  map[string]string{"ETCDCTL_USER": "a:b", "ETCDCTL_PASSWORD": "c"},
			want: Options{Username: "a:b", Password: "c"},
		},
		{
			name: "password file",
			env:  map[string]string{"ROTA_ETCD_USERNAME": "us", "ROTA_ETCD_PASSWORD_FILE": file},
			want: Options{Username: "us", Password: "from file"},
		},
		{
			name: "a key stays with its certificate",
			in:   Options{Cert: "mine"},
			env:  map[string]string{"ROTA_ETCD_CERT": "cert", "ROTA_ETCD_KEY": "key"},
			want: Options{Cert: "mine"},
		},
		{
			name: "TLS switches the files off",
			in:   Options{TLS: given},
			env:  map[string]string{"ROTA_ETCD_CACERT": "ca", "ETCDCTL_INSECURE_SKIP_TLS_VERIFY": "true"},
			want: Options{TLS: given},
		},
		{name: "not a bool", env: map[string]string{"ROTA_ETCD_INSECURE_SKIP_VERIFY": "yes"}, err: "ROTA_ETCD_INSECURE_SKIP_VERIFY"},
		{name: "not a duration", env: map[string]string{"ROTA_ETCD_TTL": "10"}, err: "ROTA_ETCD_TTL"},
		{name: "no such file", env: map[string]string{"ROTA_ETCD_PASSWORD_FILE": file + "?"}, err: "ROTA_ETCD_PASSWORD_FILE"},
	} {
		got, err := FromEnv(test.in, func(name string) string { return test.env[name] })
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: error %v, want one about %s", test.name, err, test.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if d := cmp.Diff(test.want, got, cmp.AllowUnexported(Options{}), cmp.Comparer(func(a, b *tls.Config) bool { return a == b })); d != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, d)
		}
	}
}

func TestConnectRefuses(t *testing.T) {
	t.Parallel()
	for what, o := range map[string]Options{
		"no port":           {Endpoints: []string{"etcd"}},
		"no host":           {Endpoints: []string{":2379"}},
		"a path":            {Endpoints: []string{"http://etcd:2379/v3"}},
		"another scheme":    {Endpoints: []string{"ftp://etcd:2379"}},
		"a password inside": {Endpoints: []string{"http://root:hunter2@etcd:2379"}},
		"mixed":             {Endpoints: []string{"http://a:1", "https://b:1"}},
		"TLS over http":     {Endpoints: []string{"http://a:1"}, InsecureSkipVerify: true},
		"prefix":            {Prefix: "rota/"},
		"TTL":               {TTL: time.Millisecond},
		"dial timeout":      {DialTimeout: -1},
		"silence":           {ProgressEvery: time.Minute},
		"page size":         {PageSize: -1},
		"no user":           {Password: "hunter2"},
		"no password":       {Username: "root"},
		"no key":            {Cert: "cert.pem"},
		"no CA in file":     {CACert: "options_test.go"},
	} {
		c, err := connect(o, noEnv)
		if !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows the password: %v", what, err)
		}
		if c != nil {
			c.Close()
		}
	}
	if _, err := connect(Options{CACert: "no such file"}, noEnv); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing CA file: %v", err)
	}
	c, err := connect(Options{}, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Prefix() != "/rota" || cmp.Diff(c.Endpoints(), []string{DefaultEndpoint}) != "" || c.opts.TTL != DefaultTTL {
		t.Errorf("defaults: %+v", c.opts)
	}
}

// Connect does not wait, not even for the token of a user, and everything begins when etcd does.
func TestConnectWithoutEtcd(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	enableAuth(t, s)
	relay := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
	relay.Refuse()
	start := time.Now()
	c := dial(t, []string{relay.Addr()}, func(o *Options) { o.Username, o.Password, o.DialTimeout = "rota", "secret", time.Second })
	if took := time.Since(start); took > time.Second {
		t.Errorf("Connect took %s", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := c.Check(ctx)
	if err == nil || !strings.Contains(err.Error(), "etcd unreachable at "+relay.Addr()) || strings.Contains(err.Error(), "secret") {
		t.Errorf("Check: %v", err)
	}
	reg, err := c.Register(t.Context(), instance("late", "a"))
	if err != nil {
		t.Fatal(err)
	}
	w := registrytest.Watch(t, c, registry.Scope{})
	w.WaitErr(t)
	relay.Accept()
	waitState(t, reg, registry.Registered)
	w.WaitReset(t)
	if err := c.Check(limit(t)); err != nil {
		t.Errorf("Check: %v", err)
	}
	// What Check says when nobody listens at all.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	nobody := dial(t, []string{l.Addr().String()})
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := nobody.Check(ctx); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("Check: %v", err)
	}
}

// authority makes certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue writes name.pem and name.key.
func (a *authority) issue(name string, c *x509.Certificate) {
	a.t.Helper()
	must := func(err error) {
		a.t.Helper()
		if err != nil {
			a.t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	a.last++
	c.SerialNumber = big.NewInt(a.last)
	c.Subject = pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := c, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	must(err)
	if a.cert == nil {
		a.cert, err = x509.ParseCertificate(der)
		must(err)
		a.key = key
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	must(err)
	must(os.WriteFile(a.path(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(os.WriteFile(a.path(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600))
}

func (a *authority) path(file string) string { return filepath.Join(a.dir, file) }

func (a *authority) issueClient(name string) {
	a.issue(name, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

func TestTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.issue("server", &x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	a.issueClient("client")
	s := etcdtest.Start(t, func(cfg *embed.Config) {
		cfg.ListenClientUrls = []url.URL{{Scheme: "https", Host: cfg.ListenClientUrls[0].Host}}
		cfg.AdvertiseClientUrls = cfg.ListenClientUrls
		cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = a.path("server.pem"), a.path("server.key")
		cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = a.path("ca.pem"), true
	})
	addr := s.Endpoints()[0]
	files := func(o *Options) {
		o.CACert, o.Cert, o.Key = a.path("ca.pem"), a.path("client.pem"), a.path("client.key")
	}
	o := Options{}
	files(&o)
	o.Endpoints = []string{addr}
	tlsConfig, err := o.tlsConfig()
	if err != nil {
		t.Fatal(err)
	}
	root := etcdtest.NewClient(t, clientv3.Config{Endpoints: []string{"https://" + addr}, TLS: tlsConfig})
	enableAuthAs(t, root)

	relay := etcdtest.NewRelay(t, addr)
	user := func(o *Options) { o.Username, o.Password = "rota", "secret" }
	c := dial(t, []string{"https://" + relay.Addr()}, files, user)
	w := watchAll(t, c)
	reg := register(t, c, instance("tls", "a"))
	want := map[string]string{registry.Keys{}.Instance("tls", "a"): "10.0.0.7:5001"}
	waitView(t, w, want)

	// The certificate is exchanged in place; the next connection uses it, and a broken file does no harm before that.
	a.issueClient("client")
	relay.Cut()
	if err := reg.Update(limit(t), func(in *registry.Instance) { in.Address = "10.0.0.7:5002" }); err != nil {
		t.Fatal(err)
	}
	want[registry.Keys{}.Instance("tls", "a")] = "10.0.0.7:5002"
	waitView(t, w, want)

	if err := dial(t, []string{addr}, files, user).Check(limit(t)); err != nil { // TLS by the files alone
		t.Errorf("without a scheme: %v", err)
	}
	for what, test := range map[string]struct {
		change func(*Options)
		says   string
	}{
		"unknown authority": {func(o *Options) { files(o); o.CACert = "" }, "ROTA_ETCD_CACERT"},
		"no certificate":    {func(o *Options) { o.CACert = a.path("ca.pem") }, "etcd"}, // the alert may be lost in a reset
	} {
		bad := dial(t, []string{"https://" + addr}, test.change, user, func(o *Options) { o.DialTimeout = time.Second })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := bad.Check(ctx); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: Check said %v", what, err)
		} else {
			t.Logf("%s: %v", what, err)
		}
		cancel()
	}
}
