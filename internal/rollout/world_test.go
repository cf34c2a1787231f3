package rollout_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/rollout"
)

// conduct is how instances of a revision do.
type conduct string

const (
	probed conduct = "probed" // becomes healthy
	plain  conduct = "plain"  // runs, nothing probes
	broken conduct = "broken" // never becomes ready
	brief  conduct = "brief"  // gets ready and fails soon after
)

// world plays everything around a workload: it does what rollout.Next says, and what instances
// and nodes do by themselves, one small event at a time.
type world struct {
	*testing.T
	rnd       *rand.Rand
	now       time.Time
	w         *model.Workload
	instances map[string]*model.Instance
	nodes     []*model.Node
	conducts  map[string]conduct
	held      bool
	serial    int
	created   map[int]int // by slot
	story     []string
}

var dawn = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newWorld(t *testing.T, rnd *rand.Rand, kind model.WorkloadKind, count int) *world {
	w := &world{
		T: t, rnd: rnd, now: dawn, instances: map[string]*model.Instance{}, conducts: map[string]conduct{}, created: map[int]int{},
		w: &model.Workload{Meta: model.Meta{ID: "w", Name: "web"}, Type: kind, Count: count},
	}
	w.w.Template.Restart.Condition = model.RestartAlways
	for n := range 4 {
		id := fmt.Sprint("n", n)
		w.nodes = append(w.nodes, &model.Node{Meta: model.Meta{ID: id, Name: id}, Status: model.NodeStatus{State: model.NodeReady}})
	}
	return w
}

