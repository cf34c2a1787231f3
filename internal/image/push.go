package image

import (
	"context"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/fault"
)

// Push sends an image to the registry that its name names: of several platforms, what this node has. It
// returns what the registry has then.
func (s *Store) Push(ctx context.Context, name, imageDigest string, c Credentials, progress func(Progress)) (ocispec.Descriptor, error) {
	if _, err := s.Ensure(ctx, name, imageDigest, progress); err != nil {
		return ocispec.Descriptor{}, err
	}
	defer s.take(ctx)()
	ctx = scoped(ctx)
	target, err := s.describe(ctx, digest.Digest(imageDigest))
	if err != nil {
		return target, err
	}
	if images.IsIndexType(target.MediaType) {
		children, err := images.FilterPlatforms(images.ChildrenHandler(s.content), platforms.Default())(ctx, target)
		if err != nil {
			return target, err
		}
		if len(children) == 0 {
			return target, fault.New(fault.NotFound, "image %s has nothing for this platform", name)
		}
		target = children[0]
	}
	resolver, end, err := s.resolver(ctx, Wanted{Name: name, Digest: imageDigest}, c)
	if err != nil {
		return target, err
	}
	defer end()
	pusher, err := resolver.Pusher(ctx, name)
	if err != nil {
		return target, fault.New(fault.Invalid, "push image %s: %w", name, err)
	}
	told := func(h images.Handler) images.Handler {
		return images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			children, err := h.Handle(ctx, d)
			if err == nil {
				progress(Progress{Blob: d.Digest.String(), Bytes: d.Size})
			}
			return children, err
		})
	}
	if err := remotes.PushContent(ctx, pusher, target, s.content, nil, platforms.Default(), told); err != nil {
		return target, fault.New(fault.Unavailable, "push image %s: %w", name, err)
	}
	return target, nil
}
