// Package simdisk is a disk that exists in memory. It holds the log and the snapshots of a server:
// it implements the file system and the index that raft-wal works with.
//
// What was synced survives a crash. What was written and not synced may survive, be lost, or be
// torn: each sector for itself. A file that was made and never synced may be gone. The index, which
// is a bbolt file on a real disk, is trusted: each of its writes is there as a whole or not at all.
package simdisk

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft-wal/types"
)

const sector = 512

// Counts says what happened on a disk.
type Counts struct {
	Syncs, Full, Slow      int // Full counts refusals for want of room, Slow writes that took long
	Lost, Torn, Kept, Gone int // unsynced writes, and files, in crashes
}

// Disk is a disk. What a process that crashed still does to it has no effect on what the next one
// finds: that one has the disk that Crash returns.
type Disk struct {
	mu     sync.Mutex
	rnd    *rand.Rand
	files  map[string]*file
	meta   types.PersistentState
	stable map[string][]byte
	full   bool
	slow   time.Duration // what a write takes at most
	counts *Counts       // of all that came from one disk

	until int    // writes and syncs until onFuse is called, 0 for never
	fuse  func() // called without the lock
}

// file is a file on a disk.
type file struct {
	data    []byte  // as processes see it
	durable []byte  // as it is after a crash
	size    int64   // of the space set aside for it
	pending []write // since the last sync
	entered bool    // its entry in the directory is durable
}

type write struct {
	at   int64
	data []byte
}

// New returns an empty disk.
func New(seed uint64) *Disk {
	return &Disk{rnd: rand.New(rand.NewPCG(seed, 0x6469736b)), files: map[string]*file{}, stable: map[string][]byte{}, counts: &Counts{}}
}

// Counts returns what happened so far.
func (d *Disk) Counts() Counts {
	d.mu.Lock()
	defer d.mu.Unlock()
	return *d.counts
}

// SetFull makes the disk refuse what needs more room.
func (d *Disk) SetFull(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

// SetSlow makes writes take up to d; see Pause.
func (d *Disk) SetSlow(most time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = most
}

// Arm calls fuse in the middle of the n-th write or sync from now on: before what it does counts.
func (d *Disk) Arm(n int, fuse func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until, d.fuse = n, fuse
}

// burn counts down. It is called without the lock, before anything is written or synced.
func (d *Disk) burn() {
	d.mu.Lock()
	fuse := d.fuse
	if d.until > 0 {
		d.until--
	}
	if d.until > 0 || fuse == nil {
		d.mu.Unlock()
		return
	}
	d.fuse = nil
	d.mu.Unlock()
	fuse()
}

// Pause takes as long as a write takes at the moment. Simulated time stands still while anybody
// waits for a mutex, so that this must be called where none is held.
func (d *Disk) Pause() {
	d.mu.Lock()
	most := d.slow
	var nap time.Duration
	if most > 0 {
		d.counts.Slow++
		nap = time.Duration(d.rnd.Int64N(int64(most)))
	}
	d.mu.Unlock()
	if nap > 0 {
		time.Sleep(nap)
	}
}

// Crash returns the disk as the next process finds it. The process lost its memory only, or the
// machine its power: then what was not synced is in danger.
func (d *Disk) Crash(power bool) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := &Disk{rnd: d.rnd, files: map[string]*file{}, meta: d.meta, stable: maps.Clone(d.stable), full: d.full, slow: d.slow, counts: d.counts}
	next.meta.Segments = slices.Clone(d.meta.Segments)
	d.rnd = rand.New(rand.NewPCG(d.rnd.Uint64(), 0)) // the old process has dice of its own
	d.counts = &Counts{}
	mood := next.rnd.IntN(4)
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		f := d.files[name]
		c := &file{size: f.size, entered: f.entered, durable: slices.Clone(f.durable)}
		if !power {
			c.data, c.pending = slices.Clone(f.data), slices.Clone(f.pending)
			next.files[name] = c
			continue
		}
		if !f.entered && next.rnd.IntN(2) == 0 {
			next.counts.Gone++
			continue
		}
		c.entered = true
		for _, w := range f.pending {
			next.survive(c, w, mood)
		}
		c.data = slices.Clone(c.durable)
		next.files[name] = c
	}
	return next
}

// survive decides what is left of a write that was not synced.
func (d *Disk) survive(f *file, w write, mood int) {
	if mood == 3 {
		mood = d.rnd.IntN(3)
	}
	switch mood {
	case 0:
		d.counts.Lost++
	case 1:
		d.counts.Kept++
		put(&f.durable, w.at, w.data)
	default:
		d.counts.Torn++
		for at, rest := w.at, w.data; len(rest) > 0; {
			n := min(int64(len(rest)), sector-at%sector)
			if d.rnd.IntN(2) == 0 {
				put(&f.durable, at, rest[:n])
			}
			at, rest = at+n, rest[n:]
		}
	}
}

