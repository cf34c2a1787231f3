package core

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// ReachQuestion asks whether one end reaches another. Both are an instance, a workload or an address.
type ReachQuestion struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Port     int    `json:"port,omitempty"`     // 0: the only one that the service has, if it has one
	Protocol string `json:"protocol,omitempty"` // tcp when empty
	// Try has the names looked up and connections made, from the first end's own network.
	Try bool `json:"try,omitempty"`
}

// ReachAnswer says whether one end reaches another, and each step of the way.
type ReachAnswer struct {
	Question string      `json:"question"`
	Reaches  bool        `json:"reaches"`
	Steps    []ReachStep `json:"steps"`
	Advice   []string    `json:"advice,omitempty"`
}

// ReachStep is a step of the way.
type ReachStep struct {
	What string `json:"what"` // from, to, network, name, virtual IP, endpoints, policy, node, port, try
	OK   bool   `json:"ok"`
	Says string `json:"says"`
}

// Reach says whether and how one end reaches another, and what stops it.
func (c *Core) Reach(ctx context.Context, who Caller, q ReachQuestion) (answer ReachAnswer, err error) {
	name := "look"
	if q.Try {
		name = "net trace"
	}
	a, err := c.begin(who, name, q.From+" to "+q.To)
	if err != nil {
		return ReachAnswer{}, err
	}
	defer a.end(&err)
	if q.Protocol = cmp.Or(q.Protocol, "tcp"); q.Protocol != "tcp" && q.Protocol != "udp" && q.Protocol != "sctp" {
		return ReachAnswer{}, fault.New(fault.Invalid, "protocol %q is none of tcp, udp and sctp", q.Protocol)
	}
	if q.Port < 0 || q.Port > 65535 {
		return ReachAnswer{}, fault.New(fault.Invalid, "port %d is not between 1 and 65535", q.Port)
	}
	w := &way{core: c, who: who, a: a, q: q, seen: c.look(who), snap: c.Store.Snapshot()}
	for p := range store.List[*model.Policy](w.snap) {
		w.policies = append(w.policies, p)
	}
	from, err := w.end(q.From)
	if err != nil {
		return ReachAnswer{}, err
	}
	to, err := w.end(q.To)
	if err != nil {
		return ReachAnswer{}, err
	}
	w.out.Question = fmt.Sprintf("%s to %s", q.From, q.To)
	w.walk(ctx, from, to)
	w.out.Reaches = !slices.ContainsFunc(w.out.Steps, func(s ReachStep) bool { return !s.OK })
	return w.out, nil
}

// way is a question that is being answered.
type way struct {
	core       *Core
	who        Caller
	a          *act
	q          ReachQuestion
	seen, snap *store.Snapshot // what the caller sees; everything, to find what counts
	policies   []*model.Policy
	out        ReachAnswer
}

// place is one of the ends: an address, or instances.
type place struct {
	ref       string
	address   netip.Addr
	workload  *model.Workload
	instances []*model.Instance
}

func (w *way) step(ok bool, what, format string, args ...any) bool {
	w.out.Steps = append(w.out.Steps, ReachStep{what, ok, fmt.Sprintf(format, args...)})
	return ok
}

func (w *way) advise(format string, args ...any) {
	w.out.Advice = append(w.out.Advice, fmt.Sprintf(format, args...))
}

func (w *way) end(ref string) (*place, error) {
	if ip, err := netip.ParseAddr(ref); err == nil {
		for i := range store.List[*model.Instance](w.seen) {
			if !i.Status.State.Final() && slices.ContainsFunc(i.Addresses, func(a model.Address) bool { return a.IP == ref || a.IP6 == ref }) {
				return &place{ref: i.FullName(), instances: []*model.Instance{i}}, nil
			}
		}
		return &place{ref: ref, address: ip}, nil
	}
	f, err := find(w.seen, w.who.namespace(), ref)
	if err == nil {
		err = w.a.about(f)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case f.Instance != nil:
		return &place{ref: f.Instance.FullName(), instances: []*model.Instance{f.Instance}}, nil
	case f.Workload != nil:
		p := &place{ref: f.Workload.FullName(), workload: f.Workload}
		for _, i := range instancesOf(w.snap, f) {
			if i.WantsToRun() && !i.Status.State.Final() {
				p.instances = append(p.instances, i)
			}
		}
		return p, nil
	}
	return nil, fault.New(fault.Invalid, "%s is %s; name an instance, a workload or an address", ref, f.describe())
}

