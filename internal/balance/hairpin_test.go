package balance

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// TestAnInstanceReachesItself by its own service: by the virtual IP, by another port of it, and by the port that is
// published, at its own node, at another one, and where one client is always led to the same; by both versions of IP.
func TestAnInstanceReachesItself(t *testing.T) {
	l := newLAN(t)
	front := network("front", "10.99.1.0/24", false)
	front.Status.Subnet6, l.state.AddressPool6 = "fd74:1::/64", "fd74:0::/48"
	front.Status.Blocks = []model.Block{{NodeID: "a", CIDR: "10.99.1.0/28"}, {NodeID: "b", CIDR: "10.99.1.16/28"}}
	l.state.Networks = []*model.Network{front}
	self := l.attach(l.a, "self", "front=10.99.1.2")
	l.serve(self, ":80", "self")
	l.serveDatagrams(self, ":53", "self")
	l.state.Instances[0].HostPorts = []model.HostPort{{Protocol: "tcp", Published: 21000, Target: 80}}
	only := []wire.Endpoint{{Instance: "self", NodeID: "a", Addresses: l.at("front=10.99.1.2")}}
	moved := []wire.Endpoint{{Instance: "self", NodeID: "a", Addresses: l.at("front=10.99.1.2"), Targets: map[string]int{"web": 80}}}
	l.state.Services = []wire.NetworkService{
		{ID: "s", VirtualIPs: l.at("front=10.99.1.200"), Endpoints: only, Ports: []model.ServicePort{
			{Protocol: "tcp", Target: 80, Virtual: 8000, Published: 8080}, {Protocol: "udp", Target: 53, Published: 5300},
			{Protocol: "tcp", Target: 80, Published: 8081, HostMode: true}, {Protocol: "tcp", Target: 80, Published: 8082, HostIP: "192.168.50.1"},
		}},
		{ID: "sticky", VirtualIPs: l.at("front=10.99.1.201"), Endpoints: only, Balance: model.Balancing{Sticky: time.Minute}, Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 8083}}},
		{ID: "local", VirtualIPs: l.at("front=10.99.1.202"), Endpoints: only, Balance: model.Balancing{Local: model.LocalOnly}},
		{ID: "direct", Direct: true, VirtualIPs: []model.Address{{Network: "front", IP: "10.212.0.1"}}, Endpoints: only, Ports: []model.ServicePort{{Protocol: "tcp", Virtual: 81, Target: 80}}},
		{ID: "elsewhere", Direct: true, VirtualIPs: []model.Address{{Network: "front", IP: "10.212.0.2"}}, Endpoints: moved, Ports: []model.ServicePort{{Name: "web", Protocol: "tcp", Virtual: 82, Target: 9, Published: 8084}}},
	}
	l.sync()
	for _, address := range []string{
		"10.99.1.200:80", "10.99.1.200:8000", "10.99.1.201:80", "10.99.1.202:80", "10.212.0.1:81", "10.212.0.2:82", "192.168.50.1:8084",
		"192.168.50.1:8080", "192.168.50.1:8081", "192.168.50.1:8082", "192.168.50.1:8083", "192.168.50.1:21000",
	} {
		l.want(self, address, "self 10.250.0.1")
	}
	for _, address := range []string{"192.168.50.2:8080", "192.168.50.2:8083"} { // out, to the other node, and back by the tunnel
		l.want(self, address, "self 10.250.0.2")
	}
	for _, address := range []string{"[fd74:1::a63:1c8]:80", "[fd74:1::a63:1c8]:8000", "[fd74:1::a63:1c9]:80", "[fd74:1::a63:1ca]:80"} {
		l.want(self, address, "self fd74::afa:1")
	}
	for _, address := range []string{"10.99.1.200:53", "192.168.50.1:5300"} {
		if got, err := askDatagram(self, address); err != nil || got != "self 10.250.0.1" {
			t.Errorf("%s answers %q, %v", address, got, err)
		}
	}
}

