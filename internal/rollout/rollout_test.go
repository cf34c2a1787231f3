package rollout_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/rollout"
)

// service returns a workload that is at revision B, coming from A, with the update under way.
func service(count int) *model.Workload {
	w := &model.Workload{Meta: model.Meta{ID: "w", Name: "web"}, Type: model.ServiceWorkload, Count: count, RevisionID: "B", PreviousRevisionID: "A"}
	w.Template.Restart.Condition = model.RestartAlways
	w.Update = model.UpdatePolicy{Parallelism: 1, Monitor: 5 * time.Second}
	w.Status.Rollout = model.RolloutStatus{State: model.RolloutUpdating, Revision: "B", From: "A", Started: dawn}
	return w
}

// in sets the state of the rollout.
func in(w *model.Workload, s model.RolloutState) *model.Workload {
	w.Status.Rollout.State = s
	return w
}

// at says which instance of which revision is in a slot; it is healthy, and has been for long.
func at(slot int, revision string, change ...func(*model.Instance)) *model.Instance {
	i := &model.Instance{
		Meta: model.Meta{ID: fmt.Sprint(revision, slot), Name: fmt.Sprint("web.", slot), Created: dawn.Add(-time.Hour)},
		Slot: slot, RevisionID: revision, NodeID: "n1", Desired: model.DesiredRun,
		Status: model.InstanceStatus{State: model.InstanceRunning, Health: model.HealthHealthy, Ready: true, Started: dawn.Add(-time.Hour), ReadySince: dawn.Add(-time.Hour)},
	}
	if revision == "B" {
		i.Created = dawn
	}
	for _, f := range change {
		f(i)
	}
	return i
}

func on(node string) func(*model.Instance) { return func(i *model.Instance) { i.NodeID = node } }

func named(id string) func(*model.Instance) { return func(i *model.Instance) { i.ID = id } }

func desired(d model.DesiredState) func(*model.Instance) {
	return func(i *model.Instance) { i.Desired = d }
}

// state makes the instance be in a state in which it is not ready, since a time after dawn.
func state(s model.InstanceState, since time.Duration) func(*model.Instance) {
	return func(i *model.Instance) {
		i.Status = model.InstanceStatus{State: s}
		if s.Final() || s == model.InstanceWaiting {
			i.Status.Finished = dawn.Add(since)
		}
	}
}

// readySince makes the instance be ready, without a probe that says so.
func readySince(d time.Duration) func(*model.Instance) {
	return func(i *model.Instance) {
		i.Status = model.InstanceStatus{State: model.InstanceRunning, Ready: true, Started: dawn.Add(d), ReadySince: dawn.Add(d)}
	}
}

