package schedule

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// plainKeys are the properties of nodes other than labels and attributes.
var plainKeys = []string{"node.id", "node.name", "node.hostname", "node.role", "node.platform.os", "node.platform.arch", "node.ip"}

// ownKeys differ on every node: each node is a failure domain of its own.
var ownKeys = []string{"node.id", "node.name", "node.hostname"}

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

// KnownKey reports whether nodes can have a property of that name at all.
func KnownKey(key string) bool {
	return slices.Contains(plainKeys, key) ||
		strings.HasPrefix(key, "node.labels.") && key != "node.labels." ||
		strings.HasPrefix(key, "node.attributes.") && key != "node.attributes."
}

// Satisfies reports whether a node meets a constraint.
func Satisfies(n *model.Node, c *model.Constraint) bool { return satisfies(n, c, patternsOf(c)) }

func satisfies(n *model.Node, c *model.Constraint, patterns []*regexp.Regexp) bool {
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
		return ok && matches(v, patterns)
	case model.NotMatches:
		return !ok || !matches(v, patterns)
	}
	if !ok || len(c.Values) != 1 {
		return false
	}
	order, comparable := compareValues(v, c.Values[0])
	if !comparable {
		return false
	}
	switch c.Operator {
	case model.Less:
		return order < 0
	case model.AtMost:
		return order <= 0
	case model.Greater:
		return order > 0
	case model.AtLeast:
		return order >= 0
	}
	return false
}

// patternsOf compiles the regular expressions of a constraint; those that are none match nothing.
func patternsOf(c *model.Constraint) (out []*regexp.Regexp) {
	if c.Operator != model.Matches && c.Operator != model.NotMatches {
		return nil
	}
	for _, p := range c.Values {
		if re, err := regexp.Compile("^(?:" + p + ")$"); err == nil {
			out = append(out, re)
		}
	}
	return out
}

func matches(v string, patterns []*regexp.Regexp) bool {
	return slices.ContainsFunc(patterns, func(re *regexp.Regexp) bool { return re.MatchString(v) })
}

var versionPattern = regexp.MustCompile(`^v[0-9]+(\.[0-9]+)*$`)

// compareValues compares what a node has with what is wanted: as versions, part by part, when the
// wanted one is a version such as v6.1, and as numbers otherwise.
func compareValues(have, want string) (order int, ok bool) {
	if versionPattern.MatchString(want) {
		a, b := versionParts(have), versionParts(want)
		for i := range max(len(a), len(b)) {
			if order = cmp.Compare(part(a, i), part(b, i)); order != 0 {
				return order, len(a) > 0
			}
		}
		return 0, len(a) > 0
	}
	a, errA := strconv.ParseFloat(have, 64)
	b, errB := strconv.ParseFloat(want, 64)
	return cmp.Compare(a, b), errA == nil && errB == nil
}

// versionParts reads the numbers at the begin of a version: 6, 1 and 9 of "6.1.9-amd64".
func versionParts(v string) []int {
	var out []int
	for p := range strings.SplitSeq(strings.TrimPrefix(v, "v"), ".") {
		digits := p
		if i := strings.IndexFunc(p, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
			digits = p[:i]
		}
		n, err := strconv.Atoi(digits)
		if err != nil {
			break
		}
		out = append(out, n)
		if digits != p {
			break
		}
	}
	return out
}

func part(parts []int, i int) int {
	if i < len(parts) {
		return parts[i]
	}
	return 0
}

// Problem says what is wrong with a constraint, so that no node can ever meet it; "" when it makes
// sense. The text continues a sentence about nodes.
func Problem(c *model.Constraint) string {
	if !KnownKey(c.Key) {
		return fmt.Sprintf("have no property %q, which a constraint names", c.Key)
	}
	switch c.Operator {
	case model.Exists, model.NotExists, model.Equal, model.In, model.NotEqual, model.NotIn:
	case model.Matches, model.NotMatches:
		for _, p := range c.Values {
			if _, err := regexp.Compile(p); err != nil {
				return fmt.Sprintf("cannot be compared with %q, which is no regular expression", p)
			}
		}
	case model.Less, model.AtMost, model.Greater, model.AtLeast:
		if len(c.Values) != 1 {
			return fmt.Sprintf("cannot be compared by %s with %d values, only with one", c.Operator, len(c.Values))
		}
		if _, err := strconv.ParseFloat(c.Values[0], 64); err != nil && !versionPattern.MatchString(c.Values[0]) {
			return fmt.Sprintf("cannot be compared with %q, which is neither a number nor a version such as v6.1", c.Values[0])
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
