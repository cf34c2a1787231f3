package files

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSize(t *testing.T) {
	root, dir := tree(t)
	links := 0
	for _, name := range []string{"data/up", "data/host", "data/out", "dirlink", "climb"} {
		to, err := os.Readlink(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		links += len(to)
	}
	want := int64(len("inner") + len("A") + links)
	if got, err := root.Size(t.Context()); err != nil || got != want {
		t.Errorf("%d bytes, %v; want %d, without what is beside the root", got, err, want)
	}
	if err := errors.Join(
		os.Link(filepath.Join(dir, "etc/hosts"), filepath.Join(dir, "data/sub/again")),
		os.Truncate(filepath.Join(dir, "data/sub/a"), 1<<30), // of which the disk has next to nothing
		unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	want += 1<<30 - 1
	if got, err := root.Size(t.Context()); err != nil || got != want {
		t.Errorf("%d bytes, %v; want %d: one name of two counts, and a file as long as it is", got, err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := root.Size(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("who has no more patience is told %v", err)
	}
}
