package compose

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// signs are the operators of constraints, those first that others begin like.
var signs = []struct {
	text     string
	operator model.Operator
}{
	{"==", model.Equal}, {"!=", model.NotEqual}, {"=~", model.Matches}, {"!~", model.NotMatches},
	{">=", model.AtLeast}, {"<=", model.AtMost}, {">", model.Greater}, {"<", model.Less},
}

var wordy = lazily(`^\s*(\S+)\s+(in|not in|exists|not exists)\b\s*(?:\((.*)\))?\s*$`)

// constraint reads "node.role==manager" and the like.
func (o *one) constraint(key, text string) (c model.Constraint, ok bool) {
	at := func(format string, args ...any) { o.at(fault.Invalid, key, []string{text}, format, args...) }
	if m := wordy().FindStringSubmatch(text); m != nil {
		c.Key = m[1]
		for v := range strings.SplitSeq(m[3], ",") {
			if v = strings.TrimSpace(v); v != "" {
				c.Values = append(c.Values, v)
			}
		}
		c.Operator = map[string]model.Operator{"in": model.In, "not in": model.NotIn, "exists": model.Exists, "not exists": model.NotExists}[m[2]]
		if needs := c.Operator == model.In || c.Operator == model.NotIn; needs != (len(c.Values) > 0) {
			at("%q is not a constraint such as node.labels.zone in (east, west), or node.labels.zone exists", text)
			return c, false
		}
	} else if c, ok = sign(text); !ok {
		at("%q is not a constraint such as node.labels.zone==east", text)
		return c, false
	}
	if !o.nodeKey(key, c.Key) {
		return c, false
	}
	for i, v := range c.Values {
		word, problem := nodeValue(c.Key, v, c.Operator)
		if problem != "" {
			at("%s", problem)
			return c, false
		}
		c.Values[i] = word
	}
	if problem := valueProblem(&c); problem != "" {
		at("%q: %s", text, problem)
		return c, false
	}
	return c, true
}

// sign reads a constraint with an operator of signs: the one that comes first.
func sign(text string) (c model.Constraint, ok bool) {
	first := len(text)
	for _, s := range signs {
		if i := strings.Index(text, s.text); i >= 0 && i < first {
			first, c.Operator = i, s.operator
			c.Key, c.Values = strings.TrimSpace(text[:i]), []string{strings.TrimSpace(text[i+len(s.text):])}
		}
	}
	return c, c.Operator != ""
}

// nodeValue is what nodes call a value.
func nodeValue(key, value string, operator model.Operator) (word, problem string) {
	if operator == model.Matches || operator == model.NotMatches {
		return value, ""
	}
	switch key {
	case "node.role":
		role, known := map[string]string{"manager": "server", "worker": "agent"}[strings.ToLower(value)]
		if !known {
			return "", fmt.Sprintf("node.role is manager or worker, not %q", value)
		}
		return role, ""
	case "node.platform.os":
		return strings.ToLower(value), ""
	case "node.platform.arch":
		return architecture(value), ""
	}
	return value, ""
}

var number = lazily(`^(v[0-9]+(\.[0-9]+)*|-?[0-9]+(\.[0-9]+)?)$`)

func valueProblem(c *model.Constraint) string {
	switch c.Operator {
	case model.Matches, model.NotMatches:
		if _, err := regexp.Compile(c.Values[0]); err != nil {
			return fmt.Sprintf("%q is no regular expression (%v)", c.Values[0], err)
		}
	case model.Less, model.AtMost, model.Greater, model.AtLeast:
		if !number().MatchString(c.Values[0]) {
			return fmt.Sprintf("%q is neither a number nor a version such as v6.1", c.Values[0])
		}
	}
	return ""
}

// nodeKey checks the name of a node's property.
func (o *one) nodeKey(where, key string) bool {
	switch {
	case slices.Contains([]string{"node.id", "node.hostname", "node.role", "node.ip", "node.platform.os", "node.platform.arch"}, key),
		strings.HasPrefix(key, "node.labels.") && key != "node.labels.",
		strings.HasPrefix(key, "node.attributes.") && key != "node.attributes.":
		return true
	case strings.HasPrefix(key, "engine.labels."):
		o.at(fault.Unsupported, where, []string{key}, "there is no Docker Engine to have labels; label the nodes and write node.labels.%s", strings.TrimPrefix(key, "engine.labels."))
	default:
		o.at(fault.Invalid, where, []string{key}, "nodes have no property %q; they have node.id, node.hostname, node.role, node.ip, node.platform.os, node.platform.arch, node.labels.NAME and node.attributes.NAME", key)
	}
	return false
}
