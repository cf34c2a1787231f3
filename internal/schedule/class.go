package schedule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// class is what all requests of one key share: the nodes that may do, in groups, the best of each
// group first.
type class struct {
	*Request
	key    classKey
	p      *placer
	wanted model.Resources
	left   int // requests still to come
	opened bool
	fits   *fitting
	nodes  []candidate // those that may do, in the order of the cluster's nodes
	groups []group
	heaps  []*candidate // the memory of the groups' heaps
	// common is the order of nodes that the class has in common with others, in place of the three
	// above; looked is what it cost so far that it is not the class's own. See common.go.
	common *class
	looked int
	users  int // of a common order: classes that use it
	front  []*candidate
	// digests are the images of the class, holders the nodes that have one, where the order is common.
	digests []string
	holders []int32
	rules
	// eager classes have scores that others' placements may improve: they look at each. The other
	// classes look again only at what seems best, as scores get worse and never better.
	eager        bool
	taken, freed int // how far the placer's lists were followed
	reasons      map[int32]string
	evictions    *evictions // what would have to give way on each node, once that was asked
	// how far the placer's lists were followed for the evictions
	evicted, regained int
}

func newClass(p *placer, r *Request, key classKey) *class {
	c := &class{Request: r, key: key, p: p, wanted: Wanted(r.Template)}
	for i := range r.Template.Tasks {
		if d := r.Template.Tasks[i].Digest; d != "" && !slices.Contains(c.digests, d) {
			c.digests = append(c.digests, d)
		}
	}
	return c
}

// candidate is a node with the score it had when last looked at.
type candidate struct {
	view  *NodeView
	group int32
	pos   int32 // in the group's heap; -1: does not fit
	score score
	base  int32 // what preferences for nodes add up to
	avoid int32
}

// score orders nodes of one group; the smallest is the best.
type score struct {
	avoid  int32
	prefer int32 // what the node is preferred by, less is better
	same   int32 // instances of the workload on the node, where they are to be spread
	load   float64
	tie    uint64
}

func (a *score) less(b *score) bool {
	switch {
	case a.avoid != b.avoid:
		return a.avoid < b.avoid
	case a.prefer != b.prefer:
		return a.prefer < b.prefer
	case a.same != b.same:
		return a.same < b.same
	case a.load != b.load:
		return a.load < b.load
	}
	return a.tie < b.tie
}

// rules are what a class asks about failure domains of several nodes, and about what else runs on
// a node.
type rules struct {
	spread []*counter // of each prefix of the keys to spread over
	skew   []skewRule
	maxPer []maxRule
	near   []nearRule // over several nodes
	apart  []nearRule
	// On the node itself.
	maxHere            int // 0: any number
	nearHere, notHere  []Relation
	likes, dislikes    []Relation
	softNear, softPart []nearRule
	spreadOut          bool
}

type maxRule struct {
	*counter
	max int
	key string
}

type skewRule struct {
	*counter
	model.Skew
	eligible eligible
	least    int // instances in the emptiest of those
}

type nearRule struct {
	*counter
	Relation
	self bool
}

// fitting is what the static filters say of the nodes for a template.
type fitting struct {
	nodes    []int32
	rejected *tally
	avoid    []int32 // by position in nodes; nil: no node is to be avoided
	prefer   []int32 // the same
	eligible map[*domains]eligible
}

// eligible are the domains in which there is a node that may do.
type eligible struct {
	has   []bool
	count int
}

// in finds the domains in which there is a node that may do, once for each division.
func (f *fitting) in(d *domains) eligible {
	e, ok := f.eligible[d]
	if !ok {
		e.has = make([]bool, len(d.names))
		for _, n := range f.nodes {
			if at := d.of[n]; !e.has[at] {
				e.has[at] = true
				e.count++
			}
		}
		if f.eligible == nil {
			f.eligible = map[*domains]eligible{}
		}
		f.eligible[d] = e
	}
	return e
}

// keptFittings bounds what is remembered of filters.
const keptFittings = 64

// fit filters and rates the nodes by what does not depend on what runs, once for all templates that
// are alike in this respect.
func (p *placer) fit(t *model.Template) *fitting {
	pl := &t.Placement
	key := staticKey(t)
	if f := p.fitting[key]; f != nil {
		return f
	}
	f := &fitting{rejected: newTally(len(p.nodes))}
	filters := filtersOf(t)
	for i, n := range p.nodes {
		reason := unable(n.Node)
		if reason == "" {
			reason = filters.reject(n.Node)
		}
		if reason != "" {
			f.rejected.add(reason, "")
			continue
		}
		f.nodes = append(f.nodes, int32(i))
		if avoid := avoided(n.Node, pl.Tolerations); avoid != 0 || f.avoid != nil {
			f.avoid = append(upTo(f.avoid, len(f.nodes)-1), int32(avoid))
		}
		if len(pl.Prefer) > 0 {
			f.prefer = append(f.prefer, preferred(n.Node, pl.Prefer))
		}
	}
	if !slices.ContainsFunc(f.prefer, func(n int32) bool { return n != 0 }) {
		f.prefer = nil
	}
	if len(p.fitting) < keptFittings {
		p.fitting[key] = f
	}
	return f
}

