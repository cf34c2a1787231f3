package consensus

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"
)

// A snapshot is one file: a header of snapshotHeaderBytes, the state, and what raft knows of it as
// JSON. The header is written last, after all else is synced: a file without a valid one was never
// finished. Its numbers are big endian: magic (8 bytes), version (4), the CRC-32C of the state (4)
// and of the JSON (4), the lengths of both (8 each), and the CRC-32C of all that (4).
const (
	snapshotMagic       = "TUTTISNP"
	snapshotVersion     = 1
	snapshotHeaderBytes = 64
	snapshotSuffix      = ".snapshot"
	keptSnapshots       = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// snapshots implements raft.SnapshotStore in a directory.
type snapshots struct {
	files types.VFS
	dir   string

	mu     sync.Mutex
	making map[string]bool // names of those that are being written
}

func (s Storage) openSnapshots() (*snapshots, error) {
	out := &snapshots{files: s.Files, dir: filepath.Join(s.Dir, "snapshots"), making: map[string]bool{}}
	return out, out.reap()
}

// names returns the file names of all snapshots, finished or not, the newest first.
func (s *snapshots) names() ([]string, error) {
	all, err := s.files.ListDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	names := slices.DeleteFunc(all, func(n string) bool { return !strings.HasSuffix(n, snapshotSuffix) })
	slices.Sort(names)
	slices.Reverse(names)
	return names, nil
}

// reap drops snapshots that were not finished, and old ones.
func (s *snapshots) reap() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := s.names()
	if err != nil {
		return err
	}
	kept := 0
	for _, name := range names {
		if s.making[name] {
			continue
		}
		if _, err := s.meta(name); err == nil && kept < keptSnapshots {
			kept++
			continue
		} else if err != nil && !errors.Is(err, errUnfinished) {
			return err
		}
		if err := s.files.Delete(s.dir, name); err != nil {
			return fmt.Errorf("drop the snapshot %s: %w", name, err)
		}
	}
	return nil
}

// errUnfinished says that a file is no finished snapshot.
var errUnfinished = errors.New("the snapshot was not finished")

// snapshotFile is an open snapshot.
type snapshotFile struct {
	io.Reader
	file types.ReadableFile
	meta *raft.SnapshotMeta
	sum  uint32
}

func (f *snapshotFile) Close() error { return f.file.Close() }

