package marathon

import (
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// placement turns constraints and roles into ours.
func placement(snap *store.Snapshot, constraints [][]string, roles []string) model.Placement {
	var pl model.Placement
	var nodes []*model.Node
	for n := range store.List[*model.Node](snap) {
		nodes = append(nodes, n)
	}
	for _, c := range constraints {
		value := ""
		if len(c) == 3 {
			value = c[2]
		}
		key := keyOf(nodes, c[0])
		is := func(op model.Operator) {
			k := key
			if hostField(c[0]) {
				k = hostKey(nodes, value, op)
			}
			pl.Constraints = append(pl.Constraints, model.Constraint{Key: k, Operator: op, Values: []string{value}})
		}
		switch c[1] {
		case "UNIQUE":
			pl.MaxPer = append(pl.MaxPer, model.MaxPer{Key: key, Max: 1})
		case "MAX_PER":
			n, _ := strconv.Atoi(value)
			pl.MaxPer = append(pl.MaxPer, model.MaxPer{Key: key, Max: n})
		case "GROUP_BY":
			n, _ := strconv.Atoi(value)
			pl.Skew = append(pl.Skew, model.Skew{Key: key, Max: 1, MinDomains: n})
		case "CLUSTER":
			if value == "" {
				pl.Near = append(pl.Near, model.Affinity{Key: key})
				continue
			}
			is(model.Equal)
		case "IS":
			is(model.Equal)
		case "LIKE":
			is(model.Matches)
		case "UNLIKE":
			is(model.NotMatches)
		}
	}
	if len(roles) > 0 && !contains(roles, "*") {
		pl.Constraints = append(pl.Constraints, model.Constraint{Key: "node.labels.role", Operator: model.In, Values: roles})
	}
	return pl
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func hostField(field string) bool { return field == "hostname" || field == "@hostname" }

// keyOf is the property of nodes that a field means: the node itself, its region or zone, or an
// attribute, which is a label that people gave it or else what it says of itself.
func keyOf(nodes []*model.Node, field string) string {
	if hostField(field) {
		return "node.id"
	}
	name := strings.TrimPrefix(field, "@")
	for _, n := range nodes {
		if _, ok := n.Labels[name]; ok {
			return "node.labels." + name
		}
	}
	for _, n := range nodes {
		if _, ok := n.Attributes[name]; ok {
			return "node.attributes." + name
		}
	}
	return "node.labels." + name
}

// hostKey is what a host is called in a constraint: its name where a node has such a one, and
// otherwise its address, as hosts are told.
func hostKey(nodes []*model.Node, value string, op model.Operator) string {
	c := model.Constraint{Key: "node.name", Operator: model.Equal, Values: []string{value}}
	if op == model.Matches || op == model.NotMatches {
		c.Operator = model.Matches
	}
	for _, n := range nodes {
		if meets(n.Name, &c) {
			return "node.name"
		}
	}
	return "node.ip"
}
