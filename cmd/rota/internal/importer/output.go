package importer

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rota-lb/rota/config"
)

// out is what will be written.
type out struct {
	header    string
	listeners []*listener
	routes    []route
	services  map[string]*service
	order     []string // of services
	endpoints []string // of etcd; without them and without foreign there is no registry
	foreign   []config.Foreign
	timeouts  config.Timeouts
	attempts  int
	body      config.Size
	trusted   []string
	log       string
}

// The parts that have comments.
type (
	listener struct {
		config.Listener
		from string
	}
	route struct {
		config.Route
		from string
		line int
		high bool // before all ordinary ones of its host
	}
	service struct {
		config.Service
		from   string
		of     *directive // the upstream that it was
		direct bool       // it was an address in proxy_pass
	}
)

func (o *out) listener(address, from string) *listener {
	for _, l := range o.listeners {
		if l.Address == address {
			return l
		}
	}
	l := &listener{config.Listener{Address: address, Protocol: "http"}, from}
	o.listeners = append(o.listeners, l)
	return l
}

func (o *out) serviceOf(name, from string) *service {
	s := o.services[name]
	if s == nil {
		s = &service{from: from}
		o.services[name] = s
		o.order = append(o.order, name)
	}
	return s
}

// priorities puts routes with expressions and the like before prefixes, as nginx has it, without letting them reach out of
// their host.
func (o *out) priorities() {
	if !slices.ContainsFunc(o.routes, func(r route) bool { return r.high && !strings.HasPrefix(r.Path, "=") }) {
		return
	}
	var ranks []int
	rank := func(host string) int {
		switch {
		case host == "":
			return 0
		case strings.HasPrefix(host, "*."):
			return len(host)
		}
		return 1 << 10
	}
	for _, r := range o.routes {
		ranks = append(ranks, rank(r.Host))
	}
	slices.Sort(ranks)
	ranks = slices.Compact(ranks)
	for i := range o.routes {
		r := &o.routes[i]
		if r.Scheme != "" {
			continue // it is before them all
		}
		r.Priority = 10 * slices.Index(ranks, rank(r.Host))
		if r.high {
			r.Priority++
		}
	}
}

// result writes the configuration and holds it against the parser.
func (w *work) result() (*Result, error) {
	w.priorities()
	if len(w.listeners) == 0 {
		w.listener(":80", "nginx's default")
	}
	for _, l := range slices.Clone(w.listeners) {
		if l.Protocol == "https" && len(l.TLS.Certificates) == 0 {
			w.add(Note{What: fmt.Sprintf("listener %s: left out: it has no certificate", l.Address), Remedy: "add it with tls.certificates"})
			w.listeners = slices.DeleteFunc(w.listeners, func(o *listener) bool { return o == l })
		}
	}
	if len(w.listeners) == 0 {
		w.listener(":80", "there has to be one")
	}
	for _, l := range w.listeners {
		if strings.HasSuffix(l.Address, ":9797") {
			w.add(Note{What: "port 9797 is a listener's, so the admin API is off", Remedy: "set admin.address"})
		}
	}
	data := w.yaml()
	if _, err := config.Parse("rota.yaml", data); err != nil {
		return nil, fmt.Errorf("what was made of it does not load, which is a fault of the importer; please report it with the input: %w", err)
	}
	return &Result{YAML: data, Notes: w.sorted()}, nil
}

