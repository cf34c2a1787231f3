package balance

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/wire"
)

// flow is a connection as the kernel follows it: the client, what it asked, and who answers.
type flow struct {
	from, asked, to netip.AddrPort
	protocol        uint8
}

type traffic struct{ sent, received uint64 }

// Flows tells which connections clients of this node had within a span, and what went over them: those of its
// instances, of the node itself, and of clients outside that came in here. Nothing is counted but what the kernel
// counts anyway, so that it costs nothing while nobody asks. Connections of instances elsewhere are their own
// node's to tell.
func (b *Balance) Flows(ctx context.Context, span time.Duration) ([]wire.Flow, error) {
	before, err := b.tracked()
	if err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(span):
	}
	after, err := b.tracked()
	if err != nil {
		return nil, err
	}
	return between(before, after), nil
}

// between sums up what is new since an earlier look.
func between(before, after map[flow]tracking) []wire.Flow {
	sums := map[wire.FlowEnds]*wire.Flow{}
	for f, now := range after {
		ends := now.ends
		sum := sums[ends]
		if sum == nil {
			sum = &wire.Flow{FlowEnds: ends}
			sums[ends] = sum
		}
		was, known := before[f]
		if known && (was.sent > now.sent || was.received > now.received) {
			known, was = false, tracking{} // another one of the same ports
		}
		if !known {
			sum.Begun++
		}
		if now.open {
			sum.Open++
		}
		sum.Sent += now.sent - was.sent
		sum.Received += now.received - was.received
	}
	out := make([]wire.Flow, 0, len(sums))
	for _, f := range sums {
		if f.Open > 0 || f.Begun > 0 || f.Sent+f.Received > 0 {
			out = append(out, *f)
		}
	}
	return out
}

// tracking is what the kernel knows of a connection.
type tracking struct {
	traffic
	ends wire.FlowEnds
	open bool
}

// tracked are the connections that are this node's to tell.
func (b *Balance) tracked() (map[flow]tracking, error) {
	own, out := map[netip.Addr]bool{}, map[flow]tracking{}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this node: %w", err)
	}
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(ip.IP); ok {
				own[a.Unmap()] = true
			}
		}
	}
	for i, s := range b.sides {
		b.mu.Lock()
		in := newWhoIsWho(s.inForce, own)
		b.mu.Unlock()
		if in == nil {
			continue
		}
		list, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.InetFamily(b.sides[i].conntrack))
		if err != nil {
			return nil, fmt.Errorf("list connections of %s: %w", s.name, err)
		}
		for _, c := range list {
			f := flow{from: end(c.Forward.SrcIP, c.Forward.SrcPort), asked: end(c.Forward.DstIP, c.Forward.DstPort), to: end(c.Reverse.SrcIP, c.Reverse.SrcPort), protocol: c.Forward.Protocol}
			ends, ok := in.ends(&f)
			if !ok {
				continue
			}
			tcp, isTCP := c.ProtoInfo.(*netlink.ProtoInfoTCP)
			out[f] = tracking{traffic{c.Forward.Bytes, c.Reverse.Bytes}, ends, !isTCP || tcp.State <= tcpEstablished}
		}
	}
	return out, nil
}

const tcpEstablished = 3 // as netfilter counts states; later ones are those of connections that end

func end(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// whoIsWho says who is who.
type whoIsWho struct {
	own      map[netip.Addr]bool
	local    map[netip.Addr]bool
	nodes    netip.Prefix
	networks []netip.Prefix
}

func newWhoIsWho(l *ledger, own map[netip.Addr]bool) *whoIsWho {
	if l == nil {
		return nil
	}
	in := &whoIsWho{own: own, local: map[netip.Addr]bool{}, nodes: l.shape.NodePool, networks: l.shape.Networks}
	for a := range l.localized {
		in.local[a] = true
	}
	return in
}

func (in *whoIsWho) instance(a netip.Addr) bool { return anyContains(in.networks, a) }

func anyContains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// ends says between whom a connection is, if it is this node's to tell.
func (in *whoIsWho) ends(f *flow) (e wire.FlowEnds, ok bool) {
	from, asked, to := f.from.Addr(), f.asked.Addr(), f.to.Addr()
	name, known := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}[f.protocol]
	if !known {
		return e, false
	}
	e.Protocol, e.Port, e.Target = name, f.asked.Port(), f.to.Port()
	switch {
	case in.own[from]:
		e.From = wire.FlowNode
	case in.nodes.Contains(from) || in.instance(from) && !in.local[from]:
		return e, false // another node tells
	case in.instance(from):
		e.From = from.String()
	}
	switch {
	case in.instance(to):
		e.To = to.String()
	case in.own[to]:
		e.To = wire.FlowNode
	}
	if e.From == "" || e.From == wire.FlowNode {
		if !in.instance(to) {
			return e, false // nothing of the cluster's network
		}
	}
	if asked != to {
		if e.Via = asked.String(); in.own[asked] {
			e.Via = wire.FlowNode
		}
	}
	if e.To == "" {
		e.Via = ""
	}
	return e, true
}
