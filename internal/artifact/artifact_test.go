package artifact

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

type entry struct {
	name, content, link string
	kind                byte
	mode                int64
}

func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.mode == 0 {
			e.mode = 0o644
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Size: int64(len(e.content))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name}
		h.SetMode(fs.FileMode(e.mode))
		if e.kind == tar.TypeSymlink {
			h.SetMode(fs.ModeSymlink | 0o777)
		}
		f, err := w.CreateHeader(h)
		if err == nil {
			_, err = f.Write([]byte(e.content + e.link))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type world struct {
	*testing.T
	store   *Store
	sandbox string
	outside string // beside the sandbox; must stay empty
}

func open(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(filepath.Join(dir, "cache"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t, s, filepath.Join(dir, "box", "sandbox"), filepath.Join(dir, "outside")}
	for _, d := range []string{w.sandbox, w.outside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		left, err := os.ReadDir(w.outside)
		beside, berr := os.ReadDir(filepath.Dir(w.sandbox))
		if err != nil || berr != nil || len(left) > 0 || len(beside) != 1 {
			t.Errorf("outside of the sandbox there are %v and %v (%v, %v)", left, beside, err, berr)
		}
	})
	return w
}

// serve makes data available and counts how often it is fetched.
func (w *world) serve(data []byte) (url string, fetched *atomic.Int64) {
	fetched = new(atomic.Int64)
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fetched.Add(1)
		rw.Write(data)
	}))
	w.Cleanup(srv.Close)
	return srv.URL, fetched
}

func (w *world) place(a model.Artifact) error {
	return w.store.Place(context.Background(), w.sandbox, os.Getuid(), os.Getgid(), []model.Artifact{a})
}

