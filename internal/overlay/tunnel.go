package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// tunnelMAC derives a node's hardware address in the tunnel from its overlay address.
func tunnelMAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x0e, 0x54, b[0], b[1], b[2], b[3]}
}

func (o *Overlay) ensureTunnel(own netip.Addr) error {
	link, err := netlink.LinkByName(Device)
	if err == nil {
		v, ok := link.(*netlink.Vxlan)
		if ok && v.VxlanId == vni && v.SrcAddr.String() == o.HostAddress.String() && v.HardwareAddr.String() == tunnelMAC(own).String() && v.MTU == o.mtu {
			return o.raiseTunnel(v, own) // which an earlier agent may not have come to
		}
		if err := netlink.LinkDel(link); err != nil {
			return fmt.Errorf("replace the tunnel: %w", err)
		}
	}
	v := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: Device, MTU: o.mtu, HardwareAddr: tunnelMAC(own)},
		VxlanId:   vni, Port: Port, SrcAddr: o.HostAddress.AsSlice(), Learning: false,
	}
	if err := netlink.LinkAdd(v); err != nil {
		return fmt.Errorf("make the tunnel: %w", err)
	}
	return o.raiseTunnel(v, own)
}

// raiseTunnel brings the device up under the node's address; what it knew of others is looked up anew.
func (o *Overlay) raiseTunnel(v *netlink.Vxlan, own netip.Addr) error {
	if err := netlink.AddrReplace(v, &netlink.Addr{IPNet: single(own)}); err != nil {
		return fmt.Errorf("give the tunnel its address: %w", err)
	}
	if err := netlink.LinkSetUp(v); err != nil {
		return fmt.Errorf("bring the tunnel up: %w", err)
	}
	o.own, o.vxlan = own, v.Index
	o.own6, o.fdb = netip.Addr{}, nil
	return nil
}

// begin6 makes the node a router of IPv6, once a network has it. Where the host's own way out is told
// by routers, it stays so.
func (o *Overlay) begin6(own netip.Addr) error {
	if o.own6 == own {
		return nil
	}
	asked, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, path := range asked {
		if value, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(value)) == "1" {
			if err := setSysctl(strings.TrimPrefix(path, "/proc/sys/"), "2"); err != nil {
				return err
			}
		}
	}
	for name, value := range map[string]string{"net/ipv6/conf/all/forwarding": "1", "net/ipv6/neigh/default/gc_thresh3": "65536", "net/ipv6/neigh/default/gc_thresh2": "32768"} {
		if err := setSysctl(name, value); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByIndex(o.vxlan)
	if err != nil {
		return fmt.Errorf("find the tunnel: %w", err)
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: single(own), Flags: unix.IFA_F_NODAD}); err != nil {
		return fmt.Errorf("give the tunnel its IPv6 address: %w", err)
	}
	o.own6, o.fdb = own, nil // neighbours have an address of it, too
	return nil
}

// syncPeers tells the tunnel where each other node is.
func (o *Overlay) syncPeers(nodes map[string]wire.NetworkNode, addresses map[string]netip.Addr, pool6 netip.Prefix) error {
	wanted := map[netip.Addr]string{}
	for id, node := range nodes {
		if id != o.NodeID {
			wanted[addresses[id]] = node.HostAddress
		}
	}
	if o.fdb == nil { // first after a start: take stock of what an earlier agent made
		o.fdb = map[netip.Addr]string{}
		keep := map[netip.Addr]bool{}
		for a := range wanted {
			keep[a] = true
			if pool6.IsValid() {
				keep[model.Embed(pool6, a)] = true
			}
		}
		old, err := netlink.NeighList(o.vxlan, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, e := range old {
			if a, ok := netip.AddrFromSlice(e.IP); ok && e.State == netlink.NUD_PERMANENT && !keep[a.Unmap()] {
				netlink.NeighDel(&e) // one that is gone by itself is no error
			}
		}
	}
	for a, host := range wanted {
		if o.fdb[a] == host {
			continue
		}
		ip := net.ParseIP(host)
		if ip == nil {
			return fault.New(fault.Internal, "host address %q cannot be read", host)
		}
		if err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: o.vxlan, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: ip, HardwareAddr: tunnelMAC(a),
		}); err != nil {
			return fmt.Errorf("point the tunnel to %s: %w", host, err)
		}
		for _, ip := range both(a, pool6) {
			if err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: o.vxlan, Family: familyOf(ip), State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: tunnelMAC(a),
			}); err != nil {
				return fmt.Errorf("add neighbour %s: %w", ip, err)
			}
		}
		o.fdb[a] = host
	}
	for a, host := range o.fdb {
		if wanted[a] != "" {
			continue
		}
		netlink.NeighDel(&netlink.Neigh{LinkIndex: o.vxlan, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: net.ParseIP(host), HardwareAddr: tunnelMAC(a)})
		for _, ip := range both(a, pool6) {
			netlink.NeighDel(&netlink.Neigh{LinkIndex: o.vxlan, Family: familyOf(ip), IP: ip.AsSlice(), HardwareAddr: tunnelMAC(a)})
		}
		delete(o.fdb, a)
	}
	return nil
}

