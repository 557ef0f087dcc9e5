package memory_test

import (
	"context"
	"fmt"

	"github.com/rota-lb/rota/registry"
	"github.com/rota-lb/rota/registry/memory"
)

func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var store memory.Store
	service, balancer := store.NewClient(), store.NewClient()

	reg, err := service.Register(ctx, registry.Instance{Service: "cart", ID: "a", Address: "10.0.0.7:5001"})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = balancer.Watch(ctx, registry.Scope{Service: "cart"}, func(u registry.Update) {
		for _, ch := range u.Changes {
			switch {
			case ch.Deleted:
				fmt.Println(ch.ID, "is gone")
				cancel()
			case ch.Instance.State == registry.Draining:
				fmt.Println(ch.ID, "is about to go")
			default:
				fmt.Println(ch.ID, "is at", ch.Instance.Address)
				_ = reg.Leave(ctx)
			}
		}
	})
	fmt.Println(err)
	// Output:
	// a is at 10.0.0.7:5001
	// a is about to go
	// a is gone
	// context canceled
}
