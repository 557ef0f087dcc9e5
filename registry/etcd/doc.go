// Package registryetcd keeps and finds registrations in etcd: the contract of package registry over leases,
// transactions and watches.
//
//	client, err := registryetcd.Connect(registryetcd.Options{}) // ROTA_ETCD_* and ETCDCTL_* are honoured
//	...
//	defer client.Close()
//	reg, err := client.Register(ctx, registry.Instance{Service: "cart", Address: "10.0.0.7:5001"})
//
// # Registering
//
// A [Client] holds one lease, granted at the first Register and renewed at a third of its lifetime. Every
// registration puts its key under that lease. Whatever happens to either is answered in the same way: grant if the
// lease is gone, put if the key is not ours, at once the first time and then with growing, jittered pauses of at most
// a quarter of the lease's lifetime, for ever. Noticed are a lease that etcd no longer knows, a lease that could not
// be renewed for its lifetime or slept through it (by the monotonic clock: a stopped process does not trust its lease
// after it wakes), and a key that was deleted or overwritten.
//
// Puts and deletes are transactions that compare the key's revision with the last one known. If it is another, the
// value decides: a newer incarnation ends the registration, which touches nothing; anything else is overwritten. To
// leave, the state draining is put first and the key deleted then, so that watchers can tell a clean exit from a
// lease that ran out.
//
// With etcd's access control on, a service needs the permission readwrite on <prefix>/services/<service>/ (etcd asks for
// read to compare), and read on <prefix>/balancers/ and <prefix>/acks/<service>/ to drain. Roles for everybody are in
// docs/registration.md.
//
// # Watching
//
// A watch lists its range page by page at one revision, delivers it as a Reset, and watches from the next revision,
// with a leader required. It asks for a sign of life every ten seconds, and takes a silent etcd for a dead one. A
// connection that broke is taken up again at the next revision if etcd answers within two seconds and is still the
// same store; after any other end it says so, lists anew and delivers a Reset. Every few minutes, and soon after a
// broken connection, the keys are listed once more and compared with what was delivered, because a watch alone is a
// hint; only a difference leads to a Reset.
//
// With [Options.Foreign] the instances that other products keep elsewhere in etcd are delivered, too. All prefixes are
// listed at one revision and watched in one stream, and what it says is put into one order, so that a reader need not
// know: there is one Reset, and whole revisions follow one another. Where one prefix cannot be read, because etcd denies
// it, there is no Reset at all: a part is not taken for the whole.
//
// The package links etcd's client and zap, never the server.
package registryetcd
