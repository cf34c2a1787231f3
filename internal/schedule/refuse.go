package schedule

import (
	"fmt"
	"strings"
)

// obstacle is why a node does not do, and how far it is from doing: each filter that rejects it
// counts one, and a lack of resources by how much is missing.
type obstacle struct {
	reason, example string
	distance        float64
}

// hopeless is the distance of a node that nothing people do would make fit.
const hopeless = 100

// obstacles yields all that speaks against a node that the static filters let pass.
func (c *class) obstacles(v *NodeView, yield func(obstacle) bool) {
	pl := &c.Template.Placement
	if c.PinnedTo != "" && v.Node.ID != c.PinnedTo && !yield(obstacle{c.PinReason, "", hopeless}) {
		return
	}
	if c.maxHere > 0 && v.Instances[c.WorkloadID] >= c.maxHere {
		reason := fmt.Sprintf("have %d instances of it already, as many as one node may", c.maxHere)
		if !yield(obstacle{reason, "", 1}) {
			return
		}
	}
	for i := range c.notHere {
		if runsAny(v, &c.notHere[i]) && !yield(obstacle{"run " + c.notHere[i].Names + ", from which it is to be kept apart", "", 1}) {
			return
		}
	}
	for i := range c.nearHere {
		if !runsAny(v, &c.nearHere[i]) && !yield(obstacle{"do not run " + c.nearHere[i].Names + ", which it is to be close to", "", 1}) {
			return
		}
	}
	for o := range c.domainObstacles(v.index) {
		if !yield(o) {
			return
		}
	}
	for _, p := range c.HostPorts {
		if v.Holds(p) && !yield(obstacle{fmt.Sprintf("have port %d/%s taken", p.Published, p.Protocol), "", 1}) {
			return
		}
	}
	if s, lacking := room(v.Node, pl.Class).lacks(&v.Used, &c.wanted); lacking {
		yield(obstacle{"have too little " + s.what, s.detail + " on " + v.Node.Name, s.missing})
	}
}

// domainObstacles yields what speaks against the failure domains of a node.
func (c *class) domainObstacles(node int32) func(yield func(obstacle) bool) {
	where := func(k *counter, key string) string { return key + "=" + k.names[k.of[node]] }
	return func(yield func(obstacle) bool) {
		for i := range c.skew {
			s := &c.skew[i]
			s.measure()
			if here := s.in[s.of[node]]; here+1-s.least > s.Max {
				text := fmt.Sprintf("would make %s uneven by more than %d", s.Key, s.Max)
				if !yield(obstacle{text, fmt.Sprintf("%d instances in %s, %d in the emptiest", here, where(s.counter, s.Key), s.least), 1}) {
					return
				}
			}
		}
		for i := range c.maxPer {
			m := &c.maxPer[i]
			if m.in[m.of[node]] >= m.max {
				text := fmt.Sprintf("are in a %s that has %d instances of it, as many as it may", m.key, m.max)
				if !yield(obstacle{text, where(m.counter, m.key), 1}) {
					return
				}
			}
		}
		for i := range c.near {
			if r := &c.near[i]; !r.holds(node) && !yield(obstacle{"have no instance of " + r.Names + " within their " + r.Key, "", 1}) {
				return
			}
		}
		for i := range c.apart {
			if r := &c.apart[i]; r.in[r.of[node]] > 0 && !yield(obstacle{"have " + r.Names + " within their " + r.Key + ", from which it is to be kept apart", "", 1}) {
				return
			}
		}
	}
}

// reject notes the first reason why a node does not do; false: it does.
func (c *class) reject(v *NodeView, rejected *tally) bool {
	if !c.opened {
		c.open()
	}
	for o := range func(yield func(obstacle) bool) { c.obstacles(v, yield) } {
		rejected.add(o.reason, o.example)
		return true
	}
	return false
}

// refusalText says which filter rejected how many nodes, and which node comes closest.
func (c *class) refusalText() string {
	if !c.opened {
		c.open()
	}
	rejected := c.fits.rejected.clone()
	var nearest *NodeView
	var least float64
	var lacks []obstacle
	for _, n := range c.fits.nodes {
		v := c.p.nodes[n]
		var all []obstacle
		distance := 0.0
		for o := range func(yield func(obstacle) bool) { c.obstacles(v, yield) } {
			all = append(all, o)
			distance += o.distance
		}
		if len(all) == 0 {
			continue // what was in the way has gone since
		}
		rejected.add(all[0].reason, all[0].example)
		if nearest == nil || distance < least {
			nearest, least, lacks = v, distance, all
		}
	}
	text := rejected.text()
	if text == "" {
		return "there was no room when its turn came; there is now"
	}
	if nearest == nil || least >= hopeless || len(lacks) == 1 && (rejected.counts[lacks[0].reason] == 1 || rejected.first[lacks[0].reason] == lacks[0].example) {
		return text // that says it all
	}
	var parts []string
	for _, o := range lacks {
		part := singular(o.reason)
		if o.example != "" {
			part += " (" + strings.TrimSuffix(o.example, " on "+nearest.Node.Name) + ")"
		}
		parts = append(parts, part)
	}
	return text + "; nearest is " + nearest.Node.Name + ", which " + strings.Join(parts, " and ")
}

// singular turns what is said of nodes into what is said of one.
func singular(reason string) string {
	verb, rest, _ := strings.Cut(reason, " ")
	one, known := map[string]string{"have": "has", "are": "is", "do": "does", "run": "runs", "take": "takes"}[verb]
	if !known {
		return reason
	}
	return one + " " + rest
}
