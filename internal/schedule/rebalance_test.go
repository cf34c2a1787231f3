package schedule

import (
	"fmt"
	"slices"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

func TestRebalanceOntoAReturnedNode(t *testing.T) {
	nodes := []*NodeView{testNode("a", nil), testNode("b", nil), testNode("c", nil)}
	template := reserving(model.Resources{MemoryBytes: 1 << 30})
	var list []Movable
	wanted := Wanted(template)
	for i := range 6 { // three each on a and b, and c has come back empty
		nodes[i%2].Take("w", &wanted, nil)
		list = append(list, Movable{request(fmt.Sprint(i), template), nodes[i%2].Node.ID})
	}
	moves := Rebalance(Cluster{Nodes: nodes}, list, 9, 1)
	if len(moves) != 2 || moves[0].To != "id-c" || moves[1].To != "id-c" {
		t.Fatalf("moves: %+v; want two, onto c", moves)
	}
	for _, m := range moves {
		if m.Reason != "a has 3 instances of shop/web, and c has 0" && m.Reason != "b has 3 instances of shop/web, and c has 1" &&
			m.Reason != "b has 3 instances of shop/web, and c has 0" && m.Reason != "a has 3 instances of shop/web, and c has 1" {
			t.Errorf("reason: %s", m.Reason)
		}
	}
}

// TestRebalanceComesToRest moves things in random worlds until nothing is left to move: soon, never
// in a circle, and never against a rule.
func TestRebalanceComesToRest(t *testing.T) {
	total := 0
	for seed := range uint64(1000) {
		cluster, reqs := world(seed)
		first := map[string]*model.Template{}
		reqs = slices.DeleteFunc(reqs, func(r Request) bool { // while a workload is updated, nothing is moved
			if first[r.WorkloadID] == nil {
				first[r.WorkloadID] = r.Template
			}
			return first[r.WorkloadID] != r.Template
		})
		placed := Place(cluster, reqs, seed)
		var list []Movable
		for i, p := range placed {
			if p.NodeID != "" {
				list = append(list, Movable{reqs[i], p.NodeID})
			}
		}
		for _, n := range cluster.Nodes { // hosts come back
			if n.Node.Status.State == model.NodeDown {
				n.Node.Status.State = model.NodeReady
			}
		}
		been, byID := map[string]bool{}, map[string]*NodeView{}
		for _, n := range cluster.Nodes {
			byID[n.Node.ID] = n
		}
		before := make([]bool, len(cluster.Nodes))
		for i, n := range cluster.Nodes {
			before[i] = over(n)
		}
		for round := 0; ; round++ {
			moves := Rebalance(cluster, list, 1, seed)
			if len(moves) == 0 {
				break
			}
			if round > 2*len(list) {
				t.Fatalf("world %d: %d moves of %d instances, and no rest", seed, round, len(list))
			}
			total++
			for i := range list {
				if list[i].InstanceID != moves[0].InstanceID {
					continue
				}
				list[i].NodeID = moves[0].To
				if to := byID[moves[0].To]; !Eligible(to.Node, list[i].Template) {
					t.Fatalf("world %d: %s may not run on %s", seed, list[i].InstanceID, to.Node.Name)
				}
			}
			where := ""
			for i := range list {
				where += list[i].NodeID + " "
			}
			if been[where] {
				t.Fatalf("world %d: everything is where it was once before: %s", seed, moves[0].Reason)
			}
			been[where] = true
		}
		for i, n := range cluster.Nodes {
			if over(n) && !before[i] {
				t.Fatalf("world %d: %s is over its capacity", seed, n.Node.Name)
			}
		}
	}
	if total < 100 {
		t.Errorf("only %d moves were made in all", total)
	}
}
