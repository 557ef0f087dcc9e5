// Command discovery measures how soon and at what price Rota follows etcd: from a put to the first request served,
// from a delete to the last one, CPU time per change among 1,000 and among 100,000 instances, and memory per instance.
//
// It runs an etcd of its own, with real fsync, in its own process, and the rota binary beside it.
package main
