package schedule

import (
	"slices"
	"strings"
)

// domains are the failure domains that a list of node keys makes of the nodes: one for each
// combination of values.
type domains struct {
	of    []int32 // by node
	names []string
}

// domainsOf finds the domains of some keys, once for all classes. A node without a key is in a
// domain with the others that lack it.
func (p *placer) domainsOf(keys ...string) *domains {
	joined := strings.Join(keys, "\x00")
	if d := p.domains[joined]; d != nil {
		return d
	}
	d := &domains{of: make([]int32, len(p.nodes))}
	ids := map[string]int32{}
	var path []byte
	for i, n := range p.nodes {
		path = path[:0]
		for _, key := range keys {
			v, _ := Value(n.Node, key)
			path = append(append(path, v...), 0)
		}
		id, ok := ids[string(path)]
		if !ok {
			id = int32(len(d.names))
			ids[string(path)] = id
			d.names = append(d.names, strings.TrimSuffix(strings.ReplaceAll(string(path), "\x00", "/"), "/"))
		}
		d.of[i] = id
	}
	p.domains[joined] = d
	return d
}

// counter counts the instances of some workloads in each domain.
type counter struct {
	*domains
	in    []int
	total int
}

// counterOf returns the counter of some workloads over some keys, which is kept up as instances
// are placed.
func (p *placer) counterOf(workloads []string, keys ...string) *counter {
	name := strings.Join(workloads, "\x01") + "\x02" + strings.Join(keys, "\x00")
	if k := p.shared[name]; k != nil {
		return k
	}
	d := p.domainsOf(keys...)
	k := &counter{domains: d, in: make([]int, len(d.names))}
	for _, w := range workloads {
		for _, n := range p.running.on(w) {
			k.in[d.of[n]] += p.nodes[n].Instances[w]
			k.total += p.nodes[n].Instances[w]
		}
		p.counters[w] = append(p.counters[w], k)
	}
	p.shared[name] = k
	return k
}

// partition divides the nodes into groups that are in the same domain of each of some lists of
// keys.
type partition struct {
	of      []int32 // by node
	members []int32 // a node of each group
}

func (p *placer) partitionOf(lists []*domains, name string) *partition {
	if q := p.parts[name]; q != nil {
		return q
	}
	q := &partition{of: make([]int32, len(p.nodes))}
	ids := map[string]int32{}
	var path []byte
	for i := range p.nodes {
		path = path[:0]
		for _, d := range lists {
			id := d.of[i]
			path = append(path, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
		}
		id, ok := ids[string(path)]
		if !ok {
			id = int32(len(q.members))
			ids[string(path)] = id
			q.members = append(q.members, int32(i))
		}
		q.of[i] = id
	}
	p.parts[name] = q
	return q
}

func ownKey(key string) bool { return slices.Contains(ownKeys, key) }
