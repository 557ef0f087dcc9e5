package discover

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/rota-lb/rota/balancer/pool"
)

// The settings of [Discovery.Client].
const (
	// DefaultRetries is how often a request is repeated at most.
	DefaultRetries = 2
	// DefaultRetryWaitMin is the pause before the first repetition; each further one is twice as long, up to
	// DefaultRetryWaitMax. Half of a pause is random. They are short, as it is another instance that is asked.
	DefaultRetryWaitMin = 20 * time.Millisecond
	DefaultRetryWaitMax = time.Second
	// retryBudget is how many hundredths of a repetition each request earns for its service.
	retryBudget = 20
)

// Client returns a client which repeats what fails, each time on another instance of the service, as long as there is one
// that was not asked yet. It goes by the URLs of [Discovery.Transport], through a nil base.
//
// Repeated are requests whose method is idempotent (GET, HEAD, OPTIONS, TRACE, PUT, DELETE), or that have an
// Idempotency-Key, after an error or a status of 502, 503 or 504; and those of which nothing was ever sent, whatever their
// method. The repetitions of a service are bounded to a fifth of its requests, and some in reserve, so that a service in
// trouble is not buried in them. After the last one the caller gets what it ended with, the response of a 503 included.
//
// Each call makes a client of its own, without a logger; its fields may be set before its first use, but for
// RequestLogHook, which begins the way of each request through the instances: call what it was first from your own.
func (d *Discovery) Client() *retryablehttp.Client {
	return &retryablehttp.Client{
		// Not as it is: after every request that failed retryablehttp closes all idle connections of its client, and these
		// are those to every service.
		HTTPClient:     &http.Client{Transport: struct{ http.RoundTripper }{d.Transport(nil)}},
		RetryMax:       DefaultRetries,
		RetryWaitMin:   DefaultRetryWaitMin,
		RetryWaitMax:   DefaultRetryWaitMax,
		RequestLogHook: d.beginWalk,
		CheckRetry:     d.checkRetry,
		PrepareRetry:   nextStep,
		Backoff:        backoff,
		ErrorHandler:   asItEnded,
	}
}

// beginWalk is called before every attempt; at the first one it gives the request its walk.
func (d *Discovery) beginWalk(_ retryablehttp.Logger, req *http.Request, attempt int) {
	if attempt > 0 {
		return
	}
	w := &walk{idempotent: idempotent(req)}
	if s := d.find(strings.ToLower(req.URL.Hostname())); s != nil {
		w.service = s.shared
		w.service.Earn(retryBudget)
	}
	*req = *req.WithContext(context.WithValue(req.Context(), walkKey{}, w))
}

// checkRetry says whether a request is repeated. The error of an attempt is never replaced.
func (d *Discovery) checkRetry(ctx context.Context, resp *http.Response, err error) (bool, error) {
	w := walkOf(ctx)
	if w == nil || ctx.Err() != nil || !w.repeatable() {
		return false, nil
	}
	if err == nil {
		switch resp.StatusCode {
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		default:
			return false, nil
		}
	} else if again, _ := retryablehttp.DefaultRetryPolicy(ctx, nil, err); !again || errors.Is(err, ErrNoInstance) || errors.Is(err, ErrNotReady) {
		return false, nil // a redirect too many, a certificate, …
	}
	return w.service == nil || w.service.Spend(), nil
}

// nextStep has the next attempt go to an instance that was not tried yet.
func nextStep(req *http.Request) error {
	walkOf(req.Context()).next()
	return nil
}

// backoff doubles the pause with each attempt. Half of it is random, so that those who failed together do not come back
// together. What Retry-After says is not waited for: it is another instance that is asked.
func backoff(least, most time.Duration, attempt int, _ *http.Response) time.Duration {
	d := min(least<<min(attempt, 20), most)
	if d <= 1 {
		return max(d, 0)
	}
	return d/2 + rand.N(d/2)
}

// asItEnded gives the caller the response or the error of the last attempt.
func asItEnded(resp *http.Response, err error, _ int) (*http.Response, error) {
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// idempotent reports whether doing a request twice is doing it once.
func idempotent(req *http.Request) bool {
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return req.Header.Get("Idempotency-Key") != "" || req.Header.Get("X-Idempotency-Key") != ""
}

// walk is the way of one request, with all its attempts, through the instances. A nil walk notes nothing.
type walk struct {
	service    *pool.Service // that pays for repetitions; nil if it is not known
	idempotent bool

	mu    sync.Mutex // protects what follows: attempts follow one another, but their context may be lent to others
	begun bool       // something was sent
	used  []*pool.Endpoint
	tried []*pool.Endpoint // in earlier attempts
}

type walkKey struct{}

func walkOf(ctx context.Context) *walk {
	w, _ := ctx.Value(walkKey{}).(*walk)
	return w
}

// excluded are the endpoints that earlier attempts have used. What this one has used is not among them: it may be
// redirected to the same instance.
func (w *walk) excluded() []*pool.Endpoint {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tried[:len(w.tried):len(w.tried)]
}

// use notes that this attempt goes to an endpoint.
func (w *walk) use(e *pool.Endpoint) {
	if w != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.used = append(w.used, e)
	}
}

// sent notes that an attempt got further than connecting.
func (w *walk) sent() {
	if w != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.begun = true
	}
}

// next begins another attempt.
func (w *walk) next() {
	if w != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.tried, w.used = append(w.tried, w.used...), nil
	}
}

// repeatable reports whether nothing is done twice by another attempt.
func (w *walk) repeatable() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.idempotent || !w.begun
}