// told writes what is to be done in one line each, sorted.
func told(out rollout.Output) []string {
	var lines []string
	for _, a := range out.Actions {
		line := fmt.Sprint(a.Type, " ", a.InstanceID)
		if a.Type == rollout.Create {
			line = fmt.Sprint("create ", a.RevisionID, " in ", a.Slot, a.NodeID)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

func TestNext(t *testing.T) {
	startFirst := func(w *model.Workload) *model.Workload { w.Update.Order = model.StartFirst; return w }
	restart := func(w *model.Workload, p model.RestartPolicy) *model.Workload { w.Template.Restart = p; return w }
	first := func(count int) *model.Workload {
		w := service(count)
		w.PreviousRevisionID, w.Status.Rollout = "", model.RolloutStatus{}
		return w
	}
	waits := []*model.Instance{at(1, "A"), at(2, "A"), at(3, "A")}

	for _, c := range []struct {
		name      string
		workload  *model.Workload
		instances []*model.Instance
		change    func(*rollout.Input)
		after     time.Duration // since dawn
		want      []string
		state     model.RolloutState
		revisit   time.Duration // 0: not needed
	}{
		{name: "the first deployment is no update", workload: first(2),
			want: []string{"create B in 1", "create B in 2"}},
		{name: "all is well", workload: in(service(2), model.RolloutCompleted), instances: []*model.Instance{at(1, "B"), at(2, "B")},
			state: model.RolloutCompleted},
		{name: "scaled down: those that serve are drained first", workload: in(service(1), model.RolloutCompleted),
			instances: []*model.Instance{at(1, "B"), at(2, "B"), at(3, "B", state(model.InstanceStarting, 0)), at(4, "B", on("")), at(5, "B", state(model.InstanceFailed, 0))},
			want:      []string{"drain B2", "forget B5", "stop B3", "stop B4"}, state: model.RolloutCompleted},
		{name: "suspended", workload: func() *model.Workload {
			w := in(service(1), model.RolloutCompleted)
			w.Suspended = true
			return w
		}(), instances: []*model.Instance{at(1, "B")}, want: []string{"drain B1"}, state: model.RolloutCompleted},

		{name: "stop first: one at a time", workload: service(3), instances: waits, want: []string{"drain A1"}, state: model.RolloutUpdating},
		{name: "stop first: the old one has not ended", workload: service(3),
			instances: []*model.Instance{at(1, "A", desired(model.DesiredStop)), at(2, "A"), at(3, "A")}, state: model.RolloutUpdating},
		{name: "stop first: the old one has ended", workload: service(2),
			instances: []*model.Instance{at(1, "A", desired(model.DesiredStop), state(model.InstanceCompleted, 0)), at(2, "A")},
			want:      []string{"create B in 1"}, state: model.RolloutUpdating},
		{name: "stop first: the new one is not ready", workload: service(2),
			instances: []*model.Instance{at(1, "B", state(model.InstanceStarting, 0)), at(2, "A")},
			state:     model.RolloutUpdating, revisit: startDeadline + time.Second},
		{name: "a probe's word is enough to go on", workload: service(2), instances: []*model.Instance{at(1, "B"), at(2, "A")},
			want: []string{"drain A2"}, state: model.RolloutUpdating, revisit: 5 * time.Second},
		{name: "without a probe the next batch waits for the monitor window", workload: service(2),
			instances: []*model.Instance{at(1, "B", readySince(time.Second)), at(2, "A")}, after: 2 * time.Second,
			state: model.RolloutUpdating, revisit: 6 * time.Second},
		{name: "the window is over", workload: service(2),
			instances: []*model.Instance{at(1, "B", readySince(time.Second)), at(2, "A")}, after: 6 * time.Second,
			want: []string{"drain A2"}, state: model.RolloutUpdating},
		{name: "a clock that is far ahead does not stop an update", workload: service(2),
			instances: []*model.Instance{at(1, "B", readySince(time.Hour)), at(2, "A")}, after: 6 * time.Second,
			want: []string{"drain A2"}, state: model.RolloutUpdating},
		{name: "a clock that is behind does not shorten the window", workload: service(2),
			instances: []*model.Instance{at(1, "B", readySince(-time.Hour)), at(2, "A")}, after: 2 * time.Second,
			state: model.RolloutUpdating, revisit: 5 * time.Second},
		{name: "the pause between batches", workload: func() *model.Workload {
			w := service(2)
			w.Update.Delay, w.Status.Rollout.LastStep = time.Minute, dawn
			return w
		}(), instances: []*model.Instance{at(1, "B"), at(2, "A")}, after: 10 * time.Second, state: model.RolloutUpdating, revisit: time.Minute},
		{name: "all at once", workload: func() *model.Workload {
			w := service(3)
			w.Update.Parallelism = 0
			return w
		}(), instances: waits, want: []string{"drain A1", "drain A2", "drain A3"}, state: model.RolloutUpdating},
		{name: "what serves nobody comes first", workload: service(3),
			instances: []*model.Instance{at(1, "A"), at(2, "A"), at(3, "A", state(model.InstanceWaiting, 0))},
			want:      []string{"stop A3"}, state: model.RolloutUpdating},
		{name: "start first: the new one comes", workload: startFirst(service(2)), instances: []*model.Instance{at(1, "A"), at(2, "A")},
			want: []string{"create B in 1"}, state: model.RolloutUpdating},
		{name: "start first: the old one goes", workload: startFirst(service(2)), instances: []*model.Instance{at(1, "A"), at(1, "B"), at(2, "A")},
			want: []string{"create B in 2", "drain A1"}, state: model.RolloutUpdating, revisit: 5 * time.Second},
		{name: "the last window is over", workload: service(2), instances: []*model.Instance{at(1, "B"), at(2, "B", readySince(0))},
			after: 5 * time.Second, state: model.RolloutCompleted},
		{name: "the last window is not over", workload: service(2), instances: []*model.Instance{at(1, "B"), at(2, "B", readySince(0))},
			after: 4 * time.Second, state: model.RolloutUpdating, revisit: 5 * time.Second},
		{name: "a lost new instance takes the place of a batch", workload: service(2),
			instances: []*model.Instance{at(1, "B", state(model.InstanceLost, 0)), at(2, "A")},
			want:      []string{"create B in 1"}, state: model.RolloutUpdating},
		{name: "a lost old instance is updated before its time", workload: service(3),
			instances: []*model.Instance{at(1, "A"), at(2, "A", state(model.InstanceLost, 0)), at(3, "A")},
			want:      []string{"create B in 2"}, state: model.RolloutUpdating},
		{name: "or gets what it had", workload: service(3),
			instances: []*model.Instance{at(1, "B", state(model.InstanceStarting, 0)), at(2, "A", state(model.InstanceLost, 0)), at(3, "A")},
			want:      []string{"create A in 2"}, state: model.RolloutUpdating, revisit: startDeadline + time.Second},

		{name: "or, when that was given up, what came before", workload: service(3),
			instances: []*model.Instance{at(1, "B", state(model.InstanceStarting, 0)), at(2, "X", state(model.InstanceLost, 0)), at(3, "A")},
			want:      []string{"create A in 2"}, state: model.RolloutUpdating, revisit: startDeadline + time.Second},

		{name: "failed: replaced after a second", workload: in(service(1), model.RolloutCompleted),
			instances: []*model.Instance{at(1, "B", state(model.InstanceFailed, time.Hour))}, after: time.Hour + 300*time.Millisecond,
			state: model.RolloutCompleted, revisit: time.Hour + time.Second},
		{name: "failed: now", workload: in(service(1), model.RolloutCompleted),
			instances: []*model.Instance{at(1, "B", state(model.InstanceFailed, time.Hour))}, after: time.Hour + time.Second,
			want: []string{"create B in 1"}, state: model.RolloutCompleted},
		{name: "failed again: after ten", workload: in(service(1), model.RolloutCompleted),
			instances: []*model.Instance{
				at(1, "B", named("x"), state(model.InstanceFailed, 0)),
				at(1, "B", named("y"), state(model.InstanceFailed, time.Hour), func(i *model.Instance) { i.Created = dawn.Add(time.Minute) }),
			}, after: time.Hour + time.Second, state: model.RolloutCompleted, revisit: time.Hour + 10*time.Second},
		{name: "failed, says a clock that is far ahead", workload: in(service(1), model.RolloutCompleted),
			instances: []*model.Instance{at(1, "B", state(model.InstanceFailed, 24*time.Hour))}, after: 2 * time.Second,
			want: []string{"create B in 1"}, state: model.RolloutCompleted},
		{name: "failed, says a clock that is behind", workload: in(service(1), model.RolloutCompleted),
			instances: []*model.Instance{at(1, "B", state(model.InstanceFailed, -time.Hour))}, after: 100 * time.Millisecond,
			state: model.RolloutCompleted, revisit: time.Second},
		{name: "only the last two that ended are kept", workload: in(service(1), model.RolloutCompleted),
			instances: []*model.Instance{
				at(1, "B"), at(1, "B", named("x"), state(model.InstanceFailed, 0)), at(1, "B", named("y"), state(model.InstanceFailed, 0)),
				at(1, "A", state(model.InstanceFailed, 0)),
			}, want: []string{"forget A1"}, state: model.RolloutCompleted},
		{name: "it is not to be restarted", workload: restart(in(service(2), model.RolloutCompleted), model.RestartPolicy{Condition: model.RestartNever}),
			instances: []*model.Instance{at(1, "B", state(model.InstanceFailed, 0)), at(2, "B", state(model.InstanceLost, 0))}, after: time.Hour,
			want: []string{"create B in 2"}, state: model.RolloutCompleted},
		{name: "it ended as it should", workload: restart(in(service(2), model.RolloutCompleted), model.RestartPolicy{Condition: model.RestartOnFailure}),
			instances: []*model.Instance{at(1, "B", state(model.InstanceCompleted, 0)), at(2, "B", state(model.InstanceFailed, 0))}, after: time.Hour,
			want: []string{"create B in 2"}, state: model.RolloutCompleted},
		{name: "it was restarted often enough", workload: restart(in(service(1), model.RolloutCompleted), model.RestartPolicy{Condition: model.RestartOnFailure, MaxAttempts: 3}),
			instances: []*model.Instance{at(1, "B", state(model.InstanceFailed, 0), func(i *model.Instance) { i.Status.Restarts = 3 })}, after: time.Hour,
			state: model.RolloutCompleted},
		{name: "an update of what ends as it should is complete", workload: restart(service(1), model.RestartPolicy{Condition: model.RestartOnFailure}),
			instances: []*model.Instance{at(1, "B", state(model.InstanceCompleted, 0))}, after: time.Hour, state: model.RolloutCompleted},
		{name: "two of one revision: the ready one stays", workload: in(service(1), model.RolloutCompleted),
			instances: []*model.Instance{at(1, "B"), at(1, "B", named("x"), state(model.InstanceStarting, 0))},
			want:      []string{"stop x"}, state: model.RolloutCompleted},

		{name: "a leaving node: a replacement comes", workload: in(service(1), model.RolloutCompleted), instances: []*model.Instance{at(1, "B", on("gone"))},
			want: []string{"create B in 1"}, state: model.RolloutCompleted},
		{name: "a leaving node: the replacement is not ready", workload: in(service(1), model.RolloutCompleted),
			instances: []*model.Instance{at(1, "B", on("gone")), at(1, "B", named("x"), state(model.InstanceStarting, 0))}, state: model.RolloutCompleted},
		{name: "a leaving node: the replacement serves", workload: in(service(1), model.RolloutCompleted),
			instances: []*model.Instance{at(1, "B", on("gone")), at(1, "B", named("x"))}, want: []string{"drain B1"}, state: model.RolloutCompleted},
		{name: "a leaving node, while paused: it keeps its revision", workload: in(service(2), model.RolloutPaused),
			instances: []*model.Instance{at(1, "A", on("gone")), at(2, "B")}, want: []string{"create A in 1"}, state: model.RolloutPaused},
		{name: "a leaving node, while paused: moved", workload: in(service(1), model.RolloutPaused),
			instances: []*model.Instance{at(1, "A", on("gone")), at(1, "A", named("x"))}, want: []string{"drain A1"}, state: model.RolloutPaused},
		{name: "a leaving node, while updating: its turn comes next", workload: service(2),
			instances: []*model.Instance{at(1, "A"), at(2, "A", on("gone"))}, want: []string{"drain A2"}, state: model.RolloutUpdating},

		{name: "held: nothing of the new revision", workload: service(3), instances: waits, change: hold, state: model.RolloutUpdating},
		{name: "held: what is lost comes back as it was", workload: service(2),
			instances: []*model.Instance{at(1, "A"), at(2, "A", state(model.InstanceLost, 0))}, change: hold,
			want: []string{"create A in 2"}, state: model.RolloutUpdating},
		{name: "held: also what an earlier update took away", workload: service(2),
			instances: []*model.Instance{at(1, "A"), at(2, "A", desired(model.DesiredStop), state(model.InstanceCompleted, 0))}, change: hold,
			want: []string{"create A in 2"}, state: model.RolloutUpdating},
		{name: "held: scaled down", workload: service(2), instances: waits, change: hold, want: []string{"drain A3"}, state: model.RolloutUpdating},
		{name: "held: scaled up with the earlier revision", workload: service(4), instances: waits, change: hold,
			want: []string{"create A in 4"}, state: model.RolloutUpdating},
		{name: "held: moved off a leaving node", workload: service(1), instances: []*model.Instance{at(1, "A", on("gone"))}, change: hold,
			want: []string{"create A in 1"}, state: model.RolloutUpdating},
		{name: "held: the first deployment waits", workload: first(2), change: hold},
		{name: "held: with nothing to run, it is not complete", workload: service(0), change: hold, state: model.RolloutUpdating},

		{name: "paused: what is lost comes back as it was", workload: in(service(2), model.RolloutPaused),
			instances: []*model.Instance{at(1, "B", state(model.InstanceStarting, 0)), at(2, "A", state(model.InstanceLost, 0))},
			want:      []string{"create A in 2"}, state: model.RolloutPaused},
		{name: "paused: what was taken away too", workload: in(service(2), model.RolloutPaused),
			instances: []*model.Instance{at(1, "B", state(model.InstanceStarting, 0)), at(2, "A", desired(model.DesiredStop), state(model.InstanceCompleted, 0))},
			want:      []string{"create A in 2"}, state: model.RolloutPaused},
		{name: "paused: nothing goes on", workload: in(service(3), model.RolloutPaused), instances: waits, state: model.RolloutPaused},
		{name: "paused: scaled up with the earlier revision", workload: in(service(4), model.RolloutPaused), instances: waits,
			want: []string{"create A in 4"}, state: model.RolloutPaused},

		{name: "rolling back: what the bad revision left empty is filled at once", workload: func() *model.Workload {
			w := in(service(3), model.RolloutRolling)
			w.Rollback.Parallelism = 1
			return w
		}(), instances: []*model.Instance{at(1, "B", state(model.InstanceStarting, 0)), at(2, "A", state(model.InstanceFailed, 0)), at(3, "A")},
			want: []string{"create B in 2"}, state: model.RolloutRolling, revisit: startDeadline + time.Second},
		{name: "rolled back", workload: in(service(1), model.RolloutRolling), instances: []*model.Instance{at(1, "B")}, after: 5 * time.Second, state: model.RolloutRolledBack},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := rollout.Input{Workload: c.workload, Instances: c.instances, Leaving: map[string]bool{"gone": true}, Now: dawn.Add(c.after)}
			if c.change != nil {
				c.change(&in)
			}
			out := rollout.Next(in)
			if got := told(out); !slices.Equal(got, c.want) {
				t.Errorf("to do: %q, want %q", got, c.want)
			}
			if out.Rollout.State != c.state {
				t.Errorf("the update is %q (%s), want %q", out.Rollout.State, out.Rollout.Message, c.state)
			}
			if want := dawn.Add(c.revisit); c.revisit == 0 && !out.Revisit.IsZero() || c.revisit != 0 && !out.Revisit.Equal(want) {
				t.Errorf("asks to be asked again %v after dawn, want %v", out.Revisit.Sub(dawn), c.revisit)
			}
		})
	}
}

const startDeadline = 10 * time.Minute

func hold(in *rollout.Input) { in.Held = true }

// TestWhatCountsAsFailure shows single instances to an update that rolls back at the first failure.
func TestWhatCountsAsFailure(t *testing.T) {
	status := func(st model.InstanceStatus) func(*model.Instance) {
		return func(i *model.Instance) { i.Status = st }
	}
	sec := func(n int) time.Time { return dawn.Add(time.Duration(n) * time.Second) }
	for _, c := range []struct {
		name     string
		instance *model.Instance
		after    time.Duration
		restart  model.RestartCondition
		want     string // part of the message; "" is no failure
	}{
		{"failed", at(1, "B", status(model.InstanceStatus{State: model.InstanceFailed, Message: "exited with code 3"})), 0, model.RestartAlways, "web.1: exited with code 3"},
		{"crashed", at(1, "B", status(model.InstanceStatus{State: model.InstanceWaiting, Finished: sec(1)})), time.Second, model.RestartAlways, "had to be restarted"},
		{"crashed, starting again", at(1, "B", status(model.InstanceStatus{State: model.InstanceStarting, Restarts: 1})), time.Second, model.RestartAlways, "had to be restarted"},
		{"crashed, ready again", at(1, "B", status(model.InstanceStatus{State: model.InstanceRunning, Restarts: 1, Ready: true, Started: sec(1), ReadySince: sec(1)})), 2 * time.Second, model.RestartAlways, ""},
		{"unhealthy", at(1, "B", status(model.InstanceStatus{State: model.InstanceRunning, Health: model.HealthUnhealthy, Message: "503", Started: sec(0)})), time.Second, model.RestartAlways, "unhealthy: 503"},
		{"unhealthy soon", at(1, "B", status(model.InstanceStatus{State: model.InstanceRunning, Health: model.HealthUnhealthy, Started: sec(0), ReadySince: sec(1)})), 5 * time.Second, model.RestartAlways, "unhealthy"},
		{"unhealthy after the window", at(1, "B", status(model.InstanceStatus{State: model.InstanceRunning, Health: model.HealthUnhealthy, Started: sec(0), ReadySince: sec(1)})), 6 * time.Second, model.RestartAlways, ""},
		{"crashed within the window, long ago", at(1, "B", status(model.InstanceStatus{State: model.InstanceWaiting, Started: sec(0), ReadySince: sec(1), Finished: sec(5)})), time.Hour, model.RestartAlways, "restarted"},
		{"crashed after the window", at(1, "B", status(model.InstanceStatus{State: model.InstanceWaiting, Started: sec(0), ReadySince: sec(1), Finished: sec(600)})), 601 * time.Second, model.RestartAlways, ""},
		{"crashed after the window, its next run is not ready", at(1, "B", status(model.InstanceStatus{State: model.InstanceRunning, Health: model.HealthStarting, Restarts: 1, ReadySince: sec(1), Started: sec(600)})), 601 * time.Second, model.RestartAlways, ""},
		{"and the one after that neither", at(1, "B", status(model.InstanceStatus{State: model.InstanceRunning, Health: model.HealthStarting, Restarts: 2, ReadySince: sec(1), Started: sec(700)})), 701 * time.Second, model.RestartAlways, "restarted"},
		{"ended, to be restarted", at(1, "B", status(model.InstanceStatus{State: model.InstanceCompleted})), 0, model.RestartAlways, "it ended"},
		{"ended as it should", at(1, "B", status(model.InstanceStatus{State: model.InstanceCompleted})), 0, model.RestartOnFailure, ""},
		{"lost", at(1, "B", state(model.InstanceLost, 0)), 0, model.RestartAlways, ""},
		{"told to end", at(1, "B", desired(model.DesiredStop), status(model.InstanceStatus{State: model.InstanceFailed})), 0, model.RestartAlways, ""},
		{"told to end long ago", at(1, "B", desired(model.DesiredStop), state(model.InstanceCompleted, 0)), time.Hour, model.RestartAlways, ""},
		{"of the old revision", at(1, "A", state(model.InstanceFailed, 0)), 0, model.RestartAlways, ""},
		{"from before the update", at(1, "B", state(model.InstanceFailed, 0), func(i *model.Instance) { i.Created = sec(-1) }), 0, model.RestartAlways, ""},
		{"slow", at(1, "B", state(model.InstancePreparing, 0)), startDeadline, model.RestartAlways, ""},
		{"too slow", at(1, "B", state(model.InstancePreparing, 0)), startDeadline + time.Second, model.RestartAlways, "not ready after 10m0s"},
		{"not placed", at(1, "B", on(""), state(model.InstancePending, 0)), time.Hour, model.RestartAlways, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := service(4)
			w.Update.OnFailure, w.Template.Restart.Condition = model.RollBackOnFailure, c.restart
			instances := []*model.Instance{c.instance, at(2, "A"), at(3, "A"), at(4, "A")}
			out := rollout.Next(rollout.Input{Workload: w, Instances: instances, Now: dawn.Add(c.after)})
			r := out.Rollout
			if c.want == "" {
				if out.RollBackTo != "" || r.Failures != 0 {
					t.Errorf("it counts as a failure: %+v", r)
				}
				return
			}
			if out.RollBackTo != "A" || r.State != model.RolloutRolling || r.Revision != "A" || r.From != "B" {
				t.Errorf("back to %q: %+v", out.RollBackTo, r)
			}
			if len(out.Actions) > 0 {
				t.Errorf("actions %q before the workload has changed", told(out))
			}
			if !strings.Contains(r.Message, c.want) || !strings.HasPrefix(r.Message, "1 of 4 instances failed") {
				t.Errorf("message %q does not say %q", r.Message, c.want)
			}
		})
	}
}

