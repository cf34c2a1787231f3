package placing

import (
	"fmt"
	"strconv"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
)

// place decides a shape from nothing and checks that everything found a place.
func place(s shape) (time.Duration, error) {
	nodes := views(s)
	requests := requestsOf(s)
	var placed []schedule.Placement
	took, err := cost(func() error {
		placed = schedule.Place(schedule.Cluster{Nodes: nodes}, requests, 1)
		return nil
	})
	if err != nil {
		return 0, err
	}
	for i := range placed {
		if placed[i].NodeID == "" {
			return 0, fmt.Errorf("instance %s found no place: %s", placed[i].InstanceID, placed[i].Reason)
		}
	}
	return took, nil
}

func views(s shape) []*schedule.NodeView {
	out := make([]*schedule.NodeView, s.nodes)
	for i := range out {
		out[i] = &schedule.NodeView{Node: node(i)}
	}
	return out
}

// node is the n-th of a cluster.
func node(n int) *model.Node {
	name := "node-" + strconv.Itoa(n)
	labels := map[string]string{"zone": zoneOf(n)}
	if n%ssdEvery == 0 {
		labels["disk"] = "ssd"
	}
	return &model.Node{
		Meta:         model.Meta{ID: "id-" + name, Name: name, Labels: labels},
		Availability: model.Active,
		Capacity:     model.Resources{NanoCPUs: nodeNanoCPUs, MemoryBytes: nodeMemory},
		Attributes:   map[string]string{"os": "linux", "arch": "amd64"},
		Status:       model.NodeStatus{State: model.NodeReady},
	}
}

// template is what all workloads of a kind run.
func template(k kind) *model.Template {
	t := &model.Template{Tasks: []model.TaskSpec{{
		Name: "main", Image: "app",
		Reserve: model.Resources{NanoCPUs: instanceNanoCPUs, MemoryBytes: instanceMemory},
	}}}
	switch k {
	case spread:
		t.Placement.Spread = []string{"node.labels.zone"}
	case constrained:
		t.Placement.Constraints = []model.Constraint{{Key: "node.labels.disk", Operator: model.Equal, Values: []string{"ssd"}}}
	case apart:
		t.Placement.MaxPerNode = 1
	}
	return t
}

func requestsOf(s shape) []schedule.Request {
	templates := make([]*model.Template, s.workloads)
	names := make([]string, s.workloads)
	for i := range templates {
		templates[i], names[i] = template(s.kind), "workload-"+strconv.Itoa(i)
	}
	out := make([]schedule.Request, s.instances)
	for i := range out {
		w := s.workloadOf(i)
		out[i] = schedule.Request{InstanceID: "instance-" + strconv.Itoa(i), WorkloadID: names[w], Workload: names[w], Template: templates[w]}
	}
	return out
}
