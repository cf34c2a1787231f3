package core

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/cron"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/trust"
)

// Explain says why an application, workload, instance or node is as it is, and what to do where
// something is wrong.
func (c *Core) Explain(ctx context.Context, who Caller, ref string) (Explanation, error) {
	a, err := c.begin(who, "look", ref)
	if err != nil {
		return Explanation{}, err
	}
	snap := c.look(who)
	f, err := find(snap, who.namespace(), ref)
	if err == nil {
		err = a.about(f)
	}
	if err != nil {
		return Explanation{}, err
	}
	e := &explainer{snap: snap}
	switch {
	case f.Instance != nil:
		e.instance(f.Instance)
	case f.Workload != nil:
		e.workload(f.Workload)
	case f.Application != nil:
		for w := range store.ByApplication[*model.Workload](snap, f.Application.Namespace, f.Application.Name) {
			if _, within := store.Within(snap, w); !within {
				e.workload(w)
			}
		}
		if e.out.State == "" {
			e.out.State = "all is well"
		} else {
			e.out.State = "needs attention"
		}
	default:
		e.node(f.Node)
	}
	e.out.Subject = f.describe()
	e.history(f)
	return e.out, nil
}

type explainer struct {
	snap *store.Snapshot
	out  Explanation
}

func (e *explainer) say(format string, args ...any) {
	e.out.Lines = append(e.out.Lines, fmt.Sprintf(format, args...))
}

func (e *explainer) advise(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if !slices.Contains(e.out.Advice, line) {
		e.out.Advice = append(e.out.Advice, line)
	}
}

func (e *explainer) workload(w *model.Workload) {
	if w.Type == model.CronWorkload {
		e.schedule(w)
		return
	}
	ready, wanted := 0, w.Count
	var shown []*model.Instance
	for i := range store.InstancesOf(e.snap, w) {
		if i.Serving() || (w.Type.Job() && i.Status.State == model.InstanceCompleted && i.RevisionID == w.RevisionID) {
			ready++
		}
		if i.WantsToRun() || i.Status.State == model.InstanceFailed {
			shown = append(shown, i)
		}
	}
	if w.Type.PerNode() {
		wanted = len(shown)
	}
	if f := w.Followed; f != nil {
		e.say("%s is the %s %s of %s", w.FullName(), w.Belongs.Kind, w.Belongs.Name, w.Belongs.Platform)
		if w.Type.Job() {
			ready = f.Completed // what has completed may be gone
		}
		if f.Message != "" {
			e.say("  %s", f.Message)
		}
		if f.Count != w.Count {
			e.say("  %d instances are asked for here, of which %s is about to be told", w.Count, w.Belongs.Platform)
		}
	}
	word := "ready"
	if w.Type.Job() {
		word = "completed"
	}
	e.say("%s: %d of %d %s", w.FullName(), ready, wanted, word)
	if w.Suspended {
		e.say("  it is suspended")
	}
	if a := w.Autoscale; a != nil && w.Type == model.ServiceWorkload {
		lowest, highest, when := autoscale.Bounds(a, time.Now())
		e.say("  the cluster chooses between %d and %d instances%s; `tutti events` says why it does", lowest, highest, when)
	}
	if w.Status.Waiting != "" && w.Status.Released != w.RevisionID {
		e.say("  %s", w.Status.Waiting)
		e.out.State = "waiting"
	}
	if r := w.Status.Rollout; r.State != model.RolloutNone && r.State != model.RolloutCompleted {
		e.say("  update: %s %s", r.State, r.Message)
		if r.State == model.RolloutPaused {
			e.advise("fix %s and deploy again, return with `tutti rollback %s`, or let it go on with `tutti rollout resume %s`", w.FullName(), w.FullName(), w.FullName())
		}
	}
	if w.Paused {
		e.say("  it is paused by people: what runs is kept up, and nothing is updated")
		e.advise("let it be updated again: `tutti rollout resume %s`", w.FullName())
	}
	for _, i := range shown {
		if !i.Status.Ready {
			e.instance(i)
		}
	}
	if ready >= wanted && e.out.State == "" {
		return
	}
	if ready < wanted && e.out.State == "" {
		e.out.State = fmt.Sprintf("%d of %d %s", ready, wanted, word)
	}
}

