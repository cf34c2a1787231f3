package control

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// candidates yields the instances that changed since the last pass, or all of them in a sweep.
func (p *pass) candidates(yield func(*model.Instance) bool) {
	for _, id := range slices.Sorted(maps.Keys(p.c.touched)) {
		if i, ok := store.Get[*model.Instance](p.snap, id); ok && !yield(i) {
			return
		}
	}
}

// loseInstances gives up what runs on nodes that are down or gone.
func (p *pass) loseInstances() {
	lose := func(i *model.Instance, why string) {
		if i.Status.State.Final() {
			return
		}
		c := i.Clone()
		c.Status.State, c.Status.Ready, c.Status.Health = model.InstanceLost, false, model.HealthNone
		c.Status.Message, c.Status.Finished = why, p.now
		p.cs.PutStatus(c)
		p.event("instance lost", i, why)
		p.cut()
	}
	for _, n := range p.allNodes().list {
		if n.Status.State == model.NodeDown {
			for i := range store.InstancesOnNode(p.snap, n.ID) {
				why := p.bound(i, n)
				if why == "" {
					why = p.patience(i, n)
				}
				if why != "" {
					p.await(i, n, why)
					continue
				}
				lose(i, "node "+n.Name+" is down")
			}
		}
	}
	for id := range p.c.fenced {
		p.c.touched[id] = true
	}
	clear(p.c.fenced)
	for i := range p.candidates {
		if i.NodeID == "" || p.allNodes().byID[i.NodeID] != nil || i.Status.State.Final() {
			continue
		}
		if i.Leased && p.leased(i) {
			p.c.fenced[i.ID] = true
			continue
		}
		lose(i, "its node was removed")
	}
}

// patience says for what an instance of a silent node is waited for, as its workload asks; "" when it
// is not.
func (p *pass) patience(i *model.Instance, n *model.Node) string {
	w, ok := store.Get[*model.Workload](p.snap, i.WorkloadID)
	if !ok || i.Desired != model.DesiredRun || i.Status.State.Final() {
		return ""
	}
	if w.Unreachable.Never {
		return fmt.Sprintf("node %s is down: it is waited for", n.Name)
	}
	until := n.Status.Since.Add(w.Unreachable.ReplaceAfter)
	if w.Unreachable.ReplaceAfter <= 0 || !until.After(p.now) {
		return ""
	}
	if wait := until.Sub(p.now); p.fence == 0 || wait < p.fence {
		p.fence = wait
	}
	return fmt.Sprintf("node %s is down: it is waited for until %s", n.Name, until.UTC().Format(time.TimeOnly))
}

// drain stops instances that no balancer sends new connections to any more, or that were waited
// for long enough. It reports whether some are still waited for.
func (p *pass) drain() bool {
	known := p.c.draining
	for i := range p.candidates {
		if _, ok := known[i.ID]; !ok && i.Desired == model.DesiredDrain {
			known[i.ID] = p.now
		}
	}
	for _, id := range slices.Sorted(maps.Keys(known)) {
		i, ok := store.Get[*model.Instance](p.snap, id)
		if !ok || i.Desired != model.DesiredDrain || i.Status.State.Final() {
			delete(known, id)
			continue
		}
		late := p.now.Sub(known[id]) >= maxDrainWait
		behind := p.behind(i)
		if behind != "" && !late {
			continue
		}
		if behind != "" {
			p.c.Log.Warn("instance is stopped though a node may still send it connections", "instance", i.ID, "name", i.FullName(), "node", behind)
		}
		c := current(p, i).Clone()
		if c.Desired == model.DesiredDrain {
			c.Desired = model.DesiredStop
			p.put(c)
		}
	}
	return len(known) > 0
}

