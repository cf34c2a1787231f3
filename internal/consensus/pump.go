package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/store"
)

const (
	// entryBytes bounds the change sets that share a log entry. A larger set has one of its own.
	entryBytes = 512 << 10
	// entriesInFlight are proposed to raft before the first of them is committed. What comes
	// meanwhile waits and shares the next entry.
	entriesInFlight = 4
	// passedBytes and passesInFlight are the same for what is passed on to the leader.
	passedBytes    = 512 << 10
	passesInFlight = 4
	// proposeTimeout bounds a proposal whose context has no nearer end.
	proposeTimeout = 10 * time.Second
	// leaderPause is between two attempts to find the leader, unless there is news of it.
	leaderPause = 10 * time.Millisecond
)

// errNotSent marks a proposal that no server took up.
var errNotSent = fault.New(fault.Unavailable, "this server does not lead")

// NotSent returns the error with which Calls.Propose says that the leader took nothing up, so that
// it is safe to try again.
func NotSent() error { return errNotSent }

// entry is a log entry under way with what it is made of.
type entry struct {
	future raft.ApplyFuture
	items  []proposal
}

// pass is what is being passed on to a leader, for as long as that leads.
type pass struct {
	reach  context.Context
	leader Server
	items  []proposal
}

// Propose replicates a change set and returns once this server's state machine has applied it.
// While no leader is known it waits for one, as long as ctx allows and ten seconds at most.
func (r *Raft) Propose(ctx context.Context, set []byte) (store.Result, error) {
	reign, asLeader := ctx.Value(reignKey{}).(int)
	o := r.propose(ctx, [][]byte{set}, asLeader, reign)[0]
	switch {
	case o.Index > 0:
		return o.Result, nil
	case o.NotTaken && o.Error == "":
		return store.Result{}, fault.New(fault.Unavailable, "no server leads")
	case o.Error == "":
		return store.Result{}, fault.New(fault.Unavailable, "it took too long to replicate the change; it may still be made")
	}
	return store.Result{}, fault.New(fault.Unavailable, "%s", o.Error)
}

// ProposeHere replicates change sets if this server leads; none of them is passed on to another
// one. It is how servers answer Calls.Propose.
func (r *Raft) ProposeHere(ctx context.Context, sets [][]byte) []Outcome {
	return r.propose(ctx, sets, true, 0)
}

func (r *Raft) propose(ctx context.Context, sets [][]byte, here bool, reign int) []Outcome {
	if len(sets) == 0 {
		return nil
	}
	c := newCall(len(sets), here, reign)
	timer := time.NewTimer(proposeTimeout)
	defer timer.Stop()
	for i := r.queue.put(ctx, c, sets); i < len(sets); i++ {
		(proposal{call: c, slot: i}).resolve(Outcome{NotTaken: true})
	}
	select {
	case <-c.done:
		return c.outcomes
	case <-ctx.Done():
	case <-timer.C:
	}
	r.queue.withdraw(c)
	select {
	case <-c.done:
		return c.outcomes
	default:
		return make([]Outcome, len(sets)) // c's may still be written
	}
}

// pump gives what waits to raft, or to the leader, until the queue is closed.
func (r *Raft) pump() {
	for {
		select {
		case <-r.stopping.Done():
			return
		case <-r.queue.more:
		}
		for !r.queue.empty() {
			if !r.pumpOnce() {
				return
			}
		}
	}
}

