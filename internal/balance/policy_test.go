package balance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// chancePolicies makes a few policies about what the names and addresses mean.
func chancePolicies(r *rand.Rand, ports []int, addresses []string) (out []*model.Policy) {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	selector := func(subject bool) model.Selector {
		s := model.Selector{Application: pick("", "shop", "shop", "bank"), Workload: pick("", "web", "api", "db")}
		if !subject {
			s.Namespace = pick("", "", "other", model.AnyNamespace)
			s.Network = pick("", "", "", "front", "back")
		}
		if r.IntN(5) == 0 {
			s.Labels = map[string]string{"tier": pick("1", "2")}
		}
		if r.IntN(5) == 0 {
			s.Expressions = []model.Constraint{{Key: "tier", Operator: model.Operator(pick("in", "notIn", "exists", "notExists")), Values: []string{pick("1", "2")}}}
		}
		return s
	}
	for k := range 1 + r.IntN(4) {
		p := &model.Policy{
			Meta:    model.Meta{ID: fmt.Sprint("p", k), Name: fmt.Sprint("p", k), Namespace: pick("default", "default", "other")},
			Subject: selector(true), IsolateIn: r.IntN(3) == 0, IsolateOut: r.IntN(4) == 0,
		}
		for range r.IntN(4) {
			rule := model.PolicyRule{Direction: model.DirectionIn, Deny: r.IntN(3) == 0}
			if r.IntN(3) == 0 {
				rule.Direction = model.DirectionOut
			}
			for range r.IntN(3) {
				if r.IntN(3) > 0 {
					s := selector(false)
					rule.Peers = append(rule.Peers, model.Peer{Selector: &s})
					continue
				}
				peer := model.Peer{CIDR: pick(addresses...)}
				if r.IntN(3) == 0 {
					peer.Except = []string{pick(addresses...)}
				}
				rule.Peers = append(rule.Peers, peer)
			}
			for range r.IntN(3) {
				ports := model.PortRange{Protocol: pick("tcp", "tcp", "udp"), From: ports[r.IntN(len(ports))]}
				if r.IntN(2) == 0 {
					ports.To = ports.From + r.IntN(5)
				} else if r.IntN(4) == 0 {
					ports.From = 0
				}
				rule.Ports = append(rule.Ports, ports)
			}
			p.Rules = append(p.Rules, rule)
		}
		out = append(out, p)
	}
	return out
}

var policyRangesTried = []string{
	"0.0.0.0/0", "10.99.0.0/16", "10.99.1.0/24", "10.99.1.16/28", "10.99.1.2/32", "192.168.50.0/24", "192.168.50.3/32",
	"::/0", "fd74::/32", "fd74:1::/64", "fd74:1::a63:102/128",
}

// endsOf are the ends at an instance's addresses.
func endsOf(n *wire.Network, f *family) map[netip.Addr]*model.End {
	out := map[netip.Addr]*model.End{}
	for i := range n.Instances {
		in := &n.Instances[i]
		for j := range in.Addresses {
			if ip, ok := f.address(&in.Addresses[j]); ok {
				out[ip] = &model.End{Address: ip, Namespace: in.Namespace, Application: in.Application, Workload: in.Workload, Labels: in.Labels, Network: in.Addresses[j].Network}
			}
		}
	}
	return out
}

