package core

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// Logs yields the log lines of all tasks of an application, workload or instance: those that are
// there already in order of time, then, when following, each as it comes, also from instances
// that are started later.
func (c *Core) Logs(ctx context.Context, who Caller, ref string, o driver.LogOptions, yield func(LogLine) error) error {
	a, err := c.begin(who, "logs", ref)
	if err != nil {
		return err
	}
	f, err := find(c.look(who), who.namespace(), ref)
	if err == nil {
		err = a.about(f)
	}
	if err != nil {
		return err
	}
	if f.Node != nil {
		return fault.New(fault.Invalid, "%s is a node; name an application, a workload or an instance", ref)
	}
	if !o.Follow {
		return c.collectLogs(ctx, f, o, yield)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := make(chan LogLine, 256)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	known := map[string]bool{}
	open := func() {
		for _, s := range c.sources(f) {
			if known[s.key()] {
				continue
			}
			known[s.key()] = true
			options := o // which changes below
			wg.Go(func() {
				_ = c.readLog(ctx, s, options, func(l LogLine) error { // an instance that goes away ends its part
					select {
					case lines <- l:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				})
			})
		}
	}
	open()
	o.Tail = -1 // whatever starts from now on is wanted from its beginning
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case l := <-lines:
			if err := yield(l); err != nil {
				return err
			}
		case <-tick.C:
			open()
		}
	}
}

// logSource is one run of one task of one instance.
type logSource struct {
	instance *model.Instance
	task     string
	run      int
	node     string
}

func (s logSource) key() string { return fmt.Sprint(s.instance.ID, s.task, s.run) }

func (c *Core) sources(f Found) []logSource {
	snap := c.Store.Snapshot()
	var out []logSource
	for _, i := range instancesOf(snap, f) {
		if i.NodeID == "" || i.Status.State == model.InstanceLost {
			continue
		}
		if fresh, ok := store.Get[*model.Instance](snap, i.ID); ok {
			i = fresh
		}
		node := model.ShortID(i.NodeID)
		if n, ok := store.Get[*model.Node](snap, i.NodeID); ok {
			node = n.Name
		}
		for _, t := range i.Status.Tasks {
			out = append(out, logSource{instance: i, task: t.Name, run: t.Run, node: node})
		}
	}
	return out
}

func (c *Core) readLog(ctx context.Context, s logSource, o driver.LogOptions, yield func(LogLine) error) error {
	return c.Remote.Logs(ctx, s.instance.NodeID, wire.TaskRef{Instance: s.instance.ID, Task: s.task}, o, func(e driver.LogEntry) error {
		return yield(LogLine{Instance: s.instance.ID, Name: s.instance.FullName(), Node: s.node, Task: s.task, LogEntry: e})
	})
}

// maxCollected bounds what a log without following may hold in memory, in lines.
const maxCollected = 200_000

