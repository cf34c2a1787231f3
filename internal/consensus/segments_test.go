package consensus

import (
	"fmt"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
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