// sctp is a packet of SCTP with one chunk. Kernels without its sockets follow and translate it all the same.
func sctp(from, to uint16, tag uint32, chunk byte, value []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0, chunk, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(value)))
	b = append(b, value...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// rawSCTP is what sends and sees packets of SCTP in a namespace.
func (l *lan) rawSCTP(ns netns.NsHandle) (fd int) {
	l.Helper()
	l.in(ns, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3})
	})
	l.Cleanup(func() { unix.Close(fd) })
	return fd
}

// see waits for a packet with a chunk, and says between whom it is.
func see(fd int, chunk byte) (from, to netip.AddrPort, packet []byte, err error) {
	b := make([]byte, 2000)
	for range 20 {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return from, to, nil, fmt.Errorf("wait for chunk %d: %w", chunk, err)
		}
		head := int(b[0]&15) * 4
		if p := b[head:n]; len(p) > 12 && p[12] == chunk {
			at := func(offset, port int) netip.AddrPort {
				return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[offset:offset+4])), binary.BigEndian.Uint16(p[port:]))
			}
			return at(12, 0), at(16, 2), bytes.Clone(p), nil
		}
	}
	return from, to, nil, fmt.Errorf("no chunk %d", chunk)
}

// TestSCTPIsLed sends the packets that begin an association to a virtual IP, to another port of it and to a published
// port, and has them answered: to whom they come, and from whom the answer seems to be.
func TestSCTPIsLed(t *testing.T) {
	l := newLAN(t)
	front := network("front", "10.99.1.0/24", false)
	front.Status.Blocks = []model.Block{{NodeID: "a", CIDR: "10.99.1.0/28"}, {NodeID: "b", CIDR: "10.99.1.16/28"}}
	l.state.Networks = []*model.Network{front}
	client := l.attach(l.a, "client", "front=10.99.1.2")
	far := l.attach(l.b, "far", "front=10.99.1.18")
	l.state.Services = []wire.NetworkService{{
		ID: "s", VirtualIPs: at("front=10.99.1.200"), Endpoints: []wire.Endpoint{{Instance: "far", NodeID: "b", Addresses: at("front=10.99.1.18")}},
		Ports: []model.ServicePort{{Protocol: "sctp", Target: 3868, Virtual: 3869, Published: 13868}, {Protocol: "tcp", Target: 80, Published: 13868}},
	}}
	l.sync()
	const begin, answer = 1, 2 // INIT, INIT ACK
	// A tag, the window, streams each way, and the first number.
	value := func(tag uint32) []byte {
		return append(binary.BigEndian.AppendUint32(nil, tag), 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
	}
	serves := l.rawSCTP(far)
	for i, c := range []struct {
		from     netns.NsHandle
		to, seen string // who is asked, and whom the instance sees
		port     uint16
	}{
		{client, "10.99.1.200", "10.99.1.2", 3868}, {client, "10.99.1.200", "10.99.1.2", 3869},
		{l.outside, "192.168.50.1", "10.250.0.1", 13868}, {l.outside, "192.168.50.2", "192.168.50.3", 13868},
	} {
		asks, own, tag := l.rawSCTP(c.from), uint16(40000+i), uint32(1000+i)
		to := netip.AddrPortFrom(netip.MustParseAddr(c.to), c.port)
		send := func(fd int, to netip.Addr, packet []byte) error {
			return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()})
		}
		if err := send(asks, to.Addr(), sctp(own, c.port, 0, begin, value(tag))); err != nil {
			t.Fatal(err)
		}
		seen, at, packet, err := see(serves, begin)
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		if seen.Addr().String() != c.seen || at.String() != "10.99.1.18:3868" {
			t.Errorf("%s leads to %s, and who asks seems to be %s; want 10.99.1.18:3868 and %s", to, at, seen, c.seen)
		}
		sum := binary.LittleEndian.Uint32(packet[8:])
		copy(packet[8:], make([]byte, 4))
		if want := crc32.Checksum(packet, crc32.MakeTable(crc32.Castagnoli)); sum != want {
			t.Errorf("%s: the checksum is %x when it arrives, want %x", to, sum, want)
		}
		if err := send(serves, seen.Addr(), sctp(at.Port(), seen.Port(), tag, answer, value(7))); err != nil {
			t.Fatal(err)
		}
		by, _, _, err := see(asks, answer)
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		if by != to {
			t.Errorf("who asked %s is answered by %s", to, by)
		}
	}
}
