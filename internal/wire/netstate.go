package wire

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// Changes says in what a complete network state differs from the one before it.
type Changes struct {
	// Instances and Services are the IDs of those that were told anew, or are gone.
	Instances, Services map[string]bool
	// Led are the IDs of services that lead elsewhere: to other endpoints, or from other ports.
	Led map[string]bool
	// Shape says that nodes, networks or pools are others, Policies that policies are.
	Shape, Policies bool
}

func newChanges() *Changes {
	return &Changes{Instances: map[string]bool{}, Services: map[string]bool{}, Led: map[string]bool{}}
}

// add takes over what a later state differs in; nil is everything.
func (c *Changes) add(later *Changes) *Changes {
	if c == nil || later == nil {
		return nil
	}
	maps.Copy(c.Instances, later.Instances)
	maps.Copy(c.Services, later.Services)
	maps.Copy(c.Led, later.Led)
	c.Shape, c.Policies = c.Shape || later.Shape, c.Policies || later.Policies
	return c
}

// Instance finds an instance by its ID.
func (n *Network) Instance(id string) *NetworkInstance {
	if n.index != nil {
		if i, ok := n.index.instances[id]; ok {
			return &n.Instances[i]
		}
		return nil
	}
	if i := slices.IndexFunc(n.Instances, func(in NetworkInstance) bool { return in.ID == id }); i >= 0 {
		return &n.Instances[i]
	}
	return nil
}

// Service finds a service by its ID.
func (n *Network) Service(id string) *NetworkService {
	i := -1
	if n.index != nil && !strings.HasPrefix(id, groupPrefix) {
		i, _ = n.index.service(n, id)
	} else {
		i = slices.IndexFunc(n.Services, func(s NetworkService) bool { return s.ID == id })
	}
	if i < 0 || i >= len(n.Services) || n.Services[i].ID != id {
		return nil
	}
	return &n.Services[i]
}

// Holder is the instance that has an address; of several the one that was told last.
func (n *Network) Holder(address netip.Addr) *NetworkInstance {
	if n.index != nil {
		if id, ok := n.index.holders[address]; ok {
			return n.Instance(id)
		}
		return nil
	}
	for i := len(n.Instances) - 1; i >= 0; i-- {
		if slices.Contains(addressesOf(&n.Instances[i]), address) {
			return &n.Instances[i]
		}
	}
	return nil
}

func addressesOf(in *NetworkInstance) []netip.Addr {
	out := make([]netip.Addr, 0, 2*len(in.Addresses))
	for i := range in.Addresses {
		for _, text := range []string{in.Addresses[i].IP, in.Addresses[i].IP6} {
			if ip, err := netip.ParseAddr(text); err == nil {
				out = append(out, ip)
			}
		}
	}
	return out
}

// networkIndex finds what a complete state has.
type networkIndex struct {
	instances map[string]int          // by ID, in Network.Instances
	holders   map[netip.Addr]string   // IDs of instances, by address
	others    map[netip.Addr][]string // those that have an address that another one was told of later
	sorted    int                     // so many services are in the order of their IDs; groups follow
}

func (x *networkIndex) service(n *Network, id string) (int, bool) {
	return slices.BinarySearchFunc(n.Services[:x.sorted], id, func(s NetworkService, id string) int { return strings.Compare(s.ID, id) })
}

// KeptNetwork puts together what an agent is told of the network: a complete state, and then what changes.
// What a change takes depends on what it is about, not on how large the rest is. It belongs to one
// goroutine, and so does what it returns.
type KeptNetwork struct {
	net     Network
	index   networkIndex
	changes *Changes

	nodes    map[string]NetworkNode
	networks map[string]*model.Network
	policies map[string]*model.Policy

	services map[string][]string            // IDs, by workload
	serving  map[string][]string            // instance IDs that serve, by workload; ascending
	direct   map[string]bool                // IDs of direct services
	backed   map[netip.Addr]map[string]bool // direct services by the addresses of their backends
	grouped  map[string]NetworkService      // services with a port group, as they were told
	groups   map[string]map[string]bool     // services' IDs by group
}

// NewKeptNetwork is one of which nothing was told.
func NewKeptNetwork() *KeptNetwork {
	s := new(KeptNetwork)
	s.reset()
	return s
}

func (s *KeptNetwork) reset() {
	*s = KeptNetwork{
		index: networkIndex{instances: map[string]int{}, holders: map[netip.Addr]string{}, others: map[netip.Addr][]string{}},
		nodes: map[string]NetworkNode{}, networks: map[string]*model.Network{}, policies: map[string]*model.Policy{},
		services: map[string][]string{}, serving: map[string][]string{}, direct: map[string]bool{},
		backed: map[netip.Addr]map[string]bool{}, grouped: map[string]NetworkService{}, groups: map[string]map[string]bool{},
	}
	s.net.index = &s.index
}

