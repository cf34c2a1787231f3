package core_test

import (
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func deployment(count int) *model.Workload {
	return &model.Workload{
		Meta: model.Meta{ID: "uid-web", Namespace: model.DefaultNamespace, Application: "k8s", Name: "web"}, Type: model.ServiceWorkload, Count: count,
		Template: model.Template{Tasks: []model.TaskSpec{{Name: "app", Image: "shop/web:v1"}}},
		Belongs:  &model.Belonging{Platform: "Kubernetes", Tool: "kubectl", Kind: "Deployment", Name: "web"}, Followed: &model.Followed{Count: count},
	}
}

// TestFollowedWorkloads: what another platform keeps is scaled here and nothing else, and what was asked
// for stays asked until the platform was told.
func TestFollowedWorkloads(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	follow := func(f core.Following) {
		t.Helper()
		if err := b.Follow(ctx, anna, f); err != nil {
			t.Fatal(err)
		}
	}
	have := func() *model.Workload {
		t.Helper()
		w, ok := store.Get[*model.Workload](b.Store.Snapshot(), "uid-web")
		if !ok {
			t.Fatal("it is not there")
		}
		return w
	}
	follow(core.Following{Workload: deployment(3)})
	if _, ok := store.ByName[*model.Application](b.Store.Snapshot(), model.DefaultNamespace, "", "k8s"); !ok {
		t.Error("its application is not there")
	}
	for name, err := range map[string]error{
		"restart": b.RestartWorkload(ctx, anna, "k8s/web"), "stop": b.Stop(ctx, anna, "k8s/web", nil), "suspend": b.Suspend(ctx, anna, "k8s/web", true), "rename": b.Rename(ctx, anna, "k8s/web", "x"),
		"remove": b.Remove(ctx, anna, "k8s/web", false), "remove all": b.Remove(ctx, anna, "k8s", false), "remove by ID": b.RemoveWorkload(ctx, anna, "uid-web", nil),
	} {
		if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "Deployment web of Kubernetes: here it can be scaled; for all else use kubectl") {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := b.Deploy(ctx, anna, core.Deployment{Application: "k8s", KeepOthers: true, Workloads: []*model.Workload{{Meta: model.Meta{Name: "web"}, Type: model.ServiceWorkload, Count: 1, Template: model.Template{Tasks: []model.TaskSpec{{Name: "a", Driver: "process", Args: []string{"true"}}}}}}})
	if !fault.Is(err, fault.Unsupported) {
		t.Errorf("deploying over it: %v", err)
	}

	if err := b.Scale(ctx, anna, "k8s/web", 5); err != nil {
		t.Fatal(err)
	}
	follow(core.Following{Workload: deployment(3)}) // the platform says something before it was told
	if w := have(); w.Count != 5 || w.Followed.Count != 3 {
		t.Errorf("what was asked for is %d, of %d", w.Count, w.Followed.Count)
	}
	five := 5
	follow(core.Following{Workload: deployment(5), Told: &five})
	follow(core.Following{Workload: deployment(4)})
	if w := have(); w.Count != 4 || w.Followed.Count != 4 {
		t.Errorf("the platform's own number is not taken: %d, %d", w.Count, w.Followed.Count)
	}
	if err := b.Scale(ctx, anna, "k8s/web", 9); err != nil {
		t.Fatal(err)
	}
	nine := 9
	follow(core.Following{Workload: deployment(4), Told: &nine, Refused: "quota"})
	told := false
	for e := range store.List[*model.Event](b.Store.Snapshot()) {
		told = told || e.Type == "workload not scaled" && strings.Contains(e.Message, "Kubernetes refuses 9: quota")
	}
	if w := have(); w.Count != 4 || !told {
		t.Errorf("a number that was refused: %d, told %t", w.Count, told)
	}

	pod := &model.Workload{
		Meta: model.Meta{ID: "uid-pod", Namespace: model.DefaultNamespace, Application: "kubernetes", Name: "web-1"}, Type: model.SingleWorkload, Count: 1, OwnerID: "uid-web", RevisionID: "uid-pod.1",
		Belongs: &model.Belonging{Platform: "Kubernetes", Tool: "kubectl", Kind: "Pod", Name: "web-1"}, Template: model.Template{Tasks: []model.TaskSpec{{Name: "app", Image: "shop/web:v1"}}},
	}
	b.put(pod)
	b.put(&model.Instance{
		Meta: model.Meta{ID: "instance-1", Namespace: model.DefaultNamespace, Application: "kubernetes", Name: "web-1"}, WorkloadID: "uid-pod", RevisionID: "uid-pod.1", NodeID: "n1",
		Desired: model.DesiredRun, Status: model.InstanceStatus{State: model.InstanceRunning, Ready: true},
	})
	if err := b.Scale(ctx, anna, "kubernetes/web-1", 2); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "Pod web-1 of Kubernetes: use kubectl") {
		t.Errorf("scaling a pod: %v", err)
	}
	if err := b.EndInstances(ctx, anna, []string{"instance-1"}, true); !fault.Is(err, fault.Unsupported) {
		t.Errorf("ending a pod's instance: %v", err)
	}
	snap := b.Store.Snapshot()
	if owner, within := store.Within(snap, pod); !within || owner.ID != "uid-web" {
		t.Errorf("the pod is not within its deployment")
	}
	n := 0
	for range store.InstancesOf(snap, have()) {
		n++
	}
	e, err := b.Explain(ctx, anna, "k8s/web")
	if err != nil || n != 1 || !strings.Contains(strings.Join(e.Lines, "\n"), "1 of 4 ready") {
		t.Errorf("%d instances; explained as %v, %v", n, e, err)
	}
	st, err := b.Status(ctx, anna)
	if err != nil || st.Workloads != 1 || st.Instances != 1 || st.Ready != 1 {
		t.Errorf("status %+v, %v", st, err)
	}

	if err := b.Unfollow(ctx, anna, "uid-web"); err != nil {
		t.Fatal(err)
	}
	snap = b.Store.Snapshot()
	if _, there := store.ByName[*model.Application](snap, model.DefaultNamespace, "", "k8s"); there {
		t.Error("the application stays without members")
	}
	if _, within := store.Within(snap, pod); within {
		t.Error("the pod is within what is gone")
	}
	if err := b.Unfollow(ctx, anna, "uid-pod"); !fault.Is(err, fault.Conflict) {
		t.Errorf("forgetting what is not followed: %v", err)
	}
}
