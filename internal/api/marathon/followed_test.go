package marathon_test

import (
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// TestAnAppOfAnotherPlatform: it is listed with the instances of what it owns, which is not; it can be
// scaled, and all else is refused by name.
func TestAnAppOfAnotherPlatform(t *testing.T) {
	h := newHouse(t)
	template := model.Template{Tasks: []model.TaskSpec{{Name: "app", Image: "shop/web:v1"}}}
	err := h.core.Follow(t.Context(), h.who, core.Following{Workload: &model.Workload{
		Meta: model.Meta{ID: "uid-web", Application: "k8s", Name: "web"}, Type: model.ServiceWorkload, Count: 1, Template: template,
		Belongs: &model.Belonging{Platform: "Kubernetes", Tool: "kubectl", Kind: "Deployment", Name: "web"}, Followed: &model.Followed{Count: 1},
	}})
	if err != nil {
		t.Fatal(err)
	}
	h.put(&model.Workload{
		Meta: model.Meta{ID: "uid-pod", Namespace: model.DefaultNamespace, Application: "kubernetes", Name: "web-1"}, Type: model.SingleWorkload, Count: 1, OwnerID: "uid-web", RevisionID: "uid-pod.1", Template: template,
		Belongs: &model.Belonging{Platform: "Kubernetes", Tool: "kubectl", Kind: "Pod", Name: "web-1"},
	})
	h.put(&model.Instance{
		Meta: model.Meta{ID: "i", Namespace: model.DefaultNamespace, Application: "kubernetes", Name: "web-1"}, WorkloadID: "uid-pod", RevisionID: "uid-pod.1", NodeID: "n1",
		Desired: model.DesiredRun, Status: model.InstanceStatus{State: model.InstanceRunning, Ready: true},
	})
	apps, _ := at(h.read("GET", "/v2/apps", "", 200), "apps").([]any)
	if len(apps) != 1 || at(apps[0], "id") != "/k8s/web" || at(apps[0], "tasksRunning") != 1.0 {
		t.Fatalf("apps %v", apps)
	}
	tasks, _ := at(h.read("GET", "/v2/apps/k8s/web/tasks", "", 200), "tasks").([]any)
	if len(tasks) != 1 {
		t.Errorf("tasks %v", tasks)
	}
	h.want("PUT", "/v2/apps/k8s/web", `{"instances":4}`, 200)
	if w, _ := store.Get[*model.Workload](h.store.Snapshot(), "uid-web"); w.Count != 4 || w.Followed.Count != 1 {
		t.Errorf("it was scaled to %d of %d", w.Count, w.Followed.Count)
	}
	for _, ask := range [][2]string{
		{"PUT /v2/apps/k8s/web", `{"cmd":"sleep 1"}`}, {"DELETE /v2/apps/k8s/web", ""}, {"POST /v2/apps/k8s/web/restart", ""}, {"DELETE /v2/apps/k8s/web/tasks", ""},
	} {
		method, path, _ := strings.Cut(ask[0], " ")
		if code, text := h.ask(method, path, ask[1]); code != 422 || !strings.Contains(text, "kubectl") {
			t.Errorf("%s: %d %s", ask[0], code, text)
		}
	}
}
