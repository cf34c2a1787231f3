package ingress

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
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
	out := []byte(proxySignature + "\x21")
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

const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	// proxyMost bounds what a connection may begin with: an address, and in version 2 what others add to it.
	proxyMost  = 4 << 10
	proxyMost1 = 107 // of version 1
)

var errProxy = errors.New("the connection does not begin as the PROXY protocol says")

// parseProxy reads what a connection from a load balancer begins with, in either version of the PROXY protocol. size is
// 0 when it is not yet there as a whole, and from is invalid where the load balancer speaks for itself, or does not say.
func parseProxy(b []byte) (from netip.AddrPort, size int, err error) {
	if n := min(len(b), len(proxySignature)); string(b[:n]) == proxySignature[:n] {
		if len(b) < 16 {
			return from, 0, nil
		}
		return parseProxy2(b)
	}
	const word = "PROXY "
	if n := min(len(b), len(word)); string(b[:n]) != word[:n] {
		return from, 0, errProxy
	}
	end := bytes.IndexByte(b[:min(len(b), proxyMost1)], '\n')
	if end < 0 {
		if len(b) >= proxyMost1 {
			return from, 0, errProxy
		}
		return from, 0, nil
	}
	line, ok := strings.CutSuffix(string(b[len(word):max(end, len(word))]), "\r")
	if !ok {
		return from, 0, errProxy
	}
	f := strings.Split(line, " ")
	if f[0] == "UNKNOWN" { // whatever follows
		return from, end + 1, nil
	}
	if len(f) != 5 || f[0] != "TCP4" && f[0] != "TCP6" {
		return from, 0, errProxy
	}
	from, ok = proxyAddress(f[1], f[3], f[0] == "TCP4")
	if _, fits := proxyAddress(f[2], f[4], f[0] == "TCP4"); !ok || !fits {
		return netip.AddrPort{}, 0, errProxy
	}
	return from, end + 1, nil
}

func proxyAddress(ip, port string, four bool) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(ip)
	n, ok := number([]byte(port))
	if err != nil || !ok || n > 65535 || a.Is4() != four || a.Zone() != "" || len(port) > 1 && port[0] == '0' {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), true
}

// parseProxy2 reads version 2, of which the beginning is there.
func parseProxy2(b []byte) (from netip.AddrPort, size int, err error) {
	command, family := b[12], b[13]
	if size = 16 + int(binary.BigEndian.Uint16(b[14:])); size > proxyMost || command != 0x20 && command != 0x21 {
		return from, 0, errProxy
	}
	if len(b) < size {
		return from, 0, nil
	}
	length := map[byte]int{0x11: 4, 0x21: 16}[family] // TCP over IPv4, IPv6
	if command == 0x20 || length == 0 {
		return from, size, nil
	}
	if size < 16+2*length+4 {
		return from, 0, errProxy
	}
	a, _ := netip.AddrFromSlice(b[16 : 16+length])
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(b[16+2*length:])), size, nil
}

// trusts reports whether an address is of a load balancer that says for whom it connects.
func (p *proxy) trusts(a netip.Addr) bool {
	list := p.trusted.Load()
	return list != nil && slices.ContainsFunc(*list, func(t netip.Prefix) bool { return t.Contains(a.Unmap()) })
}

// hearProxy takes what a connection from a load balancer begins with; what comes after it stays in the session.
func (s *session) hearProxy() bool {
	if s.tcp.SetReadDeadline(time.Now().Add(headPatience)) != nil {
		return false
	}
	for {
		from, size, err := parseProxy(s.in[:s.w])
		if err != nil {
			return false
		}
		if size > 0 {
			if s.r = size; from.IsValid() {
				s.remote = net.TCPAddrFromAddrPort(from)
				s.name()
			}
			return true
		}
		n, err := s.tcp.Read(s.in[s.w:])
		if s.w += n; n == 0 && err != nil {
			return false
		}
	}
}

// announced begins with a client of a load balancer's, and leaves it to a loop.
func (s *session) announced() {
	s.acquire()
	defer s.leave()
	if s.hearProxy() && !s.goBack(true) {
		s.requests(true)
	}
}
