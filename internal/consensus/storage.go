package consensus

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/types"
)

// Storage is where a server keeps its log and its snapshots. The code above it is the same for
// a real disk and for one that a simulation makes up.
type Storage struct {
	// Files holds the segments of the log in the directory Dir/log, and the snapshots in
	// Dir/snapshots. What was not synced may be lost, or half there, after a crash; the entry of a
	// file in its directory counts as synced with the file.
	Files types.VFS
	// Index holds the log's index and what raft must not forget; each of its writes is durable. It
	// is loaded anew whenever the log is opened, and closed with it.
	Index types.MetaStore
	Dir   string

	// What follows is for simulations, which are short and wait only where no lock is held; zero
	// values are what servers use.

	// SegmentBytes is the size of one file of the log.
	SegmentBytes int
	// SnapshotAfter is how many entries a snapshot is made of at least, KeptEntries how many of them
	// stay in the log, and SnapshotEvery how often is looked.
	SnapshotAfter, KeptEntries uint64
	SnapshotEvery              time.Duration
	// Pause is called before each write of entries and takes as long as the disk does.
	Pause func()
}

// onDisk is the storage in a directory of this host.
func onDisk(dir string) (Storage, error) {
	for _, d := range []string{"log", "snapshots"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return Storage{}, fmt.Errorf("make the directory of the log: %w", err)
		}
	}
	return Storage{Files: fs.New(), Index: &metadb.BoltMetaDB{}, Dir: dir}, nil
}

// unsynced is the planted bug of the build tag plant_skip_fsync: a disk whose files are not synced.
type unsynced struct{ types.VFS }

func (u unsynced) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := u.VFS.Create(dir, name, size)
	return unsyncedFile{f}, err
}

func (u unsynced) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := u.VFS.OpenWriter(dir, name)
	return unsyncedFile{f}, err
}

type unsyncedFile struct{ types.WritableFile }

func (unsyncedFile) Sync() error { return nil }
