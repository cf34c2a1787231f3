package image

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/fault"
)

// Detail is all that there is to say of an image for this platform.
type Detail struct {
	Info
	Target     ocispec.Descriptor // the manifest or index
	Config     ocispec.Image
	LayerSizes []int64 // compressed, in the order of Config.RootFS.DiffIDs
	// Layers are those of which root file systems are made, as they are unpacked here, in the same order.
	Layers []Layer
	// Raw is the configuration as it is, with what Docker adds to it.
	Raw []byte
}

// Layer is an unpacked layer on those below it: images that have the same share it.
type Layer struct {
	ID        string
	SizeBytes int64
}

// Describe tells all of an image by name and digest, which is made available here first.
func (s *Store) Describe(ctx context.Context, name, imageDigest string) (Detail, error) {
	info, err := s.Ensure(ctx, name, imageDigest, func(Progress) {})
	if err != nil {
		return Detail{}, err
	}
	ctx = scoped(ctx)
	d := Detail{Info: info}
	if d.Target, err = s.describe(ctx, digest.Digest(info.Digest)); err != nil {
		return d, err
	}
	m, err := s.manifest(ctx, d.Target)
	if err != nil {
		return d, err
	}
	body, _, err := s.Blob(ctx, m.Config.Digest.String())
	if err != nil {
		return d, err
	}
	defer body.Close()
	if d.Raw, err = io.ReadAll(io.LimitReader(body, 16<<20)); err != nil {
		return d, fmt.Errorf("read the configuration of %s: %w", name, err)
	}
	if err := s.readJSON(ctx, m.Config.Digest, &d.Config); err != nil {
		return d, err
	}
	for _, l := range m.Layers {
		d.LayerSizes = append(d.LayerSizes, l.Size)
	}
	for n := range d.Config.RootFS.DiffIDs {
		id := identity.ChainID(d.Config.RootFS.DiffIDs[:n+1]).String()
		u, err := s.snap.Usage(ctx, id)
		if err != nil {
			return d, fmt.Errorf("measure the layers of %s: %w", name, err)
		}
		d.Layers = append(d.Layers, Layer{id, u.Size})
	}
	return d, nil
}

// Tag gives content that is here, or can be got by its present name, another name.
func (s *Store) Tag(ctx context.Context, name, imageDigest, newName string) (Info, error) {
	to, err := Normalize(newName)
	if err != nil {
		return Info{}, err
	}
	if _, err := s.Ensure(ctx, name, imageDigest, func(Progress) {}); err != nil {
		return Info{}, err
	}
	defer s.take(ctx)()
	ctx = scoped(ctx)
	target, err := s.describe(ctx, digest.Digest(imageDigest))
	if err != nil {
		return Info{}, err
	}
	return s.adopt(ctx, to, target)
}

// PullOptions say how an image is pulled.
type PullOptions struct {
	As       Credentials // unless it is empty, in place of what is known of the registry
	Progress func(Progress)
}

// Pull gets what the registry has under a name now, whatever is here under it.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (Info, error) {
	name, err := Normalize(ref)
	if err != nil {
		return Info{}, err
	}
	defer s.take(ctx)()
	return s.pull(scoped(ctx), name, name, o.As, o.Progress)
}

// Export writes images as an archive that Docker and OCI tools read.
func (s *Store) Export(ctx context.Context, w io.Writer, names []string) error {
	defer s.take(ctx)()
	ctx = scoped(ctx)
	options := []archive.ExportOpt{archive.WithPlatform(platforms.Default())}
	for _, name := range names {
		if _, err := s.images.Get(ctx, name); errdefs.IsNotFound(err) {
			return fault.New(fault.NotFound, "image %s is not on this node", name)
		}
		options = append(options, archive.WithImage(s.images, name))
	}
	if err := archive.Export(ctx, s.content, w, options...); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}
