package core

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// Start runs a workload once more: one that was suspended, or whose kept instances have ended. What
// runs already is stopped first and started again.
func (c *Core) Start(ctx context.Context, who Caller, ref string) (err error) {
	a, err := c.begin(who, "start", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeWorkload(ctx, a, ref, func(w *model.Workload, snap *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		w.Suspended, w.StopWithin, w.LaidOut = false, nil, false
		w.Starts++
		for i := range store.InstancesOfWorkload(snap, w.ID) {
			w.Starts = max(w.Starts, i.Starts+1)
		}
		event(cs, now, "workload started", w, fmt.Sprintf("by %s through %s", who.Name, who.Via))
		return nil
	})
}

// Stop suspends a workload; its tasks have the template's StopGrace to end by themselves, or
// within, if given.
func (c *Core) Stop(ctx context.Context, who Caller, ref string, within *time.Duration) (err error) {
	a, err := c.begin(who, "stop", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeWorkload(ctx, a, ref, func(w *model.Workload, snap *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		w.Suspended, w.StopWithin = true, within
		event(cs, now, "workload stopped", w, fmt.Sprintf("by %s through %s", who.Name, who.Via))
		return nil
	})
}

// LayOut gives a workload that was never started, and keeps what ended, its instances: they have nodes, and files there, and
// run nothing. One that was started has them already.
func (c *Core) LayOut(ctx context.Context, who Caller, ref string, laidOut bool) (err error) {
	a, err := c.begin(who, "lay out", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeWorkload(ctx, a, ref, func(w *model.Workload, _ *store.Snapshot, _ *store.ChangeSet, _ time.Time) error {
		if !w.Suspended || w.Starts > 0 || !w.Template.KeepEnded {
			return fault.New(fault.Conflict, "%s was started, or is to be", w.FullName())
		}
		w.LaidOut = laidOut
		return nil
	})
}

// RemoveWorkload removes a workload by its ID, and the services that lead to it. Its tasks have the
// template's StopGrace to end by themselves, or within, if given.
func (c *Core) RemoveWorkload(ctx context.Context, who Caller, id string, within *time.Duration) (err error) {
	a, err := c.begin(who, "remove", id)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		w, ok := store.Get[*model.Workload](snap.Only(who.sees), id)
		if !ok {
			return fault.New(fault.NotFound, "workload %s does not exist", id)
		}
		if err := a.in(w.Namespace); err != nil {
			return err
		}
		if w.Followed != nil {
			return w.Refusal()
		}
		removeWorkload(snap, cs, w, within)
		removeServices(snap, cs, w)
		event(cs, time.Now(), "workload removed", w, fmt.Sprintf("by %s through %s", who.Name, who.Via))
		return nil
	})
}

// RemoveService removes a service by its ID; what it leads to stays.
func (c *Core) RemoveService(ctx context.Context, who Caller, id string) (err error) {
	a, err := c.begin(who, "remove", id)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		s, ok := store.Get[*model.Service](snap.Only(who.sees), id)
		if !ok {
			return fault.New(fault.NotFound, "service %s does not exist", id)
		}
		if err := a.in(s.Namespace); err != nil {
			return err
		}
		cs.Expect(model.KindService, s.ID, s.Revision)
		cs.Delete(model.KindService, s.ID)
		return nil
	})
}

// RemovePolicy removes a policy by its ID.
func (c *Core) RemovePolicy(ctx context.Context, who Caller, id string) (err error) {
	a, err := c.begin(who, "remove", id)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		p, ok := store.Get[*model.Policy](snap.Only(who.sees), id)
		if !ok {
			return fault.New(fault.NotFound, "policy %s does not exist", id)
		}
		if err := a.in(p.Namespace); err != nil {
			return err
		}
		cs.Expect(model.KindPolicy, p.ID, p.Revision)
		cs.Delete(model.KindPolicy, p.ID)
		return nil
	})
}

// LabelWorkload gives a workload other labels, in place of those that it has. Its instances go on: policies and
// placement know them by the new ones.
func (c *Core) LabelWorkload(ctx context.Context, who Caller, id string, labels map[string]string) (err error) {
	a, err := c.begin(who, "workload labels", id)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		old, ok := store.Get[*model.Workload](snap.Only(who.sees), id)
		if !ok {
			return fault.New(fault.NotFound, "workload %s does not exist", id)
		}
		if err := a.in(old.Namespace); err != nil {
			return err
		}
		if maps.Equal(old.Labels, labels) {
			return nil
		}
		w := old.Clone()
		w.Labels = maps.Clone(labels)
		put(cs, w)
		return nil
	})
}

