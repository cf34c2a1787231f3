package balance

import (
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	chainPolicyOut = "policy-out"
	chainPolicyIn  = "policy-in"
	gateway        = "169.254.1.1" // where a node answers its instances; see package overlay
)

// policies makes the chains that a connection goes through when it begins, where its first node sees both
// of its ends: the client's own address, and the instance that it was led to.
func (b *table) policies() {
	refused := b.conn.AddChain(&nftables.Chain{Name: chainRefused, Table: b.t})
	b.refuse(refused, b.forbidden)
	b.conn.AddChain(&nftables.Chain{Name: chainAllowed, Table: b.t}) // whose end leads back to who jumped
	for _, d := range []struct {
		name                  string
		self, other           uint32
		profiles, cells, only string
	}{{chainPolicyOut, b.src, b.dst, policyFrom, policyOut, policyFromOnly}, {chainPolicyIn, b.dst, b.src, policyTo, policyIn, policyToOnly}} {
		chain := b.conn.AddChain(&nftables.Chain{Name: d.name, Table: b.t})
		const profile, class = word0 + 8, word0 + 9
		about := []expr.Any{load(d.self, b.size, word0), find(d.profiles, word0, profile)}
		for _, of := range [][]expr.Any{
			{load(d.other, b.size, word0), find(policyClass, word0, class)},
			{load(d.other, b.size, word0), find(policyRanges, word0, class)},
			{immediate(class, native(0))},
		} {
			rule := append(append(append([]expr.Any{}, about...), of...), service(class+1)...)
			b.rule(chain, append(rule, find(d.cells, profile, 0))...)
		}
		b.rule(chain, append(append([]expr.Any{}, about...), in(d.only, profile), &expr.Verdict{Kind: expr.VerdictGoto, Chain: chainRefused})...)
	}
}

// policiesOfNode holds instances to their policies when they speak with their own node, which they may ask
// for names in any case.
func (b *table) policiesOfNode(arrived *nftables.Chain) {
	b.begun(arrived)
	fromInstance := []expr.Any{meta(expr.MetaKeyIIFNAME, reg1), equal(reg1, []byte(linkPrefix))}
	if b.family == ipv4 {
		names := netip.MustParseAddr(gateway)
		b.rule(arrived, append(append([]expr.Any{}, fromInstance...), load(b.dst, b.size, reg1), equal(reg1, names.AsSlice()), verdict(expr.VerdictAccept))...)
	} else { // neighbours find each other
		b.rule(arrived, meta(expr.MetaKeyL4PROTO, reg1), equal(reg1, []byte{unix.IPPROTO_ICMPV6}), verdict(expr.VerdictAccept))
	}
	b.rule(arrived, append(fromInstance, &expr.Verdict{Kind: expr.VerdictJump, Chain: chainPolicyOut})...)
}

// cutRefused ends connections that may not begin any more.
func (b *Balance) cutRefused(f *family, l *ledger) {
	flows := refusedFlows{nodes: l.shape.NodePool, judge: l.book.judge(), own: map[netip.Addr]bool{}}
	all, err := net.InterfaceAddrs()
	if err != nil {
		b.Log.Info("connections that policies refuse could not be cut", "error", err)
		return
	}
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(ip.IP); ok {
				flows.own[a.Unmap()] = true
			}
		}
	}
	b.cut(f, flows)
}

// refusedFlows matches connections that policies refuse. What nodes say themselves they are not asked about.
type refusedFlows struct {
	nodes netip.Prefix
	judge *judge
	own   map[netip.Addr]bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (r refusedFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	from, ok1 := netip.AddrFromSlice(f.Forward.SrcIP)
	to, ok2 := netip.AddrFromSlice(f.Reverse.SrcIP)
	from, to = from.Unmap(), to.Unmap()
	if !ok1 || !ok2 || r.own[from] || r.nodes.Contains(from) {
		return false
	}
	return r.judge.refuses(from, to, f.Forward.Protocol, f.Reverse.SrcPort)
}
