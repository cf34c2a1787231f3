package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// namesLink begins the inner name of the link by which an instance asks its node for names, where its network is
// one of hosts: what it sends there does not pass by the node.
const namesLink = "names"

func innerName(itf *Interface, number int) string {
	if itf.Network.Underlay != nil {
		return namesLink + strconv.Itoa(number)
	}
	return "eth" + strconv.Itoa(number)
}

var macvlanModes = map[string]netlink.MacvlanMode{
	"": netlink.MACVLAN_MODE_BRIDGE, "bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE, "vepa": netlink.MACVLAN_MODE_VEPA,
}

// linkHosts gives an instance its link to a network of hosts. What it has of it already stays.
func (o *Overlay) linkHosts(e *end, ns netns.NsHandle, itf *Interface, asks, isDefault bool, number int) error {
	n, name := itf.Network, "eth"+strconv.Itoa(number)
	subnet, err := netip.ParsePrefix(n.Status.Subnet)
	if err != nil {
		return fault.New(fault.Unavailable, "its subnet is not known yet")
	}
	link, err := e.inside.LinkByName(name)
	if err != nil {
		if link, err = o.makeHosts(e, ns, n, name); err != nil {
			return err
		}
	}
	address := &netlink.Addr{IPNet: ipNet(subnet)}
	address.IP = itf.IP.AsSlice()
	if err := e.inside.AddrReplace(link, address); err != nil {
		return fmt.Errorf("add the address: %w", err)
	}
	if err := e.inside.LinkSetUp(link); err != nil {
		return err
	}
	// The link for names has the same address, so that the node knows who asks: it leads to names alone.
	if asks {
		if err := e.route(netip.PrefixFrom(netip.MustParseAddr(GatewayAddress), 32), netip.Addr{}, itf.IP); err != nil {
			return err
		}
	}
	if way := n.WayOut(); isDefault && way.IsValid() {
		out := &end{inside: e.inside, eth: link}
		return out.route(netip.PrefixFrom(netip.IPv4Unspecified(), 0), way, itf.IP)
	}
	return nil
}

// makeHosts makes the link, in the instance's namespace, without an address.
func (o *Overlay) makeHosts(e *end, ns netns.NsHandle, n *model.Network, name string) (netlink.Link, error) {
	parent, err := netlink.LinkByName(n.Underlay.Parent)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "this host has no interface %s, which the network is on: %w", n.Underlay.Parent, err)
	}
	link := &netlink.Macvlan{
		LinkAttrs: netlink.LinkAttrs{
			Name: name, ParentIndex: parent.Attrs().Index, Namespace: netlink.NsFd(int(ns)), MTU: n.MTU,
			HardwareAddr: e.peer, // which follows from the address, wherever it runs
		},
		Mode: macvlanModes[n.Underlay.Mode],
	}
	err = netlink.LinkAdd(link)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fault.New(fault.Conflict, "interface %s is in use in another way, such as by a bridge: %w", n.Underlay.Parent, err)
	case err != nil:
		return nil, fmt.Errorf("make a link of %s on %s: %w", n.Driver, n.Underlay.Parent, err)
	}
	// Who had the address before may be known to others still: they are told at once.
	if err := setSysctls(ns, map[string]string{"net.ipv4.conf." + name + ".arp_notify": "1"}); err != nil {
		return nil, err
	}
	return e.inside.LinkByName(name)
}

// leaveHosts takes the link to a network of hosts away, of which the node's end of the link for names is gone.
func leaveHosts(ns netns.NsHandle, number int) error {
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter the instance's network: %w", err)
	}
	defer inside.Close()
	link, err := inside.LinkByName("eth" + strconv.Itoa(number))
	if err != nil {
		return nil // it went with its other end
	}
	if err := inside.LinkDel(link); err != nil {
		return fmt.Errorf("remove a link: %w", err)
	}
	return nil
}

// foreign begin the names of interfaces that others make and take away for what they run.
var foreign = []string{LinkPrefix, "tutti", "veth", "docker", "br-", "cni", "cali", "virbr", "lxc", "vnet", "tap"}

// Parents are the interfaces of this host that networks of hosts can be on: none, where the kernel has no macvlan.
func Parents() []string {
	data, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return nil
	}
	var all []string
	for line := range strings.Lines(string(data)) {
		name, _, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || name == "lo" || slices.ContainsFunc(foreign, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		if l, err := netlink.LinkByName(name); err == nil && l.Attrs().EncapType == "ether" {
			all = append(all, name)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil || len(all) == 0 {
		return nil
	}
	// None can be on the loopback device; a kernel without macvlan says that first.
	if err := netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "tutti.try", ParentIndex: lo.Attrs().Index}}); !errors.Is(err, unix.EINVAL) {
		return nil
	}
	slices.Sort(all)
	return all
}
