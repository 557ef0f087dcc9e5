package pool

import (
	"testing"
	"time"
)

// In the long run there are as many retries as the budget says, and a few at once.
func TestRetryBudget(t *testing.T) {
	s := NewService("s")
	spent := 0
	for s.Spend() {
		spent++
	}
	if spent != reserve/retryCost {
		t.Errorf("%d retries at once", spent)
	}
	const exchanges = 10_000
	spent = 0
	for range exchanges {
		s.Earn(20)
		if s.Spend() {
			spent++
		}
	}
	if spent < exchanges*19/100 || spent > exchanges*21/100 {
		t.Errorf("%d retries for %d exchanges, of which 20 %% may be", spent, exchanges)
	}
}

// What an instance says, or does again and again, counts; a restart does not.
func TestKeepIdle(t *testing.T) {
	e := NewEndpoint(Key{})
	if d := e.KeepIdle(nil); d != maxIdle {
		t.Errorf("nothing is known: %v", d)
	}
	if d := e.KeepIdle(&Settings{IdleTimeout: 2 * time.Second}); d >= 2*time.Second || d < time.Second {
		t.Errorf("2s by the settings: %v", d)
	}
	e.ClosedIdle(30 * time.Second)
	e.ClosedIdle(7 * time.Second)
	if d := e.KeepIdle(nil); d != maxIdle {
		t.Errorf("two that have nothing in common: %v", d)
	}
	e.ClosedIdle(7*time.Second + 50*time.Millisecond)
	if d := e.KeepIdle(nil); d >= 7*time.Second || d < 5*time.Second {
		t.Errorf("learned 7s: %v", d)
	}
	e.ClosedIdle(time.Millisecond)
	e.ClosedIdle(time.Millisecond)
	if d := e.KeepIdle(nil); d < 5*time.Second {
		t.Errorf("closed at once, as when it stops: %v", d)
	}
	said := NewEndpoint(Key{})
	said.IdleTimeout = time.Second
	if d := said.KeepIdle(&Settings{IdleTimeout: time.Minute}); d >= time.Second {
		t.Errorf("the instance says 1s: %v", d)
	}
}
