package importer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/rota-lb/rota/config"
)

// place is a location, or a server as far as it is one itself.
type place struct {
	*scope
	d        *directive
	modifier string // "", "=", "^~", "~", "~*"
	path     string // without the modifier
	host     string
	site     *site
}

// siteRoutes makes the routes of a server for one of its hosts.
func (w *work) siteRoutes(s *site, host string) {
	whole := &place{scope: s.scope, d: s.of, path: "/", host: host, site: s}
	if d := firstOf(s.of.block, "return"); d != nil {
		w.answer(whole, d)
		return
	}
	for _, d := range s.of.block {
		if d.name == "rewrite" {
			w.rewrite(whole, d)
		}
	}
	root := w.locations(s, s.scope, host, "")
	if !root { // nginx would look for files here; nothing of that may fall to another server's routes
		w.closed(whole, s.of, "what no location takes: nginx serves files there")
	}
}

func firstOf(list []*directive, name string) *directive {
	for _, d := range list {
		if d.name == name {
			return d
		}
	}
	return nil
}

// locations converts those in a block, and reports whether one of them takes all. Those within another one count below
// its path only.
func (w *work) locations(s *site, up *scope, host, within string) (root bool) {
	for _, d := range up.block {
		if d.name != "location" {
			continue
		}
		p := &place{scope: up.under(d), d: d, host: host, site: s}
		switch len(d.args) {
		case 1:
			p.path = d.args[0]
			if rest, ok := strings.CutPrefix(p.path, "^~"); ok { // it may stand without a space
				p.modifier, p.path = "^~", rest
			} else if rest, ok := strings.CutPrefix(p.path, "="); ok {
				p.modifier, p.path = "=", rest
			} else if rest, ok := strings.CutPrefix(p.path, "~*"); ok {
				p.modifier, p.path = "~*", rest
			} else if rest, ok := strings.CutPrefix(p.path, "~"); ok {
				p.modifier, p.path = "~", rest
			}
		case 2:
			p.modifier, p.path = d.args[0], d.args[1]
		}
		if p.modifier == "" && strings.HasPrefix(p.path, "@") {
			w.at(d, "", "location %s: taken where try_files ends in it, and left out elsewhere: Rota has no error pages of one's own", p.path)
			continue
		}
		if (p.modifier == "~" || p.modifier == "~*") && within != "" && !strings.HasPrefix(p.path, "^"+within) {
			p.path = "^" + regexp.QuoteMeta(within) + ".*(?:" + p.path + ")"
		}
		w.nested(p.scope)
		if firstOf(d.block, "location") != nil {
			w.at(d, "see that each of them is right", "location %s: the locations in it become routes beside it", p.path)
			below := within
			if p.modifier == "" || p.modifier == "^~" {
				below = p.path
			}
			root = w.locations(s, p.scope, host, below) || root
		}
		root = root || p.modifier == "" && p.path == "/" || p.modifier == "^~" && p.path == "/"
		w.location(p)
	}
	return root
}

// location converts one.
func (w *work) location(p *place) {
	if d := access(p.scope); d != nil {
		w.closed(p, d, "what "+d.name+" guards")
		return
	}
	for _, d := range p.scope.block {
		if d.name == "rewrite" && (d.arg(2) == "permanent" || d.arg(2) == "redirect") {
			w.rewrite(p, d)
		}
	}
	for _, name := range []string{"return", "proxy_pass"} { // return is done first
		d := firstOf(p.scope.block, name)
		switch {
		case d == nil:
			continue
		case name == "return":
			w.answer(p, d)
		default:
			w.pass(p, d)
		}
		return
	}
	for _, d := range p.scope.block {
		switch d.name {
		case "fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass", "memcached_pass", "stub_status":
			w.closed(p, d, d.name+": Rota speaks HTTP/1.1 to instances")
			return
		case "root", "alias", "try_files":
			if named := p.named(d); named != nil {
				w.at(d, "let the service answer for these files", "%s: nothing here reads files: all requests go on to %s", d.text(), d.arg(len(d.args)-1))
				p.scope = p.site.under(named)
				if guard := access(p.scope); guard != nil {
					w.closed(p, guard, "what "+guard.name+" guards")
				} else {
					w.pass(p, firstOf(named.block, "proxy_pass"))
				}
				return
			}
			if d.name != "root" || firstOf(p.scope.block, "try_files") == nil { // else that one decides
				w.closed(p, d, "files")
				return
			}
		}
	}
	w.closed(p, p.d, "what has no proxy_pass")
}

