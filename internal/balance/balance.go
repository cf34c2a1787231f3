// Package balance leads traffic to instances, and keeps apart what does not belong together, with
// one nftables table in the node's network namespace: virtual IPs, published ports, isolation
// between networks, and the way out. Maps and sets carry the content, so that the number of rules
// that a packet meets does not grow with the number of services.
//
// Compute turns the cluster's network state into what this node should have, purely; Sync replaces
// the table in one transaction, whenever that differs from what is in force. Connections that
// exist are the kernel's and go on through any change, and without us.
//
// Names are answered by package names below this one.
package balance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/wire"
)

// TableName is the nftables table that belongs to this package.
const TableName = "tutti"

// Config says whose balancer this is.
type Config struct {
	NodeID string
	Log    *slog.Logger
}

// Balance owns the table.
type Balance struct {
	Config
	mu      sync.Mutex
	inForce *Desired
}

// New returns a balancer; the table comes with the first Sync.
func New(c Config) *Balance { return &Balance{Config: c} }

// Desired is what a node's table should say.
type Desired struct {
	Own         netip.Addr // the node's overlay address, from which it speaks for others
	NodePool    netip.Prefix
	AddressPool netip.Prefix
	// Networks is where instances have their addresses: the pool, and subnets outside of it.
	// None overlaps with another.
	Networks  []netip.Prefix
	Virtual   []Virtual
	Published []Published
	Subnets   []netip.Prefix // one per network: inside one, everybody reaches everybody
	Internal  []netip.Prefix // subnets without a way out
	Local     []netip.Addr   // addresses of instances on this node
}

// Virtual is a virtual IP and where its connections go.
type Virtual struct {
	IP        netip.Addr
	Endpoints []netip.Addr
}

// Published is a port of this node and where its connections go.
type Published struct {
	HostIP    netip.Addr // the only address of the node that it is published on; invalid for all
	Protocol  uint8      // IPPROTO_…
	Port      uint16
	Target    uint16
	Endpoints []netip.Addr
}

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// Compute says what the table of a node should hold. It is pure, and its output is in a fixed order.
func Compute(n *wire.Network, nodeID string) (*Desired, error) {
	d := &Desired{}
	for _, node := range n.Nodes {
		if node.ID == nodeID {
			own, err := netip.ParseAddr(node.OverlayAddress)
			if err != nil {
				return nil, fault.New(fault.Internal, "overlay address of this node: %w", err)
			}
			d.Own = own
		}
	}
	var err error
	if d.NodePool, err = netip.ParsePrefix(n.NodePool); err != nil {
		return nil, fault.New(fault.Internal, "pool of node addresses: %w", err)
	}
	if d.AddressPool, err = netip.ParsePrefix(n.AddressPool); err != nil {
		return nil, fault.New(fault.Internal, "pool of network addresses: %w", err)
	}
	for _, net := range n.Networks {
		p, err := netip.ParsePrefix(net.Status.Subnet)
		if err != nil {
			return nil, fault.New(fault.Internal, "subnet of network %s: %w", net.FullName(), err)
		}
		d.Subnets = append(d.Subnets, p)
		if net.Internal {
			d.Internal = append(d.Internal, p)
		}
	}
	local := map[string]bool{}
	for _, i := range n.Instances {
		if i.NodeID != nodeID {
			continue
		}
		local[i.ID] = true
		for _, a := range i.Addresses {
			if ip, err := netip.ParseAddr(a.IP); err == nil {
				d.Local = append(d.Local, ip)
			}
		}
	}
	for i := range n.Services {
		d.addService(&n.Services[i], local)
	}
	d.Networks = merge(append(slices.Clone(d.Subnets), d.AddressPool))
	d.sort()
	d.settle()
	return d, nil
}

// merge drops prefixes that lie in others.
func merge(list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for i, p := range list {
		within := false
		for j, q := range list {
			wider := q.Bits() < p.Bits() || q.Bits() == p.Bits() && j < i
			within = within || i != j && wider && q.Overlaps(p)
		}
		if !within {
			out = append(out, p.Masked())
		}
	}
	return out
}

// on returns an endpoint's address on a network; "" takes its first.
func on(e *wire.Endpoint, network string) (netip.Addr, bool) {
	for _, a := range e.Addresses {
		if network == "" || a.Network == network {
			ip, err := netip.ParseAddr(a.IP)
			return ip, err == nil
		}
	}
	return netip.Addr{}, false
}