// both is an address and, where there is a pool of IPv6, the one that belongs to it.
func both(a netip.Addr, pool6 netip.Prefix) []netip.Addr {
	if !pool6.IsValid() {
		return []netip.Addr{a}
	}
	return []netip.Addr{a, model.Embed(pool6, a)}
}

// hop is where a route leads.
type hop struct {
	node netip.Addr // the one that is reached by it, by its address of IPv4
	via  netip.Addr // the gateway; invalid where the node is reached directly
	by   way
}

// way is the device of a route.
type way uint8

const (
	plainly way = iota
	sealed      // by WireGuard
	closed      // nowhere: it would have to be sealed, and this host cannot
)

// places is where instances are, as routes need it.
type places struct {
	nodeID    string
	addresses map[string]netip.Addr     // of nodes in the overlay
	pool6     netip.Prefix              // where nodes have theirs of IPv6
	blocks    map[string][]netip.Prefix // by node and network
	subnets6  map[string]netip.Prefix   // of networks
	onHosts   map[string]bool           // networks that the tunnel does not lead to
	encrypted map[string]bool           // networks
	seals     way                       // how what is encrypted goes
}

// to is a hop to a node, for what is on a network.
func (p *places) to(node, via netip.Addr, network string) hop {
	if p.encrypted[network] {
		return hop{node: node, by: p.seals}
	}
	return hop{node: node, via: via}
}

// via is the node that a route leads to; none leads to the node itself.
func (p *places) via(nodeID string) (netip.Addr, bool) {
	a, ok := p.addresses[nodeID]
	return a, ok && nodeID != p.nodeID
}

// single are the routes that an instance needs for itself: what lies outside of its node's blocks.
func (p *places) single(in *wire.NetworkInstance) (out map[netip.Prefix]hop) {
	to, ok := p.via(in.NodeID)
	if !ok {
		return nil
	}
	add := func(a, via netip.Addr, network string) {
		if out == nil {
			out = map[netip.Prefix]hop{}
		}
		out[netip.PrefixFrom(a, a.BitLen())] = p.to(to, via, network)
	}
	for _, addr := range in.Addresses {
		a, err := netip.ParseAddr(addr.IP)
		if err != nil || p.onHosts[addr.Network] {
			continue
		}
		covered := slices.ContainsFunc(p.blocks[in.NodeID+addr.Network], func(b netip.Prefix) bool { return b.Contains(a) })
		if !covered {
			add(a, to, addr.Network)
		}
		s, has := p.subnets6[addr.Network]
		if a6, err := netip.ParseAddr(addr.IP6); err == nil && has && (!covered || a6 != model.Embed(s, a)) {
			add(a6, model.Embed(p.pool6, to), addr.Network)
		}
	}
	return out
}

// syncRoutes routes the blocks of other nodes through the tunnel, and what lies outside of its
// node's blocks one by one.
func (o *Overlay) syncRoutes(ctx context.Context, n *wire.Network, nodes map[string]wire.NetworkNode, addresses map[string]netip.Addr, pool6 netip.Prefix) error {
	o.where, o.blocks, o.singles = nil, map[netip.Prefix]hop{}, map[string]map[netip.Prefix]hop{}
	p := &places{
		nodeID: o.NodeID, addresses: addresses, pool6: pool6, blocks: map[string][]netip.Prefix{}, subnets6: map[string]netip.Prefix{}, onHosts: map[string]bool{},
		encrypted: map[string]bool{}, seals: sealed,
	}
	if o.Sealed == nil {
		p.seals = closed
	}
	for _, net := range n.Networks {
		if net.Encrypted {
			p.encrypted[net.ID] = true
		}
	}
	wanted := map[netip.Prefix]hop{}
	for id := range addresses {
		a, ok := p.via(id)
		if !ok {
			continue
		}
		// What instances of encrypted networks answer to a node is encrypted, too.
		to := hop{node: a}
		if len(p.encrypted) > 0 && p.seals == sealed && nodes[id].TunnelKey != "" {
			to.by = sealed
		}
		for _, ip := range both(a, pool6) {
			if ip.Is6() { // it is the gateway of other routes, which the kernel wants to be by the same device
				to.by = plainly
			}
			wanted[netip.PrefixFrom(ip, ip.BitLen())] = to
		}
	}
	for _, net := range n.Networks {
		if p.onHosts[net.ID] = net.Underlay != nil; net.Underlay != nil {
			continue
		}
		if s, err := netip.ParsePrefix(net.Status.Subnet6); err == nil {
			p.subnets6[net.ID] = s
		}
		for _, b := range net.Status.Blocks {
			block, err := netip.ParsePrefix(b.CIDR)
			if err != nil {
				return fault.New(fault.Internal, "block %q of network %s: %w", b.CIDR, net.FullName(), err)
			}
			p.blocks[b.NodeID+net.ID] = append(p.blocks[b.NodeID+net.ID], block)
			to, ok := p.via(b.NodeID)
			if !ok {
				continue
			}
			wanted[block] = p.to(to, to, net.ID)
			if s, has := p.subnets6[net.ID]; has {
				wanted[model.EmbedPrefix(s, block)] = p.to(to, model.Embed(pool6, to), net.ID)
			}
		}
	}
	o.blocks = maps.Clone(wanted)
	for i := range n.Instances {
		if routes := p.single(&n.Instances[i]); routes != nil {
			o.singles[n.Instances[i].ID] = routes
			maps.Copy(wanted, routes)
		}
	}
	if err := o.seal(ctx, n, p); err != nil {
		return err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		for _, by := range []way{plainly, sealed, closed} {
			if err := o.dropRoutes(family, by, wanted); err != nil {
				return err
			}
		}
	}
	if err := o.addRoutes(wanted); err != nil {
		return err
	}
	o.where, o.checked = p, time.Now()
	return nil
}

