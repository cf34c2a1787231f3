package native

import (
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

func TestProgressOfWhatAnotherPlatformKeeps(t *testing.T) {
	pod := func(edit func(*model.Instance)) *model.Instance { return instance(1, "of its own", edit) }
	starting := func(i *model.Instance) { i.Status.Ready, i.Status.Health = false, model.HealthStarting }
	stopping := func(i *model.Instance) { i.Desired = model.DesiredStop }
	for _, tt := range []struct {
		name      string
		edit      func(w *model.Workload)
		instances []*model.Instance
		want      Standing
		counts    [4]int // wanted, ready, updated, completed
		detail    string
	}{
		{name: "all ready", instances: []*model.Instance{pod(nil), pod(nil)}, want: StandingReady, counts: [4]int{2, 2, 2}},
		{name: "one starting", instances: []*model.Instance{pod(nil), pod(starting)}, want: StandingProgressing, counts: [4]int{2, 1, 1}, detail: "web.1 runs and is not healthy yet"},
		{name: "one of before ends", instances: []*model.Instance{pod(nil), pod(nil), pod(stopping)}, want: StandingReady, counts: [4]int{2, 2, 2}},
		{name: "one too many", instances: []*model.Instance{pod(nil), pod(nil), pod(nil)}, want: StandingProgressing, counts: [4]int{2, 3, 2}},
		{name: "not all updated", edit: func(w *model.Workload) { w.Followed.Updated = 1 }, instances: []*model.Instance{pod(nil), pod(nil)}, want: StandingProgressing, counts: [4]int{2, 2, 1}},
		{name: "asked for more", edit: func(w *model.Workload) { w.Count = 3 }, instances: []*model.Instance{pod(nil), pod(nil)}, want: StandingProgressing, counts: [4]int{3, 2, 2}, detail: "Kubernetes is being told to have 3"},
		{name: "it does not go on", edit: func(w *model.Workload) { w.Followed.Failing, w.Followed.Message = true, "too slow" }, want: StandingFailed, counts: [4]int{2}, detail: "too slow"},
		{name: "one on every node", edit: func(w *model.Workload) {
			w.Type, w.Count, w.Followed.Count, w.Followed.Wanted = model.GlobalWorkload, 0, 0, 1
			w.Followed.Updated = 1
		}, instances: []*model.Instance{pod(nil)}, want: StandingReady, counts: [4]int{1, 1, 1}},
		{name: "a job, whose pods are gone", edit: func(w *model.Workload) { w.Type, w.Followed.Completed = model.JobWorkload, 2 }, want: StandingCompleted, counts: [4]int{2, 0, 0, 2}},
		{name: "a job that runs", edit: func(w *model.Workload) { w.Type, w.Followed.Completed = model.JobWorkload, 1 }, instances: []*model.Instance{pod(nil)}, want: StandingProgressing, counts: [4]int{2, 0, 0, 1}},
		{name: "a schedule", edit: func(w *model.Workload) { w.Type = model.CronWorkload }, want: StandingReady, detail: "Kubernetes starts its runs"},
		{name: "suspended", edit: func(w *model.Workload) { w.Suspended = true }, want: StandingSuspended},
	} {
		w := &model.Workload{Type: model.ServiceWorkload, Count: 2, Belongs: &model.Belonging{Platform: "Kubernetes"}, Followed: &model.Followed{Count: 2, Updated: 2}}
		if tt.edit != nil {
			tt.edit(w)
		}
		p := ProgressOf(w, tt.instances)
		if got := [4]int{p.Wanted, p.Ready, p.Updated, p.Completed}; p.Standing != tt.want || got != tt.counts || p.Detail != tt.detail {
			t.Errorf("%s: %s, %v, %q; want %s, %v, %q", tt.name, p.Standing, got, p.Detail, tt.want, tt.counts, tt.detail)
		}
	}
}
