package registryetcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// errLeaseDeadline says that the lease could not be renewed in its lifetime: etcd was away or the process stopped.
// etcd may have kept it (a new leader gives every lease its full time again), but we can no longer know.
var errLeaseDeadline = errors.New("lease not renewed in time")

// lease is one lease as long as it is believed to live.
type lease struct {
	id  clientv3.LeaseID
	ttl time.Duration
	// ctx ends when the lease is lost; its cause says why.
	ctx  context.Context
	lose context.CancelCauseFunc
}

// keeper holds the process's lease: it grants one, renews it, and grants another when it is lost, until close.
type keeper struct {
	c    *Client
	once sync.Once // starts run

	mu      sync.Mutex // protects what follows
	current *lease     // nil while there is none
	err     error      // why there is none
	changed chan struct{}
	stop    context.CancelFunc
	done    chan struct{} // closed when run has returned; nil before it started
}

func (k *keeper) init(c *Client) {
	k.c = c
	k.changed = make(chan struct{})
}

// start begins to hold a lease. It is called with every registration, as watchers need none.
func (k *keeper) start() {
	k.once.Do(func() {
		ctx, stop := context.WithCancel(k.c.ctx)
		done := make(chan struct{})
		k.mu.Lock()
		k.stop, k.done = stop, done
		k.mu.Unlock()
		if !k.c.goroutine(func() { defer close(done); k.run(ctx) }) {
			close(done)
		}
	})
}

// get returns the lease, a channel that is closed when the answer changes, and why there is no lease.
func (k *keeper) get() (*lease, <-chan struct{}, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current, k.changed, k.err
}

// await returns a lease that is believed to live, or the error of ctx. failed is told why there is none.
func (k *keeper) await(ctx context.Context, failed func(error)) (*lease, error) {
	for {
		l, changed, err := k.get()
		if l != nil && l.ctx.Err() == nil {
			return l, nil
		}
		if err != nil {
			failed(err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (k *keeper) set(l *lease, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current, k.err = l, err
	close(k.changed)
	k.changed = make(chan struct{})
}

func (k *keeper) run(ctx context.Context) {
	log := k.c.log
	retry := k.c.retry()
	failing := false
	for sleep(ctx, retry.next()) {
		l, granted, err := k.grant(ctx)
		if ctx.Err() != nil {
			if l != nil {
				k.set(l, nil) // for close to revoke
			}
			return
		}
		if err != nil {
			err = k.c.explain(err)
			if !failing {
				log.Warn("no lease", zap.Error(err))
			}
			failing = true
			k.set(nil, err)
			continue
		}
		log.Info("lease granted", zap.String("lease", leaseName(l.id)), zap.Duration("ttl", l.ttl))
		failing = false
		k.c.stats.leases.Add(1)
		k.set(l, nil)

		k.keep(l, granted)
		if ctx.Err() != nil {
			return // close revokes it
		}
		cause := context.Cause(l.ctx)
		log.Warn("lease lost", zap.String("lease", leaseName(l.id)), zap.Error(cause))
		k.c.stats.leasesLost.Add(1)
		k.set(nil, fmt.Errorf("lease %s lost: %w", leaseName(l.id), cause))
		if time.Since(granted) > atRest {
			retry.reset()
		}
	}
}

func leaseName(id clientv3.LeaseID) string { return fmt.Sprintf("%016x", int64(id)) }

// grant returns a lease and the time from which its life counts at the latest.
func (k *keeper) grant(ctx context.Context) (*lease, time.Time, error) {
	seconds := int64((k.c.opts.TTL + time.Second - 1) / time.Second)
	cctx, cancel := context.WithTimeout(ctx, k.c.callTimeout())
	defer cancel()
	sent := time.Now()
	resp, err := k.c.etcd.Grant(cctx, seconds)
	if err != nil {
		return nil, sent, err
	}
	l := &lease{id: resp.ID, ttl: time.Duration(resp.TTL) * time.Second}
	l.ctx, l.lose = context.WithCancelCause(ctx)
	return l, sent, nil
}

// keep renews the lease until it is lost, which it says through l.lose.
func (k *keeper) keep(l *lease, granted time.Time) {
	beat := heartbeat{c: k.c}
	defer beat.close()
	retry := k.c.retry()
	life := l.ttl
	deadline, next := granted.Add(life), granted.Add(life/3)
	for {
		sleep(l.ctx, time.Until(next))
		now := time.Now()
		switch {
		case l.ctx.Err() != nil:
			return
		case !now.Before(deadline):
			l.lose(errLeaseDeadline)
			return
		}
		ctx, cancel := context.WithDeadline(l.ctx, earlier(deadline, now.Add(life/3)))
		ttl, err := beat.renew(ctx, l.id)
		cancel()
		switch {
		case l.ctx.Err() != nil:
			return
		case err != nil:
			retry.n = max(retry.n, 1)
			next = earlier(deadline, time.Now().Add(retry.next()))
		case ttl <= 0:
			l.lose(rpctypes.ErrLeaseNotFound)
			return
		default:
			retry.reset()
			k.c.stats.renewals.Add(1)
			// Counted from before the request: etcd's own count begins later.
			life = time.Duration(ttl) * time.Second
			deadline, next = now.Add(life), now.Add(life/3)
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// close ends run and revokes the lease, if there is one.
func (k *keeper) close(ctx context.Context) error {
	k.mu.Lock()
	stop, done := k.stop, k.done
	k.mu.Unlock()
	if done == nil {
		return nil
	}
	stop()
	<-done
	l, _, _ := k.get()
	if l == nil {
		return nil
	}
	_, err := k.c.etcd.Revoke(ctx, l.id)
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("revoke lease %s: %w", leaseName(l.id), k.c.explain(err))
	}
	return nil
}

// heartbeat renews over one stream as long as that works: opening one costs etcd a password check.
type heartbeat struct {
	c      *Client
	stream pb.Lease_LeaseKeepAliveClient
	cancel context.CancelFunc
}

// renew sends one request, waits for its answer, and returns the seconds that the lease has left. After an error the
// next call opens another stream, to another endpoint if there is one.
func (h *heartbeat) renew(ctx context.Context, id clientv3.LeaseID) (ttl int64, err error) {
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	open := h.stream == nil
	var sctx context.Context
	if open {
		sctx, h.cancel = context.WithCancel(clientv3.WithRequireLeader(h.c.ctx))
	}
	defer context.AfterFunc(ctx, h.cancel)() // a stream has no deadline per answer
	if open {
		if h.stream, err = pb.NewLeaseClient(h.c.etcd.ActiveConnection()).LeaseKeepAlive(sctx); err != nil {
			return 0, err
		}
	}
	if err := h.stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
		return 0, err
	}
	resp, err := h.stream.Recv()
	if err != nil {
		return 0, err
	}
	return resp.TTL, nil
}

func (h *heartbeat) close() {
	if h.cancel != nil {
		h.cancel()
	}
	h.stream, h.cancel = nil, nil
}