func (w *world) tell(format string, args ...any) {
	w.story = append(w.story, w.now.Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	w.Helper()
	w.Fatalf("%s\nwhat happened:\n%s\ninstances:\n%s", fmt.Sprintf(format, args...), strings.Join(w.story[max(0, len(w.story)-60):], "\n"), w.picture())
}

func (w *world) picture() string {
	var b strings.Builder
	for _, i := range w.list() {
		fmt.Fprintf(&b, "  %s slot %d %s on %q, %s: %s %s ready=%v restarts=%d\n", i.ID, i.Slot, i.RevisionID, i.NodeID, i.Desired, i.Status.State, i.Status.Health, i.Status.Ready, i.Status.Restarts)
	}
	return b.String()
}

func (w *world) list() []*model.Instance {
	return slices.SortedFunc(maps.Values(w.instances), func(a, b *model.Instance) int { return cmp.Compare(a.ID, b.ID) })
}

// deploy makes a new revision the desired one.
func (w *world) deploy(c conduct) {
	w.serial++
	id := fmt.Sprintf("w.%c", 'A'+len(w.conducts))
	w.conducts[id] = c
	w.w.PreviousRevisionID, w.w.RevisionID = w.w.RevisionID, id
	w.tell("deploy %s, %s", id, c)
}

func (w *world) goTo(revision string) {
	w.w.PreviousRevisionID, w.w.RevisionID = w.w.RevisionID, revision
	w.tell("go to %s", revision)
}

func (w *world) leaving() map[string]bool {
	out := map[string]bool{}
	for _, n := range w.nodes {
		if n.Availability == model.Draining {
			out[n.ID] = true
		}
	}
	return out
}

func (w *world) input() rollout.Input {
	in := rollout.Input{Workload: w.w.Clone(), Leaving: w.leaving(), Held: w.held, Now: w.now, Domains: map[string]string{"n0": "a", "n1": "b", "n2": "a", "n3": "b"}}
	for _, i := range w.list() {
		in.Instances = append(in.Instances, i.Clone())
	}
	if w.w.Type == model.GlobalWorkload {
		for _, n := range w.nodes {
			if n.Schedulable() {
				in.Nodes = append(in.Nodes, n)
			}
		}
	}
	return in
}

// slotOf names the slot of an instance.
func (w *world) slotOf(i *model.Instance) string {
	if w.w.Type == model.GlobalWorkload {
		return i.NodeID
	}
	return fmt.Sprint(i.Slot)
}

func (w *world) wanted() map[string]bool {
	out := map[string]bool{}
	switch {
	case w.w.Suspended:
	case w.w.Type == model.GlobalWorkload:
		for _, n := range w.nodes {
			if n.Schedulable() {
				out[n.ID] = true
			}
		}
	default:
		for n := range w.w.Count {
			out[fmt.Sprint(n+1)] = true
		}
	}
	return out
}

// serving returns the wanted slots that take part in traffic.
func (w *world) serving() map[string]bool {
	out, wanted := map[string]bool{}, w.wanted()
	for _, i := range w.instances {
		if i.Serving() && wanted[w.slotOf(i)] {
			out[w.slotOf(i)] = true
		}
	}
	return out
}

// next takes the next step, and checks what must hold of every step.
func (w *world) next() rollout.Output {
	w.Helper()
	in := w.input()
	out := rollout.Next(in)
	again := w.input()
	w.rnd.Shuffle(len(again.Instances), func(a, b int) {
		again.Instances[a], again.Instances[b] = again.Instances[b], again.Instances[a]
	})
	if other := rollout.Next(again); !reflect.DeepEqual(out, other) {
		w.fail("the same input led to\n%+v\nand to\n%+v", out, other)
	}
	if !reflect.DeepEqual(in, w.input()) {
		w.fail("the input was changed")
	}
	if !out.Revisit.IsZero() && !out.Revisit.After(w.now) {
		w.fail("asks to be asked again at %v, which is over", out.Revisit)
	}
	before := w.serving()
	w.apply(out)
	w.checkFloor(before, out)
	w.checkSlots()
	w.checkOrder(in, out)
	return out
}

func (w *world) apply(out rollout.Output) {
	w.Helper()
	if out.Rollout != w.w.Status.Rollout {
		w.tell("rollout: %s of %s from %s: %s", out.Rollout.State, out.Rollout.Revision, out.Rollout.From, out.Rollout.Message)
	}
	w.w.Status.Rollout = out.Rollout
	if out.RollBackTo != "" {
		w.goTo(out.RollBackTo)
	}
	for _, a := range out.Actions {
		w.tell("%s %s slot %d %s %s %s", a.Type, a.InstanceID, a.Slot, a.NodeID, a.RevisionID, a.Cause)
		i := w.instances[a.InstanceID]
		if a.Type != rollout.Create && i == nil {
			w.fail("%s of an instance that does not exist", a.Type)
		}
		switch a.Type {
		case rollout.Create:
			if w.held && a.RevisionID == w.w.RevisionID {
				w.fail("an instance of a revision that waits is created")
			}
			w.serial++
			w.created[a.Slot]++
			id := fmt.Sprintf("i%04d", w.serial)
			w.instances[id] = &model.Instance{
				Meta: model.Meta{ID: id, Name: fmt.Sprintf("web.%d", a.Slot), Created: w.now}, WorkloadID: "w", Slot: a.Slot,
				RevisionID: a.RevisionID, NodeID: a.NodeID, Replaces: a.Replaces, Desired: model.DesiredRun, Standby: a.Standby,
				Status: model.InstanceStatus{State: model.InstancePending},
			}
		case rollout.Drain, rollout.Stop:
			if i.Desired != model.DesiredRun || i.Status.State.Final() {
				w.fail("%s of an instance that is %s and %s", a.Type, i.Desired, i.Status.State)
			}
			if a.Type == rollout.Stop && i.Serving() && w.w.Type != model.JobWorkload {
				w.fail("%s serves and is stopped without being drained", i.ID)
			}
			i.Desired = model.DesiredStop
			if a.Type == rollout.Drain {
				i.Desired = model.DesiredDrain
			}
			if i.NodeID == "" {
				delete(w.instances, i.ID)
			}
		case rollout.Release:
			if !i.Standby || i.Desired != model.DesiredRun {
				w.fail("%s, which is %s, is released", i.ID, i.Desired)
			}
			i.Standby = false
		case rollout.Forget:
			if !i.Status.State.Final() {
				w.fail("an instance that is %s is forgotten", i.Status.State)
			}
			delete(w.instances, i.ID)
		}
	}
}

// checkFloor holds a step against the availability that its policy promises.
func (w *world) checkFloor(before map[string]bool, out rollout.Output) {
	w.Helper()
	after := w.serving()
	var lost []string
	for s := range before {
		if !after[s] {
			lost = append(lost, s)
		}
	}
	if len(lost) == 0 {
		return
	}
	policy := w.w.Update
	if out.Rollout.State == model.RolloutRolling && w.w.Rollback != (model.UpdatePolicy{}) {
		policy = w.w.Rollback
	}
	most := policy.Parallelism
	if w.w.Type == model.StatefulWorkload {
		if len(w.leaving()) > 0 {
			return // nothing starts in another place before it has ended in its own
		}
		if w.w.Start != model.Parallel {
			most = 1
		}
	} else if mixed := policy.MaxSurge+policy.MaxUnavailable > 0; mixed {
		if most = policy.MaxUnavailable; most == 0 {
			w.fail("slots %v were taken out of traffic, though none may be", lost)
		}
	} else if policy.Order == model.StartFirst && w.w.Type != model.GlobalWorkload {
		w.fail("slots %v were taken out of traffic, though new instances are to start first", lost)
	}
	if out.Rollout.State != model.RolloutUpdating && out.Rollout.State != model.RolloutRolling {
		w.fail("slots %v were taken out of traffic without an update (%s)", lost, out.Rollout.State)
	}
	if most == 0 {
		return
	}
	tolerant := policy.MaxFailureRatio > 0 || policy.OnFailure == model.ContinueOnFailure
	down := 0
	for s := range w.wanted() {
		if !after[s] && !(tolerant && w.introuble(s)) && !w.inline(s) {
			down++
		}
	}
	if down > most {
		w.fail("%d slots do not serve now that %v were taken out of traffic; %d may at a time", down, lost, most)
	}
}

// introuble reports whether the newest instance of a slot is of the present revision and does
// badly.
func (w *world) introuble(slot string) bool {
	var newest *model.Instance
	for _, i := range w.list() {
		if w.slotOf(i) == slot {
			newest = i
		}
	}
	if newest == nil || newest.RevisionID != w.w.RevisionID {
		return false
	}
	st := &newest.Status
	return st.State.Final() || st.State == model.InstanceWaiting || st.Health == model.HealthUnhealthy || st.Restarts > 0
}

// checkSlots makes sure that slots hold no more than an instance, its replacement, and one that
// has to leave its node.
func (w *world) checkSlots() {
	w.Helper()
	stay, leave, leaving := map[string]int{}, map[string]int{}, w.leaving()
	for _, i := range w.instances {
		if !i.WantsToRun() {
			continue
		}
		if leaving[i.NodeID] {
			leave[w.slotOf(i)]++
		} else {
			stay[w.slotOf(i)]++
		}
	}
	for s, n := range stay {
		if n > 2 || leave[s] > 1 {
			w.fail("slot %s holds %d instances that should run, and %d on leaving nodes", s, n, leave[s])
		}
	}
}

// unready takes an instance out of the ready state.
func unready(i *model.Instance, state model.InstanceState) {
	i.Status.State, i.Status.Ready, i.Status.Health = state, false, model.HealthNone
}

// proceed lets an instance take its next step on its node. It reports whether there was one.
func (w *world) proceed(i *model.Instance) bool {
	st := &i.Status
	switch {
	case st.State.Final():
		return false
	case i.NodeID == "":
		var up []*model.Node
		for _, n := range w.nodes {
			if n.Schedulable() {
				up = append(up, n)
			}
		}
		if len(up) == 0 {
			return false
		}
		i.NodeID = up[w.rnd.IntN(len(up))].ID
	case w.node(i.NodeID).Status.State != model.NodeReady:
		return false
	case i.Desired == model.DesiredDrain:
		i.Desired = model.DesiredStop
	case i.Desired == model.DesiredStop:
		unready(i, model.InstanceCompleted)
		st.Finished = w.now
	case st.State == model.InstancePending || st.State == model.InstanceWaiting:
		if st.State == model.InstanceWaiting {
			st.Restarts++
		}
		st.State, st.Started, st.Finished = model.InstanceRunning, w.now, time.Time{}
		switch w.conducts[i.RevisionID] {
		case probed:
			st.Health = model.HealthStarting
		case plain, brief:
			st.Ready, st.ReadySince = true, w.now
		}
	case st.Health == model.HealthStarting:
		st.Health, st.Ready, st.ReadySince = model.HealthHealthy, true, w.now
	case w.conducts[i.RevisionID] == broken, w.conducts[i.RevisionID] == brief && w.now.Sub(st.ReadySince) < 3*time.Second:
		w.crash(i)
	default:
		return false
	}
	w.tell("%s is now %s, %s %s", i.ID, i.Desired, st.State, st.Health)
	return true
}

func (w *world) crash(i *model.Instance) {
	i.Status.Finished = w.now
	state := model.InstanceWaiting
	if i.Status.Restarts >= 2 || w.rnd.IntN(3) == 0 {
		state = model.InstanceFailed
	}
	unready(i, state)
	w.tell("%s crashes, now %s", i.ID, state)
}

func (w *world) node(id string) *model.Node {
	for _, n := range w.nodes {
		if n.ID == id {
			return n
		}
	}
	panic(id)
}

func (w *world) lose(n *model.Node) {
	n.Status.State = model.NodeDown
	w.tell("node %s is lost", n.ID)
	for _, i := range w.instances {
		if i.NodeID == n.ID && !i.Status.State.Final() {
			unready(i, model.InstanceLost)
			i.Status.Finished = w.now
		}
	}
}

// chaos is one random event.
func (w *world) chaos() {
	list := w.list()
	w.now = w.now.Add(time.Duration(w.rnd.IntN(1500)) * time.Millisecond)
	for range 1 + w.rnd.IntN(4) {
		if len(list) > 0 {
			w.proceed(list[w.rnd.IntN(len(list))])
		}
	}
	n := w.nodes[w.rnd.IntN(len(w.nodes))]
	switch w.rnd.IntN(24) {
	case 0:
		if len(list) > 0 {
			if i := list[w.rnd.IntN(len(list))]; i.Status.State == model.InstanceRunning {
				w.crash(i)
			}
		}
	case 1:
		w.lose(n)
	case 2, 3:
		n.Status.State = model.NodeReady
	case 4:
		n.Availability = []model.Availability{model.Draining, model.Active, model.Active}[w.rnd.IntN(3)]
		w.tell("node %s is to be %s", n.ID, n.Availability)
	case 5:
		if w.w.Type != model.GlobalWorkload {
			w.w.Count = max(0, w.w.Count+w.rnd.IntN(5)-2)
			w.tell("count is now %d", w.w.Count)
		}
	case 6:
		if len(w.conducts) < 20 {
			w.deploy([]conduct{probed, plain, broken, brief}[w.rnd.IntN(4)])
			w.held = w.rnd.IntN(3) == 0
		}
	case 7:
		if w.w.PreviousRevisionID != "" && w.rnd.IntN(2) == 0 {
			w.goTo(w.w.PreviousRevisionID)
			w.held = false
		}
	case 8, 9:
		w.held = false
	case 10:
		if w.rnd.IntN(10) == 0 {
			w.w.Suspended = !w.w.Suspended
			w.tell("suspended: %v", w.w.Suspended)
		}
	case 11:
		if w.rnd.IntN(4) == 0 {
			w.w.Update = randomPolicy(w.rnd)
			w.tell("update policy is now %+v", w.w.Update)
		}
	case 12:
		w.w.Paused = w.rnd.IntN(3) == 0
		w.tell("paused: %v", w.w.Paused)
	case 13:
		w.w.Promoted = model.Promotion{RevisionID: w.w.RevisionID, Steps: w.w.Status.Rollout.Step + 1}
		w.w.Proceed++
		w.tell("promoted and resumed")
	case 14:
		if w.rnd.IntN(4) == 0 {
			w.w.Plan = randomPlan(w.rnd)
			w.tell("plan is now %+v", w.w.Plan)
		}
	}
}

// settle lets everything take its course, without further faults, until nothing happens any more.
func (w *world) settle() {
	w.Helper()
	for range 2000 {
		out := w.next()
		moved := len(out.Actions) > 0 || out.RollBackTo != ""
		for _, i := range w.list() {
			moved = w.proceed(i) || moved
		}
		switch {
		case moved:
			w.now = w.now.Add(10 * time.Millisecond)
		case !out.Revisit.IsZero():
			w.now = out.Revisit
		default:
			w.checkSettled()
			return
		}
	}
	w.fail("it does not come to rest")
}

func (w *world) checkSettled() {
	w.Helper()
	for _, later := range []time.Duration{0, time.Second, time.Hour} {
		in := w.input()
		in.Now = in.Now.Add(later)
		if out := rollout.Next(in); len(out.Actions) > 0 || out.Rollout != in.Workload.Status.Rollout || !out.Revisit.IsZero() || out.RollBackTo != "" {
			w.fail("%s after it came to rest: %+v", later, out)
		}
	}
}

// checkComplete makes sure that exactly what should run does, and of one revision.
func (w *world) checkComplete(revision string) {
	w.Helper()
	left := w.wanted()
	for _, i := range w.list() {
		if i.Status.State.Final() {
			continue
		}
		s := w.slotOf(i)
		if !i.Serving() || i.RevisionID != revision || !left[s] {
			w.fail("%s should not be there", i.ID)
		}
		delete(left, s)
	}
	if len(left) > 0 {
		w.fail("slots %v are empty", left)
	}
}

func randomPlan(rnd *rand.Rand) (plan model.RolloutPlan) {
	switch rnd.IntN(5) {
	case 0:
		plan.Canary = []model.CanaryStep{{Percent: 20, Hold: 30 * time.Second}, {Percent: 60, Manual: rnd.IntN(2) == 0}}
	case 1:
		plan.BlueGreen, plan.Manual = true, rnd.IntN(2) == 0
	case 2:
		plan.Domains = "node.labels.ud"
	}
	return plan
}

func randomPolicy(rnd *rand.Rand) model.UpdatePolicy {
	surge, unavailable := 0, 0
	if rnd.IntN(4) == 0 {
		surge, unavailable = rnd.IntN(3), rnd.IntN(3)
	}
	return model.UpdatePolicy{
		MaxSurge: surge, MaxUnavailable: unavailable,
		Parallelism:     rnd.IntN(4),
		Order:           []model.UpdateOrder{"", model.StopFirst, model.StartFirst}[rnd.IntN(3)],
		OnFailure:       []model.FailureAction{"", model.PauseOnFailure, model.ContinueOnFailure, model.RollBackOnFailure, model.RollBackOnFailure}[rnd.IntN(5)],
		MaxFailureRatio: []float64{0, 0, 0, 0.3}[rnd.IntN(4)],
		Delay:           []time.Duration{0, 0, 7 * time.Second}[rnd.IntN(3)],
		Monitor:         []time.Duration{0, time.Second, 20 * time.Second}[rnd.IntN(3)],
	}
}

// TestWhateverHappens lets services and global workloads live through random faults and changes,
// and holds every step against the promises: the availability floor, equal output for equal
// input, and rest in the desired state once faults end.
func TestWhateverHappens(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			kind := []model.WorkloadKind{model.ServiceWorkload, model.ServiceWorkload, model.GlobalWorkload, model.StatefulWorkload}[rnd.IntN(4)]
			w := newWorld(t, rnd, kind, 1+rnd.IntN(6))
			if kind == model.StatefulWorkload {
				w.w.Start = []model.StartOrder{"", model.Ordered, model.Parallel}[rnd.IntN(3)]
			}
			w.w.Update = randomPolicy(rnd)
			if rnd.IntN(2) == 0 {
				w.w.Rollback = randomPolicy(rnd)
			}
			if w.w.Plan = randomPlan(rnd); kind == model.GlobalWorkload {
				w.w.Update.MaxSurge, w.w.Rollback.MaxSurge = 0, 0
			}
			w.tell("%s, update %+v, rollback %+v, plan %+v", kind, w.w.Update, w.w.Rollback, w.w.Plan)
			w.deploy(probed)
			for range 50 + rnd.IntN(250) {
				w.chaos()
				if rnd.IntN(3) > 0 {
					w.next()
				}
			}
			w.tell("the faults end")
			for _, n := range w.nodes {
				n.Status.State = model.NodeReady
			}
			w.nodes[0].Availability, w.held, w.w.Suspended = model.Active, false, false
			w.deploy([]conduct{probed, plain}[rnd.IntN(2)])
			w.w.Paused, w.w.Promoted = false, model.Promotion{RevisionID: w.w.RevisionID, Steps: 9}
			w.settle()
			w.checkComplete(w.w.RevisionID)
			if s := w.w.Status.Rollout.State; s != model.RolloutCompleted && s != model.RolloutNone {
				w.fail("the last update is %q", s)
			}
		})
	}
}

