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
	Encrypted []netip.Prefix // subnets of which nothing goes from node to node in the clear
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
	Endpoints []endpoint    // each entry as likely; one that weighs more is there several times
	owner     source        // whose it is
}

// endpoint is where a connection is led to; port 0: the target of its frontend.
type endpoint struct{ netip.AddrPort }

func (e endpoint) String() string {
	if e.Port() == 0 {
		return e.Addr().String()
	}
	return e.AddrPort.String()
}

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// Compute says what the table of a node for a version of IP should hold. It is pure, and its output is
// in a fixed order. Without networks of that version, Own is invalid.
func Compute(n *wire.Network, nodeID string, f *family) (*Desired, error) {
	l, err := newLedger(n, nodeID, f)
	if err != nil {
		return nil, err
	}
	return l.desired(), nil
}

// shapeOf is what a table holds whatever services and instances there are.
func shapeOf(n *wire.Network, nodeID string, f *family) (d Desired, err error) {
	pool, err := d.pools(n, nodeID, f)
	if err != nil {
		return d, err
	}
	for _, net := range n.Networks {
		if net.Underlay != nil {
			continue // what instances send there does not pass by here
		}
		subnet := net.Status.Subnet
		if f == ipv6 {
			if subnet = net.Status.Subnet6; subnet == "" {
				continue
			}
		}
		p, err := netip.ParsePrefix(subnet)
		if err != nil {
			return d, fault.New(fault.Internal, "subnet of network %s: %w", net.FullName(), err)
		}
		d.Subnets = append(d.Subnets, p)
		if net.Internal {
			d.Internal = append(d.Internal, p)
		}
		if net.Encrypted {
			d.Encrypted = append(d.Encrypted, p)
		}
	}
	if f == ipv6 && len(d.Subnets) == 0 {
		return Desired{}, nil
	}
	d.Networks = merge(append(slices.Clone(d.Subnets), pool))
	slices.SortFunc(d.Subnets, netip.Prefix.Compare)
	d.Subnets = slices.Compact(d.Subnets)
	slices.SortFunc(d.Internal, netip.Prefix.Compare)
	slices.SortFunc(d.Encrypted, netip.Prefix.Compare)
	return d, nil
}

