package rollout_test

import (
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/rollout"
)

// TestWhatIsKeptIsHeldAndStarted follows a workload whose ended instances are kept: suspended, its
// instance is held, not stopped; started again, that one runs once more, unless it is gone for good.
func TestWhatIsKeptIsHeldAndStarted(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	w := &model.Workload{
		Meta: model.Meta{ID: "w", Name: "web"}, Type: model.ServiceWorkload, Count: 1, RevisionID: "w.1", Starts: 1,
		Template: model.Template{KeepEnded: true, Restart: model.RestartPolicy{Condition: model.RestartNever}},
	}
	i := &model.Instance{
		Meta: model.Meta{ID: "i", Name: "web.1", Created: now.Add(-time.Minute)}, WorkloadID: "w", Slot: 1, RevisionID: "w.1", NodeID: "n",
		Desired: model.DesiredRun, Starts: 1, Status: model.InstanceStatus{State: model.InstanceRunning, Ready: true},
	}
	for _, step := range []struct {
		name   string
		change func()
		want   rollout.ActionType // "" is nothing to do
	}{
		{"it runs", func() {}, ""},
		{"suspended", func() { w.Suspended = true }, rollout.Hold},
		{"held", func() {
			i.Desired = model.DesiredHold
			i.Status = model.InstanceStatus{State: model.InstanceHeld, Finished: now}
		}, ""},
		{"started again", func() { w.Suspended, w.Starts = false, 2 }, rollout.Start},
		{"it runs again", func() {
			i.Desired, i.Starts = model.DesiredRun, 2
			i.Status = model.InstanceStatus{State: model.InstanceRunning, Ready: true}
		}, ""},
		{"it ended by itself", func() { i.Status = model.InstanceStatus{State: model.InstanceHeld, Finished: now} }, ""},
		{"started once more", func() { w.Starts = 3 }, rollout.Start},
		{"it could not be prepared", func() {
			i.Starts = 3
			i.Status = model.InstanceStatus{State: model.InstanceFailed, Finished: now}
		}, ""},
		{"started after that", func() { w.Starts = 4 }, rollout.Create},
	} {
		step.change()
		out := rollout.Next(rollout.Input{Workload: w, Instances: []*model.Instance{i}, Now: now})
		switch {
		case step.want == "" && len(out.Actions) > 0:
			t.Errorf("%s: %+v", step.name, out.Actions)
		case step.want != "" && (len(out.Actions) != 1 || out.Actions[0].Type != step.want):
			t.Errorf("%s: %+v, want %s", step.name, out.Actions, step.want)
		}
	}
}
