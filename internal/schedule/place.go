package schedule

import (
	"cmp"
	"fmt"
	"iter"
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
	p := &placer{nodes: nodes, seed: seed, classes: map[classKey]*class{}, counts: map[domain]*int{}, spreads: map[string][][]string{}}
	out := make([]Placement, len(requests))
	for i := range requests {
		out[i] = p.place(&requests[i])
	}
	return out
}

// placer is one call of Place.
type placer struct {
	nodes   []*NodeView
	seed    uint64
	classes map[classKey]*class
	// counts are instances of a workload in a failure domain.
	counts map[domain]*int
	// spreads are the different lists of spread keys by workload.
	spreads map[string][][]string
	taken   int // placements so far
}

// classKey is equal for requests that every node answers alike.
type classKey struct {
	template   *model.Template
	workloadID string
	pinnedTo   string
	ports      string
}

// domain is a failure domain as a workload sees it: the values of the template's spread keys,
// from the first to the one that the domain is of.
type domain struct{ workloadID, path string }

// class is what all requests of one key share: the nodes that may do, the best first.
type class struct {
	*Request
	wanted   model.Resources
	rejected *tally // by filters that do not depend on what runs
	fit      []*candidate
	root     *branch
	reasons  map[int]string // why a node with so many instances was chosen
	refusal  string         // why no node does, as of refusedAt
	refused  int
}

// candidate is a node with the score it had when last looked at. Placing only ever makes scores
// worse, so a stale score is never too bad, and it is enough to look again at the best.
type candidate struct {
	*NodeView
	avoid int // taints that ask for other nodes, if there are any
	tie   uint64
	score score
	// domains count the workload's instances in each of the node's failure domains.
	domains []*int
}

// score orders nodes of one failure domain; the smallest is the best.
type score struct {
	avoid int
	same  int // instances of the workload on the node
	load  float64
	tie   uint64
}

func compareScores(a, b *score) int {
	return cmp.Or(cmp.Compare(a.avoid, b.avoid), cmp.Compare(a.same, b.same), cmp.Compare(a.load, b.load), cmp.Compare(a.tie, b.tie))
}

func (c *class) scoreOf(n *candidate) score {
	return score{avoid: n.avoid, same: n.Instances[c.WorkloadID], load: load(n.NodeView, &c.wanted), tie: n.tie}
}

func (p *placer) place(r *Request) Placement {
	key := classKey{template: r.Template, workloadID: r.WorkloadID, pinnedTo: r.PinnedTo}
	for _, port := range r.HostPorts {
		key.ports += portKey(port) + " "
	}
	c := p.classes[key]
	if c == nil {
		c = p.newClass(r)
		p.classes[key] = c
	}
	best := c.best()
	if best == nil {
		return Placement{InstanceID: r.InstanceID, Reason: c.refusalText(p.taken)}
	}
	out := Placement{InstanceID: r.InstanceID, NodeID: best.Node.ID, Reason: c.because(best.score.same, len(p.nodes))}
	best.Take(c.WorkloadID, &c.wanted, c.HostPorts)
	own := c.Template.Placement.Spread
	for _, live := range best.domains {
		*live++
	}
	for _, keys := range p.spreads[c.WorkloadID] {
		if slices.Equal(keys, own) {
			continue
		}
		for path := range paths(best.Node, keys) { // another revision spreads differently
			*p.count(c.WorkloadID, path)++
		}
	}
	p.taken++
	return out
}

func (p *placer) newClass(r *Request) *class {
	c := &class{Request: r, wanted: Wanted(r.Template), rejected: newTally(len(p.nodes)), reasons: map[int]string{}, refused: -1}
	p.countDomains(c)
	c.root = &branch{live: new(int)}
	for _, n := range p.nodes {
		switch {
		case n.Node.Status.State == model.NodeDown:
			c.rejected.add("are down", "")
		case n.Node.Status.State != model.NodeReady:
			c.rejected.add("are not ready yet", "")
		case !n.Node.Schedulable():
			c.rejected.add("take no new work ("+string(n.Node.Availability)+")", "")
		default:
			if reason := static(n.Node, c.Template); reason != "" {
				c.rejected.add(reason, "")
				continue
			}
			can := &candidate{NodeView: n, avoid: avoided(n.Node, c.Template.Placement.Tolerations), tie: tie(p.seed, c.WorkloadID, n.Node.ID)}
			can.score = c.scoreOf(can)
			c.fit = append(c.fit, can)
			if reason, _ := c.dynamic(n); reason == "" {
				c.root.insert(p, c, can)
			}
		}
	}
	c.root.order()
	return c
}

