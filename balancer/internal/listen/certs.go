package listen

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Pair is a certificate chain and its key, as PEM files.
type Pair struct{ Cert, Key string }

// TLSOptions say how a listener does TLS.
type TLSOptions struct {
	// Pairs are chosen by the names in the certificates; the first is for clients that ask for none of them.
	Pairs      []Pair
	MinVersion uint16 // zero is TLS 1.2
	// ClientCA is a PEM file of authorities for client certificates; empty asks for none.
	ClientCA string
	// ClientAuth is tls.RequireAndVerifyClientCert, which zero stands for, or tls.VerifyClientCertIfGiven. Without ClientCA
	// it says nothing.
	ClientAuth tls.ClientAuthType
}

// Expiry is when a certificate ends. Name lists its names, with commas between them.
type Expiry struct {
	File, Name string
	NotAfter   time.Time
}

// Certificates are those of a listener, as their files say at present. Use [LoadCertificates]. Its methods may be called
// concurrently.
type Certificates struct {
	options TLSOptions
	config  *tls.Config // keeps the ticket keys
	current atomic.Pointer[certificateSet]

	mu    sync.Mutex // guards what follows, and is held while files are read
	seen  string     // the files as they were at the last look
	tried string     // the files as they were when they were read last
	bad   error      // what came of that
	keys  [][32]byte // of tickets, newest first
}

// certificateSet is what was read at one time. It never changes.
type certificateSet struct {
	config          *tls.Config
	exact, wildcard map[string][]*tls.Certificate // several when clients differ in what they can verify
	first           *tls.Certificate
	expiry          []Expiry
	warnings        []string
}

const (
	lookEach   = time.Second
	rotateEach = time.Hour
	ticketKeys = 3 // so a ticket is good for at least two hours and at most three
)

// protocols are offered by ALPN.
var protocols = []string{"http/1.1"}

// suites are those of TLS 1.2 with forward secrecy and authenticated encryption (RFC 9325 §4.2). Those of TLS 1.3 are all good.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// LoadCertificates reads the files. The error names the one that is wrong, and the remedy.
func LoadCertificates(o TLSOptions) (*Certificates, error) {
	switch {
	case o.ClientCA == "":
		o.ClientAuth = tls.NoClientCert
	case o.ClientAuth == tls.NoClientCert:
		o.ClientAuth = tls.RequireAndVerifyClientCert
	case o.ClientAuth != tls.RequireAndVerifyClientCert && o.ClientAuth != tls.VerifyClientCertIfGiven:
		return nil, fmt.Errorf("client certificates are verified or not asked for: %v is neither", o.ClientAuth)
	}
	c := &Certificates{options: o}
	// What is read anew comes from here at each handshake. The keys of tickets are those of the outer configuration as long
	// as the inner one has none of its own.
	c.config = c.base()
	c.config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current.Load().config, nil }
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = c.look()
	if err := c.load(c.seen); err != nil {
		return nil, err
	}
	c.rotate(true)
	return c, nil
}

// Config is what connections are accepted with. It is good for the life of the listener and shows every change.
func (c *Certificates) Config() *tls.Config { return c.config }

// Expiry lists when the certificates end.
func (c *Certificates) Expiry() []Expiry { return c.current.Load().expiry }

// Warnings says what is wrong with the certificates in use though they can be used: one that has expired, for instance.
func (c *Certificates) Warnings() []string { return c.current.Load().warnings }

// Run watches the files and rotates the keys of session tickets until ctx ends, then returns nil. changed is told once of
// each change: with an error the old certificates stay. Files are read when they have stayed the same for a second, for
// whoever writes them writes one after the other.
func (c *Certificates) Run(ctx context.Context, changed func(err error)) error {
	look, rotate := time.NewTicker(lookEach), time.NewTicker(rotateEach)
	defer look.Stop()
	defer rotate.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-rotate.C:
			c.mu.Lock()
			c.rotate(false)
			c.mu.Unlock()
		case <-look.C:
			if swapped, err := c.reload(true); swapped || err != nil {
				changed(err)
			}
		}
	}
}

