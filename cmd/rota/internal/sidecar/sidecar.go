// Package sidecar keeps a program registered that knows nothing of registries: it starts the program, asks it whether
// it is well, and says so in the registry.
//
// The program comes first. It is never stopped, delayed or restarted because the store is away; what the store should
// know is said when it is back. The order at the end is always: balancers stop sending, then the program is told to
// stop, then the record goes.
package sidecar

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/registry"
)

// Options say what is run and how it is registered. Registry and Instance are required.
type Options struct {
	Registry registry.Registry
	// Instance is the record, complete but for what [registry.Prepare] fills in.
	Instance registry.Instance
	// Command is the program with its arguments. Empty: it is somebody else's to start and stop.
	Command []string
	// Env is added to the environment of the program.
	Env []string
	// Check is how the program is asked. It is registered at its first pass.
	Check Check
	// DrainTimeout bounds the wait for balancers at the end. Zero or less waits for none.
	DrainTimeout time.Duration
	// Grace is how long the program may take to stop before it is killed. Zero or less kills it at once.
	Grace time.Duration
	// Logger takes a line for each step. nil means silence.
	Logger *zap.Logger
}

// storeTimeout bounds each of the writes at the end, so that a store that is away does not hold it up.
const storeTimeout = 2 * time.Second

// sameSignal is how soon after the first signal another one counts as the same: a process and its group are often
// signalled together.
const sameSignal = 250 * time.Millisecond

// Run starts the program, keeps it registered as long as its check passes, and returns when it has ended and the record
// is gone: with the program's exit status, or 128+n when signal n ended it. Without a program it returns 0 after a signal.
//
// TERM, INT and QUIT put the record draining, wait until balancers have seen it, and are then passed on to the program's
// process group, which is killed when Grace is over. A second one cuts the draining short, a third one kills. Other
// signals are passed on at once, to the program alone: to its children, such as gunicorn's workers, they mean something
// else. When the program ends by itself its record goes at once, and what is left of its group is told to stop.
//
// An error comes with a status too: the program could not be started, the record is invalid, or a newer incarnation took
// the id ([registry.ErrSuperseded]), upon which the program is stopped as if by TERM.
//
// Run reaps whoever of its descendants has lost its parent, as the first process of a container must, and on Linux anywhere.
// It waits for every child of this process, so nobody else may start any.
func Run(o Options) (status int, err error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	// The incarnation is that of this process, not of its first pass: who started later is newer, even if it was ready
	// sooner. When it registered is still to be seen.
	in, err := registry.Prepare(o.Instance, time.Now())
	if err != nil {
		return 1, err
	}
	in.RegisteredAt = time.Time{}
	s := &sidecar{Options: o, in: in}
	s.log = o.Logger.With(zap.String("service", in.Service), zap.String("id", in.ID), zap.String("address", in.Address))

	signals, stop := notify()
	defer stop()
	if len(o.Command) > 0 {
		if s.child, status, err = start(o.Command, o.Env); err != nil {
			return status, err
		}
		s.log.Info("started", zap.Strings("command", o.Command), zap.Int("pid", s.child.pid))
	}
	return s.attend(signals)
}

// sidecar is one Run.
type sidecar struct {
	Options
	log   *zap.Logger
	in    registry.Instance
	child *child                // nil: none of ours
	reg   registry.Registration // nil until the first pass
	err   error                 // why the end is not as the program's status says
}

