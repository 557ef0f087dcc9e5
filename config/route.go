package config

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxExpression  = 1 << 10 // bytes of a regular expression
	maxShareWeight = 10_000
	maxAttempts    = 5
	maxBuffer      = 1 << 20
)

var (
	token       = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
	placeholder = regexp.MustCompile(`\{[^{}]*\}|[{}]`)
	statuses    = []int{301, 302, 303, 307, 308}
)

// ownFields are the header fields that the proxy itself answers for, with the reason.
var ownFields = map[string]string{
	"host": "the request's own is forwarded", "content-length": "it frames the message", "transfer-encoding": "it frames the message",
	"connection": oneHop, "keep-alive": oneHop, "proxy-connection": oneHop, "upgrade": oneHop + ": see upgrades", "te": oneHop,
	"http2-settings": oneHop, "expect": oneHop, "trailer": "it frames the message",
}

// toldFields are those of a request that tell a service who the client is.
var toldFields = map[string]string{
	"x-forwarded-for": told, "x-forwarded-proto": told, "x-forwarded-host": told, "x-client-cert-subject": told, "via": told,
}

const (
	oneHop = "it is about one hop only"
	told   = "the proxy writes it: see trusted_proxies"
)

// route checks one route; path is where it stands, empty for a value kept in etcd.
func (s *source) route(r Route, path string) {
	at := func(key string) string { return join(path, key) }
	switch {
	case r.Name == "":
		s.report(at("name"), "a route needs a name", "add name: "+orWord(r.Service, "cart"))
	case !routeName.MatchString(r.Name):
		s.report(at("name"), fmt.Sprintf("%q is not a route name", clip(r.Name)), "use letters, digits and . _ : -, at most 128 characters")
	}
	if problem, hint := checkHost(r.Host); problem != "" {
		s.report(at("host"), problem, hint)
	}
	if problem, hint := checkPath(r.Path); problem != "" {
		s.report(at("path"), problem, hint)
	}
	s.matches(r, path)
	s.actions(r, path)
	if r.StripPrefix || r.ReplacePrefix != "" {
		key := "strip_prefix"
		if r.ReplacePrefix != "" {
			key = "replace_prefix"
		}
		switch {
		case r.Path == "":
			s.report(at(key), key+" without a path strips nothing", "add path, or remove "+key)
		case r.Path[0] != '/':
			s.report(at(key), key+" needs a path that is a prefix", "write path like /cart")
		}
	}
	if p := r.ReplacePrefix; p != "" {
		if problem, hint := checkPath(p); problem != "" || p[0] != '/' {
			s.report(at("replace_prefix"), orElse(problem, fmt.Sprintf("replace_prefix %q must begin with /", clip(p))), hint)
		}
	}
	s.edit(r.RequestHeaders, at("request_headers"), toldFields)
	s.edit(r.ResponseHeaders, at("response_headers"), nil)
	s.retries(r.Retries, at("retries"))
	for _, t := range []struct {
		key string
		set time.Duration
	}{{"request_head", r.Timeouts.RequestHead}, {"keep_alive", r.Timeouts.KeepAlive}, {"handshake", r.Timeouts.Handshake}} {
		if t.set != 0 {
			s.report(at("timeouts."+t.key), t.key+" has passed before a route is known", "set it under the file's timeouts")
		}
	}
	if _, _, _, err := r.RateLimit.Parse(); err != nil {
		s.report(at("rate_limit"), err.Error(), "write it like {rate: 100/s, burst: 200, key: client}")
	}
	for i, u := range r.Upgrades {
		if !token.MatchString(u) {
			s.report(fmt.Sprintf("%s[%d]", at("upgrades"), i), fmt.Sprintf("%q is not a protocol", clip(u)), "write a token such as websocket, or none")
		} else if u == "none" && len(r.Upgrades) > 1 {
			s.report(fmt.Sprintf("%s[%d]", at("upgrades"), i), "none stands beside others", "write [none], or remove it")
		}
	}
}

