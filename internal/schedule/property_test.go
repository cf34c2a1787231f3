package schedule

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// world makes a random cluster and random requests from a seed; equal seeds give equal worlds.
// There are no gangs and priorities, which the naive scan knows nothing of; contest adds them.
func world(seed uint64) (Cluster, []Request) {
	rng := rand.New(rand.NewPCG(seed, 7))
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	var nodes []*NodeView
	for i := range 3 + rng.IntN([]int{12, 12, 12, 40}[rng.IntN(4)]) {
		nodes = append(nodes, testNode(fmt.Sprintf("n%02d", i), func(n *model.Node) {
			n.Labels["zone"], n.Labels["rack"] = pick("a", "b", "c"), pick("1", "2")
			if rng.IntN(10) == 0 {
				delete(n.Labels, "zone")
			}
			if rng.IntN(4) == 0 {
				n.Labels["disk"] = "ssd"
			}
			n.Capacity = model.Resources{NanoCPUs: int64(1+rng.IntN(8)) * 1e9, MemoryBytes: int64(1+rng.IntN(8)) << 30, Custom: map[string]int64{"gpu": int64(rng.IntN(3))}}
			n.Overcommit = []float64{0, 1.5}[rng.IntN(2)]
			n.Status.State = []model.NodeState{model.NodeReady, model.NodeReady, model.NodeReady, model.NodeReady, model.NodeDown}[rng.IntN(5)]
			if rng.IntN(6) == 0 {
				n.Taints = []model.Taint{{Key: "t", Effect: pick("noSchedule", "preferNoSchedule", "noExecute")}}
			}
		}))
	}
	for _, n := range nodes {
		for _, d := range []string{"image-0", "image-1"} {
			if rng.IntN(3) == 0 {
				n.Images = map[string]int64{d: int64(1+rng.IntN(4)) << 28}
			}
		}
	}
	keys := []string{"node.labels.zone", "node.labels.rack", "node.hostname"}
	type kind struct {
		t           *model.Template
		w           string
		ports       []model.HostPort
		pin         string
		near, apart []Relation
	}
	var kinds []kind
	for i := range 1 + rng.IntN(5) {
		k := kind{t: reserving(model.Resources{NanoCPUs: int64(rng.IntN(8)) * 1e8, MemoryBytes: int64(rng.IntN(8)) << 27}), w: fmt.Sprint("w", i/2)}
		k.t.Tasks[0].Digest = []string{"", "", "image-0", "image-1"}[rng.IntN(4)]
		pl := &k.t.Placement
		key := keys[rng.IntN(len(keys))]
		relation := func() []Relation {
			return []Relation{{Workloads: []string{fmt.Sprint("w", rng.IntN(3))}, Key: key, Weight: []int{0, 0, 50}[rng.IntN(3)]}}
		}
		for range 1 + rng.IntN(2) {
			switch rng.IntN(14) {
			case 0:
				pl.Constraints = []model.Constraint{{Key: "node.labels.disk", Operator: model.Equal, Values: []string{"ssd"}}}
			case 1:
				pl.Spread = []string{"node.labels.zone"}
			case 2:
				pl.Spread = []string{"node.labels.zone", "node.labels.rack"}
			case 3:
				pl.MaxPerNode = 1 + rng.IntN(3)
			case 4:
				k.ports = []model.HostPort{{Protocol: "tcp", Published: 80, HostIP: []string{"", "192.0.2.1", "192.0.2.2"}[rng.IntN(3)]}}
			case 5:
				k.pin = nodes[rng.IntN(len(nodes))].Node.ID
			case 6:
				k.t.Tasks[0].Reserve.Custom = map[string]int64{"gpu": 1}
			case 7:
				pl.Skew = []model.Skew{{Key: key, Max: 1 + rng.IntN(2), MinDomains: rng.IntN(4)}}
			case 8:
				pl.MaxPer = []model.MaxPer{{Key: key, Max: 1 + rng.IntN(4)}}
			case 9:
				k.near = relation()
			case 10:
				k.apart = relation()
			case 11:
				pl.Strategy = []model.Strategy{model.BinPack, model.Balance}[rng.IntN(2)]
			case 12:
				pl.Prefer = []model.Preference{{Constraint: model.Constraint{Key: "node.labels.disk", Operator: model.Equal, Values: []string{"ssd"}}, Weight: 10}}
			case 13:
				pl.Class = []model.ResourceClass{model.Burstable, model.BestEffort}[rng.IntN(2)]
			}
		}
		kinds = append(kinds, k)
	}
	var reqs []Request
	for i := range 1 + rng.IntN([]int{4, 20, 80}[rng.IntN(3)]) {
		k := kinds[rng.IntN(len(kinds))]
		reqs = append(reqs, Request{InstanceID: fmt.Sprint("i", i), WorkloadID: k.w, Workload: k.w, Template: k.t, HostPorts: k.ports,
			PinnedTo: k.pin, PinReason: "lack the volume", Near: k.near, Apart: k.apart})
	}
	for range rng.IntN(10) { // what runs already
		k := kinds[rng.IntN(len(kinds))]
		want := Wanted(k.t)
		nodes[rng.IntN(len(nodes))].Take(k.w, &want, nil)
	}
	return Cluster{Nodes: nodes}, reqs
}

