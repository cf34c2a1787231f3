package balance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/overlay/wireguard"
	"github.com/tutti-run/tutti/internal/wire"
	"github.com/tutti-run/tutti/test/apart"
)

// TestMain runs the tests in network and mount namespaces of their own.
func TestMain(m *testing.M) {
	if wireguard.Reexec(os.Args) {
		return
	}
	apart.Main(m, syscall.CLONE_NEWNS|syscall.CLONE_NEWNET)
}

// lan is three hosts on a switch: two nodes and one that is outside of the cluster.
type lan struct {
	*testing.T
	a, b    *host
	outside netns.NsHandle
	state   *wire.Network
}

type host struct {
	ns      netns.NsHandle
	overlay *overlay.Overlay
	balance *Balance
}

// inside runs a function on a thread of its own in a network namespace.
func inside(ns netns.NsHandle, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

func (l *lan) in(ns netns.NsHandle, fn func() error) {
	l.Helper()
	if err := inside(ns, fn); err != nil {
		l.Fatal(err)
	}
}

// newNS makes an empty network namespace that ends with the test.
func newNS(t *testing.T) netns.NsHandle {
	t.Helper()
	type result struct {
		ns  netns.NsHandle
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.New()
		done <- result{ns, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.ns.Close() })
	return r.ns
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	l := &lan{T: t}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch"}}
	if err := errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(bridge); err != nil {
			t.Error(err)
		}
	})
	var all []netns.NsHandle
	for i := range 3 {
		ns := newNS(t)
		all = append(all, ns)
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("port", i), MasterIndex: bridge.Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns))}
		if err := errors.Join(netlink.LinkAdd(veth), netlink.LinkSetUp(veth)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { netlink.LinkDel(veth) }) // at once, and not when its namespace has ended
		l.in(ns, func() error {
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			address, err := netlink.ParseAddr(fmt.Sprintf("192.168.50.%d/24", i+1))
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrAdd(eth, address), netlink.LinkSetUp(eth), netlink.LinkSetUp(lo))
		})
	}
	l.outside = all[2]
	l.state = state()
	for i := range l.state.Nodes {
		l.state.Nodes[i].HostAddress = fmt.Sprintf("192.168.50.%d", i+1)
	}
	l.a, l.b = l.node("a", all[0], "192.168.50.1"), l.node("b", all[1], "192.168.50.2")
	return l
}

func (l *lan) node(id string, ns netns.NsHandle, address string) *host {
	l.Helper()
	h := &host{ns: ns, balance: New(Config{NodeID: id, Log: slog.New(slog.DiscardHandler)})}
	dir := filepath.Join(l.TempDir(), id)
	l.in(ns, func() (err error) {
		h.overlay, err = overlay.New(overlay.Config{NodeID: id, HostAddress: netip.MustParseAddr(address), RunDir: dir, Log: slog.New(slog.DiscardHandler)})
		return err
	})
	l.Cleanup(func() {
		l.in(ns, func() error {
			return errors.Join(h.overlay.Remove(context.Background()), h.balance.Remove(context.Background()))
		})
	})
	return h
}

// sync puts the state in force on both nodes.
func (l *lan) sync() {
	l.Helper()
	for _, h := range []*host{l.a, l.b} {
		l.in(h.ns, func() error {
			if err := h.overlay.Sync(l.Context(), l.state); err != nil {
				return err
			}
			return h.balance.Sync(l.Context(), l.state)
		})
	}
}

// attach makes an instance on a node, tells the state of it, and returns its namespace.
func (l *lan) attach(h *host, id string, addresses ...string) netns.NsHandle {
	l.Helper()
	node := "a"
	if h == l.b {
		node = "b"
	}
	l.state.Instances = append(l.state.Instances, wire.NetworkInstance{ID: id, NodeID: node, Addresses: l.at(addresses...)})
	return l.link(h, id, addresses...)
}

func (l *lan) link(h *host, id string, addresses ...string) (ns netns.NsHandle) {
	l.Helper()
	a := overlay.Attachment{Instance: id}
	for _, address := range l.at(addresses...) {
		for _, n := range l.state.Networks {
			if n.ID == address.Network {
				itf := overlay.Interface{Network: n, IP: netip.MustParseAddr(address.IP)}
				if address.IP6 != "" {
					itf.IP6 = netip.MustParseAddr(address.IP6)
				}
				a.Interfaces = append(a.Interfaces, itf)
			}
		}
	}
	l.in(h.ns, func() error {
		got, err := h.overlay.Attach(l.Context(), a)
		if err != nil {
			return err
		}
		ns, err = netns.GetFromPath(got.NetNS)
		return err
	})
	l.Cleanup(func() { ns.Close() })
	return ns
}

