package simdisk

import (
	"bytes"
	"testing"
)

func TestWhatWasSyncedSurvives(t *testing.T) {
	for seed := range uint64(50) {
		d := New(seed)
		f, err := d.Create("dir", "file", 4096)
		if err != nil {
			t.Fatal(err)
		}
		synced, lost := bytes.Repeat([]byte{1}, 1000), bytes.Repeat([]byte{2}, 2000)
		if _, err := f.WriteAt(synced, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(lost, 1000); err != nil {
			t.Fatal(err)
		}
		if err := d.SetStable([]byte("k"), []byte("v")); err != nil {
			t.Fatal(err)
		}
		next := d.Crash(true)
		r, err := next.OpenReader("dir", "file")
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4096)
		if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got[:1000], synced) {
			t.Fatalf("seed %d: what was synced is gone: %v", seed, err)
		}
		for i, b := range got[1000:3000] {
			if b != 0 && b != 2 {
				t.Fatalf("seed %d: byte %d is %d, which nobody wrote", seed, 1000+i, b)
			}
		}
		if v, err := next.GetStable([]byte("k")); err != nil || string(v) != "v" {
			t.Errorf("seed %d: the index lost a write: %q, %v", seed, v, err)
		}
		if _, err := f.WriteAt(lost, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadAt(got, 0); err != nil || got[0] != 1 {
			t.Errorf("seed %d: the process before the crash still writes to the disk", seed)
		}
	}
}

// Over many crashes, each fate of a write that was not synced must occur.
func TestUnsyncedWritesHaveEveryFate(t *testing.T) {
	var all Counts
	for seed := range uint64(200) {
		d := New(seed)
		f, err := d.Create("dir", "file", 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 3*sector), 0); err != nil {
			t.Fatal(err)
		}
		c := d.Crash(true).Counts()
		all.Lost += c.Lost
		all.Torn += c.Torn
		all.Kept += c.Kept
		all.Gone += c.Gone
	}
	if all.Lost == 0 || all.Torn == 0 || all.Kept == 0 || all.Gone == 0 {
		t.Errorf("of 200 writes that were not synced: %+v", all)
	}
}
