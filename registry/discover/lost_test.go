package discover_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/discover"
	"github.com/rota-lb/rota/registry/memory"
)

// process registers instances under one lease.
func (r *rig) process(addresses map[string]string) *memory.Client {
	r.Helper()
	c := r.store.NewClient()
	for id, address := range addresses {
		if _, err := c.Register(context.Background(), registry.Instance{Service: "cart", ID: id, Address: address}); err != nil {
			r.Fatal(err)
		}
	}
	return c
}

// Losing a lease is not leaving: the instances are used on beside the others, until they refuse, or for too long.
func TestLostBesideOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, discover.Options{}).run()
		sick := r.process(map[string]string{"a": "10.0.0.7:1", "b": "10.0.0.7:2"})
		r.process(map[string]string{"c": "10.0.0.7:3"})
		r.members("a b c")
		sick.Disconnect()
		sick.Expire()
		synctest.Wait()
		r.members("a b c")
		f := &fake{refuse: map[string]bool{"1": true}}
		r.ask(f, 6)
		r.members("b c") // the other one is the end of it
		sick.Reconnect()
		synctest.Wait()
		r.members("a b c")
		sick.Disconnect()
		sick.Expire()
		time.Sleep(59 * time.Second)
		synctest.Wait()
		r.members("a b c")
		time.Sleep(3 * time.Second)
		synctest.Wait()
		r.members("c")
	})
}

// A record that is deleted while its lease lives was deleted by hand.
func TestRemovedByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, discover.Options{}).run()
		cut := r.process(map[string]string{"a": "10.0.0.7:1", "b": "10.0.0.7:2"})
		r.members("a b")
		cut.Disconnect() // so that it is not put again
		r.delete("a")
		synctest.Wait()
		r.members("b")
	})
}

// The first instance that comes back after all were lost does not get the requests of all.
func TestComingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, discover.Options{}).run()
		first := r.process(map[string]string{"a": "10.0.0.7:1"})
		second := r.process(map[string]string{"b": "10.0.0.7:2", "c": "10.0.0.7:3"})
		r.members("a b c")
		for _, p := range []*memory.Client{first, second} {
			p.Disconnect()
			p.Expire()
		}
		synctest.Wait()
		r.members("a b c")
		first.Reconnect()
		synctest.Wait()
		r.members("a b c")
	})
}

// What an older state of the store says of an instance does not end its later life.
func TestOlderStore(t *testing.T) {
	r := start(t, discover.Options{})
	r.put("a", r.serve("young"))
	r.members("a")
	web := r.web()
	if got := r.get(web, "http://cart/"); got != "young" {
		t.Fatalf("%q answered", got)
	}
	old := refusing
	r.client.Disconnect()
	r.store.Wipe()
	r.put("a", old)
	r.client.Reconnect()
	r.until("both", func(v *discover.View) bool {
		return len(v.Members) > 0 && v.Members[0].Endpoint.Name == old || len(v.Members) > 1
	})
	for range 4 {
		if got := r.get(web, "http://cart/"); got != "young" {
			t.Errorf("%q answered", got)
		}
	}
}
