package docker

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"

	"github.com/tutti-run/tutti/internal/fault"
)

// filters are those of a list request: values by key. Of one key one value has to match.
type filters map[string][]string

// readFilters reads the query's filters, in the present form {"key":{"value":true}} or the older
// {"key":["value"]}, and refuses keys that the list does not know.
func readFilters(r *request, accepted ...string) (filters, error) {
	text := r.query.Get("filters")
	out := filters{}
	if text == "" {
		return out, nil
	}
	var sets map[string]map[string]bool
	if err := json.Unmarshal([]byte(text), &sets); err == nil {
		for key, values := range sets {
			for v, on := range values {
				if on {
					out[key] = append(out[key], v)
				}
			}
			slices.Sort(out[key])
		}
	} else {
		var lists map[string][]string
		if err := json.Unmarshal([]byte(text), &lists); err != nil {
			return nil, fault.New(fault.Invalid, "invalid filter")
		}
		for key, values := range lists {
			out[key] = values
		}
	}
	for key := range out {
		if !slices.Contains(accepted, key) {
			return nil, fault.New(fault.Invalid, "invalid filter '%s'", key)
		}
	}
	return out, nil
}

// exact reports whether one of the key's values equals one of got, or none was asked for.
func (f filters) exact(key string, got ...string) bool {
	values, ok := f[key]
	return !ok || slices.ContainsFunc(values, func(v string) bool { return slices.Contains(got, v) })
}

// prefix is like exact for beginnings.
func (f filters) prefix(key string, got ...string) bool {
	values, ok := f[key]
	return !ok || slices.ContainsFunc(values, func(v string) bool {
		return slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, v) })
	})
}

// matches is like exact for regular expressions, as the Engine compares names.
func (f filters) matches(key string, got ...string) bool {
	values, ok := f[key]
	return !ok || slices.ContainsFunc(values, func(v string) bool {
		re, err := regexp.Compile(v)
		return slices.ContainsFunc(got, func(g string) bool {
			return g == v || err == nil && re.MatchString(g)
		})
	})
}

// labels reports whether every label asked for is there: "key" or "key=value".
func (f filters) labels(key string, got map[string]string) bool {
	for _, want := range f[key] {
		if !hasLabel(got, want) {
			return false
		}
	}
	return true
}

// notLabels reports whether none of the labels is there.
func (f filters) notLabels(key string, got map[string]string) bool {
	for _, want := range f[key] {
		if hasLabel(got, want) {
			return false
		}
	}
	return true
}

func hasLabel(got map[string]string, want string) bool {
	name, value, valued := strings.Cut(want, "=")
	have, ok := got[name]
	return ok && (!valued || have == value)
}

// boolean reads a filter such as dangling; ok is false when it was not given.
func (f filters) boolean(key string) (value, ok bool, err error) {
	values, given := f[key]
	if !given {
		return false, false, nil
	}
	yes := slices.Contains(values, "1") || slices.Contains(values, "true")
	no := slices.Contains(values, "0") || slices.Contains(values, "false")
	if yes == no {
		return false, false, fault.New(fault.Invalid, "invalid filter '%s=%s'", key, values)
	}
	return yes, true, nil
}

// ports reads a filter of ports or ranges of them, tcp unless they say otherwise.
func (f filters) ports(key string) (map[network.Port]bool, error) {
	out := map[network.Port]bool{}
	for _, text := range f[key] {
		if strings.Contains(text, ":") {
			return nil, fault.New(fault.Invalid, "filter for '%s' should not contain ':': %s", key, text)
		}
		r, err := network.ParsePortRange(text)
		if err != nil {
			return nil, fault.New(fault.Invalid, "error while looking up for %s %s: %w", key, text, err)
		}
		for p := range r.All() {
			out[p] = true
		}
	}
	return out, nil
}

// until reads the filter of that name: a time, or how long ago.
func (f filters) until() (time.Time, error) {
	values := f["until"]
	switch len(values) {
	case 0:
		return time.Time{}, nil
	case 1:
		return readTime(values[0], time.Now())
	}
	return time.Time{}, fault.New(fault.Invalid, "more than one until filter specified")
}

// readTime reads seconds since 1970 with or without a fraction, RFC 3339 and its beginnings, or a
// duration before now.
func readTime(text string, now time.Time) (time.Time, error) {
	if text == "" || text == "0" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	seconds, fraction, _ := strings.Cut(text, ".")
	if s, err := strconv.ParseInt(seconds, 10, 64); err == nil {
		n, _ := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
		return time.Unix(s, n), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fault.New(fault.Invalid, "%q is neither a time nor a duration", text)
}
