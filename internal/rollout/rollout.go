package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// Input is all that a decision rests on.
type Input struct {
	Workload  *model.Workload
	Instances []*model.Instance // of the workload, those that ended included
	// Nodes are where a global workload should run; unused otherwise.
	Nodes []*model.Node
	// Leaving are the IDs of nodes that are being drained.
	Leaving map[string]bool
	// Held is true while the revision waits for its dependencies: nothing of it is created, and
	// what runs of an earlier one stays.
	Held bool
	Now  time.Time
}

// ActionType says what to do.
type ActionType string

// The actions.
const (
	Create ActionType = "create" // a new instance
	Drain  ActionType = "drain"  // no new connections; stopped once all balancers have followed
	Stop   ActionType = "stop"
	Forget ActionType = "forget" // delete the record of an instance that has ended
)

// Action is one step.
type Action struct {
	Type       ActionType
	InstanceID string // all but Create
	Cause      string // Drain, Stop

	Slot       int    // Create
	NodeID     string // Create, for a global workload
	RevisionID string // Create
	Replaces   string // Create: the instance whose place it takes
}

// Output is what to do now.
type Output struct {
	Actions []Action
	Rollout model.RolloutStatus
	// RollBackTo is the revision that the workload should return to; "" keeps the present one.
	RollBackTo string
	// Revisit is when to ask again even if nothing changes; zero: not needed.
	Revisit time.Time
}

const (
	defaultMonitor = 5 * time.Second
	// startDeadline is how long a new instance may take from its placement to being ready.
	startDeadline = 10 * time.Minute
	keptDead      = 2 // ended instances kept per slot, for people to look at
)

// slot is one place to fill.
type slot struct {
	number  int
	nodeID  string
	wanted  bool              // within the count, or on a matching node
	current []*model.Instance // should run, of the present revision
	old     []*model.Instance // should run, of another revision or on a leaving node
	going   []*model.Instance // drained or stopped, not ended yet
	dead    []*model.Instance // ended, newest first
}

type plan struct {
	Input
	out    Output
	slots  []*slot
	policy model.UpdatePolicy
}

// Next decides the next steps.
func Next(in Input) Output {
	p := &plan{Input: in}
	p.out.Rollout = in.Workload.Status.Rollout
	switch in.Workload.Type {
	case model.ServiceWorkload, model.GlobalWorkload, model.JobWorkload:
	default:
		p.out.Rollout = model.RolloutStatus{
			State: model.RolloutFailed, Revision: in.Workload.RevisionID,
			Message: fmt.Sprintf("workloads of kind %q are not supported yet; service, global and job are", in.Workload.Type),
		}
		return p.out
	}
	p.collect()
	p.begin()
	p.judge()
	if p.out.RollBackTo != "" {
		return p.out // the slots are looked at again once the workload has changed
	}
	for _, s := range p.slots {
		p.trim(s)
		switch {
		case !s.wanted:
			p.empty(s)
		case in.Workload.Type == model.JobWorkload:
			p.runJob(s)
		default:
			p.settle(s)
		}
	}
	if in.Workload.Type != model.JobWorkload {
		p.advance()
	}
	p.complete()
	return p.out
}

func (p *plan) do(a Action) { p.out.Actions = append(p.out.Actions, a) }

func (p *plan) revisit(at time.Time) {
	if at.After(p.Now) && (p.out.Revisit.IsZero() || at.Before(p.out.Revisit)) {
		p.out.Revisit = at
	}
}

