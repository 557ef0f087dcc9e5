package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Who may ask. A request has to name this daemon as its host, so that no web page reaches it through a name that was made to point
// here; it must not come from a page of another origin, for reading neither; and it has to show a token where there is one. What is
// refused is counted, and logged as long as that is no flood.

// The reasons of refusals, as they are counted.
const (
	refusedHost   = "host"
	refusedOrigin = "origin"
	refusedToken  = "token"
)

// Tokens are what requests may show, by the names of who has them. The zero value is none.
type Tokens struct{ list []token }

type token struct {
	name string
	sum  [sha256.Size]byte
}

// NewTokens makes tokens of their texts by name; the name may be empty.
func NewTokens(texts map[string]string) (t Tokens) {
	for name, text := range texts {
		t.list = append(t.list, token{name, sha256.Sum256([]byte(text))})
	}
	return t
}

// holder is who has a token. It takes as long for a wrong one as for any other.
func (t Tokens) holder(text string) (name string, ok bool) {
	sum := sha256.Sum256([]byte(text))
	for _, known := range t.list {
		if subtle.ConstantTimeCompare(sum[:], known.sum[:]) == 1 {
			name, ok = known.name, true
		}
	}
	return name, ok
}

// holderKey is the key of a request's context under which the holder of its token is.
type holderKey struct{}

// admit lets requests through to next, if they may ask. open reports whether a path is open to anybody.
func (a *API) admit(open func(path string) bool, next http.Handler) http.Handler {
	var refusals refusals
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		refuse := func(status int, why, detail string) {
			a.Refused.Add(why)
			refusals.log(a.Logger, r, why)
			problem(w, status, detail)
		}
		switch {
		case !a.named(r):
			refuse(http.StatusMisdirectedRequest, refusedHost,
				"the admin API answers to localhost, to the address that it is reached at, and to the names in admin.hosts of the configuration")
			return
		case foreign(r) && !opened(r):
			refuse(http.StatusForbidden, refusedOrigin, "pages of other origins get no answer")
			return
		}
		if len(a.Tokens.list) > 0 && !open(r.URL.Path) {
			text, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			name, known := a.Tokens.holder(text)
			if !bearer || !known {
				w.Header().Set("WWW-Authenticate", "Bearer")
				refuse(http.StatusUnauthorized, refusedToken, "send the token: Authorization: Bearer …, or --token-file and ROTA_ADMIN_TOKEN of rota")
				return
			}
			r = r.WithContext(context.WithValue(r.Context(), holderKey{}, name))
		}
		next.ServeHTTP(w, r)
	})
}

// named reports whether a request names this daemon as its host.
func (a *API) named(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if strings.EqualFold(host, "localhost") || slices.ContainsFunc(a.Hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		return false
	}
	at, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ip.Unmap().IsLoopback() || at != nil && ip.Unmap() == at.AddrPort().Addr().Unmap()
}

// foreign reports whether a page of another origin has sent a request. Browsers say so, for reads by Sec-Fetch-Site alone.
func foreign(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		return true
	}
	origin := r.Header.Get("Origin")
	return origin != "" && origin != "http://"+r.Host && origin != "https://"+r.Host
}

// opened reports whether a request is that of somebody who has followed a link to the dashboard, whose page says nothing by itself.
func opened(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.Path == "/" && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

// refusals logs what is refused, once a second at most. It may be used concurrently.
type refusals struct {
	mu     sync.Mutex
	last   time.Time
	untold int
}

func (f *refusals) log(to *zap.Logger, r *http.Request, why string) {
	f.mu.Lock()
	now, untold := time.Now(), f.untold
	if now.Sub(f.last) < time.Second {
		f.untold++
		f.mu.Unlock()
		return
	}
	f.last, f.untold = now, 0
	f.mu.Unlock()
	to.Warn("a request of the admin API was refused", zap.String("why", why), zap.String("from", r.RemoteAddr), zap.String("method", r.Method),
		zap.String("path", r.URL.Path), zap.String("host", r.Host), zap.String("origin", r.Header.Get("Origin")), zap.Int("not logged before", untold))
}

// by is who has sent a request, for the record.
func by(r *http.Request) string {
	switch name, shown := r.Context().Value(holderKey{}).(string); {
	case name != "":
		return name + " from " + r.RemoteAddr
	case shown:
		return r.RemoteAddr + " with the token"
	}
	return r.RemoteAddr
}
