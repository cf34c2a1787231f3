package model

import (
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
)

func TestNetworksOfHostsAreChecked(t *testing.T) {
	good := func() *Network {
		return &Network{
			Meta: Meta{Name: "lan"}, Driver: DriverMacvlan, Subnet: "192.168.1.0/24",
			Underlay: &Underlay{Parent: "eth0", Range: "192.168.1.128/25", Reserved: []string{"192.168.1.200"}},
		}
	}
	if err := good().CheckUnderlay(); err != nil || good().WayOut().String() != "192.168.1.1" {
		t.Errorf("%v; out by %s", err, good().WayOut())
	}
	for want, change := range map[string]func(n *Network){
		"needs the interface":      func(n *Network) { n.Underlay.Parent = "" },
		"not the name of an":       func(n *Network) { n.Underlay.Parent = "eth0/1" },
		"private, vepa":            func(n *Network) { n.Underlay.Mode = "passthru" },
		"for networks of":          func(n *Network) { n.Driver = DriverOverlay },
		"IPv4 addresses alone":     func(n *Network) { n.IPv6 = true },
		"needs the subnet":         func(n *Network) { n.Subnet = "" },
		"gateway \"10.0.0.1\"":     func(n *Network) { n.Gateway = "10.0.0.1" },
		"reserved address \"x\"":   func(n *Network) { n.Underlay.Reserved = []string{"x"} },
		"range \"10.0.0.0/8\" is":  func(n *Network) { n.Underlay.Range = "10.0.0.0/8" },
		"such as 192.168.1.0/25":   func(n *Network) { n.Underlay.Range = "192.168.0.0/16" },
		"such as parent=eth0":      func(n *Network) { n.Underlay = nil },
		"an IPv4 range such as 19": func(n *Network) { n.Subnet = "192.168.1.0/31" },
	} {
		n := good()
		change(n)
		if err := n.CheckUnderlay(); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}
