package balance

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// inKernel tells what is in the table, sorted.
func inKernel(t *testing.T, f *family) (out []string) {
	t.Helper()
	b, err := newTable(f)
	if err != nil {
		t.Fatal(err)
	}
	chains, err := b.conn.ListChainsOfTableFamily(f.nft)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chains {
		if c.Table.Name == TableName && strings.HasPrefix(c.Name, "to-") {
			out = append(out, "chain "+c.Name)
		}
	}
	for name := range b.sets() {
		set, err := b.conn.GetSetByName(b.t, name)
		if err != nil {
			t.Fatal(name, err)
		}
		elements, err := b.conn.GetSetElements(set)
		if err != nil {
			t.Fatal(name, err)
		}
		for _, e := range elements {
			have := element{set: name, key: string(e.Key), end: string(e.KeyEnd), value: string(e.Val)}
			if e.IntervalEnd {
				have.set += " until"
			}
			if d := b.sets()[name].DataType; d.Name == nftables.TypeVerdict.Name && len(e.Val) > 12 { // two attributes: what to do, and the chain
				have.value, have.chain = "", strings.TrimRight(string(e.Val[12:]), "\x00")
			}
			out = append(out, have.String())
		}
	}
	slices.Sort(out)
	return out
}

// String tells an element; registers are of four bytes, and what fills them up is not told.
func (e element) String() string {
	h := func(s string) string { return hex.EncodeToString([]byte(s)) }
	return fmt.Sprintf("%s %s %s %s %s", e.set, h(e.key), h(e.end), h(e.value), e.chain)
}

// wanted tells what should be there.
func wanted(d *Desired) (out []string) {
	chains := map[string]bool{}
	for i := range d.Frontends {
		for _, e := range d.Frontends[i].elements() {
			out = append(out, e.String())
		}
		if l := d.Frontends[i].leads(); l.count > 0 {
			chains["chain "+l.name()], chains[l.coded().String()] = true, true
		}
	}
	for _, e := range d.elements() {
		out = append(out, e.String())
		if e.until != "" {
			out = append(out, element{set: e.set + " until", key: e.until}.String())
		}
	}
	out = append(out, slices.Collect(maps.Keys(chains))...)
	slices.Sort(out)
	return out
}

func sameTable(t *testing.T, f *family, d *Desired) {
	t.Helper()
	want, got := wanted(d), inKernel(t, f)
	idle := 0
	for _, l := range got {
		if !slices.Contains(want, l) {
			if idle++; strings.HasPrefix(l, "chain") && idle <= 2*mostIdle {
				continue // none needs it now, nor its code
			}
			t.Error("the table has, and should not:", l)
		}
	}
	for _, l := range want {
		if !slices.Contains(got, l) {
			t.Error("the table has not, and should:", l)
		}
	}
}

// chance makes a state of a few services, networks and instances.
func chance(r *rand.Rand, f *family) *Desired {
	address := func(net, host int) netip.Addr {
		ip := netip.AddrFrom4([4]byte{10, 99, byte(net), byte(host)})
		if f == ipv6 {
			return model.Embed(netip.MustParsePrefix("fd00::/64"), ip)
		}
		return ip
	}
	bits := int(f.size)*8 - 8
	d := &Desired{Own: address(250, 1), NodePool: netip.PrefixFrom(address(250, 0), bits)}
	for net := range 6 {
		if r.IntN(3) == 0 {
			continue
		}
		p := netip.PrefixFrom(address(2*net, 0), bits-r.IntN(2)) // never one in another
		d.Subnets = append(d.Subnets, p)
		if r.IntN(2) == 0 {
			d.Internal = append(d.Internal, p)
		}
	}
	slices.SortFunc(d.Subnets, netip.Prefix.Compare)
	d.Subnets = slices.Compact(d.Subnets)
	d.Networks = merge(d.Subnets)
	for host := range 10 {
		if r.IntN(2) == 0 {
			d.Local = append(d.Local, address(1, host))
		}
	}
	for n := range 12 {
		fe := Frontend{FrontendKey: FrontendKey{IP: address(9, n)}}
		switch n % 4 {
		case 1:
			fe.Protocol, fe.Port, fe.Target = unix.IPPROTO_TCP, 80, uint16(8000+r.IntN(2))
		case 2:
			fe.Node, fe.Protocol, fe.Port, fe.Target = true, unix.IPPROTO_UDP, uint16(80+n), 80
		case 3:
			fe.Node, fe.IP, fe.Protocol, fe.Port, fe.Target = true, netip.Addr{}, unix.IPPROTO_TCP, uint16(80+n), 80
		}
		if r.IntN(3) == 0 {
			fe.Sticky = time.Duration(1+r.IntN(2)) * time.Minute
		}
		for host := range r.IntN(4) {
			e := endpoint{netip.AddrPortFrom(address(1, host+r.IntN(3)*4), 0)}
			if fe.Port != 0 && fe.Sticky == 0 && r.IntN(4) == 0 {
				e.AddrPort = netip.AddrPortFrom(e.Addr(), uint16(9000+r.IntN(2)))
			}
			fe.Endpoints = append(fe.Endpoints, e)
		}
		slices.SortFunc(fe.Endpoints, byAddress)
		if r.IntN(4) > 0 {
			d.Frontends = append(d.Frontends, fe)
		}
	}
	return d
}

