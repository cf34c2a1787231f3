package docker_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// bounding is a house whose node bounds what runs, and whose leader takes instances over to the revisions of their workloads.
type bounding struct {
	*house
	mu    sync.Mutex
	bound []model.Bounds
	full  bool // the node refuses
}

func newBounding(t *testing.T) *bounding {
	b := &bounding{house: newHouse(t)}
	b.answer(b)
	watch := b.store.Watch(b.store.Snapshot().Revision(), model.KindWorkload)
	go func() {
		for {
			batch, err := watch.Next(t.Context())
			if err != nil {
				return
			}
			cs := &store.ChangeSet{}
			for _, ch := range batch.Changes {
				w, ok := ch.New.(*model.Workload)
				if !ok {
					continue
				}
				for i := range store.InstancesOfWorkload(b.store.Snapshot(), w.ID) {
					c := i.Clone()
					c.RevisionID = w.RevisionID
					cs.Put(c)
				}
			}
			if cs.Len() > 0 {
				_, _ = b.store.Commit(context.Background(), cs)
			}
		}
	}()
	return b
}

func (b *bounding) Bound(_ context.Context, node string, ref wire.TaskRef, to model.Bounds) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.full || node != "n1" || ref.Task != "main" {
		return fault.New(fault.Conflict, "it uses more")
	}
	b.bound = append(b.bound, to)
	return nil
}

// TestAContainerIsUpdated holds that limits and the restart policy of a container change before and after it was started,
// where it runs first, and that what its node refuses leaves it as it was.
func TestAContainerIsUpdated(t *testing.T) {
	b := newBounding(t)
	workload := func(name string) *model.Workload {
		w, _ := store.ByName[*model.Workload](b.store.Snapshot(), model.DefaultNamespace, "containers", name)
		return w
	}
	b.want("POST", "/containers/create?name=new", `{"Image":"busybox:1"}`, 201)
	b.want("POST", "/containers/new/update", `{"Memory":67108864,"NanoCpus":500000000,"RestartPolicy":{"Name":"always"}}`, 200)
	w := workload("new")
	if task := w.Template.Tasks[0]; task.Limit.MemoryBytes != 64<<20 || task.Limit.NanoCPUs != 5e8 || w.Template.Restart.Condition != model.RestartAlways || !w.Suspended {
		t.Errorf("workload %+v", w)
	}
	if text := b.want("GET", "/containers/new/json", "", 200); !strings.Contains(text, `"Memory":67108864`) || !strings.Contains(text, `"Name":"always"`) {
		t.Errorf("inspected: %s", text)
	}
	if len(b.bound) > 0 {
		t.Errorf("what does not run was bounded: %+v", b.bound)
	}

	b.runs("old")
	b.want("POST", "/containers/old/update", `{"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":2}}`, 200)
	b.want("POST", "/containers/old/update", `{"Memory":67108864,"MemorySwap":-1,"CpuShares":300,"CpusetCpus":"0","BlkioWeight":500,"PidsLimit":70}`, 200)
	w = workload("old")
	task := w.Template.Tasks[0]
	if w.Template.Restart != (model.RestartPolicy{Condition: model.RestartOnFailure, MaxAttempts: 2}) || task.Limit.MemoryBytes != 64<<20 || task.Limit.Pids != 70 ||
		task.Tuning == nil || task.Tuning.CPUShares != 300 || task.Tuning.CPUs != "0" || task.Tuning.IOWeight != 500 || task.Tuning.SwapBytes != -1 {
		t.Errorf("updated: %+v, tuned %+v", w.Template, task.Tuning)
	}
	if n := len(b.bound); n == 0 || b.bound[n-1].Limit.MemoryBytes != 64<<20 || b.bound[n-1].Limit.Pids != 70 || b.bound[n-1].Tuning.CPUs != "0" {
		t.Errorf("the node bounded %+v", b.bound)
	}
	b.want("POST", "/containers/old/update", `{"PidsLimit":-1}`, 200)
	if task := workload("old").Template.Tasks[0]; task.Limit.Pids != 0 || task.Limit.MemoryBytes != 64<<20 {
		t.Errorf("without a limit of processes: %+v", task.Limit)
	}

	for _, c := range []struct {
		body   string
		status int
		says   string
	}{
		{`{"CpuRealtimeRuntime":500}`, 501, "--cpu-rt-runtime"},
		{`{"Memory":4096}`, 400, "Minimum memory limit allowed is 6MB"},
		{`{"BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":1}]}`, 501, "BlkioDevice"},
		{`{"Ulimits":[{"Name":"nofile","Soft":1,"Hard":1}]}`, 501, "ulimits"},
	} {
		if text := b.want("POST", "/containers/old/update", c.body, c.status); !strings.Contains(text, c.says) {
			t.Errorf("%s: %s", c.body, text)
		}
	}
	b.want("POST", "/containers/old/update", `{"NanoCpus":500000000}`, 200)
	b.want("POST", "/containers/old/update", `{"CpuQuota":5000}`, 409)
	b.full = true
	if text := b.want("POST", "/containers/old/update", `{"Memory":33554432}`, 409); !strings.Contains(text, "it uses more") {
		t.Error(text)
	}
	if task := workload("old").Template.Tasks[0]; task.Limit.MemoryBytes != 64<<20 {
		t.Errorf("what the node refused was kept: %+v", task.Limit)
	}
	b.want("POST", "/containers/create?name=brief", `{"Image":"busybox:1","HostConfig":{"AutoRemove":true}}`, 201)
	if text := b.want("POST", "/containers/brief/update", `{"RestartPolicy":{"Name":"always"}}`, 400); !strings.Contains(text, "AutoRemove") {
		t.Error(text)
	}
}
