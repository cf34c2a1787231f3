package consensus

import (
	"encoding/binary"

	"github.com/tutti-run/tutti/internal/fault"
)

// entryFormat is the first byte of a log entry that holds any number of change sets, each after
// its length (an unsigned varint). First bytes below 0x80 are those of one bare change set, as
// early versions wrote them: the store numbers its own formats from 1.
const (
	entryFormat  = 0x81
	bareSetBelow = 0x80
)

// entryOf makes one log entry of change sets; of none, it is an entry that changes nothing.
func entryOf(sets [][]byte) []byte {
	size := 1
	for _, s := range sets {
		size += binary.MaxVarintLen32 + len(s)
	}
	entry := append(make([]byte, 0, size), entryFormat)
	for _, s := range sets {
		entry = append(binary.AppendUvarint(entry, uint64(len(s))), s...)
	}
	return entry
}

// setsOf appends the change sets of an entry.
func setsOf(entry []byte, to [][]byte) ([][]byte, error) {
	if len(entry) == 0 || entry[0] < bareSetBelow {
		return append(to, entry), nil
	}
	if entry[0] != entryFormat {
		return to, fault.New(fault.Unsupported, "log entry of format %#x; this version reads format %#x: run the version that wrote it, or a newer one", entry[0], entryFormat)
	}
	for rest := entry[1:]; len(rest) > 0; {
		length, n := binary.Uvarint(rest)
		if n <= 0 || length > uint64(len(rest)-n) {
			return to, fault.New(fault.Invalid, "the log entry is damaged: a change set of %d bytes in the %d that are left", length, len(rest)-max(n, 0))
		}
		to = append(to, rest[n:n+int(length)])
		rest = rest[n+int(length):]
	}
	return to, nil
}
