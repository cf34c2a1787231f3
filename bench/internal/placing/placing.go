// Package placing measures how fast placements are decided: Tutti's schedule.Place, and the
// leader's whole control loop, against SwarmKit's scheduler, on clusters of equal shape.
//
// Both sides run on one processor (GOMAXPROCS=1) and are charged the processor time of the whole
// program, garbage collection included, so that other work on the machine does not count.
package placing

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/bench/internal/report"
)

// kind is what a shape's workloads ask of nodes.
type kind string

const (
	basic       kind = "basic"
	spread      kind = "spread"       // evenly over the 16 values of a label
	constrained kind = "constraint"   // only nodes with a label, every third
	apart       kind = "antiaffinity" // no two instances of a workload on one node; with as many as nodes, a daemon
	mixed       kind = "mixed"        // of the above, one workload after the other
	full        kind = "full"         // room for half of the instances only

	// SwarmKit knows nothing of these.
	even    kind = "evenly"     // as spread, but no value may have two more than another
	near    kind = "affinity"   // all instances of a workload within one value of the label
	gang    kind = "gang"       // each workload as a whole or not at all
	preempt kind = "preemption" // all nodes are full of what is less important
)

// alone reports whether SwarmKit has nothing like it.
func (k kind) alone() bool { return k == even || k == near || k == gang || k == preempt }

// kindOf is what a workload of the shape asks of nodes.
func (s shape) kindOf(workload int) kind {
	if s.kind == mixed {
		return []kind{basic, spread, constrained, apart}[workload%4]
	}
	return s.kind
}

// roomy is how many instances find a place.
func (s shape) roomy() int {
	if s.kind == full {
		return min(s.instances, s.nodes*fewPerNode)
	}
	return s.instances
}

// cpusOf is how many cores an instance wants, in billionths.
func (s shape) cpusOf() int64 {
	if s.kind == full || s.kind == preempt {
		return nodeNanoCPUs / fewPerNode
	}
	return instanceNanoCPUs
}

// shape is a cluster and what is to be placed on it, all at once.
type shape struct {
	kind      kind
	nodes     int
	workloads int
	instances int // in total, equally many of each workload
}

const (
	zones      = 16
	fewPerNode = 5 // instances that a node has room for, where there is too little
	ssdEvery   = 3
	// What a node has and an instance wants: room for 400 instances.
	nodeNanoCPUs, nodeMemory         = 4e9, 8 << 30
	instanceNanoCPUs, instanceMemory = 1e7, 16 << 20
)

func (s shape) String() string {
	return fmt.Sprintf("%s/%d-nodes/%d-instances/%d-workloads", s.kind, s.nodes, s.instances, s.workloads)
}

// workloadOf spreads instances over workloads, one workload after the other.
func (s shape) workloadOf(instance int) int { return instance * s.workloads / s.instances }

func zoneOf(node int) string { return fmt.Sprintf("z%02d", node%zones) }

// fewer is the shape with fewer instances.
func (s shape) fewer(instances int) shape {
	s.instances = instances
	s.workloads = min(s.workloads, instances)
	return s
}

// shapes are those measured; brief ones take seconds.
func shapes(brief bool) []shape {
	if brief {
		return []shape{
			{basic, 1_000, 10, 10_000},
			{basic, 5_000, 10, 50_000},
			{spread, 5_000, 10, 50_000},
			{basic, 5_000, 1_000, 50_000},
			{spread, 5_000, 1_000, 50_000},
			{even, 5_000, 1_000, 50_000},
			shapeOf(preempt, 1_000),
			shapeOf(gang, 1_000),
		}
	}
	var out []shape
	for _, k := range []kind{basic, spread, constrained, apart, mixed, full, even, near, gang, preempt} {
		for _, nodes := range []int{1_000, 5_000, 10_000} {
			switch k {
			case basic, spread, constrained, apart:
			default:
				if nodes > 5_000 {
					continue
				}
			}
			out = append(out, shapeOf(k, nodes))
		}
	}
	out = append(out,
		shape{basic, 5_000, 1_000, 50_000},
		shape{spread, 5_000, 1_000, 50_000},
		shape{basic, 100_000, 10, 100_000},
		shape{spread, 100_000, 10, 100_000},
		shape{even, 5_000, 1_000, 50_000},
		shape{apart, 5_000, 1_000, 50_000},
		shape{mixed, 5_000, 1_000, 50_000},
		shape{constrained, 100_000, 10, 100_000},
		shape{apart, 100_000, 10, 100_000},
		shape{basic, 100_000, 1_000, 100_000},
		shape{mixed, 100_000, 10, 100_000},
		shape{even, 100_000, 10, 100_000},
	)
	return out
}

