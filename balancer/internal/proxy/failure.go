package proxy

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
)

// Reason is the word for why an exchange failed: in the log, in metrics, and in the header X-Rota-Reason.
type Reason string

// The reasons. Each has a short flag, as Envoy's users know them.
const (
	NoRoute         Reason = "no_route"
	NoUpstream      Reason = "no_healthy_upstream"
	NotSynced       Reason = "no_table_yet"
	ConnectFailed   Reason = "connect_failed"
	ConnectTimeout  Reason = "connect_timeout"
	TLSFailed       Reason = "tls_failed"
	UpstreamClosed  Reason = "upstream_closed"
	UpstreamTimeout Reason = "upstream_timeout"
	UpstreamInvalid Reason = "upstream_invalid"
	BadRequest      Reason = "bad_request"
	RequestTimeout  Reason = "request_timeout"
	BodyTooLong     Reason = "body_too_long"
	RateLimited     Reason = "rate_limited"
	Overloaded      Reason = "overloaded"
	CPUPressure     Reason = "cpu_pressure"
	MemoryPressure  Reason = "memory_pressure"
	Exhausted       Reason = "out_of_sockets"
	Looped          Reason = "loop_detected"
	ClientClosed    Reason = "client_closed"
	Internal        Reason = "internal_error"
)

// Flag is the reason's short form.
func (r Reason) Flag() string { return failures[r].flag }

// Flags are the flag of the reason, and after a comma URX where no more retries were allowed. Empty is no failure.
func (r *Record) Flags() string {
	switch {
	case r.Reason == "":
		return ""
	case r.Spent:
		return r.Reason.Flag() + ",URX"
	}
	return r.Reason.Flag()
}

// Text says in words what the reason means.
func (r Reason) Text() string { return failures[r].text }

// failures is the one place where a failure becomes a status and a text.
var failures = map[Reason]struct {
	status int
	flag   string
	text   string
}{
	NoRoute:         {404, "NR", "no route matches this request"},
	NoUpstream:      {503, "UH", "the service has no instance that can take the request"},
	NotSynced:       {503, "UH", "the routing table has not been loaded yet"},
	ConnectFailed:   {502, "UF", "no instance accepted the connection"},
	ConnectTimeout:  {504, "UF", "no instance accepted the connection in time"},
	TLSFailed:       {502, "UF", "no instance could prove who it is, or speak TLS as asked"},
	UpstreamClosed:  {502, "UC", "the instance closed the connection before its answer was complete"},
	UpstreamTimeout: {504, "UT", "the instance did not answer in time"},
	UpstreamInvalid: {502, "UP", "the instance's answer is not valid HTTP"},
	BadRequest:      {400, "DPE", "the request is not valid HTTP"},
	RequestTimeout:  {408, "DT", "the request did not arrive in time"},
	BodyTooLong:     {413, "BL", "the request body is longer than this service takes"},
	RateLimited:     {429, "RL", "too many requests from this client"},
	Overloaded:      {503, "UO", "all instances of the service are busy"},
	CPUPressure:     {503, "OM", "the proxy has more to do than it can, and sheds load"},
	MemoryPressure:  {503, "OM", "the proxy is short of memory, and sheds load"},
	Exhausted:       {503, "OM", "the proxy has no descriptor or port left for a connection to an instance"},
	Looped:          {508, "LD", "the request has come through this proxy too often: its way is a circle"},
	ClientClosed:    {499, "DC", "the client went away"},
	Internal:        {500, "IE", "the proxy failed; its log says more"},
}

// upstream reports whether the endpoint is to blame.
func (r Reason) upstream() bool {
	switch r {
	case ConnectFailed, ConnectTimeout, TLSFailed, UpstreamClosed, UpstreamTimeout, UpstreamInvalid:
		return true
	}
	return false
}

// failure is why an exchange or an attempt ended without the upstream's answer.
type failure struct {
	reason     Reason
	status     int    // 0: as failures says
	detail     string // "": as failures says
	retryAfter int    // seconds; 0: one, where the status asks for it
	cause      error  // for those who decide what to do next; may be nil
}

func fail(r Reason) failure { return failure{reason: r} }

// refused is the failure of a request that http1 does not accept.
func refused(err *http1.Error) failure {
	return failure{reason: BadRequest, status: err.Status, detail: err.Text}
}

// text is what a client may read about it.
func (f failure) text() string {
	if f.detail != "" {
		return f.detail
	}
	return f.reason.Text()
}

