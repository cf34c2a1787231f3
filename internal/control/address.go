package control

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// blockBits is the prefix length of the blocks that nodes hold of a network: 64 addresses.
const blockBits = 26

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

func last(p netip.Prefix) uint32 { return number(p.Masked().Addr()) | (1<<(32-p.Bits()) - 1) }

func (p *pass) cluster() (*model.Cluster, bool) {
	return store.Get[*model.Cluster](p.snap, model.ClusterID)
}

// addressNodes gives every node its own address in the overlay.
func (p *pass) addressNodes() {
	cl, ok := p.cluster()
	if !ok {
		return
	}
	pool, err := netip.ParsePrefix(cl.NodePool)
	if err != nil {
		p.c.Log.Error("the pool of node addresses cannot be read", "pool", cl.NodePool, "error", err)
		return
	}
	used := map[string]bool{}
	var without []*model.Node
	for n := range store.List[*model.Node](p.snap) {
		if n.OverlayAddress == "" {
			without = append(without, n)
		}
		used[n.OverlayAddress] = true
	}
	next := number(pool.Masked().Addr())
	for _, n := range without {
		for next++; next < last(pool) && used[address(next).String()]; next++ {
		}
		if next >= last(pool) {
			p.c.Log.Error("no node address is left", "pool", cl.NodePool)
			return
		}
		c := n.Clone()
		c.OverlayAddress = address(next).String()
		p.put(c)
	}
}

// addressNetworks gives every network its subnet: the chosen one, if no other overlaps, or the
// next free one of the cluster's pool.
func (p *pass) addressNetworks() {
	var taken []netip.Prefix
	var without []*model.Network
	for n := range store.List[*model.Network](p.snap) {
		if n.Status.Subnet == "" {
			without = append(without, n)
		} else if s, err := netip.ParsePrefix(n.Status.Subnet); err == nil {
			taken = append(taken, s)
		}
	}
	cl, ok := p.cluster()
	if !ok || len(without) == 0 {
		return
	}
	pool, err := netip.ParsePrefix(cl.AddressPool)
	if err != nil {
		p.c.Log.Error("the pool of network addresses cannot be read", "pool", cl.AddressPool, "error", err)
		return
	}
	for _, n := range without {
		status := n.Status
		subnet, err := chooseSubnet(n.Subnet, pool, cl.NetworkBits, taken)
		if err != nil {
			status.Message = err.Error()
		} else {
			status.Subnet, status.Message = subnet.String(), ""
			taken = append(taken, subnet)
		}
		if status.Subnet == n.Status.Subnet && status.Message == n.Status.Message {
			continue
		}
		c := n.Clone()
		c.Status = status
		p.cs.PutStatus(c)
	}
}

func chooseSubnet(wanted string, pool netip.Prefix, bits int, taken []netip.Prefix) (netip.Prefix, error) {
	overlaps := func(s netip.Prefix) (netip.Prefix, bool) {
		for _, t := range taken {
			if t.Overlaps(s) {
				return t, true
			}
		}
		return netip.Prefix{}, false
	}
	if wanted != "" {
		s, err := netip.ParsePrefix(wanted)
		if err != nil || !s.Addr().Is4() || s.Bits() > 28 {
			return s, fault.New(fault.Invalid, "subnet %q: an IPv4 range such as 10.20.0.0/16, of /28 or larger, is accepted", wanted)
		}
		s = s.Masked()
		if t, clash := overlaps(s); clash {
			return s, fault.New(fault.Conflict, "subnet %s overlaps with %s of another network", s, t)
		}
		return s, nil
	}
	for n := uint64(number(pool.Masked().Addr())); n <= uint64(last(pool)); n += 1 << (32 - bits) {
		s := netip.PrefixFrom(address(uint32(n)), bits)
		if _, clash := overlaps(s); !clash {
			return s, nil
		}
	}
	return netip.Prefix{}, fault.New(fault.Exhausted, "the pool %s has no free subnet of /%d left", pool, bits)
}

// addressServices gives every service a virtual IP on each of its networks, from the last quarter
// of the subnet.
func (p *pass) addressServices() {
	for s := range store.List[*model.Service](p.snap) {
		status := model.ServiceStatus{}
		for _, id := range s.Networks {
			var have string
			for _, v := range s.Status.VirtualIPs {
				if v.Network == id {
					have = v.IP
				}
			}
			if have == "" {
				ip, err := p.pool(id).virtual()
				if err != nil {
					status.Message = err.Error()
					continue
				}
				have = ip
			}
			status.VirtualIPs = append(status.VirtualIPs, model.Address{Network: id, IP: have})
		}
		if fmt.Sprint(status) == fmt.Sprint(s.Status) {
			continue
		}
		c := s.Clone()
		c.Status = status
		p.cs.PutStatus(c)
	}
}

// pool hands out addresses of one network within a pass.
type pool struct {
	pass    *pass
	network *model.Network
	subnet  netip.Prefix
	err     error
	used    map[uint32]bool
	blocks  []model.Block
}

