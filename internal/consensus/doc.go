// Package consensus replicates bytes among servers with raft (hashicorp/raft over raft-wal): it
// elects a leader, keeps a durable log (one fsync for all that is proposed at the same time),
// takes snapshots of the state machine and follows membership. It knows nothing of what the bytes
// mean.
//
// In flow proposals, on any server: one that does not lead hands them to the leader and waits
// until its own state machine has caught up, so that everybody reads what they wrote.
package consensus
