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

// came counts a request for a service when it comes, which may be long before it is answered.
func (c *counts) came(serviceID string) {
	c.mu.RLock()
	n := c.asked[serviceID]
	c.mu.RUnlock()
	if n == nil {
		c.mu.Lock()
		if n = c.asked[serviceID]; n == nil {
			n = &atomic.Uint64{}
			c.asked[serviceID] = n
		}
		c.mu.Unlock()
	}
	n.Add(1)
}

// requests are those that came, by service ID.
func (c *counts) requests() map[string]uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make(map[string]uint64, len(c.asked))
	for id, n := range c.asked {
		out[id] = n.Load()
	}
	return out
}

func (c *counts) add(service string, status int, took time.Duration) {
	c.mu.RLock()
	one := c.byService[service]
	c.mu.RUnlock()
	if one == nil {
		c.mu.Lock()
		if one = c.byService[service]; one == nil {
			one = &count{}
			c.byService[service] = one
		}
		c.mu.Unlock()
	}
	one.statuses[min(status/100, len(one.statuses)-1)].Add(1)
	one.nanos.Add(int64(took))
	for i, b := range bounds {
		if took.Seconds() <= b {
			one.within[i].Add(1)
			break
		}
	}
}

// text is what was counted, in the format of Prometheus.
func (c *counts) text() string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var b strings.Builder
	fmt.Fprintln(&b, "# TYPE tutti_ingress_requests_total counter")
	services := slices.Sorted(maps.Keys(c.byService))
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
