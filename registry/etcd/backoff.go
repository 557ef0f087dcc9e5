package registryetcd

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff spaces attempts out: the first at once, the second after about min, each later one after about twice as
// long as the one before, up to max. Every pause is drawn from its upper half, so that a fleet does not march in step.
type backoff struct {
	min, max time.Duration
	n        int
}

const firstPause = 50 * time.Millisecond

func (b *backoff) reset() { b.n = 0 }

func (b *backoff) next() time.Duration {
	b.n++
	if b.n == 1 {
		return 0
	}
	d := b.min << min(b.n-2, 20)
	d = min(d, b.max)
	return jitter(d)
}

// jitter draws from the upper half of d.
func jitter(d time.Duration) time.Duration {
	if d <= 1 {
		return d
	}
	return d/2 + rand.N(d/2)
}

// sleep waits for d or until ctx ends, and says whether it was the former.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
