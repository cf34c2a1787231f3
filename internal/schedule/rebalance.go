package schedule

import (
	"fmt"

	"github.com/tutti-run/tutti/internal/model"
)

// Movable is an instance that may move: where it is, and what would be asked for it elsewhere.
type Movable struct {
	Request
	NodeID string
}

// Move says that an instance is better off elsewhere.
type Move struct {
	InstanceID string
	To         string // node ID, as things stand
	Reason     string
}

const (
	// worthwhile is by how much of a node's load the more loaded of two nodes must get lighter.
	worthwhile = 0.15
	// likely bounds the instances that are looked at for one move, from the most crowded nodes.
	likely = 2000
)

// Rebalance returns at most so many moves, the most useful first. A move either makes a workload
// more even, over the domains or nodes that it spreads over, by at least one instance on each side,
// or makes the heavier of two nodes lighter by a good part. As each move takes something away from
// what is uneven, they never go round in a circle: where nothing else changes, there soon are none.
// Every rule that holds for placing holds for moving. The views change as if the moves were made.
func Rebalance(cluster Cluster, movable []Movable, most int, seed uint64) []Move {
	p := newPlacer(cluster, seed)
	byID := map[string]*NodeView{}
	for _, n := range p.nodes {
		byID[n.Node.ID] = n
	}
	if len(movable) > likely {
		movable = movable[:likely]
	}
	var out []Move
	moved := map[string]bool{}
	for len(out) < most {
		var best *Move
		var from, to *NodeView
		var what *Movable
		gain := 0.0
		for i := range movable {
			m := &movable[i]
			here := byID[m.NodeID]
			if here == nil || moved[m.InstanceID] || !spreads(m.Template) {
				continue
			}
			if move, there, g := p.consider(m, here); move != nil && g > gain {
				best, from, to, what, gain = move, here, there, m, g
			}
		}
		if best == nil {
			break
		}
		c := p.classOf(&what.Request)
		p.giveBack(c, from)
		p.take(c, to)
		moved[what.InstanceID] = true
		out = append(out, *best)
	}
	return out
}

func spreads(t *model.Template) bool {
	return t.Placement.Strategy == "" || t.Placement.Strategy == model.SpreadOut
}

// consider says where an instance would go if it were placed now, and what that would gain: whole
// numbers for instances that are spread more evenly, and fractions for load.
func (p *placer) consider(m *Movable, here *NodeView) (*Move, *NodeView, float64) {
	c := p.classOf(&m.Request)
	p.giveBack(c, here)
	defer p.take(c, here)
	best := c.best()
	if best == nil || best.view == here {
		return nil, nil, 0
	}
	there := best.view
	move := &Move{InstanceID: m.InstanceID, To: there.Node.ID}
	for i, k := range c.spread {
		a, b := k.in[k.of[here.index]], k.in[k.of[there.index]]
		if a > b {
			move.Reason = fmt.Sprintf("%s has %d instances of %s, and %s has %d", k.names[k.of[here.index]], a+1, c.Workload, k.names[k.of[there.index]], b)
			return move, there, float64(1000 * (len(c.spread) - i) * (a - b))
		}
		if a < b {
			return nil, nil, 0
		}
	}
	a, b := here.Instances[c.WorkloadID], there.Instances[c.WorkloadID]
	if a > b {
		move.Reason = fmt.Sprintf("%s has %d instances of %s, and %s has %d", here.Node.Name, a+1, c.Workload, there.Node.Name, b)
		return move, there, float64(a - b)
	}
	if lighter := c.load(here) - c.load(there); a == b && lighter >= worthwhile {
		move.Reason = fmt.Sprintf("%s is used more than %s, by %.0f %% of a node", here.Node.Name, there.Node.Name, 100*lighter)
		return move, there, lighter
	}
	return nil, nil, 0
}
