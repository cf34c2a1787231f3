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
	// what runs of an earlier one stays and is kept up.
	Held bool
	// Domains are the upgrade domains of nodes, by node ID, where the workload's plan names a key.
	Domains map[string]string
	Now     time.Time
}

// ActionType says what to do.
type ActionType string

// The actions.
const (
	Create ActionType = "create" // a new instance
	Start  ActionType = "start"  // once more, in place
	Hold   ActionType = "hold"   // stopped, and kept to be started again
	Drain  ActionType = "drain"  // no new connections; stopped once all balancers have followed
	Stop   ActionType = "stop"
	// Release lets an instance take part in traffic that was on standby.
	Release ActionType = "release"
	Forget  ActionType = "forget" // delete the record of an instance that has ended
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
	Standby    bool   // Create: no traffic until it is released
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
	// clockSkew is how far in the future a node's time is still believed.
	clockSkew = 10 * time.Second
)

// slot is one place to fill.
type slot struct {
	number  int
	nodeID  string
	counts  bool              // within the count, or on a matching node
	wanted  bool              // counts, and the workload is not suspended
	current []*model.Instance // should run, of the present revision
	old     []*model.Instance // should run, of another revision
	leaving []*model.Instance // should run, of any revision, but elsewhere: its node is being drained
	going   []*model.Instance // drained or stopped, not ended yet
	dead    []*model.Instance // ended, newest first
	filled  bool              // gets an instance now
}

// serves reports whether the slot takes part in traffic.
func (s *slot) serves() bool {
	return ready(s.current) != nil || ready(s.old) != nil || ready(s.leaving) != nil
}

// vacant reports whether nothing runs in the slot that is to go on running.
func (s *slot) vacant() bool { return len(s.current)+len(s.old)+len(s.leaving) == 0 }

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
	case model.SingleWorkload:
		p.createOnce()
		return p.out
	case model.ServiceWorkload, model.GlobalWorkload, model.JobWorkload, model.GlobalJobWorkload, model.StatefulWorkload:
	default:
		p.out.Rollout = model.RolloutStatus{
			State: model.RolloutFailed, Revision: in.Workload.RevisionID,
			Message: fmt.Sprintf("workloads of kind %q are not rolled out; service, global, job, globalJob and stateful are", in.Workload.Type),
		}
		return p.out
	}
	p.collect()
	p.begin()
	p.proceed()
	p.judge()
	if p.out.RollBackTo != "" {
		return p.out // the slots are looked at again once the workload has changed
	}
	job := in.Workload.Type.Job()
	if job {
		p.judgeJob()
	}
	for _, s := range p.slots {
		p.trim(s)
		switch {
		case !s.wanted:
			p.empty(s)
		case job:
			p.runJob(s)
		default:
			p.settle(s)
		}
	}
	switch {
	case job:
	case p.beside() && !p.Held && !p.frozen():
		p.blueGreen()
	default:
		p.advance()
	}
	p.complete()
	return p.out
}

// createOnce creates the instance of a single workload, of which there is one, ever.
func (p *plan) createOnce() {
	if len(p.Instances) == 0 && !p.Held && !p.Workload.Suspended {
		p.do(Action{Type: Create, Slot: 1, RevisionID: p.Workload.RevisionID})
	}
}

func (p *plan) do(a Action) { p.out.Actions = append(p.out.Actions, a) }

func (p *plan) revisit(at time.Time) {
	if at.After(p.Now) && (p.out.Revisit.IsZero() || at.Before(p.out.Revisit)) {
		p.out.Revisit = at
	}
}

// told corrects a time that was read from the clock of an instance's node, where that cannot be
// right: before the instance was made, or well in the future.
func (p *plan) told(i *model.Instance, t time.Time) time.Time {
	if t.Before(i.Created) || t.After(p.Now.Add(clockSkew)) {
		return i.Created
	}
	return t
}

