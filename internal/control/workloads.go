package control

import (
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/cron"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/rollout"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

// workload takes the next steps of one workload.
func (p *pass) workload(w *model.Workload) error {
	if w.Followed != nil {
		return nil // another platform looks after it
	}
	if w.Type == model.CronWorkload {
		p.cron(w)
		return nil
	}
	status := w.Status
	status.Generation = w.Generation
	held := p.hold(w, &status)
	in := rollout.Input{Workload: w, Now: p.now, Leaving: p.leavingFor(w), Held: held}
	for i := range store.InstancesOfWorkload(p.snap, w.ID) {
		i, err := p.relink(w, i)
		if err != nil {
			return err
		}
		in.Instances = append(in.Instances, i)
	}
	if w.Type.PerNode() {
		in.Nodes = p.nodesOf(w, in.Instances)
	}
	if key := w.Plan.Domains; key != "" {
		in.Domains = map[string]string{}
		for _, n := range p.allNodes().list {
			in.Domains[n.ID], _ = schedule.Value(n, key)
		}
	}
	out := rollout.Next(in)
	if out.RollBackTo != "" {
		p.rollBack(w, &out)
	}
	p.tellRollout(w, &status.Rollout, &out)
	status.Rollout = out.Rollout
	delete(p.c.timers, w.ID)
	p.revisit(w, out.Revisit)
	if len(in.Leaving) < len(p.allNodes().leaving) {
		_, next := cron.Open(w.Maintenance, p.now)
		p.revisit(w, next)
	}
	for i := range out.Actions {
		if err := p.act(w, &out.Actions[i]); err != nil {
			return err
		}
		p.cut()
	}
	p.putStatus(w, status)
	return nil
}

// revisit asks for a workload to be looked at again at a time, unless that is zero.
func (p *pass) revisit(w *model.Workload, at time.Time) {
	if have, ok := p.c.timers[w.ID]; !at.IsZero() && (!ok || at.Before(have)) {
		p.c.timers[w.ID] = at
	}
}

// leavingFor are the nodes that a workload is to leave: those that are drained, and those with a taint
// that evicts it; none outside of its maintenance windows.
func (p *pass) leavingFor(w *model.Workload) map[string]bool {
	if open, _ := cron.Open(w.Maintenance, p.now); !open {
		return nil
	}
	all := p.allNodes()
	out := all.leaving
	for _, n := range all.evicting {
		if out[n.ID] || !schedule.Evicts(n, &w.Template) {
			continue
		}
		if len(out) == len(all.leaving) {
			out = maps.Clone(out)
		}
		out[n.ID] = true
	}
	return out
}

// nodesOf returns where a global workload should run: on nodes that take work, and on those that
// take no new work, or none like it, but had it before.
func (p *pass) nodesOf(w *model.Workload, instances []*model.Instance) []*model.Node {
	had := map[string]bool{}
	for _, i := range instances {
		had[i.NodeID] = true
	}
	leaving := p.leavingFor(w)
	var out []*model.Node
	for _, n := range p.allNodes().list {
		stays := n.Status.State == model.NodeReady && had[n.ID] && !leaving[n.ID]
		if schedule.Eligible(n, &w.Template) || stays && schedule.SuitsApartFromTaints(n, &w.Template) {
			out = append(out, n)
		}
	}
	return out
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
func (p *pass) rollBack(w *model.Workload, out *rollout.Output) {
	r, ok := store.Get[*model.Revision](p.snap, out.RollBackTo)
	if !ok {
		rs := &out.Rollout
		rs.State, rs.Revision, rs.From = model.RolloutPaused, w.RevisionID, ""
		rs.Message = fmt.Sprintf("paused: %s; revision %s, which it came from, is no longer kept", rs.Message, out.RollBackTo)
		return
	}
	c := w.Clone()
	c.PreviousRevisionID, c.RevisionID = w.RevisionID, r.ID
	c.Template = r.Template.Clone()
	c.Generation++
	p.cs.Expect(model.KindWorkload, w.ID, w.Revision)
	p.put(c)
}

func (p *pass) act(w *model.Workload, a *rollout.Action) error {
	switch a.Type {
	case rollout.Create:
		return p.create(w, a)
	case rollout.Start, rollout.Hold:
		i, ok := store.Get[*model.Instance](p.snap, a.InstanceID)
		if !ok {
			return nil
		}
		c := current(p, i).Clone()
		c.Desired, c.Starts, c.Cause, c.StopWithin = model.DesiredRun, max(w.Starts, i.Starts+1), "", nil
		if a.Type == rollout.Hold {
			c.Desired, c.Starts, c.Cause, c.StopWithin = model.DesiredHold, i.Starts, a.Cause, w.StopWithin
		}
		p.put(c)
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
	case rollout.Release:
		if i, ok := store.Get[*model.Instance](p.snap, a.InstanceID); ok {
			c := current(p, i).Clone()
			c.Standby = false
			p.put(c)
		}
	case rollout.Forget:
		p.cs.Delete(model.KindInstance, a.InstanceID)
	}
	return nil
}

func (p *pass) create(w *model.Workload, a *rollout.Action) error {
	r, ok := store.Get[*model.Revision](p.snap, a.RevisionID)
	if !ok {
		return fmt.Errorf("create an instance of revision %s: it is not kept", a.RevisionID)
	}
	i := &model.Instance{
		Meta: model.Meta{
			ID: model.NewID(), Namespace: w.Namespace, Application: w.Application,
			Name: nameOf(w, a.Slot), Created: p.now, Labels: r.Template.Labels,
		},
		WorkloadID: w.ID, Slot: a.Slot, Stateful: w.Type == model.StatefulWorkload || w.Exclusive, RevisionID: a.RevisionID, Replaces: a.Replaces, Standby: a.Standby,
		Desired: model.DesiredRun, Starts: w.Starts, Status: model.InstanceStatus{State: model.InstancePending},
	}
	if a.NodeID == "" {
		p.put(i)
		return nil
	}
	n := p.allNodes().byID[a.NodeID]
	if n == nil {
		return fmt.Errorf("create an instance on node %s: it does not exist", a.NodeID)
	}
	i.Name = w.Name + "." + n.Name
	why := p.takeRoom(w, i, &r.Template, n)
	key := w.ID + " " + n.ID
	if why == "" {
		delete(p.c.refused, key)
		p.put(i)
		p.event("instance placed", i, "on "+n.Name+": "+i.Reason)
		return nil
	}
	if p.c.refused[key] != why {
		p.c.refused[key] = why
		p.event("instance pending", w, why)
	}
	p.revisit(w, p.now.Add(refusedAfter))
	return nil
}

// takeRoom puts an instance of a global workload on its node, or says why there is no room.
func (p *pass) takeRoom(w *model.Workload, i *model.Instance, t *model.Template, n *model.Node) string {
	_, views := p.views()
	v, wanted := views[n.ID], schedule.Wanted(t)
	if why := schedule.Lacks(v, p.request(w, t)); why != "" {
		return fmt.Sprintf("no room for %s: %s", i.Name, why)
	}
	if err := p.assign(i, t, n, "every matching node runs one"); err != nil {
		return fmt.Sprintf("%s cannot be placed: %v", i.Name, err)
	}
	v.Take(t.Placement.CountedAs(i.WorkloadID), &wanted, p.fixedPorts(i.WorkloadID, t))
	return ""
}

// waitsFor says for what a workload's revision has to wait before its first start, "" when for
// nothing.
func (p *pass) waitsFor(w *model.Workload) string {
	var waits []string
	for _, d := range w.DependsOn {
		app, name := d.Names(w.Application)
		dep, ok := store.ByName[*model.Workload](p.snap, w.Namespace, app, name)
		if app != w.Application {
			p.c.crossing[w.ID] = true
		}
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
	ready, failed := 0, ""
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
		case model.DependencyReady:
			if i.Serving() {
				ready++
			}
		case model.DependencyCompleted:
			if st.State == model.InstanceCompleted && i.Desired == model.DesiredRun { // and was not stopped half way
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
	case model.DependencyReady:
		if ready >= dep.Count && !dep.Type.PerNode() || ready > 0 && dep.Type.PerNode() {
			return ""
		}
		return fmt.Sprintf("all of %s to be healthy", dep.Name)
	}
	if len(completed) >= dep.Count && dep.Count > 0 {
		return ""
	}
	if failed != "" {
		return dep.Name + " to complete, which failed: " + failed
	}
	return dep.Name + " to complete"
}
