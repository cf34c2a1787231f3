package consensus

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// spread tells the other servers at once how far the log is committed. Raft sends that along with the
// next entry, or when nothing was sent for Config.CommitTimeout; until then nodes whose session is with
// another server hear of nothing, and who wrote through it waits. What is sent is what raft would send
// then: an AppendEntries of the term in which this server led and wrote the entry, without entries
// (Ongaro and Ousterhout, In Search of an Understandable Consensus Algorithm, figure 2).
type spread struct {
	mu      sync.Mutex
	newest  applied
	telling map[raft.ServerID]bool
}

// committed is told of an entry that this server wrote as the leader, and that is committed.
func (r *Raft) committed(a applied) {
	s := &r.spread
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest = a
	for _, peer := range r.raft.GetConfiguration().Configuration().Servers {
		if string(peer.ID) == r.cfg.NodeID || s.telling[peer.ID] {
			continue
		}
		s.telling[peer.ID] = r.work(func() { r.tell(peer) })
	}
}

// tell sends a server what is newest until it was told that.
func (r *Raft) tell(peer raft.Server) {
	s := &r.spread
	for told := uint64(0); ; {
		s.mu.Lock()
		now := s.newest
		if now.index == told || r.stopping.Err() != nil {
			s.telling[peer.ID] = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for pause := time.Millisecond; pause < 50*time.Millisecond && !r.tellOf(now, peer); pause *= 2 {
			time.Sleep(pause) // it was not among the first to write the entry
		}
		told = now.index
	}
}

// tellOf sends a server one message; false means that it lacks the entry. One that is not reached, or
// lacks it for long, hears of it from raft.
func (r *Raft) tellOf(a applied, peer raft.Server) bool {
	self := r.transport.EncodePeer(raft.ServerID(r.cfg.NodeID), r.transport.LocalAddr())
	request := &raft.AppendEntriesRequest{
		RPCHeader:    raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(r.cfg.NodeID), Addr: self},
		Term:         a.term,
		PrevLogEntry: a.index, PrevLogTerm: a.term, LeaderCommitIndex: a.index,
	}
	var response raft.AppendEntriesResponse
	err := r.transport.AppendEntries(peer.ID, peer.Address, request, &response)
	return err != nil || response.Success || response.Term != a.term
}