// schedule tells of a cron workload; its runs are workloads of their own.
func (e *explainer) schedule(w *model.Workload) {
	st := &w.Status.Cron
	zone := w.Cron.TimeZone
	if zone == "" {
		zone = "UTC"
	}
	active := st.Active
	if w.Followed != nil {
		for run := range store.OwnedBy(e.snap, w.ID) {
			if run.Followed != nil && !run.Followed.Failing && run.Followed.Completed < run.Count {
				active++
			}
		}
	}
	e.say("%s starts a run at %s, %s; %d runs have not ended", w.FullName(), w.Cron.Schedule, zone, active)
	switch {
	case w.Status.Rollout.State == model.RolloutFailed:
		e.out.State = "its schedule is not understood"
		e.say("  %s", w.Status.Rollout.Message)
	case w.Suspended:
		e.say("  it is suspended: nothing is started")
	case !st.Next.IsZero():
		e.say("  the next run is due at %s", st.Next.Format("2006-01-02 15:04 MST"))
	}
	if st.Skipped != "" {
		e.say("  left out: %s", st.Skipped)
		if w.Cron.Overlap == model.OverlapForbid {
			e.advise("runs of %s take longer than the time between them: start them less often, or let them overlap (x-tutti.overlap)", w.FullName())
		}
	}
}

func (e *explainer) instance(i *model.Instance) {
	st := &i.Status
	where := "not placed"
	if n, ok := store.Get[*model.Node](e.snap, i.NodeID); ok {
		where = "on " + n.Name
	}
	state := string(st.State)
	if st.Health != model.HealthNone {
		state += ", " + string(st.Health)
	}
	e.out.State = state
	e.say("  %s (%s) is %s, %s", i.FullName(), model.ShortID(i.ID), state, where)
	if i.Reason != "" {
		if i.NodeID == "" {
			e.say("    no node: %s", i.Reason)
			e.hint(i)
			e.adviseUnplaced(i.Reason)
		} else {
			e.say("    placed there as %s", i.Reason)
		}
	}
	if st.Message != "" {
		e.say("    %s", st.Message)
	}
	if n, ok := store.Get[*model.Node](e.snap, i.NodeID); ok && n.Status.State == model.NodeDown && i.Stateful && !i.Leased {
		e.advise("bring %s back; local data cannot move by itself", n.Name)
	}
	if st.Restarts > 0 {
		e.say("    restarted %d times", st.Restarts)
		if st.Restarts >= 5 && !st.Ready {
			e.out.State = "crash loop"
			e.advise("%s crashes again and again: correct what it runs or what it needs, or return to an earlier revision (`tutti rollout history %s`)", i.FullName(), strings.Split(i.FullName(), ".")[0])
		}
		e.advise("look at what it says: `tutti logs %s`", i.FullName())
	}
	if i.Move != nil {
		e.say("    is to move: %s", i.Move.Why)
	}
	e.drained(i)
	if i.Cause != "" {
		e.say("    to be ended: %s", i.Cause)
	}
	for _, t := range st.Tasks {
		if t.State == "exited" {
			e.say("    task %s exited with code %d %s", t.Name, t.ExitCode, t.Error)
		}
		if t.OOM {
			e.advise("%s needs more memory than it can have: raise deploy.resources.limits.memory, or reserve what it needs", i.FullName())
		}
	}
	if st.State == model.InstanceFailed {
		e.advise("look at what it said: `tutti logs %s`", i.FullName())
	}
}

// drained tells why an instance is still on a node that is being drained.
func (e *explainer) drained(i *model.Instance) {
	n, ok := store.Get[*model.Node](e.snap, i.NodeID)
	w, known := store.Get[*model.Workload](e.snap, i.WorkloadID)
	if !ok || !known || n.Availability != model.Draining || !i.WantsToRun() {
		return
	}
	open, next := cron.Open(w.Maintenance, time.Now())
	switch {
	case w.Type.Ends():
		e.say("    its node is being drained; a job is left to finish")
	case !open:
		e.say("    its node is being drained; it stays until its maintenance window opens, at %s", next.UTC().Format("2006-01-02 15:04 MST"))
		e.advise("move it now: `tutti restart %s`", w.FullName())
	case w.MinAvailable > 0:
		e.say("    its node is being drained; %d instances of %s are to stay ready meanwhile (min_available)", w.MinAvailable, w.FullName())
	default:
		e.say("    its node is being drained; it is replaced elsewhere")
	}
}

