package rollout

import (
	"slices"

	"github.com/tutti-run/tutti/internal/model"
)

// A stateful workload differs in this: a slot never holds two instances that have not ended; slots
// are updated from the last to the first; and, unless it starts in parallel, a slot waits for all
// before it when it starts, and for all after it when it ends.

func (p *plan) stateful() bool { return p.Workload.Type == model.StatefulWorkload }

func (p *plan) ordered() bool { return p.stateful() && p.Workload.Start != model.Parallel }

// atOnce is how many slots may be out of service for an update; 0 is any number.
func (p *plan) atOnce() int {
	if p.ordered() {
		return 1
	}
	return p.policy.Parallelism
}

// awaitsOthers reports whether a slot before this one does not serve yet.
func (p *plan) awaitsOthers(s *slot) bool {
	return slices.ContainsFunc(p.slots, func(o *slot) bool {
		if !o.wanted || o.number >= s.number || o.serves() {
			return false
		}
		if o.vacant() && len(o.going) == 0 && len(o.dead) > 0 {
			stay, _ := p.stays(o)
			return !stay // one that has ended for good is not waited for
		}
		return true
	})
}

// followed reports whether something in a slot after this one has not ended.
func (p *plan) followed(s *slot) bool {
	return slices.ContainsFunc(p.slots, func(o *slot) bool {
		return o.number > s.number && (!o.vacant() || len(o.going) > 0)
	})
}

// fixed reports whether instances have addresses of their own choice, which the old one of a slot holds until
// it has ended.
func (p *plan) fixed() bool {
	return slices.ContainsFunc(p.Workload.Template.Networks, func(a model.Attachment) bool { return a.Address != "" })
}

// vacate ends what runs on leaving nodes, as many at once as may be out of service, of which busy
// are already, and as long as so many stay ready as are to; the slots are filled elsewhere once it has
// ended.
func (p *plan) vacate(leaving []*slot, busy int) {
	room := len(leaving)
	if n := p.atOnce(); n > 0 {
		room = max(0, min(room, n-busy))
	}
	slices.SortFunc(leaving, func(a, b *slot) int { return b.number - a.number })
	spare := -p.Workload.MinAvailable
	for _, s := range p.slots {
		if s.wanted && s.serves() {
			spare++
		}
	}
	for _, s := range leaving[:room] {
		if s.serves() {
			if spare--; spare < 0 && p.Workload.MinAvailable > 0 {
				continue
			}
		}
		p.endAll("its node is being drained", s.leaving)
	}
}
