package balance

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// policies are what the cluster's policies come to, as tables that are looked up: every address that a
// policy is about has the number of those that are (its profile) in either direction, every address that
// a rule names has the number of all that do (its class), and for a profile, a class and a port there is
// what the rules say. So what a connection meets does not become more with more policies, and an instance
// that comes or goes is one element of each map.
//
// What is said of no class in particular counts for class 0, which is everybody, and is asked last.
type policies struct {
	Out, In sidePolicies
	Class   map[netip.Addr]uint32 // of instances
	Ranges  []classRange          // of other addresses; ascending, none overlaps with another
}

// sidePolicies are those of one direction: of connections from a subject, or to it.
type sidePolicies struct {
	Profile  map[netip.Addr]uint32
	Isolated []uint32 // profiles; ascending
	Cells    []cell
}

// cell is what rules say of connections between a profile and a class.
type cell struct {
	profile, class    uint32
	protocol, through uint8 // the first and the last of a range
	from, to          uint16
	deny              bool
}

type classRange struct {
	first, last netip.Addr
	class       uint32
}

func (p *policies) empty() bool { return len(p.Out.Profile) == 0 && len(p.In.Profile) == 0 }

// sameRules reports whether the same is said, whoever it is about.
func (p *policies) sameRules(o *policies) bool {
	same := func(a, b *sidePolicies) bool {
		return slices.Equal(a.Isolated, b.Isolated) && slices.Equal(a.Cells, b.Cells)
	}
	return same(&p.Out, &o.Out) && same(&p.In, &o.In) && slices.Equal(p.Ranges, o.Ranges)
}

// judge decides as the table does.
type judge struct {
	*policies
	cells [2]map[[2]uint32][]cell // of both directions, by profile and class
}

func (p *policies) judge() *judge {
	j := &judge{policies: p}
	for side, s := range []*sidePolicies{&p.Out, &p.In} {
		j.cells[side] = map[[2]uint32][]cell{}
		for _, c := range s.Cells {
			k := [2]uint32{c.profile, c.class}
			j.cells[side][k] = append(j.cells[side][k], c)
		}
	}
	return j
}

// refuses reports whether a connection may not begin.
func (j *judge) refuses(from, to netip.Addr, protocol uint8, port uint16) bool {
	return j.refusesOn(0, from, to, protocol, port) || j.refusesOn(1, to, from, protocol, port)
}

func (j *judge) refusesOn(side int, self, other netip.Addr, protocol uint8, port uint16) bool {
	s := j.side(side)
	profile, ok := s.Profile[self]
	if !ok {
		return false
	}
	var classes []uint32
	if c, ok := j.Class[other]; ok {
		classes = append(classes, c)
	}
	if i, ok := slices.BinarySearchFunc(j.Ranges, other, func(r classRange, a netip.Addr) int { return within(r.first, r.last, a) }); ok {
		classes = append(classes, j.Ranges[i].class)
	}
	for _, class := range append(classes, 0) {
		for _, c := range j.cells[side][[2]uint32{profile, class}] {
			if c.protocol <= protocol && protocol <= c.through && c.from <= port && port <= c.to {
				return c.deny
			}
		}
	}
	_, isolated := slices.BinarySearch(s.Isolated, profile)
	return isolated
}

// within compares a range with an address that is looked for.
func within(first, last, a netip.Addr) int {
	switch {
	case last.Less(a):
		return -1
	case a.Less(first):
		return 1
	}
	return 0
}

// policyReader compiles policies.
type policyReader struct {
	f        *family
	policies []*model.Policy
	peers    []peerOf       // different ones
	byPeer   map[string]int // by what they say
	named    map[string][]int
	subjects map[string][]int // policies, likewise
	rules    [][]ruleOf       // of each policy
}

// peerOf is a peer of a policy in a namespace.
type peerOf struct {
	*model.Peer
	namespace string
}

// ruleOf is a rule with its peers by number; everybody has none.
type ruleOf struct {
	*model.PolicyRule
	peers []int
}

// selectorKey is under which ends a selector is found: by the most particular of what it says.
func selectorKey(s *model.Selector, namespace string) string {
	if s.Namespace == model.AnyNamespace || s.Application == "" || s.Application == model.NoApplication {
		return ""
	}
	return endKey(cmp.Or(s.Namespace, namespace), s.Application, s.Workload)
}

func endKey(namespace, application, workload string) string {
	return namespace + "\x00" + application + "\x00" + workload
}

