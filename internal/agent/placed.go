package agent

import (
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// placedEnv fills in what is known of an instance once it has a node: {instance.id}, {instance.name},
// {slot}, {run}, {node.id}, {node.name}, {node.address}, {address} of the instance, {sandbox} of a process, and {port.N}, the
// number of the N-th port that it asked for, from 0. What else stands in braces stays.
func (w *worker) placedEnv(i *model.Instance, t *model.TaskSpec, id string) []string {
	return w.fillIn(i, t, id, t.PlacedEnv)
}

func (w *worker) fillIn(i *model.Instance, t *model.TaskSpec, id string, list []string) []string {
	if len(list) == 0 {
		return nil
	}
	address := w.agent.Address
	if len(i.Addresses) > 0 {
		address = i.Addresses[0].IP
	}
	_, _, run := splitRunID(id)
	known := []string{
		"{instance.id}", i.ID, "{instance.name}", i.Name, "{slot}", strconv.Itoa(i.Slot), "{run}", strconv.Itoa(run),
		"{node.id}", w.agent.NodeID, "{node.name}", w.agent.NodeName, "{node.address}", w.agent.Address, "{address}", address,
	}
	if driverName(t) == "process" {
		known = append(known, "{sandbox}", w.sandbox(t))
	}
	for n, p := range i.HostPorts {
		known = append(known, "{port."+strconv.Itoa(n)+"}", strconv.Itoa(p.Published))
	}
	r := strings.NewReplacer(known...)
	out := make([]string, len(list))
	for n, e := range list {
		out[n] = r.Replace(e)
	}
	return out
}

// portOf is where the port request of a number, from 1, leads inside the instance; otherwise the
// number that is given.
func (p *prepared) portOf(request, number int) int {
	if request > 0 && request <= len(p.ports) {
		return p.ports[request-1].Target
	}
	return number
}
