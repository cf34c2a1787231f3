package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// disk is a disk in memory that can lose what was not synced.
type disk struct {
	mu    sync.Mutex
	files map[string]*diskFile
	state types.PersistentState
	keys  map[string][]byte
}

type diskFile struct {
	disk         *disk
	data, synced []byte
	lasting      bool // its entry in the directory was synced
}

func newDisk() *disk { return &disk{files: map[string]*diskFile{}, keys: map[string][]byte{}} }

func (d *disk) powerCut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, f := range d.files {
		if !f.lasting {
			delete(d.files, name)
		}
		f.data = slices.Clone(f.synced)
	}
}

func (d *disk) ListDir(dir string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for path := range d.files {
		if filepath.Dir(path) == dir {
			out = append(out, filepath.Base(path))
		}
	}
	slices.Sort(out)
	return out, nil
}

func (d *disk) Create(dir, name string, size uint64) (types.WritableFile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path := filepath.Join(dir, name)
	if d.files[path] != nil {
		return nil, os.ErrExist
	}
	d.files[path] = &diskFile{disk: d}
	return d.files[path], nil
}

func (d *disk) Delete(dir, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, filepath.Join(dir, name))
	return nil
}

func (d *disk) OpenWriter(dir, name string) (types.WritableFile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.files[filepath.Join(dir, name)]; f != nil {
		return f, nil
	}
	return nil, os.ErrNotExist
}

func (d *disk) OpenReader(dir, name string) (types.ReadableFile, error) {
	return d.OpenWriter(dir, name)
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if more := int(off) + len(p) - len(f.data); more > 0 {
		f.data = append(f.data, make([]byte, more)...)
	}
	return copy(f.data[off:], p), nil
}

func (f *diskFile) ReadAt(p []byte, off int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	return bytes.NewReader(f.data).ReadAt(p, off)
}

func (f *diskFile) Sync() error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.synced, f.lasting = slices.Clone(f.data), true
	return nil
}

func (f *diskFile) Close() error { return nil }

func (d *disk) Load(string) (types.PersistentState, error) { return d.state, nil }
func (d *disk) CommitState(s types.PersistentState) error  { d.state = s; return nil }
func (d *disk) GetStable(key []byte) ([]byte, error)       { return d.keys[string(key)], nil }
func (d *disk) SetStable(key, value []byte) error          { d.keys[string(key)] = value; return nil }
func (d *disk) storage() *Storage                          { return &Storage{Files: d, Index: diskIndex{d}, Dir: "server"} }

// diskIndex lets the disk be closed as an index.
type diskIndex struct{ *disk }

func (diskIndex) Close() error { return nil }

// simulated is a cluster without a network of this host or a disk of it.
type simulated struct {
	*testing.T
	disks      []*disk
	transports []*raft.InmemTransport
	stores     []*store.Store
	rafts      []*Raft
}

func simulate(t *testing.T, size int) *simulated {
	s := &simulated{T: t}
	for i := range size {
		_, transport := raft.NewInmemTransport(raft.ServerAddress(fmt.Sprint("s", i)))
		s.disks, s.transports = append(s.disks, newDisk()), append(s.transports, transport)
		s.stores, s.rafts = append(s.stores, nil), append(s.rafts, nil)
	}
	for i := range size {
		s.start(i)
	}
	s.eventually("the first leads", s.rafts[0].IsLeader)
	for i := 1; i < size; i++ {
		if err := s.rafts[0].AddServer(t.Context(), fmt.Sprint("s", i), fmt.Sprint("s", i)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *simulated) start(i int) {
	s.Helper()
	id := fmt.Sprint("s", i)
	for j, other := range s.transports {
		s.transports[i].Connect(raft.ServerAddress(fmt.Sprint("s", j)), other)
		other.Connect(raft.ServerAddress(id), s.transports[i])
	}
	s.stores[i] = store.New(slog.New(slog.DiscardHandler))
	r, err := New(Config{
		NodeID: id, Address: id, Bootstrap: i == 0, Transport: s.transports[i], Storage: s.disks[i].storage(),
		FSM: s.stores[i], Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.Fatal(err)
	}
	s.stores[i].SetProposer(r)
	s.rafts[i] = r
}

// crash ends a server and loses what its disk was not told to keep.
func (s *simulated) crash(i int) {
	s.transports[i].DisconnectAll()
	if err := s.rafts[i].stop(); err != nil {
		s.Errorf("stop s%d: %v", i, err)
	}
	s.disks[i].powerCut()
	_, s.transports[i] = raft.NewInmemTransport(raft.ServerAddress(fmt.Sprint("s", i)))
}

func (s *simulated) end() {
	s.Helper()
	for i, r := range s.rafts {
		if err := r.Shutdown(); err != nil {
			s.Errorf("shut s%d down: %v", i, err)
		}
	}
	time.Sleep(10 * time.Second) // for calls of raft's that nobody answers any more
}

func (s *simulated) eventually(what string, ok func() bool) {
	s.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
	}
	s.Fatalf("%s: never", what)
}

func (s *simulated) leader() int {
	s.Helper()
	leader := -1
	s.eventually("a leader", func() bool {
		leader = slices.IndexFunc(s.rafts, func(r *Raft) bool { return r.IsLeader() })
		return leader >= 0
	})
	return leader
}

func (s *simulated) write(i int, id string) error {
	cs := &store.ChangeSet{}
	cs.Put(&model.Config{Meta: model.Meta{ID: id, Name: id}})
	_, err := s.stores[i].Commit(context.Background(), cs)
	return err
}

// In a bubble, with disks that forget: what was acknowledged is there after all have lost power, and
// nothing runs on when all are shut down.
func TestPowerCutsLoseNothingAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, 3)
		acknowledged := map[string]bool{}
		for round := range 5 {
			for n := range 50 {
				id := fmt.Sprintf("w-%d-%d", round, n)
				if s.write(s.leader(), id) == nil {
					acknowledged[id] = true
				}
			}
			if round == 2 { // from now on there is a snapshot, too
				if err := s.rafts[s.leader()].raft.Snapshot().Error(); err != nil {
					t.Fatal(err)
				}
			}
			for i := range s.rafts {
				s.crash(i)
			}
			for i := range s.rafts {
				s.start(i)
			}
			leader := s.leader()
			s.eventually("the leader has applied all", func() bool { return s.write(leader, "probe") == nil })
			for id := range acknowledged {
				if _, ok := store.Get[*model.Config](s.stores[leader].Snapshot(), id); !ok {
					t.Fatalf("after power cut %d the acknowledged %s is gone", round, id)
				}
			}
		}
		if len(acknowledged) < 200 {
			t.Errorf("only %d writes were acknowledged", len(acknowledged))
		}
		s.end()
	})
}

