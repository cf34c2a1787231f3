package balance

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// ledger is what a node's table for one version of IP should hold, kept so that what changes is found by
// what it is about: a service that leads elsewhere, an instance that comes. It says the same as a ledger
// made anew, but for the order of endpoints, which stay where they are in the kernel's map.
type ledger struct {
	f      *family
	nodeID string
	shape  Desired // without services and instances
	// onHosts are the networks of hosts, to which nothing is led.
	onHosts map[string]bool

	of        map[source][]Frontend    // what each claims
	claims    map[FrontendKey][]source // in their order
	led       map[FrontendKey]Frontend // of the claims to each, the one that counts
	chains    map[leading]int          // that so many frontends need
	idle      []leading                // chains that none needs now; the latest last
	hostPorts map[heldPort]int         // that services have where instances run
	hostMode  map[string]bool          // IDs of services that have such ports
	local     map[string][]netip.Addr  // addresses of instances of this node
	localized map[netip.Addr]int       // how many of them have each
	book      *policyBook
}

// source is who claims a frontend: a service, or an instance that holds a port by itself.
type source struct {
	held bool
	id   string
}

func bySource(a, b source) int {
	switch {
	case a.held == b.held:
		return strings.Compare(a.id, b.id)
	case b.held:
		return -1
	}
	return 1
}

// delta is in what a table is to be changed.
type delta struct {
	gone, come []element
	born, dead []leading
	left       []Frontend // those that lead elsewhere now, as they were
	opened     []uint16   // UDP ports of this node that led nowhere
	// Those that are not there any more and those that are there now, or are another's.
	uncounted, counted []FrontendKey
	stricter           bool // policies say something else
}

func newLedger(n *wire.Network, nodeID string, f *family) (*ledger, error) {
	shape, err := shapeOf(n, nodeID, f)
	if err != nil {
		return nil, err
	}
	l := &ledger{
		f: f, nodeID: nodeID, shape: shape, onHosts: onHosts(n), of: map[source][]Frontend{}, claims: map[FrontendKey][]source{}, led: map[FrontendKey]Frontend{},
		chains: map[leading]int{}, hostPorts: map[heldPort]int{}, hostMode: map[string]bool{}, local: map[string][]netip.Addr{}, localized: map[netip.Addr]int{},
	}
	if l.off() {
		return l, nil
	}
	for i := range n.Services {
		l.noteHostPorts(&n.Services[i])
	}
	for i := range n.Services {
		l.claim(source{id: n.Services[i].ID}, l.ofService(&n.Services[i]))
	}
	for i := range n.Instances {
		if in := &n.Instances[i]; in.NodeID == nodeID {
			l.local[in.ID] = l.addresses(in)
			for _, ip := range l.local[in.ID] {
				l.localized[ip]++
			}
			l.claim(source{true, in.ID}, l.ofHolder(in))
		}
	}
	d := &delta{}
	for key := range l.claims {
		l.settle(key, d)
	}
	l.book = compilePolicies(n, f)
	return l, nil
}

// off reports that there is no network of this version of IP.
func (l *ledger) off() bool { return l.f == ipv6 && len(l.shape.Subnets) == 0 }

func onHosts(n *wire.Network) map[string]bool {
	out := map[string]bool{}
	for _, net := range n.Networks {
		if net.Underlay != nil {
			out[net.ID] = true
		}
	}
	return out
}

func (l *ledger) addresses(in *wire.NetworkInstance) (out []netip.Addr) {
	for i := range in.Addresses {
		if ip, ok := l.f.address(&in.Addresses[i]); ok && !l.onHosts[in.Addresses[i].Network] {
			out = append(out, ip)
		}
	}
	return out
}

// desired is the whole of it.
func (l *ledger) desired() *Desired {
	d := l.shape
	if l.off() {
		return &d
	}
	d.Frontends = slices.SortedFunc(maps.Values(l.led), byKey)
	d.Local = slices.SortedFunc(maps.Keys(l.localized), netip.Addr.Compare)
	d.Policies = l.book.policies
	return &d
}

