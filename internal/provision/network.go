package provision

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
)

const (
	tableName  = "tutti-hosts"
	insideLink = "eth0"
	forwarding = "/proc/sys/net/ipv4/ip_forward"
)

// linkOf is the bridge's end of a host's link.
func linkOf(h *Host) string { return "tutti-h" + strconv.Itoa(h.Index) }

// makeNetwork makes the bridge, lets the hosts reach the outside, and lets the machine's packet
// filter pass what the hosts say to each other.
func (m *Machine) makeNetwork() error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		if err := m.subnetFree(); err != nil {
			return err
		}
		bridge = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make the bridge: %w", err)
		}
	}
	address := &net.IPNet{IP: m.gateway().AsSlice(), Mask: net.CIDRMask(m.Subnet.Bits(), 32)}
	if err := netlink.AddrReplace(bridge, &netlink.Addr{IPNet: address}); err != nil {
		return fmt.Errorf("give the bridge its address: %w", err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("bring the bridge up: %w", err)
	}
	if err := m.enableForwarding(); err != nil {
		return err
	}
	return m.makeRules()
}

// subnetFree refuses a subnet that the machine uses for something else.
func (m *Machine) subnetFree() error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	own := &net.IPNet{IP: m.Subnet.Masked().Addr().AsSlice(), Mask: net.CIDRMask(m.Subnet.Bits(), 32)}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			continue
		}
		if r.Dst.Contains(own.IP) || own.Contains(r.Dst.IP) {
			return fault.New(fault.Conflict, "subnet %s overlaps with %s, which this machine uses: choose another with --subnet", m.Subnet, r.Dst)
		}
	}
	return nil
}

func (m *Machine) forwardingFile() string { return filepath.Join(m.dataRoot(), "ip_forward") }

// enableForwarding turns routing on and remembers how it was.
func (m *Machine) enableForwarding() error {
	before, err := os.ReadFile(forwarding)
	if err != nil {
		return fmt.Errorf("read %s: %w", forwarding, err)
	}
	if strings.TrimSpace(string(before)) == "1" {
		return nil
	}
	if err := os.WriteFile(m.forwardingFile(), before, 0o600); err != nil {
		return fmt.Errorf("remember %s: %w", forwarding, err)
	}
	if err := os.WriteFile(forwarding, []byte("1"), 0); err != nil {
		return fmt.Errorf("set %s: %w", forwarding, err)
	}
	return nil
}

func (m *Machine) restoreForwarding() error {
	before, err := os.ReadFile(m.forwardingFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(forwarding, before, 0), os.Remove(m.forwardingFile()))
}

// interfaceName is a device's name as the packet filter compares it.
func interfaceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// onBridge matches packets that come from (or go to) the bridge.
func onBridge(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: interfaceName(bridgeName)},
	}
}

// makeRules replaces the table: traffic from the hosts that leaves the machine takes its address.
func (m *Machine) makeRules() error {
	c := &nftables.Conn{}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
	c.AddTable(t)
	c.DelTable(t) // adding first makes the removal of what is not there succeed
	c.AddTable(t)
	nat := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	mask := net.CIDRMask(m.Subnet.Bits(), 32)
	from := []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: m.Subnet.Masked().Addr().AsSlice()},
	}
	rule := append(from, onBridge(expr.MetaKeyOIFNAME, expr.CmpOpNeq)...)
	c.AddRule(&nftables.Rule{Table: t, Chain: nat, Exprs: append(rule, &expr.Masq{})})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make the packet filter's table: %w", err)
	}
	return acceptBridge()
}

// ruleMark is the comment by which our rules in a foreign chain are found again.
var ruleMark = []byte("tutti-hosts bridge")