// TestABadRevisionGoesAsItCame rolls out a revision that never works: the old one has to serve
// at the end, and with start first all the time.
func TestABadRevisionGoesAsItCame(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 11))
			w := newWorld(t, rnd, model.ServiceWorkload, 1+rnd.IntN(6))
			w.w.Update = model.UpdatePolicy{
				Parallelism: rnd.IntN(4), OnFailure: model.RollBackOnFailure, Order: []model.UpdateOrder{model.StopFirst, model.StartFirst}[rnd.IntN(2)],
				MaxFailureRatio: []float64{0, 0.4}[rnd.IntN(2)],
			}
			w.deploy([]conduct{probed, plain}[rnd.IntN(2)])
			good := w.w.RevisionID
			w.settle()
			w.checkComplete(good)
			w.deploy(broken)
			floor := w.w.Count
			if w.w.Update.Order == model.StopFirst {
				floor -= w.w.Update.Parallelism + int(0.4*float64(w.w.Count))
				if w.w.Update.Parallelism == 0 {
					floor = 0
				}
			}
			for range 5000 {
				out := w.next()
				if n := len(w.serving()); n < floor {
					w.fail("only %d of %d slots serve", n, w.w.Count)
				}
				moved := len(out.Actions) > 0
				list := w.list()
				for range rnd.IntN(6) {
					moved = w.proceed(list[rnd.IntN(len(list))]) || moved
				}
				w.now = w.now.Add(time.Duration(rnd.IntN(100)) * time.Millisecond)
				if w.w.Status.Rollout.State == model.RolloutRolledBack {
					break
				}
				for _, i := range list {
					moved = moved || w.proceed(i)
				}
				if !moved && !out.Revisit.IsZero() {
					w.now = out.Revisit
				}
			}
			if w.w.RevisionID != good {
				// With so many failures allowed, the update may have been let through only if
				// too few slots failed, which a revision that never works rules out.
				w.fail("the workload is at %s", w.w.RevisionID)
			}
			w.settle()
			w.checkComplete(good)
			if s := w.w.Status.Rollout.State; s != model.RolloutRolledBack {
				w.fail("the update is %q", s)
			}
		})
	}
}

