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
	"maps"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/wire"
)

// TableName is the nftables table that belongs to this package, and the beginning of the name of another one.
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
	inForce *ledger // nil: unknown, or no table
	begun   bool    // what an earlier agent left has been dealt with
	// retired are addresses that were led to, and perhaps are not any more, by the instance that has each: some have
	// connections still.
	retired map[string]map[netip.Addr]bool
	// counting says that what comes to all frontends that are in force is counted.
	counting bool
}

// New returns a balancer; its tables come with the first Sync.
func New(c Config) *Balance {
	return &Balance{Config: c, sides: [2]*side{{family: ipv4, retired: map[string]map[netip.Addr]bool{}}, {family: ipv6, retired: map[string]map[netip.Addr]bool{}}}}
}

// Sync puts the network state in force: by what it says has changed, where it does.
func (b *Balance) Sync(ctx context.Context, n *wire.Network) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, side := range b.sides {
		if err := b.sync(n, side); err != nil {
			side.inForce = nil // whatever is there now: the next one begins anew
			return fmt.Errorf("write the balancer's table for %s: %w", side.name, err)
		}
	}
	return nil
}

func (b *Balance) sync(n *wire.Network, s *side) error {
	if old := s.inForce; old != nil && n.Changes != nil {
		d, ok, err := old.update(n)
		if err != nil {
			return err
		}
		if ok {
			if err := changeTable(s.family, d); err != nil {
				return err
			}
			b.count(s, d)
			b.cutAfter(n, s, d)
			return nil
		}
	}
	l, err := newLedger(n, b.NodeID, s.family)
	if err != nil {
		return err
	}
	return b.put(n, s, l)
}

// put brings one table to what is wanted of it.
func (b *Balance) put(n *wire.Network, s *side, l *ledger) error {
	old, now := s.inForce, l.desired()
	d := &delta{}
	var err error
	switch {
	case !now.Own.IsValid() && s.family == ipv4:
		return nil // this node has no address yet: the next state tells
	case !now.Own.IsValid():
		if old != nil || !s.begun {
			err = deleteTables(s.family)
		}
		l = nil
	case old == nil || old.shape.Own != now.Own || old.shape.NodePool != now.NodePool: // which are in rules
		err, d.stricter = replaceTable(s.family, now), !now.Policies.empty()
		s.counting = false // by all of what is led now
	default:
		d, l.idle = compare(old.desired(), now, old.idle)
		for _, f := range now.Frontends {
			l.led[f.FrontendKey] = f // in the order that they have in the kernel
		}
		err = changeTable(s.family, d)
	}
	if err != nil {
		return err
	}
	s.inForce, s.begun = l, true
	b.count(s, d)
	b.cutAfter(n, s, d)
	return nil
}

// cutAfter ends connections that a change leaves without an end, or forbids.
func (b *Balance) cutAfter(n *wire.Network, s *side, d *delta) {
	b.cutDead(n, s, d.left)
	if d.stricter && s.inForce != nil {
		b.cutRefused(s.family, s.inForce)
	}
	if len(d.opened) > 0 {
		missed := missedFlows{}
		for _, port := range d.opened {
			missed[port] = true
		}
		b.cut(s.family, missed)
	}
}

// Keep writes a table again that somebody took away or wrote to.
func (b *Balance) Keep(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sides {
		if s.inForce == nil {
			continue
		}
		leads, counts := intact(s.family)
		if !leads {
			b.Log.Warn("the balancer's table was taken away, and is written again", "version", s.name)
			s.inForce.idle = nil
			if err := replaceTable(s.family, s.inForce.desired()); err != nil {
				return fmt.Errorf("write the balancer's table for %s again: %w", s.name, err)
			}
		}
		if s.counting && !counts {
			s.counting = false
			b.count(s, &delta{})
		}
	}
	return nil
}

// cutDead ends connections into instances that are no longer there, so that clients notice at once
// instead of waiting for an answer that cannot come. Who is no endpoint any more may still have some.
func (b *Balance) cutDead(n *wire.Network, s *side, left []Frontend) {
	look := map[netip.Addr]bool{} // at what may be gone
	for _, f := range left {
		for _, e := range f.Endpoints {
			look[e.Addr()] = true
		}
	}
	again := func(id string) {
		maps.Copy(look, s.retired[id])
		delete(s.retired, id)
	}
	if c := n.Changes; c == nil || c.Shape {
		for id := range s.retired {
			again(id)
		}
	} else {
		for id := range c.Instances {
			again(id)
		}
	}
	if len(look) == 0 {
		return
	}
	down := map[string]bool{} // by ID and by address
	for i := range n.Nodes {
		if n.Nodes[i].Down {
			down[n.Nodes[i].ID], down[n.Nodes[i].HostAddress] = true, true
		}
	}
	dead := map[netip.Addr]bool{}
	for a := range look {
		switch in := n.Holder(a); {
		case in == nil && (down[a.String()] || s.inForce != nil && anyContains(s.inForce.shape.Networks, a)):
			dead[a] = true
		case in == nil: // what is there, at no instance's address, may go on answering
		case down[in.NodeID]:
			dead[a] = true
		default:
			if s.retired[in.ID] == nil {
				s.retired[in.ID] = map[netip.Addr]bool{}
			}
			s.retired[in.ID][a] = true
		}
	}
	if err := cutTo(s.family, dead); err != nil {
		b.Log.Info("connections that lead nowhere could not be cut", "error", err)
	}
}

func (b *Balance) cut(f *family, which netlink.CustomConntrackFilter) {
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(f.conntrack), which); err != nil {
		b.Log.Info("connections that lead nowhere could not be cut", "error", err)
	}
}

// missedFlows matches datagrams that came to one of the ports before it led anywhere: whoever goes on
// sending would be taken for the same connection, and never be led.
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
		errs = append(errs, deleteTables(s.family))
	}
	return errors.Join(errs...)
}