// claim exchanges what a source claims, and returns the keys that are to be settled again.
func (l *ledger) claim(s source, now []Frontend) (keys []FrontendKey) {
	for _, f := range l.of[s] {
		keys = append(keys, f.FrontendKey)
		if list := slices.DeleteFunc(l.claims[f.FrontendKey], func(o source) bool { return o == s }); len(list) == 0 {
			delete(l.claims, f.FrontendKey)
		} else {
			l.claims[f.FrontendKey] = list
		}
	}
	delete(l.of, s)
	if len(now) == 0 {
		return keys
	}
	l.of[s] = now
	for i := range now {
		f := &now[i]
		f.owner = s
		keys = append(keys, f.FrontendKey)
		list := l.claims[f.FrontendKey]
		if at, found := slices.BinarySearchFunc(list, s, bySource); !found {
			l.claims[f.FrontendKey] = slices.Insert(list, at, s)
		}
	}
	return keys
}

// settle finds which of the claims to the same counts: the first that leads somewhere. One wrong service
// must not keep the table from being written.
func (l *ledger) settle(key FrontendKey, d *delta) {
	var now *Frontend
	for _, s := range l.claims[key] {
		for i := range l.of[s] {
			f := &l.of[s][i]
			if f.FrontendKey == key && (now == nil || len(now.Endpoints) == 0 && len(f.Endpoints) > 0) {
				now = f
			}
		}
	}
	l.put(key, now, d)
}

// put has a frontend count; nil is none.
func (l *ledger) put(key FrontendKey, now *Frontend, d *delta) {
	old, was := l.led[key]
	var next *Frontend
	if was && (now == nil || now.owner != old.owner) {
		d.uncounted = append(d.uncounted, key)
	}
	if now != nil && (!was || now.owner != old.owner) {
		d.counted = append(d.counted, key)
	}
	if now != nil {
		f := *now
		var same bool
		if f.Endpoints, same = arrange(old.Endpoints, f.Endpoints); was && same && f.Target == old.Target && f.Sticky == old.Sticky {
			l.led[key] = f
			return
		}
		l.led[key], next = f, &f
		l.count(f.leads(), 1, d)
		if key.Node && key.Protocol == protocols["udp"] && len(f.Endpoints) > 0 && len(old.Endpoints) == 0 {
			d.opened = append(d.opened, key.Port)
		}
	}
	if was {
		d.left = append(d.left, old)
		l.count(old.leads(), -1, d)
		if next == nil {
			delete(l.led, key)
		}
		gone, come := old.differs(next)
		d.gone, d.come = append(d.gone, gone...), append(d.come, come...)
	} else if next != nil {
		d.come = append(d.come, next.elements()...)
	}
}

// mostIdle is how many chains are kept that none needs. Making one takes the kernel through all endpoints, and a
// count that occurred does again.
const mostIdle = 64

// count follows how many frontends need a chain.
func (l *ledger) count(c leading, by int, d *delta) {
	if c.count == 0 {
		return
	}
	before := l.chains[c]
	l.chains[c] = before + by
	switch {
	case before == 0:
		if i := slices.Index(l.idle, c); i >= 0 {
			l.idle = slices.Delete(l.idle, i, i+1)
		} else {
			d.born = append(d.born, c)
		}
	case before+by == 0:
		delete(l.chains, c)
		if i := slices.Index(d.born, c); i >= 0 {
			d.born = slices.Delete(d.born, i, i+1)
			return
		}
		if c.sticky == 0 {
			l.idle = append(l.idle, c)
		} else {
			l.idle = slices.Insert(l.idle, 0, c) // which is one frontend's alone
		}
	}
}

// tidy has chains deleted that were idle for long.
func (l *ledger) tidy(d *delta) {
	for len(l.idle) > 0 && (len(l.idle) > mostIdle || l.idle[0].sticky > 0) {
		d.dead, l.idle = append(d.dead, l.idle[0]), l.idle[1:]
	}
}

// arrange puts endpoints where they were, as far as possible: each that stays, stays in its place. It
// reports whether they are the same.
func arrange(old, now []endpoint) (out []endpoint, same bool) {
	if len(old) == 0 || len(now) == 0 {
		return now, len(old) == len(now)
	}
	wanted := make(map[endpoint]int, len(now))
	for _, a := range now {
		wanted[a]++
	}
	out = make([]endpoint, len(now))
	stay := 0
	for i, a := range old[:min(len(old), len(out))] {
		if wanted[a] > 0 {
			wanted[a]--
			out[i] = a
			stay++
		}
	}
	if stay == len(old) && stay == len(now) {
		return old, true
	}
	free := 0
	for _, a := range now {
		if wanted[a] == 0 {
			continue
		}
		for ; out[free].IsValid(); free++ {
		}
		wanted[a]--
		out[free] = a
	}
	return out, false
}

