package store_test

import (
	"context"
	"fmt"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/store"
)

// A component keeps its own objects: it creates one, changes what it has read, and reads and
// watches from a revision on.
func Example_keys() {
	ctx := context.Background()
	s := newStore()

	var create store.ChangeSet
	create.ExpectKey("/pods/web", 0) // it must not exist
	create.PutKey("/pods/web", []byte("pending"), 0)
	created, err := s.Commit(ctx, &create)
	fmt.Println("created at revision", created, err)

	kv, _ := s.Snapshot().Keys().Get("/pods/web")
	var change store.ChangeSet
	change.ExpectKey(kv.Key, kv.Modified)
	change.PutKey(kv.Key, []byte("running"), 0)
	_, err = s.Commit(ctx, &change)
	fmt.Println("changed:", err)
	_, err = s.Commit(ctx, &change) // it was read too early
	fmt.Println("again:", fault.KindOf(err))

	past, _ := s.KeysAt(created)
	for kv := range past.Range("/pods/", store.PrefixEnd("/pods/")) {
		fmt.Printf("at revision %d: %s is %s\n", past.Revision(), kv.Key, kv.Value)
	}
	batch, _ := s.WatchKeys(created, "/pods/", store.PrefixEnd("/pods/")).Next(ctx)
	for _, c := range batch.Keys {
		fmt.Printf("at revision %d: %s became %s\n", batch.Revision, c.Old.Value, c.New.Value)
	}
	// Output:
	// created at revision 1 <nil>
	// changed: <nil>
	// again: conflict
	// at revision 1: /pods/web is pending
	// at revision 2: pending became running
}
