package schedule

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// NodeView is a node and what is taken of it.
type NodeView struct {
	Node *model.Node
	Used model.Resources
	// Ports are taken host ports, as "tcp/8080".
	Ports map[string]bool
	// Instances counts wanted instances by workload ID; Total all of them.
	Instances map[string]int
	Total     int
}

// Request asks for a place for one instance.
type Request struct {
	InstanceID string
	WorkloadID string
	Workload   string // full name, for reasons
	Template   *model.Template
	HostPorts  []model.HostPort
	// PinnedTo is the only node that will do, for volumes that live there; "" for any.
	PinnedTo  string
	PinReason string
}

// Placement is a decision: a node, or why there is none.
type Placement struct {
	InstanceID string
	NodeID     string
	Reason     string
}

// Place decides about requests in order and accounts for each before the next; it changes the
// views accordingly. seed breaks ties.
func Place(nodes []*NodeView, requests []Request, seed uint64) []Placement {
	out := make([]Placement, 0, len(requests))
	classes := map[*model.Template]*class{}
	for i := range requests {
		r := &requests[i]
		c := classes[r.Template]
		if c == nil {
			c = newClass(nodes, r.Template)
			classes[r.Template] = c
		}
		out = append(out, c.place(nodes, r, seed))
	}
	return out
}

// class is what all requests of one template share.
type class struct {
	template *model.Template
	wanted   model.Resources
	fit      []*NodeView // nodes that pass the static filters
	rejected *tally
}

func newClass(nodes []*NodeView, t *model.Template) *class {
	c := &class{template: t, wanted: Wanted(t), rejected: newTally(len(nodes))}
	for _, n := range nodes {
		switch {
		case n.Node.Status.State == model.NodeDown:
			c.rejected.add("are down")
		case n.Node.Status.State != model.NodeReady:
			c.rejected.add("are not ready yet")
		case !n.Node.Schedulable():
			c.rejected.add("take no new work (" + string(n.Node.Availability) + ")")
		default:
			if reason := static(n.Node, t); reason != "" {
				c.rejected.add(reason)
				continue
			}
			c.fit = append(c.fit, n)
		}
	}
	return c
}

// dynamic returns why a node does not do at the moment.
func (c *class) dynamic(n *NodeView, r *Request) string {
	if r.PinnedTo != "" && n.Node.ID != r.PinnedTo {
		return r.PinReason
	}
	if m := c.template.Placement.MaxPerNode; m > 0 && n.Instances[r.WorkloadID] >= m {
		return fmt.Sprintf("have %d instances of it already, as many as one node may", m)
	}
	for _, p := range r.HostPorts {
		if n.Ports[portKey(p)] {
			return fmt.Sprintf("have port %d/%s taken", p.Published, p.Protocol)
		}
	}
	free := freeOf(n.Node, &n.Used)
	if lack := lacking(&n.Node.Capacity, &free, &c.wanted); lack != "" {
		return "are too full (" + lack + ", on " + n.Node.Name + ")"
	}
	return ""
}

// score orders nodes; the smallest is the best.
type score struct {
	domain []int // instances of the workload in the node's failure domains
	same   int   // instances of the workload on the node
	load   float64
	tie    uint64
}

func compareScores(a, b score) int {
	return cmp.Or(slices.Compare(a.domain, b.domain), cmp.Compare(a.same, b.same), cmp.Compare(a.load, b.load), cmp.Compare(a.tie, b.tie))
}

func (c *class) place(nodes []*NodeView, r *Request, seed uint64) Placement {
	rejected := c.rejected.clone()
	var best *NodeView
	var bestScore score
	fitting := 0
	domains := c.domains(r.WorkloadID)
	for _, n := range c.fit {
		if reason := c.dynamic(n, r); reason != "" {
			rejected.add(reason)
			continue
		}
		fitting++
		s := score{same: n.Instances[r.WorkloadID], load: load(n, &c.wanted), tie: tie(seed, r.InstanceID, n.Node.ID)}
		for i, key := range c.template.Placement.Spread {
			v, _ := Value(n.Node, key)
			s.domain = append(s.domain, domains[i][v])
		}
		if best == nil || compareScores(s, bestScore) < 0 {
			best, bestScore = n, s
		}
	}
	if best == nil {
		return Placement{InstanceID: r.InstanceID, Reason: rejected.text()}
	}
	best.Take(r.WorkloadID, &c.wanted, r.HostPorts)
	return Placement{InstanceID: r.InstanceID, NodeID: best.Node.ID, Reason: because(r, fitting, len(nodes), &bestScore)}
}