func (c *Core) collectLogs(ctx context.Context, f Found, o driver.LogOptions, yield func(LogLine) error) error {
	sources := c.sources(f)
	if len(sources) == 0 {
		return fault.New(fault.Unavailable, "%s has not been started yet; `tutti explain` says why", f.describe())
	}
	var mu sync.Mutex
	var all []LogLine
	var errs []error
	var wg sync.WaitGroup
	for _, s := range sources {
		wg.Go(func() {
			err := c.readLog(ctx, s, o, func(l LogLine) error {
				mu.Lock()
				defer mu.Unlock()
				if len(all) >= maxCollected {
					return fault.New(fault.Exhausted, "more than %d lines; use --tail or --since", maxCollected)
				}
				all = append(all, l)
				return nil
			})
			if err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("log of %s on %s: %w", s.instance.FullName(), s.node, err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.SortStableFunc(all, func(a, b LogLine) int { return a.Time.Compare(b.Time) })
	for _, l := range all {
		if err := yield(l); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// Exec runs a process in a task of an instance; a workload means its first running instance.
func (c *Core) Exec(ctx context.Context, who Caller, ref, task string, spec driver.ExecSpec, s driver.Streams) (code int, err error) {
	a, err := c.begin(who, "exec", execText(ref, &spec))
	if err != nil {
		return 0, err
	}
	defer a.end(&err)
	snap := c.look(who)
	f, err := find(snap, who.namespace(), ref)
	if err == nil {
		err = a.about(f)
	}
	if err != nil {
		return 0, err
	}
	if spec.Privileged && !who.has(model.RoleOperator, "") {
		return 0, a.refusal("")
	}
	if f.Instance == nil && f.Workload == nil {
		return 0, fault.New(fault.Invalid, "%s is %s; name a workload or an instance", ref, f.describe())
	}
	for _, i := range instancesOf(snap, f) {
		if i.Status.State == model.InstanceRunning || i.Status.State == model.InstanceStarting && task != "" {
			c.Log.Info("process started in an instance", "instance", i.ID, "name", i.FullName(), "by", who.Name, "via", who.Via)
			return c.Remote.Exec(ctx, i.NodeID, wire.TaskRef{Instance: i.ID, Task: task}, spec, s)
		}
	}
	return 0, fault.New(fault.Unavailable, "%s is not running; `tutti explain %s` says why", f.describe(), ref)
}

// Events yields what happened since a time, oldest first, and goes on when following.
func (c *Core) Events(ctx context.Context, who Caller, since time.Time, follow bool, yield func(*model.Event) error) error {
	if _, err := c.begin(who, "look", ""); err != nil {
		return err
	}
	snap := c.look(who)
	var past []*model.Event
	for e := range store.List[*model.Event](snap) {
		if !e.Time.Before(since) {
			past = append(past, e)
		}
	}
	slices.SortFunc(past, func(a, b *model.Event) int {
		if a.Revision != b.Revision {
			return int(int64(a.Revision) - int64(b.Revision))
		}
		return a.Time.Compare(b.Time)
	})
	for _, e := range past {
		if err := yield(e); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	w := c.Store.Watch(snap.Revision(), model.KindEvent)
	for {
		b, err := w.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fault.New(fault.Unavailable, "events were missed: %w", err)
		}
		for _, ch := range b.Changes {
			if e, ok := ch.New.(*model.Event); ok && ch.Old == nil && who.sees(e) {
				if err := yield(e); err != nil {
					return err
				}
			}
		}
	}
}

// ImportImage takes an image archive into the cluster: this server keeps it, and so do all other
// servers that are there, so that it survives any one of them.
func (c *Core) ImportImage(ctx context.Context, who Caller, r io.Reader, name string) (infos []image.Info, err error) {
	a, err := c.begin(who, "image import", name)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, i := range infos {
			a.what = i.Name + " " + i.Digest
		}
		a.end(&err)
	}()
	infos, err = c.Images.Import(ctx, r, image.ImportOptions{Name: name})
	if err != nil {
		return nil, err
	}
	if err := c.recordImages(ctx, infos); err != nil {
		return nil, err
	}
	c.Log.Info("images imported", "count", len(infos), "by", who.Name, "via", who.Via)
	return infos, nil
}

// recordImages writes images that this server holds into the state and spreads them.
func (c *Core) recordImages(ctx context.Context, infos []image.Info) error {
	write := func(holders []string) error {
		return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
			for _, info := range infos {
				img := &model.Image{
					Meta:   model.Meta{ID: model.NewID(), Name: info.Name, Created: time.Now()},
					Digest: info.Digest, SizeBytes: info.SizeBytes, Health: info.Config.Health, Pulled: info.Pulled,
				}
				if old, ok := store.ByName[*model.Image](snap, "", "", info.Name); ok {
					img.Meta = old.Clone().Meta
					if old.Digest == img.Digest {
						img.Signed, img.Pulled = old.Signed, img.Pulled || old.Pulled
					}
				}
				put(cs, img)
				if info.Elsewhere { // nobody here has more than its name
					cs.PutStatus(img)
					continue
				}
				img.Status.Nodes = holders
				cs.PutStatus(img)
			}
			return nil
		})
	}
	holders := []string{c.NodeID}
	if err := write(holders); err != nil {
		return fmt.Errorf("record images: %w", err)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for n := range store.List[*model.Node](c.Store.Snapshot()) {
		if !n.Server || n.ID == c.NodeID || n.Status.State != model.NodeReady {
			continue
		}
		wg.Go(func() {
			for _, info := range infos {
				if info.Elsewhere {
					continue
				}
				if err := c.Remote.EnsureImage(ctx, n.ID, info.Name, info.Digest); err != nil {
					c.Log.Warn("image could not be copied to a server", "image", info.Name, "node", n.Name, "error", err)
					return
				}
			}
			mu.Lock()
			holders = append(holders, n.ID)
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(holders) == 1 {
		return nil
	}
	slices.Sort(holders)
	return write(holders)
}

// RemoveImage makes the cluster forget an image that no workload uses.
func (c *Core) RemoveImage(ctx context.Context, who Caller, ref string) (err error) {
	a, err := c.begin(who, "image remove", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	name, err := image.Normalize(ref)
	if err != nil {
		return err
	}
	return c.removeImage(ctx, OwnName(c.Store.Snapshot(), name))
}

func (c *Core) removeImage(ctx context.Context, name string) error {
	var img *model.Image
	err := c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		var ok bool
		if img, ok = store.ByName[*model.Image](snap, "", "", name); !ok {
			return fault.New(fault.NotFound, "image %s does not exist", name)
		}
		for w := range store.List[*model.Workload](snap) {
			for _, digest := range w.Template.Images() {
				if digest == img.Digest {
					return fault.New(fault.Conflict, "image %s is used by %s", name, workloadLabel(w))
				}
			}
		}
		cs.Delete(model.KindImage, img.ID)
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range img.Status.Nodes {
		if err := c.Remote.RemoveImage(ctx, id, img.Name); err != nil {
			c.Log.Warn("image could not be removed from a node", "image", img.Name, "node", id, "error", err)
		}
	}
	return nil
}

// execText leaves out all but the program's name: arguments may hold passwords.
func execText(ref string, spec *driver.ExecSpec) string {
	if len(spec.Args) == 0 {
		return ref
	}
	return ref + ": " + spec.Args[0]
}
