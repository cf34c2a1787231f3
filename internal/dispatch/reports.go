package dispatch

import (
	"context"
	"reflect"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// reports writes what one agent observes into the store, many instances at a time. The latest
// status of an instance counts; while a write is under way the next ones gather.
type reports struct {
	store *store.Store
	sess  *session

	mu      sync.Mutex
	pending map[string]model.InstanceStatus
	wake    chan struct{}
}

func newReports(s *store.Store, sess *session) *reports {
	return &reports{store: s, sess: sess, pending: map[string]model.InstanceStatus{}, wake: make(chan struct{}, 1)}
}

func (r *reports) add(m *wire.Report) {
	r.mu.Lock()
	for id, st := range m.Instances {
		r.pending[id] = st
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reports) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.wake:
		}
		r.mu.Lock()
		batch := r.pending
		r.pending = map[string]model.InstanceStatus{}
		r.mu.Unlock()
		cs := r.changes(batch)
		if cs.Len() == 0 {
			continue
		}
		if _, err := r.store.Commit(ctx, cs); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.sess.log.Warn("statuses could not be written, trying again", "error", err)
			r.mu.Lock()
			for id, st := range batch {
				if _, newer := r.pending[id]; !newer {
					r.pending[id] = st
				}
			}
			r.mu.Unlock()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
			select {
			case r.wake <- struct{}{}:
			default:
			}
		}
	}
}

// changes leaves out what a node may not say: the status of an instance that is not its own, or
// that the cluster has given up.
func (r *reports) changes(batch map[string]model.InstanceStatus) *store.ChangeSet {
	snap := r.store.Snapshot()
	cs := &store.ChangeSet{}
	for id, st := range batch {
		inst, ok := store.Get[*model.Instance](snap, id)
		if !ok || inst.Status.State == model.InstanceLost {
			continue
		}
		if inst.NodeID != r.sess.nodeID {
			r.sess.log.Warn("node reports on an instance of another node", "instance", id)
			continue
		}
		if reflect.DeepEqual(inst.Status, st) {
			continue // said again at the begin of a session
		}
		c := inst.Clone()
		c.Status = st
		cs.PutStatus(c)
	}
	return cs
}
