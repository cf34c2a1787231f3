package model

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
)

// Policy says which connections may begin to the instances that it is about, and from them. Several count
// together: what any rule denies may not begin; of the rest, what begins at or leads to an instance that
// is isolated in that direction needs a rule that allows it.
type Policy struct {
	Meta
	// Subject are instances of the policy's own namespace.
	Subject Selector `json:"subject"`
	// IsolateIn lets only such connections to the subject begin as a rule allows; IsolateOut those from it.
	IsolateIn  bool         `json:"isolateIn,omitempty"`
	IsolateOut bool         `json:"isolateOut,omitempty"`
	Rules      []PolicyRule `json:"rules,omitempty"`
}

// Direction is that of connections, seen from a policy's subject.
type Direction string

// To the subject, and from it.
const (
	DirectionIn  Direction = "in"
	DirectionOut Direction = "out"
)

// PolicyRule allows connections, or denies them.
type PolicyRule struct {
	Direction Direction `json:"direction"`
	Deny      bool      `json:"deny,omitempty"`
	// Peers are the other ends; none: anybody.
	Peers []Peer `json:"peers,omitempty"`
	// Ports are those that connections lead to, inside the instance; none: every port of every protocol.
	Ports []PortRange `json:"ports,omitempty"`
}

// Peer is instances, or addresses.
type Peer struct {
	Selector *Selector `json:"selector,omitempty"`
	// CIDR are the addresses of a range, whoever has them, but for those in Except.
	CIDR   string   `json:"cidr,omitempty"`
	Except []string `json:"except,omitempty"`
}

// Selector chooses instances. What is empty does not matter.
type Selector struct {
	// Namespace is the policy's own when empty; AnyNamespace is every one.
	Namespace   string            `json:"namespace,omitempty"`
	Application string            `json:"application,omitempty"` // NoApplication: those of none
	Workload    string            `json:"workload,omitempty"`    // its name
	Labels      map[string]string `json:"labels,omitempty"`      // which the workload has
	// Expressions are what its labels have to be besides: In, NotIn, Exists or NotExists. A label that is not there is
	// none of any values.
	Expressions []Constraint `json:"expressions,omitempty"`
	Network     string       `json:"network,omitempty"` // ID: by their addresses on it
}

// Words of selectors.
const (
	AnyNamespace  = "*"
	NoApplication = "/"
)

// PortRange is ports of a protocol.
type PortRange struct {
	Protocol string `json:"protocol"` // tcp, udp, sctp
	From     int    `json:"from,omitempty"`
	To       int    `json:"to,omitempty"` // 0: From alone; both 0: all
}

// Bounds are the first and the last port.
func (p PortRange) Bounds() (from, to int) {
	if p.From == 0 && p.To == 0 {
		return 0, 65535
	}
	return p.From, max(p.From, p.To)
}

// Check says what is wrong with a policy.
func (p *Policy) Check() error {
	if p.Subject.Namespace != "" && p.Subject.Namespace != p.Namespace {
		return fault.New(fault.Invalid, "policy %s is about namespace %s; only its own is accepted", p.Name, p.Subject.Namespace)
	}
	if err := p.Subject.check(); err != nil {
		return fault.New(fault.Invalid, "policy %s: %w", p.Name, err)
	}
	for _, r := range p.Rules {
		if r.Direction != DirectionIn && r.Direction != DirectionOut {
			return fault.New(fault.Invalid, "policy %s: direction %q is neither in nor out", p.Name, r.Direction)
		}
		for _, peer := range r.Peers {
			if err := peer.check(); err != nil {
				return fault.New(fault.Invalid, "policy %s: %w", p.Name, err)
			}
		}
		for _, ports := range r.Ports {
			if err := ports.check(); err != nil {
				return fault.New(fault.Invalid, "policy %s: %w", p.Name, err)
			}
		}
	}
	return nil
}