// TestPoliciesDecideAsTheyAreDefined compares tables with the definition.
func TestPoliciesDecideAsTheyAreDefined(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 7))
		n := state()
		for k, who := range [][3]string{{"default", "shop", "web"}, {"default", "shop", "api"}, {"default", "shop", "db"}, {"default", "bank", "web"}, {"default", "", "web"}, {"other", "shop", "web"}, {"other", "shop", "db"}} {
			in := wire.NetworkInstance{
				ID: fmt.Sprint("i", k), Namespace: who[0], Application: who[1], Workload: who[2],
				Addresses: []model.Address{{Network: "front", IP: fmt.Sprintf("10.99.1.%d", 2+k*5), IP6: fmt.Sprintf("fd74:1::a63:%x", 0x102+k*5)}},
			}
			if k%2 == 0 {
				in.Labels = map[string]string{"tier": fmt.Sprint(1 + k/2%2)}
			}
			if k%3 == 0 {
				in.Addresses = append(in.Addresses, model.Address{Network: "back", IP: fmt.Sprintf("10.99.2.%d", 2+k)})
			}
			n.Instances = append(n.Instances, in)
		}
		n.Policies = chancePolicies(r, []int{1, 53, 80, 443, 65530}, policyRangesTried)
		for _, f := range []*family{ipv4, ipv6} {
			ends := endsOf(n, f)
			for _, a := range []string{"192.168.50.3", "8.8.8.8", "fd74:9::1", "2001:db8::1"} {
				if ip := netip.MustParseAddr(a); ip.Is4() == (f == ipv4) {
					ends[ip] = &model.End{Address: ip}
				}
			}
			compiled := compilePolicies(n, f)
			for _, c := range slices.Concat(compiled.Out.Cells, compiled.In.Cells) {
				if c.from > c.to || c.protocol > c.through {
					t.Fatalf("seed %d: %+v", seed, c)
				}
			}
			j := compiled.judge()
			for _, from := range ends {
				for _, to := range ends {
					for _, protocol := range []string{"tcp", "udp", "sctp", "icmp"} {
						for _, port := range []int{0, 1, 2, 53, 57, 58, 79, 80, 84, 443, 65530, 65534, 65535} {
							want := model.Decide(n.Policies, from, to, protocol, port)
							number, ok := protocols[protocol]
							if !ok {
								number = unix.IPPROTO_ICMP
							}
							if got := from != to && j.refuses(from.Address, to.Address, number, uint16(port)); got == want.Allowed {
								t.Fatalf("seed %d, %s: %+v to %+v, %s %d: refused: %v, and it is to be %+v", seed, f.name, from, to, protocol, port, got, want)
							}
						}
					}
				}
			}
		}
	}
}

