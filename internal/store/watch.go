package store

import (
	"context"
	"slices"

	"github.com/tutti-run/tutti/internal/model"
)

// Batch is what one change set did.
type Batch struct {
	Revision uint64
	Changes  []Change
	Keys     []KeyChange
}

// Change is what became of one object. Old is nil when it was created, New when it was deleted.
type Change struct {
	Kind model.Kind
	ID   string
	Old  model.Object
	New  model.Object
}

// queued bounds what a watcher holds that its reader has not taken yet, in batches.
const queued = 256

// Watcher reads changes in order. It holds nothing up and needs no closing. It is for one
// goroutine.
type Watcher struct {
	history *history
	some    func(b *Batch) (Batch, bool) // what of a batch is watched
	era     int
	queue   []Batch
	given   uint64 // the revision of the last batch that Next returned
	read    uint64 // the revision up to which everything is in the queue or was returned
}

func (s *Store) watch(after uint64, some func(b *Batch) (Batch, bool)) *Watcher {
	return &Watcher{history: s.history, some: some, era: s.history.presentEra(), given: after, read: after}
}

// Watch returns a watcher of the changes of objects after a revision, of some kinds or of all. One
// of all kinds sees every change set, one that changed nothing included, but not those that
// changed keys alone.
func (s *Store) Watch(after uint64, kinds ...model.Kind) *Watcher {
	return s.watch(after, func(b *Batch) (Batch, bool) {
		if len(kinds) == 0 {
			return Batch{Revision: b.Revision, Changes: b.Changes}, len(b.Changes) > 0 || len(b.Keys) == 0
		}
		changes := matching(b.Changes, func(c *Change) bool { return slices.Contains(kinds, c.Kind) })
		return Batch{Revision: b.Revision, Changes: changes}, len(changes) > 0
	})
}

// WatchRevisions returns a watcher of every revision after one, with the changes of objects that it has: those
// that changed keys alone are there as well, so that who has seen a revision has seen all before it.
func (s *Store) WatchRevisions(after uint64) *Watcher {
	return s.watch(after, func(b *Batch) (Batch, bool) { return Batch{Revision: b.Revision, Changes: b.Changes}, true })
}

// WatchKeys returns a watcher of the changes after a revision of the keys from one on and before
// another; an empty end means all that follow. All changes of one revision come in one batch.
func (s *Store) WatchKeys(after uint64, from, to string) *Watcher {
	return s.watchKeys(after, func(c *KeyChange) bool {
		key := c.Key()
		return from <= key && (to == "" || key < to)
	})
}

// WatchMortalKeys returns a watcher of the changes after a revision of keys that have, or had, a
// time to live.
func (s *Store) WatchMortalKeys(after uint64) *Watcher {
	return s.watchKeys(after, func(c *KeyChange) bool {
		return c.Old != nil && c.Old.TTL > 0 || c.New != nil && c.New.TTL > 0
	})
}

func (s *Store) watchKeys(after uint64, watched func(c *KeyChange) bool) *Watcher {
	return s.watch(after, func(b *Batch) (Batch, bool) {
		keys := matching(b.Keys, watched)
		return Batch{Revision: b.Revision, Keys: keys}, len(keys) > 0
	})
}

// matching returns the elements that match: the list itself when all do.
func matching[T any](list []T, match func(*T) bool) []T {
	for i := range list {
		if match(&list[i]) {
			continue
		}
		out := slices.Clone(list[:i])
		for i++; i < len(list); i++ {
			if match(&list[i]) {
				out = append(out, list[i])
			}
		}
		return out
	}
	return list
}

// Seen returns the revision up to which Next has returned everything that is watched.
func (w *Watcher) Seen() uint64 {
	if len(w.queue) == 0 {
		return w.read
	}
	return w.given
}

// Next returns the next batch that has a change of what is watched, with only those. It waits for
// one, and returns ErrTooOld when the watcher fell behind what is kept, or when the whole state
// was replaced by a snapshot. After the error of ctx it can be called again.
func (w *Watcher) Next(ctx context.Context) (Batch, error) {
	for {
		if len(w.queue) > 0 {
			b := w.queue[0]
			w.queue[0] = Batch{}
			w.queue = w.queue[1:]
			w.given = b.Revision
			return b, nil
		}
		w.queue = w.queue[:0]
		var news <-chan struct{}
		var err error
		w.read, news, err = w.history.read(w.read, w.era, func(b *Batch) bool {
			if some, ok := w.some(b); ok {
				w.queue = append(w.queue, some)
			}
			return len(w.queue) >= queued
		})
		if err != nil {
			return Batch{}, err
		}
		if news == nil {
			if len(w.queue) == 0 && ctx.Err() != nil {
				return Batch{}, ctx.Err()
			}
			continue
		}
		select {
		case <-ctx.Done():
			return Batch{}, ctx.Err()
		case <-news:
		}
	}
}
