// Package wireguard is the tunnel between nodes for networks that are to be encrypted: one device of WireGuard on each
// node, with every other node as a peer. It is the kernel's where that has WireGuard. Otherwise it is that of the
// WireGuard project's own program, in a process beside the agent, which needs the kernel for a TUN device alone. Both
// understand each other.
package wireguard

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/balance/beside"
)

const (
	// Device is the tunnel.
	Device = "tutti.wg"
	// Port is where nodes hear each other, over UDP.
	Port = 4798
	// Cost are the bytes of a packet that the tunnel needs, over IPv4.
	Cost = 60
)

// Ways in which a host has WireGuard.
const (
	Kernel    = "kernel"
	Userspace = "userspace"
)

// Way is how this host can have WireGuard; an error says what is missing.
func Way() (string, error) {
	link := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "tutti.try"}}
	refused := netlink.LinkAdd(link)
	if refused == nil {
		return Kernel, netlink.LinkDel(link)
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("the kernel has no WireGuard (%w), and no TUN devices that a program could do it with: %w", refused, err)
	}
	return Userspace, f.Close()
}

// Config is what a tunnel is to be.
type Config struct {
	MTU     int    `json:"mtu"`
	Private string `json:"private"`
	Peers   []Peer `json:"peers"` // in the order of their keys
}

// Peer is another node.
type Peer struct {
	Public   string         `json:"public"`
	Endpoint netip.AddrPort `json:"endpoint"`
	// Allowed are the addresses that are reached there, and the only ones that may come from there. They are in order.
	Allowed []netip.Prefix `json:"allowed"`
}

// Key returns the private key in a file, which is made when there is none, and the public one that belongs to it.
func Key(path string) (private, public string, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		made, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return "", "", fmt.Errorf("make a key: %w", err)
		}
		text = []byte(made.String() + "\n")
		if err := atomicfile.Write(path, text); err != nil {
			return "", "", fmt.Errorf("keep a key: %w", err)
		}
	} else if err != nil {
		return "", "", fmt.Errorf("read the key: %w", err)
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(text)))
	if err != nil {
		return "", "", fmt.Errorf("read the key in %s: %w", path, err)
	}
	return key.String(), key.PublicKey().String(), nil
}

// Sort puts a configuration into the order that Sync compares by.
func (c *Config) Sort() {
	slices.SortFunc(c.Peers, func(a, b Peer) int { return strings.Compare(a.Public, b.Public) })
	for i := range c.Peers {
		slices.SortFunc(c.Peers[i].Allowed, comparePrefixes)
	}
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// change is what becomes of a peer.
type change struct {
	Peer
	gone bool
}

// changes are what makes one configuration of another. Who goes comes first: addresses are those of one peer.
func changes(from, to []Peer) (out []change) {
	for _, p := range from {
		if !slices.ContainsFunc(to, func(o Peer) bool { return o.Public == p.Public }) {
			out = append(out, change{Peer: p, gone: true})
		}
	}
	for _, p := range to {
		if !slices.ContainsFunc(from, func(o Peer) bool {
			return o.Public == p.Public && o.Endpoint == p.Endpoint && slices.Equal(o.Allowed, p.Allowed)
		}) {
			out = append(out, change{Peer: p})
		}
	}
	return out
}

// Tunnel keeps the device of this node.
type Tunnel struct {
	Way     string // how
	Private string
	beside  *beside.Process
	last    *Config // that is in force; nil: not known
}

// New returns the tunnel of a node, with its files in a directory.
func New(dir, way, private string, log *slog.Logger) *Tunnel {
	return &Tunnel{Way: way, Private: private, beside: &beside.Process{Dir: dir, Role: role, Env: []string{"GOMEMLIMIT=256MiB"}, Log: log}}
}

// Sync makes the device what it is to be, and returns the number of its link.
func (t *Tunnel) Sync(ctx context.Context, c Config) (index int, err error) {
	c.Private = t.Private
	c.Sort()
	link, err := netlink.LinkByName(Device)
	if err == nil && t.last != nil && same(t.last, &c) && t.works() {
		return link.Attrs().Index, nil
	}
	if t.Way == Kernel {
		err = t.syncKernel(link, &c)
	} else {
		err = t.syncBeside(ctx, &c)
	}
	if err != nil {
		t.last = nil
		return 0, fmt.Errorf("set up WireGuard: %w", err)
	}
	if link, err = netlink.LinkByName(Device); err != nil {
		return 0, fmt.Errorf("find the device of WireGuard: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("bring the device of WireGuard up: %w", err)
	}
	t.last = &c
	return link.Attrs().Index, nil
}

func same(a, b *Config) bool {
	return a.MTU == b.MTU && a.Private == b.Private && len(changes(a.Peers, b.Peers)) == 0
}

// works reports whether whoever moves the packets is there.
func (t *Tunnel) works() bool {
	if t.Way == Kernel {
		return true
	}
	_, running := t.beside.Running()
	return running
}

// Broken reports whether a device that was set up is not there any more.
func (t *Tunnel) Broken() bool {
	if t.last == nil {
		return false
	}
	_, err := netlink.LinkByName(Device)
	return err != nil || !t.works()
}

// syncBeside has the process take over what is to be.
func (t *Tunnel) syncBeside(ctx context.Context, c *Config) error {
	if err := os.MkdirAll(t.beside.Dir, 0o700); err != nil {
		return err
	}
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(t.beside.Dir, stateFile), data); err != nil {
		return err
	}
	return t.beside.Tell(ctx)
}

// endPatience bounds how long the process may take to end.
const endPatience = 5 * time.Second

// Remove takes the device away.
func (t *Tunnel) Remove(ctx context.Context) error {
	t.last = nil
	err := t.beside.Remove(ctx)
	for end := time.Now().Add(endPatience); t.beside.Dir != "" && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, running := t.beside.Running(); !running {
			break // and its device is gone
		}
	}
	if link, missing := netlink.LinkByName(Device); missing == nil && link.Type() == "wireguard" {
		err = errors.Join(err, netlink.LinkDel(link))
	}
	return errors.Join(err, os.RemoveAll(t.beside.Dir))
}

func decode(key string) (wgtypes.Key, error) {
	b, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("the key %q of a node cannot be read: %w", key, err)
	}
	return wgtypes.NewKey(b)
}
