package netloop

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lend puts a text into a buffer of the loop.
func lend(l Loop, text string) []byte {
	b := l.Buffer()
	return b[:copy(b, text)]
}

// What is sent arrives, and the buffer comes back, on either engine and over a layer.
func TestSend(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		r := start(t, Options{Engine: engine, Loops: 1}, func(c Conn) time.Duration {
			b := c.Loop().Buffer()
			n, err := c.Read(b)
			if err != nil || c.Send(b[:n]) != nil {
				c.Loop().Free(b)
				return 0
			}
			return time.Minute
		})
		for range 40 {
			c := r.dial()
			for _, text := range []string{"a", "bc", strings.Repeat("d", BufferSize)} {
				say(t, c, text)
			}
		}
	})
}

// behindOthers serves one client with h, in a round in which another one is ready after it: what it sends is left to the loop. It returns
// the client's end.
func behindOthers(t *testing.T, h handlerFunc) (*rig, net.Conn) {
	t.Helper()
	r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
		var b [2]byte // a read that fills its buffer may not have emptied the socket
		if n, _ := c.Read(b[:]); n == 0 {
			return 0
		}
		if b[0] == 'x' {
			return h(c)
		}
		return time.Minute
	})
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 2048) })
	}}
	c, err := d.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	other := r.dial()
	r.eventually("both are there", func() bool { open, _ := r.Connections(); return open == 2 })
	held, release := make(chan struct{}), make(chan struct{})
	r.Engine.(*loops).all[0].Post(func() { close(held); <-release })
	<-held
	io.WriteString(c, "x")
	io.WriteString(other, "y")
	close(release)
	return r, c
}

// small has the kernel hold little of what is sent.
func small(c Conn) { unix.SetsockoptInt(c.(*conn).fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2048) }

func TestSendBehind(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", BufferSize/16)
	all := func(t *testing.T, c net.Conn, want string) {
		t.Helper()
		if got, err := io.ReadAll(c); err != nil || string(got) != want {
			t.Errorf("got %d bytes, %v; want %d", len(got), err, len(want))
		}
	}
	exactly := func(t *testing.T, c net.Conn, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Errorf("got other bytes than %d, %v", len(want), err)
		}
	}
	left := func(t *testing.T, c Conn) {
		t.Helper()
		if c.(*conn).behind == nil {
			t.Error("nothing is left to the loop")
		}
	}

	t.Run("the connection goes idle", func(t *testing.T) {
		r, c := behindOthers(t, func(c Conn) time.Duration {
			if c.Send(lend(c.Loop(), "hello")) == nil {
				left(t, c)
			}
			return time.Minute
		})
		exactly(t, c, "hello")
		r.eventually("idle", func() bool { _, n := r.Connections(); return n == 0 })
	})
	t.Run("the connection is closed", func(t *testing.T) {
		_, c := behindOthers(t, func(c Conn) time.Duration {
			c.Send(lend(c.Loop(), "hello"))
			left(t, c)
			return 0
		})
		all(t, c, "hello")
	})
	t.Run("idle connections are being closed", func(t *testing.T) {
		var r *rig
		begun := make(chan struct{})
		r, c := behindOthers(t, func(c Conn) time.Duration {
			<-begun
			r.CloseIdle()
			c.Send(lend(c.Loop(), "hello"))
			left(t, c)
			return time.Minute
		})
		close(begun)
		all(t, c, "hello")
	})
	t.Run("more is written", func(t *testing.T) {
		_, c := behindOthers(t, func(c Conn) time.Duration {
			small(c)
			c.Send(lend(c.Loop(), long))
			left(t, c)
			io.WriteString(c, "the end")
			return 0
		})
		all(t, c, long+"the end")
	})
	t.Run("nobody reads for now", func(t *testing.T) {
		stuck := make(chan Conn, 1)
		r, c := behindOthers(t, func(c Conn) time.Duration {
			small(c)
			c.WriteWithin(time.Minute)
			c.Send(lend(c.Loop(), long))
			left(t, c)
			stuck <- c
			return time.Minute
		})
		server := (<-stuck).(*conn)
		look := func(what func() bool) func() bool {
			return func() bool {
				is := make(chan bool)
				server.loop.Post(func() { is <- what() })
				return <-is
			}
		}
		r.eventually("a coroutine has it", look(func() bool { return server.behind != nil && server.writer != nil }))
		exactly(t, c, long)
		r.eventually("idle for as long as it was given", look(func() bool {
			return server.behind == nil && !server.serving && server.idleUntil-server.loop.tick > int64(50*time.Second)
		}))
		io.WriteString(c, "y")
		r.eventually("served", func() bool { _, n := r.Connections(); return n == 0 })
	})
	t.Run("nobody reads in time", func(t *testing.T) {
		r, _ := behindOthers(t, func(c Conn) time.Duration {
			small(c)
			c.WriteWithin(Tick)
			c.Send(lend(c.Loop(), long))
			left(t, c)
			return time.Minute
		})
		r.eventually("closed", func() bool { open, _ := r.Connections(); return open == 1 })
	})
	for name, then := range map[string]func(c Conn) error{
		"waiting":  func(c Conn) error { return c.Wait(nil) },
		"reading":  func(c Conn) error { _, err := c.Read(make([]byte, 1)); return err },
		"writing":  func(c Conn) error { _, err := c.Write([]byte("x")); return err },
		"half end": func(c Conn) error { return c.CloseWrite() },
	} {
		t.Run("it fails while "+name, func(t *testing.T) {
			told := make(chan error, 1)
			_, c := behindOthers(t, func(c Conn) time.Duration {
				c.Send(lend(c.Loop(), "hello"))
				left(t, c)
				unix.Shutdown(c.(*conn).fd, unix.SHUT_WR)
				told <- then(c)
				return 0
			})
			err := <-told
			lost, ok := errors.AsType[*SendError](err)
			if !ok || lost.Sent != 0 || !errors.Is(err, unix.EPIPE) {
				t.Errorf("told %v", err)
			}
			all(t, c, "")
		})
	}
	t.Run("it fails in part", func(t *testing.T) {
		told := make(chan error, 1)
		_, c := behindOthers(t, func(c Conn) time.Duration {
			small(c)
			c.WriteWithin(Tick)
			c.Send(lend(c.Loop(), long))
			told <- c.Wait(nil)
			return 0
		})
		err := <-told
		if lost, ok := errors.AsType[*SendError](err); !ok || lost.Sent == 0 || lost.Sent >= len(long) || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("told %v", err)
		}
		if got, _ := io.ReadAll(c); !strings.HasPrefix(long, string(got)) {
			t.Errorf("other bytes, %d of them", len(got))
		}
	})
	t.Run("it is closed before", func(t *testing.T) {
		_, c := behindOthers(t, func(c Conn) time.Duration {
			c.Send(lend(c.Loop(), "hello"))
			c.Close()
			return 0
		})
		all(t, c, "")
	})
}
