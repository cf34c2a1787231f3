package core_test

import (
	"slices"
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func TestPauseAndUsageReachWhatRuns(t *testing.T) {
	b := newBench(t)
	b.deploy(shop())
	web := b.workload("web")
	for id, at := range map[string]struct {
		node  string
		state model.InstanceState
	}{"i1": {"n1", model.InstanceRunning}, "i2": {"n2", model.InstanceRunning}, "i3": {"n1", model.InstanceFailed}} {
		b.put(&model.Instance{
			Meta:       model.Meta{ID: id, Namespace: model.DefaultNamespace, Application: "shop", Name: "web." + id[1:]},
			WorkloadID: web.ID, NodeID: at.node, Desired: model.DesiredRun,
			Status: model.InstanceStatus{State: at.state, Tasks: []model.TaskStatus{{Name: "main", State: "running"}, {Name: "done", State: "exited"}}},
		})
	}
	if err := b.Core.Pause(t.Context(), anna, "shop/web", true); err != nil {
		t.Fatal(err)
	}
	if err := b.Core.Pause(t.Context(), anna, "shop/web.1", false); err != nil {
		t.Fatal(err)
	}
	if err := b.Core.Bound(t.Context(), anna, "i2", "main", model.Bounds{Limit: model.Resources{MemoryBytes: 7}}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(b.paused)
	if want := []string{"n1 i1 false", "n1 i1 true", "n2 i2 7", "n2 i2 true"}; !slices.Equal(b.paused, want) {
		t.Errorf("told to pause: %q, want %q", b.paused, want)
	}
	if err := b.Core.Pause(t.Context(), anna, "shop/web.3", true); !fault.Is(err, fault.Unavailable) {
		t.Errorf("pausing what has ended gave %v", err)
	}
	if err := b.Core.Pause(t.Context(), anna, "shop", true); !fault.Is(err, fault.Invalid) {
		t.Errorf("pausing an application gave %v", err)
	}
	list, err := b.Usage(t.Context(), anna, "shop/web")
	if err != nil || len(list) != 2 {
		t.Fatalf("usage is %+v, %v; want that of the two tasks that run", list, err)
	}
	for _, u := range list {
		switch {
		case u.ID == "i1" && u.NanoCPUs == 5e8 && u.Stats.MemoryBytes == 7 && u.Node == "node-n1" && u.Task == "main" && u.Error == "":
		case u.ID == "i2" && u.Error != "":
		default:
			t.Errorf("usage is %+v", u)
		}
	}
	got, err := b.Core.Processes(t.Context(), anna, "shop/web.2", "main")
	if err != nil || len(got) != 1 || !slices.Equal(got[0].Command, []string{"n2", "i2", "main"}) {
		t.Errorf("processes are %+v, %v", got, err)
	}
}
