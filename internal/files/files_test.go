package files

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
)

// tree makes a root with a file beside it that nobody may reach.
func tree(t *testing.T) (root *Root, dir string) {
	t.Helper()
	outside := t.TempDir()
	dir = filepath.Join(outside, "root")
	for _, d := range []string{"etc", "data/sub", "abs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"etc/hosts": "inner", "data/sub/a": "A", "../secret": "outer"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"data/up": "../../secret", "data/host": "/etc/hosts", "data/out": filepath.Join(outside, "secret"), "dirlink": "/data", "climb": "../../../..",
	} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func names(t *testing.T, archive []byte) []string {
	t.Helper()
	var out []string
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

func TestLinksStayWithin(t *testing.T) {
	root, dir := tree(t)
	for p, want := range map[string]fault.Kind{
		"/data/up/": fault.NotFound, "/data/out/": fault.NotFound, "/../secret": fault.NotFound, "/climb/secret": fault.NotFound, "/nosuch": fault.NotFound,
	} {
		if _, err := root.Stat(p); fault.KindOf(err) != want {
			t.Errorf("stat %s: %v, want %s", p, err, want)
		}
	}
	st, err := root.Stat("/data/host")
	if err != nil || st.LinkTarget != "/etc/hosts" || st.Mode&os.ModeSymlink == 0 {
		t.Errorf("a link: %+v, %v", st, err)
	}
	if st, err = root.Stat("/dirlink/sub/a"); err != nil || st.Size != 1 {
		t.Errorf("behind a link: %+v, %v", st, err)
	}
	// An archive cannot write through a link that leads out, nor with names that climb.
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: "evil", Typeflag: tar.TypeSymlink, Linkname: filepath.Dir(dir)},
		{Name: "evil/escaped", Typeflag: tar.TypeReg, Size: 1, Mode: 0o600},
		{Name: "../../escaped2", Typeflag: tar.TypeReg, Size: 1, Mode: 0o600},
	} {
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			tw.Write([]byte("x"))
		}
	}
	tw.Close()
	if err := root.Unpack(t.Context(), &b, "/", UnpackOptions{Owner: &Owner{os.Getuid(), os.Getgid()}}); err != nil && !fault.Is(err, fault.NotFound) {
		t.Errorf("unpack: %v", err)
	}
	for _, n := range []string{"escaped", "escaped2"} {
		if _, err := os.Stat(filepath.Join(filepath.Dir(dir), n)); err == nil {
			t.Errorf("%s was written outside of the root", n)
		}
	}
}

func TestPackAndUnpackAreInverse(t *testing.T) {
	root, dir := tree(t)
	if err := os.Link(filepath.Join(dir, "data/sub/a"), filepath.Join(dir, "data/sub/b")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "data/pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := root.Pack(t.Context(), &b, "/data"); err != nil {
		t.Fatal(err)
	}
	want := []string{"data/", "data/host", "data/out", "data/pipe", "data/sub/", "data/sub/a", "data/sub/b", "data/up"}
	if got := names(t, b.Bytes()); !slices.Equal(got, want) {
		t.Errorf("packed %v, want %v", got, want)
	}
	first := slices.Clone(b.Bytes())
	if err := root.Unpack(t.Context(), &b, "/abs", UnpackOptions{Owner: &Owner{os.Getuid(), os.Getgid()}}); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := root.Pack(t.Context(), &again, "/abs/data/"); err != nil {
		t.Fatal(err)
	}
	if got := names(t, again.Bytes()); !slices.Equal(got, names(t, first)) {
		t.Errorf("unpacked %v", got)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "abs/data/sub/b")); string(text) != "A" {
		t.Errorf("a file came as %q, %v", text, err)
	}
	var only bytes.Buffer
	if err := root.Pack(t.Context(), &only, "data/sub/."); err != nil || !slices.Contains(names(t, only.Bytes()), "./a") {
		t.Errorf("the content of a directory: %v, %v", names(t, only.Bytes()), err)
	}
}

func TestUnpackSaysWhatIsWrong(t *testing.T) {
	root, _ := tree(t)
	one := func(name string, kind byte) io.Reader {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		tw.WriteHeader(&tar.Header{Name: name, Typeflag: kind, Mode: 0o755})
		tw.Close()
		return &b
	}
	me := &Owner{os.Getuid(), os.Getgid()}
	for _, c := range []struct {
		in   io.Reader
		path string
		keep bool
		want string
	}{
		{one("x", tar.TypeReg), "/etc/hosts", false, "extraction point is not a directory"},
		{one("x", tar.TypeReg), "/nosuch", false, "no such file or directory"},
		{one("etc", tar.TypeReg), "/", true, "cannot overwrite directory"},
		{one("hosts", tar.TypeDir), "/etc", true, "cannot overwrite non-directory"},
		{one("data", tar.TypeReg), "/", false, "is a directory that is not empty"},
		{strings.NewReader(strings.Repeat("no archive", 100)), "/", false, "read the archive"},
	} {
		err := root.Unpack(context.Background(), c.in, c.path, UnpackOptions{KeepKind: c.keep, Owner: me})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	tw.WriteHeader(&tar.Header{Name: "a/../b", Typeflag: tar.TypeSymlink, Linkname: "../.."})
	tw.WriteHeader(&tar.Header{Name: "b/c", Typeflag: tar.TypeLink, Linkname: "b/../../x"})
	tw.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_ = root.Unpack(t.Context(), bytes.NewReader(data), "/", UnpackOptions{Owner: &Owner{os.Getuid(), os.Getgid()}})
		if list, _ := os.ReadDir(outside); len(list) != 1 {
			t.Fatalf("something was written outside: %v", list)
		}
	})
}
