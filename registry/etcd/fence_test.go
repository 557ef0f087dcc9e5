package registryetcd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/rota-lb/rota/internal/etcdtest"
	"github.com/rota-lb/rota/registry"
)

// Two incarnations of one id, in two processes, in any order, with their leases and keys taken away at random: the
// newer one has the key in the end and the older one knows.
func TestIncarnationsConverge(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	old, young := dial(t, s.Endpoints()), dial(t, s.Endpoints())
	etcd := s.Client()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	var wg sync.WaitGroup
	for i := range rounds {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			id := fmt.Sprint(i)
			key := registry.Keys{}.Instance("fence", id)
			a, b := instance("fence", id), instance("fence", id)
			a.Incarnation, b.Incarnation = registry.NewIncarnation(), registry.NewIncarnation()
			a.Address, b.Address = "10.0.0.1:1", "10.0.0.2:2"
			pause := func() { <-time.After(time.Duration(rng.Int64N(int64(3 * time.Millisecond)))) }

			var ra, rb registry.Registration
			var err error
			both := []func(){
				func() { ra, err = old.Register(context.Background(), a) },
				func() { rb, err = young.Register(context.Background(), b) },
			}
			rng.Shuffle(2, func(i, j int) { both[i], both[j] = both[j], both[i] })
			for _, f := range both {
				if f(); err != nil {
					t.Error(err)
					return
				}
				pause()
			}
			for range rng.IntN(4) {
				switch rng.IntN(4) {
				case 0:
					_, err = etcd.Delete(limit(t), key)
				case 1:
					_, err = etcd.Put(limit(t), key, "nonsense")
				case 2:
					for _, c := range []*Client{old, young} {
						if l, _, _ := c.lease.get(); l != nil && rng.IntN(8) == 0 {
							etcd.Revoke(limit(t), l.id) // may be gone already
						}
					}
				case 3:
					ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
					ra.Update(ctx, func(in *registry.Instance) { in.Weight = new(rng.IntN(100)) }) // may be over already
					cancel()
				}
				if err != nil {
					t.Error(err)
				}
				pause()
			}
			waitState(t, ra, registry.Superseded)
			waitState(t, rb, registry.Registered)
			if rng.IntN(2) == 0 {
				if err := ra.Leave(limit(t)); err != nil { // touches nothing of its successor
					t.Errorf("Leave when superseded: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for i := range rounds {
		eventually(t, func() error {
			in, lease := stored(t, s, "fence", fmt.Sprint(i))
			l, _, _ := young.lease.get()
			if in == nil || in.Address != "10.0.0.2:2" || l == nil || lease != int64(l.id) {
				return fmt.Errorf("%d: etcd holds %+v under lease %x, want the newer incarnation's", i, in, lease)
			}
			return nil
		})
	}
}

func TestSameIncarnationTwice(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := dial(t, s.Endpoints())
	in := instance("same", "a")
	in.Incarnation = registry.NewIncarnation()
	first := register(t, c, in)
	in.Address = "10.0.0.8:1"
	second := register(t, c, in)
	waitState(t, first, registry.Superseded)
	waitStored(t, s, c, second)
	if err := first.Leave(limit(t)); err != nil {
		t.Fatal(err)
	}
	waitStored(t, s, c, second)
}
