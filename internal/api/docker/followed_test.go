package docker_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// TestAServiceOfAnotherPlatform: it is listed with the instances of what it owns, which is not; it can be
// scaled, and all else is refused by name.
func TestAServiceOfAnotherPlatform(t *testing.T) {
	h := newHouse(t)
	kube := func(kind, name string) *model.Belonging {
		return &model.Belonging{Platform: "Kubernetes", Tool: "kubectl", Kind: kind, Name: name}
	}
	template := model.Template{Tasks: []model.TaskSpec{{Name: "app", Image: "shop/web:v1"}}}
	err := h.core.Follow(t.Context(), core.Local("test", "test"), core.Following{Workload: &model.Workload{
		Meta: model.Meta{ID: "uid-web", Application: "k8s", Name: "web"}, Type: model.ServiceWorkload, Count: 2, Template: template, Belongs: kube("Deployment", "web"), Followed: &model.Followed{Count: 2},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		name := fmt.Sprint("web-", n)
		w := &model.Workload{
			Meta: model.Meta{ID: "pod-" + name, Namespace: model.DefaultNamespace, Application: "kubernetes", Name: name}, Type: model.SingleWorkload, Count: 1, OwnerID: "uid-web", RevisionID: name + ".1",
			Template: template, Belongs: kube("Pod", name),
		}
		h.put(w)
		h.put(&model.Instance{
			Meta: model.Meta{ID: "instance-" + name, Namespace: model.DefaultNamespace, Application: "kubernetes", Name: name}, WorkloadID: w.ID, RevisionID: w.RevisionID, Slot: 1, NodeID: "n1",
			Desired: model.DesiredRun, Status: model.InstanceStatus{State: model.InstanceRunning, Ready: true},
		})
	}
	var services []struct {
		ID            string
		Version       struct{ Index uint64 }
		Spec          json.RawMessage
		ServiceStatus struct{ RunningTasks, DesiredTasks int }
	}
	if err := json.Unmarshal([]byte(h.want("GET", "/services?status=true", "", 200)), &services); err != nil {
		t.Fatal(err)
	}
	if len(services) != 1 || services[0].ID != "uid-web" || services[0].ServiceStatus.RunningTasks != 2 || services[0].ServiceStatus.DesiredTasks != 2 {
		t.Fatalf("services %+v", services)
	}
	var tasks []struct {
		ID, ServiceID string
		Slot          int
	}
	if err := json.Unmarshal([]byte(h.want("GET", `/tasks?filters={"service":["k8s_web"],"_up-to-date":["true"]}`, "", 200)), &tasks); err != nil {
		t.Fatal(err)
	}
	if len(tasks) != 2 || tasks[0].ServiceID != "uid-web" || tasks[0].Slot == tasks[1].Slot {
		t.Errorf("tasks %+v", tasks)
	}
	if text := h.want("GET", "/tasks/instance-web-1", "", 200); !strings.Contains(text, `"ServiceID":"uid-web"`) {
		t.Errorf("a task: %s", text)
	}
	s := services[0]
	path := fmt.Sprintf("/services/uid-web/update?version=%d", s.Version.Index)
	h.want("POST", path, strings.Replace(string(s.Spec), `"Replicas":2`, `"Replicas":4`, 1), 200)
	if w, _ := store.Get[*model.Workload](h.store.Snapshot(), "uid-web"); w.Count != 4 || w.Followed.Count != 2 {
		t.Errorf("it was scaled to %d of %d", w.Count, w.Followed.Count)
	}
	path = fmt.Sprintf("/services/uid-web/update?version=%d", s.Version.Index+1)
	for what, text := range map[string]string{
		"another image": h.want("POST", path, strings.Replace(string(s.Spec), "web:v1", "web:v2", 1), 501),
		"a restart":     h.want("POST", path, strings.Replace(strings.Replace(string(s.Spec), `"ForceUpdate":0`, `"ForceUpdate":1`, 1), `"Replicas":2`, `"Replicas":4`, 1), 501),
		"its removal":   h.want("DELETE", "/services/uid-web", "", 501),
	} {
		if !strings.Contains(text, "kubectl") {
			t.Errorf("%s is refused with %s", what, text)
		}
	}
}
