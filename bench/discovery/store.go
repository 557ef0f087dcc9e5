//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/rota-lb/rota/bench/internal/rig"
)

// prefix is where instances are kept.
const prefix = "/rota/services/"

// store is an etcd of one member, on disk, with a client that talks to it as any other would.
type store struct {
	*clientv3.Client
	server   *embed.Etcd
	endpoint string
	dir      string
}

func startStore(ctx context.Context, parent string) (*store, error) {
	dir, err := os.MkdirTemp(parent, "etcd-")
	if err != nil {
		return nil, err
	}
	s := &store{dir: dir}
	if err := s.start(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *store) start(ctx context.Context) error {
	var urls [2][]url.URL
	for i := range urls {
		address, err := rig.Address()
		if err != nil {
			return err
		}
		urls[i] = []url.URL{{Scheme: "http", Host: address}}
	}
	c := embed.NewConfig()
	c.Dir = s.dir
	c.ListenClientUrls, c.AdvertiseClientUrls = urls[0], urls[0]
	c.ListenPeerUrls, c.AdvertisePeerUrls = urls[1], urls[1]
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	var err error
	if s.server, err = embed.StartEtcd(c); err != nil {
		return fmt.Errorf("starting etcd: %w", err)
	}
	select {
	case <-s.server.Server.ReadyNotify():
	case err := <-s.server.Err():
		return fmt.Errorf("etcd: %w", err)
	case <-time.After(30 * time.Second):
		return errors.New("etcd is not ready after 30s")
	case <-ctx.Done():
		return ctx.Err()
	}
	s.endpoint = urls[0][0].Host
	s.Client, err = clientv3.New(clientv3.Config{
		Endpoints: []string{s.endpoint}, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
	})
	return err
}

func (s *store) close() {
	if s.Client != nil {
		s.Client.Close()
	}
	if s.server != nil {
		s.server.Close()
	}
	os.RemoveAll(s.dir)
}

func (s *store) put(ctx context.Context, service, id, value string) error {
	_, err := s.Put(ctx, prefix+service+"/"+id, value)
	return err
}

func (s *store) remove(ctx context.Context, service, id string) error {
	_, err := s.Delete(ctx, prefix+service+"/"+id)
	return err
}

// load puts the instances from up to below to of the fleet, as many at a time as a transaction takes.
func (s *store) load(ctx context.Context, from, to int) error {
	const most = 128
	for from < to {
		next := min(from+most, to)
		ops := make([]clientv3.Op, 0, most)
		for i := from; i < next; i++ {
			ops = append(ops, clientv3.OpPut(fleetKey(i), fleetValue(i, 100)))
		}
		if _, err := s.Txn(ctx).Then(ops...).Commit(); err != nil {
			return err
		}
		from = next
	}
	return nil
}

// fleetKey and fleetValue are instance i of the fleet. Nobody ever dials it.
func fleetKey(i int) string {
	return fmt.Sprintf("%sfleet-%d/i%d", prefix, i/perService, i%perService)
}

func fleetValue(i, weight int) string {
	return fmt.Sprintf(`{"address":"127.%d.%d.%d:10000","weight":%d}`, 100+i>>16, i>>8&255, i&255, weight)
}

// watch lists and then watches all instances and throws every event away: what that costs is the price of etcd's
// client, paid by whoever watches.
func watch(ctx context.Context, endpoint string) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer c.Close()
	list, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	for r := range c.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(list.Header.Revision+1)) {
		if err := r.Err(); err != nil {
			return err
		}
	}
	return ctx.Err()
}
