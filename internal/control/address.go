package control

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// blockBits returns the prefix length of the blocks that nodes hold of a subnet: 64 addresses, or
// a sixteenth of the subnet where that is less, so that a dozen nodes have one each.
func blockBits(subnet netip.Prefix) int { return min(30, max(26, subnet.Bits()+4)) }

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
	used := map[string]bool{}
	var without []*model.Node
	for _, n := range p.allNodes().list {
		// One that was not heard yet will be in a moment, which changes it.
		if n.OverlayAddress == "" && n.Status.State != model.NodeUnknown {
			without = append(without, n)
		}
		used[n.OverlayAddress] = true
	}
	cl, ok := p.cluster()
	if !ok || len(without) == 0 {
		return
	}
	pool, err := netip.ParsePrefix(cl.NodePool)
	if err != nil {
		p.c.Log.Error("the pool of node addresses cannot be read", "pool", cl.NodePool, "error", err)
		return
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
		p.cs.Expect(model.KindNode, n.ID, n.Revision)
		p.put(c)
	}
}

// addressNetworks gives every network its subnet: the chosen one, if no other overlaps, or the
// next free one of the cluster's pool.
func (p *pass) addressNetworks() {
	var taken []netip.Prefix
	var without []*model.Network
	for n := range store.List[*model.Network](p.snap) {
		if n.Status.Subnet == "" || n.IPv6 && n.Status.Subnet6 == "" {
			without = append(without, n)
		}
		if s, err := netip.ParsePrefix(n.Status.Subnet); err == nil {
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
	if nodes, err := netip.ParsePrefix(cl.NodePool); err == nil {
		taken = append(taken, nodes)
	}
	for _, n := range without {
		status := n.Status
		subnets := func() (err error) {
			if n.IPv6 && status.Subnet6 == "" {
				if status.Subnet6, err = p.subnet6(n, cl); err != nil {
					return err
				}
			}
			if status.Subnet != "" {
				return nil
			}
			least := 28
			if n.Underlay != nil {
				least = 30
			}
			subnet, err := chooseSubnet(n.Subnet, pool, cl.NetworkBits, least, taken)
			if err == nil {
				status.Subnet, taken = subnet.String(), append(taken, subnet)
			}
			return err
		}
		status.Message = ""
		if err := subnets(); err != nil {
			status.Message = err.Error()
		}
		if status.Subnet == n.Status.Subnet && status.Subnet6 == n.Status.Subnet6 && status.Message == n.Status.Message {
			continue
		}
		c := n.Clone()
		c.Status = status
		p.cs.PutStatus(c)
	}
}

func chooseSubnet(wanted string, pool netip.Prefix, bits, least int, taken []netip.Prefix) (netip.Prefix, error) {
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
		if err != nil || !s.Addr().Is4() || s.Bits() > least {
			return s, fault.New(fault.Invalid, "subnet %q: an IPv4 range such as 10.20.0.0/16, of /%d or larger, is accepted", wanted, least)
		}
		s = s.Masked()
		if t, clash := overlaps(s); clash {
			return s, fault.New(fault.Conflict, "subnet %s overlaps with %s, which is in use", s, t)
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
			if n, ok := store.Get[*model.Network](p.snap, id); ok && n.Underlay != nil {
				continue // nothing of ours is between its instances
			}
			var have string
			for _, v := range s.Status.VirtualIPs {
				if v.Network == id {
					have = v.IP
				}
			}
			if s.VirtualIP != "" {
				have = s.VirtualIP
			}
			if have == "" {
				ip, err := p.pool(id).virtual()
				if err != nil {
					status.Message = err.Error()
					continue
				}
				have = ip
			}
			ip6, err := p.pool(id).take6(have, "")
			if err != nil {
				status.Message = err.Error()
			}
			status.VirtualIPs = append(status.VirtualIPs, model.Address{Network: id, IP: have, IP6: ip6})
		}
		if status.Message == s.Status.Message && slices.Equal(status.VirtualIPs, s.Status.VirtualIPs) {
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
	fixed6  map[netip.Addr]bool // given out in this pass
	top     uint32              // no virtual IP above is free
	*blocks                     // made when first asked for
}

// blocks are those of a network, by the node that holds them.
type blocks struct {
	of      map[string][]netip.Prefix
	held    map[uint32]bool // by first address
	orphans []int           // positions of those that a node held which is gone
	next    uint32          // none before is free
}

// parcels are the blocks of the network.
func (po *pool) parcels() *blocks {
	if po.blocks != nil {
		return po.blocks
	}
	po.blocks = &blocks{of: map[string][]netip.Prefix{}, held: map[uint32]bool{}, next: number(po.subnet.Addr())}
	size := uint32(1) << (32 - blockBits(po.subnet))
	for i, b := range po.network.Status.Blocks {
		p, err := netip.ParsePrefix(b.CIDR)
		if err != nil {
			continue
		}
		po.of[b.NodeID] = append(po.of[b.NodeID], p)
		if po.pass.allNodes().byID[b.NodeID] == nil {
			po.orphans = append(po.orphans, i)
		}
		for n := number(p.Addr()) &^ (size - 1); n <= last(p); n += size {
			po.held[n] = true
		}
	}
	return po.blocks
}

func (p *pass) pool(networkID string) *pool {
	if p.pools == nil {
		p.pools = map[string]*pool{}
	}
	if have := p.pools[networkID]; have != nil {
		return have
	}
	po := &pool{pass: p, used: p.addresses(networkID)}
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
	po.subnet, po.top = subnet, last(subnet)-1
	return po
}

// addresses are those of a network that are in use. An instance that has ended uses none: its node
// freed them before it said so, or is gone.
func (p *pass) addresses(networkID string) map[uint32]bool {
	if p.taken == nil {
		p.taken = map[string]map[uint32]bool{}
		note := func(list []model.Address) {
			for _, a := range list {
				ip, err := netip.ParseAddr(a.IP)
				if err != nil || !ip.Is4() {
					continue
				}
				if p.taken[a.Network] == nil {
					p.taken[a.Network] = map[uint32]bool{}
				}
				p.taken[a.Network][number(ip)] = true
			}
		}
		for i := range store.List[*model.Instance](p.snap) {
			if !i.Status.State.Final() {
				note(i.Addresses)
			}
		}
		for s := range store.List[*model.Service](p.snap) {
			note(s.Status.VirtualIPs)
		}
	}
	if p.taken[networkID] == nil {
		p.taken[networkID] = map[uint32]bool{}
	}
	return p.taken[networkID]
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
	for ; po.top >= po.virtualFrom(); po.top-- {
		if !po.used[po.top] {
			po.used[po.top] = true
			return address(po.top).String(), nil
		}
	}
	return "", fault.New(fault.Exhausted, "network %s has no virtual IP left", po.network.FullName())
}

// take returns an address for an instance on a node: the fixed one, or the next of the node's
// blocks, or, when there are no more blocks, any other. Addresses go round, so that one that was
// just given up rests as long as it can.
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
	if po.network.Underlay != nil {
		return po.takeOnHosts()
	}
	cursor := po.network.ID + " " + nodeID
	for _, b := range po.parcels().of[nodeID] {
		if ip, ok := po.fromBlock(b, po.pass.c.cursors[cursor]); ok {
			po.pass.c.cursors[cursor] = ip
			return address(ip).String(), nil
		}
	}
	if b, ok := po.newBlock(nodeID); ok {
		if ip, ok := po.fromBlock(b, 0); ok {
			po.pass.c.cursors[cursor] = ip
			return address(ip).String(), nil
		}
	}
	for n := po.virtualFrom() - 1; n >= po.first(); n-- { // from the end, where blocks are taken last
		if !po.used[n] {
			po.used[n] = true
			return address(n).String(), nil
		}
	}
	return "", fault.New(fault.Exhausted, "network %s has no address left in %s", po.network.FullName(), po.subnet)
}

// takeOnHosts returns a free address of a network of hosts: any node may have any, from the range that is ours.
func (po *pool) takeOnHosts() (string, error) {
	u := po.network.Underlay
	from := po.subnet
	if r, err := netip.ParsePrefix(u.Range); err == nil {
		from = r.Masked()
	}
	others := map[uint32]bool{number(po.subnet.Addr()): true, last(po.subnet): true, number(po.network.WayOut()): true}
	for _, text := range u.Reserved {
		if a, err := netip.ParseAddr(text); err == nil && a.Is4() {
			others[number(a)] = true
		}
	}
	first, size := number(from.Addr()), uint64(last(from)-number(from.Addr()))+1
	after := po.pass.c.cursors[po.network.ID]
	start := uint64(0)
	if after >= first && after < last(from) {
		start = uint64(after-first) + 1
	}
	for k := range size {
		if n := first + uint32((start+k)%size); !po.used[n] && !others[n] {
			po.used[n], po.pass.c.cursors[po.network.ID] = true, n
			return address(n).String(), nil
		}
	}
	return "", fault.New(fault.Exhausted, "network %s has no address left in %s", po.network.FullName(), from)
}

// takeAgain takes an address that an earlier instance had, if it is free and of the node's blocks.
func (po *pool) takeAgain(nodeID, address string) bool {
	ip, err := netip.ParseAddr(address)
	if po.err != nil || err != nil || !ip.Is4() || po.used[number(ip)] {
		return false
	}
	for _, p := range po.parcels().of[nodeID] {
		if p.Contains(ip) {
			po.used[number(ip)] = true
			return true
		}
	}
	return false
}

// first is the first address for instances: the subnet's own and the one that looks like a gateway
// stay free.
func (po *pool) first() uint32 { return number(po.subnet.Addr()) + 2 }

func (po *pool) fromBlock(b netip.Prefix, after uint32) (uint32, bool) {
	first, end := number(b.Addr()), last(b)
	size := end - first + 1
	start := first
	if after >= first && after < end {
		start = after + 1
	}
	for k := range size {
		n := first + (start-first+k)%size
		if n < po.first() || po.used[n] {
			continue
		}
		po.used[n] = true
		return n, true
	}
	return 0, false
}

// newBlock gives a node a free block of the first three quarters of the subnet, or one of a node
// that is gone.
func (po *pool) newBlock(nodeID string) (netip.Prefix, bool) {
	bl := po.parcels()
	for len(bl.orphans) > 0 {
		i := bl.orphans[0]
		bl.orphans = bl.orphans[1:]
		if p := netip.MustParsePrefix(po.network.Status.Blocks[i].CIDR); !po.inUse(p) {
			po.claimed().Status.Blocks[i].NodeID = nodeID
			bl.of[nodeID] = append(bl.of[nodeID], p)
			return p, true
		}
	}
	bits := blockBits(po.subnet)
	size := uint32(1) << (32 - bits)
	for ; bl.next < po.virtualFrom(); bl.next += size {
		if bl.held[bl.next] {
			continue
		}
		p := netip.PrefixFrom(address(bl.next), bits)
		bl.held[bl.next] = true
		n := po.claimed()
		n.Status.Blocks = append(n.Status.Blocks, model.Block{NodeID: nodeID, CIDR: p.String()})
		bl.of[nodeID] = append(bl.of[nodeID], p)
		return p, true
	}
	return netip.Prefix{}, false
}

// claimed is the network as it is when the pass has ended; blocks that nodes get are written once a
// pass, before addresses of them are.
func (po *pool) claimed() *model.Network {
	if n := po.pass.claims[po.network.ID]; n != nil {
		return n
	}
	if po.pass.claims == nil {
		po.pass.claims = map[string]*model.Network{}
	}
	po.network = po.network.Clone()
	po.pass.claims[po.network.ID] = po.network
	return po.network
}

func (po *pool) inUse(p netip.Prefix) bool {
	for n := number(p.Addr()); n <= last(p); n++ {
		if po.used[n] {
			return true
		}
	}
	return false
}
