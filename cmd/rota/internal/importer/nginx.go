package importer

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rota-lb/rota/config"
)

// Nginx imports a file of nginx's configuration, with all that it includes: a whole nginx.conf, or a part of one that
// stands inside of http. An error is about files that cannot be read, or text that nginx would not read either.
func Nginx(file string) (*Result, error) {
	w := newWork(filepath.Dir(file))
	tree, err := readNginx(file, &w.notebook)
	if err != nil {
		return nil, err
	}
	w.header = "Made from " + filepath.Base(file) + ", a configuration of nginx. Read what was not carried over before it is used."
	w.nginx(tree)
	return w.result()
}

// closedService has no instances: whoever is routed there gets a 503.
const closedService = "not-imported"

// work is an import under way.
type work struct {
	notebook
	out
	base      string // directory of relative file names
	upstreams map[string]*directive
	zones     map[string]*directive // limit_req_zone and limit_conn_zone by name
	claimed   map[string]*site      // by host; "" is what no other has
	limited   map[string]bool       // services whose policy is done
	follow    func(address string) (prefix string, ok bool)
}

func newWork(base string) *work {
	w := &work{
		base: base, upstreams: map[string]*directive{}, zones: map[string]*directive{}, claimed: map[string]*site{}, limited: map[string]bool{},
		follow: func(string) (string, bool) { return "", false },
	}
	w.services = map[string]*service{}
	return w
}

// at notes what is about a directive.
func (w *work) at(d *directive, remedy, format string, args ...any) {
	w.add(Note{d.file, d.line, fmt.Sprintf(format, args...), remedy})
}

// scope is a block with those around it: what is not said in it is as they say.
type scope struct {
	of    *directive // nil for http
	block []*directive
	up    *scope
}

func (s *scope) under(d *directive) *scope { return &scope{d, d.block, s} }

// find returns the nearest directive of a name, or nil.
func (s *scope) find(name string) *directive {
	for ; s != nil; s = s.up {
		for _, d := range slices.Backward(s.block) {
			if d.name == name && !d.open {
				return d
			}
		}
	}
	return nil
}

// all returns the directives of a name in the nearest block that has any: nginx inherits lists all or none.
func (s *scope) all(name string) (list []*directive) {
	for ; s != nil && list == nil; s = s.up {
		for _, d := range s.block {
			if d.name == name {
				list = append(list, d)
			}
		}
	}
	return list
}

func (s *scope) value(name string) string {
	if d := s.find(name); d != nil {
		return d.arg(0)
	}
	return ""
}

// site is a server block.
type site struct {
	*scope
	of        *directive
	listens   []listen
	names     []string
	isDefault bool
	index     int
}

// listen is one line of it, read.
type listen struct {
	d         *directive
	address   string // as config has it
	ssl       bool
	proxy     bool
	byDefault bool
}

func (s *site) ssl() bool {
	return slices.ContainsFunc(s.listens, func(l listen) bool { return l.ssl })
}

// nginx converts what was read.
func (w *work) nginx(tree []*directive) {
	var http []*directive
	for _, d := range tree {
		switch d.name {
		case "http":
			http = append(http, d.block...)
		case "stream", "mail":
			w.at(d, "keep nginx, or HAProxy, for these ports", "%s: Rota balances HTTP only", d.name)
		case "server", "upstream", "map", "limit_req_zone", "limit_conn_zone", "proxy_cache_path": // a part of http
			http = append(http, d)
		case "events":
		default:
			if _, ok := known[d.name]; !ok || known[d.name] == carried {
				http = append(http, d)
			} else {
				w.tell([]*directive{d})
			}
		}
	}
	w.tell(http)
	top := &scope{block: http}
	w.global(top)
	var sites []*site
	for _, d := range http {
		switch d.name {
		case "upstream":
			w.upstreams[strings.ToLower(d.arg(0))] = d
		case "limit_req_zone", "limit_conn_zone":
			if name, _, ok := strings.Cut(setting(d, "zone"), ":"); ok {
				w.zones[d.name+" "+name] = d
			}
		}
	}
	for _, d := range http {
		if d.name == "server" && d.open {
			sites = append(sites, w.site(top, d, len(sites)))
		}
	}
	w.sites(sites)
	for _, d := range http { // those that no route names
		if d.name == "upstream" && d.open && w.usedBy(d) == "" {
			w.at(d, "remove it, or add a route to it", "upstream %s: nothing passes to it, so it is left out", d.arg(0))
		}
	}
}

