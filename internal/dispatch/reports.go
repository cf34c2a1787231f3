package dispatch

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// reports writes what agents observe into the store, many instances of many nodes at a time. The
// latest status of an instance counts; while a write is under way the next ones gather, so that
// there is never more to write than there are instances.
type reports struct {
	store *store.Store
	log   *slog.Logger

	mu      sync.Mutex
	pending map[report]model.InstanceStatus
	wake    chan struct{}
}

// report names an instance and the node that tells of it.
type report struct{ instance, node string }

// mostReports is how many statuses travel in one change set.
const mostReports = 2000

func newReports(s *store.Store, log *slog.Logger) *reports {
	return &reports{store: s, log: log, pending: map[report]model.InstanceStatus{}, wake: make(chan struct{}, 1)}
}

func (r *reports) add(node string, m *wire.Report) {
	r.mu.Lock()
	for id, st := range m.Instances {
		k := report{id, node}
		if later, ok := r.pending[k]; !ok || st.Seq >= later.Seq {
			r.pending[k] = st
		}
	}
	r.mu.Unlock()
	r.poke()
}

func (r *reports) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reports) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
		batch := r.take()
		cs := r.changes(batch)
		if cs.Len() == 0 {
			continue
		}
		if _, err := r.store.Commit(ctx, cs); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			r.log.Warn("statuses could not be written, trying again", "error", err)
			r.putBack(batch)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

func (r *reports) take() map[report]model.InstanceStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.pending) <= mostReports {
		batch := r.pending
		r.pending = map[report]model.InstanceStatus{}
		return batch
	}
	batch := make(map[report]model.InstanceStatus, mostReports)
	for k, st := range r.pending {
		if len(batch) == mostReports {
			break
		}
		batch[k] = st
		delete(r.pending, k)
	}
	r.poke() // for the rest
	return batch
}

func (r *reports) putBack(batch map[report]model.InstanceStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, st := range batch {
		if _, newer := r.pending[k]; !newer {
			r.pending[k] = st
		}
	}
	r.poke()
}

// changes leaves out what a node may not say: the status of an instance that is not its own, or
// that the cluster has given up.
func (r *reports) changes(batch map[report]model.InstanceStatus) *store.ChangeSet {
	snap := r.store.Snapshot()
	cs := &store.ChangeSet{}
	keys := slices.SortedFunc(maps.Keys(batch), func(a, b report) int {
		return cmp.Or(cmp.Compare(a.instance, b.instance), cmp.Compare(a.node, b.node))
	})
	for _, k := range keys {
		inst, ok := store.Get[*model.Instance](snap, k.instance)
		if !ok || inst.Status.State == model.InstanceLost {
			continue
		}
		if inst.NodeID != k.node {
			r.log.Warn("node reports on an instance of another node", "instance", k.instance, "node", k.node)
			continue
		}
		st := batch[k]
		if reflect.DeepEqual(inst.Status, st) {
			continue // said again at the begin of a session
		}
		c := inst.Clone()
		c.Status = st
		cs.PutStatus(c)
	}
	return cs
}
