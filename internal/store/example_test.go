package store_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// alone applies what is proposed at once, as a cluster of one server would.
type alone struct{ *store.Store }

func (a alone) Propose(_ context.Context, data []byte) (store.Result, error) {
	return a.Apply(data), nil
}

func newStore() *store.Store {
	s := store.New(slog.New(slog.DiscardHandler))
	s.SetProposer(alone{s})
	return s
}

func Example() {
	ctx := context.Background()
	s := newStore()

	web := &model.Workload{Meta: model.Meta{ID: "w1", Namespace: "default", Application: "shop", Name: "web"}, Count: 2}
	var cs store.ChangeSet
	cs.Expect(model.KindWorkload, web.ID, 0) // it must not exist
	cs.Put(web)
	revision, err := s.Commit(ctx, &cs)
	fmt.Println("created at revision", revision, err)

	watch := s.Watch(revision)
	have, _ := store.ByName[*model.Workload](s.Snapshot(), "default", "shop", "web")
	more := have.Clone() // what is read is shared
	more.Count = 3
	cs = store.ChangeSet{}
	cs.Expect(model.KindWorkload, more.ID, more.Revision)
	cs.Put(more)
	revision, err = s.Commit(ctx, &cs)
	fmt.Println("scaled at revision", revision, err)

	_, err = s.Commit(ctx, &cs) // the revision that it expects is gone
	fmt.Println("again:", fault.KindOf(err))

	batch, err := watch.Next(ctx)
	change := batch.Changes[0]
	fmt.Println("seen:", change.Old.(*model.Workload).Count, "became", change.New.(*model.Workload).Count, err)
	// Output:
	// created at revision 1 <nil>
	// scaled at revision 2 <nil>
	// again: conflict
	// seen: 2 became 3 <nil>
}
