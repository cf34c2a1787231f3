package store

import (
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Apply applies one encoded change set; see ApplyAll.
func (s *Store) Apply(data []byte) Result { return s.ApplyAll([][]byte{data})[0] }

// ApplyAll applies encoded change sets in their order, each as a whole or not at all and at a
// revision of its own, and returns what each came to. Readers and watchers see all of them at
// once. Only the replication calls it, in log order. The entries are not kept.
//
// It panics when a set is of a format that only a newer version knows: others apply what this
// server cannot, and going on would make it disagree with them for ever.
func (s *Store) ApplyAll(entries [][]byte) []Result {
	results := make([]Result, len(entries))
	s.mu.Lock()
	defer s.mu.Unlock()
	base := s.state.Load()
	a := applying{stateEdit: base.edit(), events: s.events, words: &s.words}
	batches := make([]Batch, 0, len(entries))
	for i, data := range entries {
		batch, err := a.applySet(data)
		if err != nil {
			results[i] = refusal(err)
			continue
		}
		results[i].Revision = batch.Revision
		batches = append(batches, batch)
	}
	if a.revision == base.revision {
		return results
	}
	s.events = a.events
	s.history.append(batches, a.share(), s.state.Store)
	return results
}

// applying is an edit of the state by several change sets.
type applying struct {
	*stateEdit
	events  []string // IDs, oldest first
	words   *words
	changes []Change // of all sets so far
	keyed   []KeyChange
}

// applySet applies one change set at the next revision. One that is refused leaves no trace.
func (a *applying) applySet(data []byte) (Batch, error) {
	if len(data) > 0 && data[0] > formatNewest {
		panic(fmt.Sprintf("the log holds a change set of format %d, which a newer version of Tutti has written; this version reads formats %d to %d: upgrade this server", data[0], formatCBOR, formatNewest))
	}
	firstChange, firstKey := len(a.changes), len(a.keyed)
	revision := a.revision + 1
	events, err := a.applyOps(data, revision)
	changes, keys := slices.Clip(a.changes[firstChange:]), slices.Clip(a.keyed[firstKey:])
	if err != nil {
		a.undo(changes, keys)
		a.changes, a.keyed = a.changes[:firstChange], a.keyed[:firstKey]
		return Batch{}, err
	}
	a.revision, a.events = revision, events
	return Batch{Revision: revision, Changes: changes, Keys: keys}, nil
}

// applyOps makes the changes of a set, as far as it is possible, and returns the events that are
// kept then.
func (a *applying) applyOps(data []byte, revision uint64) (events []string, err error) {
	ops, err := readOps(data)
	if err != nil {
		return nil, err
	}
	first := len(a.changes)
	var o op
	for {
		more, err := ops.next(&o)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		if o.opType >= opPutKey {
			err = a.applyKey(&o, revision)
		} else {
			err = a.applyObject(&o, revision)
		}
		if err != nil {
			return nil, err
		}
	}
	return a.boundEvents(a.changes[first:]), nil
}

// undo takes changes back.
func (a *applying) undo(changes []Change, keys []KeyChange) {
	for _, c := range slices.Backward(changes) {
		t := a.table(kinds[c.Kind])
		switch {
		case c.Old == nil:
			t.remove(c.New.GetMeta())
		case c.New == nil:
			t.put(nil, c.Old.GetMeta())
		default:
			t.put(c.New.GetMeta(), c.Old.GetMeta())
		}
	}
	for _, c := range slices.Backward(keys) {
		undoKey(&a.keys, c)
	}
}

// boundEvents counts the events of a set in, and deletes the oldest where there are too many now.
func (a *applying) boundEvents(changes []Change) []string {
	events := a.events
	var fresh []string // events of this set
	for _, c := range changes {
		if c.Kind != model.KindEvent {
			continue
		}
		if c.Old != nil { // it leaves its place
			same := func(id string) bool { return id == c.ID }
			events, fresh = slices.DeleteFunc(slices.Clone(events), same), slices.DeleteFunc(fresh, same)
		}
		if c.New != nil {
			fresh = append(fresh, c.ID)
		}
	}
	slices.Sort(fresh) // the order that a restored server finds, too
	events = append(events, fresh...)
	for len(events) > keptEvents {
		t := a.table(kinds[model.KindEvent])
		if old, ok := t.byID.Get(atID(events[0])); ok {
			t.remove(old)
			a.changes = append(a.changes, Change{Kind: model.KindEvent, ID: events[0], Old: as[*model.Event](old)})
		}
		events = events[1:]
	}
	return events
}

// text reads bytes as a string for as long as they stay.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func (a *applying) applyObject(o *op, revision uint64) error {
	info, ok := kinds[model.Kind(o.kind)]
	if !ok {
		return fault.New(fault.Unsupported, "unknown kind of object %q", o.kind)
	}
	t := a.table(info)
	var old model.Object
	was, known := t.byID.Get(atID(text(o.id)))
	if known {
		old = info.object(was)
	}
	switch o.opType {
	case opExpect:
		var have uint64
		if known {
			have = was.Revision
		}
		if have != o.revision && !ignoreExpectations {
			return fault.New(fault.Conflict, "%s %s was changed meanwhile: revision %d was expected, %d is there", info.kind, o.id, o.revision, have)
		}
	case opDelete:
		if !known {
			return nil
		}
		t.remove(was)
		a.changes = append(a.changes, Change{Kind: info.kind, ID: was.ID, Old: old})
	case opPut, opPutStatus:
		obj, err := decodeObject(info, o.value)
		if err != nil {
			return err
		}
		m := obj.GetMeta()
		if m.ID != text(o.id) || m.ID == "" {
			return fault.New(fault.Invalid, "%s has ID %q, its change says %q", info.kind, m.ID, o.id)
		}
		if o.opType == opPutStatus && !info.observed {
			return fault.New(fault.Invalid, "%s %s has no status that could be written", info.kind, o.id)
		}
		if o.opType == opPutStatus && (!known || info.over != nil && info.over(old, obj)) {
			return nil
		}
		a.words.share(obj) // before it adopts what others may be reading
		if known && o.opType == opPut {
			obj.AdoptStatus(old)
		}
		if known && o.opType == opPutStatus {
			obj.AdoptDesired(old)
		}
		if !info.repeats {
			other, ok := t.byName.Get(atName(m.Namespace, m.Application, m.Name))
			if ok && other.ID != m.ID {
				return fault.New(fault.Conflict, "%s %s exists already", info.kind, m.FullName())
			}
		}
		m.Revision = revision
		shareID(obj)
		t.put(was, m)
		a.changes = append(a.changes, Change{Kind: info.kind, ID: m.ID, Old: old, New: obj})
	}
	return nil
}

