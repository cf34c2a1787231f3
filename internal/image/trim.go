package image

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// usedAgain is how long ago an image was last used before its use is written down anew.
const usedAgain = 10 * time.Minute

// used notes that an image is used, roughly: what was not used for longest is removed first.
func (s *Store) used(ctx context.Context, name string) {
	img, err := s.images.Get(ctx, name)
	if err == nil && time.Since(img.UpdatedAt) > usedAgain {
		_, err = s.images.Update(ctx, img, "target")
	}
	if err != nil && !errdefs.IsNotFound(err) {
		s.Log.Warn("the use of an image could not be noted", "image", name, "error", err)
	}
}

// Size is how much content and layers take on this node, in bytes; root file systems of tasks are not in it.
func (s *Store) Size(ctx context.Context) (int64, error) {
	ctx = scoped(ctx)
	var total int64
	for _, in := range []context.Context{ctx, inRegistry(ctx)} {
		err := s.content.Walk(in, func(i content.Info) error { total += i.Size; return nil })
		if err != nil {
			return 0, fmt.Errorf("measure the content of images: %w", err)
		}
	}
	err := s.snap.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		if i.Kind != snapshots.KindCommitted {
			return nil
		}
		u, err := s.snap.Usage(ctx, i.Name)
		total += u.Size
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("measure the layers of images: %w", err)
	}
	return total, nil
}

// Trim removes images until what is here takes no more than a limit, those first that were not used for longest. It
// never removes what runs, or what keep wants. It returns the names of those that went.
func (s *Store) Trim(ctx context.Context, limit int64, keep func(name, digest string) bool) (gone []string, err error) {
	size, err := s.Size(ctx)
	if err != nil || size <= limit {
		return nil, err
	}
	ctx = scoped(ctx)
	mounted := map[string]bool{}
	err = s.snap.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindActive {
			mounted[i.Labels[labelImage]] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find what runs: %w", err)
	}
	list, err := s.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	slices.SortFunc(list, func(a, b images.Image) int { return a.UpdatedAt.Compare(b.UpdatedAt) })
	for _, img := range list {
		d := img.Target.Digest.String()
		if mounted[d] || keep(img.Name, d) {
			continue
		}
		if err := s.images.Delete(ctx, img.Name); err != nil && !errdefs.IsNotFound(err) {
			return gone, fmt.Errorf("remove image %s: %w", img.Name, err)
		}
		gone = append(gone, img.Name)
		if err := s.collect(ctx); err != nil {
			return gone, err
		}
		if size, err = s.Size(ctx); err != nil || size <= limit {
			return gone, err
		}
	}
	return gone, nil
}
