package control

import (
	"fmt"
	"slices"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

// relations are the affinities of a workload's template, and those of others that want to be apart
// from it: what one of two asks for holds for both.
func (p *pass) relations(w *model.Workload, t *model.Template) (near, apart []schedule.Relation) {
	pl := &t.Placement
	find := func(name string) (string, bool) {
		app, short := model.SplitFullName(name)
		if app == "" {
			app = w.Application
		}
		other, ok := store.ByName[*model.Workload](p.snap, w.Namespace, app, short)
		if !ok {
			return "", false
		}
		return other.ID, true
	}
	near = schedule.Resolve(pl.Near, pl.CountedAs(w.ID), find)
	apart = schedule.Resolve(pl.Apart, pl.CountedAs(w.ID), find)
	for _, a := range p.avoiders() {
		if pl.Group != "" && slices.Contains(a.Groups, pl.Group) {
			other := a.workload.Template.Placement.CountedAs(a.workload.ID)
			if r := (schedule.Relation{Workloads: []string{other}, Names: a.workload.FullName(), Key: schedule.DomainKey(&a.Affinity)}); other != pl.CountedAs(w.ID) &&
				!slices.ContainsFunc(apart, func(have schedule.Relation) bool {
					return slices.Equal(have.Workloads, r.Workloads) && have.Key == r.Key
				}) {
				apart = append(apart, r)
			}
			continue
		}
		if a.workload.ID == w.ID || a.workload.Namespace != w.Namespace {
			continue
		}
		for _, name := range a.Workloads {
			app, short := model.SplitFullName(name)
			if app == "" {
				app = a.workload.Application
			}
			if app == w.Application && short == w.Name {
				apart = append(apart, schedule.Relation{Workloads: []string{a.workload.ID}, Names: a.workload.FullName(), Key: schedule.DomainKey(&a.Affinity)})
			}
		}
	}
	return near, apart
}

// avoider is a workload that must be kept apart from others.
type avoider struct {
	workload *model.Workload
	model.Affinity
}

func (p *pass) avoiders() []avoider {
	if p.avoiding == nil {
		p.avoiding = []avoider{}
		for w := range store.List[*model.Workload](p.snap) {
			for _, a := range w.Template.Placement.Apart {
				if a.Weight == 0 && len(a.Workloads)+len(a.Groups) > 0 {
					p.avoiding = append(p.avoiding, avoider{w, a})
				}
			}
		}
	}
	return p.avoiding
}

// contest adds to the views what matters only where some requests are more important than what
// runs: who may have to give way, and what is ending already.
func (p *pass) contest(views map[string]*schedule.NodeView, requests []schedule.Request) (spare map[string]int) {
	highest := requests[0].Template.Placement.Priority
	for i := range requests {
		highest = max(highest, requests[i].Template.Placement.Priority)
	}
	type kind struct {
		wanted   model.Resources
		priority int
		lesser   bool
	}
	kinds := map[string]kind{}
	for r := range store.List[*model.Revision](p.snap) {
		if pr := r.Template.Placement.Priority; pr < highest {
			kinds[r.ID] = kind{schedule.Wanted(&r.Template), pr, true}
		}
	}
	if len(kinds) == 0 {
		return nil // all are equally important, at least
	}
	spare = map[string]int{}
	for w := range store.List[*model.Workload](p.snap) {
		if w.MinAvailable > 0 {
			spare[w.ID] = -w.MinAvailable
		}
	}
	for i := range store.List[*model.Instance](p.snap) {
		v, k := views[i.NodeID], kinds[i.RevisionID]
		if v == nil || i.Status.State.Final() {
			continue
		}
		if _, bounded := spare[i.WorkloadID]; bounded && i.Serving() {
			spare[i.WorkloadID]++
		}
		o := schedule.Occupant{InstanceID: i.ID, WorkloadID: i.WorkloadID, Priority: k.priority, Wanted: k.wanted, Ports: i.HostPorts}
		w, ok := store.Get[*model.Workload](p.snap, i.WorkloadID)
		switch {
		case i.Desired != model.DesiredRun:
			if !k.lesser {
				if r, found := store.Get[*model.Revision](p.snap, i.RevisionID); found {
					o.Wanted = schedule.Wanted(&r.Template)
				}
			}
			v.Going = append(v.Going, o)
		case k.lesser && ok && !w.Type.PerNode():
			v.Occupants = append(v.Occupants, o)
		}
	}
	for id, n := range spare {
		spare[id] = max(n, 0)
	}
	return spare
}

// giveWay ends an instance so that a more important one finds room.
func (p *pass) giveWay(id string, to *model.Instance) {
	i, ok := store.Get[*model.Instance](p.snap, id)
	if !ok {
		return
	}
	c := current(p, i).Clone()
	if c.Desired != model.DesiredRun {
		return
	}
	c.Desired, c.Cause = model.DesiredStop, fmt.Sprintf("gives way to %s, which is more important", to.FullName())
	if c.Status.Ready {
		c.Desired = model.DesiredDrain
	}
	p.put(c)
	p.event("instance preempted", c, c.Cause)
}

// shares are what namespaces have and may have; nil when there is only one and it has no quota.
func (p *pass) shares(requests []schedule.Request) map[string]*schedule.Share {
	cluster, ok := store.Get[*model.Cluster](p.snap, model.ClusterID)
	bounded := ok && len(cluster.Namespaces) > 0
	several := slices.ContainsFunc(requests, func(r schedule.Request) bool { return r.Namespace != requests[0].Namespace })
	if !bounded && !several {
		return nil
	}
	out := map[string]*schedule.Share{}
	of := func(name string) *schedule.Share {
		if out[name] == nil {
			out[name] = &schedule.Share{}
			if bounded {
				if n, ok := cluster.Namespaces[name]; ok {
					*out[name] = schedule.Share{Weight: n.Weight, Quota: n.Quota, MaxInstances: n.MaxInstances}
				}
			}
		}
		return out[name]
	}
	for i := range requests {
		of(requests[i].Namespace)
	}
	for i := range store.List[*model.Instance](p.snap) {
		if i.NodeID == "" || i.Status.State.Final() {
			continue
		}
		if r, ok := store.Get[*model.Revision](p.snap, i.RevisionID); ok {
			of(i.Namespace).Add(schedule.Wanted(&r.Template))
		}
	}
	return out
}
