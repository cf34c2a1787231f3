package rollout_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/rollout"
)

// jobOf returns a job that has begun at dawn.
func jobOf(count int, policy model.JobPolicy) *model.Workload {
	w := service(count)
	w.Type, w.Job, w.Status.Rollout = model.JobWorkload, policy, model.RolloutStatus{Revision: "B", Started: dawn}
	w.Template.Restart.Condition = model.RestartNever
	return w
}

func later(i *model.Instance, d time.Duration) *model.Instance {
	i.Created = dawn.Add(d)
	i.Status.Finished = dawn.Add(d)
	return i
}

func TestJobPolicies(t *testing.T) {
	failed := state(model.InstanceFailed, 0)
	for _, c := range []struct {
		name      string
		workload  *model.Workload
		instances []*model.Instance
		after     time.Duration
		want      []string
		message   string
		revisit   time.Duration
	}{
		{name: "two at once", workload: jobOf(4, model.JobPolicy{Parallelism: 2}), want: []string{"create B in 1", "create B in 2"}},
		{name: "one is through", workload: jobOf(4, model.JobPolicy{Parallelism: 2}),
			instances: []*model.Instance{at(1, "B", state(model.InstanceCompleted, 0)), at(2, "B")}, want: []string{"create B in 3"}},
		{name: "a failed one waits", workload: jobOf(1, model.JobPolicy{BackoffLimit: 3}),
			instances: []*model.Instance{at(1, "B", failed)}, after: 3 * time.Second, revisit: 10 * time.Second},
		{name: "and is replaced", workload: jobOf(1, model.JobPolicy{BackoffLimit: 3}),
			instances: []*model.Instance{at(1, "B", failed)}, after: 11 * time.Second, want: []string{"create B in 1"}},
		{name: "the pause doubles", workload: jobOf(1, model.JobPolicy{BackoffLimit: 3}),
			instances: []*model.Instance{at(1, "B", failed), later(at(1, "B", named("x"), failed), time.Second)}, after: 12 * time.Second, revisit: 21 * time.Second},
		{name: "too many failures", workload: jobOf(2, model.JobPolicy{BackoffLimit: 1}),
			instances: []*model.Instance{at(1, "B", failed), later(at(1, "B", named("x"), failed), time.Second), at(2, "B")}, after: time.Minute,
			want: []string{"stop B2"}, message: "the job is given up: it failed 2 times, 1 may be"},
		{name: "too late", workload: jobOf(1, model.JobPolicy{Deadline: time.Minute}), instances: []*model.Instance{at(1, "B")}, after: time.Minute,
			want: []string{"stop B1"}, message: "the job is given up: it has not completed within 1m0s"},
		{name: "in time", workload: jobOf(1, model.JobPolicy{Deadline: time.Minute}), instances: []*model.Instance{at(1, "B")}, after: time.Second, revisit: time.Minute},
		{name: "completed is completed", workload: jobOf(1, model.JobPolicy{Deadline: time.Minute}),
			instances: []*model.Instance{at(1, "B", state(model.InstanceCompleted, 0))}, after: time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := rollout.Next(rollout.Input{Workload: c.workload, Instances: c.instances, Now: dawn.Add(c.after)})
			if got := told(out); !slices.Equal(got, c.want) {
				t.Errorf("to do: %q, want %q", got, c.want)
			}
			if !strings.HasPrefix(out.Rollout.Message, c.message) || (c.message != "") != (out.Rollout.State == model.RolloutFailed) {
				t.Errorf("the state is %s: %s; want %s", out.Rollout.State, out.Rollout.Message, c.message)
			}
			if c.revisit > 0 && !out.Revisit.Equal(dawn.Add(c.revisit)) {
				t.Errorf("asks to be asked again after %s, want %s", out.Revisit.Sub(dawn), c.revisit)
			}
		})
	}
}

func TestGlobalJobRunsOncePerNode(t *testing.T) {
	w := jobOf(0, model.JobPolicy{})
	w.Type = model.GlobalJobWorkload
	node := func(id string) *model.Node { return &model.Node{Meta: model.Meta{ID: id}} }
	done := at(0, "B", on("n1"), state(model.InstanceCompleted, 0))
	in := rollout.Input{Workload: w, Nodes: []*model.Node{node("n1"), node("n2")}, Instances: []*model.Instance{done}, Now: dawn}
	out := rollout.Next(in)
	if len(out.Actions) != 1 || out.Actions[0].Type != rollout.Create || out.Actions[0].NodeID != "n2" {
		t.Errorf("to do: %+v; want an instance on n2 alone", out.Actions)
	}
	if completed, failed := rollout.JobDone(in); completed || failed {
		t.Errorf("it is said to be done, though n2 has not run it")
	}
	in.Nodes = nil // what has run is remembered while the node is away
	if out := rollout.Next(in); len(out.Actions) > 0 {
		t.Errorf("to do without nodes: %+v", out.Actions)
	}
}
