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
			chains["chain "+l.name()] = true
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
	for _, l := range got {
		if !slices.Contains(want, l) {
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
			fe.Endpoints = append(fe.Endpoints, address(1, host+r.IntN(3)*4))
		}
		slices.SortFunc(fe.Endpoints, netip.Addr.Compare)
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
				if err := deleteTable(f); err != nil {
					t.Error(err)
				}
			})
			now := chance(r, f)
			if err := replaceTable(f, now); err != nil {
				t.Fatal(err)
			}
			for step := range 60 {
				sameTable(t, f, now)
				if t.Failed() {
					t.Fatalf("after step %d", step)
				}
				next := chance(r, f)
				if _, err := changeTable(f, now, next); err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
				now = next
			}
		})
	}
}

// A table of another name, or another's rules, are never looked at; ours comes back.
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
	if got := fmt.Sprint(tables()); got != "[foreign tutti]" {
		t.Errorf("the tables are %s", got)
	}
	// Somebody flushes everything of ours; it is written again, the whole of it.
	if err := deleteTable(ipv4); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Keep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sameTable(t, ipv4, b.sides[0].inForce)
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
	n.Networks = []*model.Network{network("n", "10.99.0.0/16", false), network("v", "10.98.0.0/16", false)}
	for s := range 10000 {
		service := wire.NetworkService{ID: fmt.Sprint("s", s), VirtualIPs: at("n=" + netip.AddrFrom4([4]byte{10, 98, byte(s >> 8), byte(s)}).String())}
		for e := range 10 {
			i := s*10 + e
			ip := netip.AddrFrom4([4]byte{10, byte(100 + i>>16), byte(i >> 8), byte(i)}).String()
			service.Endpoints = append(service.Endpoints, wire.Endpoint{Instance: fmt.Sprint("i", i), NodeID: "b", Addresses: at("n=" + ip)})
			n.Instances = append(n.Instances, wire.NetworkInstance{ID: fmt.Sprint("i", i), NodeID: "b", Addresses: at("n=" + ip)})
		}
		n.Services = append(n.Services, service)
	}
	bal := New(Config{NodeID: "a", Log: slog.New(slog.DiscardHandler)})
	b.Cleanup(func() { bal.Remove(b.Context()) })
	sync := func(b *testing.B) {
		if err := bal.Sync(b.Context(), n); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			bal.sides[0].inForce = nil
			sync(b)
		}
	})
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			sync(b)
		}
	})
	b.Run("one changed", func(b *testing.B) {
		all := n.Services[5000].Endpoints
		for i := 0; b.Loop(); i++ {
			n.Services[5000].Endpoints = all[:9+i%2]
			sync(b)
		}
	})
}
