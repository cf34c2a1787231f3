package core

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// newestPatience is how long a registry is waited for that need not answer.
const newestPatience = 10 * time.Second

// resolveImages finds out what each image reference means now: the cluster's own images first,
// then registries.
func (c *Core) resolveImages(ctx context.Context, d *Deployment, out map[string]string) error {
	var problems []string
	for _, w := range d.Workloads {
		for name := range w.Template.Images() {
			if out[name] != "" {
				continue
			}
			digest, err := c.resolveImage(ctx, name, d.Pulls[name], d.Logins[w.Name])
			if fault.Is(err, fault.Forbidden) {
				return fault.New(fault.Forbidden, "workload %s: %w", w.Name, err)
			}
			if err != nil {
				problems = append(problems, fmt.Sprintf("workload %s: %v", w.Name, err))
				continue
			}
			out[name] = digest
		}
	}
	if len(problems) > 0 {
		return fault.New(fault.NotFound, "application %s: %s", d.Application, strings.Join(problems, "; "))
	}
	return nil
}

// resolveImage finds out which content a reference means, has it in the cluster, and refuses what a
// policy wants signed and is not.
func (c *Core) resolveImage(ctx context.Context, ref string, policy PullPolicy, as image.Credentials) (string, error) {
	name, err := image.Normalize(ref)
	if err != nil {
		return "", err
	}
	snap := c.Store.Snapshot()
	if own := OwnName(snap, name); own != name {
		name, ref = own, own
	}
	img, known := store.ByName[*model.Image](snap, "", "", name)
	pull := !known
	switch policy {
	case PullMissing:
	case PullAlways:
		pull = true
	case PullNever:
		if !known {
			return "", fault.New(fault.NotFound, "image %s is not in the cluster, and its pull policy is never", name)
		}
	case PullNewest:
		if known && img.Pulled {
			asking, cancel := context.WithTimeout(ctx, newestPatience)
			r, err := c.Images.Resolve(asking, name, as)
			cancel()
			if err != nil {
				c.Log.Warn("a registry was not asked what an image is now; the one that is here is meant", "image", name, "error", err)
			}
			pull = err == nil && r.Target.Digest.String() != img.Digest
		}
	default:
		return "", fault.New(fault.Invalid, "pull policy %q: missing, always, never and newest are accepted", policy)
	}
	digest := ""
	if known {
		digest = img.Digest
	}
	var info image.Info
	switch {
	case !pull:
	case policy == PullMissing && as == (image.Credentials{}):
		info, err = c.Images.Ensure(ctx, ref, "", func(image.Progress) {})
	default:
		info, err = c.Images.Pull(ctx, ref, image.PullOptions{As: as})
	}
	if err != nil {
		return "", err
	}
	if pull {
		digest = info.Digest
	}
	signed, err := c.checkSignature(ctx, name, digest, img, as)
	if err != nil {
		return "", err
	}
	if pull {
		if err := c.recordImages(ctx, []image.Info{info}); err != nil {
			return "", err
		}
	}
	return digest, c.noteSigned(ctx, name, digest, signed)
}

// noteSigned remembers whose signatures of an image were verified.
func (c *Core) noteSigned(ctx context.Context, name, digest string, signed []string) error {
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		img, ok := store.ByName[*model.Image](snap, "", "", name)
		if !ok || img.Digest != digest || slices.Equal(img.Signed, signed) {
			return nil
		}
		n := img.Clone()
		n.Signed = signed
		put(cs, n)
		return nil
	})
}
