// Package discover lets a Go service call others without a balancer in between: it follows the registry and sends each
// request straight to an instance.
//
//	d := discover.New(client, discover.Options{Services: []string{"cart"}})
//	go d.Run(ctx)
//	web := &http.Client{Transport: d.Transport(nil)}
//	resp, err := web.Get("http://cart/items")
//
// [Discovery.Transport] is the plain way. [Discovery.Client] also repeats what may be repeated. For gRPC there is the
// package grpcdiscover below this one. All three choose with the policies of package balancer/pool, on shared counts of
// what is in flight.
//
// # What it promises
//
// A request goes to an instance that is ready and has a weight above zero. The weight, and what the policy says, decide
// which. An instance that is starting or draining gets no new request; those in flight there go on. A change in the
// registry holds for the next pick: there is no cache that could be old, and nothing to reload.
//
// Stale beats empty, and lost is not left. When the store is away, the last that is known goes on serving. An instance whose
// lease was lost is used on for a minute, unless it cannot be connected to: it may only have been paused, or the store be
// sick. So is one that another store than before, wiped or restored, does not have. A record that was deleted by hand, which
// shows in its lease, takes its instance out; but when that leaves a service with no instance that serves, those go on serving
// that went last (all within ten seconds of each other), until another one is there. An instance that has said it is draining
// is never kept like that.
//
// An instance that cannot be connected to is passed over for a second, for longer if that goes on (up to half a minute),
// but never more than half of a service: rather try one in vain than overload those that are left. The request moves on to
// another instance at once if its body can be sent again: a connection that did not come about has carried nothing, so
// nothing is done twice. Whatever was sent is repeated only by [Discovery.Client], and there only if the method is
// idempotent.
//
// Instances that report how busy they are ([registry.LoadHeader]) are believed, so that clients which each see only their
// own requests still find the one with the least.
package discover
