package dispatch

import (
	"fmt"
	"slices"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// assignments returns what changed for the session's node since sent, and updates sent.
func (s *Sessions) assignments(snap *store.Snapshot, sess *session, sent map[string]string) (*wire.Assign, error) {
	out := &wire.Assign{Revision: snap.Revision()}
	wanted := map[string]bool{}
	for inst := range store.InstancesOnNode(snap, sess.nodeID) {
		if inst.Status.State == model.InstanceLost {
			continue // replaced while the node was away: the agent must drop it
		}
		if inst.Desired == model.DesiredRemove && inst.Status.State.Final() {
			continue
		}
		wanted[inst.ID] = true
		key := fmt.Sprint(inst.Desired, inst.Starts, inst.Addresses, inst.HostPorts, inst.RevisionID)
		if sent[inst.ID] == key {
			continue
		}
		as, err := s.assignment(snap, inst)
		if err != nil {
			if sess.failed[inst.ID] != err.Error() { // it is tried again at every change
				sess.failed[inst.ID] = err.Error()
				sess.log.Error("instance cannot be assigned", "instance", inst.ID, "error", err)
			}
			continue
		}
		delete(sess.failed, inst.ID)
		sent[inst.ID] = key
		out.Put = append(out.Put, *as)
	}
	for id := range sent {
		if !wanted[id] {
			delete(sent, id)
			out.Remove = append(out.Remove, id)
		}
	}
	return out, nil
}

// assignment gathers all that a node needs to run an instance, and nothing more.
func (s *Sessions) assignment(snap *store.Snapshot, inst *model.Instance) (*wire.Assignment, error) {
	rev, ok := store.Get[*model.Revision](snap, inst.RevisionID)
	if !ok {
		return nil, fmt.Errorf("revision %s does not exist", inst.RevisionID)
	}
	as := &wire.Assignment{
		Instance: inst, Template: &rev.Template,
		Workload: wire.WorkloadRef{ID: inst.WorkloadID, Application: inst.Application, Namespace: inst.Namespace, Name: inst.Name},
		Secrets:  map[string][]byte{}, Configs: map[string][]byte{},
	}
	if w, ok := store.Get[*model.Workload](snap, inst.WorkloadID); ok {
		as.Workload.Name = w.Name
	}
	for _, at := range rev.Template.Networks {
		if n, ok := store.Get[*model.Network](snap, at.Network); ok {
			c := n.Clone()
			c.Status.Blocks = nil // routes are not the instance's business
			as.Networks = append(as.Networks, c)
		}
	}
	for _, t := range slices.Concat(rev.Template.InitTasks, rev.Template.Tasks) {
		for _, m := range t.Mounts {
			if err := s.addMount(snap, as, &m); err != nil {
				return nil, err
			}
		}
	}
	return as, nil
}

func (s *Sessions) addMount(snap *store.Snapshot, as *wire.Assignment, m *model.Mount) error {
	switch m.Type {
	case model.MountVolume:
		if v, ok := store.Get[*model.Volume](snap, m.Source); ok {
			as.Volumes = append(as.Volumes, v)
		}
	case model.MountConfig:
		if c, ok := store.Get[*model.Config](snap, m.Source); ok {
			as.Configs[c.ID] = c.Data
		}
	case model.MountSecret:
		sec, ok := store.Get[*model.Secret](snap, m.Source)
		if !ok {
			return nil
		}
		data, err := s.Open(sec)
		if err != nil {
			return fmt.Errorf("open secret %s: %w", sec.FullName(), err)
		}
		as.Secrets[sec.ID] = data
	}
	return nil
}

// networkOf computes the network state of the whole cluster; its Revision is left 0.
func networkOf(snap *store.Snapshot) *wire.Network {
	n := &wire.Network{}
	if c, ok := store.Get[*model.Cluster](snap, model.ClusterID); ok {
		n.NodePool, n.AddressPool = c.NodePool, c.AddressPool
	}
	for node := range store.List[*model.Node](snap) {
		if node.OverlayAddress == "" {
			continue
		}
		n.Nodes = append(n.Nodes, wire.NetworkNode{
			ID: node.ID, Name: node.Name, HostAddress: node.HostAddress,
			OverlayAddress: node.OverlayAddress, Down: node.Status.State == model.NodeDown,
		})
	}
	for net := range store.List[*model.Network](snap) {
		if net.Status.Subnet == "" {
			continue
		}
		c := *net
		c.Revision = 0 // what it says did not change with it
		n.Networks = append(n.Networks, &c)
	}
	endpoints := map[string][]wire.Endpoint{}
	for inst := range store.List[*model.Instance](snap) {
		if inst.NodeID == "" || inst.Status.State.Final() {
			continue
		}
		n.Instances = append(n.Instances, networkInstance(snap, inst))
		if inst.Serving() {
			endpoints[inst.WorkloadID] = append(endpoints[inst.WorkloadID], wire.Endpoint{
				Instance: inst.ID, NodeID: inst.NodeID, Addresses: inst.Addresses,
			})
		}
	}
	for svc := range store.List[*model.Service](snap) {
		n.Services = append(n.Services, wire.NetworkService{
			ID: svc.ID, Name: svc.Name, Application: svc.Application, Namespace: svc.Namespace,
			Aliases: svc.Aliases, VirtualIPs: svc.Status.VirtualIPs, Ports: svc.Ports,
			RoundRobin: svc.DNSRoundRobin, Endpoints: endpoints[svc.WorkloadID],
		})
	}
	return n
}

func networkInstance(snap *store.Snapshot, inst *model.Instance) wire.NetworkInstance {
	ni := wire.NetworkInstance{
		ID: inst.ID, Name: inst.Name, Application: inst.Application, Namespace: inst.Namespace,
		NodeID: inst.NodeID, Addresses: inst.Addresses, HostPorts: inst.HostPorts,
	}
	if w, ok := store.Get[*model.Workload](snap, inst.WorkloadID); ok {
		ni.Workload = w.Name
	}
	if rev, ok := store.Get[*model.Revision](snap, inst.RevisionID); ok {
		for _, at := range rev.Template.Networks {
			if len(at.Aliases) > 0 {
				if ni.Aliases == nil {
					ni.Aliases = map[string][]string{}
				}
				ni.Aliases[at.Network] = at.Aliases
			}
		}
		ni.DNS = rev.Template.DNS.Servers
	}
	return ni
}