// TestPoliciesByRealConnections makes connections between all instances of two hosts, and from outside,
// under policies made by chance, and compares what becomes of them with the definition.
func TestPoliciesByRealConnections(t *testing.T) {
	l := newLAN(t)
	front, back := network("front", "10.99.1.0/24", false), network("back", "10.99.2.0/24", false)
	front.Status.Subnet6, back.Status.Subnet6, l.state.AddressPool6 = "fd74:1::/64", "fd74:2::/64", "fd74:0::/48"
	front.Status.Blocks = []model.Block{{NodeID: "a", CIDR: "10.99.1.0/28"}, {NodeID: "b", CIDR: "10.99.1.16/28"}}
	back.Status.Blocks = []model.Block{{NodeID: "a", CIDR: "10.99.2.0/28"}, {NodeID: "b", CIDR: "10.99.2.16/28"}}
	l.state.Networks = []*model.Network{front, back}
	spaces := map[string]netns.NsHandle{}
	ports := []int{80, 81}
	for _, w := range []struct {
		h                                      *host
		id, namespace, application, name, tier string
		addresses                              []string
	}{
		{l.a, "web", "default", "shop", "web", "1", []string{"front=10.99.1.2"}},
		{l.b, "api", "default", "shop", "api", "", []string{"front=10.99.1.18", "back=10.99.2.18"}},
		{l.a, "db", "default", "shop", "db", "2", []string{"back=10.99.2.3", "front=10.99.1.3"}},
		{l.b, "bank", "default", "bank", "web", "1", []string{"front=10.99.1.19"}},
		{l.a, "other", "other", "shop", "db", "", []string{"front=10.99.1.4"}},
	} {
		spaces[w.id] = l.attach(w.h, w.id, w.addresses...)
		in := &l.state.Instances[len(l.state.Instances)-1]
		in.Namespace, in.Application, in.Workload = w.namespace, w.application, w.name
		if w.tier != "" {
			in.Labels = map[string]string{"tier": w.tier}
		}
		for _, port := range ports {
			l.serve(spaces[w.id], fmt.Sprint(":", port), w.id)
		}
		l.serveDatagrams(spaces[w.id], ":80", w.id)
	}
	l.state.Services = []wire.NetworkService{{
		ID: "s", VirtualIPs: l.at("front=10.99.1.200"), Endpoints: []wire.Endpoint{{Instance: "api", NodeID: "b", Addresses: l.at("front=10.99.1.18", "back=10.99.2.18")}},
		Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 8080}},
	}}
	l.serve(l.outside, ":80", "outside")
	for _, h := range []*host{l.a, l.b} { // or else most refusals of datagrams are not told, and waited for
		l.in(h.ns, func() error {
			return errors.Join(os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0), os.WriteFile("/proc/sys/net/ipv6/icmp/ratelimit", []byte("0"), 0))
		})
	}
	rounds, asked, refused := 30, 0, 0
	r := rand.New(rand.NewPCG(3, 5))
	for round := range rounds {
		l.state.Policies = chancePolicies(r, ports, policyRangesTried)
		if round == 0 {
			l.state.Policies = nil
		}
		l.sync()
		check := func(ns netns.NsHandle, from, to *model.End, protocol string, port int, address, who string) {
			t.Helper()
			decision := model.Decide(l.state.Policies, from, to, protocol, port)
			ask := ask
			if protocol == "udp" {
				ask = askDatagram
			}
			got, err := ask(ns, address)
			var timeout net.Error
			switch asked++; {
			case decision.Allowed && err != nil:
				t.Errorf("round %d: %s of %+v to %s gives %v, and it is allowed: %+v", round, protocol, from, address, err, decision)
			case !decision.Allowed && err == nil:
				t.Errorf("round %d: %s of %+v to %s answers %q, and it is refused: %+v", round, protocol, from, address, got, decision)
			case !decision.Allowed && protocol == "tcp" && errors.As(err, &timeout) && timeout.Timeout(): // of datagrams the kernel tells not all
				t.Errorf("round %d: %s of %+v to %s is lost, want that it is refused", round, protocol, from, address)
			case decision.Allowed && got[:len(who)] != who:
				t.Errorf("round %d: %s answers %q, want %s", round, address, got, who)
			case !decision.Allowed:
				refused++
			}
		}
		for _, f := range []*family{ipv4, ipv6} {
			ends := endsOf(l.state, f)
			at := func(id, network string) (netip.Addr, bool) {
				for _, in := range l.state.Instances {
					for i := range in.Addresses {
						if in.ID == id && in.Addresses[i].Network == network {
							return f.address(&in.Addresses[i])
						}
					}
				}
				return netip.Addr{}, false
			}
			for from, ns := range spaces {
				for to := range spaces {
					for _, network := range []string{"front", "back"} {
						a, ok1 := at(from, network)
						b, ok2 := at(to, network)
						if !ok1 || !ok2 || from == to {
							continue
						}
						for _, port := range ports {
							check(ns, ends[a], ends[b], "tcp", port, netip.AddrPortFrom(b, uint16(port)).String(), to)
						}
						check(ns, ends[a], ends[b], "udp", 80, netip.AddrPortFrom(b, 80).String(), to)
					}
				}
			}
			if a, ok := at("web", "front"); ok { // by virtual IP, it counts where it leads
				b, _ := at("api", "front")
				virtual, _ := f.address(&l.state.Services[0].VirtualIPs[0])
				check(spaces["web"], ends[a], ends[b], "tcp", 80, netip.AddrPortFrom(virtual, 80).String(), "api")
			}
		}
		// In by a published port, on either host, and out.
		ends := endsOf(l.state, ipv4)
		outside := &model.End{Address: netip.MustParseAddr("192.168.50.3")}
		for _, node := range []string{"192.168.50.1:8080", "192.168.50.2:8080"} {
			check(l.outside, outside, ends[netip.MustParseAddr("10.99.1.18")], "tcp", 80, node, "api")
		}
		check(spaces["web"], ends[netip.MustParseAddr("10.99.1.2")], outside, "tcp", 80, "192.168.50.3:80", "outside")
		// Nodes themselves, as for probes.
		for _, h := range []*host{l.a, l.b} {
			if got, err := ask(h.ns, "10.99.1.18:80"); err != nil {
				t.Errorf("round %d: a node asks an instance and gets %q, %v", round, got, err)
			}
		}
		if t.Failed() {
			for _, p := range l.state.Policies {
				t.Logf("%s/%s about %s, only in: %v, only out: %v: %s", p.Namespace, p.Name, &p.Subject, p.IsolateIn, p.IsolateOut, rulesText(p))
			}
			t.FailNow()
		}
	}
	t.Logf("%d connections under %d sets of policies, %d of them refused", asked, rounds, refused)
	if refused == 0 || refused == asked {
		t.Errorf("%d of %d were refused: nothing was compared", refused, asked)
	}
	// The differences led to the same as the whole.
	for _, h := range []*host{l.a, l.b} {
		l.in(h.ns, func() error {
			for _, s := range h.balance.sides {
				sameTable(t, s.family, s.inForce.desired())
			}
			return nil
		})
	}
}

