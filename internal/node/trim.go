package node

import (
	"context"
	"time"

	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/store"
)

const trimInterval = time.Minute

// trimImages removes images that nothing uses while they take more than their limit. A server keeps those of the
// cluster: others take them from it.
func trimImages(ctx context.Context, cfg *Config, images *image.Store, s *server.Server) error {
	if cfg.ImageBytes <= 0 {
		return nil
	}
	keep := func(name, digest string) bool {
		if s == nil {
			return false
		}
		i, ok := store.ByName[*model.Image](s.Core().Store.Snapshot(), "", "", name)
		return ok && i.Digest == digest
	}
	told := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(trimInterval):
		}
		gone, err := images.Trim(ctx, cfg.ImageBytes, keep)
		if len(gone) > 0 {
			cfg.Log.Info("images were removed to make room", "images", gone)
		}
		if err != nil && ctx.Err() == nil {
			cfg.Log.Warn("images could not be removed to make room", "error", err)
			continue
		}
		size, err := images.Size(ctx)
		over := err == nil && size > cfg.ImageBytes
		if over && !told {
			cfg.Log.Warn("images take more than their limit, and all of them are needed", "bytes", size, "limit", cfg.ImageBytes)
		}
		told = over
	}
}
