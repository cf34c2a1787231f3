package image

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/tutti-run/tutti/internal/fault"
)

// ExtendOptions says what an image is made of: those layers that another one has, and one more.
type ExtendOptions struct {
	Name  string
	Base  string // an archive by its path; "" begins with nothing
	Layer string // a tar by its path
	// Settings go over those of the base; its environment keeps what is not named again.
	Settings                   Settings
	Author, Comment, CreatedBy string
	Created                    time.Time
}

// Extend writes a Docker archive of a new image.
func Extend(w io.Writer, o ExtendOptions) error {
	tag, err := name.NewTag(o.Name)
	if err != nil {
		return fault.New(fault.Invalid, "image name %q: %w", o.Name, err)
	}
	img := v1.Image(empty.Image)
	if o.Base != "" {
		if img, err = tarball.ImageFromPath(o.Base, nil); err != nil {
			return fault.New(fault.Invalid, "read base image: %w", err)
		}
	}
	layer, err := tarball.LayerFromFile(o.Layer)
	if err != nil {
		return fault.New(fault.Invalid, "read the layer: %w", err)
	}
	created := v1.Time{Time: o.Created.UTC()}
	img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{Author: o.Author, Created: created, CreatedBy: o.CreatedBy, Comment: o.Comment}})
	if err != nil {
		return fmt.Errorf("extend image: %w", err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("extend image: %w", err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Created, cf.Author = "linux", created, o.Author
	if cf.Architecture == "" {
		cf.Architecture = runtime.GOARCH
	}
	env := cf.Config.Env
	cf.Config.Env = nil
	for _, e := range env {
		key, _, _ := strings.Cut(e, "=")
		again := false
		for _, own := range o.Settings.Env {
			again = again || strings.HasPrefix(own, key+"=")
		}
		if !again {
			cf.Config.Env = append(cf.Config.Env, e)
		}
	}
	overlaySettings(&cf.Config, &o.Settings)
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return fmt.Errorf("extend image: %w", err)
	}
	if err := tarball.Write(tag, img, w); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	return nil
}
