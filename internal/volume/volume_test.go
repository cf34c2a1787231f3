package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func open(t *testing.T) *Volumes {
	t.Helper()
	v, err := New(filepath.Join(t.TempDir(), "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func ensure(t *testing.T, v *Volumes, id string) string {
	t.Helper()
	path, err := v.Ensure(t.Context(), &model.Volume{Meta: model.Meta{ID: id, Name: id}})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v; want %q", path, got, err, want)
	}
}

func fillOf(t *testing.T, v *Volumes, path, rootfs, target string) {
	t.Helper()
	if err := v.Fill(t.Context(), path, rootfs, target, 0); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestEnsureIsIdempotentAndPicky(t *testing.T) {
	v := open(t)
	path := ensure(t, v, "v1")
	write(t, filepath.Join(path, "file"), "kept")
	if again := ensure(t, v, "v1"); again != path {
		t.Errorf("the volume is at %s, then at %s", path, again)
	}
	wantFile(t, filepath.Join(path, "file"), "kept")
	for _, bad := range []*model.Volume{
		{Meta: model.Meta{ID: "v2", Name: "v2"}, Driver: "nfs"},
		{Meta: model.Meta{ID: "v3", Name: "v3"}, Options: map[string]string{"size": "1"}},
		{Meta: model.Meta{ID: "v4", Name: "v4"}, Options: map[string]string{"type": "nofs", "device": "x"}},
	} {
		if _, err := v.Ensure(t.Context(), bad); bad.Options["size"] == "" && !fault.Is(err, fault.Unsupported) {
			t.Errorf("%+v gave %v, want that it is not supported", bad, err)
		}
	}
	for _, id := range []string{"", ".", "..", "a/b", "a\x00"} {
		if _, err := v.Ensure(t.Context(), &model.Volume{Meta: model.Meta{ID: id}}); !fault.Is(err, fault.Invalid) {
			t.Errorf("the ID %q gave %v", id, err)
		}
		if err := v.Remove(t.Context(), id); !fault.Is(err, fault.Invalid) {
			t.Errorf("removing %q gave %v", id, err)
		}
	}
}

func TestAVolumeIsFilledOnce(t *testing.T) {
	v, root := open(t), t.TempDir()
	write(t, filepath.Join(root, "data/a"), "from the image")
	path := ensure(t, v, "v1")
	fillOf(t, v, path, root, "/data")
	wantFile(t, filepath.Join(path, "a"), "from the image")
	write(t, filepath.Join(path, "a"), "changed")
	fillOf(t, v, path, root, "/data")
	wantFile(t, filepath.Join(path, "a"), "changed")
	if err := os.Remove(filepath.Join(path, "a")); err != nil {
		t.Fatal(err)
	}
	fillOf(t, v, path, root, "/data") // emptied by a task is not the same as never filled
	if exists(filepath.Join(path, "a")) {
		t.Error("what a task deleted came back")
	}
	used := ensure(t, v, "v2")
	write(t, filepath.Join(used, "own"), "x")
	fillOf(t, v, used, root, "/data")
	if exists(filepath.Join(used, "a")) {
		t.Error("a volume that was not empty was filled")
	}
	for _, target := range []string{"/nothing", "/data/a", "/data/a/b"} {
		empty := ensure(t, v, fmt.Sprintf("v%x", target))
		fillOf(t, v, empty, root, target)
		if entries, err := os.ReadDir(empty); err != nil || len(entries) != 0 {
			t.Errorf("%s gave %v, %v; want nothing", target, entries, err)
		}
	}
}

func TestFillingKeepsWhatFilesAre(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners need root")
	}
	v, root := open(t), t.TempDir()
	data := filepath.Join(root, "data")
	write(t, filepath.Join(data, "dir/deep/file"), "x")
	write(t, filepath.Join(data, "tool"), "x")
	for _, err := range []error{
		os.Symlink("/etc/passwd", filepath.Join(data, "link")),
		os.Lchown(filepath.Join(data, "link"), 5, 6),
		os.Chmod(filepath.Join(data, "tool"), os.ModeSetuid|0o751),
		os.Chown(filepath.Join(data, "dir/deep/file"), 7, 8),
		os.Chown(filepath.Join(data, "dir"), 9, 10),
		os.Chmod(filepath.Join(data, "dir"), os.ModeSticky|0o777),
		os.Chown(data, 11, 12),
		os.Chmod(data, 0o700),
		syscall.Mkfifo(filepath.Join(data, "pipe"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	path := ensure(t, v, "v1")
	fillOf(t, v, path, root, "/data")
	for name, want := range map[string]struct {
		mode     os.FileMode
		uid, gid uint32
	}{
		".": {os.ModeDir | 0o700, 11, 12}, "dir": {os.ModeDir | os.ModeSticky | 0o777, 9, 10}, "dir/deep/file": {0o644, 7, 8}, "link": {os.ModeSymlink | 0o777, 5, 6},
	} {
		st, err := os.Lstat(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		if sys := st.Sys().(*syscall.Stat_t); st.Mode() != want.mode || sys.Uid != want.uid || sys.Gid != want.gid {
			t.Errorf("%s is %v of %d:%d, want %+v", name, st.Mode(), sys.Uid, sys.Gid, want)
		}
	}
	if st, err := os.Stat(filepath.Join(path, "tool")); err != nil || st.Mode() != os.ModeSetuid|0o751 {
		t.Errorf("the tool is %v, %v", st, err)
	}
	if link, err := os.Readlink(filepath.Join(path, "link")); err != nil || link != "/etc/passwd" {
		t.Errorf("the link leads to %q, %v; want it as it was", link, err)
	}
	if exists(filepath.Join(path, "pipe")) {
		t.Error("a pipe was copied")
	}
}

// Images have links like /var/run → /run, which mean what they mean inside.
func TestTargetsAreResolvedInsideTheImage(t *testing.T) {
	v, root, outside := open(t), t.TempDir(), t.TempDir()
	write(t, filepath.Join(root, "run/app/file"), "inside")
	write(t, filepath.Join(outside, "file"), "outside")
	if err := os.MkdirAll(filepath.Join(root, "var"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{
		"var/run": "/run", "up": "../../../../../../../../../.." + outside, "away": outside,
	} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	path := ensure(t, v, "v1")
	fillOf(t, v, path, root, "/var/run/app")
	wantFile(t, filepath.Join(path, "file"), "inside")
	for _, target := range []string{"/up", "/away", "/../../.." + outside} {
		path := ensure(t, v, fmt.Sprintf("v%x", target))
		fillOf(t, v, path, root, target)
		if entries, err := os.ReadDir(path); err != nil || len(entries) != 0 {
			t.Errorf("%s gave %v, %v; want that it leads nowhere", target, entries, err)
		}
	}
}

func TestAFillThatWasCutShortIsFinished(t *testing.T) {
	v, root := open(t), t.TempDir()
	for i := range 5 {
		write(t, filepath.Join(root, "data", fmt.Sprint("dir", i), "file"), fmt.Sprint("content ", i))
	}
	if err := os.Symlink("dir0", filepath.Join(root, "data/link")); err != nil {
		t.Fatal(err)
	}
	path := ensure(t, v, "v1")
	// As a crash leaves it: some whole, some half, and the mark.
	write(t, filepath.Join(path, "dir0/file"), "content 0")
	write(t, filepath.Join(path, "dir1/file"), "cont")
	write(t, filepath.Join(path, "of a task that did not wait"), "x")
	if err := os.Symlink("dir0", filepath.Join(path, "link")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(filepath.Dir(path), fillingMark), "")
	fillOf(t, v, path, root, "/data")
	for i := range 5 {
		wantFile(t, filepath.Join(path, fmt.Sprint("dir", i), "file"), fmt.Sprint("content ", i))
	}
	wantFile(t, filepath.Join(path, "of a task that did not wait"), "x")
	write(t, filepath.Join(path, "dir0/file"), "changed")
	fillOf(t, v, path, root, "/data")
	wantFile(t, filepath.Join(path, "dir0/file"), "changed")

	// One that is given up leaves the mark, too.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	other := ensure(t, v, "v2")
	if err := v.Fill(ctx, other, root, "/data", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a fill that was given up gave %v", err)
	}
	fillOf(t, v, other, root, "/data")
	wantFile(t, filepath.Join(other, "dir4/file"), "content 4")
}

// Who shares a volume starts with the whole of it.
func TestSharersWaitForTheWhole(t *testing.T) {
	v, root := open(t), t.TempDir()
	const files = 200
	for i := range files {
		write(t, filepath.Join(root, "data", fmt.Sprint(i)), "x")
	}
	path := ensure(t, v, "v1")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := v.Fill(t.Context(), path, root, "/data", 0); err != nil {
				t.Error(err)
			}
			if entries, err := os.ReadDir(path); err != nil || len(entries) != files {
				t.Errorf("after its fill one saw %d files, %v; want %d", len(entries), err, files)
			}
		})
	}
	wg.Wait()
}

func TestRemoval(t *testing.T) {
	v := open(t)
	const one, other = "1aaaaaaaaaaaaaaaaaaaaaaa", "1aaaaaaaaaaaaaaaaaaaaaab"
	for _, id := range []string{one + "-app-0", one + "-app-1000", other + "-app-0", "named"} {
		write(t, filepath.Join(ensure(t, v, id), "file"), id)
	}
	if err := v.RemoveOf(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{one + "-app-0": false, one + "-app-1000": false, other + "-app-0": true, "named": true} {
		if exists(filepath.Join(v.root, id)) != want {
			t.Errorf("volume %s: kept is %v, want %v", id, !want, want)
		}
	}
	for range 2 {
		if err := v.Remove(t.Context(), "named"); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	path, root := ensure(t, v, "named"), t.TempDir()
	write(t, filepath.Join(root, "data/a"), "again")
	fillOf(t, v, path, root, "/data")
	wantFile(t, filepath.Join(path, "a"), "again")
}

// TestWhatIsMountedIsNotDeleted: options mount a directory of the node or memory, which Remove lets go of.
func TestWhatIsMountedIsNotDeleted(t *testing.T) {
	v, own := open(t), t.TempDir()
	write(t, filepath.Join(own, "file"), "precious")
	bound := &model.Volume{Meta: model.Meta{ID: "bound", Name: "bound"}, Options: map[string]string{"type": "none", "o": "bind,ro", "device": own}}
	inMemory := &model.Volume{Meta: model.Meta{ID: "mem", Name: "mem"}, Options: map[string]string{"type": "tmpfs", "o": "size=64k", "device": "tmpfs"}}
	for range 2 { // which finds that it is mounted
		path, err := v.Ensure(t.Context(), bound)
		if err != nil {
			t.Fatal(err)
		}
		wantFile(t, filepath.Join(path, "file"), "precious")
		if err := os.WriteFile(filepath.Join(path, "other"), nil, 0o600); err == nil {
			t.Error("what is mounted read-only was written to")
		}
	}
	path, err := v.Ensure(t.Context(), inMemory)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "big"), make([]byte, 128<<10), 0o600); err == nil {
		t.Error("more went into memory than was allowed")
	}
	for _, id := range []string{"bound", "mem"} {
		if err := v.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if exists(filepath.Join(v.root, id)) {
			t.Errorf("of %s something is left", id)
		}
	}
	wantFile(t, filepath.Join(own, "file"), "precious")
	missing := &model.Volume{Meta: model.Meta{ID: "missing", Name: "missing"}, Options: map[string]string{"o": "bind", "device": filepath.Join(own, "none")}}
	if _, err := v.Ensure(t.Context(), missing); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a device that is not there gave %v", err)
	}
}

// TestReplaceIsWholeOrNot: what a volume held stays when what is to replace it is not whole.
func TestReplaceIsWholeOrNot(t *testing.T) {
	v := open(t)
	vol := &model.Volume{Meta: model.Meta{ID: "v1", Name: "v1"}}
	path := ensure(t, v, "v1")
	write(t, filepath.Join(path, "old"), "old")
	broken := errors.New("broken off")
	err := v.Replace(t.Context(), vol, func(dir string) error {
		write(t, filepath.Join(dir, "new"), "half")
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("it gave %v", err)
	}
	wantFile(t, filepath.Join(path, "old"), "old")
	if exists(filepath.Join(path, "new")) {
		t.Error("half of it is there")
	}
	if err := v.Replace(t.Context(), vol, func(dir string) error { write(t, filepath.Join(dir, "new"), "whole"); return nil }); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(path, "new"), "whole")
	if exists(filepath.Join(path, "old")) {
		t.Error("what was replaced is still there")
	}
}
