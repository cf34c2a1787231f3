package marathon_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

func (h *house) deploy(m core.Manifests) (string, error) {
	list, err := h.api.Deploy(context.Background(), h.who, m)
	var out []string
	for _, r := range list {
		for _, ch := range r.Changes {
			out = append(out, ch.Action+" "+string(ch.Kind)+" "+r.Application+"/"+ch.Name)
		}
	}
	return strings.Join(out, "; "), err
}

func TestFilesAreDeployed(t *testing.T) {
	h := newHouse(t)
	files := func(bodies ...string) (m core.Manifests) {
		for _, b := range bodies {
			m.Files = append(m.Files, core.Manifest{Name: "x.json", Body: []byte(b)})
		}
		return m
	}
	app := `{"id":"/one","cmd":"sleep 1","cpus":0.1,"mem":16}`
	pod := `{"id":"/p/pod","containers":[{"name":"c","exec":{"command":{"shell":"x"}},"resources":{"cpus":0.1,"mem":16}}]}`
	group := `{"id":"/g","apps":[{"id":"a","cmd":"x","cpus":0.1,"mem":16},{"id":"/g/b","cmd":"y","cpus":0.1,"mem":16}],"groups":[{"id":"sub","apps":[{"id":"c","cmd":"z","cpus":0.1,"mem":16}]}]}`
	dry := files(app, pod, group)
	dry.DryRun = true
	got, err := h.deploy(dry)
	if want := "created workload /one; created workload g/a; created workload g/b; created workload g/sub_c; created workload p/pod"; err != nil || got != want {
		t.Fatalf("the dry run says %q, %v; want %q", got, err, want)
	}
	h.want("GET", "/v2/apps/one", "", 404)
	if got, err = h.deploy(files("["+app+","+pod+"]", group)); err != nil || !strings.Contains(got, "created workload g/sub_c") {
		t.Fatalf("%s, %v", got, err)
	}
	h.want("GET", "/v2/apps/one", "", 200)
	h.want("GET", "/v2/pods/p/pod::status", "", 200)
	h.want("GET", "/v2/groups/g/sub", "", 200)
	before := h.read("GET", "/v2/apps/g/a", "", 200)
	if got, err = h.deploy(files(app, pod, group)); err != nil || strings.Contains(got, "created") || strings.Contains(got, "updated") {
		t.Errorf("again: %s, %v", got, err)
	}
	if after := h.read("GET", "/v2/apps/g/a", "", 200); at(before, "app", "version") != at(after, "app", "version") {
		t.Errorf("what was not changed has version %v, and had %v", at(after, "app", "version"), at(before, "app", "version"))
	}
	less := files(`{"id":"/g","apps":[{"id":"a","cmd":"x","cpus":0.1,"mem":16}]}`)
	less.KeepOthers = true
	if got, err = h.deploy(less); err != nil || strings.Contains(got, "removed") {
		t.Errorf("others are to be kept: %s, %v", got, err)
	}
	less.KeepOthers = false
	if got, err = h.deploy(less); err != nil || !strings.Contains(got, "removed workload g/b; ") && !strings.HasSuffix(got, "removed workload g/b") {
		t.Errorf("what is not in the group is to go: %s, %v", got, err)
	}
	h.want("GET", "/v2/apps/g/sub/c", "", 404)
	for body, wants := range map[string][]string{
		`{"id":"/one","cmd":"x","cpus":-1,"instances":"two"}`:  {"x.json /instances: expected a number, not a string"},
		`{"id":"/two","cmd":"x","cpus":0,"mem":-1}`:            {"x.json /cpus: must be greater", "\nx.json /mem: must be greater"},
		`[{"id":"/ok","cmd":"x"},{"id":"bad_","cmd":"x"}]`:     {"x.json (1) /id: must fully match"},
		`{"id":"/g","apps":[{"id":"a","cmd":"x","memm":1}]}`:   {"x.json /apps(0)/memm: there is no such field; did you mean"},
		`{"id":"/g/h","containers":[{"name":"c"}],"colour":1}`: {"x.json /colour: there is no such field"},
		`{"id":"/j","run":{"cmd":"x"}}`:                        {"x.json /run: a job of Metronome in a file"},
		`{"id":"/g","cmd":"x"}`:                                {"x.json: A group with id [/g] already exists."},
		`{"id":"/one","apps":[]}`:                              {"x.json: An app with id [/one] already exists."},
		`{"id":"/g","scaleBy":2,"apps":[]}`:                    {"x.json /: it says what is to be done to a group"},
		`{"id":`:                                               {"x.json /: expected a JSON object"},
	} {
		_, err := h.deploy(files(body))
		for _, want := range wants {
			if err == nil || !strings.Contains(err.Error(), strings.TrimSuffix(want, "; did you mean")) {
				t.Errorf("%s is refused with %v, want %q", body, err, want)
			}
		}
	}
}

// TestTheShopIsAGroup holds that the example is accepted, and what becomes of its volumes and its front end.
func TestTheShopIsAGroup(t *testing.T) {
	h := newHouse(t)
	h.put(&model.Secret{Meta: model.Meta{ID: "secret1", Namespace: model.DefaultNamespace, Name: "db_password"}})
	read := func(name string) string {
		body, err := os.ReadFile("../../../examples/shop/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	if got, err := h.deploy(core.Manifests{Files: []core.Manifest{{Name: "marathon.json", Body: []byte(read("marathon.json"))}}}); err != nil || strings.Count(got, "created workload shop/") != 7 {
		t.Fatalf("%s, %v", got, err)
	}
	mounts := h.workload("shop", "postgres").Template.Tasks[0].Mounts
	if len(mounts) != 3 || mounts[0].Source == "" || mounts[0].Source != mounts[1].Source || mounts[1].Target != "/var/lib/postgresql/data" {
		t.Errorf("the database mounts %+v", mounts)
	}
	if task := h.workload("shop", "web").Template.Tasks[0]; task.Driver != "process" || len(task.Artifacts) != 2 {
		t.Errorf("the front end is %+v", task)
	}
	h.want("POST", "/v1/jobs", read("metronome.json"), 201)
}
