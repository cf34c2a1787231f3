package balance

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// state is a network state of two nodes with a pool each for nodes and networks.
func state() *wire.Network {
	return &wire.Network{
		NodePool: "10.250.0.0/16", AddressPool: "10.99.0.0/16",
		Nodes: []wire.NetworkNode{{ID: "a", OverlayAddress: "10.250.0.1"}, {ID: "b", OverlayAddress: "10.250.0.2"}},
	}
}

func network(id, subnet string, internal bool) *model.Network {
	return &model.Network{Meta: model.Meta{ID: id, Name: id}, Internal: internal, Status: model.NetworkStatus{Subnet: subnet}}
}

func at(pairs ...string) (out []model.Address) {
	for _, p := range pairs {
		n, ip, _ := strings.Cut(p, "=")
		out = append(out, model.Address{Network: n, IP: ip})
	}
	return out
}

// lines tells what a node should have, for comparison.
func lines(d *Desired) string {
	var b strings.Builder
	fmt.Fprintln(&b, "own", d.Own, "networks", d.Networks, "subnets", d.Subnets, "internal", d.Internal, "local", d.Local)
	for _, f := range d.Frontends {
		switch {
		case f.Port == 0:
			fmt.Fprint(&b, f.IP, " → ", f.Endpoints)
		case f.IP.IsValid():
			fmt.Fprintf(&b, "%s:%d/%d → %v:%d", f.IP, f.Port, f.Protocol, f.Endpoints, f.Target)
		default:
			fmt.Fprintf(&b, "*:%d/%d → %v:%d", f.Port, f.Protocol, f.Endpoints, f.Target)
		}
		if f.Sticky > 0 {
			fmt.Fprint(&b, " for ", f.Sticky)
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

func wantLines(t *testing.T, n *wire.Network, node string, f *family, want string) {
	t.Helper()
	d, err := Compute(n, node, f)
	if err != nil {
		t.Fatal(err)
	}
	want = strings.TrimPrefix(strings.ReplaceAll(want, "\n\t\t", "\n"), "\n")
	if got := lines(d); got != strings.TrimRight(want, "\t\n")+"\n" {
		t.Errorf("node %s should have\n%swant\n%s", node, got, want)
	}
	again, err := Compute(n, node, f)
	if err != nil || !reflect.DeepEqual(d, again) {
		t.Errorf("the same state gave something else the second time: %v", err)
	}
}

func TestVirtualAndPublished(t *testing.T) {
	n := state()
	n.Networks = []*model.Network{network("front", "10.99.1.0/24", false), network("back", "10.99.2.0/24", true)}
	n.Instances = []wire.NetworkInstance{
		{ID: "i2", NodeID: "b", Addresses: at("front=10.99.1.20", "back=10.99.2.20")},
		{ID: "i1", NodeID: "a", Addresses: at("front=10.99.1.10", "back=10.99.2.10")},
		{ID: "i3", NodeID: "a", Addresses: at("back=10.99.2.11")},
	}
	serving := []wire.Endpoint{
		{Instance: "i2", NodeID: "b", Addresses: at("front=10.99.1.20", "back=10.99.2.20")},
		{Instance: "i1", NodeID: "a", Addresses: at("front=10.99.1.10", "back=10.99.2.10")},
	}
	n.Services = []wire.NetworkService{
		{ID: "web", VirtualIPs: at("front=10.99.1.2", "back=10.99.2.2"), Endpoints: serving, Ports: []model.ServicePort{
			{Protocol: "tcp", Target: 80, Published: 8080}, {Protocol: "udp", Target: 53, Published: 8080},
			{Protocol: "tcp", Target: 81}, // not published
			{Protocol: "tcp", Target: 82, Published: 8082, HostMode: true},
			{Protocol: "icmp", Target: 1, Published: 1},
		}},
		{ID: "db", VirtualIPs: at("back=10.99.2.3"), Endpoints: []wire.Endpoint{{Instance: "i3", NodeID: "a", Addresses: at("back=10.99.2.11")}}, Ports: []model.ServicePort{
			{Protocol: "tcp", Target: 5432, Published: 5432, HostIP: "127.0.0.1"},
			{Protocol: "tcp", Target: 5433, Published: 5433, HostIP: "0.0.0.0"},
			{Protocol: "tcp", Target: 5434, Published: 5434, HostIP: "::"},
			{Protocol: "tcp", Target: 5435, Published: 5435, HostIP: "::1"},
		}},
		{ID: "empty", VirtualIPs: at("front=10.99.1.4"), Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 9090}}},
	}
	wantLines(t, n, "a", ipv4, `
		own 10.250.0.1 networks [10.99.0.0/16] subnets [10.99.1.0/24 10.99.2.0/24] internal [10.99.2.0/24] local [10.99.1.10 10.99.2.10 10.99.2.11]
		10.99.1.2 → [10.99.1.10 10.99.1.20]
		10.99.1.4 → []
		10.99.2.2 → [10.99.2.10 10.99.2.20]
		10.99.2.3 → [10.99.2.11]
		*:5433/6 → [10.99.2.11]:5433
		*:5434/6 → [10.99.2.11]:5434
		*:8080/6 → [10.99.1.10 10.99.1.20]:80
		*:8080/17 → [10.99.1.10 10.99.1.20]:53
		*:8082/6 → [10.99.1.10]:82
		*:9090/6 → []:80
		127.0.0.1:5432/6 → [10.99.2.11]:5432
		`)
	// On the other node only what is its own differs: host ports, addresses.
	d, err := Compute(n, "b", ipv4)
	if err != nil {
		t.Fatal(err)
	}
	if d.Own.String() != "10.250.0.2" || fmt.Sprint(d.Local) != "[10.99.1.20 10.99.2.20]" {
		t.Errorf("node b has %s and %v", d.Own, d.Local)
	}
	for _, p := range d.Frontends {
		if p.Port == 8082 && fmt.Sprint(p.Endpoints) != "[10.99.1.20]" {
			t.Errorf("a port in host mode leads to %v, want to what runs there", p.Endpoints)
		}
	}
	if d, err := Compute(n, "unknown", ipv4); err != nil || d.Own.IsValid() {
		t.Errorf("a node without an address gives %+v, %v", d, err)
	}
}

// One service that is wrong must not take the others down with it.
func TestClaimsThatClash(t *testing.T) {
	n := state()
	n.Networks = []*model.Network{
		network("n1", "10.99.1.0/24", false), network("n2", "192.168.7.0/24", false), network("n3", "10.99.1.0/24", false), network("n4", "172.20.0.0/16", true),
	}
	endpoint := func(ip string) []wire.Endpoint {
		return []wire.Endpoint{{Instance: ip, Addresses: at("n1=" + ip)}}
	}
	port := func(hostIP string) []model.ServicePort {
		return []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 80, HostIP: hostIP}}
	}
	n.Services = []wire.NetworkService{
		{ID: "s1", Ports: port(""), VirtualIPs: at("n1=10.99.1.2")},
		{ID: "s2", Ports: port(""), VirtualIPs: at("n1=10.99.1.2"), Endpoints: endpoint("10.99.1.12")},
		{ID: "s3", Ports: port(""), VirtualIPs: at("n1=10.99.1.2"), Endpoints: endpoint("10.99.1.13")},
		{ID: "s4", Ports: port("127.0.0.1"), VirtualIPs: at("n1=nonsense"), Endpoints: endpoint("10.99.1.14")},
		{ID: "s5", Ports: port("192.0.2.1"), Endpoints: endpoint("10.99.1.15")},
	}
	wantLines(t, n, "a", ipv4, `
		own 10.250.0.1 networks [10.99.0.0/16 172.20.0.0/16 192.168.7.0/24] subnets [10.99.1.0/24 172.20.0.0/16 192.168.7.0/24] internal [172.20.0.0/16] local []
		10.99.1.2 → [10.99.1.12]
		*:80/6 → [10.99.1.12]:80
		127.0.0.1:80/6 → [10.99.1.14]:80
		192.0.2.1:80/6 → [10.99.1.15]:80
		`)
}

