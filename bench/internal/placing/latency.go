package placing

import (
	"fmt"
	"time"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/schedule"
)

// latencyShapes are clusters that are in use, on which instances come one by one.
func latencyShapes(brief bool) []shape {
	if brief {
		return []shape{shapeOf(basic, 1_000)}
	}
	return []shape{shapeOf(basic, 1_000), shapeOf(basic, 5_000), shapeOf(mixed, 5_000), shapeOf(basic, 10_000), {basic, 100_000, 10, 100_000}}
}

// latency places a shape, and then single instances of a further workload, each by a call of its own
// that knows nothing of those before: what one decision costs in a cluster that is in use. It is
// measured on the clock, on one processor.
func (r *run) latency(s shape) error {
	r.sheet.Say("one by one on %s", s)
	nodes := views(s)
	schedule.Place(schedule.Cluster{Nodes: nodes}, requestsOf(s), 1)
	const single = 200
	one := shape{s.kind, s.nodes, single, single}
	requests := requestsOf(one)
	var took []time.Duration
	for i := range requests {
		requests[i].WorkloadID = fmt.Sprint("further-", i)
		began := time.Now()
		p := schedule.Place(schedule.Cluster{Nodes: nodes}, requests[i:i+1], uint64(i))
		took = append(took, time.Since(began))
		if p[0].NodeID == "" {
			return fmt.Errorf("an instance found no place: %s", p[0].Reason)
		}
	}
	for _, p := range []struct {
		name string
		at   float64
	}{{"p50", 0.5}, {"p99", 0.99}} {
		err := r.sheet.Add(report.Row{
			Name: "schedule/single/" + p.name + "/" + s.String(), Value: report.Percentile(took, p.at), Unit: "ms",
			Counted: "Tutti: one schedule.Place for one instance, on a cluster on which the shape runs already; on the clock, one processor; SwarmKit's scheduler cannot be asked for one decision",
		})
		if err != nil {
			return err
		}
	}
	return nil
}
