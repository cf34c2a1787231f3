package balance

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// markPublished is set on the first packet of a connection to a published port, from
	// outside or from the node itself: others must answer to this node, not to the client.
	markPublished = 0x7475
	linkPrefix    = "tv"       // instance links, see package overlay
	tunnel        = "tutti.vx" // likewise
	tunnels       = "tutti."   // begins its name, and that of the one for encrypted networks
)

// The registers that expressions use: one of 16 bytes, or those of 4 bytes, from which keys and
// values of several parts are made.
const (
	reg1   = 1
	word0  = unix.NFT_REG32_00
	dportA = 2 // offset in the transport header

	opDelete = 2 // NFT_DYNSET_OP_DELETE
)

// table writes the table of one version of IP.
type table struct {
	*family
	conn *nftables.Conn
	t    *nftables.Table
	all  map[string]*nftables.Set
}

// connect opens a connection whose buffers hold a whole transaction: the kernel takes it at once, or not
// at all.
func connect() (*nftables.Conn, error) {
	const room = 256 << 20
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(room), c.SetReadBuffer(room))
	}))
}

func newTable(f *family) (*table, error) {
	c, err := connect()
	if err != nil {
		return nil, err
	}
	return &table{family: f, conn: c, t: &nftables.Table{Name: TableName, Family: f.nft}}, nil
}

// deleteTables takes the tables away; one that is not there is no error.
func deleteTables(f *family) error {
	b, err := newTable(f)
	if err != nil {
		return err
	}
	for _, name := range []string{TableName, countsName} {
		t := &nftables.Table{Name: name, Family: f.nft}
		b.conn.AddTable(t) // so that deleting works also where there is none
		b.conn.DelTable(t)
	}
	return b.conn.Flush()
}

// intact reports whether the table is there with as many chains and sets as we made, or more, and whether that of
// counts is there. What is in them nobody else has a reason to change.
func intact(f *family) (leads, counts bool) {
	b, err := newTable(f)
	if err != nil {
		return true, true // there is nobody to ask
	}
	list, err := b.conn.ListTablesOfFamily(f.nft)
	if err != nil {
		return true, true
	}
	for _, t := range list {
		leads = leads || t.Name == TableName && int(t.Use) > len(b.sets())
		counts = counts || t.Name == countsName
	}
	return leads, counts
}

// replaceTable exchanges the table for a new one, atomically.
func replaceTable(f *family, d *Desired) error {
	b, err := newTable(f)
	if err != nil {
		return err
	}
	b.conn.AddTable(b.t)
	b.conn.DelTable(b.t)
	b.conn.AddTable(b.t)
	if err := b.build(d); err != nil {
		return err
	}
	all, _ := compare(&Desired{}, d, nil)
	if err := b.change(all); err != nil {
		return err
	}
	return b.conn.Flush()
}

// changeTable changes what is to be changed, in one transaction.
func changeTable(f *family, d *delta) error {
	if len(d.gone)+len(d.come)+len(d.born)+len(d.dead) == 0 {
		return nil
	}
	b, err := newTable(f)
	if err != nil {
		return err
	}
	if err := b.change(d); err != nil {
		return err
	}
	return b.conn.Flush()
}

// change adds and deletes elements, and the chains that they name.
func (b *table) change(d *delta) error {
	gone, come := d.gone, d.come
	for _, l := range d.born {
		b.lead(&l)
		come = append(come, l.coded())
	}
	for _, l := range d.dead {
		gone = append(gone, l.coded())
	}
	if err := b.send(gone, b.conn.SetDeleteElements); err != nil {
		return err
	}
	if err := b.send(come, b.conn.SetAddElements); err != nil {
		return err
	}
	for _, l := range d.dead {
		c := &nftables.Chain{Name: l.name(), Table: b.t}
		b.conn.FlushChain(c)
		b.conn.DelChain(c)
	}
	return nil
}

