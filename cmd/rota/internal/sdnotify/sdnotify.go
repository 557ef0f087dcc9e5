// Package sdnotify tells systemd how the daemon stands: sd_notify(3), over the socket that NOTIFY_SOCKET names.
//
// Where nobody listens nothing happens: a nil [Notifier] is silent, and what cannot be delivered is dropped, since no state of the
// daemon depends on it.
package sdnotify

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Notifier talks to a service manager. It may be used concurrently.
type Notifier struct {
	socket   string
	watchdog time.Duration
}

// FromEnv returns a notifier for the service manager that has started this process, or the one it succeeds; nil without one.
func FromEnv() *Notifier {
	n := &Notifier{socket: os.Getenv("NOTIFY_SOCKET")}
	if n.socket == "" {
		return nil
	}
	if usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 {
		n.watchdog = time.Duration(usec) * time.Microsecond
	}
	return n
}

// Ready says that this process serves, and that it is the main one: after a hand-over it is another one.
func (n *Notifier) Ready() { n.send("READY=1", fmt.Sprintf("MAINPID=%d", os.Getpid())) }

// Reloading says that the configuration is being read; [Notifier.Ready] ends it.
func (n *Notifier) Reloading() {
	now, err := monotonic()
	if err != nil {
		return
	}
	n.send("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Microseconds()))
}

// Stopping says that the process is about to end.
func (n *Notifier) Stopping() { n.send("STOPPING=1") }

// Status says in words how the daemon stands.
func (n *Notifier) Status(text string) {
	n.send("STATUS=" + strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text))
}

// Watch keeps the watchdog quiet as long as alive says nothing is wrong, until ctx ends. It returns at once when there is none. alive
// is asked twice in every period, and has that long to answer.
func (n *Notifier) Watch(ctx context.Context, alive func(context.Context) error) {
	if n == nil || n.watchdog <= 0 {
		return
	}
	tick := time.NewTicker(n.watchdog / 2)
	defer tick.Stop()
	for {
		short, cancel := context.WithTimeout(ctx, n.watchdog/2)
		if err := alive(short); err == nil {
			n.send("WATCHDOG=1")
		}
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// send delivers lines in one message.
func (n *Notifier) send(lines ...string) {
	if n == nil {
		return
	}
	address := n.socket
	if strings.HasPrefix(address, "@") {
		address = "\x00" + address[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.SetWriteDeadline(time.Now().Add(time.Second))
	c.Write([]byte(strings.Join(lines, "\n")))
}
