package schedule

import (
	"slices"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// Cluster is what is decided about: the nodes, and what bounds their use.
type Cluster struct {
	Nodes []*NodeView
	// Namespaces hold quotas and weights; one that is missing has neither.
	Namespaces map[string]*Share
	// Spare is how many instances of a workload may give way, by workload ID; a workload that is
	// missing may lose all of them.
	Spare map[string]int
}

// NodeView is a node and what is taken of it.
type NodeView struct {
	Node *model.Node
	Used model.Resources
	// Ports are taken host ports, as "tcp/8080", or "tcp/8080 192.0.2.1" on that address alone.
	Ports      map[string]bool
	particular bool // there are some of the latter
	// Instances counts wanted instances by workload ID; Total all of them.
	Instances map[string]int
	Total     int
	// Images are the digests of images on the node, with their size in bytes.
	Images map[string]int64
	// Occupants are instances that may have to give way to more important ones, and Going those
	// that have been told to end; both count as used.
	Occupants []Occupant
	Going     []Occupant

	index int32
	tie   uint64
}

// Occupant is an instance on a node.
type Occupant struct {
	InstanceID string
	WorkloadID string
	Priority   int
	Wanted     model.Resources
	Ports      []model.HostPort
}

// Request asks for a place for one instance.
type Request struct {
	InstanceID string
	WorkloadID string
	Workload   string // full name, for reasons
	Namespace  string
	Template   *model.Template
	HostPorts  []model.HostPort
	// PinnedTo is the only node that will do, for volumes that live there; "" for any.
	PinnedTo  string
	PinReason string
	// Near and Apart are the affinities of the template, and of others towards this workload.
	Near, Apart []Relation
}

// Relation is an affinity with the IDs of the workloads that it is to.
type Relation struct {
	Workloads []string
	Names     string // for reasons
	Key       string
	Weight    int // 0: it must hold
}

// Placement is a decision: a node, or why there is none.
type Placement struct {
	InstanceID string
	NodeID     string
	Reason     string
	// Victims are instances that are to end so that this one finds room; until then it has none.
	Victims []string
}

// Resolve turns the affinities of a template into relations. find gives the ID of a workload;
// names that stand for nothing yet are left out: nothing of theirs runs anywhere.
func Resolve(list []model.Affinity, self string, find func(name string) (id string, ok bool)) []Relation {
	var out []Relation
	for i := range list {
		a := &list[i]
		r := Relation{Key: DomainKey(a), Weight: a.Weight}
		switch {
		case len(a.Groups) > 0:
			r.Workloads, r.Names = model.GroupNames(a.Groups), "its group"
		case len(a.Workloads) == 0:
			r.Workloads, r.Names = []string{self}, "the workload itself"
		}
		for n, name := range a.Workloads {
			if n > 0 {
				r.Names += ", "
			}
			r.Names += name
			if id, ok := find(name); ok {
				r.Workloads = append(r.Workloads, id)
			}
		}
		out = append(out, r)
	}
	return out
}

// Place decides about requests, the most important first and otherwise in the order given, and
// accounts for each before the next; it changes the views accordingly. seed breaks ties. The
// placements are in the order of the requests.
func Place(cluster Cluster, requests []Request, seed uint64) []Placement {
	p := newPlacer(cluster, seed)
	out := make([]Placement, len(requests))
	for i := range requests {
		p.classOf(&requests[i]).left++
	}
	var refused []refusal
	for group := range p.turns(requests) {
		if requests[group[0]].Template.Placement.Gang {
			p.gang(requests, group, out)
			continue
		}
		for _, i := range group {
			r := &requests[i]
			c := p.classOf(r)
			out[i] = p.place(c, r)
			if out[i].NodeID == "" && out[i].Reason == "" {
				refused = append(refused, refusal{i, c})
			}
			if c.left--; c.left == 0 {
				c.done()
			}
		}
	}
	p.explain(refused, out)
	return out
}

// placer is one call of Place.
type placer struct {
	Cluster
	seed    uint64
	nodes   []*NodeView
	whole   model.Resources // what all nodes have
	classes map[classKey]*class
	last    *class
	fitting map[string]*fitting
	commons map[commonKey]*class
	ordered int // nodes in all of those
	domains map[string]*domains
	parts   map[string]*partition
	// counters are those that a workload's instances count in, by its ID.
	counters map[string][]*counter
	shared   map[string]*counter
	running  finder[int]      // nodes that run, or ran, instances of a workload
	holding  finder[int64]    // nodes that have an image
	byID     map[string]int32 // positions of nodes; made when first asked for
	// taken and freed are nodes in the order in which something was put there or taken away.
	taken, freed []int32
	spareNodes   []candidate  // memory of a class that is done, for the next
	spareHeaps   []*candidate // the same
	lowest       int          // priority of the least important occupant
	occupied     bool
	going        bool // something is ending somewhere
}

func newPlacer(cluster Cluster, seed uint64) *placer {
	p := &placer{
		Cluster: cluster, seed: seed, nodes: cluster.Nodes, classes: map[classKey]*class{}, fitting: map[string]*fitting{}, commons: map[commonKey]*class{},
		domains: map[string]*domains{}, parts: map[string]*partition{}, counters: map[string][]*counter{}, shared: map[string]*counter{},
		running: finder[int]{nodes: cluster.Nodes, of: func(v *NodeView) map[string]int { return v.Instances }},
		holding: finder[int64]{nodes: cluster.Nodes, of: func(v *NodeView) map[string]int64 { return v.Images }},
	}
	for i, n := range p.nodes {
		n.index, n.tie = int32(i), tie(seed, hash(n.Node.ID))
		add(&p.whole, &n.Node.Capacity, 1)
		p.going = p.going || len(n.Going) > 0
		for j := range n.Occupants {
			if pr := n.Occupants[j].Priority; !p.occupied || pr < p.lowest {
				p.lowest, p.occupied = pr, true
			}
		}
	}
	return p
}

// indexOf is the position of a node, -1 when there is none of that ID.
func (p *placer) indexOf(id string) int32 {
	if p.byID == nil {
		p.byID = make(map[string]int32, len(p.nodes))
		for _, n := range p.nodes {
			p.byID[n.Node.ID] = n.index
		}
	}
	if at, ok := p.byID[id]; ok {
		return at
	}
	return -1
}

// classKey is equal for requests that every node answers alike.
type classKey struct {
	template   *model.Template
	workloadID string
	pinnedTo   string
	ports      string
}

func (p *placer) classOf(r *Request) *class {
	if c := p.last; c != nil && c.key.template == r.Template && c.key.workloadID == r.WorkloadID && c.key.pinnedTo == r.PinnedTo && samePorts(c.HostPorts, r.HostPorts) {
		return c
	}
	key := classKey{template: r.Template, workloadID: r.WorkloadID, pinnedTo: r.PinnedTo}
	for _, port := range r.HostPorts {
		key.ports += portKey(port) + ";"
	}
	c := p.classes[key]
	if c == nil {
		c = newClass(p, r, key)
		p.classes[key] = c
	}
	p.last = c
	return c
}

func samePorts(a, b []model.HostPort) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}

