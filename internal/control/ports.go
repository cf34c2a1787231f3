package control

import (
	"hash/fnv"
	"strconv"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// fixedPorts are the ports that each instance of a template holds on its node whichever that is.
func (p *pass) fixedPorts(workloadID string, t *model.Template) []model.HostPort {
	ports := p.hostPorts(workloadID)
	own := false
	for _, r := range t.Ports {
		if r.Host == 0 {
			continue
		}
		if !own {
			ports, own = append([]model.HostPort{}, ports...), true
		}
		ports = append(ports, held(r, r.Host))
	}
	return ports
}

func held(r model.PortRequest, number int) model.HostPort {
	h := model.HostPort{Protocol: r.Protocol, Published: number, Target: r.Target, HostIP: model.OneHostIP(r.HostIP)}
	if h.Target == 0 {
		h.Target = number
	}
	return h
}

// choosePorts returns the ports that an instance holds on its node: those of the template's requests
// first, in their order.
func (p *pass) choosePorts(i *model.Instance, t *model.Template, n *model.Node) ([]model.HostPort, error) {
	var out []model.HostPort
	for _, r := range t.Ports {
		number := r.Host
		if number == 0 {
			if number = p.freePort(i, r.Protocol, n); number == 0 {
				return nil, fault.New(fault.Exhausted, "node %s has no free port from %d to %d", n.Name, model.FirstChosenPort, model.LastChosenPort)
			}
		}
		out = append(out, held(r, number))
	}
	return append(out, p.hostPorts(i.WorkloadID)...), nil
}

// freePort chooses a port of a node and takes it, 0 when there is none. The search begins elsewhere
// for each instance, so that a port is not given out again at once.
func (p *pass) freePort(i *model.Instance, protocol string, n *model.Node) int {
	if p.chosen == nil {
		p.chosen, p.published = map[string]bool{}, map[model.HostPort]bool{}
		for s := range store.List[*model.Service](p.snap) {
			for _, port := range s.Ports {
				p.published[model.HostPort{Protocol: port.Protocol, Published: port.Published}] = true
			}
		}
	}
	_, views := p.views()
	v := views[n.ID]
	const count = model.LastChosenPort - model.FirstChosenPort + 1
	h := fnv.New32a()
	h.Write([]byte(i.ID))
	start := int(h.Sum32() % count)
	for k := range count {
		h := model.HostPort{Protocol: protocol, Published: model.FirstChosenPort + (start+k)%count}
		key := n.ID + " " + h.Protocol + " " + strconv.Itoa(h.Published)
		if p.published[h] || p.chosen[key] || v != nil && v.Holds(h) {
			continue
		}
		p.chosen[key] = true
		return h.Published
	}
	return 0
}