// sizes are the numbers of nodes on which clusters that are in use are measured.
func sizes(brief bool) []int {
	if brief {
		return []int{1_000}
	}
	return []int{1_000, 5_000, 10_000}
}

// shapeOf is the usual shape of a kind: workloads of many instances, or where that is the point of
// small ones.
func shapeOf(k kind, nodes int) shape {
	switch k {
	case gang:
		return shape{k, nodes, min(10*nodes, 50_000) / 16, min(10*nodes, 50_000)}
	case preempt:
		return shape{k, nodes, 10, nodes}
	}
	return shape{k, nodes, 10, min(10*nodes, 50_000)}
}

// million is the largest shape, measured in a process of its own for the sake of its memory.
var million = shape{basic, 100_000, 100, 1_000_000}

// run is one run of the group.
type run struct {
	sheet *report.Sheet
	brief bool
	peer  map[shape]peerResult // what SwarmKit did
	kubernetes
}

// Run measures all shapes.
func Run(ctx context.Context, sheet *report.Sheet, brief bool) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	r := &run{sheet: sheet, brief: brief, peer: map[shape]peerResult{}}
	if !brief {
		sheet.Say("building Kubernetes' scheduler")
		var err error
		if r.kubernetes, err = buildKubernetes(ctx); err != nil {
			return err
		}
		defer r.kubernetes.remove()
	}
	for _, s := range shapes(brief) {
		if err := r.compare(ctx, s); err != nil {
			return fmt.Errorf("place %s: %w", s, err)
		}
	}
	for _, nodes := range sizes(brief) {
		if err := r.daemon(nodes); err != nil {
			return fmt.Errorf("place global workloads on %d nodes: %w", nodes, err)
		}
		if err := r.churn(nodes); err != nil {
			return fmt.Errorf("replace instances on %d nodes: %w", nodes, err)
		}
	}
	for i, m := range mixes {
		if brief && i > 0 {
			break
		}
		if err := r.packing(m); err != nil {
			return fmt.Errorf("pack the mix %s: %w", m.name, err)
		}
	}
	for _, s := range latencyShapes(brief) {
		if err := r.latency(s); err != nil {
			return fmt.Errorf("place one by one on %s: %w", s, err)
		}
	}
	for _, s := range loopShapes(brief) {
		if err := r.compareLoop(ctx, s); err != nil {
			return fmt.Errorf("the leader's loop over %s: %w", s, err)
		}
	}
	if brief {
		return nil
	}
	return compareMillion(ctx, sheet)
}

// compare decides a shape a few times, or as long as that takes no more than seconds, and lets
// SwarmKit do it.
func (r *run) compare(ctx context.Context, s shape) error {
	r.sheet.Say("placing %s", s)
	var rates []float64
	var all time.Duration
	for len(rates) < 5 && all < time.Second {
		took, err := place(s)
		if err != nil {
			return err
		}
		all += took
		rates = append(rates, float64(s.instances)/took.Seconds())
	}
	rate := report.Median(rates)
	if r.kubernetes.takes(s) {
		if err := r.compareKubernetes(ctx, s, rate); err != nil {
			return err
		}
	}
	if s.kind.alone() {
		return r.sheet.Add(report.Row{
			Name: "schedule/" + s.String(), Value: rate, Unit: "placements/s",
			Counted: "Tutti: decided by schedule.Place, nothing committed; processor time of one core; SwarmKit has no such shape",
		})
	}
	peer, err := r.swarmKit(ctx, s)
	if err != nil {
		return err
	}
	return r.sheet.Add(report.Row{
		Name: "schedule/" + s.String(), Value: rate, Unit: "placements/s",
		Peer: swarmKitName, PeerValue: peer.rate(),
		Counted: "Tutti: decided by schedule.Place, nothing committed; " + peer.counted(s) + "; processor time of one core",
	})
}

// swarmKit is what SwarmKit does of a shape; it is asked once.
func (r *run) swarmKit(ctx context.Context, s shape) (peerResult, error) {
	if err := ctx.Err(); err != nil {
		return peerResult{}, err
	}
	if p, ok := r.peer[s]; ok {
		return p, nil
	}
	const patience = 2 * time.Second
	r.sheet.Say("the same by SwarmKit")
	p, err := swarmKit(ctx, s, patience)
	r.peer[s] = p
	return p, err
}

// cost runs something and returns the processor time that the whole program spent meanwhile. What
// earlier measurements left behind is collected before, and not charged.
func cost(fn func() error) (time.Duration, error) {
	runtime.GC()
	before, err := processorTime()
	if err != nil {
		return 0, err
	}
	if err := fn(); err != nil {
		return 0, err
	}
	after, err := processorTime()
	return after - before, err
}

func processorTime() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("read the processor time spent: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
