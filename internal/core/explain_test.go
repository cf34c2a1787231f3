package core_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestTenMistakes holds what people read who ask why something does not start, word for word: for
// each of ten typical mistakes the scheduler's reason and what to do.
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
	}
	var out strings.Builder
	for _, m := range mistakes {
		b := newBench(t)
		var nodes []*schedule.NodeView
		for i := range 3 {
			nodes = append(nodes, &schedule.NodeView{Node: &model.Node{
				Meta: model.Meta{ID: fmt.Sprint("h", i), Name: fmt.Sprint("host-", i)}, Attributes: map[string]string{"os": "linux", "arch": "amd64"},
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
		p := schedule.Place(cluster, []schedule.Request{r}, 1)[0]
		meta := model.Meta{Namespace: model.DefaultNamespace, Application: "shop"}
		w := &model.Workload{Meta: meta, Type: model.ServiceWorkload, Count: 1}
		w.ID, w.Name = "w-web", "web"
		i := &model.Instance{Meta: meta, WorkloadID: "w-web", Reason: p.Reason, NodeID: p.NodeID, Desired: model.DesiredRun, Status: model.InstanceStatus{State: model.InstancePending}}
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
