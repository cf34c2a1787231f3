// Package overlay gives instances their network: links, addresses and routes, made with netlink in
// the network namespace it runs in, the node's.
//
// Every instance has a namespace of its own with one link per network, holding a single address
// (/32); everything it sends is routed by its node. Nodes reach each other's instances through one
// VXLAN device without learning or flooding: for each other node there is one forwarding entry,
// one neighbour and a route per block of addresses that the node holds. So every packet passes the
// node's own netfilter, where package balance does the rest.
package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

const (
	// Device is the tunnel between nodes.
	Device = "tutti.vx"
	// LinkPrefix begins the name of the host's end of every instance link.
	LinkPrefix = "tv"
	// Port and VNI of the tunnel.
	Port = 4799
	vni  = 7846
	// GatewayAddress is what instances route through, and where names are answered: an address
	// of every node's own.
	GatewayAddress = "169.254.1.1"
	// protocol marks our routes, so that others are left alone.
	protocol  = 97
	vxlanCost = 50 // bytes of a packet that the tunnel needs
	maxLinks  = 256
)

// gatewayMAC is the host's end of every link: with a neighbour entry for it no instance ever asks.
var gatewayMAC = net.HardwareAddr{0x0e, 0x54, 0x55, 0x54, 0x54, 0x49}

// Config says where the node is.
type Config struct {
	NodeID      string
	HostAddress netip.Addr // in the network that joins the hosts
	RunDir      string     // namespaces are kept below it
	Log         *slog.Logger
}

// Overlay owns the links, routes and namespaces of this node.
type Overlay struct {
	Config
	mu    sync.Mutex // one change at a time
	mtu   int
	own   netip.Addr            // the node's address in the overlay; invalid until known
	vxlan int                   // index of the device
	fdb   map[netip.Addr]string // other nodes that the tunnel knows: overlay → host address
}

// Attachment says how an instance is connected.
type Attachment struct {
	Instance   string
	Interfaces []Interface
	Sysctls    map[string]string // of the network namespace
	Isolated   bool              // nothing but loopback
}

// Interface is one link of an instance.
type Interface struct {
	Network *model.Network
	IP      netip.Addr
}

// Attached is the result of an attachment.
type Attached struct {
	NetNS string // path of the namespace
}

// New makes or takes over what all instances share. The tunnel follows with the first Sync, which
// tells the node's own address.
func New(c Config) (*Overlay, error) {
	o := &Overlay{Config: c}
	if err := os.MkdirAll(o.dir(), 0o711); err != nil {
		return nil, fmt.Errorf("make the directory of namespaces: %w", err)
	}
	for name, value := range map[string]string{
		"net/ipv4/ip_forward":                       "1",
		"net/ipv4/conf/all/rp_filter":               "0",
		"net/ipv4/conf/default/rp_filter":           "0",
		"net/ipv4/conf/all/route_localnet":          "1",
		"net/ipv4/conf/all/send_redirects":          "0",
		"net/ipv4/conf/all/arp_ignore":              "1", // answer for an address only where it is
		"net/ipv4/neigh/default/gc_thresh3":         "65536",
		"net/ipv4/neigh/default/gc_thresh2":         "32768",
		"net/ipv4/conf/default/accept_local":        "1",
		"net/netfilter/nf_conntrack_tcp_be_liberal": "1",
	} {
		err := os.WriteFile("/proc/sys/"+name, []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find the loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("bring the loopback device up: %w", err)
	}
	if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: single(netip.MustParseAddr(GatewayAddress)), Scope: unix.RT_SCOPE_HOST}); err != nil {
		return nil, fmt.Errorf("add %s: %w", GatewayAddress, err)
	}
	o.mtu = underlayMTU(c.HostAddress) - vxlanCost
	return o, nil
}

func (o *Overlay) dir() string { return filepath.Join(o.RunDir, "netns") }

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

func underlayMTU(a netip.Addr) int {
	links, err := netlink.LinkList()
	if err != nil {
		return 1500
	}
	for _, l := range links {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			continue
		}
		for _, have := range addrs {
			if have.IP.String() == a.String() && l.Attrs().MTU < 65536 && l.Type() != "loopback" {
				return l.Attrs().MTU
			}
		}
	}
	return 1500
}

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
	o.fdb = nil
	return nil
}

