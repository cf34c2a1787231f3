// Package balance leads traffic to instances, and keeps apart what does not belong together, with
// one nftables table in the node's network namespace: virtual IPs, published ports, isolation
// between networks, and the way out. Maps and sets carry the content, so that the number of rules
// that a packet meets does not grow with the number of services.
//
// Compute turns the cluster's network state into what this node should have, purely; Sync replaces
// the table in one transaction, whenever that differs from what is in force. Connections that
// exist are the kernel's and go on through any change, and without us.
//
// Names are answered by package names below this one.
package balance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/wire"
)

// TableName is the nftables table that belongs to this package.
const TableName = "tutti"

// Config says whose balancer this is.
type Config struct {
	NodeID string
	Log    *slog.Logger
}

// Balance owns the tables.
type Balance struct {
	Config
	mu    sync.Mutex
	sides [2]*side
}

// side is the table of one version of IP, and what it says.
type side struct {
	*family
	inForce *Desired            // nil: unknown, or no table
	begun   bool                // what an earlier agent left has been dealt with
	retired map[netip.Addr]bool // addresses that were led to, and are not any more; some have connections still
}

// New returns a balancer; its tables come with the first Sync.
func New(c Config) *Balance {
	return &Balance{Config: c, sides: [2]*side{{family: ipv4, retired: map[netip.Addr]bool{}}, {family: ipv6, retired: map[netip.Addr]bool{}}}}
}

// Sync puts the network state in force.
func (b *Balance) Sync(ctx context.Context, n *wire.Network) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, side := range b.sides {
		d, err := Compute(n, b.NodeID, side.family)
		if err != nil {
			return err
		}
		if err := b.put(n, side, d); err != nil {
			return fmt.Errorf("write the balancer's table for %s: %w", side.name, err)
		}
	}
	return nil
}

// put brings one table to what is wanted of it.
func (b *Balance) put(n *wire.Network, s *side, d *Desired) error {
	old := s.inForce
	var left []*Frontend
	var err error
	switch {
	case !d.Own.IsValid() && s.family == ipv4:
		return nil // this node has no address yet: the next state tells
	case !d.Own.IsValid():
		if old != nil || !s.begun {
			err = deleteTable(s.family)
		}
		s.inForce = nil
	case old == nil || old.Own != d.Own || old.NodePool != d.NodePool: // which are in rules
		err, s.inForce = replaceTable(s.family, d), d
	default:
		left, err = changeTable(s.family, old, d)
		s.inForce = d
	}
	if err != nil {
		s.inForce = nil // whatever is there now: the next one begins anew
		return err
	}
	s.begun = true
	b.cutDead(n, s, left)
	if !d.Policies.empty() && (old == nil || !old.Policies.sameRules(&d.Policies)) {
		b.cutRefused(s.family, d)
	}
	if old != nil {
		b.cutMissed(s.family, old, d)
	}
	return nil
}

// Keep writes a table again that somebody took away or wrote to.
func (b *Balance) Keep(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sides {
		if s.inForce == nil || intact(s.family) {
			continue
		}
		b.Log.Warn("the balancer's table was taken away, and is written again", "version", s.name)
		if err := replaceTable(s.family, s.inForce); err != nil {
			return fmt.Errorf("write the balancer's table for %s again: %w", s.name, err)
		}
	}
	return nil
}

// cutDead ends connections into instances that are no longer there, so that clients notice at once
// instead of waiting for an answer that cannot come. Who is no endpoint any more may still have some.
func (b *Balance) cutDead(n *wire.Network, s *side, left []*Frontend) {
	for _, f := range left {
		for _, e := range f.Endpoints {
			s.retired[e] = true
		}
	}
	if len(s.retired) == 0 {
		return
	}
	down := map[string]bool{}
	for _, node := range n.Nodes {
		down[node.ID] = node.Down
	}
	alive := map[netip.Addr]bool{}
	for i := range n.Instances {
		for j := range n.Instances[i].Addresses {
			if ip, ok := s.address(&n.Instances[i].Addresses[j]); ok && s.retired[ip] && !down[n.Instances[i].NodeID] {
				alive[ip] = true
			}
		}
	}
	dead := deadFlows{}
	for a := range s.retired {
		if !alive[a] {
			dead[a] = true
		}
	}
	if len(dead) > 0 {
		b.cut(s.family, dead)
	}
	s.retired = alive
}

// cutMissed forgets datagrams that came to a port of this node before it led anywhere: whoever goes
// on sending would be taken for the same connection, and never be led.
func (b *Balance) cutMissed(f *family, old, now *Desired) {
	led := map[uint16]bool{}
	for i := range old.Frontends {
		if fe := &old.Frontends[i]; fe.Node && fe.Protocol == unix.IPPROTO_UDP && len(fe.Endpoints) > 0 {
			led[fe.Port] = true
		}
	}
	missed := missedFlows{}
	for i := range now.Frontends {
		if fe := &now.Frontends[i]; fe.Node && fe.Protocol == unix.IPPROTO_UDP && len(fe.Endpoints) > 0 && !led[fe.Port] {
			missed[fe.Port] = true
		}
	}
	if len(missed) > 0 {
		b.cut(f, missed)
	}
}

func (b *Balance) cut(f *family, which netlink.CustomConntrackFilter) {
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(f.conntrack), which); err != nil {
		b.Log.Info("connections that lead nowhere could not be cut", "error", err)
	}
}

// deadFlows matches connections that were led to one of the addresses.
type deadFlows map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (d deadFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	a, ok := netip.AddrFromSlice(f.Reverse.SrcIP)
	return ok && d[a.Unmap()]
}

// missedFlows matches datagrams to one of the ports that were not led anywhere.
type missedFlows map[uint16]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (m missedFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Forward.Protocol == unix.IPPROTO_UDP && m[f.Forward.DstPort] && f.Reverse.SrcIP.Equal(f.Forward.DstIP) && f.Reverse.SrcPort == f.Forward.DstPort
}

// Remove takes the tables away.
func (b *Balance) Remove(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, s := range b.sides {
		s.inForce = nil
		errs = append(errs, deleteTable(s.family))
	}
	return errors.Join(errs...)
}
