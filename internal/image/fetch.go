package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

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
		return s.pull(ctx, name, name, Credentials{}, progress)
	}
	d, err := digest.Parse(imageDigest)
	if err != nil {
		return Info{}, fault.New(fault.Invalid, "%q is not a digest", imageDigest)
	}
	if target, err := s.describe(ctx, d); err == nil {
		if err := s.unpack(ctx, target); err == nil { // which finds that it was done before
			s.used(ctx, name)
			return s.info(ctx, name, target)
		}
	}
	if s.Peers != nil {
		peerErr := s.fetchAll(ctx, d, d, progress)
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
	return s.pull(ctx, name, pinned, Credentials{}, progress)
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

// fetchAll gets a manifest or index of an image, and all below it for this platform, from other nodes.
func (s *Store) fetchAll(ctx context.Context, image, d digest.Digest, progress func(Progress)) error {
	if err := s.fetch(ctx, image, ocispec.Descriptor{Digest: d}, progress); err != nil {
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
				return s.fetchAll(ctx, image, c.Digest, progress)
			}
			return s.fetch(ctx, image, c, progress)
		})
	}
	return g.Wait()
}

// fetch gets one blob from another node; the content store refuses what its digest does not fit.
func (s *Store) fetch(ctx context.Context, image digest.Digest, desc ocispec.Descriptor, progress func(Progress)) error {
	if _, err := s.content.Info(ctx, desc.Digest); err == nil {
		return nil
	}
	body, size, err := s.Peers.FetchBlob(ctx, image.String(), desc.Digest.String())
	if err != nil {
		return err
	}
	defer body.Close()
	if desc.Size == 0 {
		desc.Size = max(size, 0) // which is -1 when it is unknown
	}
	ref := "peer-" + desc.Digest.String()
	counted := &counter{Reader: body, blob: desc.Digest.String(), total: desc.Size, tell: progress}
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
	blob  string
	n     int64
	total int64
	tell  func(Progress)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if before := c.n >> 20; ((c.n+int64(n))>>20 != before || errors.Is(err, io.EOF)) && c.tell != nil {
		c.tell(Progress{Blob: c.blob, Bytes: c.n + int64(n), Total: c.total})
	}
	c.n += int64(n)
	return n, err
}

// pullAttempts bounds how often a pull that broke off goes on where it was; what came stays.
const pullAttempts = 3

// pull gets an image from the registry that its name says; ref is the name, or pins its content.
func (s *Store) pull(ctx context.Context, name, ref string, as Credentials, progress func(Progress)) (Info, error) {
	target, get, end, err := s.find(ctx, name, ref, as)
	if err != nil {
		return Info{}, err
	}
	defer end()
	handler := images.Handlers(
		remotes.FetchHandler(s.content, told{get, progress}),
		images.FilterPlatforms(images.ChildrenHandler(s.content), platforms.Default()),
	)
	for attempt := 1; ; attempt++ {
		// A few at a time; each goes on where an earlier attempt ended.
		if err = images.Dispatch(ctx, handler, semaphore.NewWeighted(parallelBlobs), target); err == nil {
			break
		}
		if attempt == pullAttempts || ctx.Err() != nil || errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
			return Info{}, fault.New(fault.Unavailable, "pull image %s: %w", name, err)
		}
	}
	if _, err := s.manifest(ctx, target); errdefs.IsNotFound(err) {
		return Info{Name: name, Digest: target.Digest.String(), Elsewhere: true, Pulled: true}, s.keep(ctx, name, target)
	}
	info, err := s.adopt(ctx, name, target)
	info.Pulled = true
	return info, err
}

const parallelBlobs = 6

