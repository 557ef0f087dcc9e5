// Package registry is the vocabulary of registration and discovery, and the calls a service makes.
//
// A service describes itself as an [Instance] and hands it to a [Registry]:
//
//	client, err := registryetcd.Connect(registryetcd.Options{})
//	...
//	err = registry.Serve(ctx, client, server, registry.Instance{Service: "cart"})
//
// [Serve] listens, registers, serves, and leaves when ctx ends. [Registry.Register] is the call below it, for
// programs that are not an *http.Server. Whoever wants to know who is on duty calls [Registry.Watch].
//
// # What it promises
//
// A registration is kept for ever: a lost lease, a deleted key, an outage of the store, an expired token or a
// paused process each end in the key being put again, without the service doing anything. It is fenced: every
// registration carries an incarnation, and a late or thawed predecessor can neither overwrite nor delete its
// successor; it learns [ErrSuperseded].
//
// A watch has one word for "begin again": an [Update] with Reset set. Start, compaction, a lost leader, a closed
// channel and a restored store all arrive as that word, so a reader has one code path for them. Between two
// Resets a reader may rely on every update being newer than the one before and holding whole revisions.
// A value that cannot be read is delivered as a [Change] with Err set and disturbs no other key.
//
// The package imports the standard library and zap only. Drivers live below it (registry/etcd, registry/memory);
// every driver passes the suite in registry/registrytest. The keys and values they write are described in
// docs/registration.md for people who write them from other languages.
package registry
