package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// frozen reports whether people have paused the workload: what runs is kept up, and no instance
// gets another revision.
func (p *plan) frozen() bool { return p.Workload.Paused }

// proceed takes up an update again that failed, as people asked for it.
func (p *plan) proceed() {
	r := &p.out.Rollout
	if r.Proceeded == p.Workload.Proceed {
		return
	}
	r.Proceeded = p.Workload.Proceed
	if r.State == model.RolloutPaused {
		r.State, r.Message, r.Finished, r.Failures, r.Started = model.RolloutUpdating, "", time.Time{}, 0, p.Now
	}
}

// promoted is past how many steps people let the present revision go.
func (p *plan) promoted() int {
	if p.Workload.Promoted.RevisionID != p.Workload.RevisionID {
		return 0
	}
	return p.Workload.Promoted.Steps
}

// canary returns how many more of the waiting slots may get the new revision at the step that the
// update is at, and takes the next step when it is time.
func (p *plan) canary(busy, waiting int) int {
	r, steps := &p.out.Rollout, p.Workload.Plan.Canary
	if r.State != model.RolloutUpdating || r.From == "" {
		return waiting
	}
	total := 0
	for _, s := range p.slots {
		if s.wanted {
			total++
		}
	}
	for r.Step < len(steps) {
		st := steps[r.Step]
		allowed, updated := (total*st.Percent+99)/100, total-waiting
		if updated < allowed {
			return allowed - updated
		}
		if busy > 0 {
			return 0
		}
		if r.StepSince.IsZero() {
			r.StepSince = p.Now
		}
		where := fmt.Sprintf("step %d of %d: %d of %d instances are updated", r.Step+1, len(steps), updated, total)
		if st.Manual && p.promoted() <= r.Step {
			r.Message = where + ", and the others wait for `tutti rollout promote`"
			return 0
		}
		if due := r.StepSince.Add(st.Hold); due.After(p.Now) && p.promoted() <= r.Step {
			r.Message = where + ", the next step comes at " + due.UTC().Format("15:04:05 MST")
			p.revisit(due)
			return 0
		}
		r.Step, r.StepSince, r.Message = r.Step+1, time.Time{}, ""
	}
	return waiting
}

// beside reports whether an update is under way that starts the whole new revision beside the old
// one, and has not switched over yet.
func (p *plan) beside() bool {
	r := &p.out.Rollout
	return p.Workload.Plan.BlueGreen && p.Workload.Type == model.ServiceWorkload && r.State == model.RolloutUpdating && r.Step == 0 && r.From != ""
}

// blueGreen brings up the new revision beside the old one, keeps that up, and switches over.
func (p *plan) blueGreen() {
	r := &p.out.Rollout
	total, ready := 0, 0
	for _, s := range p.slots {
		if !s.wanted {
			continue
		}
		total++
		if len(s.old)+len(s.leaving) == 0 && len(s.dead) > 0 && s.dead[0].RevisionID == r.From && !s.filled {
			p.refill(s, r.From) // what serves is kept up meanwhile
		}
		switch {
		case len(s.current) > 0:
			if p.failing(s) == "" && p.proven(s.current[0]) {
				ready++
			}
		case len(s.dead) > 0 && s.dead[0].RevisionID == p.Workload.RevisionID && !p.mayReplace(s):
		case !slices.ContainsFunc(s.going, func(i *model.Instance) bool { return i.RevisionID == p.Workload.RevisionID }):
			p.do(Action{Type: Create, Slot: s.number, RevisionID: p.Workload.RevisionID, Standby: true})
		}
	}
	where := fmt.Sprintf("%d of %d new instances are ready beside the old ones", ready, total)
	switch {
	case ready < total:
		r.Message = where
		return
	case p.Workload.Plan.Manual && p.promoted() == 0:
		r.Message = where + ", and wait for `tutti rollout promote`"
		return
	}
	r.Step, r.Message = 1, ""
	for _, s := range p.slots {
		if !s.wanted {
			continue
		}
		for _, i := range s.current {
			if i.Standby {
				p.do(Action{Type: Release, InstanceID: i.ID})
			}
		}
		p.endAll("the new revision has taken over", s.old, s.leaving)
	}
}

