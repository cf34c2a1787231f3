package core

import (
	"context"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// BoundWorkload bounds tasks of a workload of one instance anew, by their names: what runs is bounded so at once, and goes on;
// the instance keeps to it when they are started again. It is fault.Exhausted where its node has no room for that now,
// and fault.Invalid where it never has.
func (c *Core) BoundWorkload(ctx context.Context, who Caller, id string, tasks map[string]model.Bounds) (err error) {
	a, err := c.begin(who, "bound", id)
	if err != nil {
		return err
	}
	defer a.end(&err)
	told := false
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		old, ok := store.Get[*model.Workload](snap.Only(who.sees), id)
		if !ok {
			return fault.New(fault.NotFound, "workload %s does not exist", id)
		}
		if err := a.in(old.Namespace); err != nil {
			return err
		}
		if old.Type != model.SingleWorkload {
			return fault.New(fault.Unsupported, "%s is not a workload of one instance: those are changed by deploying them anew", workloadLabel(old))
		}
		w := old.Clone()
		for _, list := range [][]model.TaskSpec{w.Template.InitTasks, w.Template.Tasks} {
			for i := range list {
				if b, ok := tasks[list[i].Name]; ok {
					list[i].Limit.NanoCPUs, list[i].Limit.MemoryBytes = b.Limit.NanoCPUs, b.Limit.MemoryBytes
					list[i].Reserve.NanoCPUs, list[i].Reserve.MemoryBytes = b.Reserve.NanoCPUs, b.Reserve.MemoryBytes
				}
			}
		}
		setRevision(snap, cs, w, time.Now())
		if w.RevisionID == old.RevisionID {
			return nil
		}
		w.Generation++
		put(cs, w)
		for i := range store.InstancesOfWorkload(snap, w.ID) {
			if i.Status.State.Final() {
				continue
			}
			if err := growsInPlace(snap, i, w); err != nil {
				return err
			}
			if !told {
				if err := c.boundTasks(ctx, i, w, tasks); err != nil {
					return err
				}
				told = true
			}
			d := i.Clone()
			d.RevisionID = w.RevisionID
			put(cs, d)
		}
		return nil
	})
}

// boundTasks bounds the tasks of an instance that run.
func (c *Core) boundTasks(ctx context.Context, i *model.Instance, w *model.Workload, tasks map[string]model.Bounds) error {
	for _, t := range slices.Concat(w.Template.InitTasks, w.Template.Tasks) {
		runs := slices.ContainsFunc(i.Status.Tasks, func(s model.TaskStatus) bool { return s.Name == t.Name && s.State == "running" })
		if _, asked := tasks[t.Name]; !asked || !runs {
			continue
		}
		if err := c.Remote.Bound(ctx, i.NodeID, wire.TaskRef{Instance: i.ID, Task: t.Name}, t.Bounds()); err != nil {
			return err
		}
	}
	return nil
}

// growsInPlace reports why an instance's node has no room for what it is to set aside.
func growsInPlace(snap *store.Snapshot, i *model.Instance, w *model.Workload) error {
	n, ok := store.Get[*model.Node](snap, i.NodeID)
	if !ok {
		return nil // it will be placed by what it wants then
	}
	if lacking := schedule.TooLittle(n, nil, &w.Template); lacking != "" {
		return fault.New(fault.Invalid, "node %s has never room for it: too little %s", n.Name, lacking)
	}
	var others []*model.Template
	for o := range store.InstancesOnNode(snap, n.ID) {
		if r, ok := store.Get[*model.Revision](snap, o.RevisionID); ok && o.ID != i.ID && !o.Status.State.Final() {
			others = append(others, &r.Template)
		}
	}
	if lacking := schedule.TooLittle(n, others, &w.Template); lacking != "" {
		return fault.New(fault.Exhausted, "node %s has no room for it now: too little %s", n.Name, lacking)
	}
	return nil
}
