package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/userns"
)

const (
	namespace   = "tutti"
	snapshotter = "overlayfs"
	labelRoot   = "containerd.io/gc.root"
	labelSnap   = "containerd.io/gc.ref.snapshot." + snapshotter
	// labelImage is how a root file system keeps the content that it was made of.
	labelImage = "containerd.io/gc.ref.content.image"
)

// Peers fetches blobs of images from other nodes of the cluster; fault.NotFound when nobody has one. Both go by
// their digests.
type Peers interface {
	FetchBlob(ctx context.Context, image, blob string) (io.ReadCloser, int64, error)
}

// Config says where images are kept.
type Config struct {
	Root   string // content, layers and metadata
	Mounts string // where root file systems are mounted, one directory per key
	Peers  Peers  // nil: no other nodes
	// Records are those of all servers' registries; nil: this one's alone.
	Records Records
	Reach   Reach // how registries are reached; nil: each at its own address, without a login
	Log     *slog.Logger
}

// Info is an image as people and tasks need to know it.
type Info struct {
	Name      string    `json:"name"`
	Digest    string    `json:"digest"`
	SizeBytes int64     `json:"sizeBytes"`
	Created   time.Time `json:"created"`
	Config    Settings  `json:"config"`
	// Elsewhere: the image has nothing for this node's platform. Of what it is nothing else is known here then.
	Elsewhere bool `json:"elsewhere,omitempty"`
	// Pulled: it has just come from the registry that its name says.
	Pulled bool `json:"-"`
}

// Settings is what an image says about running it.
type Settings struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"`
	User         string            `json:"user,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	Volumes      []string          `json:"volumes,omitempty"`
	ExposedPorts []string          `json:"exposedPorts,omitempty"`
	StopSignal   string            `json:"stopSignal,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Health       *model.Probe      `json:"health,omitempty"`
}

// Progress tells how fetching an image goes.
type Progress struct {
	Blob  string `json:"blob"`
	Bytes int64  `json:"bytes"`
	Total int64  `json:"total,omitempty"` // 0: it is not known
}

// ImportOptions says how to take an archive in.
type ImportOptions struct {
	Name string // replaces the name of the archive's only image
}

// Store keeps images on this node. It is safe for concurrent use.
type Store struct {
	Config
	bolt    *bolt.DB
	db      *metadata.DB
	content content.Store
	snap    snapshots.Snapshotter
	images  images.Store
	once    singleflight.Group
	// using is held for reading while content is taken in or mounted, and for writing while what
	// nobody refers to is removed. Nobody waits for the latter: it is owed until it can be done.
	using sync.RWMutex
	owed  atomic.Bool
	views atomic.Uint64 // how many looks at an image were begun; their keys
}

// take keeps everything that is here from being removed until done is called.
func (s *Store) take(ctx context.Context) (done func()) {
	s.using.RLock()
	return func() {
		s.using.RUnlock()
		if err := s.settle(context.WithoutCancel(ctx)); err != nil {
			s.Log.Error("what no image refers to could not be removed", "error", err)
		}
	}
}

// collect removes what nobody refers to: now, or when the last of those who take something in is
// done, however long a download may last.
func (s *Store) collect(ctx context.Context) error {
	s.owed.Store(true)
	return s.settle(ctx)
}

func (s *Store) settle(ctx context.Context) error {
	if !s.owed.Load() || !s.using.TryLock() {
		return nil
	}
	defer s.using.Unlock()
	if !s.owed.Swap(false) {
		return nil
	}
	_, err := s.db.GarbageCollect(ctx)
	return err
}

// Open opens the images below Root; a second process must not.
func Open(c Config) (*Store, error) {
	for _, dir := range []string{c.Root, c.Mounts} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make the image directory: %w", err)
		}
	}
	cs, err := local.NewStore(filepath.Join(c.Root, "content"))
	if err != nil {
		return nil, fmt.Errorf("open image content: %w", err)
	}
	sn, err := overlay.NewSnapshotter(filepath.Join(c.Root, "layers"))
	if err != nil {
		return nil, fmt.Errorf("open image layers (overlayfs is needed below %s): %w", c.Root, err)
	}
	b, err := bolt.Open(filepath.Join(c.Root, "meta.db"), 0o600, &bolt.Options{Timeout: 5 * time.Second})
	if err != nil {
		sn.Close()
		return nil, fmt.Errorf("open image metadata: %w", err)
	}
	db := metadata.NewDB(b, cs, map[string]snapshots.Snapshotter{snapshotter: sn})
	if err := db.Init(context.Background()); err != nil {
		return nil, errors.Join(fmt.Errorf("read image metadata: %w", err), b.Close(), sn.Close())
	}
	return &Store{Config: c, bolt: b, db: db, content: db.ContentStore(), snap: db.Snapshotter(snapshotter), images: metadata.NewImageStore(db)}, nil
}