// tell notes what has no code of its own, in all blocks.
func (w *work) tell(list []*directive) {
	for _, d := range list {
		why, ok := known[d.name]
		switch {
		case d.name == "server" && !d.open: // of an upstream
		case !ok && d.open:
			w.at(d, "see what it is for", "block %s: unknown to the importer, left out", d.text())
		case !ok:
			w.at(d, "see what it is for", "%s: unknown to the importer, left out", d.text())
		case strings.HasPrefix(why, itself):
			w.at(d, "", "%s: %s", d.name, why)
		case why != carried:
			reason, remedy, _ := strings.Cut(why, "; ")
			if remedy == "" {
				remedy = "see docs/from-nginx-confd.md"
			}
			w.at(d, remedy, "%s: not carried over: %s", d.text(), reason)
		}
		switch d.name {
		case "types", "geo", "events":
			if d.name == "geo" {
				w.at(d, "write routes by header, or do it in the service", "geo: Rota has no such table")
			}
		case "map":
			w.at(d, "write routes by host, header or query", "%s: Rota has no maps", d.text())
		case "split_clients":
			w.at(d, "write split: […] at the route", "%s: not carried over", d.text())
		case "if":
			if !refuses(d) { // else what it guards is closed, see access
				w.at(d, "write a route with headers, query or methods", "%s { %s … }: not carried over: Rota has the conditions of routes only", d.text(), inside(d))
			}
		case "upstream", "limit_except": // looked at elsewhere
		default:
			if ok {
				w.tell(d.block)
			}
		}
	}
}

// inside is the first directive of a block.
func inside(d *directive) string {
	if len(d.block) == 0 {
		return ""
	}
	return d.block[0].text() + ";"
}

// setting is the value of name= among the arguments.
func setting(d *directive, name string) string {
	for _, a := range d.args {
		if v, ok := strings.CutPrefix(a, name+"="); ok {
			return v
		}
	}
	return ""
}

// global carries over what counts for all.
func (w *work) global(top *scope) {
	w.timeouts = w.timeoutsOf(top, config.Timeouts{})
	if w.timeouts.ResponseHead == 0 {
		w.timeouts.ResponseHead = time.Minute // nginx's default; ours is shorter
	}
	if d := top.find("client_header_timeout"); d != nil {
		w.timeouts.RequestHead = w.duration(d)
	}
	if d := top.find("keepalive_timeout"); d != nil {
		if w.timeouts.KeepAlive = w.duration(d); w.timeouts.KeepAlive == 0 {
			w.at(d, "", "keepalive_timeout 0: Rota always offers to keep connections open")
		}
	}
	w.body = 1 << 20 // nginx's default
	if d := top.find("client_max_body_size"); d != nil {
		w.body = w.size(d)
	}
	w.attempts = w.retries(top)
	if d := top.find("access_log"); d != nil {
		w.accessLog(d)
	}
	for _, d := range top.all("set_real_ip_from") {
		w.trust(d)
	}
	if d := top.find("real_ip_header"); d != nil {
		w.realIPHeader(d)
	}
}

// nested notes directives that Rota has for all routes alike only.
func (w *work) nested(s *scope) {
	for _, d := range s.block {
		switch d.name {
		case "client_header_timeout", "keepalive_timeout":
			if top := outermost(s).find(d.name); top == nil || top.arg(0) != d.arg(0) {
				w.at(d, "set it under timeouts for all", "%s: it passes before a route is known, so it is not set per server", d.text())
			}
		case "access_log":
			w.at(d, "filter the log by its fields host and route", "%s: there is one access log for all", d.text())
		case "set_real_ip_from":
			w.trust(d)
		case "real_ip_header":
			w.realIPHeader(d)
		case "limit_conn":
			if s.of.name == "location" {
				w.at(d, "use max_concurrent of the service, or write it at the server", "%s: Rota bounds connections per listener, not per location", d.text())
			}
		case "root", "alias", "try_files":
			if s.of.name == "server" {
				w.at(d, "let a service answer for these files", "%s: nothing here reads files", d.text())
			}
		}
	}
}

func outermost(s *scope) *scope {
	for s.up != nil {
		s = s.up
	}
	return s
}