// moveRoutes follows instances that came, went or are elsewhere.
func (o *Overlay) moveRoutes(ctx context.Context, n *wire.Network) error {
	where := o.where
	o.where = nil // until it is known to have gone well
	moved := false
	for id := range n.Changes.Instances {
		old := o.singles[id]
		var now map[netip.Prefix]hop
		if in := n.Instance(id); in != nil {
			now = where.single(in)
		}
		if maps.Equal(old, now) {
			continue
		}
		moved = true
		if delete(o.singles, id); now != nil {
			o.singles[id] = now
		}
		for p, to := range old {
			if _, stays := now[p]; stays {
				continue
			}
			if holder := n.Holder(p.Addr()); holder != nil && holder.ID != id {
				if _, has := o.singles[holder.ID][p]; has {
					continue
				}
			}
			if err := netlink.RouteDel(o.route(p, to)); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove the route to %s: %w", p, err)
			}
		}
		if err := o.addRoutes(now); err != nil {
			return err
		}
	}
	if moved {
		if err := o.seal(ctx, n, where); err != nil {
			return err
		}
	}
	o.where = where
	return nil
}

// route is one as the kernel has it, without what is between here and there.
func (o *Overlay) route(p netip.Prefix, to hop) *netlink.Route {
	r := &netlink.Route{LinkIndex: o.vxlan, Protocol: protocol, Dst: ipNet(p)}
	switch to.by {
	case sealed:
		r.LinkIndex = o.wg
	case closed:
		r.LinkIndex, r.Type = 0, unix.RTN_UNREACHABLE
	}
	return r
}

func (o *Overlay) addRoutes(wanted map[netip.Prefix]hop) error {
	for p, to := range wanted {
		r := o.route(p, to)
		if to.by != closed {
			if r.Src = o.own.AsSlice(); p.Addr().Is6() {
				r.Src = o.own6.AsSlice()
			}
			if to.via.IsValid() {
				r.Gw, r.Flags = to.via.AsSlice(), int(netlink.FLAG_ONLINK)
			} else {
				r.Scope = unix.RT_SCOPE_LINK
			}
		}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("add the route to %s: %w", p, err)
		}
	}
	return nil
}

// dropRoutes removes the routes that are not wanted, and takes those off the list that are there.
func (o *Overlay) dropRoutes(family int, by way, wanted map[netip.Prefix]hop) error {
	like, filter := &netlink.Route{Protocol: protocol, LinkIndex: o.vxlan}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF
	switch by {
	case sealed:
		if like.LinkIndex = o.wg; o.wg == 0 {
			return nil
		}
	case closed:
		like, filter = &netlink.Route{Protocol: protocol, Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE
	}
	have, err := netlink.RouteListFiltered(family, like, filter)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for i := range have {
		r := &have[i]
		if r.Dst == nil {
			continue
		}
		a, _ := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		via, _ := netip.AddrFromSlice(r.Gw)
		p, via := netip.PrefixFrom(a.Unmap(), ones), via.Unmap()
		if want, ok := wanted[p]; ok && want.via == via && want.by == by {
			delete(wanted, p)
		} else if !ok || want.by != by {
			if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove the route to %s: %w", p, err)
			}
		}
	}
	return nil
}