// serve answers connections with a name and the address that they seem to come from, and then
// with what it is told.
func (l *lan) serve(ns netns.NsHandle, address, name string) {
	l.Helper()
	var listener net.Listener
	l.in(ns, func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	})
	l.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintln(c, name, host)
				io.Copy(c, c) // until the other end has enough
			}()
		}
	}()
}

// dial connects from a namespace.
func dial(ns netns.NsHandle, address string) (c net.Conn, err error) {
	err = inside(ns, func() (err error) {
		c, err = net.DialTimeout("tcp", address, 3*time.Second)
		return err
	})
	return c, err
}

// ask says who answers at an address, and whom it sees.
func ask(ns netns.NsHandle, address string) (string, error) {
	c, err := dial(ns, address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

func (l *lan) want(ns netns.NsHandle, address, answer string) {
	l.Helper()
	if got, err := ask(ns, address); err != nil || got != answer {
		l.Errorf("%s answers %q, %v; want %q", address, got, err, answer)
	}
}

// refused wants that a connection is refused rather than that it is lost.
func (l *lan) refused(ns netns.NsHandle, address string) {
	l.Helper()
	got, err := ask(ns, address)
	if err == nil {
		l.Errorf("%s answers %q, want that it is refused", address, got)
	} else if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		l.Errorf("%s does not answer at all, want that it is refused: %v", address, err)
	}
}

func TestTwoHosts(t *testing.T) {
	l := newLAN(t)
	front, back, inner, custom := network("front", "10.99.1.0/24", false), network("back", "10.99.2.0/24", false), network("inner", "10.99.3.0/24", true), network("custom", "172.30.0.0/24", false)
	front.Status.Blocks = []model.Block{{NodeID: "a", CIDR: "10.99.1.0/28"}, {NodeID: "b", CIDR: "10.99.1.16/28"}}
	back.Status.Blocks = []model.Block{{NodeID: "b", CIDR: "10.99.2.16/28"}}
	l.state.Networks = []*model.Network{front, back, inner, custom}
	client := l.attach(l.a, "client", "front=10.99.1.2")
	near := l.attach(l.a, "near", "front=10.99.1.3", "back=10.99.2.3") // outside of any block of its node
	far := l.attach(l.b, "far", "front=10.99.1.18")
	hidden := l.attach(l.b, "hidden", "back=10.99.2.18")
	captive := l.attach(l.a, "captive", "inner=10.99.3.2")
	own := l.attach(l.a, "own", "custom=172.30.0.2")
	for ns, name := range map[netns.NsHandle]string{near: "near", far: "far", hidden: "hidden", captive: "captive", own: "own", l.outside: "outside", l.b.ns: "host-b"} {
		l.serve(ns, ":80", name)
	}
	endpoint := func(id string, addresses ...string) wire.Endpoint {
		return wire.Endpoint{Instance: id, Addresses: at(addresses...)}
	}
	web := wire.NetworkService{
		ID: "web", VirtualIPs: at("front=10.99.1.200"), Endpoints: []wire.Endpoint{endpoint("far", "front=10.99.1.18")},
		Ports: []model.ServicePort{
			{Protocol: "tcp", Target: 80, Published: 8080}, {Protocol: "tcp", Target: 80, Published: 8081, HostIP: "127.0.0.1"},
		},
	}
	empty := wire.NetworkService{ID: "empty", VirtualIPs: at("front=10.99.1.201")}
	db := wire.NetworkService{ID: "db", VirtualIPs: at("back=10.99.2.200"), Endpoints: []wire.Endpoint{endpoint("hidden", "back=10.99.2.18")}}
	l.state.Services = []wire.NetworkService{web, empty, db}
	l.sync()

	t.Run("by address", func(t *testing.T) {
		l := l.of(t)
		l.want(client, "10.99.1.18:80", "far 10.99.1.2")  // over the tunnel
		l.want(client, "10.99.1.3:80", "near 10.99.1.2")  // on the same host
		l.want(near, "10.99.2.18:80", "hidden 10.99.2.3") // by the network that both are on
		l.want(hidden, "10.99.2.3:80", "near 10.99.2.18") // and back
		l.want(l.a.ns, "10.99.1.18:80", "far 10.250.0.1") // the node itself
	})
	t.Run("by virtual IP", func(t *testing.T) {
		l := l.of(t)
		l.want(client, "10.99.1.200:80", "far 10.99.1.2")
		l.want(far, "10.99.1.200:80", "far 10.250.0.2") // led to itself, through its node
		l.refused(client, "10.99.1.201:80")             // nobody serves
		l.refused(client, "10.99.2.200:80")             // of a network that it is not on
		l.want(near, "10.99.2.200:80", "hidden 10.99.2.3")
	})
	t.Run("isolation", func(t *testing.T) {
		l := l.of(t)
		l.refused(client, "10.99.2.18:80") // on the other host
		l.refused(client, "10.99.2.3:80")  // on the same host
		l.refused(hidden, "10.99.1.2:80")
		l.refused(client, "172.30.0.2:80")
		l.refused(own, "10.99.1.3:80")
		if err := inside(l.outside, func() error {
			_, route, err := net.ParseCIDR("10.99.0.0/16")
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{Dst: route, Gw: net.IPv4(192, 168, 50, 1)})
		}); err != nil {
			t.Fatal(err)
		}
		l.refused(l.outside, "10.99.1.3:80") // who is outside gets in by published ports only
	})
	t.Run("published", func(t *testing.T) {
		l := l.of(t)
		// On every node, wherever the instance is; to others the node speaks for the client.
		l.want(l.outside, "192.168.50.1:8080", "far 10.250.0.1")
		l.want(l.outside, "192.168.50.2:8080", "far 192.168.50.3")
		l.want(l.a.ns, "127.0.0.1:8080", "far 10.250.0.1")
		l.want(l.a.ns, "127.0.0.1:8081", "far 10.250.0.1")
		l.refused(l.outside, "192.168.50.1:8081") // on the loopback only
	})
	t.Run("outwards", func(t *testing.T) {
		l := l.of(t)
		l.want(client, "192.168.50.3:80", "outside 192.168.50.1")
		l.want(own, "192.168.50.3:80", "outside 192.168.50.1") // a subnet of people's own choice
		l.want(near, "192.168.50.3:80", "outside 192.168.50.1")
		l.want(client, "192.168.50.2:80", "host-b 192.168.50.1")
		l.refused(captive, "192.168.50.3:80")
	})
	t.Run("balanced", func(t *testing.T) {
		l := l.of(t)
		l.state.Services[0].Endpoints = append(l.state.Services[0].Endpoints, endpoint("near", "front=10.99.1.3"))
		l.sync()
		seen := map[string]int{}
		for range 60 {
			got, err := ask(client, "10.99.1.200:80")
			if err != nil {
				t.Fatal(err)
			}
			seen[strings.Fields(got)[0]]++
		}
		if seen["far"] == 0 || seen["near"] == 0 || len(seen) != 2 {
			t.Errorf("connections went to %v, want both", seen)
		}
		l.state.Services[0].Endpoints = l.state.Services[0].Endpoints[:1]
		l.sync()
	})
	t.Run("changes", func(t *testing.T) {
		l := l.of(t)
		talk := func(c net.Conn) error {
			if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
				return err
			}
			if _, err := io.WriteString(c, "x"); err != nil {
				return err
			}
			_, err := io.ReadFull(c, make([]byte, 1))
			return err
		}
		c, err := dial(client, "10.99.1.200:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, len("far 10.99.1.2\n"))); err != nil {
			t.Fatal(err)
		}
		// An agent that is restarted takes over what is there, and disturbs nothing.
		again := l.node("a", l.a.ns, "192.168.50.1")
		l.in(l.a.ns, func() error { return again.overlay.Sync(t.Context(), l.state) })
		l.in(l.a.ns, func() error { return again.balance.Sync(t.Context(), l.state) })
		// Drained: no new connections, and the old one goes on.
		l.state.Services[0].Endpoints = nil
		l.sync()
		l.refused(client, "10.99.1.200:80")
		if err := talk(c); err != nil {
			t.Errorf("a connection to what drains broke: %v", err)
		}
		// Served again, and then gone altogether: who is connected notices.
		l.state.Services[0].Endpoints = []wire.Endpoint{endpoint("far", "front=10.99.1.18")}
		l.sync()
		if err := talk(c); err != nil {
			t.Errorf("the connection broke: %v", err)
		}
		l.in(l.b.ns, func() error { return l.b.overlay.Detach(t.Context(), "far") })
		l.state.Services[0].Endpoints, l.state.Instances = nil, append(l.state.Instances[:2:2], l.state.Instances[3:]...)
		l.sync()
		err = talk(c)
		if e, ok := errors.AsType[net.Error](err); err == nil || ok && e.Timeout() {
			t.Errorf("a connection to what is gone gives %v, want that it ends", err)
		}
		l.want(client, "10.99.1.3:80", "near 10.99.1.2") // the others are as before
	})
}