// upTo returns a list with zeroes in front, so that it has a length.
func upTo(list []int32, n int) []int32 {
	if list == nil {
		return make([]int32, n, n+1)
	}
	return list
}

// unfit is why a node takes nothing of a template, whatever runs there; "" when it may.
func unfit(n *model.Node, t *model.Template) string {
	if reason := unable(n); reason != "" {
		return reason
	}
	return static(n, t)
}

// unable is why a node takes nothing at all, "" when it may.
func unable(n *model.Node) string {
	switch {
	case n.Status.State == model.NodeDown:
		return "are down"
	case n.Status.State != model.NodeReady:
		return "are not ready yet"
	case len(n.Pressure) > 0:
		return "are short of " + strings.Join(n.Pressure, " and ")
	case !n.Schedulable():
		return "take no new work (" + string(n.Availability) + ")"
	}
	return ""
}

// staticKey is equal for templates that the filters and preferences for nodes answer alike.
func staticKey(t *model.Template) string {
	pl := &t.Placement
	var b []byte
	text := func(s string) { b = strconv.AppendQuote(b, s) }
	constraint := func(c *model.Constraint) {
		text(c.Key)
		text(string(c.Operator))
		for _, v := range c.Values {
			text(v)
		}
		b = append(b, ';')
	}
	for i := range pl.Constraints {
		constraint(&pl.Constraints[i])
	}
	b = append(b, '|')
	for _, s := range pl.Platforms {
		text(s)
	}
	b = append(b, '|')
	for _, t := range pl.Tolerations {
		text(t.Key)
		text(t.Value)
		text(t.Effect)
	}
	b = append(b, '|')
	for i := range pl.Prefer {
		b = strconv.AppendInt(b, int64(pl.Prefer[i].Weight), 10)
		constraint(&pl.Prefer[i].Constraint)
	}
	b = append(b, '|')
	for _, key := range requiredKeys(pl) {
		text(key)
	}
	for _, list := range [...][]string{t.Runtimes(), t.NamedDevices()} {
		b = append(b, '|')
		for _, s := range list {
			text(s)
		}
	}
	b = append(b, '|')
	for _, l := range t.Links() {
		text(l.Driver)
		text(l.Parent)
	}
	return string(b)
}

func preferred(n *model.Node, list []model.Preference) int32 {
	sum := 0
	for i := range list {
		if Satisfies(n, &list[i].Constraint) {
			sum += list[i].Weight
		}
	}
	return -int32(sum)
}

// open finds the nodes of a class, when its first request comes.
func (c *class) open() {
	c.opened = true
	c.makeRules()
	lists, name := c.lists()
	part := c.p.partitionOf(lists, name)
	if c.common = c.p.commonOf(c, part, name); c.common != nil {
		c.fits = c.common.fits
	} else {
		c.fits = c.p.fit(c.Template)
		c.order(part)
	}
	for i := range c.skew {
		s := &c.skew[i]
		s.eligible = c.fits.in(s.domains)
	}
}

// order puts the nodes that may do into groups, each in the order of their scores.
func (c *class) order(part *partition) {
	p := c.p
	c.groups = make([]group, len(part.members))
	nodes, first := c.fits.nodes, 0
	if c.PinnedTo != "" { // no other one does
		first, _ = slices.BinarySearch(nodes, p.indexOf(c.PinnedTo))
		nodes = nodes[first:min(first+1, len(nodes))]
	}
	c.nodes, p.spareNodes = reuse(p.spareNodes, len(nodes)), nil
	here := c.here()
	sizes := make([]int32, len(part.members))
	for _, n := range nodes {
		sizes[part.of[n]]++
	}
	heaps := reuse(p.spareHeaps, len(c.nodes))
	p.spareHeaps, c.heaps = nil, heaps
	for g := range c.groups {
		c.groups[g] = group{member: part.members[g], heap: heaps[:0:sizes[g]]}
		heaps = heaps[sizes[g]:]
	}
	for i, n := range nodes {
		can := &c.nodes[i]
		*can = candidate{view: p.nodes[n], group: part.of[n], pos: -1}
		if c.fits.avoid != nil {
			can.avoid = c.fits.avoid[first+i]
		}
		if c.fits.prefer != nil {
			can.base = c.fits.prefer[first+i]
		}
		can.score.tie = can.view.tie
		if c.fitsOn(can.view) {
			same := int32(0)
			if len(here) > 0 {
				same = here[n]
			}
			c.rate(can, same)
			c.groups[can.group].append(can)
		}
	}
	for g := range c.groups {
		c.groups[g].order()
	}
	c.taken, c.freed = len(p.taken), len(p.freed)
}

