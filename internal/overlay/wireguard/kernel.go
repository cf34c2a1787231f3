package wireguard

import (
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// syncKernel sets up the kernel's device. What an earlier agent made is taken over, with its sessions.
func (t *Tunnel) syncKernel(link netlink.Link, c *Config) error {
	if link != nil && link.Type() != "wireguard" {
		if err := netlink.LinkDel(link); err != nil {
			return err
		}
		link = nil
	}
	if link == nil {
		if err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: Device, MTU: c.MTU}}); err != nil {
			return err
		}
	} else if err := netlink.LinkSetMTU(link, c.MTU); err != nil {
		return err
	}
	ctl, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer ctl.Close()
	have, err := ctl.Device(Device)
	if err != nil {
		return err
	}
	want, err := kernelConfig(have, c)
	if err != nil {
		return err
	}
	return ctl.ConfigureDevice(Device, *want)
}

// kernelConfig is what makes a device of the kernel the one that is to be.
func kernelConfig(have *wgtypes.Device, c *Config) (*wgtypes.Config, error) {
	private, err := decode(c.Private)
	if err != nil {
		return nil, err
	}
	port := Port
	out := &wgtypes.Config{ListenPort: &port}
	if have.PrivateKey != private { // setting it ends sessions
		out.PrivateKey = &private
	}
	var known []Peer
	for i := range have.Peers {
		known = append(known, peerOf(&have.Peers[i]))
	}
	for _, ch := range changes(known, c.Peers) {
		public, err := decode(ch.Public)
		if err != nil {
			return nil, err
		}
		p := wgtypes.PeerConfig{PublicKey: public, Remove: ch.gone}
		if !ch.gone {
			p.Endpoint, p.ReplaceAllowedIPs = net.UDPAddrFromAddrPort(ch.Endpoint), true
			for _, a := range ch.Allowed {
				p.AllowedIPs = append(p.AllowedIPs, net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())})
			}
		}
		out.Peers = append(out.Peers, p)
	}
	return out, nil
}

func peerOf(p *wgtypes.Peer) Peer {
	out := Peer{Public: p.PublicKey.String()}
	if p.Endpoint != nil {
		at := p.Endpoint.AddrPort()
		out.Endpoint = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	}
	for _, n := range p.AllowedIPs {
		a, _ := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		out.Allowed = append(out.Allowed, netip.PrefixFrom(a.Unmap(), ones))
	}
	slices.SortFunc(out.Allowed, comparePrefixes)
	return out
}
