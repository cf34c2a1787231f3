package control

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// bound says why a stateful instance stays with its silent node, "" when it can be replaced. Of a
// slot there is one writer: an instance that runs under a lease is given up only once that has
// surely ended, and one whose volume lives on the node is never replaced elsewhere.
func (p *pass) bound(i *model.Instance, n *model.Node) string {
	switch {
	case !i.Stateful || i.Status.State.Final():
		return ""
	case !i.Leased && i.Desired == model.DesiredRemove:
		return "" // nothing takes its place but on the same node, which runs one after the other
	case !i.Leased:
		return fmt.Sprintf("node %s is down, and this slot's volume lives there: it waits for the node", n.Name)
	case p.leased(i):
		return fmt.Sprintf("node %s is down: this slot is filled elsewhere once the node's lease has surely ended", n.Name)
	}
	// No lease is granted before the node's status says that it is back, which this pass would
	// then not have seen.
	p.cs.Expect(model.KindNode, n.ID, n.Revision)
	return ""
}

// leased reports whether an instance's node may still hold a lease, and has it looked at again when
// that is over.
func (p *pass) leased(i *model.Instance) bool {
	wait := p.c.Sessions.Fence(i.NodeID)
	if wait <= 0 || skipFence {
		return false
	}
	if p.fence == 0 || wait < p.fence {
		p.fence = wait
	}
	return true
}

// slotHeld says which instance of a removed workload of the same name has the slot of a stateful
// instance still, "" when none has: what it writes to goes by the name, and outlives workloads.
func (p *pass) slotHeld(i *model.Instance) string {
	if !i.Stateful {
		return ""
	}
	for o := range store.ByApplication[*model.Instance](p.snap, i.Namespace, i.Application) {
		if o.Stateful && o.Name == i.Name && o.WorkloadID != i.WorkloadID && o.NodeID != "" && !o.Status.State.Final() {
			return fmt.Sprintf("instance %s, of a workload of this name that was removed, has the slot still", model.ShortID(o.ID))
		}
	}
	return ""
}

// await takes an instance out of the traffic and says what it waits for; its node tells anew how it
// is when it is back.
func (p *pass) await(i *model.Instance, n *model.Node, why string) {
	if !i.Status.Ready && i.Status.Message == why {
		return
	}
	c := i.Clone()
	c.Status.Ready, c.Status.Message = false, why
	p.cs.Expect(model.KindNode, n.ID, n.Revision)
	p.cs.PutStatus(c)
	p.event("instance waits", i, why)
}

// nameOf is the name of the instance in a slot.
func nameOf(w *model.Workload, slot int) string {
	switch w.Type {
	case model.StatefulWorkload:
		return w.Name + "-" + strconv.Itoa(slot-1)
	case model.SingleWorkload:
		return w.Name
	}
	return w.Name + "." + strconv.Itoa(slot)
}

// mounted is a volume as an instance mounts it: named by the template, or, in a stateful workload,
// the slot's own in its place.
type mounted struct {
	named string // ID
	*model.Volume
	fresh bool // it does not exist yet
}

// volumesOf are the volumes that an instance mounts. The slot's own volume of a volume "data" is
// called "data-db-0", whichever workload of that name it was made for: data outlives workloads.
func (p *pass) volumesOf(i *model.Instance, t *model.Template) ([]mounted, error) {
	var out []mounted
	for _, id := range volumeIDs(t) {
		if slices.ContainsFunc(out, func(m mounted) bool { return m.named == id }) {
			continue
		}
		v, ok := store.Get[*model.Volume](p.snap, i.OwnVolume(id))
		if !ok {
			return nil, fault.New(fault.NotFound, "volume %s does not exist", id)
		}
		m := mounted{named: id, Volume: current(p, v)}
		if p.ownsVolumes(i) && i.Volumes[id] == "" && v.Application != "" && v.Application == i.Application {
			m.Volume, m.fresh = p.ownVolume(i, v)
		}
		out = append(out, m)
	}
	return out, nil
}

// ownsVolumes reports whether an instance has volumes of its own in place of those that its template
// names: one in a slot has, the instance of an exclusive single workload has not.
func (p *pass) ownsVolumes(i *model.Instance) bool {
	if !i.Stateful {
		return false
	}
	w, ok := store.Get[*model.Workload](p.snap, i.WorkloadID)
	return !ok || w.Type != model.SingleWorkload
}

func (p *pass) ownVolume(i *model.Instance, v *model.Volume) (own *model.Volume, fresh bool) {
	name := v.Name + "-" + i.Name
	if have, ok := store.ByName[*model.Volume](p.snap, v.Namespace, v.Application, name); ok {
		return current(p, have), false
	}
	return &model.Volume{
		Meta:   model.Meta{ID: model.NewID(), Namespace: v.Namespace, Application: v.Application, Name: name, Labels: v.Labels, Created: p.now},
		Driver: v.Driver, Options: v.Options,
	}, true
}

// settleVolumes gives an instance's volumes a home on its node, makes those that are missing, and
// decides whether the instance runs under the node's lease.
func (p *pass) settleVolumes(i *model.Instance, t *model.Template, n *model.Node) error {
	volumes, err := p.volumesOf(i, t)
	if err != nil {
		return err
	}
	i.Leased = i.Stateful
	for _, m := range volumes {
		if m.Volume.NodeID == "" && (m.fresh || !m.Volume.Shared()) {
			c := m.Volume.Clone()
			if !c.Shared() {
				c.NodeID = n.ID
			}
			p.cs.Expect(model.KindVolume, c.ID, c.Revision)
			p.put(c)
			p.homes = true
		}
		if !m.Volume.Shared() { // otherwise another node could write to it, too
			i.Leased = false
		}
		if m.ID != m.named {
			if i.Volumes == nil {
				i.Volumes = map[string]string{}
			}
			i.Volumes[m.named] = m.ID
		}
	}
	return nil
}

// previous is the address on a network of the instance whose place a stateful one takes, "" when
// there was none.
func (p *pass) previous(i *model.Instance, network string) string {
	old, ok := store.Get[*model.Instance](p.snap, i.Replaces)
	if !ok || !i.Stateful {
		return ""
	}
	for _, a := range old.Addresses {
		if a.Network == network {
			return a.IP
		}
	}
	return ""
}
