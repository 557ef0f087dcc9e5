package config

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
)

// defaultEndpoint is where etcd is unless told otherwise.
const defaultEndpoint = "127.0.0.1:2379"

// Default is the configuration of an empty file.
func Default() *Config {
	c := &Config{
		Static: Static{
			Listeners: []Listener{{Address: ":8080"}},
			Grace:     30 * time.Second,
		},
	}
	c.fill()
	return c
}

// fill gives what is empty its default.
func (c *Config) fill() {
	orDefault(&c.Etcd.Prefix, "/rota")
	orDefault(&c.Etcd.DialTimeout, 2*time.Second)
	if e := &c.Etcd.Embedded; e.Dir != "" {
		orDefault(&e.Name, "rota")
		orDefault(&e.Client, "127.0.0.1:2379")
		if len(c.Etcd.Endpoints) == 0 || slices.Equal(c.Etcd.Endpoints, []string{defaultEndpoint}) {
			c.Etcd.Endpoints = []string{e.Scheme() + "://" + e.Client}
		}
	}
	if len(c.Etcd.Endpoints) == 0 && !c.Etcd.Disabled {
		c.Etcd.Endpoints = []string{defaultEndpoint}
	}
	for i := range c.Listeners {
		orDefault(&c.Listeners[i].Protocol, "http")
	}
	orDefault(&c.Admin.Address, "127.0.0.1:9797")
	orDefault(&c.Log.Level, "info")
	orDefault(&c.Log.Access, "stdout")
	orDefault(&c.Log.Format, "json")
	orDefault(&c.Timeouts.Connect, time.Second)
	orDefault(&c.Timeouts.ResponseHead, 30*time.Second)
	orDefault(&c.Timeouts.IdleBody, 60*time.Second)
	orDefault(&c.Timeouts.RequestHead, 10*time.Second)
	orDefault(&c.Timeouts.KeepAlive, 75*time.Second)
	orDefault(&c.Timeouts.Handshake, 10*time.Second)
	orDefault(&c.Timeouts.Tunnel, time.Hour)
	orDefault(&c.Retries.Attempts, 3)
	orDefault(&c.Retries.Budget, 20)
	orDefault(&c.Retries.Buffer, 16<<10)
	orDefault(&c.Limits.MinRate, "500")
	orDefault(&c.Limits.Shed, "500ms")
	orDefault(&c.RequestID, "X-Request-Id")
	for name, service := range c.Services {
		orDefault(&service.Balance, pool.DefaultPolicy)
		c.Services[name] = service
	}
}

func orDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Option changes what [Load] and [Parse] look at.
type Option func(*loading)

type loading struct{ environ []string }

// WithEnviron gives the environment to look at, in the form of [os.Environ].
func WithEnviron(environ []string) Option {
	return func(l *loading) { l.environ = environ }
}

// Load reads the file at path, or the one that [Find] finds when path is empty, or none when there is none either:
// the defaults make a usable configuration. The environment is applied on top, and the result is valid. Any error is
// of type [Errors].
func Load(path string, opts ...Option) (*Config, error) {
	l := loading{environ: os.Environ()}
	for _, o := range opts {
		o(&l)
	}
	env := environment(l.environ)
	if path == "" {
		path = find(env)
	}
	var data []byte
	if path != "" {
		var err error
		if data, err = readFile(path); err != nil {
			e := &Error{File: path, Message: "cannot be read", cause: err}
			if pe, ok := err.(*os.PathError); ok {
				e.Message += ": " + pe.Err.Error()
			}
			if os.IsNotExist(err) {
				e.Hint = "name another with -c, or leave it out for the defaults"
			}
			return nil, Errors{e}
		}
	}
	return parse(path, data, env)
}

// Parse reads a configuration from data; name stands for the file in errors. No environment plays a part but one that is given.
func Parse(name string, data []byte, opts ...Option) (*Config, error) {
	var l loading
	for _, o := range opts {
		o(&l)
	}
	return parse(name, data, environment(l.environ))
}

func parse(name string, data []byte, env map[string]string) (*Config, error) {
	s, c := newSource(name, data), Default()
	s.applyEtcdctl(c, env)
	s.read(data, maxFileBytes, c)
	if s.at["etcd.password_file"] != nil && s.env["etcd.password"] != "" {
		c.Etcd.Password = "" // the file's choice stands over etcdctl's
	}
	s.applyEnvironment(c, env)
	c.fill()
	if len(s.errs) == 0 || s.root() {
		s.validate(c)
	}
	if err := s.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// Validate gives empty fields their defaults and checks a configuration that was not read from a file, or was changed
// since, by flags for instance. An error is of type [Errors]; it names the setting where a position would stand.
func (c *Config) Validate() error {
	c.fill()
	s := newSource("", nil)
	s.validate(c)
	return s.err()
}

// root tells whether the text could be parsed at all: what a broken one decodes to is not worth a judgement.
func (s *source) root() bool { return s.at[""] != nil }

// readFile reads a little more than is allowed, so that an endless file is refused and not held.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Find returns the first of ./rota.yaml, $XDG_CONFIG_HOME/rota/rota.yaml (~/.config by default) and
// /etc/rota/rota.yaml that exists, or "".
func Find() string { return find(environment(os.Environ())) }

func find(env map[string]string) string {
	dir := env["XDG_CONFIG_HOME"]
	if dir == "" && env["HOME"] != "" {
		dir = filepath.Join(env["HOME"], ".config")
	}
	candidates := []string{"rota.yaml"}
	if filepath.IsAbs(dir) {
		candidates = append(candidates, filepath.Join(dir, "rota", "rota.yaml"))
	}
	for _, path := range append(candidates, "/etc/rota/rota.yaml") {
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			return path
		}
	}
	return ""
}