func (p *Peer) check() error {
	if (p.Selector == nil) == (p.CIDR == "") {
		return fault.New(fault.Invalid, "a peer is either instances or a range of addresses")
	}
	if p.Selector != nil {
		return p.Selector.check()
	}
	for _, c := range append([]string{p.CIDR}, p.Except...) {
		if _, err := netip.ParsePrefix(c); err != nil {
			return fault.New(fault.Invalid, "%q is not a range of addresses such as 10.20.0.0/16 or fd00::/8", c)
		}
	}
	return nil
}

func (p PortRange) check() error {
	switch from, to := p.Bounds(); {
	case p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp":
		return fault.New(fault.Invalid, "protocol %q is none of tcp, udp and sctp", p.Protocol)
	case from < 0 || to > 65535 || p.To != 0 && p.To < p.From:
		return fault.New(fault.Invalid, "ports %d to %d are not between 1 and 65535, the lower one first", p.From, p.To)
	}
	return nil
}

// End is one end of a connection, as policies see it. Namespace and what follows is empty for what is no
// instance's address.
type End struct {
	Address     netip.Addr
	Namespace   string
	Application string
	Workload    string
	Labels      map[string]string
	Network     string
}

// Selects reports whether the selector of a policy in a namespace means an end.
func (s *Selector) Selects(namespace string, e *End) bool {
	if e.Namespace == "" || s.Namespace != AnyNamespace && e.Namespace != cmp.Or(s.Namespace, namespace) {
		return false
	}
	if s.Application == NoApplication && e.Application != "" || s.Application != "" && s.Application != NoApplication && s.Application != e.Application {
		return false
	}
	for k, v := range s.Labels {
		if have, ok := e.Labels[k]; !ok || have != v {
			return false
		}
	}
	for i := range s.Expressions {
		x := &s.Expressions[i]
		have, ok := e.Labels[x.Key]
		if x.Operator == In || x.Operator == NotIn {
			ok = ok && slices.Contains(x.Values, have)
		}
		if ok != (x.Operator == In || x.Operator == Exists) {
			return false
		}
	}
	return (s.Workload == "" || s.Workload == e.Workload) && (s.Network == "" || s.Network == e.Network)
}

func (s *Selector) check() error {
	for _, x := range s.Expressions {
		switch x.Operator {
		case In, NotIn, Exists, NotExists:
		default:
			return fault.New(fault.Invalid, "label %s: operator %q is none of in, notIn, exists and notExists", x.Key, x.Operator)
		}
	}
	return nil
}

// Is reports whether a peer of a policy in a namespace means an end.
func (p *Peer) Is(namespace string, e *End) bool {
	if p.Selector != nil {
		return p.Selector.Selects(namespace, e)
	}
	in := func(c string) bool {
		r, err := netip.ParsePrefix(c)
		return err == nil && r.Masked().Contains(e.Address.Unmap())
	}
	return in(p.CIDR) && !slices.ContainsFunc(p.Except, in)
}

func (r *PolicyRule) is(namespace string, direction Direction, other *End, protocol string, port int) bool {
	if r.Direction != direction || len(r.Peers) > 0 && !slices.ContainsFunc(r.Peers, func(p Peer) bool { return p.Is(namespace, other) }) {
		return false
	}
	return len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p PortRange) bool {
		from, to := p.Bounds()
		return p.Protocol == protocol && from <= port && port <= to
	})
}

// Decision says whether a connection may begin, and why.
type Decision struct {
	Allowed bool
	// Policy and Rule are what decided, nil where nothing was said about it; a policy without a rule
	// isolates.
	Policy    *Policy
	Rule      *PolicyRule
	Direction Direction
}

