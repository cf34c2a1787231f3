package schedule

import (
	"cmp"
	"container/heap"
)

// branch is a failure domain in the tree that a class's spread keys span; without such keys the
// root alone. Both its sub-domains and its nodes are kept as heaps, the best first.
type branch struct {
	live     *int // instances of the workload in the domain now
	count    int  // and when last looked at
	branches branchHeap
	byPath   map[string]*branch
	nodes    nodeHeap
}

// insert adds a node without keeping the heaps in order; see order.
func (b *branch) insert(p *placer, c *class, n *candidate) {
	for path := range paths(n.Node, c.Template.Placement.Spread) {
		next := b.byPath[path]
		if next == nil {
			next = &branch{live: p.count(c.WorkloadID, path)}
			next.count = *next.live
			if b.byPath == nil {
				b.byPath = map[string]*branch{}
			}
			b.byPath[path] = next
			b.branches = append(b.branches, next)
		}
		b = next
		n.domains = append(n.domains, b.live)
	}
	b.nodes = append(b.nodes, n)
}

func (b *branch) order() {
	for _, s := range b.branches {
		s.order()
	}
	heap.Init(&b.branches)
	heap.Init(&b.nodes)
}

// refresh makes the best node of the domain really the best, and drops nodes that do not fit any
// more. It reports whether one is left, and whether the domain's standing changed.
func (b *branch) refresh(c *class) (ok, changed bool) {
	if b.count != *b.live {
		b.count, changed = *b.live, true
	}
	for len(b.branches) > 0 {
		ok, moved := b.branches[0].refresh(c)
		if !ok {
			heap.Pop(&b.branches)
			changed = true
			continue
		}
		if !moved {
			return true, changed
		}
		changed = true
		heap.Fix(&b.branches, 0)
	}
	for len(b.nodes) > 0 {
		n := b.nodes[0]
		if reason, _ := c.dynamic(n.NodeView); reason != "" {
			heap.Pop(&b.nodes)
			changed = true
			continue
		}
		now := c.scoreOf(n)
		if now == n.score {
			return true, changed
		}
		n.score, changed = now, true
		heap.Fix(&b.nodes, 0)
	}
	return false, changed
}

// compareBranches compares sibling domains: by their instances, then by the best in them.
func compareBranches(a, b *branch) int {
	if a.count != b.count {
		return cmp.Compare(a.count, b.count)
	}
	if len(a.branches) > 0 && len(b.branches) > 0 {
		return compareBranches(a.branches[0], b.branches[0])
	}
	if len(a.nodes) > 0 && len(b.nodes) > 0 {
		return compareScores(&a.nodes[0].score, &b.nodes[0].score)
	}
	return 0
}

type branchHeap []*branch

func (h branchHeap) Len() int           { return len(h) }
func (h branchHeap) Less(i, j int) bool { return compareBranches(h[i], h[j]) < 0 }
func (h branchHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *branchHeap) Push(x any)        { *h = append(*h, x.(*branch)) }
func (h *branchHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

type nodeHeap []*candidate

func (h nodeHeap) Len() int           { return len(h) }
func (h nodeHeap) Less(i, j int) bool { return compareScores(&h[i].score, &h[j].score) < 0 }
func (h nodeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *nodeHeap) Push(x any)        { *h = append(*h, x.(*candidate)) }
func (h *nodeHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
