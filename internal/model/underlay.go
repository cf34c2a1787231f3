package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
)

// Drivers of networks: addresses of the cluster's own, routed by nodes; or links to a network that hosts are on.
const (
	DriverOverlay = "overlay"
	DriverMacvlan = "macvlan"
)

// Attributes of nodes that can be on encrypted networks: how (kernel or userspace), and by which key others know them.
const (
	WireGuardAttribute    = "wireguard"
	WireGuardKeyAttribute = "wireguard.key"
)

// Underlay puts the instances of a network on one that hosts are on already: each has a link of its own to it, and
// what it sends there passes no rule of the node's. So there are addresses and names, and no virtual IPs,
// published ports or policies.
type Underlay struct {
	Parent string `json:"parent"` // the interface of the hosts, by name
	// Mode is bridge, private or vepa; "" is bridge.
	Mode string `json:"mode,omitempty"`
	// Range is the part of the subnet from which addresses are given out; "" is all of it.
	Range string `json:"range,omitempty"`
	// Reserved are addresses that others on that network have.
	Reserved []string `json:"reserved,omitempty"`
}

var underlayModes = []string{"", "bridge", "private", "vepa"}

// CheckUnderlay refuses a network of hosts that cannot be: what is missing, and what would be accepted.
func (n *Network) CheckUnderlay() error {
	known := n.Driver == DriverMacvlan
	refuse := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "network %s: %s", n.Name, fmt.Sprintf(format, args...))
	}
	u := n.Underlay
	switch {
	case !known && u == nil:
		return nil
	case n.Encrypted:
		return refuse("networks of driver %s cannot be encrypted: nodes do not see what passes there; those of driver overlay can be", n.Driver)
	case !known:
		return refuse("a parent is for networks of the driver macvlan, not %q", n.Driver)
	case u == nil || u.Parent == "":
		return refuse("driver %s needs the interface of the hosts that it is on: the option parent, such as parent=eth0", n.Driver)
	case len(u.Parent) > 15 || strings.ContainsAny(u.Parent, "/ \t\n,:"):
		return refuse("parent %q is not the name of an interface, such as eth0", u.Parent)
	case !slices.Contains(underlayModes, u.Mode):
		return refuse("mode %q of driver %s is not supported: %s is", u.Mode, n.Driver, strings.Join(underlayModes[1:], ", "))
	case n.IPv6 || n.Subnet6 != "":
		return refuse("driver %s gives IPv4 addresses alone; leave IPv6 out", n.Driver)
	}
	subnet, err := netip.ParsePrefix(n.Subnet)
	if err != nil || !subnet.Addr().Is4() || subnet.Bits() > 30 || subnet.Bits() < 8 {
		return refuse("driver %s needs the subnet of the network that %s is on, an IPv4 range such as 192.168.1.0/24; it has %q", n.Driver, u.Parent, n.Subnet)
	}
	within := func(what, text string) error {
		if a, err := netip.ParseAddr(text); err != nil || !subnet.Contains(a) {
			return refuse("%s %q is not an address in %s", what, text, subnet)
		}
		return nil
	}
	if n.Gateway != "" {
		if err := within("gateway", n.Gateway); err != nil {
			return err
		}
	}
	for _, a := range u.Reserved {
		if err := within("reserved address", a); err != nil {
			return err
		}
	}
	if u.Range != "" {
		if r, err := netip.ParsePrefix(u.Range); err != nil || r.Bits() < subnet.Bits() || !subnet.Contains(r.Addr()) {
			return refuse("range %q is not a part of %s, such as %s", u.Range, subnet, netip.PrefixFrom(subnet.Masked().Addr(), min(subnet.Bits()+1, 32)))
		}
	}
	return nil
}

// WayOut is the gateway of a network of hosts: the one that was given, or the subnet's first address.
func (n *Network) WayOut() netip.Addr {
	if a, err := netip.ParseAddr(n.Gateway); err == nil {
		return a
	}
	if p, err := netip.ParsePrefix(n.Subnet); err == nil {
		return p.Masked().Addr().Next()
	}
	return netip.Addr{}
}

// SameUnderlay reports whether two networks put instances in the same place.
func (n *Network) SameUnderlay(other *Network) bool {
	a, b := n.Underlay, other.Underlay
	if n.Encrypted != other.Encrypted {
		return false
	}
	if a == nil || b == nil {
		return a == b
	}
	return n.Driver == other.Driver && a.Parent == b.Parent && a.Mode == b.Mode && n.Subnet == other.Subnet && n.Gateway == other.Gateway
}

// Link is what the hosts of a network's instances must have for it; nil: nothing.
func (n *Network) Link() *Link {
	switch {
	case n.Underlay != nil:
		return &Link{Driver: n.Driver, Parent: n.Underlay.Parent}
	case n.Encrypted:
		return &Link{Driver: WireGuardAttribute}
	}
	return nil
}

// Carries reports whether a node has an interface that networks of a driver can be on, or can encrypt.
func (n *Node) Carries(driver, parent string) bool {
	if driver == WireGuardAttribute {
		return n.Attributes[WireGuardKeyAttribute] != ""
	}
	return slices.Contains(strings.Split(n.Attributes[driver], ","), parent)
}

// Links are the interfaces that the hosts of a template must have, and what for.
func (t *Template) Links() (out []Link) {
	for i := range t.Networks {
		if l := t.Networks[i].Link; l != nil && !slices.Contains(out, *l) {
			out = append(out, *l)
		}
	}
	return out
}

// Link is what a host must have to be on a network of hosts, or on one that is encrypted.
type Link struct {
	Driver string `json:"driver"`
	Parent string `json:"parent"`
}

// Lack says what is wrong with hosts that do not have it.
func (l Link) Lack() string {
	if l.Driver == WireGuardAttribute {
		return "have neither WireGuard nor TUN devices, which encrypted networks need"
	}
	return "have no interface " + l.Parent + " that networks of the driver " + l.Driver + " can be on"
}
