package consensus

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/internal/store"
)

// diary is a state machine that keeps what it was given, in order.
type diary struct{ entries []string }

func (d *diary) ApplyAll(sets [][]byte) []store.Result {
	for _, s := range sets {
		d.entries = append(d.entries, string(s))
	}
	return make([]store.Result, len(sets))
}

func (d *diary) Snapshot() *store.Snapshot { return nil }

func (d *diary) Restore(r io.Reader) error {
	text, err := io.ReadAll(r)
	d.entries = strings.Fields(string(text))
	return err
}

func openTestLog(t *testing.T, s *Storage, applied func() uint64) *wal {
	t.Helper()
	w, err := s.openLog(hclog.NewNullLogger(), applied)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// What was recalled is ahead of raft for a while. Raft must not take that state for the one at its own
// place in the log, nor go back to an older one: entries would be applied a second time.
func TestNothingIsAppliedTwiceAfterARecall(t *testing.T) {
	s := newDisk().storage()
	applied := uint64(0)
	w := openTestLog(t, s, func() uint64 { return applied })
	defer w.Close()
	snapshots, err := s.openSnapshots()
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"a", "b", "c", "d", "e", "f"}
	var logs []*raft.Log
	for i, text := range all {
		l := &raft.Log{Index: uint64(i + 1), Term: 1, Data: entryOf([][]byte{[]byte(text)})}
		if err := w.StoreLogs([]*raft.Log{l}); err != nil {
			t.Fatal(err)
		}
		applied, logs = l.Index, append(logs, l)
	}
	older, err := snapshots.Create(raft.SnapshotVersionMax, 2, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(older, "a b"); err != nil {
		t.Fatal(err)
	}
	if err := older.Close(); err != nil {
		t.Fatal(err)
	}

	d := &diary{}
	m := &machine{fsm: d}
	if err := m.recall(w, snapshots); err != nil {
		t.Fatal(err)
	}
	want := func(entries []string, when string) {
		t.Helper()
		if !slices.Equal(d.entries, entries) {
			t.Fatalf("%s the state is %v, want %v", when, d.entries, entries)
		}
	}
	want(all[:5], "recalled") // the last one may not be committed
	if _, err := m.Snapshot(); !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		t.Errorf("a snapshot before raft applied anything: %v", err)
	}
	m.ApplyBatch(logs[2:4])
	if _, err := m.Snapshot(); !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		t.Errorf("a snapshot of a state that is ahead of raft: %v", err)
	}
	_, state, err := snapshots.Open(older.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(state); err != nil {
		t.Fatal(err)
	}
	want(all[:5], "after an older snapshot")
	m.ApplyBatch(logs[2:])
	want(all, "once raft has applied all")
	if _, err := m.Snapshot(); err != nil {
		t.Errorf("a snapshot of all: %v", err)
	}
}

// What a killed process left in the log without a sync counts after a restart; a power cut then must
// not take it back.
func TestWhatARestartFoundInTheLogStays(t *testing.T) {
	d := newDisk()
	unsafe := d.storage()
	unsafe.Files = unsynced{d}
	w := openTestLog(t, unsafe, func() uint64 { return 0 })
	for i := uint64(1); i <= 3; i++ {
		if err := w.StoreLogs([]*raft.Log{{Index: i, Term: 1, Data: []byte("entry")}}); err != nil {
			t.Fatal(err)
		}
	}
	found, err := openTestLog(t, d.storage(), func() uint64 { return 0 }).LastIndex()
	if err != nil || found != 3 {
		t.Fatalf("the last entry after the restart is %d, %v; want 3", found, err)
	}
	d.powerCut()
	if again, err := openTestLog(t, d.storage(), func() uint64 { return 0 }).LastIndex(); err != nil || again != found {
		t.Errorf("the last entry after the power cut is %d, %v; want %d", again, err, found)
	}
}