// find asks the registry what a reference means now, and returns what gets content of it.
func (s *Store) find(ctx context.Context, name, ref string, as Credentials) (target ocispec.Descriptor, get remotes.Fetcher, end func(), err error) {
	w := Wanted{Name: name}
	if n, err := reference.ParseNormalizedNamed(ref); err == nil {
		if d, ok := n.(reference.Digested); ok {
			w.Digest = d.Digest().String()
		}
	}
	resolver, end, err := s.resolver(ctx, w, as)
	if err != nil {
		return target, nil, nil, err
	}
	resolved, target, err := resolver.Resolve(ctx, ref)
	if err != nil {
		end()
		return target, nil, nil, fault.New(fault.NotFound, "image %s is on no node of this cluster and cannot be pulled: %w", name, plainly(err))
	}
	if get, err = resolver.Fetcher(ctx, resolved); err != nil {
		end()
		return target, nil, nil, fault.New(fault.Unavailable, "pull image %s: %w", name, err)
	}
	return target, get, end, nil
}

// Remote is what a registry has under a name now.
type Remote struct {
	Target ocispec.Descriptor
	// Platforms are those that an index has something for; of a single manifest they are not known.
	Platforms []ocispec.Platform
}

// Resolve asks the registry which content a reference means now. A pinned one means what it says.
func (s *Store) Resolve(ctx context.Context, ref string, as Credentials) (Remote, error) {
	name, err := Normalize(ref)
	if err != nil {
		return Remote{}, err
	}
	target, get, end, err := s.find(ctx, name, name, as)
	if err != nil {
		return Remote{}, err
	}
	defer end()
	out := Remote{Target: target}
	if !images.IsIndexType(target.MediaType) {
		return out, nil
	}
	var index ocispec.Index
	if err := readRemote(ctx, get, target, &index); err != nil {
		return out, fault.New(fault.Unavailable, "read the index of %s: %w", name, err)
	}
	for _, m := range index.Manifests {
		if m.Platform != nil && m.Platform.OS != "unknown" {
			out.Platforms = append(out.Platforms, *m.Platform)
		}
	}
	return out, nil
}

// readRemote reads a small blob that must have its digest.
func readRemote(ctx context.Context, get remotes.Fetcher, d ocispec.Descriptor, v any) error {
	body, err := get.Fetch(ctx, d)
	if err != nil {
		return err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	if err != nil {
		return err
	}
	if len(data) > maxManifest {
		return fault.New(fault.Invalid, "%s is larger than %d bytes", d.Digest, maxManifest)
	}
	if digest.FromBytes(data) != d.Digest {
		return fault.New(fault.Invalid, "what came does not have the digest %s", d.Digest)
	}
	if raw, ok := v.(*[]byte); ok {
		*raw = data
		return nil
	}
	return json.Unmarshal(data, v)
}

// told says of what comes from a registry how much of it has come.
type told struct {
	remotes.Fetcher
	tell func(Progress)
}

func (t told) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	body, err := t.Fetcher.Fetch(ctx, d)
	if err != nil || t.tell == nil {
		return body, err
	}
	c := &counter{Reader: body, blob: d.Digest.String(), total: d.Size, tell: t.tell}
	t.tell(Progress{Blob: c.blob, Total: d.Size})
	return &seekable{counter: c, body: body}, nil
}

// seekable is what comes from a registry, which can begin anywhere.
type seekable struct {
	*counter
	body io.ReadCloser
}

func (s *seekable) Close() error { return s.body.Close() }

func (s *seekable) Seek(offset int64, whence int) (int64, error) {
	seeker, ok := s.body.(io.Seeker)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	n, err := seeker.Seek(offset, whence)
	if err == nil {
		s.n = n
	}
	return n, err
}

// plainly shortens what a resolver says to its reason; who is not let in is told that a login is needed.
func plainly(err error) error {
	for e := err; e != nil; e = errors.Unwrap(e) {
		var unexpected remoteerrors.ErrUnexpectedStatus
		if errors.Is(e, docker.ErrInvalidAuthorization) || errors.As(e, &unexpected) && (unexpected.StatusCode == http.StatusUnauthorized || unexpected.StatusCode == http.StatusForbidden) {
			return fmt.Errorf("the registry asks for a login, or takes not this one (tutti registry login): %w", rootCause(err))
		}
	}
	return rootCause(err)
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
