package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/fault"
)

// shop is a registry over TLS, of an authority of its own, that lets in whoever has a token, which it gives to
// anna, and counts what is asked for.
type shop struct {
	*testing.T
	*httptest.Server
	inner http.Handler
	basic bool // in place of tokens

	mu    sync.Mutex
	asked map[string]int // paths
	cut   map[string]int // how often a blob still breaks off in its middle, by digest
	again []string       // ranges that were asked for
	blobs map[string][]byte
}

func newShop(t *testing.T) *shop {
	s := &shop{T: t, inner: registry.New(registry.Logger(log.New(io.Discard, "", 0))), asked: map[string]int{}, cut: map[string]int{}, blobs: map[string][]byte{}}
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, ok := r.BasicAuth()
	known := ok && user == "anna" && password == "open sesame"
	if r.URL.Path == "/token" {
		if !known {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "let " + r.URL.Query().Get("service")})
		return
	}
	if s.basic && !known {
		w.Header().Set("WWW-Authenticate", `Basic realm="shop"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if !s.basic && r.Header.Get("Authorization") != "Bearer let shop" {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="shop"`, s.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.mu.Lock()
	s.asked[r.URL.Path]++
	breaks := false
	if _, d, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && r.Method == http.MethodGet && s.cut[d] > 0 {
		s.cut[d]--
		breaks = true
	}
	if at := r.Header.Get("Range"); at != "" {
		s.again = append(s.again, at)
	}
	_, part, _ := strings.Cut(r.URL.Path, "/blobs/")
	content, ranged := s.blobs[part]
	s.mu.Unlock()
	if breaks {
		w = &broken{ResponseWriter: w, left: 1 << 20}
	}
	if ranged && r.Header.Get("Range") != "" { // which the other one understands in part
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		return
	}
	s.inner.ServeHTTP(w, r)
}

// broken ends the connection after so many bytes.
type broken struct {
	http.ResponseWriter
	left int
}

func (b *broken) Write(p []byte) (int, error) {
	if b.left < len(p) {
		_, _ = b.ResponseWriter.Write(p[:b.left])
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	b.left -= len(p)
	return b.ResponseWriter.Write(p)
}

func (s *shop) host() string { return strings.TrimPrefix(s.URL, "https://") }

func (s *shop) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func (s *shop) endpoint() Endpoint {
	return Endpoint{URL: s.URL, CA: s.ca(), Credentials: Credentials{User: "anna", Password: "open sesame"}}
}

// put keeps something in the registry's repository team/app, as its own handler takes it.
func (s *shop) put(method, path, kind string, body []byte) {
	s.Helper()
	r := httptest.NewRequest(method, "/v2/team/app"+path, bytes.NewReader(body))
	r.Header.Set("Content-Type", kind)
	w := httptest.NewRecorder()
	if s.inner.ServeHTTP(w, r); w.Code >= 300 {
		s.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
}

func (s *shop) blob(kind string, body []byte) ocispec.Descriptor {
	s.Helper()
	d := ocispec.Descriptor{MediaType: kind, Digest: digest.FromBytes(body), Size: int64(len(body))}
	s.put(http.MethodPost, "/blobs/uploads/?digest="+d.Digest.String(), "application/octet-stream", body)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[d.Digest.String()] = body
	return d
}

func (s *shop) manifest(tag, kind string, v any) ocispec.Descriptor {
	s.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		s.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: kind, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if tag == "" {
		tag = d.Digest.String()
	}
	s.put(http.MethodPut, "/manifests/"+tag, kind, body)
	return d
}

// image keeps an image of one file for an architecture, compressed as it says.
func (s *shop) image(tag, arch, compression string, content []byte) (top, layer ocispec.Descriptor) {
	s.Helper()
	var plain, packed bytes.Buffer
	tw := tar.NewWriter(&plain)
	if err := tw.WriteHeader(&tar.Header{Name: "content", Mode: 0o644, Size: int64(len(content))}); err != nil {
		s.Fatal(err)
	}
	if _, err := tw.Write(content); err != nil {
		s.Fatal(err)
	}
	tw.Close()
	var out io.WriteCloser = gzip.NewWriter(&packed)
	if compression == "zstd" {
		z, err := zstd.NewWriter(&packed)
		if err != nil {
			s.Fatal(err)
		}
		out = z
	}
	if _, err := out.Write(plain.Bytes()); err != nil {
		s.Fatal(err)
	}
	if err := out.Close(); err != nil {
		s.Fatal(err)
	}
	layer = s.blob("application/vnd.oci.image.layer.v1.tar+"+compression, packed.Bytes())
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{Architecture: arch, OS: "linux"}, Config: ocispec.ImageConfig{Cmd: []string{"/content"}},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain.Bytes())}},
	})
	if err != nil {
		s.Fatal(err)
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: s.blob(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{layer}}
	m.SchemaVersion = 2
	top = s.manifest(tag, m.MediaType, m)
	top.Platform = &ocispec.Platform{Architecture: arch, OS: "linux"}
	return top, layer
}

