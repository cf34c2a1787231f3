package secret

import (
	"archive/tar"
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestSealedOpensOnlyWithKeyAndContext(t *testing.T) {
	key, data := NewKey(), []byte("correct horse")
	sealed, err := Seal(key, data, []byte("id"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, data) {
		t.Fatal("the secret is readable in its sealed form")
	}
	if got, err := Open(key, sealed, []byte("id")); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("opened %q, %v", got, err)
	}
	if _, err := Open(key, sealed, []byte("other")); err == nil {
		t.Fatal("it opened in another context")
	}
	if _, err := Open(NewKey(), sealed, []byte("id")); err == nil {
		t.Fatal("it opened with another key")
	}
	for i := range sealed {
		broken := bytes.Clone(sealed)
		broken[i] ^= 1
		if _, err := Open(key, broken, []byte("id")); err == nil {
			t.Fatalf("it opened with byte %d changed", i)
		}
	}
}

func TestDigestDependsOnKeyAndContent(t *testing.T) {
	a, b := NewKey(), NewKey()
	first, again := Digest(a, []byte("x")), Digest(a, []byte("x"))
	if first != again || first == Digest(a, []byte("y")) || first == Digest(b, []byte("x")) {
		t.Fatal("equal content, and only that, has equal digests under one key")
	}
}

func TestFoldersAreReplacedAtOnce(t *testing.T) {
	archive := func(files map[string]string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range slices.Sorted(maps.Keys(files)) {
			data := files[name]
			if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o640, Uid: os.Getuid(), Gid: os.Getgid()}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(data)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	f := &Files{root: t.TempDir()}
	read := func(dir string) map[string]string {
		out := map[string]string{}
		for _, name := range []string{"one/a", "one/b", "one/sub/c", "two/a"} {
			if data, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				out[name] = string(data)
			}
		}
		return out
	}
	for _, files := range []map[string]string{
		{"one/a": "1", "one/b": "2", "two/a": "3"},
		{"one/a": "4", "one/sub/c": "5", "two/a": "3"},
		{"one/a": "4", "one/sub/c": "5", "two/a": "3"},
	} {
		dir, err := f.PutFolders("i1", "s1", archive(files))
		if err != nil {
			t.Fatal(err)
		}
		if got := read(dir); !maps.Equal(got, files) {
			t.Errorf("folders hold %v, want %v", got, files)
		}
		if _, err := os.Lstat(filepath.Join(dir, "one", "b")); (err == nil) != (files["one/b"] != "") {
			t.Errorf("one/b is there: %v, with %v", err == nil, files)
		}
		st, err := os.Stat(filepath.Join(dir, "one", "a"))
		if err != nil || st.Mode().Perm() != 0o640 {
			t.Errorf("the mode of one/a is %v, %v", st.Mode(), err)
		}
	}
}
