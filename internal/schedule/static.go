package schedule

import (
	"regexp"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// Effects of taints.
const (
	noSchedule       = "noSchedule"
	preferNoSchedule = "preferNoSchedule"
	noExecute        = "noExecute"
)

func tolerated(n *model.Node, tolerations []model.Toleration) (string, bool) {
	for _, taint := range n.Taints {
		if taint.Effect == preferNoSchedule {
			continue
		}
		if !tolerates(tolerations, taint) {
			return taint.Key, false
		}
	}
	return "", true
}

// avoided counts the taints of a node that ask for other nodes to be taken first.
func avoided(n *model.Node, tolerations []model.Toleration) int {
	count := 0
	for _, taint := range n.Taints {
		if taint.Effect == preferNoSchedule && !tolerates(tolerations, taint) {
			count++
		}
	}
	return count
}

func tolerates(tolerations []model.Toleration, taint model.Taint) bool {
	return slices.ContainsFunc(tolerations, func(t model.Toleration) bool {
		return (t.Key == "" || t.Key == taint.Key) && (t.Value == "" || t.Value == taint.Value) && (t.Effect == "" || t.Effect == taint.Effect)
	})
}

// static returns why a node can never run a template as the node is set up, "" when it can.
func static(n *model.Node, t *model.Template) string { return filtersOf(t).reject(n) }

// filters are what a template asks of nodes as they are set up, made ready to be asked of many.
type filters struct {
	*model.Placement
	problem  string // with the constraints themselves
	asked    []asked
	required []string
	runtimes []string // of OCI
	devices  []string // with names
	ownUsers bool
	links    []model.Link
}

// asked is a constraint with its regular expressions.
type asked struct {
	*model.Constraint
	patterns []*regexp.Regexp
}

func filtersOf(t *model.Template) *filters {
	f := &filters{Placement: &t.Placement, required: requiredKeys(&t.Placement), runtimes: t.Runtimes(), devices: t.NamedDevices(), ownUsers: t.Shared().OwnUsers, links: t.Links()}
	for i := range f.Constraints {
		c := &f.Constraints[i]
		if f.problem = Problem(c); f.problem != "" {
			break
		}
		f.asked = append(f.asked, asked{c, patternsOf(c)})
	}
	return f
}

func (f *filters) reject(n *model.Node) string {
	for i := range f.asked {
		if a := &f.asked[i]; !satisfies(n, a.Constraint, a.patterns) {
			return "do not satisfy " + describeConstraint(a.Constraint)
		}
	}
	if f.problem != "" {
		return f.problem
	}
	if len(f.Platforms) > 0 {
		if have := n.Attributes["os"] + "/" + n.Attributes["arch"]; !slices.Contains(f.Platforms, have) {
			return "are not " + strings.Join(f.Platforms, " or ")
		}
	}
	for _, name := range f.runtimes {
		if _, ok := n.Attributes[model.RuntimeAttribute+name]; !ok {
			return "have no runtime " + name
		}
	}
	if _, ok := n.Attributes[model.UsersAttribute]; f.ownUsers && !ok {
		return "cannot give instances users of their own"
	}
	for _, device := range f.devices {
		if !n.HasCDIDevice(device) {
			return "have no device " + device
		}
	}
	for _, l := range f.links {
		if !n.Carries(l.Driver, l.Parent) {
			return l.Lack()
		}
	}
	for _, key := range f.required {
		if _, ok := Value(n, key); !ok {
			return "have no " + key + ", which instances are distributed by"
		}
	}
	if key, ok := tolerated(n, f.Tolerations); !ok {
		return "have the taint " + key + ", which is not tolerated"
	}
	return ""
}

// requiredKeys are those without which a node is in no failure domain that counts.
func requiredKeys(pl *model.Placement) []string {
	var out []string
	for i := range pl.MaxPer {
		out = append(out, pl.MaxPer[i].Key)
	}
	for i := range pl.Skew {
		out = append(out, pl.Skew[i].Key)
	}
	for i := range pl.Near {
		if pl.Near[i].Weight == 0 {
			out = append(out, DomainKey(&pl.Near[i]))
		}
	}
	return out
}

// DomainKey is the failure domain of an affinity: a node, unless it says otherwise.
func DomainKey(a *model.Affinity) string {
	if a.Key == "" {
		return "node.id"
	}
	return a.Key
}

// SuitsApartFromTaints reports whether a node is one that instances of the template may run on,
// whatever its state, its taints and how full it may be.
func SuitsApartFromTaints(n *model.Node, t *model.Template) bool {
	lenient := *t
	lenient.Placement.Tolerations = []model.Toleration{{}}
	return static(n, &lenient) == ""
}

// Evicts reports whether a node has a taint that ends instances of the template there.
func Evicts(n *model.Node, t *model.Template) bool {
	return slices.ContainsFunc(n.Taints, func(taint model.Taint) bool {
		return taint.Effect == noExecute && !tolerates(t.Placement.Tolerations, taint)
	})
}

// Eligible reports whether a node takes work, and instances of the template in particular,
// however full it may be.
func Eligible(n *model.Node, t *model.Template) bool {
	return n.Schedulable() && static(n, t) == ""
}

// Impossible says why no node could ever run the template, however empty; "" when one could. An
// empty cluster is no reason.
func Impossible(nodes []*model.Node, t *model.Template) string {
	if len(nodes) == 0 {
		return ""
	}
	rejected := newTally(len(nodes))
	wanted := Wanted(t)
	for _, n := range nodes {
		reason := static(n, t)
		if reason == "" {
			s, lacking := room(n, t.Placement.Class).lacks(&model.Resources{}, &wanted)
			if !lacking {
				return ""
			}
			rejected.add("have too little "+s.what, s.detail+" on "+n.Name)
			continue
		}
		rejected.add(reason, "")
	}
	return rejected.text()
}

// TooLittle says of what a node has too little for an instance of a template beside those of others; "" when it has enough.
func TooLittle(n *model.Node, others []*model.Template, t *model.Template) string {
	var used model.Resources
	for _, o := range others {
		sum := Wanted(o)
		add(&used, &sum, 1)
	}
	wanted := Wanted(t)
	s, lacking := room(n, t.Placement.Class).lacks(&used, &wanted)
	if !lacking {
		return ""
	}
	return s.what + " (" + s.detail + ")"
}
