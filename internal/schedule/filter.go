package schedule

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
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

// freeOf returns what a node has beyond what is reserved and used.
func freeOf(n *model.Node, used *model.Resources) model.Resources {
	free := n.Capacity
	free.Custom = maps.Clone(free.Custom)
	add(&free, &n.Reserved, -1)
	add(&free, used, -1)
	return free
}

// lacking names the first resource of which free holds less than wanted, "" when it fits.
// Resources that a node does not state (zero capacity) are not counted, apart from custom ones.
func lacking(capacity, free, wanted *model.Resources) string {
	switch {
	case wanted.NanoCPUs > 0 && capacity.NanoCPUs > 0 && free.NanoCPUs < wanted.NanoCPUs:
		return fmt.Sprintf("%s free, %s wanted", cores(free.NanoCPUs), cores(wanted.NanoCPUs))
	case wanted.MemoryBytes > 0 && capacity.MemoryBytes > 0 && free.MemoryBytes < wanted.MemoryBytes:
		return fmt.Sprintf("%s of memory free, %s wanted", bytesText(free.MemoryBytes), bytesText(wanted.MemoryBytes))
	case wanted.DiskBytes > 0 && capacity.DiskBytes > 0 && free.DiskBytes < wanted.DiskBytes:
		return fmt.Sprintf("%s of disk free, %s wanted", bytesText(free.DiskBytes), bytesText(wanted.DiskBytes))
	}
	for k, v := range wanted.Custom {
		if free.Custom[k] < v {
			return fmt.Sprintf("%d of %s free, %d wanted", free.Custom[k], k, v)
		}
	}
	return ""
}

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
		ok := slices.ContainsFunc(tolerations, func(t model.Toleration) bool {
			return (t.Key == "" || t.Key == taint.Key) && (t.Value == "" || t.Value == taint.Value) && (t.Effect == "" || t.Effect == taint.Effect)
		})
		if !ok {
			return taint.Key, false
		}
	}
	return "", true
}

// static returns why a node can never run a template as the node is set up, "" when it can.
func static(n *model.Node, t *model.Template) string {
	for i := range t.Placement.Constraints {
		if c := &t.Placement.Constraints[i]; !Satisfies(n, c) {
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
			free := freeOf(n, &model.Resources{})
			if lack := lacking(&n.Capacity, &free, &wanted); lack != "" {
				reason = "are too small (" + lack + ", on " + n.Name + ")"
			}
		}
		if reason == "" {
			return ""
		}
		rejected.add(reason)
	}
	return rejected.text()
}
