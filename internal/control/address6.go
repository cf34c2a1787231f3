package control

import (
	"encoding/binary"
	"net/netip"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Where a network has both versions of IP, nearly everything of the second follows from the first: an
// address, a virtual IP or a block of IPv6 has the IPv4 one as its last 32 bits. Only the subnet, and
// addresses that somebody chose, are decided here.

// subnet6 decides the subnet of a network's IPv6: the chosen one, if no other overlaps, or the next
// free /64 of the cluster's pool, whose first one is the nodes'.
func (p *pass) subnet6(n *model.Network, cl *model.Cluster) (string, error) {
	pool, err := netip.ParsePrefix(model.Pool6(cl))
	if err != nil {
		return "", fault.New(fault.Internal, "the pool of IPv6 addresses cannot be read: %w", err)
	}
	if p.taken6 == nil {
		p.taken6 = []netip.Prefix{model.NodePool6(pool)}
		for other := range store.List[*model.Network](p.snap) {
			if s, err := netip.ParsePrefix(other.Status.Subnet6); err == nil {
				p.taken6 = append(p.taken6, s)
			}
		}
	}
	clash := func(s netip.Prefix) (netip.Prefix, bool) {
		for _, t := range p.taken6 {
			if t.Overlaps(s) {
				return t, true
			}
		}
		return netip.Prefix{}, false
	}
	if n.Subnet6 != "" {
		s, err := model.ParseSubnet6(n.Subnet6)
		if err != nil {
			return "", err
		}
		if t, found := clash(s); found {
			return "", fault.New(fault.Conflict, "subnet %s overlaps with %s, which is in use", s, t)
		}
		p.taken6 = append(p.taken6, s)
		return s.String(), nil
	}
	for number := range uint64(1) << min(16, 64-pool.Bits()) {
		a := pool.Masked().Addr().As16()
		binary.BigEndian.PutUint64(a[:8], binary.BigEndian.Uint64(a[:8])|number)
		s := netip.PrefixFrom(netip.AddrFrom16(a), 64)
		if _, found := clash(s); !found {
			p.taken6 = append(p.taken6, s)
			return s.String(), nil
		}
	}
	return "", fault.New(fault.Exhausted, "the pool %s has no free subnet of /64 left", pool)
}

// take6 returns the address of IPv6 that belongs to one of IPv4, or the fixed one; "" where the network
// has none.
func (po *pool) take6(ip, fixed string) (string, error) {
	if po.err != nil || po.network.Status.Subnet6 == "" {
		if fixed != "" && po.err == nil {
			return "", fault.New(fault.Invalid, "address %s: network %s has no IPv6", fixed, po.network.FullName())
		}
		return "", po.err
	}
	subnet, err := netip.ParsePrefix(po.network.Status.Subnet6)
	if err != nil {
		return "", fault.New(fault.Internal, "subnet of network %s: %w", po.network.FullName(), err)
	}
	if fixed == "" {
		a, err := netip.ParseAddr(ip)
		if err != nil {
			return "", fault.New(fault.Internal, "address %q of network %s: %w", ip, po.network.FullName(), err)
		}
		return model.Embed(subnet, a).String(), nil
	}
	a, err := netip.ParseAddr(fixed)
	switch {
	case err != nil || !subnet.Contains(a):
		return "", fault.New(fault.Invalid, "address %q is not in %s, the subnet of network %s", fixed, subnet, po.network.FullName())
	case model.EmbedPrefix(subnet, po.subnet).Contains(a):
		return "", fault.New(fault.Invalid, "address %s of network %s belongs to those that are given out: choose one outside of %s",
			fixed, po.network.FullName(), model.EmbedPrefix(subnet, po.subnet))
	}
	for i := range store.List[*model.Instance](po.pass.snap) {
		for _, have := range i.Addresses {
			if have.Network == po.network.ID && have.IP6 == a.String() && !i.Status.State.Final() {
				return "", fault.New(fault.Conflict, "address %s of network %s is taken", fixed, po.network.FullName())
			}
		}
	}
	if po.fixed6[a] {
		return "", fault.New(fault.Conflict, "address %s of network %s is taken", fixed, po.network.FullName())
	}
	if po.fixed6 == nil {
		po.fixed6 = map[netip.Addr]bool{}
	}
	po.fixed6[a] = true
	return a.String(), nil
}
