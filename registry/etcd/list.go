package registryetcd

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/codec"
)

// list visits every key below prefix in order, as of one revision, and returns the header of the first page. If that
// revision is compacted on the way, it begins again: again is called before each beginning.
func (c *Client) list(ctx context.Context, prefix string, keysOnly bool, again func(), visit func(*mvccpb.KeyValue)) (*pb.ResponseHeader, error) {
	for {
		again()
		header, err := c.listOnce(ctx, prefix, keysOnly, visit)
		if !errors.Is(err, rpctypes.ErrCompacted) {
			return header, err
		}
	}
}

func (c *Client) listOnce(ctx context.Context, prefix string, keysOnly bool, visit func(*mvccpb.KeyValue)) (*pb.ResponseHeader, error) {
	opts := []clientv3.OpOption{
		clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)),
		clientv3.WithLimit(int64(c.opts.PageSize)),
	}
	if keysOnly {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	var first *pb.ResponseHeader
	from := prefix
	for {
		resp, err := c.page(ctx, from, opts)
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = resp.Header
			opts = append(opts, clientv3.WithRev(first.Revision))
		}
		for _, kv := range resp.Kvs {
			visit(kv)
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return first, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

func (c *Client) page(ctx context.Context, from string, opts []clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, c.callTimeout())
	defer cancel()
	return c.etcd.Get(ctx, from, opts...)
}

// change reads a key that stands in the store.
func (c *Client) change(kv *mvccpb.KeyValue) registry.Change {
	ch := c.changeOf(kv)
	ch.CreateRevision, ch.Lease = kv.CreateRevision, kv.Lease
	switch {
	case ch.Err != nil:
	case ch.Kind == registry.KindInstance:
		in, err := codec.Decode(ch.Service, ch.ID, kv.Value)
		if err == nil {
			ch.Service = in.Service // shared with the other instances of the service
			ch.Instance = &in
			return ch
		}
		ch.Err = err
	case len(kv.Value) > registry.MaxValueBytes:
		ch.Err = tooLong(len(kv.Value))
	}
	ch.Value = kv.Value
	return ch
}

// deletion reads a key that was deleted.
func (c *Client) deletion(kv *mvccpb.KeyValue) registry.Change {
	ch := c.changeOf(kv)
	ch.Deleted = true
	return ch
}

func (c *Client) changeOf(kv *mvccpb.KeyValue) registry.Change {
	key := string(kv.Key)
	k, err := c.keys.Parse(key)
	return registry.Change{
		Kind:        k.Kind,
		Key:         key,
		Service:     k.Service,
		ID:          k.ID,
		Balancer:    k.Balancer,
		Err:         err,
		ModRevision: kv.ModRevision,
	}
}
