package docker_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func (h *house) workload(name string) *model.Workload {
	h.t.Helper()
	w, ok := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "containers", name)
	if !ok {
		h.t.Fatalf("there is no container %s", name)
	}
	return w
}

// TestALinkIsANameOnTheNetwork: a container is found by the alias of another one's --link, on the default network and
// on one of people's own; without a common network there is no link.
func TestALinkIsANameOnTheNetwork(t *testing.T) {
	h := newHouse(t)
	h.want("POST", "/networks/create", `{"Name":"back"}`, 201)
	h.want("POST", "/containers/create?name=db", `{"Image":"busybox:1","NetworkingConfig":{"EndpointsConfig":{"bridge":{},"back":{}}}}`, 201)
	h.want("POST", "/containers/create?name=web", `{"Image":"busybox:1","HostConfig":{"Links":["db:database"]}}`, 201)
	h.want("POST", "/containers/create?name=worker", `{"Image":"busybox:1","HostConfig":{"NetworkMode":"back"},"NetworkingConfig":{"EndpointsConfig":{"back":{"Links":["db:store","db"]}}}}`, 201)
	var aliases []string
	for _, at := range h.workload("db").Template.Networks {
		aliases = append(aliases, strings.Join(at.Aliases, " "))
	}
	slices.Sort(aliases)
	if !slices.Equal(aliases, []string{"db database", "db store"}) {
		t.Errorf("db is called %q", aliases)
	}
	if text := h.want("POST", "/containers/create", `{"Image":"busybox:1","HostConfig":{"Links":["nosuch:x"]}}`, 400); !strings.Contains(text, "could not get container for nosuch") {
		t.Error(text)
	}
	h.want("POST", "/networks/create", `{"Name":"other"}`, 201)
	h.want("POST", "/containers/create", `{"Image":"busybox:1","HostConfig":{"NetworkMode":"other","Links":["db:x"]}}`, 400)
}

// TestVolumesFromAnother: those with a name are mounted here, too, and folders only where the other container is.
func TestVolumesFromAnother(t *testing.T) {
	h := newHouse(t)
	h.want("POST", "/containers/create?name=db", `{"Image":"busybox:1","HostConfig":{"Binds":["data:/data","conf:/conf:ro","/etc:/host"],"Tmpfs":{"/tmp":""}}}`, 201)
	if text := h.want("POST", "/containers/create?name=early", `{"Image":"busybox:1","HostConfig":{"VolumesFrom":["db"]}}`, 501); !strings.Contains(text, "start it first") {
		t.Error(text)
	}
	db := h.workload("db")
	h.put(&model.Instance{Meta: model.Meta{ID: model.NewID(), Namespace: db.Namespace, Application: db.Application, Name: "db.1"},
		WorkloadID: db.ID, RevisionID: db.RevisionID, Slot: 1, NodeID: "n1", Desired: model.DesiredRun})
	h.want("POST", "/containers/create?name=backup", `{"Image":"busybox:1","HostConfig":{"Binds":["own:/conf"],"VolumesFrom":["db:ro"]}}`, 201)
	w := h.workload("backup")
	var got []string
	for _, m := range w.Template.Tasks[0].Mounts {
		text := m.Target
		if m.ReadOnly {
			text += " ro"
		}
		got = append(got, text)
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"/conf", "/data ro", "/host ro"}) {
		t.Errorf("it mounts %q", got)
	}
	if c := w.Template.Placement.Constraints; len(c) != 1 || c[0].Key != "node.id" || !slices.Equal(c[0].Values, []string{"n1"}) {
		t.Errorf("it is placed by %+v", c)
	}
	h.want("POST", "/containers/create?name=anonymous", `{"Image":"busybox:1","Volumes":{"/data":{}}}`, 201)
	if text := h.want("POST", "/containers/create", `{"Image":"busybox:1","HostConfig":{"VolumesFrom":["anonymous"]}}`, 501); !strings.Contains(text, "/data") {
		t.Error(text)
	}
	h.want("POST", "/containers/create", `{"Image":"busybox:1","HostConfig":{"VolumesFrom":["nosuch"]}}`, 400)
	h.want("POST", "/containers/create", `{"Image":"busybox:1","HostConfig":{"VolumesFrom":["db:x"]}}`, 400)

	// Classic Swarm's affinities are to where containers are.
	h.want("POST", "/containers/create?name=near", `{"Image":"busybox:1","Env":["affinity:container==d*"]}`, 201)
	if c := h.workload("near").Template.Placement.Constraints; len(c) != 1 || c[0].Operator != model.In || !slices.Equal(c[0].Values, []string{"n1"}) {
		t.Errorf("near it is placed by %+v", c)
	}
	if text := h.want("POST", "/containers/create", `{"Image":"busybox:1","Env":["affinity:container!=/d./"]}`, 400); !strings.Contains(text, "node.id notIn n1") {
		t.Error(text)
	}
	h.want("POST", "/containers/create", `{"Image":"busybox:1","Env":["affinity:container==nosuch"]}`, 400)
}

// TestWhatIsKeptOfOutput: drivers and options that mean something here are taken over, and the others refused by name.
func TestWhatIsKeptOfOutput(t *testing.T) {
	h := newHouse(t)
	text := h.want("POST", "/containers/create?name=some", `{"Image":"busybox:1","HostConfig":{"LogConfig":{"Type":"json-file","Config":{"max-size":"10k","max-file":"2","tag":"x"}}}}`, 201)
	if l := h.workload("some").Template.Tasks[0].Log; l == nil || *l != (model.LogPolicy{FileBytes: 10_000, Files: 2}) || !strings.Contains(text, "without effect: tag") {
		t.Errorf("its policy is %+v, and it is said %s", l, text)
	}
	h.want("POST", "/containers/create?name=none", `{"Image":"busybox:1","HostConfig":{"LogConfig":{"Type":"none"}}}`, 201)
	h.want("GET", "/containers/none/logs?stdout=1", "", 501)
	h.want("POST", "/containers/create", `{"Image":"busybox:1","HostConfig":{"LogConfig":{"Type":"local","Config":{"nosuch":"1"}}}}`, 400)
	h.want("POST", "/containers/create", `{"Image":"busybox:1","HostConfig":{"LogConfig":{"Type":"local","Config":{"max-file":"99"}}}}`, 400)
	h.want("POST", "/services/create", `{"Name":"s","TaskTemplate":{"ContainerSpec":{"Image":"busybox:1"},"LogDriver":{"Name":"local","Options":{"max-size":"1m"}}}}`, 201)
	h.want("POST", "/services/create", `{"Name":"s2","TaskTemplate":{"ContainerSpec":{"Image":"busybox:1"},"LogDriver":{"Name":"gelf"}}}`, 501)
	var info struct {
		HostConfig struct{ LogConfig struct{ Type string } }
	}
	if err := json.Unmarshal([]byte(h.want("GET", "/containers/none/json", "", 200)), &info); err != nil || info.HostConfig.LogConfig.Type != "none" {
		t.Errorf("its inspection says %+v, %v", info, err)
	}
	if text := h.want("POST", "/swarm/join", `{"RemoteAddrs":["10.0.0.5:7400"],"JoinToken":"abc"}`, 503); !strings.Contains(text, "tutti join 10.0.0.5:7400 --token abc") {
		t.Error(text)
	}
}
