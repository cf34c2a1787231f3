package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// networkState is the cluster's network state as this node was told it, part by part, and what
// became of it; guarded by Agent.mu.
type networkState struct {
	revision uint64 // up to which it is known to be right; 0: nothing was told
	version  int    // counts different contents
	inForce  int    // the version that is
	lost     bool   // a difference did not fit; everything is on its way
	// touched are the IDs of what was told since a state was last put in force; nil: everything.
	touched map[string]bool

	pools     [3]string // of nodes, of networks, of networks' IPv6
	nodes     map[string]wire.NetworkNode
	networks  map[string]*model.Network
	services  map[string]wire.NetworkService
	instances map[string]wire.NetworkInstance
	policies  map[string]*model.Policy

	byAddress map[string]string // instances, while a state is put together; nil otherwise
}

// take takes over a complete state or a difference. It reports whether a difference fits, and
// whether anything changed.
func (n *networkState) take(m *wire.Network) (fits, changed bool) {
	switch {
	case m.Since == 0:
		*n = networkState{
			version: n.version, inForce: n.inForce,
			nodes: map[string]wire.NetworkNode{}, networks: map[string]*model.Network{},
			services: map[string]wire.NetworkService{}, instances: map[string]wire.NetworkInstance{}, policies: map[string]*model.Policy{},
		}
	case n.revision == 0 || n.revision < m.Since:
		return false, false
	case len(m.Nodes)+len(m.Networks)+len(m.Services)+len(m.Instances)+len(m.Policies)+len(m.Gone) == 0 && m.NodePool == "":
		n.revision = max(n.revision, m.Revision) // it only says that nothing changed
		return true, false
	}
	n.revision = max(n.revision, m.Revision)
	n.version++
	n.pools = [3]string{m.NodePool, m.AddressPool, m.AddressPool6}
	touch := func(id string) {
		if n.touched != nil {
			n.touched[id] = true
		}
	}
	for _, id := range m.Gone {
		touch(id)
		delete(n.nodes, id)
		delete(n.networks, id)
		delete(n.services, id)
		delete(n.instances, id)
		delete(n.policies, id)
	}
	for _, v := range m.Nodes {
		touch(v.ID)
		n.nodes[v.ID] = v
	}
	for _, v := range m.Networks {
		touch(v.ID)
		n.networks[v.ID] = v
	}
	for _, v := range m.Services {
		touch(v.ID)
		n.services[v.ID] = v
	}
	for _, v := range m.Instances {
		touch(v.ID)
		n.instances[v.ID] = v
	}
	for _, v := range m.Policies {
		touch(v.ID)
		n.policies[v.ID] = v
	}
	return true, true
}

