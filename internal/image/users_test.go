package image

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/userns"
)

func ownerOf(t *testing.T, path string) int {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return int(st.Uid)
}

// What an image's files belong to, and what is written over them, is on disk as it is in the image; the root file
// system shows it with the users of the instance.
func TestARootFileSystemWithUsersOfItsOwn(t *testing.T) {
	s := open(t, nil)
	pool := userns.NewPool(filepath.Join(s.Root, "users"))
	if err := pool.Make("i1", filepath.Join(s.Root, "net")); err != nil {
		t.Fatal(err)
	}
	users, err := pool.Get("i1")
	if err != nil {
		t.Fatal(err)
	}
	info := load(t, s, pack(t, "app:1", "one"))
	root, err := s.Mount(t.Context(), "i1.app", info.Digest, users)
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(root, "content"), "one")
	if owner := ownerOf(t, filepath.Join(root, "content")); owner != int(users.First) {
		t.Errorf("the image's file is of user %d, want %d", owner, users.First)
	}
	made, changed := filepath.Join(root, "made"), filepath.Join(root, "content")
	err = users.As(func() error {
		if err := os.WriteFile(made, []byte("two"), 0o644); err != nil {
			return err
		}
		return os.Chown(changed, int(users.First)+9, int(users.First)+9)
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Changed(t.Context(), "i1.app", func(upper, base string) error {
		for path, want := range map[string]int{filepath.Join(upper, "made"): 0, filepath.Join(upper, "content"): 9, filepath.Join(base, "content"): 0} {
			if owner := ownerOf(t, path); owner != want {
				t.Errorf("on disk %s is of user %d, want %d", path, owner, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	upper, below, err := s.Written(t.Context(), "i1.app")
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(upper, "made"), "two")
	if d, err := s.Describe(t.Context(), info.Name, info.Digest); err != nil || len(d.Layers) != 1 || d.Layers[0].SizeBytes != below || below < int64(len("one")) {
		t.Errorf("what it was made of has %d bytes; its image's layers are %v, %v", below, d.Layers, err)
	}
	if _, _, err := s.Written(t.Context(), "nosuch"); !fault.Is(err, fault.NotFound) {
		t.Errorf("what was written to nothing: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(s.Mounts, ".layers-*")); err != nil || len(left) > 0 {
		t.Errorf("%v is left of mounting: %v", left, err)
	}
	if err := pool.Release("i1"); err != nil {
		t.Fatal(err)
	}
}
