package control

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

const (
	// hotFor is how long a node has to be hot before something is moved off it.
	hotFor = time.Minute
	// smooth is how much of a new measurement goes into what a node or an instance is taken to use.
	smooth = 0.2
	// coolDown is how long a node is left alone after something was moved off it for its heat, until
	// measurements show what that brought; settled is how long what was moved stays where it is.
	coolDown = 2 * time.Minute
	settled  = 30 * time.Minute
	// waited is how long an instance has been without a node before others are moved to make room.
	waited = 10 * time.Second
)

// Heat is what is measured of nodes and instances, smoothed. The Scaler measures, and the Controller
// moves what makes nodes hot. A nil one knows nothing.
type Heat struct {
	mu        sync.Mutex
	nodes     map[string]schedule.Load
	instances map[string]schedule.Load
	hotSince  map[string]time.Time
	left      map[string]time.Time // node ID → when something was moved off it
	moves     map[string]time.Time // workload ID and slot → when it was moved
}

// NewHeat returns one that has measured nothing yet.
func NewHeat() *Heat {
	return &Heat{
		nodes: map[string]schedule.Load{}, instances: map[string]schedule.Load{}, hotSince: map[string]time.Time{},
		left: map[string]time.Time{}, moves: map[string]time.Time{},
	}
}

// note takes what nodes told, now and before. Nodes that did not tell are forgotten.
func (h *Heat) note(snap *store.Snapshot, were, are map[string]nodeTold, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	nodes, instances := map[string]schedule.Load{}, map[string]schedule.Load{}
	blend := func(old schedule.Load, known bool, l schedule.Load) schedule.Load {
		if !known {
			return l
		}
		return schedule.Load{NanoCPUs: old.NanoCPUs + smooth*(l.NanoCPUs-old.NanoCPUs), MemoryBytes: old.MemoryBytes + smooth*(l.MemoryBytes-old.MemoryBytes)}
	}
	for id, told := range are {
		was, ok := were[id]
		span := told.used.Time.Sub(was.used.Time)
		if told.err != nil || !ok || was.err != nil || span <= 0 {
			delete(h.hotSince, id)
			continue
		}
		sum := schedule.Load{}
		for instance, used := range told.used.Instances {
			before, ran := was.used.Instances[instance]
			if !ran || used.CPUNanoseconds < before.CPUNanoseconds {
				continue // it has just started
			}
			l := schedule.Load{NanoCPUs: float64(used.CPUNanoseconds-before.CPUNanoseconds) / span.Seconds(), MemoryBytes: float64(used.MemoryBytes)}
			old, known := h.instances[instance]
			instances[instance] = blend(old, known, l)
			sum.NanoCPUs += l.NanoCPUs
			sum.MemoryBytes += l.MemoryBytes
		}
		old, known := h.nodes[id]
		nodes[id] = blend(old, known, sum)
		n, ok := store.Get[*model.Node](snap, id)
		switch {
		case !ok || schedule.Heat(n, nodes[id]) < schedule.Hot:
			delete(h.hotSince, id)
		case h.hotSince[id].IsZero():
			h.hotSince[id] = now
		}
	}
	h.nodes, h.instances = nodes, instances
}

// forget is for when nobody asks any more.
func (h *Heat) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.nodes)
	clear(h.instances)
	clear(h.hotSince)
}

// heatNow is a copy of what is known at a time.
type heatNow struct {
	nodes, instances map[string]schedule.Load
	hot              map[string]bool
	resting          map[string]bool // workload ID and slot: it was moved a while ago
}

func (h *Heat) now(now time.Time) heatNow {
	if h == nil {
		return heatNow{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	out := heatNow{nodes: maps.Clone(h.nodes), instances: maps.Clone(h.instances), hot: map[string]bool{}, resting: map[string]bool{}}
	for id, since := range h.hotSince {
		if now.Sub(since) >= hotFor && now.Sub(h.left[id]) >= coolDown {
			out.hot[id] = true
		}
	}
	for key, at := range h.moves {
		if now.Sub(at) >= settled {
			delete(h.moves, key)
			continue
		}
		out.resting[key] = true
	}
	return out
}

func slotKey(workloadID string, slot int) string { return fmt.Sprint(workloadID, " ", slot) }

// moved notes that something is moved off a node for its heat.
func (h *Heat) moved(workloadID string, slot int, from string, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.left[from] = now
	h.moves[slotKey(workloadID, slot)] = now
}

// forbids reports whether an instance is to stay for what is measured: it was moved a while ago, or would
// make the other node too warm.
func (h *heatNow) forbids(i *model.Instance, to *model.Node) bool {
	if h.resting[slotKey(i.WorkloadID, i.Slot)] {
		return true
	}
	load, known := h.nodes[to.ID]
	if !known {
		return false
	}
	own := h.instances[i.ID]
	return schedule.Heat(to, schedule.Load{NanoCPUs: load.NanoCPUs + own.NanoCPUs, MemoryBytes: load.MemoryBytes + own.MemoryBytes}) > schedule.Cool
}

// relieve chooses what to move off nodes that are hot.
func (p *pass) relieve(cluster schedule.Cluster, heat heatNow, list []schedule.Movable, most int) []schedule.Move {
	if len(heat.hot) == 0 {
		return nil
	}
	var measured []schedule.Measured
	for _, m := range list {
		i, ok := store.Get[*model.Instance](p.snap, m.InstanceID)
		load, known := heat.instances[m.InstanceID]
		if ok && known && heat.hot[m.NodeID] && !heat.resting[slotKey(i.WorkloadID, i.Slot)] {
			measured = append(measured, schedule.Measured{Movable: m, Load: load})
		}
	}
	// One at a time off each node: what that brings is measured before the next.
	var out []schedule.Move
	for _, id := range slices.Sorted(maps.Keys(heat.hot)) {
		if len(out) < most {
			out = append(out, schedule.Relieve(cluster, map[string]bool{id: true}, heat.nodes, measured, 1, p.snap.Revision())...)
		}
	}
	return out
}

// makeRoom chooses an instance whose move lets one be placed that has waited for a node.
func (p *pass) makeRoom(cluster schedule.Cluster, list []schedule.Movable) *schedule.Move {
	var pending []schedule.Request
	for i := range store.UnplacedInstances(p.snap) {
		w, ok := store.Get[*model.Workload](p.snap, i.WorkloadID)
		r, kept := store.Get[*model.Revision](p.snap, i.RevisionID)
		if !ok || !kept || i.Desired != model.DesiredRun || i.Status.State.Final() || p.now.Sub(i.Created) < waited || r.Template.Placement.Gang || i.Replaces != "" {
			continue
		}
		if req := p.requestFor(i, w, &r.Template); req.PinnedTo == "" && len(pending) < 16 {
			pending = append(pending, req)
		}
	}
	if len(pending) == 0 {
		return nil
	}
	return schedule.MakeRoom(cluster, pending, list, p.snap.Revision())
}

// destination is the node to which the instance was to move that another one replaces.
func (p *pass) destination(i *model.Instance) (nodeID, reason string) {
	old, ok := store.Get[*model.Instance](p.snap, i.Replaces)
	if i.Replaces == "" || !ok || old.Move == nil || old.Move.To == "" {
		return "", ""
	}
	return old.Move.To, "are not where it is to move"
}