func reaching(t *testing.T, endpoints ...Endpoint) *Store {
	s := open(t, nil)
	s.Reach = func(context.Context, Wanted) ([]Endpoint, error) { return endpoints, nil }
	return s
}

func TestWhoAsksARegistry(t *testing.T) {
	for _, basic := range []bool{false, true} {
		s := newShop(t)
		s.basic = basic
		top, _ := s.image("v1", runtime.GOARCH, "gzip", []byte("for members"))
		name := s.host() + "/team/app:v1"
		member, wrong, stranger := s.endpoint(), s.endpoint(), s.endpoint()
		wrong.Password, stranger.Credentials = "guessed", Credentials{}
		if info, err := reaching(t, member).Pull(t.Context(), name, PullOptions{}); err != nil || info.Digest != top.Digest.String() || !info.Pulled {
			t.Errorf("a member got %+v, %v", info, err)
		}
		if _, err := reaching(t, stranger).Pull(t.Context(), name, PullOptions{As: member.Credentials}); err != nil {
			t.Errorf("who brings a login along got %v", err)
		}
		for what, e := range map[string]Endpoint{"a wrong password": wrong, "nobody": stranger} {
			_, err := reaching(t, e).Pull(t.Context(), name, PullOptions{})
			if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "asks for a login") {
				t.Errorf("%s got %v", what, err)
			}
			if err := Login(t.Context(), e); !fault.Is(err, fault.Forbidden) {
				t.Errorf("%s logged in: %v", what, err)
			}
		}
		if err := Login(t.Context(), member); err != nil {
			t.Errorf("a member did not log in: %v", err)
		}
		believed := member
		believed.CA = nil
		if _, err := reaching(t, believed).Pull(t.Context(), name, PullOptions{}); err == nil {
			t.Error("a registry of an unknown authority was believed")
		}
		if r, err := reaching(t, member).Resolve(t.Context(), name, Credentials{}); err != nil || r.Target.Digest != top.Digest {
			t.Errorf("the registry has %+v, %v", r, err)
		}
	}
}

// TestPullsGoOnWhereTheyBrokeOff: nothing that came is asked for again.
func TestPullsGoOnWhereTheyBrokeOff(t *testing.T) {
	s := newShop(t)
	content := make([]byte, 5<<20) // which does not compress
	src := rand.NewChaCha8([32]byte{1})
	_, _ = src.Read(content)
	_, layer := s.image("v1", runtime.GOARCH, "gzip", content)
	s.cut[layer.Digest.String()] = 2
	var mu sync.Mutex
	var last Progress
	info, err := reaching(t, s.endpoint()).Pull(t.Context(), s.host()+"/team/app:v1", PullOptions{Progress: func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		if p.Blob == layer.Digest.String() {
			last = p
		}
	}})
	if err != nil || info.Digest == "" {
		t.Fatalf("the pull gave %+v, %v", info, err)
	}
	if len(s.again) < 2 || strings.HasPrefix(s.again[len(s.again)-1], "bytes=0-") {
		t.Errorf("asked for again was %v", s.again)
	}
	if last.Bytes != layer.Size || last.Total != layer.Size {
		t.Errorf("the last that was told of the layer is %+v, it has %d bytes", last, layer.Size)
	}
}

