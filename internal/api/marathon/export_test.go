package marathon

import (
	"context"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Settle is one look of Run.
func (a *API) Settle(ctx context.Context) { a.settle(ctx) }

// Indexed lists the workloads that the index has, in its order, and Walked those that a walk finds.
func (a *API) Indexed(snap *store.Snapshot, ns, below string) (ids []string) {
	for _, e := range a.entriesBelow(snap, ns, below) {
		ids = append(ids, e.path+" "+e.workload.ID)
	}
	return ids
}

// Walked lists what Indexed should, in no order.
func (a *API) Walked(snap *store.Snapshot, ns, group string) (ids []string) {
	for w := range store.List[*model.Workload](snap) {
		if e := a.entryOf(w); e != nil && w.Namespace == ns && below(e.path, group) {
			ids = append(ids, e.path+" "+w.ID)
		}
	}
	return ids
}
