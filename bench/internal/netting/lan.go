package netting

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/balance"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/wire"
)

const (
	clientIP  = "10.99.1.2"
	serverIP  = "10.99.1.18"
	virtualIP = "10.99.1.200"
	echoPort  = 8000
	meshPort  = 18000
)

// lan is two nodes on a switch, and a host beside them; an instance on each node, of which one serves.
type lan struct {
	a, b    *host
	outside netns.NsHandle
	client  netns.NsHandle
	server  netns.NsHandle
	state   *wire.Network
}

type host struct {
	ns      netns.NsHandle
	overlay *overlay.Overlay
	balance *balance.Balance
}

// inside runs a function on a thread of its own in a network namespace.
func inside(ns netns.NsHandle, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

func newNS() (ns netns.NsHandle, err error) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		ns, err = netns.New()
		close(done)
	}()
	<-done
	return ns, err
}

func newLAN(dir string) (*lan, error) {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch"}}
	if err := errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)); err != nil {
		return nil, err
	}
	l := &lan{state: &wire.Network{
		NodePool: "10.250.0.0/16", AddressPool: "10.96.0.0/12",
		Networks: []*model.Network{
			{Meta: model.Meta{ID: "n", Name: "n"}, Status: model.NetworkStatus{Subnet: "10.99.1.0/24", Blocks: []model.Block{{NodeID: "a", CIDR: "10.99.1.0/28"}, {NodeID: "b", CIDR: "10.99.1.16/28"}}}},
			{Meta: model.Meta{ID: "m", Name: "m"}, Status: model.NetworkStatus{Subnet: "10.100.0.0/14", Blocks: []model.Block{{NodeID: "b", CIDR: "10.100.0.0/14"}}}},
		},
		Instances: []wire.NetworkInstance{
			{ID: "client", Name: "client.1", WorkloadID: "c", NodeID: "a", Addresses: []model.Address{{Network: "n", IP: clientIP}}},
			{ID: "server", Name: "s.1", WorkloadID: "s", NodeID: "b", Serves: true, Addresses: []model.Address{{Network: "n", IP: serverIP}}},
		},
	}}
	var all [3]netns.NsHandle
	for i := range all {
		ns, err := newNS()
		if err != nil {
			return nil, err
		}
		all[i] = ns
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("port", i), MasterIndex: bridge.Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns))}
		if err := errors.Join(netlink.LinkAdd(veth), netlink.LinkSetUp(veth)); err != nil {
			return nil, err
		}
		if err := inside(ns, func() error {
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			address, err := netlink.ParseAddr(hostAddress(i) + "/24")
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrAdd(eth, address), netlink.LinkSetUp(eth))
		}); err != nil {
			return nil, err
		}
	}
	l.outside = all[2]
	var err error
	for i, id := range []string{"a", "b"} {
		l.state.Nodes = append(l.state.Nodes, wire.NetworkNode{ID: id, Name: id, HostAddress: hostAddress(i), OverlayAddress: fmt.Sprint("10.250.0.", i+1)})
	}
	if l.a, err = l.node("a", all[0], 0, dir); err != nil {
		return nil, err
	}
	if l.b, err = l.node("b", all[1], 1, dir); err != nil {
		return nil, err
	}
	if l.client, err = l.attach(l.a, "client", clientIP); err != nil {
		return nil, err
	}
	if l.server, err = l.attach(l.b, "server", serverIP); err != nil {
		return nil, err
	}
	return l, inside(l.server, func() error { return serveEcho(echoPort) })
}

func hostAddress(i int) string { return fmt.Sprint("192.168.50.", i+1) }

func (l *lan) node(id string, ns netns.NsHandle, i int, dir string) (*host, error) {
	quiet := slog.New(slog.DiscardHandler)
	h := &host{ns: ns, balance: balance.New(balance.Config{NodeID: id, Log: quiet})}
	return h, inside(ns, func() (err error) {
		h.overlay, err = overlay.New(overlay.Config{NodeID: id, HostAddress: netip.MustParseAddr(hostAddress(i)), RunDir: filepath.Join(dir, id), Log: quiet})
		if err != nil {
			return err
		}
		return h.overlay.Sync(context.Background(), l.state)
	})
}

