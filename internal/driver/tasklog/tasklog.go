// Package tasklog keeps what tasks write in files that one process writes and others read. A file
// holds a line per entry: time, stream, F for a whole line or P for a part of a long one, and the
// text. When it is full it becomes "<name>.1", ".1" becomes ".2", and the oldest goes.
package tasklog

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

const (
	fileName = "log"
	// MaxFileBytes and MaxFiles bound what one run may leave on disk, unless its policy says otherwise.
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

	none      bool
	fileBytes int64
	files     int
}

// Create opens the log in a directory for appending; nil is the usual policy.
func Create(dir string, policy *model.LogPolicy) (*Writer, error) {
	w := of(dir, policy)
	return w, w.open()
}

func of(dir string, policy *model.LogPolicy) *Writer {
	w := &Writer{dir: dir, fileBytes: MaxFileBytes, files: MaxFiles}
	if policy != nil {
		w.none, w.fileBytes, w.files = policy.None, cmp.Or(policy.FileBytes, MaxFileBytes), min(cmp.Or(policy.Files, MaxFiles), model.MaxLogFiles)
	}
	return w
}

// File returns where entries go now, and how many bytes may be there; below zero: no entries are kept.
func File(dir string, policy *model.LogPolicy) (path string, room int64) {
	w := of(dir, policy)
	if w.none {
		return filepath.Join(dir, fileName), -1
	}
	return filepath.Join(dir, fileName), w.fileBytes
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

// batch is entries that are written together, which is quicker, and leaves hardly a moment in which what was
// read is in no file yet.
type batch struct {
	text []byte
	ends []int // of each entry
}

const fullBatch = 64 << 10

func (b *batch) add(stream string, text []byte, whole bool) {
	mark := byte('P')
	if whole {
		mark = 'F'
	}
	b.text = time.Now().UTC().AppendFormat(b.text, time.RFC3339Nano)
	b.text = append(b.text, ' ')
	b.text = append(b.text, stream...)
	b.text = append(b.text, ' ', mark, ' ')
	b.text = append(b.text, text...)
	b.text = append(b.text, '\n')
	b.ends = append(b.ends, len(b.text))
}

// write appends the entries of a batch, which is empty afterwards.
func (w *Writer) write(b *batch) error {
	defer func() { b.text, b.ends = b.text[:0], b.ends[:0] }()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.none {
		return nil
	}
	from := 0 // what was not written yet begins here
	flush := func(to int) error {
		if to == from {
			return nil
		}
		n, err := w.file.Write(b.text[from:to])
		w.size, from = w.size+int64(n), to
		return err
	}
	begin := 0 // of an entry
	for _, end := range b.ends {
		if w.size+int64(end-from) > w.fileBytes {
			if err := flush(begin); err != nil {
				return err
			}
			if err := w.rotate(); err != nil {
				return err
			}
		}
		begin = end
	}
	return flush(len(b.text))
}

func (w *Writer) rotate() error {
	base := filepath.Join(w.dir, fileName)
	if w.files == 1 {
		if err := os.Remove(base); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("rotate log: %w", err)
		}
	}
	for n := w.files - 1; n > 0; n-- {
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

// Copy appends everything read from r, line by line, until it ends; before is what was read of it already. also, when not nil,
// gets the bytes as they come.
func (w *Writer) Copy(stream string, before []byte, r io.Reader, also io.Writer) error {
	buf := make([]byte, 0, maxLine)
	chunk := make([]byte, 32<<10)
	var failed error // the first; a full disk fails every line
	var ready batch
	flush := func() {
		if err := w.write(&ready); failed == nil {
			failed = err
		}
	}
	add := func(whole bool) {
		ready.add(stream, buf, whole)
		buf = buf[:0]
		if len(ready.text) >= fullBatch {
			flush()
		}
	}
	take := func(data []byte) {
		for len(data) > 0 {
			n := min(len(data), maxLine-len(buf))
			end := bytes.IndexByte(data[:n], '\n')
			if end >= 0 {
				buf = append(buf, data[:end]...)
				data = data[end+1:]
				add(true)
				continue
			}
			buf = append(buf, data[:n]...)
			data = data[n:]
			if len(buf) == maxLine {
				add(false)
			}
		}
	}
	take(before)
	for {
		n, err := r.Read(chunk)
		if n > 0 && also != nil {
			also.Write(chunk[:n]) // a listener that is gone is no reason to lose the log
		}
		take(chunk[:n])
		if err != nil && len(buf) > 0 {
			add(false)
		}
		flush()
		if err != nil {
			return failed
		}
	}
}

// Append appends whole lines, without newlines, as of now.
func (w *Writer) Append(entries []driver.LogEntry) error {
	var b batch
	for _, e := range entries {
		b.add(e.Stream, e.Line, true)
	}
	return w.write(&b)
}

// Close closes the file.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.file.Close()
}

// Read yields the entries of the log in a directory. When following it goes on until ended
// reports that nothing more will be written, and everything was read; or until ctx is done, or
// o.Until has passed.
func Read(ctx context.Context, dir string, o driver.LogOptions, ended func() bool, yield func(driver.LogEntry) error) error {
	return ReadStreams(ctx, dir, o, nil, ended, yield)
}

// ReadStreams is Read of those streams only that pick chooses; nil chooses all.
func ReadStreams(ctx context.Context, dir string, options driver.LogOptions, pick func(stream string) bool, ended func() bool, yield func(driver.LogEntry) error) error {
	o := choice{options, pick}
	base := filepath.Join(dir, fileName)
	files, err := openAll(ctx, base, o.Follow, ended)
	if err != nil || len(files) == 0 {
		return err
	}
	live := files[len(files)-1]
	defer func() { live.Close() }()
	defer closeAll(files[:len(files)-1])
	var offset int64
	if o.Tail >= 0 {
		offset, err = readTail(files, o, yield)
	} else {
		for _, f := range files {
			if offset, err = readAll(f, 0, o, yield); err != nil {
				return err
			}
		}
	}
	if err != nil || !o.Follow {
		return err
	}
	for {
		over := ended() // asked before reading, so that what came last is read
		over = over || !o.Until.IsZero() && time.Now().After(o.Until)
		if offset, err = readAll(live, offset, o, yield); err != nil {
			return err
		}
		if next := successor(base, live); next != nil {
			// Rotated: what was written to the old file meanwhile comes first.
			_, err := readAll(live, offset, o, yield)
			live.Close()
			live, offset = next, 0
			if err != nil {
				return err
			}
			continue
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

const followPoll = 50 * time.Millisecond

// rotated is the name of the nth file, from the newest.
func rotated(base string, n int) string {
	if n == 0 {
		return base
	}
	return base + "." + strconv.Itoa(n)
}

// choice says which entries are wanted.
type choice struct {
	driver.LogOptions
	pick func(stream string) bool
}

func (c *choice) has(e *driver.LogEntry) bool {
	return (c.Since.IsZero() || !e.Time.Before(c.Since)) && (c.Until.IsZero() || !e.Time.After(c.Until)) && (c.pick == nil || c.pick(e.Stream))
}

// openAll opens the files that there are, the oldest first. It begins with the newest, so that a
// rotation in between hides none: at worst, a file is found again under its next name. A follower
// waits for a log that was not begun yet.
func openAll(ctx context.Context, base string, follow bool, ended func() bool) ([]*os.File, error) {
	var files []*os.File
	for n := 0; n < model.MaxLogFiles; n++ {
		f, err := os.Open(rotated(base, n))
		switch {
		case err == nil && len(files) > 0 && sameFile(f, files[len(files)-1]):
			f.Close()
		case err == nil:
			files = append(files, f)
		case !errors.Is(err, os.ErrNotExist):
			closeAll(files)
			return nil, fmt.Errorf("read log: %w", err)
		case n == 0 && follow && !ended():
			select {
			case <-ctx.Done():
				return nil, nil
			case <-time.After(followPoll):
				n = -1 // from the beginning
			}
		}
	}
	slices.Reverse(files)
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func sameFile(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// successor opens the file that was begun after f, nil when f is the newest.
func successor(base string, f *os.File) *os.File {
	var newer *os.File
	for n := range model.MaxLogFiles {
		c, err := os.Open(rotated(base, n))
		if err != nil {
			continue // just being rotated
		}
		if sameFile(c, f) {
			c.Close()
			return newer
		}
		if newer != nil {
			newer.Close()
		}
		newer = c
	}
	return newer // f itself is no more: go on with the oldest
}

// readTail yields the last entries of all files and returns where the newest ends.
func readTail(files []*os.File, o choice, yield func(driver.LogEntry) error) (offset int64, err error) {
	var ring []driver.LogEntry
	for _, f := range files {
		offset, err = readAll(f, 0, o, func(e driver.LogEntry) error {
			ring = append(ring, e)
			if len(ring) > o.Tail {
				ring = ring[1:]
			}
			return nil
		})
		if err != nil {
			return offset, err
		}
	}
	for _, e := range ring {
		if err := yield(e); err != nil {
			return offset, err
		}
	}
	return offset, nil
}

// readAll yields the whole entries from offset on and returns where it stopped.
func readAll(f *os.File, offset int64, o choice, yield func(driver.LogEntry) error) (int64, error) {
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
		if !ok || !o.has(&e) {
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