// attend is the one loop that decides. A case is switched off by a nil channel: what can still happen is what is not nil.
func (s *sidecar) attend(signals <-chan os.Signal) (int, error) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	verdicts := s.Check.watch(ctx, s.log) // nil when draining has begun
	var (
		exited  <-chan int       // the program has ended
		drained <-chan struct{}  // it may be told to stop; nil before draining and after
		hurry   = func() {}      // cuts the draining short
		grace   <-chan time.Time // it had its time to stop
		told    bool             // it was told to stop
		because os.Signal        // what it is told to stop with
		since   time.Time        // when that was last said
	)
	if s.child != nil {
		exited = s.child.exited
	}
	end := func(sig os.Signal) {
		verdicts, because, since = nil, sig, time.Now()
		drained, hurry = s.drain()
	}
	for {
		var changed <-chan struct{}
		if s.reg != nil && verdicts != nil {
			changed = s.reg.Changed()
			if s.reg.State() == registry.Superseded {
				s.err = fmt.Errorf("%s/%s: %w; if both are to run, give each an --id of its own", s.in.Service, s.in.ID, registry.ErrSuperseded)
				s.log.Error("stopping", zap.Error(s.err))
				end(terminate)
				continue
			}
		}
		select {
		case <-changed:
		case err := <-verdicts:
			if err := s.heed(err); err != nil {
				s.err = err
				end(terminate)
			}

		case sig := <-signals:
			switch {
			case !stops(sig):
				if s.child != nil {
					s.child.signal(sig)
				}
			case verdicts != nil:
				s.log.Info("draining; once more to skip that", zap.Stringer("signal", sig))
				end(sig)
			case time.Since(since) < sameSignal:
			case drained != nil:
				because, since = sig, time.Now()
				hurry()
			case s.child != nil:
				s.log.Warn("killing the program", zap.Stringer("signal", sig))
				s.child.kill()
			}

		case <-drained:
			drained = nil
			if s.child == nil {
				return s.leave(0)
			}
			s.log.Info("stopping the program", zap.Stringer("signal", because), zap.Duration("grace", s.Grace))
			s.child.stop(because)
			told, grace = true, time.After(s.Grace)
		case <-grace:
			s.log.Warn("the program did not stop in time: killing it", zap.Duration("grace", s.Grace))
			s.child.kill()
		case status := <-exited:
			hurry()
			s.log.Info("the program has ended", zap.Int("status", status))
			status, err := s.leave(status)
			if !told {
				s.child.stop(terminate) // what is left of its group
				grace = time.After(s.Grace)
			}
			s.child.bury(grace, signals)
			return status, err
		}
	}
}

// heed acts on a change of what the check says. The store gets to know it as soon as possible; nobody waits for that.
func (s *sidecar) heed(failure error) (err error) {
	switch {
	case s.reg == nil:
		s.log.Info("the check passes: registering")
		s.reg, err = s.Registry.Register(context.Background(), s.in)
	case failure == nil:
		s.log.Info("the check passes again")
		s.say(registry.Ready)
	default:
		s.log.Warn("the check fails: no traffic until it passes again", zap.Error(failure))
		s.say(registry.Starting)
	}
	return err
}

// say changes the state without waiting for the store.
func (s *sidecar) say(state registry.State) {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	s.reg.Update(now, func(in *registry.Instance) { in.State = state })
}

// drain begins to drain and returns a channel that is closed when the program may be told to stop, and what cuts it short.
func (s *sidecar) drain() (<-chan struct{}, context.CancelFunc) {
	done := make(chan struct{})
	ctx, hurry := context.WithTimeout(context.Background(), s.DrainTimeout)
	go func() {
		defer close(done)
		defer hurry()
		if s.reg == nil || s.err != nil {
			return
		}
		if err := drain(ctx, s.reg); err != nil {
			s.log.Warn("stopping without every balancer's acknowledgement", zap.Error(err))
		}
	}()
	return done, hurry
}

// drain puts the state draining, waits until every balancer has acknowledged that, and for those who do not acknowledge
// at least DefaultSettle. A store that does not take the state is not waited for long: nobody gets to know it from there.
func drain(ctx context.Context, reg registry.Registration) error {
	short, cancel := context.WithTimeout(ctx, storeTimeout)
	err := reg.Update(short, func(in *registry.Instance) { in.State, in.DrainAck = registry.Draining, true })
	cancel()
	if err != nil {
		return err
	}
	settled := time.NewTimer(registry.DefaultSettle)
	defer settled.Stop()
	err = reg.Drain(ctx)
	select {
	case <-settled.C:
	case <-ctx.Done():
	}
	return err
}

// leave takes the record away and returns what Run returns.
func (s *sidecar) leave(status int) (int, error) {
	if s.err != nil {
		status = 1
	}
	if s.reg == nil {
		return status, s.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	if err := s.reg.Leave(ctx); err != nil {
		s.log.Warn("the record was not deleted; its lease will remove it", zap.Error(err))
	}
	return status, s.err
}