// candidates are those that an end may be meant by.
func candidates(named map[string][]int, e *model.End) []int {
	return slices.Concat(named[""], named[endKey(e.Namespace, e.Application, "")], named[endKey(e.Namespace, e.Application, e.Workload)])
}

// policyBook is what policies come to, with what it takes to say it of one more instance.
type policyBook struct {
	policies
	reader   *policyReader
	segments []segment
	profiles [2]map[string]uint32 // numbers of profiles, out and in, by the policies that they are of
	classes  map[string]uint32    // numbers of classes, by the peers that mean them
	used     map[used]int         // by so many addresses, or ranges
	of       map[string][]netip.Addr
}

// used is a profile of a side, or a class.
type used struct {
	side   int
	number uint32
}

const sideClass = 2

// compilePolicies makes tables of the cluster's policies for a version of IP.
func compilePolicies(n *wire.Network, f *family) *policyBook {
	r := &policyReader{f: f, policies: n.Policies, byPeer: map[string]int{}, named: map[string][]int{}, subjects: map[string][]int{}}
	book := &policyBook{reader: r, used: map[used]int{}, of: map[string][]netip.Addr{}}
	out := &book.policies
	if len(n.Policies) == 0 {
		return book
	}
	r.read()
	book.segments = r.segments()
	out.Class = map[netip.Addr]uint32{}
	profiles := [2]map[netip.Addr]string{{}, {}} // out, in
	classes := map[netip.Addr]string{}
	signatures := map[string][]int{}
	seen := map[netip.Addr]string{}
	for i := range n.Instances {
		in := &n.Instances[i]
		r.each(in, func(ip netip.Addr, e *model.End) {
			if other, again := seen[ip]; again {
				if n.Holder(ip).ID != in.ID {
					return
				}
				book.of[other] = slices.DeleteFunc(book.of[other], func(a netip.Addr) bool { return a == ip })
				delete(profiles[0], ip)
				delete(profiles[1], ip)
				delete(classes, ip)
			}
			seen[ip] = in.ID
			book.of[in.ID] = append(book.of[in.ID], ip)
			for side, p := range r.profilesOf(e) {
				if p != "" {
					profiles[side][ip] = p
				}
			}
			if peers := r.peersOf(e, book.segments); len(peers) > 0 {
				key := signature(peers)
				classes[ip], signatures[key] = key, peers
			}
		})
	}
	for _, s := range book.segments {
		signatures[signature(s.peers)] = s.peers
	}
	book.classes = numbered(signatures)
	for ip, key := range classes {
		out.Class[ip] = book.classes[key]
		book.used[used{sideClass, out.Class[ip]}]++
	}
	for _, s := range book.segments {
		number := book.classes[signature(s.peers)]
		out.Ranges = append(out.Ranges, classRange{s.first, s.last, number})
		book.used[used{sideClass, number}]++
	}
	for side, direction := range []model.Direction{model.DirectionOut, model.DirectionIn} {
		to := out.side(side)
		book.profiles[side] = r.cells(to, direction, profiles[side], signatures, book.classes)
		for _, number := range to.Profile {
			book.used[used{side, number}]++
		}
	}
	return book
}

// side is one of the two directions: out, and in.
func (p *policies) side(side int) *sidePolicies { return []*sidePolicies{&p.Out, &p.In}[side] }

// each goes through the addresses of an instance, as policies see it by them.
func (r *policyReader) each(in *wire.NetworkInstance, do func(netip.Addr, *model.End)) {
	for j := range in.Addresses {
		if ip, ok := r.f.address(&in.Addresses[j]); ok {
			do(ip, &model.End{Address: ip, Namespace: in.Namespace, Application: in.Application, Workload: in.Workload, Labels: in.Labels, Network: in.Addresses[j].Network})
		}
	}
}

