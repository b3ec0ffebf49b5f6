// Package lease is the engine that issues, renews and ends credentials.
//
// It promises that no credential is orphaned: an intent is durable before a
// provider is called, a login at a provider is a lease of its own, and each
// row says when work on it is due, so that a restart finds what a crash left.
// Every credential is held by a live session, or is revoked, or is recorded
// with an upper bound of its life.
//
//	Intent ── Issuing ── Active ── Revoking ── Revoked
//	   │         │          │          └────── Irrevocable (retried daily)
//	   └ Void    └ Void     ├ Expiring ── Expired
//	                        └ Disclosed (static: at once)
//
// All leases of a request are issued or none: what succeeded is revoked when a
// neighbour fails. The end of a session revokes everything at once and waits
// for a bounded time; what a back end refuses to end goes on in a queue that
// is fair between providers.
//
// The engine decides nothing about who may have what. It asks [Config.Judge]
// before it renews.
package lease
