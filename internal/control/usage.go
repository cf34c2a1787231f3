package control

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// NodeUsage is what the instances of a node have used at a time, and the requests that its ingress has had.
type NodeUsage struct {
	Time time.Time // on the node's clock
	// Instances are those that run, by ID.
	Instances map[string]InstanceUsage
	// Requests count since the node's ingress began, by service ID.
	Requests map[string]uint64
}

// InstanceUsage is what an instance has used: processors since it began, and memory now.
type InstanceUsage struct {
	CPUNanoseconds uint64
	MemoryBytes    uint64
}

// nodeTold is a node's answer.
type nodeTold struct {
	used NodeUsage
	err  error
}

// askNodes asks all nodes that are up, many at a time.
func (s *Scaler) askNodes(ctx context.Context, snap *store.Snapshot) map[string]nodeTold {
	out := map[string]nodeTold{}
	var mu sync.Mutex
	room := make(chan struct{}, askedAtOnce)
	var all sync.WaitGroup
	for n := range store.List[*model.Node](snap) {
		if n.Status.State != model.NodeReady {
			continue
		}
		all.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			ctx, cancel := context.WithTimeout(ctx, scalePatience)
			defer cancel()
			var told nodeTold
			told.used, told.err = s.Node(ctx, n.ID)
			mu.Lock()
			defer mu.Unlock()
			out[n.ID] = told
		})
	}
	all.Wait()
	return out
}

// requests returns how many requests a second came for a service, to all nodes together, since the look
// before; known is false while there is none to compare with.
func (s *Scaler) requests(ctx context.Context, snap *store.Snapshot, w *model.Workload) (rate float64, known bool, err error) {
	var services []string
	for sv := range store.ByApplication[*model.Service](snap, w.Namespace, w.Application) {
		if sv.WorkloadID == w.ID && len(sv.Routes) > 0 {
			services = append(services, sv.ID)
		}
	}
	if len(services) == 0 {
		return 0, false, fmt.Errorf("no route leads to it, so that nobody counts its requests")
	}
	if s.nodes == nil {
		s.nodes = s.askNodes(ctx, snap)
	}
	for id, now := range s.nodes {
		if now.err != nil {
			return 0, false, fmt.Errorf("node %s does not tell: %w", id, now.err)
		}
		was, ok := s.were[id]
		span := now.used.Time.Sub(was.used.Time)
		if !ok || was.err != nil || span <= 0 {
			continue // it has just come
		}
		known = true
		for _, service := range services {
			count, before := now.used.Requests[service], was.used.Requests[service]
			if count < before {
				before = 0 // its ingress began anew
			}
			rate += float64(count-before) / span.Seconds()
		}
	}
	return rate, known, nil
}

// measureHeat measures what nodes use, while some workload may move for it.
func (s *Scaler) measureHeat(ctx context.Context, snap *store.Snapshot, now time.Time) {
	if s.Heat == nil {
		return
	}
	for w := range store.List[*model.Workload](snap) {
		if !w.Rebalance {
			continue
		}
		if s.nodes == nil {
			s.nodes = s.askNodes(ctx, snap)
		}
		s.Heat.note(snap, s.were, s.nodes, now)
		return
	}
	s.Heat.forget()
}