// collect sorts the instances into slots.
func (p *plan) collect() {
	w := p.Workload
	byKey := map[string]*slot{}
	add := func(key string, s *slot) {
		byKey[key] = s
		p.slots = append(p.slots, s)
	}
	global := w.Type.PerNode()
	if global {
		for _, n := range p.Nodes {
			add(n.ID, &slot{nodeID: n.ID, counts: true, wanted: !w.Suspended})
		}
	} else {
		for _, n := range p.numbers() {
			add(strconv.Itoa(n), &slot{number: n, counts: true, wanted: !w.Suspended})
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
		case i.Desired != model.DesiredRun && i.Desired != model.DesiredHold:
			s.going = append(s.going, i)
		case p.Leaving[i.NodeID] || i.Move != nil:
			s.leaving = append(s.leaving, i)
		case i.RevisionID == w.RevisionID:
			s.current = append(s.current, i)
		default:
			s.old = append(s.old, i)
		}
	}
	newestFirst := func(a, b *model.Instance) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID))
	}
	for _, s := range p.slots {
		for _, list := range [][]*model.Instance{s.current, s.old, s.leaving, s.going, s.dead} {
			slices.SortFunc(list, newestFirst)
		}
	}
	slices.SortStableFunc(p.slots, func(a, b *slot) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.nodeID, b.nodeID))
	})
}

// begin notices that the desired revision is not the one that the status tells of.
func (p *plan) begin() {
	w, r := p.Workload, &p.out.Rollout
	if r.Revision != w.RevisionID {
		*r = model.RolloutStatus{Revision: w.RevisionID, From: p.returnTo(r), Proceeded: w.Proceed}
		if !w.Type.Job() && (r.From != "" || p.anyOld()) {
			r.State, r.Started = model.RolloutUpdating, p.Now
		}
	}
	p.policy = w.Update
	if r.State == model.RolloutRolling && w.Rollback != (model.UpdatePolicy{}) {
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
	case model.RolloutUpdating, model.RolloutPaused:
		if before.From != "" {
			to = before.From
		}
	case model.RolloutRolling, model.RolloutFailed:
		to = before.Revision // what was being returned to
	}
	if to == p.Workload.RevisionID {
		return ""
	}
	return to
}

func (p *plan) anyOld() bool {
	return slices.ContainsFunc(p.Instances, func(i *model.Instance) bool {
		return i.RevisionID != p.Workload.RevisionID && i.WantsToRun()
	})
}

func (p *plan) moving() bool {
	return p.out.Rollout.State == model.RolloutUpdating || p.out.Rollout.State == model.RolloutRolling
}

// startFirst reports whether a new instance starts before the old one ends. Those of a global
// workload share a node, and what they hold of it, so that there the old one has to end first; so
// it has in a stateful one, whose slots have one writer each.
func (p *plan) startFirst() bool {
	return p.policy.Order == model.StartFirst && p.Workload.Type != model.GlobalWorkload && !p.stateful()
}

// failed says why an instance of the revision being rolled out counts as a failure, "" when it
// does not.
func (p *plan) failed(i *model.Instance) string {
	st := &i.Status
	switch {
	case i.RevisionID != p.Workload.RevisionID || i.Created.Before(p.out.Rollout.Started):
		return ""
	case i.Desired != model.DesiredRun: // it was told to end
		return ""
	case st.State == model.InstanceLost: // its node's fault
		return ""
	case p.lasted(i):
		return ""
	case st.State == model.InstanceFailed:
		return orText(st.Message, "it failed")
	case st.State == model.InstanceCompleted:
		if p.Workload.Template.Restart.Condition == model.RestartAlways {
			return orText(st.Message, "it ended")
		}
		return ""
	case st.Health == model.HealthUnhealthy:
		return "unhealthy: " + st.Message
	case st.Restarts > 0 && !st.Ready, st.State == model.InstanceWaiting:
		return orText(st.Message, "it had to be restarted")
	case i.NodeID != "" && !st.Ready && p.Now.Sub(i.Created) > startDeadline:
		return fmt.Sprintf("not ready after %s", startDeadline)
	}
	return ""
}

