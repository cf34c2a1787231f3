package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestManifestsAreTold(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       int
		wrong      string
	}{
		{name: "Compose", body: "services: {web: {image: web}}"},
		{name: "Marathon", body: `{"id": "/web", "cmd": "sleep 1"}`},
		{name: "nothing", body: ""},
		{name: "no YAML", body: "a: [b"},
		{name: "one", body: "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n", want: 1},
		{name: "several, and an empty one", body: "---\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: web}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: db}\n---\n", want: 2},
		{name: "a list", body: `{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}}]}`, want: 1},
		{name: "no name", body: "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n---\napiVersion: v1\nkind: Pod\n", wrong: "after pod/web has no apiVersion, kind or metadata.name"},
		{name: "a list of something else", body: "apiVersion: v1\nkind: List\nitems: [{kind: Pod}]\n", wrong: "a member of a list has no"},
	} {
		list, err := manifestsIn(c.name, []byte(c.body))
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s: %v; want %s", c.name, err, c.wrong)
			}
			continue
		}
		if err != nil || len(list) != c.want {
			t.Errorf("%s: %d manifests, %v; want %d", c.name, len(list), err, c.want)
		}
	}
}

// TestTheShopAsManifests: the example is read, namespaces and kinds come first, and files of others beside
// manifests are refused.
func TestTheShopAsManifests(t *testing.T) {
	const shop = "../../examples/shop/kubernetes"
	d := &deployFlags{}
	d.Files = []string{shop}
	list, _, err := d.kubernetesFiles(t.Context(), strings.NewReader(""))
	if err != nil || len(list) < 15 {
		t.Fatalf("%d manifests, %v", len(list), err)
	}
	d.Files = []string{shop, "-"}
	list, _, err = d.kubernetesFiles(t.Context(), strings.NewReader("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"))
	if err != nil || list[0].Kind != "Namespace" {
		t.Errorf("first comes %s, %v", &list[0], err)
	}
	d.Files = []string{shop, "../../examples/shop/compose.yaml"}
	if _, _, err := d.kubernetesFiles(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "compose.yaml holds none") {
		t.Errorf("a Compose file beside manifests: %v", err)
	}
	empty := t.TempDir()
	if err := os.WriteFile(filepath.Join(empty, "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.Files = []string{empty}
	if _, _, err := d.kubernetesFiles(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "directory without manifests") {
		t.Errorf("an empty directory: %v", err)
	}
	d.Files = []string{"-"}
	_, rest, err := d.kubernetesFiles(t.Context(), strings.NewReader(`{"id": "/web"}`))
	if err != nil {
		t.Fatal(err)
	}
	if left, err := io.ReadAll(rest); err != nil || string(left) != `{"id": "/web"}` {
		t.Errorf("what is somebody else's is left as %q, %v", left, err)
	}
}

// fakeKubernetes answers for Deployments, which become available at the third look.
type fakeKubernetes struct {
	objects map[string]map[string]any
	looks   int
	asked   []string
}

func (f *fakeKubernetes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.asked = append(f.asked, r.Method+" "+r.URL.RequestURI())
	answer := func(code int, v any) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
	switch o := f.objects[r.URL.Path]; {
	case r.URL.Path == "/apis/apps/v1":
		answer(200, map[string]any{"resources": []any{map[string]any{"name": "deployments", "kind": "Deployment", "namespaced": true}, map[string]any{"name": "deployments/scale", "kind": "Scale"}}})
	case r.Method == http.MethodGet && o == nil:
		answer(404, map[string]any{"message": "not found"})
	case r.Method == http.MethodGet:
		f.looks++
		if f.looks > 2 {
			o["status"] = map[string]any{"observedGeneration": 1, "updatedReplicas": 2, "availableReplicas": 2, "replicas": 2}
		}
		answer(200, o)
	case strings.HasSuffix(r.URL.Path, "/refused"):
		answer(422, map[string]any{"message": "spec.replicas: Invalid value: -1"})
	default:
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.Header.Get("Content-Type") != "application/apply-patch+yaml" {
			answer(400, map[string]any{"message": fmt.Sprint(err)})
			return
		}
		if o == nil {
			o = body
			o["metadata"] = map[string]any{"resourceVersion": "5", "generation": 1}
			f.objects[r.URL.Path] = o
		}
		answer(200, o)
	}
}

func TestManifestsAreApplied(t *testing.T) {
	f := &fakeKubernetes{objects: map[string]map[string]any{}}
	s := httptest.NewServer(f)
	defer s.Close()
	api := &kubernetesAPI{client: s.Client(), url: s.URL, namespace: "default", kinds: map[string]kubernetesKind{}}
	list, err := manifestsIn("web.yaml", []byte("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 2}\n"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := api.apply(t.Context(), &list[0], false)
	if err != nil || a.Action != "created" || a.Object != "deployment/web" || a.Namespace != "default" {
		t.Fatalf("%+v, %v", a, err)
	}
	if last := f.asked[len(f.asked)-1]; last != "PATCH /apis/apps/v1/namespaces/default/deployments/web?fieldManager=tutti&force=true" {
		t.Errorf("it was asked for %s", last)
	}
	if err := api.await(t.Context(), []*applying{a}, time.Minute); err != nil {
		t.Error(err)
	}
	if a, err = api.apply(t.Context(), &list[0], true); err != nil || a.Action != "unchanged" || !strings.HasSuffix(f.asked[len(f.asked)-1], "&dryRun=All") {
		t.Errorf("again it is %+v, %v, by %s", a, err, f.asked[len(f.asked)-1])
	}
	list[0].Metadata.Name = "refused"
	if _, err = api.apply(t.Context(), &list[0], false); err == nil || err.Error() != "spec.replicas: Invalid value: -1" {
		t.Errorf("what the API refuses is told as %v", err)
	}
	list[0].Kind = "Orchestra"
	if _, err = api.apply(t.Context(), &list[0], false); err == nil || !strings.Contains(err.Error(), "no kind Orchestra in apps/v1") {
		t.Errorf("a kind that is not there is told as %v", err)
	}
}

func TestPodsAreNamedAsKubectlDoes(t *testing.T) {
	for ref, want := range map[string]string{"pod/web-1": "kubernetes/web-1", "pods/web-1": "kubernetes/web-1", "shop/web": "shop/web", "pod": "pod"} {
		if got := podReference(ref); got != want {
			t.Errorf("%s is %s; want %s", ref, got, want)
		}
	}
}