// collect sorts the instances into slots.
func (p *plan) collect() {
	w := p.Workload
	byKey := map[string]*slot{}
	add := func(key string, s *slot) {
		byKey[key] = s
		p.slots = append(p.slots, s)
	}
	global := w.Type == model.GlobalWorkload
	if global && !w.Suspended {
		for _, n := range p.Nodes {
			add(n.ID, &slot{nodeID: n.ID, wanted: true})
		}
	} else if !w.Suspended {
		for n := 1; n <= w.Count; n++ {
			add(strconv.Itoa(n), &slot{number: n, wanted: true})
		}
	}
	for _, i := range p.Instances {
		key := strconv.Itoa(i.Slot)
		if global {
			key = i.NodeID
		}
		s := byKey[key]
		if s == nil {
			s = &slot{number: i.Slot, nodeID: i.NodeID}
			add(key, s)
		}
		switch {
		case i.Status.State.Final():
			s.dead = append(s.dead, i)
		case i.Desired != model.DesiredRun:
			s.going = append(s.going, i)
		case i.RevisionID == w.RevisionID && !p.Leaving[i.NodeID]:
			s.current = append(s.current, i)
		default:
			s.old = append(s.old, i)
		}
	}
	newestFirst := func(a, b *model.Instance) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID))
	}
	for _, s := range p.slots {
		slices.SortFunc(s.dead, newestFirst)
		slices.SortFunc(s.current, newestFirst)
		slices.SortFunc(s.old, newestFirst)
	}
	slices.SortStableFunc(p.slots, func(a, b *slot) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.nodeID, b.nodeID))
	})
}

// begin notices that the desired revision is not the one that the status tells of.
func (p *plan) begin() {
	w, r := p.Workload, &p.out.Rollout
	if r.Revision != w.RevisionID {
		back := r.State == model.RolloutRolling && r.From == w.RevisionID
		if !back {
			*r = model.RolloutStatus{Revision: w.RevisionID, From: p.returnTo(r)}
			if w.Type != model.JobWorkload && (r.From != "" || p.anyOld()) {
				r.State, r.Started = model.RolloutUpdating, p.Now
			}
		} else {
			r.Revision, r.From = w.RevisionID, r.Revision
			r.LastStep = time.Time{}
		}
	}
	p.policy = w.Update
	if r.State == model.RolloutRolling {
		p.policy = w.Rollback
	}
	if p.policy.Monitor == 0 {
		p.policy.Monitor = defaultMonitor
	}
}

// returnTo is the revision that a failing update of the present revision leads back to: the one
// before it, or, when that one was never completed either, the one before that.
func (p *plan) returnTo(before *model.RolloutStatus) string {
	to := p.Workload.PreviousRevisionID
	switch before.State {
	case model.RolloutUpdating, model.RolloutPaused, model.RolloutFailed, model.RolloutRolling:
		to = before.From
	}
	if to == p.Workload.RevisionID {
		return ""
	}
	return to
}

func (p *plan) anyOld() bool {
	return slices.ContainsFunc(p.Instances, func(i *model.Instance) bool {
		return i.RevisionID != p.Workload.RevisionID && i.Desired == model.DesiredRun && !i.Status.State.Final()
	})
}

func (p *plan) moving() bool {
	return p.out.Rollout.State == model.RolloutUpdating || p.out.Rollout.State == model.RolloutRolling
}

