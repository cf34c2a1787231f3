package schedule

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// warm is a cluster of nodes with four cores each, and instances of one workload each that use so many.
func warm(nodes int, cores map[string][]float64) (views []*NodeView, used map[string]Load, movable []Measured) {
	used = map[string]Load{}
	for n := range nodes {
		id := fmt.Sprint("n", n)
		v := &NodeView{Node: &model.Node{
			Meta: model.Meta{ID: id, Name: id}, Capacity: model.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30}, Status: model.NodeStatus{State: model.NodeReady},
		}}
		views = append(views, v)
		l := Load{}
		for k, c := range cores[id] {
			name := fmt.Sprint(id, "-", k)
			v.Take(name, &model.Resources{}, nil)
			l.NanoCPUs += c * 1e9
			movable = append(movable, Measured{
				Movable: Movable{NodeID: id, Request: Request{InstanceID: name, WorkloadID: name, Workload: name, Template: &model.Template{}}},
				Load:    Load{NanoCPUs: c * 1e9},
			})
		}
		used[id] = l
	}
	return views, used, movable
}

func hotOnes(views []*NodeView, used map[string]Load) map[string]bool {
	hot := map[string]bool{}
	for _, v := range views {
		hot[v.Node.ID] = Heat(v.Node, used[v.Node.ID]) >= Hot
	}
	return hot
}

func TestRelieve(t *testing.T) {
	for name, c := range map[string]struct {
		cores map[string][]float64
		want  string // moves
	}{
		"the one that helps most":          {map[string][]float64{"n0": {1.9, 1.5, 0.4}, "n1": {0.5}, "n2": {2.5}}, "n0-1>n1"},
		"nothing is hot":                   {map[string][]float64{"n0": {1.5, 1.5}, "n1": {}}, ""},
		"alone it would be hot everywhere": {map[string][]float64{"n0": {3.9}, "n1": {}}, ""},
		"nobody has room":                  {map[string][]float64{"n0": {1.9, 1.9}, "n1": {1.4, 1}, "n2": {3}}, ""},
		"three of many":                    {map[string][]float64{"n0": {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5}, "n1": {}, "n2": {}}, "n0-0>n1 n0-1>n2 n0-2>n1"},
	} {
		t.Run(name, func(t *testing.T) {
			views, used, movable := warm(3, c.cores)
			var got []string
			for _, m := range Relieve(Cluster{Nodes: views}, hotOnes(views, used), used, movable, 5, 1) {
				got = append(got, m.InstanceID+">"+m.To)
				if !strings.Contains(m.Reason, "n0 uses") {
					t.Errorf("reason %q", m.Reason)
				}
			}
			if text := strings.Join(got, " "); text != c.want {
				t.Errorf("moves %q, want %q", text, c.want)
			}
		})
	}
}

// TestRelieveComesToRest makes the moves of random clusters again and again: soon there are none, nothing
// moves twice while loads stay, and no move makes another node hot.
func TestRelieveComesToRest(t *testing.T) {
	total := 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 7))
		nodes := 2 + r.IntN(8)
		cores := map[string][]float64{}
		for n := range nodes {
			for range r.IntN(8) {
				cores[fmt.Sprint("n", n)] = append(cores[fmt.Sprint("n", n)], r.Float64()*r.Float64()*3)
			}
		}
		views, used, movable := warm(nodes, cores)
		moved := map[string]bool{}
		for round := 0; ; round++ {
			if round > len(movable) {
				t.Fatalf("seed %d: still moves after %d rounds", seed, round)
			}
			hot := hotOnes(views, used)
			// Relieve changes the views, as if what it says were done.
			moves := Relieve(Cluster{Nodes: views}, hot, used, movable, 1+r.IntN(3), seed)
			if len(moves) == 0 {
				break
			}
			for _, m := range moves {
				if moved[m.InstanceID] {
					t.Fatalf("seed %d: %s moves twice", seed, m.InstanceID)
				}
				moved[m.InstanceID] = true
				total++
				for i := range movable {
					if x := &movable[i]; x.InstanceID == m.InstanceID {
						from, to := used[x.NodeID], used[m.To]
						from.NanoCPUs -= x.Load.NanoCPUs
						to.NanoCPUs += x.Load.NanoCPUs
						used[x.NodeID], used[m.To], x.NodeID = from, to, m.To
					}
				}
			}
			for id, now := range hotOnes(views, used) {
				if now && !hot[id] {
					t.Fatalf("seed %d: %s became hot by the moves %v", seed, id, moves)
				}
			}
		}
	}
	if total < 100 {
		t.Errorf("only %d moves in all clusters", total)
	}
}

func TestMakeRoom(t *testing.T) {
	node := func(id string, free int64) *NodeView {
		v := &NodeView{Node: &model.Node{
			Meta: model.Meta{ID: id, Name: id}, Capacity: model.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30}, Status: model.NodeStatus{State: model.NodeReady},
		}}
		v.Take("rest", &model.Resources{MemoryBytes: (8 - free) << 30}, nil)
		return v
	}
	wants := func(id string, memory int64) Request {
		t := &model.Template{Tasks: []model.TaskSpec{{Name: "main", Reserve: model.Resources{MemoryBytes: memory << 30}}}}
		return Request{InstanceID: id, WorkloadID: "w-" + id, Workload: "shop/" + id, Template: t}
	}
	a, b := node("a", 5), node("b", 3)
	var movable []Movable
	for id, memory := range map[string]int64{"small": 1, "middle": 2} { // on a, of which 2 are free then
		r := wants(id, memory)
		a.Take(r.WorkloadID, &model.Resources{MemoryBytes: memory << 30}, nil)
		movable = append(movable, Movable{Request: r, NodeID: "a"})
	}
	in := Cluster{Nodes: []*NodeView{a, b}}
	for _, c := range []struct {
		memory int64
		want   string
	}{{4, "middle>b it makes room on a for shop/new"}, {3, "small>b it makes room on a for shop/new"}, {5, ""}, {7, ""}} {
		got := ""
		if c.memory == 3 {
			b.Take("other", &model.Resources{MemoryBytes: 1 << 30}, nil) // so that 3 do not fit there as they are
		}
		if m := MakeRoom(in, []Request{wants("new", c.memory)}, movable, 1); m != nil {
			got = m.InstanceID + ">" + m.To + " " + m.Reason
		}
		if got != c.want {
			t.Errorf("for %d: %q, want %q", c.memory, got, c.want)
		}
	}
}
