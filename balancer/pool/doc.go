// Package pool holds endpoints, immutable pools of them, and the policies that pick one.
//
// An [Endpoint] is one live address with its counters. It lives as long as the instance behind it and is shared by
// every pool that is built while it lives, so a rebuild loses neither load figures nor rotation. A [Service] is what
// the pools of one name share: the rotation cursor and the totals. A [Pool] is immutable: the endpoints that are
// eligible now, with their weights, and a picker for the service's [Policy].
//
// Eligibility is decided when a pool is built. [Pool.Pick] therefore tests nothing but load: it takes no lock, never
// blocks, never allocates, runs a bounded number of steps, and never returns an endpoint of weight zero.
//
// The package imports nothing of this module and may be used alone.
package pool