func TestFailuresWithinThePolicy(t *testing.T) {
	broken := state(model.InstanceWaiting, 0)
	for _, c := range []struct {
		name      string
		policy    model.UpdatePolicy
		instances []*model.Instance
		state     model.RolloutState
		want      []string
		message   string
	}{
		{"one of four is too many by default", model.UpdatePolicy{Parallelism: 1},
			[]*model.Instance{at(1, "B", broken), at(2, "A"), at(3, "A"), at(4, "A")}, model.RolloutPaused, nil, "paused: 1 of 4"},
		{"a quarter may fail, and the rest is updated", model.UpdatePolicy{Parallelism: 1, MaxFailureRatio: 0.25},
			[]*model.Instance{at(1, "B", broken), at(2, "A"), at(3, "A"), at(4, "A")}, model.RolloutUpdating, []string{"drain A2"}, "1 of 4"},
		{"two are more than a quarter", model.UpdatePolicy{Parallelism: 1, MaxFailureRatio: 0.25},
			[]*model.Instance{at(1, "B", broken), at(2, "B", broken), at(3, "A"), at(4, "A")}, model.RolloutPaused, nil, "paused: 2 of 4"},
		{"one slot that fails time and again is one", model.UpdatePolicy{Parallelism: 1, MaxFailureRatio: 0.25},
			[]*model.Instance{
				at(1, "B", broken), at(1, "B", named("x"), state(model.InstanceFailed, 0)), at(1, "B", named("y"), state(model.InstanceFailed, 0)),
				at(2, "B"), at(3, "A"), at(4, "A"),
			}, model.RolloutUpdating, []string{"drain A3"}, "1 of 4"},
		{"complete but for what may fail", model.UpdatePolicy{Parallelism: 1, MaxFailureRatio: 0.25},
			[]*model.Instance{at(1, "B", broken), at(2, "B"), at(3, "B"), at(4, "B")}, model.RolloutCompleted, nil, "1 of 4"},
		{"start first: an old one stays where the new one fails", model.UpdatePolicy{Parallelism: 1, MaxFailureRatio: 0.25, Order: model.StartFirst},
			[]*model.Instance{at(1, "A"), at(1, "B", broken), at(2, "B"), at(3, "B"), at(4, "B")}, model.RolloutUpdating, nil, "1 of 4"},
		{"whatever fails", model.UpdatePolicy{Parallelism: 2, OnFailure: model.ContinueOnFailure},
			[]*model.Instance{at(1, "B", broken), at(2, "B", broken), at(3, "A"), at(4, "A")}, model.RolloutUpdating, []string{"drain A3", "drain A4"}, "2 of 4"},
		{"nowhere to go back to", model.UpdatePolicy{Parallelism: 1, OnFailure: model.RollBackOnFailure},
			[]*model.Instance{at(1, "B", broken), at(2, "A"), at(3, "A"), at(4, "A")}, model.RolloutPaused, nil, "paused: 1 of 4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := service(4)
			w.Update = c.policy
			if c.policy.OnFailure == model.RollBackOnFailure {
				w.Status.Rollout.From = ""
			}
			out := rollout.Next(rollout.Input{Workload: w, Instances: c.instances, Now: dawn.Add(time.Minute)})
			if out.Rollout.State != c.state || !strings.HasPrefix(out.Rollout.Message, c.message) || out.RollBackTo != "" {
				t.Errorf("the update is %s: %s (back to %q)", out.Rollout.State, out.Rollout.Message, out.RollBackTo)
			}
			if got := told(out); !slices.Equal(got, c.want) {
				t.Errorf("to do: %q, want %q", got, c.want)
			}
		})
	}
}

