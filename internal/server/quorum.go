package server

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/consensus"
)

// memberView is a server as the leader sees it.
type memberView struct {
	consensus.Server
	Name    string
	Known   bool      // it is a node of the cluster
	Live    bool      // heard of in time
	Standby bool      // not to have a vote
	Since   time.Time // when it was found dead; zero while it is not
}

// DefaultDeadServerAfter is for how long a server is dead before it is removed, unless another time
// is chosen.
const DefaultDeadServerAfter = 10 * time.Minute

// leastVoters is below what dead servers are not removed: they count, but so do the spare ones.
const leastVoters = 3

func majority(voters int) int { return voters/2 + 1 }

func votes(members []memberView) (voters, live int) {
	for _, m := range members {
		if m.Voter {
			voters++
			if m.Live {
				live++
			}
		}
	}
	return voters, live
}

// lossRefused says why a member cannot lose its vote, "" when it can: of the voters that are left
// a majority has to be alive.
func lossRefused(members []memberView, id string) string {
	i := slices.IndexFunc(members, func(m memberView) bool { return m.ID == id })
	if i < 0 || !members[i].Voter {
		return ""
	}
	voters, live := votes(members)
	voters--
	if members[i].Live {
		live--
	}
	switch {
	case voters == 0:
		return fmt.Sprintf("%s is the only server with a vote", members[i].Name)
	case live < majority(voters):
		return fmt.Sprintf("without %s only %d of the other %d servers with a vote would be alive, and no server could lead", members[i].Name, live, voters)
	}
	return ""
}

// longDead returns the ID of a server that has been dead for long and can be taken out: when those
// that are left have a majority that is alive and are at least three, so one that was replaced.
// Without a vote it can always be. One at a time: after it things are looked at anew. A time of
// zero or less means never.
func longDead(members []memberView, now time.Time, after time.Duration) string {
	if after <= 0 {
		return ""
	}
	voters, live := votes(members)
	dead := slices.SortedFunc(slices.Values(members), func(a, b memberView) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) })
	for _, m := range dead {
		switch {
		case m.Live || m.Since.IsZero() || now.Sub(m.Since) < after:
		case !m.Voter:
			return m.ID
		case voters > leastVoters && live >= majority(voters):
			return m.ID
		}
	}
	return ""
}