func TestMirrors(t *testing.T) {
	origin, mirror := newShop(t), newShop(t)
	for _, s := range []*shop{origin, mirror} {
		s.image("v1", runtime.GOARCH, "gzip", []byte("the same"))
	}
	origin.image("v2", runtime.GOARCH, "gzip", []byte("only here"))
	m := mirror.endpoint()
	m.Mirror = true
	s := reaching(t, m, origin.endpoint())
	for tag, from := range map[string]*shop{"v1": mirror, "v2": origin} {
		if _, err := s.Pull(t.Context(), origin.host()+"/team/app:"+tag, PullOptions{}); err != nil {
			t.Fatalf("%s: %v", tag, err)
		}
		if from.asked["/v2/team/app/manifests/"+tag] == 0 {
			t.Errorf("%s did not come from where it is: %v", tag, from.asked)
		}
	}
	if n := origin.asked["/v2/team/app/manifests/v1"]; n > 0 {
		t.Errorf("the registry was asked %d times for what its mirror has", n)
	}
	mirror.Close() // one that is gone is passed over
	other := reaching(t, m, origin.endpoint())
	if _, err := other.Pull(t.Context(), origin.host()+"/team/app:v1", PullOptions{}); err != nil {
		t.Errorf("without the mirror: %v", err)
	}
}

func TestPlatformsAndCompressions(t *testing.T) {
	s := newShop(t)
	mine, _ := s.image("", runtime.GOARCH, "zstd", []byte("mine"))
	other, theirs := s.image("", "riscv64", "gzip", []byte("theirs"))
	index := func(tag string, of ...ocispec.Descriptor) ocispec.Descriptor {
		i := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: of}
		i.SchemaVersion = 2
		return s.manifest(tag, i.MediaType, i)
	}
	index("both", other, mine)
	foreign := index("other", other)
	store := reaching(t, s.endpoint())
	info, err := store.Pull(t.Context(), s.host()+"/team/app:both", PullOptions{})
	if err != nil || info.Elsewhere {
		t.Fatalf("the pull gave %+v, %v", info, err)
	}
	wantFile(t, filepath.Join(mounted(t, store, "i1.app", info.Digest), "content"), "mine")
	if store.holds(t, theirs.Digest.String()) {
		t.Error("what another platform has was fetched")
	}
	if r, err := store.Resolve(t.Context(), s.host()+"/team/app:both", Credentials{}); err != nil || len(r.Platforms) != 2 {
		t.Errorf("the registry has it for %+v, %v", r.Platforms, err)
	}
	info, err = store.Pull(t.Context(), s.host()+"/team/app:other", PullOptions{})
	if err != nil || !info.Elsewhere || info.Digest != foreign.Digest.String() {
		t.Errorf("an image of another platform is %+v, %v", info, err)
	}
	if list, err := store.List(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("images are %+v, %v", list, err)
	}
}

// TestBlobsComeAtTheSameTime holds two blobs back until both were asked for.
func TestBlobsComeAtTheSameTime(t *testing.T) {
	s := newShop(t)
	top, layer := s.image("v1", runtime.GOARCH, "gzip", []byte("x"))
	inner, both := s.inner, make(chan struct{})
	var asked sync.WaitGroup
	asked.Add(2)
	go func() { asked.Wait(); close(both) }()
	var once sync.Map
	s.inner = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			if _, seen := once.LoadOrStore(r.URL.Path, true); !seen {
				asked.Done()
			}
			select {
			case <-both:
			case <-time.After(30 * time.Second):
				t.Errorf("%s waits alone", r.URL.Path)
			}
		}
		inner.ServeHTTP(w, r)
	})
	if info, err := reaching(t, s.endpoint()).Pull(t.Context(), s.host()+"/team/app:v1", PullOptions{}); err != nil || info.Digest != top.Digest.String() {
		t.Errorf("the pull gave %+v, %v (layer %s)", info, err, layer.Digest)
	}
}

// TestPushToARegistryThatAsks pushes and pulls it back.
func TestPushToARegistryThatAsks(t *testing.T) {
	s := newShop(t)
	from := reaching(t, s.endpoint())
	info := load(t, from, pack(t, s.host()+"/shop/web:v1", "pushed"))
	if _, err := from.Push(t.Context(), info.Name, info.Digest, Credentials{User: "anna", Password: "guessed"}, func(Progress) {}); err == nil {
		t.Error("pushed with a wrong password")
	}
	if _, err := from.Push(t.Context(), info.Name, info.Digest, Credentials{}, func(Progress) {}); err != nil {
		t.Fatal(err)
	}
	to := reaching(t, s.endpoint())
	got, err := to.Ensure(t.Context(), info.Name, info.Digest, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(mounted(t, to, "i1.app", got.Digest), "content"), "pushed")
}
