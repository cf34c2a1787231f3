package balance

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	// markPublished is set on the first packet of a connection to a published port, from
	// outside or from the node itself: others must answer to this node, not to the client.
	markPublished = 0x7475
	linkPrefix    = "tv"       // instance links, see package overlay
	tunnel        = "tutti.vx" // likewise
)

// The registers that expressions use: two of 16 bytes, or 4-byte ones for concatenated keys.
const (
	reg1   = 1
	reg2   = 2
	word0  = unix.NFT_REG32_00
	word1  = unix.NFT_REG32_01
	srcAt  = 12 // offsets in the IPv4 header
	dstAt  = 16
	dportA = 2 // offset in the transport header
)

// table builds the whole table in one transaction.
type table struct {
	conn  *nftables.Conn
	t     *nftables.Table
	names int
}

func deleteTable() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.DelTable(&nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4})
	return c.Flush()
}

// replaceTable exchanges the table for a new one, atomically.
func replaceTable(d *Desired) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4}
	c.AddTable(t) // so that deleting works also the first time
	c.DelTable(t)
	b := &table{conn: c, t: c.AddTable(t)}
	if err := b.build(d); err != nil {
		return err
	}
	return c.Flush()
}

func (b *table) build(d *Desired) error {
	accept := nftables.ChainPolicyAccept
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return b.conn.AddChain(&nftables.Chain{Name: name, Table: b.t, Type: kind, Hooknum: hook, Priority: prio, Policy: &accept})
	}
	pre := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	post := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	forward := base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)

	vips, err := b.virtualIPs(d)
	if err != nil {
		return err
	}
	ports, err := b.publishedPorts(d)
	if err != nil {
		return err
	}
	for _, chain := range []*nftables.Chain{pre, out} {
		b.rule(chain, load(dstAt, 4, reg1), &expr.Lookup{SourceRegister: reg1, SetName: vips.Name, SetID: vips.ID, IsDestRegSet: true, DestRegister: 0})
		b.rule(chain,
			&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
			equal(reg1, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: word0},
			&expr.Payload{DestRegister: word1, Base: expr.PayloadBaseTransportHeader, Offset: dportA, Len: 2},
			&expr.Lookup{SourceRegister: word0, SetName: ports.Name, SetID: ports.ID, IsDestRegSet: true, DestRegister: 0},
		)
	}
	if err := b.nowhere(d); err != nil {
		return err
	}
	inNetworks, err := b.prefixes("networks", d.Networks)
	if err != nil {
		return err
	}
	if err := b.sources(post, d, inNetworks); err != nil {
		return err
	}
	return b.isolation(forward, d, inNetworks)
}

func (b *table) rule(c *nftables.Chain, exprs ...expr.Any) {
	b.conn.AddRule(&nftables.Rule{Table: b.t, Chain: c, Exprs: exprs})
}

func load(offset, length uint32, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func equal(register uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

func different(register uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: data}
}

func verdict(k expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: k} }

// ifname pads a whole interface name; without it, a name compares as a prefix.
func ifname(s string) []byte { b := make([]byte, 16); copy(b, s); return b }

func be16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func (b *table) name(kind string) string {
	b.names++
	return fmt.Sprintf("%s-%d", kind, b.names)
}

// lead adds a rule that sends a connection to one of the endpoints, each as likely, at port if it
// is not zero.
func (b *table) lead(c *nftables.Chain, endpoints []netip.Addr, port uint16, first ...expr.Any) error {
	exprs := first
	if len(endpoints) == 1 {
		exprs = append(exprs, &expr.Immediate{Register: reg1, Data: endpoints[0].AsSlice()})
	} else {
		m := &nftables.Set{Table: b.t, Name: b.name("endpoints"), IsMap: true, KeyType: nftables.TypeInteger, DataType: nftables.TypeIPAddr}
		m.KeyType.Bytes = 4
		var elements []nftables.SetElement
		for i, e := range endpoints {
			elements = append(elements, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: e.AsSlice()})
		}
		if err := b.conn.AddSet(m, elements); err != nil {
			return fmt.Errorf("add endpoints: %w", err)
		}
		exprs = append(exprs,
			&expr.Numgen{Register: reg1, Modulus: uint32(len(endpoints)), Type: unix.NFT_NG_RANDOM},
			&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		)
	}
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1}
	if port != 0 {
		exprs = append(exprs, &expr.Immediate{Register: reg2, Data: be16(port)})
		nat.RegProtoMin = reg2
	}
	b.rule(c, append(exprs, nat)...)
	return nil
}

