package consensus

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"
)

// What a new leader's log contradicts is cut off; what was before it must still be there after
// a restart.
func TestALogThatWasCutAtItsEndCanBeOpenedAgain(t *testing.T) {
	dir := t.TempDir()
	open := func() *wal {
		t.Helper()
		s, err := onDisk(dir)
		if err != nil {
			t.Fatal(err)
		}
		w, err := s.openLog(hclog.NewNullLogger(), func() uint64 { return 0 })
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	w := open()
	store := func(index uint64, text string) {
		t.Helper()
		if err := w.StoreLogs([]*raft.Log{{Index: index, Term: 1, Data: []byte(text)}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := uint64(1); i <= 10; i++ {
		store(i, fmt.Sprint("old ", i))
	}
	for range 2 { // twice: the second cut leaves the file of the first alone
		if err := w.DeleteRange(7, 10); err != nil {
			t.Fatal(err)
		}
		for i := uint64(7); i <= 10; i++ {
			store(i, fmt.Sprint("new ", i))
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		w = open()
		for i := uint64(1); i <= 10; i++ {
			want := fmt.Sprint("old ", i)
			if i >= 7 {
				want = fmt.Sprint("new ", i)
			}
			var l raft.Log
			if err := w.GetLog(i, &l); err != nil || string(l.Data) != want {
				t.Errorf("entry %d is %q, %v; want %q", i, l.Data, err, want)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// A disk without room for the log's next file must not keep the log from growing once there is
// room again.
func TestTheLogGoesOnWhenThereIsRoomAgain(t *testing.T) {
	s, err := onDisk(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	files := &crowded{VFS: s.Files}
	s.Files, s.SegmentBytes = files, 4096
	w, err := s.openLog(hclog.NewNullLogger(), func() uint64 { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	store := func(i uint64) error {
		return w.StoreLogs([]*raft.Log{{Index: i, Term: 1, Data: make([]byte, 500)}})
	}
	next := uint64(1)
	files.full.Store(true)
	for ; next < 100; next++ {
		if err := store(next); err != nil {
			break
		}
	}
	if next == 100 || store(next) == nil {
		t.Fatal("the log grew without room")
	}
	files.full.Store(false)
	for range 20 {
		if err := store(next); err != nil {
			t.Fatalf("with room again: %v", err)
		}
		next++
	}
	for i := uint64(1); i < next; i++ {
		var l raft.Log
		if err := w.GetLog(i, &l); err != nil || len(l.Data) != 500 {
			t.Errorf("entry %d has %d bytes, %v", i, len(l.Data), err)
		}
	}
}

// crowded is a file system that may be full.
type crowded struct {
	types.VFS
	full atomic.Bool
}

func (c *crowded) Create(dir, name string, size uint64) (types.WritableFile, error) {
	if c.full.Load() {
		return nil, syscall.ENOSPC
	}
	return c.VFS.Create(dir, name, size)
}

// A crash may come when the last file of the log is full and its index written, but the next one
// not begun.
func TestTheLogGoesOnAfterACrashBetweenTwoOfItsFiles(t *testing.T) {
	s, err := onDisk(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	index := &stubborn{MetaStore: s.Index}
	s.Index, s.SegmentBytes = index, 4096
	open := func() *wal {
		t.Helper()
		w, err := s.openLog(hclog.NewNullLogger(), func() uint64 { return 0 })
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	w := open()
	next := uint64(1)
	index.refuse.Store(true)
	for ; next < 100; next++ {
		if w.StoreLogs([]*raft.Log{{Index: next, Term: 1, Data: make([]byte, 500)}}) != nil {
			break
		}
	}
	if next == 100 {
		t.Fatal("the log went on without its index")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	index.refuse.Store(false)
	w = open()
	defer w.Close()
	for range 20 {
		if err := w.StoreLogs([]*raft.Log{{Index: next, Term: 1, Data: make([]byte, 500)}}); err != nil {
			t.Fatalf("after the crash: %v", err)
		}
		next++
	}
	for i := uint64(1); i < next; i++ {
		var l raft.Log
		if err := w.GetLog(i, &l); err != nil || len(l.Data) != 500 {
			t.Errorf("entry %d has %d bytes, %v", i, len(l.Data), err)
		}
	}
}

// stubborn is an index that may refuse to change.
type stubborn struct {
	types.MetaStore
	refuse atomic.Bool
}

func (s *stubborn) CommitState(state types.PersistentState) error {
	if s.refuse.Load() {
		return syscall.EIO
	}
	return s.MetaStore.CommitState(state)
}
