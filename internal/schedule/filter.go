package schedule

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// Value looks up a key of a node as constraints name it; see model.Constraint.
func Value(n *model.Node, key string) (string, bool) {
	switch key {
	case "node.id":
		return n.ID, true
	case "node.name", "node.hostname":
		return n.Name, true
	case "node.role":
		if n.Server {
			return "server", true
		}
		return "agent", true
	case "node.platform.os":
		return lookup(n.Attributes, "os")
	case "node.platform.arch":
		return lookup(n.Attributes, "arch")
	case "node.ip":
		return n.HostAddress, true
	}
	if name, ok := strings.CutPrefix(key, "node.labels."); ok {
		return lookup(n.Labels, name)
	}
	if name, ok := strings.CutPrefix(key, "node.attributes."); ok {
		return lookup(n.Attributes, name)
	}
	return "", false
}

func lookup(m map[string]string, key string) (string, bool) {
	v, ok := m[key]
	return v, ok
}

// Satisfies reports whether a node meets a constraint.
func Satisfies(n *model.Node, c *model.Constraint) bool {
	v, ok := Value(n, c.Key)
	switch c.Operator {
	case model.Exists:
		return ok
	case model.NotExists:
		return !ok
	case model.Equal, model.In:
		return ok && slices.Contains(c.Values, v)
	case model.NotEqual, model.NotIn:
		return !ok || !slices.Contains(c.Values, v)
	case model.Matches:
		return ok && slices.ContainsFunc(c.Values, func(p string) bool {
			re, err := regexp.Compile("^(?:" + p + ")$")
			return err == nil && re.MatchString(v)
		})
	}
	return false
}

// problem says why no node can ever meet a constraint, "" when it makes sense.
func problem(c *model.Constraint) string {
	known := strings.HasPrefix(c.Key, "node.labels.") || strings.HasPrefix(c.Key, "node.attributes.") ||
		slices.Contains([]string{"node.id", "node.name", "node.hostname", "node.role", "node.platform.os", "node.platform.arch", "node.ip"}, c.Key)
	if !known {
		return fmt.Sprintf("have no property %q, which a constraint names", c.Key)
	}
	switch c.Operator {
	case model.Exists, model.NotExists, model.Equal, model.In, model.NotEqual, model.NotIn:
	case model.Matches:
		for _, p := range c.Values {
			if _, err := regexp.Compile(p); err != nil {
				return fmt.Sprintf("cannot be compared with %q, which is no regular expression", p)
			}
		}
	default:
		return fmt.Sprintf("cannot be compared by the unknown operator %q", c.Operator)
	}
	return ""
}

func describeConstraint(c *model.Constraint) string {
	switch c.Operator {
	case model.Exists, model.NotExists:
		return fmt.Sprintf("%s %s", c.Key, c.Operator)
	}
	return fmt.Sprintf("%s %s %s", c.Key, c.Operator, strings.Join(c.Values, ","))
}

// Wanted sums what one instance of a template sets aside: all tasks together, or the largest
// init task where that is more.
func Wanted(t *model.Template) model.Resources {
	var sum model.Resources
	for i := range t.Tasks {
		add(&sum, &t.Tasks[i].Reserve, 1)
	}
	for i := range t.InitTasks {
		r := &t.InitTasks[i].Reserve
		sum.NanoCPUs = max(sum.NanoCPUs, r.NanoCPUs)
		sum.MemoryBytes = max(sum.MemoryBytes, r.MemoryBytes)
		sum.DiskBytes = max(sum.DiskBytes, r.DiskBytes)
		sum.Pids = max(sum.Pids, r.Pids)
		for k, v := range r.Custom {
			if v > sum.Custom[k] {
				if sum.Custom == nil {
					sum.Custom = map[string]int64{}
				}
				sum.Custom[k] = v
			}
		}
	}
	return sum
}

func add(to, r *model.Resources, sign int64) {
	to.NanoCPUs += sign * r.NanoCPUs
	to.MemoryBytes += sign * r.MemoryBytes
	to.DiskBytes += sign * r.DiskBytes
	to.Pids += sign * r.Pids
	for k, v := range r.Custom {
		if to.Custom == nil {
			to.Custom = map[string]int64{}
		}
		to.Custom[k] += sign * v
	}
}

// lacking names the first resource of which a node has less left than wanted, and how much it
// has; "" when all fits. Resources that a node does not state (zero capacity) are not counted,
// apart from custom ones.
func lacking(n *model.Node, used, wanted *model.Resources) (what, detail string) {
	have, kept := &n.Capacity, &n.Reserved
	counted := [...]struct {
		name                         string
		text                         func(int64) string
		capacity, kept, used, wanted int64
	}{
		{"cores", cores, have.NanoCPUs, kept.NanoCPUs, used.NanoCPUs, wanted.NanoCPUs},
		{"memory", bytesText, have.MemoryBytes, kept.MemoryBytes, used.MemoryBytes, wanted.MemoryBytes},
		{"disk", bytesText, have.DiskBytes, kept.DiskBytes, used.DiskBytes, wanted.DiskBytes},
		{"pids", plain, have.Pids, kept.Pids, used.Pids, wanted.Pids},
	}
	for i := range counted {
		c := &counted[i]
		if free := c.capacity - c.kept - c.used; c.wanted > 0 && c.capacity > 0 && free < c.wanted {
			return c.name, c.text(free) + " free, " + c.text(c.wanted) + " wanted"
		}
	}
	if len(wanted.Custom) == 0 {
		return "", ""
	}
	for _, k := range slices.Sorted(maps.Keys(wanted.Custom)) {
		if free := have.Custom[k] - kept.Custom[k] - used.Custom[k]; free < wanted.Custom[k] {
			return k, plain(free) + " free, " + plain(wanted.Custom[k]) + " wanted"
		}
	}
	return "", ""
}

func plain(n int64) string { return strconv.FormatInt(max(n, 0), 10) }

func cores(nano int64) string { return fmt.Sprintf("%.2f cores", float64(max(nano, 0))/1e9) }

func bytesText(n int64) string {
	n = max(n, 0)
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.4g %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

func tolerated(n *model.Node, tolerations []model.Toleration) (string, bool) {
	for _, taint := range n.Taints {
		if taint.Effect == "preferNoSchedule" {
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
		if taint.Effect == "preferNoSchedule" && !tolerates(tolerations, taint) {
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
func static(n *model.Node, t *model.Template) string {
	for i := range t.Placement.Constraints {
		c := &t.Placement.Constraints[i]
		if problem := problem(c); problem != "" {
			return problem
		}
		if !Satisfies(n, c) {
			return "do not satisfy " + describeConstraint(c)
		}
	}
	if len(t.Placement.Platforms) > 0 {
		if have := n.Attributes["os"] + "/" + n.Attributes["arch"]; !slices.Contains(t.Placement.Platforms, have) {
			return "are not " + strings.Join(t.Placement.Platforms, " or ")
		}
	}
	if key, ok := tolerated(n, t.Placement.Tolerations); !ok {
		return "have the taint " + key + ", which is not tolerated"
	}
	return ""
}

// Suits reports whether a node is one that instances of the template may run on, whatever its
// state and however full it may be.
func Suits(n *model.Node, t *model.Template) bool { return static(n, t) == "" }

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
			what, lack := lacking(n, &model.Resources{}, &wanted)
			if what == "" {
				return ""
			}
			rejected.add("have too little "+what, lack+" on "+n.Name)
			continue
		}
		rejected.add(reason, "")
	}
	return rejected.text()
}
