package docker_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// TestTemplatesOfServices holds that what Swarm fills in for each task is filled in, by the node where that
// alone knows it, and that what cannot be is refused.
func TestTemplatesOfServices(t *testing.T) {
	h := newHouse(t)
	spec := func(name, hostname, env, mount string) string {
		return fmt.Sprintf(`{"Name":%q,"Labels":{"tier":"front"},"TaskTemplate":{"ContainerSpec":{"Image":"busybox:1","Hostname":%q,"Env":["PLAIN=1",%q],"Mounts":[%s]}}}`, name, hostname, env, mount)
	}
	bind := `{"Type":"bind","Source":"/srv/{{.Task.Slot}}","Target":"/data"}`
	h.want("POST", "/services/create", spec("web", "{{.Service.Name}}-{{.Task.Slot}}", "AT={{.Node.Hostname}}/{{.Node.ID}} {{index .Service.Labels \"tier\"}} {{.Task.Name}}", bind), 201)
	w, _ := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "", "web")
	task := w.Template.Tasks[0]
	if w.Template.Hostname != "web-{slot}" || !w.Template.PlacedHostname || fmt.Sprint(task.Env) != "[PLAIN=1]" ||
		fmt.Sprint(task.PlacedEnv) != "[AT={node.name}/{node.id} front web.{slot}.{instance.id}]" || task.Mounts[0].Source != "/srv/{slot}" || !task.Mounts[0].Placed {
		t.Errorf("template %+v", w.Template)
	}
	for text, status := range map[string]int{
		"A={{.Nosuch}}": 400, "A={{": 400, `A={{index .Service.Labels "x" "y"}}`: 400, "A={{range .Service.Labels}}x{{end}}": 501, "A={{template \"x\"}}": 501,
	} {
		h.want("POST", "/services/create", spec("other", "", text, ""), status)
	}
	h.want("POST", "/services/create", spec("other", "", "A=b", `{"Type":"volume","Source":"data-{{.Task.Slot}}","Target":"/data"}`), 501)
}

// TestARollbackSaysSo holds that the state of an update that people took back is told in Swarm's words.
func TestARollbackSaysSo(t *testing.T) {
	h := newHouse(t)
	spec := func(arg string) string {
		return fmt.Sprintf(`{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox:1","Args":[%q]}},"UpdateConfig":{"Parallelism":1},"RollbackConfig":{"Parallelism":3}}`, arg)
	}
	h.want("POST", "/services/create", spec("a"), 201)
	workload := func() *model.Workload {
		w, _ := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "", "web")
		return w
	}
	state := func(of model.RolloutState) (s struct{ State, Message string }) {
		t.Helper()
		w := workload().Clone()
		w.Status.Rollout = model.RolloutStatus{State: of, Revision: w.RevisionID}
		cs := &store.ChangeSet{}
		cs.PutStatus(w)
		if _, err := h.store.Commit(t.Context(), cs); err != nil {
			t.Fatal(err)
		}
		var got struct {
			UpdateStatus struct{ State, Message string }
		}
		if err := json.Unmarshal([]byte(h.want("GET", "/services/web", "", 200)), &got); err != nil {
			t.Fatal(err)
		}
		return got.UpdateStatus
	}
	update := func(query, body string) {
		t.Helper()
		h.want("POST", fmt.Sprintf("/services/web/update?version=%d%s", workload().Generation, query), body, 200)
	}
	update("", spec("b"))
	if got := state(model.RolloutUpdating); got.State != "updating" || got.Message != "update in progress" {
		t.Errorf("updating: %+v", got)
	}
	update("&rollback=previous", spec("b"))
	for of, want := range map[model.RolloutState]string{
		model.RolloutUpdating: "rollback_started", model.RolloutPaused: "rollback_paused", model.RolloutCompleted: "rollback_completed",
	} {
		if got := state(of); got.State != want {
			t.Errorf("%s: %+v, want %s", of, got, want)
		}
	}
	if w := workload(); w.Update.Parallelism != 3 || w.Template.Tasks[0].Args[0] != "a" {
		t.Errorf("rolled back: %+v", w)
	}
	update("", spec("c"))
	if got := state(model.RolloutCompleted); got.State != "completed" {
		t.Errorf("updated again: %+v", got)
	}
}

// TestASwarmIsUpdated holds that of a swarm tokens can be replaced, and that what cannot be changed is refused by its name.
func TestASwarmIsUpdated(t *testing.T) {
	h := newHouse(t)
	var s struct {
		Version struct{ Index uint64 }
		Spec    map[string]any
	}
	if err := json.Unmarshal([]byte(h.want("GET", "/swarm", "", 200)), &s); err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("/swarm/update?version=%d", s.Version.Index)
	body, _ := json.Marshal(s.Spec)
	h.want("POST", at+"&rotateWorkerToken=true", string(body), 200)
	h.want("POST", at+"&rotateManagerToken=1", "", 200)
	h.want("POST", "/swarm/update?version=77", string(body), 500)
	h.want("POST", "/swarm/update", string(body), 400)
	if text := h.want("POST", at, strings.Replace(string(body), `"TaskHistoryRetentionLimit":2`, `"TaskHistoryRetentionLimit":7`, 1), 501); !strings.Contains(text, "Orchestration.TaskHistoryRetentionLimit (7)") {
		t.Error(text)
	}
	h.want("GET", "/swarm/unlockkey", "", 200)
	h.want("POST", "/swarm/unlock", `{"UnlockKey":"x"}`, 409)
	h.want("POST", "/swarm/leave", "", 501)
}

// TestLabelsOfServices holds that labels ask for what Swarm has no word for, and that what they mean is there.
func TestLabelsOfServices(t *testing.T) {
	h := newHouse(t)
	body := `{"Name":"web","Labels":{"tutti.autoscale":"{min: 2, max: 5, cpu: 50}","tutti.depends_on":"[db]"},"TaskTemplate":{"ContainerSpec":{"Image":"busybox:1"},
		"Resources":{"Reservations":{"NanoCPUs":1000000}}}}`
	h.want("POST", "/services/create", body, 201)
	w, _ := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "", "web")
	if w.Autoscale == nil || w.Autoscale.Max != 5 || w.Count != 2 || len(w.DependsOn) != 1 {
		t.Errorf("workload %+v", w)
	}
	if text := h.want("POST", "/services/create", strings.Replace(strings.Replace(body, "autoscale", "autoscle", 1), "web", "other", 1), 400); !strings.Contains(text, "did you mean tutti.autoscale?") {
		t.Error(text)
	}
}
