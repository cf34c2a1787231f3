package core

import (
	"context"
	"net"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// ownPort is where servers answer the cluster's registry unless told otherwise.
const ownPort = "7405"

// OwnName is what an image is called in the cluster: whoever names the cluster's registry by one of its own
// names, or by the address of a node, means the same as localhost.
func OwnName(snap *store.Snapshot, name string) string {
	host, rest, _ := strings.Cut(name, "/")
	if host == image.RegistryHost {
		return name
	}
	own := slices.Contains(imageSettings(snap).Names, host)
	if address, port, err := net.SplitHostPort(host); err == nil && port == ownPort && !own {
		for n := range store.List[*model.Node](snap) {
			own = own || n.Server && (n.HostAddress == address || n.Name == address)
		}
	}
	if own {
		return image.RegistryHost + "/" + rest
	}
	return name
}

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
