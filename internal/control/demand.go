package control

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sort"

	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

// Demand says what up to so many further hosts like a given one would be good for, by placing what
// waits on a cluster that has them: whatever would still be in its way (a constraint, a quota, a volume
// that lives elsewhere) counts as it does when there is a real one. It also says which hosts are empty.
func Demand(snap *store.Snapshot, like *model.Node, most int) autoscale.Demand {
	p := &pass{snap: snap}
	out := autoscale.Demand{Hosts: p.hostViews()}
	var requests []schedule.Request
	names := map[string]autoscale.Waiting{}
	for i := range store.UnplacedInstances(snap) {
		if i.Desired != model.DesiredRun || i.Status.State.Final() || p.slotHeld(i) != "" {
			continue
		}
		r, known := store.Get[*model.Revision](snap, i.RevisionID)
		w, ok := store.Get[*model.Workload](snap, i.WorkloadID)
		if !known || !ok {
			continue
		}
		requests = append(requests, p.requestFor(i, w, &r.Template))
		names[i.ID] = autoscale.Waiting{Slot: fmt.Sprintf("%s/%d", w.ID, i.Slot), Name: i.FullName()}
	}
	slices.SortFunc(requests, func(a, b schedule.Request) int { return cmp.Compare(a.InstanceID, b.InstanceID) })
	requests = p.unplacedOf(requests, like, 0)
	if len(requests) == 0 || most < 1 {
		return out
	}
	left := map[string]bool{}
	for _, r := range p.unplacedOf(requests, like, most) {
		left[r.InstanceID] = true
	}
	for _, r := range requests {
		if !left[r.InstanceID] {
			out.Waiting = append(out.Waiting, names[r.InstanceID])
		}
	}
	if len(out.Waiting) > 0 {
		out.Further = 1 + sort.Search(most-1, func(n int) bool { return len(p.unplacedOf(requests, like, n+1)) <= len(left) })
	}
	return out
}

// unplacedOf returns those for which there is no place with so many further hosts.
func (p *pass) unplacedOf(requests []schedule.Request, like *model.Node, further int) (out []schedule.Request) {
	if len(requests) == 0 {
		return nil
	}
	p.seen = nil // each placing accounts for what it places
	seen, _ := p.views()
	views := slices.Clone(seen)
	for n := range further {
		views = append(views, &schedule.NodeView{Node: furtherHost(like, n+1)})
	}
	placed := schedule.Place(schedule.Cluster{Nodes: views, Namespaces: p.shares(requests)}, requests, p.snap.Revision())
	for n := range placed {
		if placed[n].NodeID == "" {
			out = append(out, requests[n])
		}
	}
	return out
}

// furtherHost is a host as one that is there already, without what people gave that one.
func furtherHost(like *model.Node, n int) *model.Node {
	name := fmt.Sprintf("further-%d", n)
	h := &model.Node{
		Meta: model.Meta{ID: name, Name: name}, Availability: model.Active, Capacity: like.Capacity, Reserved: like.Reserved,
		Attributes: maps.Clone(like.Attributes), Status: model.NodeStatus{State: model.NodeReady},
	}
	h.Capacity.Custom = nil
	delete(h.Attributes, "hostname")
	return h
}

func (p *pass) hostViews() []autoscale.HostView {
	keeps := map[string]bool{} // volumes
	for v := range store.List[*model.Volume](p.snap) {
		keeps[v.NodeID] = true
	}
	out := []autoscale.HostView{}
	for _, n := range p.allNodes().list {
		h := autoscale.HostView{Name: n.Name, Server: n.Server, Ready: n.Status.State == model.NodeReady, Open: n.Schedulable(), Empty: !keeps[n.ID]}
		for i := range store.InstancesOnNode(p.snap, n.ID) {
			if i.Status.State.Final() {
				continue
			}
			h.Instances++
			if w, ok := store.Get[*model.Workload](p.snap, i.WorkloadID); !ok || !w.Type.PerNode() {
				h.Empty = false
			}
		}
		out = append(out, h)
	}
	return out
}