// prefixes adds a set of prefixes of which none overlaps with another, and returns how to match an
// address of the header that lies in one of them.
func (b *table) prefixes(name string, list []netip.Prefix) (match func(offset uint32) []expr.Any, err error) {
	set := &nftables.Set{Table: b.t, Name: name, Interval: true, KeyType: nftables.TypeIPAddr}
	var elements []nftables.SetElement
	for _, p := range list {
		elements = append(elements, nftables.SetElement{Key: p.Masked().Addr().AsSlice()})
		end := binary.BigEndian.Uint32(lastOf(p)) + 1
		if end != 0 { // the last address of all has none after it
			elements = append(elements, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, end), IntervalEnd: true})
		}
	}
	if err := b.conn.AddSet(set, elements); err != nil {
		return nil, fmt.Errorf("add %s: %w", name, err)
	}
	return func(offset uint32) []expr.Any {
		return []expr.Any{load(offset, 4, reg1), &expr.Lookup{SourceRegister: reg1, SetName: set.Name, SetID: set.ID}}
	}, nil
}

// nowhere tells who asks a virtual IP without endpoints so, at once. It comes after the translation
// of addresses: connections that were made before go on to where they were led.
func (b *table) nowhere(d *Desired) error {
	set := &nftables.Set{Table: b.t, Name: "nowhere", KeyType: nftables.TypeIPAddr}
	var elements []nftables.SetElement
	for _, v := range d.Virtual {
		if len(v.Endpoints) == 0 {
			elements = append(elements, nftables.SetElement{Key: v.IP.AsSlice()})
		}
	}
	if err := b.conn.AddSet(set, elements); err != nil {
		return fmt.Errorf("add virtual IPs without endpoints: %w", err)
	}
	translated := nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest + 50)
	accept := nftables.ChainPolicyAccept
	for name, hook := range map[string]*nftables.ChainHook{"nowhere-in": nftables.ChainHookPrerouting, "nowhere-out": nftables.ChainHookOutput} {
		chain := b.conn.AddChain(&nftables.Chain{Name: name, Table: b.t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: translated, Policy: &accept})
		match := []expr.Any{load(dstAt, 4, reg1), &expr.Lookup{SourceRegister: reg1, SetName: set.Name, SetID: set.ID}}
		tcp := append(slices.Clone(match), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, equal(reg1, []byte{unix.IPPROTO_TCP}))
		b.rule(chain, append(tcp, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})...)
		b.rule(chain, append(match, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3})...) // port unreachable
	}
	return nil
}

// virtualIPs returns the map from virtual IP to the chain of its endpoints.
func (b *table) virtualIPs(d *Desired) (*nftables.Set, error) {
	m := &nftables.Set{Table: b.t, Name: "virtual-ips", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict}
	var elements []nftables.SetElement
	for _, v := range d.Virtual {
		if len(v.Endpoints) == 0 {
			continue
		}
		chain := b.conn.AddChain(&nftables.Chain{Name: b.name("service"), Table: b.t})
		if err := b.lead(chain, v.Endpoints, 0); err != nil {
			return nil, err
		}
		elements = append(elements, nftables.SetElement{Key: v.IP.AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain.Name}})
	}
	if err := b.conn.AddSet(m, elements); err != nil {
		return nil, fmt.Errorf("add virtual IPs: %w", err)
	}
	return m, nil
}

func (b *table) publishedPorts(d *Desired) (*nftables.Set, error) {
	m := &nftables.Set{
		Table: b.t, Name: "published-ports", IsMap: true, Concatenation: true, DataType: nftables.TypeVerdict,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
	}
	var elements []nftables.SetElement
	var chain *nftables.Chain // of the port, which may lead elsewhere on each address of the node
	var last [8]byte
	for _, p := range d.Published {
		if len(p.Endpoints) == 0 {
			continue
		}
		key := [8]byte{p.Protocol}
		binary.BigEndian.PutUint16(key[4:], p.Port)
		if chain == nil || key != last {
			chain, last = b.conn.AddChain(&nftables.Chain{Name: b.name("port"), Table: b.t}), key
			elements = append(elements, nftables.SetElement{Key: key[:], VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain.Name}})
		}
		var first []expr.Any
		if p.HostIP.IsValid() {
			first = append(first, load(dstAt, 4, reg1), equal(reg1, p.HostIP.AsSlice()))
		}
		first = append(first,
			&expr.Immediate{Register: reg1, Data: binaryutil.NativeEndian.PutUint32(markPublished)},
			&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1, SourceRegister: true},
		)
		if err := b.lead(chain, p.Endpoints, p.Target, first...); err != nil {
			return nil, err
		}
	}
	if err := b.conn.AddSet(m, elements); err != nil {
		return nil, fmt.Errorf("add published ports: %w", err)
	}
	return m, nil
}