// scan is what a scheduler would do that knows nothing but rules: it looks at every node for every
// request. It says what Place must choose, and shares with it the arithmetic of one node only.
type scan struct {
	nodes []*NodeView
	seed  uint64
}

// count sums the instances of workloads on all nodes that have the same values of the keys.
func (s *scan) count(on *NodeView, workloads []string, keys ...string) int {
	sum := 0
	for _, other := range s.nodes {
		same := true
		for _, k := range keys {
			a, _ := Value(on.Node, k)
			b, _ := Value(other.Node, k)
			same = same && a == b
		}
		for _, w := range workloads {
			if same {
				sum += other.Instances[w]
			}
		}
	}
	return sum
}

func (s *scan) fits(n *NodeView, r *Request) bool {
	pl, self := &r.Template.Placement, []string{r.WorkloadID}
	wanted := Wanted(r.Template)
	if !Eligible(n.Node, r.Template) || r.PinnedTo != "" && n.Node.ID != r.PinnedTo {
		return false
	}
	if pl.MaxPerNode > 0 && n.Instances[r.WorkloadID] >= pl.MaxPerNode {
		return false
	}
	for _, port := range r.HostPorts {
		for k := range n.Ports { // whoever holds it on all addresses, on the same one, or on any where all are asked for
			at, ip, _ := strings.Cut(k, " ")
			if at == fmt.Sprintf("%s/%d", port.Protocol, port.Published) && (ip == "" || port.HostIP == "" || ip == port.HostIP) {
				return false
			}
		}
	}
	for _, m := range pl.MaxPer {
		if s.count(n, self, m.Key) >= m.Max {
			return false
		}
	}
	for _, k := range pl.Skew {
		least, values := -1, map[string]bool{}
		for _, other := range s.nodes {
			if Eligible(other.Node, r.Template) {
				v, _ := Value(other.Node, k.Key)
				values[v] = true
				if c := s.count(other, self, k.Key); least < 0 || c < least {
					least = c
				}
			}
		}
		if len(values) < k.MinDomains {
			least = 0
		}
		if s.count(n, self, k.Key)+1-least > k.Max {
			return false
		}
	}
	for _, a := range r.Near {
		everywhere := s.count(n, a.Workloads)
		if a.Weight == 0 && s.count(n, a.Workloads, a.Key) == 0 && !(slices.Contains(a.Workloads, r.WorkloadID) && everywhere == 0) {
			return false
		}
	}
	for _, a := range r.Apart {
		if a.Weight == 0 && s.count(n, a.Workloads, a.Key) > 0 {
			return false
		}
	}
	return room(n.Node, pl.Class).holds(&n.Used, &wanted)
}

func (s *scan) key(n *NodeView, r *Request) (key []float64) {
	pl := &r.Template.Placement
	for depth := range pl.Spread {
		key = append(key, float64(s.count(n, []string{r.WorkloadID}, pl.Spread[:depth+1]...)))
	}
	liked := 0
	for _, p := range pl.Prefer {
		if Satisfies(n.Node, &p.Constraint) {
			liked += p.Weight
		}
	}
	for _, a := range r.Near {
		if s.count(n, a.Workloads, a.Key) > 0 {
			liked += a.Weight
		}
	}
	for _, a := range r.Apart {
		if s.count(n, a.Workloads, a.Key) > 0 {
			liked -= a.Weight
		}
	}
	same := 0
	if pl.Strategy == "" {
		same = n.Instances[r.WorkloadID]
	}
	c := newClass(nil, r, classKey{})
	return append(key, float64(avoided(n.Node, pl.Tolerations)), float64(-liked), float64(same), c.load(n))
}

