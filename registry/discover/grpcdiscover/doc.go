// Package grpcdiscover lets gRPC clients find the instances of a service through a [discover.Discovery]:
//
//	options := append(grpcdiscover.Options(d), grpc.WithTransportCredentials(creds))
//	conn, err := grpc.NewClient("rota:///cart", options...)
//
// The resolver follows the registry; the balancing policy [Name] chooses among the instances that are connected, with the
// policy and the counts of the Discovery. It takes instances that register with protocol grpc, h2 or h2c.
//
// # What it promises
//
// It says the same as package discover: instances that are ready and have a weight above zero get new calls, a change in
// the registry holds at once, and when the store is away the last that is known goes on serving. Calls on an instance that
// begins to drain go on to their end. An instance that cannot be connected to gets no calls: gRPC keeps trying to connect
// with growing pauses, and chooses among the others meanwhile. A call counts as in flight until it is done.
//
// It is a package of its own so that those who do not use gRPC do not link it.
package grpcdiscover
