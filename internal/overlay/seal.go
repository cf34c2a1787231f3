package overlay

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/overlay/wireguard"
	"github.com/tutti-run/tutti/internal/wire"
)

// sealedMTU is the packet size on encrypted networks.
func (o *Overlay) sealedMTU() int { return o.mtu + vxlanCost - wireguard.Cost }

// broken reports whether the tunnel of encrypted networks was there, and is not.
func (o *Overlay) broken() bool { return o.wg != 0 && o.Sealed.Broken() }

// seal has WireGuard know the other nodes, as long as a network is encrypted: each with what is reached there, on
// whatever network, as nodes are sent to by it, and answered.
func (o *Overlay) seal(ctx context.Context, n *wire.Network, p *places) error {
	if o.Sealed == nil {
		return nil
	}
	if len(p.encrypted) == 0 {
		if o.wg == 0 {
			return nil
		}
		o.wg = 0
		return o.Sealed.Remove(ctx)
	}
	c, err := p.sealing(n, o.blocks, o.singles)
	if err != nil {
		return err
	}
	c.MTU = o.sealedMTU()
	o.wg, err = o.Sealed.Sync(ctx, c)
	return err
}

// sealing is what WireGuard is to know.
func (p *places) sealing(n *wire.Network, blocks map[netip.Prefix]hop, singles map[string]map[netip.Prefix]hop) (c wireguard.Config, err error) {
	reached := map[netip.Addr][]netip.Prefix{}
	for at, to := range blocks {
		reached[to.node] = append(reached[to.node], at)
	}
	for _, routes := range singles {
		for at, to := range routes {
			if _, has := blocks[at]; !has {
				reached[to.node] = append(reached[to.node], at)
			}
		}
	}
	for _, node := range n.Nodes {
		a, ok := p.via(node.ID)
		if !ok || node.TunnelKey == "" {
			continue
		}
		host, err := netip.ParseAddr(node.HostAddress)
		if err != nil {
			return c, fault.New(fault.Internal, "address of node %s: %w", node.Name, err)
		}
		if len(reached[a]) == 0 {
			return c, fmt.Errorf("node %s has no address", node.Name)
		}
		c.Peers = append(c.Peers, wireguard.Peer{Public: node.TunnelKey, Endpoint: netip.AddrPortFrom(host, wireguard.Port), Allowed: reached[a]})
	}
	c.Sort()
	return c, nil
}