// yaml writes all that is not a default.
func (w *work) yaml() []byte {
	var b bytes.Buffer
	line := func(indent int, format string, args ...any) {
		fmt.Fprintf(&b, "%s%s\n", strings.Repeat(" ", indent), fmt.Sprintf(format, args...))
	}
	comment := func(indent int, text string) {
		if text != "" {
			line(indent, "# %s", clean(text))
		}
	}
	comment(0, w.header)
	comment(0, "Check it: rota check FILE. Every key: config/rota.example.yaml.")
	b.WriteString("\n")
	if len(w.endpoints) == 0 && len(w.foreign) == 0 {
		comment(0, "Without a registry, so far: all instances stand here. Name endpoints instead, and they can register.")
		line(0, "etcd: {disabled: true}")
	} else {
		line(0, "etcd:")
		if len(w.endpoints) > 0 {
			line(2, "endpoints: [%s]", list(w.endpoints))
		}
		if len(w.foreign) > 0 {
			comment(2, "These keys are followed as they are; nothing is ever written there.")
			line(2, "foreign:")
		}
		for _, f := range w.foreign {
			m := flow{}.text("prefix", f.Prefix).text("service", f.Service).text("format", f.Format)
			line(4, "- %s", m)
		}
	}
	b.WriteString("\nlisteners:\n")
	for _, l := range w.listeners {
		comment(2, l.from)
		line(2, "- address: %s", quoted(l.Address))
		if l.Protocol != "http" {
			line(4, "protocol: %s", l.Protocol)
			line(4, "tls:")
			line(6, "certificates:")
			for _, c := range l.TLS.Certificates {
				line(8, "- %s", flow{}.text("cert", c.Cert).text("key", c.Key))
			}
			for _, kv := range [][2]string{{"min_version", l.TLS.MinVersion}, {"client_ca", l.TLS.ClientCA}, {"client_auth", l.TLS.ClientAuth}} {
				if kv[1] != "" && (kv[0] != "client_auth" || l.TLS.ClientCA != "") {
					line(6, "%s: %s", kv[0], quoted(kv[1]))
				}
			}
		}
		if len(l.ProxyProtocol) > 0 {
			line(4, "proxy_protocol: [%s]", list(l.ProxyProtocol))
		}
		if l.MaxConnectionsPerClient > 0 {
			line(4, "max_connections_per_client: %d", l.MaxConnectionsPerClient)
		}
	}
	if slices.ContainsFunc(w.listeners, func(l *listener) bool { return strings.HasSuffix(l.Address, ":9797") }) {
		b.WriteString("\nadmin: {address: \"off\"}\n")
	}
	if len(w.routes) > 0 {
		b.WriteString("\nroutes:\n")
	}
	for _, r := range w.routes {
		comment(2, r.from)
		w.route(line, r.Route)
	}
	if len(w.order) > 0 {
		b.WriteString("\nservices:\n")
	}
	for _, name := range w.order {
		comment(2, w.services[name].from)
		w.service(line, name, w.services[name].Service)
	}
	if t := timeouts(w.timeouts); len(t) > 0 {
		b.WriteString("\n")
		line(0, "timeouts: %s", t)
	}
	if w.attempts > 0 {
		line(0, "retries: {attempts: %d}", w.attempts)
	}
	if w.body > 0 {
		line(0, "limits: {body: %d}", w.body)
	}
	if len(w.trusted) > 0 {
		line(0, "trusted_proxies: [%s]", list(w.trusted))
	}
	if w.log != "" {
		format := ", format: combined"
		if w.log == "off" {
			format = ""
		}
		line(0, "log: {access: %s%s}", quoted(w.log), format)
	}
	return b.Bytes()
}

func (w *work) route(line func(int, string, ...any), r config.Route) {
	line(2, "- name: %s", quoted(r.Name))
	put := func(key, value string) {
		if value != "" {
			line(4, "%s: %s", key, value)
		}
	}
	text := func(key, value string) {
		if value != "" {
			put(key, quoted(value))
		}
	}
	text("host", r.Host)
	text("path", r.Path)
	text("scheme", r.Scheme)
	if r.Priority != 0 {
		line(4, "priority: %d", r.Priority)
	}
	text("service", r.Service)
	if r.Redirect.To != "" {
		put("redirect", flow{}.text("to", r.Redirect.To).number("status", int64(r.Redirect.Status)).String())
	}
	if r.StripPrefix {
		put("strip_prefix", "true")
	}
	text("replace_prefix", r.ReplacePrefix)
	put("request_headers", edit(r.RequestHeaders))
	put("response_headers", edit(r.ResponseHeaders))
	if t := timeouts(r.Timeouts); len(t) > 0 {
		put("timeouts", t.String())
	}
	if r.Retries.Attempts > 0 {
		put("retries", flow{}.number("attempts", int64(r.Retries.Attempts)).String())
	}
	if r.MaxBody > 0 {
		line(4, "max_body: %d", r.MaxBody)
	}
	if l := r.RateLimit; l.Rate != "" {
		put("rate_limit", flow{}.text("rate", l.Rate).number("burst", int64(l.Burst)).text("key", l.Key).String())
	}
}

