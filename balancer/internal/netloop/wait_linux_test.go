package netloop

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// A loop on which little happens does not look to the runtime like a computation without end, which it would stop by a signal 40 times
// a second and move to another thread. Other programs may keep it from the processor for that long, though, so the best of some
// times counts.
func TestNotPreempted(t *testing.T) {
	if raceEnabled {
		t.Skip("rounds take too long")
	}
	r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
		var b [1]byte
		c.Read(b[:])
		c.Write(b[:])
		return time.Minute
	})
	c := r.dial()
	signals := make(chan os.Signal, 1000)
	signal.Notify(signals, syscall.SIGURG)
	defer signal.Stop(signals)
	least := cap(signals)
	for try := 0; try < 10 && least > 3; try++ {
		for len(signals) > 0 {
			<-signals
		}
		for began := time.Now(); time.Since(began) < 400*time.Millisecond; time.Sleep(45 * time.Millisecond) {
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		least = min(least, len(signals))
	}
	if least > 3 {
		t.Errorf("%d signals in 400 ms", least)
	}
	r.stop()
}

// A loop on which nothing happens waits for long, but not past a deadline.
func TestQuietDeadlines(t *testing.T) {
	const after = 1200 * time.Millisecond
	began := make(chan time.Time, 2)
	r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
		var b [2]byte
		n, _ := c.Read(b[:])
		began <- time.Now()
		if b[0] == 'i' {
			return after
		}
		c.SetReadDeadline(c.Loop().Now().Add(after))
		if _, err := c.Read(b[n:]); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		return 0
	})
	for _, what := range []string{"idle", "reading"} {
		c := r.dial()
		io.WriteString(c, what[:1])
		from := <-began
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %v", what, err)
		}
		if took := time.Since(from); took < after-Tick || took > after+500*time.Millisecond {
			t.Errorf("%s: closed after %v, not %v", what, took, after)
		}
	}
	r.stop()
}