// named returns the location with proxy_pass that try_files ends in, as in "try_files $uri @app", or nil.
func (p *place) named(tries *directive) *directive {
	name := tries.arg(len(tries.args) - 1)
	if tries.name != "try_files" || !strings.HasPrefix(name, "@") {
		return nil
	}
	for _, d := range p.site.of.block {
		if d.name == "location" && d.arg(0) == name && firstOf(d.block, "proxy_pass") != nil {
			return d
		}
	}
	return nil
}

// access returns what guards a block, or nil: what was closed is not to be opened.
func access(s *scope) *directive {
	for _, name := range []string{"deny", "auth_basic", "auth_request", "auth_jwt", "internal", "secure_link"} {
		for _, d := range s.all(name) {
			if d.arg(0) != "off" {
				return d
			}
		}
	}
	for ; s != nil; s = s.up {
		for _, d := range s.block {
			switch d.name {
			case "limit_except":
				return d
			case "if":
				if refuses(d) {
					return d
				}
			}
		}
	}
	return nil
}

// refuses reports whether an if turns requests away.
func refuses(d *directive) bool {
	return slices.ContainsFunc(d.block, func(in *directive) bool {
		return in.name == "deny" || in.name == "return" && (strings.HasPrefix(in.arg(0), "4") || strings.HasPrefix(in.arg(0), "5"))
	})
}

// closed makes a route to a service without instances, in place of one that would open what was not open, or that would let
// the requests fall to another route.
func (w *work) closed(p *place, d *directive, what string) {
	w.at(d, fmt.Sprintf("give the route a service, or remove it; until then it answers 503 (service %s)", closedService),
		"%s: not carried over: %s", p, what)
	w.serviceOf(closedService, "has no instances: what could not be carried over is answered by 503")
	if p.modifier == "~" || p.modifier == "~*" {
		r := config.Route{Name: "a", Path: "~" + pattern(p.path, p.modifier == "~*"), Service: closedService}
		if _, err := config.ParseRoute("a", asJSON(r)); err != nil { // rather too much than too little
			whole := *p
			whole.modifier, whole.path = "^~", begins(p.path, p.modifier == "~*")
			w.at(d, "write its expression as RE2 has it", "%s: Rota cannot read the expression, so all of %s is closed", p, whole.path)
			p = &whole
		}
	}
	w.emit(p, config.Route{Service: closedService}, d)
}

// begins is the directory that all paths of an expression are in, as far as that is plain.
func begins(re string, fold bool) string {
	re, anchored := strings.CutPrefix(re, "^")
	if !anchored || fold || alternatives(re) {
		return "/"
	}
	end := len(re)
	if i := strings.IndexFunc(re, func(c rune) bool {
		return c > '~' || !strings.ContainsRune("/-_~", c) && notName.MatchString(string(c)) || c == '.'
	}); i >= 0 {
		end = i
	}
	return re[:max(strings.LastIndexByte(re[:end], '/'), 0)] + "/"
}

// String names a place for a note.
func (p *place) String() string {
	if p.d.name == "location" {
		return strings.Join(append([]string{"location"}, p.d.args...), " ")
	}
	return "server"
}

// emit adds a route for a place: r has what is to be done.
func (w *work) emit(p *place, r config.Route, d *directive) {
	r.Host = p.host
	high := p.modifier != "" // before all prefixes
	switch p.modifier {
	case "=":
		r.Path = "=" + p.path
	case "~", "~*":
		r.Path = "~" + pattern(p.path, p.modifier == "~*")
	case "", "^~":
		if r.Path = strings.TrimRight(p.path, "/"); r.Path == "" && (r.StripPrefix || r.ReplacePrefix != "") {
			r.Path = "/"
		}
	default:
		w.at(p.d, "see what it is for", "%s: unknown kind of location", p)
		return
	}
	r.Name = w.nameOf(p)
	if _, err := config.ParseRoute(r.Name, asJSON(r)); err != nil {
		w.refused(d, err)
		if p.d.name == "location" {
			w.at(p.d, "write the route by hand", "%s: left out, so its requests go to other routes", p)
		}
		return
	}
	for _, o := range w.routes {
		if o.Host == r.Host && o.Path == r.Path && o.Scheme == r.Scheme && o.high == high {
			w.at(d, "", "%s: the same place as in line %d, which is taken", p, o.line)
			return
		}
	}
	w.routes = append(w.routes, route{Route: r, high: high, line: d.line, from: fmt.Sprintf("%s:%d %s", filepath.Base(p.d.file), p.d.line, p)})
}

