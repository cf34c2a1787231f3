package schedule

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// tally counts why nodes were rejected.
type tally struct {
	nodes   int
	counts  map[string]int
	first   map[string]string // an example for each reason that has one
	reasons []string          // in order of first appearance
}

func newTally(nodes int) *tally {
	return &tally{nodes: nodes, counts: map[string]int{}, first: map[string]string{}}
}

func (t *tally) clone() *tally {
	c := newTally(t.nodes)
	for _, r := range t.reasons {
		c.reasons = append(c.reasons, r)
		c.counts[r], c.first[r] = t.counts[r], t.first[r]
	}
	return c
}

func (t *tally) add(reason, example string) {
	if t.counts[reason] == 0 {
		t.reasons = append(t.reasons, reason)
		t.first[reason] = example
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
		if example := t.first[r]; example != "" {
			parts[i] += " (" + example + ")"
		}
	}
	return strings.Join(parts, "; ")
}
