package registryetcd

import (
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/registrytest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	conform(t)
}

// Foreign prefixes read beside ours change nothing of the contract.
func TestConformanceBesideForeign(t *testing.T) {
	t.Parallel()
	conform(t, func(o *Options) { o.Foreign = foreign() })
}

func conform(t *testing.T, change ...func(*Options)) {
	s := etcdtest.Start(t)
	var relays sync.Map // by client
	relay := func(r registry.Registry) *etcdtest.Relay {
		v, _ := relays.Load(r)
		return v.(*etcdtest.Relay)
	}
	registrytest.Run(t, registrytest.Harness{
		NewClient: func(t testing.TB) registry.Registry {
			r := etcdtest.NewRelay(t, s.Members[0].ClientAddr)
			c := dial(t, []string{r.Addr()}, change...)
			relays.Store(registry.Registry(c), r)
			return c
		},
		Put: func(t testing.TB, key string, value []byte) { put(t, s, key, string(value)) },
		PutAll: func(t testing.TB, values map[string][]byte) {
			var ops []clientv3.Op
			for key, value := range values {
				ops = append(ops, clientv3.OpPut(key, string(value)))
			}
			if _, err := s.Client().Txn(limit(t)).Then(ops...).Commit(); err != nil {
				t.Fatal(err)
			}
		},
		Delete: func(t testing.TB, key string) {
			if _, err := s.Client().Delete(limit(t), key); err != nil {
				t.Fatal(err)
			}
		},
		RevokeLeases: func(t testing.TB, r registry.Registry) { revoke(t, s, r.(*Client)) },
		Disconnect:   func(_ testing.TB, r registry.Registry) { relay(r).Refuse() },
		Reconnect:    func(_ testing.TB, r registry.Registry) { relay(r).Accept() },
		Deadline:     deadline,
	})
}
