package ingress

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// proxyLine is what begins a connection by the PROXY protocol: from which address a client came, and to which.
func proxyLine(version int, from, to netip.AddrPort) []byte {
	from, to = plainly4(from), plainly4(to)
	known := from.IsValid() && to.IsValid() && from.Addr().Is4() == to.Addr().Is4()
	if version == 1 {
		switch {
		case !known:
			return []byte("PROXY UNKNOWN\r\n")
		case from.Addr().Is4():
			return fmt.Appendf(nil, "PROXY TCP4 %s %s %d %d\r\n", from.Addr(), to.Addr(), from.Port(), to.Port())
		}
		return fmt.Appendf(nil, "PROXY TCP6 %s %s %d %d\r\n", from.Addr(), to.Addr(), from.Port(), to.Port())
	}
	out := []byte("\r\n\r\n\x00\r\nQUIT\n\x21")
	if !known {
		return append(out, 0, 0, 0) // of a family that is not said, and nothing more
	}
	family, addresses := byte(0x11), append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	if from.Addr().Is6() {
		family = 0x21
	}
	out = append(out, family)
	out = binary.BigEndian.AppendUint16(out, uint16(len(addresses)+4))
	out = append(out, addresses...)
	out = binary.BigEndian.AppendUint16(out, from.Port())
	return binary.BigEndian.AppendUint16(out, to.Port())
}

func plainly4(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

func addressOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort()
	}
	return netip.AddrPort{}
}

// dialSaying begins a connection for a request, which is the only one on it, with who asks.
func dialSaying(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if v, ok := ctx.Value(visitKey{}).(*visit); ok {
		if _, err := c.Write(proxyLine(v.route.ProxyProtocol, v.asked.from, v.asked.to)); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}