// compare says what turns a state into another, and which chains are idle then. Endpoints that stay are left in
// their places.
func compare(old, now *Desired, idle []leading) (d *delta, idleThen []leading) {
	d = &delta{stricter: !now.Policies.empty() && !old.Policies.sameRules(&now.Policies)}
	l := &ledger{led: map[FrontendKey]Frontend{}, chains: map[leading]int{}, idle: idle}
	for _, f := range old.Frontends {
		l.led[f.FrontendKey] = f
		l.chains[f.leads()]++
	}
	stay := map[FrontendKey]bool{}
	for i := range now.Frontends {
		f := &now.Frontends[i]
		stay[f.FrontendKey] = true
		l.put(f.FrontendKey, f, d)
		*f = l.led[f.FrontendKey]
	}
	for i := range old.Frontends {
		if k := old.Frontends[i].FrontendKey; !stay[k] {
			l.put(k, nil, d)
		}
	}
	l.tidy(d)
	gone, come := differ(old.elements(), now.elements())
	d.gone, d.come = append(d.gone, gone...), append(d.come, come...)
	return d, l.idle
}

// differ leaves of two lists what is not in both, in their order, which matters for ranges.
func differ(old, now []element) (gone, come []element) {
	both := make(map[element]bool, len(old)) // false: in the old one so far
	for _, e := range old {
		both[e] = false
	}
	come = slices.DeleteFunc(now, func(e element) bool {
		_, was := both[e]
		if was {
			both[e] = true
		}
		return was
	})
	return slices.DeleteFunc(old, func(e element) bool { return both[e] }), come
}

// send sends elements, so many of a set in a message as surely fit.
func (b *table) send(elements []element, do func(*nftables.Set, []nftables.SetElement) error) error {
	const most = 400
	bySet := map[string][]nftables.SetElement{}
	flush := func(set string) error {
		list := bySet[set]
		bySet[set] = nil
		if len(list) == 0 {
			return nil
		}
		if err := do(b.sets()[set], list); err != nil {
			return fmt.Errorf("change %s: %w", set, err)
		}
		return nil
	}
	for _, e := range elements {
		bySet[e.set] = append(bySet[e.set], e.netlink()...)
		if len(bySet[e.set]) >= most {
			if err := flush(e.set); err != nil {
				return err
			}
		}
	}
	for set := range bySet {
		if err := flush(set); err != nil {
			return err
		}
	}
	return nil
}

// sets are all sets and maps of the table, by name.
func (b *table) sets() map[string]*nftables.Set {
	if b.all != nil {
		return b.all
	}
	b.all = map[string]*nftables.Set{}
	number := nftables.TypeInteger // of four bytes
	concat := nftables.MustConcatSetType
	add := func(name string, key nftables.SetDatatype, data *nftables.SetDatatype) *nftables.Set {
		s := &nftables.Set{Table: b.t, Name: name, KeyType: key}
		if s.Concatenation = len(nftables.ConcatSetTypeElements(key)) > 1; data != nil {
			s.IsMap, s.DataType = true, *data
		}
		b.all[name] = s
		return s
	}
	toChain, toAddress := nftables.TypeVerdict, b.addr
	code, toPort := concat(number, number), concat(b.addr, nftables.TypeInetService)
	service := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	at := append([]nftables.SetDatatype{b.addr}, service...)
	add(chainsByCode, code, &toChain)
	add(virtualIPs, b.addr, &code)
	add(virtualTargets, concat(b.addr, number), &toAddress)
	add(portsAt, concat(at...), &code)
	add(portsAtTargets, concat(append(at, number)...), &toPort)
	add(publishedPorts, concat(service...), &code)
	add(publishedTarget, concat(append(service, number)...), &toPort)
	clients := add(stickyClients, concat(b.addr, number), &toAddress)
	clients.Dynamic, clients.HasTimeout, clients.Size = true, true, 1<<20
	add(stickyTargets, concat(number, number), &toAddress)
	add(stickyMembers, concat(number, b.addr), nil)
	add(nowhere, b.addr, nil)
	add(networksSet, b.addr, nil).Interval = true
	add(internalSet, b.addr, nil).Interval = true
	add(encryptedSet, b.addr, nil).Interval = true
	add(pairsSet, concat(b.addr, b.addr), nil).Interval = true
	add(selfSet, concat(b.addr, b.addr), nil)
	for _, name := range []string{policyFrom, policyTo, policyClass, policyRanges} {
		add(name, b.addr, &number).Interval = name == policyRanges
	}
	for _, name := range []string{policyOut, policyIn} {
		add(name, concat(append([]nftables.SetDatatype{number, number}, service...)...), &toChain).Interval = true
	}
	for _, name := range []string{policyFromOnly, policyToOnly} {
		add(name, number, nil)
	}
	return b.all
}