// of is the same LAN for a part of a test.
func (l *lan) of(t *testing.T) *lan {
	c := *l
	c.T = t
	return &c
}

// serveDatagrams answers datagrams with a name and the address that they seem to come from.
func (l *lan) serveDatagrams(ns netns.NsHandle, address, name string) {
	l.Helper()
	var conn net.PacketConn
	l.in(ns, func() (err error) {
		conn, err = net.ListenPacket("udp", address)
		return err
	})
	l.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			_, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			fmt.Fprintln(writerTo{conn, from}, name, host)
		}
	}()
}

type writerTo struct {
	net.PacketConn
	to net.Addr
}

func (w writerTo) Write(b []byte) (int, error) { return w.WriteTo(b, w.to) }

func TestWhichInstance(t *testing.T) {
	l := newLAN(t)
	front := network("front", "10.99.1.0/24", false)
	front.Status.Subnet6 = "fd74:1::/64"
	front.Status.Blocks = []model.Block{{NodeID: "a", CIDR: "10.99.1.0/28"}, {NodeID: "b", CIDR: "10.99.1.16/28"}}
	other := network("other", "10.99.2.0/24", false)
	other.Status.Subnet6 = "fd74:2::/64"
	l.state.AddressPool6 = "fd74:0::/48"
	l.state.Networks = []*model.Network{front, other}
	client := l.attach(l.a, "client", "front=10.99.1.2")
	alone := l.attach(l.b, "alone", "other=10.99.2.2")
	var endpoints []wire.Endpoint
	for id, address := range map[string]string{"a1": "10.99.1.3", "b1": "10.99.1.17", "b2": "10.99.1.18", "b3": "10.99.1.19"} {
		h, node := l.b, "b"
		if id == "a1" {
			h, node = l.a, "a"
		}
		ns := l.attach(h, id, "front="+address)
		for _, p := range []string{":80", ":81"} {
			l.serve(ns, p, id)
		}
		l.serveDatagrams(ns, ":53", id)
		endpoints = append(endpoints, wire.Endpoint{Instance: id, NodeID: node, Addresses: l.at("front=" + address)})
	}
	service := func(id, ip string, b model.Balancing, ports ...model.ServicePort) wire.NetworkService {
		return wire.NetworkService{ID: id, VirtualIPs: l.at("front=" + ip), Balance: b, Ports: ports, Endpoints: endpoints}
	}
	l.state.Services = []wire.NetworkService{
		service("any", "10.99.1.200", model.Balancing{}, model.ServicePort{Protocol: "tcp", Virtual: 8000, Target: 81}, model.ServicePort{Protocol: "udp", Target: 53, Published: 5300}),
		service("sticky", "10.99.1.201", model.Balancing{Sticky: time.Minute}, model.ServicePort{Protocol: "tcp", Target: 80, Published: 8080}),
		service("near", "10.99.1.202", model.Balancing{Local: model.LocalPrefer}, model.ServicePort{Protocol: "tcp", Target: 80, Published: 8081}),
		service("here", "10.99.1.203", model.Balancing{Local: model.LocalOnly}),
	}
	l.state.Services[3].Endpoints = endpointsOf(endpoints, "b1", "b2")
	l.sync()
	who := func(ns netns.NsHandle, address string, n int) map[string]int {
		t.Helper()
		seen := map[string]int{}
		for range n {
			got, err := ask(ns, address)
			if err != nil {
				t.Fatalf("%s: %v", address, err)
			}
			seen[strings.Fields(got)[0]]++
		}
		return seen
	}
	t.Run("any", func(t *testing.T) {
		for _, address := range []string{"10.99.1.200:80", "10.99.1.200:8000", "[fd74:1::a63:1c8]:80"} {
			if seen := who(client, address, 60); len(seen) != 4 {
				t.Errorf("%s led to %v, want all four", address, seen)
			}
		}
	})
	t.Run("sticky", func(t *testing.T) {
		for _, c := range []struct {
			ns      netns.NsHandle
			address string
		}{{client, "10.99.1.201:80"}, {client, "[fd74:1::a63:1c9]:80"}, {l.outside, "192.168.50.2:8080"}} {
			seen := who(c.ns, c.address, 20)
			if len(seen) != 1 {
				t.Errorf("%s led to %v, want always the same", c.address, seen)
			}
			for id := range seen { // it goes, and comes back: another takes over, for good
				l.state.Services[1].Endpoints = without(endpoints, id)
				l.sync()
				moved := who(c.ns, c.address, 10)
				l.state.Services[1].Endpoints = endpoints
				l.sync()
				after := who(c.ns, c.address, 10)
				if len(moved) != 1 || moved[id] > 0 || fmt.Sprint(moved) != fmt.Sprint(after) {
					t.Errorf("%s led to %s, without it to %v, and then to %v", c.address, id, moved, after)
				}
			}
		}
	})
	t.Run("local", func(t *testing.T) {
		l := l.of(t)
		if seen := who(client, "10.99.1.202:80", 20); seen["a1"] != 20 {
			t.Errorf("the near one is preferred, and %v were led to", seen)
		}
		l.want(l.outside, "192.168.50.1:8081", "a1 192.168.50.3") // the client's own address, as it is led nowhere else
		l.state.Services[2].Endpoints = without(endpoints, "a1")
		l.sync()
		if seen := who(client, "10.99.1.202:80", 40); len(seen) != 3 {
			t.Errorf("where none is near, %v were led to, want all others", seen)
		}
		l.refused(client, "10.99.1.203:80") // none is here, and no other may
	})
	t.Run("IPv6", func(t *testing.T) {
		l := l.of(t)
		l.want(client, "[fd74:1::a63:111]:80", "b1 fd74:1::a63:102") // over the tunnel
		l.want(client, "[fd74:1::a63:103]:80", "a1 fd74:1::a63:102")
		l.refused(alone, "[fd74:1::a63:111]:80") // of a network that it is not on
		l.refused(alone, "[fd74:1::a63:1c8]:80")
		l.want(l.a.ns, "[fd74:1::a63:111]:80", "b1 fd74::afa:1")
	})
	t.Run("datagrams", func(t *testing.T) {
		for _, c := range []struct {
			ns      netns.NsHandle
			address string
		}{{client, "10.99.1.200:53"}, {client, "[fd74:1::a63:1c8]:53"}, {l.outside, "192.168.50.1:5300"}} {
			seen := map[string]int{}
			for range 40 {
				got, err := askDatagram(c.ns, c.address)
				if err != nil {
					t.Fatalf("%s: %v", c.address, err)
				}
				seen[strings.Fields(got)[0]]++
			}
			if len(seen) < 3 {
				t.Errorf("%s led to %v, want to all", c.address, seen)
			}
		}
	})
	// Datagrams that came before a port led anywhere are led as soon as it does.
	t.Run("datagrams too early", func(t *testing.T) {
		service := &l.state.Services[0]
		service.Ports[1].Published = 5301
		all := service.Endpoints
		service.Endpoints = nil
		l.sync()
		var c net.Conn
		if err := inside(l.outside, func() (err error) {
			c, err = net.Dial("udp", "192.168.50.1:5301")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		talk := func() error {
			if _, err := io.WriteString(c, "x"); err != nil {
				return err
			}
			if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
				return err
			}
			_, err := c.Read(make([]byte, 100))
			return err
		}
		if err := talk(); err == nil {
			t.Fatal("an answer came from nobody")
		}
		service.Endpoints = all
		l.sync()
		var err error
		for range 10 {
			if err = talk(); err == nil {
				return
			}
		}
		t.Errorf("after the port led to instances there was no answer: %v", err)
	})
	// An instance that sends under another's address is not heard.
	t.Run("under another address", func(t *testing.T) {
		l := l.of(t)
		l.in(client, func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 99, 1, 77), Mask: net.CIDRMask(32, 32)}})
		})
		err := inside(client, func() error {
			d := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: &net.UDPAddr{IP: net.IPv4(10, 99, 1, 77)}}
			c, err := d.Dial("udp", "10.99.1.3:53")
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := io.WriteString(c, "x"); err != nil {
				return err
			}
			if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
				return err
			}
			_, err = c.Read(make([]byte, 100))
			return err
		})
		if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() {
			t.Errorf("it gives %v, want that nothing answers", err)
		}
	})
}

