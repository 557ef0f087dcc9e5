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

// list visits every key below the prefixes in order, as of one revision, and returns the header of the first page. If that
// revision is compacted on the way, it begins again: again is called before each beginning.
func (c *Client) list(ctx context.Context, prefixes []string, keysOnly bool, again func(), visit func(*mvccpb.KeyValue)) (*pb.ResponseHeader, error) {
	for {
		again()
		header, err := c.listOnce(ctx, prefixes, keysOnly, visit)
		if !errors.Is(err, rpctypes.ErrCompacted) {
			return header, err
		}
	}
}

func (c *Client) listOnce(ctx context.Context, prefixes []string, keysOnly bool, visit func(*mvccpb.KeyValue)) (*pb.ResponseHeader, error) {
	opts := []clientv3.OpOption{clientv3.WithLimit(int64(c.opts.PageSize))}
	if keysOnly {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	var first *pb.ResponseHeader
	for _, prefix := range prefixes {
		end := clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix))
		for from, more := prefix, true; more; {
			resp, err := c.page(ctx, from, append(opts, end))
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
			if more = resp.More && len(resp.Kvs) > 0; more {
				from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
			}
		}
	}
	return first, nil
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
		in, err := c.decode(&ch, kv.Value)
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

func (c *Client) decode(ch *registry.Change, value []byte) (registry.Instance, error) {
	if f := c.foreign(ch.Key); f != nil {
		return f.Decode(ch.Key, value)
	}
	return codec.Decode(ch.Service, ch.ID, value)
}

// deletion reads a key that was deleted.
func (c *Client) deletion(kv *mvccpb.KeyValue) registry.Change {
	ch := c.changeOf(kv)
	ch.Deleted = true
	return ch
}

func (c *Client) changeOf(kv *mvccpb.KeyValue) registry.Change {
	key := string(kv.Key)
	k, err := c.parse(key)
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

func (c *Client) parse(key string) (registry.Key, error) {
	f := c.foreign(key)
	if f == nil {
		return c.keys.Parse(key)
	}
	service, id, err := f.Key(key)
	if err != nil {
		return registry.Key{Kind: registry.KindUnknown}, err
	}
	return registry.Key{Kind: registry.KindInstance, Service: service, ID: id}, nil
}
