package core

import (
	"context"
	"fmt"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Seen is a node, a workload, an instance, a network or a service as it is now, or that it is gone.
type Seen struct {
	Revision uint64     `json:"revision"`
	Kind     model.Kind `json:"kind,omitempty"` // empty: all that there was at first has been told
	ID       string     `json:"id,omitempty"`
	// At most one of these is set; none when the object is gone.
	Node     *model.Node     `json:"node,omitempty"`
	Workload *model.Workload `json:"workload,omitempty"`
	Instance *model.Instance `json:"instance,omitempty"`
	Network  *model.Network  `json:"network,omitempty"`
	Service  *model.Service  `json:"service,omitempty"`
}

var watched = []model.Kind{model.KindNode, model.KindWorkload, model.KindInstance, model.KindNetwork, model.KindService}

func seen(revision uint64, kind model.Kind, id string, obj model.Object) Seen {
	s := Seen{Revision: revision, Kind: kind, ID: id}
	switch o := obj.(type) {
	case *model.Node:
		s.Node = o
	case *model.Workload:
		s.Workload = o
	case *model.Instance:
		s.Instance = o
	case *model.Network:
		s.Network = o
	case *model.Service:
		s.Service = o
	}
	return s
}

// Watch yields all nodes, networks, services, workloads and instances that there are, then one without a kind, then
// each change of them, until ctx is done, which is no error, or yield returns one. It fails with
// fault.TooOld when the watcher fell behind: begin again.
func (c *Core) Watch(ctx context.Context, who Caller, yield func(Seen) error) error {
	snap, err := c.Snapshot(who)
	if err != nil {
		return err
	}
	if err := listWatched(snap, yield); err != nil {
		return err
	}
	if err := yield(Seen{Revision: snap.Revision()}); err != nil {
		return err
	}
	w := c.Store.Watch(snap.Revision(), watched...)
	for {
		b, err := w.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("watch nodes and instances: %w", err)
		}
		for _, ch := range b.Changes {
			sees := ch.New != nil && who.sees(ch.New)
			if !sees && !(ch.Old != nil && who.sees(ch.Old)) {
				continue
			}
			obj := ch.New
			if !sees {
				obj = nil
			}
			if err := yield(seen(b.Revision, ch.Kind, ch.ID, obj)); err != nil {
				return err
			}
		}
	}
}

func listWatched(snap *store.Snapshot, yield func(Seen) error) error {
	for n := range store.List[*model.Node](snap) {
		if err := yield(seen(snap.Revision(), model.KindNode, n.ID, n)); err != nil {
			return err
		}
	}
	for n := range store.List[*model.Network](snap) {
		if err := yield(seen(snap.Revision(), model.KindNetwork, n.ID, n)); err != nil {
			return err
		}
	}
	for s := range store.List[*model.Service](snap) {
		if err := yield(seen(snap.Revision(), model.KindService, s.ID, s)); err != nil {
			return err
		}
	}
	for w := range store.List[*model.Workload](snap) {
		if err := yield(seen(snap.Revision(), model.KindWorkload, w.ID, w)); err != nil {
			return err
		}
	}
	for i := range store.List[*model.Instance](snap) {
		if err := yield(seen(snap.Revision(), model.KindInstance, i.ID, i)); err != nil {
			return err
		}
	}
	return nil
}
