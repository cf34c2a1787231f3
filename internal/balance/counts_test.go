package balance

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// counted are the counts of both nodes, those that say something.
func (l *lan) counted() map[string]wire.ServiceCount {
	l.Helper()
	out := map[string]wire.ServiceCount{}
	for name, h := range map[string]*host{"a": l.a, "b": l.b} {
		l.in(h.ns, func() error {
			list, err := h.balance.Counts(l.Context())
			for _, c := range list {
				out[fmt.Sprintf("%s%s by %s at %s:%d%s", c.Service, c.Instance, name, c.IP, c.Port, c.Protocol)] = c
			}
			return err
		})
	}
	return out
}

// TestServicesAreCounted has connections come to every kind of entrance, and holds that each counts once, with its
// bytes, and that counts go on whatever changes: endpoints, agents, tables that somebody takes away.
func TestServicesAreCounted(t *testing.T) {
	l := newLAN(t)
	front := network("front", "10.99.1.0/24", false)
	front.Status.Subnet6 = "fd74:1::/64"
	front.Status.Blocks = []model.Block{{NodeID: "a", CIDR: "10.99.1.0/28"}, {NodeID: "b", CIDR: "10.99.1.16/28"}}
	l.state.AddressPool6 = "fd74:0::/48"
	l.state.Networks = []*model.Network{front}
	client := l.attach(l.a, "client", "front=10.99.1.2")
	far := l.attach(l.b, "far", "front=10.99.1.18")
	near := l.attach(l.a, "near", "front=10.99.1.3")
	for ns, name := range map[netns.NsHandle]string{far: "far", near: "near"} {
		l.serve(ns, ":80", name)
		l.serveDatagrams(ns, ":53", name)
	}
	l.state.Instances[2].HostPorts = []model.HostPort{{Protocol: "tcp", Published: 21000, Target: 80}}
	endpoint := func(id, address string) wire.Endpoint {
		return wire.Endpoint{Instance: id, NodeID: "b", Addresses: l.at("front=" + address)}
	}
	l.state.Services = []wire.NetworkService{
		{ID: "web", VirtualIPs: l.at("front=10.99.1.200"), Endpoints: []wire.Endpoint{endpoint("far", "10.99.1.18")}, Ports: []model.ServicePort{
			{Protocol: "tcp", Target: 80, Published: 8080, Virtual: 8000}, {Protocol: "tcp", Target: 80, Published: 8081, HostIP: "127.0.0.1"}, {Protocol: "udp", Target: 53, Published: 5300},
		}},
		{ID: "empty", VirtualIPs: l.at("front=10.99.1.201")},
		{ID: "sticky", VirtualIPs: l.at("front=10.99.1.202"), Balance: model.Balancing{Sticky: 1e9}, Endpoints: []wire.Endpoint{endpoint("far", "10.99.1.18")},
			Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 8082}}},
	}
	l.sync()
	connect := func() {
		l.want(client, "10.99.1.200:80", "far 10.99.1.2")
		l.want(client, "10.99.1.200:8000", "far 10.99.1.2") // another port of the same virtual IP
		l.want(client, "[fd74:1::a63:1c8]:80", "far fd74:1::a63:102")
		l.want(client, "10.99.1.202:80", "far 10.99.1.2")
		l.want(far, "10.99.1.200:80", "far 10.250.0.2") // to itself
		l.want(l.outside, "192.168.50.1:8080", "far 10.250.0.1")
		l.want(l.outside, "192.168.50.2:8080", "far 192.168.50.3")
		l.want(l.outside, "192.168.50.2:8082", "far 192.168.50.3")
		l.want(l.outside, "192.168.50.1:21000", "near 192.168.50.3")
		l.want(l.a.ns, "127.0.0.1:8081", "far 10.250.0.1")
		if _, err := askDatagram(l.outside, "192.168.50.1:5300"); err != nil {
			t.Error(err)
		}
		l.refused(client, "10.99.1.201:80")
		l.want(client, "10.99.1.18:80", "far 10.99.1.2") // directly, which is nobody's
		l.want(client, "10.99.1.3:80", "near 10.99.1.2")
	}
	each := map[string]uint64{
		"web by a at 10.99.1.200:0": 2, "web by b at 10.99.1.200:0": 1, "web by a at fd74:1::a63:1c8:0": 1, "sticky by a at 10.99.1.202:0": 1, "web by a at :8080tcp": 1,
		"web by b at :8080tcp": 1, "web by a at 127.0.0.1:8081tcp": 1, "web by a at :5300udp": 1, "empty by a at 10.99.1.201:0": 1, "near by a at :21000tcp": 1,
		"sticky by b at :8082tcp": 1,
	}
	before := map[string]wire.ServiceCount{}
	rounds := uint64(0)
	check := func(what string) {
		t.Helper()
		connect()
		rounds++
		now := l.counted()
		if got, want := slices.Sorted(maps.Keys(now)), slices.Sorted(maps.Keys(each)); !slices.Equal(got, want) {
			t.Fatalf("%s: counted are %q, want %q", what, got, want)
		}
		for where, c := range now {
			if c.Connections != rounds*each[where] {
				t.Errorf("%s: %d connections for %s, want %d", what, c.Connections, where, rounds*each[where])
			}
			if was := before[where]; c.Service != "empty" && (c.Sent <= was.Sent || c.Received <= was.Received) {
				t.Errorf("%s: %s had %d and %d bytes, and now %d and %d", what, where, was.Sent, was.Received, c.Sent, c.Received)
			}
		}
		before = now
	}
	check("at first")
	// How many endpoints there are changes, and with it all of what leads to them.
	l.state.Services[0].Endpoints = append(l.state.Services[0].Endpoints, endpoint("far2", "10.99.1.18"), endpoint("gone", "10.99.1.19"))
	l.sync()
	l.state.Services[0].Endpoints = l.state.Services[0].Endpoints[:1]
	l.sync()
	check("after an endpoint came and went")
	// Another agent takes over, and writes the table anew.
	for id, h := range map[string]*host{"a": l.a, "b": l.b} {
		h.balance = New(Config{NodeID: id, Log: slog.New(slog.DiscardHandler)})
	}
	l.sync()
	check("after agents were started again")
	// Somebody takes the other table away, which comes back.
	l.in(l.a.ns, func() error {
		b, err := newTable(ipv4)
		if err != nil {
			return err
		}
		b.conn.DelTable(b.t)
		if err := b.conn.Flush(); err != nil {
			return err
		}
		return l.a.balance.Keep(t.Context())
	})
	check("after the table was taken away")
	// What is another's begins anew, and what is gone is not told of.
	l.state.Services[2].Ports[0].Published, l.state.Services[0].Ports[0].Published = 8080, 8083
	l.sync()
	l.want(l.outside, "192.168.50.1:8080", "far 10.250.0.1")
	for where, c := range l.counted() {
		if c.Port == 8082 || c.Port == 8083 || c.Port == 8080 && (c.Service != "sticky" || c.Connections != 1) {
			t.Errorf("a port that changed hands: %s: %+v", where, c)
		}
	}
}