// Sync puts the routes to all other nodes in force; only differences are sent.
func (o *Overlay) Sync(ctx context.Context, n *wire.Network) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	nodes := map[string]wire.NetworkNode{}
	addresses := map[string]netip.Addr{}
	var own netip.Addr
	for _, node := range n.Nodes {
		a, err := netip.ParseAddr(node.OverlayAddress)
		if err != nil {
			return fault.New(fault.Internal, "overlay address of node %s: %w", node.Name, err)
		}
		nodes[node.ID], addresses[node.ID] = node, a
		if node.ID == o.NodeID {
			own = a
		}
	}
	if !own.IsValid() {
		return nil // this node has no address yet: the next state tells
	}
	if _, err := netlink.LinkByIndex(o.vxlan); err != nil || o.own != own {
		if err := o.ensureTunnel(own); err != nil {
			return err
		}
	}
	if err := o.syncPeers(nodes, addresses); err != nil {
		return err
	}
	return o.syncRoutes(n, addresses)
}

// syncPeers tells the tunnel where each other node is.
func (o *Overlay) syncPeers(nodes map[string]wire.NetworkNode, addresses map[string]netip.Addr) error {
	wanted := map[netip.Addr]string{}
	for id, node := range nodes {
		if id != o.NodeID {
			wanted[addresses[id]] = node.HostAddress
		}
	}
	if o.fdb == nil { // first after a start: take stock of what an earlier agent made
		o.fdb = map[netip.Addr]string{}
		old, err := netlink.NeighList(o.vxlan, netlink.FAMILY_V4)
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, e := range old {
			if a, ok := netip.AddrFromSlice(e.IP.To4()); ok && wanted[a] == "" {
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
		if err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: o.vxlan, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: tunnelMAC(a),
		}); err != nil {
			return fmt.Errorf("add neighbour %s: %w", a, err)
		}
		o.fdb[a] = host
	}
	for a, host := range o.fdb {
		if wanted[a] != "" {
			continue
		}
		netlink.NeighDel(&netlink.Neigh{LinkIndex: o.vxlan, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: net.ParseIP(host), HardwareAddr: tunnelMAC(a)})
		netlink.NeighDel(&netlink.Neigh{LinkIndex: o.vxlan, Family: netlink.FAMILY_V4, IP: a.AsSlice(), HardwareAddr: tunnelMAC(a)})
		delete(o.fdb, a)
	}
	return nil
}

// syncRoutes routes the blocks of other nodes through the tunnel, and what lies outside of its
// node's blocks one by one.
func (o *Overlay) syncRoutes(n *wire.Network, addresses map[string]netip.Addr) error {
	wanted := map[netip.Prefix]netip.Addr{}
	blocks := map[string][]netip.Prefix{} // by node
	for id, a := range addresses {
		if id != o.NodeID {
			wanted[netip.PrefixFrom(a, 32)] = netip.Addr{}
		}
	}
	for _, net := range n.Networks {
		for _, b := range net.Status.Blocks {
			p, err := netip.ParsePrefix(b.CIDR)
			if err != nil {
				return fault.New(fault.Internal, "block %q of network %s: %w", b.CIDR, net.FullName(), err)
			}
			blocks[b.NodeID] = append(blocks[b.NodeID], p)
			if via, ok := addresses[b.NodeID]; ok && b.NodeID != o.NodeID {
				wanted[p] = via
			}
		}
	}
	for _, i := range n.Instances {
		via, ok := addresses[i.NodeID]
		if !ok || i.NodeID == o.NodeID {
			continue
		}
		for _, addr := range i.Addresses {
			a, err := netip.ParseAddr(addr.IP)
			if err != nil {
				continue
			}
			covered := false
			for _, b := range blocks[i.NodeID] {
				covered = covered || b.Contains(a)
			}
			if !covered {
				wanted[netip.PrefixFrom(a, 32)] = via
			}
		}
	}
	have, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: protocol, LinkIndex: o.vxlan}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for i := range have {
		r := &have[i]
		if r.Dst == nil {
			continue
		}
		a, _ := netip.AddrFromSlice(r.Dst.IP.To4())
		ones, _ := r.Dst.Mask.Size()
		p := netip.PrefixFrom(a, ones)
		via, _ := netip.AddrFromSlice(r.Gw.To4())
		if want, ok := wanted[p]; ok && want == via {
			delete(wanted, p)
			continue
		}
		if _, ok := wanted[p]; !ok {
			if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove the route to %s: %w", p, err)
			}
		}
	}
	for p, via := range wanted {
		r := &netlink.Route{
			LinkIndex: o.vxlan, Protocol: protocol,
			Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)},
			Src: o.own.AsSlice(),
		}
		if via.IsValid() {
			r.Gw, r.Flags = via.AsSlice(), int(netlink.FLAG_ONLINK)
		} else {
			r.Scope = unix.RT_SCOPE_LINK
		}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("add the route to %s: %w", p, err)
		}
	}
	return nil
}

