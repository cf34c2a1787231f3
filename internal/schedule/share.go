package schedule

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/tutti-run/tutti/internal/model"
)

// Share is what a namespace has of the cluster, and what it may have.
type Share struct {
	Weight float64 // 0 counts as 1
	// Quota bounds what the namespace's instances set aside; a resource of 0 is not bounded.
	// MaxInstances bounds their number; 0 does not.
	Quota         model.Resources
	MaxInstances  int
	Used          model.Resources
	UsedInstances int
}

// Add accounts for an instance.
func (s *Share) Add(wanted model.Resources) {
	add(&s.Used, &wanted, 1)
	s.UsedInstances++
}

func (s *Share) weighted(whole *model.Resources) float64 {
	if s.Weight > 0 {
		return dominant(&s.Used, whole) / s.Weight
	}
	return dominant(&s.Used, whole)
}

// beyondQuota says why a namespace may have no more, "" when it may.
func (p *placer) beyondQuota(c *class) string {
	s := p.Namespaces[c.Namespace]
	if s == nil {
		return ""
	}
	if s.MaxInstances > 0 && s.UsedInstances >= s.MaxInstances {
		return fmt.Sprintf("namespace %s has used up its quota of %d instances", c.Namespace, s.MaxInstances)
	}
	over := func(name string, text func(int64) string, quota, used, wanted int64) string {
		if quota <= 0 || wanted <= 0 || used+wanted <= quota {
			return ""
		}
		return fmt.Sprintf("namespace %s has used up its quota of %s: %s of %s, and %s wanted", c.Namespace, name, text(used), text(quota), text(wanted))
	}
	out := cmp.Or(
		over("cores", cores, s.Quota.NanoCPUs, s.Used.NanoCPUs, c.wanted.NanoCPUs),
		over("memory", bytesText, s.Quota.MemoryBytes, s.Used.MemoryBytes, c.wanted.MemoryBytes),
		over("disk", bytesText, s.Quota.DiskBytes, s.Used.DiskBytes, c.wanted.DiskBytes),
	)
	for name, n := range c.wanted.Custom {
		if have := over(name, plain, s.Quota.Custom[name], s.Used.Custom[name], n); out == "" || have != "" && have < out {
			out = have
		}
	}
	return out
}

// turns yields the requests in the order in which they have their turn, by position: gangs
// together, all others alone.
func (p *placer) turns(requests []Request) func(yield func([]int) bool) {
	order := make([]int, len(requests))
	several, gangs, ranked := false, false, false
	for i := range order {
		order[i] = i
		several = several || requests[i].Namespace != requests[0].Namespace
		gangs = gangs || requests[i].Template.Placement.Gang
		ranked = ranked || requests[i].Template.Placement.Priority != requests[0].Template.Placement.Priority
	}
	priority := func(i int) int { return requests[i].Template.Placement.Priority }
	if ranked {
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(priority(b), priority(a)) })
	}
	return func(yield func([]int) bool) {
		if !several && !gangs {
			for i := range order {
				if !yield(order[i : i+1]) {
					return
				}
			}
			return
		}
		for len(order) > 0 {
			n := 1
			for n < len(order) && priority(order[n]) == priority(order[0]) {
				n++
			}
			if !p.fairly(requests, order[:n], yield) {
				return
			}
			order = order[n:]
		}
	}
}

// fairly yields requests of equal priority: always the next of the namespace with the smallest
// dominant share of the cluster by its weight, as things stand.
func (p *placer) fairly(requests []Request, order []int, yield func([]int) bool) bool {
	type queue struct {
		namespace string
		groups    [][]int
	}
	var queues []*queue
	byName, gangs := map[string]*queue{}, map[classKey]int{}
	for n, i := range order {
		r := &requests[i]
		q := byName[r.Namespace]
		if q == nil {
			q = &queue{namespace: r.Namespace}
			byName[r.Namespace] = q
			queues = append(queues, q)
		}
		if r.Template.Placement.Gang {
			key := classKey{template: r.Template, workloadID: r.WorkloadID}
			if at, ok := gangs[key]; ok {
				q.groups[at] = append(q.groups[at], i)
				continue
			}
			gangs[key] = len(q.groups)
			q.groups = append(q.groups, []int{i})
			continue
		}
		q.groups = append(q.groups, order[n:n+1])
	}
	for len(queues) > 0 {
		least, share := 0, p.shareOf(queues[0].namespace)
		for n := 1; n < len(queues); n++ {
			if s := p.shareOf(queues[n].namespace); s < share {
				least, share = n, s
			}
		}
		q := queues[least]
		if !yield(q.groups[0]) {
			return false
		}
		if q.groups = q.groups[1:]; len(q.groups) == 0 {
			queues = slices.Delete(queues, least, least+1)
		}
	}
	return true
}

func (p *placer) shareOf(namespace string) float64 {
	s := p.Namespaces[namespace]
	if s == nil {
		if p.Namespaces == nil {
			p.Namespaces = map[string]*Share{}
		}
		s = &Share{}
		p.Namespaces[namespace] = s
	}
	return s.weighted(&p.whole)
}
