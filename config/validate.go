package config

import (
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
)

var (
	serviceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)
	routeName   = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)
	adminName   = regexp.MustCompile(`^[A-Za-z0-9._@-]{1,64}$`)
	dnsName     = regexp.MustCompile(`^[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?)*$`)
	prefixPath  = regexp.MustCompile(`^(/[A-Za-z0-9._-]+)+$`)
)

const (
	serviceGrammar = "use a-z, 0-9, - and . between them, at most 63 characters"
	maxLoops       = 1024
)

var (
	engines = []string{"loops", "goroutines"}
	// What TLS listeners and services say.
	tlsVersions    = []string{"1.2", "1.3"}
	clientAuths    = []string{"required", "optional"}
	proxyProtocols = []string{"v1", "v2"}

	levels    = []string{"debug", "info", "warn", "error"}
	protocols = []string{"http", "https"}

	clusterStates = []string{"new", "existing"}

	checkTypes = []string{"http", "tcp", "grpc"}

	// What instances may register.
	registered = []string{string(registry.HTTP), string(registry.HTTPS), string(registry.H2C), string(registry.H2), string(registry.GRPC), string(registry.TCP)}
)

// leastToken is how long a token must be.
const leastToken = 16

// maxChecks bounds rise and fall.
const maxChecks = 100

// validate reports everything that decodes but cannot be meant.
func (s *source) validate(c *Config) {
	s.etcd(c.Etcd)
	s.listeners(c)
	s.admin(c.Admin)
	if c.Engine != "" {
		s.oneOf("engine", c.Engine, engines)
	}
	if c.Loops < 0 || c.Loops > maxLoops {
		s.report("loops", fmt.Sprintf("loops must be 0 (one per CPU) to %d, not %d", maxLoops, c.Loops), "")
	}
	s.log(&c.Log)
	s.retries(c.Retries, "retries")
	s.networks("trusted_proxies", c.TrustedProxies)
	s.networks("instance_networks", c.InstanceNetworks)
	if c.RequestID != "off" && !token.MatchString(c.RequestID) {
		s.report("request_id", fmt.Sprintf("%q is not a header name", clip(c.RequestID)), "write it like X-Request-Id, or off")
	} else if why := ownFields[strings.ToLower(c.RequestID)] + toldFields[strings.ToLower(c.RequestID)]; why != "" {
		s.report("request_id", c.RequestID+" cannot carry an id: "+why, "write it like X-Request-Id, or off")
	}
	if d, err := time.ParseDuration(c.Limits.Shed); c.Limits.Shed != "off" && (err != nil || d <= 0) {
		s.report("limits.shed", fmt.Sprintf("%q is not a duration", clip(c.Limits.Shed)), "write it like 500ms, or off")
	}

	if _, message := parseSize(c.Limits.MinRate); message != "" && c.Limits.MinRate != "off" {
		s.report("limits.min_rate", "limits.min_rate "+fmt.Sprintf(message, clip(c.Limits.MinRate)), "write it like 500, 1KiB, or off")
	}

	first := make(map[string]int)
	for i, r := range c.Routes {
		path := fmt.Sprintf("routes[%d]", i)
		s.route(r, path)
		if r.Name == "" {
			continue
		}
		if j, twice := first[r.Name]; twice {
			s.report(path+".name", fmt.Sprintf("route %q is given twice", r.Name),
				fmt.Sprintf("first as routes[%d]%s; give one of them another name", j, s.lineOf(fmt.Sprintf("routes[%d]", j))))
		} else {
			first[r.Name] = i
		}
		s.listed(c, r.Service, path+".service")
		for j, share := range r.Split {
			s.listed(c, share.Service, fmt.Sprintf("%s.split[%d].service", path, j))
		}
		s.listed(c, r.Mirror.Service, path+".mirror.service")
	}
	for name, v := range c.Services {
		s.service(name, v, join("services", name))
	}
}

