package consensus

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// segments opens the files of the log. When a log is cut at its end, raft-wal (0.4.0) seals the
// file without writing an index into it, and can read nothing of that file once it is opened again:
// the server would never start again. Such a file is read as the last one is: from its beginning.
type segments struct {
	types.SegmentFiler
	files types.VFS
}

// Open implements types.SegmentFiler.
func (s segments) Open(info types.SegmentInfo) (types.SegmentReader, error) {
	if info.IndexStart == 0 {
		return s.RecoverTail(info)
	}
	return s.SegmentFiler.Open(info)
}

// finishTail completes what a crash kept raft-wal from: when a file is full, it writes an index
// behind the entries, and then begins the next file. A log that is opened between the two would take
// no entry ever again. The index may be there only in parts, too; so it is not used.
func (s segments) finishTail(dir string, index types.MetaStore, segmentBytes int) error {
	state, err := index.Load(dir)
	if err != nil {
		return err
	}
	if len(state.Segments) == 0 || !state.Segments[len(state.Segments)-1].SealTime.IsZero() {
		return nil
	}
	state.Segments = append([]types.SegmentInfo(nil), state.Segments...)
	tail := &state.Segments[len(state.Segments)-1]
	// What a crash left in the file may not be on the disk yet. From here on it counts as if it were:
	// a power cut must not take it back.
	f, err := s.files.OpenWriter(dir, segment.FileName(*tail))
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bring the end of the log to the disk: %w", err)
	}
	w, err := s.RecoverTail(*tail)
	if errors.Is(err, os.ErrNotExist) {
		return nil // raft-wal makes it
	}
	if err != nil {
		return err
	}
	full, _, err := w.Sealed()
	last := w.LastIndex()
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	switch {
	case !full:
		return nil
	case last < tail.BaseIndex: // nothing in it was ever acknowledged
		if err := s.Delete(tail.BaseIndex, tail.ID); err != nil {
			return fmt.Errorf("drop a file without entries: %w", err)
		}
		return nil
	}
	now := time.Now()
	tail.SealTime, tail.MaxIndex, tail.IndexStart = now, last, 0
	next := types.SegmentInfo{
		ID: state.NextSegmentID, BaseIndex: last + 1, MinIndex: last + 1,
		SizeLimit: uint32(segmentBytes), Codec: tail.Codec, CreateTime: now,
	}
	state.NextSegmentID++
	state.Segments = append(state.Segments, next)
	return index.CommitState(state)
}