func TestDifferencesLeadToTheSameAsTheWhole(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	for _, f := range []*family{ipv4, ipv6} {
		t.Run(f.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			t.Cleanup(func() {
				if err := deleteTables(f); err != nil {
					t.Error(err)
				}
			})
			now, idle := chance(r, f), []leading(nil)
			if err := replaceTable(f, now); err != nil {
				t.Fatal(err)
			}
			for step := range 60 {
				sameTable(t, f, now)
				if t.Failed() {
					t.Fatalf("after step %d", step)
				}
				next := chance(r, f)
				var d *delta
				if d, idle = compare(now, next, idle); len(idle) > mostIdle {
					t.Fatalf("%d chains are idle", len(idle))
				}
				if err := changeTable(f, d); err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
				now = next
			}
		})
	}
}

// A table of another name, or another's rules, are never looked at; ours comes back, whoever wrote to it.
func TestForeignTablesStay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	c, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	foreign := c.AddTable(&nftables.Table{Name: "foreign", Family: nftables.TableFamilyIPv4})
	c.AddChain(&nftables.Chain{Name: "rules", Table: foreign})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.DelTable(foreign)
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	})
	b := New(Config{NodeID: "a", Log: slog.New(slog.DiscardHandler)})
	n := state()
	n.Networks = []*model.Network{network("n", "10.99.1.0/24", false)}
	n.Services = []wire.NetworkService{{ID: "s", VirtualIPs: at("n=10.99.1.200")}}
	if err := b.Sync(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	tables := func() (names []string) {
		list, err := c.ListTables()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range list {
			names = append(names, l.Name)
		}
		slices.Sort(names)
		return names
	}
	if got := fmt.Sprint(tables()); got != "[foreign tutti tutti-counts]" {
		t.Errorf("the tables are %s", got)
	}
	// Somebody flushes everything of ours; it is written again, the whole of it.
	if err := deleteTables(ipv4); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Keep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sameTable(t, ipv4, b.sides[0].inForce.desired())
	// An agent is killed, and meanwhile elements are added and taken away: the next one makes of it what it should be.
	now := b.sides[0].inForce.desired()
	if len(now.elements()) == 0 {
		t.Fatal("there is nothing to take away")
	}
	stale := &delta{gone: now.elements(), come: (&Frontend{FrontendKey: FrontendKey{IP: netip.MustParseAddr("10.99.1.77")}}).elements()}
	if err := changeTable(ipv4, stale); err != nil {
		t.Fatal(err)
	}
	b = New(Config{NodeID: "a", Log: slog.New(slog.DiscardHandler)})
	if err := b.Sync(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	sameTable(t, ipv4, now)
	if got := fmt.Sprint(tables()); got != "[foreign tutti tutti-counts]" {
		t.Errorf("the tables are %s", got)
	}
	if err := b.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(tables()); got != "[foreign]" {
		t.Errorf("after all is removed the tables are %s", got)
	}
}

// BenchmarkTable is a node's table of 10,000 services with ten endpoints each: written whole, computed
// and found unchanged, and with an endpoint that comes and goes.
func BenchmarkTable(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("namespaces need root")
	}
	n := state()
	n.Networks = []*model.Network{network("n", "10.96.0.0/12", false)}
	for s := range 10000 {
		id := fmt.Sprintf("s%05d", s)
		n.Services = append(n.Services, wire.NetworkService{ID: id, WorkloadID: id, VirtualIPs: at("n=" + netip.AddrFrom4([4]byte{10, 98, byte(s >> 8), byte(s)}).String())})
		for e := range 10 {
			i := s*10 + e
			n.Instances = append(n.Instances, wire.NetworkInstance{
				ID: fmt.Sprint("i", i), NodeID: "b", WorkloadID: id, Serves: true,
				Addresses: at("n=" + netip.AddrFrom4([4]byte{10, byte(100 + i>>16), byte(i >> 8), byte(i)}).String()),
			})
		}
	}
	kept := wire.NewKeptNetwork()
	kept.Apply(n)
	bal := New(Config{NodeID: "a", Log: slog.New(slog.DiscardHandler)})
	b.Cleanup(func() { bal.Remove(b.Context()) })
	sync := func(b *testing.B) {
		if err := bal.Sync(b.Context(), kept.Next()); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			bal.sides[0].inForce = nil
			sync(b)
		}
	})
	b.Run("compared", func(b *testing.B) {
		for b.Loop() {
			kept.Forget()
			sync(b)
		}
	})
	b.Run("counts read", func(b *testing.B) {
		for b.Loop() {
			if _, err := bal.Counts(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("one changed", func(b *testing.B) {
		in := n.Instances[50000]
		for i := 0; b.Loop(); i++ {
			in.Serves = i%2 > 0
			kept.Apply(&wire.Network{Since: 1, Instances: []wire.NetworkInstance{in}})
			sync(b)
		}
	})
}

// chanceWorld changes a small world by a message: instances, services, networks, nodes and policies that come,
// change and go. What it has is kept in all.
func chanceWorld(r *rand.Rand, all *wire.Network) *wire.Network {
	m := &wire.Network{Since: 1, NodePool: all.NodePool, AddressPool: all.AddressPool, AddressPool6: all.AddressPool6}
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	for range 1 + r.IntN(3) {
		switch r.IntN(12) {
		case 0:
			if r.IntN(3) == 0 {
				m.Policies = chancePolicies(r, []int{80, 443}, policyRangesTried)[:1]
				m.Policies[0].ID = pick("p0", "p1", "p2")
			} else {
				m.Gone = append(m.Gone, pick("p0", "p1", "p2"))
			}
		case 1:
			id := pick("n1", "n2")
			net := network(id, map[string]string{"n1": "10.99.1.0/24", "n2": "10.99.2.0/24"}[id], r.IntN(2) == 0)
			if r.IntN(2) == 0 {
				net.Status.Subnet6 = map[string]string{"n1": "fd74:1::/64", "n2": "fd74:2::/64"}[id]
			}
			m.Networks = append(m.Networks, net)
		case 2:
			m.Nodes = append(m.Nodes, wire.NetworkNode{ID: "b", OverlayAddress: "10.250.0.2", Down: r.IntN(2) == 0})
		case 3:
			m.Gone = append(m.Gone, pick("s0", "s1", "s2", "s3"))
		case 4, 5:
			k := r.IntN(4)
			s := wire.NetworkService{ID: fmt.Sprint("s", k), Namespace: "default", Application: "shop", WorkloadID: pick("w0", "w1", "w2")}
			host := r.IntN(4) // of addresses that clash at times
			s.VirtualIPs = []model.Address{{Network: "n1", IP: fmt.Sprint("10.99.1.", 200+host), IP6: fmt.Sprint("fd74:1::a63:1", host)}}
			for range r.IntN(3) {
				s.Ports = append(s.Ports, model.ServicePort{Protocol: pick("tcp", "udp", "sctp"), Target: 80 + r.IntN(2), Published: 8000 + r.IntN(3), HostMode: r.IntN(4) == 0, Virtual: r.IntN(2) * 90})
			}
			if r.IntN(4) == 0 {
				s.Balance.Sticky = time.Minute
			}
			s.Balance.Local = model.LocalPolicy(pick("", "", "prefer", "only"))
			if r.IntN(4) == 0 {
				s.PortGroup = pick("g", "h")
			}
			if r.IntN(2) == 0 {
				s.Direct, s.WorkloadID = true, ""
				if r.IntN(2) == 0 {
					s.VirtualIPs[0] = model.Address{Network: "n1", IP: fmt.Sprint("10.212.0.", host)} // of no network's subnet
				}
				for range r.IntN(3) {
					s.Backends = append(s.Backends, model.Backend{Address: fmt.Sprint("10.99.1.", 2+r.IntN(10))})
				}
			}
			m.Services = append(m.Services, s)
		case 6, 7:
			m.Gone = append(m.Gone, fmt.Sprint("i", r.IntN(8)))
		default:
			k := r.IntN(8)
			host := 2 + k
			if r.IntN(6) == 0 {
				host = 2 + r.IntN(8) // which another one may have
			}
			in := wire.NetworkInstance{
				ID: fmt.Sprint("i", k), NodeID: pick("a", "b"), WorkloadID: pick("w0", "w1", "w2"), Serves: r.IntN(3) > 0, Weight: r.IntN(3) * 50,
				Namespace: "default", Application: pick("shop", "bank"), Workload: pick("web", "api", "db"),
			}
			for n, id := range []string{"n1", "n2"} {
				if r.IntN(3) > 0 {
					in.Addresses = append(in.Addresses, model.Address{Network: id, IP: fmt.Sprintf("10.99.%d.%d", n+1, host), IP6: fmt.Sprintf("fd74:%d::a63:%x", n+1, host)})
				}
			}
			if r.IntN(4) == 0 {
				in.HostPorts = []model.HostPort{{Protocol: "tcp", Published: 8000 + r.IntN(4), Target: 80}}
			}
			m.Instances = append(m.Instances, in)
		}
	}
	return m
}

func byAddress(a, b endpoint) int { return a.Compare(b.AddrPort) }

// sameDesired compares, whatever the order of endpoints is.
func sameDesired(t *testing.T, step int, got, want *Desired) {
	t.Helper()
	for _, d := range []*Desired{got, want} {
		for i := range d.Frontends {
			d.Frontends[i].Endpoints = slices.SortedFunc(slices.Values(d.Frontends[i].Endpoints), byAddress)
		}
	}
	if a, b := lines(got), lines(want); a != b {
		t.Fatalf("after step %d the state is\n%s\nwant\n%s", step, a, b)
	}
	text := func(p *policies) string { return fmt.Sprint(p.Out, p.In, p.Class, p.Ranges) }
	if a, b := text(&got.Policies), text(&want.Policies); a != b {
		t.Fatalf("after step %d policies are\n%s\nwant\n%s", step, a, b)
	}
}

// TestChangesLeadToTheSameAsTheWhole follows a world by what changes, and compares it with what the whole comes
// to, and with the kernel.
func TestChangesLeadToTheSameAsTheWhole(t *testing.T) {
	for seed := range uint64(12) {
		root := os.Geteuid() == 0 && seed < 2 // the kernel takes its time
		r := rand.New(rand.NewPCG(seed, 7))
		all := state()
		all.AddressPool6, all.Networks = "fd74::/32", []*model.Network{network("n1", "10.99.1.0/24", false)}
		kept := wire.NewKeptNetwork()
		kept.Apply(all)
		var ledgers [2]*ledger
		b := New(Config{NodeID: "a", Log: slog.New(slog.DiscardHandler)})
		t.Cleanup(func() {
			if root {
				b.Remove(t.Context())
			}
		})
		followed := 0
		for step := range 60 {
			kept.Apply(chanceWorld(r, all))
			if r.IntN(5) == 0 {
				continue
			}
			n := kept.Next()
			for side, f := range []*family{ipv4, ipv6} {
				want, err := Compute(n, "a", f)
				if err != nil {
					t.Fatal(err)
				}
				ok := false
				if ledgers[side] != nil && n.Changes != nil {
					var err error
					if _, ok, err = ledgers[side].update(n); err != nil {
						t.Fatal(err)
					}
				}
				if !ok {
					if ledgers[side], err = newLedger(n, "a", f); err != nil {
						t.Fatal(err)
					}
				} else {
					followed++
				}
				sameDesired(t, step, ledgers[side].desired(), want)
			}
			if !root {
				continue
			}
			if err := b.Sync(t.Context(), n); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			for _, s := range b.sides {
				if s.inForce != nil {
					sameTable(t, s.family, s.inForce.desired())
				}
			}
			if t.Failed() {
				t.Fatalf("seed %d, after step %d", seed, step)
			}
		}
		if followed < 20 {
			t.Errorf("only %d steps of seed %d were followed by what changed", followed, seed)
		}
	}
}
