package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/internal/route"
	"github.com/rota-lb/rota/balancer/pool"
)

// An instance may say a few bytes now and then for as long as it likes, whatever the least rate: only silence ends its answer,
// and each of its words is with the client at once.
func TestSlowAnswers(t *testing.T) {
	t.Parallel()
	const idle, events = slower * 200 * time.Millisecond, 12
	for name, head := range map[string]string{
		"events":        "Content-Type: text/event-stream\r\n\r\n",
		"a long body":   "Content-Length: 1000000\r\n\r\n",
		"a chunked one": "Transfer-Encoding: chunked\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				t.Parallel()
				got := make(chan struct{})
				up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head)
					word := "data"
					if strings.Contains(head, "chunked") {
						word = "4\r\ndata\r\n"
					}
					for range events {
						io.WriteString(c, word)
						<-got
						time.Sleep(idle / 4)
					}
					r.ReadByte() // silence, until the proxy has enough
				})
				s := Settings{MinRate: 1 << 20}
				s.Timeouts = route.Timeouts{IdleBody: idle}
				r := start(t, engine, s, up.address)
				c := r.dial()
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				resp, err := http.ReadResponse(c.r, nil)
				if err != nil {
					t.Fatal(err)
				}
				for i := range events {
					word := make([]byte, 4)
					if _, err := io.ReadFull(resp.Body, word); err != nil || string(word) != "data" {
						t.Fatalf("word %d: %q, %v", i, word, err)
					}
					got <- struct{}{}
				}
				if _, err := resp.Body.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("the end of an answer that has none: %v", err)
				}
				if rec := r.wait(1)[0]; rec.Reason != UpstreamTimeout {
					t.Errorf("the reason is %q", rec.Reason)
				}
			})
		})
	}
}

// An instance may take its time with a body, too: that is not laid to the client's charge.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	const idle, length = slower * time.Second, 12 << 20
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel()
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			c.(*net.TCPConn).SetReadBuffer(64 << 10)
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			for left := int64(length); left > 0; left -= 1 << 20 {
				time.Sleep(idle / 8)
				if _, err := io.CopyN(io.Discard, req.Body, 1<<20); err != nil {
					return
				}
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		})
		s := streaming
		s.MinRate = 100 << 20
		s.Timeouts = route.Timeouts{IdleBody: idle, ResponseHead: time.Minute}
		r := start(t, engine, s, up.address)
		c := r.dial()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12582912\r\n\r\n")
		go io.WriteString(c.Conn, strings.Repeat("x", length))
		if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != "ok" {
			t.Errorf("answered %d %s", resp.StatusCode, body)
		}
	})
}

// A client that goes away once its streamed body is complete takes its place with it.
func TestClientGoesAfterUpload(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		seen, ended := make(chan struct{}), make(chan error, 1)
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			close(seen)
			_, err = r.ReadByte()
			ended <- err
		})
		s := streaming
		s.Timeouts = route.Timeouts{ResponseHead: time.Minute}
		r := start(t, engine, s, up.address)
		c := r.dial()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
		c.send("0123456789")
		<-seen
		c.Close()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the instance works on for nobody")
		}
		if rec := r.wait(1)[0]; rec.Reason != ClientClosed || rec.Endpoint.InFlight() != 0 {
			t.Errorf("the reason is %q, %d in flight", rec.Reason, rec.Endpoint.InFlight())
		}
	})
}

// The same without going: the client waits, gets its answer, and its next request is as good.
func TestClientStaysAfterUpload(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			for {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				io.Copy(io.Discard, req.Body)
				time.Sleep(3 * netloop.Tick) // the upload is at its end, and watches
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		})
		r := start(t, engine, streaming, up.address)
		c := r.dial()
		for range 3 {
			c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
			c.send("0123456789")
			if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != "ok" {
				t.Fatalf("answered %d %s", resp.StatusCode, body)
			}
		}
		if n := up.connections(); n != 1 {
			t.Errorf("%d upstream connections", n)
		}
	})
}

