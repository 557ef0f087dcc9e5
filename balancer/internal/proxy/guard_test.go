package proxy

import (
	"math"
	"net/netip"
	"testing"
	"time"
)

// Under load the busiest client is refused and the others are not; when it is over nobody is.
func TestGuardSparesHonestClients(t *testing.T) {
	g := &Guard{Lag: 100 * time.Millisecond}
	lag := time.Duration(0)
	turn := func() { g.share.Store(g.nextShare(g.share.Load(), lag)) }
	honest, flood := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.9")
	refused := map[netip.Addr]int{}
	load := func(n int) {
		clear(refused)
		for i := range n {
			if g.admit(flood) != "" {
				refused[flood]++
			}
			if i%100 == 0 && g.admit(honest) != "" {
				refused[honest]++
			}
		}
	}
	load(1000)
	turn()
	if g.Shedding() || len(refused) > 0 {
		t.Error("no lag, and refused")
	}
	lag = 200 * time.Millisecond
	for range 12 {
		turn()
		load(1000)
	}
	if refused[flood] < 500 || refused[honest] > 0 {
		t.Errorf("refused %v", refused)
	}
	if !g.Shedding() {
		t.Error("not said to be shedding")
	}
	lag = 0
	for range 60 {
		turn()
		load(1000)
	}
	if g.Shedding() || len(refused) > 0 || g.share.Load() != 0 && g.share.Load() != math.MaxUint32 {
		t.Errorf("it is over, and %v are refused; share %d", refused, g.share.Load())
	}
}

func TestGuardMemory(t *testing.T) {
	g := &Guard{Memory: 1 << 30}
	a := netip.MustParseAddr("192.0.2.1")
	for _, tc := range []struct {
		percent int32
		reason  Reason
		idle    time.Duration
	}{{50, "", time.Minute}, {tightMemory, "", tightIdle}, {fullMemory, MemoryPressure, tightIdle}} {
		g.memory.Store(tc.percent)
		if r, d := g.admit(a), g.keepAlive(time.Minute); r != tc.reason || d != tc.idle {
			t.Errorf("%d %%: %q, idle %v", tc.percent, r, d)
		}
	}
	var none *Guard
	if none.admit(a) != "" || none.keepAlive(time.Minute) != time.Minute || none.Shedding() {
		t.Error("a nil guard sheds")
	}
}