// at is addresses with those of IPv6 beside them, where the network has it.
func (l *lan) at(pairs ...string) []model.Address {
	out := at(pairs...)
	for i := range out {
		for _, n := range l.state.Networks {
			if n.ID == out[i].Network && n.Status.Subnet6 != "" {
				out[i].IP6 = model.Embed(netip.MustParsePrefix(n.Status.Subnet6), netip.MustParseAddr(out[i].IP)).String()
			}
		}
	}
	return out
}

func endpointsOf(all []wire.Endpoint, ids ...string) (out []wire.Endpoint) {
	for _, e := range all {
		if slices.Contains(ids, e.Instance) {
			out = append(out, e)
		}
	}
	return out
}

func without(all []wire.Endpoint, id string) []wire.Endpoint {
	return slices.DeleteFunc(slices.Clone(all), func(e wire.Endpoint) bool { return e.Instance == id })
}

// askDatagram says who answers a datagram at an address, and whom it sees.
func askDatagram(ns netns.NsHandle, address string) (answer string, err error) {
	err = inside(ns, func() error {
		c, err := net.Dial("udp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, "x"); err != nil {
			return err
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		answer = strings.TrimSpace(string(b[:n]))
		return err
	})
	return answer, err
}

// TestRoutesFollowInstances moves an instance, outside of all blocks, between nodes by what is said to change.
func TestRoutesFollowInstances(t *testing.T) {
	l := newLAN(t)
	l.state.Networks = []*model.Network{network("front", "10.99.1.0/24", false)}
	kept := wire.NewKeptNetwork()
	kept.Apply(l.state)
	routes := func() (out []string) {
		l.in(l.a.ns, func() error {
			if err := l.a.overlay.Sync(t.Context(), kept.Next()); err != nil {
				return err
			}
			list, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: 97}, netlink.RT_FILTER_PROTOCOL)
			for _, r := range list {
				out = append(out, r.Dst.String())
			}
			slices.Sort(out)
			return err
		})
		return out
	}
	tell := func(list ...wire.NetworkInstance) {
		kept.Apply(&wire.Network{Since: 1, Instances: list})
	}
	at := func(id, node, ip string) wire.NetworkInstance {
		return wire.NetworkInstance{ID: id, NodeID: node, Addresses: []model.Address{{Network: "front", IP: ip}}}
	}
	want := func(what string, more ...string) {
		t.Helper()
		more = append(more, "10.250.0.2/32") // the other node
		slices.Sort(more)
		if got := routes(); !slices.Equal(got, more) {
			t.Errorf("%s: routes lead to %v, want %v", what, got, more)
		}
	}
	want("at first")
	tell(at("i1", "b", "10.99.1.77"))
	want("an instance of another node", "10.99.1.77/32")
	tell(at("i1", "a", "10.99.1.77"), at("i2", "b", "10.99.1.78"))
	want("that is here now, and another", "10.99.1.78/32")
	tell(at("i3", "b", "10.99.1.78"))
	kept.Apply(&wire.Network{Since: 1, Gone: []string{"i2"}})
	want("in whose place another has come", "10.99.1.78/32")
	kept.Apply(&wire.Network{Since: 1, Gone: []string{"i1", "i3"}})
	want("with none any more")
}

