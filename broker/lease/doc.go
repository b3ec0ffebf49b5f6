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
// How a credential ends is said as it is. What only expires, logins included,
// goes to Expiring and is Expired at its bound; what was made under a login ends
// with it only where the back end ends logins; what has neither expiry nor such
// a login has no bound, and stays in Revoking until it is revoked. A row that a
// crash left is looked for by its marker where the back end can be asked.
//
// What can't be renewed in place is told of before it ends, and can be replaced
// by another lease, beside which it lives on to its own end.
//
// All leases of a request are issued or none: what succeeded is revoked when a
// neighbour fails. The end of a session revokes everything at once and waits
// for a bounded time; what a back end refuses to end goes on in a queue that
// is fair between providers.
//
// The engine decides nothing about who may have what. It asks [Config.Judge]
// before it renews.
package lease