func (w *work) accessLog(d *directive) {
	path := d.arg(0)
	switch {
	case path == "off":
		w.log = "off"
	case strings.HasPrefix(path, "/dev/stdout"):
	case strings.ContainsAny(path, "$") || strings.HasPrefix(path, "syslog:") || strings.HasPrefix(path, "/dev/"):
		w.at(d, "log to stdout and let the journal carry it on", "access_log %s: Rota writes to a file or to standard output", path)
	case filepath.IsAbs(path):
		w.log = path
	case path != "":
		w.at(d, "name an absolute path under log.access", "access_log %s: relative to nginx's own directory", path)
	}
	if format := d.arg(1); format != "" && format != "combined" && path != "off" {
		w.at(d, "write it as log.format: the variables have nginx's names", "access_log: the format %s is left behind; lines are in the format combined", format)
	}
}

func (w *work) trust(d *directive) {
	name := d.arg(0)
	if name == "unix:" {
		name = "unix"
	}
	if p, err := netip.ParsePrefix(name); err == nil {
		name = p.Masked().String()
	}
	if _, _, err := config.Networks([]string{name}); err != nil {
		w.at(d, "write its address under trusted_proxies", "set_real_ip_from %s: names are not resolved", name)
	} else if !slices.Contains(w.trusted, name) {
		w.trusted = append(w.trusted, name)
	}
}

func (w *work) realIPHeader(d *directive) {
	switch strings.ToLower(d.arg(0)) {
	case "x-forwarded-for", "proxy_protocol":
	default:
		w.at(d, "let the proxy in front write X-Forwarded-For", "real_ip_header %s: Rota reads X-Forwarded-For", d.arg(0))
	}
}

// timeoutsOf reads the timeouts of a block, and leaves out those that are as in the whole.
func (w *work) timeoutsOf(s *scope, whole config.Timeouts) (t config.Timeouts) {
	get := func(name string) time.Duration {
		if d := s.find(name); d != nil {
			return w.duration(d)
		}
		return 0
	}
	t.Connect = get("proxy_connect_timeout")
	t.ResponseHead = get("proxy_read_timeout")
	t.IdleBody = max(t.ResponseHead, get("proxy_send_timeout"), get("client_body_timeout"))
	if whole != (config.Timeouts{}) { // a route
		if upgrades(s) {
			t.Tunnel = t.ResponseHead
		}
		for _, same := range []struct{ mine, its *time.Duration }{
			{&t.Connect, &whole.Connect}, {&t.ResponseHead, &whole.ResponseHead}, {&t.IdleBody, &whole.IdleBody},
		} {
			if *same.mine == *same.its {
				*same.mine = 0
			}
		}
	}
	return t
}

// upgrades reports whether a block passes the header Upgrade on.
func upgrades(s *scope) bool {
	return slices.ContainsFunc(s.all("proxy_set_header"), func(d *directive) bool { return strings.EqualFold(d.arg(0), "upgrade") })
}

var (
	durationPart = regexp.MustCompile(`^([0-9]{1,9})(ms|s|m|h|d|w|M|y)?`)
	sizePattern  = regexp.MustCompile(`^([0-9]{1,12})([kKmMgG]?)$`)
)

// longest is the longest time that is written down: nginx takes longer ones, and nobody means them.
const longest = 365 * 24 * time.Hour

// duration reads the first argument: 30, 30s, "1h 30m".
func (w *work) duration(d *directive) time.Duration {
	units := map[string]time.Duration{
		"ms": time.Millisecond, "": time.Second, "s": time.Second, "m": time.Minute, "h": time.Hour,
		"d": 24 * time.Hour, "w": 7 * 24 * time.Hour, "M": 30 * 24 * time.Hour, "y": 365 * 24 * time.Hour,
	}
	total, rest := time.Duration(0), d.arg(0)
	for rest = strings.TrimSpace(rest); rest != ""; rest = strings.TrimLeft(rest, " ") {
		m := durationPart.FindStringSubmatch(rest)
		if m == nil {
			w.at(d, "write it in Rota's terms, such as 30s", "%s: not a time", d.text())
			return 0
		}
		n, _ := strconv.Atoi(m[1])
		unit := units[m[2]]
		total = min(total+min(time.Duration(n), longest/unit)*unit, longest)
		rest = rest[len(m[0]):]
	}
	return total
}

// unlimited stands for no limit where one has to be given.
const unlimited config.Size = 1 << 50