// service leads to a workload, if there is one.
func (w *way) service(p *place) *model.Service {
	if p.workload == nil {
		return nil
	}
	for s := range store.ByApplication[*model.Service](w.snap, p.workload.Namespace, p.workload.Application) {
		if s.WorkloadID == p.workload.ID {
			return s
		}
	}
	return nil
}

func (w *way) network(id string) string {
	if n, ok := store.Get[*model.Network](w.snap, id); ok {
		return n.FullName()
	}
	return id
}

func (w *way) node(id string) *model.Node {
	if n, ok := store.Get[*model.Node](w.snap, id); ok {
		return n
	}
	return &model.Node{Meta: model.Meta{ID: id, Name: model.ShortID(id)}}
}

// endOf is an instance as policies see it, by one of its addresses.
func (w *way) endOf(i *model.Instance, a *model.Address) *model.End {
	e := &model.End{Namespace: i.Namespace, Application: i.Application, Network: a.Network}
	if ip, err := netip.ParseAddr(a.IP); err == nil {
		e.Address = ip
	}
	if wl, ok := store.Get[*model.Workload](w.snap, i.WorkloadID); ok {
		e.Workload, e.Labels = wl.Name, wl.Labels
	}
	return e
}

func (w *way) walk(ctx context.Context, from, to *place) {
	svc := w.service(to)
	if w.q.Port == 0 && svc != nil {
		targets := map[int]bool{}
		for _, p := range svc.Ports {
			if p.Protocol == w.q.Protocol {
				targets[p.Target] = true
			}
		}
		for t := range targets {
			if w.q.Port = t; len(targets) > 1 {
				w.q.Port = 0
				break
			}
		}
	}
	var source *model.Instance
	if !from.address.IsValid() {
		if source = w.start(from); source == nil {
			return
		}
	} else {
		w.step(true, "from", "%s is outside of the cluster", from.ref)
	}
	if to.address.IsValid() {
		w.outwards(ctx, source, from, to)
		return
	}
	ready := w.ready(to)
	if source == nil {
		w.inwards(from, to, svc, ready)
		return
	}
	w.between(ctx, source, to, svc, ready)
}

// start finds the instance that asks.
func (w *way) start(from *place) *model.Instance {
	for _, i := range from.instances {
		if i.Status.State == model.InstanceRunning {
			n := w.node(i.NodeID)
			var on []string
			for _, a := range i.Addresses {
				on = append(on, strings.TrimSpace(a.IP+" "+a.IP6)+" on "+w.network(a.Network))
			}
			if len(on) == 0 {
				on = []string{"no address of its own"}
			}
			w.step(n.Status.State != model.NodeDown, "from", "%s runs on %s (%s), with %s", i.FullName(), n.Name, n.Status.State, strings.Join(on, ", "))
			return i
		}
	}
	w.step(false, "from", "no instance of %s runs", from.ref)
	w.advise("`tutti explain %s` says why", from.ref)
	return nil
}

// ready are the instances that get connections.
func (w *way) ready(to *place) (out []*model.Instance) {
	var not []string
	for _, i := range to.instances {
		switch n := w.node(i.NodeID); {
		case i.NodeID == "":
			not = append(not, i.FullName()+" has no node")
		case n.Status.State == model.NodeDown:
			not = append(not, fmt.Sprintf("%s is on %s, which is down", i.FullName(), n.Name))
		case to.workload == nil && i.Status.State == model.InstanceRunning, i.Serving():
			out = append(out, i)
		default:
			not = append(not, strings.TrimSpace(fmt.Sprintf("%s is %s %s", i.FullName(), i.Status.State, i.Status.Health)))
		}
	}
	text := fmt.Sprintf("%d of %d ready", len(out), len(to.instances))
	if len(not) > 0 {
		text += ": " + strings.Join(not[:min(len(not), 5)], "; ")
	}
	if !w.step(len(out) > 0, "endpoints", "%s", text) {
		w.advise("`tutti explain %s` says why", to.ref)
	}
	return out
}

