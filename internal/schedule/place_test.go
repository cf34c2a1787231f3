package schedule

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
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
		got := Place([]*NodeView{one(), two()}, []Request{request("i", constrained(c.key, c.op, c.values...))}, 1)[0]
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
		got := Place(c.nodes, []Request{c.req}, 1)[0]
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
	for _, p := range Place(nodes, reqs, 1) {
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
	got := Place(nodes, []Request{request("1", tpl), request("2", tpl), request("3", tpl)}, 1)
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

// world makes a random cluster and random requests from a seed; equal seeds give equal worlds.
func world(seed uint64) ([]*NodeView, []Request) {
	rng := rand.New(rand.NewPCG(seed, 7))
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	var nodes []*NodeView
	for i := range 3 + rng.IntN(12) {
		nodes = append(nodes, testNode(fmt.Sprintf("n%02d", i), func(n *model.Node) {
			n.Labels["zone"], n.Labels["rack"] = pick("a", "b", "c"), pick("1", "2")
			if rng.IntN(4) == 0 {
				n.Labels["disk"] = "ssd"
			}
			n.Capacity = model.Resources{NanoCPUs: int64(1+rng.IntN(8)) * 1e9, MemoryBytes: int64(1+rng.IntN(8)) << 30, Custom: map[string]int64{"gpu": int64(rng.IntN(3))}}
			n.Status.State = []model.NodeState{model.NodeReady, model.NodeReady, model.NodeReady, model.NodeReady, model.NodeDown}[rng.IntN(5)]
			if rng.IntN(6) == 0 {
				n.Taints = []model.Taint{{Key: "t", Effect: pick("noSchedule", "preferNoSchedule")}}
			}
		}))
	}
	type kind struct {
		t     *model.Template
		w     string
		ports []model.HostPort
		pin   string
	}
	var kinds []kind
	for i := range 1 + rng.IntN(5) {
		k := kind{t: reserving(model.Resources{NanoCPUs: int64(rng.IntN(8)) * 1e8, MemoryBytes: int64(rng.IntN(8)) << 27}), w: fmt.Sprint("w", i/2)}
		pl := &k.t.Placement
		switch rng.IntN(7) {
		case 0:
			pl.Constraints = []model.Constraint{{Key: "node.labels.disk", Operator: model.Equal, Values: []string{"ssd"}}}
		case 1:
			pl.Spread = []string{"node.labels.zone"}
		case 2:
			pl.Spread = []string{"node.labels.zone", "node.labels.rack"}
		case 3:
			pl.MaxPerNode = 1 + rng.IntN(3)
		case 4:
			k.ports = []model.HostPort{{Protocol: "tcp", Published: 80}}
		case 5:
			k.pin = nodes[rng.IntN(len(nodes))].Node.ID
		case 6:
			k.t.Tasks[0].Reserve.Custom = map[string]int64{"gpu": 1}
		}
		kinds = append(kinds, k)
	}
	var reqs []Request
	for i := range 1 + rng.IntN(80) {
		k := kinds[rng.IntN(len(kinds))]
		reqs = append(reqs, Request{InstanceID: fmt.Sprint("i", i), WorkloadID: k.w, Workload: k.w, Template: k.t, HostPorts: k.ports, PinnedTo: k.pin, PinReason: "lack the volume"})
	}
	for range rng.IntN(10) { // what runs already
		k := kinds[rng.IntN(len(kinds))]
		want := Wanted(k.t)
		nodes[rng.IntN(len(nodes))].Take(k.w, &want, nil)
	}
	return nodes, reqs
}

// naive scans every node for every request: the definition of what Place must choose.
func naive(nodes []*NodeView, reqs []Request, seed uint64) []string {
	var out []string
	for i := range reqs {
		r := &reqs[i]
		c := &class{Request: r, wanted: Wanted(r.Template)}
		var best *NodeView
		var bestKey []float64
		var bestTie uint64
		for _, n := range nodes {
			if reason, _ := c.dynamic(n); reason != "" || !Eligible(n.Node, r.Template) {
				continue
			}
			var key []float64
			keys := r.Template.Placement.Spread
			for depth := range keys {
				sum := 0
				for _, other := range nodes {
					same := true
					for _, k := range keys[:depth+1] {
						a, _ := Value(n.Node, k)
						b, _ := Value(other.Node, k)
						same = same && a == b
					}
					if same {
						sum += other.Instances[r.WorkloadID]
					}
				}
				key = append(key, float64(sum))
			}
			key = append(key, float64(avoided(n.Node, r.Template.Placement.Tolerations)), float64(n.Instances[r.WorkloadID]), load(n, &c.wanted))
			tieNow := tie(seed, r.WorkloadID, n.Node.ID)
			if best == nil || less(key, bestKey) || !less(bestKey, key) && tieNow < bestTie {
				best, bestKey, bestTie = n, key, tieNow
			}
		}
		if best == nil {
			out = append(out, "")
			continue
		}
		best.Take(r.WorkloadID, &c.wanted, r.HostPorts)
		out = append(out, best.Node.ID)
	}
	return out
}

func less(a, b []float64) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

// TestPlaceIsRight holds Place against the naive scan in thousands of random worlds: the same
// nodes, nothing over capacity, no constraint broken, and all of it repeatable.
func TestPlaceIsRight(t *testing.T) {
	for seed := range uint64(3000) {
		nodes, reqs := world(seed)
		got := Place(nodes, reqs, seed)
		again, _ := world(seed)
		if second := Place(again, reqs, seed); !reflect.DeepEqual(got, second) {
			t.Fatalf("world %d: two equal calls gave different answers", seed)
		}
		fresh, _ := world(seed)
		want := naive(fresh, reqs, seed)
		byID := map[string]*NodeView{}
		for _, n := range nodes {
			byID[n.Node.ID] = n
		}
		for i := range got {
			if got[i].Reason == "" || got[i].InstanceID != reqs[i].InstanceID {
				t.Fatalf("world %d: %+v has no reason or the wrong place", seed, got[i])
			}
			if got[i].NodeID != want[i] {
				t.Fatalf("world %d, request %d of %d: placed on %q, the scan chooses %q", seed, i, len(got), got[i].NodeID, want[i])
			}
			if n := byID[got[i].NodeID]; n != nil && !Eligible(n.Node, reqs[i].Template) {
				t.Fatalf("world %d: %s may not run on %s", seed, reqs[i].InstanceID, n.Node.Name)
			}
		}
		start, _ := world(seed)
		for i, n := range nodes { // what was over before placing stays, nothing else may be
			if over(n) && !over(start[i]) {
				t.Fatalf("world %d: %s is over its capacity", seed, n.Node.Name)
			}
		}
	}
}

func over(n *NodeView) bool {
	return n.Used.NanoCPUs > n.Node.Capacity.NanoCPUs || n.Used.MemoryBytes > n.Node.Capacity.MemoryBytes || n.Used.Custom["gpu"] > n.Node.Capacity.Custom["gpu"]
}

func benchmarkPlace(b *testing.B, workloads int, spread ...string) {
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
			templates[i].Placement.Spread = spread
		}
		for i := range instances {
			w := i * workloads / instances
			reqs = append(reqs, Request{InstanceID: fmt.Sprint("i", i), WorkloadID: fmt.Sprint("w", w), Workload: strings.Repeat("w", 5), Template: templates[w]})
		}
		b.StartTimer()
		for _, p := range Place(nodes, reqs, 1) {
			if p.NodeID == "" {
				b.Fatal(p.Reason)
			}
		}
	}
	b.ReportMetric(float64(instances)*float64(b.N)/b.Elapsed().Seconds(), "placements/s")
}

// The benchmarks decide 50,000 instances on 5,000 nodes; nothing is committed.
func BenchmarkPlace(b *testing.B) {
	b.Run("10 workloads", func(b *testing.B) { benchmarkPlace(b, 10) })
	b.Run("100 workloads", func(b *testing.B) { benchmarkPlace(b, 100) })
	b.Run("10 workloads over zones", func(b *testing.B) { benchmarkPlace(b, 10, "node.labels.zone") })
	b.Run("100 workloads over zones", func(b *testing.B) { benchmarkPlace(b, 100, "node.labels.zone") })
}
