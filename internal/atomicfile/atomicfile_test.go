package atomicfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/tutti-run/tutti/internal/atomicfile"
)

func TestWriteReplacesTheFileAndLeavesNothingBeside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path+atomicfile.Suffix, []byte("left by a crash, and longer than the rest"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"first", "2", "third", "4"} {
		write := atomicfile.Write
		if len(want) > 1 {
			write = atomicfile.WriteSynced
		}
		if err := write(path, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("the file holds %q, %v; want %q", got, err, want)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("%d files are there, %v; want one", len(entries), err)
	}
	if err := atomicfile.Write(filepath.Join(path, "below"), nil); err == nil {
		t.Error("a file below a file was written")
	}
}