// behind names a live node that has not followed the revision in which the instance left the
// traffic, "" when all have. A node that has come back counts before its state says so. The
// instance's own revision is that one or, after a later report of its status, a newer one: waiting
// for that is longer than needed, never shorter.
func (p *pass) behind(i *model.Instance) string {
	for _, n := range p.allNodes().list {
		if p.c.Sessions.Live(n.ID) && p.c.Sessions.Applied(n.ID) < i.Revision {
			return n.Name
		}
	}
	return ""
}

// tidy forgets instances that nobody needs any more.
func (p *pass) tidy() {
	for i := range p.candidates {
		w, ok := store.Get[*model.Workload](p.snap, i.WorkloadID)
		switch {
		case ok && w.RemoveWhenEnded && p.endedForGood(w):
			p.removeWorkload(w)
		case i.Desired == model.DesiredRemove && (i.Status.State.Final() || i.NodeID == ""):
			p.cs.Delete(model.KindInstance, i.ID)
		case !ok && i.Desired != model.DesiredRemove:
			c := current(p, i).Clone()
			c.Desired, c.Cause = model.DesiredRemove, "its workload is gone"
			p.put(c)
		}
		p.cut()
	}
}

// endedForGood reports whether every instance that a workload wants has ended and will not be
// started again by itself.
func (p *pass) endedForGood(w *model.Workload) bool {
	ended := 0
	for i := range store.InstancesOfWorkload(p.snap, w.ID) {
		st := &i.Status
		switch {
		case i.Starts < w.Starts, st.State == model.InstanceHeld && len(st.Tasks) == 0: // it has not run yet
		case st.State == model.InstanceHeld && (w.Suspended || i.Desired == model.DesiredRun),
			st.State == model.InstanceCompleted, st.State == model.InstanceFailed:
			ended++
		}
	}
	return ended > 0 && ended >= w.Count
}

// removeWorkload removes a workload that asked for it, and the services that lead to it.
func (p *pass) removeWorkload(w *model.Workload) {
	if p.removed[w.ID] {
		return
	}
	if p.removed == nil {
		p.removed = map[string]bool{}
	}
	p.removed[w.ID] = true
	p.cs.Expect(model.KindWorkload, w.ID, w.Revision)
	p.cs.Delete(model.KindWorkload, w.ID)
	for s := range store.ByApplication[*model.Service](p.snap, w.Namespace, w.Application) {
		if s.WorkloadID == w.ID {
			p.cs.Delete(model.KindService, s.ID)
		}
	}
	for i := range store.InstancesOfWorkload(p.snap, w.ID) {
		c := current(p, i).Clone()
		c.Desired, c.Cause = model.DesiredRemove, "its workload has ended"
		p.put(c)
	}
	p.event("workload removed", w, "it has ended, and was to be removed then")
}

// keptRevisions is how many revisions of a workload are kept to return to.
const keptRevisions = 10

// tidyRevisions forgets the revisions of a workload that no instance runs and that it will not
// return to: all when it is gone, or else the oldest.
func (p *pass) tidyRevisions(workloadID string) {
	revisions := slices.SortedFunc(store.RevisionsOfWorkload(p.snap, workloadID), func(a, b *model.Revision) int { return b.Number - a.Number })
	w, ok := store.Get[*model.Workload](p.snap, workloadID)
	kept := 0
	if ok {
		kept = keptRevisions
	}
	if len(revisions) <= kept {
		return
	}
	used := map[string]bool{}
	for i := range store.InstancesOfWorkload(p.snap, workloadID) {
		used[i.RevisionID] = true
	}
	if ok {
		r := &w.Status.Rollout
		for _, id := range []string{w.RevisionID, w.PreviousRevisionID, r.Revision, r.From} {
			used[id] = true
		}
	}
	expected := false
	for _, r := range revisions[kept:] {
		if used[r.ID] {
			continue
		}
		if ok && !expected { // it may be about to return to one of them
			p.cs.Expect(model.KindWorkload, w.ID, w.Revision)
			expected = true
		}
		p.cs.Delete(model.KindRevision, r.ID)
	}
}