// between is the way from an instance to others.
func (w *way) between(ctx context.Context, source *model.Instance, to *place, svc *model.Service, ready []*model.Instance) {
	type pair struct {
		target   *model.Instance
		from, to *model.Address
	}
	var pairs []pair
	shared := map[string]bool{}
	for _, t := range to.instances {
		for j := range t.Addresses {
			for k := range source.Addresses {
				if t.Addresses[j].Network == source.Addresses[k].Network {
					shared[t.Addresses[j].Network] = true
					if slices.Contains(ready, t) && !slices.ContainsFunc(pairs, func(p pair) bool { return p.target == t }) {
						pairs = append(pairs, pair{t, &source.Addresses[k], &t.Addresses[j]})
					}
				}
			}
		}
	}
	var names []string
	for n := range shared {
		names = append(names, w.network(n))
	}
	slices.Sort(names)
	if len(to.instances) > 0 && !w.step(len(shared) > 0, "network", "%s", cmp.Or(strings.Join(names, ", "), "they share no network, and those that share none are isolated")) {
		w.advise("attach both to one network")
		return
	}
	if len(names) > 0 {
		w.out.Steps[len(w.out.Steps)-1].Says = "both are on " + strings.Join(names, ", ")
	}
	for _, p := range pairs {
		if n, ok := store.Get[*model.Network](w.snap, p.to.Network); ok && n.Underlay != nil {
			w.step(true, "link", "%s is at %s on the network of interface %s of %s, of the driver %s: no node, rule or policy of the cluster is between them",
				p.target.FullName(), p.to.IP, n.Underlay.Parent, w.node(p.target.NodeID).Name, n.Driver)
			if w.q.Try {
				w.try(ctx, source, p.target.FullName(), p.to.IP)
			}
		}
	}
	if pairs = slices.DeleteFunc(pairs, func(p pair) bool {
		n, ok := store.Get[*model.Network](w.snap, p.to.Network)
		return ok && n.Underlay != nil
	}); len(pairs) == 0 && len(shared) > 0 && len(ready) > 0 {
		return
	}
	virtual := ""
	if svc != nil && !svc.DNSRoundRobin {
		for _, v := range svc.Status.VirtualIPs {
			if shared[v.Network] && virtual == "" {
				virtual = v.IP
				w.step(true, "virtual IP", "%s on %s leads to %d endpoints", v.IP, w.network(v.Network), len(ready))
			}
		}
	}
	for _, p := range pairs {
		if !w.policy(w.endOf(source, p.from), w.endOf(p.target, p.to), source.FullName(), p.target.FullName()) {
			break // the others are of the same workload, and mostly the same
		}
	}
	for _, p := range pairs {
		n := w.node(p.target.NodeID)
		if n.ID == source.NodeID {
			w.step(true, "node", "%s is at %s on the same node", p.target.FullName(), p.to.IP)
		} else {
			w.step(true, "node", "%s is at %s on %s, through the tunnel to %s", p.target.FullName(), p.to.IP, n.Name, n.HostAddress)
		}
	}
	if !w.q.Try {
		return
	}
	if svc != nil {
		w.look(ctx, source, svc.Name)
	}
	if virtual != "" {
		w.try(ctx, source, "virtual IP", virtual)
	}
	for _, p := range pairs {
		w.try(ctx, source, p.target.FullName(), p.to.IP)
	}
}

// policy says what policies say.
func (w *way) policy(from, to *model.End, fromName, toName string) bool {
	d := model.Decide(w.policies, from, to, w.q.Protocol, w.q.Port)
	port := "any port of " + w.q.Protocol
	if w.q.Port != 0 {
		port = fmt.Sprintf("port %d/%s", w.q.Port, w.q.Protocol)
	}
	what := fmt.Sprintf("%s to %s, %s", fromName, toName, port)
	if d.Policy == nil {
		return w.step(true, "policy", "%s: nothing says otherwise", what)
	}
	rule := ""
	if d.Rule != nil {
		rule = d.Rule.String()
		for _, p := range d.Rule.Peers {
			if p.Selector != nil && p.Selector.Network != "" {
				rule = strings.ReplaceAll(rule, p.Selector.Network, w.network(p.Selector.Network))
			}
		}
	}
	by := "policy " + d.Policy.FullName()
	if !w.who.sees(d.Policy) {
		by = "a policy of another namespace"
	}
	direction := map[model.Direction]string{model.DirectionIn: "connections to its instances", model.DirectionOut: "connections from its instances"}[d.Direction]
	switch {
	case d.Rule == nil:
		w.advise("allow it in %s (x-tutti.allow)", by)
		return w.step(false, "policy", "%s: refused by %s, which lets only those %s begin that a rule allows, and none does", what, by, direction)
	case d.Allowed:
		return w.step(true, "policy", "%s: by %s: %s", what, by, rule)
	}
	w.advise("change the rule in %s (x-tutti.deny)", by)
	return w.step(false, "policy", "%s: refused by %s: %s", what, by, rule)
}