// A server that is alone after its restart shows what it knew to be committed, all but the last of
// it, and knows that it cannot be sure.
func TestAServerAloneShowsWhatItKnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, 3)
		const writes = 40
		for n := range writes {
			if n == writes/2 {
				for _, r := range s.rafts {
					if err := r.raft.Snapshot().Error(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := s.write(s.leader(), fmt.Sprint("w", n)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		for i := range s.rafts {
			s.crash(i)
		}
		for i := range s.rafts {
			s.start(i)
			for n := range writes - 1 {
				if _, ok := store.Get[*model.Config](s.stores[i].Snapshot(), fmt.Sprint("w", n)); !ok {
					t.Fatalf("s%d, alone, does not show w%d of %d", i, n, writes)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			if err := s.rafts[i].Sync(ctx); !fault.Is(err, fault.Unavailable) {
				t.Errorf("s%d, alone, calls its state the newest: %v", i, err)
			}
			cancel()
			s.crash(i)
		}
		for i := range s.rafts {
			s.start(i)
		}
		if err := s.write(s.leader(), "more"); err != nil {
			t.Error(err)
		}
		revision := s.stores[s.leader()].Snapshot().Revision()
		for i := range s.rafts {
			if i != s.leader() {
				s.eventually("followers catch up", func() bool { return s.stores[i].Snapshot().Revision() == revision })
			}
		}
		s.end()
	})
}

func TestSnapshotsAreWholeOrNotThere(t *testing.T) {
	d := newDisk()
	open := func() *snapshots {
		t.Helper()
		s, err := d.storage().openSnapshots()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	make := func(s *snapshots, index uint64) raft.SnapshotSink {
		t.Helper()
		k, err := s.Create(1, index, 1, raft.Configuration{Servers: []raft.Server{{ID: "a"}}}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(k, "state at %d", index); err != nil {
			t.Fatal(err)
		}
		return k
	}
	indexes := func(s *snapshots) (out []uint64) {
		t.Helper()
		list, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list {
			out = append(out, m.Index)
		}
		return out
	}
	s := open()
	unfinished := make(s, 9)
	for _, index := range []uint64{1, 2, 3} {
		if err := make(s, index).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := indexes(s); !slices.Equal(got, []uint64{3, 2}) {
		t.Errorf("kept %v, want the two newest", got)
	}
	if err := unfinished.Cancel(); err != nil {
		t.Error(err)
	}
	if err := make(s, 4).Cancel(); err != nil {
		t.Error(err)
	}
	make(s, 5) // never finished
	d.powerCut()
	s = open()
	if got := indexes(s); !slices.Equal(got, []uint64{3, 2}) {
		t.Errorf("after a power cut %v are there, want the two finished", got)
	}
	if n := len(slices.Collect(maps.Keys(d.files))); n != 2 {
		t.Errorf("%d files are left, want 2", n)
	}
	list, _ := s.List()
	meta, r, err := s.Open(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	state, err := io.ReadAll(r)
	if err != nil || string(state) != "state at 3" || meta.Configuration.Servers[0].ID != "a" {
		t.Errorf("read %q of %+v, %v", state, meta, err)
	}
	// One wrong bit of the state is noticed before any of it is given out.
	for _, f := range d.files {
		f.data[snapshotHeaderBytes] ^= 1
	}
	if _, _, err := s.Open(list[0].ID); err == nil || errors.Is(err, errUnfinished) {
		t.Errorf("a damaged snapshot gave %v", err)
	}
}