// remedies say what to do about a reason why there is no node, by words in it; the first that is
// found counts. The words are the scheduler's own.
var remedies = []struct{ words, advice string }{
	{"used up its quota", "scale something down in the namespace, or raise its quota: `tutti namespace set`"},
	{"gang is placed as a whole", "add hosts (`tutti join`), lower the count or the reservation, or let the gang start in parts: remove x-tutti.gang"},
	{"give way to it", "nothing: it starts as soon as they have ended"},
	{"waits for what is ending", "nothing: it starts as soon as that has ended"},
	{"which a constraint names", "nodes have node.id, node.hostname, node.role, node.ip, node.platform.os, node.platform.arch, node.labels.NAME and node.attributes.NAME: correct the constraint"},
	{"do not satisfy node.attributes.", "ask for what nodes have, or add a host that has it: `tutti join`"},
	{"do not satisfy", "label a node so that it matches (`tutti node label NODE KEY=VALUE`), or change the constraint"},
	{"which instances are distributed by", "label the nodes with it (`tutti node label NODE KEY=VALUE`), or distribute by something that they have"},
	{"which is not tolerated", "let the service tolerate the taint (x-tutti.tolerations), or take it off a node"},
	{"are not linux/", "build the image for the platform of the nodes, or add a host of the right kind"},
	{"do not hold", "bring the node with the volume back; local data cannot move by itself"},
	{"taken", "the port is held on every node that fits: use another, add a host, or publish it on all nodes (without mode: host)"},
	{"kept apart", "add a host, or let it run beside the other: give the x-tutti.anti_affinity a weight"},
	{"close to", "start the other service first, or give the x-tutti.affinity a weight"},
	{"within their", "start the other service first, or give the x-tutti.affinity a weight"},
	{"uneven", "add a host where there are fewest, raise max_skew, or leave it out to spread as far as possible"},
	{"as many as", "add a host, scale down, or allow more in one place"},
	{"(0 free, ", "say which devices nodes have (`tutti node resources NODE NAME=COUNT`), add a host that has some, or lower the reservation"},
	{"too little", "add a host (`tutti join`), scale something down, or lower the reservation"},
	{"cordoned", "let the nodes take work again: `tutti node activate NODE`"},
	{"draining", "let the nodes take work again: `tutti node activate NODE`"},
	{"are down", "bring the nodes back: `tutti nodes` lists them"},
}

// hint says which constraints of an instance no node meets, and what may have been meant.
func (e *explainer) hint(i *model.Instance) {
	r, ok := store.Get[*model.Revision](e.snap, i.RevisionID)
	if !ok {
		return
	}
	var nodes []*model.Node
	for n := range store.List[*model.Node](e.snap) {
		nodes = append(nodes, n)
	}
	for n := range r.Template.Placement.Constraints {
		if text := schedule.Hint(nodes, &r.Template.Placement.Constraints[n]); text != "" {
			e.say("    %s", text)
		}
	}
}

func (e *explainer) adviseUnplaced(reason string) {
	for _, r := range remedies {
		if strings.Contains(reason, r.words) {
			e.advise("%s", r.advice)
			return
		}
	}
}

func (e *explainer) node(n *model.Node) {
	e.out.State = string(n.Status.State)
	count := 0
	for i := range store.InstancesOnNode(e.snap, n.ID) {
		if !i.Status.State.Final() {
			count++
		}
	}
	e.say("%s is %s since %s, %s, with %d instances", n.Name, n.Status.State, n.Status.Since.Format(time.DateTime), n.Availability, count)
	if n.Status.Message != "" {
		e.say("  %s", n.Status.Message)
	}
	if n.Status.State == model.NodeDown {
		e.advise("check the host and the tutti process on it; if it is gone for good: `tutti node rm %s`", n.Name)
	}
}

// history adds the latest events about the subject.
func (e *explainer) history(f Found) {
	ids := map[string]bool{}
	for _, i := range instancesOf(e.snap, f) {
		ids[i.ID] = true
	}
	switch {
	case f.Workload != nil:
		ids[f.Workload.ID] = true
	case f.Node != nil:
		ids = map[string]bool{f.Node.ID: true}
	case f.Application != nil:
		return // too many to be of use
	}
	var list []*model.Event
	for ev := range store.List[*model.Event](e.snap) {
		if ids[ev.Subject.ID] {
			list = append(list, ev)
		}
	}
	slices.SortFunc(list, func(a, b *model.Event) int { return a.Time.Compare(b.Time) })
	if len(list) > 8 {
		list = list[len(list)-8:]
	}
	if len(list) > 0 {
		e.say("lately:")
	}
	for _, ev := range list {
		e.say("  %s  %s %s %s", ev.Time.Format(time.TimeOnly), ev.Subject.Name, strings.TrimPrefix(ev.Type, string(ev.Subject.Kind)+" "), ev.Message)
	}
}