func (d *Desired) addService(s *wire.NetworkService, local map[string]bool) {
	for _, v := range s.VirtualIPs {
		ip, err := netip.ParseAddr(v.IP)
		if err != nil {
			continue
		}
		virtual := Virtual{IP: ip}
		for i := range s.Endpoints {
			if a, ok := on(&s.Endpoints[i], v.Network); ok {
				virtual.Endpoints = append(virtual.Endpoints, a)
			}
		}
		d.Virtual = append(d.Virtual, virtual)
	}
	for _, p := range s.Ports {
		proto, ok := protocols[p.Protocol]
		if p.Published == 0 || !ok {
			continue
		}
		hostIP, ok := hostAddress(p.HostIP)
		if !ok {
			continue
		}
		pub := Published{HostIP: hostIP, Protocol: proto, Port: uint16(p.Published), Target: uint16(p.Target)}
		for i := range s.Endpoints {
			if p.HostMode && !local[s.Endpoints[i].Instance] {
				continue
			}
			if a, ok := on(&s.Endpoints[i], ""); ok {
				pub.Endpoints = append(pub.Endpoints, a)
			}
		}
		d.Published = append(d.Published, pub)
	}
}

// hostAddress reads the address that a port is published on: the zero Addr is all of them. It is
// not ok when the node cannot have it, which is so for addresses of IPv6.
func hostAddress(s string) (netip.Addr, bool) {
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
	return ip, ip.Is4()
}

// settle drops what claims the same as another that leads somewhere: one wrong service must not
// keep the table from being written.
func (d *Desired) settle() {
	addresses := map[netip.Addr]bool{}
	d.Virtual = slices.DeleteFunc(d.Virtual, func(v Virtual) bool {
		again := addresses[v.IP]
		addresses[v.IP] = again || len(v.Endpoints) > 0
		return again
	})
	type claim struct {
		hostIP   netip.Addr
		protocol uint8
		port     uint16
	}
	ports := map[claim]bool{}
	d.Published = slices.DeleteFunc(d.Published, func(p Published) bool {
		c := claim{p.HostIP, p.Protocol, p.Port}
		again := ports[c]
		ports[c] = again || len(p.Endpoints) > 0
		return again
	})
	d.Subnets = slices.Compact(d.Subnets)
}

func (d *Desired) sort() {
	byAddr := func(a, b netip.Addr) int { return a.Compare(b) }
	byPrefix := func(a, b netip.Prefix) int { return a.Compare(b) }
	slices.SortFunc(d.Local, byAddr)
	slices.SortFunc(d.Subnets, byPrefix)
	slices.SortFunc(d.Internal, byPrefix)
	slices.SortFunc(d.Networks, byPrefix)
	slices.SortStableFunc(d.Virtual, func(a, b Virtual) int { return a.IP.Compare(b.IP) })
	slices.SortStableFunc(d.Published, func(a, b Published) int {
		// Of one port, those on a single address come first: they are more particular.
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), b.HostIP.Compare(a.HostIP))
	})
	for i := range d.Virtual {
		slices.SortFunc(d.Virtual[i].Endpoints, byAddr)
	}
	for i := range d.Published {
		slices.SortFunc(d.Published[i].Endpoints, byAddr)
	}
}

// Sync puts the network state in force.
func (b *Balance) Sync(ctx context.Context, n *wire.Network) error {
	d, err := Compute(n, b.NodeID)
	if err != nil {
		return err
	}
	if !d.Own.IsValid() {
		return nil // this node has no address yet: the next state tells
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.inForce != nil && reflect.DeepEqual(b.inForce, d) {
		return nil
	}
	if err := replaceTable(d); err != nil {
		return fmt.Errorf("write the balancer's table: %w", err)
	}
	old := b.inForce
	b.inForce = d
	if old != nil {
		b.cutDead(n, old, d)
	}
	return nil
}

// cutDead ends connections into instances that are no longer there, so that clients notice at once
// instead of waiting for an answer that cannot come.
func (b *Balance) cutDead(n *wire.Network, old, now *Desired) {
	alive := map[netip.Addr]bool{}
	down := map[string]bool{}
	for _, node := range n.Nodes {
		down[node.ID] = node.Down
	}
	for _, i := range n.Instances {
		for _, a := range i.Addresses {
			if ip, err := netip.ParseAddr(a.IP); err == nil && !down[i.NodeID] {
				alive[ip] = true
			}
		}
	}
	dead := deadFlows{}
	note := func(endpoints []netip.Addr) {
		for _, e := range endpoints {
			if !alive[e] {
				dead[e] = true
			}
		}
	}
	for _, v := range old.Virtual {
		note(v.Endpoints)
	}
	for _, p := range old.Published {
		note(p.Endpoints)
	}
	if len(dead) == 0 {
		return
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, dead); err != nil {
		b.Log.Info("connections to ended instances could not be cut", "error", err)
	}
}

// deadFlows matches connections that were led to one of the addresses.
type deadFlows map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (d deadFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	a, ok := netip.AddrFromSlice(f.Reverse.SrcIP.To4())
	return ok && d[a]
}

// Remove takes the table away.
func (b *Balance) Remove(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inForce = nil
	err := deleteTable()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
