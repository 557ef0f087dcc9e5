package membership

import (
	"time"

	"github.com/rota-lb/rota/balancer/pool"
)

// Warming are the endpoints in their slow start, with their members. It is the caller's to read until the next change.
func (f *Fold) Warming() map[*pool.Endpoint]*Member { return f.warming }

// WarmUntil is when the slow start of a member ends; zero when it is in none.
func (f *Fold) WarmUntil(m *Member) time.Time {
	if f.warming[m.Endpoint] == nil {
		return time.Time{}
	}
	return m.condition.entered.Add(f.slowStart(m))
}
