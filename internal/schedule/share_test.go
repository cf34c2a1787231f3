package schedule

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// The properties of dominant-resource fairness are those that its paper proves for tasks that can be
// divided at will (Ghodsi et al., "Dominant Resource Fairness: Fair Allocation of Multiple Resource
// Types", NSDI 2011). Tasks are whole here, so that each holds up to a few of them: each bound below
// follows from that a namespace has its turn only while no other that still asks has less, and says
// how much of a task that costs.

// contender is a namespace that asks for more tasks of one kind than there is room for.
type contender struct {
	name   string
	weight float64
	task   model.Resources
}

// market is a cluster of one large node, so that nothing is lost to fragments, and who wants it.
type market struct {
	whole model.Resources
	who   []contender
	order []int // whose request comes when
}

func newMarket(rng *rand.Rand) market {
	m := market{whole: model.Resources{NanoCPUs: 1e12, MemoryBytes: 1 << 40, DiskBytes: 1 << 42, Custom: map[string]int64{"gpu": 1 << 20}}}
	part := func(all int64) int64 { return int64(float64(all) * (0.002 + 0.02*rng.Float64())) } // 45 to 500 fit
	for i := range 2 + rng.IntN(4) {
		c := contender{name: fmt.Sprint("ns", i), weight: []float64{1, 1, 2, 0.5}[rng.IntN(4)]}
		c.task = model.Resources{NanoCPUs: part(m.whole.NanoCPUs), MemoryBytes: part(m.whole.MemoryBytes), DiskBytes: part(m.whole.DiskBytes)}
		c.task.Custom = map[string]int64{"gpu": part(m.whole.Custom["gpu"])}
		m.who = append(m.who, c)
		for range 520 {
			m.order = append(m.order, i)
		}
	}
	rng.Shuffle(len(m.order), func(i, j int) { m.order[i], m.order[j] = m.order[j], m.order[i] })
	return m
}

// tasks says how many tasks each gets.
func (m market) tasks(seed uint64) []int {
	n := testNode("all", func(n *model.Node) { n.Capacity = m.whole })
	cluster := Cluster{Nodes: []*NodeView{n}, Namespaces: map[string]*Share{}}
	templates := make([]*model.Template, len(m.who))
	for i, c := range m.who {
		cluster.Namespaces[c.name] = &Share{Weight: c.weight}
		templates[i] = reserving(c.task)
	}
	var requests []Request
	for k, i := range m.order {
		requests = append(requests, Request{InstanceID: fmt.Sprint(k), WorkloadID: m.who[i].name, Namespace: m.who[i].name, Template: templates[i]})
	}
	got := make([]int, len(m.who))
	for k, p := range Place(cluster, requests, seed) {
		if p.NodeID != "" {
			got[m.order[k]]++
		}
	}
	return got
}

// each calls f with the amounts of every resource in two bundles.
func each(a, b *model.Resources, f func(x, y float64)) {
	f(float64(a.NanoCPUs), float64(b.NanoCPUs))
	f(float64(a.MemoryBytes), float64(b.MemoryBytes))
	f(float64(a.DiskBytes), float64(b.DiskBytes))
	f(float64(a.Custom["gpu"]), float64(b.Custom["gpu"]))
}

// roomFor is how many tasks there is room for in a bundle.
func roomFor(bundle, task *model.Resources) float64 {
	out := math.Inf(1)
	each(bundle, task, func(have, want float64) { out = min(out, have/want) })
	return out
}

func TestDominantResourceFairness(t *testing.T) {
	for seed := range uint64(150) {
		m := newMarket(rand.New(rand.NewPCG(seed, 9)))
		got := m.tasks(seed)
		left := m.whole
		left.Custom = map[string]int64{"gpu": m.whole.Custom["gpu"]}
		weights, sizes := 0.0, 0.0
		for i, c := range m.who {
			add(&left, &c.task, -int64(got[i]))
			weights += c.weight
			sizes += dominant(&c.task, &m.whole)
		}
		for i, c := range m.who {
			size := dominant(&c.task, &m.whole)
			share := float64(got[i]) * size
			if over(&NodeView{Node: &model.Node{Capacity: m.whole}, Used: minus(&m.whole, &left)}) {
				t.Fatalf("market %d: more was given out than there is", seed)
			}
			// Pareto efficiency: nobody could have a task more without another one having less.
			if roomFor(&left, &c.task) >= 1 {
				t.Errorf("market %d: there is room for a task more of %s", seed, c.name)
			}
			// Sharing incentive: nobody has less than its part of the cluster would give it by itself.
			// When the first task of i did not fit, the shares of all added up to all but that task, and
			// none was ahead of i by more than its latest task.
			if least := c.weight / weights * (1 - sizes); share < least-1e-9 {
				t.Errorf("market %d: %s has a share of %.3f, its own part of the cluster is %.3f", seed, c.name, share, least)
			}
			for j, other := range m.who {
				// Envy-freeness: nobody would do better with what another has, by weight. The other was
				// ahead by one task at most until i got no more, and had less than i needs for one since.
				bundle := model.Resources{Custom: map[string]int64{}}
				add(&bundle, &other.task, int64(got[j]))
				scale := c.weight / other.weight
				bound := float64(got[i]) + scale*(dominant(&other.task, &m.whole)/size+1)
				if would := scale * roomFor(&bundle, &c.task); would > bound+1e-9 {
					t.Errorf("market %d: %s has %d tasks, and could have %.1f with what %s has", seed, c.name, got[i], would, other.name)
				}
			}
		}
	}
}

// TestNobodyGainsByLying is strategy-proofness: to ask for more than a task needs does not give a
// namespace more tasks, beyond the few that whole tasks of others leave over for it, and costs it some
// as a rule.
func TestNobodyGainsByLying(t *testing.T) {
	gained, lost := 0, 0
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 10))
		m := newMarket(rng)
		honest := m.tasks(seed)
		liar := rng.IntN(len(m.who))
		truth := m.who[liar].task
		lie := truth
		more := func(n int64) int64 { return n + int64(float64(n)*2*rng.Float64()*float64(rng.IntN(2))) }
		lie.NanoCPUs, lie.MemoryBytes, lie.DiskBytes = more(truth.NanoCPUs), more(truth.MemoryBytes), more(truth.DiskBytes)
		m.who[liar].task = lie
		slack := 2.0
		for k, other := range m.who {
			if k != liar {
				most := 0.0
				each(&other.task, &truth, func(theirs, own float64) { most = max(most, theirs/own) })
				slack += 2 * most
			}
		}
		lying := m.tasks(seed)[liar] // each of them is enough for one true task
		if float64(lying) > float64(honest[liar])+slack {
			t.Errorf("market %d: a lie gives %d tasks in place of %d", seed, lying, honest[liar])
		}
		switch {
		case lying > honest[liar]:
			gained += lying - honest[liar]
		default:
			lost += honest[liar] - lying
		}
	}
	if 20*gained > lost {
		t.Errorf("lies gained %d tasks and lost %d", gained, lost)
	}
}
