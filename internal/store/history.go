package store

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tutti-run/tutti/internal/fault"
)

// ErrTooOld says that the changes asked for are no longer kept: list again, and go on from there.
var ErrTooOld = fault.New(fault.TooOld, "the changes since then are no longer kept; list again")

const (
	// keptBytes bounds what history holds that the present state does not, about.
	keptBytes = 64 << 20
	// What a batch, a change in it and an old version that only history holds cost, about.
	batchBytes, changeBytes, oldBytes, oldKeyBytes = 72, 64, 1024, 160
	// markEvery is how many revisions may lie between two marks.
	markEvery = 1024
)

// history holds the latest changes, for watchers, which read them at their own pace, and for
// reading the key space as it was.
type history struct {
	mu      sync.RWMutex
	present *state
	batches []Batch // those from head on are kept: ascending, without gaps
	head    int
	bytes   int
	floor   uint64 // changes up to here are not kept
	marks   []Keys // the key space at some revisions, ascending, none before floor
	era     int    // counts how often the state was replaced as a whole
	// news is closed at the next change; nil while nobody waits.
	news atomic.Pointer[chan struct{}]
}

func newHistory(present *state) *history { return &history{present: present} }

func (b *Batch) bytes() int {
	n := batchBytes + len(b.Changes)*changeBytes
	for i := range b.Changes {
		if b.Changes[i].Old != nil {
			n += oldBytes
		}
	}
	for _, c := range b.Keys {
		n += 2 * 8
		if c.Old != nil {
			n += oldKeyBytes + len(c.Old.Value)
		}
	}
	return n
}

// append adds what led to a state, which becomes the present one.
func (h *history) append(batches []Batch, next *state, publish func(*state)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.present = next
	publish(next)
	h.batches = append(h.batches, batches...)
	for i := range batches {
		h.bytes += batches[i].bytes()
	}
	for h.bytes > keptBytes {
		b := &h.batches[h.head]
		h.bytes -= b.bytes()
		h.floor = b.Revision
		*b = Batch{}
		h.head++
	}
	if h.head > 1024 && h.head > len(h.batches)/2 {
		n := copy(h.batches, h.batches[h.head:])
		clear(h.batches[n:])
		h.batches, h.head = h.batches[:n], 0
	}
	if n := len(h.marks); n == 0 || h.marks[n-1].revision+markEvery <= next.revision {
		h.marks = append(h.marks, Keys{next.keys, next.revision})
	}
	gone := 0
	for gone < len(h.marks) && h.marks[gone].revision < h.floor {
		gone++
	}
	h.marks = slices.Delete(h.marks, 0, gone)
	h.wake()
}

// reset forgets everything; the state was replaced as a whole.
func (h *history) reset(next *state, publish func(*state)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.present = next
	publish(next)
	h.batches, h.head, h.bytes, h.marks, h.floor = nil, 0, 0, nil, next.revision
	h.era++
	h.wake()
}

// wake tells those that wait.
func (h *history) wake() {
	if c := h.news.Swap(nil); c != nil {
		close(*c)
	}
}

// awaited returns what is closed at the next change. The lock must be held.
func (h *history) awaited() <-chan struct{} {
	for {
		if c := h.news.Load(); c != nil {
			return *c
		}
		c := make(chan struct{})
		if h.news.CompareAndSwap(nil, &c) {
			return c
		}
	}
}

func (h *history) presentEra() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.era
}

// after returns the kept batches behind a revision. The lock must be held.
func (h *history) after(revision uint64) []Batch {
	kept := h.batches[h.head:]
	return kept[min(revision-h.floor, uint64(len(kept))):]
}

// atOnce is how many batches are looked at under the lock.
const atOnce = 4096

// read shows the batches after a revision to take, until it has enough, and returns up to which
// revision it has seen all. When there are none it returns what to wait for.
func (h *history) read(revision uint64, era int, take func(b *Batch) (enough bool)) (seen uint64, news <-chan struct{}, err error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if revision < h.floor || era != h.era {
		return revision, nil, ErrTooOld
	}
	batches := h.after(revision)
	if len(batches) == 0 {
		return revision, h.awaited(), nil
	}
	seen = revision
	for i := range batches[:min(len(batches), atOnce)] {
		seen = batches[i].Revision
		if take(&batches[i]) {
			break
		}
	}
	return seen, nil, nil
}

// since returns a key space at a revision or not long after it, and the changes between the two,
// the last batch first.
func (h *history) since(revision uint64) (past [][]KeyChange, base Keys, err error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if revision < h.floor {
		return nil, Keys{}, ErrTooOld
	}
	base = Keys{h.present.keys, h.present.revision}
	i, _ := slices.BinarySearchFunc(h.marks, revision, func(k Keys, r uint64) int { return cmp.Compare(k.revision, r) })
	if i < len(h.marks) {
		base = h.marks[i]
	}
	between := h.after(revision)
	if base.revision > revision {
		between = between[:base.revision-revision]
	}
	for _, b := range slices.Backward(between) {
		if len(b.Keys) > 0 {
			past = append(past, b.Keys)
		}
	}
	return past, base, nil
}

// Compacted returns the revision before which neither changes nor past states are kept.
func (s *Store) Compacted() uint64 {
	s.history.mu.RLock()
	defer s.history.mu.RUnlock()
	return s.history.floor
}

// Await returns once this server's state shows a revision.
func (s *Store) Await(ctx context.Context, revision uint64) error {
	for {
		s.history.mu.RLock()
		if s.history.present.revision >= revision {
			s.history.mu.RUnlock()
			return nil
		}
		news := s.history.awaited()
		s.history.mu.RUnlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
		}
	}
}
