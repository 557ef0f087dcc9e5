package memory_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/memory"
	"github.com/rota-lb/rota/registry/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	for name, keys := range map[string]registry.Keys{"default": {}, "prefix": {Prefix: "/org.example/rota_2"}} {
		t.Run(name, func(t *testing.T) {
			store := &memory.Store{Keys: keys}
			client := func(r registry.Registry) *memory.Client { return r.(*memory.Client) }
			registrytest.Run(t, registrytest.Harness{
				Keys:         keys,
				NewClient:    func(testing.TB) registry.Registry { return store.NewClient() },
				Put:          func(_ testing.TB, key string, value []byte) { store.Put(key, value) },
				PutAll:       func(_ testing.TB, values map[string][]byte) { store.PutAll(values) },
				Delete:       func(_ testing.TB, key string) { store.Delete(key) },
				RevokeLeases: func(_ testing.TB, r registry.Registry) { client(r).Expire() },
				Disconnect:   func(_ testing.TB, r registry.Registry) { client(r).Disconnect() },
				Reconnect:    func(_ testing.TB, r registry.Registry) { client(r).Reconnect() },
			})
		})
	}
}