// failed says why an instance of the revision being rolled out counts as a failure, "" when it
// does not.
func (p *plan) failed(i *model.Instance) string {
	st := &i.Status
	within := st.ReadySince.IsZero() || p.Now.Sub(st.ReadySince) < p.policy.Monitor || st.Restarts > 0
	switch {
	case i.RevisionID != p.Workload.RevisionID || i.Created.Before(p.out.Rollout.Started):
		return ""
	case st.State == model.InstanceLost:
		return "" // its node's fault
	case st.State == model.InstanceFailed && i.Desired == model.DesiredRun:
		return orText(st.Message, "it failed")
	case st.State == model.InstanceCompleted && i.Desired == model.DesiredRun && within && p.Workload.Template.Restart.Condition == model.RestartAlways:
		return orText(st.Message, "it ended")
	case st.Health == model.HealthUnhealthy && within:
		return "unhealthy: " + st.Message
	case st.Restarts > 0 && !st.Ready, st.State == model.InstanceWaiting:
		return orText(st.Message, "it had to be restarted")
	case i.NodeID != "" && !st.Ready && p.Now.Sub(i.Created) > startDeadline:
		return fmt.Sprintf("not ready after %s", startDeadline)
	}
	return ""
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// judge counts failures of an update under way and acts on too many.
func (p *plan) judge() {
	r := &p.out.Rollout
	if !p.moving() {
		return
	}
	failures, why := 0, ""
	for _, i := range p.Instances {
		if reason := p.failed(i); reason != "" {
			failures++
			why = i.Name + ": " + reason
		}
	}
	r.Failures = max(r.Failures, failures)
	total := 0
	for _, s := range p.slots {
		if s.wanted {
			total++
		}
	}
	if r.Failures == 0 || total == 0 || float64(r.Failures)/float64(total) <= p.policy.MaxFailureRatio {
		return
	}
	told := fmt.Sprintf("%d of %d instances failed (%s)", r.Failures, total, why)
	switch {
	case p.policy.OnFailure == model.ContinueOnFailure:
		r.Message = told
	case r.State == model.RolloutUpdating && p.policy.OnFailure == model.RollBackOnFailure && r.From != "":
		r.State, r.Message, r.Failures = model.RolloutRolling, told, 0
		p.out.RollBackTo = r.From
		r.Started = p.Now
	case r.State == model.RolloutRolling:
		r.State, r.Message, r.Finished = model.RolloutFailed, "rolling back failed too: "+told, p.Now
	default:
		r.State, r.Message, r.Finished = model.RolloutPaused, "paused: "+told, p.Now
	}
}

// trim forgets all but the latest ended instances of a slot.
func (p *plan) trim(s *slot) {
	keep := keptDead
	if !s.wanted {
		keep = 0
	}
	for n, i := range s.dead {
		if n >= keep {
			p.do(Action{Type: Forget, InstanceID: i.ID})
		}
	}
}

// end takes an instance away: out of traffic first, if it is in it.
func (p *plan) end(i *model.Instance, cause string) {
	if i.Status.Ready && i.NodeID != "" {
		p.do(Action{Type: Drain, InstanceID: i.ID, Cause: cause})
		return
	}
	p.do(Action{Type: Stop, InstanceID: i.ID, Cause: cause})
}

func (p *plan) empty(s *slot) {
	cause := "scaled down"
	if p.Workload.Type == model.GlobalWorkload {
		cause = "its node no longer matches"
	}
	if p.Workload.Suspended {
		cause = "the workload is suspended"
	}
	for _, i := range slices.Concat(s.current, s.old) {
		p.end(i, cause)
	}
}

func ready(list []*model.Instance) *model.Instance {
	for _, i := range list {
		if i.Status.Ready {
			return i
		}
	}
	return nil
}

// settle fills a slot and ends what was replaced in it.
func (p *plan) settle(s *slot) {
	// Two of the same revision are one too many: the ready one stays, or else the newest.
	if len(s.current) > 1 {
		keep := s.current[0]
		if r := ready(s.current); r != nil {
			keep = r
		}
		for _, i := range s.current {
			if i != keep {
				p.end(i, "another instance has its place")
			}
		}
		s.current = []*model.Instance{keep}
	}
	switch {
	case len(s.current) > 0 && len(s.old) > 0 && ready(s.current) != nil:
		for _, i := range s.old {
			p.end(i, "replaced by "+s.current[0].Name+" "+model.ShortID(s.current[0].ID))
		}
	case len(s.current) == 0 && len(s.old) == 0:
		p.fill(s)
	}
}

// fill creates an instance in a slot that has none, unless the slot is meant to stay empty.
func (p *plan) fill(s *slot) {
	if p.policy.Order != model.StartFirst && len(s.going) > 0 {
		return // stop first: the old one has not ended yet
	}
	if p.unturned(s) {
		if p.moving() && !p.Held {
			return // advance decides whether its turn has come
		}
		p.refill(s)
		return
	}
	if p.Held {
		return
	}
	replaces := ""
	if len(s.dead) > 0 {
		last := s.dead[0]
		replaces = last.ID
		if last.RevisionID == p.Workload.RevisionID && !p.mayReplace(s) {
			return
		}
	}
	p.create(s, replaces)
}

// unturned reports whether an empty slot was never given to the present revision: what ended in
// it is an instance of another one, and not because the update took it away. While the update
// waits, is held or was paused, such a slot gets what it had: the present revision may be bad.
func (p *plan) unturned(s *slot) bool {
	if len(s.dead) == 0 || len(s.current)+len(s.old) > 0 {
		return false
	}
	last := s.dead[0]
	if last.RevisionID == p.Workload.RevisionID || last.Desired != model.DesiredRun {
		return false
	}
	switch p.out.Rollout.State {
	case model.RolloutUpdating, model.RolloutRolling, model.RolloutPaused, model.RolloutFailed:
		return true
	}
	return p.Held
}

// refill gives an empty slot the revision it had.
func (p *plan) refill(s *slot) {
	if last := s.dead[0]; p.mayReplace(s) {
		p.do(Action{Type: Create, Slot: s.number, NodeID: s.nodeID, RevisionID: last.RevisionID, Replaces: last.ID})
	}
}

func (p *plan) create(s *slot, replaces string) {
	p.do(Action{Type: Create, Slot: s.number, NodeID: s.nodeID, RevisionID: p.Workload.RevisionID, Replaces: replaces})
}

// mayReplace says whether a slot's last instance is to be replaced now. If that is only a matter
// of time, it asks to be asked again.
func (p *plan) mayReplace(s *slot) bool {
	stay, wait := p.stays(s, s.dead[0])
	if stay {
		return false
	}
	if wait > 0 {
		p.revisit(p.Now.Add(wait))
		return false
	}
	return true
}

// stays says whether the end of a slot's last instance is to be respected, or how long to wait
// before it is replaced.
func (p *plan) stays(s *slot, last *model.Instance) (stay bool, wait time.Duration) {
	if last.Desired != model.DesiredRun || last.Status.State == model.InstanceLost {
		return false, 0
	}
	policy := p.Workload.Template.Restart
	switch {
	case policy.Condition == model.RestartNever:
		return true, 0
	case policy.Condition == model.RestartOnFailure && last.Status.State == model.InstanceCompleted:
		return true, 0
	case policy.MaxAttempts > 0 && last.Status.Restarts >= policy.MaxAttempts:
		return true, 0
	}
	pause := time.Second
	if len(s.dead) > 1 && s.dead[1].Status.State == model.InstanceFailed {
		pause = 10 * time.Second
	}
	return false, last.Status.Finished.Add(pause).Sub(p.Now)
}

// runJob runs a slot of a job until it has completed once, or failed for good.
func (p *plan) runJob(s *slot) {
	for _, i := range s.old {
		switch {
		case i.RevisionID == p.Workload.RevisionID:
			return // its node is being drained: a job is left to finish
		case !p.Held:
			p.do(Action{Type: Stop, InstanceID: i.ID, Cause: "a new revision runs instead"})
		}
	}
	if len(s.current) > 0 || len(s.going) > 0 || len(s.old) > 0 || p.Held {
		return
	}
	for _, i := range s.dead {
		if i.RevisionID == p.Workload.RevisionID && i.Status.State != model.InstanceLost {
			return
		}
	}
	p.create(s, "")
}

// advance begins the next batch of an update, and moves work off leaving nodes.
func (p *plan) advance() {
	r := &p.out.Rollout
	busy, waiting := 0, []*slot(nil)
	for _, s := range p.slots {
		if !s.wanted {
			continue
		}
		outdated := slices.ContainsFunc(s.old, func(i *model.Instance) bool { return i.RevisionID != p.Workload.RevisionID })
		switch {
		case len(s.current) > 0 && ready(s.current) == nil && len(s.old)+len(s.going) > 0,
			len(s.current) == 0 && len(s.going) > 0 && len(s.old) == 0:
			busy++
		case len(s.old) > 0 && len(s.current) == 0 && !outdated:
			p.create(s, s.old[0].ID) // its node is being drained
		case len(s.old) > 0 && len(s.current) == 0, p.unturned(s) && len(s.going) == 0:
			waiting = append(waiting, s)
		case len(s.current) > 0 && p.moving() && ready(s.current) == nil:
			busy++
		case p.unproven(s):
			busy++
		}
	}
	if !p.moving() || len(waiting) == 0 || p.Held {
		return
	}
	// Slots that serve nobody anyway come first: updating them takes nothing away.
	slices.SortStableFunc(waiting, func(a, b *slot) int {
		serves := func(s *slot) int {
			if ready(s.old) != nil {
				return 1
			}
			return 0
		}
		return cmp.Compare(serves(a), serves(b))
	})
	begun := 0
	defer func() { // those whose turn has not come and that are empty get what they had
		for _, s := range waiting[begun:] {
			if len(s.old) == 0 {
				p.refill(s)
			}
		}
	}()
	room := p.policy.Parallelism - busy
	if p.policy.Parallelism <= 0 {
		room = len(waiting)
	}
	if room <= 0 {
		return
	}
	if due := r.LastStep.Add(p.policy.Delay); p.policy.Delay > 0 && !r.LastStep.IsZero() && due.After(p.Now) {
		p.revisit(due)
		return
	}
	begun = min(room, len(waiting))
	for _, s := range waiting[:begun] {
		r.LastStep = p.Now
		if len(s.old) == 0 {
			p.create(s, s.dead[0].ID)
			continue
		}
		if p.policy.Order == model.StartFirst && p.Workload.Type != model.GlobalWorkload {
			p.create(s, s.old[0].ID)
			continue
		}
		for _, i := range s.old {
			p.end(i, "a new revision takes its place")
		}
	}
}

// unproven reports whether a slot's new instance is ready only in the sense that it runs: without
// a probe that says more, the next batch waits until it has lasted for the monitor window.
func (p *plan) unproven(s *slot) bool {
	if !p.moving() {
		return false
	}
	i := ready(s.current)
	if i == nil || i.Status.Health == model.HealthHealthy || i.Created.Before(p.out.Rollout.Started) {
		return false
	}
	until := i.Status.ReadySince.Add(p.policy.Monitor)
	if !until.After(p.Now) {
		return false
	}
	p.revisit(until)
	return true
}

// complete ends an update whose instances are all ready and have been for the monitor window.
func (p *plan) complete() {
	r := &p.out.Rollout
	if !p.moving() || p.Held {
		return
	}
	for _, s := range p.slots {
		if !s.wanted {
			continue
		}
		if len(s.current)+len(s.old)+len(s.going) == 0 && len(s.dead) > 0 && s.dead[0].RevisionID == p.Workload.RevisionID {
			if stay, _ := p.stays(s, s.dead[0]); stay {
				continue // it ran and ended, as it should
			}
		}
		i := ready(s.current)
		if i == nil || len(s.old) > 0 {
			p.revisitFailures(s)
			return
		}
		if until := i.Status.ReadySince.Add(p.policy.Monitor); until.After(p.Now) && !i.Created.Before(r.Started) {
			p.revisit(until)
			return
		}
	}
	r.Finished = p.Now
	if r.State == model.RolloutRolling {
		r.State = model.RolloutRolledBack
		r.Message = "rolled back: " + r.Message
		return
	}
	r.State, r.Message = model.RolloutCompleted, ""
}

func (p *plan) revisitFailures(s *slot) {
	for _, i := range s.current {
		if !i.Status.Ready {
			p.revisit(i.Created.Add(startDeadline + time.Second))
		}
	}
}
