package schedule

import (
	"cmp"
	"container/heap"
	"fmt"
	"slices"

	"github.com/tutti-run/tutti/internal/model"
)

// victims are those who have to end so that an instance finds room.
type victims struct {
	victims []string
	reason  string
}

// eviction is a node with those of its instances that would have to give way.
type eviction struct {
	node      *NodeView
	candidate *candidate
	who       []int // positions among the node's occupants
	highest   int
	sum       int
	tie       uint64
}

// better compares evictions: the least important victim first, then the fewest, then the least
// important in sum.
func (a *eviction) better(b *eviction) bool {
	switch {
	case len(a.who) == 0 || len(b.who) == 0:
		if len(a.who) != len(b.who) {
			return len(a.who) == 0
		}
	case a.highest != b.highest:
		return a.highest < b.highest
	case len(a.who) != len(b.who):
		return len(a.who) < len(b.who)
	case a.sum != b.sum:
		return a.sum < b.sum
	}
	return a.tie < b.tie
}

// preempt finds the node on which the fewest and least important instances give way to a request,
// and sets the room aside; nil when nobody does. Where enough are ending already, nobody else has to.
func (p *placer) preempt(c *class) *victims {
	best := c.bestEviction()
	if best == nil {
		return nil
	}
	v, out := best.node, &victims{}
	if len(best.who) == 0 {
		out.reason = fmt.Sprintf("waits for what is ending on %s", v.Node.Name)
	} else {
		out.reason = fmt.Sprintf("%d instances of lower priority give way to it on %s", len(best.who), v.Node.Name)
	}
	for _, at := range best.who {
		o := &v.Occupants[at]
		out.victims = append(out.victims, o.InstanceID)
		if left, bounded := p.Spare[o.WorkloadID]; bounded {
			p.Spare[o.WorkloadID] = left - 1
		}
		v.Going = append(v.Going, *o)
	}
	p.going = true
	for i := len(best.who) - 1; i >= 0; i-- { // from the end, so that positions hold
		v.Occupants = without(v.Occupants, best.who[i])
	}
	// Others see the room as taken, and what makes it as spoken for.
	p.take(c, v)
	v.Going = append(v.Going, Occupant{Wanted: negative(&c.wanted), Ports: nil})
	return out
}

func negative(r *model.Resources) model.Resources { return minus(&model.Resources{}, r) }

func without(list []Occupant, at int) []Occupant {
	out := make([]Occupant, 0, len(list)-1)
	return append(append(out, list[:at]...), list[at+1:]...)
}

// evict finds who would have to give way on a node.
func (p *placer) evict(c *class, v *NodeView, own int) *eviction {
	used, held, mine := v.Used, make([]int, len(c.HostPorts)), v.Instances[c.WorkloadID]
	used.Custom = nil
	add(&used, &model.Resources{Custom: v.Used.Custom}, 1)
	for k, port := range c.HostPorts {
		held[k] = v.holders(port)
	}
	leave := func(o *Occupant, sign int64) {
		add(&used, &o.Wanted, -sign)
		for k := range c.HostPorts {
			for p := range o.Ports {
				if c.HostPorts[k].Clashes(&o.Ports[p]) {
					held[k] -= int(sign)
				}
			}
		}
	}
	fits := func() bool {
		for _, n := range held {
			if n > 0 {
				return false
			}
		}
		return room(v.Node, c.Template.Placement.Class).holds(&used, &c.wanted)
	}
	if c.PinnedTo != "" && v.Node.ID != c.PinnedTo || c.maxHere > 0 && mine >= c.maxHere {
		return nil
	}
	for i := range c.notHere {
		if runsAny(v, &c.notHere[i]) {
			return nil
		}
	}
	for i := range c.nearHere {
		if !runsAny(v, &c.nearHere[i]) {
			return nil
		}
	}
	for i := range v.Going {
		leave(&v.Going[i], 1)
	}
	out := &eviction{node: v}
	if fits() {
		if len(v.Going) == 0 {
			return nil // it fits, and only its failure domains do not
		}
		return out
	}
	order := p.meekest(v, own, c.WorkloadID)
	spent := map[string]int{}
	for _, at := range order {
		o := &v.Occupants[at]
		if left, bounded := p.Spare[o.WorkloadID]; bounded && spent[o.WorkloadID] >= left {
			continue
		}
		spent[o.WorkloadID]++
		leave(o, 1)
		out.who = append(out.who, at)
		if fits() {
			break
		}
	}
	if !fits() {
		return nil
	}
	p.reprieve(v, out, leave, fits)
	return out
}

