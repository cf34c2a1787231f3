package consensus

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/internal/fault"
)

// Server is a server as the others know it.
type Server struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
	Leader  bool   `json:"leader"`
}

// AddServer makes a server a voter, or changes its address. Only the leader can.
func (r *Raft) AddServer(ctx context.Context, id, address string) error {
	return r.change(r.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, proposeTimeout), "add server "+id)
}

// RemoveServer takes a server out. Only the leader can.
func (r *Raft) RemoveServer(ctx context.Context, id string) error {
	return r.change(r.raft.RemoveServer(raft.ServerID(id), 0, proposeTimeout), "remove server "+id)
}

func (r *Raft) change(f raft.Future, what string) error {
	if err := f.Error(); err != nil {
		return fault.New(fault.Unavailable, "%s: %w", what, err)
	}
	return nil
}

// Servers returns the servers of the latest known configuration.
func (r *Raft) Servers() []Server {
	f := r.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	leader, _ := r.Leader()
	var out []Server
	for _, s := range f.Configuration().Servers {
		out = append(out, Server{
			ID: string(s.ID), Address: string(s.Address),
			Voter: s.Suffrage == raft.Voter, Leader: string(s.ID) == leader,
		})
	}
	return out
}

// AddNonvoter makes a server follow without a vote, or changes its address. Only the leader can.
func (r *Raft) AddNonvoter(ctx context.Context, id, address string) error {
	return r.change(r.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, proposeTimeout), "add server "+id)
}

// Demote takes a server's vote; it follows on. Only the leader can.
func (r *Raft) Demote(ctx context.Context, id string) error {
	return r.change(r.raft.DemoteVoter(raft.ServerID(id), 0, proposeTimeout), "demote server "+id)
}

// HandOver lets another server lead, if this one does. After an attempt that failed it is refused for
// as long as this server goes on leading: raft (1.8.0) leaves goroutines behind when it asks a silent
// follower twice in one reign.
func (r *Raft) HandOver() error {
	reign, _, _ := r.standing.own()
	if reign > 0 && r.vain.Load() == int64(reign) {
		return fault.New(fault.Unavailable, "hand leadership over: no other server took it before")
	}
	answer := make(chan error, 1)
	if !r.work(func() { answer <- r.raft.LeadershipTransfer().Error() }) { // raft answers only while it runs
		return fault.New(fault.Unavailable, "hand leadership over: this server is stopping")
	}
	err := <-answer
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, raft.ErrNotLeader) && !errors.Is(err, raft.ErrLeadershipTransferInProgress):
		r.vain.Store(int64(reign))
	}
	return fault.New(fault.Unavailable, "hand leadership over: %w", err)
}

// Position returns how far this server's state machine has come in the log, and the present term.
func (r *Raft) Position() (index, term uint64) {
	return r.machine.progress.now(), r.raft.CurrentTerm()
}

// Applied returns the index of the log up to which this server's state machine has come.
func (r *Raft) Applied() uint64 { return r.machine.progress.now() }