// matches checks what a route matches beside host and path.
func (s *source) matches(r Route, path string) {
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		s.report(join(path, "scheme"), fmt.Sprintf("%q is not a scheme", clip(r.Scheme)), "write http or https")
	}
	for i, m := range r.Methods {
		at := fmt.Sprintf("%s[%d]", join(path, "methods"), i)
		switch {
		case !token.MatchString(m) || m != strings.ToUpper(m):
			s.report(at, fmt.Sprintf("%q is not a method", clip(m)), "write it in capitals, such as GET")
		case m == "CONNECT" || m == "TRACE":
			s.report(at, m+" is never forwarded", "remove it")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		at := join(join(path, "headers"), name)
		if !token.MatchString(name) {
			s.reportKey(at, fmt.Sprintf("%q is not a header name", clip(name)), "use letters, digits and -")
		}
		s.valueMatch(r.Headers[name], at)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Query)) {
		s.valueMatch(r.Query[name], join(join(path, "query"), name))
	}
}

// valueMatch checks what a header or a parameter has to be.
func (s *source) valueMatch(value, path string) {
	if text, ok := strings.CutPrefix(value, "~"); ok {
		if problem, hint := checkExpression(text); problem != "" {
			s.report(path, problem, hint)
		}
	}
}

func checkExpression(text string) (problem, hint string) {
	if len(text) > maxExpression {
		return fmt.Sprintf("a regular expression of %d bytes is longer than %d", len(text), maxExpression), ""
	}
	if _, err := regexp.Compile(text); err != nil {
		return strings.TrimPrefix(err.Error(), "error parsing "), "the syntax is RE2's"
	}
	if _, err := regexp.Compile("(?:" + text + ")"); err != nil { // it is to match as a whole
		return fmt.Sprintf("regular expression %q has a \\Q without its \\E", clip(text)), "add \\E"
	}
	return "", ""
}

// actions checks that there is one thing to do.
func (s *source) actions(r Route, path string) {
	given := 0
	for _, is := range []bool{r.Service != "", len(r.Split) > 0, r.Redirect != (Redirect{})} {
		if is {
			given++
		}
	}
	switch {
	case given > 1:
		s.report(path, "a route has one of service, split and redirect", "keep one")
	case given == 0:
		s.report(join(path, "service"), "a route needs a service", "add service: "+orWord(r.Name, "cart"))
	case r.Service != "" && !serviceName.MatchString(r.Service):
		s.report(join(path, "service"), fmt.Sprintf("%q is not a service name", clip(r.Service)), serviceGrammar)
	}
	total := 0
	for i, share := range r.Split {
		at := fmt.Sprintf("%s[%d]", join(path, "split"), i)
		if !serviceName.MatchString(share.Service) {
			s.report(at+".service", fmt.Sprintf("%q is not a service name", clip(share.Service)), serviceGrammar)
		}
		if share.Weight < 0 || share.Weight > maxShareWeight {
			s.report(at+".weight", fmt.Sprintf("weight must be 0 to %d, not %d", maxShareWeight, share.Weight), "")
		}
		total += share.Weight
	}
	if len(r.Split) > 0 && total <= 0 {
		s.report(join(path, "split"), "no share of the split has a weight", "give one a weight such as 100")
	}
	if r.Redirect != (Redirect{}) {
		if r.Redirect.Status != 0 && !slices.Contains(statuses, r.Redirect.Status) {
			s.report(join(path, "redirect.status"), fmt.Sprintf("status %d is no redirect", r.Redirect.Status), "use 301, 302, 303, 307 or 308")
		}
		if problem, hint := checkRedirect(r); problem != "" {
			s.report(join(path, "redirect.to"), problem, hint)
		}
	}
	switch m := r.Mirror; {
	case m == Mirror{}:
	case !serviceName.MatchString(m.Service):
		s.report(join(path, "mirror.service"), fmt.Sprintf("%q is not a service name", clip(m.Service)), serviceGrammar)
	case m.Percent < 0 || m.Percent > 100:
		s.report(join(path, "mirror.percent"), fmt.Sprintf("percent must be 1 to 100, not %d", m.Percent), "")
	}
}