func (w *world) want(name, content string, mode fs.FileMode) {
	w.Helper()
	path := filepath.Join(w.sandbox, name)
	data, err := os.ReadFile(path)
	if err != nil || string(data) != content {
		w.Errorf("%s holds %q, %v; want %q", name, data, err, content)
		return
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != mode {
		w.Errorf("%s has mode %v, %v; want %v", name, st.Mode(), err, mode)
	}
}

func TestFilesGoWhereTheyAreWanted(t *testing.T) {
	w := open(t)
	data := []byte("a program")
	url, fetched := w.serve(data)
	for _, c := range []struct {
		target string
		mode   uint32
		name   string
		got    fs.FileMode
	}{{"", 0, "server", 0o755}, {"bin/", 0, "bin/server", 0o755}, {"etc/a/conf", 0o600, "etc/a/conf", 0o600}} {
		if err := w.place(model.Artifact{Source: url + "/server?x=1", Digest: digest(data), Target: c.target, Mode: c.mode}); err != nil {
			t.Fatal(err)
		}
		w.want(c.name, "a program", c.got)
	}
	if n := fetched.Load(); n != 1 {
		t.Errorf("it was fetched %d times, want once", n)
	}
	file := filepath.Join(t.TempDir(), "local")
	if err := os.WriteFile(file, []byte("here"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.place(model.Artifact{Source: "file://" + file, Digest: digest([]byte("here"))}); err != nil {
		t.Fatal(err)
	}
	w.want("local", "here", 0o755)
}

func TestArchivesAreUnpacked(t *testing.T) {
	plain := tarOf(t, entry{name: "bin/", kind: tar.TypeDir, mode: 0o755}, entry{name: "bin/server", content: "run", kind: tar.TypeReg, mode: 0o4755},
		entry{name: "./deep/er/x", content: "y", kind: tar.TypeReg}, entry{name: "current", link: "bin/server", kind: tar.TypeSymlink},
		entry{name: "other", link: "bin/server", kind: tar.TypeLink})
	var gz, zst bytes.Buffer
	g := gzip.NewWriter(&gz)
	if _, err := g.Write(plain); err != nil || g.Close() != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(plain); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	zipped := zipOf(t, entry{name: "bin/server", content: "run", mode: 0o755}, entry{name: "deep/er/x", content: "y", mode: 0o644},
		entry{name: "current", link: "bin/server", kind: tar.TypeSymlink}, entry{name: "other", content: "run", mode: 0o755})
	for name, c := range map[string]struct {
		data []byte
		as   string
	}{
		"a.tar": {plain, ""}, "a.tar.gz": {gz.Bytes(), ""}, "a.TGZ": {gz.Bytes(), ""}, "a.tar.zst": {zst.Bytes(), ""}, "a.zip": {zipped, ""}, "download": {plain, model.ArtifactTar},
	} {
		w := open(t)
		url, _ := w.serve(c.data)
		for range 2 { // again, as after a failure
			if err := w.place(model.Artifact{Source: url + "/" + name, Digest: digest(c.data), As: c.as, Target: "app"}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		w.want("app/bin/server", "run", 0o755)
		w.want("app/current", "run", 0o755)
		w.want("app/other", "run", 0o755)
		w.want("app/deep/er/x", "y", 0o644)
	}
}

func TestNothingLeadsOutOfTheSandbox(t *testing.T) {
	dir := func(name string) entry { return entry{name: name, kind: tar.TypeDir, mode: 0o755} }
	file := func(name string) entry { return entry{name: name, content: "x", kind: tar.TypeReg} }
	link := func(name, to string) entry { return entry{name: name, link: to, kind: tar.TypeSymlink} }
	for name, entries := range map[string][]entry{
		"parent":                {file("../evil")},
		"parent in the middle":  {dir("a"), file("a/../../evil")},
		"absolute":              {file("/evil")},
		"link to parent":        {link("up", "..")},
		"link deep to parent":   {dir("a"), link("a/up", "../..")},
		"absolute link":         {link("root", "/etc")},
		"hard link out":         {entry{name: "h", link: "../../secret", kind: tar.TypeLink}},
		"hard link to link":     {link("l", "x"), entry{name: "h", link: "l", kind: tar.TypeLink}},
		"device":                {entry{name: "d", kind: tar.TypeChar}},
		"pipe":                  {entry{name: "p", kind: tar.TypeFifo}},
		"file over a directory": {dir("d"), file("d/x"), file("d")},
	} {
		w := open(t)
		data := tarOf(t, entries...)
		url, _ := w.serve(data)
		if err := w.place(model.Artifact{Source: url + "/a.tar", Digest: digest(data)}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: error is %v, want that it is refused", name, err)
		}
		zipped := zipOf(t, entries...)
		if strings.Contains(name, "hard") || strings.Contains(name, "device") || strings.Contains(name, "pipe") || strings.Contains(name, "over") {
			continue // there are none in zip archives, or they mean something else
		}
		url, _ = w.serve(zipped)
		if err := w.place(model.Artifact{Source: url + "/a.zip", Digest: digest(zipped)}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s, zipped: error is %v, want that it is refused", name, err)
		}
	}
	// A link that was there before, such as one that the task made, leads nowhere either.
	w := open(t)
	if err := os.Symlink(w.outside, filepath.Join(w.sandbox, "out")); err != nil {
		t.Fatal(err)
	}
	data := tarOf(t, file("out/evil"))
	url, _ := w.serve(data)
	if err := w.place(model.Artifact{Source: url + "/a.tar", Digest: digest(data)}); err == nil {
		t.Error("a file was written through a link that leads out")
	}
	if err := w.place(model.Artifact{Source: url + "/f", Digest: digest(data), Target: "out/f"}); err == nil {
		t.Error("a file was written through a link that leads out")
	}
	for _, target := range []string{"../x", "/../x", "a/../../x"} {
		if err := w.place(model.Artifact{Source: url + "/f", Digest: digest(data), Target: target}); !fault.Is(err, fault.Invalid) {
			t.Errorf("target %s gave %v", target, err)
		}
	}
	// A link within is replaced, not written through.
	w = open(t)
	data = tarOf(t, entry{name: "real", content: "kept", kind: tar.TypeReg}, link("l", "real"), file("l"))
	url, _ = w.serve(data)
	if err := w.place(model.Artifact{Source: url + "/a.tar", Digest: digest(data)}); err != nil {
		t.Fatal(err)
	}
	w.want("real", "kept", 0o644)
	w.want("l", "x", 0o644)
}

func TestWhatIsNotAsAskedForIsRefused(t *testing.T) {
	w := open(t)
	url, fetched := w.serve([]byte("tampered with"))
	missing := httptest.NewServer(http.NotFoundHandler())
	defer missing.Close()
	good := digest([]byte("x"))
	for _, c := range []struct {
		a    model.Artifact
		kind fault.Kind
		want string
	}{
		{model.Artifact{Source: url, Digest: good}, fault.Invalid, "not the one that was asked for"},
		{model.Artifact{Source: url, Digest: "sha256:abc"}, fault.Invalid, "64 hexadecimal digits"},
		{model.Artifact{Source: missing.URL + "/x", Digest: good}, fault.NotFound, "404"},
		{model.Artifact{Source: "ftp://host/x", Digest: good}, fault.Unsupported, "https:"},
		{model.Artifact{Source: "file:///nothing/here", Digest: good}, fault.NotFound, "no such file"},
		{model.Artifact{Source: "http://127.0.0.1:1/x", Digest: good}, fault.Unavailable, "connect"},
		{model.Artifact{Source: url + "/a.tar.gz", Digest: digest([]byte("tampered with"))}, fault.Invalid, "gzip"},
	} {
		if err := w.place(c.a); !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v gave %v, want %q in it", c.a, err, c.want)
		}
	}
	before := fetched.Load()
	if err := w.place(model.Artifact{Source: url, Digest: good}); err == nil || fetched.Load() != before+1 {
		t.Errorf("what was refused was kept: %v", err)
	}
	entries, err := os.ReadDir(w.store.dir)
	if err != nil || len(entries) != 1 { // the one that is no archive
		t.Errorf("the cache holds %v, %v", entries, err)
	}
}

// TestWhatHasNoDigestIsFetchedAnew holds that a source without a digest is taken as it is each time,
// unless it says that what was fetched once will do.
func TestWhatHasNoDigestIsFetchedAnew(t *testing.T) {
	answers := atomic.Int32{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "answer ", answers.Add(1)) }))
	defer srv.Close()
	w := open(t)
	for n, c := range []struct {
		a    model.Artifact
		want string
	}{
		{model.Artifact{Source: srv.URL + "/x"}, "answer 1"},
		{model.Artifact{Source: srv.URL + "/x"}, "answer 2"},
		{model.Artifact{Source: srv.URL + "/x", Cached: true}, "answer 3"},
		{model.Artifact{Source: srv.URL + "/x", Cached: true}, "answer 3"},
		{model.Artifact{Source: srv.URL + "/x"}, "answer 4"},
	} {
		if err := w.place(c.a); err != nil {
			t.Fatal(err)
		}
		if w.want("x", c.want, 0o755); t.Failed() {
			t.Fatalf("this was fetch %d", n)
		}
	}
}
