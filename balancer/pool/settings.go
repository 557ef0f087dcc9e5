package pool

import (
	"crypto/tls"
	"sync/atomic"
	"time"
)

// Settings say how exchanges with the endpoints of a pool are done. Read-only once in a pool; the zero value is plain HTTP
// without bounds.
type Settings struct {
	// Secure says that endpoints speak TLS which do not name a protocol; TLS is how to speak it with those that do.
	Secure bool
	TLS    *tls.Config
	// MaxConcurrent bounds the exchanges in flight on one endpoint. Beyond, at most Queue exchanges wait, for at most
	// QueueTimeout. Zero is no bound.
	MaxConcurrent int
	Queue         int
	QueueTimeout  time.Duration
	// IdleTimeout is when endpoints close idle connections that do not say it themselves; zero is unknown.
	IdleTimeout time.Duration
	// Failures is how many in a row say that an endpoint is failing; zero is never.
	Failures int
	// ProxyProtocol is the version of the PROXY protocol header to begin connections with; zero is none.
	ProxyProtocol int
}

// plain are the settings of pools that have none.
var plain Settings

// SettingsOf returns the pool's settings, never nil.
func (p *Pool) SettingsOf() *Settings {
	if p.Settings != nil {
		return p.Settings
	}
	return &plain
}

// IsSecure reports whether an endpoint of the pool speaks TLS.
func (s *Settings) IsSecure(e *Endpoint) bool {
	return e.Protocol == "https" || e.Protocol == "" && s.Secure
}

// budget is how many retries a service has to spend, in hundredths. Every exchange earns a few, a retry costs a whole one,
// so in the long run retries are bounded to a share of the exchanges.
type budget struct{ spent atomic.Int64 }

const (
	retryCost = 100
	reserve   = 20 * retryCost // what a service that earned nothing lately may spend
)

// Earn counts an exchange, which earns percent hundredths of a retry. While nothing was spent it costs one look.
func (s *Service) Earn(percent int) {
	if s.budget.spent.Load() > 0 {
		s.budget.spent.Add(-int64(percent))
	}
}

// Spend asks for a retry and reports whether the service can afford it.
func (s *Service) Spend() bool {
	for {
		old := s.budget.spent.Load()
		if old+retryCost > reserve {
			return false
		}
		if s.budget.spent.CompareAndSwap(old, max(old, 0)+retryCost) {
			return true
		}
	}
}