// countDomains counts the workload's instances by failure domain, once for all its classes.
func (p *placer) countDomains(c *class) {
	keys := c.Template.Placement.Spread
	seen := func(have []string) bool { return slices.Equal(have, keys) }
	if len(keys) == 0 || slices.ContainsFunc(p.spreads[c.WorkloadID], seen) {
		return
	}
	p.spreads[c.WorkloadID] = append(p.spreads[c.WorkloadID], keys)
	for _, n := range p.nodes {
		if have := n.Instances[c.WorkloadID]; have > 0 {
			for path := range paths(n.Node, keys) {
				*p.count(c.WorkloadID, path) += have
			}
		}
	}
}

func (p *placer) count(workloadID, path string) *int {
	d := domain{workloadID, path}
	n := p.counts[d]
	if n == nil {
		n = new(int)
		p.counts[d] = n
	}
	return n
}

// paths yields the failure domains that a node is in, from the widest to the narrowest.
func paths(n *model.Node, keys []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		path := strings.Join(keys, "\x00") + "\x01" // other keys, other domains
		for _, key := range keys {
			v, _ := Value(n, key)
			path += key + "=" + v + "\x00"
			if !yield(path) {
				return
			}
		}
	}
}

// dynamic returns why a node does not do at the moment, and an example of it.
func (c *class) dynamic(n *NodeView) (reason, example string) {
	if c.PinnedTo != "" && n.Node.ID != c.PinnedTo {
		return c.PinReason, ""
	}
	if m := c.Template.Placement.MaxPerNode; m > 0 && n.Instances[c.WorkloadID] >= m {
		return fmt.Sprintf("have %d instances of it already, as many as one node may", m), ""
	}
	for _, p := range c.HostPorts {
		if n.Ports[portKey(p)] {
			return fmt.Sprintf("have port %d/%s taken", p.Published, p.Protocol), ""
		}
	}
	if what, lack := lacking(n.Node, &n.Used, &c.wanted); what != "" {
		return "have too little " + what, lack + " on " + n.Node.Name
	}
	return "", ""
}

// Lacks says what a node lacks at the moment for an instance of a workload that must run there
// and nowhere else, "" when it has room.
func Lacks(n *NodeView, t *model.Template, workloadID string, ports []model.HostPort) string {
	c := &class{Request: &Request{WorkloadID: workloadID, Template: t, HostPorts: ports}, wanted: Wanted(t)}
	reason, example := c.dynamic(n)
	if reason == "" {
		return ""
	}
	rejected := newTally(1)
	rejected.add(reason, example)
	return rejected.text()
}

// best returns the node that the next instance should go to, nil when none does.
func (c *class) best() *candidate {
	if ok, _ := c.root.refresh(c); !ok {
		return nil
	}
	b := c.root
	for len(b.branches) > 0 {
		b = b.branches[0]
	}
	return b.nodes[0]
}

func (c *class) refusalText(taken int) string {
	if c.refused == taken {
		return c.refusal
	}
	rejected := c.rejected.clone()
	for _, n := range c.fit {
		if reason, example := c.dynamic(n.NodeView); reason != "" {
			rejected.add(reason, example)
		}
	}
	c.refusal, c.refused = rejected.text(), taken
	return c.refusal
}

func (c *class) because(same, all int) string {
	if have := c.reasons[same]; have != "" {
		return have
	}
	reason := fmt.Sprintf("best of %d nodes that fit: %d instances of %s here, nowhere fewer", len(c.fit), same, c.Workload)
	switch {
	case c.PinnedTo != "":
		reason = "its volume lives here"
	case len(c.fit) == 1:
		reason = fmt.Sprintf("the only one of %d nodes that fits", all)
	case len(c.Template.Placement.Spread) > 0:
		reason = fmt.Sprintf("best of %d nodes that fit: spreads %s over %s", len(c.fit), c.Workload, strings.Join(c.Template.Placement.Spread, " and "))
	case same == 0:
		reason = fmt.Sprintf("best of %d nodes that fit: no other instance of %s here", len(c.fit), c.Workload)
	}
	c.reasons[same] = reason
	return reason
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

// tie is a hash (FNV-1a) of what it is given, the same everywhere.
func tie(seed uint64, workload, node string) uint64 {
	h := seed ^ 14695981039346656037
	for _, s := range [...]string{workload, "/", node} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	return h ^ h>>32
}