func TestMerge(t *testing.T) {
	parse := func(s string) (out []netip.Prefix) {
		for _, f := range strings.Fields(s) {
			out = append(out, netip.MustParsePrefix(f))
		}
		return out
	}
	for in, want := range map[string]string{
		"10.0.0.0/8":                             "10.0.0.0/8",
		"10.1.0.0/16 10.0.0.0/8 10.2.0.0/16":     "10.0.0.0/8",
		"10.1.0.0/16 10.1.0.0/16 10.1.0.0/16":    "10.1.0.0/16",
		"10.2.0.0/16 10.1.2.3/16":                "10.1.0.0/16 10.2.0.0/16",
		"fd00:1::/64 fd00::/16 10.1.0.0/16":      "10.1.0.0/16 fd00::/16",
		"10.1.0.0/24 10.1.0.0/16 192.168.0.0/24": "10.1.0.0/16 192.168.0.0/24",
	} {
		if got := merge(parse(in)); fmt.Sprint(got) != fmt.Sprint(parse(want)) {
			t.Errorf("%s merges to %v, want %s", in, got, want)
		}
	}
}

func TestAStateThatCannotBeReadIsRefused(t *testing.T) {
	for name, break_ := range map[string]func(*wire.Network){
		"node pool":    func(n *wire.Network) { n.NodePool = "" },
		"address pool": func(n *wire.Network) { n.AddressPool = "x" },
		"own address":  func(n *wire.Network) { n.Nodes[0].OverlayAddress = "x" },
		"subnet":       func(n *wire.Network) { n.Networks = []*model.Network{network("n", "x", false)} },
	} {
		n := state()
		break_(n)
		if d, err := Compute(n, "a", ipv4); !fault.Is(err, fault.Internal) {
			t.Errorf("without a right %s it is %+v, %v", name, d, err)
		}
	}
	if protocols["tcp"] != unix.IPPROTO_TCP {
		t.Error("protocols are mixed up")
	}
}

