package consensus

import (
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// stagger is between the attempts of followers to replace a leader that is lost. Left to itself each
// waits for once to twice the heartbeat timeout.
const stagger = 50 * time.Millisecond

// earlier is by how much who hesitates to lead stands before the others do. Signs of life of a leader do not reach all at once.
const earlier = 3 * stagger

// Hesitate says whether this server should rather not lead, if another one can. After a leader was lost it stands for election before the
// others, in vain, and has the vote of none of them before they stand themselves.
func (r *Raft) Hesitate(hesitates bool) { r.hesitates.Store(hesitates) }

// unvoted is after how long a server without a vote looks whether it has one by now, which nobody tells.
const unvoted = 500 * time.Millisecond

// mindLeader makes this server miss its leader in time: after the heartbeat timeout, each follower a little later than the
// one before; or after the shorter lease, when the leader's process is known to have ended, or another follower has stood for
// election, as it is told by stood. The first to stand does so in vain, as the others do not miss the leader yet: the next one
// follows at once, before the first tries again. Lost tells of connections from other servers that ended.
func (r *Raft) mindLeader(lost <-chan struct{}, stood <-chan raft.Observation) {
	full := r.raft.ReloadableConfig()
	lease := or(r.cfg.LeaseTimeout, leaseTimeout)
	ended := "" // a leader whose process has
	var candidates []string
	var latest time.Time // when the latest of them stood
	for {
		news := r.standing.news()
		leader, _ := r.standing.leader()
		rank := r.rank(leader.ID, candidates)
		if leader.ID == "" || rank < 0 {
			ended, candidates = "", nil
			var again <-chan time.Time
			if leader.ID != "" && leader.ID != r.cfg.NodeID {
				again = time.After(unvoted)
			}
			select {
			case <-news:
			case <-lost:
			case <-stood:
			case <-again:
			case <-r.ended:
				return
			}
			continue
		}
		contact := r.raft.LastContact()
		if contact.After(latest) {
			candidates = nil
		}
		patience, from := full.HeartbeatTimeout, contact
		if r.hesitates.Load() {
			patience = max(patience-earlier, lease)
		}
		switch {
		case len(candidates) > 0:
			patience = lease
			if earliest := latest.Add(-lease); from.Before(earliest) {
				from = earliest
			}
		case leader.ID == ended:
			patience = lease
		}
		wait := patience + time.Duration(rank)*stagger - time.Since(from)
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
		case o := <-stood:
			if req, ok := o.Data.(raft.RequestPreVoteRequest); ok && string(req.ID) != leader.ID {
				candidates, latest = append(candidates, string(req.ID)), time.Now()
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

// rank is this server's place among the voters other than the leader and those that have stood, -1 when it is none of the voters.
func (r *Raft) rank(leader string, stood []string) int {
	var ids []string
	for _, s := range r.Servers() {
		if s.Voter && s.ID != leader && (s.ID == r.cfg.NodeID || !slices.Contains(stood, s.ID)) {
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

// warmEvery is how often a follower makes sure that it can ask the others for their votes at once.
const warmEvery = 2 * time.Second

// keepWarm has a connection at hand to each of the servers whose votes this one would ask for. To open one takes a handshake, and one
// to a server that was restarted is broken, which shows when it is used.
func (r *Raft) keepWarm() {
	own := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(r.cfg.NodeID), Addr: []byte(r.cfg.Address)}
	for {
		if leader, _ := r.standing.leader(); leader.ID != "" && leader.ID != r.cfg.NodeID {
			for _, s := range r.Servers() {
				if !s.Voter || s.ID == leader.ID || s.ID == r.cfg.NodeID {
					continue
				}
				heard := make(chan struct{})
				go func() { // which is not waited for in the end: it may take as long as a host that is gone is waited for
					defer close(heard)
					// What is said of no term is passed over.
					_ = r.transport.AppendEntries(raft.ServerID(s.ID), raft.ServerAddress(s.Address), &raft.AppendEntriesRequest{RPCHeader: own}, &raft.AppendEntriesResponse{})
				}()
				select {
				case <-heard:
				case <-r.ended:
					return
				}
			}
		}
		select {
		case <-time.After(warmEvery):
		case <-r.ended:
			return
		}
	}
}
