// Package tree holds ordered sets that are never changed: B-trees of which an edit copies the nodes
// on its way, once for all that is edited together. They are the tables and indexes of package
// store. Items may stand in several trees; where, each tree is told by a function.
package tree

import "slices"

// fanout is how many items, or subtrees, a node of a tree holds at most.
const fanout = 32

// Tree is an ordered set that is never changed: an edit gives another tree, which shares what is
// alike. A copy of the value is a snapshot of everything in it. The zero value is empty.
//
// Where an item belongs is asked of a function that compares it with what is looked for: below
// zero when the item comes before that, zero when it is that, above when it comes after.
type Tree[T any] struct {
	root *node[T]
	size int
}

// node is a leaf (no kids) or has kids; then items[i] is a lower bound of everything in kids[i] and
// greater than everything in kids[i-1], and items[0] is not looked at.
type node[T any] struct {
	owner *owner
	items []T
	kids  []*node[T]
}

// owner marks the nodes that an edit has made itself and may change.
type owner struct{ _ byte }

// before returns how many of the items come before what is looked for.
func before[T any](items []T, at func(T) int) int {
	low, high := 0, len(items)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if at(items[mid]) < 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low
}

// kid returns the index of the subtree in which an item is or would be.
func (n *node[T]) kid(at func(T) int) int {
	low, high := 1, len(n.kids)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if at(n.items[mid]) <= 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low - 1
}

// Len returns the number of items.
func (t Tree[T]) Len() int { return t.size }

// Get returns the item that is looked for.
func (t Tree[T]) Get(at func(T) int) (item T, ok bool) {
	n := t.root
	if n == nil {
		return item, false
	}
	for n.kids != nil {
		n = n.kids[n.kid(at)]
	}
	if i := before(n.items, at); i < len(n.items) && at(n.items[i]) == 0 {
		return n.items[i], true
	}
	return item, false
}

// From yields the items from the first one that does not come before what is looked for. It
// reports whether yield was content to the end.
func (t Tree[T]) From(at func(T) int, yield func(T) bool) bool {
	return t.root == nil || t.root.from(at, yield)
}

func (n *node[T]) from(at func(T) int, yield func(T) bool) bool {
	if n.kids == nil {
		for _, item := range n.items[before(n.items, at):] {
			if !yield(item) {
				return false
			}
		}
		return true
	}
	first := before(n.items[1:], at)
	if !n.kids[first].from(at, yield) {
		return false
	}
	for _, kid := range n.kids[first+1:] {
		if !kid.all(yield) {
			return false
		}
	}
	return true
}

// All yields every item in order.
func (t Tree[T]) All(yield func(T) bool) bool { return t.root == nil || t.root.all(yield) }

func (n *node[T]) all(yield func(T) bool) bool {
	if n.kids == nil {
		for _, item := range n.items {
			if !yield(item) {
				return false
			}
		}
		return true
	}
	for _, kid := range n.kids {
		if !kid.all(yield) {
			return false
		}
	}
	return true
}

// Edit makes a tree out of another. What it has made so far is its tree; after Share, that is not
// changed any more.
type Edit[T any] struct {
	Tree[T]
	own *owner
}

func (t Tree[T]) Edit() Edit[T] { return Edit[T]{Tree: t, own: new(owner)} }

// Share returns the tree as it is now.
func (e *Edit[T]) Share() Tree[T] {
	e.own = new(owner)
	return e.Tree
}

// mine returns the node, or a copy of it that may be changed.
func (e *Edit[T]) mine(n *node[T]) *node[T] {
	if n.owner == e.own {
		return n
	}
	c := &node[T]{owner: e.own, items: make([]T, len(n.items), min(len(n.items)+2, fanout+1))}
	copy(c.items, n.items)
	if n.kids != nil {
		c.kids = make([]*node[T], len(n.kids), min(len(n.kids)+2, fanout+1))
		copy(c.kids, n.kids)
	}
	return c
}

// Put adds an item, in place of the one that is at the same place, which it returns.
func (e *Edit[T]) Put(item T, at func(T) int) (old T, replaced bool) {
	if e.root == nil {
		e.root, e.size = &node[T]{owner: e.own, items: []T{item}}, 1
		return old, false
	}
	root, right, old, replaced := e.insert(e.root, item, at)
	if right != nil {
		root = &node[T]{owner: e.own, items: []T{root.items[0], right.items[0]}, kids: []*node[T]{root, right}}
	}
	e.root = root
	if !replaced {
		e.size++
	}
	return old, replaced
}

