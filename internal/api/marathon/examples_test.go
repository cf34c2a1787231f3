package marathon_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// example is a file as the field has it.
type example struct {
	Name string `json:"name"`
	// Kind is app, group, pod or job.
	Kind string          `json:"kind"`
	Body json.RawMessage `json:"body"`
	// Refused is what the refusal says; empty: it is accepted.
	Refused []string `json:"refused,omitempty"`
}

func examples(t testing.TB) (out []example) {
	t.Helper()
	files, err := filepath.Glob("testdata/examples/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no examples: %v", err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var list []example
		if err := json.Unmarshal(data, &list); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out = append(out, list...)
	}
	return out
}

var where = map[string][2]string{"app": {"/v2/apps", "/v2/apps"}, "group": {"/v2/groups", "/v2/groups"}, "pod": {"/v2/pods", "/v2/pods"}, "job": {"/v1/jobs", "/v1/jobs/"}}

// TestExamples holds that what people write is accepted, or refused with a reason, and that what is
// accepted is given back so that it can be put again, and is then the same.
func TestExamples(t *testing.T) {
	list := examples(t)
	if len(list) < 40 {
		t.Errorf("there are only %d examples", len(list))
	}
	accepted := 0
	for _, e := range list {
		t.Run(e.Name, func(t *testing.T) {
			h := newHouse(t)
			h.put(&model.Secret{Meta: model.Meta{ID: "secret1", Namespace: model.DefaultNamespace, Name: "databasepassword"}})
			code, text := h.ask("POST", where[e.Kind][0], string(e.Body))
			if len(e.Refused) > 0 {
				if code != 422 {
					t.Fatalf("it was answered with %d: %s", code, text)
				}
				for _, want := range e.Refused {
					if !strings.Contains(text, want) {
						t.Errorf("%q is not in %s", want, text)
					}
				}
				return
			}
			if code != 201 {
				t.Fatalf("it was answered with %d: %s", code, text)
			}
			accepted++
			h.roundTrip(e.Kind, string(e.Body))
		})
	}
	t.Logf("%d examples: %d accepted, %d refused with a reason", len(list), accepted, len(list)-accepted)
}

// roundTrip holds that what was put has all that was said, that it can be put again as it is given back,
// and that this changes nothing.
func (h *house) roundTrip(kind, body string) {
	h.t.Helper()
	var put map[string]any
	if err := json.Unmarshal([]byte(body), &put); err != nil {
		h.t.Fatal(err)
	}
	id, _ := put["id"].(string)
	path := where[kind][1] + "/" + strings.Trim(id, "/")
	if kind == "job" {
		path = where[kind][1] + id
	}
	h.play()
	got := h.given(kind, path)
	if kind != "group" {
		for name, value := range put {
			if legacyFields[name] || name == "id" || strings.HasPrefix(name, "tasks") {
				continue
			}
			if missing := lacks(value, got[name]); missing != "" {
				h.t.Errorf("%s was put as %v and is given back as %v: %s", name, value, got[name], missing)
			}
		}
	}
	before := fmt.Sprint(h.templates())
	again, _ := json.Marshal(got)
	method := "PUT"
	h.want(method, path, string(again), 200)
	h.play()
	if after := h.given(kind, path); !sameBut(got, after, "version", "versionInfo") {
		x, _ := json.Marshal(got)
		y, _ := json.Marshal(after)
		h.t.Errorf("put again as it was given back, it is\n%s\nand was\n%s", y, x)
	}
	if after := fmt.Sprint(h.templates()); after != before {
		h.t.Errorf("put again as it was given back, it runs something else:\n%s\nand was\n%s", after, before)
	}
}

// templates are the revisions that workloads run.
func (h *house) templates() map[string]string {
	out := map[string]string{}
	for w := range listOf[*model.Workload](h) {
		out[w.FullName()] = w.RevisionID
	}
	return out
}

func (h *house) given(kind, path string) map[string]any {
	h.t.Helper()
	got := h.read("GET", path, "", 200)
	if kind == "app" {
		got, _ = got["app"].(map[string]any)
		for name := range got {
			if strings.HasPrefix(name, "tasks") {
				delete(got, name)
			}
		}
	}
	if kind == "group" {
		forget(got)
	}
	return got
}

// forget drops from a group what changes with the time.
func forget(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, name := range []string{"version", "versionInfo", "tasksRunning", "tasksStaged", "tasksHealthy", "tasksUnhealthy"} {
			delete(v, name)
		}
		for _, x := range v {
			forget(x)
		}
	case []any:
		for _, x := range v {
			forget(x)
		}
	}
}

// legacyFields come back in other words.
var legacyFields = map[string]bool{"ports": true, "uris": true, "ipAddress": true, "dependencies": true, // and what is only told:
	"version": true, "versionInfo": true, "deployments": true}

// lacks says what of a value another one has not.
func lacks(put, got any) string {
	switch p := put.(type) {
	case nil:
		return ""
	case map[string]any:
		g, _ := got.(map[string]any)
		for name, value := range p {
			if name == "network" || name == "portMappings" && g["image"] != nil || strings.HasPrefix(name, "unreachable") {
				continue // of the container's early form
			}
			if missing := lacks(value, g[name]); missing != "" {
				return name + ": " + missing
			}
		}
		return ""
	case []any:
		g, _ := got.([]any)
		if len(p) != len(g) {
			return fmt.Sprintf("%d elements, not %d", len(g), len(p))
		}
		for i := range p {
			if missing := lacks(p[i], g[i]); missing != "" {
				return fmt.Sprintf("(%d): %s", i, missing)
			}
		}
		return ""
	case float64:
		if p == 0 { // which may be left to be chosen
			return ""
		}
	}
	if fmt.Sprint(put) != fmt.Sprint(got) {
		return fmt.Sprintf("%v, not %v", got, put)
	}
	return ""
}

func sameBut(x, y map[string]any, but ...string) bool {
	for _, name := range but {
		delete(x, name)
		delete(y, name)
	}
	m, _ := json.Marshal(x)
	n, _ := json.Marshal(y)
	return string(m) == string(n)
}