// outwards is the way to an address outside.
func (w *way) outwards(ctx context.Context, source *model.Instance, from, to *place) {
	if source == nil {
		w.step(true, "to", "%s is outside of the cluster, too: nothing of this cluster is between them", to.ref)
		return
	}
	var way *model.Address
	for i := range source.Addresses {
		if n, ok := store.Get[*model.Network](w.snap, source.Addresses[i].Network); ok && !n.Internal && way == nil {
			way = &source.Addresses[i]
		}
	}
	if len(source.Addresses) > 0 && way == nil {
		w.step(false, "network", "all networks of %s are internal: there is no way out", source.FullName())
		return
	}
	if way == nil {
		w.step(true, "network", "%s is on the network of its node", source.FullName())
	} else {
		w.step(true, "network", "out by %s, as the address of %s", w.network(way.Network), w.node(source.NodeID).Name)
		w.policy(w.endOf(source, way), &model.End{Address: to.address}, source.FullName(), to.ref)
	}
	if w.q.Try {
		w.try(ctx, source, to.ref, to.ref)
	}
}

// inwards is the way from outside, by published ports and routes.
func (w *way) inwards(from, to *place, svc *model.Service, ready []*model.Instance) {
	var open []string
	if svc != nil {
		for _, p := range svc.Ports {
			if p.Published == 0 || w.q.Port != 0 && p.Target != w.q.Port || p.Protocol != w.q.Protocol {
				continue
			}
			where := "every node"
			if p.HostMode {
				where = "the nodes of its instances"
			}
			if one := model.OneHostIP(p.HostIP); one != "" {
				where += ", at " + one + " alone,"
			}
			open = append(open, fmt.Sprintf("port %d/%s of %s leads to port %d", p.Published, p.Protocol, where, p.Target))
			w.q.Port = p.Target
		}
		for _, r := range svc.Routes {
			open = append(open, fmt.Sprintf("requests of HTTP for %s%s lead to port %d, which policies let through", cmp.Or(r.Host, "any host"), r.Path, r.Target))
		}
	}
	if !w.step(len(open) > 0, "port", "%s", cmp.Or(strings.Join(open, "; "), "no such port is published, and no route leads there")) {
		w.advise("publish the port (ports), or give the service a route (x-tutti.routes)")
		return
	}
	for _, i := range ready {
		if len(i.Addresses) > 0 && !w.policy(&model.End{Address: from.address}, w.endOf(i, &i.Addresses[0]), from.ref, i.FullName()) {
			return
		}
	}
}

// look has a name looked up where an instance does that.
func (w *way) look(ctx context.Context, source *model.Instance, name string) {
	r, err := w.core.Remote.Try(ctx, source.NodeID, wire.TryRequest{Instance: source.ID, Name: name})
	if err == nil && r.Error != "" {
		err = fmt.Errorf("%s", r.Error)
	}
	if err != nil {
		w.step(false, "name", "%s looks up %s: %v", source.FullName(), name, err)
		return
	}
	w.step(true, "name", "%s finds %s at %s, after %s", source.FullName(), name, strings.Join(r.Addresses, ", "), r.Took.Round(10*time.Microsecond))
}

// try has a connection made.
func (w *way) try(ctx context.Context, source *model.Instance, what, ip string) {
	if w.q.Protocol != "tcp" || w.q.Port == 0 {
		w.step(true, "try", "%s: not tried; give a port of TCP", what)
		return
	}
	address := net.JoinHostPort(ip, strconv.Itoa(w.q.Port))
	r, err := w.core.Remote.Try(ctx, source.NodeID, wire.TryRequest{Instance: source.ID, Address: address})
	if err == nil && r.Error != "" {
		err = fmt.Errorf("%s", r.Error)
	}
	if err != nil {
		w.step(false, "try", "%s connects to %s (%s): %v", source.FullName(), address, what, err)
		return
	}
	w.step(true, "try", "%s connects to %s (%s) after %s", source.FullName(), address, what, r.Took.Round(10*time.Microsecond))
}