// update follows instances that changed, and returns what that is in the tables. It is not ok, and nothing
// is changed, when one is what none was so far, or the last of its kind is gone: then all is to be compiled.
func (b *policyBook) update(n *wire.Network) (gone, come []element, ok bool) {
	if len(b.reader.policies) == 0 {
		return nil, nil, true
	}
	said := map[entry]uint32{} // 0: nothing
	for id := range n.Changes.Instances {
		now := map[netip.Addr]*model.End{}
		if in := n.Instance(id); in != nil {
			b.reader.each(in, func(ip netip.Addr, e *model.End) {
				if n.Holder(ip).ID == id {
					now[ip] = e
				}
			})
		}
		for _, ip := range b.of[id] {
			holder := n.Holder(ip)
			if now[ip] != nil || holder != nil && slices.Contains(b.of[holder.ID], ip) {
				continue // by another instance it is said what holds
			}
			for side := range 3 {
				said[entry{side, ip}] = 0
			}
		}
		delete(b.of, id)
		for ip, e := range now {
			if b.of[id] = append(b.of[id], ip); !b.say(ip, e, said) {
				return nil, nil, false
			}
		}
	}
	unused := b.empty() // no connection asks then, and the kernel has none of it
	uses := map[used]int{}
	for e, number := range said {
		if old := b.table(e.side)[e.ip]; old != number {
			uses[used{e.side, old}]--
			uses[used{e.side, number}]++
		}
	}
	for u, by := range uses {
		if u.number != 0 && by != 0 && b.used[u]+by == 0 {
			return nil, nil, false
		}
	}
	for e, number := range said {
		table, set := b.table(e.side), []string{policyFrom, policyTo, policyClass}[e.side]
		old := table[e.ip]
		if old == number {
			continue
		}
		if b.used[used{e.side, old}]--; old != 0 {
			gone = append(gone, element{set: set, key: raw(e.ip), value: word(old)})
			delete(table, e.ip)
		}
		if b.used[used{e.side, number}]++; number != 0 {
			come = append(come, element{set: set, key: raw(e.ip), value: word(number)})
			table[e.ip] = number
		}
	}
	if unused {
		return nil, nil, true
	}
	return gone, come, true
}

// entry is what is said of an address in one of the tables.
type entry struct {
	side int
	ip   netip.Addr
}

// table is that of a side, or of classes.
func (b *policyBook) table(side int) map[netip.Addr]uint32 {
	return []map[netip.Addr]uint32{b.Out.Profile, b.In.Profile, b.Class}[side]
}

// say says what an address is. It reports false when none was that so far.
func (b *policyBook) say(ip netip.Addr, e *model.End, said map[entry]uint32) bool {
	keys := [3]string{}
	p := b.reader.profilesOf(e)
	copy(keys[:], p[:])
	if peers := b.reader.peersOf(e, b.segments); len(peers) > 0 {
		keys[sideClass] = signature(peers)
	}
	for side, known := range []map[string]uint32{b.profiles[0], b.profiles[1], b.classes} {
		number := known[keys[side]]
		if keys[side] != "" && number == 0 {
			return false
		}
		said[entry{side, ip}] = number
	}
	return true
}

// read finds different peers, and whom policies and peers may be about.
func (r *policyReader) read() {
	for k, p := range r.policies {
		key := selectorKey(&p.Subject, p.Namespace)
		r.subjects[key] = append(r.subjects[key], k)
		var rules []ruleOf
		for i := range p.Rules {
			rule := ruleOf{PolicyRule: &p.Rules[i]}
			for j := range p.Rules[i].Peers {
				rule.peers = append(rule.peers, r.peer(&p.Rules[i].Peers[j], p.Namespace))
			}
			rules = append(rules, rule)
		}
		r.rules = append(r.rules, rules)
	}
}

func (r *policyReader) peer(p *model.Peer, namespace string) int {
	said := fmt.Sprintf("%q %q", p.CIDR, p.Except)
	if s := p.Selector; s != nil {
		said = fmt.Sprintf("%q %q %q %q %q %q", cmp.Or(s.Namespace, namespace), s.Application, s.Workload, s.Labels, s.Expressions, s.Network)
	}
	if i, ok := r.byPeer[said]; ok {
		return i
	}
	i := len(r.peers)
	r.byPeer[said], r.peers = i, append(r.peers, peerOf{p, namespace})
	if p.Selector != nil {
		key := selectorKey(p.Selector, namespace)
		r.named[key] = append(r.named[key], i)
	}
	return i
}

// profilesOf are the policies that are about an end and say something about connections from it, and to it.
func (r *policyReader) profilesOf(e *model.End) (out [2]string) {
	var about [2][]string
	for _, k := range candidates(r.subjects, e) {
		p := r.policies[k]
		if !p.Subject.Selects(p.Namespace, e) {
			continue
		}
		says := func(direction model.Direction) bool {
			return slices.ContainsFunc(p.Rules, func(r model.PolicyRule) bool { return r.Direction == direction })
		}
		if p.IsolateOut || says(model.DirectionOut) {
			about[0] = append(about[0], p.ID)
		}
		if p.IsolateIn || says(model.DirectionIn) {
			about[1] = append(about[1], p.ID)
		}
	}
	for side := range about {
		slices.Sort(about[side])
		out[side] = strings.Join(about[side], " ")
	}
	return out
}

