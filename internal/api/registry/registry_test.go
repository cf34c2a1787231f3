package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/api/access"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/test/apart"
)

// TestMain runs the tests in a mount namespace of their own.
func TestMain(m *testing.M) { apart.Main(m, syscall.CLONE_NEWNS) }

// house is a registry over real content, of a cluster of one server.
type house struct {
	t     *testing.T
	store *store.Store
	core  *core.Core
	image *image.Store
	http  *httptest.Server
}

func (h *house) Propose(_ context.Context, data []byte) (store.Result, error) {
	return h.store.Apply(data), nil
}

// nodes are told to forget an image.
type nodes struct {
	core.Remote
	image *image.Store
}

func (n nodes) RemoveImage(ctx context.Context, _, name string) error {
	return n.image.Remove(ctx, name)
}

func newHouse(t *testing.T, wrap func(*core.Core, http.Handler) http.Handler) *house {
	t.Helper()
	return newHouseIn(t, wrap, store.New(slog.New(slog.DiscardHandler)), nil)
}

// newHouseIn makes one of several servers of a cluster.
func newHouseIn(t *testing.T, wrap func(*core.Core, http.Handler) http.Handler, state *store.Store, peers image.Peers) *house {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	images, err := image.Open(image.Config{Root: filepath.Join(dir, "images"), Mounts: filepath.Join(dir, "mounts"), Peers: peers, Records: core.Records{Store: state}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, store: state, image: images}
	if state.Snapshot().Revision() == 0 { // the others propose through the first
		h.store.SetProposer(h)
	}
	h.core = core.New(core.Deps{Store: h.store, Remote: nodes{image: images}, Images: images, NodeID: "n1", Log: log})
	var handler http.Handler = New(Deps{
		Core: h.core, Images: images.Registry(), Log: log,
		Caller: func(ctx context.Context) core.Caller {
			if who, ok := access.CallerOf(ctx); ok {
				return who
			}
			return core.Local("root", "registry")
		},
	})
	if wrap != nil {
		handler = wrap(h.core, handler)
	}
	h.http = httptest.NewServer(handler)
	t.Cleanup(func() {
		h.http.Close()
		if err := images.Close(); err != nil {
			t.Error(err)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return h
}

// do makes a request and returns the answer, which must have the status.
func (h *house) do(status int, method, path, mediaType string, body []byte) (*http.Response, []byte) {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.http.URL+path, bytes.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	if resp.StatusCode != status {
		h.t.Fatalf("%s %s: %s, want %d: %s", method, path, resp.Status, status, data)
	}
	return resp, data
}

func (h *house) pushBlob(repo string, data []byte) digest.Digest {
	h.t.Helper()
	d := digest.FromBytes(data)
	h.do(http.StatusCreated, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", data)
	return d
}

func writeTo(w io.Writer, text string) error {
	_, err := io.WriteString(w, text)
	return err
}

const imageType = "application/vnd.oci.image.manifest.v1+json"

// pushImage pushes an image of one file, and returns its digest.
func (h *house) pushImage(repo, tag string) digest.Digest {
	h.t.Helper()
	var packed bytes.Buffer
	tw := tar.NewWriter(&packed)
	if err := errors.Join(tw.WriteHeader(&tar.Header{Name: "file", Mode: 0o755, Size: int64(len(repo))}), writeTo(tw, repo), tw.Close()); err != nil {
		h.t.Fatal(err)
	}
	layer := packed.Bytes()
	l := h.pushBlob(repo, layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": time.Unix(1, 0).UTC(),
		"config": map[string]any{"Cmd": []string{"/file"}}, "rootfs": map[string]any{"type": "layers", "diff_ids": []string{l.String()}},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	c := h.pushBlob(repo, config)
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		imageType, c, len(config), l, len(layer))
	h.do(http.StatusCreated, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, imageType, manifest)
	return digest.FromBytes(manifest)
}

// TestPushedImageIsTheClusters holds that what is pushed can be run under the registry's name, and that
// it is gone once it is deleted, but not while a workload is made of it.
func TestPushedImageIsTheClusters(t *testing.T) {
	h := newHouse(t, nil)
	d := h.pushImage("shop/web", "1")
	name := image.RegistryHost + "/shop/web:1"
	i, ok := store.ByName[*model.Image](h.store.Snapshot(), "", "", name)
	if !ok || i.Digest != d.String() {
		t.Fatalf("the cluster has %v as %s, want %s", i, name, d)
	}
	info, err := h.image.Get(t.Context(), name)
	if err != nil || len(info.Config.Cmd) != 1 {
		t.Fatalf("the node has %+v: %v", info, err)
	}
	if _, data := h.do(http.StatusOK, http.MethodGet, "/v2/shop/web/tags/list", "", nil); !strings.Contains(string(data), `"tags":["1"]`) {
		t.Errorf("tags: %s", data)
	}
	cs := &store.ChangeSet{}
	w := &model.Workload{Meta: model.Meta{ID: "w", Name: "web", Namespace: model.DefaultNamespace}}
	w.Template.Tasks = []model.TaskSpec{{Name: "web", Image: name, Digest: d.String()}}
	cs.Put(w)
	if _, err := h.store.Commit(t.Context(), cs); err != nil {
		t.Fatal(err)
	}
	h.do(http.StatusConflict, http.MethodDelete, "/v2/shop/web/manifests/1", "", nil)
	h.do(http.StatusOK, http.MethodGet, "/v2/shop/web/manifests/1", "", nil)
	cs = &store.ChangeSet{}
	cs.Delete(model.KindWorkload, "w")
	if _, err := h.store.Commit(t.Context(), cs); err != nil {
		t.Fatal(err)
	}
	h.do(http.StatusAccepted, http.MethodDelete, "/v2/shop/web/manifests/1", "", nil)
	h.do(http.StatusNotFound, http.MethodGet, "/v2/shop/web/manifests/1", "", nil)
	if _, ok := store.ByName[*model.Image](h.store.Snapshot(), "", "", name); ok {
		t.Error("the cluster has the image after its tag was deleted")
	}
	h.do(http.StatusOK, http.MethodGet, "/v2/shop/web/manifests/"+d.String(), "", nil)
}

// TestImagesOfOthersArePulled holds that what another server took in is answered for here.
func TestImagesOfOthersArePulled(t *testing.T) {
	h := newHouse(t, nil)
	d := h.pushImage("a", "1")
	if _, err := h.core.Images.Tag(t.Context(), image.RegistryHost+"/a:1", d.String(), image.RegistryHost+"/elsewhere:2"); err != nil {
		t.Fatal(err)
	}
	cs := &store.ChangeSet{}
	cs.Put(&model.Image{Meta: model.Meta{ID: "i", Name: image.RegistryHost + "/elsewhere:2"}, Digest: d.String()})
	if _, err := h.store.Commit(t.Context(), cs); err != nil {
		t.Fatal(err)
	}
	resp, data := h.do(http.StatusOK, http.MethodGet, "/v2/elsewhere/manifests/2", "", nil)
	if got := resp.Header.Get("Content-Type"); got != imageType || digest.FromBytes(data) != d {
		t.Errorf("pulled %s as %s", digest.FromBytes(data), got)
	}
	var m struct {
		Layers []struct{ Digest digest.Digest }
	}
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	h.do(http.StatusOK, http.MethodGet, "/v2/elsewhere/blobs/"+m.Layers[0].Digest.String(), "", nil)
	h.do(http.StatusNotFound, http.MethodGet, "/v2/nowhere/blobs/"+m.Layers[0].Digest.String(), "", nil)
}

// neighbours are the other servers.
type neighbours struct{ of []*house }

func (n *neighbours) FetchBlob(ctx context.Context, _, digest string) (io.ReadCloser, int64, error) {
	for _, h := range n.of {
		if body, size, err := h.image.Blob(ctx, digest); err == nil {
			return body, size, nil
		}
	}
	return nil, 0, fault.New(fault.NotFound, "nobody has %s", digest)
}

// TestWhatWasPushedIsAtEveryServer pushes an image's signature to one server, and asks the other for it.
func TestWhatWasPushedIsAtEveryServer(t *testing.T) {
	a := newHouse(t, nil)
	b := newHouseIn(t, nil, a.store, &neighbours{of: []*house{a}})
	subject := a.pushImage("shop/web", "1")
	payload := fmt.Appendf(nil, `{"critical":{"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"}}`, subject)
	l, c := a.pushBlob("shop/web", payload), a.pushBlob("shop/web", []byte("{}"))
	tag := strings.Replace(subject.String(), ":", "-", 1) + ".sig"
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},"layers":[{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","digest":%q,"size":%d,"annotations":{"dev.cosignproject.cosign/signature":"c2lnbmVk"}}],"subject":{"mediaType":%q,"digest":%q,"size":1}}`,
		imageType, c, l, len(payload), imageType, subject)
	d := digest.FromBytes(manifest)
	a.do(http.StatusCreated, http.MethodPut, "/v2/shop/web/manifests/"+tag, imageType, manifest)
	for _, ref := range []string{tag, d.String()} {
		if _, data := b.do(http.StatusOK, http.MethodGet, "/v2/shop/web/manifests/"+ref, "", nil); digest.FromBytes(data) != d {
			t.Errorf("the other server has %s as %s", data, ref)
		}
	}
	if _, data := b.do(http.StatusOK, http.MethodGet, "/v2/shop/web/blobs/"+l.String(), "", nil); string(data) != string(payload) {
		t.Errorf("the other server has the blob %s", data)
	}
	b.do(http.StatusNotFound, http.MethodGet, "/v2/elsewhere/blobs/"+l.String(), "", nil)
	if _, data := b.do(http.StatusOK, http.MethodGet, "/v2/shop/web/referrers/"+subject.String(), "", nil); !strings.Contains(string(data), d.String()) {
		t.Errorf("the other server says of referrers %s", data)
	}
	if _, data := b.do(http.StatusOK, http.MethodGet, "/v2/shop/web/tags/list", "", nil); !strings.Contains(string(data), `"tags":["1","`+tag+`"]`) {
		t.Errorf("the other server has the tags %s", data)
	}
	signatures, err := b.image.Signatures(t.Context(), image.RegistryHost+"/shop/web:1", subject.String(), image.Credentials{})
	if err != nil || len(signatures) != 1 || string(signatures[0].Value) != "signed" || string(signatures[0].Payload) != string(payload) {
		t.Errorf("the other server has the signatures %s, %v", signatures, err)
	}
	b.do(http.StatusAccepted, http.MethodDelete, "/v2/shop/web/manifests/"+d.String(), "", nil)
	for _, h := range []*house{a, b} {
		h.do(http.StatusNotFound, http.MethodGet, "/v2/shop/web/manifests/"+d.String(), "", nil)
		h.do(http.StatusNotFound, http.MethodGet, "/v2/shop/web/manifests/"+tag, "", nil)
	}
}

// TestNonsense holds that what is wrong is refused, and leaves nothing.
func TestNonsense(t *testing.T) {
	h := newHouse(t, nil)
	d := digest.FromString("x")
	h.do(http.StatusBadRequest, http.MethodPost, "/v2/a/blobs/uploads/?digest="+d.String(), "", []byte("y"))
	h.do(http.StatusNotFound, http.MethodHead, "/v2/a/blobs/"+d.String(), "", nil)
	h.do(http.StatusBadRequest, http.MethodPost, "/v2/a/../B/blobs/uploads/", "", nil)
	h.do(http.StatusBadRequest, http.MethodGet, "/v2/a/blobs/sha256:..", "", nil)
	for _, body := range []string{"", "{", `{"schemaVersion":2,"layers":[{"digest":"` + d.String() + `"}]}`, `{"config":{"digest":"../../x"}}`} {
		h.do(http.StatusBadRequest, http.MethodPut, "/v2/a/manifests/1", imageType, []byte(body))
	}
	h.do(http.StatusBadRequest, http.MethodPut, "/v2/a/manifests/1", "text/plain", []byte("{}"))
	h.do(http.StatusNotFound, http.MethodGet, "/v2/a/tags/list", "", nil)
}

// TestStrangers holds that nobody reads or pushes without a token.
func TestStrangers(t *testing.T) {
	h := newHouse(t, func(c *core.Core, inner http.Handler) http.Handler {
		directory := core.Directory{Store: c.Store}
		known := []access.Authenticator{access.Basic{Directory: directory}, access.Tokens{Directory: directory}}
		return access.Require("registry", known, func(err error) http.Handler { return Refuse(err) }, inner)
	})
	resp, _ := h.do(http.StatusUnauthorized, http.MethodGet, "/v2/", "", nil)
	if got := resp.Header.Get("WWW-Authenticate"); got != `Basic realm="tutti"` {
		t.Errorf("who may not come in is asked for %q", got)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.http.URL+"/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("root", "no-token")
	if resp, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a wrong token is answered %s", resp.Status)
	}
}