// Apply takes over a complete state, or a difference that fits.
func (s *KeptNetwork) Apply(m *Network) {
	changed := newChanges()
	if m.Since == 0 {
		s.reset()
		changed = nil
	}
	w := &writing{KeptNetwork: s, Changes: newChanges(), lead: map[string]bool{}, regroup: map[string]bool{}}
	for _, id := range m.Gone {
		w.drop(id)
	}
	w.shape(m)
	for i := range m.Instances {
		w.putInstance(&m.Instances[i])
	}
	w.putServices(m.Services, m.Since == 0)
	w.finish()
	if changed != nil {
		changed = w.Changes
	}
	s.changes = s.changes.add(changed)
}

// Next is the state as it is now, with what changed since it was last asked for. It is the same object
// each time.
func (s *KeptNetwork) Next() *Network {
	s.net.Changes, s.changes = s.changes, newChanges()
	return &s.net
}

// Forget has the next state say that everything may have changed.
func (s *KeptNetwork) Forget() { s.changes = nil }

// writing is a message that is being taken over.
type writing struct {
	*KeptNetwork
	*Changes
	lead    map[string]bool // services whose endpoints are to be found again
	regroup map[string]bool // port groups, likewise
}

func (w *writing) drop(id string) {
	switch {
	case w.index.has(id):
		w.dropInstance(id)
	case w.dropService(id):
	default:
		if _, ok := w.nodes[id]; ok {
			delete(w.nodes, id)
			w.Shape = true
			maps.Copy(w.lead, w.direct) // what is there may have been away with it
		}
		if _, ok := w.networks[id]; ok {
			delete(w.networks, id)
			w.Shape = true
			maps.Copy(w.lead, w.direct)
		}
		if _, ok := w.policies[id]; ok {
			delete(w.policies, id)
			w.Policies = true
		}
	}
}

func (x *networkIndex) has(id string) bool { _, ok := x.instances[id]; return ok }

// shape takes over nodes, networks, policies and pools, of which there are few.
func (w *writing) shape(m *Network) {
	n := &w.net
	n.Revision = max(n.Revision, m.Revision)
	if m.NodePool != "" && (n.NodePool != m.NodePool || n.AddressPool != m.AddressPool || n.AddressPool6 != m.AddressPool6) {
		n.NodePool, n.AddressPool, n.AddressPool6 = m.NodePool, m.AddressPool, m.AddressPool6
		w.Shape = true
	}
	for _, v := range m.Nodes {
		w.nodes[v.ID], w.Shape = v, true
	}
	for _, v := range m.Networks {
		w.networks[v.ID], w.Shape = v, true
	}
	for _, v := range m.Policies {
		w.policies[v.ID], w.Policies = v, true
	}
	if w.Shape {
		n.Nodes, n.Networks = inOrder(w.nodes), inOrder(w.networks)
	}
	if len(m.Nodes)+len(m.Networks) > 0 { // a node may be down now, and an address be a network's
		maps.Copy(w.lead, w.direct)
	}
	if w.Policies {
		n.Policies = inOrder(w.policies)
	}
}

func inOrder[T any](m map[string]T) []T {
	out := make([]T, 0, len(m))
	for _, id := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[id])
	}
	return out
}

func (w *writing) putInstance(in *NetworkInstance) {
	w.Instances[in.ID] = true
	i, was := w.index.instances[in.ID]
	if was {
		w.unlink(&w.net.Instances[i], in)
		w.net.Instances[i] = *in
	} else {
		i = len(w.net.Instances)
		w.net.Instances, w.index.instances[in.ID] = append(w.net.Instances, *in), i
	}
	for _, ip := range addressesOf(in) {
		w.hold(ip, in.ID)
	}
	if in.Serves {
		list := w.serving[in.WorkloadID]
		if at, found := slices.BinarySearch(list, in.ID); !found {
			w.serving[in.WorkloadID] = slices.Insert(list, at, in.ID)
		}
		w.leadWorkload(in.WorkloadID)
	}
}

// hold gives an address to an instance. Another one that has it as well gets it back when this one goes.
func (w *writing) hold(ip netip.Addr, id string) {
	x := &w.index
	if before, ok := x.holders[ip]; ok && before != id {
		x.others[ip] = append(x.others[ip], before)
	}
	x.holders[ip] = id
	maps.Copy(w.lead, w.backed[ip])
}