// build makes the rules, and the sets with nothing in them.
func (b *table) build(d *Desired) error {
	for _, s := range b.sets() {
		if err := b.conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("add %s: %w", s.Name, err)
		}
	}
	accept := nftables.ChainPolicyAccept
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return b.conn.AddChain(&nftables.Chain{Name: name, Table: b.t, Type: kind, Hooknum: hook, Priority: prio, Policy: &accept})
	}
	pre := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	post := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	forward := base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	// After the translation of addresses: connections that were made before go on to where they were led.
	translated := nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest + 50)
	arriving := base("new-in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, translated)
	leaving := base("new-out", nftables.ChainTypeFilter, nftables.ChainHookOutput, translated)

	for _, chain := range []*nftables.Chain{pre, out} {
		b.entrances(chain)
	}
	b.begun(arriving)
	b.ownAddress(arriving)
	for _, chain := range []*nftables.Chain{arriving, leaving} {
		b.nowhere(chain)
	}
	b.sources(post, d)
	b.policies()
	b.isolation(forward, d)
	b.policiesOfNode(base("arrived", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter))
	return nil
}

func (b *table) rule(c *nftables.Chain, exprs ...expr.Any) {
	b.conn.AddRule(&nftables.Rule{Table: b.t, Chain: c, Exprs: exprs})
}

func load(offset, length uint32, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func meta(key expr.MetaKey, register uint32) expr.Any {
	return &expr.Meta{Key: key, Register: register}
}

func equal(register uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

func different(register uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: data}
}

func immediate(register uint32, data []byte) expr.Any {
	return &expr.Immediate{Register: register, Data: data}
}

func verdict(k expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: k} }

// in matches what a set has; find puts what a map has into a register.
func in(set string, key uint32) expr.Any { return &expr.Lookup{SourceRegister: key, SetName: set} }

func find(set string, key, to uint32) expr.Any {
	return &expr.Lookup{SourceRegister: key, SetName: set, IsDestRegSet: true, DestRegister: to}
}

// ifname pads a whole interface name; without it, a name compares as a prefix.
func ifname(s string) []byte { b := make([]byte, 16); copy(b, s); return b }

func native(n uint32) []byte { return binaryutil.NativeEndian.PutUint32(n) }

// service loads protocol and port of the other end, as keys have them.
func service(register uint32) []expr.Any {
	return []expr.Any{
		meta(expr.MetaKeyL4PROTO, register),
		&expr.Payload{DestRegister: register + 1, Base: expr.PayloadBaseTransportHeader, Offset: dportA, Len: 2},
	}
}

// here matches what goes to an address of this node.
func here() []expr.Any {
	return []expr.Any{&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true}, equal(reg1, native(unix.RTN_LOCAL))}
}

// entrances sends new connections to virtual IPs and published ports to the chain that leads them on.
// Ports at a single address are more particular than others, and come first.
func (b *table) entrances(chain *nftables.Chain) {
	const code = word0 + 8
	rule := func(from string, exprs ...[]expr.Any) {
		b.rule(chain, append(slices.Concat(exprs...), find(from, word0, code), find(chainsByCode, code, 0))...)
	}
	dst := []expr.Any{load(b.dst, b.size, word0)}
	rule(portsAt, dst, service(word0+b.words()))
	rule(virtualIPs, dst)
	rule(publishedPorts, here(), service(word0))
}

// lead adds a chain that sends connections to one of the endpoints that a map has under what was
// spoken to, each as likely.
func (b *table) lead(l *leading) {
	c := b.conn.AddChain(&nftables.Chain{Name: l.name(), Table: b.t})
	var first []expr.Any
	if l.node {
		first = append(first, immediate(reg1, native(markPublished)), &expr.Meta{Key: expr.MetaKeyMARK, Register: reg1, SourceRegister: true})
	}
	draw := func(register uint32) expr.Any {
		return &expr.Numgen{Register: register, Modulus: l.count, Type: unix.NFT_NG_RANDOM}
	}
	n := b.words()
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(b.nft), RegAddrMin: word0 + 8}
	switch l.kind {
	case virtualTargets:
		b.rule(c, append(first, load(b.dst, b.size, word0), draw(word0+n), find(l.kind, word0, nat.RegAddrMin), nat)...)
	case portsAtTargets:
		nat.RegProtoMin = nat.RegAddrMin + n
		first = append(append(first, load(b.dst, b.size, word0)), service(word0+n)...)
		b.rule(c, append(first, draw(word0+n+2), find(l.kind, word0, nat.RegAddrMin), nat)...)
	case publishedTarget:
		nat.RegProtoMin = nat.RegAddrMin + n
		first = append(first, service(word0)...)
		b.rule(c, append(first, draw(word0+2), find(l.kind, word0, nat.RegAddrMin), nat)...)
	case stickyTargets:
		b.leadSticky(c, l, first, draw, nat)
	}
}