// TestConnectionsFollowWeights asks two instances of one service, of which one weighs a tenth, by virtual IP and by
// published port.
func TestConnectionsFollowWeights(t *testing.T) {
	l := newLAN(t)
	l.state.Networks = []*model.Network{network("front", "10.99.1.0/24", false)}
	client := l.attach(l.a, "client", "front=10.99.1.2")
	l.serve(l.attach(l.a, "light", "front=10.99.1.3"), ":80", "light")
	l.serve(l.attach(l.b, "heavy", "front=10.99.1.18"), ":80", "heavy")
	l.state.Services = []wire.NetworkService{{
		ID: "s", VirtualIPs: at("front=10.99.1.200"), Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 8080}},
		Endpoints: []wire.Endpoint{
			{Instance: "light", NodeID: "a", Addresses: at("front=10.99.1.3"), Weight: 10}, {Instance: "heavy", NodeID: "b", Addresses: at("front=10.99.1.18")},
		},
	}}
	l.sync()
	for address, from := range map[string]netns.NsHandle{"10.99.1.200:80": client, "192.168.50.1:8080": l.outside} {
		const times = 220
		light := 0
		for range times {
			got, err := ask(from, address)
			if err != nil {
				t.Fatal(address, err)
			}
			if strings.HasPrefix(got, "light") {
				light++
			}
		}
		if light == 0 || light > times/3 { // one in eleven
			t.Errorf("%s led %d of %d connections to what weighs a tenth", address, light, times)
		}
	}
}
