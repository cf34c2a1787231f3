package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/test/apart"
)

// TestMain runs the tests in a mount namespace of their own.
func TestMain(m *testing.M) { apart.Main(m, syscall.CLONE_NEWNS) }

// open opens images in memory.
func open(t testing.TB, peers Peers) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return openAt(t, dir, peers)
}

func openAt(t testing.TB, dir string, peers Peers) *Store {
	t.Helper()
	s, err := Open(Config{Root: filepath.Join(dir, "root"), Mounts: filepath.Join(dir, "mounts"), Peers: peers, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		keys, err := s.Mounted(context.Background())
		if err != nil {
			return // closed by the test
		}
		for _, key := range keys {
			if err := s.Unmount(context.Background(), key); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func write(t testing.TB, path, content string) {
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

// pack makes an archive with the file /content, and returns it.
func pack(t testing.TB, name, content string) []byte {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "content"), content)
	var b bytes.Buffer
	if err := Pack(&b, PackOptions{Name: name, Dir: dir, Settings: Settings{Cmd: []string{"/content"}}}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func load(t *testing.T, s *Store, archive []byte) Info {
	t.Helper()
	list, err := s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{})
	if err != nil || len(list) != 1 {
		t.Fatalf("import gave %v, %v", list, err)
	}
	return list[0]
}

func mounted(t *testing.T, s *Store, key, digest string) string {
	t.Helper()
	root, err := s.Mount(t.Context(), key, digest, nil)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestFromFilesToARootFileSystem(t *testing.T) {
	s := open(t, nil)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "bin/app"), "program")
	write(t, filepath.Join(dir, "etc/conf"), "a: b")
	for _, err := range []error{
		os.Chmod(filepath.Join(dir, "bin/app"), os.ModeSetuid|0o755), os.Chown(filepath.Join(dir, "etc/conf"), 7, 8),
		os.Symlink("app", filepath.Join(dir, "bin/link")), os.Link(filepath.Join(dir, "bin/app"), filepath.Join(dir, "bin/same")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	added := filepath.Join(t.TempDir(), "tool")
	write(t, added, "tool")
	settings := Settings{
		Entrypoint: []string{"/bin/app"}, Cmd: []string{"--serve"}, Env: []string{"A=1"}, User: "7:8", WorkingDir: "/srv",
		Volumes: []string{"/data"}, ExposedPorts: []string{"80"}, StopSignal: "SIGQUIT", Labels: map[string]string{"k": "v"},
		Health: &model.Probe{Shell: "check me", Interval: 3 * time.Second, Timeout: time.Second, Retries: 2},
	}
	options := PackOptions{Name: "example.org/app:v1", Dir: dir, Add: []AddedFile{{Host: added, Path: "/usr/local/bin/tool", Mode: 0o755}}, Settings: settings}
	var archive, again bytes.Buffer
	if err := Pack(&archive, options); err != nil {
		t.Fatal(err)
	}
	if err := Pack(&again, options); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(archive.Bytes(), again.Bytes()) {
		t.Error("the same files gave two different archives")
	}
	info := load(t, s, archive.Bytes())
	settings.ExposedPorts = []string{"80/tcp"}
	if info.Name != "example.org/app:v1" || !strings.HasPrefix(info.Digest, "sha256:") || info.SizeBytes == 0 || fmt.Sprint(info.Config.Health) != fmt.Sprint(settings.Health) {
		t.Errorf("the image is %+v", info)
	}
	info.Config.Health, settings.Health = nil, nil
	if got, want := fmt.Sprint(info.Config), fmt.Sprint(settings); got != want {
		t.Errorf("it says %s, want %s", got, want)
	}
	for _, ref := range []string{"example.org/app:v1", info.Digest} {
		if got, err := s.Get(t.Context(), ref); err != nil || got.Digest != info.Digest {
			t.Errorf("get %s gave %+v, %v", ref, got, err)
		}
	}
	for _, digest := range []string{"", info.Digest} {
		if got, err := s.Ensure(t.Context(), "example.org/app:v1", digest, nil); err != nil || got.Digest != info.Digest {
			t.Errorf("ensure by %q gave %+v, %v", digest, got, err)
		}
	}
	root := mounted(t, s, "i1.app", info.Digest)
	wantFile(t, filepath.Join(root, "bin/app"), "program")
	wantFile(t, filepath.Join(root, "usr/local/bin/tool"), "tool")
	if st, err := os.Stat(filepath.Join(root, "bin/app")); err != nil || st.Mode() != os.ModeSetuid|0o755 || st.Sys().(*syscall.Stat_t).Nlink != 2 {
		t.Errorf("the program is %v, %v; want its mode and its second name", st, err)
	}
	if st, err := os.Stat(filepath.Join(root, "etc/conf")); err != nil || st.Sys().(*syscall.Stat_t).Uid != 7 || st.Sys().(*syscall.Stat_t).Gid != 8 {
		t.Errorf("the configuration is %+v, %v; want its owner", st, err)
	}
	if link, err := os.Readlink(filepath.Join(root, "bin/link")); err != nil || link != "app" {
		t.Errorf("the link leads to %q, %v", link, err)
	}

	// On top of it, another image.
	base := filepath.Join(t.TempDir(), "base.tar")
	write(t, base, archive.String())
	var upper bytes.Buffer
	if err := Pack(&upper, PackOptions{Name: "upper", Base: base, Add: []AddedFile{{Host: added, Path: "etc/conf"}}, Settings: Settings{Cmd: []string{"--more"}, Env: []string{"B=2"}}}); err != nil {
		t.Fatal(err)
	}
	second := load(t, s, upper.Bytes())
	if c := second.Config; !slices.Equal(c.Entrypoint, []string{"/bin/app"}) || !slices.Equal(c.Cmd, []string{"--more"}) || !slices.Equal(c.Env, []string{"A=1", "B=2"}) || c.User != "7:8" {
		t.Errorf("what was built on it says %+v", c)
	}
	over := mounted(t, s, "i2.app", second.Digest)
	wantFile(t, filepath.Join(over, "etc/conf"), "tool")
	wantFile(t, filepath.Join(over, "bin/app"), "program")
	list, err := s.List(t.Context())
	if err != nil || len(list) != 2 || list[0].Name != "docker.io/library/upper:latest" {
		t.Errorf("the list is %+v, %v", list, err)
	}
}

func TestArchivesOfAllKinds(t *testing.T) {
	s := open(t, nil)
	archive := pack(t, "one", "1")
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(archive); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Import(t.Context(), &zipped, ImportOptions{Name: "renamed:v2"}); err != nil || len(list) != 1 || list[0].Name != "docker.io/library/renamed:v2" {
		t.Errorf("a compressed archive gave %+v, %v", list, err)
	}
	for name, r := range map[string]io.Reader{
		"nothing": strings.NewReader(""), "no archive": strings.NewReader(strings.Repeat("x", 5000)), "half of one": bytes.NewReader(archive[:len(archive)/2]),
	} {
		if list, err := s.Import(t.Context(), r, ImportOptions{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s gave %+v, %v; want that it is invalid", name, list, err)
		}
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{Name: "not//a name"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a name that is none gave %v", err)
	}
	if err := Pack(io.Discard, PackOptions{Name: "not//a name"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("packing under a name that is none gave %v", err)
	}
}

// entry is one of a layer made by hand.
type entry struct {
	kind             byte
	name, link, text string
}

// layered makes an archive whose only layer holds the entries as they are.
func layered(t testing.TB, tag string, entries ...entry) []byte {
	t.Helper()
	return archiveOf(t, tag, layer(t, entries...))
}

func layer(t testing.TB, entries ...entry) v1.Image {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, e := range entries {
		h := &tar.Header{Typeflag: e.kind, Name: e.name, Linkname: e.link, Mode: 0o755, Size: int64(len(e.text))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// archiveOf makes an archive of an image; changes may alter what it claims to be.
func archiveOf(t testing.TB, tag string, img v1.Image, changes ...func(*v1.ConfigFile)) []byte {
	t.Helper()
	ref, err := name.NewTag(tag)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	for _, change := range changes {
		change(cf)
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(ref, img, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What a layer says about places outside of it is taken to be inside.
func TestLayersStayInTheirRoot(t *testing.T) {
	s := open(t, nil)
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "secret")
	up := strings.Repeat("../", 30)
	for name, c := range map[string]struct {
		entries []entry
		path    string // where the evil ends up in the root, "" when the archive is refused
	}{
		"dots":              {[]entry{{tar.TypeReg, up + outside[1:] + "/evil", "", "evil"}}, outside + "/evil"},
		"absolute":          {[]entry{{tar.TypeReg, outside + "/evil", "", "evil"}}, outside + "/evil"},
		"through a link":    {[]entry{{tar.TypeSymlink, "link", outside, ""}, {tar.TypeReg, "link/evil", "", "evil"}}, outside + "/evil"},
		"through dots":      {[]entry{{tar.TypeDir, "a/", "", ""}, {tar.TypeSymlink, "a/link", up + outside[1:], ""}, {tar.TypeReg, "a/link/evil", "", "evil"}}, outside + "/evil"},
		"over a link":       {[]entry{{tar.TypeSymlink, "evil", outside + "/secret", ""}, {tar.TypeReg, "evil", "", "evil"}}, "/evil"},
		"hard link":         {[]entry{{tar.TypeLink, "evil", outside + "/secret", ""}}, ""},
		"hard link by dots": {[]entry{{tar.TypeLink, "evil", up + outside[1:] + "/secret", ""}}, ""},
		"removal":           {[]entry{{tar.TypeReg, up + outside[1:] + "/.wh.secret", "", ""}, {tar.TypeReg, "evil", "", "evil"}}, "/evil"},
	} {
		t.Run(name, func(t *testing.T) {
			tag := "evil:" + strings.ReplaceAll(name, " ", "-")
			list, err := s.Import(t.Context(), bytes.NewReader(layered(t, tag, c.entries...)), ImportOptions{})
			if (err != nil) != (c.path == "") {
				t.Fatalf("import gave %v", err)
			}
			if c.path != "" {
				root := mounted(t, s, "evil", list[0].Digest)
				wantFile(t, filepath.Join(root, c.path), "evil")
				if err := s.Unmount(t.Context(), "evil"); err != nil {
					t.Fatal(err)
				}
			}
			if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
				t.Fatalf("outside there are now %v, %v", entries, err)
			}
			wantFile(t, filepath.Join(outside, "secret"), "secret")
			if st, err := os.Stat(filepath.Join(outside, "secret")); err != nil || st.Sys().(*syscall.Stat_t).Nlink != 1 {
				t.Errorf("the file outside was linked to: %v, %v", st, err)
			}
		})
	}
}

func TestALayerThatIsNotWhatItClaimsIsRefused(t *testing.T) {
	s := open(t, nil)
	img := layer(t, entry{tar.TypeReg, "content", "", "as promised"})
	for name, lie := range map[string]func(*v1.ConfigFile){
		"another": func(c *v1.ConfigFile) { c.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64) },
		"none":    func(c *v1.ConfigFile) { c.RootFS.DiffIDs = nil },
	} {
		if list, err := s.Import(t.Context(), bytes.NewReader(archiveOf(t, "app", img, lie)), ImportOptions{}); err == nil {
			t.Errorf("a layer that claims to be %s became %+v", name, list)
		}
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("images are %v, %v; want none", list, err)
	}
	info := load(t, s, archiveOf(t, "app", img)) // nothing of the others is in its way
	wantFile(t, filepath.Join(mounted(t, s, "i1.app", info.Digest), "content"), "as promised")
}

func TestMountsAreKeptAndTakenOver(t *testing.T) {
	s := open(t, nil)
	info := load(t, s, pack(t, "app", "original"))
	root := mounted(t, s, "i1.app", info.Digest)
	other := mounted(t, s, "i2.app", info.Digest)
	write(t, filepath.Join(root, "content"), "changed")
	if again := mounted(t, s, "i1.app", info.Digest); again != root {
		t.Errorf("mounted again at %s, want %s", again, root)
	}
	wantFile(t, filepath.Join(root, "content"), "changed")
	wantFile(t, filepath.Join(other, "content"), "original")

	// A new agent finds what is mounted, and after the host was started anew what was written.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, filepath.Dir(s.Root), nil)
	if keys, err := s.Mounted(t.Context()); err != nil || !slices.Equal(keys, []string{"i1.app", "i2.app"}) {
		t.Errorf("mounted are %v, %v", keys, err)
	}
	mounted(t, s, "i1.app", info.Digest)
	wantFile(t, filepath.Join(root, "content"), "changed")
	if err := unix.Unmount(root, 0); err != nil {
		t.Fatal(err)
	}
	mounted(t, s, "i1.app", info.Digest)
	wantFile(t, filepath.Join(root, "content"), "changed")

	for range 2 {
		if err := s.Unmount(t.Context(), "i1.app"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point is left: %v", err)
	}
	if keys, err := s.Mounted(t.Context()); err != nil || !slices.Equal(keys, []string{"i2.app"}) {
		t.Errorf("mounted are %v, %v", keys, err)
	}
	mounted(t, s, "i1.app", info.Digest)
	wantFile(t, filepath.Join(root, "content"), "original")
	for _, digest := range []string{"nonsense", "sha256:" + strings.Repeat("0", 64)} {
		if _, err := s.Mount(t.Context(), "i3.app", digest, nil); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.NotFound) {
			t.Errorf("mounting %s gave %v", digest, err)
		}
	}
}

func (s *Store) holds(t *testing.T, digest string) bool {
	t.Helper()
	body, _, err := s.Blob(t.Context(), digest)
	if fault.Is(err, fault.NotFound) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	body.Close()
	return true
}

func TestRemoveKeepsWhatRuns(t *testing.T) {
	s := open(t, nil)
	info := load(t, s, pack(t, "app", "original"))
	unused := load(t, s, pack(t, "unused", "other"))
	root := mounted(t, s, "i1.app", info.Digest)
	for _, name := range []string{"app", "unused"} {
		if err := s.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(t.Context(), "app"); !fault.Is(err, fault.NotFound) {
		t.Errorf("removed again gave %v", err)
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("images are %v, %v", list, err)
	}
	if s.holds(t, unused.Digest) {
		t.Error("what nobody uses is kept")
	}
	wantFile(t, filepath.Join(root, "content"), "original")
	// A new agent wants to take it over, without anybody to fetch it from.
	if got, err := s.Ensure(t.Context(), "app", info.Digest, nil); err != nil || got.Digest != info.Digest || len(got.Config.Cmd) != 1 {
		t.Errorf("what runs cannot be had any more: %+v, %v", got, err)
	}
	if _, err := s.Get(t.Context(), "app"); !fault.Is(err, fault.NotFound) {
		t.Errorf("its name gives %v", err)
	}
	if err := s.Unmount(t.Context(), "i1.app"); err != nil {
		t.Fatal(err)
	}
	if s.holds(t, info.Digest) {
		t.Error("what ran is kept after its end, though its image was removed")
	}
	var left []string
	if err := filepath.WalkDir(s.Root, func(path string, e os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "/content") && e.Type().IsRegular() {
			left = append(left, path)
		}
		return err
	}); err != nil || len(left) != 0 {
		t.Errorf("files of layers are left: %v, %v", left, err)
	}
}

// TestTrim removes what was not used for longest, and neither what runs nor what is to be kept.
func TestTrim(t *testing.T) {
	s := open(t, nil)
	var infos []Info
	for _, n := range []string{"runs", "old", "kept", "new"} {
		infos = append(infos, load(t, s, pack(t, n, strings.Repeat(n, 4096))))
	}
	root := mounted(t, s, "i1.app", infos[0].Digest)
	keep := func(name, _ string) bool { return strings.Contains(name, "kept") }
	all, err := s.Size(t.Context())
	if err != nil || all < 4*4096 {
		t.Fatalf("all of it takes %d bytes, %v", all, err)
	}
	if gone, err := s.Trim(t.Context(), all, keep); err != nil || len(gone) != 0 {
		t.Errorf("within the limit %v went, %v", gone, err)
	}
	if gone, err := s.Trim(t.Context(), all-1, keep); err != nil || !slices.Equal(gone, []string{"docker.io/library/old:latest"}) {
		t.Errorf("just beyond the limit %v went, %v", gone, err)
	}
	if s.holds(t, infos[1].Digest) {
		t.Error("what went is still there")
	}
	if gone, err := s.Trim(t.Context(), 0, keep); err != nil || !slices.Equal(gone, []string{"docker.io/library/new:latest"}) {
		t.Errorf("far beyond the limit %v went, %v", gone, err)
	}
	if _, err := s.Get(t.Context(), "kept"); err != nil {
		t.Error(err)
	}
	wantFile(t, filepath.Join(root, "content"), strings.Repeat("runs", 4096))
}

// shelf serves the blobs of another store.
type shelf struct {
	from *Store
	// change alters what is served; nil leaves it.
	change func(digest string, data []byte) []byte
	asked  atomic.Int32
	hold   chan struct{} // when it is there, nothing is served before it is closed
	held   chan struct{} // gets a value when somebody waits
}

func (p *shelf) FetchBlob(ctx context.Context, _, digest string) (io.ReadCloser, int64, error) {
	p.asked.Add(1)
	if p.hold != nil {
		select {
		case p.held <- struct{}{}:
		default:
		}
		select {
		case <-p.hold:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	body, size, err := p.from.Blob(ctx, digest)
	if err != nil || p.change == nil {
		return body, size, err
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	data = p.change(digest, data)
	return io.NopCloser(bytes.NewReader(data)), int64(len(data)), err
}

func TestImagesComeFromOtherNodes(t *testing.T) {
	peers := &shelf{from: open(t, nil)}
	info := load(t, peers.from, pack(t, "app", "from afar"))
	s := open(t, peers)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if got, err := s.Ensure(t.Context(), "app", info.Digest, func(Progress) {}); err != nil || got.Digest != info.Digest {
				t.Errorf("ensure gave %+v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if n := peers.asked.Load(); n != 3 {
		t.Errorf("%d blobs were asked for, want manifest, configuration and layer once each", n)
	}
	wantFile(t, filepath.Join(mounted(t, s, "i1.app", info.Digest), "content"), "from afar")
	if got, err := s.Get(t.Context(), "app"); err != nil || got.Digest != info.Digest {
		t.Errorf("its name gives %+v, %v", got, err)
	}
	if _, err := s.Ensure(t.Context(), "app", "nonsense", nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("a digest that is none gave %v", err)
	}
}

func TestWhatDoesNotFitItsDigestIsRefused(t *testing.T) {
	from := open(t, nil)
	info := load(t, from, pack(t, "app", "from afar"))
	var digests []string
	var mu sync.Mutex
	all := &shelf{from: from, change: func(digest string, data []byte) []byte {
		mu.Lock()
		defer mu.Unlock()
		digests = append(digests, digest)
		return data
	}}
	if _, err := open(t, all).Ensure(t.Context(), "app", info.Digest, nil); err != nil || len(digests) != 3 {
		t.Fatalf("ensure gave %v after %d blobs, want three", err, len(digests))
	}
	forgeries := map[string]func([]byte) []byte{
		"other": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"short": func(b []byte) []byte { return b[:len(b)-1] },
		"long":  func(b []byte) []byte { return append(b, 'x') },
		"empty": func(b []byte) []byte { return nil },
	}
	for i, bad := range digests {
		for how, forge := range forgeries {
			t.Run(fmt.Sprint(i, " ", how), func(t *testing.T) {
				peers := &shelf{from: from, change: func(digest string, data []byte) []byte {
					if digest == bad {
						return forge(data)
					}
					return data
				}}
				s := open(t, peers)
				for range 2 {
					if got, err := s.Ensure(t.Context(), "app", info.Digest, nil); err == nil {
						t.Fatalf("the image is %+v", got)
					}
					if s.holds(t, bad) {
						t.Fatal("the forged blob was kept")
					}
				}
				peers.change = nil // nothing of the forged one is in the way of the right one
				if _, err := s.Ensure(t.Context(), "app", info.Digest, nil); err != nil {
					t.Fatal(err)
				}
				wantFile(t, filepath.Join(mounted(t, s, "i1.app", info.Digest), "content"), "from afar")
			})
		}
	}
}

func TestOneCallersPatienceIsNotTheOthers(t *testing.T) {
	peers := &shelf{from: open(t, nil), hold: make(chan struct{}), held: make(chan struct{}, 1)}
	info := load(t, peers.from, pack(t, "app", "x"))
	s := open(t, peers)
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := s.Ensure(ctx, "app", info.Digest, nil); first <- err }()
	<-peers.held
	go func() { _, err := s.Ensure(t.Context(), "app", info.Digest, nil); second <- err }()
	time.Sleep(10 * time.Millisecond) // so that it joins the first; if it does not, it waits by itself
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}
	close(peers.hold)
	if err := <-second; err != nil {
		t.Errorf("who waited on got %v", err)
	}
}

// Nobody waits for a download that somebody else began.
func TestRemovalDoesNotWaitForDownloads(t *testing.T) {
	peers := &shelf{from: open(t, nil), hold: make(chan struct{}), held: make(chan struct{}, 1)}
	slow := load(t, peers.from, pack(t, "slow", "slow"))
	s := open(t, peers)
	old := load(t, s, pack(t, "old", "old"))
	kept := load(t, s, pack(t, "kept", "kept"))
	done := make(chan error, 1)
	go func() { _, err := s.Ensure(t.Context(), "slow", slow.Digest, nil); done <- err }()
	<-peers.held
	if err := s.Remove(t.Context(), "old"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "old"); !fault.Is(err, fault.NotFound) {
		t.Errorf("what was removed gives %v", err)
	}
	wantFile(t, filepath.Join(mounted(t, s, "i1.app", kept.Digest), "content"), "kept")
	close(peers.hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for s.holds(t, old.Digest) {
		time.Sleep(time.Millisecond) // it goes when the download is over
	}
	wantFile(t, filepath.Join(mounted(t, s, "i2.app", slow.Digest), "content"), "slow")
}

// catalog is a registry with one repository, /team/app, whose content is in a store.
type catalog struct {
	*testing.T
	from *Store
	tags map[string]string // to digests
}

func (c *catalog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ref, ok := strings.CutPrefix(r.URL.Path, "/v2/team/app/manifests/")
	if !ok {
		ref = strings.TrimPrefix(r.URL.Path, "/v2/team/app/blobs/")
	}
	if d := c.tags[ref]; d != "" {
		ref = d
	}
	body, size, err := c.from.Blob(r.Context(), ref)
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if err != nil {
		c.Error(err)
	}
	kind := "application/octet-stream"
	if ok {
		if kind, err = kindOfBlob(data); err != nil {
			c.Error(err)
		}
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", ref)
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	if r.Method == http.MethodGet {
		if _, err := w.Write(data); err != nil {
			c.Log(err)
		}
	}
}

func TestRegistries(t *testing.T) {
	c := &catalog{T: t, from: open(t, nil), tags: map[string]string{}}
	srv := httptest.NewServer(c)
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	push := func(content string) (digest string) {
		c.tags["v1"] = load(t, c.from, pack(t, "app:"+content, content)).Digest
		return c.tags["v1"]
	}
	first := push("first")
	second := push("second") // the tag now means this one
	s := open(t, nil)
	info, err := s.Ensure(t.Context(), host+"/team/app:v1", first, nil)
	if err != nil || info.Digest != first {
		t.Fatalf("a pinned image came as %+v, %v; want %s", info, err, first)
	}
	wantFile(t, filepath.Join(mounted(t, s, "i1.app", first), "content"), "first")
	other := open(t, nil)
	if info, err := other.Ensure(t.Context(), host+"/team/app:v1", "", nil); err != nil || info.Digest != second {
		t.Errorf("a tag came as %+v, %v; want %s", info, err, second)
	}
	_, err = other.Ensure(t.Context(), host+"/team/missing:v1", "", nil)
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "/team/missing:v1 is on no node of this cluster and cannot be pulled") {
		t.Errorf("an image that is nowhere gave %v", err)
	}
	_, err = other.Ensure(t.Context(), host+"/team/app:v1", "sha256:"+strings.Repeat("0", 64), nil)
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("content that is nowhere gave %v", err)
	}
}

func TestNames(t *testing.T) {
	for ref, want := range map[string]string{
		"redis": "docker.io/library/redis:latest", "redis:7": "docker.io/library/redis:7", "team/app": "docker.io/team/app:latest",
		"example.org/a/b:c": "example.org/a/b:c", "localhost:5000/x": "localhost:5000/x:latest",
	} {
		if got, err := Normalize(ref); err != nil || got != want {
			t.Errorf("%s is %s, %v; want %s", ref, got, err, want)
		}
	}
	for _, bad := range []string{"", "UPPER", "a b", "x:"} {
		if got, err := Normalize(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q is %s, %v; want that it is no name", bad, got, err)
		}
	}
}
