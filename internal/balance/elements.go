package balance

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// The sets and maps of a table. Where a connection leads is found in three steps: the first map says
// how many endpoints there are, as the code of a chain; the second has the chain, which draws a number
// below that; the third has the endpoint of that number. So the chains are as many as there are different
// counts, and whatever changes is elements alone. Codes are between, as the kernel goes through all of a map
// of chains when one of its elements changes.
const (
	virtualIPs      = "virtual-ips"       // virtual IP → code of a chain
	virtualTargets  = "virtual-endpoints" // virtual IP, number → address
	portsAt         = "ports-at"          // address, protocol, port → code: of virtual IPs, and of one address of the node
	portsAtTargets  = "ports-at-endpoints"
	publishedPorts  = "published-ports" // protocol, port → code
	chainsByCode    = "chains"          // code → chain
	publishedTarget = "published-endpoints"
	stickyClients   = "sticky-clients"   // client, frontend → address, for a while
	stickyTargets   = "sticky-endpoints" // frontend, number → address
	stickyMembers   = "sticky-members"   // frontend, address
	nowhere         = "nowhere"          // virtual IPs without endpoints
	networksSet     = "networks"
	internalSet     = "internal"
	encryptedSet    = "encrypted"
	pairsSet        = "same-network"
	selfSet         = "self"
	// What policies come to; see type policies.
	policyFrom     = "policies-from"      // address → profile
	policyTo       = "policies-to"        // likewise
	policyClass    = "peers"              // address → class
	policyRanges   = "peer-ranges"        // likewise, of ranges
	policyOut      = "policy-out-rules"   // profile, class, protocol, port → verdict
	policyIn       = "policy-in-rules"    // likewise
	policyFromOnly = "policies-from-only" // profiles of which nothing begins but what a rule allows
	policyToOnly   = "policies-to-only"   // likewise, to which
	chainAllowed   = "allowed"
	chainRefused   = "refused"
)

// element is one of a set or map.
type element struct {
	set      string
	key, end string
	until    string // of a set of ranges: the first key after it; "": there is none
	value    string // of a map
	chain    string // of a map of verdicts
}

// netlink is how the kernel has an element. A range is two, its beginning and its end; they come and
// go together.
func (e *element) netlink() []nftables.SetElement {
	first := nftables.SetElement{Key: []byte(e.key), KeyEnd: []byte(e.end), Val: []byte(e.value)}
	if e.chain != "" {
		first.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.chain}
	}
	if e.until != "" {
		return []nftables.SetElement{first, {Key: []byte(e.until), IntervalEnd: true}}
	}
	return []nftables.SetElement{first}
}

// leading is a chain that leads to one of some endpoints. Its name says all of it.
type leading struct {
	kind   string // the map of endpoints
	node   bool   // connections to ports of the node are marked
	count  uint32
	sticky time.Duration
	number uint32 // of a sticky frontend
	target uint16 // of a sticky frontend, likewise
}

func (l *leading) name() string {
	name := fmt.Sprintf("to-%s-%d", strings.TrimSuffix(l.kind, "-endpoints"), l.count)
	if l.node {
		name += "-node"
	}
	if l.sticky > 0 {
		name += fmt.Sprintf("-%08x-%d-%d", l.number, l.target, l.sticky.Milliseconds())
	}
	return name
}

// code stands for the chain in maps. Of two names that there are it is never the same, but by a chance of 2^-64.
func (l *leading) code() string {
	h := fnv.New64a()
	h.Write([]byte(l.name())) // a hash does not fail
	return string(h.Sum(nil))
}

// coded is the element by which the chain is found.
func (l *leading) coded() element {
	return element{set: chainsByCode, key: l.code(), chain: l.name()}
}

func word(n uint32) string    { return string(native(n)) }
func raw(a netip.Addr) string { return string(a.AsSlice()) }

// port is a port as a key or a value has it: in the order of the network, and filled up.
func port(n uint16) string { return string(binary.BigEndian.AppendUint16(nil, n)) + "\x00\x00" }

// number tells sticky frontends apart. Two that have the same by chance share what they remember of
// clients, and who is not an endpoint of one is never led to.
func (k FrontendKey) number() uint32 {
	h := fnv.New32a()
	fmt.Fprint(h, k) // a hash does not fail
	return h.Sum32()
}