func (l *ledger) noteHostPorts(s *wire.NetworkService) {
	for _, p := range s.Ports {
		if p.HostMode {
			l.hostMode[s.ID] = true
			l.hostPorts[heldPort{s.WorkloadID, p.Protocol, p.Published}]++
		}
	}
}

// update follows a state that says what changed. It is not ok, and nothing is changed, where a ledger is to
// be made anew.
func (l *ledger) update(n *wire.Network) (d *delta, ok bool, err error) {
	d = &delta{}
	for id := range n.Changes.Services {
		if !l.off() && l.hasHostPorts(n, id) {
			return nil, false, nil // rare, and which instances hold theirs by themselves depends on it
		}
	}
	if n.Changes.Shape {
		shape, err := shapeOf(n, l.nodeID, l.f)
		if err != nil {
			return nil, false, err
		}
		if shape.Own != l.shape.Own || shape.NodePool != l.shape.NodePool {
			return nil, false, nil
		}
		d.gone, d.come = differ(l.shape.elements(), shape.elements())
		l.shape, l.onHosts = shape, onHosts(n)
	}
	if l.off() || !l.shape.Own.IsValid() {
		return d, true, nil
	}
	var keys []FrontendKey
	for _, list := range []map[string]bool{n.Changes.Services, n.Changes.Led} {
		for id := range list {
			var now []Frontend
			if s := n.Service(id); s != nil {
				now = l.ofService(s)
			}
			keys = append(keys, l.claim(source{id: id}, now)...)
		}
	}
	for id := range n.Changes.Instances {
		keys = append(keys, l.move(n.Instance(id), id, d)...)
	}
	slices.SortFunc(keys, func(a, b FrontendKey) int { return byKey(Frontend{FrontendKey: a}, Frontend{FrontendKey: b}) })
	for _, key := range slices.Compact(keys) {
		l.settle(key, d)
	}
	l.tidy(d)
	l.updatePolicies(n, d)
	return d, true, nil
}

// hasHostPorts reports whether a service has, or had, ports where its instances run.
func (l *ledger) hasHostPorts(n *wire.Network, id string) bool {
	if s := n.Service(id); s != nil && slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.HostMode }) {
		return true
	}
	return l.hostMode[id]
}

// move follows an instance that came, went, or is another.
func (l *ledger) move(in *wire.NetworkInstance, id string, d *delta) []FrontendKey {
	var now []netip.Addr
	var held []Frontend
	if in != nil && in.NodeID == l.nodeID {
		now, held = l.addresses(in), l.ofHolder(in)
	}
	old, was := l.local[id]
	if was || in != nil && in.NodeID == l.nodeID {
		if l.local[id] = now; now == nil {
			delete(l.local, id)
		}
	}
	if !slices.Equal(old, now) {
		for _, ip := range now {
			if l.localized[ip]++; l.localized[ip] == 1 {
				d.come = append(d.come, self(ip))
			}
		}
		for _, ip := range old {
			if l.localized[ip]--; l.localized[ip] == 0 {
				delete(l.localized, ip)
				d.gone = append(d.gone, self(ip))
			}
		}
	}
	if len(held) == 0 && l.of[source{true, id}] == nil {
		return nil
	}
	return l.claim(source{true, id}, held)
}

// updatePolicies follows policies, and instances that they are about.
func (l *ledger) updatePolicies(n *wire.Network, d *delta) {
	if !n.Changes.Policies {
		if gone, come, ok := l.book.update(n); ok {
			d.gone, d.come = append(d.gone, gone...), append(d.come, come...)
			return
		}
	}
	book := compilePolicies(n, l.f)
	gone, come := differ(l.book.elements(), book.elements())
	d.gone, d.come = append(d.gone, gone...), append(d.come, come...)
	d.stricter = !book.empty() && !l.book.sameRules(&book.policies)
	l.book = book
}