// proven reports whether an instance is ready in a sense that says something: a probe passes, or it
// has lasted for the monitor window.
func (p *plan) proven(i *model.Instance) bool {
	if !i.Status.Ready || i.Status.Health == model.HealthHealthy {
		return i.Status.Ready
	}
	until := p.told(i, i.Status.ReadySince).Add(p.policy.Monitor)
	p.revisit(until)
	return !until.After(p.Now)
}

// leaveStandby looks after a slot whose new instance is on standby, though nothing switches over to
// it: while the update stands still what was there before is kept up, and otherwise it is released.
func (p *plan) leaveStandby(s *slot) {
	if !slices.ContainsFunc(s.current, func(i *model.Instance) bool { return i.Standby }) {
		return
	}
	if r := &p.out.Rollout; p.Held || p.frozen() || r.State == model.RolloutPaused {
		if len(s.old)+len(s.leaving) == 0 && r.From != "" {
			p.refill(s, r.From)
		}
		return
	}
	for _, i := range s.current {
		p.do(Action{Type: Release, InstanceID: i.ID})
	}
}

// domainOf is the upgrade domain of a slot: that of the node on which its old instance runs. A slot
// that serves nobody has none: replacing what is there takes nothing away.
func (p *plan) domainOf(s *slot) string {
	if !s.serves() {
		return ""
	}
	for _, i := range slices.Concat(s.old, s.leaving) {
		return p.Domains[i.NodeID]
	}
	return ""
}

// domain narrows the waiting slots down to those of the upgrade domain that the update is in. It
// goes on to the next one when that has none left and all that was replaced is ready.
func (p *plan) domain(busy int, waiting []*slot) []*slot {
	r := &p.out.Rollout
	if p.Workload.Plan.Domains == "" || r.State != model.RolloutUpdating {
		return waiting
	}
	slices.SortStableFunc(waiting, func(a, b *slot) int { return cmp.Compare(p.domainOf(a), p.domainOf(b)) })
	in := func(name string) []*slot {
		n := 0
		for n < len(waiting) && (p.domainOf(waiting[n]) == "" || p.domainOf(waiting[n]) == name) {
			n++
		}
		return waiting[:n]
	}
	if now := in(r.Domain); len(now) > 0 || busy > 0 || len(waiting) == 0 {
		return now
	}
	r.Domain = p.domainOf(waiting[0])
	return in(r.Domain)
}

// mixed reports whether the policy bounds surge and unavailability each by itself.
func (p *plan) mixed() bool { return !p.stateful() && p.policy.MaxSurge+p.policy.MaxUnavailable > 0 }

// surging counts the slots that hold a new instance beside the old one.
func (p *plan) surging() int {
	n := 0
	for _, s := range p.slots {
		if len(s.old)+len(s.leaving) > 0 && (s.filled || len(s.current) > 0) {
			n++
		}
	}
	return n
}

// down counts the wanted slots that do not serve.
func (p *plan) down() int {
	n := 0
	for _, s := range p.slots {
		if s.wanted && !s.serves() {
			n++
		}
	}
	return n
}

// mix begins the slots of a batch under a policy that bounds surge and unavailability, as far as both
// allow, and returns how many.
func (p *plan) mix(waiting []*slot) int {
	surge, spare := p.policy.MaxSurge-p.surging(), p.policy.MaxUnavailable-p.down()
	for n, s := range waiting {
		switch {
		case s.vacant():
			p.create(s, p.Workload.RevisionID, s.old, s.leaving, s.dead)
		case !s.serves():
			p.endAll("a new revision takes its place", s.old, s.leaving)
		case surge > 0:
			surge--
			p.create(s, p.Workload.RevisionID, s.old, s.leaving, s.dead)
		case spare > 0:
			spare--
			p.endAll("a new revision takes its place", s.old, s.leaving)
		default:
			return n
		}
	}
	return len(waiting)
}
