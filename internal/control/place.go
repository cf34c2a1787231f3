package control

import (
	"fmt"
	"slices"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

// place finds nodes for all instances that have none.
func (p *pass) place() {
	var pending []*model.Instance
	for i := range store.UnplacedInstances(p.snap) {
		if i.Desired == model.DesiredRun && !i.Status.State.Final() && p.changed[i.ID] == nil {
			pending = append(pending, i)
		}
	}
	for _, o := range p.changed { // created in this very pass
		if i, ok := o.(*model.Instance); ok && i.NodeID == "" && i.Desired == model.DesiredRun {
			pending = append(pending, i)
		}
	}
	if len(pending) == 0 {
		return
	}
	slices.SortFunc(pending, func(a, b *model.Instance) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		if a.Slot != b.Slot {
			return a.Slot - b.Slot
		}
		return compareStrings(a.ID, b.ID)
	})
	views, byID := p.views()
	templates := map[string]*model.Template{}
	requests := make([]schedule.Request, 0, len(pending))
	instances := map[string]*model.Instance{}
	for _, i := range pending {
		t := templates[i.RevisionID]
		if t == nil {
			r, ok := store.Get[*model.Revision](p.snap, i.RevisionID)
			if !ok {
				continue
			}
			t = &r.Template
			templates[i.RevisionID] = t
		}
		req := schedule.Request{InstanceID: i.ID, WorkloadID: i.WorkloadID, Template: t, HostPorts: p.hostPorts(i.WorkloadID)}
		req.Workload, _, _ = cutLast(i.FullName(), '.')
		req.PinnedTo, req.PinReason = p.pin(t)
		requests = append(requests, req)
		instances[i.ID] = i
	}
	for n, pl := range schedule.Place(views, requests, p.snap.Revision()) {
		c := instances[pl.InstanceID].Clone()
		if pl.NodeID == "" {
			if c.Reason != pl.Reason {
				c.Reason = pl.Reason
				p.put(c)
				p.event("instance pending", c, pl.Reason)
			}
			continue
		}
		if err := p.assign(c, requests[n].Template, byID[pl.NodeID], pl.Reason); err != nil {
			if c.Reason != err.Error() {
				c.NodeID, c.Addresses, c.Reason = "", nil, err.Error()
				p.put(c)
			}
			continue
		}
		p.put(c)
		p.event("instance placed", c, "on "+byID[pl.NodeID].Name+": "+pl.Reason)
	}
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func cutLast(s string, sep byte) (before, after string, ok bool) {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == sep {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// views counts what is taken of each node.
func (p *pass) views() ([]*schedule.NodeView, map[string]*model.Node) {
	var views []*schedule.NodeView
	byID := map[string]*schedule.NodeView{}
	nodes := map[string]*model.Node{}
	for n := range store.List[*model.Node](p.snap) {
		v := &schedule.NodeView{Node: n}
		views = append(views, v)
		byID[n.ID], nodes[n.ID] = v, n
	}
	wanted := map[string]model.Resources{}
	for i := range store.List[*model.Instance](p.snap) {
		v := byID[i.NodeID]
		if v == nil || i.Status.State.Final() {
			continue
		}
		r, ok := wanted[i.RevisionID]
		if !ok {
			if rev, found := store.Get[*model.Revision](p.snap, i.RevisionID); found {
				r = schedule.Wanted(&rev.Template)
			}
			wanted[i.RevisionID] = r
		}
		v.Take(i.WorkloadID, &r, i.HostPorts)
	}
	return views, nodes
}

// hostPorts are the ports that each instance of a workload holds on its node.
func (p *pass) hostPorts(workloadID string) []model.HostPort {
	var out []model.HostPort
	for s := range store.List[*model.Service](p.snap) {
		if s.WorkloadID != workloadID {
			continue
		}
		for _, port := range s.Ports {
			if port.HostMode && port.Published > 0 {
				out = append(out, model.HostPort{Protocol: port.Protocol, Published: port.Published, Target: port.Target})
			}
		}
	}
	return out
}

func volumeIDs(t *model.Template) []string {
	var out []string
	for _, task := range slices.Concat(t.InitTasks, t.Tasks) {
		for _, m := range task.Mounts {
			if m.Type == model.MountVolume && m.Source != "" {
				out = append(out, m.Source)
			}
		}
	}
	return out
}

// pin returns the node on which an instance's local volumes live.
func (p *pass) pin(t *model.Template) (nodeID, reason string) {
	for _, id := range volumeIDs(t) {
		v, ok := store.Get[*model.Volume](p.snap, id)
		if !ok {
			continue
		}
		v = current(p, v)
		if v.NodeID == "" {
			continue
		}
		home := model.ShortID(v.NodeID)
		if n, ok := store.Get[*model.Node](p.snap, v.NodeID); ok {
			home = n.Name
		}
		return v.NodeID, fmt.Sprintf("do not hold the volume %s, which lives on %s", v.FullName(), home)
	}
	return "", ""
}

// assign puts an instance on a node: addresses, ports, and the home of volumes that have none.
func (p *pass) assign(i *model.Instance, t *model.Template, n *model.Node, reason string) error {
	var addresses []model.Address
	for _, at := range t.Networks {
		ip, err := p.pool(at.Network).take(n.ID, at.Address)
		if err != nil {
			return err
		}
		addresses = append(addresses, model.Address{Network: at.Network, IP: ip})
	}
	i.NodeID, i.Reason, i.Addresses, i.HostPorts = n.ID, reason, addresses, p.hostPorts(i.WorkloadID)
	for _, id := range volumeIDs(t) {
		v, ok := store.Get[*model.Volume](p.snap, id)
		if !ok {
			return fault.New(fault.NotFound, "volume %s does not exist", id)
		}
		if v = current(p, v); v.NodeID == "" {
			c := v.Clone()
			c.NodeID = n.ID
			p.put(c)
		}
	}
	return nil
}