// here counts the workload's instances by node, where there are any.
func (c *class) here() map[int32]int32 {
	out := map[int32]int32{}
	if c.WorkloadID == "" { // a common order is nobody's
		return out
	}
	for _, n := range c.p.running.on(c.WorkloadID) {
		out[n] = int32(c.p.nodes[n].Instances[c.WorkloadID])
	}
	return out
}

// done lets go of what only a further request would need; what explains a refusal stays.
func (c *class) done() {
	if c.common != nil {
		c.common.users--
		return
	}
	c.p.spareNodes, c.p.spareHeaps = c.nodes, c.heaps
	c.nodes, c.heaps, c.groups = nil, nil, nil
}

// reuse returns a slice of some length, in the memory of another one if that is large enough.
func reuse[T any](old []T, n int) []T {
	if cap(old) < n {
		return make([]T, n)
	}
	return old[:n]
}

func (c *class) makeRules() {
	p, pl := c.p, &c.Template.Placement
	self := []string{c.WorkloadID}
	c.spreadOut = pl.Strategy == "" || pl.Strategy == model.SpreadOut
	var keys []string
	for _, key := range pl.Spread {
		if ownKey(key) {
			c.spreadOut = true
			break
		}
		keys = append(keys, key)
		c.spread = append(c.spread, p.counterOf(self, keys...))
	}
	c.maxHere = pl.MaxPerNode
	lower := func(limit int) {
		if c.maxHere == 0 || limit < c.maxHere {
			c.maxHere = limit
		}
	}
	for _, m := range pl.MaxPer {
		if ownKey(m.Key) {
			lower(m.Max)
			continue
		}
		c.maxPer = append(c.maxPer, maxRule{p.counterOf(self, m.Key), m.Max, m.Key})
	}
	for _, s := range pl.Skew {
		counted := self
		if len(s.Groups) > 0 {
			counted = model.GroupNames(s.Groups)
		}
		c.skew = append(c.skew, skewRule{counter: p.counterOf(counted, s.Key), Skew: s})
	}
	for _, r := range c.Near {
		own, here := slices.Contains(r.Workloads, c.WorkloadID), ownKey(r.Key)
		switch {
		case r.Weight == 0 && here && !own:
			c.nearHere = append(c.nearHere, r)
			c.eager = true
		case r.Weight == 0:
			c.near = append(c.near, nearRule{p.counterOf(r.Workloads, r.Key), r, own})
		case here:
			c.likes = append(c.likes, r)
			c.eager = true
		default:
			c.softNear = append(c.softNear, nearRule{p.counterOf(r.Workloads, r.Key), r, own})
		}
	}
	for _, r := range c.Apart {
		switch here := ownKey(r.Key); {
		case r.Weight == 0 && here:
			c.notHere = append(c.notHere, r)
		case r.Weight == 0:
			c.apart = append(c.apart, nearRule{p.counterOf(r.Workloads, r.Key), r, false})
		case here:
			c.dislikes = append(c.dislikes, r)
		default:
			c.softPart = append(c.softPart, nearRule{p.counterOf(r.Workloads, r.Key), r, false})
		}
	}
	switch pl.Strategy {
	case model.BinPack, model.Balance:
		c.eager = true
	}
}

// lists are the domains by which the nodes of the class are to be told apart.
func (c *class) lists() (out []*domains, name string) {
	var names strings.Builder
	use := func(k *counter, keys ...string) {
		if !slices.Contains(out, k.domains) {
			out = append(out, k.domains)
			names.WriteString(strings.Join(keys, "\x00") + "\x01")
		}
	}
	pl := &c.Template.Placement
	for i := range c.spread {
		use(c.spread[i], pl.Spread[:i+1]...)
	}
	for i := range c.skew {
		use(c.skew[i].counter, c.skew[i].Key)
	}
	for i := range c.maxPer {
		use(c.maxPer[i].counter, c.maxPer[i].key)
	}
	for _, list := range [][]nearRule{c.near, c.apart, c.softNear, c.softPart} {
		for i := range list {
			use(list[i].counter, list[i].Key)
		}
	}
	return out, names.String()
}

// fitsOn reports whether a node does at the moment, as far as that is the node's own matter.
func (c *class) fitsOn(v *NodeView) bool {
	if c.PinnedTo != "" && v.Node.ID != c.PinnedTo {
		return false
	}
	if c.maxHere > 0 && v.Instances[c.WorkloadID] >= c.maxHere {
		return false
	}
	for _, port := range c.HostPorts {
		if v.Holds(port) {
			return false
		}
	}
	for i := range c.notHere {
		if runsAny(v, &c.notHere[i]) {
			return false
		}
	}
	for i := range c.nearHere {
		if !runsAny(v, &c.nearHere[i]) {
			return false
		}
	}
	return room(v.Node, c.Template.Placement.Class).holds(&v.Used, &c.wanted)
}