// Status sums the cluster up.
func (c *Core) Status(ctx context.Context, who Caller) (ClusterStatus, error) {
	if _, err := c.begin(who, "look", ""); err != nil {
		return ClusterStatus{}, err
	}
	snap := c.look(who)
	s := ClusterStatus{Revision: snap.Revision()}
	problem := func(advice, format string, args ...any) {
		s.Problems = append(s.Problems, Problem{What: fmt.Sprintf(format, args...), Advice: advice})
	}
	leader := c.Servers.Leader()
	for n := range store.List[*model.Node](snap) {
		s.Nodes++
		up := n.Status.State == model.NodeReady
		if up {
			s.NodesReady++
		}
		if n.Server {
			s.Servers++
			if up {
				s.ServersReady++
			}
		}
		if n.ID == leader {
			s.Leader = n.Name
		}
		if !up {
			problem("bring the host back, or forget it with `tutti node rm "+n.Name+"`", "node %s is %s since %s", n.Name, n.Status.State, n.Status.Since.Format(time.DateTime))
		}
	}
	if leader == "" {
		problem("bring back enough servers for a majority; what runs goes on running meanwhile", "no server leads: nothing can be changed, and this may be out of date")
	}
	if c.Trust != nil && c.Trust.Locked() && who.has(model.RoleViewer, "") {
		problem("give the unlock key to `tutti unlock` on that server", "the server that answers is locked since it was started: it gives nodes no secrets and admits no hosts")
	}
	if v, err := c.rotation(who); err == nil && v.Retiring != "" && len(v.Waiting) > 0 && time.Since(v.Since) > time.Minute {
		problem("bring them back before "+v.Until.Format(time.DateTime)+", or they must join anew; `tutti ca` tells more",
			"%d nodes have no certificate of the new authority yet: %s", len(v.Waiting), strings.Join(v.Waiting, ", "))
	}
	if s.Servers == 2 {
		problem("add a third server: `tutti join --server`", "two servers cannot spare one")
	}
	for range store.List[*model.Application](snap) {
		s.Applications++
	}
	for w := range store.List[*model.Workload](snap) {
		if _, within := store.Within(snap, w); within {
			continue // it counts with that
		}
		s.Workloads++
		if w.Type == model.CronWorkload {
			continue // its runs count by themselves
		}
		ready, pending := 0, 0
		for i := range store.InstancesOf(snap, w) {
			if !i.WantsToRun() {
				if w.Type.Job() && i.Status.State == model.InstanceCompleted && i.RevisionID == w.RevisionID {
					ready++
				}
				continue
			}
			s.Instances++
			if i.Status.State == model.InstanceRunning {
				s.Running++
			}
			if i.Status.Ready {
				s.Ready++
				ready++
			}
			if i.NodeID == "" {
				s.Pending++
				pending++
			}
		}
		if f := w.Followed; f != nil && w.Type.Job() {
			ready = f.Completed // what has completed may be gone
		}
		advice := "`tutti explain " + w.FullName() + "` says why"
		switch {
		case pending > 0:
			problem(advice, "%d instances of %s have no node", pending, w.FullName())
		case w.Status.Waiting != "" && w.Status.Released != w.RevisionID:
			problem(advice, "%s is %s", w.FullName(), w.Status.Waiting)
		case !w.Type.PerNode() && !w.Suspended && ready < w.Count:
			problem(advice, "%s has %d of %d ready", w.FullName(), ready, w.Count)
		}
		if st := w.Status.Rollout.State; st == model.RolloutPaused || st == model.RolloutRolledBack || st == model.RolloutFailed {
			problem(advice, "the latest update of %s ended %s: %s", w.FullName(), st, w.Status.Rollout.Message)
		}
	}
	s.Healthy = len(s.Problems) == 0
	return s, nil
}

// rotation tells how far the nodes are with another authority, to who may see all nodes' part in it.
func (c *Core) rotation(who Caller) (trust.View, error) {
	if c.Trust == nil || !who.has(model.RoleViewer, "") {
		return trust.View{}, nil
	}
	return c.Trust.View()
}
