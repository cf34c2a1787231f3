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
	return took, allPlaced(s, placed)
}

// allPlaced makes sure that a shape came out as it should.
func allPlaced(s shape, placed []schedule.Placement) error {
	found, victims, reason := 0, 0, ""
	for i := range placed {
		victims += len(placed[i].Victims)
		if placed[i].NodeID != "" {
			found++
		} else {
			reason = placed[i].Reason
		}
	}
	switch {
	case s.kind == preempt && victims != s.instances:
		return fmt.Errorf("%d instances give way to %d (%s)", victims, s.instances, reason)
	case s.kind != preempt && found != s.roomy():
		return fmt.Errorf("%d of %d instances found a place, there is room for %d: %s", found, s.instances, s.roomy(), reason)
	}
	return nil
}

func views(s shape) []*schedule.NodeView {
	out := make([]*schedule.NodeView, s.nodes)
	for i := range out {
		out[i] = &schedule.NodeView{Node: node(i)}
		for n := range fewPerNode {
			if s.kind == preempt {
				o := schedule.Occupant{InstanceID: fmt.Sprint("old-", i, "-", n), WorkloadID: "old", Wanted: model.Resources{NanoCPUs: s.cpusOf(), MemoryBytes: instanceMemory}}
				out[i].Take(o.WorkloadID, &o.Wanted, nil)
				out[i].Occupants = append(out[i].Occupants, o)
			}
		}
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

// template is what a workload of a shape runs.
func (s shape) template(workload int) *model.Template {
	t := &model.Template{Tasks: []model.TaskSpec{{
		Name: "main", Image: "app",
		Reserve: model.Resources{NanoCPUs: s.cpusOf(), MemoryBytes: instanceMemory},
	}}}
	switch s.kindOf(workload) {
	case spread:
		t.Placement.Spread = []string{"node.labels.zone"}
	case constrained:
		t.Placement.Constraints = []model.Constraint{{Key: "node.labels.disk", Operator: model.Equal, Values: []string{"ssd"}}}
	case apart:
		t.Placement.MaxPerNode = 1
	case even:
		t.Placement.Skew = []model.Skew{{Key: "node.labels.zone", Max: 1}}
	case near:
		t.Placement.Near = []model.Affinity{{Key: "node.labels.zone"}}
	case gang:
		t.Placement.Gang = true
	case preempt:
		t.Placement.Priority = 10
	}
	return t
}

func requestsOf(s shape) []schedule.Request {
	templates := make([]*model.Template, s.workloads)
	names := make([]string, s.workloads)
	for i := range templates {
		templates[i], names[i] = s.template(i), "workload-"+strconv.Itoa(i)
	}
	out := make([]schedule.Request, s.instances)
	for i := range out {
		w := s.workloadOf(i)
		out[i] = schedule.Request{InstanceID: "instance-" + strconv.Itoa(i), WorkloadID: names[w], Workload: names[w], Template: templates[w]}
		out[i].Near = schedule.Resolve(templates[w].Placement.Near, names[w], nil)
	}
	return out
}
