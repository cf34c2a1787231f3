package docker

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/container"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// await looks at a container, by its ID, now and at every later state of it, also those that last
// only for a moment, until look returns true. look gets nil once the container is gone.
func (a *API) await(ctx context.Context, id string, look func(b *box) bool) error {
	var seen *box
	for {
		snap := a.snapshot()
		watch := a.Core.Store.Watch(snap.Revision(), model.KindInstance, model.KindWorkload)
		for {
			now := a.boxByID(snap, id)
			if look(now) {
				return nil
			}
			if now != nil {
				seen = now
			}
			batch, err := watch.Next(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				break // it fell behind: look again
			}
			for _, ch := range batch.Changes {
				if then := seen.as(ch); then != nil {
					seen = then
					if look(then) {
						return nil
					}
				}
			}
			snap = a.snapshot()
		}
	}
}

// as is the container with its instance as a change left it, or, at its end, as it was; nil when the
// change is none of its instance.
func (b *box) as(ch store.Change) *box {
	i, ok := ch.New.(*model.Instance)
	if !ok {
		i, ok = ch.Old.(*model.Instance)
	}
	if b == nil || !ok || i == nil || i.WorkloadID != b.workload.ID {
		return nil
	}
	switch {
	case b.made == nil && (b.instance == nil || i.ID != b.instance.ID), b.made != nil && i.Slot != 1:
		return nil
	case b.instance != nil && i.ID != b.instance.ID && !newer(i, b.instance):
		return nil
	}
	c := *b
	c.instance = i
	return &c
}

// runKey names the latest run of a container; "" when there was none.
func (b *box) runKey() string {
	if t := b.run(); t != nil {
		return fmt.Sprintf("%s.%d", b.instance.ID, t.Run)
	}
	return ""
}

// settled reports whether the latest run has ended, or runs.
func (b *box) settled() bool {
	switch b.state() {
	case container.StateCreated:
		return false
	case container.StateExited:
		return b.instance == nil || b.instance.Status.State != model.InstanceStopping
	}
	return true
}

// ended reports whether nothing of the container runs, and nothing is on its way to.
func (b *box) ended() bool {
	return b.state() == container.StateExited || b.state() == container.StateDead
}