// Reload looks at the files now. It reports whether what they say is new and was taken. After an error the old certificates
// stay, and the error stays until the files change.
func (c *Certificates) Reload() (swapped bool, err error) {
	return c.reload(false)
}

// reload reads the files if they changed since they were read; with settled, only once they look the same twice.
func (c *Certificates) reload(settled bool) (swapped bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.seen
	c.seen = c.look()
	switch {
	case settled && (c.seen != before || c.seen == c.tried):
		return false, nil
	case c.seen == c.tried:
		return false, c.bad
	}
	if err := c.load(c.seen); err != nil {
		return false, err
	}
	if c.options.ClientCA != "" {
		c.rotate(true) // a ticket must not outlive the authority that its client was verified by
	}
	return true, nil
}

// load reads the files, which look like seen. When one of them is wrong nothing changes. The caller holds mu.
func (c *Certificates) load(seen string) error {
	set, err := c.read()
	c.tried, c.bad = seen, err
	if err == nil {
		c.current.Store(set)
	}
	return err
}

// look describes the files as they are now.
func (c *Certificates) look() string {
	var b strings.Builder
	for _, file := range c.files() {
		info, err := os.Stat(file)
		if err != nil {
			fmt.Fprintln(&b, err)
			continue
		}
		fmt.Fprintln(&b, info.Size(), info.ModTime().UnixNano(), inode(info))
	}
	return b.String()
}

func (c *Certificates) files() []string {
	var list []string
	for _, p := range c.options.Pairs {
		list = append(list, p.Cert, p.Key)
	}
	if c.options.ClientCA != "" {
		list = append(list, c.options.ClientCA)
	}
	return list
}

// rotate begins a new key for tickets. Tickets of the last few keys are still taken, unless forget is set. The caller holds
// mu.
func (c *Certificates) rotate(forget bool) {
	var key [32]byte
	rand.Read(key[:])
	if forget {
		c.keys = nil
	}
	c.keys = append([][32]byte{key}, c.keys[:min(len(c.keys), ticketKeys-1)]...)
	c.config.SetSessionTicketKeys(c.keys)
}

func (c *Certificates) base() *tls.Config {
	return &tls.Config{
		MinVersion: cmp.Or(c.options.MinVersion, tls.VersionTLS12), CipherSuites: suites, NextProtos: protocols,
		DynamicRecordSizingDisabled: true,
	}
}

// read makes a set of what the files say.
func (c *Certificates) read() (*certificateSet, error) {
	set := &certificateSet{
		config: c.base(), exact: map[string][]*tls.Certificate{}, wildcard: map[string][]*tls.Certificate{},
	}
	set.config.GetCertificate = set.choose
	for _, p := range c.options.Pairs {
		if err := set.add(p, len(c.options.Pairs) == 1); err != nil {
			return nil, err
		}
	}
	if set.first == nil {
		return nil, errors.New("a TLS listener needs a certificate: list one with its key in the listener's tls.certificates")
	}
	if ca := c.options.ClientCA; ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return nil, unreadable(err)
		}
		set.config.ClientCAs, set.config.ClientAuth = x509.NewCertPool(), c.options.ClientAuth
		if !set.config.ClientCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate in PEM form: client_ca is a file of authorities, each between BEGIN CERTIFICATE and END CERTIFICATE", ca)
		}
	}
	return set, nil
}

