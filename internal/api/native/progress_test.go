package native

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

const present, earlier = "w.new", "w.old"

func instance(slot int, revision string, edit func(i *model.Instance)) *model.Instance {
	i := &model.Instance{
		Meta:       model.Meta{Name: "web." + string(rune('0'+slot)), Created: time.Unix(int64(slot), 0)},
		WorkloadID: "w", Slot: slot, RevisionID: revision, NodeID: "n" + string(rune('0'+slot)), Desired: model.DesiredRun,
		Status: model.InstanceStatus{State: model.InstanceRunning, Ready: true, Health: model.HealthHealthy},
	}
	if edit != nil {
		edit(i)
	}
	return i
}

func ended(state model.InstanceState, message string) func(*model.Instance) {
	return func(i *model.Instance) {
		i.Status = model.InstanceStatus{State: state, Message: message}
	}
}

func TestProgress(t *testing.T) {
	starting := func(i *model.Instance) { i.Status.Ready, i.Status.Health = false, model.HealthStarting }
	unplaced := func(i *model.Instance) {
		i.NodeID, i.Reason, i.Status = "", "all 3 nodes are too full", model.InstanceStatus{State: model.InstancePending}
	}
	later := func(edit func(*model.Instance)) func(*model.Instance) {
		return func(i *model.Instance) {
			edit(i)
			i.Created = i.Created.Add(time.Hour)
		}
	}
	for _, tt := range []struct {
		name      string
		edit      func(w *model.Workload)
		instances []*model.Instance
		want      Standing
		counts    [5]int // wanted, ready, updated, completed, failed
		detail    string
	}{
		{name: "all ready", instances: []*model.Instance{instance(1, present, nil), instance(2, present, nil)}, want: StandingReady, counts: [5]int{2, 2, 2}},
		{name: "one missing", instances: []*model.Instance{instance(1, present, nil)}, want: StandingProgressing, counts: [5]int{2, 1, 1}},
		{name: "one starting", instances: []*model.Instance{instance(1, present, nil), instance(2, present, starting)},
			want: StandingProgressing, counts: [5]int{2, 1, 1}, detail: "web.2 runs and is not healthy yet"},
		{name: "one without a node", instances: []*model.Instance{instance(1, present, unplaced), instance(2, present, nil)},
			want: StandingProgressing, counts: [5]int{2, 1, 1}, detail: "web.1 has no node: all 3 nodes are too full"},
		{name: "one waits to be restarted", instances: []*model.Instance{instance(1, present, ended(model.InstanceWaiting, "exit code 1")), instance(2, present, nil)},
			want: StandingProgressing, counts: [5]int{2, 1, 1}, detail: "web.1 is waiting: exit code 1"},
		{name: "one on a lost node, replaced", instances: []*model.Instance{instance(1, present, ended(model.InstanceLost, "gone")), instance(1, present, later(starting)), instance(2, present, nil)},
			want: StandingProgressing, counts: [5]int{2, 1, 1}, detail: "not healthy"},
		{name: "a change not yet looked at", edit: func(w *model.Workload) { w.Generation = 2 }, instances: []*model.Instance{instance(1, present, nil), instance(2, present, nil)},
			want: StandingProgressing, counts: [5]int{2, 2, 2}},
		{name: "one too many", instances: []*model.Instance{instance(1, present, nil), instance(2, present, nil), instance(3, present, starting)}, want: StandingReady, counts: [5]int{2, 2, 2}},
		{name: "waiting for another", edit: func(w *model.Workload) { w.Status.Waiting, w.Status.Released = "waiting for db to be healthy", "" },
			want: StandingWaiting, counts: [5]int{2}, detail: "waiting for db to be healthy"},
		{name: "updating", edit: func(w *model.Workload) { w.Status.Rollout.State = model.RolloutUpdating }, instances: []*model.Instance{instance(1, present, nil), instance(2, earlier, nil)},
			want: StandingProgressing, counts: [5]int{2, 2, 1}, detail: "1 of 2 updated"},
		{name: "update paused", edit: func(w *model.Workload) {
			w.Status.Rollout = model.RolloutStatus{State: model.RolloutPaused, Message: "paused: 1 of 2 instances failed"}
		}, instances: []*model.Instance{instance(1, earlier, nil), instance(2, earlier, nil)},
			want: StandingFailed, counts: [5]int{2, 2, 0}, detail: "1 of 2 instances failed"},
		{name: "rolling back", edit: func(w *model.Workload) {
			w.Status.Rollout = model.RolloutStatus{State: model.RolloutRolling, Message: "web.1: unhealthy"}
		}, instances: []*model.Instance{instance(1, earlier, nil), instance(2, present, nil)},
			want: StandingProgressing, counts: [5]int{2, 2, 1}, detail: "rolling back: web.1: unhealthy"},
		{name: "rolled back", edit: func(w *model.Workload) { w.Status.Rollout.State = model.RolloutRolledBack },
			instances: []*model.Instance{instance(1, present, nil), instance(2, present, nil)}, want: StandingReady, counts: [5]int{2, 2, 2}},
		{name: "suspended", edit: func(w *model.Workload) { w.Suspended = true }, instances: []*model.Instance{instance(1, present, nil)}, want: StandingSuspended},
		{name: "nothing wanted", edit: func(w *model.Workload) { w.Count = 0 }, want: StandingReady},
		{name: "failed for good", edit: func(w *model.Workload) { w.Template.Restart.Condition = model.RestartNever },
			instances: []*model.Instance{instance(1, present, nil), instance(2, present, ended(model.InstanceFailed, "exit code 3"))},
			want:      StandingFailed, counts: [5]int{2, 1, 1, 0, 1}, detail: "web.2 is failed: exit code 3"},
		{name: "failed and tried again", instances: []*model.Instance{instance(1, present, nil), instance(2, present, ended(model.InstanceFailed, "exit code 3"))},
			want: StandingProgressing, counts: [5]int{2, 1, 1}, detail: "exit code 3"},
		{name: "too often restarted", edit: func(w *model.Workload) { w.Template.Restart.MaxAttempts = 2 },
			instances: []*model.Instance{instance(1, present, func(i *model.Instance) {
				ended(model.InstanceFailed, "exit code 3")(i)
				i.Status.Restarts = 2
			}), instance(2, present, nil)},
			want: StandingFailed, counts: [5]int{2, 1, 1, 0, 1}, detail: "exit code 3"},
		{name: "ended as it should", edit: func(w *model.Workload) { w.Template.Restart.Condition = model.RestartOnFailure },
			instances: []*model.Instance{instance(1, present, ended(model.InstanceCompleted, "")), instance(2, present, ended(model.InstanceCompleted, ""))},
			want:      StandingCompleted, counts: [5]int{2, 0, 0, 2}},
		{name: "ended but should run", instances: []*model.Instance{instance(1, present, ended(model.InstanceCompleted, "")), instance(2, present, nil)},
			want: StandingProgressing, counts: [5]int{2, 1, 1}},
		{name: "job runs", edit: func(w *model.Workload) { w.Type, w.Count = model.JobWorkload, 1 }, instances: []*model.Instance{instance(1, present, nil)},
			want: StandingProgressing, counts: [5]int{1}, detail: "web.1 runs and is healthy"},
		{name: "job has completed", edit: func(w *model.Workload) { w.Type, w.Count = model.JobWorkload, 1 }, instances: []*model.Instance{instance(1, present, ended(model.InstanceCompleted, ""))},
			want: StandingCompleted, counts: [5]int{1, 0, 0, 1}},
		{name: "job has failed", edit: func(w *model.Workload) { w.Type, w.Count = model.JobWorkload, 1 }, instances: []*model.Instance{instance(1, present, ended(model.InstanceFailed, "exit code 9"))},
			want: StandingFailed, counts: [5]int{1, 0, 0, 0, 1}, detail: "exit code 9"},
		{name: "job of an earlier revision", edit: func(w *model.Workload) { w.Type, w.Count = model.JobWorkload, 1 }, instances: []*model.Instance{instance(1, earlier, ended(model.InstanceCompleted, ""))},
			want: StandingProgressing, counts: [5]int{1}},
		{name: "global", edit: func(w *model.Workload) { w.Type, w.Count = model.GlobalWorkload, 0 }, instances: []*model.Instance{instance(1, present, nil), instance(2, present, starting), instance(3, earlier, func(i *model.Instance) { i.Desired = model.DesiredStop })},
			want: StandingProgressing, counts: [5]int{2, 1, 1}, detail: "web.2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &model.Workload{Meta: model.Meta{ID: "w", Name: "web"}, Type: model.ServiceWorkload, Count: 2, RevisionID: present, Generation: 1}
			w.Template.Restart.Condition = model.RestartAlways
			w.Status.Generation, w.Status.Released = 1, present
			if tt.edit != nil {
				tt.edit(w)
			}
			for range 2 { // the order in which instances come does not matter
				p := ProgressOf(w, tt.instances)
				counts := [5]int{p.Wanted, p.Ready, p.Updated, p.Completed, p.Failed}
				if p.Standing != tt.want || counts != tt.counts || !strings.Contains(p.Detail, tt.detail) {
					t.Errorf("it is %s, %v, %q; want %s, %v, %q", p.Standing, counts, p.Detail, tt.want, tt.counts, tt.detail)
				}
				slices.Reverse(tt.instances)
			}
		})
	}
}