// Rename gives a workload, its instances and the service of its name another name.
func (c *Core) Rename(ctx context.Context, who Caller, ref, name string) (err error) {
	a, err := c.begin(who, "rename", ref+" to "+name)
	if err != nil {
		return err
	}
	defer a.end(&err)
	if err := model.CheckName(name); err != nil {
		return fault.New(fault.Invalid, "workload name %w", err)
	}
	return c.changeWorkload(ctx, a, ref, func(w *model.Workload, snap *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		if other, ok := store.ByName[*model.Workload](snap, w.Namespace, w.Application, name); ok {
			return fault.New(fault.Conflict, "the name %s is taken by %s", name, workloadLabel(other))
		}
		event(cs, now, "workload renamed", w, fmt.Sprintf("from %s to %s, by %s through %s", w.Name, name, who.Name, who.Via))
		for i := range store.InstancesOfWorkload(snap, w.ID) {
			d := i.Clone()
			d.Name = fmt.Sprintf("%s.%d", name, i.Slot)
			put(cs, d)
		}
		for s := range store.ByApplication[*model.Service](snap, w.Namespace, w.Application) {
			if s.WorkloadID == w.ID && s.Name == w.Name {
				d := s.Clone()
				d.Name = name
				put(cs, d)
			}
		}
		w.Name = name
		return nil
	})
}

// AwaitLinked waits until an instance is, on its node, on the networks that it has addresses of, and on no others.
func (c *Core) AwaitLinked(ctx context.Context, who Caller, instanceID string) (err error) {
	a, err := c.begin(who, "look", instanceID)
	if err != nil {
		return err
	}
	defer a.end(&err)
	i, err := c.placed(a, instanceID)
	if err != nil {
		return err
	}
	return c.Remote.Linked(ctx, i.NodeID, i.ID, i.Addresses)
}

// Bound bounds a task of an instance anew while it runs; "" is its first. Its workload is not changed: without that the
// task is bounded as before when it is started again.
func (c *Core) Bound(ctx context.Context, who Caller, instanceID, task string, b model.Bounds) (err error) {
	a, err := c.begin(who, "bound", instanceID)
	if err != nil {
		return err
	}
	defer a.end(&err)
	i, err := c.placed(a, instanceID)
	if err != nil {
		return err
	}
	return c.Remote.Bound(ctx, i.NodeID, wire.TaskRef{Instance: i.ID, Task: task}, b)
}

// Signal sends a signal, by number, to the first process of an instance's task; "" is its first.
func (c *Core) Signal(ctx context.Context, who Caller, instanceID, task string, signal int) (err error) {
	a, err := c.begin(who, "signal", fmt.Sprintf("%s: %d", instanceID, signal))
	if err != nil {
		return err
	}
	defer a.end(&err)
	i, err := c.placed(a, instanceID)
	if err != nil {
		return err
	}
	return c.Remote.Signal(ctx, i.NodeID, wire.TaskRef{Instance: i.ID, Task: task}, signal)
}

// Attach connects to the streams of an instance's task; see driver.Driver.
func (c *Core) Attach(ctx context.Context, who Caller, instanceID, task string, s driver.Streams) (err error) {
	a, err := c.begin(who, "attach", instanceID)
	if err != nil {
		return err
	}
	defer a.end(&err)
	i, err := c.placed(a, instanceID)
	if err != nil {
		return err
	}
	return c.Remote.Attach(ctx, i.NodeID, wire.TaskRef{Instance: i.ID, Task: task}, s)
}

// Dial connects to a TCP port of an instance as the instance would itself: s has what is sent there,
// and gets what comes back.
func (c *Core) Dial(ctx context.Context, who Caller, instanceID string, port int, s driver.Streams) (err error) {
	a, err := c.begin(who, "dial", fmt.Sprintf("%s: port %d", instanceID, port))
	if err != nil {
		return err
	}
	defer a.end(&err)
	i, err := c.placed(a, instanceID)
	if err != nil {
		return err
	}
	return c.Remote.Dial(ctx, i.NodeID, i.ID, port, s)
}

// TaskLogs yields the log of one task of an instance. When following, it ends with the task.
func (c *Core) TaskLogs(ctx context.Context, who Caller, instanceID, task string, o driver.LogOptions, yield func(driver.LogEntry) error) (err error) {
	a, err := c.begin(who, "logs", instanceID)
	if err != nil {
		return err
	}
	defer a.end(&err)
	i, err := c.placed(a, instanceID)
	if err != nil {
		return err
	}
	return c.Remote.Logs(ctx, i.NodeID, wire.TaskRef{Instance: i.ID, Task: task}, o, yield)
}

