package grpcdiscover_test

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/rota-lb/rota/registry/discover"
	"github.com/rota-lb/rota/registry/discover/grpcdiscover"
	"github.com/rota-lb/rota/registry/memory"
)

func Example() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	srv := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	go srv.Serve(ln)
	defer srv.Stop()
	var store memory.Store
	store.Put("/rota/services/cart/a", []byte(`{"address":"`+ln.Addr().String()+`","protocol":"grpc"}`))
	client := store.NewClient() // registryetcd.Connect(registryetcd.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	d := discover.New(client, discover.Options{Services: []string{"cart"}})
	go d.Run(ctx)

	options := append(grpcdiscover.Options(d), grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("rota:///cart", options...)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(answer.GetStatus())
	// Output: SERVING
}