// acceptBridge puts rules before those of a foreign FORWARD chain (a Docker Engine sets it to
// drop), which, with br_netfilter, also sees what hosts on the bridge say to each other.
func acceptBridge() error {
	c := &nftables.Conn{}
	chain, err := foreignForward(c)
	if err != nil || chain == nil {
		return err
	}
	if err := dropMarked(c, chain); err != nil {
		return err
	}
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		c.InsertRule(&nftables.Rule{
			Table: chain.Table, Chain: chain, UserData: ruleMark,
			Exprs: append(onBridge(key, expr.CmpOpEq), &expr.Verdict{Kind: expr.VerdictAccept}),
		})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("accept the hosts' traffic in chain %s: %w", chain.Name, err)
	}
	return nil
}

// foreignForward finds the chain that iptables-nft keeps for forwarded packets; nil when there is none.
func foreignForward(c *nftables.Conn) (*nftables.Chain, error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("list the packet filter's chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name == "filter" && ch.Name == "FORWARD" {
			return ch, nil
		}
	}
	return nil, nil
}

func dropMarked(c *nftables.Conn, chain *nftables.Chain) error {
	rules, err := c.GetRules(chain.Table, chain)
	if err != nil {
		return fmt.Errorf("list the rules of chain %s: %w", chain.Name, err)
	}
	for _, r := range rules {
		if string(r.UserData) == string(ruleMark) {
			if err := c.DelRule(r); err != nil {
				return fmt.Errorf("remove a rule of chain %s: %w", chain.Name, err)
			}
		}
	}
	return nil
}

// removeNetwork takes away what makeNetwork made.
func (m *Machine) removeNetwork() error {
	var errs []error
	if links, err := netlink.LinkList(); err == nil {
		for _, l := range links { // of hosts that were killed and are not quite gone
			if strings.HasPrefix(l.Attrs().Name, "tutti-h") && l.Type() == "veth" {
				netlink.LinkDel(l) // gone meanwhile is as good
			}
		}
	}
	if l, err := netlink.LinkByName(bridgeName); err == nil {
		if err := netlink.LinkDel(l); err != nil {
			errs = append(errs, fmt.Errorf("remove the bridge: %w", err))
		}
	}
	c := &nftables.Conn{}
	if chain, err := foreignForward(c); err == nil && chain != nil {
		errs = append(errs, dropMarked(c, chain))
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
	c.AddTable(t)
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		errs = append(errs, fmt.Errorf("remove the packet filter's table: %w", err))
	}
	return errors.Join(append(errs, m.restoreForwarding())...)
}

// plug gives a host its link to the bridge.
func (m *Machine) plug(h *Host, pid int) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find the bridge: %w", err)
	}
	if old, err := netlink.LinkByName(linkOf(h)); err == nil { // of an earlier life, not quite gone
		if err := netlink.LinkDel(old); err != nil {
			return fmt.Errorf("remove the old link of %s: %w", h.Name, err)
		}
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: linkOf(h), MasterIndex: bridge.Attrs().Index},
		PeerName:  insideLink, PeerNamespace: netlink.NsPid(pid),
		PeerHardwareAddr: net.HardwareAddr{0x02, 0x54, 0, 0, 0, byte(h.Index)},
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("link %s to the bridge: %w", h.Name, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bring the link of %s up: %w", h.Name, err)
	}
	return nil
}

// isCut reports whether a host was taken off the network.
func isCut(h *Host) bool {
	l, err := netlink.LinkByName(linkOf(h))
	if err != nil {
		_, missing := errors.AsType[netlink.LinkNotFoundError](err)
		return missing
	}
	return l.Attrs().Flags&net.FlagUp == 0
}

func setUp(h *Host, up bool) error {
	l, err := netlink.LinkByName(linkOf(h))
	if err != nil {
		return fmt.Errorf("find the link of %s: %w", h.Name, err)
	}
	if up {
		err = netlink.LinkSetUp(l)
	} else {
		err = netlink.LinkSetDown(l)
	}
	if err != nil {
		return fmt.Errorf("change the link of %s: %w", h.Name, err)
	}
	return nil
}