func because(r *Request, fitting, all int, s *score) string {
	switch {
	case r.PinnedTo != "":
		return "its volume lives here"
	case fitting == 1:
		return fmt.Sprintf("the only one of %d nodes that fits", all)
	case s.same == 0:
		return fmt.Sprintf("best of %d nodes that fit: no other instance of %s here", fitting, r.Workload)
	}
	return fmt.Sprintf("best of %d nodes that fit: %d instances of %s here, nowhere fewer", fitting, s.same, r.Workload)
}

// domains counts the workload's instances by value, for each key of the template's spread.
func (c *class) domains(workloadID string) []map[string]int {
	if len(c.template.Placement.Spread) == 0 {
		return nil
	}
	out := make([]map[string]int, len(c.template.Placement.Spread))
	for i, key := range c.template.Placement.Spread {
		out[i] = map[string]int{}
		for _, n := range c.fit {
			v, _ := Value(n.Node, key)
			out[i][v] += n.Instances[workloadID]
		}
	}
	return out
}

// Take accounts for an instance on the node.
func (n *NodeView) Take(workloadID string, wanted *model.Resources, ports []model.HostPort) {
	add(&n.Used, wanted, 1)
	if n.Instances == nil {
		n.Instances = map[string]int{}
	}
	n.Instances[workloadID]++
	n.Total++
	for _, p := range ports {
		if n.Ports == nil {
			n.Ports = map[string]bool{}
		}
		n.Ports[portKey(p)] = true
	}
}

func portKey(p model.HostPort) string { return fmt.Sprintf("%s/%d", p.Protocol, p.Published) }

// load is the larger share of cpu and memory taken once the instance is there, plus a little for
// each instance, so that those that reserve nothing spread too.
func load(n *NodeView, wanted *model.Resources) float64 {
	share := func(used, capacity int64) float64 {
		if capacity <= 0 {
			return 0
		}
		return float64(used) / float64(capacity)
	}
	return max(
		share(n.Used.NanoCPUs+wanted.NanoCPUs, n.Node.Capacity.NanoCPUs),
		share(n.Used.MemoryBytes+wanted.MemoryBytes, n.Node.Capacity.MemoryBytes),
	) + float64(n.Total)*0.01
}

func tie(seed uint64, instance, node string) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s %s", seed, instance, node)
	return h.Sum64()
}

// tally counts why nodes were rejected.
type tally struct {
	nodes   int
	counts  map[string]int
	reasons []string // in order of first appearance
}

func newTally(nodes int) *tally { return &tally{nodes: nodes, counts: map[string]int{}} }

func (t *tally) clone() *tally {
	c := newTally(t.nodes)
	for _, r := range t.reasons {
		c.reasons = append(c.reasons, r)
		c.counts[r] = t.counts[r]
	}
	return c
}

func (t *tally) add(reason string) {
	if t.counts[reason] == 0 {
		t.reasons = append(t.reasons, reason)
	}
	t.counts[reason]++
}

func (t *tally) text() string {
	if t.nodes == 0 {
		return "the cluster has no nodes"
	}
	order := slices.Clone(t.reasons)
	slices.SortStableFunc(order, func(a, b string) int { return cmp.Compare(t.counts[b], t.counts[a]) })
	parts := make([]string, len(order))
	for i, r := range order {
		parts[i] = fmt.Sprintf("%d of %d nodes %s", t.counts[r], t.nodes, r)
	}
	return strings.Join(parts, "; ")
}