var notName = regexp.MustCompile(`[^A-Za-z0-9._]+`)

// nameOf makes the name of a route: its host and path.
func (w *work) nameOf(p *place) string {
	host := cmp.Or(p.host, "any")
	if p.host == "" && len(p.site.names) > 0 {
		host = p.site.names[0]
	}
	name := strings.Trim(notName.ReplaceAllString(strings.Replace(host, "*.", "any.", 1)+" "+p.path, "-"), "-")
	if p.modifier == "=" {
		name += "-exact"
	}
	if len(name) > 100 {
		name = name[:100]
	}
	return unique(name, func(n string) bool { return slices.ContainsFunc(w.routes, func(r route) bool { return r.Name == n }) })
}

// unique adds a number to a name until it is free.
func unique(name string, taken func(string) bool) string {
	for n := 2; ; n++ {
		if !taken(name) {
			return name
		}
		name = fmt.Sprintf("%s-%d", strings.TrimSuffix(name, fmt.Sprintf("-%d", n-1)), n)
	}
}

// pattern turns an expression that nginx searches for into one that matches the whole path.
func pattern(re string, fold bool) string {
	if alternatives(re) { // ^ and $ may belong to one of them
		re = ".*(?:" + re + ").*"
	} else {
		if rest, ok := strings.CutPrefix(re, "^"); ok {
			re = rest
		} else {
			re = ".*" + re
		}
		if rest, ok := strings.CutSuffix(re, "$"); ok && !strings.HasSuffix(rest, `\`) {
			re = rest
		} else {
			re += ".*"
		}
	}
	if fold {
		re = "(?i)" + re
	}
	return re
}

// alternatives reports whether an expression has a | outside of parentheses and brackets.
func alternatives(re string) bool {
	depth, class := 0, false
	for i := 0; i < len(re); i++ {
		switch c := re[i]; {
		case c == '\\':
			i++
		case class:
			class = c != ']'
		case c == '[':
			class = true
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == '|' && depth <= 0:
			return true
		}
	}
	return false
}

// answer converts return: a redirect, or what Rota cannot say.
func (w *work) answer(p *place, d *directive) {
	status, to := d.arg(0), d.arg(1)
	if len(d.args) == 1 && strings.HasPrefix(status, "http") {
		status, to = "302", status
	}
	code, _ := strconv.Atoi(status)
	if !slices.Contains([]int{301, 302, 303, 307, 308}, code) || to == "" {
		w.closed(p, d, "an answer of nginx's own, "+d.text())
		return
	}
	to, ok := w.target(p, to)
	if !ok {
		w.closed(p, d, d.text()+": variables that Rota has not; it has {scheme}, {host}, {port}, {path}, {query} and {uri}")
		return
	}
	w.redirect(p, d, config.Redirect{To: to, Status: code})
}

// redirect adds a route that sends elsewhere, if it can be said.
func (w *work) redirect(p *place, d *directive, to config.Redirect) {
	r := config.Route{Name: "a", Path: p.path, Redirect: to, ResponseHeaders: w.responseHeaders(p.scope)}
	switch p.modifier {
	case "~", "~*":
		r.Path = "~" + pattern(p.path, p.modifier == "~*")
	case "=":
		r.Path = "=" + p.path
	}
	if _, err := config.ParseRoute("a", asJSON(r)); err != nil {
		w.refused(d, err)
		w.closed(p, d, d.text())
		return
	}
	r.Name, r.Path = "", ""
	w.emit(p, r, d)
}

var variable = regexp.MustCompile(`\$\{?([a-z0-9_]+)\}?`)

// target writes the address of a redirect in Rota's terms.
func (w *work) target(p *place, to string) (string, bool) {
	if strings.ContainsAny(variable.ReplaceAllString(to, ""), "{}") {
		return "", false
	}
	for _, query := range []string{"$is_args$args", "$is_args$query_string", "?$args", "?$query_string"} {
		to = strings.ReplaceAll(to, query, "{query}")
	}
	ok := true
	to = variable.ReplaceAllStringFunc(to, func(v string) string {
		switch name := variable.FindStringSubmatch(v)[1]; name {
		case "scheme", "host":
			return "{" + name + "}"
		case "http_host":
			return "{host}"
		case "server_name":
			if len(p.site.names) > 0 && !strings.HasPrefix(p.site.names[0], "*") {
				return p.site.names[0]
			}
			return "{host}"
		case "request_uri":
			return "{uri}"
		case "uri", "document_uri":
			return "{path}"
		default:
			if len(name) == 1 && name[0] >= '1' && name[0] <= '9' {
				return "{" + name + "}"
			}
			ok = false
			return v
		}
	})
	return to, ok && !strings.Contains(to, "$")
}

// rewrite converts what ends in a redirect. Rewrites within nginx are recognised beside proxy_pass, see [work.pass].
func (w *work) rewrite(p *place, d *directive) {
	status := map[string]int{"permanent": 301, "redirect": 302}[d.arg(2)]
	if status == 0 && (strings.HasPrefix(d.arg(1), "http://") || strings.HasPrefix(d.arg(1), "https://")) {
		status = 302
	}
	re, to := d.arg(0), d.arg(1)
	if status == 0 || len(d.args) < 2 {
		w.at(d, "write replace_prefix at the route, or let the service take both paths", "%s: Rota changes prefixes of paths only", d.text())
		return
	}
	if p.d.name == "location" && p.path != "/" && (p.modifier != "" || !strings.HasPrefix(re, "^"+p.path)) {
		w.at(d, "write a route with this expression", "%s: left out: in Rota it would count outside of this location, too", d.text())
		return
	}
	if bare, ok := strings.CutSuffix(to, "?"); ok {
		to = bare
	} else if !strings.Contains(to, "?") && !strings.Contains(to, "request_uri") {
		to += "$is_args$args"
	}
	to, ok := w.target(p, to)
	if !ok {
		w.at(d, "write a route with redirect", "%s: left out: it has variables that Rota has not", d.text())
		return
	}
	from := *p
	from.modifier, from.path = "~", re
	from.d = d
	if path, ok := literal(re); ok { // an exact one reads better
		from.modifier, from.path = "=", path
	}
	r := config.Route{Name: "a", Path: from.modifier + from.path, Redirect: config.Redirect{To: to, Status: status}}
	if from.modifier == "~" {
		r.Path = "~" + pattern(re, false)
	}
	if _, err := config.ParseRoute("a", asJSON(r)); err != nil {
		w.refused(d, err)
		return
	}
	w.emit(&from, config.Route{Redirect: r.Redirect}, d)
}

// literal reports whether an expression is one path only.
func literal(re string) (path string, ok bool) {
	path, begins := strings.CutPrefix(re, "^")
	path, ends := strings.CutSuffix(path, "$")
	return path, begins && ends && strings.HasPrefix(path, "/") && regexp.QuoteMeta(path) == path
}

// upstreamURL is what proxy_pass names.
var upstreamURL = regexp.MustCompile(`^(https?)://(unix:[^:]+|[^/?]+)(?::?(/.*))?$`)

// pass converts proxy_pass.
func (w *work) pass(p *place, d *directive) {
	m := upstreamURL.FindStringSubmatch(d.arg(0))
	if m == nil || strings.Contains(d.arg(0), "$") {
		w.closed(p, d, d.text()+": where it leads is known with each request only; name the service")
		return
	}
	scheme, host, uri := strings.ToLower(m[1]), m[2], m[3]
	name := w.passTo(p, d, scheme, host)
	if name == "" {
		w.closed(p, d, d.text())
		return
	}
	r := config.Route{Service: name, RequestHeaders: w.requestHeaders(p), ResponseHeaders: w.responseHeaders(p.scope)}
	if by := w.breaking(p, uri != ""); uri == "" {
		uri = by // the same by rewrite … break
	}
	if uri != "" && !w.replace(p, d, &r, uri) {
		w.closed(p, d, d.text())
		return
	}
	r.Timeouts = w.timeoutsOf(p.scope, w.timeouts)
	if n := w.retries(p.scope); n != w.attempts {
		r.Retries.Attempts = cmp.Or(n, 3)
	}
	if size := p.scope.find("client_max_body_size"); size != nil {
		if n := w.size(size); n != w.body {
			r.MaxBody = cmp.Or(n, unlimited)
		}
	}
	w.rateLimit(p.scope, &r)
	w.hostHeader(p, d, host)
	switch own := firstOf(p.d.block, "proxy_pass") != nil; {
	case p.path == "/" || p.modifier != "" && p.modifier != "^~":
	case strings.HasSuffix(p.path, "/") && own: // nginx redirects what lacks the slash
		bare := *p
		bare.modifier, bare.path = "=", strings.TrimRight(p.path, "/")
		if !slices.ContainsFunc(p.site.of.block, func(l *directive) bool {
			return l.name == "location" && (slices.Equal(l.args, []string{"=", bare.path}) || slices.Equal(l.args, []string{bare.path}))
		}) {
			w.redirect(&bare, d, config.Redirect{To: p.path + "{query}", Status: 301})
		}
	case strings.HasSuffix(p.path, "/"):
		w.at(p.d, "", "location %s: Rota takes %s too", p.path, strings.TrimRight(p.path, "/"))
	default:
		w.at(p.d, "", "location %s: nginx takes %sx too; Rota takes whole segments, %[2]s and %[2]s/…", p.path, p.path)
	}
	w.emit(p, r, d)
}

// breaking recognises "rewrite ^/api/(.*)$ /$1 break": a prefix is replaced. What is not that is noted, and all of it where
// the prefix is replaced already.
func (w *work) breaking(p *place, replaced bool) (uri string) {
	for _, d := range p.scope.block {
		if d.name != "rewrite" || d.arg(2) == "permanent" || d.arg(2) == "redirect" {
			continue
		}
		prefix := strings.TrimRight(p.path, "/")
		re, isBreak := strings.TrimPrefix(d.arg(0), "^"), d.arg(2) == "break" && !replaced
		re = strings.TrimSuffix(re, "$")
		to, one := strings.CutSuffix(d.arg(1), "$1")
		switch {
		case isBreak && one && uri == "" && (re == prefix+"/(.*)" || re == prefix+"/?(.*)") && strings.HasSuffix(to, "/"):
			uri = to
		case isBreak && one && uri == "" && (re == prefix+"(/.*)" || re == prefix+"(.*)") && !strings.HasSuffix(to, "/"):
			uri = to + "/"
		default:
			w.at(d, "write replace_prefix at the route, or let the service take both paths", "%s: Rota changes prefixes of paths only", d.text())
		}
	}
	return uri
}

// replace sets what becomes of the prefix of a path, and reports whether it can.
func (w *work) replace(p *place, d *directive, r *config.Route, uri string) bool {
	switch {
	case strings.ContainsAny(uri, "?#"):
		w.at(d, "let the service know it by the path", "%s: Rota adds no query", d.text())
		return false
	case uri == p.path: // nothing changes
		return true
	case p.modifier == "=":
		w.at(d, "let the service take this path", "%s: Rota changes prefixes of paths, not exact ones", d.text())
		return false
	case p.modifier == "~" || p.modifier == "~*":
		w.at(d, "write routes with prefixes", "%s: Rota changes prefixes of paths, not expressions", d.text())
		return false
	}
	if slash := strings.HasSuffix(p.path, "/"); slash != strings.HasSuffix(uri, "/") {
		w.at(d, "end both with a slash, or none", "%s: nginx puts %s in the place of %s letter by letter; Rota replaces whole segments", d.text(), uri, p.path)
	}
	if target := strings.TrimRight(uri, "/"); target == "" {
		r.StripPrefix = p.path != "/"
	} else {
		r.ReplacePrefix = target
	}
	return true
}

// hostHeader notes when the service sees another Host than with nginx.
func (w *work) hostHeader(p *place, d *directive, upstream string) {
	for _, h := range p.scope.all("proxy_set_header") {
		if strings.EqualFold(h.arg(0), "host") {
			switch strings.Trim(h.arg(1), "{}") {
			case "$host", "$http_host", "$host:$server_port", "$server_name":
			default:
				w.at(h, "let the service take the client's Host", "proxy_set_header Host %s: Rota forwards the Host of the request", h.arg(1))
			}
			return
		}
	}
	w.at(d, "see that the service does not mind", "proxy_pass %s: nginx sent Host: %s; Rota forwards the Host of the request", d.arg(0), upstream)
}

// requestHeaders converts proxy_set_header.
func (w *work) requestHeaders(p *place) (e config.HeaderEdit) {
	for _, d := range p.scope.all("proxy_set_header") {
		name, value := d.arg(0), d.arg(1)
		switch strings.ToLower(name) {
		case "host": // see hostHeader
		case "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "connection", "upgrade", "x-request-id", "x-forwarded-ssl":
			w.at(d, "", "proxy_set_header %s: nothing to do: Rota does it by itself", name)
		case "x-real-ip", "x-forwarded-port", "x-forwarded-server", "forwarded":
			w.at(d, "let the service read X-Forwarded-For, -Proto and -Host", "proxy_set_header %s: Rota does not send it", name)
		default:
			w.edit(&e, d, name, value, false)
		}
	}
	return e
}

// responseHeaders converts add_header.
func (w *work) responseHeaders(s *scope) (e config.HeaderEdit) {
	for _, d := range s.all("add_header") {
		w.edit(&e, d, d.arg(0), d.arg(1), true)
		if d.arg(2) != "always" {
			w.at(d, "", "add_header %s: Rota sets it on every answer, nginx on those of 2xx and 3xx", d.arg(0))
		}
	}
	return e
}

// edit adds one change of a header field, if Rota can do it.
func (w *work) edit(e *config.HeaderEdit, d *directive, name, value string, response bool) {
	if strings.Contains(value, "$") {
		w.at(d, "do it in the service", "%s: Rota sets fixed values", d.text())
		return
	}
	one := config.HeaderEdit{Set: map[string]string{name: value}}
	if value == "" {
		one = config.HeaderEdit{Remove: []string{name}}
	}
	r := config.Route{Name: "a", Service: "a", RequestHeaders: one}
	if response {
		r = config.Route{Name: "a", Service: "a", ResponseHeaders: one}
	}
	if _, err := config.ParseRoute("a", asJSON(r)); err != nil {
		w.refused(d, err)
		return
	}
	for other := range e.Set {
		if strings.EqualFold(other, name) {
			w.at(d, "write both values into one field", "%s: the same field twice; the last one is taken", d.text())
			delete(e.Set, other)
		}
	}
	e.Remove = append(e.Remove, one.Remove...)
	if e.Set == nil && len(one.Set) > 0 {
		e.Set = map[string]string{}
	}
	maps.Copy(e.Set, one.Set)
}

var ratePattern = regexp.MustCompile(`^([0-9]{1,6})r/([sm])$`)

// rateLimit converts limit_req.
func (w *work) rateLimit(s *scope, r *config.Route) {
	for _, d := range s.all("limit_req") {
		zone := w.zones["limit_req_zone "+setting(d, "zone")]
		if zone == nil {
			w.at(d, "define the zone", "%s: there is no such zone", d.text())
			continue
		}
		m := ratePattern.FindStringSubmatch(setting(zone, "rate"))
		key := zone.arg(0)
		header, isHeader := strings.CutPrefix(key, "$http_")
		switch {
		case m == nil || m[1] == "0":
			w.at(zone, "set rate_limit at the route", "%s: not a rate", zone.text())
			continue
		case r.RateLimit != (config.RateLimit{}):
			w.at(d, "keep the tighter one", "%s: a route has one rate_limit; this one is left out", d.text())
			continue
		case isHeader:
			r.RateLimit.Key = "header:" + strings.ReplaceAll(header, "_", "-")
		case !byClient(key):
			w.at(zone, "set rate_limit by client or header", "limit_req_zone %s: Rota counts by client address or by header", key)
			continue
		}
		burst, _ := strconv.Atoi(setting(d, "burst"))
		r.RateLimit.Rate, r.RateLimit.Burst = m[1]+"/"+m[2], min(max(burst, 0), 999_999)+1
		if _, _, _, err := r.RateLimit.Parse(); err != nil {
			w.refused(d, err)
			r.RateLimit = config.RateLimit{}
			continue
		}
		w.at(d, "", "limit_req: what is too much gets a 429 at once; nginx delays it, or answers 503")
	}
}

// asJSON is a route or service as a value in etcd.
func asJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic("importer: " + err.Error()) // they are made for it
	}
	return data
}

// passTo returns the name of the service that proxy_pass leads to, making it if need be; empty if it cannot be made.
func (w *work) passTo(p *place, d *directive, scheme, host string) string {
	if up := w.upstreams[strings.ToLower(host)]; up != nil {
		return w.upstream(p.scope, up, scheme)
	}
	address, ok := withPort(host, scheme)
	if !ok {
		w.at(d, "write it as host:port", "%s: not an address", d.text())
		return ""
	}
	name := serviceName(strings.TrimPrefix(strings.TrimPrefix(host, "unix:"), "/"))
	for n, s := range w.services {
		if s.from == d.arg(0) || len(s.Instances) == 1 && s.Instances[0].Address == address && (s.Protocol == "https") == (scheme == "https") && s.direct {
			return n
		}
	}
	name = unique(name, func(n string) bool { return w.services[n] != nil })
	s := w.serviceOf(name, fmt.Sprintf("%s:%d %s", filepath.Base(d.file), d.line, d.text()))
	s.direct = true
	w.secure(s, p.scope, scheme, d, host)
	w.instance(s, d, address, nil)
	return name
}

// withPort adds the port of a scheme where none is given.
func withPort(host, scheme string) (string, bool) {
	if strings.HasPrefix(host, "unix:") {
		return host, true
	}
	if _, port, err := net.SplitHostPort(host); err == nil {
		_, err := strconv.ParseUint(port, 10, 16)
		return host, err == nil
	}
	port := "80"
	if scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port), true
}