// whole puts the state together, in the order of IDs.
func (n *networkState) whole() *wire.Network {
	out := &wire.Network{Revision: n.revision, NodePool: n.pools[0], AddressPool: n.pools[1], AddressPool6: n.pools[2]}
	for _, id := range slices.Sorted(maps.Keys(n.nodes)) {
		out.Nodes = append(out.Nodes, n.nodes[id])
	}
	for _, id := range slices.Sorted(maps.Keys(n.networks)) {
		out.Networks = append(out.Networks, n.networks[id])
	}
	for _, id := range slices.Sorted(maps.Keys(n.policies)) {
		out.Policies = append(out.Policies, n.policies[id])
	}
	endpoints := map[string][]wire.Endpoint{} // by workload
	for _, id := range slices.Sorted(maps.Keys(n.instances)) {
		i := n.instances[id]
		out.Instances = append(out.Instances, i)
		if i.Serves {
			endpoints[i.WorkloadID] = append(endpoints[i.WorkloadID], wire.Endpoint{Instance: id, NodeID: i.NodeID, Addresses: i.Addresses})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(n.services)) {
		s := n.services[id]
		if s.Endpoints = endpoints[s.WorkloadID]; s.Direct {
			s.Endpoints = n.direct(&s)
		}
		out.Services = append(out.Services, s)
	}
	n.byAddress = nil
	out.Services = groupPorts(out.Services)
	return out
}

// direct are the endpoints of a direct service: its backends, but those on nodes that are down.
func (n *networkState) direct(s *wire.NetworkService) []wire.Endpoint {
	if len(s.VirtualIPs) == 0 {
		return nil
	}
	if n.byAddress == nil {
		n.byAddress = map[string]string{}
		for id, i := range n.instances {
			for _, a := range i.Addresses {
				n.byAddress[a.IP] = id
			}
		}
	}
	var out []wire.Endpoint
	for _, b := range s.Backends {
		e := wire.Endpoint{Addresses: []model.Address{{Network: s.VirtualIPs[0].Network, IP: b.Address}}}
		if id, ok := n.byAddress[b.Address]; ok {
			e.Instance, e.NodeID = id, n.instances[id].NodeID
			if n.nodes[e.NodeID].Down {
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

// groupPorts gives the ports that services of a group publish together to a service of the group's own,
// which leads to the instances of all of them.
func groupPorts(services []wire.NetworkService) []wire.NetworkService {
	groups := map[string]*wire.NetworkService{}
	var names []string
	for i := range services {
		s := &services[i]
		if s.PortGroup == "" {
			continue
		}
		key := s.Namespace + "/" + s.Application + "/" + s.PortGroup
		g := groups[key]
		if g == nil {
			g = &wire.NetworkService{ID: "group " + key, Namespace: s.Namespace, Application: s.Application, PortGroup: s.PortGroup}
			groups[key], names = g, append(names, key)
		}
		g.Endpoints = append(g.Endpoints, s.Endpoints...)
		s.Ports = slices.Clone(s.Ports) // it is shared with the state that is kept
		for n := range s.Ports {
			p := &s.Ports[n]
			if p.Published == 0 || p.HostMode {
				continue
			}
			if !slices.Contains(g.Ports, *p) {
				g.Ports = append(g.Ports, *p)
			}
			p.Published = 0
		}
	}
	for _, key := range names {
		services = append(services, *groups[key])
	}
	return services
}

// networkRevision is the revision of the network state that this agent holds; 0: none.
func (a *Agent) networkRevision() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.network.lost {
		return 0
	}
	return a.network.revision
}

// networkUnchanged says that the state last handed over is still right as of the revision.
func (a *Agent) networkUnchanged(revision uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := &a.network
	if n.revision == 0 || n.lost || revision <= n.revision {
		return
	}
	n.revision = revision
	a.tellApplied()
}

// tellApplied says which revision is in force; the lock is held.
func (a *Agent) tellApplied() {
	if n := &a.network; n.revision > 0 && n.inForce == n.version {
		a.session.Applied(n.revision)
	}
}

// SetNetwork takes over a newer network state, or what changed of it; it is put in force in the
// background. It reports false when a difference does not fit the state that the agent has: then
// everything has to be told anew.
func (a *Agent) SetNetwork(m *wire.Network) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := &a.network
	if n.lost && m.Since > 0 {
		return true // everything was asked for already
	}
	fits, changed := n.take(m)
	switch {
	case !fits:
		n.lost = true
	case changed:
		select {
		case a.networkWake <- struct{}{}:
		default:
		}
	default:
		a.tellApplied()
	}
	return fits
}

// keepEvery is how often keepers look after what is theirs.
const keepEvery = 2 * time.Second

func (a *Agent) runNetwork(ctx context.Context) error {
	keep := time.NewTicker(keepEvery)
	defer keep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-keep.C:
			a.keepNetwork(ctx)
			continue
		case <-a.networkWake:
		}
		a.mu.Lock()
		version, state := a.network.version, a.network.whole()
		state.Changed, a.network.touched = a.network.touched, map[string]bool{}
		a.mu.Unlock()
		if err := a.syncNetwork(ctx, state); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			a.mu.Lock()
			a.network.touched = nil // the parts are in different states now
			a.mu.Unlock()
			a.Log.Error("network state could not be put in force", "error", err, "revision", state.Revision)
			time.AfterFunc(500*time.Millisecond, a.pokeNetwork)
			continue
		}
		knows := make(map[string][]model.Address, len(state.Instances))
		for i := range state.Instances {
			knows[state.Instances[i].ID] = state.Instances[i].Addresses
		}
		a.mu.Lock()
		a.network.inForce = version
		a.networkKnows = knows
		close(a.networkChanged)
		a.networkChanged = make(chan struct{})
		if a.network.version == version {
			a.tellApplied()
		} else {
			a.session.Applied(state.Revision) // a newer one is on its way
		}
		a.mu.Unlock()
	}
}

func (a *Agent) pokeNetwork() {
	select {
	case a.networkWake <- struct{}{}:
	default:
	}
}

// networkPatience bounds how long a start waits for the network to know the instance.
const networkPatience = 3 * time.Second

// awaitNetwork waits until routes, names and rules for an instance, with the addresses that it has, are in
// force on this node, so that it finds its peers from its first instruction on. It gives up waiting, not the
// start: an agent without a server has to work with the state that it has.
func (a *Agent) awaitNetwork(ctx context.Context, instance string, addresses []model.Address) {
	ctx, cancel := context.WithTimeout(ctx, networkPatience)
	defer cancel()
	for {
		a.mu.Lock()
		has, known := a.networkKnows[instance]
		known, unknown := known && slices.Equal(has, addresses), a.network.revision == 0
		changed := a.networkChanged
		a.mu.Unlock()
		if known || unknown {
			return
		}
		select {
		case <-ctx.Done():
			a.Log.Warn("instance is started before the network knows it", "instance", instance)
			return
		case <-changed:
		}
	}
}

func (a *Agent) keepNetwork(ctx context.Context) {
	a.mu.Lock()
	inForce := a.network.inForce > 0
	a.mu.Unlock()
	if !inForce {
		return
	}
	for _, part := range a.Network {
		if k, ok := part.(Keeper); ok {
			if err := k.Keep(ctx); err != nil && ctx.Err() == nil {
				a.Log.Error("a part of the network could not be kept up", "error", err)
			}
		}
	}
}

func (a *Agent) syncNetwork(ctx context.Context, n *wire.Network) error {
	var all []error
	for _, part := range a.Network {
		all = append(all, part.Sync(ctx, n))
	}
	return errors.Join(all...)
}
