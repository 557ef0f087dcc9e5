package proxy

import (
	"errors"
	"net/http"
	"strconv"
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
	UpstreamClosed  Reason = "upstream_closed"
	UpstreamTimeout Reason = "upstream_timeout"
	UpstreamInvalid Reason = "upstream_invalid"
	BadRequest      Reason = "bad_request"
	RequestTimeout  Reason = "request_timeout"
	ClientClosed    Reason = "client_closed"
	Internal        Reason = "internal_error"
)

// Flag is the reason's short form.
func (r Reason) Flag() string { return failures[r].flag }

// Text says in words what the reason means.
func (r Reason) Text() string { return failures[r].text }

// failures is the one place where a failure becomes a status and a text.
var failures = map[Reason]struct {
	status int
	flag   string
	text   string
}{
	NoRoute:         {404, "NR", "no route matches this host and path"},
	NoUpstream:      {503, "UH", "the service has no instance that can take the request"},
	NotSynced:       {503, "UH", "the routing table has not been loaded yet"},
	ConnectFailed:   {502, "UF", "no instance accepted the connection"},
	ConnectTimeout:  {504, "UF", "no instance accepted the connection in time"},
	UpstreamClosed:  {502, "UC", "the instance closed the connection before its answer was complete"},
	UpstreamTimeout: {504, "UT", "the instance did not answer in time"},
	UpstreamInvalid: {502, "UP", "the instance's answer is not valid HTTP"},
	BadRequest:      {400, "DPE", "the request is not valid HTTP"},
	RequestTimeout:  {408, "DT", "the request did not arrive in time"},
	ClientClosed:    {499, "DC", "the client went away"},
	Internal:        {500, "IE", "the proxy failed; its log says more"},
}

// upstream reports whether the endpoint is to blame.
func (r Reason) upstream() bool {
	switch r {
	case ConnectFailed, ConnectTimeout, UpstreamClosed, UpstreamTimeout, UpstreamInvalid:
		return true
	}
	return false
}

// failure is why an exchange or an attempt ended without the upstream's answer.
type failure struct {
	reason Reason
	status int    // 0: as failures says
	detail string // "": as failures says
}

func fail(r Reason) failure { return failure{reason: r} }

// refused is the failure of a request that http1 does not accept.
func refused(err *http1.Error) failure { return failure{BadRequest, err.Status, err.Text} }

// text is the body of the answer.
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

// appendAnswer appends the whole answer to a request that failed.
func (f failure) appendAnswer(out []byte, now time.Time, keep, head bool) []byte {
	status := f.code()
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	out = append(out, http.StatusText(status)...)
	out = append(out, "\r\nDate: "...)
	out = now.UTC().AppendFormat(out, http.TimeFormat)
	out = append(out, "\r\nServer: rota\r\nContent-Type: text/plain; charset=utf-8\r\nX-Rota-Reason: "...)
	out = append(out, f.reason...)
	if status == http.StatusServiceUnavailable {
		out = append(out, "\r\nRetry-After: 1"...)
	}
	body := len(http.StatusText(status)) + len(f.text()) + len("503 : \n")
	out = append(out, "\r\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(body), 10)
	if !keep {
		out = append(out, "\r\nConnection: close"...)
	}
	out = append(out, "\r\n\r\n"...)
	if head {
		return out
	}
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	out = append(out, http.StatusText(status)...)
	out = append(out, ": "...)
	out = append(out, f.text()...)
	return append(out, '\n')
}

// isTimeout reports whether a deadline passed.
func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
