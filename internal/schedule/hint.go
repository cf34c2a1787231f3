package schedule

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// Hint says what nodes have in place of what a constraint asks for, and what may have been meant; ""
// when some node satisfies it, or there is nothing to say.
func Hint(nodes []*model.Node, c *model.Constraint) string {
	name, label := strings.CutPrefix(c.Key, "node.labels.")
	if len(nodes) == 0 || Problem(c) != "" || slices.ContainsFunc(nodes, func(n *model.Node) bool { return Satisfies(n, c) }) {
		return ""
	}
	labels, values := map[string]bool{}, map[string][]string{}
	for _, n := range nodes {
		for l := range n.Labels {
			labels[l] = true
		}
		if v, ok := Value(n, c.Key); ok {
			values[v] = append(values[v], n.Name)
		}
	}
	if len(values) == 0 {
		switch near := model.Nearest(name, maps.Keys(labels)); {
		case !label:
			return ""
		case near != "":
			return fmt.Sprintf("no node has a label %s; did you mean %s?", name, near)
		case len(labels) > 0:
			return fmt.Sprintf("no node has a label %s; the labels of nodes are %s", name, some(slices.Sorted(maps.Keys(labels)), 5))
		}
		return fmt.Sprintf("no node has a label %s, or any other", name)
	}
	switch c.Operator {
	case model.Equal, model.In:
		for _, v := range c.Values {
			if near := model.Nearest(v, maps.Keys(values)); near != "" && len(c.Values) == 1 {
				return fmt.Sprintf("%s is %s on %s; did you mean that?", c.Key, near, some(values[near], 3))
			}
		}
		return fmt.Sprintf("%s is %s", c.Key, some(slices.Sorted(maps.Keys(values)), 5))
	case model.Matches, model.Less, model.AtMost, model.Greater, model.AtLeast:
		return fmt.Sprintf("%s is %s", c.Key, some(slices.Sorted(maps.Keys(values)), 5))
	}
	return ""
}

// some names so many of a list, and how many more there are.
func some(list []string, most int) string {
	switch n := len(list); {
	case n > most:
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), n-most)
	case n > 1:
		return strings.Join(list[:n-1], ", ") + " and " + list[n-1]
	}
	return list[0]
}
