package core_test

import (
	"context"
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// TestABatch holds that several deployments, removals and keys become true together or not at all, and
// that what is put outside any application can be referred to by the others.
func TestABatch(t *testing.T) {
	b := newBench(t)
	who := core.Local("test", "test")
	one := func(name string) *model.Workload {
		return &model.Workload{Meta: model.Meta{Name: name}, Type: model.ServiceWorkload, Count: 1, Template: model.Template{
			Tasks: []model.TaskSpec{{Name: "main", Driver: "process", Args: []string{"x"}}}, Networks: []model.Attachment{{Network: "/net"}},
		}}
	}
	batch := func(names ...string) core.Batch {
		out := core.Batch{Deployments: []core.Deployment{{KeepOthers: true, Networks: []*model.Network{{Meta: model.Meta{Name: "net"}}}}}}
		for _, name := range names {
			out.Deployments = append(out.Deployments, core.Deployment{Application: name, KeepOthers: true, Workloads: []*model.Workload{one("w")}})
		}
		out.Keys.Put = []core.KeyPut{{Key: "x", Value: []byte("y")}}
		return out
	}
	bad := batch("a", "b")
	bad.Deployments[2].Workloads[0].Template.Networks[0].Network = "/nosuch"
	if _, err := b.DeployTogether(context.Background(), who, bad); !fault.Is(err, fault.NotFound) {
		t.Fatalf("a batch with one bad part gave %v", err)
	}
	if n := store.Count[*model.Workload](b.Store.Snapshot()) + store.Count[*model.Network](b.Store.Snapshot()); n != 0 {
		t.Fatalf("it left %d objects", n)
	}
	if _, err := b.DeployTogether(context.Background(), who, batch("a", "b")); err != nil {
		t.Fatal(err)
	}
	snap := b.Store.Snapshot()
	if _, ok := snap.Keys().Get("x"); !ok || store.Count[*model.Workload](snap) != 2 || store.Count[*model.Network](snap) != 1 {
		t.Fatal("the batch is not there as a whole")
	}
	w, _ := store.ByName[*model.Workload](snap, "default", "a", "w")
	gone := core.Batch{Deployments: []core.Deployment{{Application: "c", KeepOthers: true, Workloads: []*model.Workload{one("w")}}}, Remove: []string{w.ID}}
	if _, err := b.DeployTogether(context.Background(), who, gone); err != nil {
		t.Fatal(err)
	}
	if _, ok := store.Get[*model.Workload](b.Store.Snapshot(), w.ID); ok {
		t.Error("what was to be removed is there")
	}
}

// TestEndInstances holds that instances that are ended make room for others, or their workload shrinks.
func TestEndInstances(t *testing.T) {
	b := newBench(t)
	who := core.Local("test", "test")
	b.put(&model.Workload{Meta: model.Meta{ID: "w", Namespace: "default", Name: "w"}, Type: model.ServiceWorkload, Count: 3})
	for _, id := range []string{"i1", "i2", "i3"} {
		b.put(&model.Instance{Meta: model.Meta{ID: id, Namespace: "default", Name: id}, WorkloadID: "w", NodeID: "n1", Desired: model.DesiredRun})
	}
	if err := b.EndInstances(context.Background(), who, []string{"i1"}, false); err != nil {
		t.Fatal(err)
	}
	if err := b.EndInstances(context.Background(), who, []string{"i1", "i2"}, true); err != nil {
		t.Fatal(err)
	}
	snap := b.Store.Snapshot()
	w, _ := store.Get[*model.Workload](snap, "w")
	if w.Count != 2 {
		t.Errorf("there are to be %d", w.Count)
	}
	for id, want := range map[string]model.DesiredState{"i1": model.DesiredStop, "i2": model.DesiredStop, "i3": model.DesiredRun} {
		if i, _ := store.Get[*model.Instance](snap, id); i.Desired != want {
			t.Errorf("%s is to %s, want %s", id, i.Desired, want)
		}
	}
	if err := b.EndInstances(context.Background(), who, []string{"nosuch"}, false); !fault.Is(err, fault.NotFound) {
		t.Errorf("one that is not there: %v", err)
	}
}

// TestRefusals holds that every node says why it takes nothing more of a workload.
func TestRefusals(t *testing.T) {
	b := newBench(t)
	b.put(&model.Workload{Meta: model.Meta{ID: "w", Namespace: "default", Name: "w"}, Type: model.ServiceWorkload, Count: 1, Template: model.Template{
		Tasks:     []model.TaskSpec{{Name: "main", Reserve: model.Resources{MemoryBytes: 8 << 30}}},
		Placement: model.Placement{Constraints: []model.Constraint{{Key: "node.name", Operator: model.Equal, Values: []string{"node-n2"}}}},
	}})
	list, err := b.Refusals(core.Local("test", "test"), "w")
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, r := range list {
		if r.Reason == "" || (r.Node.ID == "n1") != (r.Reason == "do not satisfy node.name = node-n2") {
			t.Errorf("%s: %q", r.Node.ID, r.Reason)
		}
	}
}