// leadSticky leads a client where it was led before, if that is an endpoint still.
func (b *table) leadSticky(c *nftables.Chain, l *leading, first []expr.Any, draw func(uint32) expr.Any, nat *expr.NAT) {
	n := b.words()
	// The client and the number of the frontend; then that number again, and the endpoint.
	client, number := uint32(word0), word0+n
	again, endpoint := number+1, number+2
	nat.RegAddrMin = endpoint
	var to []expr.Any
	if l.target != 0 {
		nat.RegProtoMin = endpoint + n
		to = append(to, immediate(nat.RegProtoMin, []byte(port(l.target)[:2])))
	}
	to = append(to, nat)
	first = append(first, load(b.src, b.size, client), immediate(number, native(l.number)))
	remember := &expr.Dynset{SrcRegKey: client, SrcRegData: endpoint, SetName: stickyClients, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: l.sticky}
	forget := &expr.Dynset{SrcRegKey: client, SrcRegData: endpoint, SetName: stickyClients, Operation: opDelete}
	known := []expr.Any{find(stickyClients, client, endpoint), immediate(again, native(l.number)), in(stickyMembers, again), remember}
	b.rule(c, slices.Concat(first, known, to)...)
	chosen := []expr.Any{draw(again), find(l.kind, number, endpoint), forget, remember}
	b.rule(c, slices.Concat(first, chosen, to)...)
}

// begun lets go on what has begun.
func (b *table) begun(chain *nftables.Chain) {
	b.rule(chain,
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: native(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: make([]byte, 4)},
		different(reg1, make([]byte, 4)), verdict(expr.VerdictAccept))
}

// ownAddress drops what an instance sends under an address that is not its own: nothing leads back to
// it by the link that it came from.
func (b *table) ownAddress(chain *nftables.Chain) {
	b.rule(chain, meta(expr.MetaKeyIIFNAME, reg1), equal(reg1, []byte(linkPrefix)),
		&expr.Fib{Register: reg1, FlagSADDR: true, FlagIIF: true, ResultOIF: true}, equal(reg1, native(0)), verdict(expr.VerdictDrop))
}

// nowhere tells who asks a virtual IP without endpoints so, at once.
func (b *table) nowhere(chain *nftables.Chain) {
	b.refuse(chain, b.noPort, load(b.dst, b.size, word0), in(nowhere, word0))
}

// refuse says at once to whoever sends what matches that it leads nowhere: to connections by a reset, of
// which, unlike of other messages, the kernel sends as many as it takes.
func (b *table) refuse(chain *nftables.Chain, code uint8, match ...expr.Any) {
	tcp := append(slices.Clone(match), meta(expr.MetaKeyL4PROTO, reg1), equal(reg1, []byte{unix.IPPROTO_TCP}))
	b.rule(chain, append(tcp, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})...)
	b.rule(chain, append(match, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code})...)
}

