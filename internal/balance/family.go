package balance

import (
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/model"
)

// family says how a version of IP is written in its table.
type family struct {
	name      string
	nft       nftables.TableFamily
	conntrack uint8
	size      uint32 // bytes of an address
	src, dst  uint32 // where the header has them
	addr      nftables.SetDatatype
	address   func(*model.Address) (netip.Addr, bool)
	// What a refusal says in ICMP: nobody listens there; it is forbidden.
	noPort, forbidden uint8
}

var ipv4 = &family{
	name: "IPv4", nft: nftables.TableFamilyIPv4, conntrack: unix.AF_INET, size: 4, src: 12, dst: 16, addr: nftables.TypeIPAddr,
	noPort: 3, forbidden: 13,
	address: func(a *model.Address) (netip.Addr, bool) {
		ip, err := netip.ParseAddr(a.IP)
		return ip, err == nil && ip.Is4()
	},
}

var ipv6 = &family{
	name: "IPv6", nft: nftables.TableFamilyIPv6, conntrack: unix.AF_INET6, size: 16, src: 8, dst: 24, addr: nftables.TypeIP6Addr,
	noPort: 4, forbidden: 1,
	address: func(a *model.Address) (netip.Addr, bool) {
		if a.IP6 == "" {
			return netip.Addr{}, false
		}
		ip, err := netip.ParseAddr(a.IP6)
		return ip, err == nil && ip.Is6()
	},
}

// words is how many registers of four bytes an address takes.
func (f *family) words() uint32 { return f.size / 4 }

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		if free := (i+1)*8 - p.Bits(); free >= 8 {
			b[i] = 0xff
		} else if free > 0 {
			b[i] |= 1<<free - 1
		}
	}
	a, _ := netip.AddrFromSlice(b) // of the length that it had
	return a
}