func (w *writing) release(ip netip.Addr, id string) {
	x := &w.index
	others := slices.DeleteFunc(x.others[ip], func(o string) bool { return o == id })
	if x.holders[ip] == id {
		delete(x.holders, ip)
		maps.Copy(w.lead, w.backed[ip])
		if last := len(others) - 1; last >= 0 {
			x.holders[ip], others = others[last], others[:last]
			w.Instances[x.holders[ip]] = true
		}
	}
	if x.others[ip] = others; len(others) == 0 {
		delete(x.others, ip)
	}
}

func (w *writing) leadWorkload(id string) {
	for _, s := range w.services[id] {
		w.lead[s] = true
	}
}

// unlink takes away what the state knows by an instance, except for what the one in its place has as well.
func (w *writing) unlink(old, next *NetworkInstance) {
	for _, ip := range addressesOf(old) {
		w.release(ip, old.ID)
	}
	if !old.Serves || next != nil && next.Serves && next.WorkloadID == old.WorkloadID {
		return
	}
	list := w.serving[old.WorkloadID]
	if at, found := slices.BinarySearch(list, old.ID); found {
		if list = slices.Delete(list, at, at+1); len(list) == 0 {
			delete(w.serving, old.WorkloadID)
		} else {
			w.serving[old.WorkloadID] = list
		}
	}
	w.leadWorkload(old.WorkloadID)
}

func (w *writing) dropInstance(id string) {
	w.Instances[id] = true
	i, all := w.index.instances[id], w.net.Instances
	w.unlink(&all[i], nil)
	last := len(all) - 1
	if i != last {
		all[i] = all[last]
		w.index.instances[all[i].ID] = i
	}
	all[last] = NetworkInstance{}
	w.net.Instances = all[:last]
	delete(w.index.instances, id)
}

// putServices adds services in their place. The many of a complete state are put in order at once.
func (w *writing) putServices(list []NetworkService, whole bool) {
	for i := range list {
		s := &list[i]
		w.Services[s.ID] = true
		w.dropLinks(s.ID)
		if s.PortGroup != "" {
			key := groupKey(s)
			if w.groups[key] == nil {
				w.groups[key] = map[string]bool{}
			}
			w.groups[key][s.ID], w.grouped[s.ID], w.regroup[key] = true, *s, true
		}
		if s.WorkloadID != "" {
			w.services[s.WorkloadID] = append(w.services[s.WorkloadID], s.ID)
		}
		if s.Direct {
			w.direct[s.ID] = true
			for _, ip := range backendsOf(s) {
				if w.backed[ip] == nil {
					w.backed[ip] = map[string]bool{}
				}
				w.backed[ip][s.ID] = true
			}
		}
		w.lead[s.ID] = true
		if whole {
			w.net.Services = append(w.net.Services, *s)
			continue
		}
		if at, found := w.index.service(&w.net, s.ID); found {
			endpoints := w.net.Services[at].Endpoints
			w.net.Services[at] = *s
			w.net.Services[at].Endpoints = endpoints
		} else {
			w.net.Services = slices.Insert(w.net.Services, at, *s)
			w.index.sorted++
		}
	}
	if whole {
		slices.SortFunc(w.net.Services, func(a, b NetworkService) int { return strings.Compare(a.ID, b.ID) })
		w.index.sorted = len(w.net.Services)
	}
}

