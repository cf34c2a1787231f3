package placing

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
)

// daemon puts an instance of each of ten global workloads on every node, as the leader does: it asks
// each node whether it has room.
func (r *run) daemon(nodes int) error {
	s := shape{"daemon", nodes, 10, 10 * nodes}
	r.sheet.Say("placing %s", s)
	clusterNodes := views(s)
	took, err := cost(func() error {
		for w := range s.workloads {
			t, name := s.template(w), "workload-"+strconv.Itoa(w)
			want := schedule.Wanted(t)
			for _, v := range clusterNodes {
				if why := schedule.Lacks(v, schedule.Request{WorkloadID: name, Workload: name, Template: t}); why != "" {
					return fmt.Errorf("an instance found no place: %s", why)
				}
				v.Take(name, &want, nil)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.sheet.Add(report.Row{
		Name: "schedule/" + s.String(), Value: float64(s.instances) / took.Seconds(), Unit: "placements/s",
		Counted: "Tutti: global workloads, each node asked by schedule.Lacks, nothing committed; processor time of one core",
	})
}

// churn fills a cluster, and then replaces a thousand instances at random, again and again: what a
// batch costs in a cluster that changes all the time.
func (r *run) churn(nodes int) error {
	const batch, rounds = 1000, 20
	s := shapeOf(mixed, nodes)
	r.sheet.Say("replacing instances, %d at a time, on %s", batch, s)
	cluster := schedule.Cluster{Nodes: views(s)}
	byID := map[string]*schedule.NodeView{}
	for _, v := range cluster.Nodes {
		byID[v.Node.ID] = v
	}
	requests := requestsOf(s)
	at := make([]string, len(requests)) // where each instance is
	settle := func(which []int, placed []schedule.Placement) error {
		for n, p := range placed {
			if at[which[n]] = p.NodeID; p.NodeID == "" {
				return fmt.Errorf("an instance found no place: %s", p.Reason)
			}
		}
		return nil
	}
	all := make([]int, len(requests))
	for i := range all {
		all[i] = i
	}
	if err := settle(all, schedule.Place(cluster, requests, 1)); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(5, 6))
	var took []time.Duration
	spent, err := time.Duration(0), error(nil)
	for round := range rounds {
		which := rng.Perm(len(requests))[:batch]
		again := make([]schedule.Request, batch)
		for n, i := range which {
			leave(byID[at[i]], &requests[i])
			again[n] = requests[i]
		}
		var placed []schedule.Placement
		began := time.Now()
		one, costErr := cost(func() error {
			began = time.Now()
			placed = schedule.Place(cluster, again, uint64(round))
			return nil
		})
		took = append(took, time.Since(began))
		if err = costErr; err == nil {
			err = settle(which, placed)
		}
		if err != nil {
			return err
		}
		spent += one
	}
	name := fmt.Sprintf("churn/%d-nodes/%d-instances/%d-at-a-time", nodes, s.instances, batch)
	if err := r.sheet.Add(report.Row{
		Name: "schedule/" + name, Value: float64(batch*rounds) / spent.Seconds(), Unit: "placements/s",
		Counted: "Tutti: decided by schedule.Place on a cluster that is in use, the mixed shape, nothing committed; processor time of one core",
	}); err != nil {
		return err
	}
	return r.sheet.Add(report.Row{
		Name: "schedule/p99/" + name, Value: report.Percentile(took, 0.99), Unit: "ms",
		Counted: "Tutti: the slowest of a hundred such batches, or of as many as there were; on the clock, one processor",
	})
}

// leave takes an instance off a node.
func leave(v *schedule.NodeView, r *schedule.Request) {
	want := schedule.Wanted(r.Template)
	v.Used = model.Resources{NanoCPUs: v.Used.NanoCPUs - want.NanoCPUs, MemoryBytes: v.Used.MemoryBytes - want.MemoryBytes}
	v.Instances[r.WorkloadID]--
	v.Total--
}
