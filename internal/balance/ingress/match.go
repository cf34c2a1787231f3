package ingress

import (
	"cmp"
	"slices"
	"strings"
)

// table finds the route of a request in a time that does not grow with the number of hosts or paths.
type table struct {
	exact    map[string]*paths // by host
	wildcard map[string]*paths // "*.example.com" under example.com
	any      *paths
}

// paths are the routes of a host: by the whole path, and by the beginning of it. Under each, those with
// more headers come first.
type paths struct {
	whole, begin map[string][]*route
}

func newPaths() *paths { return &paths{map[string][]*route{}, map[string][]*route{}} }

func newTable(routes []*route) *table {
	t := &table{exact: map[string]*paths{}, wildcard: map[string]*paths{}, any: newPaths()}
	at := func(m map[string]*paths, host string) *paths {
		if m[host] == nil {
			m[host] = newPaths()
		}
		return m[host]
	}
	for _, r := range routes {
		p := t.any
		if below, ok := strings.CutPrefix(r.Host, "*."); ok {
			p = at(t.wildcard, below)
		} else if r.Host != "" {
			p = at(t.exact, r.Host)
		}
		list, path := p.begin, strings.TrimRight(r.Path, "/")
		if r.Exact {
			list, path = p.whole, r.Path
		}
		list[path] = append(list[path], r)
		slices.SortStableFunc(list[path], func(a, b *route) int { return cmp.Compare(len(b.Headers), len(a.Headers)) })
	}
	return t
}

// find returns the routes that match a request best, and alike.
func (t *table) find(r *asked) []*route {
	_, below, _ := strings.Cut(r.host, ".")
	for _, p := range [...]*paths{t.exact[r.host], t.wildcard[below], t.any} {
		if p == nil {
			continue
		}
		if found := p.find(r); found != nil {
			return found
		}
	}
	return nil
}

func (p *paths) find(r *asked) []*route {
	path := r.path
	if found := fitting(p.whole[path], r); found != nil {
		return found
	}
	for end := len(path); end >= 0; end = strings.LastIndexByte(path[:end], '/') {
		if found := fitting(p.begin[strings.TrimRight(path[:end], "/")], r); found != nil {
			return found
		}
	}
	return nil
}

// fitting are those of the routes whose headers fit, as many as possible.
func fitting(list []*route, r *asked) []*route {
	for i, first := range list {
		if !fits(first, r) {
			continue
		}
		if i == len(list)-1 {
			return list[i:]
		}
		var out []*route
		for _, other := range list[i:] {
			if len(other.Headers) == len(first.Headers) && fits(other, r) {
				out = append(out, other)
			}
		}
		return out
	}
	return nil
}

func fits(route *route, r *asked) bool {
	for k, v := range route.Headers {
		if r.headers.Get(k) != v {
			return false
		}
	}
	return true
}
