package balance

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// Desired is what a node's table for one version of IP should say.
type Desired struct {
	Own      netip.Addr // the node's overlay address, from which it speaks for others
	NodePool netip.Prefix
	// Networks is where instances have their addresses: the pool, and subnets outside of it.
	// None overlaps with another.
	Networks  []netip.Prefix
	Frontends []Frontend     // none has the key of another
	Subnets   []netip.Prefix // one per network: inside one, everybody reaches everybody
	Internal  []netip.Prefix // subnets without a way out
	Local     []netip.Addr   // addresses of instances on this node
	Policies  policies
}

// FrontendKey is what a client speaks to.
type FrontendKey struct {
	// Node says that it is a port of this node; otherwise it is a virtual IP.
	Node bool
	// IP is the virtual IP, or the only address of the node that a port is published on; invalid:
	// all of the node's.
	IP       netip.Addr
	Protocol uint8 // IPPROTO_…; 0, with Port 0: the whole virtual IP
	Port     uint16
}

// Frontend is where connections are led from, and where to.
type Frontend struct {
	FrontendKey
	Target    uint16        // the port that is led to; 0: the same
	Sticky    time.Duration // how long a client is remembered after its latest connection; 0: not at all
	Endpoints []netip.Addr  // each as likely; ascending
}

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// reading computes what one table should hold.
type reading struct {
	Desired
	f      *family
	nodeID string
}

// Compute says what the table of a node for a version of IP should hold. It is pure, and its output is
// in a fixed order. Without networks of that version, Own is invalid.
func Compute(n *wire.Network, nodeID string, f *family) (*Desired, error) {
	r := &reading{f: f, nodeID: nodeID}
	pool, err := r.pools(n)
	if err != nil {
		return nil, err
	}
	for _, net := range n.Networks {
		subnet := net.Status.Subnet
		if f == ipv6 {
			if subnet = net.Status.Subnet6; subnet == "" {
				continue
			}
		}
		p, err := netip.ParsePrefix(subnet)
		if err != nil {
			return nil, fault.New(fault.Internal, "subnet of network %s: %w", net.FullName(), err)
		}
		r.Subnets = append(r.Subnets, p)
		if net.Internal {
			r.Internal = append(r.Internal, p)
		}
	}
	if f == ipv6 && len(r.Subnets) == 0 {
		return &Desired{}, nil
	}
	for i := range n.Instances {
		if n.Instances[i].NodeID != nodeID {
			continue
		}
		for _, a := range n.Instances[i].Addresses {
			if ip, ok := f.address(&a); ok {
				r.Local = append(r.Local, ip)
			}
		}
	}
	for i := range n.Services {
		r.addService(&n.Services[i])
	}
	r.addHeld(n)
	r.Policies = compilePolicies(n, f)
	r.Networks = merge(append(slices.Clone(r.Subnets), pool))
	r.sort()
	r.settle()
	return &r.Desired, nil
}

// pools reads the node's own address, and where nodes have theirs; it returns where networks have theirs.
func (r *reading) pools(n *wire.Network) (pool netip.Prefix, err error) {
	if r.NodePool, err = netip.ParsePrefix(n.NodePool); err != nil {
		return pool, fault.New(fault.Internal, "pool of node addresses: %w", err)
	}
	if pool, err = netip.ParsePrefix(n.AddressPool); err != nil {
		return pool, fault.New(fault.Internal, "pool of network addresses: %w", err)
	}
	for _, node := range n.Nodes {
		if node.ID == r.nodeID {
			if r.Own, err = netip.ParseAddr(node.OverlayAddress); err != nil {
				return pool, fault.New(fault.Internal, "overlay address of this node: %w", err)
			}
		}
	}
	if r.f == ipv6 && n.AddressPool6 != "" {
		if pool, err = netip.ParsePrefix(n.AddressPool6); err != nil {
			return pool, fault.New(fault.Internal, "pool of network addresses: %w", err)
		}
		r.NodePool = model.NodePool6(pool)
		if r.Own.IsValid() {
			r.Own = model.Embed(r.NodePool, r.Own)
		}
	}
	return pool, nil
}

// merge drops prefixes that lie in others.
func merge(list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b netip.Prefix) int { // the wider ones first
		return cmp.Or(a.Masked().Addr().Compare(b.Masked().Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range list {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p.Masked())
		}
	}
	return out
}

