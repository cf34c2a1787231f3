package core_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func TestBackupAndRestoreOfVolumes(t *testing.T) {
	b, ctx := newBench(t), t.Context()
	v := &model.Volume{Meta: model.Meta{ID: "v1", Namespace: "default", Application: "shop", Name: "data"}, NodeID: "n2"}
	b.put(v)
	var out bytes.Buffer
	if err := b.BackupVolume(ctx, anna, "shop/data", &out); err != nil || out.String() != "data of n2" {
		t.Errorf("the backup is %q, %v", &out, err)
	}
	w := &model.Workload{Meta: model.Meta{ID: "w", Namespace: "default", Application: "shop", Name: "db"}}
	w.Template.Tasks = []model.TaskSpec{{Name: "db", Mounts: []model.Mount{{Type: model.MountVolume, Source: "v1", Target: "/data"}}}}
	b.put(&model.Revision{Meta: model.Meta{ID: "r", Namespace: "default", Name: "r"}, WorkloadID: "w", Template: w.Template})
	i := &model.Instance{Meta: model.Meta{ID: "i", Namespace: "default", Application: "shop", Name: "db.1"}, WorkloadID: "w", RevisionID: "r", NodeID: "n2", Status: model.InstanceStatus{State: model.InstanceRunning}}
	b.put(i)
	if err := b.RestoreVolume(ctx, anna, "shop/data", "", strings.NewReader("x")); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "is used by shop/db.1") {
		t.Errorf("restored while it is used: %v", err)
	}
	cs := &store.ChangeSet{}
	cs.Delete(model.KindInstance, "i")
	if _, err := b.Store.Commit(ctx, cs); err != nil {
		t.Fatal(err)
	}
	if err := b.RestoreVolume(ctx, anna, "shop/data", "node-n1", strings.NewReader("x")); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "lives on node node-n2") {
		t.Errorf("restored on another node: %v", err)
	}
	for _, ref := range []string{"shop/data", "fresh"} {
		if err := b.RestoreVolume(ctx, anna, ref, map[string]string{"fresh": "node-n1"}[ref], strings.NewReader("content")); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(b.restored, ", "); got != "shop/data on n2: content, fresh on n1: content" {
		t.Errorf("restored are %s", got)
	}
	if fresh, ok := store.ByName[*model.Volume](b.Store.Snapshot(), "default", "", "fresh"); !ok || fresh.NodeID != "n1" {
		t.Errorf("the new volume is %+v", fresh)
	}
	n, _ := store.Get[*model.Node](b.Store.Snapshot(), "n2")
	n = n.Clone()
	n.Status.State = model.NodeDown
	cs = &store.ChangeSet{}
	cs.PutStatus(n)
	if _, err := b.Store.Commit(ctx, cs); err != nil {
		t.Fatal(err)
	}
	if err := b.BackupVolume(ctx, anna, "shop/data", &out); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "lives on node node-n2, which is down") {
		t.Errorf("of a node that is down: %v", err)
	}
	cs = &store.ChangeSet{}
	cs.Delete(model.KindNode, "n2")
	if _, err := b.Store.Commit(ctx, cs); err != nil {
		t.Fatal(err)
	}
	if err := b.BackupVolume(ctx, anna, "shop/data", &out); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "which was removed from the cluster") {
		t.Errorf("of a node that is gone: %v", err)
	}
}
