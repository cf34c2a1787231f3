package consensus

// Term returns the latest term that this server knows of. It has voted in no later one, and follows
// no leader of an earlier one.
func (r *Raft) Term() uint64 { return r.raft.CurrentTerm() }
