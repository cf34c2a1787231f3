package core_test

import (
	"maps"
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// TestSizes holds that nodes are asked for what they have, and that nothing is said of what nobody knows.
func TestSizes(t *testing.T) {
	b := newBench(t)
	for id, node := range map[string]string{"here": "n1", "away": "n2", "nowhere": ""} {
		b.put(&model.Instance{Meta: model.Meta{ID: id, Namespace: model.DefaultNamespace, Name: id + ".1"}, NodeID: node})
		b.put(&model.Volume{Meta: model.Meta{ID: "v-" + id, Namespace: model.DefaultNamespace, Name: id}, NodeID: node})
	}
	b.put(&model.Volume{Meta: model.Meta{ID: "v-nfs", Namespace: model.DefaultNamespace, Name: "nfs"}, NodeID: "n1", Options: map[string]string{model.VolumeType: "nfs"}})
	tasks := []core.TaskRef{{Instance: "away", Task: "main"}, {Instance: "here", Task: "unknown"}, {Instance: "here", Task: "main"}, {Instance: "nowhere"}, {Instance: "nosuch"}}
	volumes := []string{"v-away", "v-nfs", "v-here", "v-nowhere", "nosuch"}
	got, err := b.Core.Sizes(t.Context(), anna, tasks, volumes)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[core.TaskRef]core.TaskSize{{Instance: "here", Task: "main"}: {Written: 5, Total: 105}}; !maps.Equal(got.Tasks, want) {
		t.Errorf("tasks: %v, want %v", got.Tasks, want)
	}
	if want := map[string]int64{"v-here": 7, "v-nowhere": 0}; !maps.Equal(got.Volumes, want) {
		t.Errorf("volumes: %v, want %v", got.Volumes, want)
	}
}
