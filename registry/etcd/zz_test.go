package registryetcd

import (
	"fmt"
	"os"
	"testing"
	"time"
	"runtime/pprof"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/registrytest"
)

func TestZZ(t *testing.T) {
	s := etcdtest.Start(t)
	relayed := os.Getenv("RELAY") != ""
	for i := range 300 {
		t.Run("x", func(t *testing.T) {
			addr := s.Members[0].ClientAddr
			if relayed {
				addr = etcdtest.NewRelay(t, addr).Addr()
			}
			c := dial(t, []string{addr})
			w := registrytest.Watch(t, c, registry.Scope{Instances: true})
			key := registry.Keys{}.Instance("s", fmt.Sprint(i))
			w.WaitReset(t)
			put(t, s, key, "10.0.0.7:1")
			tm := time.AfterFunc(5*time.Second, func() {
				fmt.Println("STALL", i, c.etcd.ActiveConnection().GetState())
				f, _ := os.Create("/tmp/stall.txt")
				pprof.Lookup("goroutine").WriteTo(f, 2)
				f.Close()
			})
			w.Wait(t, "x", func(v map[string]registry.Change) bool { _, ok := v[key]; return ok })
			tm.Stop()
		})
	}
}