// size reads the first argument; 0 is no limit.
func (w *work) size(d *directive) config.Size {
	m := sizePattern.FindStringSubmatch(d.arg(0))
	if m == nil {
		w.at(d, "write it in Rota's terms, such as 10MiB", "%s: not a size", d.text())
		return 0
	}
	n, _ := strconv.ParseInt(m[1], 10, 64)
	shift := map[string]uint{"": 0, "k": 10, "m": 20, "g": 30}[strings.ToLower(m[2])]
	return config.Size(min(n, int64(unlimited)>>shift) << shift)
}

// retries reads how often a request may be tried; 0 is Rota's default.
func (w *work) retries(s *scope) int {
	attempts := 0
	if d := s.find("proxy_next_upstream"); d != nil {
		for _, a := range d.args {
			switch a {
			case "off":
				attempts = 1
			case "error", "timeout", "invalid_header":
			case "non_idempotent":
				w.at(d, "", "proxy_next_upstream non_idempotent: Rota repeats what is not idempotent only when nobody can have acted on it")
			default:
				w.at(d, "", "proxy_next_upstream %s: Rota does not repeat a request for the status of its answer", a)
			}
		}
	}
	if d := s.find("proxy_next_upstream_tries"); d != nil && attempts == 0 {
		n, err := strconv.Atoi(d.arg(0))
		switch {
		case err != nil || n < 0:
			w.at(d, "set retries.attempts", "%s: not a number", d.text())
		case n == 0 || n > 5:
			attempts = 5
			w.at(d, "", "%s: Rota tries 5 times at most", d.text())
		default:
			attempts = n
		}
	}
	return attempts
}

// site reads a server block: where it listens and which names it has.
func (w *work) site(top *scope, d *directive, index int) *site {
	s := &site{scope: top.under(d), of: d, index: index}
	w.nested(s.scope)
	for _, l := range d.block {
		switch l.name {
		case "listen":
			if one, ok := w.listen(l); ok {
				s.listens = append(s.listens, one)
			}
		case "server_name":
			for _, name := range l.args {
				w.name(s, l, name)
			}
		}
	}
	if len(s.listens) == 0 {
		s.listens = []listen{{d: d, address: ":80"}}
	}
	return s
}

// listen reads one line: [address][:port] and words.
func (w *work) listen(d *directive) (l listen, ok bool) {
	l.d = d
	address := d.arg(0)
	for _, a := range d.args[min(1, len(d.args)):] {
		switch {
		case a == "ssl":
			l.ssl = true
		case a == "proxy_protocol":
			l.proxy = true
		case a == "default_server" || a == "default":
			l.byDefault = true
		case a == "http2" || a == "quic" || a == "spdy":
			w.at(d, "clients fall back to HTTP/1.1 by themselves", "listen … %s: HTTP/1.1 only, so far", a)
		default:
			w.at(d, "", "listen … %s: Rota sets its sockets itself", a)
		}
	}
	if path, unix := strings.CutPrefix(address, "unix:"); unix {
		l.address = "unix:" + path
		return l, w.loads(d, config.Config{Static: config.Static{Listeners: []config.Listener{{Address: l.address, Protocol: "http"}}}})
	}
	if _, err := strconv.Atoi(address); err == nil {
		address = ":" + address
	} else if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), "80")
	}
	host, port, _ := net.SplitHostPort(address)
	if host == "*" || host == "0.0.0.0" || host == "::" {
		host = ""
	}
	if strings.Contains(port, "-") {
		w.at(d, "write a listener for each port", "listen %s: Rota has no ranges of ports", d.arg(0))
		return l, false
	}
	if l.address = net.JoinHostPort(host, port); host == "" {
		l.address = ":" + port
	}
	return l, w.loads(d, config.Config{Static: config.Static{Listeners: []config.Listener{{Address: l.address, Protocol: "http"}}}})
}

// loads reports whether a piece of configuration is one, and notes why not.
func (w *work) loads(d *directive, c config.Config) bool {
	c.Etcd.Disabled, c.Admin.Address = true, "off"
	if len(c.Listeners) == 0 {
		c.Listeners = []config.Listener{{Address: ":80"}}
	}
	if err := c.Validate(); err != nil {
		w.refused(d, err)
		return false
	}
	return true
}

// refused notes what the configuration would not take.
func (w *work) refused(d *directive, err error) {
	what, remedy := err.Error(), "write it by hand"
	if list, ok := err.(config.Errors); ok && len(list) > 0 {
		what, remedy = list[0].Message, cmp.Or(list[0].Hint, remedy)
	}
	w.at(d, remedy, "%s: not carried over: %s", d.text(), what)
}

