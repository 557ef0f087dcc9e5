package health

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rota-lb/rota/balancer/internal/proxyproto"
	"github.com/rota-lb/rota/balancer/pool"
)

// Bounds of an answer over HTTP, in bytes as they come from the connection.
const (
	maxHead = 64 << 10
	maxBody = 64 << 10
)

// plan is a check made ready. Endpoints with equal checks may share one; it is read-only.
type plan struct {
	check   Check
	request *http.Request // for HTTP; its Host is empty if it is that of the endpoint
	err     error         // why the check cannot be asked
}

func newPlan(c Check) *plan {
	pl := &plan{check: c}
	if c.Type != HTTP {
		return pl
	}
	target := c.Path
	if target == "" {
		target = "/"
	}
	u, err := url.ParseRequestURI(target)
	if err == nil && target[0] != '/' {
		err = fmt.Errorf("health: check path %q does not begin with a slash", target)
	}
	if strings.ContainsFunc(c.Host, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '/' }) {
		// The library would leave it out, and the answer would be a riddle.
		err = fmt.Errorf("health: check host %q is not a host", c.Host)
	}
	pl.err = err
	h := http.Header{}
	for _, f := range c.Headers {
		h.Add(f[0], f[1])
	}
	if len(h["User-Agent"]) == 0 {
		h["User-Agent"] = []string{userAgent}
	}
	pl.request = &http.Request{Method: http.MethodGet, URL: u, Header: h, Host: c.Host, Close: true}
	return pl
}

const userAgent = "rota-health"

// hostOf is the Host field of a request to an endpoint.
func (pl *plan) hostOf(e *pool.Endpoint) string {
	switch {
	case pl.check.Host != "":
		return pl.check.Host
	case e.Socket != "":
		return "localhost"
	}
	return e.Name
}

// tlsOf returns the endpoint's own configuration, or nil. A session of one instance means nothing to another, so the
// sessions of endpoints that share a name must not replace one another.
func (pl *plan) tlsOf(e *pool.Endpoint) *tls.Config {
	if pl.check.TLS == nil {
		return nil
	}
	c := pl.check.TLS.Clone()
	c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	if c.ServerName == "" {
		c.ServerName = pl.hostOf(e)
		if host, _, err := net.SplitHostPort(c.ServerName); err == nil {
			c.ServerName = host
		}
	}
	switch pl.check.Type {
	case HTTP:
		c.NextProtos = []string{"http/1.1"}
	case GRPC:
		c.NextProtos = []string{"h2"}
	}
	return c
}

// dial is the Dial of [Options] that name none.
func dial(ctx context.Context, e *pool.Endpoint) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if e.Socket != "" {
		c, err := d.DialUnix(ctx, "unix", nil, &net.UnixAddr{Name: e.Socket, Net: "unix"})
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	c, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, e.Address)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// ask does a probe. When it returns, the connection is closed.
func (p *Prober) ask(pr *probe) error {
	if pr.plan.err != nil {
		return pr.plan.err
	}
	conn, err := p.dial(pr.ctx, pr.endpoint)
	if err == nil {
		stop := context.AfterFunc(pr.ctx, func() { conn.SetDeadline(past) })
		err = pr.over(conn)
		stop()
		// A reset leaves nothing behind. A proper end would leave 120,000 connections in TIME_WAIT for 10,000 endpoints,
		// and whoever connects would look for a port among theirs. The client of gRPC closes by itself.
		if c, ok := conn.(*net.TCPConn); ok && pr.plan.check.Type != GRPC {
			c.SetLinger(0)
		}
		conn.Close()
	} else {
		err = refusal(err)
	}
	if err != nil && errors.Is(pr.ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v: %w", pr.plan.check.Timeout, err)
	}
	return err
}

