package proxy

import (
	"bufio"
	"io"
	"math"
	"net"
	"net/netip"
	"testing"
	"time"
)

// When requests wait, or memory is short, the busiest client is refused and the others are not; when it is over nobody is.
func TestGuardSparesHonestClients(t *testing.T) {
	for _, short := range []Reason{CPUPressure, MemoryPressure} {
		g := &Guard{Lag: 100 * time.Millisecond, Memory: 1 << 30}
		lag := time.Duration(0)
		strain := func(on bool) {
			lag = 0
			g.memory.Store(50)
			switch {
			case on && short == CPUPressure:
				lag = 200 * time.Millisecond
			case on:
				g.memory.Store(shortMemory)
			}
		}
		turn := func() { g.share.Store(g.nextShare(g.share.Load(), lag)) }
		honest, flood := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.9")
		refused := map[netip.Addr]int{}
		ask := func(client netip.Addr) {
			if why := g.admit(client); why != "" {
				refused[client]++
				if why != short {
					t.Fatalf("refused for %s, want %s", why, short)
				}
			}
		}
		load := func(n int) {
			clear(refused)
			for i := range n {
				ask(flood)
				if i%100 == 0 {
					ask(honest)
				}
			}
		}
		load(1000)
		turn()
		if g.Shedding() || len(refused) > 0 {
			t.Errorf("%s: all is well, and refused", short)
		}
		if short == CPUPressure { // for a moment
			strain(true)
			for range lateTurns - 1 {
				turn()
				load(1000)
			}
			strain(false)
			if turn(); len(refused) > 0 || g.Shedding() {
				t.Errorf("refused %v after a moment", refused)
			}
		}
		strain(true)
		hit := 0 // turns in which the honest one was refused: they may share a count by chance, but not for long
		for range 12 {
			turn()
			load(1000)
			if refused[honest] > 0 {
				hit++
			}
		}
		if refused[flood] < 500 || hit > 2 {
			t.Errorf("%s: refused %v, the honest one in %d turns", short, refused, hit)
		}
		if !g.Shedding() {
			t.Errorf("%s: not said to be shedding", short)
		}
		strain(false)
		for range 60 {
			turn()
			load(1000)
		}
		if g.Shedding() || len(refused) > 0 || g.share.Load() != 0 && g.share.Load() != math.MaxUint32 {
			t.Errorf("%s: it is over, and %v are refused; share %d", short, refused, g.share.Load())
		}
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

// A client that is refused for want of memory or CPU is told so, and when to come again.
func TestGuardAnswers(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			for head := readHead(r); head != ""; head = readHead(r) {
				io.WriteString(c, own("/"))
			}
		})
		g := &Guard{}
		r := startWith(t, engine, Settings{}, func(r *rig) { r.guard = g }, up.address)
		for _, tc := range []struct {
			memory int32
			share  uint32
			want   []int // of requests on one connection
			reason Reason
			goesOn bool
		}{
			{tightMemory - 1, 0, []int{200, 200}, "", true},
			{fullMemory, 0, []int{503}, MemoryPressure, false},
			{0, 2, []int{200, 200, 503, 503}, CPUPressure, true},
		} {
			g.memory.Store(tc.memory)
			g.share.Store(tc.share)
			c := r.dial()
			for i, want := range tc.want {
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				resp, _ := c.answer("GET")
				refused := want == 503
				if resp.StatusCode != want || refused != (resp.Header.Get("Retry-After") != "") || refused && resp.Header.Get("X-Rota-Reason") != string(tc.reason) {
					t.Errorf("%+v, request %d: %d %v", tc, i, resp.StatusCode, resp.Header)
				}
				if resp.Close == tc.goesOn {
					t.Errorf("%+v, request %d: the connection ends: %v", tc, i, resp.Close)
				}
			}
		}
	})
}
