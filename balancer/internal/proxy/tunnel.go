package proxy

import (
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/rota-lb/rota/balancer/internal/http1"
	"github.com/rota-lb/rota/balancer/internal/netloop"
	"github.com/rota-lb/rota/balancer/pool"
)

const websocket = "websocket"

// websocketKey reports whether a request has one Sec-WebSocket-Key, and that it is 16 bytes in base64 (RFC 6455 §4.1).
func websocketKey(r *http1.Request) bool {
	key, ok := r.Value("sec-websocket-key", 0)
	if _, twice := r.Value("sec-websocket-key", 1); !ok || twice || len(key) != 24 {
		return false
	}
	var raw [18]byte
	n, err := base64.StdEncoding.Decode(raw[:], key)
	return err == nil && n == 16
}

// switches reports whether a 101 is the answer to the upgrade that was asked for. For a WebSocket that includes the proof
// that the instance has understood (RFC 6455 §4.2.2).
func (x *exchange) switches() bool {
	asked := x.hop.Upgrade
	if len(asked) == 0 || x.resp.Minor != 1 || !http1.EqualFold(x.resp.Upgrade, string(asked)) {
		return false
	}
	if string(asked) != websocket {
		return true
	}
	key, _ := x.req.Value("sec-websocket-key", 0)
	sum := sha1.Sum(append(key[:len(key):len(key)], "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	accept, ok := x.resp.Value("sec-websocket-accept", 0)
	_, twice := x.resp.Value("sec-websocket-accept", 1)
	return ok && !twice && string(accept) == base64.StdEncoding.EncodeToString(sum[:])
}

// tunnel moves bytes both ways between a client and an endpoint after an upgrade, whatever they mean. Each side may end its
// direction while the other one goes on. While nothing moves a tunnel holds no buffer.
type tunnel struct {
	client, up netloop.Conn
	loop       netloop.Loop
	idle       time.Duration
	began      time.Time
	last       atomic.Int64 // nanoseconds after began: a byte was moved in either direction
	ended      atomic.Int32 // directions that are at their end
	broken     atomic.Bool
	closing    atomic.Bool // the daemon drains
	in, out    int64
}

// tunnel goes on after a 101, whose head is (*held)[:head] and of which n bytes are held.
func (x *exchange) tunnel(up netloop.Conn, held *[]byte, head, n int) outcome {
	t := &tunnel{client: x.conn, up: up, loop: x.loop, idle: x.timeouts.Tunnel, began: x.loop.Now()}
	edit := http1.Edit(x.rules.Response)
	out := http1.AppendResponse(x.scratch(n+gained+len(edit.Add)), &x.resp, http1.AsIs, 1, true, &edit)
	out = append(out, (*held)[head:n]...)
	x.out = out
	x.conn.WriteWithin(x.within(x.timeouts.IdleBody))
	k, err := x.conn.Write(out)
	t.out = int64(k)
	// What the client has sent early goes up first.
	early := x.in[x.next:x.n]
	if err == nil && len(early) > 0 {
		up.WriteWithin(x.within(x.timeouts.IdleBody))
		_, err = up.Write(early)
		t.in = int64(len(early))
	}
	x.rec.Protocol = pool.Tunnel
	if string(x.hop.Upgrade) == websocket {
		x.rec.Protocol = pool.WebSocket
	}
	status := x.resp.Status
	x.free(*held)
	x.free(x.out)
	*held, x.out = nil, nil
	x.shrink()
	if err == nil {
		p := x.proxy
		p.mu.Lock()
		p.tunnels[t] = struct{}{}
		t.closing.Store(p.ending)
		p.mu.Unlock()
		upwards := x.loop.Go(func() { t.move(up, x.conn, &t.in) })
		t.move(x.conn, up, &t.out)
		upwards.Wait()
		p.mu.Lock()
		delete(p.tunnels, t)
		p.mu.Unlock()
	}
	up.Close()
	x.unload()
	x.rec.Status, x.rec.BytesIn, x.rec.BytesOut = status, x.rec.BytesIn+t.in, x.rec.BytesOut+t.out
	x.done()
	if t.broken.Load() {
		x.conn.Abort()
	}
	return outcome{answered: true}
}

// halfOpen is how long one direction may be silent after the other one has ended.
const halfOpen = time.Minute

// move moves bytes from one side to the other until the end of the stream, an error, or too long a silence on both.
func (t *tunnel) move(to, from netloop.Conn, moved *int64) {
	for {
		idle := t.idle
		if t.ended.Load() > 0 {
			idle = min(idle, halfOpen)
		}
		from.SetReadDeadline(t.began.Add(time.Duration(t.last.Load()) + idle))
		if t.closing.Load() {
			from.SetReadDeadline(longAgo)
		}
		n, err := t.step(to, from, idle)
		*moved += int64(n)
		switch {
		case n > 0:
			t.last.Store(int64(t.loop.Now().Sub(t.began)))
		case err == io.EOF:
			t.ended.Add(1)
			to.WriteWithin(halfOpen) // for what TLS has to say
			if to.CloseWrite() != nil {
				t.end(true)
			}
			return
		case isTimeout(err) && !t.closing.Load() && t.loop.Now().Sub(t.began)-time.Duration(t.last.Load()) < idle:
			// The other direction was not silent.
		case isTimeout(err):
			t.ended.Add(1)
			to.WriteWithin(halfOpen)
			to.CloseWrite()
			t.end(false)
			return
		case err != nil:
			t.end(!errors.Is(err, net.ErrClosed))
			return
		}
	}
}

// step moves what there is.
func (t *tunnel) step(to, from netloop.Conn, idle time.Duration) (int, error) {
	if err := from.Wait(nil); err != nil {
		return 0, err
	}
	b := t.loop.Buffer()
	defer t.loop.Free(b)
	n, err := from.Read(b)
	if n > 0 {
		to.WriteWithin(idle)
		_, err = to.Write(b[:n])
		if isTimeout(err) {
			err = io.ErrShortWrite // a reader that takes nothing: the tunnel is at its end
		}
	}
	if err == nil {
		return n, nil
	}
	return 0, err
}

// end ends both directions. A broken one is reset, so that neither side takes what it got for all there was.
func (t *tunnel) end(broken bool) {
	if broken = broken && !t.closing.Load(); broken {
		t.broken.Store(true)
		t.up.Abort()
	}
	t.closing.Store(true)
	t.client.SetReadDeadline(longAgo)
	t.up.SetReadDeadline(longAgo)
}

// EndTunnels ends all tunnels, those too that are yet to begin: both sides read the end of the stream.
func (p *Proxy) EndTunnels() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending = true
	for t := range p.tunnels {
		t.loop.Post(func() { t.end(false) })
	}
}

// Tunnels is the number of open tunnels.
func (p *Proxy) Tunnels() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.tunnels)
}
