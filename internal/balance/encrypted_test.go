package balance

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/overlay/wireguard"
	"github.com/tutti-run/tutti/internal/wire"
)

// capture keeps what passes an interface.
type capture struct {
	fd   int
	wait sync.WaitGroup

	mu      sync.Mutex
	packets [][]byte
}

// listenAt sees the packets of a namespace's eth0, both ways, until the test ends.
func (l *lan) listenAt(ns netns.NsHandle) *capture {
	l.Helper()
	c := &capture{}
	l.in(ns, func() (err error) {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all&0xffff); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
			unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: eth.Attrs().Index}))
	})
	stop := make(chan struct{})
	c.wait.Go(func() {
		b := make([]byte, 1<<17)
		for {
			n, _, err := unix.Recvfrom(c.fd, b, 0)
			if err == nil {
				c.mu.Lock()
				c.packets = append(c.packets, bytes.Clone(b[:n]))
				c.mu.Unlock()
				continue
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	l.Cleanup(func() { close(stop); c.wait.Wait(); unix.Close(c.fd) })
	return c
}

// reset forgets what was seen.
func (c *capture) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.packets = nil
}

// seen counts the packets over UDP to a port; of the tunnel that is not encrypted, those of the network vault.
func (c *capture) seen(port uint16) (packets int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.packets {
		if len(p) < 38 || p[12] != 8 || p[13] != 0 || p[23] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(p[36:]) != port {
			continue
		}
		if port != overlay.Port || bytes.Contains(p, []byte{10, 99, 1}) || bytes.Contains(p, []byte{0xfd, 0x74, 0, 1, 0, 0, 0, 1}) {
			packets++
		}
	}
	return packets
}

// reads counts the packets in which a text can be read, whatever they are.
func (c *capture) reads(text []byte) (packets int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.packets {
		if bytes.Contains(p, text) {
			packets++
		}
	}
	return packets
}

// soon waits until something is so.
func soon(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not so after 30 s", what)
		}
	}
}

