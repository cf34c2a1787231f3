package model

import (
	"cmp"
	"net/netip"

	"github.com/tutti-run/tutti/internal/fault"
)

// Embed returns the address of an IPv6 subnet whose last 32 bits are an IPv4 address: where a network
// has both versions, one follows from the other.
func Embed(subnet netip.Prefix, ip netip.Addr) netip.Addr {
	out, low := subnet.Masked().Addr().As16(), ip.As4()
	copy(out[12:], low[:])
	return netip.AddrFrom16(out)
}

// EmbedPrefix is the same for a range of addresses.
func EmbedPrefix(subnet, p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(Embed(subnet, p.Addr()), 96+p.Bits())
}

// DefaultAddressPool6 is a range for private use (RFC 4193).
const DefaultAddressPool6 = "fd74:7574:7469::/48"

// Pool6 is where networks of a cluster have their subnets of IPv6.
func Pool6(c *Cluster) string { return cmp.Or(c.AddressPool6, DefaultAddressPool6) }

// ParseSubnet6 reads a chosen subnet of IPv6, which has room for all addresses of IPv4.
func ParseSubnet6(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() > 96 || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() {
		return p, fault.New(fault.Invalid, "subnet %q: an IPv6 range such as fd12:3456:789a::/64, of /96 or larger, is accepted", s)
	}
	return p.Masked(), nil
}

// NodePool6 is where nodes have their own addresses of IPv6, each with the IPv4 one in it: the first
// subnet of the pool.
func NodePool6(pool netip.Prefix) netip.Prefix { return netip.PrefixFrom(pool.Masked().Addr(), 64) }