// insert returns what takes the node's place, and the second half when it was split.
func (e *Edit[T]) insert(n *node[T], item T, at func(T) int) (self, right *node[T], old T, replaced bool) {
	n = e.mine(n)
	if n.kids == nil {
		i := before(n.items, at)
		if i < len(n.items) && at(n.items[i]) == 0 {
			old, n.items[i] = n.items[i], item
			return n, nil, old, true
		}
		n.items = slices.Insert(n.items, i, item)
		return n, e.split(n, i), old, false
	}
	k := n.kid(at)
	kid, second, old, replaced := e.insert(n.kids[k], item, at)
	n.kids[k] = kid
	if second == nil {
		return n, nil, old, replaced
	}
	n.kids = slices.Insert(n.kids, k+1, second)
	n.items = slices.Insert(n.items, k+1, second.items[0])
	return n, e.split(n, k+1), old, replaced
}

// split takes the second half off a node that has become too large. One that grew at its end is
// left full, so that what comes in order fills its nodes.
func (e *Edit[T]) split(n *node[T], grewAt int) *node[T] {
	size := len(n.items)
	if size <= fanout {
		return nil
	}
	half := size / 2
	if grewAt == size-1 {
		half = size - 1
	}
	right := &node[T]{owner: e.own, items: slices.Clone(n.items[half:])}
	clear(n.items[half:])
	n.items = n.items[:half]
	if n.kids != nil {
		right.kids = slices.Clone(n.kids[half:])
		clear(n.kids[half:])
		n.kids = n.kids[:half]
	}
	return right
}

// Remove takes out the item that is looked for, which it returns.
func (e *Edit[T]) Remove(at func(T) int) (old T, removed bool) {
	old, ok := e.Get(at)
	if !ok {
		return old, false
	}
	root := e.drop(e.root, at)
	for len(root.kids) == 1 {
		root = root.kids[0]
	}
	if len(root.items) == 0 {
		root = nil
	}
	e.root = root
	e.size--
	return old, true
}

// drop takes out an item that is there. Nodes that become small join a neighbour where both fit.
func (e *Edit[T]) drop(n *node[T], at func(T) int) *node[T] {
	n = e.mine(n)
	if n.kids == nil {
		i := before(n.items, at)
		n.items = slices.Delete(n.items, i, i+1)
		return n
	}
	k := n.kid(at)
	kid := e.drop(n.kids[k], at)
	n.kids[k] = kid
	switch {
	case len(kid.items) == 0:
		n.kids = slices.Delete(n.kids, k, k+1)
		n.items = slices.Delete(n.items, k, k+1)
	case len(kid.items) < fanout/4:
		e.join(n, k)
	}
	return n
}

// join makes one node of a small kid and a neighbour of it.
func (e *Edit[T]) join(n *node[T], k int) {
	switch {
	case k > 0 && len(n.kids[k-1].items)+len(n.kids[k].items) <= 3*fanout/4:
		k--
	case k+1 < len(n.kids) && len(n.kids[k].items)+len(n.kids[k+1].items) <= 3*fanout/4:
	default:
		return
	}
	left, right := e.mine(n.kids[k]), n.kids[k+1]
	start := len(left.items)
	left.items = append(left.items, right.items...)
	if right.kids != nil {
		left.items[start] = n.items[k+1] // the first bound of a node is not kept up
		left.kids = append(left.kids, right.kids...)
	}
	n.kids[k] = left
	n.kids = slices.Delete(n.kids, k+1, k+2)
	n.items = slices.Delete(n.items, k+1, k+2)
}

// Build makes a tree of items that are in order, which it reports.
func Build[T any](items []T, compare func(a, b T) int) (t Tree[T], ordered bool) {
	const filled = fanout - fanout/8 // with room for a few more
	for i := range items[:max(0, len(items)-1)] {
		if compare(items[i], items[i+1]) >= 0 {
			return t, false
		}
	}
	own := new(owner)
	var level []*node[T]
	var lows []T // the first item below each
	for chunk := range slices.Chunk(items, filled) {
		level = append(level, &node[T]{owner: own, items: slices.Clone(chunk)})
		lows = append(lows, chunk[0])
	}
	for len(level) > 1 {
		var above []*node[T]
		var aboveLows []T
		for start := 0; start < len(level); start += filled {
			end := min(start+filled, len(level))
			above = append(above, &node[T]{owner: own, items: slices.Clone(lows[start:end]), kids: slices.Clone(level[start:end])})
			aboveLows = append(aboveLows, lows[start])
		}
		level, lows = above, aboveLows
	}
	t.size = len(items)
	if len(level) == 1 {
		t.root = level[0]
	}
	return t, true
}
