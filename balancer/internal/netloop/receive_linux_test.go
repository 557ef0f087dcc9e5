package netloop

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What is received comes whole and in order, however it is asked for, and the end after it, on either engine.
func TestReceive(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 4*BufferSize/16)
	for name, read := range map[string]func(c Conn, into *strings.Builder) error{
		"receive": func(c Conn, into *strings.Builder) error {
			b, n, err := c.Receive(nil)
			into.Write(b[:n])
			c.Loop().Free(b)
			return err
		},
		"little reads": func(c Conn, into *strings.Builder) error {
			var b [7]byte
			n, err := c.Read(b[:])
			into.Write(b[:n])
			return err
		},
		"both": func(c Conn, into *strings.Builder) error {
			var one [1]byte
			n, err := c.Read(one[:])
			into.Write(one[:n])
			if err != nil {
				return err
			}
			b, n, err := c.Receive(nil)
			into.Write(b[:n])
			c.Loop().Free(b)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				got := make(chan string, 1)
				r := start(t, Options{Engine: engine, Loops: 1}, func(c Conn) time.Duration {
					var all strings.Builder
					for {
						if err := read(c, &all); err != nil {
							if err != io.EOF {
								t.Errorf("ended with %v", err)
							}
							got <- all.String()
							return 0
						}
					}
				})
				c := r.dial()
				io.WriteString(c, long)
				c.(*net.TCPConn).CloseWrite()
				if text := <-got; text != long {
					t.Errorf("got %d other bytes than the %d", len(text), len(long))
				}
			})
		})
	}
}

// What was fetched for a handler that does not ask for it is not lost: it is served again, or given away, or goes with the connection.
func TestFetched(t *testing.T) {
	t.Run("served again", func(t *testing.T) {
		calls := 0
		r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
			if calls++; calls%2 == 0 {
				return echo(c)
			}
			return time.Minute
		})
		c := r.dial()
		say(t, c, "one")
		say(t, c, "two")
	})
	t.Run("closed", func(t *testing.T) {
		r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration { return 0 })
		c := r.dial()
		io.WriteString(c, "one")
		expectClosed(t, c)
	})
	t.Run("given away", func(t *testing.T) {
		away := make(chan net.Conn, 1)
		r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
			plain, err := c.Detach()
			if err != nil {
				t.Error(err)
			}
			away <- plain
			return 0
		})
		c := r.dial()
		io.WriteString(c, "one")
		plain := <-away
		defer plain.Close()
		io.WriteString(c, "two")
		b := make([]byte, 6)
		if _, err := io.ReadFull(plain, b); err != nil || string(b) != "onetwo" {
			t.Errorf("got %q, %v", b, err)
		}
	})
	t.Run("a reset is told", func(t *testing.T) {
		told := make(chan error, 1)
		r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
			_, _, err := c.Receive(nil)
			told <- err
			return 0
		})
		c := r.dial()
		r.eventually("it is there", func() bool { open, _ := r.Connections(); return open == 1 })
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		if err := <-told; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("told %v", err)
		}
	})
}

// Those that a round finds ready are read from before the first one goes on, but no more of them than may wait.
func TestReceiveTogether(t *testing.T) {
	const clients = together + 4
	most := 0
	r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
		fetched := 0
		for _, other := range c.(*conn).loop.conns {
			if other != nil && other.got != nil {
				fetched++
			}
		}
		most = max(most, fetched)
		b, n, err := c.Receive(nil)
		if err != nil {
			return 0
		}
		c.Send(b[:n])
		return time.Minute
	})
	r.round(clients)
	r.stop()
	if most != together {
		t.Errorf("%d had been read from, want %d", most, together)
	}
}