func (w *work) service(line func(int, string, ...any), name string, s config.Service) {
	fields := flow{}.text("balance", s.Balance).number("max_concurrent", int64(s.MaxConcurrent)).
		duration("idle_timeout", s.IdleTimeout).text("protocol", s.Protocol)
	if s.TLS != (config.UpstreamTLS{}) {
		t := flow{}.text("ca", s.TLS.CA).text("server_name", s.TLS.ServerName)
		if s.TLS.InsecureSkipVerify {
			t = append(t, "insecure_skip_verify: true")
		}
		fields = append(fields, "tls: "+t.String())
	}
	if s.Ejection != (config.Ejection{}) {
		fields = append(fields, "ejection: "+flow{}.number("failures", int64(s.Ejection.Failures)).
			duration("time", s.Ejection.Time).duration("max_time", s.Ejection.MaxTime).String())
	}
	if len(fields) == 0 && len(s.Instances) == 0 {
		line(2, "%s: {}", quoted(name))
		return
	}
	line(2, "%s:", quoted(name))
	for _, f := range fields {
		line(4, "%s", f)
	}
	if len(s.Instances) > 0 {
		line(4, "instances:")
	}
	for _, in := range s.Instances {
		m := flow{}.text("address", in.Address)
		if in.Weight != nil {
			m = append(m, fmt.Sprintf("weight: %d", *in.Weight))
		}
		line(6, "- %s", m)
	}
}

// flow is a map on one line; what is empty is left out.
type flow []string

func (f flow) String() string { return "{" + strings.Join(f, ", ") + "}" }

func (f flow) text(key, value string) flow {
	if value == "" {
		return f
	}
	return append(f, key+": "+quoted(value))
}

func (f flow) number(key string, n int64) flow {
	if n == 0 {
		return f
	}
	return append(f, fmt.Sprintf("%s: %d", key, n))
}

func (f flow) duration(key string, d time.Duration) flow {
	if d == 0 {
		return f
	}
	text := d.String() // 1m0s is 1m
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return append(f, key+": "+text)
}

func timeouts(t config.Timeouts) flow {
	return flow{}.duration("connect", t.Connect).duration("response_head", t.ResponseHead).duration("idle_body", t.IdleBody).
		duration("request_head", t.RequestHead).duration("keep_alive", t.KeepAlive).duration("tunnel", t.Tunnel)
}

func edit(e config.HeaderEdit) string {
	var f flow
	if len(e.Set) > 0 {
		var set flow
		for _, name := range slices.Sorted(maps.Keys(e.Set)) {
			set = append(set, quoted(name)+": "+quoted(e.Set[name]))
		}
		f = append(f, "set: "+set.String())
	}
	if len(e.Remove) > 0 {
		f = append(f, "remove: ["+list(e.Remove)+"]")
	}
	if len(f) == 0 {
		return ""
	}
	return f.String()
}

func list(items []string) string {
	var q []string
	for _, i := range items {
		q = append(q, quoted(i))
	}
	return strings.Join(q, ", ")
}

var (
	plain    = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9/._-]*$`)
	reserved = regexp.MustCompile(`(?i)^(true|false|null|yes|no|on|off|y|n)$`)
)

// quoted writes a text as YAML takes it: as it is, or in double quotes.
func quoted(s string) string {
	if plain.MatchString(s) && !reserved.MatchString(s) {
		return s
	}
	return strconv.Quote(strings.ToValidUTF8(s, "\ufffd")) // the escapes of Go are among those of YAML
}

// clean makes a text fit for a comment.
func clean(s string) string {
	s = strings.ToValidUTF8(s, "�")
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 || c == 0x2028 || c == 0x2029 || c == 0xfeff {
			return ' '
		}
		return c
	}, s)
}

// followed makes a service follow the keys below a prefix.
func (w *work) followed(s *service, d *directive, prefix string) {
	name := ""
	for n, o := range w.services {
		if o == s {
			name = n
		}
	}
	for _, f := range w.foreign {
		if f.Prefix == prefix {
			if f.Service != name {
				w.at(d, "route both to service "+f.Service, "%s is followed for service %s already", prefix, cmp.Or(f.Service, name))
			}
			return
		}
	}
	w.foreign = append(w.foreign, config.Foreign{Prefix: prefix, Service: name})
}