func TestRollingBackFailsToo(t *testing.T) {
	w := in(service(2), model.RolloutRolling)
	out := rollout.Next(rollout.Input{Workload: w, Instances: []*model.Instance{at(1, "B", state(model.InstanceFailed, 0)), at(2, "A")}, Now: dawn})
	if out.Rollout.State != model.RolloutFailed || !strings.HasPrefix(out.Rollout.Message, "rolling back failed too: 1 of 2") || out.RollBackTo != "" {
		t.Errorf("%+v", out.Rollout)
	}
}

// TestWhereAFailingUpdateLeads follows workloads from revision to revision: an update that fails
// has to lead to the last one that is known to be good.
func TestWhereAFailingUpdateLeads(t *testing.T) {
	for _, c := range []struct {
		name     string
		before   model.RolloutStatus
		previous string
		want     string
	}{
		{"the first update", model.RolloutStatus{Revision: "A"}, "A", "A"},
		{"after a completed one", model.RolloutStatus{State: model.RolloutCompleted, Revision: "A", From: "0"}, "A", "A"},
		{"instead of one under way", model.RolloutStatus{State: model.RolloutUpdating, Revision: "A", From: "0"}, "A", "0"},
		{"instead of one that was paused", model.RolloutStatus{State: model.RolloutPaused, Revision: "A", From: "0"}, "A", "0"},
		{"instead of a return by hand", model.RolloutStatus{State: model.RolloutUpdating, Revision: "A"}, "A", "A"},
		{"after one that was rolled back", model.RolloutStatus{State: model.RolloutRolledBack, Revision: "A", From: "bad"}, "A", "A"},
		{"while one is being rolled back", model.RolloutStatus{State: model.RolloutRolling, Revision: "A", From: "bad"}, "A", "A"},
		{"after rolling back failed", model.RolloutStatus{State: model.RolloutFailed, Revision: "A", From: "bad"}, "A", "A"},
		{"two deployments while one is being rolled back", model.RolloutStatus{State: model.RolloutRolling, Revision: "A", From: "bad"}, "untried", "A"},
		{"back to where an update came from", model.RolloutStatus{State: model.RolloutUpdating, Revision: "A", From: "B"}, "A", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := service(1)
			w.PreviousRevisionID, w.Status.Rollout = c.previous, c.before
			out := rollout.Next(rollout.Input{Workload: w, Instances: []*model.Instance{at(1, "A")}, Now: dawn})
			if r := out.Rollout; r.State != model.RolloutUpdating || r.Revision != "B" || r.From != c.want || !r.Started.Equal(dawn) {
				t.Errorf("%+v, want it to come from %q", r, c.want)
			}
		})
	}
}

