// Package control holds the work of the leader: it brings what is closer to what should be, one
// small durable step at a time. It follows the store, asks the pure packages schedule and rollout
// what to do, adds addresses, and commits.
//
// One goroutine does all of it, in passes: whatever changed since the last pass is looked at on
// one snapshot, and everything decided there becomes one change set. Nothing is remembered
// between passes that could not be found out again, so that a new leader simply begins.
package control