// peersOf are all peers that mean an instance, if any does by more than by its address: for that there are ranges.
func (r *policyReader) peersOf(e *model.End, segments []segment) (out []int) {
	for _, i := range candidates(r.named, e) {
		if r.peers[i].Is(r.peers[i].namespace, e) {
			out = append(out, i)
		}
	}
	if len(out) == 0 {
		return nil
	}
	if i, ok := slices.BinarySearchFunc(segments, e.Address, func(s segment, a netip.Addr) int { return within(s.first, s.last, a) }); ok {
		out = append(out, segments[i].peers...)
	}
	slices.Sort(out)
	return out
}

// segment is addresses that the same ranges of peers have.
type segment struct {
	first, last netip.Addr
	peers       []int
}

// segments cuts the ranges of peers into such as do not overlap.
func (r *policyReader) segments() (out []segment) {
	var cuts []netip.Addr // where something begins, or has ended
	var ranges []int
	cut := func(c string) bool {
		p, err := netip.ParsePrefix(c)
		if err != nil || p.Addr().BitLen() != int(r.f.size)*8 {
			return false
		}
		cuts = append(cuts, p.Masked().Addr())
		if after := lastOf(p).Next(); after.IsValid() {
			cuts = append(cuts, after)
		}
		return true
	}
	for i, p := range r.peers {
		if p.Selector == nil && cut(p.CIDR) {
			ranges = append(ranges, i)
			for _, c := range p.Except {
				cut(c)
			}
		}
	}
	slices.SortFunc(cuts, netip.Addr.Compare)
	cuts = slices.Compact(cuts)
	top := lastOf(netip.PrefixFrom(zeroOf(r.f), 0))
	for i, first := range cuts {
		s := segment{first: first, last: top}
		if i+1 < len(cuts) {
			s.last = cuts[i+1].Prev()
		}
		for _, k := range ranges {
			if r.peers[k].Is("", &model.End{Address: first}) {
				s.peers = append(s.peers, k)
			}
		}
		switch {
		case len(s.peers) == 0:
		case len(out) > 0 && out[len(out)-1].last.Next() == first && slices.Equal(out[len(out)-1].peers, s.peers):
			out[len(out)-1].last = s.last
		default:
			out = append(out, s)
		}
	}
	return out
}

func zeroOf(f *family) netip.Addr {
	if f == ipv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func signature(peers []int) string { return fmt.Sprint(peers) }

// numbered gives each of the keys a number that is not 0: as far as possible the same whenever it is there.
func numbered[T any](keys map[string]T) map[string]uint32 {
	out, taken := map[string]uint32{}, map[uint32]bool{0: true}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		h := fnv.New32a()
		h.Write([]byte(k)) // a hash does not fail
		n := h.Sum32()
		for ; taken[n]; n++ {
		}
		out[k], taken[n] = n, true
	}
	return out
}

// What rules say of a connection; the stronger one counts.
const (
	nothing = iota
	allow
	deny
)

// cells fills in one direction: the numbers of profiles, which it returns by name, and what they say of each class.
func (r *policyReader) cells(to *sidePolicies, direction model.Direction, profiles map[netip.Addr]string, signatures map[string][]int, numbers map[string]uint32) map[string]uint32 {
	names := map[string]bool{}
	for _, p := range profiles {
		names[p] = true
	}
	own := numbered(names)
	to.Profile = make(map[netip.Addr]uint32, len(profiles))
	for ip, p := range profiles {
		to.Profile[ip] = own[p]
	}
	byID := map[string]int{}
	for k, p := range r.policies {
		byID[p.ID] = k
	}
	rules, naming := map[string][]ruleOf{}, map[int][]string{} // by profile; profiles by peer
	for _, name := range slices.Sorted(maps.Keys(names)) {
		isolated := false
		for _, id := range strings.Fields(name) {
			p := r.policies[byID[id]]
			isolated = isolated || direction == model.DirectionIn && p.IsolateIn || direction == model.DirectionOut && p.IsolateOut
			for _, rule := range r.rules[byID[id]] {
				if rule.Direction != direction {
					continue
				}
				rules[name] = append(rules[name], rule)
				for _, peer := range rule.peers {
					naming[peer] = append(naming[peer], name)
				}
			}
		}
		if isolated {
			to.Isolated = append(to.Isolated, own[name])
		}
		to.Cells = append(to.Cells, cellsOf(own[name], 0, rules[name], nil)...)
	}
	slices.Sort(to.Isolated)
	for _, key := range slices.Sorted(maps.Keys(signatures)) {
		met := map[string]bool{}
		for _, peer := range signatures[key] {
			for _, name := range naming[peer] {
				met[name] = true
			}
		}
		for _, name := range slices.Sorted(maps.Keys(met)) {
			to.Cells = append(to.Cells, cellsOf(own[name], numbers[key], rules[name], signatures[key])...)
		}
	}
	return own
}