func put(into *[]byte, at int64, data []byte) {
	if end := at + int64(len(data)); end > int64(len(*into)) {
		*into = append(*into, make([]byte, end-int64(len(*into)))...)
	}
	copy((*into)[at:], data)
}

var errFull = fmt.Errorf("write: %w", syscall.ENOSPC)

// ListDir implements types.VFS.
func (d *Disk) ListDir(dir string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := []string{}
	for _, p := range slices.Sorted(maps.Keys(d.files)) {
		if path.Dir(p) == path.Clean(dir) {
			names = append(names, path.Base(p))
		}
	}
	return names, nil
}

// Create implements types.VFS.
func (d *Disk) Create(dir, name string, size uint64) (types.WritableFile, error) {
	d.burn()
	d.mu.Lock()
	defer d.mu.Unlock()
	p := path.Join(dir, name)
	if d.files[p] != nil {
		return nil, &fs.PathError{Op: "create", Path: p, Err: fs.ErrExist}
	}
	if d.full {
		d.counts.Full++
		return nil, &fs.PathError{Op: "create", Path: p, Err: syscall.ENOSPC}
	}
	f := &file{size: int64(size)}
	d.files[p] = f
	return &handle{disk: d, file: f}, nil
}

// Delete implements types.VFS. It is durable at once, as package raft-wal's is.
func (d *Disk) Delete(dir, name string) error {
	d.burn()
	d.mu.Lock()
	defer d.mu.Unlock()
	p := path.Join(dir, name)
	if d.files[p] == nil {
		return &fs.PathError{Op: "remove", Path: p, Err: fs.ErrNotExist}
	}
	delete(d.files, p)
	return nil
}

// OpenReader implements types.VFS.
func (d *Disk) OpenReader(dir, name string) (types.ReadableFile, error) { return d.open(dir, name) }

// OpenWriter implements types.VFS.
func (d *Disk) OpenWriter(dir, name string) (types.WritableFile, error) { return d.open(dir, name) }

func (d *Disk) open(dir, name string) (*handle, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := path.Join(dir, name)
	if d.files[p] == nil {
		return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
	}
	return &handle{disk: d, file: d.files[p]}, nil
}

// handle is an open file.
type handle struct {
	disk *Disk
	file *file
}

func (h *handle) Close() error { return nil }

func (h *handle) ReadAt(into []byte, at int64) (int, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	f := h.file
	size := max(f.size, int64(len(f.data)))
	if at >= size {
		return 0, io.EOF
	}
	n := int(min(int64(len(into)), size-at))
	clear(into[:n])
	if at < int64(len(f.data)) {
		copy(into[:n], f.data[at:])
	}
	if n < len(into) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) WriteAt(data []byte, at int64) (int, error) {
	h.disk.burn()
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	f := h.file
	if h.disk.full && at+int64(len(data)) > max(f.size, int64(len(f.data))) {
		h.disk.counts.Full++
		return 0, errFull
	}
	put(&f.data, at, data)
	f.pending = append(f.pending, write{at, slices.Clone(data)})
	return len(data), nil
}

func (h *handle) Sync() error {
	h.disk.burn()
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	h.disk.counts.Syncs++
	f := h.file
	for _, w := range f.pending {
		put(&f.durable, w.at, w.data)
	}
	f.pending, f.entered = nil, true
	return nil
}

// Load implements types.MetaStore.
func (d *Disk) Load(string) (types.PersistentState, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.meta
	out.Segments = slices.Clone(d.meta.Segments)
	return out, nil
}

// CommitState implements types.MetaStore.
func (d *Disk) CommitState(s types.PersistentState) error {
	d.burn()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.meta = s
	d.meta.Segments = slices.Clone(s.Segments)
	return nil
}

// GetStable implements types.MetaStore.
func (d *Disk) GetStable(key []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.stable[string(key)]), nil
}

// SetStable implements types.MetaStore.
func (d *Disk) SetStable(key, value []byte) error {
	d.Pause()
	d.burn()
	d.mu.Lock()
	defer d.mu.Unlock()
	if value == nil {
		delete(d.stable, string(key))
		return nil
	}
	d.stable[string(key)] = slices.Clone(value)
	return nil
}

// Close implements types.MetaStore.
func (d *Disk) Close() error { return nil }

var (
	_ types.VFS       = (*Disk)(nil)
	_ types.MetaStore = (*Disk)(nil)
)

// Full reports whether the disk refuses what needs more room.
func (d *Disk) Full() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.full
}

// Holds reports whether any file holds a text.
func (d *Disk) Holds(text []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files {
		if bytes.Contains(f.data, text) {
			return true
		}
	}
	return false
}
