package schedule

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

func testNode(name string, change func(*model.Node)) *NodeView {
	n := &model.Node{
		Meta:         model.Meta{ID: "id-" + name, Name: name, Labels: map[string]string{}},
		Availability: model.Active,
		Capacity:     model.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30},
		Attributes:   map[string]string{"os": "linux", "arch": "amd64"},
		Status:       model.NodeStatus{State: model.NodeReady},
	}
	if change != nil {
		change(n)
	}
	return &NodeView{Node: n}
}

func request(id string, t *model.Template) Request {
	return Request{InstanceID: id, WorkloadID: "w", Workload: "shop/web", Template: t}
}

func constrained(key string, op model.Operator, values ...string) *model.Template {
	return &model.Template{Placement: model.Placement{Constraints: []model.Constraint{{Key: key, Operator: op, Values: values}}}}
}

func reserving(r model.Resources) *model.Template {
	return &model.Template{Tasks: []model.TaskSpec{{Reserve: r}}}
}

// TestConstraints tells for each operator and key which of two nodes is chosen.
func TestConstraints(t *testing.T) {
	one := func() *NodeView {
		return testNode("one", func(n *model.Node) {
			n.Server, n.HostAddress = true, "10.0.0.1"
			n.Labels["disk"] = "ssd"
			n.Attributes["kernel"] = "6.1.9"
		})
	}
	two := func() *NodeView {
		return testNode("two", func(n *model.Node) { n.HostAddress = "10.0.0.2"; n.Attributes["arch"] = "arm64" })
	}
	for _, c := range []struct {
		key    string
		op     model.Operator
		values []string
		want   string
	}{
		{"node.labels.disk", model.Equal, []string{"ssd"}, "one"},
		{"node.labels.disk", model.NotEqual, []string{"ssd"}, "two"},
		{"node.labels.disk", model.In, []string{"hdd", "ssd"}, "one"},
		{"node.labels.disk", model.NotIn, []string{"hdd", "ssd"}, "two"},
		{"node.labels.disk", model.Exists, nil, "one"},
		{"node.labels.disk", model.NotExists, nil, "two"},
		{"node.attributes.kernel", model.Matches, []string{`6\.1\..*`}, "one"},
		{"node.attributes.kernel", model.Matches, []string{`6\.1`}, ""},
		{"node.role", model.Equal, []string{"agent"}, "two"},
		{"node.role", model.Equal, []string{"server"}, "one"},
		{"node.id", model.Equal, []string{"id-two"}, "two"},
		{"node.name", model.Equal, []string{"two"}, "two"},
		{"node.hostname", model.NotEqual, []string{"two"}, "one"},
		{"node.ip", model.Equal, []string{"10.0.0.2"}, "two"},
		{"node.platform.os", model.NotEqual, []string{"linux"}, ""},
		{"node.platform.arch", model.Equal, []string{"arm64"}, "two"},
	} {
		name := fmt.Sprintf("%s %s %v", c.key, c.op, c.values)
		got := Place(Cluster{Nodes: []*NodeView{one(), two()}}, []Request{request("i", constrained(c.key, c.op, c.values...))}, 1)[0]
		want := ""
		if c.want != "" {
			want = "id-" + c.want
		}
		if got.NodeID != want {
			t.Errorf("%s: placed on %q (%s), want %q", name, got.NodeID, got.Reason, want)
		}
	}
}

