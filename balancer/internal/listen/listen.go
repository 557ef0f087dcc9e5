// Package listen holds the listening sockets and the life of the data plane: open, serve, drain, stop.
//
// Sockets are bound early, so that a busy port is known before anything else starts and early clients wait in the kernel's
// queue instead of being refused; they are served once there is something to serve. Stopping takes no request's answer
// away: accepting ends, idle connections are closed, exchanges in flight finish, at most until the deadline.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/rota-lb/rota/balancer/internal/netloop"
)

// ErrDeadline says that exchanges were still in flight when the grace period ended.
var ErrDeadline = errors.New("drain deadline passed with exchanges in flight")

// Bind binds a TCP address. The error of a busy port names the remedy.
func Bind(address string) (net.Listener, error) {
	ln, err := net.Listen("tcp", address)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("cannot listen on %s: the address is in use by another process; stop it (ss -ltnp shows it) or choose another address", address)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("cannot listen on %s: permission denied; ports below 1024 need CAP_NET_BIND_SERVICE", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("cannot listen on %s: this machine has no such address", address)
	}
	return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
}

// Server serves listeners on an engine.
type Server struct {
	Engine    netloop.Engine
	Listeners []net.Listener // taken over by Run
	Handler   netloop.Handler
	// Open is waited for before connections are served; nil is at once.
	Open <-chan struct{}
	// Draining is called when accepting ends, before idle connections are closed; nil is nothing.
	Draining func()
	// DrainDelay is how long to go on accepting after ctx has ended; Grace how long exchanges may take after that.
	DrainDelay, Grace time.Duration
}

// Run serves until ctx ends, then drains. It returns nil when everything finished in time, else ErrDeadline. A second
// signal, hurry, ends the draining at once; nil never does.
func (s *Server) Run(ctx context.Context, hurry <-chan struct{}) error {
	engineCtx, stopEngine := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Engine.Run(engineCtx) }()
	defer func() {
		stopEngine()
		<-ended
	}()
	if s.Open != nil {
		select {
		case <-s.Open:
		case <-ctx.Done():
			closeAll(s.Listeners)
			return nil
		}
	}
	var serving []netloop.Listener
	for i, ln := range s.Listeners {
		l, err := s.Engine.Listen(ln, s.Handler)
		if err != nil {
			closeAll(s.Listeners[i+1:])
			return err
		}
		serving = append(serving, l)
	}
	<-ctx.Done()
	wait(s.DrainDelay, hurry)
	if s.Draining != nil {
		s.Draining()
	}
	for _, l := range serving {
		l.Close()
	}
	s.Engine.CloseIdle()
	return s.drain(hurry)
}

// drain waits until no client connection is being served.
func (s *Server) drain(hurry <-chan struct{}) error {
	deadline := time.NewTimer(s.Grace)
	defer deadline.Stop()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		if open, _ := s.Engine.Connections(); open == 0 {
			return nil
		}
		select {
		case <-look.C:
		case <-deadline.C:
			return ErrDeadline
		case <-hurry:
			return ErrDeadline
		}
	}
}

func wait(d time.Duration, hurry <-chan struct{}) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-hurry:
	}
}

func closeAll(list []net.Listener) {
	for _, ln := range list {
		ln.Close()
	}
}
