package names

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// Suffixes under which names of the cluster are known besides their plain form.
var suffixes = []string{".tutti", ".internal"}

// Names that other platforms' programs ask for.
const (
	kubeDomain   = ".cluster.local"
	kubeServices = ".svc" + kubeDomain // NAME.NAMESPACE, INSTANCE.NAME.NAMESPACE
	kubePods     = ".pod" + kubeDomain // 10-1-2-3.NAMESPACE
	mesosTasks   = ".marathon.mesos"   // NAME.APPLICATION: the addresses of its tasks
)

// zone is the network state arranged for answering. It follows the state by differences.
type zone struct {
	mu        sync.RWMutex
	instances map[string]*wire.NetworkInstance
	services  map[string]*wire.NetworkService
	serving   map[string]map[string]bool // workload ID → instance IDs
	names     map[place][]record
	owners    map[netip.Addr]string // address → ID of the instance or service that has it
}

// place is a name on a network.
type place struct{ network, name string }

// record says who has a name.
type record struct {
	id   string
	what meaning
}

// meaning is which addresses of its owner a name stands for.
type meaning int

const (
	itself  meaning = iota // the virtual IP of a service, or the instance
	aTask                  // the instance, as long as it serves
	anAlias                // an instance's further name, which gives way to a service's
)

func newZone() *zone {
	return &zone{
		instances: map[string]*wire.NetworkInstance{}, services: map[string]*wire.NetworkService{},
		serving: map[string]map[string]bool{}, names: map[place][]record{}, owners: map[netip.Addr]string{},
	}
}

// apply takes over a complete state or a difference.
func (z *zone) apply(n *wire.Network) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if n.Since == 0 {
		fresh := newZone()
		z.instances, z.services, z.serving, z.names, z.owners = fresh.instances, fresh.services, fresh.serving, fresh.names, fresh.owners
	}
	for _, id := range n.Gone {
		z.drop(id)
	}
	for i := range n.Instances {
		in := &n.Instances[i]
		z.drop(in.ID)
		z.instances[in.ID] = in
		z.each(in.ID, z.put)
		if in.Serves {
			if z.serving[in.WorkloadID] == nil {
				z.serving[in.WorkloadID] = map[string]bool{}
			}
			z.serving[in.WorkloadID][in.ID] = true
		}
	}
	for i := range n.Services {
		s := &n.Services[i]
		z.drop(s.ID)
		z.services[s.ID] = s
		z.each(s.ID, z.put)
	}
}

func (z *zone) put(p place, r record, ips []netip.Addr) {
	z.names[p] = append(z.names[p], r)
	for _, ip := range ips {
		z.owners[ip] = r.id
	}
}

// drop forgets an instance or a service, and all names that it had.
func (z *zone) drop(id string) {
	z.each(id, func(p place, r record, ips []netip.Addr) {
		if z.names[p] = slices.DeleteFunc(z.names[p], func(have record) bool { return have == r }); len(z.names[p]) == 0 {
			delete(z.names, p)
		}
		for _, ip := range ips {
			if z.owners[ip] == id {
				delete(z.owners, ip)
			}
		}
	})
	if in := z.instances[id]; in != nil && z.serving[in.WorkloadID] != nil {
		if delete(z.serving[in.WorkloadID], id); len(z.serving[in.WorkloadID]) == 0 {
			delete(z.serving, in.WorkloadID)
		}
	}
	delete(z.instances, id)
	delete(z.services, id)
}

// each calls do with every name of an instance or a service.
func (z *zone) each(id string, do func(place, record, []netip.Addr)) {
	one := func(network, name string, what meaning, ips []netip.Addr) {
		do(place{network, strings.ToLower(name)}, record{id, what}, ips)
	}
	if in := z.instances[id]; in != nil {
		for i := range in.Addresses {
			a := &in.Addresses[i]
			ips := addresses(a)
			if ips == nil {
				continue
			}
			for _, name := range distinct(in.Name, qualified(in.Name, in.Application)) {
				one(a.Network, name, itself, ips)
			}
			for _, name := range distinct("tasks."+in.Workload, "tasks."+qualified(in.Workload, in.Application)) {
				one(a.Network, name, aTask, ips)
			}
			for _, name := range in.Aliases[a.Network] {
				one(a.Network, name, anAlias, ips)
			}
		}
	}
	if s := z.services[id]; s != nil {
		for i := range s.VirtualIPs {
			v := &s.VirtualIPs[i]
			ips := addresses(v)
			if ips == nil {
				continue
			}
			for _, name := range distinct(append([]string{s.Name, qualified(s.Name, s.Application)}, s.Aliases[v.Network]...)...) {
				one(v.Network, name, itself, ips)
			}
		}
		for _, network := range s.OnHosts {
			for _, name := range distinct(append([]string{s.Name, qualified(s.Name, s.Application)}, s.Aliases[network]...)...) {
				one(network, name, itself, nil)
			}
		}
	}
}