func (a *applying) applyKey(o *op, revision uint64) error {
	if len(o.id) == 0 && o.opType != opDeleteKeys {
		return fault.New(fault.Invalid, "a key is empty")
	}
	key := text(o.id)
	switch o.opType {
	case opExpectKey:
		var have uint64
		if old, ok := a.keys.Get(atKey(key)); ok {
			have = old.Modified
		}
		if have != o.revision && !ignoreExpectations {
			return fault.New(fault.Conflict, "key %q was changed meanwhile: revision %d was expected, %d is there", key, o.revision, have)
		}
	case opPutKey:
		kv := &KeyValue{Key: key, Value: copied(o.value), Created: revision, Modified: revision, Version: 1, TTL: o.ttl}
		old, replaced := a.keys.Put(kv, atKey(key))
		if replaced {
			kv.Key, kv.Created, kv.Version = old.Key, old.Created, old.Version+1
		} else {
			kv.Key = strings.Clone(key)
		}
		a.keyed = append(a.keyed, KeyChange{Old: old, New: kv})
	case opDeleteKey:
		a.deleteKey(key)
	case opDeleteKeyIfOld:
		if old, ok := a.keys.Get(atKey(key)); ok && old.Modified == o.revision {
			a.deleteKey(key)
		}
	case opDeleteKeys:
		var gone []string
		for kv := range (Keys{tree: a.keys.Share()}).Range(key, text(o.value)) {
			gone = append(gone, kv.Key)
		}
		for _, k := range gone {
			a.deleteKey(k)
		}
	}
	return nil
}

func (a *applying) deleteKey(key string) {
	if old, ok := a.keys.Remove(atKey(key)); ok {
		a.keyed = append(a.keyed, KeyChange{Old: old})
	}
}