// listed checks that a service can have instances.
func (s *source) listed(c *Config, service, path string) {
	if _, ok := c.Services[service]; !ok && c.Etcd.Disabled && serviceName.MatchString(service) {
		s.report(path, fmt.Sprintf("service %q has no instances: etcd is disabled and services does not list it", service),
			fmt.Sprintf("add it: services: {%s: {instances: [{address: …}]}}", service))
	}
}

func (s *source) lineOf(path string) string {
	if n := s.at[path]; n != nil {
		return fmt.Sprintf(", line %d", n.Line)
	}
	return ""
}

func (s *source) oneOf(path, value string, known []string) {
	if !slices.Contains(known, value) {
		s.report(path, fmt.Sprintf("unknown %s %q", path[strings.LastIndexByte(path, '.')+1:], clip(value)), didYouMean(value, known))
	}
}

func (s *source) etcd(e Etcd) {
	if !e.Disabled {
		for i, endpoint := range e.Endpoints {
			if problem, hint := checkEndpoint(endpoint); problem != "" {
				s.report(fmt.Sprintf("etcd.endpoints[%d]", i), problem, hint)
			}
		}
	}
	if !prefixPath.MatchString(e.Prefix) || strings.Contains(e.Prefix+"/", "/./") || strings.Contains(e.Prefix+"/", "/../") {
		hint := "write it like /rota"
		if fixed := "/" + strings.Trim(e.Prefix, "/"); prefixPath.MatchString(fixed) {
			hint = "write " + fixed
		}
		s.report("etcd.prefix", fmt.Sprintf("%q is not a key prefix", clip(e.Prefix)), hint)
	}
	if e.Password != "" && e.PasswordFile != "" {
		s.report("etcd.password_file", "password and password_file are both given", "keep one, best password_file")
	}
	if e.Username == "" && (e.Password != "" || e.PasswordFile != "") {
		path := "etcd.password"
		if e.PasswordFile != "" {
			path = "etcd.password_file"
		}
		s.report(path, "a password without a username", "add etcd.username")
	}
	if e.Username != "" && e.Password == "" && e.PasswordFile == "" {
		s.report("etcd.username", "a username without a password", "add etcd.password_file")
	}
	if e.Cert != "" && e.Key == "" {
		s.report("etcd.cert", "a certificate without its key", "add etcd.key")
	}
	if e.Key != "" && e.Cert == "" {
		s.report("etcd.key", "a key without its certificate", "add etcd.cert")
	}
	for i, f := range e.Foreign {
		s.foreign(f, fmt.Sprintf("etcd.foreign[%d]", i), e.Foreign[:i], e.Prefix)
	}
	s.embedded(&e)
}

// foreign checks a foreign prefix against itself, those before it, and ours.
func (s *source) foreign(f Foreign, path string, before []Foreign, own string) {
	if !codec.IsPrefix(f.Prefix) {
		s.report(join(path, "prefix"), fmt.Sprintf("%q is not a key prefix", clip(f.Prefix)), "write it like /microservices or kitex/registry-etcd")
		return
	}
	if codec.Overlap(f.Prefix, own) {
		s.report(join(path, "prefix"), fmt.Sprintf("%s overlaps with etcd.prefix, %s", f.Prefix, own), "what stands there is read anyway")
	}
	for i, b := range before {
		if codec.Overlap(f.Prefix, b.Prefix) {
			s.report(join(path, "prefix"), fmt.Sprintf("%s overlaps with %s", f.Prefix, b.Prefix), fmt.Sprintf("that is etcd.foreign[%d]; keep one of them", i))
		}
	}
	if f.Format != "" {
		s.oneOf(join(path, "format"), f.Format, codec.Formats())
	}
	if f.Service != "" && !serviceName.MatchString(f.Service) {
		s.report(join(path, "service"), fmt.Sprintf("%q is not a service name", clip(f.Service)), serviceGrammar)
	}
	if f.Protocol != "" {
		s.oneOf(join(path, "protocol"), f.Protocol, registered)
	}
}

