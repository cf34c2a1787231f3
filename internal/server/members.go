package server

import (
	"context"
	"fmt"
	"time"

	"github.com/tutti-run/tutti/internal/consensus"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// membership asks the leader to change what a server is.
type membership struct {
	Do      memberChange `json:"do"`
	ID      string       `json:"id"`
	Address string       `json:"address,omitempty"` // where a server that joins is reached
	// Passed is set when another server has passed this on: it is not passed on again.
	Passed bool `json:"passed,omitempty"`
}

type memberChange string

const (
	memberJoin    memberChange = "join"    // or tell of a new address
	memberPromote memberChange = "promote" // get a vote, once it has caught up
	memberDemote  memberChange = "demote"  // follow without a vote
	memberRemove  memberChange = "remove"
)

// memberProgress is how far a server has come.
type memberProgress struct {
	Applied uint64 `json:"applied"` // index of the log
}

const (
	memberPoll = 250 * time.Millisecond
	memberRest = time.Second     // of a server that is a member and knows who leads, and of a leader with whom all have their votes
	memberLone = 5 * time.Second // of the only server
	// caughtUpWithin is how many entries a server may lack when it gets a vote: it has them in a moment.
	caughtUpWithin = 1000
	// rejoinAfter is how long a server hears of no leader until it asks others whether it is still
	// one of them: it may have been removed while it was away.
	rejoinAfter = 3 * time.Second
)

// stayMember keeps this server among the members, under its present address.
func (s *Server) stayMember(ctx context.Context) error {
	led, known := time.Now(), false
	told := false
	for {
		wait := memberPoll
		leader, _ := s.raft.Leader()
		switch {
		case leader != "":
			led, wait = time.Now(), s.memberPause()
		case known:
			led = time.Now() // it may have been lost just before
		}
		known = leader != ""
		if !s.isMember() || time.Since(led) > rejoinAfter {
			wait = memberPoll
			err := s.askMembership(ctx)
			switch {
			case err == nil:
				led, told = time.Now(), false
			case !told && ctx.Err() == nil:
				s.log.Warn("this server could not become a member yet, it goes on trying", "error", err)
				told = true
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (s *Server) memberPause() time.Duration {
	if len(s.raft.Servers()) == 1 {
		return memberLone
	}
	return memberRest
}

func (s *Server) isMember() bool {
	for _, m := range s.raft.Servers() {
		if m.ID == s.cfg.NodeID && m.Address == s.cfg.Address {
			return true
		}
	}
	return false
}

func (s *Server) askMembership(ctx context.Context) error {
	m := membership{Do: memberJoin, ID: s.cfg.NodeID, Address: s.cfg.Address}
	if s.raft.IsLeader() {
		return s.changeMember(ctx, m)
	}
	err := error(fault.New(fault.Unavailable, "no other server is known"))
	asked := map[string]bool{s.cfg.Address: true}
	for _, other := range append(s.Addresses(), s.cfg.Known...) {
		if other.ID == s.cfg.NodeID || asked[other.Address] {
			continue
		}
		asked[other.Address] = true
		if _, err = wire.Call[membership, wire.Empty](ctx, s.port.Client(), other.Address, pathMember, m); err == nil {
			return nil
		}
	}
	return err
}

// changeMember makes a change, through the leader.
func (s *Server) changeMember(ctx context.Context, m membership) error {
	if s.raft.IsLeader() {
		if m.ID != s.cfg.NodeID || m.Do == memberJoin || m.Do == memberPromote {
			return s.changeAsLeader(ctx, m)
		}
		if err := s.checkLoss(m.ID); err != nil {
			return err
		}
		// It would go on leading for a moment, without a vote of its own: another one shall first.
		if err := s.raft.HandOver(); err != nil {
			return err
		}
		if err := s.awaitOtherLeader(ctx); err != nil {
			return err
		}
	}
	_, address := s.raft.Leader()
	if address == "" || m.Passed {
		return fault.New(fault.Unavailable, "no server leads")
	}
	m.Passed = true
	_, err := wire.Call[membership, wire.Empty](ctx, s.port.Client(), address, pathMember, m)
	return err
}

func (s *Server) awaitOtherLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		if id, _ := s.raft.Leader(); id != "" && id != s.cfg.NodeID {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "no other server came to lead: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *Server) changeAsLeader(ctx context.Context, m membership) error {
	present, known := s.member(m.ID)
	switch m.Do {
	case memberJoin:
		if known && present.Address == m.Address {
			return nil
		}
		s.log.Info("server joins, or has another address", "server", m.ID, "address", m.Address)
		if known && present.Voter {
			return s.raft.AddServer(ctx, m.ID, m.Address)
		}
		defer s.lookAtMembers()
		return s.raft.AddNonvoter(ctx, m.ID, m.Address) // keepMembers gives it a vote
	case memberPromote, memberDemote:
		n, ok := store.Get[*model.Node](s.store.Snapshot(), m.ID)
		if !ok {
			return fault.New(fault.NotFound, "node %s does not exist", m.ID)
		}
		if !known {
			return fault.New(fault.Unsupported, "node %s is no server, and an agent cannot become one while it runs: empty it, `tutti down --purge` there, and let the host join again with the token of `tutti token --server`", n.Name)
		}
		if m.Do == memberDemote {
			if err := s.checkLoss(m.ID); err != nil {
				return err
			}
		}
		if err := s.setStandby(ctx, n, m.Do == memberDemote); err != nil {
			return err
		}
		if m.Do == memberDemote && present.Voter {
			s.log.Info("server is demoted", "server", n.Name)
			return s.raft.Demote(ctx, m.ID)
		}
		s.lookAtMembers()
		return nil // keepMembers gives it a vote
	case memberRemove:
		if !known {
			return nil
		}
		if err := s.checkLoss(m.ID); err != nil {
			return err
		}
		s.log.Info("server is removed", "server", m.ID)
		return s.raft.RemoveServer(ctx, m.ID)
	}
	return fault.New(fault.Unsupported, "this version cannot %q a server; the one that asks may be newer", m.Do)
}

func (s *Server) setStandby(ctx context.Context, n *model.Node, standby bool) error {
	if n.Standby == standby {
		return nil
	}
	c := n.Clone()
	c.Standby = standby
	cs := &store.ChangeSet{}
	cs.Expect(model.KindNode, n.ID, n.Revision)
	cs.Put(c)
	_, err := s.store.Commit(ctx, cs)
	return err
}

func (s *Server) member(id string) (consensus.Server, bool) {
	for _, m := range s.raft.Servers() {
		if m.ID == id {
			return m, true
		}
	}
	return consensus.Server{}, false
}

// checkLoss refuses to take away a vote without which most of the rest would not be there to vote.
func (s *Server) checkLoss(id string) error {
	if why := lossRefused(s.members(), id); why != "" {
		return fault.New(fault.Conflict, "%s", why)
	}
	return nil
}

// members is what this server, the leader, knows of all.
func (s *Server) members() []memberView {
	snap := s.store.Snapshot()
	var out []memberView
	for _, m := range s.raft.Servers() {
		v := memberView{Server: m, Name: m.ID, Live: m.ID == s.cfg.NodeID}
		if n, ok := store.Get[*model.Node](snap, m.ID); ok {
			v.Name, v.Standby, v.Known = n.Name, n.Standby, true
			if n.Status.State == model.NodeDown {
				v.Since = n.Status.Since
			}
		}
		v.Live = v.Live || s.liveness.Live(m.ID)
		out = append(out, v)
	}
	return out
}

// keepMembers is the leader's: it gives a vote to servers that have caught up, and takes out those
// that have been dead for long.
func (s *Server) keepMembers(ctx context.Context) error {
	for {
		members := s.members()
		wait := s.memberPause()
		for _, m := range members {
			if m.Voter || m.Standby {
				continue
			}
			wait = memberPoll
			if !m.Live || !m.Known {
				continue
			}
			if err := s.promote(ctx, m); err != nil && ctx.Err() == nil {
				s.log.Debug("a server gets no vote yet", "server", m.Name, "error", err)
			}
		}
		if id := longDead(members, time.Now(), s.cfg.DeadServerAfter); id != "" {
			s.log.Warn("a server that has been dead for long is removed", "server", id, "after", s.cfg.DeadServerAfter)
			if err := s.raft.RemoveServer(ctx, id); err != nil && ctx.Err() == nil {
				s.log.Warn("a dead server could not be removed", "server", id, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.membersWake:
		case <-time.After(wait):
		}
	}
}

// lookAtMembers has the leader look now at who waits for a vote.
func (s *Server) lookAtMembers() {
	select {
	case s.membersWake <- struct{}{}:
	default:
	}
}

func (s *Server) promote(ctx context.Context, m memberView) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	p, err := wire.Call[wire.Empty, memberProgress](ctx, s.port.Client(), m.Address, pathProgress, wire.Empty{})
	if err != nil {
		return err
	}
	if own := s.raft.Applied(); p.Applied+caughtUpWithin < own {
		return fmt.Errorf("it has applied %d of %d", p.Applied, own)
	}
	s.log.Info("server has caught up and gets a vote", "server", m.Name)
	return s.raft.AddServer(ctx, m.ID, m.Address)
}

// Members implements core.Servers.
func (s *Server) Members() []core.Member {
	var out []core.Member
	for _, m := range s.raft.Servers() {
		out = append(out, core.Member{ID: m.ID, Address: m.Address, Voter: m.Voter, Leader: m.Leader})
	}
	return out
}

// Promote implements core.Servers.
func (s *Server) Promote(ctx context.Context, id string) error {
	return s.changeMember(ctx, membership{Do: memberPromote, ID: id})
}

// Demote implements core.Servers.
func (s *Server) Demote(ctx context.Context, id string) error {
	return s.changeMember(ctx, membership{Do: memberDemote, ID: id})
}

// Remove implements core.Servers.
func (s *Server) Remove(ctx context.Context, id string) error {
	return s.changeMember(ctx, membership{Do: memberRemove, ID: id})
}
