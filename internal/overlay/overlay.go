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
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay/wireguard"
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
	// gateway6 is what instances route IPv6 through: every node's end of a link answers for it.
	gateway6 = "fe80::7475:7474:69"
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
	// Sealed is the tunnel for networks that are encrypted; nil: this host can have none.
	Sealed *wireguard.Tunnel
	Log    *slog.Logger
}

// Overlay owns the links, routes and namespaces of this node.
type Overlay struct {
	Config
	mu    sync.Mutex // one change at a time
	mtu   int
	own   netip.Addr            // the node's address in the overlay; invalid until known
	own6  netip.Addr            // likewise; invalid while no network has IPv6
	vxlan int                   // index of the device
	wg    int                   // likewise, of the one of WireGuard; 0: no network is encrypted
	fdb   map[netip.Addr]string // other nodes that the tunnel knows: overlay → host address

	where   *places                         // as routes are in force; nil: they are to be looked at anew
	blocks  map[netip.Prefix]hop            // routes to nodes and to what they hold
	singles map[string]map[netip.Prefix]hop // routes that instances have for themselves
	checked time.Time                       // when all routes were last compared with the kernel's
	state   *wire.Network                   // that is in force
}

// checkEvery is how long routes are taken to be as they were made.
const checkEvery = 30 * time.Second

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
		"net/netfilter/nf_conntrack_acct":           "1", // connections count their bytes: see balance.Flows
	} {
		if err := setSysctl(name, value); err != nil {
			return nil, err
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

// setSysctl sets what the kernel has and lets be set.
func setSysctl(name, value string) error {
	err := os.WriteFile("/proc/sys/"+name, []byte(value), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}

func (o *Overlay) dir() string { return filepath.Join(o.RunDir, "netns") }

func single(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// familyOf is the version of IP of an address, as netlink has it.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
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

// Sync puts the routes to all other nodes in force; only differences are sent.
func (o *Overlay) Sync(ctx context.Context, n *wire.Network) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.state = n
	if c := n.Changes; c != nil && !c.Shape && o.where != nil && time.Since(o.checked) < checkEvery && !o.broken() {
		if _, err := netlink.LinkByIndex(o.vxlan); err == nil {
			return o.moveRoutes(ctx, n)
		}
	}
	return o.sync(ctx, n)
}

// Keep has a tunnel that ended be there again.
func (o *Overlay) Keep(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.state == nil || !o.broken() {
		return nil
	}
	o.Log.Warn("the tunnel of encrypted networks has ended, and is made again")
	return o.sync(ctx, o.state)
}

func (o *Overlay) sync(ctx context.Context, n *wire.Network) error {
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
	pool6, err := o.pool6(n)
	if err != nil {
		return err
	}
	if pool6.IsValid() {
		if err := o.begin6(model.Embed(pool6, own)); err != nil {
			return err
		}
	}
	if err := o.syncPeers(nodes, addresses, pool6); err != nil {
		return err
	}
	return o.syncRoutes(ctx, n, nodes, addresses, pool6)
}

// pool6 is where nodes have their addresses of IPv6; invalid while no network has any.
func (o *Overlay) pool6(n *wire.Network) (netip.Prefix, error) {
	for _, net := range n.Networks {
		if net.Status.Subnet6 != "" {
			pool, err := netip.ParsePrefix(n.AddressPool6)
			if err != nil {
				return pool, fault.New(fault.Internal, "pool of IPv6 addresses: %w", err)
			}
			return model.NodePool6(pool), nil
		}
	}
	return netip.Prefix{}, nil
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
	if o.Sealed != nil {
		errs = append(errs, o.Sealed.Remove(ctx))
	}
	if l, err := netlink.LinkByName(Device); err == nil {
		errs = append(errs, netlink.LinkDel(l))
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		netlink.AddrDel(lo, &netlink.Addr{IPNet: single(netip.MustParseAddr(GatewayAddress))}) // gone already is as good
	}
	return errors.Join(errs...)
}