// meekest lists the occupants of a node that may have to give way to a priority: the least important
// first, of equals the largest, so that few have to.
func (p *placer) meekest(v *NodeView, own int, self string) []int {
	var order []int
	for i := range v.Occupants {
		if o := &v.Occupants[i]; o.Priority < own && o.WorkloadID != self {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := &v.Occupants[a], &v.Occupants[b]
		return cmp.Or(
			cmp.Compare(x.Priority, y.Priority),
			cmp.Compare(dominant(&y.Wanted, &v.Node.Capacity), dominant(&x.Wanted, &v.Node.Capacity)),
			cmp.Compare(x.InstanceID, y.InstanceID),
		)
	})
	return order
}

// reprieve lets those stay without whom there is room all the same, the most important first.
func (p *placer) reprieve(v *NodeView, e *eviction, leave func(*Occupant, int64), fits func() bool) {
	var stay []int
	for i := len(e.who) - 1; i >= 0; i-- {
		o := &v.Occupants[e.who[i]]
		leave(o, -1)
		if fits() {
			stay = append(stay, e.who[i])
			continue
		}
		leave(o, 1)
	}
	e.who = slices.DeleteFunc(e.who, func(at int) bool { return slices.Contains(stay, at) })
	slices.Sort(e.who)
	for n, at := range e.who {
		pr := v.Occupants[at].Priority
		e.sum += pr
		if n == 0 || pr > e.highest {
			e.highest = pr
		}
	}
}

// bestEviction finds the node on which the least has to give way.
func (c *class) bestEviction() *eviction {
	if p := c.p; !p.going && (!p.occupied || p.lowest >= c.Template.Placement.Priority) {
		return nil
	}
	c.leave()
	if c.bounded() { // which domains take one more changes with every placement
		var best *eviction
		for i := range c.nodes {
			if e := c.evictAt(&c.nodes[i]); e != nil && c.groupFits(e.node.index) && (best == nil || e.better(best)) {
				best = e
			}
		}
		return best
	}
	if c.evictions == nil {
		c.evictions = &evictions{}
		c.evicted, c.regained = len(c.p.taken), len(c.p.freed)
		for i := range c.nodes {
			c.evictions.add(c.evictAt(&c.nodes[i]))
		}
	}
	for ; c.evicted < len(c.p.taken); c.evicted++ {
		c.evictAgain(c.p.taken[c.evicted])
	}
	for ; c.regained < len(c.p.freed); c.regained++ {
		c.evictAgain(c.p.freed[c.regained])
	}
	for len(*c.evictions) > 0 {
		top := (*c.evictions)[0]
		heap.Pop(c.evictions)
		now := c.evictAt(top.candidate) // budgets may have been spent since
		if now == nil {
			continue
		}
		if !top.better(now) && !now.better(top) {
			c.evictions.add(now) // for the next request, unless the node changes
			return now
		}
		c.evictions.add(now)
	}
	return nil
}

// bounded reports whether the class has rules about failure domains of several nodes.
func (c *class) bounded() bool { return len(c.skew)+len(c.maxPer)+len(c.near)+len(c.apart) > 0 }

func (c *class) evictAt(n *candidate) *eviction {
	own := c.Template.Placement.Priority
	if len(n.view.Going) == 0 && (!c.p.occupied || c.p.lowest >= own) {
		return nil
	}
	e := c.p.evict(c, n.view, own)
	if e != nil {
		e.candidate, e.tie = n, n.score.tie
	}
	return e
}

// evictAgain looks again at a node on which something changed. What was known of it is found out to
// be out of date when its turn comes.
func (c *class) evictAgain(node int32) {
	if i, ok := slices.BinarySearchFunc(c.nodes, node, func(n candidate, node int32) int { return int(n.view.index - node) }); ok {
		c.evictions.add(c.evictAt(&c.nodes[i]))
	}
}

// evictions is a heap with the best first.
type evictions []*eviction

func (h *evictions) add(e *eviction) {
	if e != nil {
		heap.Push(h, e)
	}
}

func (h evictions) Len() int           { return len(h) }
func (h evictions) Less(i, j int) bool { return h[i].better(h[j]) }
func (h evictions) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *evictions) Push(x any)        { *h = append(*h, x.(*eviction)) }
func (h *evictions) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
