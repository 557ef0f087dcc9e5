package netloop

import (
	"testing"
	"time"
)

// Pipes take descriptors, too: where there are no more of them for sockets, bodies are copied.
func TestPipesCount(t *testing.T) {
	r := start(t, Options{Engine: Loops, Loops: 1}, func(c Conn) time.Duration {
		var b [1]byte
		c.Read(b[:])
		l := c.Loop().(*loop)
		open := l.engine.sockets.Load()
		l.engine.Sockets = int(open) + 1
		if l.pipe() != nil {
			t.Error("a pipe is made with one descriptor left")
		}
		l.engine.Sockets++
		p := l.pipe()
		if p == nil || l.engine.sockets.Load() != open+2 || !l.engine.full(0) {
			t.Errorf("%d descriptors are counted, not %d", l.engine.sockets.Load(), open+2)
		}
		l.closePipe(p)
		if l.engine.sockets.Load() != open {
			t.Errorf("%d descriptors are left, not %d", l.engine.sockets.Load(), open)
		}
		return 0
	})
	c := r.dial()
	c.Write([]byte("x"))
	expectClosed(t, c)
	r.stop()
}
