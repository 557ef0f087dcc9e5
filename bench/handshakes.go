//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

// handshakes opens connections one after the other on each of so many workers and asks once on each, for wrk can neither
// resume a session nor tell whether it did. Every handshake is of the kind that the case asks for, or the load fails. The
// key exchange is X25519: left to themselves, only some of the contestants would take a post-quantum one, which costs more.
func handshakes(ctx context.Context, address string, workers int, d time.Duration) (load, error) {
	config := &tls.Config{
		InsecureSkipVerify: true, // the rig has made the certificate
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   []tls.CurveID{tls.X25519},
	}
	if asked.resume {
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		if err := handshake(ctx, address, config, false); err != nil { // it brings the first ticket
			return load{}, err
		}
	}
	var (
		mu      sync.Mutex
		wg      sync.WaitGroup
		all     []time.Duration
		failure error
	)
	used, start := ownCPU(), time.Now()
	for range workers {
		wg.Go(func() {
			var mine []time.Duration
			var err error
			for err == nil && ctx.Err() == nil && time.Since(start) < d {
				began := time.Now()
				if err = handshake(ctx, address, config, asked.resume); err == nil {
					mine = append(mine, time.Since(began))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
			if failure == nil {
				failure = err
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	switch {
	case ctx.Err() != nil:
		return load{}, ctx.Err()
	case failure != nil:
		return load{}, failure
	case len(all) == 0:
		return load{}, errors.New("no request was answered")
	}
	slices.Sort(all)
	n := len(all)
	return load{
		requests: int64(n), bytes: int64(n * len(body)), perSec: float64(n) / took.Seconds(),
		p50: quantile(all, 0.5), p99: quantile(all, 0.99), cpu: ownCPU() - used,
	}, nil
}

// handshake opens one connection, asks on it, and closes it.
func handshake(ctx context.Context, address string, config *tls.Config, resume bool) error {
	d := net.Dialer{Timeout: 5 * time.Second}
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	c := tls.Client(raw, config)
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	if got := c.ConnectionState().DidResume; got != resume {
		return fmt.Errorf("session resumed: %t, not %t", got, resume)
	}
	return ask(c)
}

// quantile is the value below which that share of sorted ones is.
func quantile(sorted []time.Duration, share float64) time.Duration {
	return sorted[int(float64(len(sorted)-1)*share)]
}

// ownCPU is what this process has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
