package model

import "net/netip"

// OneHostIP is the only address of a node that a port is published on, as netip writes it; "" is all of them, however
// that was said.
func OneHostIP(s string) string {
	ip, err := netip.ParseAddr(s)
	if err != nil || ip.IsUnspecified() {
		return ""
	}
	return ip.Unmap().String()
}

// SameHostIP reports whether a port cannot be published on two addresses of a node by two: on all and on one, or twice on one.
func SameHostIP(a, b string) bool {
	a, b = OneHostIP(a), OneHostIP(b)
	return a == "" || b == "" || a == b
}

// Clashes reports whether two hold the same port of a node.
func (p *HostPort) Clashes(o *HostPort) bool {
	return p.Published == o.Published && p.Protocol == o.Protocol && SameHostIP(p.HostIP, o.HostIP)
}
