package consensus

import (
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// stagger is between the attempts of followers to replace a leader that is lost. Left to itself each
// waits for once to twice the heartbeat timeout, and the first one asks in vain: the others do not
// miss the leader yet.
const stagger = 50 * time.Millisecond

// unvoted is after how long a server without a vote looks whether it has one by now, which nobody tells.
const unvoted = 500 * time.Millisecond

// mindLeader makes this server miss its leader in time: after the heartbeat timeout, or after the
// shorter lease when the leader's process is known to have ended, each follower a little later than
// the one before. Lost tells of connections from other servers that ended.
func (r *Raft) mindLeader(lost <-chan struct{}) {
	full := r.raft.ReloadableConfig()
	lease := or(r.cfg.LeaseTimeout, leaseTimeout)
	ended := "" // a leader whose process has
	for {
		news := r.standing.news()
		leader, _ := r.standing.leader()
		rank := r.rank(leader.ID)
		if leader.ID == "" || rank < 0 {
			ended = ""
			var again <-chan time.Time
			if leader.ID != "" && leader.ID != r.cfg.NodeID {
				again = time.After(unvoted)
			}
			select {
			case <-news:
			case <-lost:
			case <-again:
			case <-r.ended:
				return
			}
			continue
		}
		patience := full.HeartbeatTimeout
		if leader.ID == ended {
			patience = lease
		}
		wait := patience + time.Duration(rank)*stagger - time.Since(r.raft.LastContact())
		hurry := wait <= 0
		if hurry {
			// A shorter timeout makes raft look at its timers now.
			short := full
			short.HeartbeatTimeout = max(patience-time.Millisecond, lease)
			if err := r.raft.ReloadConfig(short); err != nil {
				r.cfg.Log.Error("the leader is missed late", "error", err)
			}
			wait = stagger
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-news:
		case <-lost:
			if ended != leader.ID && r.hasEnded(leader) {
				ended = leader.ID
			}
		case <-r.ended:
			timer.Stop()
			return
		}
		timer.Stop()
		if hurry {
			if err := r.raft.ReloadConfig(full); err != nil {
				r.cfg.Log.Error("the leader is missed early", "error", err)
			}
		}
	}
}

// rank is this server's place among the voters other than the leader, -1 when it is none.
func (r *Raft) rank(leader string) int {
	var ids []string
	for _, s := range r.Servers() {
		if s.Voter && s.ID != leader {
			ids = append(ids, s.ID)
		}
	}
	slices.Sort(ids)
	return slices.Index(ids, r.cfg.NodeID)
}

// hasEnded reports whether nobody listens any more where the leader did, on a host that answers.
func (r *Raft) hasEnded(leader Server) bool {
	if r.cfg.Layer == nil {
		return false
	}
	c, err := r.cfg.Layer.Dial(raft.ServerAddress(leader.Address), stagger*2)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