func distinct(names ...string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// addresses are those of one attachment; nil when it cannot be read.
func addresses(a *model.Address) []netip.Addr {
	ip, err := netip.ParseAddr(a.IP)
	if err != nil {
		return nil
	}
	if six, err := netip.ParseAddr(a.IP6); err == nil {
		return []netip.Addr{ip, six}
	}
	return []netip.Addr{ip}
}

func qualified(name, application string) string {
	if application == "" {
		return name
	}
	return name + "." + application
}

// client is who asks; nil when no instance has that address.
func (z *zone) client(asker netip.Addr) *wire.NetworkInstance { return z.instances[z.owners[asker]] }

// answer is what a name means to an asker.
type answer struct {
	known     bool // the name exists, though perhaps not with an address
	addresses []netip.Addr
	services  []found // which services, for questions about ports
	alias     string  // what the name stands for in place of addresses
}

// found is a service on the network on which it was found.
type found struct {
	*wire.NetworkService
	network string
}

// lookup answers a name, without its final dot, as the asker's networks know it.
func (z *zone) lookup(asker netip.Addr, name string) answer {
	name = strings.ToLower(name)
	c := z.client(asker)
	if c == nil {
		return answer{} // nobody's instance: nothing is its business
	}
	if rest, ok := strings.CutSuffix(name, kubeServices); ok {
		return z.kube(c, rest)
	}
	if rest, ok := strings.CutSuffix(name, kubePods); ok {
		digits, namespace, _ := strings.Cut(rest, ".")
		ip, err := netip.ParseAddr(strings.ReplaceAll(digits, "-", "."))
		if in := z.instances[z.owners[ip]]; err == nil && in != nil && in.Namespace == namespace && z.shares(c, in) {
			return answer{known: true, addresses: []netip.Addr{ip}}
		}
		return answer{}
	}
	anywhere := func(string, string) bool { return true }
	if rest, ok := strings.CutSuffix(name, mesosTasks); ok {
		if out := z.find(c, plain(rest), true, anywhere); out.known {
			return out
		}
		return z.find(c, name, true, anywhere) // a name that a service has besides its own
	}
	return z.find(c, plain(name), false, anywhere)
}

// plain is a name without what may stand after any name of the cluster.
func plain(name string) string {
	for _, s := range suffixes {
		name = strings.TrimSuffix(name, s)
	}
	return name
}

// shares reports whether an instance has a network in common with another.
func (z *zone) shares(a, b *wire.NetworkInstance) bool {
	for _, x := range a.Addresses {
		if slices.ContainsFunc(b.Addresses, func(y model.Address) bool { return x.Network == y.Network }) {
			return true
		}
	}
	return false
}

// kube answers NAME.NAMESPACE, which is a service, and INSTANCE.NAME.NAMESPACE, where INSTANCE may also be what an
// address is called that the service leads to.
func (z *zone) kube(c *wire.NetworkInstance, name string) answer {
	labels := strings.Split(name, ".")
	if len(labels) < 2 {
		return answer{}
	}
	within := func(_, namespace string) bool { return namespace == labels[len(labels)-1] }
	if len(labels) == 2 {
		return z.find(c, labels[0], false, within)
	}
	out := z.find(c, strings.Join(labels[:len(labels)-2], "."), false, within)
	if !out.known && len(labels) == 3 {
		for _, s := range z.find(c, labels[1], false, within).services {
			for i := range s.Backends {
				if b := &s.Backends[i]; labels[0] == below(b) {
					out.known = true
					out.addresses = append(out.addresses, addresses(&model.Address{IP: b.Address})...)
				}
			}
		}
	}
	return out
}

// below is the name that an address has below that of a service which leads to it.
func below(b *model.Backend) string {
	return strings.ToLower(cmp.Or(b.Name, strings.ReplaceAll(b.Address, ".", "-")))
}

// find answers a name on the asker's networks, in their order. Of several that have it, the asker's own
// application's are meant, and services rather than what an instance is also called.
func (z *zone) find(c *wire.NetworkInstance, name string, tasks bool, allowed func(application, namespace string) bool) (out answer) {
	for i := range c.Addresses {
		network := c.Addresses[i].Network
		best := 0
		var chosen []record
		for _, r := range z.names[place{network, name}] {
			application, namespace := z.home(r.id)
			if !allowed(application, namespace) {
				continue
			}
			rank := 1
			if application == c.Application && namespace == c.Namespace {
				rank += 2
			}
			if r.what != anAlias {
				rank++
			}
			if rank > best {
				best, chosen = rank, nil
			}
			if rank == best {
				chosen = append(chosen, r)
			}
		}
		for _, r := range chosen {
			out.known = true
			z.collect(&out, r, network, tasks)
		}
		if out.known {
			break
		}
	}
	slices.SortFunc(out.addresses, netip.Addr.Compare)
	out.addresses = slices.Compact(out.addresses)
	return out
}

func (z *zone) home(id string) (application, namespace string) {
	if in := z.instances[id]; in != nil {
		return in.Application, in.Namespace
	}
	if s := z.services[id]; s != nil {
		return s.Application, s.Namespace
	}
	return "", ""
}

// collect adds what a record means on a network.
func (z *zone) collect(out *answer, r record, network string, tasks bool) {
	list := []model.Address(nil)
	switch in, s := z.instances[r.id], z.services[r.id]; {
	case in != nil && (r.what != aTask || in.Serves):
		list = in.Addresses
	case s != nil:
		if s.ExternalName != "" {
			out.alias = s.ExternalName
			return
		}
		out.services = append(out.services, found{s, network})
		if !s.RoundRobin && !tasks && !slices.Contains(s.OnHosts, network) {
			list = s.VirtualIPs
			break
		}
		for id := range z.serving[s.WorkloadID] {
			list = append(list, z.instances[id].Addresses...)
		}
		for _, b := range s.Backends {
			list = append(list, model.Address{Network: network, IP: b.Address})
		}
	}
	for i := range list {
		if list[i].Network == network {
			out.addresses = append(out.addresses, addresses(&list[i])...)
		}
	}
}

// reverse is the name of whoever has an address; "" when it is nobody here.
func (z *zone) reverse(ip netip.Addr) string {
	if in := z.instances[z.owners[ip]]; in != nil {
		return qualified(in.Name, in.Application)
	}
	if s := z.services[z.owners[ip]]; s != nil {
		return qualified(s.Name, s.Application)
	}
	return ""
}

// target is a port of a service, as a question about ports is answered.
type target struct {
	name      string // of the host, without what stands after any name of the cluster
	domain    string // what stands after it; "": the first of suffixes
	port      int
	addresses []netip.Addr
}

// ports answers _PORT._PROTOCOL.NAME, where PORT is a name or a number; without the two, all ports of
// NAME. Mesos has the service in the place of the port.
func (z *zone) ports(asker netip.Addr, name string) (targets []target, known bool) {
	name = strings.ToLower(name)
	port, protocol := "", ""
	if labels := strings.SplitN(name, ".", 3); len(labels) == 3 && strings.HasPrefix(labels[0], "_") && strings.HasPrefix(labels[1], "_") {
		port, protocol, name = labels[0][1:], labels[1][1:], labels[2]
	}
	if rest, ok := strings.CutSuffix(name, mesosTasks); ok && strings.HasPrefix(rest, "_") { // _NAME.APPLICATION._tcp
		if i := strings.LastIndex(rest, "._"); i > 0 {
			port, protocol, name = "", rest[i+2:], rest[1:i]
		}
	} else if port != "" && "."+name == mesosTasks {
		port, name = "", port
	}
	a := z.lookup(asker, name)
	for _, s := range a.services {
		for _, p := range s.Ports {
			if protocol != "" && p.Protocol != protocol || port != "" && port != strings.ToLower(p.Name) && port != itoa(p.Target) {
				continue
			}
			if strings.HasSuffix(name, kubeServices) && !s.RoundRobin {
				targets = append(targets, z.virtualTarget(&s, &p))
			} else {
				targets = append(append(targets, z.taskTargets(&s, &p)...), backendTargets(&s, &p)...)
			}
		}
	}
	slices.SortFunc(targets, func(a, b target) int { return strings.Compare(a.name, b.name) })
	return targets, a.known
}

func (z *zone) virtualTarget(s *found, p *model.ServicePort) target {
	t := target{name: qualified(s.Name, s.Namespace), domain: kubeServices, port: p.Target}
	if p.Virtual != 0 {
		t.port = p.Virtual
	}
	for i := range s.VirtualIPs {
		if s.VirtualIPs[i].Network == s.network {
			t.addresses = append(t.addresses, addresses(&s.VirtualIPs[i])...)
		}
	}
	return t
}

func (z *zone) taskTargets(s *found, p *model.ServicePort) (out []target) {
	for id := range z.serving[s.WorkloadID] {
		in := z.instances[id]
		t := target{name: qualified(in.Name, in.Application), port: p.Target}
		for i := range in.Addresses {
			if in.Addresses[i].Network == s.network {
				t.addresses = append(t.addresses, addresses(&in.Addresses[i])...)
			}
		}
		if len(t.addresses) > 0 {
			out = append(out, t)
		}
	}
	return out
}

// backendTargets are the addresses that a service leads to wherever they are.
func backendTargets(s *found, p *model.ServicePort) (out []target) {
	for i := range s.Backends {
		b := &s.Backends[i]
		if port := p.TargetOf(b.Targets); port != 0 {
			out = append(out, target{
				name: below(b) + "." + qualified(s.Name, s.Namespace), domain: kubeServices, port: port,
				addresses: addresses(&model.Address{IP: b.Address}),
			})
		}
	}
	return out
}
