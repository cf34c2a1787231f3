package wireguard

import (
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Keys of three nodes, and what the second and third have as the kernel's tools write them.
const (
	private = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
	one     = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
	two     = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func peer(key, at string, allowed ...string) Peer {
	return Peer{Public: key, Endpoint: netip.MustParseAddrPort(at), Allowed: prefixes(allowed...)}
}

func TestKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	first, public, err := Key(path)
	if err != nil {
		t.Fatal(err)
	}
	again, same, err := Key(path)
	if err != nil || first != again || public != same || first == public {
		t.Errorf("the key is %q, %q, and then %q, %q, %v", first, public, again, same, err)
	}
	if key, err := decode(public); err != nil || key.String() != public {
		t.Errorf("the public key is read as %v, %v", key, err)
	}
	if _, err := decode("short"); err == nil {
		t.Error("what is no key is taken for one")
	}
}

// What a program of WireGuard is told: the whole at first, and then what changes.
func TestSettings(t *testing.T) {
	hexOf := func(key string) string {
		k, err := decode(key)
		if err != nil {
			t.Fatal(err)
		}
		text, err := settings(&Config{Private: private}, &Config{Private: private, Peers: []Peer{{Public: k.String()}}})
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(strings.Split(text, "\n")[0], "public_key=")
	}
	a, b, moved := peer(one, "192.0.2.1:4798", "10.99.1.0/28", "10.250.0.1/32"), peer(two, "192.0.2.2:4798", "fd74::/96"), peer(one, "192.0.2.9:4798", "10.99.1.0/28")
	for _, c := range []struct {
		name     string
		from, to Config
		want     string
	}{
		{"nothing", Config{Private: private, Peers: []Peer{a}}, Config{Private: private, Peers: []Peer{a}}, ""},
		{"all", Config{}, Config{Private: private, Peers: []Peer{a, b}}, "private_key=c809f3e5317e9575c9b5ed78b638b7ce530dabe85ddab614220241801ddf0669\nlisten_port=4798\n" +
			"public_key=" + hexOf(one) + "\nendpoint=192.0.2.1:4798\nreplace_allowed_ips=true\nallowed_ip=10.99.1.0/28\nallowed_ip=10.250.0.1/32\n" +
			"public_key=" + hexOf(two) + "\nendpoint=192.0.2.2:4798\nreplace_allowed_ips=true\nallowed_ip=fd74::/96\n"},
		{"one moves, and one goes", Config{Private: private, Peers: []Peer{a, b}}, Config{Private: private, Peers: []Peer{moved}},
			"public_key=" + hexOf(two) + "\nremove=true\npublic_key=" + hexOf(one) + "\nendpoint=192.0.2.9:4798\nreplace_allowed_ips=true\nallowed_ip=10.99.1.0/28\n"},
	} {
		if got, err := settings(&c.from, &c.to); err != nil || got != c.want {
			t.Errorf("%s: told\n%s%v, want\n%s", c.name, got, err, c.want)
		}
	}
	if _, err := settings(&Config{}, &Config{Private: private, Peers: []Peer{{Public: "?"}}}); err == nil {
		t.Error("a node's key that is none is passed on")
	}
}

// What the kernel is told follows from what it has, whoever made that: sessions of peers that stay as they are go on.
func TestKernelConfig(t *testing.T) {
	key := func(text string) wgtypes.Key {
		k, err := decode(text)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ipNet := func(text string) net.IPNet {
		_, n, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		return *n
	}
	c := &Config{Private: private, Peers: []Peer{peer(one, "192.0.2.1:4798", "10.250.0.1/32", "10.99.1.0/28"), peer(two, "192.0.2.2:4798", "10.99.1.16/28")}}
	c.Sort()
	first, err := kernelConfig(&wgtypes.Device{}, c)
	if err != nil || first.PrivateKey == nil || *first.ListenPort != Port || len(first.Peers) != 2 || first.ReplacePeers {
		t.Fatalf("a new device is told %+v, %v", first, err)
	}
	for _, p := range first.Peers {
		if !p.ReplaceAllowedIPs || p.Remove || p.Endpoint == nil || len(p.AllowedIPs) == 0 {
			t.Errorf("a new device is told of %+v", p)
		}
	}
	have := &wgtypes.Device{PrivateKey: key(private), ListenPort: Port, Peers: []wgtypes.Peer{
		{PublicKey: key(one), Endpoint: &net.UDPAddr{IP: net.ParseIP("192.0.2.1"), Port: Port}, AllowedIPs: []net.IPNet{ipNet("10.250.0.1/32"), ipNet("10.99.1.0/28")}},
		{PublicKey: key(two), Endpoint: &net.UDPAddr{IP: net.ParseIP("192.0.2.7"), Port: Port}, AllowedIPs: []net.IPNet{ipNet("10.99.1.16/28")}},
		{PublicKey: key(private), Endpoint: &net.UDPAddr{IP: net.ParseIP("192.0.2.3"), Port: Port}},
	}}
	got, err := kernelConfig(have, c)
	if err != nil || got.PrivateKey != nil {
		t.Fatalf("%+v, %v", got, err)
	}
	want := []wgtypes.PeerConfig{
		{PublicKey: key(private), Remove: true},
		{PublicKey: key(two), Endpoint: net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.2:4798")), ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{{IP: net.IP{10, 99, 1, 16}, Mask: net.CIDRMask(28, 32)}}},
	}
	if !reflect.DeepEqual(got.Peers, want) {
		t.Errorf("a device that is there is told %+v, want %+v", got.Peers, want)
	}
}
