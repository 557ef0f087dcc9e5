package registryetcd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
)

// Defaults of [Options].
const (
	DefaultEndpoint      = "127.0.0.1:2379"
	DefaultTTL           = 10 * time.Second
	DefaultDialTimeout   = 2 * time.Second
	DefaultProgressEvery = 10 * time.Second
	DefaultSilence       = 18 * time.Second
	DefaultAuditEvery    = 5 * time.Minute
	DefaultPageSize      = 2000
)

// Options say which etcd to use and how. The zero value works with a local etcd and honours the environment: see
// [FromEnv] for who overrides whom.
type Options struct {
	// Endpoints are host:port, http://host:port or https://host:port; the members of one cluster, all with TLS or
	// all without. Empty means DefaultEndpoint.
	Endpoints []string
	// Prefix stands before every key: it begins with a slash and does not end in one. Empty means
	// [registry.DefaultPrefix].
	Prefix string
	// Foreign are prefixes at which other products keep instances. Watches deliver those too; nothing is ever written
	// there. None may stand above another or above Prefix, nor below it.
	Foreign []codec.Foreign
	// Username and Password are for etcd's own authentication. Both empty means none.
	Username, Password string

	// TLS, if not nil, is used as it is, and the four fields below are ignored. nil means TLS if one of the four is
	// set or an endpoint says https, else none.
	TLS *tls.Config
	// CACert is a PEM file with the authorities to trust, read once. Empty means the system's.
	CACert string
	// Cert and Key are PEM files with the client's certificate. They go together, and are read again for every
	// connection, so that they can be rotated in place.
	Cert, Key string
	// InsecureSkipVerify accepts any certificate of etcd. False may be overridden by the environment.
	InsecureSkipVerify bool

	// DialTimeout bounds one attempt to connect to one endpoint. Zero means DefaultDialTimeout.
	DialTimeout time.Duration
	// TTL is how long a registration outlives its process. etcd counts in whole seconds and raises what is below its
	// floor, which is 2 s with its default timing. Zero means DefaultTTL; the least is 1 s, fractions are rounded up.
	TTL time.Duration
	// Logger takes changes of state, not their repetitions. nil means silence.
	Logger *zap.Logger

	// ProgressEvery is the interval at which a watch asks for a sign of life. Zero means DefaultProgressEvery.
	ProgressEvery time.Duration
	// Silence is after how long without any a watch is taken for dead; longer than ProgressEvery. Zero means
	// DefaultSilence.
	Silence time.Duration
	// AuditEvery is the interval at which a watch lists all keys anew and compares. Zero means DefaultAuditEvery, a
	// negative value never.
	AuditEvery time.Duration
	// PageSize is the number of keys per page of a list. Zero means DefaultPageSize.
	PageSize int

	resumeWithin time.Duration // of a watch; see defaultResumeWithin
}

// FromEnv fills the empty fields of o from environment variables. First come ours: ROTA_ETCD_ENDPOINTS (separated by
// commas), _PREFIX, _USERNAME, _PASSWORD, _PASSWORD_FILE, _USER ("name:password"), _CACERT, _CERT, _KEY,
// _INSECURE_SKIP_VERIFY, _DIAL_TIMEOUT and _TTL; then etcdctl's, so that a shell that works with etcdctl works with
// us: ETCDCTL_ENDPOINTS, _CACERT, _CERT, _KEY, _USER, _PASSWORD, _INSECURE_SKIP_TLS_VERIFY and _DIAL_TIMEOUT. An
// empty variable counts as unset. What neither o nor a variable says stays empty; [Connect] knows the defaults.
//
// Fields that belong together are never mixed: a password inside a USER variable goes with its name only, a Key with
// its Cert only, and with o.TLS set no file is taken from the environment.
//
// Connect calls it with os.Getenv.
func FromEnv(o Options, getenv func(string) string) (Options, error) {
	for _, env := range []environment{
		{get: getenv, prefix: "ROTA_ETCD_", insecure: "INSECURE_SKIP_VERIFY"},
		{get: getenv, prefix: "ETCDCTL_", insecure: "INSECURE_SKIP_TLS_VERIFY"},
	} {
		if err := env.fill(&o); err != nil {
			return Options{}, err
		}
	}
	return o, nil
}

