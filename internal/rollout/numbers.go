package rollout

import (
	"cmp"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// numbers are the slots that the workload fills: those from 1 on, unless it says which instances go
// first when there are too many. Then the slots that are filled stay, apart from those whose
// instances go first, and what is missing is made up by the lowest free numbers.
func (p *plan) numbers() []int {
	w := p.Workload
	out := make([]int, 0, w.Count)
	if w.EndFirst != "" && w.Type == model.ServiceWorkload {
		out = p.kept()
	}
	taken := map[int]bool{}
	for _, n := range out {
		taken[n] = true
	}
	for n := 1; len(out) < w.Count; n++ {
		if !taken[n] {
			out = append(out, n)
		}
	}
	return out
}

// kept are the filled slots that stay, the count of the workload at most.
func (p *plan) kept() []int {
	since := map[int]time.Time{} // of the oldest instance of each slot
	for _, i := range p.Instances {
		if !i.WantsToRun() && (i.Desired != model.DesiredHold || i.Status.State.Final()) {
			continue
		}
		if at, ok := since[i.Slot]; !ok || i.Created.Before(at) {
			since[i.Slot] = i.Created
		}
	}
	var out []int
	for n := range since {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b int) int { // those that stay come first
		age := since[a].Compare(since[b])
		if p.Workload.EndFirst == model.OldestFirst {
			age = -age
		}
		return cmp.Or(age, cmp.Compare(a, b))
	})
	out = out[:min(len(out), p.Workload.Count)]
	slices.Sort(out)
	return out
}
