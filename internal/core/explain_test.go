package core_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestTenMistakes holds what people read who ask why something does not start, word for word: for
// each of ten typical mistakes, and some more, the scheduler's reason and what to do.
func TestTenMistakes(t *testing.T) {
	type mistake struct {
		name   string
		nodes  func(n []*schedule.NodeView)
		change func(r *schedule.Request)
		quota  bool
	}
	label := func(key string, values ...string) func(n []*schedule.NodeView) {
		return func(n []*schedule.NodeView) {
			for i, v := range values {
				n[i].Node.Labels = map[string]string{key: v}
			}
		}
	}
	place := func(p model.Placement) func(r *schedule.Request) {
		return func(r *schedule.Request) { r.Template.Placement = p }
	}
	reserve := func(res model.Resources) func(r *schedule.Request) {
		return func(r *schedule.Request) { r.Template.Tasks[0].Reserve = res }
	}
	used := func(n []*schedule.NodeView) {
		for i, v := range n {
			v.Take("other", &model.Resources{MemoryBytes: int64(3-i) << 30}, []model.HostPort{{Protocol: "tcp", Published: 80}})
		}
	}
	mistakes := []mistake{
		{"a label that no node has", nil, place(model.Placement{Constraints: []model.Constraint{{Key: "node.labels.disk", Operator: model.Equal, Values: []string{"ssd"}}}}), false},
		{"a property that does not exist", nil, place(model.Placement{Constraints: []model.Constraint{{Key: "node.disk", Operator: model.Equal, Values: []string{"ssd"}}}}), false},
		{"more memory than is left", used, reserve(model.Resources{MemoryBytes: 7500 << 20}), false},
		{"a device that is not there", nil, reserve(model.Resources{Custom: map[string]int64{"gpu": 1}}), false},
		{"all nodes cordoned", func(n []*schedule.NodeView) {
			for _, v := range n {
				v.Node.Availability = model.Cordoned
			}
		}, func(*schedule.Request) {}, false},
		{"a taint", func(n []*schedule.NodeView) {
			for _, v := range n {
				v.Node.Taints = []model.Taint{{Key: "dedicated", Effect: "noSchedule"}}
			}
		}, func(*schedule.Request) {}, false},
		{"a port held everywhere", used, func(r *schedule.Request) { r.HostPorts = []model.HostPort{{Protocol: "tcp", Published: 80}} }, false},
		{"one per node, and all nodes have one", func(n []*schedule.NodeView) {
			for _, v := range n {
				v.Take("w-web", &model.Resources{}, nil)
			}
		}, place(model.Placement{MaxPerNode: 1}), false},
		{"even over zones, and one zone is full", func(n []*schedule.NodeView) {
			label("zone", "east", "east", "west")(n)
			n[0].Take("w-web", &model.Resources{}, nil)
			n[2].Take("other", &model.Resources{MemoryBytes: 8 << 30}, nil)
		}, func(r *schedule.Request) {
			r.Template.Placement.Skew = []model.Skew{{Key: "node.labels.zone", Max: 1}}
			r.Template.Tasks[0].Reserve.MemoryBytes = 1 << 30
		}, false},
		{"a quota used up", nil, reserve(model.Resources{NanoCPUs: 2e9}), true},
		{"a label that is spelled otherwise", label("disk", "hdd", "ssd", "hdd"), place(model.Placement{Constraints: []model.Constraint{{Key: "node.labels.dsik", Operator: model.Equal, Values: []string{"ssd"}}}}), false},
		{"a value that is spelled otherwise", label("region", "frankfurt", "frankfurt", "paris"), place(model.Placement{Constraints: []model.Constraint{{Key: "node.labels.region", Operator: model.Equal, Values: []string{"frankfrut"}}}}), false},
		{"a kernel that is too old", nil, place(model.Placement{Constraints: []model.Constraint{{Key: "node.attributes.kernel", Operator: model.AtLeast, Values: []string{"v6.8"}}}}), false},
		{"an image for another platform", nil, place(model.Placement{Platforms: []string{"linux/arm64"}}), false},
		{"a volume whose node is down", func(n []*schedule.NodeView) { n[1].Node.Status.State = model.NodeDown },
			func(r *schedule.Request) {
				r.PinnedTo, r.PinReason = "h1", "do not hold the volume shop/data, which lives on host-1"
			}, false},
		{"a gang that does not fit as a whole", used, func(r *schedule.Request) {
			r.Template.Placement.Gang, r.Template.Tasks[0].Reserve.MemoryBytes = true, 7<<30
		}, false},
		{"close to what does not run", nil, func(r *schedule.Request) {
			r.Near = []schedule.Relation{{Workloads: []string{"w-db"}, Names: "shop/db", Key: "node.id"}}
		}, false},
	}
	var out strings.Builder
	for _, m := range mistakes {
		b := newBench(t)
		var nodes []*schedule.NodeView
		for i := range 3 {
			nodes = append(nodes, &schedule.NodeView{Node: &model.Node{
				Meta: model.Meta{ID: fmt.Sprint("h", i), Name: fmt.Sprint("host-", i)}, Attributes: map[string]string{"os": "linux", "arch": "amd64", "kernel": "6.1.9"},
				Capacity: model.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30}, Status: model.NodeStatus{State: model.NodeReady},
			}})
		}
		if m.nodes != nil {
			m.nodes(nodes)
		}
		template := &model.Template{Tasks: []model.TaskSpec{{Name: "main"}}}
		r := schedule.Request{InstanceID: "i1", WorkloadID: "w-web", Workload: "shop/web", Namespace: "default", Template: template}
		m.change(&r)
		cluster := schedule.Cluster{Nodes: nodes}
		if m.quota {
			cluster.Namespaces = map[string]*schedule.Share{"default": {Quota: model.Resources{NanoCPUs: 3e9}, Used: model.Resources{NanoCPUs: 2e9}}}
		}
		requests := []schedule.Request{r}
		if template.Placement.Gang {
			requests = []schedule.Request{r, r}
		}
		p := schedule.Place(cluster, requests, 1)[0]
		meta := model.Meta{Namespace: model.DefaultNamespace, Application: "shop"}
		w := &model.Workload{Meta: meta, Type: model.ServiceWorkload, Count: 1}
		w.ID, w.Name = "w-web", "web"
		revision := &model.Revision{Meta: model.Meta{ID: "w-web.1", Name: "w-web.1"}, WorkloadID: "w-web", Template: *template}
		b.put(revision)
		var cs store.ChangeSet // in place of the bench's nodes
		for _, id := range []string{"n1", "n2"} {
			cs.Delete(model.KindNode, id)
		}
		for _, v := range nodes {
			cs.Put(v.Node)
		}
		if _, err := b.Store.Commit(b.Context(), &cs); err != nil {
			t.Fatal(err)
		}
		i := &model.Instance{Meta: meta, WorkloadID: "w-web", RevisionID: "w-web.1", Reason: p.Reason, NodeID: p.NodeID, Desired: model.DesiredRun, Status: model.InstanceStatus{State: model.InstancePending}}
		i.ID, i.Name = "i1", "web.1"
		b.put(w)
		b.put(i)
		e, err := b.Explain(b.Context(), anna, "shop/web")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "# %s\n%s: %s\n%s\n", m.name, e.Subject, e.State, strings.Join(e.Lines, "\n"))
		for _, a := range e.Advice {
			fmt.Fprintf(&out, "→ %s\n", a)
		}
		if len(e.Advice) == 0 {
			t.Errorf("%s: there is no advice", m.name)
		}
		out.WriteString("\n")
	}
	const golden = "testdata/mistakes.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("people would read\n%s\ninstead of\n%s\n(go test ./internal/core -run TenMistakes -update, if that is better)", out.String(), want)
	}
}
