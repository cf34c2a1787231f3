package balance

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/wire"
)

// lanNetwork is the one that the hosts of a lan are on.
func lanNetwork() *model.Network {
	n := network("lan", "192.168.50.0/24", false)
	n.Driver, n.Subnet, n.Gateway, n.Underlay = model.DriverMacvlan, "192.168.50.0/24", "192.168.50.3", &model.Underlay{Parent: "eth0"}
	return n
}

// needMacvlan skips where the kernel has none.
func needMacvlan(l *lan) {
	l.Helper()
	var parents []string
	l.in(l.a.ns, func() error {
		parents = overlay.Parents()
		return nil
	})
	if len(parents) == 0 {
		l.Skip("this kernel has no macvlan")
	}
	if !slices.Equal(parents, []string{"eth0"}) {
		l.Fatalf("networks of hosts can be on %v, want eth0", parents)
	}
}

// TestInstancesOnTheNetworkOfHosts have links of their own to it: each reaches others on either host, and what else is
// there, under its own address; its node reaches it, and it asks its node for names, and nothing else of the node's
// is there for it.
func TestInstancesOnTheNetworkOfHosts(t *testing.T) {
	l := newLAN(t)
	needMacvlan(l)
	l.state.Networks = []*model.Network{lanNetwork(), network("front", "10.99.1.0/24", false)}
	a := l.attach(l.a, "a", "lan=192.168.50.11")
	near := l.attach(l.a, "near", "lan=192.168.50.12")
	far := l.attach(l.b, "far", "front=10.99.1.18", "lan=192.168.50.13")
	web := l.attach(l.a, "web", "lan=192.168.50.14", "front=10.99.1.2")
	l.state.Services = []wire.NetworkService{{
		ID: "web", VirtualIPs: at("front=10.99.1.200"), OnHosts: []string{"lan"}, Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 8080}},
		Endpoints: []wire.Endpoint{{Instance: "web", NodeID: "a", Addresses: at("lan=192.168.50.14", "front=10.99.1.2")}},
	}}
	for name, ns := range map[string]netns.NsHandle{"a": a, "near": near, "far": far, "web": web, "outside": l.outside} {
		l.serve(ns, ":80", name)
	}
	l.serve(l.a.ns, overlay.GatewayAddress+":53", "names")
	l.sync()
	l.want(a, "192.168.50.12:80", "near 192.168.50.11")
	l.want(a, "192.168.50.13:80", "far 192.168.50.11")
	l.want(far, "192.168.50.11:80", "a 192.168.50.13")
	l.want(a, "192.168.50.3:80", "outside 192.168.50.11")
	l.want(l.outside, "192.168.50.13:80", "far 192.168.50.3")
	l.want(l.a.ns, "192.168.50.11:80", "a "+overlay.GatewayAddress)
	l.want(a, overlay.GatewayAddress+":53", "names 192.168.50.11")
	l.want(far, "10.99.1.200:80", "web 10.99.1.18")          // the other network's virtual IP
	l.want(l.outside, "192.168.50.2:8080", "web 10.250.0.2") // published there as well, from the other host
	if got := l.wayOut(a); got != "192.168.50.3" {
		t.Errorf("what is on the network of hosts alone leaves by %s", got)
	}
	if got := l.wayOut(far); got != overlay.GatewayAddress {
		t.Errorf("what is on another network first leaves by %s", got)
	}
	l.in(l.a.ns, func() error {
		nowhere := *l.state.Networks[0]
		nowhere.Underlay = &model.Underlay{Parent: "eth7"}
		_, err := l.a.overlay.Attach(t.Context(), overlay.Attachment{Instance: "none", Interfaces: []overlay.Interface{{Network: &nowhere, IP: netip.MustParseAddr("192.168.50.19")}}})
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "eth7") {
			t.Errorf("without the interface it says %v", err)
		}
		return nil
	})
}

// TestANetworkOfHostsIsJoinedAndLeft by an instance that runs.
func TestANetworkOfHostsIsJoinedAndLeft(t *testing.T) {
	l := newLAN(t)
	needMacvlan(l)
	l.state.Networks = []*model.Network{lanNetwork(), network("front", "10.99.1.0/24", false)}
	box := l.attach(l.a, "box", "front=10.99.1.2")
	l.serve(box, ":80", "box")
	l.serve(l.outside, ":80", "outside")
	l.sync()
	have := func(addresses []string, want ...string) {
		t.Helper()
		if now := l.link(l.a, "box", addresses...); now.UniqueId() != box.UniqueId() {
			t.Fatal("it got another namespace")
		}
		var got []string
		l.in(box, func() error {
			all, err := netlink.LinkList()
			for _, link := range all {
				if link.Attrs().Flags&net.FlagUp != 0 && link.Attrs().Name != "lo" {
					got = append(got, link.Attrs().Name+" "+link.Type())
				}
			}
			return err
		})
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("with %v it has %q, want %q", addresses, got, want)
		}
	}
	have([]string{"front=10.99.1.2"}, "eth0 veth")
	have([]string{"front=10.99.1.2", "lan=192.168.50.11"}, "eth0 veth", "eth1 macvlan", "names1 veth")
	l.want(box, "192.168.50.3:80", "outside 192.168.50.11")
	l.want(l.outside, "192.168.50.11:80", "box 192.168.50.3")
	have([]string{"front=10.99.1.2"}, "eth0 veth")
	have([]string{"lan=192.168.50.11"}, "eth0 macvlan", "names0 veth")
	l.want(box, "192.168.50.3:80", "outside 192.168.50.11")
}

// wayOut is what an instance sends through that it sends outside.
func (l *lan) wayOut(ns netns.NsHandle) (out string) {
	l.in(ns, func() error {
		routes, err := netlink.RouteGet(net.IPv4(198, 51, 100, 1))
		if err == nil && len(routes) == 1 {
			out = routes[0].Gw.String()
		}
		return err
	})
	return out
}
