package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Attachment says how an instance is connected.
type Attachment struct {
	Instance   string
	Interfaces []Interface
	Sysctls    map[string]string // of the network namespace
	Isolated   bool              // nothing but loopback
	// MakeNamespace makes a network namespace and binds it to a file; nil makes one of this process's users.
	MakeNamespace func(path string) error

	// Of interfaces that are not all made anew, in their order: the numbers of their links, and which are there.
	numbers []int
	made    []bool
	// outByHosts says that the way out is a network of hosts.
	outByHosts bool
}

// number is that of an interface's link.
func (a *Attachment) number(i int) int {
	if a.numbers == nil {
		return i
	}
	return a.numbers[i]
}

// Interface is one link of an instance.
type Interface struct {
	Network *model.Network
	IP      netip.Addr
	IP6     netip.Addr // invalid: none
}

// Attached is the result of an attachment.
type Attached struct {
	NetNS string // path of the namespace
}

// linkName is the host's end of an instance's link: the prefix and a hash of the instance.
func linkName(instance string, index int) string {
	h := fnv.New64a()
	h.Write([]byte(instance))
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], h.Sum64())
	return fmt.Sprintf("%s%x-%d", LinkPrefix, b[:5], index)
}

func (o *Overlay) path(instance string) string { return filepath.Join(o.dir(), instance) }

// Attach makes an instance's namespace and links. It is idempotent: what an earlier agent made is
// taken over, and where the instance is to have other links than it has, only those change.
func (o *Overlay) Attach(ctx context.Context, a Attachment) (Attached, error) {
	path := o.path(a.Instance)
	if isNamespace(path) {
		if o.complete(&a) {
			return Attached{NetNS: path}, nil
		}
		if err := o.relink(path, &a); err != nil {
			return Attached{}, fmt.Errorf("change the links of instance %s: %w", a.Instance, err)
		}
		return Attached{NetNS: path}, nil
	}
	if err := o.Detach(ctx, a.Instance); err != nil {
		return Attached{}, err
	}
	if a.MakeNamespace == nil {
		a.MakeNamespace = newNamespace
	}
	var ns netns.NsHandle
	err := a.MakeNamespace(path)
	if err == nil {
		ns, err = netns.GetFromPath(path)
	}
	if err != nil {
		return Attached{}, fmt.Errorf("make a network namespace: %w", err)
	}
	defer ns.Close()
	if err := o.connect(ns, &a); err != nil {
		return Attached{}, errors.Join(err, o.Detach(ctx, a.Instance))
	}
	return Attached{NetNS: path}, nil
}

func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// hostEnd is the node's end of an instance's link, by its number.
type hostEnd struct {
	link  netlink.Link
	index int
	ip    netip.Addr // of the instance; invalid when nothing leads there
}

// usualGap is how many numbers may be free between those of an instance's links for all of them to be found
// at once: they are given in order, and become free as networks are left.
const usualGap = 8

// hostEnds finds the links of an instance. Of those beyond a gap it knows nothing.
func hostEnds(instance string, gap int) (out []hostEnd) {
	for i, missed := 0, 0; i < maxLinks && missed < gap; i++ {
		l, err := netlink.LinkByName(linkName(instance, i))
		if err != nil {
			missed++
			continue
		}
		missed = 0
		e := hostEnd{link: l, index: i}
		routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
		if err == nil && l.Attrs().Flags&net.FlagUp != 0 && len(routes) > 0 && routes[0].Dst != nil {
			if ip, ok := netip.AddrFromSlice(routes[0].Dst.IP.To4()); ok {
				e.ip = ip
			}
		}
		out = append(out, e)
	}
	return out
}

// complete reports whether the links of the attachment are there and routed, and no others.
func (o *Overlay) complete(a *Attachment) bool {
	have := hostEnds(a.Instance, usualGap)
	if len(have) != len(a.Interfaces) {
		return false
	}
	for i := range a.Interfaces {
		if !slices.ContainsFunc(have, func(e hostEnd) bool { return e.ip == a.Interfaces[i].IP }) {
			return false
		}
	}
	return true
}

// relink gives an instance that may be running the links that it is to have: those that it has stay as they are.
func (o *Overlay) relink(path string, a *Attachment) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	numbers := map[netip.Addr]int{}
	taken := map[int]bool{}
	for _, e := range hostEnds(a.Instance, maxLinks) {
		wanted := slices.ContainsFunc(a.Interfaces, func(itf Interface) bool { return itf.IP == e.ip })
		if _, twice := numbers[e.ip]; wanted && !twice {
			numbers[e.ip], taken[e.index] = e.index, true
			continue
		}
		if err := netlink.LinkDel(e.link); err != nil {
			return fmt.Errorf("remove a link: %w", err)
		}
		if err := leaveHosts(ns, e.index); err != nil {
			return err
		}
	}
	a.numbers = make([]int, len(a.Interfaces))
	a.made = make([]bool, len(a.Interfaces))
	next := 0
	for i := range a.Interfaces {
		n, ok := numbers[a.Interfaces[i].IP]
		if !ok {
			for ; taken[next]; next++ {
			}
			n, taken[next] = next, true
		}
		a.numbers[i], a.made[i] = n, ok
	}
	return o.connect(ns, a)
}