// Close frees the metadata; mounts stay.
func (s *Store) Close() error { return errors.Join(s.snap.Close(), s.bolt.Close()) }

func scoped(ctx context.Context) context.Context { return namespaces.WithNamespace(ctx, namespace) }

// Normalize completes a reference as people write it: "redis" becomes
// "docker.io/library/redis:latest".
func Normalize(ref string) (string, error) {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fault.New(fault.Invalid, "image reference %q: %w", ref, err)
	}
	return reference.TagNameOnly(n).String(), nil
}

// Import takes in a Docker or OCI archive, compressed or not, and unpacks its images.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) (infos []Info, err error) {
	ctx = scoped(ctx)
	defer s.take(ctx)()
	defer func() {
		if err != nil { // what came in of it is of no use
			s.owed.Store(true)
		}
	}()
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return nil, fault.New(fault.Invalid, "read image archive: %w", err)
	}
	defer plain.Close()
	top, err := archive.ImportIndex(ctx, s.content, plain)
	if err != nil {
		return nil, fault.New(fault.Invalid, "read image archive: %w", err)
	}
	var index ocispec.Index
	if err := s.readJSON(ctx, top.Digest, &index); err != nil {
		return nil, err
	}
	var out []Info
	for _, m := range index.Manifests {
		name := m.Annotations[images.AnnotationImageName]
		if name == "" {
			name = m.Annotations[ocispec.AnnotationRefName]
		}
		if o.Name != "" {
			if len(index.Manifests) > 1 {
				return nil, fault.New(fault.Invalid, "the archive holds %d images; one name cannot be given to all", len(index.Manifests))
			}
			name = o.Name
		}
		if name == "" {
			return nil, fault.New(fault.Invalid, "the archive does not name its image; give one")
		}
		if name, err = Normalize(name); err != nil {
			return nil, err
		}
		info, err := s.adopt(ctx, name, m)
		if err != nil {
			return nil, err
		}
		out = append(out, info)
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, "the archive holds no image")
	}
	return out, nil
}

// adopt names content that is there, keeps it from being collected, and unpacks it.
func (s *Store) adopt(ctx context.Context, name string, target ocispec.Descriptor) (Info, error) {
	handler := images.SetChildrenMappedLabels(s.content, images.FilterPlatforms(images.ChildrenHandler(s.content), platforms.Default()), images.ChildGCLabels)
	if err := images.Walk(ctx, handler, target); err != nil {
		return Info{}, fmt.Errorf("read image %s: %w", name, err)
	}
	if err := s.unpack(ctx, target); err != nil {
		return Info{}, fmt.Errorf("unpack image %s: %w", name, err)
	}
	if err := s.keep(ctx, name, target); err != nil {
		return Info{}, err
	}
	return s.info(ctx, name, target)
}

// keep names content.
func (s *Store) keep(ctx context.Context, name string, target ocispec.Descriptor) error {
	target.Annotations = nil
	img := images.Image{Name: name, Target: target}
	_, err := s.images.Create(ctx, img)
	if errdefs.IsAlreadyExists(err) {
		_, err = s.images.Update(ctx, img)
	}
	if err != nil {
		return fmt.Errorf("name image %s: %w", name, err)
	}
	return nil
}