// connectionsTo counts the connections that a host knows of and that an address answers.
func (l *lan) connectionsTo(h *host, f *family, to string) (n int) {
	l.Helper()
	l.in(h.ns, func() error {
		nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return err
		}
		defer nl.Close()
		list, err := ledTo(nl, f, map[netip.Addr]bool{netip.MustParseAddr(to): true})
		n = len(list)
		return err
	})
	return n
}

// TestWhatIsGoneIsCutAlone ends connections to what is gone, and leaves others as they are.
func TestWhatIsGoneIsCutAlone(t *testing.T) {
	l := newLAN(t)
	front := network("front", "10.99.1.0/24", false)
	front.Status.Subnet6, l.state.AddressPool6 = "fd74:1::/64", "fd74:0::/48"
	l.state.Networks = []*model.Network{front}
	client := l.attach(l.a, "client", "front=10.99.1.2")
	for i, id := range []string{"stays", "goes"} {
		l.serve(l.attach(l.a, id, fmt.Sprint("front=10.99.1.", 3+i)), ":80", id)
	}
	l.sync()
	for _, c := range []struct {
		f           *family
		stays, goes string
	}{{ipv4, "10.99.1.3", "10.99.1.4"}, {ipv6, "fd74:1::a63:103", "fd74:1::a63:104"}} {
		for range 2 {
			for _, to := range []string{c.stays, c.goes} {
				conn, err := dial(client, netip.AddrPortFrom(netip.MustParseAddr(to), 80).String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
			}
		}
		count := func(to string) int { return l.connectionsTo(l.a, c.f, to) }
		l.in(l.a.ns, func() error {
			if count(c.stays) != 2 || count(c.goes) != 2 {
				t.Errorf("%s: %d and %d connections are found, want 2 each", c.f.name, count(c.stays), count(c.goes))
			}
			err := cutTo(c.f, map[netip.Addr]bool{netip.MustParseAddr(c.goes): true})
			if count(c.stays) != 2 || count(c.goes) != 0 {
				t.Errorf("%s: after a cut %d and %d connections are left, want 2 and none", c.f.name, count(c.stays), count(c.goes))
			}
			return err
		})
	}
}
