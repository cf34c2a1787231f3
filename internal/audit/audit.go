// Package audit keeps a server's audit log: a file of JSON lines to which entries are added and in
// which none is changed. The file is closed at a size, and only so many are kept.
//
// It is a file of each server and not part of the replicated state: so it costs no replication, also
// has what was refused or failed for want of a quorum, and is out of reach of who can change the state.
// Who reads it asks all servers. A server that is lost takes its part along.
package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/tutti-run/tutti/internal/core"
)

// Bounds of the log: it holds the latest 64 to 72 MiB.
const (
	maxFileBytes = 8 << 20
	keptFiles    = 9
)

// Log is a server's audit log. It is safe for concurrent use.
type Log struct {
	dir, server string
	maxBytes    int64
	log         *slog.Logger

	mu   sync.Mutex
	file *os.File
	size int64
}

// Open opens the log in a directory, for the server of that name.
func Open(dir, server string, log *slog.Logger) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	l := &Log{dir: dir, server: server, maxBytes: maxFileBytes, log: log}
	return l, l.open()
}

// path is that of the n-th file, 0 being the present one.
func (l *Log) path(n int) string {
	if n == 0 {
		return filepath.Join(l.dir, "audit.jsonl")
	}
	return filepath.Join(l.dir, fmt.Sprintf("audit.%d.jsonl", n))
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.path(0), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open the audit log: %w", err)
	}
	l.file, l.size = f, st.Size()
	return nil
}

// Record implements core.AuditLog: the entry is with the kernel when it returns. One that cannot be
// written goes to the server's own log.
func (l *Log) Record(e core.AuditEntry) {
	e.Server = l.server
	data, err := json.Marshal(e)
	if err == nil {
		err = l.add(append(data, '\n'))
	}
	if err != nil {
		l.log.Error("the audit log could not be written", "entry", string(data), "error", err)
	}
}

func (l *Log) add(line []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return errors.New("it is closed")
	}
	if l.size > 0 && l.size+int64(len(line)) > l.maxBytes {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(line)
	l.size += int64(n)
	return err
}

func (l *Log) rotate() error {
	for n := keptFiles - 1; n > 0; n-- {
		if err := os.Rename(l.path(n-1), l.path(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	old := l.file
	if err := l.open(); err != nil {
		return err
	}
	return old.Close()
}

// Read returns this server's entries that the query chooses, oldest first, at most the latest Limit.
func (l *Log) Read(q core.AuditQuery) ([]core.AuditEntry, error) {
	l.mu.Lock()
	var files []*os.File // opened under the lock, so that none is missed or read twice
	var err error
	for n := keptFiles - 1; n >= 0 && err == nil; n-- {
		var f *os.File
		if f, err = os.Open(l.path(n)); err == nil {
			files = append(files, f)
		} else if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	l.mu.Unlock()
	var out []core.AuditEntry
	for _, f := range files {
		if err == nil {
			out, err = read(f, q, out)
		}
		f.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	return out, nil
}

func read(f *os.File, q core.AuditQuery, out []core.AuditEntry) ([]core.AuditEntry, error) {
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var e core.AuditEntry
		if json.Unmarshal(in.Bytes(), &e) != nil {
			continue // cut short by a crash
		}
		if e.Time.Before(q.Since) || q.User != "" && e.User != q.User {
			continue
		}
		if out = append(out, e); q.Limit > 0 && len(out) > q.Limit {
			out = out[1:]
		}
	}
	return out, in.Err()
}

// Close ends the log.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.file
	l.file = nil
	return f.Close()
}