func TestGlobal(t *testing.T) {
	global := func(s model.RolloutState) *model.Workload {
		w := in(service(0), s)
		w.Type, w.Update.Order = model.GlobalWorkload, model.StartFirst // which cannot be
		return w
	}
	nodes := []*model.Node{{Meta: model.Meta{ID: "n2"}}, {Meta: model.Meta{ID: "n1"}}}
	for _, c := range []struct {
		name      string
		workload  *model.Workload
		instances []*model.Instance
		want      []string
	}{
		{"one for each node", global(model.RolloutCompleted), nil, []string{"create B in 0n1", "create B in 0n2"}},
		{"a node has come", global(model.RolloutCompleted), []*model.Instance{at(0, "B")}, []string{"create B in 0n2"}},
		{"a node no longer matches", global(model.RolloutCompleted), []*model.Instance{at(0, "B"), at(0, "B", on("n2"), named("x")), at(0, "B", on("n3"), named("y")), at(0, "B", on("n3"), named("z"), state(model.InstanceLost, 0))},
			[]string{"drain y", "forget z"}},
		{"updated one by one, the old one first", global(model.RolloutUpdating), []*model.Instance{at(0, "A"), at(0, "A", on("n2"), named("x"))}, []string{"drain A0"}},
		{"it has not ended yet", global(model.RolloutUpdating), []*model.Instance{at(0, "A", desired(model.DesiredStop)), at(0, "A", on("n2"), named("x"))}, nil},
		{"it has", global(model.RolloutUpdating), []*model.Instance{at(0, "A", desired(model.DesiredStop), state(model.InstanceCompleted, 0)), at(0, "A", on("n2"), named("x"))}, []string{"create B in 0n1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := rollout.Next(rollout.Input{Workload: c.workload, Instances: c.instances, Nodes: nodes, Now: dawn})
			if got := told(out); !slices.Equal(got, c.want) {
				t.Errorf("to do: %q, want %q", got, c.want)
			}
		})
	}
}