// secure says how instances that speak https are to be believed.
func (w *work) secure(s *service, at *scope, scheme string, d *directive, host string) {
	if scheme != "https" {
		return
	}
	s.Protocol = "https"
	if at.value("proxy_ssl_verify") != "on" {
		s.TLS.InsecureSkipVerify = true
		w.at(d, "name its authority in tls.ca of the service, and remove insecure_skip_verify", "%s: as in nginx the certificate is not verified", d.text())
	} else if name := cmp.Or(at.value("proxy_ssl_name"), host); !strings.Contains(name, "$") {
		s.TLS.ServerName = strings.Split(name, ":")[0]
		s.TLS.CA = w.path(at.value("proxy_ssl_trusted_certificate"))
	}
}

// instance adds one address to a service, if it can be dialled.
func (w *work) instance(s *service, d *directive, address string, weight *int) {
	in := config.StaticInstance{Address: address, Weight: weight}
	if slices.ContainsFunc(s.Instances, func(o config.StaticInstance) bool { return o.Address == address }) {
		w.at(d, "raise its weight", "%s: given twice; one is taken", d.text())
		return
	}
	if _, err := config.ParsePolicy("a", asJSON(config.Service{Instances: []config.StaticInstance{in}})); err != nil {
		w.refused(d, err)
		return
	}
	s.Instances = append(s.Instances, in)
}