func (s *certificateSet) add(p Pair, only bool) error {
	pair, err := readPair(p)
	if err != nil {
		return err
	}
	leaf := pair.Leaf
	if s.first == nil {
		s.first = pair
	}
	for _, name := range leaf.DNSNames {
		name = strings.ToLower(name)
		if rest, ok := strings.CutPrefix(name, "*."); ok {
			s.wildcard[rest] = append(s.wildcard[rest], pair)
		} else {
			s.exact[name] = append(s.exact[name], pair)
		}
	}
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	s.expiry = append(s.expiry, Expiry{File: p.Cert, Name: strings.Join(names, ","), NotAfter: leaf.NotAfter})
	switch now := time.Now(); {
	case now.After(leaf.NotAfter):
		s.warn("certificate %s has expired on %s: renew it", p.Cert, leaf.NotAfter.Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		s.warn("certificate %s is not valid before %s: check the clock of this machine", p.Cert, leaf.NotBefore.Format(time.RFC3339))
	}
	if len(names) == 0 {
		s.warn("certificate %s has no names (subjectAltName): clients refuse it", p.Cert)
	} else if len(leaf.DNSNames) == 0 && !only && pair != s.first {
		s.warn("certificate %s has addresses only: it is never chosen, for clients ask by name", p.Cert)
	}
	return nil
}

func (s *certificateSet) warn(format string, args ...any) {
	s.warnings = append(s.warnings, fmt.Sprintf(format, args...))
}

// readPair reads a chain and its key, and looks for what people get wrong.
func readPair(p Pair) (*tls.Certificate, error) {
	chain, err := os.ReadFile(p.Cert)
	if err != nil {
		return nil, unreadable(err)
	}
	key, err := os.ReadFile(p.Key)
	if err != nil {
		return nil, unreadable(err)
	}
	certs, others := blocks(chain)
	switch {
	case len(certs) == 0 && len(others) > 0:
		return nil, fmt.Errorf("%s holds a key and no certificate: are cert and key the wrong way round?", p.Cert)
	case len(certs) == 0:
		return nil, fmt.Errorf("%s holds no certificate in PEM form: openssl x509 -inform der converts one in DER form", p.Cert)
	}
	for i, b := range certs {
		if _, err := x509.ParseCertificate(b.Bytes); err != nil {
			return nil, fmt.Errorf("certificate %d in %s is damaged: %w", i+1, p.Cert, err)
		}
	}
	inKey, keys := blocks(key)
	switch {
	case len(keys) == 0 && len(inKey) > 0:
		return nil, fmt.Errorf("%s holds a certificate and no key: name the file of the key", p.Key)
	case len(keys) == 0:
		return nil, fmt.Errorf("%s holds no key in PEM form: openssl pkey -inform der converts one in DER form", p.Key)
	case slices.ContainsFunc(keys, encrypted):
		return nil, fmt.Errorf("the key in %s is encrypted, and nobody is there to be asked for the passphrase: openssl pkey decrypts it", p.Key)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err == nil {
		return &pair, nil
	}
	for i, b := range certs[1:] {
		if _, err := tls.X509KeyPair(pem.EncodeToMemory(b), key); err == nil {
			return nil, fmt.Errorf("the key in %s belongs to certificate %d of %s: put that one first", p.Key, i+2, p.Cert)
		}
	}
	reason := strings.TrimPrefix(err.Error(), "tls: ")
	return nil, fmt.Errorf("certificate %s with key %s: %s; use the key that the certificate was issued for", p.Cert, p.Key, reason)
}

// blocks returns the certificates of a PEM file, and its keys.
func blocks(text []byte) (certs, keys []*pem.Block) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return certs, keys
		}
		if b.Type == "CERTIFICATE" {
			certs = append(certs, b)
		} else if strings.HasSuffix(b.Type, "PRIVATE KEY") {
			keys = append(keys, b)
		}
	}
}

func encrypted(b *pem.Block) bool {
	return strings.HasPrefix(b.Type, "ENCRYPTED") || strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED")
}

// unreadable adds the remedy to an error that names the file.
func unreadable(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: check the path in the listener's tls", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: make it readable for the user that rota runs as", err)
	}
	return err
}

// choose finds the certificate for the name a client asks for (RFC 6066 §3): exact, then wildcard for one label, then the
// first.
func (s *certificateSet) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.TrimSuffix(strings.ToLower(hello.ServerName), ".")
	list := s.exact[name]
	if list == nil {
		if label, rest, ok := strings.Cut(name, "."); ok && label != "" {
			list = s.wildcard[rest]
		}
	}
	switch len(list) {
	case 0:
		return s.first, nil
	case 1:
		return list[0], nil
	}
	for _, c := range list {
		if hello.SupportsCertificate(c) == nil {
			return c, nil
		}
	}
	return list[0], nil
}