// sends writes a text so often, and wants it back.
func (l *lan) sends(ns netns.NsHandle, address string, text []byte, times int) {
	l.Helper()
	c, err := dial(ns, address)
	if err != nil {
		l.Fatalf("%s: %v", address, err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(60 * time.Second))
	want := bytes.Repeat(text, times)
	go c.Write(want)
	for b := make([]byte, 1); b[0] != '\n'; { // what it is called
		if _, err := c.Read(b); err != nil {
			l.Fatalf("%s: %v", address, err)
		}
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		l.Fatalf("%s: %d bytes did not come back as they were: %v", address, len(want), err)
	}
}

// What passes between nodes on an encrypted network cannot be read on the wire, and does not go by the other tunnel;
// what is on other networks goes as before, and whatever is injected there does not arrive.
func TestEncryptedNetworks(t *testing.T) {
	l := newLAN(t)
	way, err := wireguard.Way()
	if err != nil {
		t.Skipf("networks cannot be encrypted here: %v", err)
	}
	t.Logf("WireGuard is the %s's", way)
	l.state.AddressPool6 = "fd74:1::/48"
	vault, front := network("vault", "10.99.1.0/24", false), network("front", "10.99.2.0/24", false)
	vault.Encrypted, vault.Status.Subnet6, front.Status.Subnet6 = true, "fd74:1:0:1::/64", "fd74:1:0:2::/64"
	vault.Status.Blocks = []model.Block{{NodeID: "a", CIDR: "10.99.1.0/28"}, {NodeID: "b", CIDR: "10.99.1.16/28"}}
	front.Status.Blocks = []model.Block{{NodeID: "a", CIDR: "10.99.2.0/28"}, {NodeID: "b", CIDR: "10.99.2.16/28"}}
	l.state.Networks = []*model.Network{vault, front}
	for i, h := range []*host{l.a, l.b} {
		dir := t.TempDir()
		private, public, err := wireguard.Key(filepath.Join(dir, "key"))
		if err != nil {
			t.Fatal(err)
		}
		h.overlay.Sealed = wireguard.New(filepath.Join(dir, "run"), way, private, slog.New(slog.DiscardHandler))
		l.state.Nodes[i].TunnelKey = public
	}
	client := l.attach(l.a, "client", "vault=10.99.1.2", "front=10.99.2.2")
	server := l.attach(l.b, "server", "vault=10.99.1.18", "front=10.99.2.18")
	alone := l.attach(l.b, "alone", "vault=10.99.1.40") // outside of any block of its node
	l.serve(server, ":80", "server")
	l.serve(alone, ":80", "alone")
	l.state.Services = []wire.NetworkService{{
		ID: "web", VirtualIPs: l.at("vault=10.99.1.200"), Endpoints: []wire.Endpoint{{Instance: "server", NodeID: "b", Addresses: l.at("vault=10.99.1.18")}},
		Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 8080}},
	}}
	l.sync()
	wire, secret := l.listenAt(l.a.ns), []byte("nobody else is to read this.")

	for _, c := range []struct {
		name    string
		from    netns.NsHandle
		address string
		clear   bool
	}{
		{"address", client, "10.99.1.18:80", false},
		{"address outside of blocks", client, "10.99.1.40:80", false},
		{"IPv6", client, "[" + l.at("vault=10.99.1.18")[0].IP6 + "]:80", false},
		{"virtual IP", client, "10.99.1.200:80", false},
		{"the node itself", l.a.ns, "10.99.1.18:80", false},
		{"another network", client, "10.99.2.18:80", true},
		{"another network, IPv6", client, "[" + l.at("front=10.99.2.18")[0].IP6 + "]:80", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := l.of(t)
			wire.reset()
			l.sends(c.from, c.address, secret, 20000) // packets of all sizes, and larger than one can be
			if c.clear {
				soon(t, "it is seen on the wire", func() bool { return wire.reads(secret) > 0 })
				return
			}
			soon(t, "WireGuard's packets are seen on the wire", func() bool { return wire.seen(wireguard.Port) > 10 })
			if n, readable := wire.seen(overlay.Port), wire.reads(secret); n > 0 || readable > 0 {
				t.Errorf("%d packets went by VXLAN, and %d could be read", n, readable)
			}
		})
	}
	t.Run("published port", func(t *testing.T) { // the client is outside, and what it sends is in the clear up to the first node
		l := l.of(t)
		wire := l.listenAt(l.b.ns)
		l.sends(l.outside, "192.168.50.1:8080", secret, 2000)
		soon(t, "WireGuard's packets are seen on the wire", func() bool { return wire.seen(wireguard.Port) > 3 })
		if n, readable := wire.seen(overlay.Port), wire.reads(secret); n > 0 || readable > 0 {
			t.Errorf("%d packets went by VXLAN, and %d could be read", n, readable)
		}
	})
	t.Run("injected", func(t *testing.T) {
		l := l.of(t)
		heard := make(chan string, 16)
		l.in(server, func() error {
			c, err := net.ListenPacket("udp4", ":5353")
			if err != nil {
				return err
			}
			l.Cleanup(func() { c.Close() })
			go func() {
				for b := make([]byte, 100); ; {
					n, _, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					heard <- string(b[:n])
				}
			}()
			return nil
		})
		for _, to := range []string{"10.99.1.18", "10.99.2.18"} { // the second arrives, and so does what was before it
			l.inject("10.99.1.2", to, to)
		}
		l.inject("10.99.2.2", "10.99.2.18", "the last")
		var all []string
		for len(all) == 0 || all[len(all)-1] != "the last" {
			select {
			case text := <-heard:
				all = append(all, text)
			case <-time.After(30 * time.Second):
				t.Fatalf("heard %q, and nothing more", all)
			}
		}
		if len(all) != 1 {
			t.Errorf("heard %q, want the last alone: the others have an address of an encrypted network", all)
		}
	})
	t.Run("a tunnel that ended", func(t *testing.T) {
		if way == wireguard.Kernel {
			t.Skip("the kernel's does not end")
		}
		l := l.of(t)
		l.in(l.a.ns, func() error { return l.a.overlay.Sealed.Remove(t.Context()) })
		if _, err := ask(client, "10.99.1.18:80"); err == nil {
			t.Error("without a tunnel there is an answer")
		}
		l.sync()
		l.want(client, "10.99.1.18:80", "server 10.99.1.2")
	})
	t.Run("a peer that goes", func(t *testing.T) {
		l := l.of(t)
		key := l.state.Nodes[1].TunnelKey
		l.state.Nodes[1].TunnelKey = ""
		l.sync()
		if _, err := ask(client, "10.99.1.18:80"); err == nil {
			t.Error("a node without a key is reached")
		}
		l.state.Nodes[1].TunnelKey = key
		l.sync()
		l.want(client, "10.99.1.18:80", "server 10.99.1.2")
	})
	t.Run("a host that cannot", func(t *testing.T) {
		l := l.of(t)
		tunnel := l.a.overlay.Sealed
		l.in(l.a.ns, func() error { return tunnel.Remove(t.Context()) })
		l.a.overlay.Sealed = nil
		defer func() { l.a.overlay.Sealed = tunnel }()
		wire.reset()
		l.sync()
		if _, err := ask(client, "10.99.1.18:80"); err == nil {
			t.Error("there is an answer")
		}
		if n := wire.seen(overlay.Port); n > 0 {
			t.Errorf("%d packets went by VXLAN", n)
		}
		l.want(client, "10.99.2.18:80", "server 10.99.2.2")
	})
	t.Run("no network is encrypted any more", func(t *testing.T) {
		l := l.of(t)
		plain := *vault
		plain.Encrypted = false
		l.state.Networks = slices.Clone(l.state.Networks)
		l.state.Networks[0] = &plain
		l.sync()
		l.want(client, "10.99.1.18:80", "server 10.99.1.2")
		for _, h := range []*host{l.a, l.b} {
			l.in(h.ns, func() error {
				links, err := netlink.LinkList()
				for _, link := range links {
					if link.Attrs().Name == wireguard.Device {
						t.Error("the device is there still")
					}
				}
				return err
			})
		}
	})
}

// inject sends a packet over UDP into the second node's tunnel as if the first node had, with addresses of instances.
func (l *lan) inject(from, to, text string) {
	l.Helper()
	src, dst := net.ParseIP(from).To4(), net.ParseIP(to).To4()
	udp := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, 4000), 5353)
	udp = append(binary.BigEndian.AppendUint16(udp, uint16(8+len(text))), 0, 0)
	udp = append(udp, text...)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	ip = append(append(ip, src...), dst...)
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(udp)))
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	frame := []byte{8, 0, 0, 0, 0, 0, 0, 0} // VXLAN, with an identifier
	l.in(l.b.ns, func() error {
		link, err := netlink.LinkByName(overlay.Device)
		if err != nil {
			return err
		}
		v := link.(*netlink.Vxlan)
		frame[4], frame[5], frame[6] = byte(v.VxlanId>>16), byte(v.VxlanId>>8), byte(v.VxlanId)
		frame = append(append(frame, v.HardwareAddr...), 0x0e, 0x54, 10, 250, 0, 1, 8, 0)
		return nil
	})
	frame = append(append(frame, ip...), udp...)
	l.in(l.a.ns, func() error {
		c, err := net.Dial("udp4", strings.Join([]string{"192.168.50.2", "4799"}, ":"))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(frame)
		return err
	})
}
