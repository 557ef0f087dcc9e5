package discover

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rota-lb/rota/balancer/pool"
	"github.com/rota-lb/rota/registry"
)

const (
	// mostTries bounds the endpoints that one request tries to connect to.
	mostTries = 16
	// Of the transports that are used when base is nil.
	connectTimeout = time.Second
	idlePerHost    = 64
)

// Transport returns a RoundTripper for URLs whose host is the name of a service: http://cart/items. It sends each request
// to one of its instances. The Host header stays the name of the service, unless Request.Host says another. The scheme is
// the instance's, but what is asked for by https is never sent in plain.
//
// An instance that cannot be connected to is tried no more, and the next one is, if the request has no body or GetBody
// says how to get it again; http.NewRequest sets that for the usual bodies. No other failure is tried again, beyond what
// base does by itself; that is for [Discovery.Client]. A request counts as in flight until its response's body was read to
// the end or closed.
//
// Until the registry has answered for the first time, requests wait for it as long as their context lets them, and then
// fail with ErrNotReady. Where there is no instance the error wraps ErrNoInstance. That goes for any host which is not a
// service, also one that a redirect names: use another client for the rest of the world.
//
// base makes the exchanges; it gets requests to addresses, such as http://10.0.0.7:5001/items. Whether an https instance
// is who it should be is then for base to say. nil is a transport for each service, shared by all that Transport(nil)
// returns: it uses no proxy, connects within a second, verifies certificates by [Options].TLS, and closes idle connections
// before the instances do, if they have said when.
func (d *Discovery) Transport(base http.RoundTripper) http.RoundTripper {
	return &transport{discovery: d, base: base}
}

type transport struct {
	discovery *Discovery
	base      http.RoundTripper // nil: that of the service
}

// CloseIdleConnections is what http.Client.CloseIdleConnections looks for.
func (t *transport) CloseIdleConnections() {
	if t.base == nil {
		t.discovery.CloseIdleConnections()
	} else if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// CloseIdleConnections closes the connections that wait for another request, of all that was made with a nil base.
func (d *Discovery) CloseIdleConnections() {
	for _, v := range d.services.Range {
		if t := v.(*service).transport.Load(); t != nil {
			t.CloseIdleConnections()
		}
	}
}

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	d, ctx := t.discovery, req.Context()
	s, err := d.serviceOf(ctx, req.URL)
	if err != nil {
		closeBody(req.Body)
		return nil, err
	}
	w := walkOf(ctx)
	tried, body := w.excluded(), req.Body
	for tries := 1; ; tries++ {
		v := d.current(s)
		e := v.pick(tried)
		if e == nil && tries == 1 { // everybody had their turn in earlier attempts
			tried = nil
			e = v.pick(nil)
		}
		if e == nil {
			closeBody(body)
			if err == nil {
				err = v.webErr
			}
			return nil, err
		}
		w.use(e)
		resp, failure := t.attempt(req, body, s, e)
		if failure == nil {
			w.sent()
			return resp, nil
		}
		if !unsent(failure) || ctx.Err() != nil {
			w.sent()
			return nil, failure
		}
		d.refused(s, e, failure)
		err = fmt.Errorf("discover: service %q: instance %s, the last of %d tried: %w", s.name, e.ID, tries, failure)
		if tries == mostTries {
			return nil, err
		}
		var again bool
		if body, again = replay(req); !again {
			return nil, err
		}
		tried = append(tried, e)
	}
}

// serviceOf is the service that a URL names.
func (d *Discovery) serviceOf(ctx context.Context, u *url.URL) (*service, error) {
	if u == nil || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("discover: the URL %v has no host to find: write http://<service>/…", u)
	}
	if u.Port() != "" {
		return nil, fmt.Errorf("discover: %w of %q: leave out the port, each instance has its own", ErrNoInstance, u.Host)
	}
	return d.lookup(ctx, strings.ToLower(u.Hostname()))
}

// attempt tries one endpoint.
func (t *transport) attempt(req *http.Request, body io.ReadCloser, s *service, e *pool.Endpoint) (*http.Response, error) {
	to := *req.URL
	to.Host = e.Name
	if e.Protocol != string(registry.HTTP) {
		to.Scheme = "https"
	}
	out := req.WithContext(req.Context()) // a copy; the caller's stays as it is
	out.URL, out.Body = &to, body
	if out.Host == "" {
		out.Host = req.URL.Host
	}
	base := t.base
	if base == nil {
		base = s.dialler(t.discovery.options.TLS)
	}

	e.Take()
	tally := s.shared.Tally(0)
	tally.Take()
	release := sync.OnceFunc(func() { tally.Release(); e.Release() })
	begun := time.Now()
	resp, err := base.RoundTrip(out)
	if err != nil {
		release()
		if req.Context().Err() == nil { // else it was the caller who gave up
			e.Stats().Record(0, time.Since(begun), nil)
		}
		return nil, err
	}
	e.Stats().Record(resp.StatusCode, time.Since(begun), nil) // until its head
	if n, err := strconv.Atoi(resp.Header.Get(registry.LoadHeader)); err == nil && n >= 0 {
		e.Reported(n)
		s.shared.Reports()
	}
	resp.Request = req
	resp.Body = counted(resp.Body, release)
	return resp, nil
}

// unsent reports whether an error says that the connection did not come about: then nobody has read anything.
func unsent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// replay is the body of a request once more, if it can be had.
func replay(req *http.Request) (body io.ReadCloser, ok bool) {
	if req.Body == nil || req.Body == http.NoBody {
		return req.Body, true
	}
	if req.GetBody == nil {
		return nil, false
	}
	body, err := req.GetBody()
	return body, err == nil
}

func closeBody(body io.ReadCloser) {
	if body != nil {
		_ = body.Close() // as RoundTrip has to, whatever comes of it
	}
}

// counted is a body that calls done when it is over. That of a connection which has changed its protocol can be written to.
func counted(body io.ReadCloser, done func()) io.ReadCloser {
	if body == nil || body == http.NoBody {
		done()
		return body
	}
	c := &countedBody{body, done}
	if w, ok := body.(io.Writer); ok {
		return &countedTunnel{c, w}
	}
	return c
}

type countedBody struct {
	io.ReadCloser
	done func()
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.done()
	}
	return n, err
}

func (b *countedBody) Close() error {
	defer b.done()
	return b.ReadCloser.Close()
}

type countedTunnel struct {
	*countedBody
	io.Writer
}

// dialler is the transport for a nil base, made at the first call.
func (s *service) dialler(o *tls.Config) *http.Transport {
	s.dial.Do(func() {
		t := &http.Transport{
			DialContext:           (&net.Dialer{Timeout: connectTimeout}).DialContext,
			TLSHandshakeTimeout:   5 * time.Second,
			ExpectContinueTimeout: time.Second,
			MaxIdleConnsPerHost:   idlePerHost,
			ForceAttemptHTTP2:     true,
		}
		if o == nil {
			o = &tls.Config{}
		}
		if t.TLSClientConfig = o.Clone(); o.ServerName == "" {
			t.TLSClientConfig.ServerName = s.name
		}
		for _, m := range s.view.Load().Members {
			if d := m.Endpoint.KeepIdle(nil); t.IdleConnTimeout == 0 || d < t.IdleConnTimeout {
				t.IdleConnTimeout = d
			}
		}
		s.transport.Store(t)
	})
	return s.transport.Load()
}
