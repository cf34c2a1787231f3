package core

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// PauseRollout freezes a workload: what runs is kept up, and no instance gets another revision.
func (c *Core) PauseRollout(ctx context.Context, who Caller, ref string) (err error) {
	a, err := c.begin(who, "rollout pause", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeWorkload(ctx, a, ref, func(w *model.Workload, _ *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		if w.Type.Ends() {
			return fault.New(fault.Invalid, "%s is of kind %s, which is not rolled out; `tutti suspend` stops it", w.FullName(), w.Type)
		}
		if !w.Paused {
			w.Paused = true
			event(cs, now, "rollout paused", w, fmt.Sprintf("by %s through %s", who.Name, who.Via))
		}
		return nil
	})
}

// ResumeRollout lets a workload that was paused, or whose update failed and was paused for that, go on.
func (c *Core) ResumeRollout(ctx context.Context, who Caller, ref string) (err error) {
	a, err := c.begin(who, "rollout resume", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeWorkload(ctx, a, ref, func(w *model.Workload, _ *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		failed := w.Status.Rollout.State == model.RolloutPaused
		if !w.Paused && !failed {
			return fault.New(fault.Invalid, "%s is not paused", w.FullName())
		}
		if w.Paused = false; failed {
			w.Proceed++
		}
		event(cs, now, "rollout resumed", w, fmt.Sprintf("by %s through %s", who.Name, who.Via))
		return nil
	})
}

// Promote lets an update take its next step, or with all every further one.
func (c *Core) Promote(ctx context.Context, who Caller, ref string, all bool) (err error) {
	a, err := c.begin(who, "rollout promote", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeWorkload(ctx, a, ref, func(w *model.Workload, _ *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		r := &w.Status.Rollout
		if r.State != model.RolloutUpdating || r.Revision != w.RevisionID || len(w.Plan.Canary) == 0 && !w.Plan.BlueGreen {
			return fault.New(fault.Invalid, "%s has no update that waits to be promoted", w.FullName())
		}
		steps := r.Step + 1
		if all {
			steps = len(w.Plan.Canary) + 1
		}
		w.Promoted = model.Promotion{RevisionID: w.RevisionID, Steps: steps}
		event(cs, now, "rollout promoted", w, fmt.Sprintf("past step %d, by %s through %s", steps, who.Name, who.Via))
		return nil
	})
}

// Undo returns a workload to a revision that is kept, by its number; 0 is the one before the present.
func (c *Core) Undo(ctx context.Context, who Caller, ref string, number int) (err error) {
	if number == 0 {
		return c.Rollback(ctx, who, ref)
	}
	a, err := c.begin(who, "rollback", fmt.Sprintf("%s to revision %d", ref, number))
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeWorkload(ctx, a, ref, func(w *model.Workload, snap *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		var kept []string
		for _, r := range revisionsOf(snap, w.ID) {
			if r.Number != number {
				kept = append(kept, fmt.Sprint(r.Number))
				continue
			}
			if r.ID == w.RevisionID {
				return fault.New(fault.Invalid, "%s has revision %d already", w.FullName(), number)
			}
			cs.Expect(model.KindRevision, r.ID, r.Revision)
			w.PreviousRevisionID, w.RevisionID = w.RevisionID, r.ID
			w.Template = r.Template.Clone()
			event(cs, now, "workload rolled back", w, fmt.Sprintf("to revision %d, by %s through %s", r.Number, who.Name, who.Via))
			return nil
		}
		return fault.New(fault.NotFound, "%s has no revision %d; kept are %v", w.FullName(), number, kept)
	})
}

// Suspend scales a workload to zero and remembers its count; resume brings it back.
func (c *Core) Suspend(ctx context.Context, who Caller, ref string, suspended bool) (err error) {
	a, err := c.begin(who, "suspend", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeWorkload(ctx, a, ref, func(w *model.Workload, _ *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		if w.Suspended == suspended {
			return nil
		}
		w.Suspended = suspended
		kind := "workload suspended"
		if !suspended {
			kind = "workload resumed"
		}
		event(cs, now, kind, w, fmt.Sprintf("by %s through %s", who.Name, who.Via))
		return nil
	})
}

// RevisionInfo is a revision that is kept.
type RevisionInfo struct {
	Number    int       `json:"number"`
	ID        string    `json:"id"`
	Created   time.Time `json:"created"`
	Images    []string  `json:"images,omitempty"`
	Present   bool      `json:"present,omitempty"`  // what the workload should run
	Previous  bool      `json:"previous,omitempty"` // where an undo leads
	Instances int       `json:"instances"`          // not ended
}

// RolloutInfo tells how the latest update of a workload stands.
type RolloutInfo struct {
	Workload  string              `json:"workload"`
	Status    model.RolloutStatus `json:"status"`
	Plan      model.RolloutPlan   `json:"plan,omitzero"`
	Paused    bool                `json:"paused,omitempty"`
	Suspended bool                `json:"suspended,omitempty"`
	Revisions []RevisionInfo      `json:"revisions"` // the newest first
}

// Rollout tells how the latest update of a workload stands, and which revisions are kept.
func (c *Core) Rollout(ctx context.Context, who Caller, ref string) (RolloutInfo, error) {
	a, err := c.begin(who, "look", ref)
	if err != nil {
		return RolloutInfo{}, err
	}
	snap := c.look(who)
	w, err := findWorkload(snap, who.namespace(), ref)
	if err == nil {
		err = a.in(w.Namespace)
	}
	if err != nil {
		return RolloutInfo{}, err
	}
	out := RolloutInfo{Workload: w.FullName(), Status: w.Status.Rollout, Plan: w.Plan, Paused: w.Paused, Suspended: w.Suspended, Revisions: []RevisionInfo{}}
	running := map[string]int{}
	for i := range store.InstancesOf(snap, w) {
		if !i.Status.State.Final() {
			running[i.RevisionID]++
		}
	}
	for _, r := range revisionsOf(snap, w.ID) {
		info := RevisionInfo{
			Number: r.Number, ID: r.ID, Created: r.Created, Present: r.ID == w.RevisionID, Previous: r.ID == w.PreviousRevisionID, Instances: running[r.ID],
		}
		for _, t := range r.Template.Tasks {
			info.Images = append(info.Images, t.Image)
		}
		out.Revisions = append(out.Revisions, info)
	}
	return out, nil
}

// revisionsOf lists the revisions of a workload that are kept, the newest first.
func revisionsOf(snap *store.Snapshot, workloadID string) []*model.Revision {
	return slices.SortedFunc(store.RevisionsOfWorkload(snap, workloadID), func(a, b *model.Revision) int { return cmp.Compare(b.Number, a.Number) })
}
