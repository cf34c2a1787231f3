package control

import (
	"maps"
	"slices"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

// device is one of a node's devices that have names.
type device struct{ kind, name string }

// chooseDevices gives an instance the first devices of its node that nobody holds, of each kind of
// which the node knows names.
func (p *pass) chooseDevices(i *model.Instance, t *model.Template, n *model.Node) error {
	if len(n.Devices) == 0 {
		return nil
	}
	wanted := schedule.Wanted(t).Custom
	var chosen map[string][]string
	for _, kind := range slices.Sorted(maps.Keys(wanted)) {
		names, count := n.Devices[kind], int(wanted[kind])
		if len(names) == 0 || count == 0 {
			continue
		}
		held := p.heldDevices(n.ID)
		var free []string
		for _, name := range names {
			if !held[device{kind, name}] && len(free) < count {
				free = append(free, name)
			}
		}
		if len(free) < count {
			return fault.New(fault.Exhausted, "node %s has %d of its %d devices of the kind %s free, and %d are wanted", n.Name, len(free), len(names), kind, count)
		}
		if chosen == nil {
			chosen = map[string][]string{}
		}
		chosen[kind] = free
	}
	for kind, names := range chosen {
		for _, name := range names {
			p.heldDevices(n.ID)[device{kind, name}] = true
		}
	}
	i.Devices = chosen
	return nil
}

// heldDevices are those that instances hold on a node, and those that this pass has given to some.
func (p *pass) heldDevices(nodeID string) map[device]bool {
	if held, ok := p.devices[nodeID]; ok {
		return held
	}
	held := map[device]bool{}
	for i := range store.InstancesOnNode(p.snap, nodeID) {
		if i.Status.State.Final() {
			continue
		}
		for kind, names := range i.Devices {
			for _, name := range names {
				held[device{kind, name}] = true
			}
		}
	}
	if p.devices == nil {
		p.devices = map[string]map[device]bool{}
	}
	p.devices[nodeID] = held
	return held
}