// environment is one family of variables.
type environment struct {
	get      func(string) string
	prefix   string
	insecure string
}

func (e environment) value(name string) string { return e.get(e.prefix + name) }

func (e environment) fill(o *Options) error {
	ours := e.prefix == "ROTA_ETCD_"
	if len(o.Endpoints) == 0 {
		for s := range strings.SplitSeq(e.value("ENDPOINTS"), ",") {
			if s = strings.TrimSpace(s); s != "" {
				o.Endpoints = append(o.Endpoints, s)
			}
		}
	}
	if o.TLS == nil {
		if o.CACert == "" {
			o.CACert = e.value("CACERT")
		}
		if o.Cert == "" && o.Key == "" {
			o.Cert, o.Key = e.value("CERT"), e.value("KEY")
		}
		if s := e.value(e.insecure); s != "" && !o.InsecureSkipVerify {
			b, err := strconv.ParseBool(s)
			if err != nil {
				return invalid("%s%s=%q: write true or false", e.prefix, e.insecure, s)
			}
			o.InsecureSkipVerify = b
		}
	}
	if err := e.fillUser(o, ours); err != nil {
		return err
	}
	if err := e.duration("DIAL_TIMEOUT", &o.DialTimeout); err != nil {
		return err
	}
	if !ours {
		return nil
	}
	if o.Prefix == "" {
		o.Prefix = e.value("PREFIX")
	}
	return e.duration("TTL", &o.TTL)
}

func (e environment) fillUser(o *Options, ours bool) error {
	password := e.value("PASSWORD")
	if file := e.value("PASSWORD_FILE"); ours && password == "" && file != "" && o.Password == "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("etcd: %sPASSWORD_FILE: %w", e.prefix, err)
		}
		password = strings.TrimRight(string(b), "\r\n")
	}
	user := e.value("USER")
	if ours {
		if name := e.value("USERNAME"); name != "" {
			user = name
		} else if name, pass, both := strings.Cut(user, ":"); both && password == "" {
			user, password = name, pass
		}
	} else if name, pass, both := strings.Cut(user, ":"); both && password == "" { // with a password, etcdctl takes it whole
		user, password = name, pass
	}
	switch {
	case o.Username == "":
		o.Username = user
	case user != "" && user != o.Username:
		return nil // this password is another user's
	}
	if o.Password == "" {
		o.Password = password
	}
	return nil
}

func (e environment) duration(name string, d *time.Duration) error {
	s := e.value(name)
	if s == "" || *d != 0 {
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return invalid("%s%s=%q: write a duration, as in \"5s\"", e.prefix, name, s)
	}
	*d = v
	return nil
}

