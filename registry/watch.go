package registry

// Kind says which part of the key space a [Change] belongs to.
type Kind uint8

// The kinds of keys below the prefix.
const (
	KindInstance Kind = iota + 1 // <prefix>/services/<service>/<id>, or a record of another product
	KindRoute                    // <prefix>/routes/<name>
	KindPolicy                   // <prefix>/policies/<service>
	KindGrant                    // <prefix>/grants/<service>
	KindBalancer                 // <prefix>/balancers/<id>
	KindAck                      // <prefix>/acks/<service>/<id>/<balancer>
	KindUnknown                  // below the prefix, but of no known shape; always delivered with Err set
)

// Scope selects what a watch delivers. The zero Scope is everything below the prefix. Where a driver reads the instances
// of other products, too, they are among the instances of every scope.
type Scope struct {
	// Service narrows the watch to the instances of one service.
	Service string
	// Instances narrows the watch to instances, of all services.
	Instances bool
}

// Update is one step of a watch. Updates arrive one after the other, never concurrently, each holding whole
// revisions: either all changes of a revision or none.
type Update struct {
	// Reset says that Changes is the complete content of the scope as of Revision: whatever the reader holds and
	// does not find here is gone. A Reset with no changes means that the scope is empty, which is not the same as
	// not knowing.
	Reset bool
	// Revision is the store's revision up to which the reader is now current. It never goes back between two
	// Resets. An update with neither Reset, Changes nor Err only says that time passed and nothing was missed.
	Revision int64
	// StoreID identifies the store (etcd's cluster id). Another value after a Reset means another store, a lower Revision an
	// older state of the same one.
	StoreID uint64
	// Elsewhere says that a Reset is that of another store than before, or of an older state of it, where StoreID and Revision do
	// not show it.
	Elsewhere bool
	// Changes are in the order in which they happened; a Reset lists them by key.
	Changes []Change
	// Err, when not nil, says that the source has lost touch with the store and why. Everything delivered so far
	// stays as it is: stale, but not gone. The next Reset ends it. Changes is empty.
	Err error
}

// Change is one key put or deleted.
type Change struct {
	Kind    Kind
	Key     string // the whole key as it stands in the store
	Service string // of KindInstance, KindPolicy, KindGrant and KindAck
	ID      string // the instance id; the name of a route, the id of a balancer
	// Balancer is the id of the balancer that wrote a KindAck.
	Balancer string
	// Deleted says that the key is gone; then Instance is nil, Value empty and the revision that of the deletion.
	Deleted bool
	// Instance is the decoded record of a KindInstance; nil when Err is set.
	Instance *Instance
	// Value is the raw value of every other kind, and of a record that could not be read.
	Value []byte
	// Err says why the key or its value is quarantined: it is set aside, shown, and disturbs nothing else.
	Err error
	// CreateRevision and ModRevision are the store's; Lease is zero for a key without one.
	CreateRevision, ModRevision, Lease int64
}
