package marathon

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

var (
	selectSet   = regexp.MustCompile(`^([\w.-]+)\s+(in|notin)\s+\(([^)]*)\)\s*(?:,|$)`)
	selectEqual = regexp.MustCompile(`^([\w.-]+)\s*(==|!=)\s*([^,]*?)\s*(?:,|$)`)
	selectHas   = regexp.MustCompile(`^([\w.-]+)\s*(?:,|$)`)
)

// selector reads a label selector, such as "a==b, c!=d, e, f in (g, h), i notin (j)".
func selector(text string) (func(labels map[string]string) bool, error) {
	var all []func(map[string]string) bool
	for rest := strings.TrimSpace(text); rest != ""; rest = strings.TrimSpace(rest) {
		if m := selectSet.FindStringSubmatch(rest); m != nil {
			var values []string
			for _, v := range strings.Split(m[3], ",") {
				values = append(values, strings.TrimSpace(v))
			}
			key, in := m[1], m[2] == "in"
			all = append(all, func(l map[string]string) bool { v, ok := l[key]; return ok && slices.Contains(values, v) == in })
			rest = rest[len(m[0]):]
			continue
		}
		if m := selectEqual.FindStringSubmatch(rest); m != nil {
			key, equal, value := m[1], m[2] == "==", m[3]
			all = append(all, func(l map[string]string) bool { v, ok := l[key]; return ok && (v == value) == equal })
			rest = rest[len(m[0]):]
			continue
		}
		m := selectHas.FindStringSubmatch(rest)
		if m == nil {
			return nil, &invalid{message: fmt.Sprintf("the label selector cannot be read from %q on: KEY, KEY==VALUE, KEY!=VALUE, KEY in (A, B) and KEY notin (A, B) are accepted", rest), status: http.StatusBadRequest}
		}
		key := m[1]
		all = append(all, func(l map[string]string) bool { _, ok := l[key]; return ok })
		rest = rest[len(m[0]):]
	}
	return func(l map[string]string) bool {
		for _, f := range all {
			if !f(l) {
				return false
			}
		}
		return true
	}, nil
}