// sources rewrites where packets come from, where the answer would go astray otherwise.
func (b *table) sources(post *nftables.Chain, d *Desired) {
	speakFor := []expr.Any{
		immediate(reg1, d.Own.AsSlice()),
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(b.nft), RegAddrMin: reg1},
	}
	rule := func(match ...expr.Any) { b.rule(post, append(match, speakFor...)...) }
	// An instance that was led to itself.
	rule(load(b.src, 2*b.size, word0), in(selfSet, word0))
	// A published port whose instance is elsewhere: the answer must come back through this node.
	rule(
		meta(expr.MetaKeyMARK, reg1), equal(reg1, native(markPublished)),
		meta(expr.MetaKeyOIFNAME, reg1), equal(reg1, []byte(tunnels)),
	)
	// The node itself, to a virtual IP whose instance is elsewhere: it has chosen its address before it was known where that leads.
	rule(
		&expr.Fib{Register: reg1, FlagSADDR: true, ResultADDRTYPE: true}, equal(reg1, native(unix.RTN_LOCAL)),
		meta(expr.MetaKeyOIFNAME, reg1), equal(reg1, []byte(tunnels)),
	)
	if b.family == ipv4 { // the node itself, from its loopback
		rule(
			load(b.src, 1, reg1), equal(reg1, []byte{127}),
			meta(expr.MetaKeyOIFNAME, reg1), equal(reg1, []byte(linkPrefix)),
		)
	}
	// Out of the cluster.
	b.rule(post,
		load(b.src, b.size, word0), in(networksSet, word0),
		meta(expr.MetaKeyOIFNAME, reg1), different(reg1, []byte(linkPrefix)),
		meta(expr.MetaKeyOIFNAME, reg1), different(reg1, []byte(tunnels)),
		meta(expr.MetaKeyOIFNAME, reg1), different(reg1, ifname("lo")),
		&expr.Masq{},
	)
}

// within matches an address of the header that lies in a prefix.
func (b *table) within(offset uint32, p netip.Prefix) []expr.Any {
	mask := make([]byte, b.size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		load(offset, b.size, reg1),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: b.size, Mask: mask, Xor: make([]byte, b.size)},
		equal(reg1, p.Masked().Addr().AsSlice()),
	}
}

// isolation decides what instances may send to, and receive from, other nodes' or this node's
// instances and the outside.
func (b *table) isolation(forward *nftables.Chain, d *Desired) {
	instances := b.conn.AddChain(&nftables.Chain{Name: "instances", Table: b.t})
	b.begun(forward)
	links := [][]byte{[]byte(linkPrefix), []byte(tunnels)}
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		for _, name := range links {
			b.rule(forward, meta(key, reg1), equal(reg1, name), &expr.Verdict{Kind: expr.VerdictGoto, Chain: instances.Name})
		}
	}
	// What is to be encrypted comes and goes by WireGuard, or not at all; who is of this node is told so.
	for _, at := range []uint32{b.src, b.dst} {
		b.rule(instances, meta(expr.MetaKeyIIFNAME, reg1), equal(reg1, ifname(tunnel)), load(at, b.size, word0), in(encryptedSet, word0), verdict(expr.VerdictDrop))
		b.refuse(instances, b.forbidden, meta(expr.MetaKeyOIFNAME, reg1), equal(reg1, ifname(tunnel)), load(at, b.size, word0), in(encryptedSet, word0))
	}
	// Other nodes speak for clients of published ports, which they let in, and for themselves.
	fromNodes := append([]expr.Any{meta(expr.MetaKeyIIFNAME, reg1), equal(reg1, []byte(tunnels))}, b.within(b.src, d.NodePool)...)
	b.rule(instances, append(fromNodes, verdict(expr.VerdictAccept))...)
	b.rule(instances, load(b.src, 2*b.size, word0), in(selfSet, word0), verdict(expr.VerdictAccept)) // with itself
	for _, chain := range []string{chainPolicyOut, chainPolicyIn} {
		b.rule(instances, &expr.Verdict{Kind: expr.VerdictJump, Chain: chain})
	}
	// Who comes in by a published port was let in by whoever published it.
	b.rule(instances, meta(expr.MetaKeyMARK, reg1), equal(reg1, native(markPublished)), verdict(expr.VerdictAccept))
	// Between instances: within a network.
	for _, name := range links {
		b.rule(instances, meta(expr.MetaKeyOIFNAME, reg1), equal(reg1, name),
			load(b.src, 2*b.size, word0), in(pairsSet, word0), verdict(expr.VerdictAccept))
	}
	b.refuse(instances, b.forbidden, load(b.dst, b.size, word0), in(networksSet, word0))
	b.refuse(instances, b.forbidden, load(b.src, b.size, word0), in(internalSet, word0))
	// Into instances from outside, other than by a published port: no.
	for _, name := range links {
		b.refuse(instances, b.forbidden, meta(expr.MetaKeyOIFNAME, reg1), equal(reg1, name))
	}
}