// place finds a node for one request. Without one, the reason is left to be found out at the end,
// unless there is more to say than that no node fits.
func (p *placer) place(c *class, r *Request) Placement {
	out := Placement{InstanceID: r.InstanceID}
	if out.Reason = p.beyondQuota(c); out.Reason != "" {
		return out
	}
	best := c.best()
	if best == nil {
		if v := p.preempt(c); v != nil {
			out.Reason, out.Victims = v.reason, v.victims
		}
		return out
	}
	out.NodeID, out.Reason = best.view.Node.ID, c.because(best)
	p.take(c, best.view)
	return out
}

func (p *placer) take(c *class, v *NodeView) {
	if _, known := v.Instances[c.WorkloadID]; !known {
		p.running.add(c.WorkloadID, v.index)
	}
	v.Take(c.WorkloadID, &c.wanted, c.HostPorts)
	p.count(c, v, 1)
	p.taken = append(p.taken, v.index)
}

// giveBack undoes take.
func (p *placer) giveBack(c *class, v *NodeView) {
	add(&v.Used, &c.wanted, -1)
	v.Instances[c.WorkloadID]--
	v.Total--
	for _, port := range c.HostPorts {
		delete(v.Ports, portKey(port))
	}
	p.count(c, v, -1)
	p.freed = append(p.freed, v.index)
}