func runsAny(v *NodeView, r *Relation) bool {
	return slices.ContainsFunc(r.Workloads, func(w string) bool { return v.Instances[w] > 0 })
}

// rate scores a node as things stand; same is how many instances of the workload it has.
func (c *class) rate(n *candidate, same int32) {
	n.score.avoid, n.score.prefer = n.avoid, n.base
	for i := range c.likes {
		if runsAny(n.view, &c.likes[i]) {
			n.score.prefer -= int32(c.likes[i].Weight)
		}
	}
	for i := range c.dislikes {
		if runsAny(n.view, &c.dislikes[i]) {
			n.score.prefer += int32(c.dislikes[i].Weight)
		}
	}
	n.score.same = 0
	if c.spreadOut {
		n.score.same = same
	}
	n.score.load = c.load(n.view)
}

func (c *class) rateNow(n *candidate) { c.rate(n, int32(n.view.Instances[c.WorkloadID])) }

// load says how well a node's resources would be used, less is better.
//
// For spread it is the larger share of cores and memory taken once the instance is there, plus a
// little for each instance, so that those that reserve nothing spread too. For binPack it is what
// the fullest resource would have left. For balance it is how little the less used of cores
// and memory would be used, so that neither is left over alone, and more on nodes with devices that the
// instance has no use for.
func (c *class) load(v *NodeView) float64 {
	have := &v.Node.Capacity
	cpu := shareOf(v.Used.NanoCPUs+c.wanted.NanoCPUs, have.NanoCPUs)
	memory := shareOf(v.Used.MemoryBytes+c.wanted.MemoryBytes, have.MemoryBytes)
	var out float64
	switch c.Template.Placement.Strategy {
	case model.BinPack:
		out = 1 - max(cpu, memory) - float64(v.Total)*1e-6
	case model.Balance:
		out = -min(cpu, memory) - float64(v.Total)*1e-6
		for name, n := range have.Custom {
			if n > v.Used.Custom[name] && c.wanted.Custom[name] == 0 {
				out++
			}
		}
	default:
		out = max(cpu, memory) + float64(v.Total)*0.01
	}
	return out - c.local(v)
}

func shareOf(used, capacity int64) float64 {
	if capacity <= 0 {
		return 0
	}
	return float64(used) / float64(capacity)
}

// local is what it is worth that a node has the images: up to a tenth of its resources, for 1 GiB.
func (c *class) local(v *NodeView) float64 {
	if len(v.Images) == 0 {
		return 0
	}
	var bytes int64
	for _, d := range c.digests {
		bytes += v.Images[d]
	}
	return 0.1 * min(1, float64(bytes)/(1<<30))
}

func (c *class) because(n *candidate) string {
	var same int
	if c.spreadOut {
		same = int(n.score.same)
	}
	key := int32(same)
	if have := c.reasons[key]; have != "" {
		return have
	}
	if c.reasons == nil {
		c.reasons = map[int32]string{}
	}
	pl := &c.Template.Placement
	fit := len(c.fits.nodes)
	reason := fmt.Sprintf("best of %d nodes that fit: ", fit)
	var parts []string
	switch {
	case c.PinnedTo != "":
		c.reasons[key] = "its volume lives here"
		return c.reasons[key]
	case fit == 1:
		c.reasons[key] = fmt.Sprintf("the only one of %d nodes that fits", len(c.p.nodes))
		return c.reasons[key]
	case len(pl.Spread) > 0:
		parts = append(parts, fmt.Sprintf("spreads %s over %s", c.Workload, strings.Join(pl.Spread, " and ")))
	case len(pl.Skew) > 0:
		parts = append(parts, fmt.Sprintf("keeps %s even over %s", c.Workload, pl.Skew[0].Key))
	}
	for _, r := range c.Near {
		parts = append(parts, "close to "+r.Names)
	}
	if len(pl.Prefer) > 0 {
		parts = append(parts, "by its preferences")
	}
	switch {
	case pl.Strategy == model.BinPack:
		parts = append(parts, "the fullest that has room")
	case pl.Strategy == model.Balance:
		parts = append(parts, "leaves cores and memory in the best proportion")
	case len(parts) > 0:
	case same == 0:
		parts = append(parts, fmt.Sprintf("no other instance of %s here", c.Workload))
	default:
		parts = append(parts, fmt.Sprintf("%d instances of %s here, nowhere fewer", same, c.Workload))
	}
	c.reasons[key] = reason + strings.Join(parts, ", ")
	return c.reasons[key]
}
