// Package store holds the replicated state in memory: one table per kind of object, with
// indexes, and a general key space beside them, with consistent snapshots for reading and a
// history of changes for watching and for reading keys as they were.
//
// Writes are change sets: puts and deletes that happen as a whole or not at all, on condition of
// expected revisions, of objects and keys together. A change set is encoded, replicated by a
// Proposer (package consensus) and applied in log order, alike on every server: ApplyAll calls
// nobody, reads no clock and draws no random numbers. Every applied change set gets the next
// revision of one counter, and so does all that it writes.
//
// Tables and indexes are trees that are never changed (tree.go): an edit copies the few nodes on
// its way, once for all sets that are applied together. A snapshot is a pointer. The history is a
// ring of the latest changes with what they replaced, bounded by what it keeps in memory; key
// spaces of the past are found by taking changes back from a mark that comes soon after.
package store