// linkName is the host's end of an instance's link: the prefix and a hash of the instance.
func linkName(instance string, index int) string {
	h := fnv.New64a()
	h.Write([]byte(instance))
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], h.Sum64())
	return fmt.Sprintf("%s%x-%d", LinkPrefix, b[:5], index)
}

func (o *Overlay) path(instance string) string { return filepath.Join(o.dir(), instance) }

// Attach makes an instance's namespace and links. It is idempotent: what an earlier agent made is
// taken over.
func (o *Overlay) Attach(ctx context.Context, a Attachment) (Attached, error) {
	path := o.path(a.Instance)
	if isNamespace(path) && o.complete(&a) {
		return Attached{NetNS: path}, nil
	}
	if err := o.Detach(ctx, a.Instance); err != nil {
		return Attached{}, err
	}
	ns, err := newNamespace(path)
	if err != nil {
		return Attached{}, fmt.Errorf("make a network namespace: %w", err)
	}
	defer ns.Close()
	if err := o.connect(ns, &a); err != nil {
		return Attached{}, errors.Join(err, o.Detach(ctx, a.Instance))
	}
	return Attached{NetNS: path}, nil
}

func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// complete reports whether all links of the attachment are there and routed.
func (o *Overlay) complete(a *Attachment) bool {
	for i := range a.Interfaces {
		l, err := netlink.LinkByName(linkName(a.Instance, i))
		if err != nil || l.Attrs().Flags&net.FlagUp == 0 {
			return false
		}
		routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
		if err != nil || len(routes) == 0 {
			return false
		}
	}
	return true
}

// newNamespace makes a network namespace and binds it to a file, so that it lives without a process.
func newNamespace(path string) (netns.NsHandle, error) {
	type result struct {
		ns  netns.NsHandle
		err error
	}
	done := make(chan result, 1)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and with it what it unshared.
		runtime.LockOSThread()
		ns, err := func() (netns.NsHandle, error) {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o400)
			if err != nil {
				return -1, err
			}
			f.Close()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return -1, err
			}
			own := "/proc/thread-self/ns/net"
			if err := unix.Mount(own, path, "", unix.MS_BIND, ""); err != nil {
				return -1, err
			}
			return netns.GetFromPath(path)
		}()
		done <- result{ns, err}
	}()
	r := <-done
	return r.ns, r.err
}

func (o *Overlay) connect(ns netns.NsHandle, a *Attachment) error {
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter the instance's network: %w", err)
	}
	defer inside.Close()
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the instance's loopback: %w", err)
	}
	if err := inside.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring the instance's loopback up: %w", err)
	}
	if err := setSysctls(ns, a.Sysctls); err != nil {
		return err
	}
	if a.Isolated {
		return nil
	}
	gateway := -1
	for i := range a.Interfaces {
		if !a.Interfaces[i].Network.Internal && gateway < 0 {
			gateway = i
		}
	}
	for i := range a.Interfaces {
		if err := o.link(inside, ns, a, i, i == gateway); err != nil {
			return fmt.Errorf("link the instance to network %s: %w", a.Interfaces[i].Network.FullName(), err)
		}
	}
	return nil
}