func checkEndpoint(endpoint string) (problem, hint string) {
	if scheme, rest, ok := strings.Cut(endpoint, "://"); ok {
		u, err := url.Parse(endpoint)
		switch {
		case scheme != "http" && scheme != "https":
			return fmt.Sprintf("etcd endpoint %q has an unknown scheme", clip(endpoint)), "write http://, https:// or just host:port"
		case err != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil || u.Fragment != "":
			return fmt.Sprintf("etcd endpoint %q must be scheme://host:port and no more", clip(hideUser(endpoint))), "credentials go to etcd.username and etcd.password_file"
		}
		endpoint = strings.TrimSuffix(rest, "/")
	}
	return checkAddress("etcd endpoint", endpoint, dialled, 2379)
}

// hideUser drops what stands before @ in a URL.
func hideUser(endpoint string) string {
	scheme, rest, _ := strings.Cut(endpoint, "://")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = "…@" + rest[i+1:]
	}
	return scheme + "://" + rest
}

// How an address is used: one that is bound may lack its host and take port 0, one that is dialled may not.
const (
	bound = iota
	dialled
)

// checkAddress reports what keeps address from being host:port. port is the one the hints use.
func checkAddress(what, address string, use, port int) (problem, hint string) {
	example := fmt.Sprintf("write it like 127.0.0.1:%d", port)
	quoted := fmt.Sprintf("%s %q", what, clip(address))
	switch _, err := strconv.Atoi(address); {
	case address == "":
		return what + " is empty", example
	case err == nil && use == bound:
		return quoted + " is not host:port", "write :" + address
	case strings.Contains(address, "://"):
		return quoted + " must not have a scheme", example
	case strings.Contains(address, "/"):
		return quoted + " is not host:port", example
	}
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		if ip, err := netip.ParseAddr(strings.Trim(address, "[]")); err == nil {
			return quoted + " has no port", "write " + net.JoinHostPort(ip.String(), strconv.Itoa(port))
		}
		if !strings.Contains(address, ":") {
			return quoted + " has no port", fmt.Sprintf("write %s:%d", address, port)
		}
		return quoted + " is not host:port", example
	}
	n, err := strconv.Atoi(p)
	if err != nil || n < 0 || n > 65535 || p != strconv.Itoa(n) {
		return fmt.Sprintf("%s has no port between 1 and 65535", quoted), example
	}
	if n == 0 && use == dialled {
		return quoted + " has port 0, which cannot be dialled", example
	}
	if host == "" {
		if use == dialled {
			return quoted + " has no host", "write 127.0.0.1" + address
		}
		return "", ""
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if use == dialled && (ip.IsUnspecified() || ip.IsMulticast()) {
			return quoted + " cannot be dialled", "name the host it listens on, such as " + net.JoinHostPort("127.0.0.1", p)
		}
		return "", ""
	}
	if len(host) > 253 || !dnsName.MatchString(host) || looksLikeIPv4(host) {
		return quoted + " has no valid host", example
	}
	return "", ""
}

// looksLikeIPv4 tells a mistyped address from a name: no top-level domain is a number.
func looksLikeIPv4(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	_, err := strconv.Atoi(last)
	return err == nil
}

func (s *source) listeners(c *Config) {
	if len(c.Listeners) == 0 {
		s.report("listeners", "no listener", `add one, such as {address: ":8080"}`)
	}
	first := make(map[string]string)
	if c.Admin.Address != "off" {
		if key := bindKey(c.Admin.Address); key != "" {
			first[key] = "admin.address"
		}
	}
	for i, l := range c.Listeners {
		path := fmt.Sprintf("listeners[%d]", i)
		s.oneOf(path+".protocol", l.Protocol, protocols)
		s.listener(l, path)
		if problem, hint := checkListen(l.Address); problem != "" {
			s.report(path+".address", problem, hint)
			continue
		}
		key := bindKey(l.Address)
		if other, twice := first[key]; twice && key != "" {
			s.report(path+".address", fmt.Sprintf("address %q is taken by %s", l.Address, other), "choose another port")
		} else {
			first[key] = path
		}
	}
}