// checkRedirect checks where a redirect leads: what the router would refuse, and what could lead to a host that the
// client chooses.
func checkRedirect(r Route) (problem, hint string) {
	to := r.Redirect.To
	relative := strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "//") || strings.HasPrefix(to, "{path}") || strings.HasPrefix(to, "{uri}")
	_, rest, absolute := strings.Cut(to, "://")
	if scheme := strings.TrimSuffix(to, "://"+rest); absolute && (rest == "" || scheme != "http" && scheme != "https" && scheme != "{scheme}") || !absolute && !relative {
		return fmt.Sprintf("%q is neither an absolute URL nor a path that begins with one slash", clip(to)), "write it like https://{host}{uri} or /new{path}"
	}
	groups := 0
	if text, ok := strings.CutPrefix(r.Path, "~"); ok {
		if re, err := regexp.Compile(text); err == nil {
			groups = re.NumSubexp()
		}
	}
	for _, p := range placeholder.FindAllString(to, -1) {
		switch name := strings.Trim(p, "{}"); {
		case slices.Contains([]string{"scheme", "host", "port", "path", "query", "uri"}, name):
		case len(name) == 1 && name[0] >= '1' && name[0] <= '9':
			if n := int(name[0] - '0'); n > groups {
				return fmt.Sprintf("{%d} needs a path that is a regular expression with as many groups", n), "write path like ~/users/([0-9]+)"
			}
		default:
			return fmt.Sprintf("%q stands for nothing", p), "there are {scheme}, {host}, {port}, {path}, {query}, {uri}, and {1} to {9}"
		}
	}
	if absolute {
		host := rest
		for _, end := range []string{"/", "?", "#", "{path}", "{uri}"} {
			host, _, _ = strings.Cut(host, end)
		}
		name, _, _ := strings.Cut(strings.TrimSuffix(host[strings.LastIndexByte(host, '@')+1:], "{port}"), ":")
		switch {
		case name == "":
			return fmt.Sprintf("%q names no host", clip(to)), "write it like https://{host}{uri}"
		case strings.Contains(host, "{query}"):
			return "{query} cannot follow the host", "put {path} or / before it"
		case len(name) > 2 && name[len(name)-1] == '}' && isDigit(name[len(name)-2]):
			return fmt.Sprintf("the client would choose the host: %s ends in what it sends", clip(name)), "put / before the group, or a domain behind it"
		}
	}
	plain := placeholder.ReplaceAllString(to, "")
	if i := strings.IndexFunc(plain, func(c rune) bool { return c <= ' ' || c >= 0x7f || strings.ContainsRune("\"<>\\^`|", c) }); i >= 0 {
		return fmt.Sprintf("%q may not be in a URL", plain[i:i+1]), "percent-encode it"
	}
	return "", ""
}

// edit checks what is done to header fields.
func (s *source) edit(e HeaderEdit, path string, also map[string]string) {
	name := func(at, name string, key bool) {
		problem, hint := "", ""
		if why := ownFields[strings.ToLower(name)] + also[strings.ToLower(name)]; why != "" {
			problem, hint = name+" cannot be changed: "+why, "remove it"
		} else if !token.MatchString(name) {
			problem, hint = fmt.Sprintf("%q is not a header name", clip(name)), "use letters, digits and -"
		}
		switch {
		case problem == "":
		case key:
			s.reportKey(at, problem, hint)
		default:
			s.report(at, problem, hint)
		}
	}
	first := make(map[string]string)
	for _, n := range slices.Sorted(maps.Keys(e.Set)) {
		at := join(join(path, "set"), n)
		name(at, n, true)
		if other, twice := first[strings.ToLower(n)]; twice {
			s.reportKey(at, fmt.Sprintf("%s and %s are the same header", other, n), "keep one")
		}
		first[strings.ToLower(n)] = n
		if v := e.Set[n]; strings.ContainsFunc(v, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) || v != strings.TrimSpace(v) || len(v) > 4096 {
			s.report(at, "a header value has no control characters, no spaces around it, and at most 4096 bytes", "remove what does not belong there")
		}
	}
	for i, n := range e.Remove {
		name(fmt.Sprintf("%s[%d]", join(path, "remove"), i), n, false)
	}
}

