package tasklog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

func create(t *testing.T) (dir string, w *Writer) {
	t.Helper()
	dir = t.TempDir()
	w, err := Create(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return dir, w
}

func write(t *testing.T, w *Writer, text string) {
	t.Helper()
	if err := w.Copy("stdout", nil, strings.NewReader(text), nil); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir string, o driver.LogOptions) []string {
	t.Helper()
	var lines []string
	err := Read(t.Context(), dir, o, func() bool { return true }, func(e driver.LogEntry) error {
		lines = append(lines, string(e.Line))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// padding makes a numbered line long enough that a file holds about a thousand of them.
var padding = strings.Repeat(".", MaxFileBytes/1000)

func numbered(from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "%d %s\n", i, padding)
	}
	return b.String()
}

// numberOf returns the number of a line that numbered made.
func numberOf(t *testing.T, line string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(line, &n); err != nil {
		t.Fatalf("%.20q is no numbered line", line)
	}
	return n
}

func TestTheOldestFilesGive(t *testing.T) {
	dir, w := create(t)
	write(t, w, numbered(0, 5000))
	var total int64
	for n := range MaxFiles + 1 {
		st, err := os.Stat(rotated(filepath.Join(dir, fileName), n))
		if n == MaxFiles {
			if !errors.Is(err, os.ErrNotExist) {
				t.Errorf("file %d is kept: %v", n, err)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	if total > MaxFiles*MaxFileBytes {
		t.Errorf("%d bytes are kept, want %d at most", total, MaxFiles*MaxFileBytes)
	}
	lines := read(t, dir, driver.LogOptions{Tail: -1})
	first := numberOf(t, lines[0])
	if first == 0 || len(lines) != 5000-first {
		t.Fatalf("%d lines from %d on are kept, want all from there to the last", len(lines), first)
	}
	for i, l := range lines {
		if numberOf(t, l) != first+i {
			t.Fatalf("line %d follows line %d", numberOf(t, l), first+i-1)
		}
	}
	tail := read(t, dir, driver.LogOptions{Tail: 1500}) // over the border of two files
	if len(tail) != 1500 || numberOf(t, tail[0]) != 3500 || numberOf(t, tail[1499]) != 4999 {
		t.Fatalf("the last 1500 lines are %d", len(tail))
	}
}

func TestAPolicyBoundsWhatIsKept(t *testing.T) {
	for _, c := range []struct {
		policy model.LogPolicy
		files  int
	}{
		{model.LogPolicy{FileBytes: 1000, Files: 1}, 1}, {model.LogPolicy{FileBytes: 1000, Files: 5}, 5},
		{model.LogPolicy{FileBytes: 1000}, MaxFiles}, {model.LogPolicy{None: true}, 0},
	} {
		dir := t.TempDir()
		w, err := Create(dir, &c.policy)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 300 {
			write(t, w, fmt.Sprintf("%d %s\n", i, strings.Repeat(".", 50)))
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var total int64
		for _, f := range files {
			info, err := f.Info()
			if err != nil {
				t.Fatal(err)
			}
			total += info.Size()
		}
		if len(files) != max(c.files, 1) || total > int64(c.files)*1000 {
			t.Errorf("%+v keeps %d files with %d bytes", c.policy, len(files), total)
		}
		lines := read(t, dir, driver.LogOptions{Tail: -1})
		if c.files == 0 && len(lines) > 0 || c.files > 0 && (len(lines) == 0 || numberOf(t, lines[len(lines)-1]) != 299) {
			t.Errorf("%+v keeps the lines %.200q", c.policy, lines)
		}
	}
}

// A follower that is slower than the log sees every line that was kept, through several rotations
// between two looks.
func TestAFollowerMissesNothingThatIsKept(t *testing.T) {
	dir, w := create(t)
	write(t, w, numbered(0, 10))
	var over atomic.Bool
	next, seen := 0, 0
	err := Read(t.Context(), dir, driver.LogOptions{Follow: true, Tail: -1}, over.Load, func(e driver.LogEntry) error {
		if n := numberOf(t, string(e.Line)); n != next {
			t.Fatalf("line %d came, want %d", n, next)
		}
		if next++; next == 10 { // more than one whole file appears at once
			write(t, w, numbered(10, 2500))
			over.Store(true)
		}
		seen++
		return nil
	})
	if err != nil || seen != 2500 {
		t.Fatalf("%d lines were seen, %v; want 2500", seen, err)
	}
}

func TestTailIsFollowedFromWhereItEnded(t *testing.T) {
	dir, w := create(t)
	write(t, w, numbered(0, 20))
	var over atomic.Bool
	var got []int
	err := Read(t.Context(), dir, driver.LogOptions{Follow: true, Tail: 2}, over.Load, func(e driver.LogEntry) error {
		if got = append(got, numberOf(t, string(e.Line))); len(got) == 1 {
			write(t, w, numbered(20, 1500)) // rotates
			over.Store(true)
		}
		return nil
	})
	if err != nil || len(got) != 2+1480 || got[0] != 18 || got[2] != 20 || got[len(got)-1] != 1499 {
		t.Fatalf("%d lines came, %v", len(got), err)
	}
}

func TestAFollowerWaitsForTheLogToBegin(t *testing.T) {
	dir := t.TempDir()
	looks := 0
	var lines []string
	err := Read(t.Context(), dir, driver.LogOptions{Follow: true, Tail: -1}, func() bool {
		if looks++; looks == 2 {
			w, err := Create(dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			write(t, w, "late\n")
		}
		return looks > 2
	}, func(e driver.LogEntry) error { lines = append(lines, string(e.Line)); return nil })
	if err != nil || len(lines) != 1 || lines[0] != "late\n" {
		t.Fatalf("lines are %q, %v", lines, err)
	}
	if lines := read(t, t.TempDir(), driver.LogOptions{Tail: -1}); len(lines) != 0 {
		t.Fatalf("no log has the lines %q", lines)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	never := func() bool { return false }
	if err := Read(ctx, t.TempDir(), driver.LogOptions{Follow: true, Tail: -1}, never, nil); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsNoEntryIsLeftOut(t *testing.T) {
	dir, w := create(t)
	write(t, w, "one\n")
	f, err := os.OpenFile(filepath.Join(dir, fileName), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, "nonsense\n\n2026 stdout F x\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, w, "two\nthe last, cut sh")
	if got := strings.Join(read(t, dir, driver.LogOptions{Tail: -1}), "|"); got != "one\n|two\n|the last, cut sh" {
		t.Fatalf("lines are %q", got)
	}
}

func TestListenersGetBytesAsTheyComeAndMayFail(t *testing.T) {
	dir, w := create(t)
	var heard strings.Builder
	text := strings.Repeat("y", maxLine+5) + "\n"
	if err := w.Copy("stderr", nil, strings.NewReader(text), &heard); err != nil {
		t.Fatal(err)
	}
	if err := w.Copy("stderr", nil, strings.NewReader("kept\n"), broken{}); err != nil {
		t.Fatal(err)
	}
	if heard.String() != text {
		t.Errorf("a listener heard %d bytes, want %d", heard.Len(), len(text))
	}
	if lines := read(t, dir, driver.LogOptions{Tail: -1}); len(lines) != 3 || len(lines[0]) != maxLine || lines[1] != "yyyyy\n" || lines[2] != "kept\n" {
		t.Errorf("%d lines are kept", len(lines))
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("gone") }

// TestOneStreamOfMany is read as if there were no other, its last lines, too.
func TestOneStreamOfMany(t *testing.T) {
	dir, w := create(t)
	for n := range 10 {
		err := w.Append([]driver.LogEntry{{Stream: "a", Line: fmt.Appendf(nil, "a%d", n)}, {Stream: "b", Line: fmt.Appendf(nil, "b%d", n)}})
		if err != nil {
			t.Fatal(err)
		}
	}
	var got strings.Builder
	err := ReadStreams(t.Context(), dir, driver.LogOptions{Tail: 3}, func(s string) bool { return s == "b" }, func() bool { return true }, func(e driver.LogEntry) error {
		got.Write(e.Line)
		return nil
	})
	if err != nil || got.String() != "b7\nb8\nb9\n" {
		t.Errorf("read is %q, %v", got.String(), err)
	}
}
