package schedule

import "slices"

// group is the nodes of a class that are alike in every failure domain it asks about, those that
// fit as a heap with the best first.
type group struct {
	member int32 // one of its nodes
	heap   []*candidate
}

func (g *group) append(n *candidate) {
	n.pos = int32(len(g.heap))
	g.heap = append(g.heap, n)
}

// order makes a heap of what was appended.
func (g *group) order() {
	for i := len(g.heap)/2 - 1; i >= 0; i-- {
		g.down(int32(i))
	}
}

func (g *group) swap(i, j int32) {
	h := g.heap
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i, j
}

func (g *group) down(i int32) {
	h := g.heap
	for {
		least := i
		for _, child := range [...]int32{2*i + 1, 2*i + 2} {
			if child < int32(len(h)) && h[child].score.less(&h[least].score) {
				least = child
			}
		}
		if least == i {
			return
		}
		g.swap(i, least)
		i = least
	}
}

func (g *group) up(i int32) {
	for i > 0 {
		parent := (i - 1) / 2
		if !g.heap[i].score.less(&g.heap[parent].score) {
			return
		}
		g.swap(i, parent)
		i = parent
	}
}

func (g *group) remove(n *candidate) {
	i, last := n.pos, int32(len(g.heap)-1)
	if i != last {
		g.swap(i, last)
	}
	g.heap, n.pos = g.heap[:last], -1
	if i != last {
		g.down(i)
		g.up(i)
	}
}

// update puts a node where it belongs as things stand.
func (c *class) update(n *candidate) {
	g := &c.groups[n.group]
	if !c.fitsOn(n.view) {
		if n.pos >= 0 {
			g.remove(n)
		}
		return
	}
	c.rateNow(n)
	if n.pos < 0 {
		g.append(n)
	}
	g.down(n.pos)
	g.up(n.pos)
}

// follow looks at the nodes on which something happened that may have made them better.
func (c *class) follow() {
	for ; c.freed < len(c.p.freed); c.freed++ {
		c.updateAt(c.p.freed[c.freed])
	}
	if !c.eager {
		return
	}
	for ; c.taken < len(c.p.taken); c.taken++ {
		c.updateAt(c.p.taken[c.taken])
	}
}

func (c *class) updateAt(node int32) {
	i, ok := slices.BinarySearchFunc(c.nodes, node, func(n candidate, node int32) int { return int(n.view.index - node) })
	if ok {
		c.update(&c.nodes[i])
	}
}

// top returns the best node of a group, nil when none fits.
func (c *class) top(g *group) *candidate {
	for len(g.heap) > 0 {
		n := g.heap[0]
		if !c.fitsOn(n.view) {
			g.remove(n)
			continue
		}
		was := n.score
		c.rateNow(n)
		if n.score == was {
			return n
		}
		g.down(0)
	}
	return nil
}

// best returns the node that the next instance should go to, nil when none does.
func (c *class) best() *candidate {
	if !c.opened {
		c.open()
	}
	c.follow()
	if c.common != nil && c.looked > patience*len(c.fits.nodes) {
		c.leave()
	}
	for i := range c.skew {
		c.skew[i].measure()
	}
	groups, top := c.groups, c.top
	if c.common != nil {
		c.common.follow()
		groups, top = c.common.groups, c.topInCommon
	}
	var best *candidate
	var at *group
	var liked int32
	for i := range groups {
		g := &groups[i]
		if at != nil && c.compareSpread(g, at) > 0 || !c.groupFits(g.member) {
			continue
		}
		n := top(g)
		if n == nil {
			continue
		}
		like := c.groupPrefers(g.member)
		if at != nil && c.compareSpread(g, at) == 0 && !lessAcross(&n.score, like, &best.score, liked) {
			continue
		}
		best, at, liked = n, g, like
	}
	return best
}

// lessAcross compares nodes of different groups: what their domains are preferred by counts too.
func lessAcross(a *score, likeA int32, b *score, likeB int32) bool {
	if a.avoid != b.avoid {
		return a.avoid < b.avoid
	}
	if x, y := a.prefer+likeA, b.prefer+likeB; x != y {
		return x < y
	}
	x, y := *a, *b
	x.prefer, y.prefer = 0, 0
	return x.less(&y)
}

// compareSpread compares the instances in the domains of two groups, from the widest domain to the
// narrowest.
func (c *class) compareSpread(a, b *group) int {
	for _, k := range c.spread {
		if d := k.in[k.of[a.member]] - k.in[k.of[b.member]]; d != 0 {
			return d
		}
	}
	return 0
}

// groupPrefers sums what weighted affinities say of the domains of a node, less is better.
func (c *class) groupPrefers(node int32) (sum int32) {
	for i := range c.softNear {
		if r := &c.softNear[i]; r.in[r.of[node]] > 0 {
			sum -= int32(r.Weight)
		}
	}
	for i := range c.softPart {
		if r := &c.softPart[i]; r.in[r.of[node]] > 0 {
			sum += int32(r.Weight)
		}
	}
	return sum
}

// measure finds the emptiest domain, against which the others are measured. While there are too few
// domains, one that is still to come counts as empty.
func (s *skewRule) measure() {
	s.least = -1
	for d, ok := range s.eligible.has {
		if ok && (s.least < 0 || s.in[d] < s.least) {
			s.least = s.in[d]
		}
	}
	if s.eligible.count < s.MinDomains || s.least < 0 {
		s.least = 0
	}
}

// groupFits reports whether the domains of a node take one more instance.
func (c *class) groupFits(node int32) bool {
	for i := range c.skew {
		if s := &c.skew[i]; s.in[s.of[node]]+1-s.least > s.Max {
			return false
		}
	}
	for i := range c.maxPer {
		if m := &c.maxPer[i]; m.in[m.of[node]] >= m.max {
			return false
		}
	}
	for i := range c.near {
		if r := &c.near[i]; !r.holds(node) {
			return false
		}
	}
	for i := range c.apart {
		if r := &c.apart[i]; r.in[r.of[node]] > 0 {
			return false
		}
	}
	return true
}

// holds reports whether an affinity is met in the domain of a node. The first instance of a
// workload that wants to be with its own kind may go anywhere.
func (r *nearRule) holds(node int32) bool {
	return r.in[r.of[node]] > 0 || r.self && r.total == 0
}
