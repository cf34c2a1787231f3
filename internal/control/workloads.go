package control

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/rollout"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

// workload takes the next steps of one workload.
func (p *pass) workload(w *model.Workload) error {
	status := w.Status
	status.Generation = w.Generation
	held := p.hold(w, &status)
	in := rollout.Input{Workload: w, Now: p.now, Leaving: map[string]bool{}, Held: held}
	for i := range store.InstancesOfWorkload(p.snap, w.ID) {
		in.Instances = append(in.Instances, i)
	}
	for n := range store.List[*model.Node](p.snap) {
		if n.Availability == model.Draining {
			in.Leaving[n.ID] = true
		}
		if w.Type == model.GlobalWorkload && schedule.Eligible(n, &w.Template) {
			in.Nodes = append(in.Nodes, n)
		}
	}
	out := rollout.Next(in)
	p.tellRollout(w, &status.Rollout, &out)
	status.Rollout = out.Rollout
	if out.RollBackTo != "" {
		if err := p.rollBack(w, out.RollBackTo); err != nil {
			return err
		}
	}
	for i := range out.Actions {
		if err := p.act(w, &out.Actions[i]); err != nil {
			return err
		}
	}
	if !out.Revisit.IsZero() {
		p.c.timers[w.ID] = out.Revisit
	}
	p.putStatus(w, status)
	return nil
}

// hold reports whether the workload's revision still waits for its dependencies, and says so in
// status. A revision that the workload returns to has started before and does not wait again.
func (p *pass) hold(w *model.Workload, status *model.WorkloadStatus) bool {
	waiting := ""
	if status.Released != w.RevisionID {
		r := &status.Rollout
		returns := r.From == w.RevisionID || r.State == model.RolloutRolling && r.Revision == w.RevisionID
		if status.Released == "" || !returns {
			waiting = p.waitsFor(w)
		}
	}
	if waiting == "" {
		status.Released, status.Waiting = w.RevisionID, ""
		return false
	}
	if status.Waiting != waiting {
		status.Waiting = waiting
		p.event("workload waits", w, waiting)
	}
	return true
}

func (p *pass) putStatus(w *model.Workload, status model.WorkloadStatus) {
	if status == w.Status {
		return
	}
	c := w.Clone()
	c.Status = status
	p.cs.PutStatus(c)
}

func (p *pass) tellRollout(w *model.Workload, old *model.RolloutStatus, out *rollout.Output) {
	if old.State == out.Rollout.State || out.Rollout.State == model.RolloutNone {
		return
	}
	message := out.Rollout.Message
	if out.Rollout.State == model.RolloutRolling {
		message = "the update is being rolled back: " + message
	}
	p.event("rollout "+string(out.Rollout.State), w, message)
	p.c.Log.Info("rollout changed state", "workload", w.FullName(), "state", out.Rollout.State, "message", out.Rollout.Message)
}

// rollBack makes an earlier revision the desired one.
func (p *pass) rollBack(w *model.Workload, to string) error {
	r, ok := store.Get[*model.Revision](p.snap, to)
	if !ok {
		return fmt.Errorf("roll back to revision %s: it is not kept", to)
	}
	c := w.Clone()
	c.PreviousRevisionID, c.RevisionID = w.RevisionID, to
	c.Template = r.Template.Clone()
	c.Generation++
	p.cs.Expect(model.KindWorkload, w.ID, w.Revision)
	p.put(c)
	return nil
}

func (p *pass) act(w *model.Workload, a *rollout.Action) error {
	switch a.Type {
	case rollout.Create:
		return p.create(w, a)
	case rollout.Drain, rollout.Stop:
		i, ok := store.Get[*model.Instance](p.snap, a.InstanceID)
		if !ok {
			return nil
		}
		c := current(p, i).Clone()
		c.Desired, c.Cause = model.DesiredStop, a.Cause
		if a.Type == rollout.Drain {
			c.Desired = model.DesiredDrain
		}
		if i.NodeID == "" {
			c.Desired = model.DesiredRemove // nobody has to stop it
		}
		p.put(c)
	case rollout.Forget:
		p.cs.Delete(model.KindInstance, a.InstanceID)
	}
	return nil
}

func (p *pass) create(w *model.Workload, a *rollout.Action) error {
	i := &model.Instance{
		Meta: model.Meta{
			ID: model.NewID(), Namespace: w.Namespace, Application: w.Application,
			Name: w.Name + "." + strconv.Itoa(a.Slot), Created: p.now, Labels: w.Template.Labels,
		},
		WorkloadID: w.ID, Slot: a.Slot, RevisionID: a.RevisionID, Replaces: a.Replaces,
		Desired: model.DesiredRun, Status: model.InstanceStatus{State: model.InstancePending},
	}
	if a.NodeID != "" {
		n, ok := store.Get[*model.Node](p.snap, a.NodeID)
		if !ok {
			return nil
		}
		i.Name = w.Name + "." + n.Name
		if err := p.assign(i, &w.Template, n, "every matching node runs one"); err != nil {
			i.NodeID, i.Reason = "", err.Error()
			return nil // tried again when something changes
		}
	}
	p.put(i)
	return nil
}