func (p *placer) count(c *class, v *NodeView, n int) {
	for _, k := range p.counters[c.WorkloadID] {
		k.in[k.of[v.index]] += n
		k.total += n
	}
	if s := p.Namespaces[c.Namespace]; s != nil {
		add(&s.Used, &c.wanted, int64(n))
		s.UsedInstances += n
	}
}

// gang places all requests of a group or none of them. Nobody gives way to a gang.
func (p *placer) gang(requests []Request, group []int, out []Placement) {
	var where []*NodeView
	var reason string
	for _, i := range group {
		r := &requests[i]
		c := p.classOf(r)
		out[i].InstanceID = r.InstanceID
		if reason = p.beyondQuota(c); reason != "" {
			break
		}
		best := c.best()
		if best == nil {
			reason = c.refusalText()
			break
		}
		out[i].NodeID, out[i].Reason = best.view.Node.ID, c.because(best)
		p.take(c, best.view)
		where = append(where, best.view)
	}
	if reason != "" {
		reason = "the gang is placed as a whole, and only " + strconv.Itoa(len(where)) + " of " + strconv.Itoa(len(group)) + " have room: " + reason
		for n, v := range where {
			p.giveBack(p.classOf(&requests[group[n]]), v)
		}
		for _, i := range group {
			out[i] = Placement{InstanceID: requests[i].InstanceID, Reason: reason}
		}
	}
	for _, i := range group {
		c := p.classOf(&requests[i])
		if c.left--; c.left == 0 {
			c.done()
		}
	}
}

// refusal is a request, by its position, that found no node.
type refusal struct {
	request int
	c       *class
}

// explain says why requests were refused, once for each class, as things stand in the end.
func (p *placer) explain(refused []refusal, out []Placement) {
	texts := map[*class]string{}
	for _, f := range refused {
		text, ok := texts[f.c]
		if !ok {
			text = f.c.refusalText()
			texts[f.c] = text
		}
		out[f.request].Reason = text
	}
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
		n.particular = n.particular || p.HostIP != ""
	}
}

// Lacks says what a node lacks at the moment for an instance of a workload that must run there
// and nowhere else, "" when it has room.
func Lacks(n *NodeView, r Request) string {
	p := newPlacer(Cluster{Nodes: []*NodeView{n}}, 0)
	c := p.classOf(&r)
	rejected := newTally(1)
	if !c.reject(n, rejected) {
		return ""
	}
	return rejected.text()
}

// Refusals says of each node why it does not take what is asked for, "" where it would.
func Refusals(nodes []*NodeView, r Request) []string {
	out := make([]string, len(nodes))
	c := newPlacer(Cluster{Nodes: nodes}, 0).classOf(&r)
	c.open()
	for n, v := range nodes {
		if out[n] = unfit(v.Node, r.Template); out[n] != "" {
			continue
		}
		for o := range func(yield func(obstacle) bool) { c.obstacles(v, yield) } {
			out[n] = o.reason
			if o.example != "" {
				out[n] += " (" + o.example + ")"
			}
			break
		}
	}
	return out
}

// Holds reports whether a port of the node is taken, on an address that is asked for.
func (v *NodeView) Holds(p model.HostPort) bool { return v.holders(p) > 0 }

// holders is how many hold a port of the node on an address that is asked for.
func (v *NodeView) holders(p model.HostPort) (n int) {
	if v.Ports[portKey(p)] {
		n++
	}
	if p.HostIP != "" {
		p.HostIP = ""
		if v.Ports[portKey(p)] {
			n++
		}
		return n
	}
	if v.particular {
		for k := range v.Ports {
			if strings.HasPrefix(k, portKey(p)+" ") {
				n++
			}
		}
	}
	return n
}

// portKey is the port, and after it the address, if it is one alone.
func portKey(p model.HostPort) string {
	k := p.Protocol + "/" + strconv.Itoa(p.Published)
	if p.HostIP != "" {
		k += " " + p.HostIP
	}
	return k
}

// hash is FNV-1a, the same everywhere.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// tie orders nodes that are equal otherwise, differently for each seed.
func tie(seed, node uint64) uint64 {
	h := seed*0x9e3779b97f4a7c15 ^ node*0xbf58476d1ce4e5b9
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