func (s *scan) place(r *Request) *NodeView {
	var best *NodeView
	var bestKey []float64
	var bestTie uint64
	for _, n := range s.nodes {
		if !s.fits(n, r) {
			continue
		}
		key, now := s.key(n, r), tie(s.seed, hash(n.Node.ID))
		if d := slices.Compare(key, bestKey); best == nil || d < 0 || d == 0 && now < bestTie {
			best, bestKey, bestTie = n, key, now
		}
	}
	return best
}

// TestPlaceIsRight holds Place against the naive scan in thousands of random worlds: the same
// nodes, and so nothing that breaks a rule; each with a reason, and all of it repeatable.
func TestPlaceIsRight(t *testing.T) {
	defer func(kept int) { keptOrders = kept }(keptOrders)
	for seed := range uint64(3000) {
		keptOrders = 10 * int(seed%4)
		cluster, reqs := world(seed)
		got := Place(cluster, reqs, seed)
		again, _ := world(seed)
		if second := Place(again, reqs, seed); !reflect.DeepEqual(got, second) {
			t.Fatalf("world %d: two equal calls gave different answers", seed)
		}
		fresh, _ := world(seed)
		s := &scan{fresh.Nodes, seed}
		for i := range got {
			if got[i].Reason == "" || got[i].InstanceID != reqs[i].InstanceID {
				t.Fatalf("world %d: %+v has no reason or the wrong place", seed, got[i])
			}
			want, wantID := s.place(&reqs[i]), ""
			if want != nil {
				wantID = want.Node.ID
			}
			if got[i].NodeID != wantID {
				t.Fatalf("world %d, request %d of %d: placed on %q, the scan chooses %q", seed, i, len(got), got[i].NodeID, wantID)
			}
			if want != nil {
				wanted := Wanted(reqs[i].Template)
				want.Take(reqs[i].WorkloadID, &wanted, reqs[i].HostPorts)
			}
		}
	}
}

// contest makes a world in which gangs, priorities, quotas and budgets matter.
func contest(seed uint64) (Cluster, []Request) {
	cluster, reqs := world(seed)
	rng := rand.New(rand.NewPCG(seed, 8))
	cluster.Spare, cluster.Namespaces = map[string]int{}, map[string]*Share{}
	for i := range 3 {
		s := &Share{Weight: float64(rng.IntN(3))}
		if rng.IntN(2) == 0 {
			s.Quota = model.Resources{NanoCPUs: int64(rng.IntN(6)) * 1e9, Custom: map[string]int64{"gpu": int64(rng.IntN(3))}}
		}
		s.MaxInstances = []int{0, 5}[rng.IntN(2)]
		cluster.Namespaces[fmt.Sprint("ns", i)] = s
		if rng.IntN(2) == 0 {
			cluster.Spare[fmt.Sprint("v", i)] = rng.IntN(3)
		}
	}
	for i, n := range cluster.Nodes {
		for j := range rng.IntN(6) {
			o := Occupant{InstanceID: fmt.Sprintf("v%d-%d", i, j), WorkloadID: fmt.Sprint("v", rng.IntN(3)), Priority: rng.IntN(4),
				Wanted: model.Resources{NanoCPUs: int64(1+rng.IntN(10)) * 1e8, MemoryBytes: int64(1+rng.IntN(8)) << 27}}
			if room(n.Node, "").holds(&n.Used, &o.Wanted) {
				n.Take(o.WorkloadID, &o.Wanted, nil)
				n.Occupants = append(n.Occupants, o)
			}
		}
	}
	seen := map[*model.Template]string{}
	for i := range reqs {
		t := reqs[i].Template
		if seen[t] == "" {
			seen[t] = fmt.Sprint("ns", rng.IntN(3))
			t.Placement.Priority, t.Placement.Gang = rng.IntN(6), rng.IntN(4) == 0
		}
		reqs[i].Namespace = seen[t]
	}
	return cluster, reqs
}