func (c *Core) placed(a *act, instanceID string) (*model.Instance, error) {
	i, ok := store.Get[*model.Instance](c.look(a.who), instanceID)
	if !ok {
		return nil, fault.New(fault.NotFound, "instance %s does not exist", instanceID)
	}
	if err := a.in(i.Namespace); err != nil {
		return nil, err
	}
	if i.NodeID == "" {
		return nil, fault.New(fault.Unavailable, "%s has no node yet", i.FullName())
	}
	return i, nil
}

// AwaitGone waits until no instance of a workload is left.
func (c *Core) AwaitGone(ctx context.Context, who Caller, workloadID string) error {
	if _, err := c.begin(who, "look", ""); err != nil {
		return err
	}
	return c.awaitGone(ctx, []string{workloadID})
}

// PullImage gets what a registry has under a name now into the cluster. as, unless it is empty, is who asks for it.
func (c *Core) PullImage(ctx context.Context, who Caller, ref string, as image.Credentials, progress func(image.Progress)) (info image.Info, err error) {
	a, err := c.begin(who, "image import", ref)
	if err != nil {
		return info, err
	}
	defer a.end(&err)
	name, err := image.Normalize(ref)
	if err != nil {
		return info, err
	}
	snap := c.Store.Snapshot()
	if own := OwnName(snap, name); image.Host(own) == image.RegistryHost {
		if img, ok := store.ByName[*model.Image](snap, "", "", own); ok { // what the cluster's registry has, the cluster has
			return c.Images.Ensure(ctx, own, img.Digest, progress)
		}
		name = own
	}
	info, err = c.Images.Pull(ctx, name, image.PullOptions{As: as, Progress: progress})
	if err != nil {
		return info, err
	}
	if err := c.recordImages(ctx, []image.Info{info}); err != nil {
		return info, err
	}
	c.Log.Info("image pulled", "image", info.Name, "by", who.Name, "via", who.Via)
	return info, nil
}

// ResolveImage asks a registry what it has under a name now.
func (c *Core) ResolveImage(ctx context.Context, who Caller, ref string, as image.Credentials) (image.Remote, error) {
	if _, err := c.begin(who, "image resolve", ref); err != nil {
		return image.Remote{}, err
	}
	return c.Images.Resolve(ctx, ref, as)
}

// PushImage sends an image of the cluster to the registry that its name names, and returns what that has then.
func (c *Core) PushImage(ctx context.Context, who Caller, img *model.Image, as image.Credentials, progress func(image.Progress)) (d ocispec.Descriptor, err error) {
	a, err := c.begin(who, "image push", "")
	if err != nil {
		return d, err
	}
	defer a.end(&err)
	a.what = img.Name
	return c.Images.Push(ctx, img.Name, img.Digest, as, progress)
}

// PushNamedImage sends the image of the cluster that ref names to the registry that the name as names, or ref where that is
// "". What the name of this cluster's own registry names gets that name. It returns the name and what has it then.
func (c *Core) PushNamedImage(ctx context.Context, who Caller, ref, as string, login image.Credentials, progress func(image.Progress)) (name, digest string, err error) {
	a, err := c.begin(who, "image push", ref)
	if err != nil {
		return "", "", err
	}
	defer a.end(&err)
	if name, err = image.Normalize(ref); err != nil {
		return "", "", err
	}
	snap := c.Store.Snapshot()
	img, ok := store.ByName[*model.Image](snap, "", "", OwnName(snap, name))
	if !ok {
		return "", "", fault.New(fault.NotFound, "image %s does not exist", ref)
	}
	name = img.Name
	if as != "" {
		if name, err = image.Normalize(as); err != nil {
			return "", "", err
		}
		if own := OwnName(snap, name); image.Host(own) == image.RegistryHost {
			return own, img.Digest, c.tag(ctx, img, own)
		}
	}
	d, err := c.Images.Push(ctx, name, img.Digest, login, progress)
	return name, d.Digest.String(), err
}

// TagImage gives an image of the cluster another name.
func (c *Core) TagImage(ctx context.Context, who Caller, img *model.Image, name string) (err error) {
	a, err := c.begin(who, "image import", name)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.tag(ctx, img, name)
}

func (c *Core) tag(ctx context.Context, img *model.Image, name string) error {
	info, err := c.Images.Tag(ctx, img.Name, img.Digest, name)
	if err != nil {
		return err
	}
	return c.recordImages(ctx, []image.Info{info})
}