// on appends the addresses of endpoints on a network; "" takes the first of each. Those of this node
// may come before all others, or be the only ones.
func (r *reading) on(s *wire.NetworkService, network string, local model.LocalPolicy) []netip.Addr {
	all, near := make([]netip.Addr, 0, len(s.Endpoints)), []netip.Addr(nil)
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		for j := range e.Addresses {
			ip, ok := r.f.address(&e.Addresses[j])
			if !ok || network != "" && e.Addresses[j].Network != network {
				continue
			}
			all = append(all, ip)
			if local != "" && e.NodeID == r.nodeID {
				near = append(near, ip)
			}
			break
		}
	}
	if local == model.LocalOnly || len(near) > 0 {
		all = near
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

func (r *reading) addService(s *wire.NetworkService) {
	for i := range s.VirtualIPs {
		ip, ok := r.f.address(&s.VirtualIPs[i])
		if !ok {
			continue
		}
		endpoints := r.on(s, s.VirtualIPs[i].Network, s.Balance.Local)
		if s.Direct {
			r.addDirect(s, ip, endpoints)
			continue
		}
		r.Frontends = append(r.Frontends, Frontend{FrontendKey: FrontendKey{IP: ip}, Sticky: s.Balance.Sticky, Endpoints: endpoints})
		for _, p := range s.Ports {
			if proto, ok := protocols[p.Protocol]; ok && p.Virtual != 0 && p.Virtual != p.Target {
				r.Frontends = append(r.Frontends, Frontend{
					FrontendKey: FrontendKey{IP: ip, Protocol: proto, Port: uint16(p.Virtual)},
					Target:      uint16(p.Target), Sticky: s.Balance.Sticky, Endpoints: endpoints,
				})
			}
		}
	}
	for _, p := range s.Ports {
		proto, ok := protocols[p.Protocol]
		if p.Published == 0 || !ok {
			continue
		}
		hostIP, ok := r.hostAddress(p.HostIP)
		if !ok {
			continue
		}
		local := s.Balance.Local
		if p.HostMode {
			local = model.LocalOnly
		}
		r.Frontends = append(r.Frontends, Frontend{
			FrontendKey: FrontendKey{Node: true, IP: hostIP, Protocol: proto, Port: uint16(p.Published)},
			Target:      uint16(p.Target), Sticky: s.Balance.Sticky, Endpoints: r.on(s, "", local),
		})
	}
}

// addDirect leads the ports of a direct service's virtual IP; its others lead nowhere.
func (r *reading) addDirect(s *wire.NetworkService, ip netip.Addr, endpoints []netip.Addr) {
	r.Frontends = append(r.Frontends, Frontend{FrontendKey: FrontendKey{IP: ip}})
	for _, p := range s.Ports {
		port := p.Virtual
		if port == 0 {
			port = p.Target
		}
		if proto, ok := protocols[p.Protocol]; ok {
			r.Frontends = append(r.Frontends, Frontend{
				FrontendKey: FrontendKey{IP: ip, Protocol: proto, Port: uint16(port)},
				Target:      uint16(p.Target), Sticky: s.Balance.Sticky, Endpoints: endpoints,
			})
		}
	}
}

// addHeld publishes the ports that instances of this node hold by themselves. Those of a service are led
// as that says.
func (r *reading) addHeld(n *wire.Network) {
	type held struct {
		workload, protocol string
		port               int
	}
	ofServices := map[held]bool{}
	for i := range n.Services {
		for _, p := range n.Services[i].Ports {
			if p.HostMode {
				ofServices[held{n.Services[i].WorkloadID, p.Protocol, p.Published}] = true
			}
		}
	}
	for k := range n.Instances {
		i := &n.Instances[k]
		if i.NodeID != r.nodeID || len(i.Addresses) == 0 {
			continue
		}
		ip, ok := r.f.address(&i.Addresses[0])
		for _, h := range i.HostPorts {
			if proto, known := protocols[h.Protocol]; ok && known && !ofServices[held{i.WorkloadID, h.Protocol, h.Published}] {
				r.Frontends = append(r.Frontends, Frontend{
					FrontendKey: FrontendKey{Node: true, Protocol: proto, Port: uint16(h.Published)}, Target: uint16(h.Target), Endpoints: []netip.Addr{ip},
				})
			}
		}
	}
}

// hostAddress reads the address that a port is published on: the zero Addr is all of them. It is
// not ok when it is of the other version of IP.
func (r *reading) hostAddress(s string) (netip.Addr, bool) {
	if s == "" {
		return netip.Addr{}, true
	}
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return ip, false
	}
	if ip = ip.Unmap(); ip.IsUnspecified() {
		return netip.Addr{}, true
	}
	return ip, ip.Is4() == (r.f == ipv4)
}

// settle drops what claims the same as another that leads somewhere: one wrong service must not
// keep the table from being written.
func (r *reading) settle() {
	claimed := make(map[FrontendKey]int, len(r.Frontends))
	kept := r.Frontends[:0]
	for _, f := range r.Frontends {
		i, again := claimed[f.FrontendKey]
		switch {
		case !again:
			claimed[f.FrontendKey] = len(kept)
			kept = append(kept, f)
		case len(kept[i].Endpoints) == 0:
			kept[i] = f
		}
	}
	r.Frontends = kept
	r.Subnets = slices.Compact(r.Subnets)
}

func (r *reading) sort() {
	byPrefix := func(a, b netip.Prefix) int { return a.Compare(b) }
	slices.SortFunc(r.Local, netip.Addr.Compare)
	r.Local = slices.Compact(r.Local)
	slices.SortFunc(r.Subnets, byPrefix)
	slices.SortFunc(r.Internal, byPrefix)
	slices.SortStableFunc(r.Frontends, func(a, b Frontend) int {
		if a.Node != b.Node {
			if b.Node {
				return -1
			}
			return 1
		}
		return cmp.Or(a.IP.Compare(b.IP), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
}
