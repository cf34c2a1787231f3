package core

import (
	"context"
	"fmt"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

// EndInstances ends instances, by ID, out of the traffic first; others take their places, unless the
// workloads shrink by as many. Those that have ended, or have been told to, stay as they are.
func (c *Core) EndInstances(ctx context.Context, who Caller, ids []string, shrink bool) (err error) {
	a, err := c.begin(who, "end", fmt.Sprintf("%d instances", len(ids)))
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		now := time.Now()
		fewer := map[string]int{}
		for _, id := range ids {
			i, ok := store.Get[*model.Instance](snap.Only(who.sees), id)
			if !ok {
				return fault.New(fault.NotFound, "instance %s does not exist", id)
			}
			if err := a.in(i.Namespace); err != nil {
				return err
			}
			if w, ok := store.Get[*model.Workload](snap, i.WorkloadID); ok {
				if err := w.Refusal(); err != nil {
					return err
				}
			}
			if i.Desired != model.DesiredRun || i.Status.State.Final() && !shrink {
				continue
			}
			fewer[i.WorkloadID]++
			if i.Status.State.Final() {
				continue
			}
			n := i.Clone()
			n.Desired, n.Cause = model.DesiredStop, fmt.Sprintf("ended by %s through %s", who.Name, who.Via)
			if i.Status.Ready && i.NodeID != "" {
				n.Desired = model.DesiredDrain
			}
			if i.NodeID == "" {
				n.Desired = model.DesiredRemove
			}
			put(cs, n)
			event(cs, now, "instance ended by people", n, n.Cause)
		}
		if !shrink {
			return nil
		}
		for id, n := range fewer {
			old, ok := store.Get[*model.Workload](snap, id)
			if !ok || old.Type != model.ServiceWorkload && old.Type != model.StatefulWorkload {
				continue
			}
			w := old.Clone()
			w.Count = max(0, w.Count-n)
			w.Generation++
			put(cs, w)
			event(cs, now, "workload scaled", w, fmt.Sprintf("from %d to %d, by %s through %s", old.Count, w.Count, who.Name, who.Via))
		}
		return nil
	})
}

// Refusal is why a node does not take an instance.
type Refusal struct {
	Node   *model.Node
	Reason string // "" where it would
}

// Refusals says of every node whether it would take one more instance of a workload now.
func (c *Core) Refusals(who Caller, workloadID string) ([]Refusal, error) {
	a, err := c.begin(who, "look", workloadID)
	if err != nil {
		return nil, err
	}
	snap := c.Store.Snapshot()
	w, ok := store.Get[*model.Workload](snap, workloadID)
	if !ok {
		return nil, fault.New(fault.NotFound, "workload %s does not exist", workloadID)
	}
	if err := a.in(w.Namespace); err != nil {
		return nil, err
	}
	find := func(name string) (string, bool) {
		app, short := model.SplitFullName(name)
		if app == "" {
			app = w.Application
		}
		if other, ok := store.ByName[*model.Workload](snap, w.Namespace, app, short); ok {
			return other.ID, true
		}
		return "", false
	}
	pl := &w.Template.Placement
	r := schedule.Request{
		WorkloadID: w.ID, Workload: w.FullName(), Namespace: w.Namespace, Template: &w.Template,
		Near: schedule.Resolve(pl.Near, w.ID, find), Apart: schedule.Resolve(pl.Apart, w.ID, find),
	}
	for _, p := range w.Template.Ports {
		if p.Host != 0 {
			r.HostPorts = append(r.HostPorts, model.HostPort{Protocol: p.Protocol, Published: p.Host, HostIP: model.OneHostIP(p.HostIP)})
		}
	}
	wanted := map[string]model.Resources{}
	views := func() (list []*schedule.NodeView) {
		for n := range store.List[*model.Node](snap) {
			v := &schedule.NodeView{Node: n}
			for i := range store.InstancesOnNode(snap, n.ID) {
				need, ok := wanted[i.RevisionID]
				if rev, found := store.Get[*model.Revision](snap, i.RevisionID); !ok && found {
					need = schedule.Wanted(&rev.Template)
					wanted[i.RevisionID] = need
				}
				if !i.Status.State.Final() {
					v.Take(i.WorkloadID, &need, i.HostPorts)
				}
			}
			list = append(list, v)
		}
		return list
	}()
	var out []Refusal
	for n, reason := range schedule.Refusals(views, r) {
		out = append(out, Refusal{views[n].Node, reason})
	}
	return out, nil
}