func backendsOf(s *NetworkService) (out []netip.Addr) {
	for _, b := range s.Backends {
		if ip, err := netip.ParseAddr(b.Address); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

// dropLinks takes away what the state knows by a service.
func (w *writing) dropLinks(id string) {
	old := w.net.Service(id)
	if old == nil {
		return
	}
	if list := slices.DeleteFunc(w.services[old.WorkloadID], func(s string) bool { return s == id }); len(list) == 0 {
		delete(w.services, old.WorkloadID)
	} else {
		w.services[old.WorkloadID] = list
	}
	delete(w.direct, id)
	if old.Direct {
		for _, ip := range backendsOf(old) {
			if delete(w.backed[ip], id); len(w.backed[ip]) == 0 {
				delete(w.backed, ip)
			}
		}
	}
	if g, ok := w.grouped[id]; ok {
		key := groupKey(&g)
		delete(w.grouped, id)
		if delete(w.groups[key], id); len(w.groups[key]) == 0 {
			delete(w.groups, key)
		}
		w.regroup[key] = true
	}
}

func (w *writing) dropService(id string) bool {
	at, found := w.index.service(&w.net, id)
	if !found {
		return false
	}
	w.Services[id] = true
	w.dropLinks(id)
	delete(w.lead, id)
	w.net.Services = slices.Delete(w.net.Services, at, at+1)
	w.index.sorted--
	return true
}

// finish finds where services lead that may lead elsewhere.
func (w *writing) finish() {
	for id := range w.lead {
		at, found := w.index.service(&w.net, id)
		if !found {
			continue
		}
		s := &w.net.Services[at]
		endpoints := w.endpoints(s)
		if slices.EqualFunc(endpoints, s.Endpoints, func(a, b Endpoint) bool {
			return a.Instance == b.Instance && a.NodeID == b.NodeID && a.Weight == b.Weight && maps.Equal(a.Targets, b.Targets) && slices.Equal(a.Addresses, b.Addresses)
		}) {
			continue
		}
		s.Endpoints = endpoints
		w.Led[id] = true
		if g, ok := w.grouped[id]; ok {
			w.regroup[groupKey(&g)] = true
		}
	}
	for key := range w.regroup {
		w.group(key)
	}
}

func (w *writing) endpoints(s *NetworkService) []Endpoint {
	if s.Direct {
		return w.directEndpoints(s)
	}
	serving := w.serving[s.WorkloadID]
	if len(serving) == 0 {
		return nil
	}
	out := make([]Endpoint, 0, len(serving))
	for _, id := range serving {
		i := &w.net.Instances[w.index.instances[id]]
		out = append(out, Endpoint{Instance: id, NodeID: i.NodeID, Addresses: i.Addresses, Weight: i.Weight})
	}
	return out
}

// directEndpoints are the backends of a direct service, but those on nodes that are down, and those that no instance has where only
// instances have addresses: who wrote such a backend has not heard yet that its instance is gone.
func (w *writing) directEndpoints(s *NetworkService) []Endpoint {
	if len(s.VirtualIPs) == 0 {
		return nil
	}
	var out []Endpoint
	for _, b := range s.Backends {
		e := Endpoint{Addresses: []model.Address{{Network: s.VirtualIPs[0].Network, IP: b.Address}}, Targets: b.Targets}
		ip, err := netip.ParseAddr(b.Address)
		if id, ok := w.index.holders[ip]; err == nil && ok {
			e.Instance, e.NodeID = id, w.net.Instances[w.index.instances[id]].NodeID
			if w.nodes[e.NodeID].Down {
				continue
			}
		} else if err == nil && w.ofNetwork(ip) {
			continue
		}
		out = append(out, e)
	}
	return out
}

// ofNetwork reports whether an address is in the subnet of a network.
func (w *writing) ofNetwork(ip netip.Addr) bool {
	for _, n := range w.networks {
		for _, subnet := range []string{n.Status.Subnet, n.Status.Subnet6} {
			if p, err := netip.ParsePrefix(subnet); err == nil && p.Contains(ip) {
				return true
			}
		}
	}
	return false
}

const groupPrefix = "group "

// GroupOf reads the ID of a service that publishes the ports of a group: NAMESPACE/APPLICATION/GROUP.
func GroupOf(serviceID string) (group string, ok bool) {
	return strings.CutPrefix(serviceID, groupPrefix)
}

func groupKey(s *NetworkService) string { return s.Namespace + "/" + s.Application + "/" + s.PortGroup }

// group gives the ports that services of a group publish together to a service of the group's own, which
// leads to the instances of all of them.
func (w *writing) group(key string) {
	n := &w.net
	id := groupPrefix + key
	w.Led[id] = true
	n.Services = append(n.Services[:w.index.sorted], slices.DeleteFunc(n.Services[w.index.sorted:], func(s NetworkService) bool { return s.ID == id })...)
	members := slices.Sorted(maps.Keys(w.groups[key]))
	if len(members) == 0 {
		return
	}
	g := NetworkService{ID: id}
	for _, member := range members {
		at, found := w.index.service(n, member)
		if !found {
			continue
		}
		s, told := &n.Services[at], w.grouped[member]
		w.Led[member] = true
		g.Namespace, g.Application, g.PortGroup = s.Namespace, s.Application, s.PortGroup
		g.Endpoints = append(g.Endpoints, s.Endpoints...)
		s.Ports = slices.Clone(told.Ports)
		for k := range s.Ports {
			p := &s.Ports[k]
			if p.Published == 0 || p.HostMode {
				continue
			}
			if !slices.Contains(g.Ports, *p) {
				g.Ports = append(g.Ports, *p)
			}
			p.Published = 0
		}
	}
	n.Services = append(n.Services, g)
}