// TestRefusals holds the texts that people read when nothing fits.
func TestRefusals(t *testing.T) {
	small := func(n *model.Node) { n.Capacity.MemoryBytes = 1 << 30; n.Reserved.MemoryBytes = 512 << 20 }
	for _, c := range []struct {
		name  string
		nodes []*NodeView
		req   Request
		want  string
	}{
		{"no nodes", nil, request("i", &model.Template{}), "the cluster has no nodes"},
		{"states", []*NodeView{
			testNode("a", func(n *model.Node) { n.Status.State = model.NodeDown }),
			testNode("b", func(n *model.Node) { n.Status.State = model.NodeUnknown }),
			testNode("c", func(n *model.Node) { n.Availability = model.Cordoned }),
			testNode("d", func(n *model.Node) { n.Availability = model.Draining }),
		}, request("i", &model.Template{}), "1 of 4 nodes are down; 1 of 4 nodes are not ready yet; 1 of 4 nodes take no new work (cordoned); 1 of 4 nodes take no new work (draining)"},
		{"label and memory", []*NodeView{testNode("a", nil), testNode("b", nil),
			testNode("c", func(n *model.Node) { small(n); n.Labels["disk"] = "ssd" })},
			request("i", func() *model.Template {
				x := constrained("node.labels.disk", model.Equal, "ssd")
				x.Tasks = reserving(model.Resources{MemoryBytes: 2 << 30}).Tasks
				return x
			}()),
			"2 of 3 nodes do not satisfy node.labels.disk = ssd; 1 of 3 nodes have too little memory (512 MiB free, 2 GiB wanted on c)"},
		{"many full nodes are one reason", []*NodeView{testNode("a", small), testNode("b", small)},
			request("i", reserving(model.Resources{MemoryBytes: 2 << 30})),
			"2 of 2 nodes have too little memory (512 MiB free, 2 GiB wanted on a)"},
		{"cores", []*NodeView{testNode("a", nil)}, request("i", reserving(model.Resources{NanoCPUs: 5e9})),
			"1 of 1 nodes have too little cores (4.00 cores free, 5.00 cores wanted on a)"},
		{"pids", []*NodeView{testNode("a", func(n *model.Node) { n.Capacity.Pids = 10 })}, request("i", reserving(model.Resources{Pids: 11})),
			"1 of 1 nodes have too little pids (10 free, 11 wanted on a)"},
		{"custom", []*NodeView{testNode("a", nil)}, request("i", reserving(model.Resources{Custom: map[string]int64{"gpu": 1}})),
			"1 of 1 nodes have too little gpu (0 free, 1 wanted on a)"},
		{"unknown key", []*NodeView{testNode("a", nil)}, request("i", constrained("node.colour", model.NotEqual, "red")),
			`1 of 1 nodes have no property "node.colour", which a constraint names`},
		{"bad expression", []*NodeView{testNode("a", nil)}, request("i", constrained("node.name", model.Matches, "(")),
			`1 of 1 nodes cannot be compared with "(", which is no regular expression`},
		{"taint", []*NodeView{testNode("a", func(n *model.Node) { n.Taints = []model.Taint{{Key: "db", Effect: "noSchedule"}} })},
			request("i", &model.Template{}), "1 of 1 nodes have the taint db, which is not tolerated"},
		{"platform", []*NodeView{testNode("a", nil)}, request("i", &model.Template{Placement: model.Placement{Platforms: []string{"linux/arm64"}}}),
			"1 of 1 nodes are not linux/arm64"},
		{"port", []*NodeView{{Node: testNode("a", nil).Node, Ports: map[string]bool{"tcp/80": true}}},
			Request{InstanceID: "i", Template: &model.Template{}, HostPorts: []model.HostPort{{Protocol: "tcp", Published: 80}}},
			"1 of 1 nodes have port 80/tcp taken"},
		{"pinned", []*NodeView{testNode("a", nil), testNode("b", func(n *model.Node) { n.Status.State = model.NodeDown })},
			Request{InstanceID: "i", Template: &model.Template{}, PinnedTo: "id-b", PinReason: "do not hold the volume v"},
			"1 of 2 nodes are down; 1 of 2 nodes do not hold the volume v"},
	} {
		got := Place(Cluster{Nodes: c.nodes}, []Request{c.req}, 1)[0]
		if got.NodeID != "" || got.Reason != c.want {
			t.Errorf("%s: on %q because\n %s\nwant\n %s", c.name, got.NodeID, got.Reason, c.want)
		}
	}
}

func TestSpread(t *testing.T) {
	zone := func(z string) func(*model.Node) { return func(n *model.Node) { n.Labels["zone"] = z } }
	nodes := []*NodeView{testNode("a1", zone("a")), testNode("a2", zone("a")), testNode("a3", zone("a")), testNode("b1", zone("b"))}
	tpl := &model.Template{Placement: model.Placement{Spread: []string{"node.labels.zone"}}}
	var reqs []Request
	for i := range 6 {
		reqs = append(reqs, request(fmt.Sprint(i), tpl))
	}
	on := map[string]int{}
	for _, p := range Place(Cluster{Nodes: nodes}, reqs, 1) {
		on[p.NodeID]++
	}
	if on["id-b1"] != 3 || on["id-a1"] != 1 || on["id-a2"] != 1 || on["id-a3"] != 1 {
		t.Errorf("zones of 3 and 1 nodes got %v, want 3 instances each and one on each node of the larger", on)
	}
}