// ParseRoute reads the value of the key <prefix>/routes/<name>: a route as in the file, in JSON or YAML, without its
// name or with the same. An error is of type [Errors] and names the key.
func ParseRoute(name string, data []byte) (Route, error) {
	s := newSource("routes/"+name, data)
	var r Route
	s.read(data, maxValueBytes, &r)
	if s.root() {
		if r.Name != "" && r.Name != name {
			s.report("name", fmt.Sprintf("name %q is not the key's name %q", r.Name, name), "leave name out")
		}
		r.Name = name
		s.route(r, "")
	} else if len(s.errs) == 0 {
		s.add(0, 0, 0, "the value is empty", `write a route such as {"service": "cart", "path": "/cart"}`)
	}
	return r, s.err()
}

// ParsePolicy reads the value of the key <prefix>/policies/<service>: a service's policy as in the file, in JSON or
// YAML. An error is of type [Errors] and names the key.
func ParsePolicy(service string, data []byte) (Service, error) {
	s := newSource("policies/"+service, data)
	var v Service
	s.read(data, maxValueBytes, &v)
	if s.root() {
		orDefault(&v.Balance, pool.DefaultPolicy)
		s.service(service, v, "")
	} else if len(s.errs) == 0 {
		s.add(0, 0, 0, "the value is empty", `write a policy such as {"balance": "round_robin"}`)
	}
	return v, s.err()
}

// ParseGrant reads the value of the key <prefix>/grants/<service>, in JSON or YAML. An error is of type [Errors] and names the
// key.
func ParseGrant(service string, data []byte) (Grant, error) {
	s := newSource("grants/"+service, data)
	var g Grant
	s.read(data, maxValueBytes, &g)
	if !s.root() && len(s.errs) == 0 {
		s.add(0, 0, 0, "the value is empty", `write a grant such as {"claims": [{"host": "shop.example.com", "path": "/cart"}]}`)
	}
	if s.root() && !serviceName.MatchString(service) {
		s.report("", fmt.Sprintf("%q is not a service name", clip(service)), serviceGrammar)
	}
	for i, c := range g.Claims {
		at := fmt.Sprintf("claims[%d]", i)
		if problem, hint := checkHost(c.Host); problem != "" {
			s.report(at+".host", problem, hint)
		}
		if problem, hint := checkPath(c.Path); problem != "" {
			s.report(at+".path", problem, hint)
		} else if c.Path != "" && c.Path[0] != '/' {
			s.report(at+".path", fmt.Sprintf("path %q is no prefix", clip(c.Path)), "write it as in /cart; a grant covers what is below")
		}
		if c == (GrantedClaim{}) {
			s.report(at, "this grants every host and path", `name a host or a path; for any host write {"path": "/"}`)
		}
	}
	return g, s.err()
}

// ReadPassword returns the password: Password, or the first line of PasswordFile, or "".
func (e Etcd) ReadPassword() (string, error) {
	return readSecret(e.Password, "etcd.password_file", e.PasswordFile)
}

// ReadTokens returns the tokens by the names of who has them: each as it is given, or the first line of its file. The one that is
// nobody's in particular is under ""; there may be none at all.
func (a Admin) ReadTokens() (map[string]string, error) {
	out, names := map[string]string{}, map[string]string{}
	add := func(name, at string, t AdminToken) error {
		token, err := readSecret(t.Token, at, t.TokenFile)
		switch {
		case err != nil:
			return err
		case token == "" && t.TokenFile != "":
			return fmt.Errorf("%s: %s is empty", at, t.TokenFile)
		case token == "":
			return nil
		}
		if other, taken := names[token]; taken {
			return fmt.Errorf("%s: it is the token of %s, too: who has done something would not be known", at, cmp.Or(other, "nobody in particular"))
		}
		out[name], names[token] = token, name
		return nil
	}
	if err := add("", "admin.token_file", AdminToken{a.Token, a.TokenFile}); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(a.Tokens)) {
		if err := add(name, "admin.tokens."+name, a.Tokens[name]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// readSecret returns a text, or the first line of a file, if one is named.
func readSecret(text, key, file string) (string, error) {
	if file == "" {
		return text, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimRight(line, "\r"), nil
}