// complete fills in the defaults and says what is wrong.
func (o Options) complete() (Options, error) {
	if len(o.Endpoints) == 0 {
		o.Endpoints = []string{DefaultEndpoint}
	}
	if o.Prefix == "" {
		o.Prefix = registry.DefaultPrefix
	}
	setDefault(&o.DialTimeout, DefaultDialTimeout)
	setDefault(&o.resumeWithin, defaultResumeWithin)
	setDefault(&o.TTL, DefaultTTL)
	setDefault(&o.ProgressEvery, DefaultProgressEvery)
	setDefault(&o.Silence, DefaultSilence)
	setDefault(&o.AuditEvery, DefaultAuditEvery)
	setDefault(&o.PageSize, DefaultPageSize)
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}

	const longestTTL = 24 * time.Hour
	switch {
	case o.DialTimeout < 0:
		return o, invalid("dial timeout %s: write more than zero", o.DialTimeout)
	case o.TTL < time.Second || o.TTL > longestTTL:
		return o, invalid("TTL %s: write 1s to %s", o.TTL, longestTTL)
	case o.ProgressEvery < 0 || o.Silence <= o.ProgressEvery:
		return o, invalid("silence %s: write more than the progress interval of %s", o.Silence, o.ProgressEvery)
	case o.PageSize < 1:
		return o, invalid("page size %d: write 1 or more", o.PageSize)
	case o.Password != "" && o.Username == "":
		return o, invalid("a password without a user name")
	case o.Username != "" && o.Password == "":
		return o, invalid("user %q without a password", o.Username)
	case (o.Cert == "") != (o.Key == "") && o.TLS == nil:
		return o, invalid("a client certificate needs both its files: cert %q, key %q", o.Cert, o.Key)
	}
	if err := (registry.Keys{Prefix: o.Prefix}).Validate(); err != nil {
		return o, err
	}
	for i, f := range o.Foreign {
		if err := f.Validate(); err != nil {
			return o, err
		}
		if codec.Overlap(f.Prefix, o.Prefix) {
			return o, invalid("foreign prefix %s: it overlaps with our own, %s", f.Prefix, o.Prefix)
		}
		for _, other := range o.Foreign[:i] {
			if codec.Overlap(f.Prefix, other.Prefix) {
				return o, invalid("foreign prefix %s: it overlaps with %s; keep one of them", f.Prefix, other.Prefix)
			}
		}
	}
	return o, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// secure says whether the endpoints are spoken to with TLS.
func (o Options) secure() (bool, error) {
	wanted := o.TLS != nil || o.CACert != "" || o.Cert != "" || o.InsecureSkipVerify
	var https, http int
	for _, e := range o.Endpoints {
		scheme, err := checkEndpoint(e)
		if err != nil {
			return false, err
		}
		switch scheme {
		case "https":
			https++
		case "http":
			http++
		}
	}
	if http > 0 && (https > 0 || wanted) {
		return false, invalid("endpoints %s: with TLS, write https:// or leave the scheme out", strings.Join(o.Endpoints, ", "))
	}
	return wanted || https > 0, nil
}

func checkEndpoint(e string) (scheme string, err error) {
	rest := e
	if s, after, ok := strings.Cut(e, "://"); ok {
		u, err := url.Parse(e)
		if err != nil || s != "http" && s != "https" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
			return "", invalid("endpoint %q: write host:port, http://host:port or https://host:port", redact(e))
		}
		scheme, rest = s, after
	}
	host, port, err := net.SplitHostPort(rest)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || host == "" {
		return "", invalid("endpoint %q: write host:port, as in %q", redact(e), DefaultEndpoint)
	}
	return scheme, nil
}

// redact takes out what may be a password.
func redact(endpoint string) string {
	if i := strings.LastIndexByte(endpoint, '@'); i >= 0 {
		return "…" + endpoint[i:]
	}
	return endpoint
}

// tlsConfig returns nil for connections without TLS.
func (o Options) tlsConfig() (*tls.Config, error) {
	secure, err := o.secure()
	if err != nil || !secure {
		return nil, err
	}
	if o.TLS != nil {
		return o.TLS.Clone(), nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.InsecureSkipVerify}
	if o.CACert != "" {
		pem, err := os.ReadFile(o.CACert)
		if err != nil {
			return nil, fmt.Errorf("etcd: CA certificates: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, invalid("CA certificates %s: no certificate in PEM form", o.CACert)
		}
	}
	if o.Cert != "" {
		load := func() (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(o.Cert, o.Key)
			if err != nil {
				return nil, fmt.Errorf("etcd: client certificate: %w", err)
			}
			return &c, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return cfg, nil
}

// invalid returns an error that wraps [registry.ErrInvalid].
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w etcd option: "+format, append([]any{registry.ErrInvalid}, args...)...)
}

func tooLong(n int) error {
	return fmt.Errorf("%w value: %d bytes; write at most %d", registry.ErrInvalid, n, registry.MaxValueBytes)
}