// newNamespace makes a network namespace and binds it to a file, so that it lives without a process.
func newNamespace(path string) error {
	done := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and with it what it unshared.
		runtime.LockOSThread()
		done <- func() error {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o400)
			if err != nil {
				return err
			}
			f.Close()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}()
	}()
	return <-done
}

func (o *Overlay) connect(ns netns.NsHandle, a *Attachment) error {
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter the instance's network: %w", err)
	}
	defer inside.Close()
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the instance's loopback: %w", err)
	}
	if err := inside.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring the instance's loopback up: %w", err)
	}
	if err := setSysctls(ns, a.Sysctls); err != nil {
		return err
	}
	if a.Isolated {
		return nil
	}
	// The first network with a way out has it, for each version of IP.
	var out, out6 *Interface
	for i := range a.Interfaces {
		itf := &a.Interfaces[i]
		if itf.Network.Internal {
			continue
		}
		if out == nil {
			out = itf
		}
		if out6 == nil && itf.IP6.IsValid() {
			out6 = itf
		}
	}
	a.outByHosts = out != nil && out.Network.Underlay != nil
	for i := range a.Interfaces {
		itf := &a.Interfaces[i]
		if err := o.link(inside, ns, a, i, itf == out, itf == out6); err != nil {
			return fmt.Errorf("link the instance to network %s: %w", a.Interfaces[i].Network.FullName(), err)
		}
	}
	return nil
}

func (o *Overlay) link(inside *netlink.Handle, ns netns.NsHandle, a *Attachment, index int, isDefault, isDefault6 bool) error {
	itf := &a.Interfaces[index]
	name, inner := linkName(a.Instance, a.number(index)), innerName(itf, a.number(index))
	b := itf.IP.As4()
	e := end{inside: inside, onHosts: itf.Network.Underlay != nil, peer: net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}}
	var err error
	if a.made != nil && a.made[index] {
		if e.veth, err = netlink.LinkByName(name); err == nil {
			e.eth, err = inside.LinkByName(inner)
		}
	} else {
		err = o.make(&e, ns, itf, name, inner)
	}
	if err != nil {
		return err
	}
	gw := netip.MustParseAddr(GatewayAddress)
	if err := e.neighbours(itf.IP, gw); err != nil {
		return err
	}
	if itf.Network.Underlay != nil {
		return o.linkHosts(&e, ns, itf, index == 0 || isDefault, isDefault, a.number(index))
	}
	if index == 0 || isDefault { // names are answered there, whatever else is reachable
		if err := e.route(netip.PrefixFrom(gw, 32), netip.Addr{}, itf.IP); err != nil {
			return err
		}
	}
	if isDefault {
		if err := e.route(netip.PrefixFrom(netip.IPv4Unspecified(), 0), gw, itf.IP); err != nil {
			return err
		}
	}
	if index > 0 || !isDefault {
		if err := e.routeSubnet(itf.Network.Status.Subnet, gw, itf.IP); err != nil {
			return err
		}
	}
	if a.outByHosts && !itf.Network.Internal {
		if err := e.answerBy(a.number(index), gw, itf.IP); err != nil {
			return err
		}
	}
	if itf.IP6.IsValid() {
		return e.connect6(itf, isDefault6)
	}
	return nil
}

// answerTables is the first of the routing tables by which an instance answers who came by another link than the way out.
const answerTables = 7400

// answerBy has what the instance sends from the link's address go out by it, whoever it is for: who comes by a published
// port is answered through the node.
func (e *end) answerBy(number int, gw, ip netip.Addr) error {
	table := answerTables + number
	r := &netlink.Route{LinkIndex: e.eth.Attrs().Index, Table: table, Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := e.inside.RouteReplace(r); err != nil {
		return fmt.Errorf("add the route of answers: %w", err)
	}
	rule := netlink.NewRule()
	rule.Src, rule.Table, rule.Family = single(ip), table, unix.AF_INET
	if err := e.inside.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add the rule of answers: %w", err)
	}
	return nil
}