func (f failure) code() int {
	if f.status != 0 {
		return f.status
	}
	return failures[f.reason].status
}

// appendStatus begins an answer of ours: its status line and the fields that all of them have.
func appendStatus(out []byte, status int, now time.Time) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	out = append(out, http.StatusText(status)...)
	out = append(out, "\r\nDate: "...)
	out = now.UTC().AppendFormat(out, http.TimeFormat)
	return append(out, "\r\nServer: rota\r\n"...)
}

// appendAnswer appends the whole answer to a request that failed, in the form the client likes best.
func (f failure) appendAnswer(out []byte, x *exchange) []byte {
	status := f.code()
	out = appendStatus(out, status, x.loop.Now())
	form := &forms[preferred(&x.req)]
	out = append(out, "Content-Type: "...)
	out = append(out, form.mediaType...)
	out = append(out, "\r\nX-Rota-Reason: "...)
	out = append(out, f.reason...)
	if len(x.rec.ID) > 0 {
		out = append(out, "\r\n"...)
		out = append(out, x.hop.IDName...)
		out = append(out, ": "...)
		out = append(out, x.rec.ID...)
	}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		out = append(out, "\r\nRetry-After: "...)
		out = strconv.AppendInt(out, int64(max(f.retryAfter, 1)), 10)
	}
	if status == http.StatusMethodNotAllowed {
		out = append(out, "\r\nAllow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"...)
	}
	body := form.body(status, f, string(x.rec.ID))
	out = append(out, "\r\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(len(body)), 10)
	if !x.keep {
		out = append(out, "\r\nConnection: close"...)
	}
	out = append(out, "\r\n\r\n"...)
	if x.req.IsHead() {
		return out
	}
	return append(out, body...)
}

// forms are the forms of an error page, the one for those without a wish first. All texts are ours: nothing that a client
// has sent, but for the id of its request, which has no character that means anything in them, is in a page.
var forms = [...]struct {
	mediaType string
	body      func(status int, f failure, id string) string
}{
	{"text/plain; charset=utf-8", func(status int, f failure, _ string) string {
		return strconv.Itoa(status) + " " + http.StatusText(status) + ": " + f.text() + "\n"
	}},
	{"text/html; charset=utf-8", func(status int, f failure, id string) string {
		title := strconv.Itoa(status) + " " + http.StatusText(status)
		page := "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">" +
			"<title>" + title + "</title>\n<style>body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em;" +
			"color-scheme:light dark}h1{font-size:1.4em}small{opacity:.7}</style>\n<h1>" + title + "</h1>\n<p>" + htmlText.Replace(f.text()) + "\n"
		if id != "" {
			page += "<p><small>Request " + htmlText.Replace(id) + "</small>\n"
		}
		return page + "</html>\n"
	}},
	// RFC 9457.
	{"application/problem+json", func(status int, f failure, id string) string {
		page := `{"title":` + strconv.Quote(http.StatusText(status)) + `,"status":` + strconv.Itoa(status) +
			`,"detail":` + strconv.Quote(f.text()) + `,"reason":"` + string(f.reason) + `"`
		if id != "" {
			page += `,"request_id":"` + id + `"`
		}
		return page + "}\n"
	}},
}

var htmlText = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")

// preferred is the form that the Accept fields of a request rate highest (RFC 9110 §12.5.1): the index into forms.
func preferred(r *http1.Request) int {
	best, most := 0, -1
	for n := 0; ; n++ {
		list, ok := r.Value("accept", n)
		if !ok {
			return best
		}
		for element := range strings.SplitSeq(string(list), ",") {
			mediaType, parameters, _ := strings.Cut(element, ";")
			q := quality(parameters)
			form := 0
			switch strings.ToLower(strings.TrimSpace(mediaType)) {
			case "text/html", "application/xhtml+xml":
				form = 1
			case "application/json", "application/problem+json":
				form = 2
			case "text/plain", "text/*", "*/*":
			default:
				continue
			}
			if q > most && q > 0 {
				best, most = form, q
			}
		}
	}
}

// quality is the q parameter in thousandths; 1,000 without one.
func quality(parameters string) int {
	for p := range strings.SplitSeq(parameters, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		if !strings.EqualFold(name, "q") {
			continue
		}
		q, err := strconv.ParseFloat(value, 64)
		if err != nil || !(q >= 0 && q <= 1) {
			return 0
		}
		return int(q * 1000)
	}
	return 1000
}

// isTimeout reports whether a deadline passed.
func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
