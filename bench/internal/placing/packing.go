package placing

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
)

// item is what an instance wants of a server, as parts of one.
type item struct{ cpu, memory float64 }

// mix is a made-up set of instances after what was published of real ones, or of test problems.
type mix struct {
	name, after string
	draw        func(rng *rand.Rand) item
}

var mixes = []mix{
	{
		"tails", "sizes with the heavy tails that Tirmazi et al. (Borg: the Next Generation, EuroSys 2020) found for the usage of jobs, Pareto with exponents 0.69 (cores) and 0.72 (memory), cut off at half a server",
		func(rng *rand.Rand) item { return item{pareto(rng, 0.69), pareto(rng, 0.72)} },
	},
	{
		"machines", "virtual machines of which, as Cortez et al. (Resource Central, SOSP 2017) report, 80 % have one or two cores and 70 % less than 4 GB; on servers of 16 cores and 64 GB",
		func(rng *rand.Rand) item {
			cores := pick(rng, []float64{1, 2, 4, 8, 16}, []float64{0.50, 0.30, 0.13, 0.05, 0.02})
			perCore := pick(rng, []float64{0.75, 1.75, 3.5, 7}, []float64{0.25, 0.45, 0.2, 0.1})
			return item{cores / 16, min(1, cores*perCore/64)}
		},
	},
	{
		"independent", "both sizes uniform from 0.1 to 0.4, as in class 1 of Caprara and Toth (Lower bounds and algorithms for the 2-dimensional vector packing problem, 2001)",
		func(rng *rand.Rand) item { return item{0.1 + 0.3*rng.Float64(), 0.1 + 0.3*rng.Float64()} },
	},
	{
		"opposed", "much of one and little of the other, after the negatively correlated classes of Caprara and Toth: the sizes add up to 0.5, give or take 0.05",
		func(rng *rand.Rand) item {
			cpu := 0.05 + 0.4*rng.Float64()
			return item{cpu, max(0.01, 0.5-cpu+0.1*(rng.Float64()-0.5))}
		},
	},
}

// pareto draws from a Pareto distribution between a hundredth and a half of a server.
func pareto(rng *rand.Rand, exponent float64) float64 {
	const least, most = 0.01, 0.5
	a, b := math.Pow(least, exponent), math.Pow(most, exponent)
	u := rng.Float64()
	return math.Pow(-(u*b-u*a-b)/(a*b), -1/exponent)
}

func pick(rng *rand.Rand, values, shares []float64) float64 {
	u := rng.Float64()
	for i, s := range shares {
		if u -= s; u < 0 {
			return values[i]
		}
	}
	return values[len(values)-1]
}

// serverNanoCPUs and serverMemory are what a server of the mixes has.
const serverNanoCPUs, serverMemory = 1e12, 1e12

// packing counts the servers that a mix takes: by Tutti's strategies, by the heuristics of the books
// and, at least, by anybody.
func (r *run) packing(m mix) error {
	r.sheet.Say("packing the mix %s", m.name)
	const count = 2000
	rng := rand.New(rand.NewPCG(1, 2))
	items := make([]item, count)
	var sum item
	for i := range items {
		items[i] = m.draw(rng)
		sum.cpu, sum.memory = sum.cpu+items[i].cpu, sum.memory+items[i].memory
	}
	bound := math.Ceil(max(sum.cpu, sum.memory) - 1e-9)
	peers := []struct {
		name    string
		servers int
	}{
		{"lower bound", int(bound)},
		{"first fit", inTurn(items, func(_ item, left *item) float64 { return 0 })},
		{"best fit", inTurn(items, func(i item, left *item) float64 { return left.cpu - i.cpu + left.memory - i.memory })},
		{"dot product", dotProduct(items)},
	}
	for _, strategy := range []model.Strategy{model.BinPack, model.Balance, model.SpreadOut} {
		used, err := pack(items, strategy)
		if err != nil {
			return err
		}
		for _, p := range peers {
			if strategy == model.SpreadOut && p.name != "lower bound" {
				continue // it does not try
			}
			err := r.sheet.Add(report.Row{
				Name: "schedule/packing/" + m.name + "/" + string(strategy), Value: float64(used), Unit: "servers", Peer: p.name, PeerValue: float64(p.servers),
				Counted: fmt.Sprintf("equal servers with something on them after %d instances in random order, one by one; the dot product alone sees all of them before it begins; %s", count, m.after),
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// pack lets Tutti place a mix on more servers than it needs, and counts those it uses.
func pack(items []item, strategy model.Strategy) (int, error) {
	nodes := make([]*schedule.NodeView, len(items))
	for i := range nodes {
		n := node(i)
		n.Capacity = model.Resources{NanoCPUs: serverNanoCPUs, MemoryBytes: serverMemory}
		nodes[i] = &schedule.NodeView{Node: n}
	}
	requests := make([]schedule.Request, len(items))
	for i, it := range items {
		t := &model.Template{Placement: model.Placement{Strategy: strategy}, Tasks: []model.TaskSpec{{Name: "main", Reserve: wanted(it)}}}
		name := "workload-" + strconv.Itoa(i)
		requests[i] = schedule.Request{InstanceID: strconv.Itoa(i), WorkloadID: name, Workload: name, Template: t}
	}
	used := map[string]bool{}
	for _, p := range schedule.Place(schedule.Cluster{Nodes: nodes}, requests, 1) {
		if p.NodeID == "" {
			return 0, fmt.Errorf("an instance found no place: %s", p.Reason)
		}
		used[p.NodeID] = true
	}
	return len(used), nil
}

func wanted(i item) model.Resources {
	return model.Resources{NanoCPUs: int64(i.cpu * serverNanoCPUs), MemoryBytes: int64(i.memory * serverMemory)}
}

// tolerance is what sums of parts may be off.
const tolerance = 1e-9

func (i item) fits(left *item) bool {
	return i.cpu <= left.cpu+tolerance && i.memory <= left.memory+tolerance
}

// inTurn puts each item onto the open server that fits and has the least of something, the first of
// equals, or opens another.
func inTurn(items []item, least func(i item, left *item) float64) int {
	var open []item // what is left
	for _, i := range items {
		at, value := -1, 0.0
		for n := range open {
			if i.fits(&open[n]) {
				if v := least(i, &open[n]); at < 0 || v < value {
					at, value = n, v
				}
			}
		}
		if at < 0 {
			at, open = len(open), append(open, item{1, 1})
		}
		open[at].cpu -= i.cpu
		open[at].memory -= i.memory
	}
	return len(open)
}

// dotProduct fills one server after the other with what goes best with what is left of it, as
// Panigrahy et al. (Heuristics for Vector Bin Packing, 2011) do: the largest product of sizes and what
// is left, each resource weighted by how much of it is wanted in all.
func dotProduct(items []item) int {
	rest := slices.Clone(items)
	servers := 0
	for len(rest) > 0 {
		servers++
		var weight item
		for _, i := range rest {
			weight.cpu, weight.memory = weight.cpu+i.cpu/float64(len(rest)), weight.memory+i.memory/float64(len(rest))
		}
		left := item{1, 1}
		for {
			at, best := -1, 0.0
			for n := range rest {
				if i := &rest[n]; i.fits(&left) {
					if v := weight.cpu*i.cpu*left.cpu + weight.memory*i.memory*left.memory; at < 0 || v > best {
						at, best = n, v
					}
				}
			}
			if at < 0 {
				break
			}
			left.cpu -= rest[at].cpu
			left.memory -= rest[at].memory
			rest = slices.Delete(rest, at, at+1)
		}
	}
	return servers
}
