package docker_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// TestSizesAreTold holds that lists and inspections tell of sizes when they are asked to, and say so of what is not known.
func TestSizesAreTold(t *testing.T) {
	h := newHouse(t)
	h.runs("web")
	h.want("POST", "/containers/create?name=made", `{"Image":"busybox:1"}`, 201)
	type one struct {
		Names              []string
		SizeRw, SizeRootFs *int64
	}
	var list []one
	ask := func(path string, v any) {
		t.Helper()
		if err := json.Unmarshal([]byte(h.want("GET", path, "", 200)), v); err != nil {
			t.Fatal(err)
		}
	}
	ask("/containers/json", &list)
	if len(list) != 1 || list[0].SizeRw != nil {
		t.Errorf("without being asked: %+v", list)
	}
	ask("/containers/json?size=1&all=1", &list)
	for _, c := range list {
		if known := c.SizeRw != nil && c.SizeRootFs != nil; known != (c.Names[0] == "/web") || known && (*c.SizeRw != 5 || *c.SizeRootFs != 105) {
			t.Errorf("%s is of %v and %v", c.Names[0], c.SizeRw, c.SizeRootFs)
		}
	}
	var got one
	if ask("/containers/web/json?size=1", &got); got.SizeRw == nil || *got.SizeRw != 5 || *got.SizeRootFs != 105 {
		t.Errorf("inspected: %+v", got)
	}

	// Three images of four layers, of which the first is everybody's, and one that is not unpacked here.
	for n, name := range []string{"a", "b", "c"} {
		h.put(&model.Image{Meta: model.Meta{ID: model.NewID(), Name: "docker.io/library/" + name + ":1"}, Digest: fmt.Sprintf("sha256:%064d", n), SizeBytes: 1})
		h.layers[fmt.Sprintf("sha256:%064d", n)] = []string{"base:100", name + ":" + strings.Repeat("1", n+1)}
	}
	h.want("POST", "/volumes/create", `{"Name":"unused"}`, 201)
	h.put(&model.Volume{Meta: model.Meta{ID: model.NewID(), Namespace: model.DefaultNamespace, Name: "elsewhere"}, NodeID: "n1"})
	var df struct {
		LayersSize int64
		Images     []struct {
			RepoTags         []string
			Size, SharedSize int64
			Containers       int
		}
		Containers []one
		Volumes    []struct {
			Name      string
			UsageData struct{ Size, RefCount int64 }
		}
	}
	ask("/system/df", &df)
	if want := int64(100 + 1 + 11 + 111); df.LayersSize != want {
		t.Errorf("layers take %d, want %d", df.LayersSize, want)
	}
	images := map[string]string{}
	for _, i := range df.Images {
		images[i.RepoTags[0]] = fmt.Sprint(i.Size, i.SharedSize, i.Containers)
	}
	if s := fmt.Sprint(images); s != "map[a:1:101 100 0 b:1:111 100 0 busybox:1:0 0 2 c:1:211 100 0]" {
		t.Errorf("images: %s", s)
	}
	if len(df.Containers) != 2 {
		t.Errorf("containers: %+v", df.Containers)
	}
	volumes := map[string]int64{}
	for _, v := range df.Volumes {
		volumes[v.Name] = v.UsageData.Size
	}
	if s := fmt.Sprint(volumes); s != "map[elsewhere:-1 unused:0]" {
		t.Errorf("volumes: %s", s)
	}
	var images2 []struct {
		RepoTags         []string
		Size, SharedSize int64
	}
	ask("/images/json?shared-size=1&filters="+`{"reference":["b"]}`, &images2)
	if s := fmt.Sprint(images2); s != "[{[b:1] 111 100}]" {
		t.Errorf("the list of images: %s", s)
	}
}