// serviceName makes a name that Rota takes.
func serviceName(text string) string {
	name := regexp.MustCompile(`[^a-z0-9.-]+`).ReplaceAllString(strings.ToLower(strings.ReplaceAll(text, ":", "-")), "-")
	if len(name) > 56 {
		name = name[:56]
	}
	return cmp.Or(strings.Trim(name, "-."), "upstream")
}

// usedBy is the service that an upstream has become, or empty.
func (w *work) usedBy(up *directive) string {
	for name, s := range w.services {
		if s.of == up {
			return name
		}
	}
	return ""
}

// upstream converts an upstream block when the first route passes to it.
func (w *work) upstream(at *scope, up *directive, scheme string) string {
	for name, s := range w.services {
		if s.of == up && (s.Protocol == "https") == (scheme == "https") {
			return name
		}
	}
	first := w.usedBy(up) == ""
	name := serviceName(up.arg(0))
	if !first {
		name += "-" + scheme
	}
	name = unique(name, func(n string) bool { return w.services[n] != nil })
	if name != up.arg(0) && first {
		w.at(up, "", "upstream %s: the service is called %s", up.arg(0), name)
	}
	s := w.serviceOf(name, fmt.Sprintf("%s:%d upstream %s", filepath.Base(up.file), up.line, up.arg(0)))
	s.of = up
	s.Balance = "round_robin" // nginx's default
	w.secure(s, at, scheme, up, up.arg(0))
	if first {
		w.tell(up.block)
	}
	most := 1
	for _, d := range up.block {
		if n, _ := strconv.Atoi(setting(d, "weight")); d.name == "server" {
			most = max(most, min(n, 10_000))
		}
	}
	for _, d := range up.block {
		switch d.name {
		case "server":
			w.server(s, d, scheme, most)
		case "least_conn":
			s.Balance = "least_request"
		case "random":
			if s.Balance = "random"; d.arg(0) == "two" {
				s.Balance = "p2c"
			}
		case "ip_hash", "hash":
			s.Balance = "least_request"
			w.at(d, "keep what belongs to a client in a place that all instances read", "%s: Rota has no policy by hash yet; it sends each request to the instance with the fewest", d.text())
		case "keepalive", "keepalive_requests", "keepalive_time", "zone":
		case "keepalive_timeout":
			s.IdleTimeout = w.duration(d)
		}
	}
	return name
}