// TestPortsThatInstancesHold holds that a port which an instance holds by itself leads to it on its node
// alone, and one of a service as that says.
func TestPortsThatInstancesHold(t *testing.T) {
	n := state()
	n.Networks = []*model.Network{network("x", "10.99.1.0/24", false)}
	n.Instances = []wire.NetworkInstance{
		{ID: "i1", NodeID: "a", WorkloadID: "w", Addresses: at("x=10.99.1.1"), HostPorts: []model.HostPort{{Protocol: "tcp", Published: 21000, Target: 80}, {Protocol: "tcp", Published: 9000, Target: 90}}},
		{ID: "i2", NodeID: "b", WorkloadID: "w", Addresses: at("x=10.99.1.2"), HostPorts: []model.HostPort{{Protocol: "tcp", Published: 21001, Target: 80}}},
		{ID: "i3", NodeID: "a", WorkloadID: "h", HostPorts: []model.HostPort{{Protocol: "tcp", Published: 21002, Target: 21002}}}, // on the host's network
	}
	n.Services = []wire.NetworkService{{ID: "s", WorkloadID: "w", Ports: []model.ServicePort{{Protocol: "tcp", Published: 9000, Target: 90, HostMode: true}}}}
	d, err := Compute(n, "a", ipv4)
	if err != nil {
		t.Fatal(err)
	}
	got := map[uint16]string{}
	for _, f := range d.Frontends {
		got[f.Port] = fmt.Sprint(f.Endpoints, f.Target)
	}
	if want := map[uint16]string{21000: "[10.99.1.1] 80", 9000: "[] 90"}; !reflect.DeepEqual(got, want) {
		t.Errorf("ports lead to %v, want %v", got, want)
	}
}

// TestSharesFollowWeights holds that endpoints are there as often as they weigh, and that none is left out.
func TestSharesFollowWeights(t *testing.T) {
	at := func(ip string) endpoint { return endpoint{netip.AddrPortFrom(netip.MustParseAddr(ip), 0)} }
	a, b, c := at("10.0.0.1"), at("10.0.0.2"), at("10.0.0.3")
	for _, x := range []struct {
		list []weighted
		want string
	}{
		{nil, "map[]"},
		{[]weighted{{b, 100}, {a, 100}}, "map[10.0.0.1:1 10.0.0.2:1]"},
		{[]weighted{{b, 100}, {a, 10}, {c, 100}}, "map[10.0.0.1:1 10.0.0.2:10 10.0.0.3:10]"},
		{[]weighted{{a, 30}, {a, 30}, {b, 20}}, "map[10.0.0.1:3 10.0.0.2:2]"},
	} {
		got := map[endpoint]int{}
		for _, ip := range shares(x.list) {
			got[ip]++
		}
		if fmt.Sprint(got) != x.want {
			t.Errorf("%v are %v, want %v", x.list, got, x.want)
		}
	}
	many := []weighted{{c, 1}}
	for i := range 2000 {
		many = append(many, weighted{at(fmt.Sprintf("10.1.%d.%d", i>>8, i%256)), 999 + i%2})
	}
	got := shares(many)
	light := 0
	for _, ip := range got {
		if ip == c {
			light++
		}
	}
	if len(got) > 2*mostShares || light != 1 {
		t.Errorf("%d entries for %d endpoints, the lightest %d times", len(got), len(many), light)
	}
}

