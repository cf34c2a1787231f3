package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// RegistryHost begins the names of images that were pushed to the cluster's own registry, wherever it
// was reached: localhost:7405/shop/web:1 means the same on every node.
const RegistryHost = "localhost:7405"

// Bounds of what one client may make the registry keep in memory, and for how long.
const (
	maxManifest = 4 << 20
	maxUploads  = 256
	uploadIdle  = time.Hour
)

// Labels of the registry's records.
const (
	labelDigest  = "tutti.run/digest" // as it was pushed; content is kept by its SHA-256
	labelSize    = "tutti.run/size"   // records of no bytes are not allowed to say so
	labelSubject = "tutti.run/subject"
	labelShared  = "tutti.run/shared" // the cluster knows what the tag names, and whether it is still there
)

// Registry is what was pushed to this node, by repository. Its records lie in a namespace of their own
// beside the node's images, over the same content: nothing is kept twice, and nothing that a record
// names is collected.
type Registry struct {
	store *Store

	mu      sync.Mutex
	uploads map[string]*Upload
}

// Registry returns a registry over the store's content.
func (s *Store) Registry() *Registry { return &Registry{store: s, uploads: map[string]*Upload{}} }

func inRegistry(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, "registry")
}

// Entry is a blob or manifest of a repository.
type Entry struct {
	MediaType string
	Digest    digest.Digest
	Size      int64
	content   digest.Digest
	shared    bool
}

func blobKey(repo string, d digest.Digest) string     { return "blob/" + repo + "@" + d.String() }
func manifestKey(repo string, d digest.Digest) string { return "manifest/" + repo + "@" + d.String() }
func tagKey(repo, tag string) string                  { return "tag/" + repo + ":" + tag }

func (r *Registry) get(ctx context.Context, key string) (Entry, error) {
	img, err := r.store.images.Get(inRegistry(ctx), key)
	if errdefs.IsNotFound(err) {
		return Entry{}, fault.New(fault.NotFound, "the registry has no %s", key)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("look for %s: %w", key, err)
	}
	size, err := strconv.ParseInt(img.Labels[labelSize], 10, 64)
	return Entry{MediaType: img.Target.MediaType, Digest: digest.Digest(img.Labels[labelDigest]), Size: size, content: img.Target.Digest, shared: img.Labels[labelShared] != ""}, err
}

func (r *Registry) put(ctx context.Context, key string, e Entry, labels map[string]string) error {
	img := images.Image{
		Name:   key,
		Target: ocispec.Descriptor{MediaType: e.MediaType, Digest: e.content, Size: max(e.Size, 1)},
		Labels: map[string]string{labelDigest: e.Digest.String(), labelSize: strconv.FormatInt(e.Size, 10)},
	}
	for k, v := range labels {
		img.Labels[k] = v
	}
	_, err := r.store.images.Create(inRegistry(ctx), img)
	if errdefs.IsAlreadyExists(err) {
		_, err = r.store.images.Update(inRegistry(ctx), img)
	}
	if err != nil {
		return fmt.Errorf("record %s: %w", key, err)
	}
	return nil
}