// name reads one name of a server.
func (w *work) name(s *site, d *directive, name string) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	var hosts []string
	switch {
	case name == "" || name == "_" || name == `""`:
		return
	case strings.HasPrefix(name, "~"):
		w.at(d, "list the names, or write *.example.com", "server_name %s: Rota knows names and *.names, no expressions", name)
		return
	case strings.HasSuffix(name, ".*"):
		w.at(d, "list the names", "server_name %s: Rota's * stands at the front only", name)
		return
	case strings.HasPrefix(name, "."):
		hosts = []string{name[1:], "*" + name}
	case strings.HasPrefix(name, "$"):
		return // a name of the machine, or nothing anybody asks for
	default:
		hosts = []string{name}
	}
	for _, h := range hosts {
		if _, err := config.ParseRoute("a", asJSON(config.Route{Host: h, Service: "a"})); err != nil {
			w.refused(d, err)
		} else if !slices.Contains(s.names, h) {
			s.names = append(s.names, h)
		}
	}
}

// sites decides which server has which host, and converts them.
func (w *work) sites(sites []*site) {
	// On each socket one server has what no other claims: the one that says so, or the first.
	owner := map[string]*site{}
	for _, explicit := range []bool{true, false} {
		for _, s := range sites {
			for _, l := range s.listens {
				if owner[l.address] == nil && l.byDefault == explicit {
					owner[l.address] = s
				}
			}
		}
	}
	for _, s := range owner {
		s.isDefault = true
	}
	// A redirect to https stands beside what it leads to by its scheme, since routes are those of all listeners.
	var rest, secured []*site
	for _, s := range sites {
		if d := w.toHTTPS(s, sites); d == nil {
			rest = append(rest, s)
		} else if w.secureFirst(s, d, sites) {
			secured = append(secured, s)
		}
	}
	wide := map[string]bool{} // ports of all addresses
	for _, s := range slices.Concat(rest, secured) {
		for _, l := range s.listens {
			if port, ok := strings.CutPrefix(l.address, ":"); ok {
				wide[port] = true
			}
		}
	}
	for _, s := range slices.Concat(rest, secured) {
		w.listenersOf(s, wide)
	}
	wild, sockets := false, map[string]bool{}
	for _, s := range rest {
		for _, h := range s.names {
			wild = wild || strings.HasPrefix(h, "*.")
		}
		for _, l := range s.listens {
			sockets[l.address] = true
		}
	}
	// Of several servers for what nobody claims one is chosen: one that says so, then TLS before plain, all addresses before
	// one, and a unix socket last.
	rank := func(s *site) int {
		switch {
		case slices.ContainsFunc(s.listens, func(l listen) bool { return l.byDefault && l.ssl }):
			return 0
		case slices.ContainsFunc(s.listens, func(l listen) bool { return l.byDefault }):
			return 1
		case s.ssl():
			return 2
		case slices.ContainsFunc(s.listens, func(l listen) bool { return strings.HasPrefix(l.address, ":") }):
			return 3
		}
		return 4
	}
	var catchAll *site
	for _, s := range rest {
		if s.isDefault && (catchAll == nil || rank(s) < rank(catchAll)) {
			catchAll = s
		}
	}
	apart := false
	type claim struct {
		s     *site
		hosts []string
	}
	var claims []claim
	for _, s := range rest {
		hosts := slices.Clone(s.names)
		if s.isDefault {
			if s == catchAll && !wild {
				hosts = nil // all of its names are among what nobody else has
			}
			hosts = append(hosts, "")
		}
		var mine []string
		for _, h := range hosts {
			other := w.claimed[h]
			if h == "" && s != catchAll {
				other = catchAll
			}
			switch {
			case other == nil:
				w.claimed[h] = s
				mine = append(mine, h)
			case h == "":
				w.at(s.of, "run a second rota for that listener", "the server for all other hosts: Rota has one for all listeners, that of line %d; requests by this address for names that nobody has go there", other.of.line)
			default:
				w.at(s.of, "give the sites different names, or run a second rota for one of the listeners",
					"server_name %s: taken by the server of line %d, and Rota's routes are the same on all listeners; this one is left out for that name", h, other.of.line)
			}
		}
		for _, l := range s.listens {
			apart = apart || !slices.ContainsFunc(rest[0].listens, func(o listen) bool { return o.address == l.address })
		}
		if len(mine) == 0 && len(s.names) == 0 && !s.isDefault {
			w.at(s.of, "give it a server_name", "this server has no name and is not the default one: no request reaches it; left out")
		}
		claims = append(claims, claim{s, mine})
	}
	if len(sockets) > 1 && apart {
		w.add(Note{What: "every route is served by every listener: what nginx served on one port only is now on all of them",
			Remedy: "where that matters, run a second rota with its own file"})
	}
	for _, c := range claims {
		for _, h := range c.hosts {
			w.siteRoutes(c.s, h)
		}
	}
}

