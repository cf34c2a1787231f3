package docker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// run lets the API follow the state, as a node does, until the test ends.
func (h *house) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.api.Run(ctx) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			h.t.Error(err)
		}
	})
}

// told asks for past events, again and again, until those that are told are enough.
func (h *house) told(query string, enough func([]string) bool) []string {
	h.t.Helper()
	var out []string
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		text := h.want("GET", fmt.Sprintf("/events?until=%d.%09d%s", time.Now().Unix(), time.Now().Nanosecond(), query), "", 200)
		out = nil
		for dec := json.NewDecoder(strings.NewReader(text)); dec.More(); {
			var m struct {
				Type, Action string
				Actor        struct{ Attributes map[string]string }
			}
			if err := dec.Decode(&m); err != nil {
				h.t.Fatal(err)
			}
			out = append(out, strings.TrimSpace(m.Type+" "+m.Action+" "+m.Actor.Attributes["name"]+" "+m.Actor.Attributes["exitCode"]))
		}
		if enough(out) {
			return out
		}
	}
	h.t.Fatalf("only these were told: %q", out)
	return nil
}

// TestPastEvents holds that what happened is told afterwards, in its order, to who asks for it, as far as
// the filters choose it, and to nobody else.
func TestPastEvents(t *testing.T) {
	h := newHouse(t)
	h.run()
	h.want("POST", "/volumes/create", `{"Name":"before"}`, 201) // Run has begun once this, or a later one, is told
	h.told("&since=1", func(list []string) bool {
		if len(list) == 0 {
			h.want("POST", "/volumes/create", `{"Name":"v`+fmt.Sprint(time.Now().UnixNano())+`"}`, 201)
		}
		return len(list) > 0
	})
	h.want("POST", "/containers/create?name=web", `{"Image":"busybox:1","Labels":{"a":"b"}}`, 201)
	w, _ := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "containers", "web")
	i := &model.Instance{Meta: model.Meta{ID: model.NewID(), Namespace: w.Namespace, Application: w.Application, Name: "web.1", Created: time.Now()},
		WorkloadID: w.ID, RevisionID: w.RevisionID, Slot: 1, NodeID: "n1", Desired: model.DesiredRun}
	set := func(state string, code int, s model.InstanceState) {
		i = i.Clone()
		i.Status.State = s
		i.Status.Tasks = []model.TaskStatus{{Name: "main", Run: 1, State: state, ExitCode: code, Started: time.Now()}}
		h.put(i)
		cs := &store.ChangeSet{}
		cs.PutStatus(i)
		if _, err := h.store.Commit(context.Background(), cs); err != nil {
			t.Fatal(err)
		}
	}
	set("running", 0, model.InstanceRunning)
	set("paused", 0, model.InstanceRunning)
	set("running", 0, model.InstanceRunning)
	set("exited", 7, model.InstanceFailed)
	cs := &store.ChangeSet{}
	cs.Delete(model.KindInstance, i.ID)
	cs.Delete(model.KindWorkload, w.ID)
	if _, err := h.store.Commit(context.Background(), cs); err != nil {
		t.Fatal(err)
	}
	got := h.told(`&since=1&filters={"container":["web"]}`, func(list []string) bool {
		return len(list) > 0 && strings.HasPrefix(list[len(list)-1], "container destroy")
	})
	want := "container create web|container start web|container pause web|container unpause web|container die web 7|container destroy web"
	if strings.Join(got, "|") != want {
		t.Errorf("told was %q", got)
	}
	if got := h.told("", func([]string) bool { return true }); len(got) != 0 {
		t.Errorf("without since, what was before is not told; it was: %q", got)
	}
	if got := h.told(`&since=1&filters={"event":["die"]}`, func([]string) bool { return true }); len(got) != 1 {
		t.Errorf("one container died; told was %q", got)
	}
}

// TestEveryWayToNameAContainer holds that a container is found by its name, its ID and the beginning of
// that, with the name of its node before it, and one of a service by its instance, and that what names none or several is refused.
func TestEveryWayToNameAContainer(t *testing.T) {
	h := newHouse(t)
	var made struct{ Id string }
	if err := json.Unmarshal([]byte(h.want("POST", "/containers/create?name=web", `{"Image":"busybox:1"}`, 201)), &made); err != nil {
		t.Fatal(err)
	}
	h.want("POST", "/services/create", `{"Name":"site","TaskTemplate":{"ContainerSpec":{"Image":"busybox:1"}}}`, 201)
	w, _ := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "", "site")
	i := &model.Instance{Meta: model.Meta{ID: model.NewID(), Namespace: w.Namespace, Name: "site.1", Created: time.Now()},
		WorkloadID: w.ID, RevisionID: w.RevisionID, Slot: 1, NodeID: "n1", Desired: model.DesiredRun}
	h.put(i)
	name := func(ref string) string {
		t.Helper()
		var got struct{ Id, Name string }
		if err := json.Unmarshal([]byte(h.want("GET", "/containers/"+ref+"/json", "", 200)), &got); err != nil {
			t.Fatal(err)
		}
		if got.Name != "/web" {
			made.Id = got.Id
		}
		return got.Name
	}
	for _, ref := range []string{"web", "/web", made.Id, made.Id[:12], made.Id[:13], made.Id[:20], made.Id[:40], made.Id[:6]} {
		if got := name(ref); got != "/web" {
			t.Errorf("%s is %s", ref, got)
		}
	}
	full := "site.1." + i.ID
	for _, ref := range []string{full, "site.1", "node1/" + full} {
		if got := name(ref); got != "/"+full {
			t.Errorf("%s is %s", ref, got)
		}
	}
	for _, n := range []int{12, 13, 24, 64} {
		if got := name(made.Id[:n]); got != "/"+full {
			t.Errorf("the first %d digits are %s", n, got)
		}
	}
	for _, ref := range []string{"nosuch", "web2", strings.Repeat("0", 64), strings.Repeat("0", 12), "site.1." + model.NewID(), "node2/" + full} {
		h.want("GET", "/containers/"+ref+"/json", "", 404)
	}
}