func (r *Registry) drop(ctx context.Context, key string) error {
	err := r.store.images.Delete(inRegistry(ctx), key)
	if errdefs.IsNotFound(err) {
		return fault.New(fault.NotFound, "the registry has no %s", key)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	return r.store.collect(inRegistry(ctx))
}

func (r *Registry) list(ctx context.Context, prefix string) ([]images.Image, error) {
	all, err := r.store.images.List(inRegistry(ctx))
	if err != nil {
		return nil, fmt.Errorf("list the registry: %w", err)
	}
	return slices.DeleteFunc(all, func(i images.Image) bool { return !strings.HasPrefix(i.Name, prefix) }), nil
}

// Blob finds a blob of a repository.
func (r *Registry) Blob(ctx context.Context, repo string, d digest.Digest) (Entry, error) {
	e, err := r.get(ctx, blobKey(repo, d))
	if fault.Is(err, fault.NotFound) && r.store.Records != nil {
		return r.blobOfOthers(ctx, repo, d)
	}
	return e, err
}

// Manifest finds a manifest of a repository.
func (r *Registry) Manifest(ctx context.Context, repo string, d digest.Digest) (Entry, error) {
	if r.store.Records != nil {
		p, ok := r.store.Records.Manifest(repo, d)
		if !ok {
			return Entry{}, fault.New(fault.NotFound, "the registry has no manifest %s in %s", d, repo)
		}
		return r.known(ctx, repo, p)
	}
	return r.get(ctx, manifestKey(repo, d))
}

// Tag finds the manifest that a tag names, unless that is one of the cluster's images.
func (r *Registry) Tag(ctx context.Context, repo, tag string) (Entry, error) {
	if r.store.Records != nil {
		p, ok := r.store.Records.Tag(repo, tag)
		if !ok || p.Shared {
			return Entry{}, fault.New(fault.NotFound, "the cluster has no image %s:%s", repo, tag)
		}
		return r.known(ctx, repo, p)
	}
	e, err := r.get(ctx, tagKey(repo, tag))
	if err == nil && e.shared {
		return Entry{}, fault.New(fault.NotFound, "the cluster has no image %s:%s", repo, tag)
	}
	return e, err
}

// Shared says of a tag that it names one of the cluster's images.
func (r *Registry) Shared(ctx context.Context, repo, tag string, e Entry) error {
	if r.store.Records != nil {
		if p, ok := r.store.Records.Tag(repo, tag); ok && p.Digest == e.Digest {
			p.Shared = true
			if err := r.store.Records.Put(ctx, repo, tag, p); err != nil {
				return err
			}
		}
	}
	return r.put(ctx, tagKey(repo, tag), e, map[string]string{labelShared: "true"})
}

// Tags returns the tags of a repository but those of the cluster's images, and whether anything at all was pushed to it.
func (r *Registry) Tags(ctx context.Context, repo string) (tags []string, known bool, err error) {
	all, err := r.list(ctx, "")
	if err != nil {
		return nil, false, err
	}
	if r.store.Records != nil {
		for tag, p := range r.store.Records.Tags(repo) {
			known = true
			if !p.Shared {
				tags = append(tags, tag)
			}
		}
		return tags, known || len(r.store.Records.Manifests(repo)) > 0 || slices.ContainsFunc(all, func(i images.Image) bool { return strings.HasPrefix(i.Name, blobKey(repo, "")) }), nil
	}
	for _, i := range all {
		if tag, ok := strings.CutPrefix(i.Name, tagKey(repo, "")); ok {
			known = true
			if i.Labels[labelShared] == "" {
				tags = append(tags, tag)
			}
		}
		known = known || strings.HasPrefix(i.Name, manifestKey(repo, "")) || strings.HasPrefix(i.Name, blobKey(repo, ""))
	}
	return tags, known, nil
}

// Open opens the content of an entry.
func (r *Registry) Open(ctx context.Context, e Entry) (content.ReaderAt, error) {
	return r.store.content.ReaderAt(inRegistry(ctx), ocispec.Descriptor{Digest: e.content})
}

// read returns small content.
func (r *Registry) read(ctx context.Context, d digest.Digest) ([]byte, error) {
	ra, err := r.store.content.ReaderAt(inRegistry(ctx), ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d, err)
	}
	defer ra.Close()
	if ra.Size() > maxManifest {
		return nil, fault.New(fault.Invalid, "%s is larger than %d bytes", d, maxManifest)
	}
	return io.ReadAll(io.NewSectionReader(ra, 0, ra.Size()))
}

// Held finds content of this node's images, which others may have brought here: a manifest, or with
// asBlob whatever it is.
func (r *Registry) Held(ctx context.Context, d digest.Digest, asBlob bool) (Entry, content.ReaderAt, error) {
	ctx = scoped(ctx)
	ra, err := r.store.content.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return Entry{}, nil, fault.New(fault.NotFound, "%s is not on this node", d)
	}
	e := Entry{MediaType: "application/octet-stream", Digest: d, Size: ra.Size(), content: d}
	if !asBlob {
		desc, err := r.store.describe(ctx, d)
		if err != nil {
			return Entry{}, nil, errors.Join(err, ra.Close())
		}
		e.MediaType = desc.MediaType
	}
	return e, ra, nil
}

// Upload is a blob that is on its way.
type Upload struct {
	ID, Repo string

	mu   sync.Mutex
	w    content.Writer
	size int64
	used time.Time
}