// pumpOnce takes some of what waits, or waits itself; false means that the end has come.
func (r *Raft) pumpOnce() bool {
	if r.IsLeader() {
		if !r.acquire(r.entrySlots) {
			return false
		}
		reign, _, _ := r.standing.own() // raft waits until a change of it is known
		items := ofReign(reign, r.queue.take(entryBytes))
		if len(items) == 0 {
			<-r.entrySlots
			return true
		}
		r.entries <- entry{r.raft.Apply(entryOf(setsIn(items)), 0), items}
		return true
	}
	r.queue.dropHere()
	leader, reach := r.standing.leader()
	switch {
	case leader.ID == "" || leader.ID == r.cfg.NodeID:
		return r.pause()
	case r.cfg.Calls == nil:
		resolveAll(r.queue.take(queueBytes), Outcome{NotTaken: true, Error: errNotSent.Error()})
		return true
	}
	if !r.acquire(r.passSlots) {
		return false
	}
	items := r.queue.take(passedBytes)
	if slices.ContainsFunc(items, func(p proposal) bool { return p.call.here }) { // they have just come
		r.queue.putBack(items)
		items = nil
	}
	if len(items) == 0 {
		<-r.passSlots
		return true
	}
	r.passes <- pass{reach, leader, items}
	return true
}

// ofReign answers those that were decided in another reign, and returns the rest.
func ofReign(reign int, items []proposal) []proposal {
	other := func(p proposal) bool { return p.call.reign != 0 && p.call.reign != reign }
	if !slices.ContainsFunc(items, other) {
		return items
	}
	var rest []proposal
	for _, p := range items {
		if other(p) {
			p.resolve(Outcome{NotTaken: true})
		} else {
			rest = append(rest, p)
		}
	}
	return rest
}

func (r *Raft) acquire(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	case <-r.stopping.Done():
		return false
	}
}

// pause waits until there may be news of the leader.
func (r *Raft) pause() bool {
	timer := time.NewTimer(leaderPause)
	defer timer.Stop()
	select {
	case <-r.stopping.Done():
		return false
	case <-r.standing.news():
	case <-timer.C:
	}
	return true
}

func setsIn(items []proposal) [][]byte {
	sets := make([][]byte, len(items))
	for i, p := range items {
		sets[i] = p.set
	}
	return sets
}

// resolveEntries answers proposals in the order of their entries, until entries is closed. Raft
// answers everything that it was given, as long as it runs.
func (r *Raft) resolveEntries() {
	for e := range r.entries {
		err := e.future.Error()
		<-r.entrySlots
		switch {
		case err == nil:
			done := e.future.Response().(applied)
			if len(r.entries) == 0 { // else the next one tells
				r.committed(done)
			}
			for i, p := range e.items {
				p.resolve(Outcome{Result: done.results[i], Index: done.index})
			}
		case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
			r.tryAgain(e.items)
		default:
			resolveAll(e.items, Outcome{Error: "replicate: " + err.Error()})
		}
	}
}

// passOn hands over to the leader what the pump gives it, until passes is closed.
func (r *Raft) passOn() {
	for p := range r.passes {
		ctx, cancel := context.WithTimeout(p.reach, proposeTimeout)
		outcomes, err := r.cfg.Calls.Propose(ctx, p.leader, setsIn(p.items))
		cancel()
		<-r.passSlots
		if err == nil && len(outcomes) != len(p.items) {
			err = fmt.Errorf("%d answers came to %d changes", len(outcomes), len(p.items))
		}
		switch {
		case errors.Is(err, errNotSent):
			r.tryAgain(p.items)
		case err != nil:
			resolveAll(p.items, Outcome{Error: fmt.Sprintf("the leader %s did not answer; the change may still be made: %v", p.leader.ID, err)})
		default:
			r.passed(p.items, outcomes)
		}
	}
}

// passed resolves what the leader answered once this server shows it, too: everybody reads what
// they wrote.
func (r *Raft) passed(items []proposal, outcomes []Outcome) {
	var again []proposal
	var newest uint64
	for i, o := range outcomes {
		if o.NotTaken {
			again = append(again, items[i])
		}
		newest = max(newest, o.Index)
	}
	if len(again) > 0 {
		r.tryAgain(again)
	}
	r.machine.progress.after(newest, func() {
		for i, o := range outcomes {
			if !o.NotTaken {
				items[i].resolve(o)
			}
		}
	})
}

// tryAgain puts back what surely was not taken up, after a moment.
func (r *Raft) tryAgain(items []proposal) {
	time.AfterFunc(leaderPause, func() { r.queue.putBack(items) })
}