// open reads what is around the state; the state is not checked.
func (s *snapshots) open(name string) (_ *snapshotFile, err error) {
	f, err := s.files.OpenReader(s.dir, name)
	if err != nil {
		return nil, fmt.Errorf("open the snapshot %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	head := make([]byte, snapshotHeaderBytes)
	if n, err := f.ReadAt(head, 0); err != nil && (n < len(head) || !errors.Is(err, io.EOF)) {
		if errors.Is(err, io.EOF) {
			return nil, errUnfinished
		}
		return nil, fmt.Errorf("read the snapshot %s: %w", name, err)
	}
	number := binary.BigEndian
	if string(head[:8]) != snapshotMagic || number.Uint32(head[36:]) != crc32.Checksum(head[:36], castagnoli) {
		return nil, errUnfinished
	}
	if v := number.Uint32(head[8:]); v != snapshotVersion {
		return nil, fmt.Errorf("snapshot %s is of format %d; this version reads format %d", name, v, snapshotVersion)
	}
	stateBytes, metaBytes := int64(number.Uint64(head[20:])), int64(number.Uint64(head[28:]))
	text := make([]byte, metaBytes)
	if n, err := f.ReadAt(text, snapshotHeaderBytes+stateBytes); err != nil && (n < len(text) || !errors.Is(err, io.EOF)) {
		return nil, fmt.Errorf("read the snapshot %s: %w", name, err)
	}
	if crc32.Checksum(text, castagnoli) != number.Uint32(head[16:]) {
		return nil, fmt.Errorf("the snapshot %s is damaged: what describes it has another checksum", name)
	}
	meta := &raft.SnapshotMeta{}
	if err := json.Unmarshal(text, meta); err != nil {
		return nil, fmt.Errorf("read the snapshot %s: %w", name, err)
	}
	meta.ID, meta.Size = strings.TrimSuffix(name, snapshotSuffix), stateBytes
	return &snapshotFile{
		Reader: bufio.NewReaderSize(io.NewSectionReader(f, snapshotHeaderBytes, stateBytes), 1<<18),
		file:   f, meta: meta, sum: number.Uint32(head[12:]),
	}, nil
}

func (s *snapshots) meta(name string) (*raft.SnapshotMeta, error) {
	f, err := s.open(name)
	if err != nil {
		return nil, err
	}
	return f.meta, f.Close()
}

// List implements raft.SnapshotStore: the newest first.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var out []*raft.SnapshotMeta
	for _, name := range names {
		m, err := s.meta(name)
		if errors.Is(err, errUnfinished) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// Open implements raft.SnapshotStore. The whole state is read once to compare its checksum.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	f, err := s.open(id + snapshotSuffix)
	if err != nil {
		return nil, nil, err
	}
	sum := crc32.New(castagnoli)
	if n, err := io.Copy(sum, f.Reader); err != nil || n != f.meta.Size || sum.Sum32() != f.sum {
		return nil, nil, errors.Join(fmt.Errorf("the snapshot %s is damaged: its state has another checksum", id), err, f.Close())
	}
	f.Reader = bufio.NewReaderSize(io.NewSectionReader(f.file, snapshotHeaderBytes, f.meta.Size), 1<<18)
	return f.meta, f, nil
}

// Create implements raft.SnapshotStore.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, trans raft.Transport,
) (raft.SnapshotSink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	id := ""
	for n := 0; ; n++ {
		id = fmt.Sprintf("%020d-%020d-%06d", term, index, n)
		if !slices.Contains(names, id+snapshotSuffix) {
			break
		}
	}
	f, err := s.files.Create(s.dir, id+snapshotSuffix, 0)
	if err != nil {
		return nil, fmt.Errorf("begin the snapshot %s: %w", id, err)
	}
	s.making[id+snapshotSuffix] = true
	k := &sink{store: s, file: f, meta: raft.SnapshotMeta{
		Version: version, ID: id, Index: index, Term: term, Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}
	k.buffer = bufio.NewWriterSize(io.NewOffsetWriter(f, snapshotHeaderBytes), 1<<18)
	return k, nil
}

// sink implements raft.SnapshotSink.
type sink struct {
	store  *snapshots
	file   types.WritableFile
	buffer *bufio.Writer
	meta   raft.SnapshotMeta
	sum    uint32
	closed bool
}

func (k *sink) ID() string { return k.meta.ID }

func (k *sink) Write(p []byte) (int, error) {
	n, err := k.buffer.Write(p)
	k.sum = crc32.Update(k.sum, castagnoli, p[:n])
	k.meta.Size += int64(n)
	return n, err
}

// Close finishes the snapshot; it counts from then on, whatever happens. Closing again does nothing.
func (k *sink) Close() error {
	if k.closed {
		return nil
	}
	k.closed = true
	if err := errors.Join(k.finish(), k.file.Close()); err != nil {
		return errors.Join(fmt.Errorf("finish the snapshot %s: %w", k.meta.ID, err), k.store.drop(k.meta.ID))
	}
	k.store.made(k.meta.ID)
	return k.store.reap()
}

func (k *sink) finish() error {
	text, err := json.Marshal(k.meta)
	if err != nil {
		return err
	}
	if err := k.buffer.Flush(); err != nil {
		return err
	}
	if _, err := k.file.WriteAt(text, snapshotHeaderBytes+k.meta.Size); err != nil {
		return err
	}
	if err := k.file.Sync(); err != nil {
		return err
	}
	number := binary.BigEndian
	head := number.AppendUint32([]byte(snapshotMagic), snapshotVersion)
	head = number.AppendUint32(number.AppendUint32(head, k.sum), crc32.Checksum(text, castagnoli))
	head = number.AppendUint64(number.AppendUint64(head, uint64(k.meta.Size)), uint64(len(text)))
	head = number.AppendUint32(head, crc32.Checksum(head, castagnoli))
	if _, err := k.file.WriteAt(head, 0); err != nil {
		return err
	}
	return k.file.Sync()
}

// Cancel implements raft.SnapshotSink.
func (k *sink) Cancel() error {
	if k.closed {
		return nil
	}
	k.closed = true
	return errors.Join(k.file.Close(), k.store.drop(k.meta.ID))
}

func (s *snapshots) made(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.making, id+snapshotSuffix)
}

func (s *snapshots) drop(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.making, id+snapshotSuffix)
	return s.files.Delete(s.dir, id+snapshotSuffix)
}
