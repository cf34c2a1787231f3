package ingress

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// bounds are those of the histogram of how long requests take, in seconds.
var bounds = [...]float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

// counts are what came for each service, since the process began.
type counts struct {
	mu        sync.RWMutex
	byService map[string]*count
	asked     map[string]*atomic.Uint64 // by service ID: requests that came, answered or not
}

type count struct {
	statuses [6]atomic.Uint64 // by the first digit; 0: none
	within   [len(bounds)]atomic.Uint64
	nanos    atomic.Int64
}

func newCounts() *counts {
	return &counts{byService: map[string]*count{}, asked: map[string]*atomic.Uint64{}}
}

// of is where the requests for a service are counted, by its ID, when they come.
func (c *counts) of(serviceID string) *atomic.Uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked[serviceID] == nil {
		c.asked[serviceID] = &atomic.Uint64{}
	}
	return c.asked[serviceID]
}

// requests are those that came, by service ID.
func (c *counts) requests() map[string]uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make(map[string]uint64, len(c.asked))
	for id, n := range c.asked {
		if n := n.Load(); n > 0 {
			out[id] = n
		}
	}
	return out
}

// named is where the answers of a service are counted, by its name.
func (c *counts) named(service string) *count {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byService[service] == nil {
		c.byService[service] = &count{}
	}
	return c.byService[service]
}

func (c *count) add(status int, took time.Duration) {
	c.statuses[min(status/100, len(c.statuses)-1)].Add(1)
	c.nanos.Add(int64(took))
	for i, b := range bounds {
		if took.Seconds() <= b {
			c.within[i].Add(1)
			break
		}
	}
}

// empty reports whether nothing was answered.
func (c *count) empty() bool {
	for i := range c.statuses {
		if c.statuses[i].Load() > 0 {
			return false
		}
	}
	return true
}

// text is what was counted, in the format of Prometheus.
func (c *counts) text() string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var b strings.Builder
	fmt.Fprintln(&b, "# TYPE tutti_ingress_requests_total counter")
	services := slices.DeleteFunc(slices.Sorted(maps.Keys(c.byService)), func(s string) bool { return c.byService[s].empty() })
	for _, s := range services {
		for class := range c.byService[s].statuses {
			if n := c.byService[s].statuses[class].Load(); n > 0 {
				fmt.Fprintf(&b, "tutti_ingress_requests_total{service=%q,status=\"%dxx\"} %d\n", s, class, n)
			}
		}
	}
	fmt.Fprintln(&b, "# TYPE tutti_ingress_request_seconds histogram")
	for _, s := range services {
		one, within, all := c.byService[s], uint64(0), uint64(0)
		for class := range one.statuses {
			all += one.statuses[class].Load()
		}
		for i, bound := range bounds {
			within += one.within[i].Load()
			fmt.Fprintf(&b, "tutti_ingress_request_seconds_bucket{service=%q,le=\"%g\"} %d\n", s, bound, within)
		}
		fmt.Fprintf(&b, "tutti_ingress_request_seconds_bucket{service=%q,le=\"+Inf\"} %d\n", s, all)
		fmt.Fprintf(&b, "tutti_ingress_request_seconds_sum{service=%q} %g\n", s, time.Duration(one.nanos.Load()).Seconds())
		fmt.Fprintf(&b, "tutti_ingress_request_seconds_count{service=%q} %d\n", s, all)
	}
	return b.String()
}
