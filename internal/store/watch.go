package store

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/tutti-run/tutti/internal/model"
)

// ErrTooOld says that the changes asked for are no longer kept: list again, and watch from there.
var ErrTooOld = errors.New("the changes since then are no longer kept; list again")

// keptBatches bounds the history that slow watchers can still read.
const keptBatches = 8192

// Batch is what one change set did.
type Batch struct {
	Revision uint64
	Changes  []Change
}

// Change is what became of one object. Old is nil when it was created, New when it was deleted.
type Change struct {
	Kind model.Kind
	ID   string
	Old  model.Object
	New  model.Object
}

// history is a ring of the latest batches, which watchers read at their own pace.
type history struct {
	mu      sync.Mutex
	batches []Batch       // ascending, without gaps
	floor   uint64        // changes up to here are not kept
	era     int           // counts how often the state was replaced as a whole
	news    chan struct{} // closed at the next change; nil while nobody waits
}

func newHistory() *history { return &history{} }

func (h *history) append(batches []Batch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.batches = append(h.batches, batches...)
	if len(h.batches) > 2*keptBatches {
		cut := len(h.batches) - keptBatches
		h.floor = h.batches[cut-1].Revision
		h.batches = slices.Clone(h.batches[cut:])
	}
	h.wake()
}

// wake tells those that wait.
func (h *history) wake() {
	if h.news != nil {
		close(h.news)
		h.news = nil
	}
}

// reset forgets everything; the state was replaced as a whole.
func (h *history) reset(revision uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.batches, h.floor = nil, revision
	h.era++
	h.wake()
}

func (h *history) present() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.era
}

// after returns the batches after a revision, or where to wait for them.
func (h *history) after(revision uint64, era int) ([]Batch, <-chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if revision < h.floor || era != h.era {
		return nil, nil, ErrTooOld
	}
	i, _ := slices.BinarySearchFunc(h.batches, revision+1, func(b Batch, r uint64) int {
		switch {
		case b.Revision < r:
			return -1
		case b.Revision > r:
			return 1
		}
		return 0
	})
	if i < len(h.batches) {
		return h.batches[i:], nil, nil
	}
	if h.news == nil {
		h.news = make(chan struct{})
	}
	return nil, h.news, nil
}

// Watcher reads changes in order. It holds nothing up and needs no closing.
type Watcher struct {
	history *history
	next    uint64
	era     int
	kinds   []model.Kind
	queue   []Batch
}

// Watch returns a watcher of the changes after a revision, of some kinds or of all.
func (s *Store) Watch(from uint64, kinds ...model.Kind) *Watcher {
	return &Watcher{history: s.history, next: from, era: s.history.present(), kinds: kinds}
}

// Seen returns the revision up to which Next has returned everything.
func (w *Watcher) Seen() uint64 { return w.next }

// Next returns the next batch that has a change of the watched kinds, with only those. It waits
// for one, and returns ErrTooOld when the watcher fell behind what is kept, or when the whole
// state was replaced by a snapshot.
func (w *Watcher) Next(ctx context.Context) (Batch, error) {
	for {
		for len(w.queue) > 0 {
			b := w.queue[0]
			w.queue = w.queue[1:]
			w.next = b.Revision
			if len(w.kinds) == 0 {
				return b, nil
			}
			var some []Change
			for _, c := range b.Changes {
				if slices.Contains(w.kinds, c.Kind) {
					some = append(some, c)
				}
			}
			if len(some) > 0 {
				return Batch{Revision: b.Revision, Changes: some}, nil
			}
		}
		batches, news, err := w.history.after(w.next, w.era)
		if err != nil {
			return Batch{}, err
		}
		if len(batches) > 0 {
			w.queue = batches
			continue
		}
		select {
		case <-ctx.Done():
			return Batch{}, ctx.Err()
		case <-news:
		}
	}
}
