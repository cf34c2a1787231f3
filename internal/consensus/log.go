package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftwal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// recentBytes bounds the entries that are kept in memory: every one of them is read soon after it
// was written, by each replication and when it is applied.
const recentBytes = 4 << 20

// wal is the log with its index, which raft-wal opens and does not close.
type wal struct {
	opened  atomic.Pointer[raftwal.WAL]
	open    func() (*raftwal.WAL, error)
	change  sync.Mutex // held while the log is opened again, or cut
	index   types.MetaStore
	log     hclog.Logger
	pause   func() // may be nil
	applied func() uint64

	mu     sync.Mutex
	recent []*raft.Log // without gaps
	bytes  int
}

func (s Storage) openLog(log hclog.Logger, applied func() uint64) (*wal, error) {
	files := s.Files
	if skipSync {
		files = unsynced{files}
	}
	dir := filepath.Join(s.Dir, "log")
	w := &wal{index: s.Index, log: log, pause: s.Pause, applied: applied}
	w.open = func() (*raftwal.WAL, error) {
		filer, bytes := segments{segment.NewFiler(dir, files), files}, or(s.SegmentBytes, raftwal.DefaultSegmentSize)
		if err := filer.finishTail(dir, s.Index, bytes); err != nil {
			return nil, err
		}
		return raftwal.Open(dir, raftwal.WithMetaStore(s.Index), raftwal.WithSegmentFiler(filer), raftwal.WithSegmentSize(bytes), raftwal.WithLogger(log))
	}
	opened, err := w.open()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the log: %w", err), s.Index.Close())
	}
	w.opened.Store(opened)
	return w, nil
}

// Close closes both; the log can be opened again.
func (w *wal) Close() error { return errors.Join(w.opened.Load().Close(), w.index.Close()) }

// write appends to the log. When raft-wal could not begin a file, for want of room on the disk, it
// takes nothing more until it is opened anew.
func (w *wal) write(logs []*raft.Log) error {
	old := w.opened.Load()
	err := old.StoreLogs(logs)
	if !errors.Is(err, types.ErrSealed) {
		return err
	}
	w.change.Lock()
	defer w.change.Unlock()
	again, openErr := w.open()
	if openErr != nil {
		return errors.Join(err, fmt.Errorf("open the log again: %w", openErr))
	}
	w.opened.Store(again)
	w.log.Warn("the log was opened again: its next file could not be made")
	return errors.Join(again.StoreLogs(logs), old.Close())
}

