package core

import (
	"context"

	"github.com/tutti-run/tutti/internal/image"
)

// MayRead says whether the caller may read what the cluster's registry has.
func (c *Core) MayRead(who Caller) error {
	_, err := c.begin(who, "look", "")
	return err
}

// MayPush says whether the caller may send parts of images to the cluster's registry.
func (c *Core) MayPush(who Caller) error {
	_, err := c.begin(who, "image push", "")
	return err
}

// ImagePushed makes an image that came to this server's registry one of the cluster's.
func (c *Core) ImagePushed(ctx context.Context, who Caller, name string, adopt func() (image.Info, bool, error)) (err error) {
	a, err := c.begin(who, "image push", name)
	if err != nil {
		return err
	}
	defer a.end(&err)
	info, runs, err := adopt()
	if err != nil || !runs {
		return err
	}
	a.what = name + " " + info.Digest
	return c.recordImages(ctx, []image.Info{info})
}

// RemovePushed makes the registry forget something.
func (c *Core) RemovePushed(who Caller, what string, remove func() error) (err error) {
	a, err := c.begin(who, "image remove", what)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return remove()
}