// Begin begins an upload. Those that nobody goes on with for an hour are forgotten.
func (r *Registry) Begin(ctx context.Context, repo string) (*Upload, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, u := range r.uploads {
		if u.mu.TryLock() {
			if time.Since(u.used) > uploadIdle {
				r.forget(ctx, u)
				delete(r.uploads, id)
			}
			u.mu.Unlock()
		}
	}
	if len(r.uploads) >= maxUploads {
		return nil, fault.New(fault.Unavailable, "%d uploads are on their way to this node: no more are taken", maxUploads)
	}
	u := &Upload{ID: model.NewID(), Repo: repo, used: time.Now()}
	w, err := content.OpenWriter(inRegistry(context.WithoutCancel(ctx)), r.store.content, content.WithRef("push-"+u.ID))
	if err != nil {
		return nil, fmt.Errorf("begin an upload: %w", err)
	}
	u.w = w
	r.uploads[u.ID] = u
	return u, nil
}

// Find finds an upload that is on its way.
func (r *Registry) Find(repo, id string) (*Upload, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if u, ok := r.uploads[id]; ok && u.Repo == repo {
		return u, nil
	}
	return nil, fault.New(fault.NotFound, "there is no upload %q of %s", id, repo)
}

// Size is how much of an upload has come.
func (u *Upload) Size() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.size
}

// Append takes in more of an upload, which must begin where it ended; at -1 it does.
func (u *Upload) Append(body io.Reader, at int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if at >= 0 && at != u.size {
		return fault.New(fault.Conflict, "the upload has %d bytes: it cannot go on at %d", u.size, at)
	}
	n, err := io.Copy(struct{ io.Writer }{u.w}, body)
	u.size, u.used = u.size+n, time.Now()
	if err != nil {
		return fmt.Errorf("take in an upload: %w", err)
	}
	return nil
}

func (r *Registry) forget(ctx context.Context, u *Upload) {
	u.w.Close()
	_ = r.store.content.Abort(inRegistry(context.WithoutCancel(ctx)), "push-"+u.ID) // or it is collected a day later
}

// Cancel ends an upload that is not wanted.
func (r *Registry) Cancel(ctx context.Context, u *Upload) {
	r.mu.Lock()
	delete(r.uploads, u.ID)
	r.mu.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	r.forget(ctx, u)
}

// Finish makes a blob of an upload, if it has that digest; otherwise it is gone.
func (r *Registry) Finish(ctx context.Context, u *Upload, d digest.Digest) error {
	defer r.Cancel(ctx, u)
	defer r.store.take(ctx)()
	u.mu.Lock()
	defer u.mu.Unlock()
	e, err := r.commit(ctx, u.w, u.size, d)
	if err != nil {
		return err
	}
	return r.put(ctx, blobKey(u.Repo, d), e, nil)
}

