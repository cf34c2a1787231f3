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
	"strconv"
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
// taken over.
func (o *Overlay) Attach(ctx context.Context, a Attachment) (Attached, error) {
	path := o.path(a.Instance)
	if isNamespace(path) && o.complete(&a) {
		return Attached{NetNS: path}, nil
	}
	if err := o.Detach(ctx, a.Instance); err != nil {
		return Attached{}, err
	}
	ns, err := newNamespace(path)
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

// complete reports whether all links of the attachment are there and routed.
func (o *Overlay) complete(a *Attachment) bool {
	for i := range a.Interfaces {
		l, err := netlink.LinkByName(linkName(a.Instance, i))
		if err != nil || l.Attrs().Flags&net.FlagUp == 0 {
			return false
		}
		routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
		if err != nil || len(routes) == 0 {
			return false
		}
	}
	return true
}

// newNamespace makes a network namespace and binds it to a file, so that it lives without a process.
func newNamespace(path string) (netns.NsHandle, error) {
	type result struct {
		ns  netns.NsHandle
		err error
	}
	done := make(chan result, 1)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and with it what it unshared.
		runtime.LockOSThread()
		ns, err := func() (netns.NsHandle, error) {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o400)
			if err != nil {
				return -1, err
			}
			f.Close()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return -1, err
			}
			own := "/proc/thread-self/ns/net"
			if err := unix.Mount(own, path, "", unix.MS_BIND, ""); err != nil {
				return -1, err
			}
			return netns.GetFromPath(path)
		}()
		done <- result{ns, err}
	}()
	r := <-done
	return r.ns, r.err
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
	name := linkName(a.Instance, index)
	mtu := o.mtu
	if itf.Network.MTU > 0 {
		mtu = min(mtu, itf.Network.MTU)
	}
	b := itf.IP.As4()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu, HardwareAddr: gatewayMAC}, PeerName: "eth" + strconv.Itoa(index),
		PeerNamespace: netlink.NsFd(int(ns)), PeerHardwareAddr: net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]},
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the link: %w", err)
	}
	eth, err := inside.LinkByName("eth" + strconv.Itoa(index))
	if err != nil {
		return err
	}
	if err := inside.LinkSetMTU(eth, mtu); err != nil {
		return err
	}
	if err := inside.AddrAdd(eth, &netlink.Addr{IPNet: single(itf.IP)}); err != nil {
		return fmt.Errorf("add the address: %w", err)
	}
	if err := inside.LinkSetUp(eth); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return err
	}
	e := end{inside: inside, eth: eth, veth: veth, peer: veth.PeerHardwareAddr}
	gw := netip.MustParseAddr(GatewayAddress)
	if err := e.neighbours(itf.IP, gw); err != nil {
		return err
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
	if itf.IP6.IsValid() {
		return e.connect6(itf, isDefault6)
	}
	return nil
}

// end is a link with both of its ends.
type end struct {
	inside    *netlink.Handle // of the instance's namespace
	eth, veth netlink.Link
	peer      net.HardwareAddr // of eth
}

// connect6 gives a link its address of IPv6, and what leads to it.
func (e *end) connect6(itf *Interface, isDefault bool) error {
	gw := netip.MustParseAddr(gateway6)
	if err := e.inside.AddrAdd(e.eth, &netlink.Addr{IPNet: single(itf.IP6), Flags: unix.IFA_F_NODAD}); err != nil {
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
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: e.veth.Attrs().Index, Dst: single(ip), Scope: unix.RT_SCOPE_LINK, Protocol: protocol}); err != nil {
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
			break // links are made, and go, in order
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
