package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/fault"
)

// Ensure makes an image available here, unpacked. With a digest it is exactly that content,
// from this node, another node, or the registry, in this order. Without one it is what the name
// means: here, or else in the registry.
func (s *Store) Ensure(ctx context.Context, ref, imageDigest string, progress func(Progress)) (Info, error) {
	name, err := Normalize(ref)
	if err != nil {
		return Info{}, err
	}
	for {
		v, err, shared := s.once.Do(name+"@"+imageDigest, func() (any, error) {
			defer s.take(ctx)()
			return s.ensure(scoped(ctx), name, imageDigest, progress)
		})
		if err == nil {
			return v.(Info), nil
		}
		// Another caller's patience is not this one's.
		if gaveUp := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded); !shared || !gaveUp || ctx.Err() != nil {
			return Info{}, err
		}
	}
}

func (s *Store) ensure(ctx context.Context, name, imageDigest string, progress func(Progress)) (Info, error) {
	if imageDigest == "" {
		if info, err := s.Get(ctx, name); err == nil {
			return info, nil
		}
		return s.pull(ctx, name, name, progress)
	}
	d, err := digest.Parse(imageDigest)
	if err != nil {
		return Info{}, fault.New(fault.Invalid, "%q is not a digest", imageDigest)
	}
	if target, err := s.describe(ctx, d); err == nil {
		if err := s.unpack(ctx, target); err == nil { // which finds that it was done before
			return s.info(ctx, name, target)
		}
	}
	if s.Peers != nil {
		peerErr := s.fetchAll(ctx, d, progress)
		if peerErr == nil {
			target, err := s.describe(ctx, d)
			if err != nil {
				return Info{}, err
			}
			return s.adopt(ctx, name, target)
		}
		if !fault.Is(peerErr, fault.NotFound) {
			return Info{}, fmt.Errorf("fetch image %s from another node: %w", name, peerErr)
		}
	}
	pinned, err := pin(name, d)
	if err != nil {
		return Info{}, err
	}
	return s.pull(ctx, name, pinned, progress)
}

// pin makes a reference to exactly some content of an image's repository.
func pin(name string, d digest.Digest) (string, error) {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", fault.New(fault.Invalid, "image reference %q: %w", name, err)
	}
	c, err := reference.WithDigest(reference.TrimNamed(n), d)
	if err != nil {
		return "", fault.New(fault.Invalid, "image reference %q: %w", name, err)
	}
	return c.String(), nil
}

// fetchAll gets a manifest or index, and all below it for this platform, from other nodes.
func (s *Store) fetchAll(ctx context.Context, d digest.Digest, progress func(Progress)) error {
	if err := s.fetch(ctx, ocispec.Descriptor{Digest: d}, progress); err != nil {
		return err
	}
	top, err := s.describe(ctx, d)
	if err != nil {
		return err
	}
	children, err := images.FilterPlatforms(images.ChildrenHandler(s.content), platforms.Default())(ctx, top)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, c := range children {
		g.Go(func() error {
			if images.IsManifestType(c.MediaType) || images.IsIndexType(c.MediaType) {
				return s.fetchAll(ctx, c.Digest, progress)
			}
			return s.fetch(ctx, c, progress)
		})
	}
	return g.Wait()
}

// fetch gets one blob from another node; the content store refuses what its digest does not fit.
func (s *Store) fetch(ctx context.Context, desc ocispec.Descriptor, progress func(Progress)) error {
	if _, err := s.content.Info(ctx, desc.Digest); err == nil {
		return nil
	}
	body, size, err := s.Peers.FetchBlob(ctx, desc.Digest.String())
	if err != nil {
		return err
	}
	defer body.Close()
	if desc.Size == 0 {
		desc.Size = max(size, 0) // which is -1 when it is unknown
	}
	ref := "peer-" + desc.Digest.String()
	counted := &counter{Reader: body, blob: desc.Digest.String(), tell: progress}
	err = content.WriteBlob(ctx, s.content, ref, counted, desc)
	if err == nil || errdefs.IsAlreadyExists(err) {
		return nil
	}
	// What came so far may be what is wrong with it: the next attempt begins anew.
	if abortErr := s.content.Abort(context.WithoutCancel(ctx), ref); abortErr != nil && !errdefs.IsNotFound(abortErr) {
		err = errors.Join(err, abortErr)
	}
	return fmt.Errorf("fetch %s: %w", desc.Digest, err)
}

type counter struct {
	io.Reader
	blob string
	n    int64
	tell func(Progress)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if before := c.n >> 20; (c.n+int64(n))>>20 != before && c.tell != nil {
		c.tell(Progress{Blob: c.blob, Bytes: c.n + int64(n)})
	}
	c.n += int64(n)
	return n, err
}

// pull gets an image from the registry that its name says; ref is the name, or pins its content.
func (s *Store) pull(ctx context.Context, name, ref string, progress func(Progress)) (Info, error) {
	resolver := docker.NewResolver(docker.ResolverOptions{})
	resolved, target, err := resolver.Resolve(ctx, ref)
	if err != nil {
		return Info{}, fault.New(fault.NotFound, "image %s is on no node of this cluster and cannot be pulled: %w", name, rootCause(err))
	}
	fetcher, err := resolver.Fetcher(ctx, resolved)
	if err != nil {
		return Info{}, fault.New(fault.Unavailable, "pull image %s: %w", name, err)
	}
	handler := images.Handlers(
		remotes.FetchHandler(s.content, fetcher),
		images.FilterPlatforms(images.ChildrenHandler(s.content), platforms.Default()),
	)
	if err := images.Dispatch(ctx, handler, nil, target); err != nil {
		return Info{}, fault.New(fault.Unavailable, "pull image %s: %w", name, err)
	}
	return s.adopt(ctx, name, target)
}

// rootCause shortens what a resolver says to its innermost reason.
func rootCause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