// waitsFor says for what a workload's revision has to wait before its first start, "" when for
// nothing.
func (p *pass) waitsFor(w *model.Workload) string {
	var waits []string
	for _, d := range w.DependsOn {
		dep, ok := store.ByName[*model.Workload](p.snap, w.Namespace, w.Application, d.Workload)
		if !ok {
			if !d.Optional {
				waits = append(waits, d.Workload+" to exist")
			}
			continue
		}
		if reason := p.unmet(dep, d.Condition); reason != "" {
			waits = append(waits, reason)
		}
	}
	if len(waits) == 0 {
		return ""
	}
	return "waiting for " + strings.Join(waits, " and ")
}

func (p *pass) unmet(dep *model.Workload, condition model.DependencyCondition) string {
	completed := map[int]bool{}
	failed := ""
	for i := range store.InstancesOfWorkload(p.snap, dep.ID) {
		if i.RevisionID != dep.RevisionID {
			continue
		}
		st := &i.Status
		switch condition {
		case model.DependencyStarted:
			if st.State == model.InstanceRunning || st.State == model.InstanceCompleted {
				return ""
			}
		case model.DependencyHealthy:
			if st.Ready {
				return ""
			}
		case model.DependencyCompleted:
			if st.State == model.InstanceCompleted {
				completed[i.Slot] = true
			}
			if st.State == model.InstanceFailed {
				failed = st.Message
			}
		}
	}
	switch condition {
	case model.DependencyStarted:
		return dep.Name + " to run"
	case model.DependencyHealthy:
		return dep.Name + " to be healthy"
	}
	if len(completed) >= dep.Count && dep.Count > 0 {
		return ""
	}
	if failed != "" {
		return dep.Name + " to complete, which failed: " + failed
	}
	return dep.Name + " to complete"
}

// loseInstances gives up what runs on nodes that are down or gone.
func (p *pass) loseInstances() {
	gone := map[string]string{}
	for n := range store.List[*model.Node](p.snap) {
		if n.Status.State == model.NodeDown {
			gone[n.ID] = "node " + n.Name + " is down"
		} else {
			gone[n.ID] = ""
		}
	}
	for i := range store.List[*model.Instance](p.snap) {
		if i.NodeID == "" || i.Status.State.Final() {
			continue
		}
		why, known := gone[i.NodeID]
		if !known {
			why = "its node was removed"
		}
		if why == "" {
			continue
		}
		c := i.Clone()
		c.Status.State, c.Status.Ready, c.Status.Health = model.InstanceLost, false, model.HealthNone
		c.Status.Message, c.Status.Finished = why, p.now
		p.cs.PutStatus(c)
		p.event("instance lost", i, why)
		p.c.dirty[i.WorkloadID] = true
	}
}

// drain stops instances that no balancer sends new connections to any more. It reports whether
// some are still waited for.
func (p *pass) drain() bool {
	waiting := false
	for i := range store.List[*model.Instance](p.snap) {
		if i.Desired != model.DesiredDrain || i.Status.State.Final() {
			continue
		}
		if !p.drained(i) {
			waiting = true
			continue
		}
		c := current(p, i).Clone()
		c.Desired = model.DesiredStop
		p.put(c)
	}
	return waiting
}

// drained reports whether every live node has followed the revision in which the instance left
// the traffic. Its own revision is that one or, after a later report of its status, a newer one:
// waiting for that is longer than needed, never shorter.
func (p *pass) drained(i *model.Instance) bool {
	for n := range store.List[*model.Node](p.snap) {
		if n.Status.State == model.NodeReady && p.c.Sessions.Live(n.ID) && p.c.Sessions.Applied(n.ID) < i.Revision {
			return false
		}
	}
	return true
}

// tidy forgets what nobody needs any more.
func (p *pass) tidy() {
	for i := range store.List[*model.Instance](p.snap) {
		_, ok := store.Get[*model.Workload](p.snap, i.WorkloadID)
		if !ok && i.Desired != model.DesiredRemove {
			c := i.Clone()
			c.Desired, c.Cause = model.DesiredRemove, "its workload is gone"
			p.put(c)
			continue
		}
		if i.Desired == model.DesiredRemove && (i.Status.State.Final() || i.NodeID == "") {
			p.cs.Delete(model.KindInstance, i.ID)
		}
	}
	for r := range store.List[*model.Revision](p.snap) {
		if _, ok := store.Get[*model.Workload](p.snap, r.WorkloadID); ok {
			continue
		}
		used := false
		for i := range store.InstancesOfWorkload(p.snap, r.WorkloadID) {
			used = used || i.RevisionID == r.ID
		}
		if !used {
			p.cs.Delete(model.KindRevision, r.ID)
		}
	}
}