func (o *Overlay) link(inside *netlink.Handle, ns netns.NsHandle, a *Attachment, index int, isDefault bool) error {
	itf := &a.Interfaces[index]
	name := linkName(a.Instance, index)
	mtu := o.mtu
	if itf.Network.MTU > 0 {
		mtu = min(mtu, itf.Network.MTU)
	}
	b := itf.IP.As4()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu, HardwareAddr: gatewayMAC}, PeerName: "eth" + strconv.Itoa(index),
		PeerNamespace: netlink.NsFd(int(ns)), PeerHardwareAddr: net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]},
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the link: %w", err)
	}
	eth, err := inside.LinkByName("eth" + strconv.Itoa(index))
	if err != nil {
		return err
	}
	if err := inside.LinkSetMTU(eth, mtu); err != nil {
		return err
	}
	if err := inside.AddrAdd(eth, &netlink.Addr{IPNet: single(itf.IP)}); err != nil {
		return fmt.Errorf("add the address: %w", err)
	}
	if err := inside.LinkSetUp(eth); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return err
	}
	gw := netip.MustParseAddr(GatewayAddress)
	if err := inside.NeighSet(&netlink.Neigh{LinkIndex: eth.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: gw.AsSlice(), HardwareAddr: gatewayMAC}); err != nil {
		return fmt.Errorf("add the gateway's neighbour entry: %w", err)
	}
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: veth.Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: itf.IP.AsSlice(), HardwareAddr: veth.PeerHardwareAddr}); err != nil {
		return fmt.Errorf("add the instance's neighbour entry: %w", err)
	}
	var destinations []*net.IPNet
	if isDefault {
		destinations = append(destinations, &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)})
	}
	if index > 0 || !isDefault {
		_, subnet, err := net.ParseCIDR(itf.Network.Status.Subnet)
		if err != nil {
			return fault.New(fault.Unavailable, "its subnet is not known yet")
		}
		destinations = append(destinations, subnet)
	}
	if index == 0 || isDefault { // names are answered there, whatever else is reachable
		destinations = append(destinations, single(gw))
	}
	for _, dst := range destinations {
		r := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: dst, Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Src: itf.IP.AsSlice()}
		if dst.IP.Equal(gw.AsSlice()) {
			r.Gw, r.Flags, r.Scope = nil, 0, unix.RT_SCOPE_LINK
		}
		if err := inside.RouteReplace(r); err != nil {
			return fmt.Errorf("add the route to %s: %w", dst, err)
		}
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: veth.Index, Dst: single(itf.IP), Scope: unix.RT_SCOPE_LINK, Protocol: protocol}); err != nil {
		return fmt.Errorf("add the route to the instance: %w", err)
	}
	return nil
}

// setSysctls sets what belongs to a network namespace, from a thread inside it.
func setSysctls(ns netns.NsHandle, sysctls map[string]string) error {
	if len(sysctls) == 0 {
		return nil
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- func() error {
			if err := netns.Set(ns); err != nil {
				return err
			}
			for k, v := range sysctls {
				if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(k, ".", "/"), []byte(v), 0); err != nil {
					return fault.New(fault.Invalid, "sysctl %s=%s: %w", k, v, err)
				}
			}
			return nil
		}()
	}()
	return <-done
}

// Detach removes an instance's links and namespace; it is idempotent.
func (o *Overlay) Detach(ctx context.Context, instance string) error {
	for i := range maxLinks {
		l, err := netlink.LinkByName(linkName(instance, i))
		if err != nil {
			break // links are made, and go, in order
		}
		if err := netlink.LinkDel(l); err != nil {
			return fmt.Errorf("remove the links of instance %s: %w", instance, err)
		}
	}
	path := o.path(instance)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("release the network namespace of instance %s: %w", instance, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("release the network namespace of instance %s: %w", instance, err)
	}
	return nil
}

// Attached returns the instances that have a namespace here.
func (o *Overlay) Attached(ctx context.Context) ([]string, error) {
	entries, err := os.ReadDir(o.dir())
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}

// Remove takes away everything this package made on the node.
func (o *Overlay) Remove(ctx context.Context) error {
	all, err := o.Attached(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range all {
		errs = append(errs, o.Detach(ctx, id))
	}
	if l, err := netlink.LinkByName(Device); err == nil {
		errs = append(errs, netlink.LinkDel(l))
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		netlink.AddrDel(lo, &netlink.Addr{IPNet: single(netip.MustParseAddr(GatewayAddress))}) // gone already is as good
	}
	return errors.Join(errs...)
}
