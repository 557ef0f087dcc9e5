package sidecar

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/registry"
)

// The values of fields of [Check] that are zero.
const (
	DefaultInterval = 2 * time.Second
	DefaultTimeout  = time.Second
	DefaultFall     = 3
	DefaultRise     = 2
)

// firstInterval is the pause between checks until the first one passes: who starts wants to be ready soon.
const firstInterval = 100 * time.Millisecond

// complainAfter is how long the first pass may take before a line says what it waits for. The next comes after twice the
// time.
const complainAfter = 5 * time.Second

// Check asks a program whether it is well, the same question over and over. Zero numbers are the defaults.
type Check struct {
	// Off passes at once and asks nothing.
	Off bool
	// Address is the host:port that is asked.
	Address string
	// Path, if not empty, is asked for by GET, in Protocol; 200 to 399 passes. No redirect is followed and no proxy used.
	// Empty asks only for a TCP connection.
	Path string
	// Protocol is how HTTP is spoken. Certificates are not verified: this is about health, not about trust.
	Protocol registry.Protocol
	// Interval is from the end of one question to the next; Timeout bounds each.
	Interval, Timeout time.Duration
	// Fall and Rise are how many failures or passes in a row change the verdict. The first pass of all counts at once.
	Fall, Rise int
}

// withDefaults returns c with zero numbers filled in.
func (c Check) withDefaults() Check {
	c.Interval, c.Timeout = cmp.Or(c.Interval, DefaultInterval), cmp.Or(c.Timeout, DefaultTimeout)
	c.Fall, c.Rise = cmp.Or(c.Fall, DefaultFall), cmp.Or(c.Rise, DefaultRise)
	return c
}

// watch asks until ctx ends, and delivers a nil when the first check passes, and then each change: why it fails, or nil.
func (c Check) watch(ctx context.Context, log *zap.Logger) <-chan error {
	c = c.withDefaults()
	verdicts := make(chan error)
	go func() {
		ask := c.question()
		deliver := func(verdict error) bool {
			select {
			case verdicts <- verdict:
				return true
			case <-ctx.Done():
				return false
			}
		}
		if !c.first(ctx, ask, log) || !deliver(nil) || c.Off {
			return
		}
		passing, against := true, 0 // against: how many in a row have said the opposite
		for pause(ctx, c.Interval) {
			err := ask(ctx)
			if (err == nil) == passing {
				against = 0
				continue
			}
			against++
			if passing && against < c.Fall || !passing && against < c.Rise {
				continue
			}
			passing, against = !passing, 0
			if !deliver(err) {
				return
			}
		}
	}()
	return verdicts
}

// first returns true when a check has passed, or false when ctx ends before.
func (c Check) first(ctx context.Context, ask func(context.Context) error, log *zap.Logger) bool {
	began, patience := time.Now(), complainAfter
	for {
		err := ask(ctx)
		if err == nil {
			return true
		}
		if waited := time.Since(began); waited > patience && ctx.Err() == nil {
			patience *= 2
			log.Warn("not registered yet: the check has not passed", zap.Duration("after", waited.Round(time.Second)), zap.Error(c.advise(err)))
		}
		if !pause(ctx, min(c.Interval, firstInterval)) {
			return false
		}
	}
}

// advise adds the remedy to the commonest failure.
func (c Check) advise(err error) error {
	host, _, splitErr := net.SplitHostPort(c.Address)
	if ip := net.ParseIP(host); splitErr == nil && ip != nil && !ip.IsLoopback() && errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w; a program that listens on loopback only is not reached from elsewhere: let it listen on 0.0.0.0, or register it "+
			"for this machine alone with --address 127.0.0.1", err)
	}
	return err
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// question returns what does one check.
func (c Check) question() func(context.Context) error {
	once := c.connect
	switch {
	case c.Off:
		return func(context.Context) error { return nil }
	case c.Path != "":
		client := c.client()
		once = func(ctx context.Context) error { return c.get(ctx, client) }
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		return once(ctx)
	}
}

func (c Check) connect(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", c.Address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (c Check) client() *http.Client {
	var p http.Protocols
	switch c.Protocol {
	case registry.H2C:
		p.SetUnencryptedHTTP2(true)
	case registry.H2:
		p.SetHTTP2(true)
	default:
		p.SetHTTP1(true)
	}
	return &http.Client{
		Transport: &http.Transport{
			Protocols: &p, DisableKeepAlives: true,
			TLSClientConfig:        &tls.Config{InsecureSkipVerify: true},
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (c Check) get(ctx context.Context, client *http.Client) error {
	target, err := url.ParseRequestURI(c.Path)
	if err != nil {
		return err
	}
	target.Scheme, target.Host = "http", c.Address
	if c.Protocol == registry.HTTPS || c.Protocol == registry.H2 {
		target.Scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "rota-health")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.CopyN(io.Discard, resp.Body, 64<<10) // so that the program need not see its answer cut off
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("%s answers %s", c.Path, resp.Status)
	}
	return nil
}