// RemoveVolume removes a volume that no workload mounts, and what it holds.
func (c *Core) RemoveVolume(ctx context.Context, who Caller, id string) (err error) {
	a, err := c.begin(who, "volume remove", id)
	if err != nil {
		return err
	}
	defer a.end(&err)
	snap := c.Store.Snapshot()
	v, ok := store.Get[*model.Volume](snap, id)
	if !ok {
		return fault.New(fault.NotFound, "volume %s does not exist", id)
	}
	if err := a.in(v.Namespace); err != nil {
		return err
	}
	if user := usesVolume(snap, id); user != nil {
		return fault.New(fault.Conflict, "volume %s is used by %s", v.FullName(), workloadLabel(user))
	}
	return c.removeVolumes(ctx, []*model.Volume{v})
}

// usesVolume is a workload that mounts a volume, or has an instance that does; nil when there is none.
func usesVolume(snap *store.Snapshot, id string) *model.Workload {
	mounts := func(t *model.Template) bool {
		for _, task := range slices.Concat(t.InitTasks, t.Tasks) {
			for _, m := range task.Mounts {
				if m.Type == model.MountVolume && m.Source == id {
					return true
				}
			}
		}
		return false
	}
	for w := range store.List[*model.Workload](snap) {
		if mounts(&w.Template) {
			return w
		}
	}
	return nil
}

// RemoveNetwork removes a network that no workload is attached to.
func (c *Core) RemoveNetwork(ctx context.Context, who Caller, id string) (err error) {
	a, err := c.begin(who, "network remove", id)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		n, ok := store.Get[*model.Network](snap, id)
		if !ok {
			return fault.New(fault.NotFound, "network %s does not exist", id)
		}
		if err := a.in(n.Namespace); err != nil {
			return err
		}
		for w := range store.List[*model.Workload](snap) {
			for _, at := range w.Template.Networks {
				if at.Network == id {
					return fault.New(fault.Conflict, "network %s is used by %s", n.FullName(), workloadLabel(w))
				}
			}
		}
		cs.Expect(model.KindNetwork, n.ID, n.Revision)
		cs.Delete(model.KindNetwork, n.ID)
		event(cs, time.Now(), "network removed", n, fmt.Sprintf("by %s through %s", who.Name, who.Via))
		return nil
	})
}

// RemoveFile removes a secret or config that no workload mounts.
func (c *Core) RemoveFile(ctx context.Context, who Caller, kind model.Kind, id string) (err error) {
	a, err := c.begin(who, "file remove", string(kind)+" "+id)
	if err != nil {
		return err
	}
	defer a.end(&err)
	if kind != model.KindSecret && kind != model.KindConfig {
		return fault.New(fault.Invalid, "%s %s is neither a secret nor a config", kind, id)
	}
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		if obj := fileOf(snap, kind, id); obj != nil {
			if err := a.in(obj.GetMeta().Namespace); err != nil {
				return err
			}
		}
		for w := range store.List[*model.Workload](snap) {
			for _, task := range slices.Concat(w.Template.InitTasks, w.Template.Tasks) {
				for _, m := range task.Mounts {
					if m.Source == id && string(m.Type) == string(kind) {
						return fault.New(fault.Conflict, "%s %s is used by %s", kind, id, workloadLabel(w))
					}
				}
			}
		}
		cs.Delete(kind, id)
		return nil
	})
}

// LabelFile replaces the labels of a secret or config.
func (c *Core) LabelFile(ctx context.Context, who Caller, kind model.Kind, id string, labels map[string]string) (err error) {
	a, err := c.begin(who, "file labels", string(kind)+" "+id)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		obj := fileOf(snap.Only(who.sees), kind, id)
		if obj == nil {
			return fault.New(fault.NotFound, "%s %s does not exist", kind, id)
		}
		if err := a.in(obj.GetMeta().Namespace); err != nil {
			return err
		}
		obj = obj.CloneObject()
		obj.GetMeta().Labels = labels
		put(cs, obj)
		return nil
	})
}

// fileOf returns a secret or config, nil when there is none.
func fileOf(snap *store.Snapshot, kind model.Kind, id string) model.Object {
	switch kind {
	case model.KindSecret:
		if s, ok := store.Get[*model.Secret](snap, id); ok {
			return s
		}
	case model.KindConfig:
		if c, ok := store.Get[*model.Config](snap, id); ok {
			return c
		}
	}
	return nil
}
