//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// backend is an instance that answers and remembers when it was last asked.
type backend struct {
	net.Listener
	last  atomic.Int64 // nanoseconds since start
	asked atomic.Int64
	start time.Time
}

func startBackend(start time.Time) (*backend, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &backend{Listener: l, start: start}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		b.last.Store(int64(time.Since(start)))
		b.asked.Add(1)
		w.WriteHeader(http.StatusOK)
	}))
	return b, nil
}

func (b *backend) address() string { return b.Addr().String() }

// lastAsked is when the last request arrived.
func (b *backend) lastAsked() time.Time { return b.start.Add(time.Duration(b.last.Load())) }

// client asks for one host after another on a keep-alive connection, which it opens anew when it is closed.
type client struct {
	address string
	conn    net.Conn
	br      *bufio.Reader
}

func (c *client) get(host string) (status int, err error) {
	if c.conn == nil {
		if c.conn, err = net.DialTimeout("tcp", c.address, 5*time.Second); err != nil {
			return 0, err
		}
		c.br = bufio.NewReader(c.conn)
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	c.conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintf(c.conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, err
	}
	if resp.Close {
		c.close()
	}
	return resp.StatusCode, nil
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}
