package store

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

const snapshotMagic = "TUTTI-STATE"

// snapshotHeader begins a written snapshot; rows follow until one with an empty kind.
type snapshotHeader struct {
	Magic    string `json:"magic"`
	Version  int    `json:"version"`
	Revision uint64 `json:"revision"`
}

type snapshotRow struct {
	Kind     model.Kind      `json:"k"`
	Revision uint64          `json:"r"`
	Object   cbor.RawMessage `json:"o"`
}

// Write streams the snapshot in a versioned format that Restore reads.
func (s *Snapshot) Write(w io.Writer) error {
	buf := bufio.NewWriterSize(w, 1<<20)
	enc := codec.NewEncoder(buf)
	if err := enc.Encode(snapshotHeader{Magic: snapshotMagic, Version: formatVersion, Revision: s.revision}); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		it, err := s.txn.Get(string(kind), indexID+"_prefix", "")
		if err != nil {
			return fmt.Errorf("read table %s: %w", kind, err)
		}
		for raw := it.Next(); raw != nil; raw = it.Next() {
			obj := raw.(model.Object)
			data, err := codec.Marshal(obj)
			if err != nil {
				return fmt.Errorf("encode %s %s: %w", kind, obj.GetMeta().ID, err)
			}
			if err := enc.Encode(snapshotRow{Kind: kind, Revision: obj.GetMeta().Revision, Object: data}); err != nil {
				return fmt.Errorf("write snapshot: %w", err)
			}
		}
	}
	if err := enc.Encode(snapshotRow{}); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return buf.Flush()
}

// Restore replaces everything by a written snapshot. The revision never goes back: it becomes the
// larger of the snapshot's and the present one. Watchers are told to list again.
func (s *Store) Restore(r io.Reader) error {
	dec := cbor.NewDecoder(bufio.NewReaderSize(r, 1<<20))
	var h snapshotHeader
	if err := dec.Decode(&h); err != nil || h.Magic != snapshotMagic {
		return fault.New(fault.Invalid, "this is not a snapshot of Tutti's state")
	}
	if h.Version != formatVersion {
		return fault.New(fault.Unsupported, "snapshot of format %d; this version reads format %d", h.Version, formatVersion)
	}
	db := emptyDB()
	txn := db.Txn(true)
	defer txn.Abort()
	var events []*model.Event
	for {
		var row snapshotRow
		if err := dec.Decode(&row); err != nil {
			return fault.New(fault.Invalid, "the snapshot is cut short: %w", err)
		}
		if row.Kind == "" {
			break
		}
		obj, err := decodeObject(row.Kind, row.Object)
		if err != nil {
			return err
		}
		obj.GetMeta().Revision = row.Revision
		if err := txn.Insert(string(row.Kind), obj); err != nil {
			return fmt.Errorf("restore %s %s: %w", row.Kind, obj.GetMeta().ID, err)
		}
		if e, ok := obj.(*model.Event); ok {
			events = append(events, e)
		}
	}
	// By revision, then ID: the same order on every server, whatever happened before.
	slices.SortFunc(events, func(a, b *model.Event) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.ID, b.ID))
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	revision := max(h.Revision, revisionOf(s.db.Load().Txn(false)))
	if err := txn.Insert(tableCounter, &counter{Name: "revision", Revision: revision}); err != nil {
		return fmt.Errorf("restore revision: %w", err)
	}
	txn.Commit()
	s.events = s.events[:0]
	for _, e := range events {
		s.events = append(s.events, e.ID)
	}
	s.db.Store(db)
	s.history.reset(revision)
	return nil
}