func TestJob(t *testing.T) {
	job := func(count int, change ...func(*model.Workload)) *model.Workload {
		w := service(count)
		w.Type, w.Status.Rollout = model.JobWorkload, model.RolloutStatus{Revision: "B"}
		w.Template.Restart.Condition = model.RestartOnFailure
		for _, f := range change {
			f(w)
		}
		return w
	}
	suspend := func(w *model.Workload) { w.Suspended = true }
	for _, c := range []struct {
		name      string
		workload  *model.Workload
		instances []*model.Instance
		held      bool
		want      []string
	}{
		{"begins", job(2), nil, false, []string{"create B in 1", "create B in 2"}},
		{"waits", job(2), nil, true, nil},
		{"runs", job(1), []*model.Instance{at(1, "B")}, false, nil},
		{"has run", job(1), []*model.Instance{at(1, "B", state(model.InstanceCompleted, 0))}, false, nil},
		{"has failed for good", job(1), []*model.Instance{at(1, "B", state(model.InstanceFailed, 0))}, false, nil},
		{"was lost", job(1), []*model.Instance{at(1, "B", state(model.InstanceLost, 0))}, false, []string{"create B in 1"}},
		{"was stopped half way", job(1), []*model.Instance{at(1, "B", desired(model.DesiredStop), state(model.InstanceCompleted, 0))}, false, []string{"create B in 1"}},
		{"has run, and was lost before", job(1), []*model.Instance{
			at(1, "B", named("x"), state(model.InstanceLost, 0)),
			at(1, "B", state(model.InstanceCompleted, 0), func(i *model.Instance) { i.Created = dawn.Add(time.Second) }),
		}, false, nil},
		{"is left to finish on a leaving node", job(1), []*model.Instance{at(1, "B", on("gone"))}, false, nil},
		{"is replaced by a new revision", job(2), []*model.Instance{at(1, "A"), at(2, "A", on("gone"))}, false, []string{"stop A1", "stop A2"}},
		{"is not while that waits", job(2), []*model.Instance{at(1, "A"), at(2, "A", on("gone"))}, true, nil},
		{"runs anew for a new revision", job(1), []*model.Instance{at(1, "A", state(model.InstanceCompleted, 0))}, false, []string{"create B in 1"}},
		{"runs twice by mishap: the first goes on", job(1), []*model.Instance{at(1, "B"), at(1, "B", named("x"), func(i *model.Instance) { i.Created = dawn.Add(time.Second) })}, false, []string{"stop x"}},
		{"is suspended", job(2, suspend), []*model.Instance{at(1, "B"), at(2, "B", state(model.InstanceCompleted, 0))}, false, []string{"drain B1"}},
		{"has fewer slots", job(1), []*model.Instance{at(1, "B"), at(2, "B", state(model.InstanceCompleted, 0))}, false, []string{"forget B2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := rollout.Next(rollout.Input{Workload: c.workload, Instances: c.instances, Leaving: map[string]bool{"gone": true}, Held: c.held, Now: dawn})
			if got := told(out); !slices.Equal(got, c.want) {
				t.Errorf("to do: %q, want %q", got, c.want)
			}
			if out.Rollout.State != model.RolloutNone {
				t.Errorf("a job is not rolled out, but the state is %q", out.Rollout.State)
			}
		})
	}
}

func TestOtherKindsAreRefusedByName(t *testing.T) {
	w := service(1)
	w.Type = model.CronWorkload
	out := rollout.Next(rollout.Input{Workload: w, Instances: []*model.Instance{at(1, "A")}, Now: dawn})
	if len(out.Actions) > 0 || out.Rollout.State != model.RolloutFailed || !strings.Contains(out.Rollout.Message, `"cron"`) {
		t.Errorf("%+v", out)
	}
}
