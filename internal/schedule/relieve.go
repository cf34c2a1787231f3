package schedule

import (
	"cmp"
	"fmt"

	"github.com/tutti-run/tutti/internal/model"
)

// Load is what was measured: cores and memory in use.
type Load struct{ NanoCPUs, MemoryBytes float64 }

// Measured is an instance that may move, with what it uses.
type Measured struct {
	Movable
	Load Load
}

const (
	// Hot is the share of a node's cores, or of its memory, from which on it should get rid of something.
	Hot = 0.85
	// Cool is what a node may be used to by what moves there: far enough below Hot that it does not
	// become so itself.
	Cool = 0.70
	// relief is by how much a move must make the hottest of its two nodes cooler.
	relief = 0.10
)

// heat is the larger of both shares of a node that are used, and in words what is.
func heat(n *model.Node, l Load) (share float64, what string) {
	if n.Capacity.NanoCPUs > 0 {
		share, what = l.NanoCPUs/float64(n.Capacity.NanoCPUs), "cores"
	}
	if n.Capacity.MemoryBytes > 0 {
		if m := l.MemoryBytes / float64(n.Capacity.MemoryBytes); m > share {
			share, what = m, "memory"
		}
	}
	return share, what
}

// Heat is the larger of the shares of cores and memory of a node that are in use.
func Heat(n *model.Node, l Load) float64 { share, _ := heat(n, l); return share }

func (l Load) plus(m Load, sign float64) Load {
	return Load{max(0, l.NanoCPUs+sign*m.NanoCPUs), max(0, l.MemoryBytes+sign*m.MemoryBytes)}
}

// Relieve returns at most so many moves of instances off nodes that are hot, those that make most
// difference first. Nothing moves to where it would make a node warmer than Cool, and nothing that gains
// little, so that a move is never undone by another as long as loads stay what they are. Every rule that
// holds for placing holds here. used is what is measured of nodes, by ID; a node that is missing is not
// moved to.
func Relieve(cluster Cluster, hot map[string]bool, used map[string]Load, movable []Measured, most int, seed uint64) []Move {
	p := newPlacer(cluster, seed)
	loads := map[string]Load{}
	for id, l := range used {
		loads[id] = l
	}
	moved := map[string]bool{}
	var out []Move
	for len(out) < most {
		var best *Move
		var what *Measured
		var from, to *NodeView
		gain, warmest := 0.0, 0.0
		for i := range movable {
			m := &movable[i]
			at := p.indexOf(m.NodeID)
			if at < 0 || !hot[m.NodeID] || moved[m.InstanceID] {
				continue
			}
			here := p.nodes[at]
			before, word := heat(here.Node, loads[m.NodeID])
			if before < Hot {
				continue // what was decided a moment ago is enough
			}
			after := Heat(here.Node, loads[m.NodeID].plus(m.Load, -1))
			c := p.classOf(&m.Request)
			p.giveBack(c, here)
			for _, there := range p.nodes {
				load, known := loads[there.Node.ID]
				if !known || there == here || hot[there.Node.ID] {
					continue
				}
				warmer := Heat(there.Node, load.plus(m.Load, 1))
				g := before - max(after, warmer)
				if warmer > Cool || g < relief || g < gain || g == gain && warmer >= warmest || unfit(there.Node, m.Template) != "" || c.reject(there, newTally(1)) {
					continue
				}
				reason := fmt.Sprintf("%s uses %.0f %% of its %s, and %s has room", here.Node.Name, 100*before, word, there.Node.Name)
				best, what, from, to, gain, warmest = &Move{m.InstanceID, there.Node.ID, reason}, m, here, there, g, warmer
			}
			p.take(c, here)
		}
		if best == nil {
			break
		}
		c := p.classOf(&what.Request)
		p.giveBack(c, from)
		p.take(c, to)
		loads[from.Node.ID] = loads[from.Node.ID].plus(what.Load, -1)
		loads[to.Node.ID] = loads[to.Node.ID].plus(what.Load, 1)
		moved[what.InstanceID] = true
		out = append(out, *best)
	}
	return out
}

// MakeRoom returns, for the first of the pending requests that would find a node if a single instance
// were elsewhere, the move of the smallest such instance; nil when one move is not enough for any.
func MakeRoom(cluster Cluster, pending []Request, movable []Movable, seed uint64) *Move {
	p := newPlacer(cluster, seed)
	for i := range pending {
		r := &pending[i]
		wants := p.classOf(r)
		var best *Move
		least := 0.0
		for j := range movable {
			m := &movable[j]
			at := p.indexOf(m.NodeID)
			if at < 0 || m.WorkloadID == r.WorkloadID {
				continue
			}
			here := p.nodes[at]
			if unfit(here.Node, r.Template) != "" || !wants.reject(here, newTally(1)) {
				continue
			}
			c := p.classOf(&m.Request)
			size := cmp.Or(dominant(&c.wanted, &p.whole), 1e-9)
			if best != nil && size >= least {
				continue
			}
			p.giveBack(c, here)
			if !wants.reject(here, newTally(1)) {
				p.take(wants, here)
				for _, there := range p.nodes {
					if there == here || unfit(there.Node, m.Template) != "" || c.reject(there, newTally(1)) {
						continue
					}
					best, least = &Move{m.InstanceID, there.Node.ID, fmt.Sprintf("it makes room on %s for %s", here.Node.Name, r.Workload)}, size
					break
				}
				p.giveBack(wants, here)
			}
			p.take(c, here)
		}
		if best != nil {
			return best
		}
	}
	return nil
}