func TestProgressSaysWhetherProbesLooked(t *testing.T) {
	w := &model.Workload{Type: model.ServiceWorkload, Count: 2, RevisionID: present}
	unprobed := func(i *model.Instance) { i.Status.Health = model.HealthNone }
	if p := ProgressOf(w, []*model.Instance{instance(1, present, nil), instance(2, present, unprobed)}); p.Probed {
		t.Error("an instance without a probe counts as probed")
	}
	if p := ProgressOf(w, []*model.Instance{instance(1, present, nil), instance(2, present, nil)}); !p.Probed {
		t.Error("instances with probes do not count as probed")
	}
}

func TestWorse(t *testing.T) {
	for _, tt := range []struct{ a, b, want Standing }{
		{StandingReady, StandingCompleted, StandingReady},
		{StandingSuspended, StandingCompleted, StandingReady},
		{StandingReady, StandingProgressing, StandingProgressing},
		{StandingWaiting, StandingProgressing, StandingWaiting},
		{StandingFailed, StandingWaiting, StandingFailed},
	} {
		if got := worse(tt.a, tt.b); got != tt.want {
			t.Errorf("of %s and %s, %s is worse", tt.a, tt.b, got)
		}
		if got := worse(tt.b, tt.a); got != tt.want {
			t.Errorf("of %s and %s, %s is worse", tt.b, tt.a, got)
		}
	}
}

func TestNaturalOrder(t *testing.T) {
	want := []string{"a", "a.1", "a.2", "a.10", "a.10b", "b", "b2.9", "b10.1"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, natural)
	if !slices.Equal(got, want) {
		t.Errorf("sorted: %q", got)
	}
}