func (s *Store) readJSON(ctx context.Context, d digest.Digest, v any) error {
	data, err := content.ReadBlob(ctx, s.content, ocispec.Descriptor{Digest: d})
	if err != nil {
		return fmt.Errorf("read %s: %w", d, err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fault.New(fault.Invalid, "read %s: %w", d, err)
	}
	return nil
}

// manifest returns the manifest for this platform; target may be an index.
func (s *Store) manifest(ctx context.Context, target ocispec.Descriptor) (ocispec.Manifest, error) {
	return images.Manifest(ctx, s.content, target, platforms.Default())
}

func (s *Store) chain(ctx context.Context, target ocispec.Descriptor) (ocispec.Manifest, []digest.Digest, error) {
	m, err := s.manifest(ctx, target)
	if err != nil {
		return m, nil, err
	}
	var config ocispec.Image
	if err := s.readJSON(ctx, m.Config.Digest, &config); err != nil {
		return m, nil, err
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return m, nil, fault.New(fault.Invalid, "the image has %d layers and %d layer identities", len(m.Layers), len(config.RootFS.DiffIDs))
	}
	return m, config.RootFS.DiffIDs, nil
}

func (s *Store) unpack(ctx context.Context, target ocispec.Descriptor) error {
	m, diffs, err := s.chain(ctx, target)
	if err != nil {
		return err
	}
	chainID := identity.ChainID(diffs).String()
	if _, err := s.snap.Stat(ctx, chainID); err != nil {
		layers := make([]rootfs.Layer, len(diffs))
		for i, d := range diffs {
			layers[i] = rootfs.Layer{Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d}, Blob: m.Layers[i]}
		}
		if _, err := rootfs.ApplyLayers(ctx, layers, s.snap, apply.NewFileSystemApplier(s.content)); err != nil {
			return err
		}
	}
	_, err = s.content.Update(ctx, content.Info{Digest: m.Config.Digest, Labels: map[string]string{labelSnap: chainID}}, "labels."+labelSnap)
	return err
}

// dockerConfig has what Docker adds to the OCI image configuration.
type dockerConfig struct {
	Config struct {
		Healthcheck *struct {
			Test                                          []string
			Interval, Timeout, StartPeriod, StartInterval time.Duration
			Retries                                       int
		}
	} `json:"config"`
}

func (s *Store) info(ctx context.Context, name string, target ocispec.Descriptor) (Info, error) {
	m, err := s.manifest(ctx, target)
	if errdefs.IsNotFound(err) && images.IsIndexType(target.MediaType) {
		return Info{Name: name, Digest: target.Digest.String(), Elsewhere: true}, nil
	}
	if err != nil {
		return Info{}, err
	}
	var config ocispec.Image
	if err := s.readJSON(ctx, m.Config.Digest, &config); err != nil {
		return Info{}, err
	}
	var docker dockerConfig
	if err := s.readJSON(ctx, m.Config.Digest, &docker); err != nil {
		return Info{}, err
	}
	info := Info{Name: name, Digest: target.Digest.String(), SizeBytes: m.Config.Size}
	if config.Created != nil {
		info.Created = *config.Created
	}
	for _, l := range m.Layers {
		info.SizeBytes += l.Size
	}
	c := config.Config
	info.Config = Settings{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User, WorkingDir: c.WorkingDir,
		StopSignal: c.StopSignal, Labels: c.Labels,
	}
	for v := range c.Volumes {
		info.Config.Volumes = append(info.Config.Volumes, v)
	}
	for p := range c.ExposedPorts {
		info.Config.ExposedPorts = append(info.Config.ExposedPorts, p)
	}
	slices.Sort(info.Config.Volumes)
	slices.Sort(info.Config.ExposedPorts)
	if h := docker.Config.Healthcheck; h != nil && len(h.Test) > 1 {
		p := &model.Probe{Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
		switch h.Test[0] {
		case "CMD":
			p.Exec = h.Test[1:]
			info.Config.Health = p
		case "CMD-SHELL":
			p.Shell = strings.Join(h.Test[1:], " ")
			info.Config.Health = p
		}
	}
	return info, nil
}

// Get returns an image that is here, by name or digest.
func (s *Store) Get(ctx context.Context, ref string) (Info, error) {
	ctx = scoped(ctx)
	if d, err := digest.Parse(ref); err == nil {
		return s.byDigest(ctx, ref, d)
	}
	name, err := Normalize(ref)
	if err != nil {
		return Info{}, err
	}
	img, err := s.images.Get(ctx, name)
	if errdefs.IsNotFound(err) {
		return Info{}, fault.New(fault.NotFound, "image %s is not on this node", ref)
	}
	if err != nil {
		return Info{}, err
	}
	return s.info(ctx, name, img.Target)
}

func (s *Store) byDigest(ctx context.Context, name string, d digest.Digest) (Info, error) {
	target, err := s.describe(ctx, d)
	if err != nil {
		return Info{}, err
	}
	return s.info(ctx, name, target)
}

// describe rebuilds the descriptor of a manifest or index that is here.
func (s *Store) describe(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	data, err := content.ReadBlob(ctx, s.content, ocispec.Descriptor{Digest: d})
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, fault.New(fault.NotFound, "image %s is not on this node", d)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	mediaType, err := kindOfBlob(data)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, err
}

func kindOfBlob(data []byte) (string, error) {
	var head struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return "", fault.New(fault.Invalid, "neither a manifest nor an index: %w", err)
	}
	switch {
	case head.MediaType != "":
		return head.MediaType, nil
	case head.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case head.Layers != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fault.New(fault.Invalid, "neither a manifest nor an index")
}

// List returns the images that are here, by name.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	ctx = scoped(ctx)
	list, err := s.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var out []Info
	for _, img := range list {
		info, err := s.info(ctx, img.Name, img.Target)
		if err != nil {
			return nil, fmt.Errorf("read image %s: %w", img.Name, err)
		}
		out = append(out, info)
	}
	return out, nil
}

