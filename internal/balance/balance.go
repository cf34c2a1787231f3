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
	Virtual     []Virtual
	Published   []Published
	Subnets     []netip.Prefix // one per network: inside one, everybody reaches everybody
	Internal    []netip.Prefix // subnets without a way out
	Local       []netip.Addr   // addresses of instances on this node
}

// Virtual is a virtual IP and where its connections go.
type Virtual struct {
	IP        netip.Addr
	Endpoints []netip.Addr
}

// Published is a port of this node and where its connections go.
type Published struct {
	Protocol  uint8 // IPPROTO_…
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
	d.sort()
	return d, nil
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
		pub := Published{Protocol: proto, Port: uint16(p.Published), Target: uint16(p.Target)}
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

func (d *Desired) sort() {
	byAddr := func(a, b netip.Addr) int { return a.Compare(b) }
	byPrefix := func(a, b netip.Prefix) int { return a.Compare(b) }
	slices.SortFunc(d.Local, byAddr)
	slices.SortFunc(d.Subnets, byPrefix)
	slices.SortFunc(d.Internal, byPrefix)
	slices.SortFunc(d.Virtual, func(a, b Virtual) int { return a.IP.Compare(b.IP) })
	slices.SortFunc(d.Published, func(a, b Published) int { return int(a.Port)<<8 + int(a.Protocol) - int(b.Port)<<8 - int(b.Protocol) })
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
	for _, v := range old.Virtual {
		for _, e := range v.Endpoints {
			if !alive[e] {
				dead[e] = true
			}
		}
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