// TestContests holds what must be true when there is too little for all: nothing over capacity,
// quota or budget, gangs whole, and victims less important than who takes their place.
func TestContests(t *testing.T) {
	var victims, gangs, quotas int
	for seed := range uint64(3000) {
		before, _ := contest(seed)
		cluster, reqs := contest(seed)
		got := Place(cluster, reqs, seed)
		again, _ := contest(seed)
		if second := Place(again, reqs, seed); !reflect.DeepEqual(got, second) {
			t.Fatalf("contest %d: two equal calls gave different answers", seed)
		}
		type home struct {
			Occupant
			node *NodeView
		}
		homes, byID := map[string]home{}, map[string]*NodeView{}
		for _, n := range before.Nodes {
			byID[n.Node.ID] = n
			for _, o := range n.Occupants {
				homes[o.InstanceID] = home{o, n}
			}
		}
		used, number, lost := map[string]*model.Resources{}, map[string]int{}, map[string]int{}
		placed, all := map[classKey]int{}, map[classKey]int{}
		for i, pl := range got {
			r, wanted := &reqs[i], Wanted(reqs[i].Template)
			key := classKey{template: r.Template, workloadID: r.WorkloadID}
			all[key]++
			if pl.Reason == "" {
				t.Fatalf("contest %d: request %d has no reason", seed, i)
			}
			for _, id := range pl.Victims {
				v, ok := homes[id]
				delete(homes, id) // nobody ends twice
				victims++
				if !ok || v.Priority >= r.Template.Placement.Priority || pl.NodeID != "" || r.Template.Placement.Gang {
					t.Fatalf("contest %d: %s of priority %d gives way to priority %d (%+v)", seed, id, v.Priority, r.Template.Placement.Priority, pl)
				}
				lost[v.WorkloadID]++
			}
			if pl.NodeID == "" {
				continue
			}
			placed[key]++
			byID[pl.NodeID].Take(r.WorkloadID, &wanted, r.HostPorts)
			if used[r.Namespace] == nil {
				used[r.Namespace] = &model.Resources{}
			}
			add(used[r.Namespace], &wanted, 1)
			number[r.Namespace]++
			if n := byID[pl.NodeID].Node; !Eligible(n, r.Template) {
				t.Fatalf("contest %d: %s may not run on %s", seed, r.InstanceID, n.Name)
			}
		}
		for key, n := range placed {
			if key.template.Placement.Gang {
				gangs++
				if n != all[key] {
					t.Fatalf("contest %d: %d of a gang of %d have a place", seed, n, all[key])
				}
			}
		}
		for w, n := range lost {
			if spare, bounded := before.Spare[w]; bounded && n > spare {
				t.Fatalf("contest %d: %d of %s give way, %d may", seed, n, w, spare)
			}
		}
		for name, s := range before.Namespaces {
			if u := used[name]; u != nil && (s.Quota.NanoCPUs > 0 && u.NanoCPUs > s.Quota.NanoCPUs || s.Quota.Custom["gpu"] > 0 && u.Custom["gpu"] > s.Quota.Custom["gpu"]) ||
				s.MaxInstances > 0 && number[name] > s.MaxInstances {
				t.Fatalf("contest %d: namespace %s has more than its quota", seed, name)
			}
			if s.MaxInstances > 0 && number[name] == s.MaxInstances {
				quotas++
			}
		}
		start, _ := contest(seed)
		for i, n := range before.Nodes { // what was over before placing stays, nothing else may be
			if over(n) && !over(start.Nodes[i]) {
				t.Fatalf("contest %d: %s is over its capacity", seed, n.Node.Name)
			}
		}
	}
	if victims == 0 || gangs == 0 || quotas == 0 {
		t.Errorf("%d victims, %d gangs and %d full quotas are too few to tell anything", victims, gangs, quotas)
	}
}

func over(n *NodeView) bool {
	stretch := max(1, n.Node.Overcommit)
	return float64(n.Used.NanoCPUs) > float64(n.Node.Capacity.NanoCPUs)*stretch || n.Used.MemoryBytes > n.Node.Capacity.MemoryBytes || n.Used.Custom["gpu"] > n.Node.Capacity.Custom["gpu"]
}