func rulesText(p *model.Policy) (out []string) {
	for i := range p.Rules {
		out = append(out, p.Rules[i].String())
	}
	return out
}

// TestAConnectionEndsWhenItIsRefused has a policy come over connections that exist.
func TestAConnectionEndsWhenItIsRefused(t *testing.T) {
	l := newLAN(t)
	l.state.Networks = []*model.Network{network("front", "10.99.1.0/24", false)}
	client := l.attach(l.a, "client", "front=10.99.1.2")
	l.serve(l.attach(l.b, "server", "front=10.99.1.18"), ":80", "server")
	for i := range l.state.Instances {
		l.state.Instances[i].Namespace, l.state.Instances[i].Workload = "default", l.state.Instances[i].ID
	}
	l.state.Services = []wire.NetworkService{{ID: "s", VirtualIPs: at("front=10.99.1.200"), Endpoints: []wire.Endpoint{{Instance: "server", NodeID: "b", Addresses: at("front=10.99.1.18")}}}}
	l.sync()
	talk := func(c net.Conn) error {
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, "x"); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	var open []net.Conn
	for _, address := range []string{"10.99.1.18:80", "10.99.1.200:80"} {
		c, err := dial(client, address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, len("server 10.99.1.2\n"))); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	l.state.Policies = []*model.Policy{{Meta: model.Meta{ID: "p", Name: "p", Namespace: "default"}, Subject: model.Selector{Workload: "server"}, Rules: []model.PolicyRule{
		{Direction: model.DirectionIn, Deny: true, Ports: []model.PortRange{{Protocol: "tcp", From: 81}}},
	}}}
	l.sync()
	for _, c := range open {
		if err := talk(c); err != nil {
			t.Errorf("a connection that no rule is about broke: %v", err)
		}
	}
	next := l.state.Policies[0].Clone()
	next.Rules[0].Ports = nil
	l.state.Policies = []*model.Policy{next}
	l.sync()
	for _, c := range open {
		var timeout net.Error
		if err := talk(c); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("a connection that may not begin any more gives %v, want that it ends", err)
		}
	}
	l.state.Policies = nil
	l.sync()
	l.want(client, "10.99.1.200:80", "server 10.99.1.2")
	l.in(l.a.ns, func() error { return l.a.balance.Keep(context.Background()) })
}