// An instance that resets a new connection before it says a word is told of, as one that refuses it.
func TestResetIsRefusal(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			c.(*net.TCPConn).SetLinger(0) // with the request unread
		})
		r := start(t, engine, Settings{}, up.address)
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := c.answer("GET"); resp.StatusCode != 502 {
			t.Errorf("answered %d", resp.StatusCode)
		}
		if r.refused.Load() == 0 {
			t.Error("nobody was told")
		}
	})
}

// That no descriptor is left for a connection is nobody's fault but ours.
func TestOutOfSockets(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		up := echo(t)
		r := startWith(t, engine, Settings{}, func(r *rig) { r.sockets = 1 }, up.address, up.address)
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, _ := c.answer("GET")
		if resp.StatusCode != 503 || resp.Header.Get("X-Rota-Reason") != string(Exhausted) || resp.Header.Get("Retry-After") == "" {
			t.Errorf("answered %d %v", resp.StatusCode, resp.Header)
		}
		rec := r.wait(1)[0]
		rec.Endpoint.Stats().Errors.Each(func(reason string, n uint64) { t.Errorf("%d %s laid to the instance", n, reason) })
		if rec.Attempts > 3 || r.refused.Load() != 0 || r.failing.Load() != 0 {
			t.Errorf("%d attempts; refused %d, failing %d", rec.Attempts, r.refused.Load(), r.failing.Load())
		}
	})
	if !netloop.Exhausted(&net.OpError{Err: syscall.EMFILE}) || netloop.Exhausted(syscall.ECONNREFUSED) || netloop.Exhausted(nil) || netloop.Exhausted(errors.New("x")) {
		t.Error("exhaustion is not told from refusal")
	}
}

// Whoever waits for a place gets it, whenever it comes up: also between the look and the wait, and where a pool gets another
// instance without an exchange having ended.
func TestQueueMissesNobody(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		var worked atomic.Int32
		up := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			for {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				worked.Add(1)
				if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
					return
				}
			}
		})
		r := startWith(t, engine, Settings{}, func(r *rig) {
			r.upstreams = &pool.Settings{MaxConcurrent: 1, Queue: 1000, QueueTimeout: time.Minute}
		}, up.address)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				c := r.dial()
				for range 200 {
					c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
					if resp, err := http.ReadResponse(c.r, nil); err != nil || resp.StatusCode != 200 {
						t.Error(resp, err)
						return
					} else {
						io.Copy(io.Discard, resp.Body)
					}
				}
			})
		}
		all.Wait()
	})
}

// An instance that comes to a pool whose others are full is used by those who wait already.
func TestQueueTakesNewInstances(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		busy := make(chan struct{})
		stuck := newUpstream(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err == nil {
				close(busy)
				r.ReadByte()
			}
		})
		other := echo(t)
		r := startWith(t, engine, Settings{}, func(r *rig) {
			r.upstreams = &pool.Settings{MaxConcurrent: 1, Queue: 10, QueueTimeout: time.Minute}
		}, stuck.address)
		first := poolOf(r)
		var series pool.Series
		series.Set(first)
		r.store.Publish(r.store.Load()) // so that the loops see it
		held := r.dial()
		held.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		<-busy
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		for r.proxy.queueOf(r.service).waiting.Load() != 1 {
			time.Sleep(time.Millisecond)
		}
		series.Set(poolOf(startWith(t, engine, Settings{}, func(r *rig) { r.upstreams = first.Settings }, other.address)))
		if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
			t.Errorf("answered %d", resp.StatusCode)
		}
	})
}

// An attempt that took all the time it had is followed by another one while the whole exchange has time left.
func TestTryAgainWithinTheRequest(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, engine string) {
		t.Parallel()
		silent := newUpstream(t, func(c net.Conn, r *bufio.Reader) { r.ReadByte(); io.Copy(io.Discard, r) })
		other := echo(t)
		s := Settings{Timeouts: route.Timeouts{ResponseHead: slower * 200 * time.Millisecond, Request: time.Minute}}
		r := start(t, engine, s, silent.address, other.address)
		c := r.dial()
		for i := range 2 { // in turn: one of them asks the silent one first
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
				t.Errorf("request %d: answered %d", i, resp.StatusCode)
			}
		}
		records := r.wait(2)
		if n := records[0].Attempts + records[1].Attempts; n < 3 {
			t.Errorf("%d attempts", n)
		}
	})
}
