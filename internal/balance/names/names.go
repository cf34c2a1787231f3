// Package names answers DNS for instances, on every node: services, instances and their aliases,
// each as the asker's own networks see them, and everything else by asking the host's resolvers.
//
// The responder is a process of its own, this same program re-executed, so that names are answered
// also while the agent is away. It reads the network state from a file that the agent replaces.
package names

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/wire"
)

// Suffixes under which names of the cluster are known besides their plain form.
var suffixes = []string{".tutti", ".internal"}

// answer is what a name means to an asker.
type answer struct {
	known     bool // the name exists, though perhaps not with an address
	addresses []netip.Addr
}

// zone is the network state arranged for answering. It is immutable.
type zone struct {
	clients   map[netip.Addr]*client
	names     map[string]map[string][]netip.Addr // network ID → name → addresses
	reverse   map[netip.Addr]string
	wellKnown map[string]bool // names that exist on some network
}

type client struct {
	namespace string
	networks  []string
	upstreams []string
}

func newZone(n *wire.Network) *zone {
	z := &zone{
		clients: map[netip.Addr]*client{}, names: map[string]map[string][]netip.Addr{},
		reverse: map[netip.Addr]string{}, wellKnown: map[string]bool{},
	}
	for _, i := range n.Instances {
		c := &client{namespace: i.Namespace, upstreams: i.DNS}
		full := qualified(i.Name, i.Application)
		for _, a := range i.Addresses {
			ip, err := netip.ParseAddr(a.IP)
			if err != nil {
				continue
			}
			c.networks = append(c.networks, a.Network)
			z.clients[ip] = c
			z.reverse[ip] = full
			labels := append([]string{i.Name, full}, i.Aliases[a.Network]...)
			for _, name := range labels {
				z.add(a.Network, name, ip)
			}
			for _, tasks := range []string{"tasks." + i.Workload, "tasks." + qualified(i.Workload, i.Application)} {
				z.add(a.Network, tasks, ip)
			}
		}
	}
	for _, s := range n.Services {
		for _, v := range s.VirtualIPs {
			ip, err := netip.ParseAddr(v.IP)
			if err != nil {
				continue
			}
			targets := []netip.Addr{ip}
			if s.RoundRobin {
				targets = nil
				for _, e := range s.Endpoints {
					for _, a := range e.Addresses {
						if ip, err := netip.ParseAddr(a.IP); err == nil && a.Network == v.Network {
							targets = append(targets, ip)
						}
					}
				}
			}
			labels := append([]string{s.Name, qualified(s.Name, s.Application)}, s.Aliases[v.Network]...)
			for _, name := range labels {
				z.set(v.Network, name, targets)
			}
		}
	}
	return z
}

func qualified(name, application string) string {
	if application == "" {
		return name
	}
	return name + "." + application
}

func (z *zone) table(network string) map[string][]netip.Addr {
	t := z.names[network]
	if t == nil {
		t = map[string][]netip.Addr{}
		z.names[network] = t
	}
	return t
}

func (z *zone) add(network, name string, ip netip.Addr) {
	name = strings.ToLower(name)
	t := z.table(network)
	if !slices.Contains(t[name], ip) {
		t[name] = append(t[name], ip)
	}
	z.wellKnown[name] = true
}

// set makes a service's name mean its virtual IP, also where an instance alias has that name.
func (z *zone) set(network, name string, ips []netip.Addr) {
	name = strings.ToLower(name)
	z.table(network)[name] = ips
	z.wellKnown[name] = true
}

// lookup answers a name, without its final dot, as the asker's networks know it.
func (z *zone) lookup(asker netip.Addr, name string) answer {
	name = strings.ToLower(name)
	for _, s := range suffixes {
		name = strings.TrimSuffix(name, s)
	}
	c := z.clients[asker]
	if c == nil {
		return answer{known: z.wellKnown[name]} // nobody's instance: nothing is its business
	}
	for _, network := range c.networks {
		if ips, ok := z.names[network][name]; ok {
			out := slices.Clone(ips)
			slices.SortFunc(out, func(a, b netip.Addr) int { return cmp.Compare(a.String(), b.String()) })
			return answer{known: true, addresses: out}
		}
	}
	return answer{}
}