// sources rewrites where packets come from, where the answer would go astray otherwise.
func (b *table) sources(post *nftables.Chain, d *Desired, inNetworks func(uint32) []expr.Any) error {
	speakFor := []expr.Any{
		&expr.Immediate{Register: reg1, Data: d.Own.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1},
	}
	rule := func(match ...expr.Any) { b.rule(post, append(match, speakFor...)...) }
	// An instance that was led to itself.
	hairpin := &nftables.Set{Table: b.t, Name: "self", Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)}
	var elements []nftables.SetElement
	for _, a := range d.Local {
		elements = append(elements, nftables.SetElement{Key: append(a.AsSlice(), a.AsSlice()...)})
	}
	if err := b.conn.AddSet(hairpin, elements); err != nil {
		return fmt.Errorf("add own addresses: %w", err)
	}
	rule(load(srcAt, 8, reg1), &expr.Lookup{SourceRegister: reg1, SetName: hairpin.Name, SetID: hairpin.ID})
	// A published port whose instance is elsewhere: the answer must come back through this node.
	rule(
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1}, equal(reg1, binaryutil.NativeEndian.PutUint32(markPublished)),
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1}, equal(reg1, ifname(tunnel)),
	)
	// The node itself, from its loopback.
	rule(
		load(srcAt, 1, reg1), equal(reg1, []byte{127}),
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1}, equal(reg1, []byte(linkPrefix)),
	)
	// Out of the cluster.
	var outbound []expr.Any
	outbound = append(outbound, inNetworks(srcAt)...)
	outbound = append(outbound,
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1}, different(reg1, []byte(linkPrefix)),
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1}, different(reg1, ifname(tunnel)),
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1}, different(reg1, ifname("lo")),
		&expr.Masq{},
	)
	b.rule(post, outbound...)
	return nil
}

// within matches an address of the header that lies in a prefix.
func within(offset uint32, p netip.Prefix) []expr.Any {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-p.Bits()))
	return []expr.Any{
		load(offset, 4, reg1),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		equal(reg1, p.Masked().Addr().AsSlice()),
	}
}

func lastOf(p netip.Prefix) []byte {
	b := p.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) | uint32(1<<(32-p.Bits())-1)
	return binary.BigEndian.AppendUint32(nil, n)
}

// isolation decides what instances may send to, and receive from, other nodes' or this node's
// instances and the outside.
func (b *table) isolation(forward *nftables.Chain, d *Desired, inNetworks func(uint32) []expr.Any) error {
	pairs := &nftables.Set{Table: b.t, Name: "same-network", Interval: true, Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)}
	var elements []nftables.SetElement
	for _, s := range d.Subnets {
		from, to := s.Masked().Addr().AsSlice(), lastOf(s)
		elements = append(elements, nftables.SetElement{Key: append(from, from...), KeyEnd: append(to, to...)})
	}
	if err := b.conn.AddSet(pairs, elements); err != nil {
		return fmt.Errorf("add networks: %w", err)
	}
	instances := b.conn.AddChain(&nftables.Chain{Name: "instances", Table: b.t})
	b.rule(forward,
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: make([]byte, 4)},
		different(reg1, make([]byte, 4)), verdict(expr.VerdictAccept))
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		for _, name := range [][]byte{[]byte(linkPrefix), ifname(tunnel)} {
			b.rule(forward, &expr.Meta{Key: key, Register: reg1}, equal(reg1, name), &expr.Verdict{Kind: expr.VerdictGoto, Chain: instances.Name})
		}
	}
	// Who comes in by a published port was let in by whoever published it.
	b.rule(instances, &expr.Meta{Key: expr.MetaKeyMARK, Register: reg1}, equal(reg1, binaryutil.NativeEndian.PutUint32(markPublished)), verdict(expr.VerdictAccept))
	// Other nodes speak for such clients, and for themselves.
	fromNodes := append([]expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}, equal(reg1, ifname(tunnel))}, within(srcAt, d.NodePool)...)
	b.rule(instances, append(fromNodes, verdict(expr.VerdictAccept))...)
	// Between instances: within a network.
	for _, name := range [][]byte{[]byte(linkPrefix), ifname(tunnel)} {
		b.rule(instances, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1}, equal(reg1, name),
			load(srcAt, 8, reg1), &expr.Lookup{SourceRegister: reg1, SetName: pairs.Name, SetID: pairs.ID}, verdict(expr.VerdictAccept))
	}
	refuse := &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 13} // communication administratively prohibited
	b.rule(instances, append(inNetworks(dstAt), refuse)...)
	internal, err := b.prefixes("internal", merge(d.Internal))
	if err != nil {
		return err
	}
	b.rule(instances, append(internal(srcAt), refuse)...)
	// Into instances from outside, other than by a published port: no.
	for _, name := range [][]byte{[]byte(linkPrefix), ifname(tunnel)} {
		b.rule(instances, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1}, equal(reg1, name), refuse)
	}
	return nil
}