// checkListen checks the address of a listener.
func checkListen(address string) (problem, hint string) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return checkSocket("listener address", path)
	}
	if name, ok := strings.CutPrefix(address, "systemd:"); ok {
		if !routeName.MatchString(name) {
			return fmt.Sprintf("%q is not the name of a socket of systemd", clip(name)), "write it like systemd:http, with FileDescriptorName=http in the .socket unit"
		}
		return "", ""
	}
	return checkAddress("listener address", address, bound, 8080)
}

// checkSocket checks the path of a unix socket.
func checkSocket(what, path string) (problem, hint string) {
	const longest = 107 // sun_path
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Sprintf("%s unix:%s has no absolute path", what, clip(path)), "write it like unix:/run/rota.sock"
	case len(path) > longest:
		return fmt.Sprintf("%s: the path of a unix socket has at most %d bytes", what, longest), ""
	case strings.ContainsFunc(path, func(c rune) bool { return c < ' ' || c == 0x7f }):
		return what + " has a control character", "remove it"
	}
	return "", ""
}

// listener checks what a listener says beside its address.
func (s *source) listener(l Listener, path string) {
	t := l.TLS
	switch {
	case l.Protocol == "https" && len(t.Certificates) == 0:
		s.report(path+".tls", "https needs a certificate", "add tls: {certificates: [{cert: cert.pem, key: key.pem}]}")
	case l.Protocol == "http" && (len(t.Certificates) > 0 || t.MinVersion+t.ClientCA+t.ClientAuth != ""):
		s.report(path+".tls", "tls without protocol: https", "add protocol: https")
	}
	for i, c := range t.Certificates {
		if c.Cert == "" || c.Key == "" {
			s.report(fmt.Sprintf("%s.tls.certificates[%d]", path, i), "a certificate needs cert and key", "write {cert: cert.pem, key: key.pem}")
		}
	}
	if t.MinVersion != "" {
		s.oneOf(path+".tls.min_version", t.MinVersion, tlsVersions)
	}
	if t.ClientAuth != "" {
		s.oneOf(path+".tls.client_auth", t.ClientAuth, clientAuths)
		if t.ClientCA == "" {
			s.report(path+".tls.client_auth", "client_auth without client_ca", "add client_ca: ca.pem")
		}
	}
	s.networks(path+".proxy_protocol", l.ProxyProtocol)
	if l.MaxConnections < 0 {
		s.report(path+".max_connections", "max_connections must not be negative", "0 is no bound")
	}
	if l.MaxConnectionsPerClient < 0 {
		s.report(path+".max_connections_per_client", "max_connections_per_client must not be negative", "0 is no bound")
	}
	if l.Mode != "" {
		if !strings.HasPrefix(l.Address, "unix:") {
			s.report(path+".mode", "mode is for unix sockets", "remove it")
		} else if n, err := strconv.ParseUint(l.Mode, 8, 32); err != nil || n > 0o777 {
			s.report(path+".mode", fmt.Sprintf("%q are no permissions", clip(l.Mode)), `write them in octal, such as "0660"`)
		}
	}
}

// FileMode are the permissions of a unix socket.
func (l Listener) FileMode() fs.FileMode {
	n, err := strconv.ParseUint(l.Mode, 8, 32)
	if err != nil {
		return 0o660
	}
	return fs.FileMode(n)
}