func (p *pass) pool(networkID string) *pool {
	if p.pools == nil {
		p.pools = map[string]*pool{}
	}
	if have := p.pools[networkID]; have != nil {
		return have
	}
	po := &pool{pass: p, used: map[uint32]bool{}}
	p.pools[networkID] = po
	n, ok := store.Get[*model.Network](p.snap, networkID)
	if !ok {
		po.err = fault.New(fault.NotFound, "network %s does not exist", networkID)
		return po
	}
	po.network = n
	subnet, err := netip.ParsePrefix(n.Status.Subnet)
	if err != nil {
		po.err = fault.New(fault.Unavailable, "network %s has no subnet yet", n.FullName())
		if n.Status.Message != "" {
			po.err = fault.New(fault.Unavailable, "network %s has no subnet: %s", n.FullName(), n.Status.Message)
		}
		return po
	}
	po.subnet, po.blocks = subnet, n.Status.Blocks
	note := func(list []model.Address) {
		for _, a := range list {
			if ip, err := netip.ParseAddr(a.IP); err == nil && a.Network == networkID {
				po.used[number(ip)] = true
			}
		}
	}
	for i := range store.List[*model.Instance](p.snap) {
		if !i.Status.State.Final() || i.Desired == model.DesiredRun && i.Status.State != model.InstanceLost {
			note(i.Addresses)
		}
	}
	for s := range store.List[*model.Service](p.snap) {
		note(s.Status.VirtualIPs)
	}
	return po
}

// virtualFrom is where the virtual IPs of a subnet begin: its last quarter.
func (po *pool) virtualFrom() uint32 {
	first := number(po.subnet.Addr())
	return first + (last(po.subnet)-first+1)/4*3
}

func (po *pool) virtual() (string, error) {
	if po.err != nil {
		return "", po.err
	}
	for n := last(po.subnet) - 1; n >= po.virtualFrom(); n-- {
		if !po.used[n] {
			po.used[n] = true
			return address(n).String(), nil
		}
	}
	return "", fault.New(fault.Exhausted, "network %s has no virtual IP left", po.network.FullName())
}

// take returns an address for an instance on a node: the fixed one, or the next of the node's
// blocks. Addresses go round, so that one that was just given up rests as long as it can.
func (po *pool) take(nodeID, fixed string) (string, error) {
	if po.err != nil {
		return "", po.err
	}
	if fixed != "" {
		ip, err := netip.ParseAddr(fixed)
		if err != nil || !po.subnet.Contains(ip) {
			return "", fault.New(fault.Invalid, "address %q is not in %s, the subnet of network %s", fixed, po.subnet, po.network.FullName())
		}
		if po.used[number(ip)] {
			return "", fault.New(fault.Conflict, "address %s of network %s is taken", fixed, po.network.FullName())
		}
		po.used[number(ip)] = true
		return fixed, nil
	}
	cursor := po.network.ID + " " + nodeID
	for _, b := range po.blocks {
		if b.NodeID != nodeID {
			continue
		}
		if ip, ok := po.fromBlock(b, po.pass.c.cursors[cursor]); ok {
			po.pass.c.cursors[cursor] = ip
			return address(ip).String(), nil
		}
	}
	b, err := po.newBlock(nodeID)
	if err != nil {
		return "", err
	}
	ip, ok := po.fromBlock(b, 0)
	if !ok {
		return "", fault.New(fault.Exhausted, "network %s has no address left", po.network.FullName())
	}
	po.pass.c.cursors[cursor] = ip
	return address(ip).String(), nil
}

func (po *pool) fromBlock(b model.Block, after uint32) (uint32, bool) {
	p, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return 0, false
	}
	first, end := number(p.Addr()), last(p)
	size := end - first + 1
	start := first
	if after >= first && after < end {
		start = after + 1
	}
	for k := range size {
		n := first + (start-first+k)%size
		// The subnet's own address and the one that looks like a gateway stay free.
		if n < number(po.subnet.Addr())+2 || n == last(po.subnet) || po.used[n] {
			continue
		}
		po.used[n] = true
		return n, true
	}
	return 0, false
}

// newBlock takes a free block of the first three quarters of the subnet for a node.
func (po *pool) newBlock(nodeID string) (model.Block, error) {
	bits := max(blockBits, po.subnet.Bits()+2)
	taken := map[string]bool{}
	for _, b := range po.blocks {
		taken[b.CIDR] = true
	}
	for n := number(po.subnet.Addr()); n < po.virtualFrom(); n += 1 << (32 - bits) {
		cidr := netip.PrefixFrom(address(n), bits).String()
		if taken[cidr] {
			continue
		}
		b := model.Block{NodeID: nodeID, CIDR: cidr}
		c := po.network.Clone()
		c.Status.Blocks = append(c.Status.Blocks, b)
		po.network, po.blocks = c, c.Status.Blocks
		po.pass.cs.PutStatus(c)
		return b, nil
	}
	return model.Block{}, fault.New(fault.Exhausted, "network %s has no block of addresses left for another node", po.network.FullName())
}