// server converts one line of an upstream.
func (w *work) server(s *service, d *directive, scheme string, most int) {
	if prefix, ok := w.follow(d.arg(0)); ok {
		w.followed(s, d, prefix)
		w.serverWords(s, d, nil)
		return
	}
	address, ok := withPort(d.arg(0), "http")
	if !ok {
		w.at(d, "write it as host:port", "%s: not an address", d.text())
		return
	}
	var weight *int
	if most > 1 { // Rota's default is 100
		factor := 1
		if most <= 100 {
			factor = 100
		}
		n, _ := strconv.Atoi(cmp.Or(setting(d, "weight"), "1"))
		n = min(max(n, 1), 10_000) * factor
		weight = &n
	}
	if w.serverWords(s, d, &weight) {
		w.instance(s, d, address, weight)
	}
}

// serverWords reads what follows the address, and reports whether the server is to be there.
func (w *work) serverWords(s *service, d *directive, weight **int) bool {
	for _, a := range d.args[min(1, len(d.args)):] {
		key, value, _ := strings.Cut(a, "=")
		n, _ := strconv.Atoi(value)
		switch key {
		case "weight":
			if weight == nil {
				w.at(d, "register a weight with the instance", "server … %s: the weight of an instance that registers is its own", a)
			}
		case "max_fails":
			if n == 0 {
				n = -1
			}
			if s.Ejection.Failures == 0 || n > s.Ejection.Failures && s.Ejection.Failures > 0 {
				s.Ejection.Failures = max(n, -1)
			}
			w.at(d, "", "server … %s: in Rota it counts for the whole service, and statuses of 500 and more are failures too", a)
		case "fail_timeout":
			t := w.duration(&directive{name: "fail_timeout", args: []string{value}, file: d.file, line: d.line})
			s.Ejection.Time = max(s.Ejection.Time, t)
			s.Ejection.MaxTime = max(s.Ejection.Time, s.Ejection.MaxTime)
		case "max_conns":
			if n > 0 && (s.MaxConcurrent == 0 || n < s.MaxConcurrent) {
				s.MaxConcurrent = n
			}
			w.at(d, "", "server … %s: in Rota it is max_concurrent of each instance of the service; the smallest is taken", a)
		case "down":
			if weight != nil {
				*weight = new(int)
			}
		case "backup":
			w.at(d, "write a service of its own for it, or let it take part", "server %s backup: Rota has no backup instances; left out", d.arg(0))
			return false
		case "resolve", "service", "route", "slow_start", "drain":
			w.at(d, "see slow_start, overrides and check of the service", "server … %s: not carried over", a)
		default:
			w.at(d, "see what it is for", "server … %s: unknown to the importer", a)
		}
	}
	return true
}