// commit keeps what was written, if it has that digest. The content store knows SHA-256 only: what has
// another digest is read again.
func (r *Registry) commit(ctx context.Context, w content.Writer, size int64, d digest.Digest) (Entry, error) {
	ctx = inRegistry(ctx)
	e := Entry{MediaType: "application/octet-stream", Digest: d, Size: size, content: w.Digest()}
	wrong := fault.New(fault.Invalid, "what came does not have the digest %s", d)
	if d.Algorithm() == digest.SHA256 && e.content != d {
		return e, wrong
	}
	if err := w.Commit(ctx, size, e.content); err != nil && !errdefs.IsAlreadyExists(err) {
		return e, fmt.Errorf("keep %s: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		ra, err := r.Open(ctx, e)
		if err != nil {
			return e, err
		}
		defer ra.Close()
		v := d.Verifier()
		if _, err := io.Copy(v, content.NewReader(ra)); err != nil {
			return e, err
		}
		if !v.Verified() {
			r.store.owed.Store(true)
			return e, wrong
		}
	}
	return e, nil
}

// Mount makes a blob of one repository one of another, too.
func (r *Registry) Mount(ctx context.Context, repo, from string, d digest.Digest) error {
	defer r.store.take(ctx)()
	e, err := r.Blob(ctx, from, d)
	if err != nil {
		return err
	}
	return r.put(ctx, blobKey(repo, d), e, nil)
}

// described is what is read of manifests and indexes of all kinds.
type described struct {
	MediaType    string               `json:"mediaType"`
	ArtifactType string               `json:"artifactType"`
	Config       *ocispec.Descriptor  `json:"config"`
	Layers       []ocispec.Descriptor `json:"layers"`
	Manifests    []ocispec.Descriptor `json:"manifests"`
	Subject      *ocispec.Descriptor  `json:"subject"`
	Annotations  map[string]string    `json:"annotations"`
}

// ErrMissing is why a manifest is not taken that names what was not pushed before.
var ErrMissing = errors.New("the manifest names what the repository does not have")

// PutManifest takes in a manifest or index whose parts are there; with a tag it is named.
func (r *Registry) PutManifest(ctx context.Context, repo, tag string, d digest.Digest, mediaType string, data []byte) (Entry, digest.Digest, error) {
	if len(data) > maxManifest {
		return Entry{}, "", fault.New(fault.Invalid, "manifests of up to %d bytes are taken", maxManifest)
	}
	var m described
	if err := json.Unmarshal(data, &m); err != nil {
		return Entry{}, "", fault.New(fault.Invalid, "this is no manifest: %w", err)
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	if m.MediaType != "" && mediaType != "" && m.MediaType != mediaType {
		return Entry{}, "", fault.New(fault.Invalid, "the manifest says that it is %s, the request says %s", m.MediaType, mediaType)
	}
	if mediaType == "" {
		mediaType = m.MediaType
	}
	if !images.IsManifestType(mediaType) && !images.IsIndexType(mediaType) {
		return Entry{}, "", fault.New(fault.Invalid, "media type %q is none of a manifest or index of OCI or Docker", mediaType)
	}
	if d == "" {
		d = digest.FromBytes(data)
	}
	defer r.store.take(ctx)()
	parts := m.Layers
	if m.Config != nil {
		parts = append(slices.Clone(parts), *m.Config)
	}
	for _, p := range parts {
		if images.IsNonDistributable(p.MediaType) {
			continue
		}
		if _, err := r.Blob(ctx, repo, p.Digest); err != nil {
			return Entry{}, "", fault.New(fault.Invalid, "%w: blob %s", ErrMissing, p.Digest)
		}
	}
	for _, p := range m.Manifests {
		if _, err := r.Manifest(ctx, repo, p.Digest); err != nil {
			return Entry{}, "", fault.New(fault.Invalid, "%w: manifest %s", ErrMissing, p.Digest)
		}
	}
	ref := "manifest-" + model.NewID()
	w, err := content.OpenWriter(inRegistry(ctx), r.store.content, content.WithRef(ref))
	if err != nil {
		return Entry{}, "", fmt.Errorf("keep a manifest: %w", err)
	}
	defer w.Close()
	if _, err := w.Write(data); err != nil {
		return Entry{}, "", fmt.Errorf("keep a manifest: %w", err)
	}
	e, err := r.commit(ctx, w, int64(len(data)), d)
	if err != nil {
		_ = r.store.content.Abort(inRegistry(ctx), ref)
		return Entry{}, "", err
	}
	e.MediaType = mediaType
	labels, subject := map[string]string{}, digest.Digest("")
	if m.Subject != nil {
		subject = m.Subject.Digest
		labels[labelSubject] = subject.String()
	}
	if err := r.put(ctx, manifestKey(repo, d), e, labels); err != nil {
		return Entry{}, "", err
	}
	if tag != "" {
		if err := r.put(ctx, tagKey(repo, tag), e, nil); err != nil {
			return Entry{}, "", err
		}
	}
	if r.store.Records != nil {
		p, err := r.record(ctx, repo, e, &m)
		if err == nil {
			err = r.store.Records.Put(ctx, repo, tag, p)
		}
		if err != nil {
			return Entry{}, "", fmt.Errorf("tell the other servers: %w", err)
		}
	}
	return e, subject, nil
}

// RemoveBlob forgets a blob of a repository.
func (r *Registry) RemoveBlob(ctx context.Context, repo string, d digest.Digest) error {
	return r.drop(ctx, blobKey(repo, d))
}

// RemoveTag forgets a tag; its manifest stays.
func (r *Registry) RemoveTag(ctx context.Context, repo, tag string) error {
	known := false
	if r.store.Records != nil {
		_, known = r.store.Records.Tag(repo, tag)
		if err := r.store.Records.Remove(ctx, repo, []string{tag}, ""); err != nil {
			return err
		}
	}
	err := r.drop(ctx, tagKey(repo, tag))
	if known && fault.Is(err, fault.NotFound) {
		return nil // it was pushed to another server
	}
	return err
}

// RemoveManifest forgets a manifest and the tags that name it.
func (r *Registry) RemoveManifest(ctx context.Context, repo string, d digest.Digest) error {
	tags, err := r.list(ctx, tagKey(repo, ""))
	if err != nil {
		return err
	}
	for _, t := range tags {
		if t.Labels[labelDigest] == d.String() {
			if err := r.store.images.Delete(inRegistry(ctx), t.Name); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("remove %s: %w", t.Name, err)
			}
		}
	}
	known := false
	if r.store.Records != nil {
		_, known = r.store.Records.Manifest(repo, d)
		var named []string
		for tag, p := range r.store.Records.Tags(repo) {
			if p.Digest == d {
				named = append(named, tag)
			}
		}
		if err := r.store.Records.Remove(ctx, repo, named, d); err != nil {
			return err
		}
	}
	err = r.drop(ctx, manifestKey(repo, d))
	if known && fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// Referrers returns what has a manifest as its subject.
func (r *Registry) Referrers(ctx context.Context, repo string, subject digest.Digest) ([]ocispec.Descriptor, error) {
	out := []ocispec.Descriptor{}
	if r.store.Records != nil {
		for _, p := range r.store.Records.Manifests(repo) {
			if p.Subject == subject {
				out = append(out, p.descriptor())
			}
		}
		return out, nil
	}
	all, err := r.list(ctx, manifestKey(repo, ""))
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Labels[labelSubject] != subject.String() {
			continue
		}
		var m described
		if err := r.store.readJSON(inRegistry(ctx), i.Target.Digest, &m); err != nil {
			return nil, err
		}
		if m.ArtifactType == "" && m.Config != nil {
			m.ArtifactType = m.Config.MediaType
		}
		out = append(out, ocispec.Descriptor{
			MediaType: i.Target.MediaType, Digest: digest.Digest(i.Labels[labelDigest]), Size: i.Target.Size,
			ArtifactType: m.ArtifactType, Annotations: m.Annotations,
		})
	}
	return out, nil
}

// Share makes what was pushed one of this node's images, under a name, if it can run here: false when
// it is of another platform, or no image.
func (r *Registry) Share(ctx context.Context, name string, e Entry) (info Info, runs bool, err error) {
	defer r.store.take(ctx)()
	if e.Digest != e.content {
		return Info{}, false, nil // other nodes know content by its SHA-256
	}
	top := ocispec.Descriptor{MediaType: e.MediaType, Digest: e.Digest, Size: e.Size}
	from := inRegistry(ctx)
	m, err := images.Manifest(from, r.store.content, top, platforms.Default())
	if errdefs.IsNotFound(err) {
		return Info{}, false, nil
	}
	if err != nil {
		return Info{}, false, err
	}
	foreign := func(l ocispec.Descriptor) bool { return !images.IsLayerType(l.MediaType) }
	if !images.IsConfigType(m.Config.MediaType) || len(m.Layers) == 0 || slices.ContainsFunc(m.Layers, foreign) {
		return Info{}, false, nil
	}
	children := images.FilterPlatforms(images.ChildrenHandler(r.store.content), platforms.Default())
	err = images.Walk(from, images.HandlerFunc(func(_ context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		below, err := children.Handle(from, d)
		if err != nil {
			return nil, err
		}
		ra, err := r.store.content.ReaderAt(from, d)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", d.Digest, err)
		}
		defer ra.Close()
		err = content.WriteBlob(scoped(ctx), r.store.content, "share-"+d.Digest.String(), content.NewReader(ra), d)
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return nil, fmt.Errorf("share %s: %w", d.Digest, err)
		}
		return below, nil
	}), top)
	if err != nil {
		return Info{}, true, err
	}
	info, err = r.store.adopt(scoped(ctx), name, top)
	return info, true, err
}
