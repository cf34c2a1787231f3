package core

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// NetMapQuestion asks who talks to whom.
type NetMapQuestion struct {
	Ref       string        // what one of the ends is; "" is everything
	For       time.Duration // is watched; 0 is two seconds
	Instances bool          // each instance by itself, rather than workloads
}

// NetMap says who talked to whom within a span.
type NetMap struct {
	Span  time.Duration `json:"span"`
	Edges []NetEdge     `json:"edges"`
	// Services sums up what came to each, whichever way.
	Services []NetCount `json:"services"`
	// Silent are nodes whose connections are not known, and why.
	Silent []string `json:"silent,omitempty"`
}

// NetEdge is the connections from one end to another. An end is a workload or an instance, "node NAME", or "outside".
type NetEdge struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Via is the service whose virtual IP was asked, or the published port as "port 8080"; empty: the other end itself.
	Via      string `json:"via,omitempty"`
	Protocol string `json:"protocol"`
	Port     int    `json:"port"` // of what answers
	Begun    int    `json:"begun"`
	Open     int    `json:"open"`
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

// NetCount is what came to a service within the span, and what is open still.
type NetCount struct {
	Service  string `json:"service"`
	Begun    int    `json:"begun"`
	Open     int    `json:"open"`
	Sent     uint64 `json:"sent"`     // bytes to it
	Received uint64 `json:"received"` // bytes from it
}

const (
	netMapSpan     = 2 * time.Second
	netMapPatience = 10 * time.Second // beyond the span
	elsewhere      = "another namespace"
	outside        = "outside"
)

// NetMap asks all nodes which connections there are for a while, and sums them up.
func (c *Core) NetMap(ctx context.Context, who Caller, q NetMapQuestion) (NetMap, error) {
	a, err := c.begin(who, "look", q.Ref)
	if err != nil {
		return NetMap{}, err
	}
	if q.For = cmp.Or(q.For, netMapSpan); q.For < 0 || q.For > wire.MostFlowsSpan {
		return NetMap{}, fault.New(fault.Invalid, "%s is not between 0 and %s, for which nodes remember connections that have ended", q.For, wire.MostFlowsSpan)
	}
	seen, snap := c.look(who), c.Store.Snapshot()
	var about map[string]bool
	if q.Ref != "" {
		f, err := find(seen, who.namespace(), q.Ref)
		if err == nil {
			err = a.about(f)
		}
		if err != nil {
			return NetMap{}, err
		}
		about = map[string]bool{}
		for _, i := range instancesOf(seen, f) {
			about[i.ID] = true
		}
	}
	m := &mapping{question: q, about: about, edges: map[NetEdge]*NetEdge{}, counts: map[string]*NetCount{}}
	m.read(seen, snap)
	var mu sync.Mutex
	// A node takes the whole span.
	together(ctx, store.List[*model.Node](snap), usageAtOnce*8, q.For+netMapPatience, func(ctx context.Context, n *model.Node) {
		flows, err := c.Remote.Flows(ctx, n.ID, q.For)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			m.silent = append(m.silent, fmt.Sprintf("%s: %v", n.Name, err))
		}
		for i := range flows {
			m.add(n.Name, &flows[i])
		}
	})
	return m.result(), ctx.Err()
}

// mapping is a map that is being made.
type mapping struct {
	question  NetMapQuestion
	about     map[string]bool // IDs of instances that one end is; nil: any
	instances map[string]*holder
	services  map[string]string // names by virtual IP
	edges     map[NetEdge]*NetEdge
	counts    map[string]*NetCount
	silent    []string
}

// holder is who has an address.
type holder struct {
	id, name, service string
	visible           bool
}

// read notes who has which address, and who of them the caller may know.
func (m *mapping) read(seen, snap *store.Snapshot) {
	m.instances, m.services = map[string]*holder{}, map[string]string{}
	byWorkload := map[string]string{}
	for s := range store.List[*model.Service](snap) {
		name := elsewhere
		if _, ok := store.Get[*model.Service](seen, s.ID); ok {
			name = s.FullName()
		}
		if s.WorkloadID != "" && name != elsewhere {
			byWorkload[s.WorkloadID] = name
		}
		for _, v := range s.Status.VirtualIPs {
			m.services[v.IP] = name
			if v.IP6 != "" {
				m.services[v.IP6] = name
			}
		}
	}
	for i := range store.List[*model.Instance](snap) {
		if i.Status.State.Final() {
			continue
		}
		h := &holder{id: i.ID, name: elsewhere, service: byWorkload[i.WorkloadID]}
		if _, h.visible = store.Get[*model.Instance](seen, i.ID); h.visible {
			h.name = i.FullName()
			if w, ok := store.Get[*model.Workload](snap, i.WorkloadID); ok && !m.question.Instances {
				h.name = w.FullName()
			}
		}
		for _, a := range i.Addresses {
			m.instances[a.IP] = h
			if a.IP6 != "" {
				m.instances[a.IP6] = h
			}
		}
	}
}

// end names one of a connection's ends; nil: it is no instance that is there still.
func (m *mapping) end(node, address string) (string, *holder) {
	switch address {
	case "":
		return outside, nil
	case wire.FlowNode:
		return "node " + node, nil
	}
	if h := m.instances[address]; h != nil {
		return h.name, h
	}
	return address, nil
}

// add takes over what a node tells.
func (m *mapping) add(node string, f *wire.Flow) {
	from, a := m.end(node, f.From)
	to, b := m.end(node, f.To)
	if m.about != nil && !(a != nil && m.about[a.id]) && !(b != nil && m.about[b.id]) {
		return
	}
	if !(a != nil && a.visible) && !(b != nil && b.visible) {
		return // none of the caller's business
	}
	via := ""
	switch {
	case f.Via == wire.FlowNode:
		via = fmt.Sprintf("port %d", f.Port)
	case f.Via != "":
		via = cmp.Or(m.services[f.Via], f.Via)
	}
	key := NetEdge{From: from, To: to, Via: via, Protocol: f.Protocol, Port: int(f.Target)}
	e := m.edges[key]
	if e == nil {
		e = &NetEdge{From: from, To: to, Via: via, Protocol: f.Protocol, Port: int(f.Target)}
		m.edges[key] = e
	}
	e.Begun, e.Open, e.Sent, e.Received = e.Begun+f.Begun, e.Open+f.Open, e.Sent+f.Sent, e.Received+f.Received
	if b == nil || b.service == "" || !b.visible {
		return
	}
	s := m.counts[b.service]
	if s == nil {
		s = &NetCount{Service: b.service}
		m.counts[b.service] = s
	}
	s.Begun, s.Open, s.Sent, s.Received = s.Begun+f.Begun, s.Open+f.Open, s.Sent+f.Sent, s.Received+f.Received
}

func (m *mapping) result() NetMap {
	out := NetMap{Span: m.question.For, Edges: []NetEdge{}, Services: []NetCount{}, Silent: m.silent}
	for _, e := range m.edges {
		out.Edges = append(out.Edges, *e)
	}
	for _, s := range m.counts {
		out.Services = append(out.Services, *s)
	}
	slices.SortFunc(out.Edges, func(a, b NetEdge) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Via, b.Via), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	slices.SortFunc(out.Services, func(a, b NetCount) int { return cmp.Compare(a.Service, b.Service) })
	slices.Sort(out.Silent)
	return out
}
