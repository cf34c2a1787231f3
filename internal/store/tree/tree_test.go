package tree

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

type pair struct{ key, value int }

func at(key int) func(pair) int { return func(p pair) int { return cmp.Compare(p.key, key) } }

// TestTreesAreLikeSortedMaps makes trees of trees, and looks at all that were made: none may be
// changed by what is done to another.
func TestTreesAreLikeSortedMaps(t *testing.T) {
	type version struct {
		tree Tree[pair]
		want map[int]int
	}
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		keys := []int{10, 300, 5000}[seed%3]
		versions := []version{{want: map[int]int{}}}
		for range 40 {
			old := versions[rnd.IntN(len(versions))]
			want, e := maps.Clone(old.want), old.tree.Edit()
			deletes := rnd.IntN(10)
			start := rnd.IntN(keys)
			for n := range rnd.IntN(1500) {
				key := rnd.IntN(keys)
				if seed%2 == 0 {
					key = (start + n) % keys // in order
				}
				had, there := want[key]
				if rnd.IntN(10) < deletes {
					if got, ok := e.Remove(at(key)); ok != there || got.value != had {
						t.Fatalf("removing %d gave %v %v, want %v %v", key, got, ok, had, there)
					}
					delete(want, key)
					continue
				}
				if got, ok := e.Put(pair{key, n}, at(key)); ok != there || got.value != had {
					t.Fatalf("replaced %v %v, want %v %v", got, ok, had, there)
				}
				want[key] = n
				if rnd.IntN(200) == 0 {
					versions = append(versions, version{e.Share(), maps.Clone(want)})
				}
			}
			versions = append(versions, version{e.Share(), want})
		}
		for _, v := range versions {
			var got []pair
			v.tree.All(func(p pair) bool { got = append(got, p); return true })
			if len(got) != len(v.want) || v.tree.Len() != len(v.want) {
				t.Fatalf("seed %d: %d items, size %d, want %d", seed, len(got), v.tree.Len(), len(v.want))
			}
			for i, p := range got {
				if v.want[p.key] != p.value || i > 0 && got[i-1].key >= p.key {
					t.Fatalf("seed %d: item %d is %v", seed, i, p)
				}
				if q, ok := v.tree.Get(at(p.key)); !ok || q != p {
					t.Fatalf("seed %d: %v is not found", seed, p)
				}
			}
			from, limit := rnd.IntN(keys+1), 1+rnd.IntN(100)
			i, _ := slices.BinarySearchFunc(got, from, func(p pair, k int) int { return cmp.Compare(p.key, k) })
			rest := got[i:]
			rest = rest[:min(limit, len(rest))]
			var some []pair
			v.tree.From(at(from), func(p pair) bool { some = append(some, p); return len(some) < limit })
			if !slices.Equal(some, rest) {
				t.Fatalf("seed %d: from %d on there is %v, want %v", seed, from, some, rest)
			}
			if _, ok := v.tree.Get(at(keys)); ok {
				t.Fatalf("seed %d: found what is not there", seed)
			}
			checkNodes(t, v.tree.root, true)
			built, ordered := Build(got, func(a, b pair) int { return cmp.Compare(a.key, b.key) })
			var again []pair
			built.All(func(p pair) bool { again = append(again, p); return true })
			if !ordered || !slices.Equal(again, got) || built.Len() != len(got) {
				t.Fatalf("seed %d: a tree built of %d items holds %d", seed, len(got), len(again))
			}
			checkNodes(t, built.root, true)
		}
	}
}

// checkNodes sees to it that nodes keep their bounds.
func checkNodes(t *testing.T, n *node[pair], root bool) {
	t.Helper()
	if n == nil {
		return
	}
	if len(n.items) > fanout || len(n.items) == 0 && !root || n.kids != nil && len(n.kids) != len(n.items) {
		t.Fatalf("a node has %d items and %d subtrees", len(n.items), len(n.kids))
	}
	for i, kid := range n.kids {
		checkNodes(t, kid, false)
		low, high := kid, kid
		for low.kids != nil {
			low = low.kids[0]
		}
		for high.kids != nil {
			high = high.kids[len(high.kids)-1]
		}
		if i > 0 && n.items[i].key > low.items[0].key || i+1 < len(n.kids) && high.items[len(high.items)-1].key >= n.items[i+1].key {
			t.Fatalf("subtree %d leaves its bounds", i)
		}
	}
}