// pools reads the node's own address, and where nodes have theirs; it returns where networks have theirs.
func (d *Desired) pools(n *wire.Network, nodeID string, f *family) (pool netip.Prefix, err error) {
	if d.NodePool, err = netip.ParsePrefix(n.NodePool); err != nil {
		return pool, fault.New(fault.Internal, "pool of node addresses: %w", err)
	}
	if pool, err = netip.ParsePrefix(n.AddressPool); err != nil {
		return pool, fault.New(fault.Internal, "pool of network addresses: %w", err)
	}
	for _, node := range n.Nodes {
		if node.ID == nodeID {
			if d.Own, err = netip.ParseAddr(node.OverlayAddress); err != nil {
				return pool, fault.New(fault.Internal, "overlay address of this node: %w", err)
			}
		}
	}
	if f == ipv6 && n.AddressPool6 != "" {
		if pool, err = netip.ParsePrefix(n.AddressPool6); err != nil {
			return pool, fault.New(fault.Internal, "pool of network addresses: %w", err)
		}
		d.NodePool = model.NodePool6(pool)
		if d.Own.IsValid() {
			d.Own = model.Embed(d.NodePool, d.Own)
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

// on are the addresses of endpoints on a network, each as often as it weighs; "" takes the first of each.
// Those of this node may come before all others, or be the only ones.
func (l *ledger) on(s *wire.NetworkService, p *model.ServicePort, network string, local model.LocalPolicy) []endpoint {
	all, near := make([]weighted, 0, len(s.Endpoints)), []weighted(nil)
	for i := range s.Endpoints {
		e, port := &s.Endpoints[i], uint16(0)
		if p != nil && e.Targets != nil {
			if port = uint16(p.TargetOf(e.Targets)); port == 0 || s.Balance.Sticky > 0 && int(port) != p.Target {
				continue // what clients are led to again has one port
			}
			if int(port) == p.Target {
				port = 0
			}
		}
		for j := range e.Addresses {
			ip, ok := l.f.address(&e.Addresses[j])
			if !ok || network != "" && e.Addresses[j].Network != network || l.onHosts[e.Addresses[j].Network] {
				continue
			}
			w := weighted{endpoint{netip.AddrPortFrom(ip, port)}, cmp.Or(e.Weight, model.FullWeight)}
			all = append(all, w)
			if local != "" && e.NodeID == l.nodeID {
				near = append(near, w)
			}
			break
		}
	}
	if local == model.LocalOnly || len(near) > 0 {
		all = near
	}
	return shares(all)
}

// weighted is an endpoint, and how many connections it gets beside others.
type weighted struct {
	endpoint
	weight int
}

// mostShares bounds how often a table has endpoints of different weights; more endpoints are there once each.
const mostShares = 4096

// shares are endpoints in ascending order, each as often as it weighs.
func shares(list []weighted) []endpoint {
	slices.SortFunc(list, func(a, b weighted) int { return cmp.Or(a.Compare(b.AddrPort), cmp.Compare(b.weight, a.weight)) })
	list = slices.CompactFunc(list, func(a, b weighted) bool { return a.endpoint == b.endpoint })
	divisor, sum := 0, 0
	for _, e := range list {
		sum += e.weight
		for a, b := e.weight, divisor; ; a, b = b, a%b {
			if b == 0 {
				divisor = a
				break
			}
		}
	}
	out := make([]endpoint, 0, len(list))
	for _, e := range list {
		times := e.weight / divisor
		if sum/divisor > max(mostShares, len(list)) {
			times = max(1, e.weight*mostShares/sum)
		}
		for range times {
			out = append(out, e.endpoint)
		}
	}
	return out
}

// ofService are the frontends of a service.
func (l *ledger) ofService(s *wire.NetworkService) (out []Frontend) {
	for i := range s.VirtualIPs {
		ip, ok := l.f.address(&s.VirtualIPs[i])
		if !ok {
			continue
		}
		if s.Direct {
			out = append(out, l.direct(s, ip, s.VirtualIPs[i].Network)...)
			continue
		}
		endpoints := l.on(s, nil, s.VirtualIPs[i].Network, s.Balance.Local)
		out = append(out, Frontend{FrontendKey: FrontendKey{IP: ip}, Sticky: s.Balance.Sticky, Endpoints: endpoints})
		for _, p := range s.Ports {
			if proto, ok := protocols[p.Protocol]; ok && p.Virtual != 0 && p.Virtual != p.Target {
				out = append(out, Frontend{
					FrontendKey: FrontendKey{IP: ip, Protocol: proto, Port: uint16(p.Virtual)},
					Target:      uint16(p.Target), Sticky: s.Balance.Sticky, Endpoints: endpoints,
				})
			}
		}
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		proto, ok := protocols[p.Protocol]
		if p.Published == 0 || !ok {
			continue
		}
		hostIP, ok := hostAddress(p.HostIP, l.f)
		if !ok {
			continue
		}
		local := s.Balance.FromOutside()
		if p.HostMode {
			local = model.LocalOnly
		}
		out = append(out, Frontend{
			FrontendKey: FrontendKey{Node: true, IP: hostIP, Protocol: proto, Port: uint16(p.Published)},
			Target:      uint16(p.Target), Sticky: s.Balance.Sticky, Endpoints: l.on(s, p, "", local),
		})
	}
	return append(out, l.outside(s)...)
}

// outside are the frontends at addresses of no host: as published ports, at one address each.
func (l *ledger) outside(s *wire.NetworkService) (out []Frontend) {
	for _, text := range s.OutsideIPs {
		ip, err := netip.ParseAddr(text)
		if err != nil || ip.Is4() != (l.f == ipv4) {
			continue
		}
		for i := range s.Ports {
			p := &s.Ports[i]
			if proto, ok := protocols[p.Protocol]; ok {
				out = append(out, Frontend{
					FrontendKey: FrontendKey{Node: true, IP: ip, Protocol: proto, Port: uint16(cmp.Or(p.Virtual, p.Target))},
					Target:      uint16(p.Target), Sticky: s.Balance.Sticky, Endpoints: l.on(s, p, "", s.Balance.FromOutside()),
				})
			}
		}
	}
	return out
}

// direct leads the ports of a direct service's virtual IP; its others lead nowhere.
func (l *ledger) direct(s *wire.NetworkService, ip netip.Addr, network string) []Frontend {
	out := []Frontend{{FrontendKey: FrontendKey{IP: ip}}}
	var all []endpoint // where those of all ports are the same
	differ := slices.ContainsFunc(s.Endpoints, func(e wire.Endpoint) bool { return e.Targets != nil })
	for i := range s.Ports {
		p := &s.Ports[i]
		if differ || i == 0 {
			all = l.on(s, p, network, s.Balance.Local)
		}
		port := p.Virtual
		if port == 0 {
			port = p.Target
		}
		if proto, ok := protocols[p.Protocol]; ok {
			out = append(out, Frontend{
				FrontendKey: FrontendKey{IP: ip, Protocol: proto, Port: uint16(port)},
				Target:      uint16(p.Target), Sticky: s.Balance.Sticky, Endpoints: all,
			})
		}
	}
	return out
}

// heldPort is a port of the node that instances of a workload have where they run.
type heldPort struct {
	workload, protocol string
	port               int
}

// ofHolder publishes the ports that an instance of this node holds by itself. Those of a service are led
// as that says.
func (l *ledger) ofHolder(i *wire.NetworkInstance) (out []Frontend) {
	at := slices.IndexFunc(i.Addresses, func(a model.Address) bool { return !l.onHosts[a.Network] })
	if at < 0 {
		return nil
	}
	ip, ok := l.f.address(&i.Addresses[at])
	for _, h := range i.HostPorts {
		hostIP, mine := hostAddress(h.HostIP, l.f)
		if proto, known := protocols[h.Protocol]; ok && known && mine && l.hostPorts[heldPort{i.WorkloadID, h.Protocol, h.Published}] == 0 {
			out = append(out, Frontend{
				FrontendKey: FrontendKey{Node: true, IP: hostIP, Protocol: proto, Port: uint16(h.Published)}, Target: uint16(h.Target), Endpoints: []endpoint{{netip.AddrPortFrom(ip, 0)}},
			})
		}
	}
	return out
}

// hostAddress reads the address that a port is published on: the zero Addr is all of them. It is
// not ok when it is of the other version of IP.
func hostAddress(s string, f *family) (netip.Addr, bool) {
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
	return ip, ip.Is4() == (f == ipv4)
}

func byKey(a, b Frontend) int {
	if a.Node != b.Node {
		if b.Node {
			return -1
		}
		return 1
	}
	return cmp.Or(a.IP.Compare(b.IP), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}