// TestAddressesOfNoHost are led as published ports are, and by a policy of their own.
func TestAddressesOfNoHost(t *testing.T) {
	n := state()
	n.Networks = []*model.Network{network("pods", "10.99.1.0/24", false)}
	n.Services = []wire.NetworkService{{
		ID: "s", Name: "s", Direct: true, VirtualIPs: at("pods=10.212.0.9"), OutsideIPs: []string{"192.0.2.80", "2001:db8::80"},
		Ports:   []model.ServicePort{{Protocol: "tcp", Target: 8080, Virtual: 80, Published: 30080}, {Protocol: "udp", Target: 53}},
		Balance: model.Balancing{Outside: model.LocalOnly},
		Endpoints: []wire.Endpoint{
			{Instance: "i1", NodeID: "a", Addresses: at("pods=10.99.1.1")}, {Instance: "i2", NodeID: "b", Addresses: at("pods=10.99.1.2")},
		},
	}}
	want := `own 10.250.0.1 networks [10.99.0.0/16] subnets [10.99.1.0/24] internal [] local []
10.212.0.9 → []
10.212.0.9:53/17 → [10.99.1.1 10.99.1.2]:53
10.212.0.9:80/6 → [10.99.1.1 10.99.1.2]:8080
*:30080/6 → [10.99.1.1]:8080
192.0.2.80:53/17 → [10.99.1.1]:53
192.0.2.80:80/6 → [10.99.1.1]:8080
`
	wantLines(t, n, "a", ipv4, want)
	n.Services[0].Balance = model.Balancing{Local: model.LocalOnly, Outside: model.LocalWherever}
	want = strings.NewReplacer("[10.99.1.1 10.99.1.2]", "[10.99.1.1]", "[10.99.1.1]", "[10.99.1.1 10.99.1.2]").Replace(want)
	wantLines(t, n, "a", ipv4, want)
}

// TestTargetsOfEndpoints: each is led to where it has a port, and not by a port that it has not.
func TestTargetsOfEndpoints(t *testing.T) {
	n := state()
	n.Networks = []*model.Network{network("pods", "10.99.1.0/24", false)}
	n.Services = []wire.NetworkService{{
		ID: "s", Name: "s", Direct: true, VirtualIPs: at("pods=10.212.0.9"),
		Ports: []model.ServicePort{{Name: "http", Protocol: "tcp", Target: 8080, Virtual: 80, Published: 30080}, {Name: "dns", Protocol: "udp", Target: 53}},
		Endpoints: []wire.Endpoint{
			{Addresses: at("pods=10.99.1.1")},
			{Addresses: at("pods=10.99.1.2"), Targets: map[string]int{"http": 8081, "dns": 53}},
			{Addresses: at("pods=10.99.1.3"), Targets: map[string]int{"http": 8080}},
		},
	}}
	wantLines(t, n, "a", ipv4, `own 10.250.0.1 networks [10.99.0.0/16] subnets [10.99.1.0/24] internal [] local []
10.212.0.9 → []
10.212.0.9:53/17 → [10.99.1.1 10.99.1.2]:53
10.212.0.9:80/6 → [10.99.1.1 10.99.1.2:8081 10.99.1.3]:8080
*:30080/6 → [10.99.1.1 10.99.1.2:8081 10.99.1.3]:8080
`)
	n.Services[0].Balance.Sticky = time.Minute
	wantLines(t, n, "a", ipv4, `own 10.250.0.1 networks [10.99.0.0/16] subnets [10.99.1.0/24] internal [] local []
10.212.0.9 → []
10.212.0.9:53/17 → [10.99.1.1 10.99.1.2]:53 for 1m0s
10.212.0.9:80/6 → [10.99.1.1 10.99.1.3]:8080 for 1m0s
*:30080/6 → [10.99.1.1 10.99.1.3]:8080 for 1m0s
`)
}
