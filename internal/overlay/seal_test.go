package overlay

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/tutti-run/tutti/internal/overlay/wireguard"
	"github.com/tutti-run/tutti/internal/wire"
)

// Each node is known by what is reached there, and only that may come from it; one without a key is not known.
func TestSealing(t *testing.T) {
	at, p := netip.MustParseAddr, netip.MustParsePrefix
	one, two, three := at("10.250.0.2"), at("10.250.0.3"), at("10.250.0.4")
	where := &places{nodeID: "a", addresses: map[string]netip.Addr{"a": at("10.250.0.1"), "b": one, "c": two, "d": three}}
	n := &wire.Network{Nodes: []wire.NetworkNode{
		{ID: "a", HostAddress: "192.0.2.1", TunnelKey: "A"}, {ID: "b", HostAddress: "192.0.2.2", TunnelKey: "C"}, {ID: "c", HostAddress: "192.0.2.3", TunnelKey: "B"}, {ID: "d", HostAddress: "192.0.2.4"},
	}}
	blocks := map[netip.Prefix]hop{
		p("10.250.0.2/32"): {node: one}, p("10.250.0.3/32"): {node: two}, p("10.250.0.4/32"): {node: three},
		p("10.99.1.0/28"): {node: one, by: sealed}, p("10.99.2.0/28"): {node: one, via: one}, p("10.99.1.16/28"): {node: two, by: sealed},
	}
	singles := map[string]map[netip.Prefix]hop{"i": {p("10.99.1.40/32"): {node: two, by: sealed}}, "j": {p("10.99.1.41/32"): {node: three, by: sealed}}}
	c, err := where.sealing(n, blocks, singles)
	if err != nil {
		t.Fatal(err)
	}
	want := []wireguard.Peer{
		{Public: "B", Endpoint: netip.MustParseAddrPort("192.0.2.3:4798"), Allowed: []netip.Prefix{p("10.99.1.16/28"), p("10.99.1.40/32"), p("10.250.0.3/32")}},
		{Public: "C", Endpoint: netip.MustParseAddrPort("192.0.2.2:4798"), Allowed: []netip.Prefix{p("10.99.1.0/28"), p("10.99.2.0/28"), p("10.250.0.2/32")}},
	}
	if fmt.Sprint(c.Peers) != fmt.Sprint(want) {
		t.Errorf("the peers are %v, want %v", c.Peers, want)
	}
}
