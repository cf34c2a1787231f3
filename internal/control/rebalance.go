package control

import (
	"cmp"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/cron"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

const (
	// steady is how long a node has to be up, and an instance ready, before anything is moved there or
	// it is moved itself: work does not follow a node that comes and goes.
	steady = 30 * time.Second
	// stranded is how long the replacement of a moving instance may be without a node; then it stays.
	stranded = 10 * time.Second
)

// rebalance lets a few instances move to where they would be placed now, of workloads that ask for
// it. It is looked at in every sweep; an instance that moves serves until its replacement is ready.
func (p *pass) rebalance() {
	if !p.c.swept.Equal(p.now) {
		return
	}
	var list []schedule.Movable
	byID := map[string]*model.Instance{}
	under := 0 // moves under way
	for w := range store.List[*model.Workload](p.snap) {
		if !w.Rebalance {
			continue
		}
		open, _ := cron.Open(w.Maintenance, p.now)
		movable, moving := p.movable(w)
		under += moving
		if !open {
			continue
		}
		for _, i := range movable {
			r, ok := store.Get[*model.Revision](p.snap, i.RevisionID)
			if !ok {
				continue
			}
			req := p.request(w, &r.Template)
			req.InstanceID = i.ID
			byID[i.ID] = i
			list = append(list, schedule.Movable{Request: req, NodeID: i.NodeID})
		}
	}
	budget := max(2, len(list)/20) - under
	if len(list) == 0 || budget <= 0 {
		return
	}
	p.seen = nil // what was placed in this pass counts too
	views, views2 := p.views()
	slices.SortFunc(list, func(a, b schedule.Movable) int {
		return cmp.Or(cmp.Compare(views2[b.NodeID].Total, views2[a.NodeID].Total), cmp.Compare(a.InstanceID, b.InstanceID))
	})
	for _, v := range views {
		if st := &v.Node.Status; st.State == model.NodeReady && p.now.Sub(st.Since) < steady {
			n := *v.Node
			n.Status.State = model.NodeUnknown
			v.Node = &n
		}
	}
	moved := map[string]bool{}
	move := func(m schedule.Move, to string) bool {
		i := byID[m.InstanceID]
		if moved[i.WorkloadID] || budget <= 0 {
			return false // one of a workload at a time
		}
		moved[i.WorkloadID] = true
		budget--
		c := current(p, i).Clone()
		c.Move = &model.Move{Why: m.Reason, To: to}
		p.put(c)
		p.event("instance moves", c, m.Reason)
		return true
	}
	cluster := schedule.Cluster{Nodes: views}
	heat := p.c.Heat.now(p.now)
	for _, m := range p.relieve(cluster, heat, list, budget) {
		if i := byID[m.InstanceID]; move(m, m.To) {
			p.c.Heat.moved(i.WorkloadID, i.Slot, i.NodeID, p.now)
		}
	}
	if m := p.makeRoom(cluster, list); m != nil {
		move(*m, m.To)
	}
	for _, m := range schedule.Rebalance(cluster, list, budget, p.snap.Revision()) {
		if !heat.forbids(byID[m.InstanceID], p.allNodes().byID[m.To]) {
			move(m, "")
		}
	}
	p.seen = nil
}

// movable returns the instances of a workload that may move: all of them, when it is at rest, and
// none otherwise. moving counts those that do already; one whose replacement finds no room stays.
func (p *pass) movable(w *model.Workload) (list []*model.Instance, moving int) {
	st := &w.Status
	rest := w.Type == model.ServiceWorkload && w.Update.Order == model.StartFirst && !w.Suspended && !w.Paused && st.Generation == w.Generation
	switch st.Rollout.State {
	case model.RolloutNone, model.RolloutCompleted, model.RolloutRolledBack:
	default:
		rest = false
	}
	replaced := map[string]*model.Instance{}
	for i := range store.InstancesOfWorkload(p.snap, w.ID) {
		if i.Replaces != "" && i.WantsToRun() {
			replaced[i.Replaces] = i
		}
	}
	for i := range store.InstancesOfWorkload(p.snap, w.ID) {
		switch {
		case i.Status.State.Final():
		case i.Move != nil:
			moving++
			rest = false
			if by := replaced[i.ID]; by != nil && by.NodeID == "" && p.now.Sub(by.Created) > stranded {
				c := current(p, i).Clone()
				c.Move = nil
				p.put(c)
			}
		case !i.Serving() || p.now.Sub(i.Status.ReadySince) < steady || i.RevisionID != w.RevisionID:
			rest = false
		default:
			list = append(list, i)
		}
	}
	if !rest || len(list) != w.Count || len(volumeIDs(&w.Template)) > 0 {
		return nil, moving
	}
	return list, moving
}