// make makes a link, with an address and nothing that leads there.
func (o *Overlay) make(e *end, ns netns.NsHandle, itf *Interface, name, inner string) error {
	mtu := o.mtu
	if itf.Network.Encrypted {
		mtu = o.sealedMTU()
	}
	if itf.Network.MTU > 0 {
		mtu = min(mtu, itf.Network.MTU)
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu, HardwareAddr: gatewayMAC}, PeerName: inner,
		PeerNamespace: netlink.NsFd(int(ns)), PeerHardwareAddr: e.peer,
	}
	err := netlink.LinkAdd(veth)
	if err != nil {
		return fmt.Errorf("make the link: %w", err)
	}
	e.veth = veth
	if e.eth, err = e.inside.LinkByName(inner); err != nil {
		return err
	}
	if err := e.inside.LinkSetMTU(e.eth, mtu); err != nil {
		return err
	}
	if err := e.inside.AddrAdd(e.eth, &netlink.Addr{IPNet: single(itf.IP)}); err != nil {
		return fmt.Errorf("add the address: %w", err)
	}
	if err := e.inside.LinkSetUp(e.eth); err != nil {
		return err
	}
	return netlink.LinkSetUp(veth)
}

// end is a link with both of its ends.
type end struct {
	onHosts   bool            // only names are asked for there
	inside    *netlink.Handle // of the instance's namespace
	eth, veth netlink.Link
	peer      net.HardwareAddr // of eth
}

// connect6 gives a link its address of IPv6, and what leads to it.
func (e *end) connect6(itf *Interface, isDefault bool) error {
	gw := netip.MustParseAddr(gateway6)
	if err := e.inside.AddrReplace(e.eth, &netlink.Addr{IPNet: single(itf.IP6), Flags: unix.IFA_F_NODAD}); err != nil {
		return fmt.Errorf("add the IPv6 address: %w", err)
	}
	if err := e.neighbours(itf.IP6, gw); err != nil {
		return err
	}
	if isDefault {
		return e.route(netip.PrefixFrom(netip.IPv6Unspecified(), 0), gw, itf.IP6)
	}
	return e.routeSubnet(itf.Network.Status.Subnet6, gw, itf.IP6)
}

// neighbours makes both ends know each other, so that none ever asks, and leads to the instance.
func (e *end) neighbours(ip, gw netip.Addr) error {
	if err := e.inside.NeighSet(&netlink.Neigh{LinkIndex: e.eth.Attrs().Index, Family: familyOf(gw), State: netlink.NUD_PERMANENT, IP: gw.AsSlice(), HardwareAddr: gatewayMAC}); err != nil {
		return fmt.Errorf("add the gateway's neighbour entry: %w", err)
	}
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: e.veth.Attrs().Index, Family: familyOf(ip), State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: e.peer}); err != nil {
		return fmt.Errorf("add the instance's neighbour entry: %w", err)
	}
	r := &netlink.Route{LinkIndex: e.veth.Attrs().Index, Dst: single(ip), Scope: unix.RT_SCOPE_LINK, Protocol: protocol}
	if e.onHosts {
		r.Src = gw.AsSlice() // answers to any other address of the node would go out by the network of hosts
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("add the route to the instance: %w", err)
	}
	return nil
}

func (e *end) routeSubnet(subnet string, gw, src netip.Addr) error {
	p, err := netip.ParsePrefix(subnet)
	if err != nil {
		return fault.New(fault.Unavailable, "its subnet is not known yet")
	}
	return e.route(p, gw, src)
}

// route leads what the instance sends; without a gateway, to the other end itself.
func (e *end) route(to netip.Prefix, gw, src netip.Addr) error {
	r := &netlink.Route{LinkIndex: e.eth.Attrs().Index, Dst: ipNet(to), Src: src.AsSlice(), Scope: unix.RT_SCOPE_LINK}
	if gw.IsValid() {
		r.Gw, r.Flags, r.Scope = gw.AsSlice(), int(netlink.FLAG_ONLINK), unix.RT_SCOPE_UNIVERSE
	}
	if err := e.inside.RouteReplace(r); err != nil {
		return fmt.Errorf("add the route to %s: %w", to, err)
	}
	return nil
}

// setSysctls sets what belongs to a network namespace, from a thread inside it.
func setSysctls(ns netns.NsHandle, sysctls map[string]string) error {
	if len(sysctls) == 0 {
		return nil
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- func() error {
			if err := netns.Set(ns); err != nil {
				return err
			}
			for k, v := range sysctls {
				if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(k, ".", "/"), []byte(v), 0); err != nil {
					return fault.New(fault.Invalid, "sysctl %s=%s: %w", k, v, err)
				}
			}
			return nil
		}()
	}()
	return <-done
}

// Detach removes an instance's links and namespace; it is idempotent.
func (o *Overlay) Detach(ctx context.Context, instance string) error {
	for i := range maxLinks {
		l, err := netlink.LinkByName(linkName(instance, i))
		if err != nil {
			break // those beyond one that was left go with the namespace
		}
		if err := netlink.LinkDel(l); err != nil {
			return fmt.Errorf("remove the links of instance %s: %w", instance, err)
		}
	}
	path := o.path(instance)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("release the network namespace of instance %s: %w", instance, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("release the network namespace of instance %s: %w", instance, err)
	}
	return nil
}
