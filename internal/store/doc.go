// Package store holds the replicated state in memory: one table per kind of object, with
// indexes, consistent snapshots for reading and a history of changes for watching.
//
// Writes are change sets: puts and deletes that happen as a whole or not at all, on condition of
// expected revisions. A change set is encoded, replicated by a Proposer (package consensus) and
// applied in log order, alike on every server: Apply calls nobody, reads no clock and draws no
// random numbers. Every applied change set gets the next revision of one counter, and so does
// every object in it.
//
// The table library (hashicorp/go-memdb, an immutable radix tree) does not show through.
package store
