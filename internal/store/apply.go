package store

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/go-memdb"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Apply applies one encoded change set; see ApplyAll.
func (s *Store) Apply(data []byte) Result { return s.ApplyAll([][]byte{data})[0] }

// ApplyAll applies encoded change sets in their order, each as a whole or not at all and at a
// revision of its own, and returns what each came to. Readers and watchers see all of them at
// once. Only the replication calls it, in log order.
func (s *Store) ApplyAll(entries [][]byte) []Result {
	results := make([]Result, len(entries))
	s.mu.Lock()
	defer s.mu.Unlock()
	txn := s.db.Load().Txn(true)
	defer txn.Abort()
	first := revisionOf(txn)
	a := applying{txn: txn, revision: first, events: s.events}
	batches := make([]Batch, 0, len(entries))
	for i, data := range entries {
		changes, err := a.applySet(data)
		if err != nil {
			results[i] = refusal(err)
			continue
		}
		results[i].Revision = a.revision
		batches = append(batches, Batch{Revision: a.revision, Changes: changes})
	}
	if a.revision == first {
		return results
	}
	if err := txn.Insert(tableCounter, &counter{Name: "revision", Revision: a.revision}); err != nil {
		panic(fmt.Sprintf("write the revision: %v", err)) // the table is ours
	}
	txn.Commit()
	s.events = a.events
	s.history.append(batches)
	return results
}

// applying is a transaction that takes several change sets.
type applying struct {
	txn      *memdb.Txn
	revision uint64   // of the last set that was applied
	events   []string // IDs, oldest first
}

// applySet applies one change set at the next revision. One that is refused leaves no trace.
func (a *applying) applySet(data []byte) ([]Change, error) {
	ops, err := decodeOps(data)
	if err != nil {
		return nil, err
	}
	revision := a.revision + 1
	var changes []Change
	undo := func(err error) ([]Change, error) {
		for _, c := range slices.Backward(changes) {
			a.undo(c)
		}
		return nil, err
	}
	events := a.events
	var fresh []string // events of this set
	for i := range ops {
		change, err := applyOp(a.txn, &ops[i], revision)
		if err != nil {
			return undo(err)
		}
		if change == nil {
			continue
		}
		changes = append(changes, *change)
		if change.Kind != model.KindEvent {
			continue
		}
		if change.Old != nil { // it leaves its place
			same := func(id string) bool { return id == change.ID }
			events, fresh = slices.DeleteFunc(slices.Clone(events), same), slices.DeleteFunc(fresh, same)
		}
		if change.New != nil {
			fresh = append(fresh, change.ID)
		}
	}
	slices.Sort(fresh) // the order that a restored server finds, too
	events = append(events, fresh...)
	for len(events) > keptEvents {
		change, err := applyOp(a.txn, &op{Type: opDelete, Kind: model.KindEvent, ID: events[0]}, revision)
		if err != nil {
			return undo(err)
		}
		if change != nil {
			changes = append(changes, *change)
		}
		events = events[1:]
	}
	a.revision, a.events = revision, events
	return changes, nil
}

// undo takes a change of the transaction back.
func (a *applying) undo(c Change) {
	var err error
	if c.Old == nil {
		err = a.txn.Delete(string(c.Kind), c.New)
	} else {
		err = a.txn.Insert(string(c.Kind), c.Old)
	}
	if err != nil {
		panic(fmt.Sprintf("undo the change of %s %s: %v", c.Kind, c.ID, err)) // it was just written
	}
}

// applyOp changes the transaction; it returns nil when there was nothing to do.
func applyOp(txn *memdb.Txn, o *op, revision uint64) (*Change, error) {
	info, ok := kinds[o.Kind]
	if !ok {
		return nil, fault.New(fault.Unsupported, "unknown kind of object %q", o.Kind)
	}
	table := string(o.Kind)
	raw, err := txn.First(table, indexID, o.ID)
	if err != nil {
		return nil, err
	}
	var old model.Object
	if raw != nil {
		old = raw.(model.Object)
	}
	switch o.Type {
	case opExpect:
		var have uint64
		if old != nil {
			have = old.GetMeta().Revision
		}
		if have != o.Revision {
			return nil, fault.New(fault.Conflict, "%s %s was changed meanwhile: revision %d was expected, %d is there", o.Kind, o.ID, o.Revision, have)
		}
		return nil, nil
	case opDelete:
		if old == nil {
			return nil, nil
		}
		if err := txn.Delete(table, old); err != nil && !errors.Is(err, memdb.ErrNotFound) {
			return nil, err
		}
		return &Change{Kind: o.Kind, ID: o.ID, Old: old}, nil
	case opPut, opPutStatus:
		obj, err := decodeObject(o.Kind, o.Object)
		if err != nil {
			return nil, err
		}
		if obj.GetMeta().ID != o.ID || o.ID == "" {
			return nil, fault.New(fault.Invalid, "%s has ID %q, its change says %q", o.Kind, obj.GetMeta().ID, o.ID)
		}
		if o.Type == opPutStatus && !info.observed {
			return nil, fault.New(fault.Invalid, "%s %s has no status that could be written", o.Kind, o.ID)
		}
		if o.Type == opPutStatus && (old == nil || info.over != nil && info.over(old, obj)) {
			return nil, nil
		}
		if old != nil && o.Type == opPut {
			obj.AdoptStatus(old)
		}
		if old != nil && o.Type == opPutStatus {
			obj.AdoptDesired(old)
		}
		if !info.repeats {
			other, err := txn.First(table, indexName, obj.GetMeta().UniqueName())
			if err != nil {
				return nil, err
			}
			if other != nil && other.(model.Object).GetMeta().ID != o.ID {
				return nil, fault.New(fault.Conflict, "%s %s exists already", o.Kind, obj.GetMeta().FullName())
			}
		}
		obj.GetMeta().Revision = revision
		if err := txn.Insert(table, obj); err != nil {
			return nil, err
		}
		return &Change{Kind: o.Kind, ID: o.ID, Old: old, New: obj}, nil
	}
	return nil, fault.New(fault.Unsupported, "unknown change %d", o.Type)
}