// StoreLogs implements raft.LogStore. The first entry of each write also says how far this server
// had applied the log by then, or the one from which it has the entry, which is surely committed.
func (w *wal) StoreLogs(logs []*raft.Log) error {
	if w.pause != nil {
		w.pause()
	}
	marked := append([]*raft.Log(nil), logs...)
	first := *logs[0] // it may be shared with another server
	first.Extensions = binary.AppendUvarint([]byte{markApplied}, max(w.applied(), markOf(&first)))
	marked[0] = &first
	if err := w.write(marked); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.recent); n > 0 && w.recent[n-1].Index+1 != logs[0].Index {
		w.recent, w.bytes = nil, 0
	}
	for _, l := range marked {
		w.recent = append(w.recent, l)
		w.bytes += len(l.Data)
	}
	for w.bytes > recentBytes || len(w.recent) > 4096 {
		w.bytes -= len(w.recent[0].Data)
		w.recent = w.recent[1:]
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (w *wal) StoreLog(l *raft.Log) error { return w.StoreLogs([]*raft.Log{l}) }

// GetLog implements raft.LogStore.
func (w *wal) GetLog(index uint64, to *raft.Log) error {
	w.mu.Lock()
	if len(w.recent) > 0 && index >= w.recent[0].Index && index-w.recent[0].Index < uint64(len(w.recent)) {
		*to = *w.recent[index-w.recent[0].Index]
		w.mu.Unlock()
		return nil
	}
	w.mu.Unlock()
	for {
		opened := w.opened.Load()
		err := opened.GetLog(index, to)
		if !errors.Is(err, types.ErrClosed) || w.opened.Load() == opened {
			return err
		} // else it was opened again meanwhile
	}
}

// FirstIndex implements raft.LogStore.
func (w *wal) FirstIndex() (uint64, error) { return w.opened.Load().FirstIndex() }

// LastIndex implements raft.LogStore.
func (w *wal) LastIndex() (uint64, error) { return w.opened.Load().LastIndex() }

// IsMonotonic implements raft.MonotonicLogStore.
func (w *wal) IsMonotonic() bool { return true }

// Set implements raft.StableStore, as do the three that follow.
func (w *wal) Set(key, value []byte) error          { return w.opened.Load().Set(key, value) }
func (w *wal) Get(key []byte) ([]byte, error)       { return w.opened.Load().Get(key) }
func (w *wal) SetUint64(key []byte, n uint64) error { return w.opened.Load().SetUint64(key, n) }
func (w *wal) GetUint64(key []byte) (uint64, error) { return w.opened.Load().GetUint64(key) }

// DeleteRange implements raft.LogStore.
func (w *wal) DeleteRange(min, max uint64) error {
	w.mu.Lock()
	w.recent, w.bytes = nil, 0
	w.mu.Unlock()
	w.change.Lock()
	defer w.change.Unlock()
	return w.opened.Load().DeleteRange(min, max)
}

// markApplied begins what StoreLogs adds to an entry; the index follows as an unsigned varint.
const markApplied = 1

func markOf(l *raft.Log) uint64 {
	if len(l.Extensions) < 2 || l.Extensions[0] != markApplied {
		return 0
	}
	index, _ := binary.Uvarint(l.Extensions[1:])
	return index
}

// marksWithin is among how many entries at the end of the log a mark is looked for; there is one
// in every write.
const marksWithin = 4096

// committed returns an index up to which the log is known to be committed, 0 when nothing is known.
func (w *wal) committed() (uint64, error) {
	first, err := w.FirstIndex()
	if err != nil {
		return 0, fmt.Errorf("read the log: %w", err)
	}
	last, err := w.LastIndex()
	if err != nil {
		return 0, fmt.Errorf("read the log: %w", err)
	}
	for i := last; i >= max(first, 1) && last-i < marksWithin; i-- {
		var l raft.Log
		if err := w.GetLog(i, &l); err != nil {
			return 0, fmt.Errorf("read the log at %d: %w", i, err)
		}
		if mark := markOf(&l); mark > 0 {
			return min(mark, last), nil
		}
	}
	return 0, nil
}

// recall brings the state machine to what this server knows to be committed: its newest snapshot and
// the entries after it. Raft would do that only once there is a leader to ask; until then, and
// maybe for long, this server could not even answer from what it has.
func (m *machine) recall(w *wal, s *snapshots) error {
	list, err := s.List()
	if err != nil {
		return err
	}
	if len(list) > 0 {
		_, state, err := s.Open(list[0].ID)
		if err != nil {
			return err
		}
		if err := m.Restore(state); err != nil {
			return fmt.Errorf("restore the snapshot %s: %w", list[0].ID, err)
		}
	}
	until, err := w.committed()
	if err != nil {
		return err
	}
	var batch []*raft.Log
	for i := m.progress.now() + 1; i <= until; i++ {
		l := &raft.Log{}
		if err := w.GetLog(i, l); err != nil {
			return fmt.Errorf("read the log at %d: %w", i, err)
		}
		if batch = append(batch, l); len(batch) == 256 || i == until {
			m.ApplyBatch(batch)
			batch = nil
		}
	}
	m.recalled, m.raftAt = m.progress.now(), 0
	return nil
}

var (
	_ raft.LogStore          = (*wal)(nil)
	_ raft.StableStore       = (*wal)(nil)
	_ raft.MonotonicLogStore = (*wal)(nil)
)