// Decide says whether policies let a connection begin. Instances always reach themselves. It is how they are defined: what nodes enforce is
// compared with it.
func Decide(policies []*Policy, from, to *End, protocol string, port int) Decision {
	allowed := Decision{Allowed: true}
	if from.Address.IsValid() && from.Address == to.Address { // with itself
		return allowed
	}
	for _, direction := range []Direction{DirectionOut, DirectionIn} {
		self, other := from, to
		if direction == DirectionIn {
			self, other = to, from
		}
		var isolates, allows *Policy
		var by *PolicyRule
		for _, p := range policies {
			if !p.Subject.Selects(p.Namespace, self) {
				continue
			}
			if isolates == nil && (direction == DirectionIn && p.IsolateIn || direction == DirectionOut && p.IsolateOut) {
				isolates = p
			}
			for i := range p.Rules {
				r := &p.Rules[i]
				switch {
				case !r.is(p.Namespace, direction, other, protocol, port):
				case r.Deny:
					return Decision{Policy: p, Rule: r, Direction: direction}
				case allows == nil:
					allows, by = p, r
				}
			}
		}
		switch {
		case allows != nil:
			allowed = Decision{Allowed: true, Policy: allows, Rule: by, Direction: direction}
		case isolates != nil:
			return Decision{Policy: isolates, Direction: direction}
		}
	}
	return allowed
}

// String tells a rule, as people would say it.
func (r *PolicyRule) String() string {
	word, from := "allow", "from"
	if r.Deny {
		word = "deny"
	}
	if r.Direction == DirectionOut {
		from = "to"
	}
	var peers, ports []string
	for i := range r.Peers {
		peers = append(peers, r.Peers[i].String())
	}
	if len(peers) == 0 {
		peers = []string{"anyone"}
	}
	for _, p := range r.Ports {
		ports = append(ports, p.String())
	}
	text := fmt.Sprintf("%s %s %s", word, from, strings.Join(peers, ", "))
	if len(ports) > 0 {
		text += " at " + strings.Join(ports, ", ")
	}
	return text
}

// String tells a peer.
func (p *Peer) String() string {
	if p.Selector != nil {
		return p.Selector.String()
	}
	if len(p.Except) > 0 {
		return p.CIDR + " without " + strings.Join(p.Except, ", ")
	}
	return p.CIDR
}

// String tells whom a selector means.
func (s *Selector) String() string {
	name := "*"
	switch {
	case s.Application == NoApplication:
		name = "/" + cmp.Or(s.Workload, "*")
	case s.Application != "":
		name = s.Application + "/" + cmp.Or(s.Workload, "*")
	case s.Workload != "":
		name = "*/" + s.Workload
	}
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		name += " " + k + "=" + s.Labels[k]
	}
	for _, x := range s.Expressions {
		name += fmt.Sprintf(" %s %s %s", x.Key, x.Operator, strings.Join(x.Values, ","))
	}
	if s.Namespace != "" {
		name += " of namespace " + s.Namespace
	}
	if s.Network != "" {
		name += " on network " + s.Network
	}
	return name
}

// String tells ports as people write them.
func (p PortRange) String() string {
	switch from, to := p.Bounds(); {
	case p.From == 0 && p.To == 0:
		return "every port of " + p.Protocol
	case from == to:
		return fmt.Sprintf("%d/%s", from, p.Protocol)
	default:
		return fmt.Sprintf("%d-%d/%s", from, to, p.Protocol)
	}
}

func (s Selector) clone() Selector {
	s.Labels, s.Expressions = maps.Clone(s.Labels), slices.Clone(s.Expressions)
	for i := range s.Expressions {
		s.Expressions[i].Values = slices.Clone(s.Expressions[i].Values)
	}
	return s
}

// Clone returns a deep copy.
func (p *Policy) Clone() *Policy {
	c := *p
	c.Meta, c.Subject = p.Meta.clone(), p.Subject.clone()
	c.Rules = slices.Clone(p.Rules)
	for i := range c.Rules {
		r := &c.Rules[i]
		r.Ports, r.Peers = slices.Clone(r.Ports), slices.Clone(r.Peers)
		for j := range r.Peers {
			peer := &r.Peers[j]
			peer.Except = slices.Clone(peer.Except)
			if peer.Selector != nil {
				s := peer.Selector.clone()
				peer.Selector = &s
			}
		}
	}
	return &c
}

func (p *Policy) Kind() Kind          { return KindPolicy }
func (p *Policy) GetMeta() *Meta      { return &p.Meta }
func (p *Policy) CloneObject() Object { return p.Clone() }
func (p *Policy) AdoptStatus(Object)  {}
func (p *Policy) AdoptDesired(Object) {}
