// Package tasklog keeps what tasks write in files that one process writes and others read. A file
// holds a line per entry: time, stream, F for a whole line or P for a part of a long one, and the
// text. When it is full it becomes "<name>.1", ".1" becomes ".2", and the oldest goes.
package tasklog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
)

const (
	fileName = "log"
	// MaxFileBytes and MaxFiles bound what one run may leave on disk.
	MaxFileBytes = 10 << 20
	MaxFiles     = 3
	maxLine      = 16 << 10 // longer lines are kept in parts
)

// Writer appends entries. It is safe for concurrent use.
type Writer struct {
	mu   sync.Mutex
	dir  string
	file *os.File
	size int64
}

// Create opens the log in a directory for appending.
func Create(dir string) (*Writer, error) {
	w := &Writer{dir: dir}
	return w, w.open()
}

func (w *Writer) open() error {
	f, err := os.OpenFile(filepath.Join(w.dir, fileName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	w.file, w.size = f, st.Size()
	return nil
}

func (w *Writer) append(stream string, text []byte, whole bool) error {
	mark := byte('P')
	if whole {
		mark = 'F'
	}
	line := make([]byte, 0, len(text)+48)
	line = time.Now().UTC().AppendFormat(line, time.RFC3339Nano)
	line = append(line, ' ')
	line = append(line, stream...)
	line = append(line, ' ', mark, ' ')
	line = append(line, text...)
	line = append(line, '\n')
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.size+int64(len(line)) > MaxFileBytes {
		if err := w.rotate(); err != nil {
			return err
		}
	}
	n, err := w.file.Write(line)
	w.size += int64(n)
	return err
}

func (w *Writer) rotate() error {
	base := filepath.Join(w.dir, fileName)
	for n := MaxFiles - 1; n > 0; n-- {
		from := base
		if n > 1 {
			from = base + "." + strconv.Itoa(n-1)
		}
		if err := os.Rename(from, base+"."+strconv.Itoa(n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("rotate log: %w", err)
		}
	}
	w.file.Close()
	return w.open()
}

// Copy appends everything read from r, line by line, until it ends. also, when not nil, gets the
// bytes as they come.
func (w *Writer) Copy(stream string, r io.Reader, also io.Writer) error {
	buf := make([]byte, 0, maxLine)
	chunk := make([]byte, 32<<10)
	var failed error
	for {
		n, err := r.Read(chunk)
		data := chunk[:n]
		if n > 0 && also != nil {
			also.Write(data) // a listener that is gone is no reason to lose the log
		}
		for len(data) > 0 {
			take := min(len(data), maxLine-len(buf))
			end := bytes.IndexByte(data[:take], '\n')
			if end >= 0 {
				buf = append(buf, data[:end]...)
				data = data[end+1:]
				failed = errors.Join(failed, w.append(stream, buf, true))
				buf = buf[:0]
				continue
			}
			buf = append(buf, data[:take]...)
			data = data[take:]
			if len(buf) == maxLine {
				failed = errors.Join(failed, w.append(stream, buf, false))
				buf = buf[:0]
			}
		}
		if err != nil {
			if len(buf) > 0 {
				failed = errors.Join(failed, w.append(stream, buf, false))
			}
			return failed
		}
	}
}

// Close closes the file.
func (w *Writer) Close() error { return w.file.Close() }

// Read yields the entries of the log in a directory. When following it goes on until ended
// reports that nothing more will be written, and everything was read.
func Read(ctx context.Context, dir string, o driver.LogOptions, ended func() bool, yield func(driver.LogEntry) error) error {
	base := filepath.Join(dir, fileName)
	if o.Tail >= 0 {
		return readTail(ctx, base, o, ended, yield)
	}
	for n := MaxFiles - 1; n > 0; n-- {
		f, err := os.Open(base + "." + strconv.Itoa(n))
		if err != nil {
			continue // not there yet
		}
		_, err = readAll(f, 0, o, yield)
		f.Close()
		if err != nil {
			return err
		}
	}
	return readLive(ctx, base, 0, o, ended, yield)
}

// readTail finds the last lines first and then reads on from there.
func readTail(ctx context.Context, base string, o driver.LogOptions, ended func() bool, yield func(driver.LogEntry) error) error {
	var ring []driver.LogEntry
	keep := func(e driver.LogEntry) error {
		ring = append(ring, e)
		if len(ring) > o.Tail {
			ring = ring[1:]
		}
		return nil
	}
	var offset int64
	for n := MaxFiles - 1; n >= 0; n-- {
		name := base
		if n > 0 {
			name = base + "." + strconv.Itoa(n)
		}
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		offset, err = readAll(f, 0, o, keep)
		f.Close()
		if err != nil {
			return err
		}
	}
	for _, e := range ring {
		if err := yield(e); err != nil {
			return err
		}
	}
	if !o.Follow {
		return nil
	}
	return readLive(ctx, base, offset, o, ended, yield)
}

const followPoll = 50 * time.Millisecond

// readLive reads the newest file from an offset and, when following, whatever comes, across
// rotations.
func readLive(ctx context.Context, base string, offset int64, o driver.LogOptions, ended func() bool, yield func(driver.LogEntry) error) error {
	f, err := os.Open(base)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer func() { f.Close() }()
	for {
		over := !o.Follow || ended() // asked before reading, so that what came last is read
		if offset, err = readAll(f, offset, o, yield); err != nil {
			return err
		}
		if next, err := os.Open(base); err == nil {
			a, errA := f.Stat()
			b, errB := next.Stat()
			if errA == nil && errB == nil && !os.SameFile(a, b) {
				// Rotated: what was written to the old file meanwhile comes first.
				if _, err := readAll(f, offset, o, yield); err != nil {
					next.Close()
					return err
				}
				f.Close()
				f, offset = next, 0
				continue
			}
			next.Close()
		}
		if over {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followPoll):
		}
	}
}

// readAll yields the whole entries from offset on and returns where it stopped.
func readAll(f *os.File, offset int64, o driver.LogOptions, yield func(driver.LogEntry) error) (int64, error) {
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return offset, fmt.Errorf("read log: %w", err)
	}
	r := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return offset, nil // an entry that is still being written is read next time
		}
		offset += int64(len(line))
		e, ok := parse(line[:len(line)-1])
		if !ok || !o.Since.IsZero() && e.Time.Before(o.Since) || !o.Until.IsZero() && e.Time.After(o.Until) {
			continue
		}
		if err := yield(e); err != nil {
			return offset, err
		}
	}
}

func parse(line []byte) (driver.LogEntry, bool) {
	parts := bytes.SplitN(line, []byte{' '}, 4)
	if len(parts) != 4 {
		return driver.LogEntry{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(parts[0]))
	if err != nil {
		return driver.LogEntry{}, false
	}
	text := bytes.Clone(parts[3])
	if parts[2][0] == 'F' {
		text = append(text, '\n')
	}
	return driver.LogEntry{Time: t, Stream: string(parts[1]), Line: text}, true
}
