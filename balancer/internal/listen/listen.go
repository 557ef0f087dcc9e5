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

// Listener is a bound socket with what serves it.
type Listener struct {
	net.Listener
	Handler   netloop.Handler
	Admission netloop.Admission // nil admits all
}

// Server serves listeners on an engine.
type Server struct {
	Engine    netloop.Engine
	Listeners []Listener // taken over by Run
	// Open is waited for before connections are served; nil is at once.
	Open <-chan struct{}
	// Serving is called when connections are served; nil is nothing.
	Serving func()
	// Draining is called when accepting ends, before idle connections are closed; nil is nothing.
	Draining func()
	// DrainDelay is how long to go on accepting after ctx has ended; Grace how long exchanges may take after that.
	DrainDelay, Grace time.Duration
	// Succeeded ends the delay: somebody else accepts. Nil never does.
	Succeeded <-chan struct{}
	// Closed is called when the listeners are closed; nil is nothing. Ending is called when a tenth of Grace is left, at
	// most a second: for what does not end by itself.
	Closed, Ending func()
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
		l, err := s.Engine.Listen(ln.Listener, ln.Handler, ln.Admission)
		if err != nil {
			closeAll(s.Listeners[i+1:])
			return err
		}
		serving = append(serving, l)
	}
	if s.Serving != nil {
		s.Serving()
	}
	<-ctx.Done()
	s.delay(hurry)
	if s.Draining != nil {
		s.Draining()
	}
	for _, l := range serving {
		l.Close()
	}
	if s.Closed != nil {
		s.Closed()
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
	ending := time.NewTimer(s.Grace - min(s.Grace/10, time.Second))
	defer ending.Stop()
	for {
		if open, _ := s.Engine.Connections(); open == 0 {
			return nil
		}
		select {
		case <-look.C:
		case <-ending.C:
			if s.Ending != nil {
				s.Ending()
			}
		case <-deadline.C:
			return ErrDeadline
		case <-hurry:
			return ErrDeadline
		}
	}
}

// delay goes on accepting for a while, so that whoever sends traffic here can see that this one is leaving.
func (s *Server) delay(hurry <-chan struct{}) {
	if s.DrainDelay <= 0 {
		return
	}
	t := time.NewTimer(s.DrainDelay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.Succeeded:
	case <-hurry:
	}
}

func closeAll(list []Listener) {
	for _, ln := range list {
		ln.Close()
	}
}