// spans are the protocols that are told apart.
var spans = [][2]uint8{
	{0, unix.IPPROTO_TCP - 1}, {unix.IPPROTO_TCP, unix.IPPROTO_TCP}, {unix.IPPROTO_TCP + 1, unix.IPPROTO_UDP - 1}, {unix.IPPROTO_UDP, unix.IPPROTO_UDP},
	{unix.IPPROTO_UDP + 1, unix.IPPROTO_SCTP - 1}, {unix.IPPROTO_SCTP, unix.IPPROTO_SCTP}, {unix.IPPROTO_SCTP + 1, 255},
}

// cellsOf says what rules have of a class that other ones of everybody do not say as well; peers are those
// that mean the class.
func cellsOf(profile, class uint32, rules []ruleOf, peers []int) (out []cell) {
	for _, span := range spans {
		cuts := []int{0, 65536}
		for _, r := range rules {
			for _, p := range r.Ports {
				if from, to := p.Bounds(); protocols[p.Protocol] == span[0] {
					cuts = append(cuts, from, to+1)
				}
			}
		}
		slices.Sort(cuts)
		cuts = slices.Compact(cuts)
		var last *cell
		for i, from := range cuts[:len(cuts)-1] {
			said, of := say(rules, peers, span[0], from)
			if said == nothing || class != 0 && said == of {
				last = nil
				continue
			}
			if last != nil && last.deny == (said == deny) {
				last.to = uint16(cuts[i+1] - 1)
				continue
			}
			out = append(out, cell{profile, class, span[0], span[1], uint16(from), uint16(cuts[i+1] - 1), said == deny})
			last = &out[len(out)-1]
		}
	}
	// Most say the same of every protocol.
	whole := func(c cell) bool { return c.from == 0 && c.to == 65535 && c.deny == out[0].deny }
	if len(out) == len(spans) && !slices.ContainsFunc(out, func(c cell) bool { return !whole(c) }) {
		return []cell{{profile, class, 0, 255, 0, 65535, out[0].deny}}
	}
	return out
}

// say is what rules say of a port and those peers, and what they say of everybody.
func say(rules []ruleOf, peers []int, protocol uint8, port int) (said, everybody int) {
	for _, r := range rules {
		if len(r.Ports) > 0 && !slices.ContainsFunc(r.Ports, func(p model.PortRange) bool {
			from, to := p.Bounds()
			return protocols[p.Protocol] == protocol && from <= port && port <= to
		}) {
			continue
		}
		word := allow
		if r.Deny {
			word = deny
		}
		if len(r.Peers) == 0 {
			everybody = max(everybody, word)
		}
		if len(r.Peers) == 0 || slices.ContainsFunc(r.peers, func(p int) bool { return slices.Contains(peers, p) }) {
			said = max(said, word)
		}
	}
	return said, everybody
}

// elements are those of the tables.
func (p *policies) elements() (out []element) {
	if p.empty() {
		return nil
	}
	for ip, class := range p.Class {
		out = append(out, element{set: policyClass, key: raw(ip), value: word(class)})
	}
	for _, r := range p.Ranges {
		out = append(out, element{set: policyRanges, key: raw(r.first), until: raw(r.last.Next()), value: word(r.class)})
	}
	for _, side := range []struct {
		*sidePolicies
		profiles, isolated, cells string
	}{{&p.Out, policyFrom, policyFromOnly, policyOut}, {&p.In, policyTo, policyToOnly, policyIn}} {
		for ip, profile := range side.Profile {
			out = append(out, element{set: side.profiles, key: raw(ip), value: word(profile)})
		}
		for _, profile := range side.Isolated {
			out = append(out, element{set: side.isolated, key: word(profile)})
		}
		for _, c := range side.Cells {
			to := chainAllowed
			if c.deny {
				to = chainRefused
			}
			pair := word(c.profile) + word(c.class)
			out = append(out, element{
				set: side.cells, key: pair + string([]byte{c.protocol, 0, 0, 0}) + port(c.from),
				end: pair + string([]byte{c.through, 0, 0, 0}) + port(c.to), chain: to,
			})
		}
	}
	return out
}
