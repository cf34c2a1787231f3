package files

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/userns"
)

// Archives have the users that a container knows, also where the node has others in their place.
func TestArchivesOfFilesOfOtherUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("files can be given to others by root alone")
	}
	u := &userns.Users{First: 0x70000000}
	dir := t.TempDir()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.Users = u
	if err := os.Chown(dir, int(u.First), int(u.First)); err != nil {
		t.Fatal(err)
	}
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	for _, h := range []*tar.Header{{Name: "mine", Uid: 7, Gid: 8, Mode: 0o644}, {Name: "top", Uid: userns.Size - 1, Mode: 0o600}} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Unpack(t.Context(), &in, "/", UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "mine"), &st); err != nil || st.Uid != u.First+7 || st.Gid != u.First+8 {
		t.Errorf("on the node the file is of %d:%d: %v", st.Uid, st.Gid, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "alien"), nil, 0o644); err != nil { // of root of the node
		t.Fatal(err)
	}
	var tree, all bytes.Buffer
	if err := r.Pack(t.Context(), &tree, "/."); err != nil {
		t.Fatal(err)
	}
	if err := r.PackAll(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for what, out := range map[string]*bytes.Buffer{"tree": &tree, "all": &all} {
		got := map[string][2]int{}
		for tr := tar.NewReader(out); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got[path.Base(h.Name)] = [2]int{h.Uid, h.Gid}
		}
		for name, want := range map[string][2]int{"mine": {7, 8}, "top": {userns.Size - 1, 0}, "alien": {65534, 65534}} {
			if got[name] != want {
				t.Errorf("%s: %s is of %v, want %v", what, name, got[name], want)
			}
		}
	}
	in.Reset()
	w = tar.NewWriter(&in)
	if err := w.WriteHeader(&tar.Header{Name: "beyond", Uid: userns.Size}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := r.Unpack(t.Context(), &in, "/", UnpackOptions{}); err == nil {
		t.Error("a file of a user that there is not was unpacked")
	}
}
