package consensus

import "github.com/hashicorp/raft-wal/types"

// segments opens the files of the log. When a log is cut at its end, raft-wal (0.4.0) seals the
// file without writing an index into it, and can read nothing of that file once it is opened again:
// the server would never start again. Such a file is read as the last one is: from its beginning.
type segments struct{ types.SegmentFiler }

// Open implements types.SegmentFiler.
func (s segments) Open(info types.SegmentInfo) (types.SegmentReader, error) {
	if info.IndexStart == 0 {
		return s.RecoverTail(info)
	}
	return s.SegmentFiler.Open(info)
}