func (s *source) retries(r Retries, path string) {
	if r.Attempts < 0 || r.Attempts > maxAttempts {
		s.report(join(path, "attempts"), fmt.Sprintf("attempts must be 1 (never again) to %d, not %d", maxAttempts, r.Attempts), "")
	}
	if r.Budget < 0 || r.Budget > 100 {
		s.report(join(path, "budget"), fmt.Sprintf("budget must be 1 to 100 retries per hundred requests, not %d", r.Budget), "")
	}
	if r.Buffer > maxBuffer {
		s.report(join(path, "buffer"), "buffer must be at most 1MiB", "longer bodies are streamed, and not sent again")
	}
}

// Parse returns the time for which one request is allowed, how many may come at once, and the lower-case name of the
// header that tells clients apart (empty: their address). Without a rate, every is zero.
func (r RateLimit) Parse() (every time.Duration, burst int, header string, err error) {
	if r.Rate == "" {
		if r != (RateLimit{}) {
			err = fmt.Errorf("a rate limit needs a rate")
		}
		return 0, 0, "", err
	}
	number, unit, _ := strings.Cut(r.Rate, "/")
	n, bad := strconv.Atoi(number)
	per := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}[unit]
	if bad != nil || n < 1 || n > 1_000_000 || per == 0 {
		return 0, 0, "", fmt.Errorf("%q is not a rate", clip(r.Rate))
	}
	every = per / time.Duration(n)
	if burst = r.Burst; burst == 0 {
		burst = max(1, int(time.Second/every))
	}
	if burst < 1 || burst > 1_000_000 {
		return 0, 0, "", fmt.Errorf("burst must be 1 to 1000000, not %d", r.Burst)
	}
	name, isHeader := strings.CutPrefix(r.Key, "header:")
	switch {
	case r.Key == "" || r.Key == "client":
	case isHeader && token.MatchString(name):
		header = strings.ToLower(name)
	default:
		return 0, 0, "", fmt.Errorf("key %q is neither client nor header:Name", clip(r.Key))
	}
	return every, burst, header, nil
}

// Networks reads a list of networks and addresses. unix reports whether "unix" is among them.
func Networks(list []string) (prefixes []netip.Prefix, unix bool, err error) {
	for _, text := range list {
		if text == "unix" {
			unix = true
			continue
		}
		p, bad := netip.ParsePrefix(text)
		if bad != nil {
			a, bad := netip.ParseAddr(text)
			if bad != nil || a.Zone() != "" {
				return nil, false, fmt.Errorf("%q is no network: write one such as 10.0.0.0/8, an address, or unix", clip(text))
			}
			p = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		}
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if p != p.Masked() {
			return nil, false, fmt.Errorf("network %s has bits beyond its length: write %s", text, p.Masked())
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, unix, nil
}

// networks checks a list for [Networks].
func (s *source) networks(path string, list []string) {
	for i, text := range list {
		if _, _, err := Networks([]string{text}); err != nil {
			message, hint, _ := strings.Cut(err.Error(), ": write ")
			s.report(fmt.Sprintf("%s[%d]", path, i), message, "write "+hint)
		}
	}
}

// ShedAfter is how long requests may wait for the CPU before some are refused; zero is for ever.
func (l Limits) ShedAfter() time.Duration {
	d, _ := time.ParseDuration(l.Shed) // "off" is none
	return d
}

// MinBodyRate is the least rate of a body in bytes a second; less than zero is none.
func (l Limits) MinBodyRate() int64 {
	n, message := parseSize(l.MinRate)
	if message != "" || n == 0 { // "off"
		return -1
	}
	return n
}

func orElse(text, otherwise string) string {
	if text != "" {
		return text
	}
	return otherwise
}

func orWord(word, otherwise string) string {
	if serviceName.MatchString(word) {
		return word
	}
	return otherwise
}