// bindKey is equal for addresses that are the same socket; empty where the port is free to choose.
func bindKey(address string) string {
	if strings.HasPrefix(address, "unix:") || strings.HasPrefix(address, "systemd:") {
		return address
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "0" {
		return ""
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if host = ip.Unmap().String(); ip.IsUnspecified() {
			host = ""
		}
	}
	return strings.ToLower(host) + ":" + port
}

func (s *source) admin(a Admin) {
	if a.Address == "off" {
		return
	}
	if problem, hint := checkAddress("admin address", a.Address, bound, 9797); problem != "" {
		if near(a.Address, []string{"off"}) != "" {
			hint = `did you mean "off"?`
		}
		s.report("admin.address", problem, hint)
		return
	}
	s.adminToken("admin", AdminToken{a.Token, a.TokenFile})
	for _, name := range slices.Sorted(maps.Keys(a.Tokens)) {
		at, t := "admin.tokens."+name, a.Tokens[name]
		if !adminName.MatchString(name) {
			s.reportKey(at, fmt.Sprintf("%q is not a name for the record", clip(name)), "use letters, digits and . _ @ -, at most 64")
		}
		if s.adminToken(at, t); t == (AdminToken{}) {
			s.report(at, "there is no token", "name a token_file")
		}
	}
	for i, host := range a.Hosts {
		if _, err := netip.ParseAddr(host); err != nil && (len(host) > 253 || !dnsName.MatchString(host)) {
			s.report(fmt.Sprintf("admin.hosts[%d]", i), fmt.Sprintf("%q is not a name or an address", clip(host)), "write it without scheme and port, as in rota.example.com")
		}
	}
	host, port, _ := net.SplitHostPort(a.Address)
	ip, err := netip.ParseAddr(host)
	if host == "localhost" || err == nil && ip.Unmap().IsLoopback() || a.Token != "" || a.TokenFile != "" || len(a.Tokens) > 0 {
		return
	}
	s.report("admin.address", fmt.Sprintf("admin address %q is not on loopback, and there is no token", a.Address),
		fmt.Sprintf("write 127.0.0.1:%s, or off, or name a token_file", port))
}

func (s *source) adminToken(at string, t AdminToken) {
	if t.Token != "" && t.TokenFile != "" {
		s.report(at+".token_file", "token and token_file exclude each other", "keep token_file: it shows in no listing")
	}
	if t.Token != "" && len(t.Token) < leastToken {
		s.report(at+".token", fmt.Sprintf("a token of %d characters can be guessed", len(t.Token)), "make one with: openssl rand -hex 32")
	}
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// embedded checks the etcd member in this process.
func (s *source) embedded(etcd *Etcd) {
	e := &etcd.Embedded
	if e.Dir == "" {
		if !reflect.ValueOf(*e).IsZero() {
			s.report("etcd.embedded", "a member without a place for its data", "add dir, such as /var/lib/rota/etcd")
		}
		return
	}
	if etcd.Disabled {
		s.report("etcd.embedded", "etcd is disabled, and one is to run in this process", "keep one of disabled and embedded")
	}
	if len(e.Members) > 0 && e.Members[e.Name] == "" {
		s.report("etcd.embedded.members", fmt.Sprintf("this member, %q, is not among them", clip(e.Name)), "add it, or set name to one that is")
	}
	joins := e.InitialClusterState == "existing"
	if e.InitialClusterState != "" {
		s.oneOf("etcd.embedded.initial_cluster_state", e.InitialClusterState, clusterStates)
	}
	if joins && len(e.Members) < 2 {
		s.report("etcd.embedded.initial_cluster_state", "there is no member to join", "list all in members, this one too")
	}
	if n := len(e.Members); n > 0 && n%2 == 0 && !joins { // on the way from one to three there are two
		s.report("etcd.embedded.members", fmt.Sprintf("%d members stand no more failures than %d", n, n-1), "have one, three or five")
	}
	for _, name := range slices.Sorted(maps.Keys(e.Members)) {
		if host, port, err := net.SplitHostPort(e.Members[name]); err != nil || port == "" {
			s.report(join("etcd.embedded.members", name), fmt.Sprintf("%q is not host:port", clip(e.Members[name])), "write it as in 10.0.0.1:2380")
		} else if e.Cert == "" && !loopback(host) {
			s.report(join("etcd.embedded.members", name), "members talk to each other beyond loopback, without certificates", "add cert, key and cacert")
		} else if e.CACert == "" && !loopback(host) {
			s.report(join("etcd.embedded.members", name), "members talk to each other beyond loopback, and ask nobody for a certificate", "add cacert, the authority that has signed theirs")
		}
	}
	switch {
	case e.Cert != "" && e.Key == "":
		s.report("etcd.embedded.cert", "a certificate without its key", "add key")
	case e.Key != "" && e.Cert == "":
		s.report("etcd.embedded.key", "a key without its certificate", "add cert")
	}
	host, _, err := net.SplitHostPort(e.Client)
	if err != nil {
		s.report("etcd.embedded.client", fmt.Sprintf("%q is not host:port", clip(e.Client)), "write it as in 127.0.0.1:2379")
		return
	}
	switch {
	case loopback(host):
	case e.Cert == "":
		s.report("etcd.embedded.client", "beyond loopback anybody could write what is routed", "add cert and key, and cacert so that clients need a certificate")
	case e.CACert == "":
		s.report("etcd.embedded.client", "beyond loopback anybody could write what is routed: clients need no certificate", "add cacert, the authority that has signed theirs")
	}
}

func (s *source) access(value string) {
	if value == "stdout" || value == "stderr" || value == "off" || strings.ContainsAny(value, "/.") {
		return
	}
	hint := "for a file write ./" + value
	if meant := near(value, []string{"stdout", "stderr", "off"}); meant != "" {
		hint = fmt.Sprintf("did you mean %q? For a file write ./%s", meant, value)
	}
	s.report("log.access", fmt.Sprintf("access log %q is neither stdout nor off nor a path", clip(value)), hint)
}

func checkHost(host string) (problem, hint string) {
	if host == "" {
		return "", ""
	}
	quoted := fmt.Sprintf("host %q", clip(host))
	name, wildcard := strings.CutPrefix(host, "*.")
	if len(host) > 2 && host[0] == '[' && host[len(host)-1] == ']' {
		if ip, err := netip.ParseAddr(host[1 : len(host)-1]); err == nil && ip.Is6() && ip.Zone() == "" {
			return "", ""
		}
	}
	switch {
	case host == "*":
		return quoted + " is not a host", "leave host out to match any"
	case strings.Contains(host, "://"):
		return quoted + " must not have a scheme", "write the host alone"
	case strings.Contains(host, "/"):
		return quoted + " must not have a path", "write it as path"
	case net.ParseIP(host) != nil && strings.Contains(host, ":"):
		return quoted + " is an IPv6 address without brackets", fmt.Sprintf(`write "[%s]"`, host)
	case strings.Contains(host, ":"):
		bare, _, _ := strings.Cut(host, ":")
		return quoted + " must not have a port", "write " + bare + "; any port matches"
	case strings.HasSuffix(host, "."):
		return quoted + " must not end in a dot", "write " + strings.TrimRight(host, ".")
	case strings.Contains(name, "*"):
		return quoted + " has a * that is not the whole first label", "write it like *.example.com"
	case strings.ContainsFunc(host, func(r rune) bool { return r > '~' }):
		return quoted + " is not ASCII", "write it in punycode, xn--…"
	case len(host) > 253, !dnsName.MatchString(name), wildcard && looksLikeIPv4(name):
		return quoted + " is not a host name", "write it like shop.example.com or *.example.com"
	}
	return "", ""
}

func checkPath(path string) (problem, hint string) {
	if path == "" {
		return "", ""
	}
	quoted := fmt.Sprintf("path %q", clip(path))
	p := strings.TrimPrefix(path, "=")
	if text, ok := strings.CutPrefix(path, "~"); ok {
		return checkExpression(text)
	}
	switch {
	case strings.Contains(path, "*"):
		return quoted + ": * is not a wildcard", "a prefix matches all below it: /cart matches /cart/7"
	case !strings.HasPrefix(p, "/"):
		return quoted + " must begin with /", fmt.Sprintf("write %s/%s", path[:len(path)-len(p)], clip(p))
	case strings.ContainsAny(p, "?#"):
		return quoted + " must not have a query or fragment", "only the path is matched"
	case len(p) > 4096:
		return quoted + " is longer than 4096 bytes", ""
	}
	for i := 0; i < len(p); i++ {
		switch b := p[i]; {
		case b <= ' ' || b >= 0x7f || strings.IndexByte(`"<>\^{|}`+"`", b) >= 0:
			return fmt.Sprintf("%s has a %q, which a path holds only escaped", quoted, p[i:i+1]), fmt.Sprintf("write %%%02X", b)
		case b == '%':
			if i+2 >= len(p) || !isHex(p[i+1]) || !isHex(p[i+2]) {
				return quoted + " has a % without two hexadecimal digits", "write %25 for a percent sign"
			}
			c, _ := strconv.ParseUint(p[i+1:i+3], 16, 8)
			switch b := byte(c); {
			case b == 0:
				return fmt.Sprintf("%s has %s, which requests may not have", quoted, p[i:i+3]), "remove it"
			case (b == '/' || b == '\\') && p == path:
				return fmt.Sprintf("%s has %s, which only an exact path may have", quoted, p[i:i+3]), "write =" + clip(p)
			case b == '-' || b == '.' || b == '_' || b == '~' || isDigit(b) || 'a' <= b|0x20 && b|0x20 <= 'z':
				return fmt.Sprintf("%s has %s, but paths are matched in their normal form", quoted, p[i:i+3]), fmt.Sprintf("write %c", b)
			}
		}
	}
	for segment := range strings.SplitSeq(p[1:], "/") {
		if segment == "." || segment == ".." {
			return quoted + " has a dot segment", "write the path it leads to"
		}
	}
	if strings.Contains(p, "//") {
		return quoted + " has an empty segment", "write one slash"
	}
	return "", ""
}

func isDigit(b byte) bool { return '0' <= b && b <= '9' }

func isHex(b byte) bool {
	return isDigit(b) || 'a' <= b && b <= 'f' || 'A' <= b && b <= 'F'
}

// check checks how instances are checked.
func (s *source) check(v Check, path string) {
	if v.Type != "" {
		s.oneOf(join(path, "type"), v.Type, checkTypes)
	}
	if (v.Type == "" || v.Type == "http") && v.Path != "" && v.Path[0] != '/' {
		s.report(join(path, "path"), fmt.Sprintf("path %q does not begin with a slash", clip(v.Path)), "write it as in /healthz")
	}
	if strings.ContainsFunc(v.Path, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		s.report(join(path, "path"), fmt.Sprintf("path %q holds a space or control character", clip(v.Path)), "write it as it goes over the wire, as in %20")
	}
	if d := v.Interval; d != 0 && (d < registry.MinCheckInterval || d > registry.MaxCheckInterval) {
		s.report(join(path, "interval"), fmt.Sprintf("interval must be %s to %s, not %s", registry.MinCheckInterval, registry.MaxCheckInterval, d), "")
	}
	for name, n := range map[string]int{"rise": v.Rise, "fall": v.Fall} {
		if n < 0 || n > maxChecks {
			s.report(join(path, name), fmt.Sprintf("%s must be 1 to %d, not %d", name, maxChecks, n), "")
		}
	}
	for name, value := range v.Headers {
		if !token.MatchString(name) || strings.EqualFold(name, "host") {
			s.reportKey(join(path, "headers."+name), fmt.Sprintf("%q cannot be a header of a check", clip(name)), `the host has a key of its own, "host"`)
		}
		if strings.ContainsAny(value, "\r\n\x00") {
			s.report(join(path, "headers."+name), "a header holds a line break", "write it on one line")
		}
	}
	for i, text := range v.Status {
		if _, err := ParseStatus(text); err != nil {
			s.report(join(path, fmt.Sprintf("status[%d]", i)), fmt.Sprintf("status %q is no status and no range of them", clip(text)), "write it as in 204 or 200-299")
		}
	}
}

// ParseStatus reads a status or a range of them, both ends included.
func ParseStatus(text string) (r [2]int, err error) {
	if class, ok := strings.CutSuffix(text, "xx"); ok && len(class) == 1 {
		text = class + "00-" + class + "99"
	}
	from, to, ranged := strings.Cut(text, "-")
	if !ranged {
		to = from
	}
	for i, t := range []string{from, to} {
		if r[i], err = strconv.Atoi(t); err != nil || len(t) != 3 || r[i] < 100 || r[i] > 599 {
			return r, fmt.Errorf("%q is not a status", text)
		}
	}
	if r[0] > r[1] {
		return r, fmt.Errorf("%q is no range", text)
	}
	return r, nil
}

// service checks one service's policy; path is where it stands, empty for a value kept in etcd.
func (s *source) service(name string, v Service, path string) {
	if !serviceName.MatchString(name) {
		s.reportKey(path, fmt.Sprintf("%q is not a service name", clip(name)), serviceGrammar)
	}
	if v.Balance != "" {
		s.oneOf(join(path, "balance"), v.Balance, pool.Policies())
	}
	if v.Protocol != "" {
		s.oneOf(join(path, "protocol"), v.Protocol, protocols)
	}
	if v.SendProxyProtocol != "" {
		s.oneOf(join(path, "send_proxy_protocol"), v.SendProxyProtocol, proxyProtocols)
	}
	if (v.TLS.Cert == "") != (v.TLS.Key == "") {
		s.report(join(path, "tls"), "cert and key belong together", "give both, or none")
	}
	if name := v.TLS.ServerName; name != "" && !dnsName.MatchString(name) && net.ParseIP(name) == nil {
		s.report(join(path, "tls.server_name"), fmt.Sprintf("%q is not a host name", clip(name)), "write the name that the certificates hold")
	}
	if v.MaxConcurrent < 0 {
		s.report(join(path, "max_concurrent"), "max_concurrent must not be negative", "0 is no bound")
	}
	if v.Queue < 0 {
		s.report(join(path, "queue"), "queue must not be negative", "leave it out for the default, 128")
	}
	for id, o := range v.Overrides {
		if registry.CheckID(id) != nil {
			s.reportKey(join(path, "overrides."+id), fmt.Sprintf("%q is not the id of an instance", clip(id)), "rota instances ls shows them")
		}
		if o.Weight != nil && (*o.Weight < 0 || *o.Weight > registry.MaxWeight) {
			s.report(join(path, "overrides."+id+".weight"), fmt.Sprintf("weight must be 0 to %d, not %d", registry.MaxWeight, *o.Weight), "0 takes no new traffic")
		}
	}
	if v.Check != nil {
		s.check(*v.Check, join(path, "check"))
	}
	if d, err := time.ParseDuration(v.SlowStart); v.SlowStart != "" && v.SlowStart != "off" && (err != nil || d <= 0) {
		s.report(join(path, "slow_start"), fmt.Sprintf("slow_start %q is not a time", clip(v.SlowStart)), `write a time such as 10s, or "off"`)
	}
	if v.Panic < -1 || v.Panic > 100 {
		s.report(join(path, "panic"), fmt.Sprintf("panic must be 1 to 100, not %d", v.Panic), "it is a percentage; -1 is never")
	}
	if v.Ejection.Failures < -1 {
		s.report(join(path, "ejection.failures"), fmt.Sprintf("failures must be at least 1, not %d", v.Ejection.Failures), "-1 is never")
	}
	first := make(map[string]bool)
	for i, in := range v.Instances {
		at := join(path, fmt.Sprintf("instances[%d]", i))
		socket, unix := strings.CutPrefix(in.Address, "unix:")
		problem, hint := checkSocket("instance address", socket)
		if !unix {
			problem, hint = checkAddress("instance address", in.Address, dialled, 5001)
		}
		if problem != "" {
			s.report(at+".address", problem, hint)
		} else if first[in.Address] {
			s.report(at+".address", fmt.Sprintf("instance %q is given twice", in.Address), "keep one; for more traffic raise its weight")
		} else if host, _, _ := net.SplitHostPort(in.Address); !unix && host != "localhost" && net.ParseIP(host) == nil {
			s.report(at+".address", fmt.Sprintf("instance address %q is a name, and names are not resolved", clip(in.Address)), "write its IP address")
		}
		first[in.Address] = true
		if in.Weight != nil && (*in.Weight < 0 || *in.Weight > registry.MaxWeight) {
			s.report(at+".weight", fmt.Sprintf("weight must be 0 to %d, not %d", registry.MaxWeight, *in.Weight), "100 is the default, 0 takes no new traffic")
		}
	}
}