// over asks over a connection, which has a deadline when the probe must end.
func (pr *probe) over(conn net.Conn) error {
	var header []byte
	switch pr.plan.check.ProxyProtocol {
	case 1:
		header = proxyproto.AppendV1(nil, netip.AddrPort{}, netip.AddrPort{})
	case 2:
		header = proxyproto.AppendV2(nil, netip.AddrPort{}, netip.AddrPort{})
	}
	if len(header) > 0 {
		if _, err := conn.Write(header); err != nil {
			return refusal(err)
		}
	}
	if pr.tls != nil {
		c := tls.Client(conn, pr.tls)
		if err := c.Handshake(); err != nil {
			return refusal(fmt.Errorf("TLS handshake: %w", err))
		}
		conn = c
	}
	var err error
	switch pr.plan.check.Type {
	case TCP:
	case HTTP:
		pr.answered, err = pr.plan.askHTTP(conn, pr.endpoint)
	case GRPC:
		pr.answered, err = pr.plan.askGRPC(pr.ctx, conn, pr.endpoint)
		return err
	default:
		err = fmt.Errorf("health: %v is not a type of check", pr.plan.check.Type)
	}
	if c, ok := conn.(*tls.Conn); ok && err == nil {
		// Say goodbye, but only to who answered: it may take seconds where nothing is read.
		c.CloseWrite()
	}
	return err
}

// scratch is what an HTTP probe writes from and reads into.
type scratch struct {
	out   bytes.Buffer
	in    *bufio.Reader
	limit io.LimitedReader
}

var scratches = sync.Pool{New: func() any { return &scratch{in: bufio.NewReader(nil)} }}

// askHTTP reports whether there was an answer, and what was wrong with it.
func (pl *plan) askHTTP(conn net.Conn, e *pool.Endpoint) (answered bool, _ error) {
	s := scratches.Get().(*scratch)
	defer func() {
		s.limit.R = nil
		scratches.Put(s)
	}()
	r := *pl.request
	r.Host = pl.hostOf(e)
	s.out.Reset()
	if err := r.Write(&s.out); err != nil {
		return false, fmt.Errorf("health: %w", err)
	}
	if _, err := conn.Write(s.out.Bytes()); err != nil {
		return false, refusal(err)
	}
	s.limit = io.LimitedReader{R: conn, N: maxHead + maxBody}
	s.in.Reset(&s.limit)
	if _, err := s.in.Peek(1); err != nil {
		return false, refusal(err)
	}
	// Answers are not closed: that would read their bodies to the end.
	answer, err := http.ReadResponse(s.in, nil)
	for n := 0; err == nil && n < 5 && answer.StatusCode/100 == 1 && answer.StatusCode != http.StatusSwitchingProtocols; n++ {
		answer, err = http.ReadResponse(s.in, nil)
	}
	switch {
	case err != nil && s.limit.N <= 0:
		return true, errors.New("the head of its answer is too long")
	case err != nil:
		return true, fmt.Errorf("its answer: %w", err)
	case !pl.accepts(answer.StatusCode):
		return true, fmt.Errorf("it answers %s", answer.Status)
	case pl.check.Body != "":
		return true, holds(answer.Body, pl.check.Body)
	}
	return true, nil
}

func (pl *plan) accepts(status int) bool {
	if len(pl.check.Status) == 0 {
		return status >= 200 && status <= 399
	}
	return slices.ContainsFunc(pl.check.Status, func(r [2]int) bool { return r[0] <= status && status <= r[1] })
}

// holds reads a body until it has seen text, and fails if that is not among the first [maxBody] bytes.
func holds(body io.Reader, text string) error {
	body = io.LimitReader(body, maxBody)
	var seen []byte
	for {
		seen = slices.Grow(seen, 512)
		n, err := body.Read(seen[len(seen):cap(seen)])
		from := max(0, len(seen)-len(text)+1)
		seen = seen[:len(seen)+n]
		switch {
		case bytes.Contains(seen[from:], []byte(text)):
			return nil
		case err == io.EOF:
			return fmt.Errorf("%q is not in the first %d bytes of its answer", shorten(text), len(seen))
		case err != nil:
			return fmt.Errorf("the body of its answer: %w", err)
		}
	}
}

func shorten(text string) string {
	const shown = 100
	if len(text) <= shown {
		return text
	}
	return strings.ToValidUTF8(text[:shown], "") + "…"
}

// refused marks an error as [ErrRefused] and says what it says.
type refused struct{ error }

func (r refused) Unwrap() error        { return r.error }
func (r refused) Is(target error) bool { return target == ErrRefused }

// refusal marks err, which came before any answer, if it says that the other side is not there.
func refusal(err error) error {
	if isRefusal(err) {
		return refused{err}
	}
	return err
}

// refusals are those errors. A path without a socket is as good as a port without a listener.
var refusals = []error{
	syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE, syscall.ENOENT,
	io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe,
}

func isRefusal(err error) bool {
	return slices.ContainsFunc(refusals, func(r error) bool { return errors.Is(err, r) })
}