func (l *lan) attach(h *host, id, ip string) (ns netns.NsHandle, err error) {
	err = inside(h.ns, func() error {
		got, err := h.overlay.Attach(context.Background(), overlay.Attachment{Instance: id, Interfaces: []overlay.Interface{{Network: l.state.Networks[0], IP: netip.MustParseAddr(ip)}}})
		if err != nil {
			return err
		}
		ns, err = netns.GetFromPath(got.NetNS)
		return err
	})
	return ns, err
}

// serveEcho sends back what it gets.
func serveEcho(port int) error {
	l, err := net.Listen("tcp4", fmt.Sprint(":", port))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 128<<10)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					if n < 100 { // what is large is only taken
						if _, err := c.Write(b[:n]); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return nil
}

// path is a way to the server.
type path struct {
	name, address string
	from          netns.NsHandle
}

// paths measures connections, messages and bytes over each way, in turns.
func (l *lan) paths(sheet *report.Sheet, services int, span time.Duration) error {
	direct := path{"direct", fmt.Sprint(serverIP, ":", echoPort), l.client}
	others := []path{{"virtual-ip", fmt.Sprint(virtualIP, ":", echoPort), l.client}, {"mesh", fmt.Sprint(hostAddress(0), ":", meshPort), l.outside}}
	for _, what := range []struct {
		name, unit, counted string
		measure             func(path, time.Duration) (float64, error)
	}{
		{"connections", "connections/s", "connections, one after the other, each with one message to an instance on the other node and back", connections},
		{"messages", "messages/s", "messages on one connection, one after the other, to an instance on the other node and back", messages},
		{"bytes", "MB/s", "bytes sent on one connection to an instance on the other node", throughput},
	} {
		all := map[string][]float64{}
		const rounds = 9
		for range rounds {
			for _, p := range append([]path{direct}, others...) {
				v, err := what.measure(p, span/rounds)
				if err != nil {
					return fmt.Errorf("%s over %s: %w", what.name, p.name, err)
				}
				all[p.name] = append(all[p.name], v)
			}
		}
		for _, p := range others {
			counted := what.counted
			if p.name == "mesh" {
				counted += "; through a published port of the first node, from a host outside (one hop more than the direct way)"
			}
			if err := sheet.Add(report.Row{
				Name: fmt.Sprintf("net/%s/%s/%d", p.name, what.name, services), Value: median(all[p.name]), Unit: what.unit,
				Peer: "direct, from instance to instance", PeerValue: median(all[direct.name]), Counted: counted + "; the median of nine rounds",
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

func (p path) dial() (c net.Conn, err error) {
	err = inside(p.from, func() (err error) {
		c, err = net.DialTimeout("tcp4", p.address, 3*time.Second)
		return err
	})
	return c, err
}

func exchange(c net.Conn, b []byte) error {
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}

func connections(p path, span time.Duration) (rate float64, err error) {
	err = inside(p.from, func() error { // once: entering a namespace costs more than a connection
		n, began := 0, time.Now()
		for ; time.Since(began) < span; n++ {
			c, err := net.DialTimeout("tcp4", p.address, 3*time.Second)
			if err != nil {
				return err
			}
			if err := exchange(c, make([]byte, 1)); err != nil {
				return err
			}
			if err := c.(*net.TCPConn).SetLinger(0); err != nil { // so that no port is kept waiting
				return err
			}
			c.Close()
		}
		rate = float64(n) / time.Since(began).Seconds()
		return nil
	})
	return rate, err
}

func messages(p path, span time.Duration) (float64, error) {
	c, err := p.dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	b := make([]byte, 64)
	n, began := 0, time.Now()
	for ; time.Since(began) < span; n++ {
		if err := exchange(c, b); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

func throughput(p path, span time.Duration) (float64, error) {
	c, err := p.dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	b := make([]byte, 128<<10)
	var n int
	began := time.Now()
	for time.Since(began) < span {
		m, err := c.Write(b)
		if err != nil {
			return 0, err
		}
		n += m
	}
	return float64(n) / 1e6 / time.Since(began).Seconds(), nil
}