// keyed says which map has a frontend, and how.
func (f *Frontend) keyed() (set, targets, key string) {
	service := string([]byte{f.Protocol, 0, 0, 0}) + port(f.Port)
	switch {
	case f.Port == 0:
		return virtualIPs, virtualTargets, raw(f.IP)
	case f.IP.IsValid():
		return portsAt, portsAtTargets, raw(f.IP) + service
	}
	return publishedPorts, publishedTarget, service
}

// leads is the chain that a frontend needs; one without endpoints needs none, and its count is 0.
func (f *Frontend) leads() leading {
	_, targets, _ := f.keyed()
	l := leading{kind: targets, node: f.Node, count: uint32(len(f.Endpoints))}
	if f.Sticky > 0 {
		l.kind, l.sticky, l.number, l.target = stickyTargets, f.Sticky, f.number(), f.Target
	}
	return l
}

// entry is the element by which a frontend is found; one without endpoints may have none.
func (f *Frontend) entry() []element {
	set, _, key := f.keyed()
	if len(f.Endpoints) > 0 {
		l := f.leads()
		return []element{{set: set, key: key, value: l.code()}}
	}
	if set == virtualIPs {
		return []element{{set: nowhere, key: key}}
	}
	return nil
}

// slots are the elements that a frontend's chain draws from, in their order.
func (f *Frontend) slots() []element {
	_, _, key := f.keyed()
	chain := f.leads()
	if f.Sticky > 0 {
		key = word(chain.number)
	}
	out := make([]element, 0, len(f.Endpoints))
	for i, e := range f.Endpoints {
		to := element{set: chain.kind, key: key + word(uint32(i)), value: raw(e.Addr())}
		if chain.kind == portsAtTargets || chain.kind == publishedTarget {
			to.value += port(cmp.Or(e.Port(), f.Target))
		}
		out = append(out, to)
	}
	return out
}

// members are the endpoints that a client may be led to again.
func (f *Frontend) members() (out []element) {
	if f.Sticky == 0 {
		return nil
	}
	key := word(f.number())
	seen := map[netip.Addr]bool{}
	for _, e := range f.Endpoints {
		if a := e.Addr(); !seen[a] {
			seen[a] = true
			out = append(out, element{set: stickyMembers, key: key + raw(a)})
		}
	}
	return out
}

func (f *Frontend) elements() []element {
	return slices.Concat(f.entry(), f.slots(), f.members())
}

// differs says what turns a frontend into another of the same key; nil is none.
func (f *Frontend) differs(next *Frontend) (gone, come []element) {
	if next == nil {
		return f.elements(), nil
	}
	gone, come = differ(slices.Concat(f.entry(), f.members()), slices.Concat(next.entry(), next.members()))
	old, now := f.slots(), next.slots()
	for i := range max(len(old), len(now)) {
		if i < len(old) && i < len(now) && old[i] == now[i] {
			continue
		}
		if i < len(old) {
			gone = append(gone, old[i])
		}
		if i < len(now) {
			come = append(come, now[i])
		}
	}
	return gone, come
}

// ranges are the elements of a set of prefixes of which none overlaps with another.
func ranges(set string, list []netip.Prefix) (out []element) {
	for _, p := range list {
		out = append(out, element{set: set, key: raw(p.Masked().Addr()), until: raw(lastOf(p).Next())})
	}
	return out
}

// elements are those that do not belong to a frontend.
func (d *Desired) elements() (out []element) {
	out = append(ranges(networksSet, d.Networks), ranges(internalSet, merge(d.Internal))...)
	out = append(out, ranges(encryptedSet, merge(d.Encrypted))...)
	for _, s := range d.Subnets {
		from, to := raw(s.Masked().Addr()), raw(lastOf(s))
		out = append(out, element{set: pairsSet, key: from + from, end: to + to})
	}
	out = append(out, d.Policies.elements()...)
	for _, a := range d.Local {
		out = append(out, self(a))
	}
	return out
}

// self is an instance of this node that is led to itself.
func self(a netip.Addr) element { return element{set: selfSet, key: raw(a) + raw(a)} }
