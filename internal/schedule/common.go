package schedule

import (
	"maps"
	"slices"
	"strconv"

	"github.com/tutti-run/tutti/internal/model"
)

// Classes of small workloads that ask the same of nodes have one order of the nodes in common, as if
// nothing of their workloads ran anywhere and no node had their images. A class goes through it from
// the best node on and passes over those that are special to it, as they do have such: these are
// few, and are rated apart. So a thousand workloads of one shape order the nodes once instead of a
// thousand times.

// patience is how often a class looks at as many nodes as there are, beyond those that it chooses,
// before it makes an order of its own.
const patience = 2

// keptOrders bounds the nodes in all common orders that are kept for classes to come. Tests keep fewer.
var keptOrders = 2_000_000

// commonKey is equal for classes that may have an order in common.
type commonKey struct {
	static, wanted, ports, partition string
	strategy                         model.Strategy
	class                            model.ResourceClass
}

// commonOf returns the order that a class has in common with others, nil when it needs one of its own:
// because it is about single nodes of others, or large.
func (p *placer) commonOf(c *class, part *partition, name string) *class {
	about := func(r Relation) bool { return len(r.Workloads) != 1 || r.Workloads[0] != c.WorkloadID }
	if c.WorkloadID == "" || c.PinnedTo != "" || len(c.nearHere)+len(c.likes)+len(c.dislikes) > 0 || slices.ContainsFunc(c.notHere, about) ||
		2*(c.left+len(p.running.on(c.WorkloadID))) > len(p.nodes) {
		return nil
	}
	pl := &c.Template.Placement
	key := commonKey{
		static: staticKey(c.Template), wanted: resourcesKey(&c.wanted), ports: c.key.ports, partition: name,
		strategy: pl.Strategy, class: pl.Class,
	}
	common := p.commons[key]
	if common == nil {
		if p.ordered > keptOrders {
			p.forget()
		}
		common = &class{Request: &Request{Template: c.Template, HostPorts: c.HostPorts}, p: p, wanted: c.wanted, opened: true, eager: c.eager}
		common.fits = p.fit(c.Template)
		common.order(part)
		p.commons[key] = common
		p.ordered += len(common.nodes)
	}
	common.users++
	for _, d := range c.digests {
		c.holders = append(c.holders, p.holding.on(d)...)
	}
	return common
}

// forget lets go of the common orders that no class uses at the moment.
func (p *placer) forget() {
	for key, common := range p.commons {
		if common.users == 0 {
			delete(p.commons, key)
			p.ordered -= len(common.nodes)
			common.done()
		}
	}
}

func resourcesKey(r *model.Resources) string {
	var b []byte
	for _, n := range [...]int64{r.NanoCPUs, r.MemoryBytes, r.DiskBytes, r.Pids} {
		b = append(strconv.AppendInt(b, n, 36), ' ')
	}
	for _, name := range slices.Sorted(maps.Keys(r.Custom)) {
		b = append(strconv.AppendInt(strconv.AppendQuote(b, name), r.Custom[name], 36), ' ')
	}
	return string(b)
}

// leave gives a class an order of its own.
func (c *class) leave() {
	if c.common == nil {
		return
	}
	c.common.users--
	c.common = nil
	lists, name := c.lists()
	c.order(c.p.partitionOf(lists, name))
}

// topInCommon returns the best node of a group of the common order for a class, nil when none fits.
func (c *class) topInCommon(g *group) *candidate {
	n := c.foremost(g)
	var own []int32
	if c.spreadOut && (n == nil || c.fits.avoid != nil || c.fits.prefer != nil || len(c.holders) > 0) {
		own = c.p.running.on(c.WorkloadID) // else all of them are behind that one
	}
	var best candidate
	for _, list := range [...][]int32{own, c.holders} {
		for _, i := range list {
			at, ok := slices.BinarySearch(c.fits.nodes, i)
			if c.looked++; !ok {
				continue
			}
			special := c.common.nodes[at]
			if &c.common.groups[special.group] != g || c.indifferent(special.view) || !c.fitsOn(special.view) {
				continue
			}
			if c.rateNow(&special); best.view == nil || special.score.less(&best.score) {
				best = special
			}
		}
	}
	if best.view == nil || n != nil && n.score.less(&best.score) {
		return n
	}
	return &best
}

// foremost returns the first node of a group, in the common order, that the class may choose and that
// is nothing special to it. It goes down the heap from the top, the best first.
func (c *class) foremost(g *group) *candidate {
	common := c.common
	for {
		if len(g.heap) == 0 {
			return nil
		}
		c.front = append(c.front[:0], g.heap[0])
		n, settled := c.search(common, g)
		if settled {
			return n
		}
	}
}

// search looks for the first node that will do; it is not settled when a node was found to have
// changed since it was put in its place, which is corrected.
func (c *class) search(common *class, g *group) (n *candidate, settled bool) {
	for len(c.front) > 0 {
		n := c.pop()
		if !common.fitsOn(n.view) {
			g.remove(n)
			return nil, false
		}
		was := n.score
		if common.rate(n, 0); n.score != was {
			g.down(n.pos)
			return nil, false
		}
		if c.indifferent(n.view) {
			return n, true
		}
		c.looked++
		for _, child := range [...]int32{2*n.pos + 1, 2*n.pos + 2} {
			if child < int32(len(g.heap)) {
				c.push(g.heap[child])
			}
		}
	}
	return nil, true
}

// indifferent reports whether a node is nothing special to the class, and may be chosen as far as
// the class's own instances are concerned.
func (c *class) indifferent(v *NodeView) bool {
	if len(c.holders) > 0 && c.local(v) > 0 {
		return false
	}
	if !c.spreadOut && c.maxHere == 0 && len(c.notHere) == 0 {
		return true
	}
	own := v.Instances[c.WorkloadID]
	return own == 0 || !c.spreadOut && (c.maxHere == 0 || own < c.maxHere) && len(c.notHere) == 0
}

// push and pop keep what is to be looked at next as a heap, the best first.
func (c *class) push(n *candidate) {
	c.front = append(c.front, n)
	for i := len(c.front) - 1; i > 0; {
		parent := (i - 1) / 2
		if !c.front[i].score.less(&c.front[parent].score) {
			return
		}
		c.front[i], c.front[parent] = c.front[parent], c.front[i]
		i = parent
	}
}

func (c *class) pop() *candidate {
	h := c.front
	top, last := h[0], len(h)-1
	h[0] = h[last]
	h = h[:last]
	c.front = h
	for i := 0; ; {
		least := i
		for _, child := range [...]int{2*i + 1, 2*i + 2} {
			if child < last && h[child].score.less(&h[least].score) {
				least = child
			}
		}
		if least == i {
			return top
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}
