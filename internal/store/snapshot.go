package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"maps"
	"slices"

	"github.com/tutti-run/tutti/internal/model"
)

const snapshotMagic = "TUTTI-STATE"

// Formats of written snapshots. Like formats of change sets, a new one is read one version before
// it is written.
const (
	snapshotRows   = 1 // the header and then rows of objects, all in CBOR; read, not written any more
	snapshotBlocks = 2 // the header in CBOR, then blocks
	snapshotNewest = snapshotBlocks
)

// snapshotHeader begins a written snapshot.
type snapshotHeader struct {
	Magic    string `json:"magic"`
	Version  int    `json:"version"`
	Revision uint64 `json:"revision"`
}

// A block of a snapshot is the length of its content and the content's checksum (CRC-32C), four
// bytes each, the lowest first, and the content: what it holds, a byte, and then
//
//   - objects: their kind, then for each its revision and itself in CBOR
//   - keys: for each the key, value, revisions of creation and change, version, milliseconds to live
//   - end: the number of objects and of keys, and the revision of the header; nothing follows
//
// Numbers in a content are of variable length, and so is what is preceded by its length: kinds,
// objects, keys and values. Objects are in the order of kinds and IDs, keys in their own.
const (
	blockObjects = 1
	blockKeys    = 2
	blockEnd     = 3

	blockHead = 8
	// blockBytes is where a block ends that is being written; maxBlockBytes is what is read: an
	// object alone may be large.
	blockBytes    = 256 << 10
	maxBlockBytes = 256 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// blockWriter writes blocks.
type blockWriter struct {
	to  io.Writer
	buf []byte
	err error
}

// begin starts a block, unless one is under way that has room.
func (w *blockWriter) begin(what byte, kind model.Kind) {
	if len(w.buf) >= blockBytes {
		w.flush()
	}
	if len(w.buf) > 0 {
		return
	}
	w.buf = append(w.buf, make([]byte, blockHead)...)
	w.buf = append(w.buf, what)
	if kind != "" {
		w.buf = appendBytes(w.buf, string(kind))
	}
}

func (w *blockWriter) flush() {
	if w.err != nil || len(w.buf) == 0 {
		return
	}
	content := w.buf[blockHead:]
	binary.LittleEndian.PutUint32(w.buf, uint32(len(content)))
	binary.LittleEndian.PutUint32(w.buf[4:], crc32.Checksum(content, castagnoli))
	_, w.err = w.to.Write(w.buf)
	w.buf = w.buf[:0]
}

// Write streams the snapshot in a versioned format that Restore reads.
func (s *Snapshot) Write(to io.Writer) error {
	buf := bufio.NewWriterSize(to, 1<<20)
	header := snapshotHeader{Magic: snapshotMagic, Version: snapshotBlocks, Revision: s.Revision()}
	if err := codec.NewEncoder(buf).Encode(header); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	w := &blockWriter{to: buf}
	objects := 0
	var data bytes.Buffer // reused: a large state would leave as much garbage
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		var err error
		s.state.table(kind).byID.All(func(m *model.Meta) bool {
			data.Reset()
			if err = codec.MarshalToBuffer(kinds[kind].object(m), &data); err != nil {
				err = fmt.Errorf("encode %s %s: %w", kind, m.ID, err)
				return false
			}
			w.begin(blockObjects, kind)
			w.buf = binary.AppendUvarint(w.buf, m.Revision)
			w.buf = appendBytes(w.buf, data.Bytes())
			objects++
			return w.err == nil
		})
		w.flush()
		if err != nil {
			return err
		}
	}
	s.state.keys.All(func(kv *KeyValue) bool {
		w.begin(blockKeys, "")
		w.buf = appendBytes(w.buf, kv.Key)
		w.buf = appendBytes(w.buf, kv.Value)
		for _, n := range []uint64{kv.Created, kv.Modified, kv.Version, uint64(kv.TTL.Milliseconds())} {
			w.buf = binary.AppendUvarint(w.buf, n)
		}
		return w.err == nil
	})
	w.flush()
	w.begin(blockEnd, "")
	w.buf = binary.AppendUvarint(w.buf, uint64(objects))
	w.buf = binary.AppendUvarint(w.buf, uint64(s.state.keys.Len()))
	w.buf = binary.AppendUvarint(w.buf, s.Revision())
	w.flush()
	if w.err == nil {
		w.err = buf.Flush()
	}
	if w.err != nil {
		return fmt.Errorf("write snapshot: %w", w.err)
	}
	return nil
}

// Contents says what a written snapshot holds.
type Contents struct {
	Revision uint64             `json:"revision"`
	Objects  map[model.Kind]int `json:"objects"`
	Keys     int                `json:"keys"`
}

// Contents counts what the snapshot holds.
func (s *Snapshot) Contents() Contents {
	c := Contents{Revision: s.Revision(), Objects: map[model.Kind]int{}, Keys: s.state.keys.Len()}
	for kind, t := range s.state.tables {
		c.Objects[kind] = t.byID.Len()
	}
	return c
}

// CheckSnapshot reads a whole written snapshot, which may be of an older format, and returns what it
// holds, or what is wrong with it.
func CheckSnapshot(r io.Reader) (Contents, error) {
	s := New(slog.New(slog.DiscardHandler))
	if err := s.Restore(r); err != nil {
		return Contents{}, err
	}
	return s.Snapshot().Contents(), nil
}

// RaiseSnapshot writes a written snapshot again, in the newest format, with its revision raised. A
// cluster that begins anew from a backup raises it by more than the changes that may have happened
// since, so that nobody who saw those meets their revisions again: watchers are told to list again
// instead, and what was read then never matches by accident. It checks all that CheckSnapshot does.
func RaiseSnapshot(w io.Writer, r io.Reader, by uint64) (Contents, error) {
	s := New(slog.New(slog.DiscardHandler))
	if err := s.Restore(r); err != nil {
		return Contents{}, err
	}
	raised := *s.state.Load()
	raised.revision += by
	snap := &Snapshot{state: &raised}
	return snap.Contents(), snap.Write(w)
}
