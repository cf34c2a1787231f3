package placing

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/log"
	"github.com/moby/swarmkit/v2/manager/scheduler"
	"github.com/moby/swarmkit/v2/manager/state/store"
	"github.com/sirupsen/logrus"
)

const swarmKitName = "SwarmKit scheduler v2.1.1"

// peerResult is what SwarmKit did of a shape.
type peerResult struct {
	instances int
	took      time.Duration
}

func (p peerResult) rate() float64 { return float64(p.instances) / p.took.Seconds() }

func (p peerResult) counted(s shape) string {
	text := "SwarmKit: decided and put into its store in memory"
	if p.instances < s.instances {
		text += fmt.Sprintf(", %d of the instances as it is slow", p.instances)
	}
	return text
}

// swarmKit lets SwarmKit decide a shape, or as much of it as it can within its patience.
func swarmKit(ctx context.Context, s shape, patience time.Duration) (peerResult, error) {
	r := peerResult{instances: min(s.instances, max(s.workloads, 1000))}
	for {
		var err error
		if r.took, err = swarmKitOnce(ctx, s.fewer(r.instances)); err != nil {
			return r, fmt.Errorf("SwarmKit: %w", err)
		}
		// Its time grows with the number of instances at least.
		next := min(s.instances, int(float64(r.instances)*float64(patience)/float64(r.took)))
		if next < 2*r.instances && next != s.instances || r.instances == s.instances {
			return r, nil
		}
		r.instances = next
	}
}

// swarmKitOnce fills a store, then runs the scheduler over it once. Tasks of one service have a
// version of their specification in common, as Docker makes them: SwarmKit decides them together.
func swarmKitOnce(ctx context.Context, s shape) (time.Duration, error) {
	quiet := logrus.New()
	quiet.Out = io.Discard
	ctx = log.WithLogger(ctx, logrus.NewEntry(quiet))
	st := store.NewMemoryStore(nil)
	defer st.Close()
	if err := st.Update(func(tx store.Tx) error { return fill(tx, s) }); err != nil {
		return 0, fmt.Errorf("fill its store: %w", err)
	}
	took, err := cost(func() error {
		sched := scheduler.New(st)
		done := make(chan error, 1)
		go func() { done <- sched.Run(ctx) }()
		sched.Stop() // it decides all that is pending before it looks whether to stop
		return <-done
	})
	if err != nil {
		return 0, err
	}
	return took, allAssigned(st, s)
}

func fill(tx store.Tx, s shape) error {
	for i := range s.nodes {
		name := "node-" + strconv.Itoa(i)
		labels := map[string]string{"zone": zoneOf(i)}
		if i%ssdEvery == 0 {
			labels["disk"] = "ssd"
		}
		err := store.CreateNode(tx, &api.Node{
			ID:     "id-" + name,
			Spec:   api.NodeSpec{Annotations: api.Annotations{Name: name, Labels: labels}, Availability: api.NodeAvailabilityActive},
			Status: api.NodeStatus{State: api.NodeStatus_READY},
			Description: &api.NodeDescription{
				Hostname: name, Engine: &api.EngineDescription{},
				Platform:  &api.Platform{OS: "linux", Architecture: "amd64"},
				Resources: &api.Resources{NanoCPUs: nodeNanoCPUs, MemoryBytes: nodeMemory},
			},
		})
		if err != nil {
			return err
		}
	}
	for i := range s.instances {
		placement := placementOf(s.kindOf(s.workloadOf(i)))
		service := "workload-" + strconv.Itoa(s.workloadOf(i))
		err := store.CreateTask(tx, &api.Task{
			ID: "instance-" + strconv.Itoa(i), ServiceID: service, Slot: uint64(i), SpecVersion: &api.Version{Index: 1},
			ServiceAnnotations: api.Annotations{Name: service},
			Spec: api.TaskSpec{
				Resources: &api.ResourceRequirements{Reservations: &api.Resources{NanoCPUs: s.cpusOf(), MemoryBytes: instanceMemory}},
				Placement: placement,
			},
			DesiredState: api.TaskStateRunning, Status: api.TaskStatus{State: api.TaskStatePending},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func placementOf(k kind) *api.Placement {
	switch k {
	case spread:
		return &api.Placement{Preferences: []*api.PlacementPreference{{
			Preference: &api.PlacementPreference_Spread{Spread: &api.SpreadOver{SpreadDescriptor: "node.labels.zone"}},
		}}}
	case constrained:
		return &api.Placement{Constraints: []string{"node.labels.disk==ssd"}}
	case apart:
		return &api.Placement{MaxReplicas: 1}
	}
	return nil
}

func allAssigned(st *store.MemoryStore, s shape) (err error) {
	st.View(func(tx store.ReadTx) {
		var tasks []*api.Task
		if tasks, err = store.FindTasks(tx, store.All); err != nil {
			return
		}
		assigned, why := 0, ""
		for _, t := range tasks {
			if t.NodeID != "" && t.Status.State == api.TaskStateAssigned {
				assigned++
			} else {
				why = t.Status.Err
			}
		}
		if assigned != s.roomy() {
			err = fmt.Errorf("of %s, %d tasks were assigned, there is room for %d: %s", s, assigned, s.roomy(), why)
		}
	})
	return err
}