// TestJobsRunOnceThrough lets jobs live through lost nodes and suspensions: every slot completes,
// never runs twice at a time, and starts anew only for reasons outside of itself.
func TestJobsRunOnceThrough(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 13))
			w := newWorld(t, rnd, model.JobWorkload, 1+rnd.IntN(5))
			w.w.Template.Restart.Condition = model.RestartOnFailure
			w.deploy(plain)
			outcomes := map[int]int{}
			excuses := 0
			end := func(i *model.Instance) {
				if i.Status.State == model.InstanceRunning && i.Desired == model.DesiredRun {
					unready(i, []model.InstanceState{model.InstanceCompleted, model.InstanceCompleted, model.InstanceFailed}[rnd.IntN(3)])
					i.Status.Finished = w.now
					outcomes[i.Slot]++
					w.tell("%s ends by itself: %s", i.ID, i.Status.State)
				}
			}
			for step := range 300 {
				w.now = w.now.Add(time.Duration(rnd.IntN(1000)) * time.Millisecond)
				chaos := step < 200
				n := w.nodes[rnd.IntN(len(w.nodes))]
				switch event := rnd.IntN(30); {
				case chaos && event == 0:
					for _, i := range w.instances {
						if i.NodeID == n.ID && !i.Status.State.Final() {
							excuses++
						}
					}
					w.lose(n)
				case !chaos || event == 1:
					n.Status.State = model.NodeReady
				case event == 2:
					n.Availability = []model.Availability{model.Draining, model.Active}[rnd.IntN(2)]
				case event == 3 && !w.w.Suspended:
					w.w.Suspended = true
					for _, i := range w.instances {
						if i.WantsToRun() {
							excuses++
						}
					}
				case event > 25:
					w.w.Suspended = false
				}
				if !chaos {
					w.w.Suspended = false
					w.nodes[0].Availability = model.Active
				}
				list := w.list()
				for range 3 {
					if len(list) > 0 {
						i := list[rnd.IntN(len(list))]
						w.proceed(i)
						if rnd.IntN(3) == 0 {
							end(i)
						}
					}
				}
				w.next()
				running := map[int]int{}
				for _, i := range w.instances {
					if i.WantsToRun() {
						if running[i.Slot]++; running[i.Slot] > 1 {
							w.fail("slot %d runs twice", i.Slot)
						}
					}
				}
			}
			for range 20 {
				for _, i := range w.list() {
					w.proceed(i)
					end(i)
				}
				w.next()
			}
			w.checkSettled()
			total := 0
			for slot := 1; slot <= w.w.Count; slot++ {
				total += w.created[slot]
				if outcomes[slot] != 1 {
					w.fail("slot %d came to an end %d times", slot, outcomes[slot])
				}
			}
			if total > w.w.Count+excuses {
				w.fail("%d instances were created for %d slots, though only %d were lost or suspended", total, w.w.Count, excuses)
			}
		})
	}
}