// toHTTPS returns the directive by which a whole server redirects to https what is also served there, or nil.
func (w *work) toHTTPS(s *site, sites []*site) *directive {
	if s.ssl() {
		return nil
	}
	var to *directive
	for _, d := range s.of.block {
		switch {
		case d.name == "return" || d.name == "rewrite":
			to = cmp.Or(to, d)
		case d.name == "location" && slices.Equal(d.args, []string{"/"}):
			for _, d := range d.block {
				if d.name == "return" || d.name == "rewrite" {
					to = cmp.Or(to, d)
				}
			}
		case d.name == "location" && !strings.Contains(d.arg(len(d.args)-1), ".well-known"):
			return nil
		}
	}
	if to == nil || len(to.args) == 0 {
		return nil
	}
	rest, https := strings.CutPrefix(to.args[min(1, len(to.args)-1)], "https://")
	if !https {
		return nil
	}
	name := strings.ToLower(rest)
	if i := strings.IndexAny(name, "/$"); i > 0 {
		name = name[:i]
	}
	own := strings.HasPrefix(name, "$host") || strings.HasPrefix(name, "$http_host") || strings.HasPrefix(name, "$server_name")
	for _, o := range sites {
		if !o.ssl() {
			continue
		}
		if own && (o.isDefault && len(o.names) == 0 || len(s.names) == 0 || slices.ContainsFunc(o.names, func(h string) bool { return slices.Contains(s.names, h) })) ||
			!own && slices.Contains(o.names, name) && (slices.Contains(s.names, name) || len(s.names) == 0) {
			return to
		}
	}
	return nil
}

// beforeAll is the priority of redirects to https: no path goes by them.
const beforeAll = 1000

// secureFirst makes routes of a redirect to https, and reports whether it could: for the names of its server, or for all where no
// other server speaks plaintext.
func (w *work) secureFirst(s *site, d *directive, sites []*site) bool {
	status, _ := strconv.Atoi(d.arg(0))
	p := &place{scope: s.scope, site: s, d: d, path: "/"}
	to, ok := w.target(p, d.arg(1))
	hosts := slices.Clone(s.names)
	if s.isDefault || len(hosts) == 0 {
		if !slices.ContainsFunc(sites, func(o *site) bool { return o != s && !o.ssl() }) {
			hosts = []string{""}
		} else if len(hosts) == 0 {
			ok = false
		}
	}
	if !ok || d.name != "return" || !slices.Contains([]int{301, 302, 303, 307, 308}, status) {
		w.at(d, fmt.Sprintf("write a route for it by hand: {name: to-https, host: NAME, scheme: http, priority: %d, redirect: {to: \"https://{host}{uri}\", status: 301}}", beforeAll),
			"%s: left out with its listener", d.text())
		return false
	}
	for _, host := range hosts {
		p.host = host
		r := config.Route{Name: w.nameOf(p) + "-to-https", Host: host, Scheme: "http", Priority: beforeAll, Redirect: config.Redirect{To: to, Status: status}}
		w.routes = append(w.routes, route{Route: r, line: d.line, from: fmt.Sprintf("%s:%d %s", filepath.Base(d.file), d.line, d.text())})
	}
	return true
}