func TestMaxPerNodeTolerationAndPreference(t *testing.T) {
	nodes := []*NodeView{
		testNode("a", func(n *model.Node) { n.Taints = []model.Taint{{Key: "old", Effect: "preferNoSchedule"}} }),
		testNode("b", func(n *model.Node) { n.Taints = []model.Taint{{Key: "db", Value: "pg", Effect: "noSchedule"}} }),
	}
	tpl := &model.Template{Placement: model.Placement{MaxPerNode: 1, Tolerations: []model.Toleration{{Key: "db"}}}}
	got := Place(Cluster{Nodes: nodes}, []Request{request("1", tpl), request("2", tpl), request("3", tpl)}, 1)
	if got[0].NodeID != "id-b" || got[1].NodeID != "id-a" || got[2].NodeID != "" {
		t.Errorf("got %+v, want b (tolerated), then a (to be avoided), then none (one per node)", got)
	}
}

func TestWanted(t *testing.T) {
	got := Wanted(&model.Template{
		InitTasks: []model.TaskSpec{{Reserve: model.Resources{MemoryBytes: 5, Custom: map[string]int64{"gpu": 2}}}, {Reserve: model.Resources{MemoryBytes: 9}}},
		Tasks:     []model.TaskSpec{{Reserve: model.Resources{NanoCPUs: 1, MemoryBytes: 3}}, {Reserve: model.Resources{NanoCPUs: 2, MemoryBytes: 4, Custom: map[string]int64{"gpu": 1}}}},
	})
	want := model.Resources{NanoCPUs: 3, MemoryBytes: 9, Custom: map[string]int64{"gpu": 2}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestImpossible(t *testing.T) {
	nodes := []*model.Node{testNode("a", nil).Node, testNode("b", nil).Node}
	if got := Impossible(nodes, reserving(model.Resources{MemoryBytes: 1 << 30})); got != "" {
		t.Errorf("a small template is impossible: %s", got)
	}
	got := Impossible(nodes, reserving(model.Resources{MemoryBytes: 16 << 30}))
	if want := "2 of 2 nodes have too little memory (8 GiB free, 16 GiB wanted on a)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Impossible(nil, constrained("node.name", model.Equal, "x")); got != "" {
		t.Errorf("an empty cluster is no reason, got %q", got)
	}
}

func benchmarkPlace(b *testing.B, workloads int, change func(t *model.Template)) {
	const nodeCount, instances = 5000, 50000
	for b.Loop() {
		b.StopTimer()
		var nodes []*NodeView
		for i := range nodeCount {
			nodes = append(nodes, testNode(fmt.Sprintf("n%04d", i), func(n *model.Node) { n.Labels["zone"] = fmt.Sprint("z", i%16) }))
		}
		var reqs []Request
		templates := make([]*model.Template, workloads)
		for i := range templates {
			templates[i] = reserving(model.Resources{NanoCPUs: 1e7, MemoryBytes: 1 << 20})
			change(templates[i])
		}
		for i := range instances {
			w := i * workloads / instances
			id := fmt.Sprint("w", w)
			r := Request{InstanceID: fmt.Sprint("i", i), WorkloadID: id, Workload: id, Template: templates[w]}
			none := func(string) (string, bool) { return "", false }
			r.Near, r.Apart = Resolve(templates[w].Placement.Near, id, none), Resolve(templates[w].Placement.Apart, id, none)
			reqs = append(reqs, r)
		}
		b.StartTimer()
		for _, p := range Place(Cluster{Nodes: nodes}, reqs, 1) {
			if p.NodeID == "" {
				b.Fatal(p.Reason)
			}
		}
	}
	b.ReportMetric(float64(instances)*float64(b.N)/b.Elapsed().Seconds(), "placements/s")
}

// The benchmarks decide 50,000 instances on 5,000 nodes; nothing is committed.
func BenchmarkPlace(b *testing.B) {
	for name, change := range map[string]func(t *model.Template){
		"basic":   func(*model.Template) {},
		"spread":  func(t *model.Template) { t.Placement.Spread = []string{"node.labels.zone"} },
		"skew":    func(t *model.Template) { t.Placement.Skew = []model.Skew{{Key: "node.labels.zone", Max: 1}} },
		"apart":   func(t *model.Template) { t.Placement.Apart = []model.Affinity{{}} },
		"binpack": func(t *model.Template) { t.Placement.Strategy = model.BinPack },
		"near":    func(t *model.Template) { t.Placement.Near = []model.Affinity{{Key: "node.labels.zone"}} },
	} {
		for _, workloads := range []int{10, 1000} {
			b.Run(fmt.Sprintf("%s/%d", name, workloads), func(b *testing.B) { benchmarkPlace(b, workloads, change) })
		}
	}
}
