package core

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// findVolume says which volume a reference means: APPLICATION/NAME, NAME outside of any, or an ID.
func findVolume(snap *store.Snapshot, namespace, ref string) (*model.Volume, error) {
	if v, ok := store.Get[*model.Volume](snap, ref); ok {
		return v, nil
	}
	app, name, ok := strings.Cut(ref, "/")
	if !ok {
		app, name = "", ref
	}
	if v, ok := store.ByName[*model.Volume](snap, namespace, app, name); ok {
		return v, nil
	}
	return nil, fault.New(fault.NotFound, "volume %s does not exist", ref)
}

// volumeNode is where a volume can be got at.
func volumeNode(snap *store.Snapshot, v *model.Volume) (*model.Node, error) {
	if v.Shared() {
		for n := range store.List[*model.Node](snap) {
			if n.Status.State == model.NodeReady {
				return n, nil
			}
		}
		return nil, fault.New(fault.Unavailable, "no node is ready that could mount volume %s", v.FullName())
	}
	if v.NodeID == "" {
		return nil, fault.New(fault.Unavailable, "volume %s lives nowhere yet: nothing has used it", v.FullName())
	}
	n, ok := store.Get[*model.Node](snap, v.NodeID)
	switch {
	case !ok:
		return nil, fault.New(fault.Unavailable, "volume %s lives on node %s, which was removed from the cluster; what it held is there, and nowhere else", v.FullName(), v.NodeID)
	case n.Status.State == model.NodeDown:
		return nil, fault.New(fault.Unavailable, "volume %s lives on node %s, which is down", v.FullName(), n.Name)
	}
	return n, nil
}

// BackupVolume writes what a volume holds to w, as a tar archive. What writes to it meanwhile may be in it by half.
func (c *Core) BackupVolume(ctx context.Context, who Caller, ref string, w io.Writer) (err error) {
	a, err := c.begin(who, "volume backup", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	snap := c.look(who)
	v, err := findVolume(snap, who.namespace(), ref)
	if err != nil {
		return err
	}
	if err := a.in(v.Namespace); err != nil {
		return err
	}
	n, err := volumeNode(snap, v)
	if err != nil {
		return err
	}
	return c.Remote.ReadVolume(ctx, n.ID, v, w)
}

// RestoreVolume puts what an archive has in place of what a volume holds, which no instance may use meanwhile. A
// volume that lives nowhere yet, or that does not exist, will live on a node, which may be left out.
func (c *Core) RestoreVolume(ctx context.Context, who Caller, ref, node string, archive io.Reader) (err error) {
	a, err := c.begin(who, "volume restore", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	if err := a.in(who.namespace()); err != nil {
		return err
	}
	var home *model.Node
	var v *model.Volume
	err = c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		if v, err = findVolume(snap.Only(who.sees), who.namespace(), ref); fault.Is(err, fault.NotFound) {
			app, name, ok := strings.Cut(ref, "/")
			if !ok {
				app, name = "", ref
			}
			if err := model.CheckName(name); err != nil {
				return fault.New(fault.Invalid, "volume name %w", err)
			}
			v = &model.Volume{Meta: model.Meta{ID: model.NewID(), Namespace: who.namespace(), Application: app, Name: name, Created: time.Now()}, Driver: "local"}
		} else if err != nil {
			return err
		}
		if err := a.in(v.Namespace); err != nil {
			return err
		}
		if i := mountsVolume(snap, v.ID); i != nil {
			return fault.New(fault.Conflict, "volume %s is used by %s: `tutti suspend` ends what uses it for as long as it is being restored", v.FullName(), i.FullName())
		}
		if v.NodeID != "" || v.Shared() {
			home, err = volumeNode(snap, v)
			if err == nil && node != "" && node != home.Name && node != home.ID && !v.Shared() {
				err = fault.New(fault.Conflict, "volume %s lives on node %s, not on %s", v.FullName(), home.Name, node)
			}
			return err
		}
		if home, err = homeFor(snap, node); err != nil {
			return err
		}
		v = v.Clone()
		v.NodeID = home.ID
		put(cs, v)
		event(cs, time.Now(), "volume restored", v, fmt.Sprintf("on node %s, by %s through %s", home.Name, who.Name, who.Via))
		return nil
	})
	if err != nil {
		return err
	}
	return c.Remote.WriteVolume(ctx, home.ID, v, archive)
}

// homeFor is the node that was named, or some node that takes work.
func homeFor(snap *store.Snapshot, name string) (*model.Node, error) {
	if name != "" {
		n, err := findNode(snap, name)
		if err == nil && n.Status.State != model.NodeReady {
			err = fault.New(fault.Unavailable, "node %s is %s", n.Name, n.Status.State)
		}
		return n, err
	}
	for n := range store.List[*model.Node](snap) {
		if n.Schedulable() {
			return n, nil
		}
	}
	return nil, fault.New(fault.Unavailable, "no node takes work")
}

// mountsVolume is an instance that uses a volume now; nil when there is none.
func mountsVolume(snap *store.Snapshot, id string) *model.Instance {
	for i := range store.List[*model.Instance](snap) {
		if i.NodeID == "" || i.Status.State.Final() {
			continue
		}
		r, ok := store.Get[*model.Revision](snap, i.RevisionID)
		if !ok {
			continue
		}
		for _, tasks := range [][]model.TaskSpec{r.Template.InitTasks, r.Template.Tasks} {
			for _, t := range tasks {
				for _, m := range t.Mounts {
					if m.Type == model.MountVolume && m.Source != "" && i.OwnVolume(m.Source) == id {
						return i
					}
				}
			}
		}
	}
	return nil
}

// RemoveVolumeOf is RemoveVolume by APPLICATION/NAME.
func (c *Core) RemoveVolumeOf(ctx context.Context, who Caller, ref string) error {
	if _, err := c.begin(who, "volume remove", ref); err != nil {
		return err
	}
	v, err := findVolume(c.look(who), who.namespace(), ref)
	if err != nil {
		return err
	}
	return c.RemoveVolume(ctx, who, v.ID)
}
