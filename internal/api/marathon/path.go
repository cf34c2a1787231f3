package marathon

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

var segment = regexp.MustCompile(`^(([a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])\.)*([a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])$`)

const idSentence = "must fully match regular expression '^(([a-z0-9]|[a-z0-9][a-z0-9\\-]*[a-z0-9])\\.)*([a-z0-9]|[a-z0-9][a-z0-9\\-]*[a-z0-9])|(\\.|\\.\\.)$'"

// resolvePath makes a path absolute: one that does not begin with a slash is below base, and ".." goes
// up. ok is false for what is no path.
func resolvePath(base, id string) (path string, ok bool) {
	var parts []string
	if !strings.HasPrefix(id, "/") {
		parts = splitPath(base)
	}
	for _, s := range splitPath(id) {
		switch {
		case s == "..":
			if len(parts) == 0 {
				return "", false
			}
			parts = parts[:len(parts)-1]
		case s == ".":
		case !segment.MatchString(s):
			return "", false
		default:
			parts = append(parts, s)
		}
	}
	return "/" + strings.Join(parts, "/"), true
}

func splitPath(path string) []string {
	var out []string
	for _, s := range strings.Split(path, "/") {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

func parentOf(path string) string {
	i := strings.LastIndexByte(path, '/')
	if i <= 0 {
		return "/"
	}
	return path[:i]
}

// below reports whether a path is that of a group or lies in it.
func below(path, group string) bool {
	return group == "/" || path == group || strings.HasPrefix(path, group+"/")
}

// placeOf is where an app's workload is: its application and name. Segments of paths have no "_", so
// that no two paths share a place.
func placeOf(path string) (application, name string) {
	parts := splitPath(path)
	if len(parts) == 1 {
		return "", fit(parts[0])
	}
	return fit(parts[0]), fit(strings.Join(parts[1:], "_"))
}

// fit shortens what is too long for a name.
func fit(name string) string {
	if model.CheckName(name) == nil {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("%s_%x", strings.Trim(name[:min(len(name), 40)], "._-"), sum[:8])
}

// safeID is a path as it is within the IDs of tasks: "/shop/web" is "shop_web".
func safeID(path string) string { return strings.Join(splitPath(path), "_") }

// hostLabel is a path as it is within names of hosts: "/shop/web" is "web-shop".
func hostLabel(path string) string {
	parts := splitPath(path)
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.ReplaceAll(strings.Join(parts, "-"), ".", "-")
}