// listenersOf adds the sockets of a server.
func (w *work) listenersOf(s *site, wide map[string]bool) {
	for _, l := range s.listens {
		if _, port, err := net.SplitHostPort(l.address); err == nil && l.address != ":"+port && wide[port] {
			w.at(l.d, "", "listen %s: as in nginx, the listener for all addresses of port %s has it", l.d.arg(0), port)
			l.address = ":" + port
		}
		mine := w.listener(l.address, fmt.Sprintf("%s:%d", filepath.Base(l.d.file), l.d.line))
		if l.proxy && len(mine.ProxyProtocol) == 0 {
			for _, d := range s.all("set_real_ip_from") {
				if name := strings.Replace(d.arg(0), "unix:", "unix", 1); w.loads(d, config.Config{Static: config.Static{Listeners: []config.Listener{{Address: ":80", ProxyProtocol: []string{name}}}}}) {
					mine.ProxyProtocol = append(mine.ProxyProtocol, name)
				}
			}
			if len(mine.ProxyProtocol) == 0 {
				mine.ProxyProtocol = []string{"0.0.0.0/0", "::/0"}
				w.at(l.d, "name the networks of those in front, in proxy_protocol of the listener", "listen … proxy_protocol: as in nginx everybody may say who the client is")
			}
		}
		for _, d := range s.all("limit_conn") {
			zone := w.zones["limit_conn_zone "+d.arg(0)]
			n, err := strconv.Atoi(d.arg(1))
			if zone == nil || !byClient(zone.arg(0)) || err != nil || n < 1 || n > 1<<20 {
				w.at(d, "use max_concurrent of the service, or max_connections of the listener", "%s: Rota bounds the connections of a client only", d.text())
				continue
			}
			w.at(d, "", "%s: Rota counts open connections of the listener, nginx requests being served", d.text())
			mine.MaxConnectionsPerClient = max(mine.MaxConnectionsPerClient, n)
		}
		if !l.ssl {
			continue
		}
		w.tls(s, l, mine)
	}
}

func byClient(key string) bool { return key == "$binary_remote_addr" || key == "$remote_addr" }

// tls reads the certificates of a server into its listener.
func (w *work) tls(s *site, l listen, mine *listener) {
	certs, keys := s.all("ssl_certificate"), s.all("ssl_certificate_key")
	if len(certs) == 0 || len(certs) != len(keys) {
		w.at(l.d, "add ssl_certificate and ssl_certificate_key", "listen … ssl: this server has no certificate with its key")
	}
	for i := range min(len(certs), len(keys)) {
		pair := config.Certificate{Cert: w.path(certs[i].arg(0)), Key: w.path(keys[i].arg(0))}
		switch {
		case pair.Cert == "" || pair.Key == "":
			w.at(certs[i], "name a file", "ssl_certificate without a file")
		case strings.Contains(pair.Cert+pair.Key, "$") || strings.HasPrefix(certs[i].arg(0), "data:") || strings.HasPrefix(keys[i].arg(0), "engine:"):
			w.at(certs[i], "list the files; Rota chooses by the names in them", "ssl_certificate with a variable, or no file")
		case !slices.Contains(mine.TLS.Certificates, pair):
			mine.TLS.Certificates = append(mine.TLS.Certificates, pair)
			if l.byDefault { // the first is for clients that ask for none
				mine.TLS.Certificates = slices.Insert(mine.TLS.Certificates[:len(mine.TLS.Certificates)-1], 0, pair)
			}
		}
	}
	mine.Protocol = "https"
	if d := s.find("ssl_protocols"); d != nil {
		least := "1.3"
		for _, v := range d.args {
			if v != "TLSv1.3" {
				least = "1.2"
			}
			if v != "TLSv1.3" && v != "TLSv1.2" {
				w.at(d, "", "ssl_protocols %s: Rota has none below TLS 1.2", v)
			}
		}
		if mine.TLS.MinVersion == "" || least == "1.2" {
			mine.TLS.MinVersion = least
		}
	}
	if ca, verify := s.value("ssl_client_certificate"), s.value("ssl_verify_client"); verify == "on" || verify == "optional" {
		mine.TLS.ClientCA, mine.TLS.ClientAuth = w.path(ca), map[string]string{"on": "required", "optional": "optional"}[verify]
		if ca == "" {
			w.at(s.find("ssl_verify_client"), "add ssl_client_certificate", "ssl_verify_client without authorities")
		}
		w.at(s.find("ssl_verify_client"), "", "ssl_verify_client %s: in Rota it counts for the whole listener", verify)
	} else if verify == "optional_no_ca" {
		w.at(s.find("ssl_verify_client"), "name the authorities in client_ca", "ssl_verify_client %s: Rota accepts no certificate that it cannot verify", verify)
	}
}

// path makes a file name absolute, as nginx does.
func (w *work) path(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	base, err := filepath.Abs(w.base)
	if err != nil {
		base = w.base
	}
	return filepath.Join(base, name)
}
