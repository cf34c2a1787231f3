// Package core holds the use cases: what people can ask of a cluster, in the cluster's own
// words. Every API adapter, ours and foreign ones alike, translates into calls of Core and its
// answers back; none of them writes to the store itself.
//
// A use case checks what it was given against a snapshot, decides everything there, and commits
// one change set that expects the snapshot's revisions: it happens as a whole or not at all. The
// reconcilers in package control take it from there.
package core