// Remove forgets a name, and everything that nothing else refers to: not what runs.
func (s *Store) Remove(ctx context.Context, ref string) error {
	ctx = scoped(ctx)
	name, err := Normalize(ref)
	if err != nil {
		return err
	}
	if err := s.images.Delete(ctx, name); err != nil {
		if errdefs.IsNotFound(err) {
			return fault.New(fault.NotFound, "image %s is not on this node", ref)
		}
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	if err := s.collect(ctx); err != nil {
		return fmt.Errorf("remove what image %s left: %w", ref, err)
	}
	return nil
}

// Blob opens a blob that is here.
func (s *Store) Blob(ctx context.Context, d string) (io.ReadCloser, int64, error) {
	dg, err := digest.Parse(d)
	if err != nil {
		return nil, 0, fault.New(fault.Invalid, "%q is not a digest", d)
	}
	ra, err := s.content.ReaderAt(scoped(ctx), ocispec.Descriptor{Digest: dg})
	if errdefs.IsNotFound(err) { // it may be the registry's
		ra, err = s.content.ReaderAt(inRegistry(ctx), ocispec.Descriptor{Digest: dg})
	}
	if errdefs.IsNotFound(err) {
		return nil, 0, fault.New(fault.NotFound, "blob %s is not on this node", d)
	}
	if err != nil {
		return nil, 0, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(ra, 0, ra.Size()), ra}, ra.Size(), nil
}

// Mount gives a root file system of its own over an image, writable, under a key; with users it is one of theirs.
// It is idempotent, also after a restart: what is mounted already is taken over.
func (s *Store) Mount(ctx context.Context, key, imageDigest string, users *userns.Users) (string, error) {
	ctx = scoped(ctx)
	defer s.take(ctx)()
	target := filepath.Join(s.Mounts, key)
	if mounted, err := mountinfo.Mounted(target); err == nil && mounted {
		return target, nil
	}
	d, err := digest.Parse(imageDigest)
	if err != nil {
		return "", fault.New(fault.Invalid, "%q is not a digest", imageDigest)
	}
	desc, err := s.describe(ctx, d)
	if err != nil {
		return "", err
	}
	_, diffs, err := s.chain(ctx, desc)
	if err != nil {
		return "", err
	}
	mounts, err := s.snap.Prepare(ctx, key, identity.ChainID(diffs).String(), snapshots.WithLabels(map[string]string{
		labelRoot: time.Now().UTC().Format(time.RFC3339), labelImage: d.String(),
	}))
	if errdefs.IsAlreadyExists(err) {
		mounts, err = s.snap.Mounts(ctx, key)
	}
	if err != nil {
		return "", fmt.Errorf("prepare a root file system: %w", err)
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return "", err
	}
	if users != nil {
		err = s.mountFor(users, mounts, target)
	} else {
		err = mount.All(mounts, target)
	}
	if err != nil {
		return "", fmt.Errorf("mount a root file system: %w", err)
	}
	return target, nil
}

// mountFor mounts an overlay whose layers, all of them directories of the snapshotter's, have the users' owners.
func (s *Store) mountFor(users *userns.Users, mounts []mount.Mount, target string) error {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return fault.New(fault.Unsupported, "a root file system without layers cannot have users of its own")
	}
	base := filepath.Join(s.Root, "layers", "snapshots")
	options, err := userns.Relative(base, mounts[0].Options)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(s.Mounts, ".layers-")
	if err != nil {
		return err
	}
	return errors.Join(users.Overlay(base, scratch, options, target), os.Remove(scratch))
}

