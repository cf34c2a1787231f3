package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// victim is a store that malicious content is put into, beside a directory that it must not reach.
type victim struct {
	*Store
	outside string
}

func newVictim(f *testing.F) *victim {
	f.Helper()
	v := &victim{Store: open(f, nil), outside: f.TempDir()}
	write(f, filepath.Join(v.outside, "secret"), "secret")
	return v
}

// bring imports an archive; what is accepted is mounted, taken apart and removed. Whatever happens, it happens within.
func (v *victim) bring(t *testing.T, data []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	infos, err := v.Import(ctx, bytes.NewReader(data), ImportOptions{})
	if err == nil {
		for _, info := range infos {
			if _, err := v.Mount(ctx, "victim", info.Digest, nil); err == nil {
				if err := v.Unmount(ctx, "victim"); err != nil {
					t.Errorf("what was mounted cannot be unmounted: %v", err)
				}
			}
			if _, err := v.Get(ctx, info.Name); err != nil {
				t.Errorf("an image that was imported as %s is not there: %v", info.Name, err)
			}
		}
	}
	list, err := v.List(ctx)
	if err != nil {
		t.Errorf("the images cannot be listed any more: %v", err)
	}
	for _, info := range list {
		if err := v.Remove(ctx, info.Name); err != nil {
			t.Errorf("remove %s: %v", info.Name, err)
		}
	}
	entries, err := os.ReadDir(v.outside)
	text, rerr := os.ReadFile(filepath.Join(v.outside, "secret"))
	if err != nil || rerr != nil || len(entries) != 1 || string(text) != "secret" {
		t.Fatalf("outside there are now %v with %q: %v, %v", entries, text, err, rerr)
	}
}

// layoutOf makes an OCI archive of these blobs as they are: digests and sizes are right, all else is not looked at.
func layoutOf(t testing.TB, manifest, config, layer []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, data []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(data []byte) {
		d := digest.FromBytes(data)
		add("blobs/"+d.Algorithm().String()+"/"+d.Encoded(), data)
	}
	add(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	blob(config)
	blob(layer)
	blob(manifest)
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)),
		Annotations: map[string]string{ocispec.AnnotationRefName: "docker.io/library/evil:1"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	add(ocispec.ImageIndexFile, index)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func descriptor(mediaType string, data []byte) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, digest.FromBytes(data), len(data))
}

// sound are a manifest and a configuration that fit a layer.
func sound(layer []byte) (manifest, config []byte) {
	config = fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q]},"config":{"Cmd":["/x"]}}`, digest.FromBytes(layer))
	manifest = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, ocispec.MediaTypeImageManifest,
		descriptor(ocispec.MediaTypeImageConfig, config), descriptor(ocispec.MediaTypeImageLayer, layer))
	return manifest, config
}

func layerOf(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		h.Mode = 0o755
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// FuzzArchive imports what is hardly an archive of an image.
func FuzzArchive(f *testing.F) {
	v := newVictim(f)
	layer := layerOf(f, tar.Header{Name: "x", Typeflag: tar.TypeReg})
	manifest, config := sound(layer)
	f.Add(layoutOf(f, manifest, config, layer))
	f.Add(pack(f, "app", "x"))
	f.Add(layered(f, "evil:1", entry{tar.TypeReg, "../x", "", "x"}))
	f.Fuzz(v.bring)
}

// FuzzLayer imports an image with a layer of any content, which fits its digests.
func FuzzLayer(f *testing.F) {
	v := newVictim(f)
	for _, h := range [][]tar.Header{
		{{Name: "../../x", Typeflag: tar.TypeReg}},
		{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: v.outside}, {Name: "l/x", Typeflag: tar.TypeReg}, {Name: "l/.wh.secret", Typeflag: tar.TypeReg}},
		{{Name: "h", Typeflag: tar.TypeLink, Linkname: v.outside + "/secret"}},
		{{Name: "d/.wh..wh..opq", Typeflag: tar.TypeReg}, {Name: ".wh...", Typeflag: tar.TypeReg}, {Name: ".wh.", Typeflag: tar.TypeReg}},
		{{Name: "n", Typeflag: tar.TypeBlock, Devmajor: 254}, {Name: "p", Typeflag: tar.TypeFifo}, {Name: "n/x", Typeflag: tar.TypeReg}},
		{{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/../.."}}},
	} {
		f.Add(layerOf(f, h...))
	}
	f.Fuzz(func(t *testing.T, layer []byte) {
		manifest, config := sound(layer)
		v.bring(t, layoutOf(t, manifest, config, layer))
	})
}

// FuzzManifest imports an image whose manifest and configuration are anything.
func FuzzManifest(f *testing.F) {
	v := newVictim(f)
	layer := layerOf(f, tar.Header{Name: "x", Typeflag: tar.TypeReg})
	manifest, config := sound(layer)
	f.Add(manifest, config)
	f.Add([]byte(`{"schemaVersion":2,"layers":[{"digest":"sha256:../../../../etc/passwd","size":-1}],"config":{"digest":"","size":9223372036854775807}}`), []byte(`{"rootfs":{"diff_ids":["","x"]}}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:00","platform":{"os":"linux"}}],"urls":["file:///etc/passwd"]}`), []byte(`null`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		v.bring(t, layoutOf(t, manifest, config, layer))
	})
}

// FuzzPushedManifest pushes a manifest of any content to the cluster's registry, and has what is taken become an image.
func FuzzPushedManifest(f *testing.F) {
	v := newVictim(f)
	r := v.Registry()
	layer := layerOf(f, tar.Header{Name: "x", Typeflag: tar.TypeReg})
	manifest, _ := sound(layer)
	f.Add(ocispec.MediaTypeImageManifest, manifest)
	f.Add(ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[],"subject":{"digest":"../x","size":1}}`))
	f.Add("application/vnd.docker.distribution.manifest.v2+json", []byte(`{"layers":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar"}]}`))
	f.Fuzz(func(t *testing.T, mediaType string, data []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		e, _, err := r.PutManifest(ctx, "evil", "1", "", mediaType, data)
		if err != nil {
			return
		}
		_, _, _ = r.Share(ctx, RegistryHost+"/evil:1", e) // it may be refused
		if _, err := r.Manifest(ctx, "evil", digest.FromBytes(data)); err != nil {
			t.Errorf("what was taken is not there: %v", err)
		}
		if _, err := r.Referrers(ctx, "evil", digest.FromBytes(data)); err != nil {
			t.Errorf("what refers to it cannot be listed: %v", err)
		}
		if err := r.RemoveManifest(ctx, "evil", digest.FromBytes(data)); err != nil {
			t.Errorf("what was taken cannot be removed: %v", err)
		}
		v.bring(t, nil)
	})
}