// lasted reports whether an instance was ready for the whole monitor window before whatever
// happened to it since.
func (p *plan) lasted(i *model.Instance) bool {
	st := &i.Status
	switch {
	case st.ReadySince.IsZero():
		return false
	case st.Started.After(st.ReadySince): // the latest run is not ready yet; that was the one before
		return st.Restarts == 1 && st.Started.Sub(st.ReadySince) >= p.policy.Monitor
	case !st.Finished.IsZero():
		return st.Finished.Sub(st.ReadySince) >= p.policy.Monitor
	}
	return p.Now.Sub(p.told(i, st.ReadySince)) >= p.policy.Monitor
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// failing says why a slot that the update has come to fails at the moment, "" when it does not.
func (p *plan) failing(s *slot) string {
	if p.policy.OnFailure == model.WaitOnFailure {
		return ""
	}
	if len(s.current) == 0 && len(s.dead) > 0 && s.vacant() {
		return p.failed(s.dead[0])
	}
	for _, i := range s.current {
		if why := p.failed(i); why != "" {
			return why
		}
	}
	return ""
}

// judge counts the slots that failed in an update under way, and acts on too many.
func (p *plan) judge() {
	r := &p.out.Rollout
	if !p.moving() || p.frozen() {
		return
	}
	total, failures, told := 0, 0, ""
	for _, s := range p.slots {
		if !s.wanted {
			continue
		}
		total++
		for _, i := range slices.Concat(s.current, s.leaving, s.dead) {
			if why := p.failed(i); why != "" {
				failures++
				told = orText(told, i.Name+": "+why)
				break
			}
		}
	}
	r.Failures = max(r.Failures, failures)
	if failures == 0 {
		return
	}
	told = fmt.Sprintf("%d of %d instances failed (%s)", min(r.Failures, total), total, told)
	switch {
	case p.policy.OnFailure == model.ContinueOnFailure, p.policy.OnFailure == model.WaitOnFailure, float64(r.Failures)/float64(total) <= p.policy.MaxFailureRatio:
		r.Message = told
	case r.State == model.RolloutUpdating && p.policy.OnFailure == model.RollBackOnFailure && r.From != "":
		p.out.RollBackTo = r.From
		*r = model.RolloutStatus{State: model.RolloutRolling, Revision: r.From, From: r.Revision, Message: told, Started: p.Now, Proceeded: r.Proceeded}
	case r.State == model.RolloutRolling:
		r.State, r.Message, r.Finished = model.RolloutFailed, "rolling back failed too: "+told, p.Now
	default:
		r.State, r.Message, r.Finished = model.RolloutPaused, "paused: "+told, p.Now
	}
}

// trim forgets all but the latest ended instances of a slot.
func (p *plan) trim(s *slot) {
	keep := 0
	if s.wanted || p.remembers(s) || s.counts && p.Workload.Template.KeepEnded {
		keep = max(keptDead, p.Workload.Job.BackoffLimit+1)
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

func (p *plan) endAll(cause string, lists ...[]*model.Instance) {
	for _, i := range slices.Concat(lists...) {
		p.end(i, cause)
	}
}

func (p *plan) empty(s *slot) {
	if p.Workload.Suspended && p.Workload.Template.KeepEnded && s.counts {
		laidOut := p.Workload.LaidOut && p.Workload.Starts == 0
		if laidOut && !p.Held && s.vacant() && len(s.going)+len(s.dead) == 0 {
			p.do(Action{Type: Create, Slot: s.number, NodeID: s.nodeID, RevisionID: p.Workload.RevisionID})
		}
		for _, i := range slices.Concat(s.current, s.old, s.leaving) {
			switch {
			case i.NodeID == "" && laidOut && i.RevisionID == p.Workload.RevisionID:
			case i.NodeID == "":
				p.end(i, "the workload is suspended")
			case i.Desired != model.DesiredHold:
				p.do(Action{Type: Hold, InstanceID: i.ID, Cause: "the workload is suspended"})
			}
		}
		return
	}
	if p.ordered() && p.followed(s) {
		return // the last one ends first
	}
	cause := "scaled down"
	if p.Workload.Type.PerNode() {
		cause = "its node no longer matches"
	}
	if p.Workload.Suspended {
		cause = "the workload is suspended"
	}
	p.endAll(cause, s.current, s.old, s.leaving)
}

// ready returns the first that serves as soon as it may: ready, and not on standby.
func ready(list []*model.Instance) *model.Instance {
	for _, i := range list {
		if i.Status.Ready && !i.Standby {
			return i
		}
	}
	return nil
}

// single ends all but one of the instances in one role: a ready one stays, or else one of the
// revision that a failing update leads back to, or else the newest.
func (p *plan) single(list []*model.Instance) []*model.Instance {
	if len(list) < 2 {
		return list
	}
	keep := ready(list)
	for _, i := range list {
		if keep == nil && i.RevisionID == p.out.Rollout.From {
			keep = i
		}
	}
	if keep == nil {
		keep = list[0]
	}
	for _, i := range list {
		if i != keep {
			p.end(i, "another instance has its place")
		}
	}
	return []*model.Instance{keep}
}

// settle fills a slot and ends what was replaced in it.
func (p *plan) settle(s *slot) {
	s.current, s.old, s.leaving = p.single(s.current), p.single(s.old), p.single(s.leaving)
	for _, i := range slices.Concat(s.current, s.old, s.leaving) {
		if i.Desired == model.DesiredHold || i.Starts < p.Workload.Starts {
			p.do(Action{Type: Start, InstanceID: i.ID})
		}
	}
	cause := func(by *model.Instance) string { return "replaced by " + by.Name + " " + model.ShortID(by.ID) }
	switch {
	case ready(s.current) != nil:
		p.endAll(cause(s.current[0]), s.old, s.leaving)
		s.old, s.leaving = nil, nil
	case ready(s.old) != nil:
		p.endAll(cause(s.old[0]), s.leaving)
		s.leaving = nil
	case s.vacant():
		p.fill(s)
	case !p.beside():
		p.leaveStandby(s)
	}
}

// fill creates an instance in a slot that has none, unless the slot is meant to stay empty.
func (p *plan) fill(s *slot) {
	if !p.startFirst() && len(s.going) > 0 {
		return // stop first: the old one has not ended yet
	}
	if p.ordered() && p.awaitsOthers(s) {
		return
	}
	if revision := p.keeps(s); revision != "" {
		if p.moving() && !p.Held {
			return // advance decides whether its turn has come
		}
		p.refill(s, revision)
		return
	}
	if p.Held {
		return
	}
	if len(s.dead) > 0 && s.dead[0].RevisionID == p.Workload.RevisionID && !p.mayReplace(s) {
		return
	}
	p.create(s, p.Workload.RevisionID, s.dead)
}

// keeps returns the revision that a vacant slot gets while the present one is not to be spread,
// as it waits or failed, or its turn has not come: the one before, as far as is known a good
// one. It returns "" for a slot that gets the present revision.
func (p *plan) keeps(s *slot) string {
	r := &p.out.Rollout
	stalled := p.Held || p.frozen() || r.State == model.RolloutPaused
	switch {
	case !stalled && r.State != model.RolloutUpdating:
		return ""
	case len(s.dead) == 0:
		if stalled {
			return r.From // a slot that was added meanwhile
		}
		return ""
	}
	last := s.dead[0]
	switch {
	case last.RevisionID == p.Workload.RevisionID: // the update has come to it
		return ""
	case !stalled && last.Desired != model.DesiredRun: // the update itself took it away
		return ""
	}
	return orText(r.From, last.RevisionID)
}

// refill gives a vacant slot an earlier revision.
func (p *plan) refill(s *slot, revision string) {
	if len(s.dead) == 0 || p.mayReplace(s) {
		p.create(s, revision, s.dead)
	}
}

// create makes an instance that takes the place of the first of those that were there.
func (p *plan) create(s *slot, revision string, were ...[]*model.Instance) {
	if p.stateful() && (!s.vacant() || len(s.going) > 0) {
		return // never two in one slot
	}
	replaces := ""
	if all := slices.Concat(were...); len(all) > 0 {
		replaces = all[0].ID
	}
	s.filled = true
	p.do(Action{Type: Create, Slot: s.number, NodeID: s.nodeID, RevisionID: revision, Replaces: replaces})
}

// mayReplace says whether a slot's last instance is to be replaced now. If that is only a matter
// of time, it asks to be asked again.
func (p *plan) mayReplace(s *slot) bool {
	stay, wait := p.stays(s)
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
func (p *plan) stays(s *slot) (stay bool, wait time.Duration) {
	last := s.dead[0]
	if last.Desired != model.DesiredRun || last.Status.State == model.InstanceLost || last.Starts < p.Workload.Starts {
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
	return false, p.told(last, last.Status.Finished).Add(pause).Sub(p.Now)
}

// advance begins the next batch of an update, and moves work off leaving nodes.
func (p *plan) advance() {
	busy, unplaced := 0, 0
	var waiting, leaving []*slot
	for _, s := range p.slots {
		if !s.wanted {
			continue
		}
		switch {
		case s.filled, s.vacant() && len(s.going) > 0:
			busy++
		case len(s.current) > 0:
			// One that fails is not waited for: judge has found that so many may.
			if p.failing(s) == "" && (ready(s.current) == nil || p.unproven(s)) {
				busy++
				if s.current[0].NodeID == "" {
					unplaced++
				}
			}
		case len(s.old) == 0 && len(s.leaving) > 0 && s.leaving[0].RevisionID == p.Workload.RevisionID:
			if !s.serves() {
				busy++
			}
			leaving = append(leaving, s)
		case !s.vacant(), p.keeps(s) != "":
			waiting = append(waiting, s)
		case len(s.dead) > 0 && p.failing(s) == "":
			if stay, _ := p.stays(s); !stay {
				busy++
			}
		}
	}
	begun := p.batch(busy, waiting)
	for _, s := range waiting[begun:] { // their turn has not come
		switch {
		case s.vacant() && p.ordered() && p.awaitsOthers(s):
		case s.vacant():
			p.refill(s, p.keeps(s))
		case len(s.old) == 0:
			leaving = append(leaving, s)
		}
	}
	if p.stateful() || p.fixed() {
		p.vacate(leaving, busy-unplaced+begun)
		return
	}
	for _, s := range leaving {
		p.move(s)
	}
}

// move starts in another place what runs on a leaving node; it ends there once that is ready.
func (p *plan) move(s *slot) {
	revision := s.leaving[0].RevisionID
	if p.out.Rollout.State == model.RolloutRolling {
		revision = p.Workload.RevisionID
	}
	p.create(s, revision, s.leaving)
}

// batch begins the update of as many of the waiting slots as it may, sorts them to the front and
// returns their number.
func (p *plan) batch(busy int, waiting []*slot) int {
	r := &p.out.Rollout
	if !p.moving() || p.Held || p.frozen() {
		return 0
	}
	// Slots that serve nobody anyway come first: updating them takes nothing away. Next are those
	// that have to move in any case.
	rank := func(s *slot) int {
		switch {
		case !s.serves():
			return 0
		case len(s.old) == 0:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(waiting, func(a, b *slot) int {
		last := 0
		if p.stateful() { // those that others may follow come last
			last = cmp.Compare(b.number, a.number)
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), last)
	})
	room := min(len(p.domain(busy, waiting)), p.canary(busy, len(waiting)))
	if p.mixed() {
		room = min(room, p.policy.MaxSurge+p.policy.MaxUnavailable-busy)
	} else if n := p.atOnce(); n > 0 {
		room = min(room, n-busy)
	}
	if room <= 0 {
		return 0
	}
	if due := r.LastStep.Add(p.policy.Delay); p.policy.Delay > 0 && !r.LastStep.IsZero() && due.After(p.Now) {
		p.revisit(due)
		return 0
	}
	r.LastStep = p.Now
	if p.mixed() {
		return p.mix(waiting[:room])
	}
	for _, s := range waiting[:room] {
		if s.vacant() || p.startFirst() {
			p.create(s, p.Workload.RevisionID, s.old, s.leaving, s.dead)
			continue
		}
		p.endAll("a new revision takes its place", s.old, s.leaving)
	}
	return room
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
	until := p.told(i, i.Status.ReadySince).Add(p.policy.Monitor)
	if !until.After(p.Now) {
		return false
	}
	p.revisit(until)
	return true
}

// complete ends an update whose instances are all ready and have been for the monitor window.
// Those that fail, within what the policy allows, do not hold it up.
func (p *plan) complete() {
	r := &p.out.Rollout
	if !p.moving() || p.Held || p.beside() {
		return
	}
	done, failing := true, false
	for _, s := range p.slots {
		if s.wanted {
			ok, fails := p.completed(s)
			done, failing = done && ok, failing || fails
		}
	}
	if !done {
		return
	}
	r.Finished = p.Now
	switch {
	case r.State == model.RolloutRolling:
		r.State = model.RolloutRolledBack
		r.Message = "rolled back: " + r.Message
	case failing:
		r.State = model.RolloutCompleted
	default:
		r.State, r.Message = model.RolloutCompleted, ""
	}
}

// completed reports whether the update is through with a slot, and whether the slot fails.
func (p *plan) completed(s *slot) (done, failing bool) {
	for _, i := range s.current {
		if !i.Status.Ready && i.NodeID != "" {
			p.revisit(i.Created.Add(startDeadline + time.Second))
		}
	}
	switch {
	case s.filled || len(s.old)+len(s.leaving) > 0:
		return false, false
	case p.failing(s) != "":
		return true, true
	case s.vacant() && len(s.going) == 0 && len(s.dead) > 0 && s.dead[0].RevisionID == p.Workload.RevisionID:
		stay, _ := p.stays(s)
		return stay, false // it ran and ended, as it should
	}
	i := ready(s.current)
	if i == nil {
		return false, false
	}
	if until := p.told(i, i.Status.ReadySince).Add(p.policy.Monitor); until.After(p.Now) && !i.Created.Before(p.out.Rollout.Started) {
		p.revisit(until)
		return false, false
	}
	return true, false
}