// Unmount drops the root file system of a key with what was written to it; it is idempotent.
func (s *Store) Unmount(ctx context.Context, key string) error {
	ctx = scoped(ctx)
	target := filepath.Join(s.Mounts, key)
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	snapshot, err := s.snap.Stat(ctx, key)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the root file system of %s: %w", key, err)
	}
	if err := s.snap.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("drop the root file system of %s: %w", key, err)
	}
	// Its image may have been removed while it was in use.
	named, err := s.named(ctx, snapshot.Labels[labelImage])
	if err != nil || named {
		return err
	}
	return s.collect(ctx)
}

// named reports whether some image has the digest.
func (s *Store) named(ctx context.Context, imageDigest string) (bool, error) {
	list, err := s.images.List(ctx, "target.digest=="+imageDigest)
	if err != nil {
		return false, fmt.Errorf("find the names of image %s: %w", imageDigest, err)
	}
	return len(list) > 0, nil
}

// Written is the directory into which overlayfs writes what changes in the root file system of a key, and how much is
// in the layers of which that was made, in bytes.
func (s *Store) Written(ctx context.Context, key string) (upper string, below int64, err error) {
	ctx = scoped(ctx)
	if upper, err = s.upper(ctx, key); err != nil {
		return "", 0, err
	}
	info, err := s.snap.Stat(ctx, key)
	for err == nil && info.Parent != "" {
		var u snapshots.Usage
		if u, err = s.snap.Usage(ctx, info.Parent); err == nil {
			below += u.Size
			info, err = s.snap.Stat(ctx, info.Parent)
		}
	}
	if err != nil {
		return "", 0, fmt.Errorf("measure what the root file system of %s is made of: %w", key, err)
	}
	return upper, below, nil
}

// upper is the directory into which overlayfs writes what changes in the root file system of a key.
func (s *Store) upper(ctx context.Context, key string) (string, error) {
	mounts, err := s.snap.Mounts(ctx, key)
	if err != nil {
		return "", fault.New(fault.NotFound, "%s has no root file system: %w", key, err)
	}
	for _, m := range mounts {
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				return dir, nil
			}
		}
	}
	return "", fault.New(fault.Unsupported, "the root file system of %s is no overlay: what changed in it cannot be told", key)
}

// Changed calls fn with the directory into which overlayfs writes what changes in the root file system
// of a key, and with what that was made of, for reading.
func (s *Store) Changed(ctx context.Context, key string, fn func(upper, base string) error) error {
	defer s.take(ctx)()
	ctx = scoped(ctx)
	upper, err := s.upper(ctx, key)
	if err != nil {
		return err
	}
	info, err := s.snap.Stat(ctx, key)
	if err != nil {
		return fmt.Errorf("find the root file system of %s: %w", key, err)
	}
	view := fmt.Sprintf("%s.view.%d", key, s.views.Add(1))
	below, err := s.snap.View(ctx, view, info.Parent) // unless we get to remove it, it is collected
	if err != nil {
		return fmt.Errorf("look at the image of %s: %w", key, err)
	}
	defer func() { _ = s.snap.Remove(context.WithoutCancel(ctx), view) }()
	return mount.WithReadonlyTempMount(ctx, below, func(base string) error { return fn(upper, base) })
}

// Mounted returns the keys that have a root file system.
func (s *Store) Mounted(ctx context.Context) ([]string, error) {
	var keys []string
	err := s.snap.Walk(scoped(ctx), func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindActive {
			keys = append(keys, i.Name)
		}
		return nil
	})
	return keys, err
}
