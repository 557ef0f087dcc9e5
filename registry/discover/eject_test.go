package discover_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-lb/rota/registry/discover"
)

// fake is a base without a network: instances answer their port, but for those that refuse.
type fake struct {
	refuse map[string]bool // by port
	asks   []string
}

func (f *fake) RoundTrip(req *http.Request) (*http.Response, error) {
	port := req.URL.Port()
	f.asks = append(f.asks, port)
	if f.refuse[port] {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(port)), Header: http.Header{}}, nil
}

// ask makes n requests, and returns the ports that were asked, sorted, each once.
func (r *rig) ask(f *fake, n int) string {
	f.asks = nil
	web := &http.Client{Transport: r.d.Transport(f)}
	for range n {
		if resp, err := web.Get("http://cart/"); err == nil {
			resp.Body.Close()
		}
	}
	slices.Sort(f.asks)
	return strings.Join(slices.Compact(f.asks), " ")
}

// rigOf has n instances at the ports 1 to n.
func rigOf(t *testing.T, n int) *rig {
	r := start(t, discover.Options{Policy: "round_robin"})
	for i := 1; i <= n; i++ {
		r.put(string(rune('a'+i-1)), fmt.Sprintf("10.0.0.7:%d", i))
	}
	r.until("all", func(v *discover.View) bool { return len(v.Members) == n })
	return r
}

// TestEjected follows one that refuses: it is passed over for longer each time, and like new after a while.
func TestEjected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rigOf(t, 3)
		f := &fake{refuse: map[string]bool{"1": true}}
		for _, lasts := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			lasts *= time.Second
			if got := r.ask(f, 6); got != "1 2 3" {
				t.Errorf("asked %s", got)
			}
			time.Sleep(lasts - time.Nanosecond)
			if got := r.ask(f, 6); got != "2 3" {
				t.Errorf("asked %s within %s", got, lasts)
			}
			time.Sleep(time.Nanosecond)
		}
		time.Sleep(61 * time.Second)
		r.ask(f, 6)
		time.Sleep(time.Second)
		if f.refuse = nil; r.ask(f, 6) != "1 2 3" {
			t.Errorf("asked %s after a second", f.asks)
		}
	})
}

// TestEjectedHalf has most of a service refuse: at most half is passed over, and those who answer are always found.
func TestEjectedHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rigOf(t, 5)
		f := &fake{refuse: map[string]bool{"1": true, "2": true, "3": true, "4": true}}
		for range 10 {
			if got := r.ask(f, 1); !strings.HasSuffix(got, "5") {
				t.Errorf("asked %s: did not find the one that answers", got)
			}
		}
		f.refuse = nil
		if got := r.ask(f, 30); len(strings.Fields(got)) != 3 {
			t.Errorf("asked %s, want three of five", got)
		}
		// The one that is left refuses: those passed over are asked.
		f.refuse = map[string]bool{"5": true}
		r.delete("c")
		r.delete("d")
		r.members("a b e")
		for range 3 {
			if got := r.ask(f, 1); strings.TrimLeft(got, "12 ") == got {
				t.Errorf("asked only %s", got)
			}
		}
	})
}

// TestEjectedOnly has the only instance refuse: it is asked all the same.
func TestEjectedOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rigOf(t, 1)
		f := &fake{refuse: map[string]bool{"1": true}}
		r.ask(f, 3)
		if len(f.asks) != 3 {
			t.Errorf("asked %v", f.asks)
		}
	})
}

// TestLostApart has the last two instances lost one long after the other: only the later one is kept.
func TestLostApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rigOf(t, 2)
		r.delete("a")
		r.members("b")
		time.Sleep(11 * time.Second)
		r.delete("b")
		synctest.Wait()
		if got := ids(r.d.View("cart")); got != "b" {
			t.Errorf("kept %s", got)
		}
		time.Sleep(time.Hour)
		if got := r.ask(new(fake), 3); got != "2" {
			t.Errorf("asked %s an hour later", got)
		}
	})
}

// TestReportFades has a report of load grow old: who was busy is asked again.
func TestReportFades(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rigOf(t, 1)
		e := r.d.View("cart").Members[0].Endpoint
		r.d.View("cart").Service.Reports()
		e.Reported(100)
		time.Sleep(8 * time.Second)
		synctest.Wait()
		if n := e.Load(); n != 0 {
			t.Errorf("a load of %d is believed after eight seconds", n)
		}
	})
}
